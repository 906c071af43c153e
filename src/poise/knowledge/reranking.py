"""Passages that a search came upon, scored again by what reads question and passage together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from poise.data import Message
from poise.errors import InvalidArgument
from poise.judge.yes_no import EndpointYesNo, LocalYesNo, YesNoReader
from poise.model import Model
from poise.model import load_model as load_any_model
from poise.model.logprobs import token_logprobs

__all__ = ["LikelihoodReranker", "TextReranker", "YesNoReranker", "text_reranker"]

_MOST_CHARACTERS = 4000  # of a passage that a language model reads


class TextReranker(Protocol):
    """Scores passages for a question.

    Attributes:
        name: How reports call it.
    """

    @property
    def name(self) -> str:
        """How reports call it."""

    def __call__(self, question: str, passages: Sequence[str]) -> list[float]:
        """A score of each passage, higher where it fits better; scores of two questions do not compare."""


class YesNoReranker:
    """Asks a language model whether a passage answers the question, and takes the likelihood of *yes*.

    Args:
        reader: A model that is loaded here, or one behind an endpoint; see ``poise.judge.yes_no``.
    """

    def __init__(self, reader: YesNoReader) -> None:
        self.reader = reader

    @property
    def name(self) -> str:
        """``yes from`` and the model's name."""
        return f"yes from {self.reader.name}"

    def __call__(self, question: str, passages: Sequence[str]) -> list[float]:
        """Probability of yes among yes and no; 0 where the model says neither.

        Raises:
            JudgeUnavailable: the endpoint does not answer.
        """
        prompts = [
            f"Passage:\n{text[:_MOST_CHARACTERS]}\n\nQuestion: {question}\n\n"
            "Does the passage say what the question asks? Answer yes or no."
            for text in passages
        ]
        return [0.0 if answer.yes is None else answer.yes for answer in self.reader(prompts)]


class LikelihoodReranker:
    """How likely a language model finds the question after the passage (Sachan et al. 2022, arXiv:2204.07496).

    Args:
        model: The model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """``likelihood by`` and the model's name."""
        return f"likelihood by {self.model.name}"

    def __call__(self, question: str, passages: Sequence[str]) -> list[float]:
        """Mean log-probability of the question's tokens, in nats; of a passage that is too long, by its beginning."""
        room = max(100, 2 * (self.model.window - len(self.model.encode([_asking("")], question).ids)))
        texts = [
            self.model.encode([_asking(text[: min(_MOST_CHARACTERS, room)])], question.strip()) for text in passages
        ]
        return [float(values.mean()) for values in token_logprobs(self.model, texts)]


def _asking(passage: str) -> Message:
    return {"role": "user", "content": f"Passage: {passage}\n\nWrite a question that this passage answers."}


def text_reranker(name: str, load: Callable[[str], Model] = load_any_model) -> TextReranker:
    """The reranker of a name.

    Args:
        name: A cross-encoder's folder or its name on the hub; ``model:NAME`` or ``endpoint:NAME`` for a language model
            that is asked yes or no; ``likelihood:NAME`` for one that finds the question likely.
        load: Loads language models.

    Raises:
        InvalidArgument: there is no such model, or it is none that scores pairs of texts.
    """
    kind, _, model = name.partition(":")
    if kind in ("model", "endpoint", "likelihood") and not model:
        raise InvalidArgument(f"`rerank` is {name!r} without a name; write {kind}:NAME.")
    if kind == "model":
        return YesNoReranker(LocalYesNo(load(model)))
    if kind == "endpoint":
        return YesNoReranker(EndpointYesNo(model))
    if kind == "likelihood":
        return LikelihoodReranker(load(model))
    from poise.knowledge.cross_encoder import CrossEncoderReranker

    return CrossEncoderReranker(name)
