"""Rules that the sentence encoder reads to detectors: directions in its embeddings, and nothing of a model.

A direction is fitted to whole examples and near misses and to the parts of ordinary talk (``text_units``), and its
thresholds are set on what is read where it acts: the highest part of each text. n: texts, k: directions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from poise.data import Conversation, last_user, turns
from poise.guardrail.encoder_reader import EncoderReadings, embedded, unit_embeddings
from poise.guardrail.fit_texts import RuleTexts
from poise.guardrail.guard_file import ENCODER_WIDTH, GuardDetector
from poise.guardrail.rule_detectors import (
    GuardFitSettings,
    PlaceReadings,
    fitted_number,
    logistic_direction,
    place_detectors,
)
from poise.guardrail.text_units import text_units

__all__ = ["EncoderTalk", "encoder_direction", "fit_encoder_place", "whole_embeddings"]


ENCODER_RIDGE = 1e-3  # C: level from 3e-5 to 3e-3, in benchmarks/guardrail_shipped.py --half choose
MOST_UNITS = 3000  # of ordinary talk that are fitted to


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderTalk:
    """Prompts and answers of ordinary talk, different ones, in a random order.

    Attributes:
        prompts: What the user said last in each conversation.
        answers: First answer of each.
        names: Number of conversations, by name of the data.
        sha256: SHA-256 of what is read.
    """

    prompts: list[str]
    answers: list[str]
    names: dict[str, int]
    sha256: str

    @classmethod
    def of(cls, drawn: Sequence[Conversation], *, seed: int) -> EncoderTalk:
        """Those of conversations that were drawn."""
        prompts: dict[str, None] = {}
        answers: dict[str, None] = {}
        names: Counter[str] = Counter()
        for place in np.random.default_rng(seed).permutation(len(drawn)):
            conversation = drawn[place]
            names[Path(conversation.file).name] += 1
            if (prompt := last_user(conversation)) and (text := str(prompt[-1]["content"])).strip():
                prompts[text] = None
            for turn in turns(conversation)[:1]:
                if turn.history and turn.answer.strip():
                    answers[turn.answer] = None
        digest = hashlib.sha256(repr([*prompts, *answers]).encode("utf-8", "backslashreplace")).hexdigest()
        return cls(prompts=list(prompts), answers=list(answers), names=dict(names), sha256=digest)


def encoder_direction(examples: EncoderReadings, near: EncoderReadings, ordinary: EncoderReadings) -> EncoderReadings:
    """A direction in embeddings: examples against the texts beside them and ordinary talk."""
    return logistic_direction(examples, near, ordinary, ridge=ENCODER_RIDGE)


def fit_encoder_place(
    rules: Sequence[RuleTexts], talk: EncoderTalk, settings: GuardFitSettings
) -> list[tuple[GuardDetector, EncoderReadings]]:
    """The detectors of prompts or of answers, and their directions.

    Args:
        rules: Rules of one place.
        talk: Ordinary talk.
        settings: Rate, folds and seed.

    Raises:
        TooFewResponses: too little talk to promise a rate; says how much is needed.
        MissingExtra: the encoder is not installed.
    """
    place = rules[0].place
    texts = talk.prompts if place == "prompt" else talk.answers
    n_fit = fitted_number(len(texts), rules, settings)
    ordinary = embedded([unit for text in texts[:n_fit] for unit in text_units(text, place)][:MOST_UNITS])
    if place == "answer":  # examples are what people ask: as answers they differ from answers by that alone
        ordinary = np.concatenate([ordinary, embedded(talk.prompts[:n_fit])])
    features = [(whole_embeddings(rule.examples), whole_embeddings(rule.near_misses)) for rule in rules]
    held_out = unit_embeddings(texts[n_fit:], place)
    of_rules = [(unit_embeddings(r.examples, place), unit_embeddings(r.near_misses, place)) for r in rules]

    def read(directions: Sequence[EncoderReadings]) -> PlaceReadings:
        matrix = np.stack(directions, axis=1)
        return PlaceReadings(held_out.highest(matrix), [(e.highest(matrix), n.highest(matrix)) for e, n in of_rules])

    return place_detectors(
        rules, features, ordinary, read, fit=encoder_direction, layer=None, n_fit=n_fit, settings=settings
    )


def whole_embeddings(texts: Sequence[str]) -> EncoderReadings:
    """Embeddings of whole texts [n, 384]."""
    return embedded(texts) if texts else np.zeros((0, ENCODER_WIDTH))
