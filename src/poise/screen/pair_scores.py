"""Scores of preference pairs: what the preferred answer reads on a trait's direction less what the other one reads.

Both answers of a pair are scored as conversations of their own, by the code, the windows and the kept readings that any
answer has; see ``poise.data.preference_data``.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from poise.data import Conversation, RejectedRow, Rejections
from poise.data.preference_data import PreferenceData
from poise.data.preference_rows import SIDES, PairContent
from poise.screen.scores import AnswerScores
from poise.screen.scoring import USABLE_ROW
from poise.screen.shards import Shard

__all__ = ["PairScores", "PairSurvey", "collect_pair_scores", "survey_pairs"]


@dataclass(slots=True, kw_only=True)
class PairSurvey:
    """What a first look at the data tells, before a model reads them. n: pairs.

    Attributes:
        rows: Rows of the data, good and bad.
        rejected: Rows that are no pair, by index.
        index: Place of each pair in the data set, [n].
        prompts: Which prompt each pair has, as a number that equal prompts share, [n].
        same: Pairs whose two answers are the same, by index.
        left_out: What the pairs leave out, by kind.
        starts: Index of each file's first row; ``files`` has the names.
    """

    rows: int = 0
    rejected: dict[int, RejectedRow] = field(default_factory=dict)
    index: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    same: set[int] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    starts: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    def reject(self, index: int, reason: str) -> None:
        """Count a pair among the rejected rows."""
        part = bisect_right(self.starts, index) - 1
        row = index - self.starts[part]
        self.rejected[index] = RejectedRow(file=self.files[part], row=row, index=index, line=None, reason=reason)

    def write_rejected(self, rejections: Rejections) -> None:
        """List the rejected rows.

        Raises:
            InvalidData: they are more than may be, or all rows.
            SaveFailed: the disk refused.
        """
        for _ in rejections.sift(self.rejected.get(index, USABLE_ROW) for index in range(self.rows)):
            pass


@dataclass(frozen=True, slots=True, kw_only=True)
class PairScores:
    """m pairs, k traits, in the data's order.

    Attributes:
        scores: The pairs as flagging and summaries take answers; a pair is as long as the shorter of its answers.
        readings: float32 [2, m, k], of the preferred answers and of the others.
        tokens: int32 [2, m], their lengths.
        prompts: int64 [m], equal for pairs of one prompt.
    """

    scores: AnswerScores
    readings: NDArray[np.float32]
    tokens: NDArray[np.int32]
    prompts: NDArray[np.int64]


def survey_pairs(data: PreferenceData, broken: float) -> PairSurvey:
    """Read the data through once.

    Raises:
        InvalidData: more than the share ``broken`` of its rows are no pairs, or all of them.
    """
    survey = PairSurvey()
    for _ in Rejections(share=broken).sift(_noted_rows(data, survey)):
        pass
    return survey


def collect_pair_scores(shards: Iterable[Shard], survey: PairSurvey, traits: int) -> PairScores:
    """Pairs of the scores of all shards; a pair of which an answer has none is rejected.

    Args:
        shards: Windows of the pairs' conversations.
        survey: The data; what cannot be read is entered in it.
        traits: k.
    """
    places, readings, tokens, cut = _read_sides(shards, survey, traits)
    pairs = np.array([index for index in survey.index if index not in survey.rejected], dtype=np.int64)
    at = np.stack([np.searchsorted(places, 2 * pairs + side) for side in range(len(SIDES))])
    lengths, both = tokens[at], readings[at]
    prompts = dict(zip(survey.index, survey.prompts, strict=True))
    differences = both[0] - both[1]
    differences[np.isin(pairs, [*survey.same])] = 0.0  # whatever rounding makes of two batches
    scores = AnswerScores(
        index=pairs,
        turn=np.zeros(len(pairs), np.int32),
        tokens=lengths.min(axis=0),
        cut=np.logical_or(*cut[at]),
        scores=differences,
        unread={},
        rejected=frozenset(survey.rejected),
        kinds=Counter(row.kind for row in survey.rejected.values()),
        rows=survey.rows,
        left_out=survey.left_out,
    )
    return PairScores(
        scores=scores,
        readings=both,
        tokens=lengths,
        prompts=np.array([prompts[int(index)] for index in pairs], dtype=np.int64),
    )


def _noted_rows(data: PreferenceData, survey: PairSurvey) -> Iterator[Conversation | RejectedRow]:
    for row in data:
        survey.rows += 1
        if row.row == 0:
            survey.starts.append(row.index)
            survey.files.append(row.file)
        if isinstance(row, RejectedRow):
            survey.rejected[row.index] = replace(row, raw=None)
            yield row
            continue
        survey.index.append(row.index)
        survey.prompts.append(_prompt_number(row.content))
        if row.content.same:
            survey.same.add(row.index)
        survey.left_out.update(row.content.left_out)
        yield USABLE_ROW


def _prompt_number(content: PairContent) -> int:
    text = json.dumps([content.prompt, content.tools], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big", signed=True)


def _read_sides(
    shards: Iterable[Shard], survey: PairSurvey, traits: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int32], NDArray[np.bool_]]:
    """Readings of all answers: place [s], float32 [s, k], tokens int32 [s], cut bool [s].

    An answer of several turns has the mean over the tokens of all of them.
    """
    index: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    means: list[NDArray[np.float32]] = [np.empty((0, traits), np.float32)]
    lengths: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
    cuts: list[NDArray[np.bool_]] = [np.empty(0, np.bool_)]
    for shard in shards:
        for bad in shard.rejected:
            _refuse(survey, bad.index, bad.reason)
        for at, reason in shard.unread.items():
            _refuse(survey, int(shard.index[at]), reason)
        index.append(shard.index)
        means.append(shard.mean)
        lengths.append(shard.tokens)
        cuts.append(shard.cut)
    tokens = np.concatenate(lengths)
    places, first, which = np.unique(np.concatenate(index), return_index=True, return_inverse=True)
    if not len(places):
        return places, np.empty((0, traits), np.float32), np.empty(0, np.int32), np.empty(0, np.bool_)
    sums = np.add.reduceat(np.concatenate(means).astype(float) * tokens[:, None], first)
    totals = np.bincount(which, weights=tokens)
    with np.errstate(invalid="ignore", divide="ignore"):
        readings = (sums / totals[:, None]).astype(np.float32)
    return places, readings, totals.astype(np.int32), np.logical_or.reduceat(np.concatenate(cuts), first)


def _refuse(survey: PairSurvey, place: int, reason: str) -> None:
    """Reject the pair of an answer that cannot be read, for the first reason there is."""
    index, side = divmod(place, len(SIDES))
    if index not in survey.rejected:
        survey.reject(index, f"{reason} ({SIDES[side]})")
