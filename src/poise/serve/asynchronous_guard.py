"""Guards a streamed answer beside its way: text leaves at once, and a match ends the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from poise.guardrail import GuardFinding
from poise.guardrail.findings import blocks
from poise.guardrail.guard_file import GuardDetector
from poise.guardrail.observed import LeftText, ObservedText
from poise.serve.alarm_policy import GuardedOutput
from poise.serve.detector_guard import DetectorGuard
from poise.serve.guarding import ServerGuard, encoded_text, guarded_part, guarded_text, is_last, uncertain_readings
from poise.serve.intervention import intervention_facts
from poise.serve.rendering import CompletionKind

__all__ = ["AsynchronousGuard"]

Found = list[list[GuardFinding]]


class AsynchronousGuard:
    """Guards one answer; it belongs to one event loop.

    Args:
        guard: The server's guardrail.
        kind: Kind of completion.
        readings: What looks at the answer's readings; where it is a guardrail's detectors, they end the answer too.
        run: Has text looked at beside the event loop.
        wake: Called where a match has been found, so that the answer ends without waiting for its next token.

    Attributes:
        blocked: Whether the guardrail has ended the answer.
    """

    def __init__(
        self,
        guard: ServerGuard,
        kind: CompletionKind,
        readings: object,
        *,
        run: Callable[[Callable[[], Found]], Awaitable[Found]],
        wake: Callable[[], None],
    ) -> None:
        self._guard, self._kind, self._run, self._wake = guard, kind, run, wake
        self._detectors = readings if isinstance(readings, DetectorGuard) else None
        self.blocked = False
        self._encoding = guard.answer_encoding()
        self._texts = [ObservedText()]  # of parts that are over, and of the one that goes on
        self._part = ""
        self._check: asyncio.Task[None] | None = None
        self._facts: list[dict[str, Any]] = []

    @property
    def interventions(self) -> list[dict[str, Any]]:
        """What was found so far, with how many characters of it had left."""
        return [*self._facts, *(self._detectors.facts if self._detectors else ())]

    @property
    def uncertain(self) -> list[tuple[GuardDetector, float]]:
        """Readings that a judge is to be asked about."""
        return uncertain_readings(self._detectors, self._encoding)

    @property
    def message(self) -> str:
        """What follows an answer that was blocked."""
        return self._guard.message(self._detectors)

    async def take(self, guarded: GuardedOutput) -> GuardedOutput:
        """The output as it may leave: all of it, until a match has been found."""
        if guarded.stopped and self._detectors and self._detectors.stopped_by:
            self.blocked = True
            return guarded
        if self._check and self._check.done():
            check, self._check = self._check, None
            check.result()  # raises what the check did
        if self.blocked:
            return _ended(replace(guarded, output=replace(guarded.output, tokens=())))
        self._add(guarded)
        if not is_last(guarded):
            if self._check is None and (self._texts[-1].is_due or len(self._texts) > 1):
                self._check = asyncio.create_task(self._look(last=False))
            return guarded
        if self._check:
            await self._check
        if not self.blocked:
            await self._look(last=True)
        return _ended(guarded) if self.blocked else guarded

    def _add(self, guarded: GuardedOutput) -> None:
        if self._encoding:
            self._encoding.add(encoded_text(guarded, self._kind))
        for token in guarded.output.tokens:
            part = guarded_part(token, self._kind)
            if part != self._part and self._texts[-1].length:
                self._texts.append(ObservedText())
            self._part = part
            self._texts[-1].add(guarded_text(token, self._kind))

    async def _look(self, *, last: bool) -> None:
        """Look at what has left since the last time."""
        looked = [(text, text.unchecked(last=last or text is not self._texts[-1])) for text in self._texts]
        texts = [left.text for _, left in looked]
        checked = await self._run(lambda: self._find(texts, last=last))
        for (text, left), findings in zip(looked, checked[1:], strict=True):
            self._note(text, left, findings)
        self._facts += intervention_facts(self._guard.name, checked[0], "OUTPUT")
        self.blocked = self.blocked or blocks(checked[0])
        over = {id(text) for text, left in looked if left.last}
        self._texts = [text for text in self._texts if id(text) not in over] or [ObservedText()]
        if self.blocked and not last:
            self._wake()

    def _find(self, texts: Sequence[str], *, last: bool) -> Found:
        """What the encoder finds in the answer so far, and what stands in each text; a worker's."""
        encoded = self._encoding.look(last=last) if self._encoding else []
        return [encoded, *(self._guard.checker.find(text, "OUTPUT") for text in texts)]

    def _note(self, text: ObservedText, left: LeftText, findings: list[GuardFinding]) -> None:
        new = text.take(left, findings)
        facts = intervention_facts(self._guard.name, new, "OUTPUT")
        self._facts += [fact | {"left": text.gone(left, f)} for fact, f in zip(facts, new, strict=True)]
        self.blocked = self.blocked or blocks(new)


def _ended(guarded: GuardedOutput) -> GuardedOutput:
    return replace(guarded, output=replace(guarded.output, ahead=(), finish=None, end=None), stopped=True)
