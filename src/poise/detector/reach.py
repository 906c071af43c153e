"""How far a detector will carry: whether data lie where the answers lay that it was fitted on.

Its cross-validated figures are of answers like those. Two figures tell, without a label, whether others are: the share
of the data's answers beyond what was seen, and the Mahalanobis cosine between the detector and the direction that the
same pairs would ask for among these data (Ying, Hase and Kriegeskorte 2026, arXiv:2606.19603, whose reference is
learnt from labels; data to be read have none, so the pairs' mean difference stands in for them).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from poise.activations import read_layers
from poise.data import DataSet, InputRow, Rejections, data_from_rows, draw_conversations, turns
from poise.detector.kinds import AnswerGroups
from poise.errors import InvalidData
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, answer_spans_together
from poise.settings import FrozenModel
from poise.statistics.conformal import exact_interval
from poise.vector import Detector, PersonaVector
from poise.vector.persona_vector import as_vectors
from poise.vector.seen_answers import AnswerSpread, SeenAnswers, SeenFacts

__all__ = ["DetectorReach", "measure_reach", "remember_answers"]

ANSWERS_TRIED = 200
FEWEST_TALK = 100  # held-out answers of talk that can show one in a hundred
FEWEST_FOR_COSINE = 20  # answers of the data, whose covariance it takes
BEYOND = 0.01
FAR = 0.05  # a share beyond what was seen that is surely above this is warned of


class DetectorReach(FrozenModel):
    """How far data lie from what a detector was fitted on."""

    trait: str
    answers: int = Field(
        description="Different answers of the data that were tried, one a conversation, drawn at random."
    )
    beyond: int = Field(description="Those of them that lie beyond what the detector was fitted on.")
    share: float = Field(description="Their share.")
    low: float = Field(description="Lower end of its exact 95 % interval.")
    high: float = Field(description="Upper end.")
    expected: float = Field(description="The share to be expected of answers like those that it was fitted on.")
    cosine: float | None = Field(
        description="Mahalanobis cosine of the detector among the data; None for fewer than 20 answers."
    )
    cosine_when_fitted: float = Field(description="The same among the talk that it was fitted on.")

    @property
    def far(self) -> bool:
        """Whether surely more than one in twenty answers lies beyond."""
        return self.low > FAR

    def __str__(self) -> str:
        """One sentence, without a stop."""
        advice = (
            "; what its figures promise may not hold here, so fit it again with ordinary talk like these data"
            if self.far
            else ""
        )
        cosine = (
            f"too few for a Mahalanobis cosine, which takes {FEWEST_FOR_COSINE}"
            if self.cosine is None
            else f"Mahalanobis cosine {self.cosine:.2f}"
        )
        return (
            f"{self.trait}: {self.beyond:,} of {self.answers:,} answers tried ({self.share:.1%} "
            f"[{self.low:.1%}, {self.high:.1%}]) lie beyond what its detector was fitted on, where {self.expected:.1%} "
            f"is usual; {cosine}, {self.cosine_when_fitted:.2f} when it was fitted{advice}"
        )


def remember_answers(
    weights: NDArray[np.float64], groups: AnswerGroups, folds: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]]
) -> tuple[SeenAnswers, SeenFacts]:
    """Where a detector's answers lie, with the distance beyond which one in a hundred held-out ones does.

    Args:
        weights: The detector's direction [d].
        groups: Response means that it was fitted on, at its layer.
        folds: Which pairs and which answers of talk are held out together.
    """
    everything = np.concatenate([groups.positive, groups.negative, groups.talk])
    only_talk = len(groups.talk) >= FEWEST_TALK
    held_out: list[NDArray[np.float64]] = []
    for pairs, talk in folds:
        seen = np.concatenate([groups.positive[~pairs], groups.negative[~pairs], groups.talk[~talk]])
        others = [groups.talk[talk], *([] if only_talk else [groups.positive[pairs], groups.negative[pairs]])]
        held_out.append(AnswerSpread.of(seen).distances(np.concatenate(others)))
    distances = np.sort(np.concatenate(held_out))
    highest = max(int((len(distances) + 1) * BEYOND), 1)
    spread = AnswerSpread.of(everything)
    difference = (groups.positive - groups.negative).mean(0)
    return SeenAnswers(spread, difference), SeenFacts(
        answers=len(everything),
        held_out=len(distances),
        limit=float(f"{distances[-highest]:.6g}"),
        beyond=float(f"{highest / (len(distances) + 1):.4g}"),
        cosine=float(f"{(AnswerSpread.of(groups.talk) if only_talk else spread).cosine(weights, difference):.4g}"),
    )


def measure_reach(
    rows: DataSet | Iterable[InputRow],
    vectors: PersonaVector | Sequence[PersonaVector],
    model: Model,
    *,
    layer: int | None = None,
    limit: int = ANSWERS_TRIED,
    seed: int = 0,
) -> list[DetectorReach]:
    """How far data lie from what detectors were fitted on: of at most ``limit`` conversations an answer each.

    Args:
        rows: Conversations with answers.
        vectors: Those without a detector, or whose detector did not keep what it was fitted on, are left out.
        model: Model whose activations are read, once for all detectors.
        layer: Layer for all vectors, as in ``read_rows``; a detector reads at its own alone.
        limit: Most answers.
        seed: Seed of the drawing.

    Returns:
        One for each such vector in their order; none where no answer can be read.
    """
    detectors: list[tuple[str, Detector, SeenAnswers, SeenFacts]] = []
    for vector in as_vectors(vectors):
        detector = vector.at("read", layer).detector
        if detector and detector.seen and detector.facts.seen:
            detectors.append((vector.name, detector, detector.seen, detector.facts.seen))
    if not detectors:
        return []
    texts = _draw_texts(data_from_rows(rows), model, limit, seed)
    layers = sorted({detector.layer for _, detector, _, _ in detectors})
    means = read_layers(model, texts, layers).double().numpy()
    means = means[np.isfinite(means).all((1, 2))]
    if not len(means):
        return []
    return [
        _reach_of(name, means[:, layers.index(detector.layer)], detector, seen, facts)
        for name, detector, seen, facts in detectors
    ]


def _draw_texts(data: DataSet, model: Model, limit: int, seed: int) -> list[Encoded]:
    """Of each conversation drawn an answer that can be read."""
    draw = random.Random(seed)
    try:
        conversations = draw_conversations(data, limit, seed=seed, rejections=Rejections(share=1.0))
    except InvalidData:  # nothing can be read, which whoever reads them says
        return []
    rows = answer_spans_together(model, [turns(conversation) for conversation in conversations])
    readable = [[p.text for p in places if isinstance(p, AnswerSpan) and p.text.end > p.text.start] for places in rows]
    texts = [draw.choice(answers) for answers in readable if answers]
    return list({text.ids[text.start : text.end]: text for text in texts}.values())  # equal answers count once


def _reach_of(
    name: str, means: NDArray[np.float64], detector: Detector, seen: SeenAnswers, facts: SeenFacts
) -> DetectorReach:
    beyond, n = int((seen.spread.distances(means) > facts.limit).sum()), len(means)
    low, high = exact_interval(beyond, n)
    share, low, high = (float(f"{x:.4g}") for x in (beyond / n, low, high))
    cosine = None
    if n >= FEWEST_FOR_COSINE:
        cosine = float(f"{AnswerSpread.of(means).cosine(detector.weights.double().numpy(), seen.difference):.4g}")
    return DetectorReach(
        trait=name,
        answers=n,
        beyond=beyond,
        share=share,
        low=low,
        high=high,
        expected=facts.beyond,
        cosine=cosine,
        cosine_when_fitted=facts.cosine,
    )
