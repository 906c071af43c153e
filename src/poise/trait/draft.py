"""A complete trait from one sentence, written by a model behind any OpenAI-compatible server.

Definition first, then the questions, then the exemplars a few at a time. Each reply is checked as strictly as a trait
file; what is right is kept, and the model is told what is wrong with the rest. What the artefacts are is the paper's
(Chen et al. 2025, arXiv:2507.21509, section 2.1); pairs for a detector are ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

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
    from openai import OpenAI, OpenAIError

__all__ = ["ATTEMPTS", "OTHER_FILE", "draft", "write_trait"]

OTHER_FILE = "something that this draft did not write, or that was edited since"
ATTEMPTS = 4
"""Most replies asked for one piece before the draft is given up."""

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


ReplyShape = TypeVar("ReplyShape", _Definition, _QuestionList, _PairList, _TonedPairList)


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
            the last of ``ATTEMPTS`` replies.
    """
    if not sentence.strip():
        raise DraftFailed("The description is empty; describe the trait in a sentence.")
    name = None if name is None else trait_name(name)
    with _client(client) as opened, track("Drafting the trait", total=_TOTAL) as advance:
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
        self._client, self._model, self._advance = client, model, advance
        self._way = 0
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

        self._settle("definition", DEFINITION_REQUEST.format(sentence=sentence.strip()), _Definition, accept)
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

        self._settle("questions", self._fill(QUESTIONS_REQUEST, count), _QuestionList, accept)
        return questions

    def pairs(self, count: int) -> list[ExemplarPair]:
        """So many exemplars, their questions not taken, their sides matched in length."""
        pairs: list[ExemplarPair] = []

        def accept(reply: _PairList) -> list[str]:
            return self._keep(pairs, count, ((p, p.question, self._faults(p)) for p in reply.pairs))

        self._settle("exemplars", self._fill(EXEMPLARS_REQUEST, count), _PairList, accept)
        return pairs

    def detector_pairs(self, register: str) -> list[DetectorPair]:
        """Pairs whose sides differ in the trait alone, in one register."""
        pairs: list[_TonedPair] = []

        def accept(reply: _TonedPairList) -> list[str]:
            return self._keep(pairs, _DETECTOR_CHUNK, ((p, p.question, self._faults(p)) for p in reply.pairs))

        prompt = self._fill(DETECTOR_PAIRS_REQUEST, _DETECTOR_CHUNK, register=DETECTOR_REGISTERS[register])
        self._settle("pairs for a detector", prompt, _TonedPairList, accept)
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

    def _settle(
        self, what: str, prompt: str, shape: type[ReplyShape], accept: Callable[[ReplyShape], list[str]]
    ) -> None:
        """Ask until ``accept`` has no complaint left, and hand the complaints back to the model each time."""
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": prompt}]
        wrong: list[str] = []
        for _ in range(ATTEMPTS):
            text = self._reply(messages, shape)
            try:
                wrong = accept(shape.model_validate(_first_json_object(text)))
            except ValidationError as error:
                wrong = [f"{field_path(place) or 'the reply'} {mistake}" for place, mistake in complaints(error)][:10]
            except ValueError:
                wrong = [f"the reply is not a JSON object, or was cut off: {text[:80]!r}"]
            if not wrong:
                return
            complaint = "That cannot be used as it is:\n" + "\n".join(f"- {fault}" for fault in wrong)
            messages += [
                {"role": "assistant", "content": text or "(nothing)"},
                {"role": "user", "content": f"{complaint}\nFix it, in the same shape."},
            ]
        raise DraftFailed(
            f"{self._model!r} wrote no usable {what} in {ATTEMPTS} attempts (the last: {'; '.join(wrong)[:400]}); "
            "try a stronger model or another wording. Nothing was saved."
        )

    def _reply(self, messages: list[dict[str, str]], shape: type[ReplyShape]) -> str:
        """One reply, in the most exact way from the current one on that the server can do."""
        from openai import APIStatusError, OpenAIError
        from openai.types.chat import ChatCompletion

        ways = _ways(shape)
        for way in range(self._way, len(ways)):
            try:
                completion: object = self._client.chat.completions.create(
                    model=self._model,
                    messages=messages,  # type: ignore[arg-type]
                    **ways[way],
                )
            except APIStatusError as error:
                if error.status_code not in (400, 422) or way == len(ways) - 1:
                    self._fail(error)
                continue
            except OpenAIError as error:
                self._fail(error)
            except ValueError:
                completion = None
            if not isinstance(completion, ChatCompletion) or not completion.choices:
                raise DraftFailed(
                    f"{self._client.base_url} sends no chat completions; set OPENAI_BASE_URL to an OpenAI-compatible "
                    "server, usually ending in /v1."
                )
            self._way = way
            message = completion.choices[0].message
            return (message.content or message.refusal or "").rpartition("</think>")[2].strip()
        raise AssertionError("the last way replies or raises")

    def _fail(self, error: OpenAIError) -> NoReturn:
        status = getattr(error, "status_code", None)
        remedy = {
            None: "start the server, or set OPENAI_BASE_URL to where it runs",
            401: "set OPENAI_API_KEY",
            404: "correct the model's name, or OPENAI_BASE_URL, which usually ends in /v1",
        }.get(status, "fix the server or choose another model")
        body = getattr(error, "body", None)
        detail = body.get("message") if isinstance(body, dict) else error.__cause__
        reason = f"{f'HTTP {status}: ' if status else ''}{detail or error}"[:300]
        raise DraftFailed(
            f"The model {self._model!r} at {self._client.base_url} does not answer ({reason}); {remedy}. "
            "Nothing was saved."
        ) from error


@contextlib.contextmanager
def _client(client: OpenAI | None) -> Iterator[OpenAI]:
    if client is not None:
        yield client
        return
    from openai import OpenAI

    # Local servers need no key, and the client insists on one.
    key = os.environ.get("OPENAI_API_KEY") or "none"
    with OpenAI(base_url=os.environ.get("OPENAI_BASE_URL") or None, api_key=key, timeout=300.0) as opened:
        yield opened


def _ways(shape: type[ReplyShape]) -> tuple[dict[str, Any], ...]:
    """How to ask for JSON, most exact first; servers reject what they cannot do with 400 or 422."""
    schema = {"name": shape.__name__.strip("_"), "strict": True, "schema": _plain_schema(shape.model_json_schema())}
    return (
        {"response_format": {"type": "json_schema", "json_schema": schema}},
        {"response_format": {"type": "json_object"}},
        {},
    )


def _plain_schema(schema: Any) -> Any:
    """Without the limits that strict servers do not know; they are checked here anyway."""
    if isinstance(schema, dict):
        return {k: _plain_schema(v) for k, v in schema.items() if k not in {"minLength", "minItems", "pattern"}}
    return schema


def _first_json_object(text: str) -> Any:
    """The first JSON object in a reply, whatever stands around it.

    Raises:
        ValueError: there is none, or it does not end.
    """
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, text.index("{"))[0]
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
