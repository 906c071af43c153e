"""Which readings pass their alarm: pure functions over numbers, and a watcher for answers that are still coming."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from poise.monitor.readings import PEAK_WINDOW, AnswerReadings, summarize_projections
from poise.vector import Alarm

__all__ = ["AlarmWatcher", "RaisedAlarm", "alarms_in_force", "raised_alarms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaisedAlarm:
    """A reading that passed its alarm.

    Attributes:
        column: Which probe.
        alarm: Which of its alarms.
        value: The reading.
        token: Tokens of the answer seen when it was raised; 0 before the first.
    """

    column: int
    alarm: Alarm
    value: float
    token: int


def alarms_in_force(alarms: Iterable[Alarm], topic: str | None = None) -> list[Alarm]:
    """One alarm for each reading and rate: the topic's own where there is one, else the one for all topics."""
    chosen: dict[tuple[str, float], Alarm] = {}
    for alarm in alarms:
        if alarm.topic is None or alarm.topic == topic:
            key = (alarm.reading, alarm.rate)
            if key not in chosen or alarm.topic is not None:
                chosen[key] = alarm
    return list(chosen.values())


def raised_alarms(readings: AnswerReadings, alarms: Sequence[Sequence[Alarm]]) -> list[RaisedAlarm]:
    """What a finished answer raises.

    Args:
        readings: Readings of the answer by k probes.
        alarms: In force, k lists. A missing reading (NaN) raises nothing.
    """
    return [
        RaisedAlarm(column=column, alarm=alarm, value=value, token=readings.tokens if alarm.reading != "prompt" else 0)
        for column, probe_alarms in enumerate(alarms)
        for alarm in probe_alarms
        if alarm.passed_by(value := readings.of(alarm.reading)[column])
    ]


class AlarmWatcher:
    """Says while an answer is generated which alarms it raises, each once and as early as its promise allows.

    ``prompt`` before the first token, ``peak`` at the token that completes the window, and ``mean`` at the end, since
    the mean of a beginning strays further than that of a whole answer.

    Args:
        alarms: In force, one list for each of the k probes.
    """

    def __init__(self, alarms: Sequence[Sequence[Alarm]]) -> None:
        self.alarms = alarms
        self._seen: list[torch.Tensor] = []
        self._raised: set[tuple[int, Alarm]] = set()

    def see(self, values: torch.Tensor) -> list[RaisedAlarm]:
        """The alarms newly raised by projections float32 [rows, k], as they come: the prompt's first, then tokens'."""
        out: list[RaisedAlarm] = []
        for row in values.cpu():
            self._seen.append(row)
            tokens = len(self._seen) - 1
            if tokens == 0:
                out += self._new("prompt", row, 0)
            elif tokens >= PEAK_WINDOW:
                out += self._new("peak", torch.stack(self._seen[-PEAK_WINDOW:]).mean(0), tokens)
        return out

    def end(self) -> list[RaisedAlarm]:
        """The alarms that only the whole answer raises."""
        if not self._seen:
            return []
        return [r for r in raised_alarms(self.readings(), self.alarms) if (r.column, r.alarm) not in self._raised]

    def readings(self) -> AnswerReadings:
        """Of the answer so far."""
        return summarize_projections(torch.stack(self._seen))

    def _new(self, reading: str, values: torch.Tensor, token: int) -> list[RaisedAlarm]:
        raised = [
            RaisedAlarm(column=column, alarm=alarm, value=value, token=token)
            for column, value in enumerate(values.tolist())
            for alarm in self.alarms[column]
            if alarm.reading == reading and alarm.passed_by(value) and (column, alarm) not in self._raised
        ]
        self._raised |= {(r.column, r.alarm) for r in raised}
        return raised
