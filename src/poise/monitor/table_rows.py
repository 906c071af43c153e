"""Scored answers as table rows, with the alarms that they raise, and the count of all that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.data import AnswerPart, count_left_out
from poise.monitor.alarms import alarms_in_force, raised_alarms
from poise.monitor.scoring import ScoredTurn, topic_of
from poise.statistics.cusum import cusum_step
from poise.vector import PersonaVector

__all__ = ["EXTRA_COLUMNS", "TABLE_COLUMNS", "TableCounts", "TableRowBuilder"]

TABLE_COLUMNS = (
    "file", "row", "index", "turn", "topic", "trait", "layer", "prompt", "mean", "peak", "tokens", "cut", "alarms",
    "drift", "drift_alarm", "unread",
)  # fmt: skip
EXTRA_COLUMNS = ("part", "probability")  # of tables that are not of replies alone, or that a detector read


@dataclass(kw_only=True)
class TableCounts:
    """What a table holds. JSON-able, so that a resumed run goes on counting.

    Attributes:
        turns: Answers.
        unread: Answers that could not be read, by reason.
        cut: Answers whose history was cut to fit the model's window.
        longer: Answers longer than those that some alarm in force was set on.
        alarms: Counts by trait and then by ``reading@rate``, and ``drift``.
        drift: Sum of each vector's chart after the last answer.
        left_out: What of the conversations is not read, by kind.
    """

    turns: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    cut: int = 0
    longer: int = 0
    alarms: dict[str, dict[str, int]] = field(default_factory=dict)
    drift: list[float] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def add_left_out(self, scored: Sequence[ScoredTurn]) -> None:
        """Count what the conversations of a window leave out, each once."""
        conversations = {one.conversation.index: one.conversation for one in scored}
        self.left_out = dict(Counter(self.left_out) + count_left_out(conversations.values()))


class TableRowBuilder:
    """Turns scored answers into table rows and counts what they raise.

    Args:
        vectors: k of them.
        layers: Layer that each vector is read at; only alarms and charts of that layer count.
        by: Field that tells the topics apart.
        counts: Counts at which an earlier run stopped.
        part: Which part of the answers is read; only alarms and charts that were set on it count.

    Attributes:
        notes: Why alarms of a vector are not in force, where it has any.
    """

    def __init__(
        self,
        vectors: Sequence[PersonaVector],
        layers: Sequence[int],
        by: str | None,
        counts: TableCounts,
        *,
        part: AnswerPart = "reply",
    ) -> None:
        self.vectors, self.layers, self.by, self.counts, self.part = vectors, layers, by, counts, part
        places = [vector.at("read", layer, part=part) for vector, layer in zip(vectors, layers, strict=True)]
        self.notes = tuple(place.missing_alarm("mean") for place in places if place.lacks_alarms)
        self.alarms = [place.alarms for place in places]
        self.detectors = [place.detector for place in places]
        self.charts = [
            d if (d := v.header.drift) and (d.layer, d.part, d.detector) == (at, part, place.read_with) else None
            for v, at, place in zip(vectors, layers, places, strict=True)
        ]
        counts.drift = counts.drift or [0.0] * len(vectors)
        for vector, alarms, chart in zip(vectors, self.alarms, self.charts, strict=True):
            names = {f"{a.reading}@{a.rate:g}" for a in alarms} | ({"drift"} if chart else set())
            counts.alarms.setdefault(vector.name, dict.fromkeys(sorted(names), 0))

    def rows(self, scored: ScoredTurn) -> Iterator[dict[str, Any]]:
        """The rows of one answer, a trait each; missing readings are null."""
        topic = topic_of(scored.conversation, self.by)
        forced = [alarms_in_force(alarms, topic) for alarms in self.alarms]
        readings = scored.readings
        raised = raised_alarms(readings, forced) if readings else []
        self._count(scored, max((a.max_new_tokens for probe_alarms in forced for a in probe_alarms), default=None))
        for column, vector in enumerate(self.vectors):
            names = [f"{r.alarm.reading}@{r.alarm.rate:g}" for r in raised if r.column == column]
            drift, drifted = self._drift(column, readings.mean[column] if readings else math.nan)
            counted = self.counts.alarms[vector.name]
            for name in [*names, *(["drift"] if drifted else [])]:
                counted[name] += 1
            probability = self._probability(column, readings.mean[column] if readings else math.nan)
            extra: dict[str, Any] = {"part": self.part, "probability": probability}
            yield {
                "file": scored.conversation.file,
                "row": scored.conversation.row,
                "index": scored.conversation.index,
                "turn": scored.turn,
                "topic": topic,
                "trait": vector.name,
                "layer": self.layers[column],
                "prompt": _round_reading(readings.prompt[column]) if readings else None,
                "mean": _round_reading(readings.mean[column]) if readings else None,
                "peak": _round_reading(readings.peak[column]) if readings else None,
                "tokens": readings.tokens if readings else None,
                "cut": scored.cut,
                "alarms": names,
                "drift": drift,
                "drift_alarm": drifted,
                "unread": scored.unread or None,
                **{name: extra[name] for name in self.extra_columns},
            }

    @property
    def extra_columns(self) -> tuple[str, ...]:
        """Columns of this table that one of replies, read by projections, has not."""
        present = {"part": self.part != "reply", "probability": any(self.detectors)}
        return tuple(name for name in EXTRA_COLUMNS if present[name])

    def _probability(self, column: int, mean: float) -> float | None:
        detector = self.detectors[column]
        return None if detector is None or math.isnan(mean) else round(detector.probability(mean), 4)

    def _drift(self, column: int, mean: float) -> tuple[float | None, bool]:
        """The chart's sum after this answer, from row to row through the whole data; it begins anew after an alarm."""
        chart = self.charts[column]
        if chart is None or math.isnan(mean):
            return None, False
        s, alarm = cusum_step(self.counts.drift[column], mean, mean=chart.mean, sd=chart.sd, k=chart.k, h=chart.h)
        self.counts.drift[column] = 0.0 if alarm else s
        return _round_reading(s), alarm

    def _count(self, scored: ScoredTurn, longest: int | None) -> None:
        self.counts.turns += 1
        self.counts.cut += scored.cut
        if scored.unread:
            kind = scored.unread.partition(":")[0]
            self.counts.unread[kind] = self.counts.unread.get(kind, 0) + 1
        if scored.readings and longest is not None and scored.readings.tokens > longest:
            self.counts.longer += 1


def _round_reading(value: float) -> float | None:
    """Six digits, which is more than the model's own arithmetic has."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
