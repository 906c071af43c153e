"""What a guardrail's detectors are fitted to: the texts of each rule, and ordinary talk, as the model reads them.

A text is read in one of three places: as a prompt, as a tool's result behind a question, or as an answer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from poise.data import Conversation, last_user, turns
from poise.errors import TooFewResponses
from poise.guardrail.judge_settings import JudgeSettings
from poise.guardrail.planting import plant_sentence, sentences_of
from poise.guardrail.readings import ReadPlace, tool_turns
from poise.guardrail.schema import ContentRule, Guardrail, ReadBy, RuleAction, Source, Strength, TopicRule
from poise.model import Encoded, Model, ask
from poise.storage.content_hash import content_key

__all__ = ["OrdinaryTexts", "RuleTexts", "last_token_of", "rule_texts"]

FEWEST_EXAMPLES = 4
STRENGTH_RATES: dict[Strength, float] = {"LOW": 0.2, "MEDIUM": 1.0, "HIGH": 5.0}
ANY_RESULT_QUESTION = "What does it say?"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTexts:
    """What one detector is fitted to.

    Attributes:
        kind: TOPIC or CONTENT.
        rule: Name of the topic, or type of content.
        source: Way that is looked at.
        place: Place in which the model reads the texts.
        action: What the rule does.
        strength: How little is enough.
        examples: Texts that the rule is about.
        near_misses: Texts beside it.
        questions: What was asked before a tool's result, by its text.
        judge: Who is asked about uncertain readings.
        reader: What reads them.
    """

    kind: str
    rule: str
    source: Source
    place: ReadPlace
    action: RuleAction
    strength: Strength
    examples: tuple[str, ...]
    near_misses: tuple[str, ...]
    questions: Mapping[str, str] = field(default_factory=dict)
    judge: JudgeSettings | None = None
    reader: ReadBy = "activations"

    @property
    def times(self) -> float:
        """What the rate that is asked for is multiplied by."""
        return STRENGTH_RATES[self.strength]


def rule_texts(guardrail: Guardrail) -> Iterator[RuleTexts]:
    """Topics and kinds of content with their texts, on each way that they are looked for on.

    Raises:
        TooFewResponses: a rule has too few examples; says how many are needed.
    """
    known = yaml.safe_load((files("poise.guardrail") / "content_exemplars.yaml").read_text("utf-8"))
    for topic in guardrail.topics:
        yield from _on_each_way("TOPIC", topic.name, topic, topic.examples, topic.near_misses)
    for rule in guardrail.content:
        if rule.type == "INDIRECT_ATTACK":
            yield _of_tool_results(rule, known[rule.type])
            continue
        examples, near = (tuple(known[rule.type][side]) for side in ("examples", "near_misses"))
        yield from _on_each_way("CONTENT", rule.type, rule, examples + rule.examples, near + rule.near_misses)


def _on_each_way(
    kind: str, name: str, rule: TopicRule | ContentRule, examples: tuple[str, ...], near_misses: tuple[str, ...]
) -> Iterator[RuleTexts]:
    if len(examples) < FEWEST_EXAMPLES:
        raise TooFewResponses(
            f"{name} has {len(examples)} examples, and a detector needs at least {FEWEST_EXAMPLES}; write more, "
            "as different from each other as what people will say."
        )
    for source in ("INPUT", "OUTPUT"):
        if rule.on(source) != "SKIP":
            yield RuleTexts(
                kind=kind,
                rule=name,
                source=source,
                place="prompt" if source == "INPUT" else "answer",
                action=rule.on(source),
                strength=rule.strength(source) if isinstance(rule, ContentRule) else "MEDIUM",
                examples=examples,
                near_misses=near_misses,
                reader=rule.read_by,
            )


def _of_tool_results(rule: ContentRule, known: Mapping[str, Any]) -> RuleTexts:
    """Sentences that address the assistant, each in a document; beside them documents without any, with a sentence of
    another one, and such as instruct their human reader."""
    documents = known["documents"]
    questions = {row["text"]: row["question"] for row in [*documents, *known["near_misses"]]}
    near = [*questions, *rule.near_misses]
    examples = []
    for n, sentence in enumerate((*known["examples"], *rule.examples)):
        document = documents[n % len(documents)]
        examples.append(plant_sentence(document["text"], sentence))
        questions[examples[-1]] = document["question"]
    for n, document in enumerate(documents):
        near.append(plant_sentence(document["text"], sentences_of(documents[n - 5]["text"])[0]))
        questions[near[-1]] = document["question"]
    return RuleTexts(
        kind="CONTENT",
        rule=rule.type,
        source="INPUT",
        place="tool result",
        action=rule.on("INPUT"),
        strength=rule.strength("INPUT"),
        examples=tuple(examples),
        near_misses=tuple(near),
        questions=questions,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdinaryTexts:
    """Prompts and answers of ordinary talk, different ones, in a random order.

    Attributes:
        prompts: Prompts, encoded.
        questions: What the user said last in each.
        histories: What stands before the answers.
        answers: Answers behind their histories, encoded.
        replies: Their texts.
        names: Number of conversations, by name of the data.
        sha256: SHA-256 of what is read.
    """

    prompts: list[Encoded]
    questions: list[str]
    histories: list[tuple[object, ...]]
    answers: list[Encoded]
    replies: list[str]
    names: dict[str, int]
    sha256: str

    @classmethod
    def of(cls, model: Model, drawn: Sequence[Conversation], *, seed: int) -> OrdinaryTexts:
        """Encode what fits the model's window."""
        prompts: dict[tuple[int, ...], tuple[Encoded, str]] = {}
        answers: dict[tuple[int, ...], tuple[tuple[object, ...], Encoded, str]] = {}
        names: Counter[str] = Counter()
        for place in np.random.default_rng(seed).permutation(len(drawn)):
            conversation = drawn[place]
            names[Path(conversation.file).name] += 1
            if (prompt := last_user(conversation)) and len((text := model.encode(prompt)).ids) <= model.window:
                prompts.setdefault(text.ids, (text, str(prompt[-1]["content"])))
            for turn in turns(conversation)[:1]:
                text = model.encode(turn.history, turn.answer)
                if turn.history and text.start < text.end and len(text.ids) <= model.window:
                    answers.setdefault(text.ids[text.start : text.end], (tuple(turn.history), text, turn.answer))
        digest = hashlib.sha256()
        for ids in [*prompts, *answers]:
            digest.update(repr(ids).encode())
        return cls(
            prompts=[text for text, _ in prompts.values()],
            questions=[question for _, question in prompts.values()],
            histories=[history for history, _, _ in answers.values()],
            answers=[text for _, text, _ in answers.values()],
            replies=[reply for _, _, reply in answers.values()],
            names=dict(names),
            sha256=digest.hexdigest(),
        )

    def in_place(self, model: Model, place: ReadPlace) -> list[Encoded]:
        """Texts as they are read in a place; an answer, where a tool might have given it, stands for its result."""
        if place != "tool result":
            return self.prompts if place == "prompt" else self.answers
        results = []
        for history, answer in zip(self.histories, self.replies, strict=True):
            question = str(history[-1]["content"])  # type: ignore[index]
            results.append(model.encode(tool_turns(question, answer)))
        return [text for text in results if len(text.ids) <= model.window]

    def before_results(self, model: Model) -> list[Encoded]:
        """What stands before the results of ``in_place``, in their order."""
        questions = [str(history[-1]["content"]) for history in self.histories]  # type: ignore[index]
        pairs = zip(questions, self.replies, strict=True)
        fits = [len(model.encode(tool_turns(question, answer)).ids) <= model.window for question, answer in pairs]
        return [model.encode(ask(question)) for question, fit in zip(questions, fits, strict=True) if fit]

    def encode_rule(self, model: Model, rule: RuleTexts, seed: int) -> tuple[list[Encoded], list[Encoded]]:
        """A rule's texts in their place."""

        def encode(text: str) -> Encoded:
            if rule.place == "prompt":
                return model.encode(ask(text))
            if rule.place == "answer":
                return self.as_answer(model, text, seed)
            return model.encode(tool_turns(rule.questions.get(text, ANY_RESULT_QUESTION), text))

        return [encode(text) for text in rule.examples], [encode(text) for text in rule.near_misses]

    def as_answer(self, model: Model, text: str, seed: int) -> Encoded:
        """The text as if the model had said it, where it said something else in ordinary talk."""
        place = int(content_key(text=text, seed=seed), 16) % len(self.histories)
        return model.encode(self.histories[place], text)  # type: ignore[arg-type]


def last_token_of(texts: Sequence[Encoded]) -> list[Encoded]:
    """Texts of which the last prompt token alone is read."""
    return [Encoded(text.ids, text.last_prompt, text.last_prompt + 1) for text in texts]
