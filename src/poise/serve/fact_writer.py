"""The served model as the writer of facts for reasoning: a request among the others, without steering or readings."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from typing import Any

from poise.data import Message
from poise.engine import EngineOutput
from poise.errors import JudgeUnavailable, RequestError, UserError
from poise.model import Model
from poise.reasoning.writers import facts_request
from poise.serve.alarm_policy import GuardedOutput
from poise.serve.scheduler import ScheduledRequest, Scheduler

__all__ = ["ServedFactWriter"]

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
        outputs: queue.SimpleQueue[GuardedOutput] = queue.SimpleQueue()
        try:
            request = ScheduledRequest(
                request=facts_request(self._model, messages, schema, seed=seed),
                guard=UnwatchedAnswer(),
                sink=outputs.put,
                deadline=time.monotonic() + MOST_WRITING_SECONDS,
            )
            self._scheduler.check([request])
            self._scheduler.submit([request])
        except (UserError, RequestError) as error:
            raise JudgeUnavailable(f"The served model does not translate: {error}") from error
        try:
            return self._text(outputs)
        finally:
            self._scheduler.drop([request])

    def _text(self, outputs: queue.SimpleQueue[GuardedOutput]) -> str:
        text, finish = "", None
        while finish is None:
            try:
                output = outputs.get(timeout=MOST_WRITING_SECONDS).output
            except queue.Empty as error:
                raise JudgeUnavailable("The served model does not translate: it took too long.") from error
            if output.error is not None:
                raise JudgeUnavailable(f"The served model does not translate: {output.error}") from output.error
            text += "".join(token.text for token in output.tokens if token.part == "reply")
            finish = output.finish
        return text
