"""What a guardrail's YAML may say: messages, and for each policy its rules and what they do to input and output.

Knows text only. Patterns are compiled where they are checked (``patterns``), so that a file without any needs no extra.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from poise.guardrail.judge_settings import JudgeSettings
from poise.guardrail.languages import Language
from poise.guardrail.patterns import check_pattern
from poise.guardrail.pii_types import PiiType
from poise.guardrail.reasoning_rule import ReasoningRule
from poise.settings import FilledText, Settings, located_faults, placed_fault, read_settings

__all__ = [
    "ContentRule",
    "ContentType",
    "GroundingRule",
    "Guardrail",
    "GuardrailMessages",
    "PatternRule",
    "PiiRule",
    "ProfanityRule",
    "ReadBy",
    "RuleAction",
    "SensitivePolicy",
    "Source",
    "Strength",
    "TopicRule",
    "WordPolicy",
    "WordRule",
    "load_guardrail",
]

Source = Literal["INPUT", "OUTPUT"]
RuleAction = Literal["BLOCK", "ANONYMIZE", "NONE", "SKIP"]
BlockAction = Literal["BLOCK", "NONE", "SKIP"]
Strength = Literal["NONE", "LOW", "MEDIUM", "HIGH"]
ContentType = Literal["HATE", "INSULTS", "SEXUAL", "VIOLENCE", "MISCONDUCT", "PROMPT_ATTACK", "INDIRECT_ATTACK"]
"""Kinds of harmful content: Bedrock's six, and instructions to the model that stand in a tool's result."""
ATTACKS = ("PROMPT_ATTACK", "INDIRECT_ATTACK")
ReadBy = Literal["activations", "encoder", "both"]
READ_BY = (
    "What reads it: the served model's ``activations``, the sentence ``encoder``, which needs no model, or ``both``."
)
HELD_BACK, MOST_HELD_BACK = 128, 4000  # characters
RuleName = Annotated[FilledText, Field(max_length=100)]
Phrase = Annotated[FilledText, Field(max_length=100)]
Example = Annotated[FilledText, Field(max_length=1000)]


class Rule(Settings):
    """What a rule does to prompts and to answers: ``action`` for both, ``input`` and ``output`` for one of them.

    BLOCK puts the message in the place of the text, ANONYMIZE a mark in the place of what matched, NONE only reports,
    and SKIP does not look.
    """

    action: BlockAction = Field("BLOCK", description="What is done on both ways, where nothing else is said for one.")
    input: BlockAction | None = Field(None, description="What is done to prompts.")
    output: BlockAction | None = Field(None, description="What is done to answers.")

    def on(self, source: Source) -> RuleAction:
        """What the rule does to texts of this way."""
        way = self.input if source == "INPUT" else self.output
        return self.action if way is None else way

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if self.input is not None and self.output is not None and "action" in self.model_fields_set:
            raise placed_fault("says nothing, since input and output both have their own; take it out", "action")
        if self.on("INPUT") == self.on("OUTPUT") == "SKIP":
            raise ValueError("is skipped for input and output, so that it does nothing; take the rule out")
        return self


class MaskingRule(Rule):
    """A rule that may also put a mark in the place of what it matches."""

    action: RuleAction = Field("BLOCK", description="What is done on both ways, where nothing else is said for one.")  # type: ignore[assignment]
    input: RuleAction | None = Field(None, description="What is done to prompts.")  # type: ignore[assignment]
    output: RuleAction | None = Field(None, description="What is done to answers.")  # type: ignore[assignment]


class GuardrailMessages(Settings):
    """What is answered in the place of what was blocked."""

    input: FilledText = Field("Sorry, I cannot help with this.", max_length=500, description="For a prompt.")
    output: FilledText = Field("Sorry, I cannot answer this.", max_length=500, description="For an answer.")


class WordRule(Rule):
    """A word or phrase, matched between word boundaries."""

    text: Phrase


class ProfanityRule(Rule):
    """The managed list of profane words."""

    languages: tuple[Language, ...] = Field(("english",), min_length=1, description="Languages whose lists are used.")
    allow: tuple[Phrase, ...] = Field((), description="Words of the lists that may be written here.")


def _as_rule(value: Any) -> Any:
    """A word by itself is a rule that blocks it."""
    return {"text": value} if isinstance(value, str) else value


class WordPolicy(Settings):
    """Words that nobody is to write or read."""

    custom: tuple[Annotated[WordRule, BeforeValidator(_as_rule)], ...] = Field((), max_length=10_000)
    profanity: ProfanityRule | None = None

    @model_validator(mode="after")
    def _of_one_mind(self) -> Self:
        if not (self.custom or self.profanity):
            raise ValueError(
                "has neither custom words nor profanity, so that nothing is found; add some or take it out"
            )
        first: dict[str, int] = {}
        for place, rule in enumerate(self.custom):
            if not any(sign.isprintable() and not sign.isspace() for sign in rule.text):
                raise placed_fault(
                    "has no sign that can be seen, so that nothing is found; write a word", "custom", place
                )
            earlier = first.setdefault(spelling(rule.text), place)
            if earlier != place:
                text = f"is {rule.text!r}, the same as custom.{earlier}; keep one"
                raise placed_fault(text, "custom", place)
        for place, word in enumerate(self.profanity.allow if self.profanity else ()):
            if spelling(word) in first:
                text = f"allows {word!r}, which custom.{first[spelling(word)]} blocks; keep one"
                raise placed_fault(text, "profanity", "allow", place)
        return self


class PiiRule(MaskingRule):
    """One type of sensitive information."""

    type: PiiType


class PatternRule(MaskingRule):
    """A regular expression in RE2's syntax, which no text can make slow."""

    name: RuleName
    pattern: FilledText = Field(max_length=500)
    description: str = Field("", max_length=1000)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        if fault := check_pattern(pattern):
            raise ValueError(fault)
        return pattern


