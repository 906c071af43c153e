"""How two models are related: one and the same, an adapter, a merged one, a fine-tune, a copy, or strangers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from poise.model.fingerprint import Fingerprint, Resizing
from poise.model.forward_settings import ForwardSettings
from poise.model.sketch import WeightSketch

__all__ = ["SAME_MODEL", "ModelRelation", "RelationKind", "relate"]

RelationKind = Literal[
    "same", "settings", "adapter", "merged", "fine-tune", "quantised", "resized", "template", "unknown", "other"
]
RELATIVES = frozenset({"settings", "adapter", "merged", "fine-tune", "quantised", "resized"})
FOUR_BIT_CORRELATION = 0.9985  # correlation that weights rounded to 4 bits do not reach with what they were
WORST_CORRELATION = 0.75  # of any block or sketched matrix of two that descend from one another; see docs/vectors.md
RELATED_CORRELATION = 0.6  # of the sketches of two models that descend from one another; see docs/vectors.md


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRelation:
    """What one model is to another.

    Attributes:
        kind: ``same``; ``settings``: the same weights under a configuration that computes something else;
            ``adapter``: the same base weights, other adapters on them; ``merged``: matrices changed, norms and biases
            did not, as by an adapter that was merged in; ``fine-tune``: these changed too;
            ``quantised``: the same weights rounded in another way; ``resized``: another number of token embeddings;
            ``template``: the same weights, another chat template; ``unknown``: the same sizes, and the vector's file is
            too old to tell more; ``other``: strangers.
        sentence: What the second model is to the first, to follow its name.
        correlation: Correlation of the weights' sketches; ``None`` where they were not compared.
    """

    kind: RelationKind
    sentence: str
    correlation: float | None = None

    @property
    def related(self) -> bool:
        """Whether a direction of the one may be used on the other."""
        return self.kind == "same" or self.kind in RELATIVES


SAME_MODEL = ModelRelation(kind="same", sentence="is that model")


def relate(
    first: Fingerprint,
    second: Fingerprint,
    sketches: Callable[[], tuple[WeightSketch | None, WeightSketch | None]] = lambda: (None, None),
    settings: tuple[ForwardSettings, ForwardSettings] | None = None,
    resizing: Callable[[], Resizing | None] = lambda: None,
) -> ModelRelation:
    """What the second model is to the first.

    Args:
        first: The model that a vector was computed on.
        second: The model at hand.
        sketches: Both sketches, where they are known; only called where the fingerprints do not settle it.
        resizing: Whether only the second model's vocabulary has another size; called where there are no sketches.
        settings: What both forward passes depend on besides weights, where both are known.
    """
    if settings is None:
        return _by_weights(first, second, sketches, resizing)
    before, after = settings
    strength = first.adapter == second.adapter and before.adapter != after.adapter
    relation = _by_weights(
        replace(first, adapter=before.adapter),
        replace(second, adapter=after.adapter),
        sketches,
        resizing,
        strength=strength,
    )
    changes = "; ".join(before.differences(after))
    if not changes or not (relation.related or relation.kind == "template"):
        return relation
    if relation.kind == "same":
        return ModelRelation(kind="settings", sentence=f"has the same weights under other settings: {changes}")
    return replace(relation, sentence=f"{relation.sentence}, under other settings: {changes}")


def _by_weights(
    first: Fingerprint,
    second: Fingerprint,
    sketches: Callable[[], tuple[WeightSketch | None, WeightSketch | None]],
    resizing: Callable[[], Resizing | None],
    *,
    strength: bool = False,
) -> ModelRelation:
    """The relation but for settings; ``strength``: both have one adapter that does not work alike."""
    if first == second:
        return SAME_MODEL
    if first.weights == second.weights:
        return _same_weights(first, second, "has the same base weights", strength=strength)
    before, after = sketches()
    if before is None or after is None:
        return _by_hashes_alone(first, second, resizing)
    if before.half == after.half:
        return _same_weights(first, second, "has the same base weights in another precision", strength=strength)
    return _by_sketches(first, second, before, after)


def _same_weights(first: Fingerprint, second: Fingerprint, how: str, *, strength: bool) -> ModelRelation:
    if strength and first.adapter and second.adapter:
        return ModelRelation(kind="adapter", sentence=f"{how} under the same adapter with another strength or setting")
    if first.adapter != second.adapter:
        return ModelRelation(kind="adapter", sentence=f"{how} {_adapter_words(first, second)}")
    if first.template != second.template:
        return ModelRelation(kind="template", sentence=f"{how.replace(' base', '')} with another chat template")
    return ModelRelation(kind="same", sentence="is that model in another precision")


def _adapter_words(first: Fingerprint, second: Fingerprint) -> str:
    if not first.adapter:
        return "under an adapter"
    return "under another adapter" if second.adapter else "without the adapter"


def _by_hashes_alone(first: Fingerprint, second: Fingerprint, resizing: Callable[[], Resizing | None]) -> ModelRelation:
    if first.architecture != second.architecture:
        change = resizing()
        if change is None:
            return ModelRelation(kind="other", sentence="is another model")
        sizes = f"{change.after:,} token embeddings, not {change.before:,}"
        if change.same_weights:
            adapted = f" {_adapter_words(first, second)}" if first.adapter != second.adapter else ""
            sentence = f"has the same weights with a resized vocabulary, {sizes}{adapted}"
            return ModelRelation(kind="resized", sentence=sentence)
        weights = "may have other weights" if change.same_weights is None else "has other weights"
        return ModelRelation(
            kind="unknown",
            sentence=f"has the same architecture with {sizes}, and {weights}, of a fine-tune or a stranger",
        )
    return ModelRelation(
        kind="unknown", sentence="has the same architecture with other weights, of a fine-tune or of a stranger"
    )


def _by_sketches(first: Fingerprint, second: Fingerprint, before: WeightSketch, after: WeightSketch) -> ModelRelation:
    if before.shape != after.shape:
        return ModelRelation(kind="other", sentence="is another model")
    r = before.correlation(after)
    if r < RELATED_CORRELATION:
        sentence = f"has the same architecture with other weights, unrelated to it (correlation {r:.2f})"
        return ModelRelation(kind="other", sentence=sentence, correlation=r)
    if (worst := before.worst_correlation(after)) < WORST_CORRELATION:
        sentence = (
            f"has related weights with parts from elsewhere or turned over (correlation {r:.2f}, of the worst part "
            f"{worst:.2f})"
        )
        return ModelRelation(kind="other", sentence=sentence, correlation=r)
    if (tokens := before.token_correlation(after)) < RELATED_CORRELATION:
        sentence = f"has related blocks under other token embeddings (correlation {tokens:.2f})"
        return ModelRelation(kind="other", sentence=sentence, correlation=r)
    kind, sentence = _related_change(first, second, before, after)
    return ModelRelation(kind=kind, sentence=f"{sentence} (correlation of the weights {r:.4f})", correlation=r)


def _related_change(
    first: Fingerprint, second: Fingerprint, before: WeightSketch, after: WeightSketch
) -> tuple[RelationKind, str]:
    adapted = f" {_adapter_words(first, second)}" if first.adapter != second.adapter else ""
    sizes = f"{after.vocabulary:,} token embeddings, not {before.vocabulary:,}"
    steady = "vectors" if before.vectors else "embeddings"  # what adapters of matrices leave alone
    vectors_unchanged = getattr(before, steady) == getattr(after, steady)
    if _is_copy(before, after, vectors_unchanged=vectors_unchanged):
        how = f"in {after.quantisation}" if after.quantisation else f"unrounded, not in {before.quantisation}"
        return "quantised", f"has its weights {how}, as a quantised copy has{adapted}"
    if before.vocabulary != after.vocabulary:
        if vectors_unchanged and before.matrices == after.matrices:
            return "resized", f"has the same weights with a resized vocabulary, {sizes}{adapted}"
        return "fine-tune", f"has changed weights, as a fine-tune has, and {sizes}{adapted}"
    if first.adapter and not second.adapter and vectors_unchanged:
        return "merged", "has changed matrices and no adapter, as once the adapter is merged in"
    if adapted and vectors_unchanged:
        return "adapter", f"has base weights that its adapter changed in part, {adapted.strip()}"
    if vectors_unchanged:
        return "merged", f"has changed matrices, as a merged adapter or a fine-tune of some layers has{adapted}"
    return "fine-tune", f"has changed weights, as a fine-tune has{adapted}"


def _is_copy(before: WeightSketch, after: WeightSketch, *, vectors_unchanged: bool) -> bool:
    """Whether one model is the other rounded.

    Weights on a grid were rounded last. Those off it may be what was rounded, or were fine-tuned since: only a loss as
    large as that of the rounding speaks for the first.
    """
    if before.matrices == after.matrices:
        return False
    if before.quantisation == after.quantisation:
        return after.quantisation.endswith(" bits") and vectors_unchanged
    if after.quantisation:
        return True
    return before.quantisation != "4 bits" or before.correlation(after) < FOUR_BIT_CORRELATION
