"""What a trait is: a description, contrasting instructions, questions, a rubric and exemplar pairs.

Knows text only; nothing here has heard of a model. Files are read in ``library``, checked for
shortcuts in ``lint`` and written from one sentence in ``draft``.
"""

from poise.trait.schema import (
    LEAST_PAIRS,
    ExemplarPair,
    Exemplars,
    InstructionPair,
    OwnTrait,
    Questions,
    Trait,
    field_path,
    same_question,
)

__all__ = [
    "LEAST_PAIRS",
    "ExemplarPair",
    "Exemplars",
    "InstructionPair",
    "OwnTrait",
    "Questions",
    "Trait",
    "field_path",
    "same_question",
]
