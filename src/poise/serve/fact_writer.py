"""The served model as a writer of short texts: a request among the others, without steering or readings."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from typing import Any

from poise.data import Message
from poise.engine import EngineOutput, GenerationRequest, SamplingParams
from poise.errors import JudgeUnavailable, RequestError, UserError
from poise.model import Model
from poise.reasoning.writers import facts_request
from poise.serve.alarm_policy import GuardedOutput
from poise.serve.scheduler import ScheduledRequest, Scheduler

__all__ = ["ServedFactWriter", "served_turn"]

MOST_WRITING_SECONDS = 120.0


class UnwatchedAnswer:
    """Looks at nothing."""

    def inspect(self, output: EngineOutput) -> GuardedOutput:
        """The output as it came."""
        return GuardedOutput(output=output)

    def readings(self) -> None:
        """There are none."""


class ServedFactWriter:
    """Writes facts with the model that is served, from a thread that may wait.

    Args:
        model: The model.
        scheduler: Thread that runs it.
    """

    def __init__(self, model: Model, scheduler: Scheduler) -> None:
        self._model, self._scheduler = model, scheduler

    def __call__(self, messages: Sequence[Message], schema: Mapping[str, Any], *, seed: int) -> str:
        """What it writes.

        Raises:
            JudgeUnavailable: it does not, or not now; says why.
        """
        try:
            return _served_text(self._scheduler, facts_request(self._model, messages, schema, seed=seed))
        except (UserError, RequestError, TimeoutError) as error:
            raise JudgeUnavailable(f"The served model does not translate: {error}") from error


def served_turn(model: Model, scheduler: Scheduler, messages: Sequence[Message], most_tokens: int) -> str:
    """The model's greedy answer to a prompt, as one request among the others.

    Raises:
        RequestError: 503 where it took too long; as ``Scheduler.submit`` otherwise.
    """
    sampling = SamplingParams(max_new_tokens=most_tokens, temperature=0.0)
    try:
        return _served_text(scheduler, GenerationRequest(prompt=model.encode(messages), sampling=sampling)).strip()
    except TimeoutError as error:
        raise RequestError(
            503, "The question could not be put into words by itself in time; try again, or set follow_up to join."
        ) from error


def _served_text(scheduler: Scheduler, generation: GenerationRequest) -> str:
    outputs: queue.SimpleQueue[GuardedOutput] = queue.SimpleQueue()
    request = ScheduledRequest(
        request=generation,
        guard=UnwatchedAnswer(),
        sink=outputs.put,
        deadline=time.monotonic() + MOST_WRITING_SECONDS,
    )
    scheduler.check([request])
    scheduler.submit([request])
    text, finish = "", None
    try:
        while finish is None:
            try:
                output = outputs.get(timeout=MOST_WRITING_SECONDS).output
            except queue.Empty as error:
                raise TimeoutError("it took too long") from error
            if isinstance(output.error, UserError | RequestError | TimeoutError):
                raise output.error
            if output.error is not None:
                raise RequestError(503, f"The model failed: {output.error}", code="model_failed") from output.error
            text += "".join(token.text for token in output.tokens if token.part == "reply")
            finish = output.finish
    finally:
        scheduler.drop([request])
    return text
