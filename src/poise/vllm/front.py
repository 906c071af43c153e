"""In front of vLLM's engine: requests are checked where they come in, and readings put on their outputs."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from poise.errors import UserError
from poise.vllm.runner import FIELD

__all__ = ["OutputReadings", "check_places", "install_front", "refuse_without_numbers"]


@dataclass(eq=False, kw_only=True)
class OutputReadings:
    """The readings of one answer, which grow while it is generated. k: watched vectors.

    The last token that is sampled is not run by vLLM, and so is not read: the token that ends an answer, or the last
    one where the limit does.

    Attributes:
        names: Names of the k vectors.
        layers: Layer at which each is read.
        values: Projections float32 [1 + T, k]: the last prompt token, then each token that was run.
        finite: Rows of ``values`` that have been looked at for NaN and infinity.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    values: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    finite: int = 0

    def extend(self, rows: npt.NDArray[np.float32]) -> None:
        """Add what a step brought."""
        self.values = np.concatenate([self.values, rows]) if len(self.values) else rows

    def body(self, first: int = 0) -> dict[str, Any]:
        """As JSON, from row ``first`` of the values on."""
        columns = dict(zip(self.names, self.values.T.tolist() if len(self.values) else (), strict=False))
        body: dict[str, Any] = {"layers": dict(zip(self.names, self.layers, strict=True))}
        if first == 0 and len(self.values):
            body["prompt"] = {name: column[0] for name, column in columns.items()}
        body["first_token"] = max(first - 1, 0)
        body["readings"] = {name: column[max(first, 1) :] for name, column in columns.items()}
        return body


XARGS = "vllm_xargs"
OWN_NAMES = (FIELD, "steer", "watch")
_PROCESSORS: list[Any] = []  # the input processor of this process, once there is one
CheckField = Callable[[Any, Any], Any]
WatchedLayers = Callable[[Any], tuple[Sequence[str], Sequence[int]]]


def install_front(check_field: CheckField, watched: WatchedLayers) -> None:
    """Patch the front of this process.

    Args:
        check_field: Checks a request's field, given the input processor; gives what the engine is to get.
        watched: Names and layers of the vectors that a checked field watches.
    """
    _check_requests(check_field)
    _name_readings(watched)
    _check_http_requests(check_field)


def _validation_error(message: str) -> Exception:
    from vllm.exceptions import VLLMValidationError

    refusal: Exception = VLLMValidationError(message, parameter=f"vllm_xargs.{FIELD}")
    return refusal


def refuse_without_numbers(readings: OutputReadings) -> None:
    """Raise what is a 400 where a pass gave NaN or infinity, which JSON cannot say and no answer should hide."""
    if not np.isfinite(readings.values[readings.finite :]).all():
        where = f"where {', '.join(readings.names)} was read" if readings.names else "under this steering"
        raise _validation_error(
            f"The model gave NaN or infinity {where}; steer with less strength, or serve the model in bfloat16 or "
            "float32."
        )
    readings.finite = len(readings.values)


def check_places(beside: Mapping[str, Any], inside: Collection[str]) -> None:
    """Refuse what vLLM would ignore, or hand to nobody: the field in a wrong place, or misspelt.

    Args:
        beside: Fields of a request that vLLM does not know.
        inside: Names in its ``vllm_xargs``.
    """
    written = 'write "vllm_xargs": {"poise": "…"}, with its object as JSON text.'
    for name, value in beside.items():
        if name == "extra_body" and isinstance(value, Mapping) and {FIELD, XARGS} & value.keys():
            raise _validation_error(
                f"extra_body is an argument of the openai client, and vLLM would ignore it; {written}"
            )
        if name in OWN_NAMES or _is_misspelt(name, FIELD):
            raise _validation_error(f"{name} stands beside the fields of vLLM, which would ignore it; {written}")
        if _is_misspelt(name, XARGS):
            raise _validation_error(f"There is no field {name}, and vLLM would ignore it; {written}")
    for name in inside:
        if FIELD not in inside and (name in OWN_NAMES or _is_misspelt(name, FIELD)):
            raise _validation_error(f"vllm_xargs has {name!r}, which nobody would take; {written}")


def _is_misspelt(name: str, right: str) -> bool:
    """Whether a name is nearly the right one, and begins as it does: what is further may be another plugin's."""
    plain = name.casefold().replace("-", "_")
    return name != right and plain[:1] == right[:1] and bool(difflib.get_close_matches(plain, [right], cutoff=0.8))


def _check_requests(check_field: CheckField) -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    process, initialise = InputProcessor.process_inputs, InputProcessor.__init__

    @functools.wraps(initialise)
    def remembered(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        _PROCESSORS[:] = [self]

    @functools.wraps(process)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        extra = getattr(params, "extra_args", None) or {}
        if extra.get(FIELD) is None:
            return process(self, request_id, prompt, params, *args, **kwargs)
        try:
            checked = check_field(extra[FIELD], self)
        except UserError as error:
            raise _validation_error(str(error)) from error
        if kwargs.get("resumable"):
            raise _validation_error(
                "A request whose prompt comes in parts cannot be steered or watched; send all of it at once."
            )
        request = process(self, request_id, prompt, params, *args, **kwargs)
        request.sampling_params.extra_args = {**extra, FIELD: checked}
        return request

    InputProcessor.__init__ = remembered
    InputProcessor.process_inputs = process_inputs


def _name_readings(watched: WatchedLayers) -> None:
    from vllm.v1.engine.output_processor import RequestState

    make, complete = RequestState.from_new_request.__func__, RequestState._new_completion_output

    @functools.wraps(make)
    def from_new_request(cls: Any, *args: Any, **kwargs: Any) -> Any:
        state = make(cls, *args, **kwargs)
        request = kwargs["request"] if "request" in kwargs else args[1]
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        state.poise_readings = None
        if extra.get(FIELD) is not None:
            names, layers = watched(extra[FIELD])
            state.poise_readings = OutputReadings(names=tuple(names), layers=tuple(layers))
        return state

    @functools.wraps(complete)
    def new_completion_output(self: Any, *args: Any, **kwargs: Any) -> Any:
        readings = self.poise_readings
        if readings is not None:
            for rows in self.routed_experts_chunks:
                readings.extend(rows)
            self.routed_experts_chunks.clear()
        output = complete(self, *args, **kwargs)
        # What nobody watches has a reading only where the model gave NaN or infinity.
        output.poise = readings if readings is not None and (readings.names or len(readings.values)) else None
        return output

    RequestState.from_new_request = classmethod(from_new_request)
    RequestState._new_completion_output = new_completion_output


def _check_http_requests(check_field: CheckField) -> None:
    """Refuse what cannot be done before a stream begins, whose status could not say so any more."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    def refuse_beams(field: Any) -> None:
        raise _validation_error("Beam search drops vllm_xargs, and so the steering; leave use_beam_search out.")

    def check(field: Any) -> None:
        try:
            check_field(field, _PROCESSORS[0])
        except UserError as error:
            raise _validation_error(str(error)) from error

    for kind in (ChatCompletionRequest, CompletionRequest):
        kind.to_beam_search_params = _checked_first(kind.to_beam_search_params, refuse_beams)
    for kind in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        kind.to_sampling_params = _checked_first(kind.to_sampling_params, check)


def _checked_first(to_params: Any, check: Callable[[Any], None]) -> Any:
    @functools.wraps(to_params)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_places(self.model_extra or {}, self.vllm_xargs or {})
        field = (self.vllm_xargs or {}).get(FIELD)
        if field is not None:
            check(field)
        return to_params(self, *args, **kwargs)

    return checked
