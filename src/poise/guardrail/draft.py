"""A denied topic from one sentence, written by a model behind any OpenAI-compatible server.

Its definition first, then examples and near misses a few at a time, each kind of text by itself. What is right of a
reply is kept, and the model is told what is wrong with the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import Field, ValidationError

from poise.errors import DraftFailed, InvalidArgument
from poise.guardrail.schema import Guardrail, GuardrailMessages, TopicRule, spelling
from poise.progress import Advance, track
from poise.settings import FilledText, Settings, describe_fault
from poise.settings.faults import merged_faults
from poise.storage.atomic_write import saving
from poise.storage.output import check_output
from poise.trait.json_writer import JsonWriter, opened_client
from poise.trait.lint import ALIKE, alike

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["NOT_THIS_DRAFT", "draft_guardrail", "guardrail_yaml", "write_guardrail"]

NOT_THIS_DRAFT = "something that this draft did not write, or that was edited since"
GUARDRAIL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
TOPIC_CHUNK = 8
EXAMPLE_KINDS = (
    "short questions and requests, as people type them",
    "requests of two or three sentences, in which somebody tells of their situation first",
    "sentences of an answer that does what is forbidden",
    "requests that come at it sideways: hypothetical, for a friend, in a story, or in another language",
)
NEAR_KINDS = (
    "questions on facts, words and history of the same field",
    "requests for help that the same people have, of the same field, and that may be answered",
    "sentences of an answer that stays within what is allowed, or refuses politely",
    "texts that use the same words of something else entirely",
)
TOPIC_TOTAL = 1 + TOPIC_CHUNK * (len(EXAMPLE_KINDS) + len(NEAR_KINDS))

TOPIC_WRITER_PROMPT = """\
You write material with which a subject is kept out of conversations with an AI assistant: what the subject is, texts \
on it, and texts beside it that look alike and may pass. Reply with one JSON object in the shape asked for, and \
nothing around it.
"""
TOPIC_REQUEST = """\
Somebody who runs an assistant says:

<rule>
{sentence}
</rule>

Define the subject that is denied:
- name: one to four words in lower case, without punctuation.
- definition: one to three sentences. What belongs to it, and what is beside it and may be talked about?
- prompt_message: what the assistant answers to somebody who asks for it: one friendly sentence, which says what it \
does help with.
- answer_message: what stands in the place of an answer that would have been on it: one sentence.

Shape: {{"name": "...", "definition": "...", "prompt_message": "...", "answer_message": "..."}}
"""
TEXTS_REQUEST = """\
The rule: {sentence}
The denied subject: {name}. {definition}

