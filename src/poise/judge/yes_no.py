"""A question that a model answers with yes or no, read off the likelihoods of the two and never out of free text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from poise.endpoint_address import endpoint_address
from poise.errors import InvalidArgument, JudgeUnavailable, UnsuitableModel
from poise.judge.endpoint import first_token_probabilities
from poise.model import Model, ask, load_model
from poise.model.batching import pad, plan_batches
from poise.model.cached_pass import newest_logits
from poise.model.self_check import check_model
from poise.progress import track

__all__ = ["EndpointYesNo", "LocalYesNo", "YesNo", "YesNoReader", "yes_no_reader"]

YES, NO = ("yes", "Yes", "YES", " yes", " Yes"), ("no", "No", "NO", " no", " No")
READ_BATCH_TOKENS = 2048  # padded tokens a batch
REQUESTS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class YesNo:
    """What a model says to one question.

    Attributes:
        yes: Probability of yes among yes and no; ``None`` where it says neither.
        mass: Probability of yes and no together among all that it could say.
    """

    yes: float | None
    mass: float

    @classmethod
    def of(cls, yes: float, no: float) -> YesNo:
        """From the probabilities of both."""
        return cls(yes / (yes + no) if yes + no > 0 else None, yes + no)


class YesNoReader(Protocol):
    """Asks a model questions that are answered with yes or no."""

    @property
    def name(self) -> str:
        """How reports call it, e.g. ``model:smollm2-135m``."""

    def __call__(self, prompts: Sequence[str]) -> list[YesNo]:
        """Ask each, in order."""


class LocalYesNo:
    """A model that is loaded here: the likelihoods of its next token.

    Args:
        model: The model.

    Raises:
        UnsuitableModel: its tokenizer begins yes and no alike.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._yes, self._no = (_first_ids(model, words) for words in (YES, NO))
        if not self._yes or not self._no or set(self._yes) & set(self._no):
            raise UnsuitableModel(f"{model.name} does not tell yes from no by their first token; take another model.")

    @property
    def name(self) -> str:
        """``model:`` and the model's name."""
        return f"model:{self.model.name}"

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str]) -> list[YesNo]:
        """Ask each question."""
        texts = [self.model.encode(ask(prompt)) for prompt in prompts]
        lengths = [len(text.ids) for text in texts]
        most = 1 if check_model(self.model).padding_fault else 16
        answers: dict[int, YesNo] = {}
        with track(f"Asking {self.model.name}", total=len(texts)) as advance:
            for rows in plan_batches(lengths, budget=READ_BATCH_TOKENS, most=most):
                batch = pad([texts[row] for row in rows], side="left", device=self.model.device)
                mask = batch.real.long() if batch.padded else None
                chances = torch.softmax(newest_logits(self.model, None, batch.ids, mask, batch.positions), dim=-1)
                for row, chance in zip(rows, chances, strict=True):
                    answers[row] = YesNo.of(float(chance[self._yes].sum()), float(chance[self._no].sum()))
                advance(len(rows))
        return [answers[row] for row in range(len(texts))]


def _first_ids(model: Model, words: Sequence[str]) -> list[int]:
    """The tokens that a word may begin with, each once."""
    spelt = [model.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    blank = model.tokenizer(" ", add_special_tokens=False)["input_ids"][:1]
    return sorted({ids[0] for ids in spelt if ids and ids[:1] != blank})


class EndpointYesNo:
    """A model behind an OpenAI-compatible server, by the likelihoods of its first token.

    Where the server gives none, what it wrote is read instead: 1 for yes and 0 for no.

    Args:
        model: Name that the server knows it by.
        base_url: URL of the server, usually ending in ``/v1``; else ``OPENAI_BASE_URL``, else OpenAI's own.
        api_key: Else ``OPENAI_API_KEY``; local servers need none.
        timeout: Seconds that one request may take.
    """

    def __init__(
        self, model: str, *, base_url: str | None = None, api_key: str | None = None, timeout: float = 120.0
    ) -> None:
        self._model, self._timeout = model, timeout
        self._base_url, self._api_key = endpoint_address(base_url, api_key)

    @property
    def name(self) -> str:
        """``endpoint:`` and the model's name."""
        return f"endpoint:{self._model}"

    def __call__(self, prompts: Sequence[str]) -> list[YesNo]:
        """Ask each question.

        Raises:
            JudgeUnavailable: the server does not answer.
        """
        from openai import OpenAI, OpenAIError

        with (
            OpenAI(base_url=self._base_url, api_key=self._api_key, timeout=self._timeout) as client,
            ThreadPoolExecutor(REQUESTS_AT_ONCE) as executor,
        ):

            def answer(prompt: str) -> YesNo:
                completion = client.chat.completions.create(
                    model=self._model,
                    messages=[{"role": "user", "content": prompt}],
                    temperature=0,
                    max_tokens=4,
                    logprobs=True,
                    top_logprobs=20,
                )
                choice = completion.choices[0]
                return _read_choice(first_token_probabilities(choice), str(choice.message.content or ""))

            try:
                return list(executor.map(answer, prompts))
            except (OpenAIError, IndexError, AttributeError) as error:
                cause = str(error.__cause__ or error)[:200]
                raise JudgeUnavailable(
                    f"The model {self._model!r} at {client.base_url} does not answer ({cause}); start the server or "
                    "set OPENAI_BASE_URL to where it runs, then run the same command again."
                ) from error


def _read_choice(probabilities: Mapping[str, float] | None, text: str) -> YesNo:
    """From the first token's candidates, else from what was written."""
    if probabilities is None:
        first = text.strip().casefold().lstrip("*\"'(")
        return YesNo.of(float(first.startswith("yes")), float(first.startswith("no")))
    sums = {"yes": 0.0, "no": 0.0}
    for token, probability in probabilities.items():
        if (word := token.strip().casefold()) in sums:
            sums[word] += probability
    return YesNo.of(sums["yes"], sums["no"])


def yes_no_reader(spec: str, load: Callable[[str], Model] = load_model) -> YesNoReader:
    """The reader that a user names: ``endpoint:NAME``, ``model:NAME`` or a model's name alone.

    Raises:
        InvalidArgument: a kind without a name.
    """
    kind, colon, name = spec.partition(":")
    if colon and kind in ("endpoint", "model") and not name:
        raise InvalidArgument(f"There is no name after {spec!r}; write {kind}:NAME.")
    if colon and kind == "endpoint":
        return EndpointYesNo(name)
    return LocalYesNo(load(name if colon and kind == "model" else spec))
