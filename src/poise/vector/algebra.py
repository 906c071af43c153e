"""What a vector that was computed from others says about itself, and which vectors may be computed with."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from poise.errors import InvalidArgument, OtherModel
from poise.vector.header import Header

if TYPE_CHECKING:
    from poise.vector.persona_vector import PersonaVector

__all__ = ["COMPUTED", "check_distinct", "check_one_model", "computed_header"]

COMPUTED = "computed: "


def check_one_model(vectors: Sequence[PersonaVector]) -> None:
    """Refuse to combine vectors of different models.

    Raises:
        OtherModel: names the first two that do not belong together.
    """
    first = vectors[0]
    for other in vectors[1:]:
        same_shape = (first.layers, first.width) == (other.layers, other.width)
        relation = first.header.model.relation(other.header.model)
        if not same_shape or relation.kind != "same":
            raise OtherModel(
                f"{first.name} was computed on {first.header.model.name} (L={first.layers}, d={first.width}) and "
                f"{other.name} on {other.header.model.name} (L={other.layers}, d={other.width}), which "
                f"{relation.sentence}; combine vectors of one model."
            )


def check_distinct(vectors: Sequence[PersonaVector]) -> None:
    """Refuse two vectors of one name, since readings, alarms and tables go by it.

    Raises:
        InvalidArgument: names the trait.
    """
    if twice := [name for name, n in Counter(vector.name for vector in vectors).items() if n > 1]:
        raise InvalidArgument(
            f"Two vectors are named {twice[0]}, and readings go by the name; give one of them at a time."
        )


def computed_header(parts: Sequence[tuple[float, PersonaVector]], how: str = "{}") -> Header:
    """The header of a weighted sum: the first vector's trait and model, and in the provenance the whole formula.

    Certificate, detector, alarms and drift chart are dropped, because they belong to the vectors that went in. What is
    known of the extraction stays where there is one vector.

    Args:
        parts: Weights and vectors.
        how: Format of the formula around the sum.
    """
    first = parts[0][1].header
    formula = how.format(" ".join(_weighted(weight, vector, i == 0) for i, (weight, vector) in enumerate(parts)))
    facts: dict[str, object] = {
        "provenance": f"{COMPUTED}{formula}",
        "certificate": None,
        "alarms": (),
        "drift": None,
        "detector": None,
    }
    if len(parts) > 1:
        facts |= {"contrast": "combined", "kept": {}, "dropped": {}, "agreement": ()}
    return first.model_copy(update=facts)


def _weighted(weight: float, vector: PersonaVector, leading: bool) -> str:
    """``- 2·evil#3f2a9c01``: sign, weight, name and the first digits of the directions' SHA-256."""
    provenance = vector.header.provenance
    if provenance.startswith(COMPUTED):
        formula = provenance.removeprefix(COMPUTED)
        name = f"({formula})" if " " in formula or "·" in formula else formula
    else:
        name = f"{vector.name}#{hashlib.sha256(vector.directions.numpy().tobytes()).hexdigest()[:8]}"
    size = "" if abs(weight) == 1 else f"{abs(weight):.6g}·"
    sign = "-" if weight < 0 else ("" if leading else "+")
    return f"{sign}{size}{name}" if leading else f"{sign} {size}{name}"
