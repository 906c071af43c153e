"""What a trait is: a description, contrasting instructions, questions, a rubric and exemplar pairs.

Knows text only; nothing here has heard of a model. Files are read in ``library``, checked for
shortcuts in ``lint`` and written from one sentence in ``draft``.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from poise.errors import InvalidTrait
from poise.settings import FrozenModel

__all__ = [
    "LEAST_PAIRS",
    "DetectorPair",
    "ExemplarPair",
    "Exemplars",
    "InstructionPair",
    "OwnTrait",
    "Questions",
    "Trait",
    "field_path",
    "same_question",
]

LEAST_PAIRS = 4
"""Fewest pairs that make a trait of the user's own."""

TraitText = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
TraitName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]


class _TraitModel(FrozenModel):
    user_error = InvalidTrait


class InstructionPair(_TraitModel):
    """Two system prompts that ask for the trait and for its opposite."""

    positive: TraitText = Field(alias="with", description="System prompt that asks for the trait.")
    negative: TraitText = Field(alias="without", description="System prompt that asks for the opposite.")


class ExemplarPair(_TraitModel):
    """One question answered with the trait and without it."""

    question: TraitText
    positive: TraitText = Field(alias="with", description="An answer that shows the trait.")
    negative: TraitText = Field(alias="without", description="An answer to the same question that does not.")


class DetectorPair(ExemplarPair):
    """One question answered with the trait and without it, in one register and one tone."""

    register_: TraitText = Field(default="any", alias="register", description="Kind of text, such as chat or formal.")
    tone: Literal["plain", "loud"] = Field(
        default="plain", description="Whether both answers have the voice that is usually taken for the trait."
    )


class Questions(_TraitModel):
    """Open questions on which the trait can show; the two lists share none."""

    extraction: tuple[TraitText, ...] = Field(min_length=20, description="Asked when the vector is computed.")
    evaluation: tuple[TraitText, ...] = Field(min_length=20, description="Asked when the vector is validated.")


class Exemplars(_TraitModel):
    """Disjoint sets of pairs: to compute the vector, to train the judge, to test both, and to fit a detector."""

    extraction: tuple[ExemplarPair, ...] = Field(min_length=24)
    judge: tuple[ExemplarPair, ...] = Field(min_length=12)
    held_out: tuple[ExemplarPair, ...] = Field(min_length=12)
    detector: tuple[DetectorPair, ...] = Field(
        default=(), exclude_if=lambda pairs: not pairs, description="Alike in register and tone on both sides."
    )

    @property
    def all(self) -> tuple[ExemplarPair, ...]:
        """Every pair, in the order of the file."""
        return self.extraction + self.judge + self.held_out + self.detector


class Trait(_TraitModel):
    """A trait, complete: enough to compute a vector, to judge answers and to validate on unseen questions."""

    format: Literal[1] = Field(alias="schema", description="Version of the trait file's format.")
    name: TraitName
    description: TraitText
    adjective: TraitText = Field(description='Fits "You are a ... assistant."')
    opposite: TraitText = Field(description="The adjective of the contrasting side.")
    instructions: tuple[InstructionPair, ...] = Field(min_length=5)
    questions: Questions
    rubric: TraitText = Field(description="What a judge looks for, and what 0, 50 and 100 mean.")
    exemplars: Exemplars

    def __repr__(self) -> str:
        n = sum(map(len, (self.extraction_pairs, self.judge_pairs, self.held_out_pairs)))
        return f"Trait({self.name!r}, {n} pairs)"

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        seen: dict[str, str] = {}
        repeats: list[tuple[tuple[str | int, ...], str]] = []
        for place, question in self._questions():
            first = seen.setdefault(same_question(question), field_path(place))
            if first != field_path(place):
                repeats.append((place, f"repeats the question of {first}"))
        if repeats:
            # A model-level error has no field of its own, so the fields travel in the context.
            raise PydanticCustomError(
                "repeated_question",
                "Each question is asked once, and {first}",
                {"first": f"{field_path(repeats[0][0])} {repeats[0][1]}", "repeats": repeats},
            )
        return self

    def _questions(self) -> list[tuple[tuple[str | int, ...], str]]:
        """Every question with its place in the file."""
        placed: list[tuple[tuple[str | int, ...], str]] = []
        for name, questions in (("extraction", self.questions.extraction), ("evaluation", self.questions.evaluation)):
            placed += [(("questions", name, i), question) for i, question in enumerate(questions)]
        sets = self.exemplars
        named = {"extraction": sets.extraction, "judge": sets.judge, "held_out": sets.held_out}
        for name, pairs in (named | {"detector": sets.detector}).items():
            placed += [(("exemplars", name, i, "question"), pair.question) for i, pair in enumerate(pairs)]
        return placed

    @property
    def extraction_pairs(self) -> tuple[ExemplarPair, ...]:
        """Pairs that the vector is computed from."""
        return self.exemplars.extraction

    @property
    def judge_pairs(self) -> tuple[ExemplarPair, ...]:
        """Pairs that the exemplar judge learns from."""
        return self.exemplars.judge

    @property
    def held_out_pairs(self) -> tuple[ExemplarPair, ...]:
        """Pairs that neither the vector nor the judge has seen."""
        return self.exemplars.held_out

    @property
    def detector_pairs(self) -> tuple[ExemplarPair, ...]:
        """Pairs that a detector is fitted on: those written for it, and those that the vector is computed from."""
        return self.exemplars.detector + self.exemplars.extraction

    @property
    def hash(self) -> str:
        """SHA-256 of the trait's content, independent of comments and layout of its file.

        The detector's pairs are left out: neither the vector nor its judge is made from them.
        """
        exemplars = self.exemplars.model_copy(update={"detector": ()})
        return _content_hash(self.model_copy(update={"exemplars": exemplars}))


class OwnTrait(_TraitModel):
    """A trait that is nothing but a name and the user's own pairs.

    The pairs serve both the vector and the judge, because there are no others; certificates say so. It is evaluated
    on the general question bank, and has no instructions, so no prompting baseline.
    """

    format: Literal[1] = Field(default=1, alias="schema")
    name: TraitName
    pairs: tuple[ExemplarPair, ...] = Field(min_length=LEAST_PAIRS)

    def __repr__(self) -> str:
        return f"OwnTrait({self.name!r}, {len(self.pairs)} pairs)"

    @property
    def adjective(self) -> str:
        """The name as words; nobody gave a better one."""
        return re.sub("[-_]+", " ", self.name).strip()

    @property
    def extraction_pairs(self) -> tuple[ExemplarPair, ...]:
        """All pairs."""
        return self.pairs

    @property
    def judge_pairs(self) -> tuple[ExemplarPair, ...]:
        """All pairs, the same that make the vector."""
        return self.pairs

    @property
    def held_out_pairs(self) -> tuple[ExemplarPair, ...]:
        """None; there are no others."""
        return ()

    @property
    def detector_pairs(self) -> tuple[ExemplarPair, ...]:
        """All pairs, the same that make the vector."""
        return self.pairs

    @property
    def hash(self) -> str:
        """SHA-256 of the name and the pairs."""
        return _content_hash(self)


def _content_hash(value: BaseModel) -> str:
    text = json.dumps(value.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def field_path(place: tuple[str | int, ...]) -> str:
    """``questions.extraction[3]`` for a place in a trait file."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def same_question(question: str) -> str:
    """Key under which two spellings of one question are equal: lower case, words only."""
    return " ".join(re.findall(r"\w+", question.lower()))
