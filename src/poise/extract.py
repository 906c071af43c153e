"""ContrastSet + model → ``PersonaVector``: the difference of response means, layer by layer."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

import torch

from poise.activations import read, reference_norm
from poise.arguments import check_number, check_type
from poise.contrast import ContrastSet, Response
from poise.errors import NonFiniteActivation, OtherModel, TooFewResponses
from poise.model import Model
from poise.model.relation import relate
from poise.vector import Header, ModelId, PersonaVector

__all__ = ["extract", "pair_agreement"]

NORM_TEXTS = 64  # ordinary answers that the unit of a dose is measured on
MIN_KEPT = 4


def extract(contrast: ContrastSet, model: Model, *, min_kept: int = MIN_KEPT) -> PersonaVector:
    """Mean response activation with the trait minus without it, at every layer.

    Chen et al. 2025 (arXiv:2507.21509), section 2.2, response mean. n: kept pairs, L: decoder blocks, d: model width.

    Args:
        contrast: Judged responses or exemplars, in pairs.
        model: Frozen; read in its own dtype, averaged in float32. Not run at all on responses whose means were kept.
        min_kept: Fewest usable pairs.

    Returns:
        ``directions`` float32 [L, d] on the CPU, un-normalised: steering with ``coef=1`` adds one mean difference.
        Row i is the output of block i.

    Raises:
        OtherModel: the responses were collected on another model: their tokens and means are that one's.
        TooFewResponses: n < min_kept; names n, the limit and what was dropped.
        NonFiniteActivation: NaN or infinity in a response's mean.
    """
    check_type("contrast", contrast, ContrastSet, "a ContrastSet, as collect_contrast(trait, model) gives")
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    check_number("min_kept", min_kept, least=1, most=2**31)
    if contrast.model is not None and contrast.model != model.fingerprint:
        raise OtherModel(
            f"The responses for {contrast.trait.name} were collected on another model than {model.name}, which "
            f"{relate(contrast.model, model.fingerprint).sentence}; collect them on the model that the vector is for."
        )
    n = len(contrast.positive)
    if n < min_kept:
        raise TooFewResponses(
            f"{contrast.trait.name} has {n} usable pairs and needs {min_kept} (left out: "
            f"{contrast.dropped or 'none'}); "
            "bring more exemplars, or more `questions` and `rollouts`."
        )
    means = _response_means(model, [*contrast.positive, *contrast.negative])
    differences = means[:n] - means[n:]
    return PersonaVector(
        directions=differences.mean(dim=0),
        reference_norm=reference_norm(model, [a.encoded for a in contrast.negative[:NORM_TEXTS]]),
        header=Header(
            trait=contrast.trait,
            trait_hash=contrast.trait.hash,
            model=ModelId.of(model),
            contrast=contrast.source,
            kept={"positive": n, "negative": n},
            dropped=contrast.dropped,
            agreement=tuple(round(x, 4) for x in pair_agreement(differences).tolist()),
            judge=contrast.judge,
            thresholds=contrast.thresholds,
            seed=contrast.seed,
            software=software_versions(),
        ),
    )


def pair_agreement(differences: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the single differences [n, L, d] with one another: float32 [L].

    Predicts how well a direction will steer (arXiv:2505.22637).
    """
    n = len(differences)
    units = torch.nn.functional.normalize(differences, dim=-1)
    return (units.sum(dim=0).square().sum(dim=-1) - n) / (n * (n - 1)) if n > 1 else torch.zeros(differences.shape[1])


def _response_means(model: Model, answers: Sequence[Response]) -> torch.Tensor:
    """float32 [n, L, d]: the means that the engine kept, and a reading of the rest."""
    unread = [i for i, a in enumerate(answers) if a.mean is None]
    out = torch.stack([a.mean if a.mean is not None else torch.zeros(model.layers, model.width) for a in answers])
    if unread:
        out[unread] = read(model, [answers[i].encoded for i in unread])
    if not torch.isfinite(out).all():
        raise NonFiniteActivation(f"{model.name} gave NaN or infinity on a response; load it with dtype=torch.float32.")
    return out


def software_versions() -> dict[str, str]:
    """Versions of the packages that computed the vector."""
    return {name: importlib.metadata.version(name) for name in ("poise", "torch", "transformers")}
