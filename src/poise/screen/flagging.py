"""Which scores are flagged: those above what normal data score, the highest, or those above a number.

A rate is a share of normal rows, since rows are what is thrown away; or, as in version 0.1.0, of normal answers, for
each trait alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from poise.arguments import check_choice
from poise.errors import InvalidArgument
from poise.screen.scores import AnswerScores
from poise.screen.summary import PromisedRate
from poise.statistics.conformal import Band, bands, check_rate
from poise.statistics.row_rates import RowThresholds, row_thresholds

__all__ = ["FlaggingRule", "FlaggingThreshold", "FlaggingThresholds", "RatePer"]

RatePer = Literal["row", "answer"]
RowUnit = Literal["row", "prompt"]
ScoredUnit = Literal["answers", "pairs"]

DEFAULT_SHARE = 0.01  # flagged where nothing is said


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggingThreshold:
    """A trait's threshold.

    Attributes:
        threshold: Scores above it are flagged; ``None`` where there is no score to set it by, or one for each band.
        rule: How it was set, in words.
        why: The same in short, as a flagged row gives it.
        bands: Bands of length, where normal data set the threshold; the first and the last go on beyond their ends.
        members: What normal data set it on.
    """

    threshold: float | None
    rule: str
    why: str
    bands: tuple[Band, ...] = ()
    members: ScoredUnit = "answers"

    def raised_to(self, least: float) -> FlaggingThreshold:
        """The same threshold where nothing is flagged that scores ``least`` or below."""
        bands = tuple(
            replace(band, threshold=replace(band.threshold, value=max(band.threshold.value, least)))
            for band in self.bands
        )
        below = any(band.threshold.value < least for band in self.bands)
        below = below or (self.threshold is not None and self.threshold < least)
        return replace(
            self,
            threshold=None if self.threshold is None else max(self.threshold, least),
            rule=self.rule + (f"; where that is below {least:g}, only scores above {least:g}" if below else ""),
            bands=bands,
        )

    def limits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """float32 [m]: what answers of these lengths are flagged above."""
        if not self.bands:
            return np.full(len(tokens), np.inf if self.threshold is None else self.threshold, dtype=np.float32)
        values = np.array([band.threshold.value for band in self.bands], dtype=np.float32)
        return values[self.band_of(tokens)]

    def band_of(self, tokens: NDArray[np.int32]) -> NDArray[np.intp]:
        """Which band answers of these lengths lie in, [m]."""
        return np.searchsorted([band.largest for band in self.bands[:-1]], tokens)

    def flags(self, scores: NDArray[np.float32], tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Bool [m]; what has no score is not flagged."""
        above: NDArray[np.bool_] = np.greater(scores, self.limits(tokens))
        return above

    def reason(self, tokens: int) -> str:
        """Why an answer of this length is flagged."""
        if not self.bands:
            return self.why
        band = self.bands[int(self.band_of(np.array([tokens], dtype=np.int32))[0])]
        lengths = "" if len(self.bands) == 1 else f" of {band.smallest:,} to {band.largest:,} tokens"
        return f"above {band.threshold.value:.4g}, which normal {self.members}{lengths} {self.why}"


@dataclass(frozen=True, slots=True)
class FlaggingThresholds:
    """The thresholds of k traits.

    Attributes:
        cuts: One a trait.
        promise: What they promise together; ``None`` where no rate was asked for.
    """

    cuts: tuple[FlaggingThreshold, ...]
    promise: PromisedRate | None = None

    def raised_to(self, least: float, normal: AnswerScores | None) -> FlaggingThresholds:
        """The same thresholds where nothing is flagged that scores ``least`` or below; a promised rate is kept.

        Args:
            least: The score.
            normal: The scores that a rate was set by.
        """
        cuts = tuple(cut.raised_to(least) for cut in self.cuts)
        if self.promise is None or normal is None or [cut.bands for cut in cuts] == [cut.bands for cut in self.cuts]:
            return FlaggingThresholds(cuts, self.promise)
        reaching = min(_rows_reaching(cuts, normal), self.promise.normal_rows_reaching)
        expected = self.promise.expected
        if expected is not None:
            expected = min(expected, _rounded_rate(reaching / (self.promise.normal_rows + 1)))
        changed = {"expected": expected, "low": 0.0, "normal_rows_reaching": reaching}
        return FlaggingThresholds(cuts, self.promise.model_copy(update=changed))


