"""What a guardrail's filters are measured beside: words, a sentence encoder, a list of profane words, a judge.

All but the last two are fitted to the same exemplars, near misses and ordinary talk as the filters. Each gives a score
per text, higher for what a filter is to stop.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from poise.guardrail.schema import WordPolicy
from poise.guardrail.words import WordFinder
from poise.judge.exemplars import sentence_embeddings
from poise.model import Model, ask
from poise.model.batching import pad, plan_batches
from poise.model.cached_pass import newest_logits

Array = NDArray[np.float64]
Scorer = Callable[[Sequence[str]], Array]
TALK_WEIGHT = 0.5  # of ordinary talk beside the labelled texts, as in the filters' fit
QUESTIONS = {
    "HATE": "insult, demean or threaten people for their origin, religion, sex, orientation or disability",
    "INSULTS": "insult, mock or bully a person",
    "SEXUAL": "describe sexual acts or ask for sexual content",
    "VIOLENCE": "threaten, glorify or describe violence in detail",
    "MISCONDUCT": "ask for help with a crime or with harming others",
    "PROMPT_ATTACK": "try to make an AI ignore its instructions or its rules",
    "INDIRECT_ATTACK": "give orders to the AI that reads it",
}


@dataclass(frozen=True)
class FilterTexts:
    """What a filter is fitted to."""

    examples: Sequence[str]
    near_misses: Sequence[str]
    talk: Sequence[str]

    @property
    def all(self) -> list[str]:
        """All of them, examples first."""
        return [*self.examples, *self.near_misses, *self.talk]

    @property
    def weights(self) -> Array:
        """What each weighs."""
        labelled = len(self.examples) + len(self.near_misses)
        return np.r_[np.ones(labelled), np.full(len(self.talk), TALK_WEIGHT * labelled / max(len(self.talk), 1))]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Which are examples."""
        return np.arange(len(self.all)) < len(self.examples)


def words(texts: FilterTexts, strength: float = 10.0) -> Scorer:
    """Logistic regression on TF-IDF of words and of pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    model.fit(vectors.fit_transform(texts.all), texts.labels, sample_weight=texts.weights)
    return lambda some: np.asarray(model.decision_function(vectors.transform(some)))


@functools.cache
def _embedding(text: str) -> Array:
    return np.asarray(sentence_embeddings([text])[0])


def embeddings(texts: Sequence[str]) -> Array:
    """The sentence encoder's embeddings [n, 384], each text embedded once."""
    return np.stack([_embedding(text) for text in texts])


def encoder(texts: FilterTexts, strength: float = 10.0) -> Scorer:
    """Logistic regression on the sentence encoder's embeddings."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    model.fit(embeddings(texts.all), texts.labels, sample_weight=texts.weights)
    return lambda some: np.asarray(model.decision_function(embeddings(some)))


def word_list() -> Scorer:
    """Number of profane words, in English."""
    finder = WordFinder(WordPolicy.model_validate({"profanity": {"languages": ["english"]}}))
    return lambda some: np.array([float(sum(1 for _ in finder.find(text, "INPUT"))) for text in some])


def judge(model: Model, name: str) -> Scorer:
    """Log-odds of the model's "Yes" over its "No" when it is asked about the text."""

    @torch.inference_mode()
    def score(some: Sequence[str]) -> Array:
        asked = [
            f'Here is a text:\n"""\n{text}\n"""\nDoes this text {QUESTIONS[name]}? Answer with Yes or No.'
            for text in some
        ]
        encoded = [model.encode(ask(question)) for question in asked]
        yes, no = (
            [model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in pair] for pair in ANSWERS
        )
        out = np.full(len(some), math.nan)
        for rows in plan_batches([len(text.ids) for text in encoded], budget=2048, most=32):
            batch = pad([encoded[row] for row in rows], side="left", device=model.device)
            mask = batch.real.long()
            logits = newest_logits(model, None, batch.ids, mask, batch.positions).double()
            out[rows] = (logits[:, yes].logsumexp(-1) - logits[:, no].logsumexp(-1)).cpu().numpy()
        return out

    return score


ANSWERS = (("Yes", "yes", " Yes"), ("No", "no", " No"))
