"""All scores of a data set together, and the figures that a summary gives of them.

Texts are never held here, so that a hundred million answers fit in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from poise.screen.projection import ScoringMethod
from poise.screen.shards import Shard
from poise.screen.summary import LengthDecile
from poise.statistics.estimates import Estimate
from poise.statistics.intervals import ratio_interval

__all__ = [
    "AnswerScores",
    "ascending_scores",
    "collect_scores",
    "flags_by_length",
    "mean_score",
    "rank_scores",
    "rounded_estimate",
    "score_histogram",
    "score_percentiles",
]

HISTOGRAM_BINS = 48

ScoreArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerScores:
    """m answers, k traits, in the data's order.

    Attributes:
        index: int64 [m], each answer's row in the data set; ``turn`` int32 [m]; ``tokens`` int32 [m]; ``cut`` bool [m].
        scores: float32 [m, k], NaN where there is none.
        unread: Why, by position.
        rejected: Rows left out.
        kinds: Their reasons, counted.
        rows: Rows of the data, good and bad.
        left_out: What the rows with scores leave out, by kind.
        repeated: Rows that say again what others say, and are not among the answers.
    """

    index: NDArray[np.int64]
    turn: NDArray[np.int32]
    tokens: NDArray[np.int32]
    cut: NDArray[np.bool_]
    scores: ScoreArray
    unread: dict[int, str]
    rejected: frozenset[int]
    kinds: Counter[str]
    rows: int
    left_out: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def without_rows(self, rows: Collection[int]) -> AnswerScores:
        """The same without the answers of these rows; counts of what was read stay as they are."""
        stays = np.flatnonzero(~np.isin(self.index, list(rows)))
        columns = {name: getattr(self, name)[stays] for name in ("index", "turn", "tokens", "cut", "scores")}
        unread = {new: self.unread[old] for new, old in enumerate(stays.tolist()) if old in self.unread}
        return replace(self, **columns, unread=unread)

    def without_repeats(self, rows: Collection[int]) -> AnswerScores:
        """The same without the answers of these rows, which say again what others say."""
        return replace(self.without_rows(rows), repeated=self.repeated + len(rows))


def collect_scores(parts: Iterable[Shard], method: ScoringMethod, traits: int) -> AnswerScores:
    """Scores of all parts by one method."""
    unread: dict[int, str] = {}
    rejected: set[int] = set()
    kinds: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    rows = first = 0
    columns: dict[str, list[NDArray[np.generic]]] = {name: [] for name in ("index", "turn", "tokens", "cut", "scores")}
    for part in parts:
        scores = part.score(method)
        for name in ("index", "turn", "tokens", "cut"):
            columns[name].append(getattr(part, name))
        columns["scores"].append(scores)
        missing = np.flatnonzero(~np.isfinite(scores).all(axis=1)).tolist()
        unread |= {first + at: part.unread.get(at, "no answer of the model's own to compare with") for at in missing}
        rejected |= {row.index for row in part.rejected}
        kinds.update(row.kind for row in part.rejected)
        left_out.update(part.left_out)
        rows, first = rows + part.rows, first + len(part.index)
    empty = {
        "index": np.empty(0, np.int64),
        "turn": np.empty(0, np.int32),
        "tokens": np.empty(0, np.int32),
        "cut": np.empty(0, np.bool_),
        "scores": np.empty((0, traits), np.float32),
    }
    joined = {name: np.concatenate([empty[name], *values]) for name, values in columns.items()}
    return AnswerScores(
        **joined,  # type: ignore[arg-type]
        unread=unread,
        rejected=frozenset(rejected),
        kinds=kinds,
        rows=rows,
        left_out=left_out,
    )


def mean_score(scores: ScoreArray, index: NDArray[np.int64]) -> Estimate:
    """Mean score with its interval over conversations: answers of one are alike."""
    known = np.isfinite(scores)
    if not known.any():
        return Estimate(value=None, low=None, high=None, n=0)
    _, which = np.unique(index[known], return_inverse=True)
    total, count = np.bincount(which, weights=scores[known].astype(float)), np.bincount(which).astype(float)
    ends = ratio_interval(total, count)
    return rounded_estimate(float(total.sum() / count.sum()), *ends, n=len(total))


def rounded_estimate(value: float, low: float, high: float, *, n: int) -> Estimate:
    """An estimate as a summary has it, to six digits: scores may be of any size."""
    value, low, high = (float(f"{x:.6g}") for x in (value, low, high))
    return Estimate(value=value, low=low, high=high, n=n)


def score_histogram(scores: ScoreArray, normal: ScoreArray | None) -> tuple[list[float], list[int], list[int] | None]:
    """Edges, counts and the normal data's counts."""
    known = scores[np.isfinite(scores)]
    both = known if normal is None else np.concatenate([known, normal])
    if not len(both):
        return [], [], None
    edges = np.histogram_bin_edges(both.astype(float), bins=HISTOGRAM_BINS)
    counts, usual = (np.histogram(x, edges)[0].tolist() if x is not None else None for x in (known, normal))
    return [float(f"{edge:.6g}") for edge in edges], counts or [], usual


def flags_by_length(tokens: NDArray[np.int32], scores: ScoreArray, flagged: NDArray[np.bool_]) -> list[LengthDecile]:
    """How many of each tenth are flagged, shortest answers first; equal lengths stay together."""
    known = np.isfinite(scores)
    if not known.any():
        return []
    lengths, known_flags = tokens[known], flagged[known]
    bounds = np.unique(np.quantile(lengths, np.linspace(0.1, 1, 10), method="inverted_cdf"))
    tenth = np.searchsorted(bounds, lengths)
    return [
        LengthDecile(
            shortest=int(lengths[tenth == i].min()),
            longest=int(bound),
            units=int((tenth == i).sum()),
            flagged=int(known_flags[tenth == i].sum()),
        )
        for i, bound in enumerate(bounds)
    ]


def ascending_scores(scores: ScoreArray) -> ScoreArray:
    """The scores that there are, the lowest first."""
    return np.sort(scores[np.isfinite(scores)])


def rank_scores(scores: ScoreArray, among: ScoreArray | None = None) -> NDArray[np.int64]:
    """1 for the highest; equals share the better rank; 0 where there is no score.

    ``among`` are all scores as ``ascending_scores`` gives them, where these are only some.
    """
    known = ascending_scores(scores) if among is None else among
    above = len(known) - np.searchsorted(known, scores, side="right")
    return np.where(np.isfinite(scores), above + 1, 0)


def score_percentiles(scores: ScoreArray, among: ScoreArray | None = None) -> NDArray[np.float64]:
    """Share of scores that are lower, 0 to 100; NaN where there is none. ``among`` as for ``rank_scores``."""
    known = ascending_scores(scores) if among is None else among
    below = 100 * np.searchsorted(known, scores, side="left") / max(len(known), 1)
    return np.where(np.isfinite(scores), below, np.nan)
