"""A complete trait from one sentence, written by a model behind any OpenAI-compatible server.

Definition first, then the questions, then the exemplars a few at a time. Each reply is checked as strictly as a trait
file; what is right is kept, and the model is told what is wrong with the rest. What the artefacts are is the paper's
(Chen et al. 2025, arXiv:2507.21509, section 2.1); pairs for a detector are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from poise.errors import DraftFailed
from poise.progress import Advance, track
from poise.settings import FrozenModel
from poise.storage.atomic_write import saving
from poise.storage.output import check_output
from poise.trait.draft_prompts import (
    DEFINITION_REQUEST,
    DETECTOR_PAIRS_REQUEST,
    DETECTOR_REGISTERS,
    EXEMPLARS_REQUEST,
    QUESTIONS_REQUEST,
    SUBJECTS,
    SYSTEM_PROMPT,
)
from poise.trait.json_writer import JsonWriter, opened_client
from poise.trait.library import complaints, dump, trait_name
from poise.trait.lint import ALIKE, MOST_UNEVEN, alike, unevenness
from poise.trait.schema import (
    DetectorPair,
    ExemplarPair,
    InstructionPair,
    Trait,
    TraitName,
    TraitText,
    field_path,
    same_question,
)

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["OTHER_FILE", "draft", "write_trait"]

OTHER_FILE = "something that this draft did not write, or that was edited since"
_QUESTIONS = {"extraction": 20, "evaluation": 20}
_CHUNKS = {"extraction": (8, 8, 8), "judge": (6, 6), "held_out": (6, 6)}
_DETECTOR_CHUNK = 8
_TOTAL = 1 + sum(_QUESTIONS.values()) + sum(map(sum, _CHUNKS.values())) + _DETECTOR_CHUNK * len(DETECTOR_REGISTERS)


class _Definition(FrozenModel):
    name: TraitName
    description: TraitText
    adjective: TraitText
    opposite: TraitText
    instructions: tuple[InstructionPair, ...] = Field(min_length=5)
    rubric: TraitText


class _QuestionList(FrozenModel):
    questions: tuple[TraitText, ...]


class _PairList(FrozenModel):
    pairs: tuple[ExemplarPair, ...]


class _TonedPair(ExemplarPair):
    tone: Literal["plain", "loud"]


class _TonedPairList(FrozenModel):
    pairs: tuple[_TonedPair, ...]


def draft(sentence: str, *, model: str, name: str | None = None, client: OpenAI | None = None) -> Trait:
    """Write a complete trait from one sentence.

    About twenty requests, one after the other, since each must know which questions are taken. Nothing is saved here.

    Args:
        sentence: What the trait is, in anybody's words.
        model: Name that the server knows the model by; a strong one, as small models seldom keep to lengths.
        name: Name of the trait; ``None`` lets the model choose one.
        client: To ask; ``None`` makes one from ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``.

    Returns:
        A valid trait without any of the errors that ``lint`` looks for: 5 instruction pairs, 20 and 20 questions,
        24, 12 and 12 exemplars, and 64 pairs for a detector in eight registers.

    Raises:
        InvalidTrait: ``name`` cannot be the name of a trait.
        DraftFailed: the sentence is empty, the endpoint cannot be reached or refuses, or a piece was still wrong in
            the last of ``json_writer.ATTEMPTS`` replies.
    """
    if not sentence.strip():
        raise DraftFailed("The description is empty; describe the trait in a sentence.")
    name = None if name is None else trait_name(name)
    with opened_client(client) as opened, track("Drafting the trait", total=_TOTAL) as advance:
        writer = _Writer(opened, model, advance)
        definition = writer.define(sentence)
        questions = {field: writer.questions(count) for field, count in _QUESTIONS.items()}
        exemplars: dict[str, list[ExemplarPair]]
        exemplars = {field: [p for n in sizes for p in writer.pairs(n)] for field, sizes in _CHUNKS.items()}
        exemplars["detector"] = [pair for register in DETECTOR_REGISTERS for pair in writer.detector_pairs(register)]
    fields = definition.model_dump() | {"questions": questions, "exemplars": exemplars}
    return Trait.model_validate({"schema": 1, **fields, "name": name or definition.name})


def write_trait(trait: Trait, path: Path, *, force: bool = False) -> None:
    """Save a trait as YAML: the whole file, or what was there before.

    Raises:
        OutputExists: there is a file of another content, such as an edited draft, and no ``force``.
        SaveFailed: the disk refused.
    """
    text = dump(trait)
    check_output(path, loss=lambda existing: "" if existing.read_bytes() == text.encode() else OTHER_FILE, force=force)
    with saving(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _Writer:
    """The model at work on one trait: what it is asked, and what has been kept so far."""

    def __init__(self, client: OpenAI, model: str, advance: Advance) -> None:
        self._json = JsonWriter(client, model, SYSTEM_PROMPT, _mistakes)
        self._advance = advance
        self._trait = ""
        self._taken: list[str] = []
        self._answers: set[str] = set()
        self._subjects = cycle(SUBJECTS)

    def define(self, sentence: str) -> _Definition:
        """Name, description, instructions and rubric."""
        definitions: list[_Definition] = []

        def accept(reply: _Definition) -> list[str]:
            texts = [same_question(t) for pair in reply.instructions for t in (pair.positive, pair.negative)]
            wrong = ["two of the instructions are the same"] if len(set(texts)) < len(texts) else []
            explained = re.findall(r"\d+", reply.rubric)
            wrong += [f"rubric does not say what {n} means" for n in ("0", "100") if n not in explained]
            definitions.extend([] if wrong else [reply])
            return wrong

        self._json.settle("definition", DEFINITION_REQUEST.format(sentence=sentence.strip()), _Definition, accept)
        definition = definitions[0]
        self._trait = (
            f"The trait: {definition.adjective}, as opposed to {definition.opposite}. {definition.description}\n"
            f"How it is scored: {definition.rubric}"
        )
        self._advance(1)
        return definition

    def questions(self, count: int) -> list[str]:
        """So many questions, none of them taken."""
        questions: list[str] = []

        def accept(reply: _QuestionList) -> list[str]:
            return self._keep(questions, count, ((q, q, self._repeats(q)) for q in reply.questions))

        self._json.settle("questions", self._fill(QUESTIONS_REQUEST, count), _QuestionList, accept)
        return questions

    def pairs(self, count: int) -> list[ExemplarPair]:
        """So many exemplars, their questions not taken, their sides matched in length."""
        pairs: list[ExemplarPair] = []

        def accept(reply: _PairList) -> list[str]:
            return self._keep(pairs, count, ((p, p.question, self._faults(p)) for p in reply.pairs))

        self._json.settle("exemplars", self._fill(EXEMPLARS_REQUEST, count), _PairList, accept)
        return pairs

    def detector_pairs(self, register: str) -> list[DetectorPair]:
        """Pairs whose sides differ in the trait alone, in one register."""
        pairs: list[_TonedPair] = []

        def accept(reply: _TonedPairList) -> list[str]:
            return self._keep(pairs, _DETECTOR_CHUNK, ((p, p.question, self._faults(p)) for p in reply.pairs))

        prompt = self._fill(DETECTOR_PAIRS_REQUEST, _DETECTOR_CHUNK, register=DETECTOR_REGISTERS[register])
        self._json.settle("pairs for a detector", prompt, _TonedPairList, accept)
        return [DetectorPair.model_validate(p.model_dump() | {"register": register}) for p in pairs]

    def _keep(self, accepted: list[Any], count: int, offered: Iterable[tuple[Any, str, str]]) -> list[str]:
        """Take what is faultless until there is enough; otherwise say what was wrong and how much is missing."""
        wrong: list[str] = []
        for item, question, fault in offered:
            if len(accepted) == count:
                break
            if fault:
                wrong.append(f"{question!r} {fault}")
                continue
            accepted.append(item)
            self._taken.append(question)
            if isinstance(item, ExemplarPair):
                self._answers |= {same_question(item.positive), same_question(item.negative)}
            self._advance(1)
        missing = count - len(accepted)
        return [*wrong, f"{missing} more needed; the others are kept, send only these"] if missing else []

    def _repeats(self, question: str) -> str:
        """Which taken question this one repeats, or nothing."""
        key = same_question(question)
        near = next((t for t in self._taken if key == same_question(t) or alike(question, t) >= ALIKE), None)
        return f"is too close to {near!r}" if near else ""

    def _faults(self, pair: ExemplarPair) -> str:
        """What keeps a pair from being used, or nothing."""
        keys = {same_question(pair.positive), same_question(pair.negative)}
        if len(keys) == 1 or keys & self._answers:
            return "has an answer that was given before"
        if unevenness(pair) > MOST_UNEVEN:
            a, b = len(pair.positive), len(pair.negative)
            return f"has {a} characters with the trait and {b} without; the limit is {MOST_UNEVEN:.0%} apart"
        return self._repeats(pair.question)

    def _fill(self, prompt: str, count: int, register: str = "") -> str:
        taken = "".join(f"\n- {question}" for question in self._taken)
        subjects = "; ".join(islice(self._subjects, min(count, 10)))
        exclusion = f"These questions are taken; ask nothing close to them:{taken}\n" if taken else ""
        return prompt.format(trait=self._trait, count=count, subjects=subjects, taken=exclusion, register=register)


def _mistakes(error: ValidationError) -> list[str]:
    return [f"{field_path(place) or 'the reply'} {mistake}" for place, mistake in complaints(error)]
