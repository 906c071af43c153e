"""A fitted guardrail's detectors at one answer, in the passes that are run anyway: before its alarms see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from poise.engine import EngineOutput, GeneratedToken
from poise.guardrail.guard_file import FittedGuard, GuardDetector
from poise.guardrail.judging import added_readings
from poise.guardrail.readings import AnswerWindow, ReadPlace
from poise.guardrail.schema import Source
from poise.monitor import AnswerReadings
from poise.serve.alarm_policy import AlarmGuard, GuardedOutput
from poise.serve.intervention import intervention_facts

__all__ = ["DetectorGuard"]


class DetectorGuard:
    """Reads the prompt's last token and windows of the reply, and ends the answer where a rule blocks it.

    The detectors' readings come behind those of the watched vectors, which see none of them.

    Args:
        fitted: The guardrail.
        alarms: What looks at the watched vectors' readings.
        watched: Number of watched vectors.
        after_tool: Whether the prompt ends with a tool's result, which detectors of these then read too.
        encoded: What the sentence encoder reads of the prompt for rules that both read.

    Attributes:
        stopped_by: Way on which a rule has ended the answer.
        facts: What was found.
    """

    def __init__(
        self,
        fitted: FittedGuard,
        alarms: AlarmGuard,
        watched: int,
        *,
        after_tool: bool = False,
        encoded: Sequence[tuple[GuardDetector, float]] = (),
    ) -> None:
        self._encoded = encoded
        prompts: tuple[ReadPlace, ...] = ("prompt", "tool result") if after_tool else ("prompt",)
        self._places: dict[Source, tuple[ReadPlace, ...]] = {"INPUT": prompts, "OUTPUT": ("answer",)}
        self._fitted, self._alarms, self._watched = fitted, alarms, watched
        self._window = AnswerWindow(fitted.header.window)
        self._released = self._seen = 0
        self._found: set[tuple[str, Source]] = set()
        self._uncertain: dict[tuple[str, Source], tuple[GuardDetector, float]] = {}
        self.stopped_by: Source | None = None
        self.facts: list[dict[str, Any]] = []
        self._prompt: Sequence[float] = ()

    @property
    def uncertain(self) -> list[tuple[GuardDetector, float]]:
        """Rules whose highest reading so far a judge is to be asked about."""
        return [pair for key, pair in list(self._uncertain.items()) if key not in self._found]

    def inspect(self, output: EngineOutput) -> GuardedOutput:
        """Read a step's output, and decide whether the answer goes on."""
        plain = replace(
            output,
            prompt_readings=None if output.prompt_readings is None else output.prompt_readings[: self._watched],
            tokens=tuple(map(self._plain, output.tokens)),
            ahead=tuple(map(self._plain, output.ahead)),
        )
        if output.prompt_readings is not None:
            self._prompt = output.prompt_readings[self._watched :]
            self._look(self._prompt, "INPUT")
        for token in self._new_tokens(output):
            if token.part == "reply" and (means := self._window.see(token.readings[self._watched :])) is not None:
                self._look(means.tolist(), "OUTPUT")
        if output.finish and (means := self._window.end()) is not None:
            self._look(means.tolist(), "OUTPUT")
        if self.stopped_by is None:
            return self._alarms.inspect(plain)
        cut = replace(plain, tokens=(), ahead=(), finish=None, end=None)
        return GuardedOutput(output=cut, stopped=True, length=0, readings=self.readings())

    def prompt_projection(self, detector: GuardDetector) -> float | None:
        """What a detector read at the end of the prompt, whatever it is for."""
        pairs = zip(self._fitted.activation_detectors, self._prompt, strict=False)
        return next((float(value) for each, value in pairs if each == detector), None)

    def readings(self) -> tuple[AnswerReadings, ...] | None:
        """Readings of what there is so far, one a watched vector."""
        return self._alarms.readings()

    def _new_tokens(self, output: EngineOutput) -> list[GeneratedToken]:
        """Tokens that have not been read before: those ahead are given out once more when they are released."""
        released = self._released + len(output.tokens)
        numbered = [
            *enumerate(output.tokens, start=self._released + 1),
            *enumerate(output.ahead, start=max(released, self._seen) + 1),
        ]
        new = [token for number, token in numbered if number > self._seen]
        self._released, self._seen = released, self._seen + len(new)
        return new

    def _plain(self, token: GeneratedToken) -> GeneratedToken:
        return replace(token, readings=token.readings[: self._watched])

    def _look(self, projections: Sequence[float], source: Source) -> None:
        findings = []
        readings = zip(self._fitted.activation_detectors, projections, strict=True)
        for detector, value in added_readings(list(readings), self._encoded):
            key = (detector.rule, source)
            if detector.reads not in self._places[source] or key in self._found:
                continue
            decision = detector.decision(value)
            if decision == "ask" and value > self._uncertain.get(key, (detector, float("-inf")))[1]:
                self._uncertain[key] = (detector, value)
            if decision == "act":
                self._found.add(key)
                findings.append(finding := detector.certain(value, 0))
                if finding.action == "BLOCK":
                    self.stopped_by = source
        guardrail = self._fitted.guardrail
        self.facts += intervention_facts(f"{guardrail.name}/{guardrail.version}", findings, source)