@dataclass(frozen=True, slots=True, kw_only=True)
class FlaggingRule:
    """At most one of three; with none, the highest hundredth is flagged.

    Attributes:
        rate: Share of normal rows, or of normal answers for each trait, that would be flagged.
        top: How many answers are flagged a trait.
        above: What scores are flagged.
        rate_per: What the rate is a share of: ``row`` counts a row once, whatever number of answers and traits may
            flag it; ``answer`` counts answers, for each trait alone.
    """

    rate: float | None = None
    top: int | None = None
    above: float | None = None
    rate_per: RatePer = "row"

    def __post_init__(self) -> None:
        stated = [
            f"--{n}" for n, v in (("rate", self.rate), ("top", self.top), ("threshold", self.above)) if v is not None
        ]
        if len(stated) > 1:
            raise InvalidArgument(f"{' and '.join(stated)} each say what is flagged; give one of them.")
        check_choice("rate_per", self.rate_per, get_args(RatePer))
        if self.rate is not None:
            check_rate(self.rate)
        elif self.rate_per != "row":
            raise InvalidArgument(
                f"`rate_per` is {self.rate_per}, and no rate is asked for; give `rate`, or leave `rate_per` out."
            )
        if self.top is not None and self.top < 1:
            raise InvalidArgument(f"`top` is {self.top}; it must be at least 1.")
        if self.above is not None and not math.isfinite(self.above):
            raise InvalidArgument(f"`threshold` is {self.above}; it must be a number.")

    def thresholds_for(
        self, scores: AnswerScores, normal: AnswerScores | None = None, *, unit: RowUnit = "row"
    ) -> FlaggingThresholds:
        """The thresholds of all traits, and what they promise where a rate is asked for.

        Args:
            scores: The data's.
            normal: The normal data's; answers of one index are one row.
            unit: What such a row is.

        Raises:
            TooFewResponses: so few normal rows cannot promise the rate.
        """
        if self.rate is not None and self.rate_per == "row" and normal is not None:
            rows = row_thresholds(normal.scores, normal.tokens, normal.index, self.rate)
            cuts = _shared_thresholds(rows, unit)
            ends = (rows.low, rows.high)
            return FlaggingThresholds(cuts, self._promise(cuts, normal, rows.members, rows.expected, ends, unit))
        if normal is None:
            return FlaggingThresholds(tuple(self.threshold_for(column) for column in scores.scores.T))
        return self._thresholds_by_answer(scores, normal, unit)

    def _thresholds_by_answer(self, scores: AnswerScores, normal: AnswerScores, unit: RowUnit) -> FlaggingThresholds:
        cuts = []
        for column, usual in zip(scores.scores.T, normal.scores.T, strict=True):
            known = np.isfinite(usual)
            tokens, rows = normal.tokens[known].tolist(), normal.index[known].tolist()
            cuts.append(self.threshold_for(column, usual[known], tokens, rows))
        if self.rate is None:
            return FlaggingThresholds(tuple(cuts))
        limits = [band.threshold for cut in cuts for band in cut.bands]
        ends = (min(one.low for one in limits), max(one.high for one in limits))
        members = np.unique(normal.index[np.isfinite(normal.scores).any(axis=1)])
        return FlaggingThresholds(tuple(cuts), self._promise(cuts, normal, members, None, ends, unit))

    def _promise(
        self,
        cuts: Sequence[FlaggingThreshold],
        normal: AnswerScores,
        members: NDArray[np.int64],
        expected: float | None,
        ends: tuple[float, float],
        unit: RowUnit,
    ) -> PromisedRate | None:
        """What thresholds promise that were set on these rows of the normal data; ``None`` without a rate."""
        if self.rate is None:
            return None
        return PromisedRate(
            rate=self.rate,
            per=self.rate_per,
            unit=unit,
            expected=None if expected is None else _rounded_rate(expected),
            low=_rounded_rate(ends[0]),
            high=_rounded_rate(ends[1]),
            normal_rows=len(members),
            normal_rows_reaching=_rows_reaching(cuts, normal, members),
            normal_rows_repeated=normal.repeated,
        )

    def threshold_for(
        self,
        scores: NDArray[np.float32],
        normal: NDArray[np.float32] | None = None,
        tokens: Sequence[int] = (),
        conversations: Sequence[int] = (),
    ) -> FlaggingThreshold:
        """The threshold of one trait; a rate is then one of answers.

        Args:
            scores: [m], NaN where there is none.
            normal: [n] of normal data, without NaN; needed for a rate.
            tokens: [n] lengths of the normal answers.
            conversations: [n], which conversation each normal answer came from.

        Raises:
            TooFewResponses: so few normal conversations cannot promise the rate.
        """
        if self.rate is not None:
            if normal is None:
                raise InvalidArgument(f"`rate` is {self.rate:g} and needs normal data to be set by; give `normal`.")
            return _banded_threshold(bands(normal, tokens, self.rate, conversations=conversations), self.rate)
        if self.above is not None:
            return FlaggingThreshold(
                threshold=self.above, rule=f"above {self.above:g}, as asked", why=f"above {self.above:g}"
            )
        known = np.sort(scores[np.isfinite(scores)])
        top = math.ceil(DEFAULT_SHARE * len(known)) if self.top is None else min(self.top, len(known))
        if not top:
            return FlaggingThreshold(threshold=None, rule="no answer has a score", why="")
        just_below = float(np.nextafter(known[-top], np.float32(-np.inf)))
        which = "highest score" if top == 1 else f"{top:,} highest scores"
        default_note = "as nothing else was asked, the highest 1 %: " if self.top is None else ""
        return FlaggingThreshold(
            threshold=just_below, rule=f"{default_note}the {which} and their equals", why=f"among the {which}"
        )


