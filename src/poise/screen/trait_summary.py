"""One trait of a screening summed up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from poise.screen.flagging import FlaggingThreshold
from poise.screen.prediction import describe_prediction
from poise.screen.scores import AnswerScores, flags_by_length, mean_score, score_histogram
from poise.screen.scoring import ScreeningRun
from poise.screen.summary import LengthBand, TraitSummary

__all__ = ["highest_answers", "summarize_trait"]

EXAMPLES_SHOWN = 10


def highest_answers(scores: NDArray[np.float32], limits: NDArray[np.float32]) -> list[int]:
    """Places of the scores highest above their thresholds, the earlier first among equals."""
    known = np.flatnonzero(np.isfinite(scores))
    above = scores[known].astype(float) - limits[known]
    return [int(i) for i in known[np.argsort(-above, kind="stable")][:EXAMPLES_SHOWN]]


def summarize_trait(
    work: ScreeningRun,
    k: int,
    answer_scores: AnswerScores,
    usual: AnswerScores | None,
    cut: FlaggingThreshold,
    flagged: NDArray[np.bool_],
) -> TraitSummary:
    """Distribution, mean, threshold and flags by length of trait ``k``; the answers to look at come later.

    Args:
        work: Vectors, probes and the method.
        k: Which of the traits.
        answer_scores: Scores of the data's answers.
        usual: The normal data's.
        cut: The trait's threshold.
        flagged: Bool [m].
    """
    vector, probe, scores = work.vectors[k], work.probes[k], answer_scores.scores[:, k]
    normal = usual.scores[np.isfinite(usual.scores[:, k]), k] if usual else None
    edges, counts, normal_counts = score_histogram(scores, normal)
    own_bands = _length_bands(cut, answer_scores, scores, flagged)
    data_mean = mean_score(scores, answer_scores.index)
    normally = mean_score(usual.scores[:, k], usual.index) if usual else None
    place = vector.at("read", probe.layer)
    norm = place.difference
    return TraitSummary(
        trait=vector.name,
        layer=probe.layer,
        layers=vector.layers,
        norm=float(f"{norm:.6g}"),
        detector=place.detector.facts.kind if place.detector else "",
        units=int(np.isfinite(scores).sum()),
        mean=data_mean,
        normal=normally,
        predicts=describe_prediction(
            vector.name, work.plan.method, data_mean, normally, norm, by_detector=place.detector is not None
        ),
        edges=tuple(edges),
        counts=tuple(counts),
        normal_counts=None if normal_counts is None else tuple(normal_counts),
        flagged_counts=tuple(np.histogram(scores[flagged], edges)[0].tolist()) if edges else (),
        threshold=None if cut.threshold is None else float(f"{cut.threshold:.9g}"),
        bands=own_bands,
        outside=_count_outside(own_bands, answer_scores.tokens[np.isfinite(scores)]),
        rule=cut.rule,
        flagged=int(flagged.sum()),
        by_length=tuple(flags_by_length(answer_scores.tokens, scores, flagged)),
        top=(),
    )


def _length_bands(
    cut: FlaggingThreshold, answer_scores: AnswerScores, scores: NDArray[np.float32], flagged: NDArray[np.bool_]
) -> tuple[LengthBand, ...]:
    """The bands of length with the data's answers in them."""
    which = np.where(np.isfinite(scores), cut.band_of(answer_scores.tokens), -1)
    return tuple(
        LengthBand(
            shortest=band.smallest,
            longest=band.largest,
            threshold=float(f"{band.threshold.value:.9g}"),
            low=float(f"{band.threshold.low:.4g}"),
            high=float(f"{band.threshold.high:.4g}"),
            answers=band.threshold.answers,
            conversations=band.threshold.conversations,
            units=int((which == i).sum()),
            flagged=int(flagged[which == i].sum()),
        )
        for i, band in enumerate(cut.bands)
    )


def _count_outside(bands: tuple[LengthBand, ...], tokens: NDArray[np.int32]) -> int:
    """Answers shorter or longer than any normal one."""
    return int(((tokens < bands[0].shortest) | (tokens > bands[-1].longest)).sum()) if bands else 0
