"""``VllmEngine``: whole answers from vLLM in this process, behind the protocol that every engine has.

Activations for extraction come from the passes themselves: the hidden states of a response are summed at all layers
while it is generated, so that nothing is read a second time.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from poise.activations import Probe
from poise.engine.answer_parts import AnswerParts
from poise.engine.static import probes_per_row, seeds_per_row, steering_per_row
from poise.engine.types import Generation, SamplingParams
from poise.errors import InvalidArgument, MissingExtra, NonFiniteActivation, OtherModel, UnsuitableModel
from poise.model import Encoded
from poise.model.loading import adapter_base, locate
from poise.model.tokenizing import load_tokenizer
from poise.progress import track
from poise.steer import Steering
from poise.vllm.private_names import installed_version
from poise.vllm.programs import RequestProgram, ResponseSum, compile_steering
from poise.vllm.runner import FIELD
from poise.vllm.tokens import MarkedTokenizer

__all__ = ["VllmEngine", "check_installed"]

BATCH = 256  # prompts that are handed to vLLM at once, which schedules them itself
MEMORY_SHARE = 0.8  # of the GPU memory that is free when vLLM starts


class VllmEngine:
    """An engine on vLLM's offline ``LLM``, for one model a process. vLLM starts when the first answer is asked for.

    Answers are drawn by vLLM's own random streams: at a temperature above 0 they are others than those of the engines
    on transformers, of the same distribution.

    Args:
        name: Model by the name that ``load_model`` takes.
        options: Further arguments of ``vllm.LLM``, such as ``dtype`` or ``gpu_memory_utilization``. By default vLLM
            takes four fifths of the GPU memory that is free when it starts, texts may be as long as fit in there, and
            on a CPU nothing is compiled.

    Attributes:
        key: Name that tells its answers apart, in kept work, from those of the engines on transformers.
        name: vLLM and its version.

    Raises:
        MissingExtra: vLLM is not installed.
        UnsuitableModel: an adapter, a model whose answers have channels (harmony) or, at the first answer, one whose
            blocks the plugin does not know.
    """

    key = "vllm"

    def __init__(self, name: str, **options: Any) -> None:
        check_installed()
        self._source = locate(name)
        if adapter_base(self._source, name) is not None:
            raise UnsuitableModel(
                f"{name} is an adapter, which vLLM's engine does not run; merge it with `poise merge`."
            )
        self.model = load_tokenizer(name)
        self._marked = MarkedTokenizer.of(self.model.tokenizer)
        if self._marked.thought_marks.channels:
            raise UnsuitableModel(
                f"The answers of {name} have channels, which vLLM's engine does not tell apart; use the local engine."
            )
        self._options = options
        self.name = f"vLLM {installed_version()}"

    @functools.cached_property
    def _llm(self) -> Any:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # steering is handed over as it is, in this process
        with track(f"Starting {self.name}"):
            try:
                from vllm import LLM
            except ImportError as error:
                raise MissingExtra.of(f"The engine vllm needs vllm ({error})", "vllm") from error
            from poise.vllm.plugin import register_for_engine

            register_for_engine()
            options = {"max_model_len": -1, "use_tqdm_on_load": False, **machine_options(), **self._options}
            return LLM(model=self._source, disable_log_stats=True, **options)

    @functools.cached_property
    def _shape(self) -> tuple[int, int]:
        config = self._llm.llm_engine.vllm_config.model_config
        return config.get_total_num_hidden_layers(), config.get_hidden_size()

    @functools.cached_property
    def _window(self) -> int:
        """Most tokens of prompt and answer together."""
        return min(self.model.window, int(self._llm.llm_engine.vllm_config.model_config.max_model_len))

    def start(self) -> None:
        """Start vLLM now, and not with the first answer, so that what is timed then is the answer.

        Raises:
            UnsuitableModel: its blocks are not known to the plugin.
        """
        _ = self._llm

    def plan(self, prompts: Sequence[Encoded], sampling: SamplingParams) -> list[list[int]]:
        """The batches that ``generate`` will run; see ``poise.engine.Engine``."""
        places = range(len(prompts))
        return [list(places[first : first + BATCH]) for first in range(0, len(prompts), BATCH)]

    def generate(
        self,
        prompts: Sequence[Encoded],
        sampling: SamplingParams,
        *,
        seeds: Sequence[int] | None = None,
        steering: Steering | Sequence[Steering | None] | None = None,
        probes: Sequence[Probe] | Sequence[Sequence[Probe]] = (),
        keep_means: bool = False,
    ) -> list[Generation]:
        """Answer each prompt, in order; see ``poise.engine.Engine``."""
        steering_rows = steering_per_row(steering, len(prompts))
        probe_rows = probes_per_row(probes, len(prompts))
        seed_rows = seeds_per_row(seeds, len(prompts))
        if not prompts:
            return []
        self._check_room(prompts, sampling, read=keep_means or any(probe_rows))
        programs = [
            self._program(steered, rows, keep_means=keep_means)
            for steered, rows in zip(steering_rows, probe_rows, strict=True)
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts],
            [self._parameters(sampling, s, p) for s, p in zip(seed_rows, programs, strict=True)],
            use_tqdm=False,
        )
        return [
            self._generation(output.outputs[0], program, sampling, prompt)
            for output, program, prompt in zip(outputs, programs, prompts, strict=True)
        ]

    def _check_room(self, prompts: Sequence[Encoded], sampling: SamplingParams, *, read: bool) -> None:
        longest = max(len(prompt.ids) for prompt in prompts)
        if longest + sampling.max_new_tokens + read > self._window:
            more = " and one more for the last reading" if read else ""
            raise InvalidArgument(
                f"The longest prompt has {longest} tokens, and {sampling.max_new_tokens} new ones{more} exceed the "
                f"{self._window} that vLLM takes of {self.model.name} here; generate fewer with `max_new_tokens`."
            )

    def _program(self, steering: Steering | None, probes: Sequence[Probe], *, keep_means: bool) -> RequestProgram:
        for term in steering.terms if steering else ():
            for vector in (term.vector, *([term.when.vector] if term.when else ())):
                if (vector.layers, vector.width) != self._shape:
                    raise OtherModel(
                        f"{vector.name} has {vector.layers} layers of width {vector.width}, and {self.model.name} has "
                        f"{self._shape[0]} of {self._shape[1]}; extract it on this model."
                    )
        program = compile_steering(steering, probes)
        names = tuple(map(str, range(len(probes))))
        response = ResponseSum(torch.zeros(self._shape)) if keep_means else None
        return replace(program, names=names, response=response)

    def _parameters(self, sampling: SamplingParams, seed: int, program: RequestProgram) -> Any:
        from vllm import SamplingParams as VllmSamplingParams

        read = bool(program.probes or program.response)
        used = read or bool(program.works)
        return VllmSamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens + read,  # vLLM does not run the last token, so does not read it
            seed=seed % 2**63,
            stop_token_ids=sorted(self.model.stop_ids),
            ignore_eos=True,  # the model's own stop tokens are named above
            detokenize=False,
            extra_args={FIELD: program} if used else None,
        )

    def _generation(
        self, output: Any, program: RequestProgram, sampling: SamplingParams, prompt: Encoded
    ) -> Generation:
        ids = tuple(output.token_ids)[: sampling.max_new_tokens]
        stops = [place for place, token in enumerate(ids) if token in self.model.stop_ids]
        ids = ids[: stops[0]] if stops else ids
        answer = AnswerParts(self._marked, prompt.ids)
        for token in ids:
            answer.add(token)
        answer.finish()
        pieces: tuple[str, ...] = ()
        readings, mean = None, None
        if output.poise is not None and not np.isfinite(output.poise.values).all():
            raise NonFiniteActivation(f"{self.model.name} gave NaN or infinity; steer with less strength.")
        if program.probes:
            readings = torch.from_numpy(output.poise.values[: 1 + len(ids)])
            answer.complete()
            pieces = tuple(answer.tracker.pieces)
        if program.response is not None:
            total, tokens = program.response.total, program.response.tokens
            mean = total / tokens if tokens and not answer.divided else torch.full_like(total, torch.nan)
        return Generation(
            ids=ids,
            text=answer.text,
            finish="stop" if stops else "length",
            mean=mean,
            readings=readings,
            pieces=pieces,
            parts=answer.parts,
            thought=answer.thought,
            reply=answer.reply,
        )


def check_installed() -> None:
    """Check that there is a vLLM, before anything is loaded.

    Raises:
        MissingExtra: says how it is installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtra.of("The engine vllm needs vllm, which has an environment of its own as a rule", "vllm")


def machine_options() -> dict[str, Any]:
    """Of a GPU, what vLLM may take beside what is there already, such as the model that reads and judges.

    On a CPU nothing is compiled, which takes minutes.
    """
    if not torch.cuda.is_available():
        return {"enforce_eager": True}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": round(MEMORY_SHARE * free / total, 3)}