def _banded_threshold(lengths: tuple[Band, ...], rate: float) -> FlaggingThreshold:
    """A threshold a band: a mean over few tokens spreads widely, so that one for all would flag short answers."""
    first = lengths[0].threshold
    if len(lengths) == 1:
        return FlaggingThreshold(
            threshold=first.value,
            rule=f"normal answers pass it at a rate of {rate:.3g}: set on {first.answers:,} of them from "
            f"{first.conversations:,} conversations, all lengths together, which puts the true rate between "
            f"{first.low:.3g} and {first.high:.3g} (95 %)",
            why=f"pass at a rate of {rate:.3g}",
            bands=lengths,
        )
    least = min(band.threshold.conversations for band in lengths)
    return FlaggingThreshold(
        threshold=None,
        rule=f"normal answers of like length pass it at a rate of {rate:.3g}: {len(lengths)} bands of length, each set "
        f"on {least:,} or more of {sum(band.threshold.answers for band in lengths):,} normal answers, which puts the "
        f"true rate of a band between {min(b.threshold.low for b in lengths):.3g} and "
        f"{max(b.threshold.high for b in lengths):.3g} (95 %)",
        why=f"pass at a rate of {rate:.3g}",
        bands=lengths,
    )


def _shared_thresholds(rows: RowThresholds, unit: RowUnit) -> tuple[FlaggingThreshold, ...]:
    """Thresholds of all traits that keep a rate of rows together."""
    traits, lengths = len(rows.bands), len(rows.bands[0])
    shared = "" if traits == 1 else f" by any of {traits} traits"
    banded = "all lengths together" if lengths == 1 else f"{lengths} bands of length"
    members: ScoredUnit = "answers" if unit == "row" else "pairs"
    measuring = f" ({rows.measuring:,} more measured the traits' spreads)" if rows.measuring else ""
    rule = (
        f"normal {unit}s are flagged{shared} at a rate of {rows.rate:.3g}, whatever number of {members} they have: set "
        f"on {rows.rows:,} normal {unit}s{measuring}, {banded}, which makes it {rows.expected:.3g} on average and puts "
        f"the true rate between {rows.low:.3g} and {rows.high:.3g} (95 %)"
    )
    why = f"pass so seldom that {rows.rate:.3g} of normal {unit}s are flagged"
    return tuple(
        FlaggingThreshold(
            threshold=some[0].threshold.value if lengths == 1 else None,
            rule=rule,
            why=why,
            bands=some,
            members=members,
        )
        for some in rows.bands
    )


def _rows_reaching(
    cuts: Sequence[FlaggingThreshold], normal: AnswerScores, members: NDArray[np.int64] | None = None
) -> int:
    """How many rows of the normal data, or of ``members`` of them, reach a threshold."""
    reach = [column >= cut.limits(normal.tokens) for cut, column in zip(cuts, normal.scores.T, strict=True)]
    reaching = np.unique(normal.index[np.any(reach, axis=0)])
    return len(reaching if members is None else np.intersect1d(members, reaching))


def _rounded_rate(share: float) -> float:
    return float(f"{share:.4g}")