def _as_type(value: Any) -> Any:
    """A type by itself is a rule that masks it."""
    return {"type": value, "action": "ANONYMIZE"} if isinstance(value, str) else value


class SensitivePolicy(Settings):
    """What may not be told of anybody."""

    types: tuple[Annotated[PiiRule, BeforeValidator(_as_type)], ...] = ()
    regexes: tuple[PatternRule, ...] = Field((), max_length=100)
    allow: tuple[FilledText, ...] = Field((), max_length=10_000, description="Matches that are no matches.")
    regions: tuple[Annotated[str, Field(pattern="^[A-Z]{2}$")], ...] = Field(
        ("US", "GB", "CA", "AU", "IN", "DE", "FR", "ES", "IT"),
        min_length=1,
        description="Countries whose telephone numbers are known without their prefix.",
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        _refuse_repeats("types", [rule.type for rule in self.types], "type")
        _refuse_repeats("regexes", [rule.name for rule in self.regexes], "name")
        if not (self.types or self.regexes):
            raise ValueError("has neither types nor regexes, so that nothing is looked for; add some or take it out")
        return self


class TopicRule(Rule):
    """A subject that is not talked about, told from others by a detector that is fitted to its examples."""

    name: RuleName
    definition: FilledText = Field(max_length=1000)
    examples: tuple[Example, ...] = Field(min_length=1, max_length=200, description="Texts on the subject.")
    near_misses: tuple[Example, ...] = Field((), max_length=200, description="Texts beside it, which may pass.")
    read_by: ReadBy = Field("activations", description=READ_BY)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        _refuse_repeats("examples", [spelling(text) for text in self.examples])
        _refuse_repeats("near_misses", [spelling(text) for text in self.near_misses])
        on_topic = {spelling(text): place for place, text in enumerate(self.examples)}
        for place, text in enumerate(self.near_misses):
            if spelling(text) in on_topic:
                fault = f"is examples.{on_topic[spelling(text)]} as well, so that it is on the topic and beside it"
                raise placed_fault(f"{fault}; keep one", "near_misses", place)
        _refuse_answers_by_both(self, "SKIP")
        return self


class ContentRule(Settings):
    """A kind of harmful content: how little of it is enough on each way, and what is then done.

    A strength is a promised rate of false alarms on ordinary talk: LOW a fifth of the one asked for when the detectors
    are fitted, MEDIUM that rate, HIGH five times as much. NONE does not look.
    """

    type: ContentType
    input: Strength = Field("MEDIUM", description="Strength for prompts.")
    output: Strength = Field("MEDIUM", description="Strength for answers.")
    action: Literal["BLOCK", "NONE"] = "BLOCK"
    examples: tuple[Example, ...] = Field((), max_length=200, description="More texts of this kind.")
    near_misses: tuple[Example, ...] = Field((), max_length=200, description="More texts beside it.")
    read_by: ReadBy = Field("activations", description=READ_BY)

    @model_validator(mode="before")
    @classmethod
    def _attacks_come_in(cls, values: Any) -> Any:
        attacks = isinstance(values, dict) and values.get("type") in ATTACKS
        return {"output": "NONE", **values} if attacks else values

    @model_validator(mode="after")
    def _looks_somewhere(self) -> Self:
        if self.type in ATTACKS and self.output != "NONE":
            raise placed_fault(f"is {self.output}; attacks come with prompts, so that it may only be NONE", "output")
        if self.type == "INDIRECT_ATTACK" and self.read_by != "activations":
            fault = (
                f"is {self.read_by}; INDIRECT_ATTACK is read in activations alone, which find more of it; take it out"
            )
            raise placed_fault(fault, "read_by")
        _refuse_answers_by_both(self, "NONE")
        if self.input == self.output == "NONE":
            raise ValueError("has the strength NONE for input and output, so that it does nothing; take the rule out")
        return self

    def on(self, source: Source) -> RuleAction:
        """What the rule does to texts of this way."""
        return self.action if self.strength(source) != "NONE" else "SKIP"

    def strength(self, source: Source) -> Strength:
        """How little is enough on this way."""
        return self.input if source == "INPUT" else self.output


def _refuse_answers_by_both(rule: TopicRule | ContentRule, off: str) -> None:
    """Both together read prompts alone."""
    if rule.read_by == "both" and rule.on("OUTPUT") != "SKIP":
        fault = f"is both, which reads prompts alone; add `output: {off}`, and for answers let one of them read"
        raise placed_fault(fault, "read_by")


class GroundingRule(Settings):
    """How well an answer is to rest on its source, or to speak to its query; acts below its threshold."""

    type: Literal["GROUNDING", "RELEVANCE"]
    threshold: float = Field(ge=0, le=0.99, description="Least score, from 0 to 1.")
    action: Literal["BLOCK", "NONE"] = "BLOCK"
    on_failure: Literal["BLOCK", "PASS"] = Field(
        "BLOCK", description="What is done where action is BLOCK and an answer in a server cannot be scored."
    )

    @model_validator(mode="after")
    def _fails_as_it_acts(self) -> Self:
        if self.action == "NONE" and self.on_failure == "BLOCK" and "on_failure" in self.model_fields_set:
            raise placed_fault("is BLOCK, and action is NONE, so that nothing is blocked; take one out", "on_failure")
        return self


class Guardrail(Settings):
    """A guardrail: its policies, each for prompts, for answers or for both."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    version: Literal["DRAFT"] | Annotated[int, Field(ge=1, le=10**8)] = "DRAFT"
    description: str = Field("", max_length=1000)
    messages: GuardrailMessages = GuardrailMessages()
    words: WordPolicy | None = None
    sensitive: SensitivePolicy | None = None
    topics: tuple[TopicRule, ...] = Field((), max_length=30)
    content: tuple[ContentRule, ...] = ()
    judge: JudgeSettings | None = None
    grounding: tuple[GroundingRule, ...] = ()
    reasoning: ReasoningRule | None = None
    window: int = Field(
        HELD_BACK,
        ge=0,
        le=MOST_HELD_BACK,
        description="Characters of an answer held back until they are checked; a longer match may begin to leave.",
    )
    streaming: Literal["synchronous", "asynchronous"] = Field(
        "synchronous",
        description="Whether streamed text is held back until it is checked, or leaves at once and ends on a match.",
    )

    @model_validator(mode="after")
    def _guards_something(self) -> Self:
        _refuse_repeats("topics", [topic.name for topic in self.topics], "name")
        _refuse_repeats("content", [rule.type for rule in self.content], "type")
        if self.streaming == "asynchronous" and (names := self._masked_in_answers):
            fault = f"is asynchronous, and {', '.join(names)} would be masked in answers, which have left by then"
            raise placed_fault(f"{fault}; let them BLOCK there, or stream synchronously", "streaming")
        if self.streaming == "asynchronous" and self.window != HELD_BACK:
            fault = "holds nothing back, since streaming is asynchronous; take it out, or stream synchronously"
            raise placed_fault(fault, "window")
        if self.judge and not self.needs_fit:
            raise placed_fault("is asked about topics and content, and there are none; take it out", "judge")
        _refuse_repeats("grounding", [rule.type for rule in self.grounding], "type")
        policies = (self.words, self.sensitive, self.topics, self.content, self.grounding, self.reasoning)
        if not any(policies):
            raise ValueError("it has no policy; add words, sensitive, topics, content, grounding or reasoning")
        return self

    @property
    def _masked_in_answers(self) -> list[str]:
        """Rules that put a mark in the place of what an answer says."""
        if self.sensitive is None:
            return []
        rules = [(r.type, r.on("OUTPUT")) for r in self.sensitive.types]
        rules += [(r.name, r.on("OUTPUT")) for r in self.sensitive.regexes]  # type: ignore[misc]
        return [name for name, action in rules if action == "ANONYMIZE"]

    @property
    def needs_fit(self) -> bool:
        """Whether any of it is found by detectors."""
        return bool(self.topics or self.content)

    @property
    def needs_model(self) -> bool:
        """Whether any of it is read in a model's activations."""
        return bool(self.readers - {"encoder"})

    @property
    def needs_encoder(self) -> bool:
        """Whether the sentence encoder reads any of it."""
        return bool(self.readers - {"activations"})

    @property
    def readers(self) -> set[ReadBy]:
        """What reads its topics and content."""
        return {topic.read_by for topic in self.topics} | {rule.read_by for rule in self.content}


def load_guardrail(path: str | Path) -> Guardrail:
    """The guardrail in a YAML file.

    Raises:
        InvalidSettings: not there or not of this schema; each mistake with its line and field.
        MissingExtra: it has regular expressions, and the extra that reads them is not installed.
    """
    guardrail = read_settings(path, Guardrail)
    if guardrail.reasoning is None:
        return guardrail
    with located_faults(path, Guardrail):
        return guardrail.model_copy(update={"reasoning": guardrail.reasoning.read_beside(Path(path))})


def spelling(text: str) -> str:
    """The text as words are compared: case, width and spaces do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _refuse_repeats(field: str, values: Sequence[str], *place: str) -> None:
    """Refuse the second of two equal values.

    Raises:
        PydanticCustomError: with its place.
    """
    for value in repeats(values):
        second = [n for n, each in enumerate(values) if each == value][1]
        raise placed_fault(f"is {value!r}, which {field}.{values.index(value)} is too; keep one", field, second, *place)


def repeats(values: Iterable[str]) -> list[str]:
    """The values that are there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]
