"""Inside vLLM's model runner (V1): which rows belong to which request, and its readings on their way out.

A pass's rows are final in ``_prepare_inputs``, once the runner has updated its states; earlier they are not.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from poise.model.architecture import decoder_blocks
from poise.vllm.block_op import CURRENT, define_block_op, work_after
from poise.vllm.passes import PassPiece, PassPlan, RequestState
from poise.vllm.programs import RequestProgram
from poise.vllm.tokens import FollowedAnswer, MarkedTokenizer, thoughts_of

__all__ = ["FIELD", "WorkerRequests", "install_runner"]

FIELD = "poise"
"""The key of ``vllm_xargs`` and of ``SamplingParams.extra_args``."""
Programs = Callable[[Any], RequestProgram]


class WorkerRequests:
    """The steered and watched requests of one model runner.

    Args:
        programs: The program for what a request has as its field.
    """

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._states: dict[str, RequestState | None] = {}
        self._unsent: dict[str, list[npt.NDArray[np.float32]]] = {}
        self._next: dict[str, int] = {}  # position whose reading is to be sent next
        self._names: dict[int, str] = {}
        self._last: PassPlan | None = None

    def __len__(self) -> int:
        return len(self._states)

    def drop(self, finished: Any) -> None:
        """Forget requests that have ended or were aborted."""
        for name in finished:
            self._states.pop(name, None)
            self._unsent.pop(name, None)
            self._next.pop(name, None)

    def begin_pass(self, runner: Any, scheduled: Any) -> None:
        """Plan the pass over the rows as they are now."""
        pieces, row = [], 0
        self._names = {}
        for name in runner.input_batch.req_ids:
            count = scheduled.num_scheduled_tokens[name]
            request = runner.requests[name]
            if name not in self._states:
                self._states[name] = self._new_state(request, runner.model_config)
            if (state := self._states[name]) is not None and not state.program.idle:
                state.follow(request.output_token_ids)
                pieces.append(PassPiece(state=state, row=row, count=count, start=request.num_computed_tokens))
                self._names[id(state)] = name
            row += count
        if not pieces:
            CURRENT.plan = None
        elif self._last is not None and self._last.fits(pieces, row):
            self._last.begin(pieces)
            CURRENT.plan = self._last
        else:
            CURRENT.plan = self._last = PassPlan(pieces, row, runner.device)

    def _new_state(self, request: Any, config: Any) -> RequestState | None:
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        if extra.get(FIELD) is None:
            return None
        program = self._programs(extra[FIELD])
        state = RequestState(program=program, prompt=request.num_prompt_tokens)
        if program.parts is None and program.has_parts and (tokenizer := self._marked_tokenizer(config)):
            state.answer = FollowedAnswer(tokenizer, request.prompt_token_ids or ())
        return state

    @staticmethod
    def _marked_tokenizer(config: Any) -> MarkedTokenizer | None:
        """The model's tokenizer, if its answers have thoughts."""
        from vllm.tokenizers import cached_tokenizer_from_config

        tokenizer = cached_tokenizer_from_config(config)
        return MarkedTokenizer.of(tokenizer) if thoughts_of(tokenizer) == "marked" else None

    def end_pass(self) -> None:
        """Take the pass's readings, without those that were sent already and came again with a recomputation."""
        plan, CURRENT.plan = CURRENT.plan, None
        if plan is None:
            return
        for piece, values in plan.finish():
            name = self._names[id(piece.state)]
            first = max(piece.start, piece.state.first_read)
            new = values[max(0, self._next.get(name, first) - first) :]
            if len(new):
                self._next[name] = first + len(values)
                self._unsent.setdefault(name, []).append(new.numpy())

    def logit_spreads(self, runner: Any) -> tuple[list[str], torch.Tensor] | None:
        """The largest logit less the smallest [B] of each steered request, with the requests; ``None`` for none."""
        logits, names = runner.execute_model_state.logits, runner.input_batch.req_ids
        states = ((row, name, self._states.get(name)) for row, name in enumerate(names))
        steered = {row: name for row, name, state in states if state and state.program.works}
        if logits is None or not steered:
            return None
        return list(steered.values()), (logits.amax(dim=-1) - logits.amin(dim=-1))[list(steered)]

    def mark_broken(self, names: Sequence[str], spreads: torch.Tensor) -> None:
        """Give requests whose pass broke down a reading of NaN, watched or not: no answer may hide it.

        Their logits are NaN or infinite, or all the same: some of vLLM's norms make 0 of what is infinite.
        """
        sound = (torch.isfinite(spreads) & (spreads > 0)).tolist()
        for name, is_sound in zip(names, sound, strict=True):
            if not is_sound and (state := self._states.get(name)):
                rows = self._unsent.setdefault(name, [])
                rows.append(np.full((1, max(len(state.program.probes), 1)), np.nan, np.float32))

    def outgoing(self, output: Any) -> dict[str, Any]:
        """Readings of the requests that have a new token."""
        from vllm.distributed.aux_output_connector.connector import AuxRequestOutput

        ready = (name for name, ids in zip(output.req_ids, output.sampled_token_ids, strict=True) if len(ids))
        return {
            name: AuxRequestOutput(0, np.concatenate(self._unsent.pop(name))) for name in ready if name in self._unsent
        }


