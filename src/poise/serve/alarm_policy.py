"""Alarms of one answer while it is generated, and what is done about them before its next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from poise.engine import EngineOutput
from poise.monitor import AlarmWatcher, AnswerReadings, RaisedAlarm
from poise.serve.policy import Action, Policy
from poise.serve.vector_registry import WatchedVector
from poise.steer import Steering, Term

__all__ = ["AlarmGuard", "Alert", "GuardedOutput"]


@dataclass(frozen=True, slots=True)
class Alert:
    """An alarm that was raised, and what was done."""

    trait: str
    raised: RaisedAlarm
    action: Action

    @property
    def facts(self) -> dict[str, Any]:
        """The alarm as the API gives it."""
        alarm = self.raised.alarm
        return {
            "trait": self.trait,
            "reading": alarm.reading,
            "layer": alarm.layer,
            "rate": alarm.rate,
            "threshold": alarm.threshold,
            "value": self.raised.value,
            "token": self.raised.token,
            "action": self.action,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedOutput:
    """What a step brought of an answer, once its guard has looked at it.

    Attributes:
        output: The engine's output, without the tokens that came with an alarm that stops the answer.
        alerts: Alarms raised in this step.
        stopped: Whether an alarm ends the answer here.
        cap: Steering to apply from the next token on.
        readings: AnswerReadings of the complete answer; set at its end where anything was watched.
    """

    output: EngineOutput
    alerts: tuple[Alert, ...] = ()
    stopped: bool = False
    cap: Steering | None = None
    readings: AnswerReadings | None = None


class AlarmGuard:
    """Watches one answer by its reply's readings: what its steering by itself adds to a reading raises no alarm.

    Thoughts, and the marks around them, count for no alarm and no summary: thresholds are set on replies.

    Args:
        watched: k vectors, in the order of the request's probes.
        policy: Rules that say what is done on an alarm.
        pushes: What steering adds to each one's reading, on the prompt and on tokens; ``None`` where nobody knows.
    """

    def __init__(
        self, watched: Sequence[WatchedVector], policy: Policy, pushes: Sequence[tuple[float, float] | None]
    ) -> None:
        self.watched, self.policy = tuple(watched), policy
        self._watcher = AlarmWatcher([w.alarms for w in self.watched])
        self._push = [torch.tensor([push[phase] if push else 0.0 for push in pushes]) for phase in (0, 1)]
        self._tokens = 0  # of the answer
        self._replies: list[int] = []  # those that count, by their number in the answer, from 1
        self._prompt: torch.Tensor | None = None
        self._begun = False
        self._capped: set[int] = set()

    def inspect(self, output: EngineOutput) -> GuardedOutput:
        """Read a step's output, and decide whether the answer goes on."""
        if not self.watched:
            return GuardedOutput(output=output)
        prompt = output.prompt_readings
        rows = [] if prompt is None else [torch.tensor(prompt) - self._push[0]]
        if any(token.ends_unopened_thought for token in output.tokens):
            self._begin_again()
        last = max((n for n, token in enumerate(output.tokens) if token.ends_unopened_thought), default=-1)
        for n, token in enumerate(output.tokens):
            if token.part == "reply" and n > last:
                rows.append(torch.tensor(token.readings) - self._push[1])
                self._replies.append(self._tokens + n + 1)
        if prompt is not None:
            self._prompt = rows[0]
        self._begun = self._begun or bool(rows)
        alerts = [self._alert(raised) for raised in (self._watcher.see(torch.stack(rows)) if rows else ())]
        stops = [a.raised.token for a in alerts if a.action == "stop"]
        if stops:
            before_alarm = max(min(stops) - 1 - self._tokens, 0)
            cut = replace(output, tokens=output.tokens[:before_alarm], finish=None)
            return GuardedOutput(output=cut, alerts=tuple(alerts), stopped=True, readings=self._watcher.readings())
        self._tokens += len(output.tokens)
        if output.finish is None:
            return GuardedOutput(output=output, alerts=tuple(alerts), cap=self._cap(alerts))
        late = [self._alert(raised, "note") for raised in self._watcher.end()]  # nothing is left to cap or to stop
        return GuardedOutput(output=output, alerts=(*alerts, *late), readings=self._watcher.readings())

    def _begin_again(self) -> None:
        """What was taken for a reply was thought: it counts no more; alarms that it raised stay raised."""
        self._watcher = AlarmWatcher([w.alarms for w in self.watched])
        self._replies = []
        if self._prompt is not None:
            self._watcher.see(self._prompt.unsqueeze(0))

    def readings(self) -> AnswerReadings | None:
        """AnswerReadings of what there is so far."""
        return self._watcher.readings() if self._begun else None

    def _alert(self, raised: RaisedAlarm, action: Action | None = None) -> Alert:
        name = self.watched[raised.column].name
        if raised.token:
            raised = replace(raised, token=self._replies[raised.token - 1])
        return Alert(name, raised, action or self.policy.action(name))

    def _cap(self, alerts: Sequence[Alert]) -> Steering | None:
        """Keep each trait that raised an alarm at its threshold for tokens, once."""
        terms = []
        for alert in alerts:
            column = alert.raised.column
            if alert.action != "cap" or column in self._capped:
                continue
            self._capped.add(column)
            of_tokens = [a for a in self.watched[column].alarms if a.reading != "prompt"] or [alert.raised.alarm]
            lowest = min(of_tokens, key=lambda alarm: alarm.threshold)
            terms.append(
                Term(
                    vector=self.watched[column].vector, value=lowest.threshold, layers=(lowest.layer,), operation="cap"
                )
            )
        return Steering(tuple(terms)) if terms else None