Write {count} texts {side}: {kind}. Each is as a real person or assistant would write it, they differ in opening, \
length and detail, and none names the rule.
{taken}
Shape: {{"texts": ["...", "..."]}}
"""
TOPIC_SIDES = {
    "examples": "that are plainly on the subject and break the rule",
    "near_misses": "that are close to the subject but NOT on it, so that the rule lets them pass",
}

ShortName = Annotated[FilledText, Field(max_length=100)]
Definition = Annotated[FilledText, Field(max_length=1000)]
ShortMessage = Annotated[FilledText, Field(max_length=500)]


class _TopicDefinition(Settings):
    name: ShortName
    definition: Definition
    prompt_message: ShortMessage
    answer_message: ShortMessage


class _TopicTexts(Settings):
    texts: tuple[FilledText, ...]


def draft_guardrail(sentence: str, *, model: str, name: str | None = None, client: OpenAI | None = None) -> Guardrail:
    """Write a guardrail with one denied topic from one sentence.

    Nine requests, one after the other, since each must know which texts are taken. Nothing is saved here.

    Args:
        sentence: What is not to be talked about, in anybody's words.
        model: Name that the server knows the model by; a strong one.
        name: Name of the guardrail; ``None`` makes one of the topic's.
        client: To ask; ``None`` makes one from ``OPENAI_BASE_URL`` and ``OPENAI_API_KEY``.

    Returns:
        A guardrail with its messages and a topic of 32 examples and 32 near misses in four kinds a side, no two alike.

    Raises:
        InvalidArgument: ``name`` cannot be the name of a guardrail.
        DraftFailed: the sentence is empty, the endpoint cannot be reached or refuses, or a piece was still wrong in
            the last of ``json_writer.ATTEMPTS`` replies.
    """
    sentence = sentence.strip()
    if not sentence:
        raise DraftFailed("The description is empty; say in a sentence what is not to be talked about.")
    if name is not None and not GUARDRAIL_NAME.fullmatch(name):
        raise InvalidArgument(
            f"name is {name!r}; a guardrail's has up to 64 lower-case letters, digits, - and _, and begins with a "
            "letter or digit."
        )
    with opened_client(client) as opened, track("Drafting the guardrail", total=TOPIC_TOTAL) as advance:
        writer = _TopicWriter(JsonWriter(opened, model, TOPIC_WRITER_PROMPT, _topic_mistakes), sentence, advance)
        definition = writer.define()
        examples = [text for kind in EXAMPLE_KINDS for text in writer.texts("examples", kind)]
        near = [text for kind in NEAR_KINDS for text in writer.texts("near_misses", kind)]
    topic = TopicRule(
        name=definition.name, definition=definition.definition, examples=tuple(examples), near_misses=tuple(near)
    )
    messages = GuardrailMessages(input=definition.prompt_message, output=definition.answer_message)
    return Guardrail(name=name or _slug(definition.name), messages=messages, topics=(topic,))


def guardrail_yaml(guardrail: Guardrail) -> str:
    """The guardrail as YAML that loads to an equal one; what is not set is left out."""
    values = guardrail.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def write_guardrail(guardrail: Guardrail, path: Path, *, force: bool = False) -> None:
    """Save a guardrail as YAML: the whole file, or what was there before.

    Raises:
        OutputExists: there is a file of another content, such as an edited draft, and no ``force``.
        SaveFailed: the disk refused.
    """
    text = guardrail_yaml(guardrail)
    check_output(path, loss=lambda there: "" if there.read_bytes() == text.encode() else NOT_THIS_DRAFT, force=force)
    with saving(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _TopicWriter:
    """The model at work on one topic: what it is asked, and what has been kept so far."""

    def __init__(self, writer: JsonWriter, sentence: str, advance: Advance) -> None:
        self._json, self._sentence, self._advance = writer, sentence, advance
        self._definition: _TopicDefinition | None = None
        self._taken: list[str] = []

    def define(self) -> _TopicDefinition:
        """Name, definition and messages."""
        definitions: list[_TopicDefinition] = []

        def accept(reply: _TopicDefinition) -> list[str]:
            if not _slug(reply.name):
                return [f"name is {reply.name!r}; use words in Latin letters"]
            definitions.append(reply)
            return []

        self._json.settle("definition", TOPIC_REQUEST.format(sentence=self._sentence), _TopicDefinition, accept)
        self._definition = definitions[0]
        self._advance(1)
        return definitions[0]

    def texts(self, side: str, kind: str) -> list[str]:
        """So many texts of one kind, none of them like one that is taken."""
        texts: list[str] = []
        self._json.settle(side.replace("_", " "), self._request(side, kind), _TopicTexts, self._keeping(texts))
        return texts

    def _keeping(self, accepted: list[str]) -> Callable[[_TopicTexts], list[str]]:
        def accept(reply: _TopicTexts) -> list[str]:
            wrong: list[str] = []
            for text in map(str.strip, reply.texts):
                if len(accepted) == TOPIC_CHUNK:
                    break
                if fault := _fault(text, self._taken):
                    wrong.append(f"{text[:80]!r} {fault}")
                    continue
                accepted.append(text)
                self._taken.append(text)
                self._advance(1)
            missing = TOPIC_CHUNK - len(accepted)
            return [*wrong, f"{missing} more needed; the others are kept, send only these"] if missing else []

        return accept

    def _request(self, side: str, kind: str) -> str:
        if self._definition is None:
            raise DraftFailed("The topic has no definition yet; define it first.")
        listed = "".join(f"\n- {text}" for text in self._taken)
        return TEXTS_REQUEST.format(
            sentence=self._sentence,
            name=self._definition.name,
            definition=self._definition.definition,
            count=TOPIC_CHUNK,
            side=TOPIC_SIDES[side],
            kind=kind,
            taken=f"These are taken; write nothing close to them:{listed}\n" if listed else "",
        )


def _fault(text: str, taken: Iterable[str]) -> str:
    """What keeps a text from being used, or nothing."""
    if len(text) > 1000:
        return f"has {len(text):,} characters; at most 1,000 are taken"
    near = next((t for t in taken if spelling(t) == spelling(text) or alike(t, text) >= ALIKE), None)
    return f"is too close to {near[:80]!r}" if near else ""


def _slug(name: str) -> str:
    """The topic's name as a guardrail's."""
    return re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-")[:64].strip("-")


def _topic_mistakes(error: ValidationError) -> list[str]:
    return [describe_fault(fault, _TopicDefinition) for fault in merged_faults(error)]