def install_runner(programs: Programs, check_model: Callable[[Any, tuple[torch.nn.Module, ...]], None]) -> None:
    """Patch the runners of this process.

    Args:
        programs: The program for what a request has as its field.
        check_model: Called with a loaded model and its blocks; raises where it may not be steered.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    define_block_op()
    for kind in (GPUModelRunner, CPUModelRunner):
        kind.load_model = _with_blocks(kind.load_model, check_model)

    def requests_of(runner: Any) -> WorkerRequests:
        if not hasattr(runner, "poise_requests"):
            runner.poise_requests = WorkerRequests(programs)
        requests: WorkerRequests = runner.poise_requests
        return requests

    update, prepare, sample = (
        GPUModelRunner._update_states,
        GPUModelRunner._prepare_inputs,
        GPUModelRunner.sample_tokens,
    )

    @functools.wraps(update)
    def update_states(self: Any, scheduler_output: Any) -> Any:
        requests_of(self).drop(scheduler_output.finished_req_ids)
        return update(self, scheduler_output)

    @functools.wraps(prepare)
    def prepare_inputs(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        requests_of(self).begin_pass(self, scheduler_output)
        return prepare(self, scheduler_output, *args, **kwargs)

    @functools.wraps(sample)
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.execute_model_state is None:
            return sample(self, *args, **kwargs)
        requests = requests_of(self)
        requests.end_pass()
        spreads = requests.logit_spreads(self)
        with _streams_at_rest(self):
            output = sample(self, *args, **kwargs)
        if spreads is not None:
            requests.mark_broken(*spreads)
        output.aux_output_connector_output = requests.outgoing(output)
        return output

    GPUModelRunner._update_states = update_states
    GPUModelRunner._prepare_inputs = prepare_inputs
    GPUModelRunner.sample_tokens = sample_tokens


@contextlib.contextmanager
def _streams_at_rest(runner: Any) -> Iterator[None]:
    """Keep the random streams of requests whose prompt is not read to its end from being drawn from, on a CPU.

    vLLM 0.32 draws a token for them all the same and then sets the stream back, at which generators of a CPU fail.
    """
    streams, aside = runner.input_batch.generators, {}
    if streams and runner.device.type == "cpu":
        rows = np.flatnonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])
        aside = {row: streams.pop(row) for row in rows.tolist() if row in streams}
    try:
        yield
    finally:
        streams.update(aside)


def _with_blocks(load_model: Any, check_model: Callable[[Any, tuple[torch.nn.Module, ...]], None]) -> Any:
    @functools.wraps(load_model)
    def load(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = load_model(self, *args, **kwargs)
        blocks = decoder_blocks(self.model)
        check_model(self.model, blocks)
        for layer, block in enumerate(blocks):
            work_after(block, layer)
        return result

    return load
