"""What a model is to the models of vector files, and whether these may be used on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from poise.errors import OtherModel
from poise.model import Model
from poise.model.relation import RelationKind
from poise.progress import remarks_by
from poise.settings import FrozenModel
from poise.vector import PersonaVector

__all__ = ["VectorRelation", "relate_vectors"]


class VectorRelation(FrozenModel):
    """One vector file and a model.

    Attributes:
        vector: Path of the file.
        trait: Name of its trait.
        usable: Whether the vector may be used on the model.
        detail: What the model is to the vector's own; where it is not usable, with the remedy.
    """

    vector: str
    trait: str
    model: str = Field(description="Model that the vector was computed on.")
    relation: RelationKind
    correlation: float | None = Field(description="Correlation of the weights' sketches; null if not compared.")
    usable: bool
    detail: str


def relate_vectors(opened: Mapping[Path, PersonaVector], model: Model) -> tuple[VectorRelation, ...]:
    """What a loaded model is to the models of vectors, which are named by their files."""
    return tuple(_relation(path, vector, model) for path, vector in opened.items())


def _relation(path: Path, vector: PersonaVector, model: Model) -> VectorRelation:
    own = vector.header.model
    relation = own.relation(model)
    try:
        with remarks_by(lambda sentence: None):
            vector.check_model(model)
        usable, detail = True, f"computed on {own.name}, and {model.name} {relation.sentence}"
    except OtherModel as error:
        usable, detail = False, str(error)
    return VectorRelation(
        vector=str(path),
        trait=vector.name,
        model=own.name,
        relation=relation.kind,
        correlation=None if relation.correlation is None else round(relation.correlation, 4),
        usable=usable,
        detail=detail,
    )
