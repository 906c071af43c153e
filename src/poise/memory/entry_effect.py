"""What an entry in the prompt does to a model: readings, answers and refusals over questions that it is not about.

A useful entry hardly changes what a model says of something else; one that changes who the model is, or tells it what
to do, does. Every question is read with the entry and without it, in one pass each and without generating: q questions,
L layers read, d: model width, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import InvalidArgument
from poise.grounding.sentences import split_passages
from poise.model import Encoded, Message, Model
from poise.model.batching import pad
from poise.model.hooks import observe
from poise.model.rotary import plan_rows

if TYPE_CHECKING:
    from poise.activations import Probe

__all__ = ["EffectReader", "QuestionEffects"]

EffectArray = NDArray[np.float64]
EFFECT_BUDGET = 1024  # padded tokens a batch
PART_CHARACTERS = 1200  # of an entry that is read at once; longer ones are read in parts
_WITHOUT = "You are a helpful assistant."
_WITH = f"{_WITHOUT}\nWhat you remember from earlier:\n- "


@dataclass(frozen=True, slots=True)
class QuestionEffects:
    """Differences with an entry less without it, question by question.

    Attributes:
        states: Change of the activation where the answer begins, at the layer that is read [q, d].
        answers: Jensen-Shannon divergence, in bits, of what the answer may begin with [q].
        refusals: Change of the mean log-probability of a refusal's tokens [q].
        personas: Change of the projection on each persona vector [q, k].
    """

    states: EffectArray
    answers: EffectArray
    refusals: EffectArray
    personas: EffectArray


@dataclass(frozen=True, slots=True)
class _PassResult:
    states: torch.Tensor  # float32 [q, d]
    first: torch.Tensor  # float32 [q, V], log-probabilities
    refusals: torch.Tensor  # float32 [q]
    personas: torch.Tensor  # float32 [q, k]


class EffectReader:
    """Reads questions with and without an entry.

    Args:
        model: The model that the memory is for.
        questions: What is asked.
        refusal: An answer that refuses.
        layer: Layer whose output is read, counted from 0.
        personas: What persona vectors are read with.
    """

    def __init__(
        self, model: Model, questions: Sequence[str], refusal: str, layer: int, personas: Sequence[Probe] = ()
    ) -> None:
        self.model, self.questions, self.refusal, self.layer = model, tuple(questions), refusal, layer
        self.personas = tuple(personas)
        self._directions = [probe.direction.float() / probe.direction.float().norm() for probe in personas]
        self._base: _PassResult | None = None

    def __call__(self, text: str) -> list[QuestionEffects]:
        """The effects of a text, or of each part of a long one.

        Raises:
            InvalidArgument: a part does not fit the model's window.
        """
        base = self._base = self._base or self._read(_WITHOUT)
        return [self._compared(self._read(f"{_WITH}{' '.join(part.split())}"), base) for part in text_parts(text)]

    def _compared(self, changed: _PassResult, base: _PassResult) -> QuestionEffects:
        return QuestionEffects(
            states=(changed.states - base.states).double().numpy(),
            answers=_divergence(changed.first, base.first).double().numpy(),
            refusals=(changed.refusals - base.refusals).double().numpy(),
            personas=(changed.personas - base.personas).double().numpy(),
        )

    @torch.inference_mode()
    def _read(self, system: str) -> _PassResult:
        texts = [self.model.encode(_turns(system, question), self.refusal) for question in self.questions]
        if (most := max(len(text.ids) for text in texts)) > self.model.window:
            raise InvalidArgument(
                f"An entry takes {most:,} tokens with a question, and the window of {self.model.name} is "
                f"{self.model.window:,}; use a model with a larger one."
            )
        count = len(texts)
        states = torch.empty((count, self.model.width))
        personas = torch.empty((count, len(self.personas)))
        first, refusals = torch.empty((count, 0)), torch.empty(count)
        layers = sorted({self.layer, *(probe.layer for probe in self.personas)})
        for rows in self._batches(texts):
            batch = pad([texts[i] for i in rows], side="right", device=self.model.device)

            def visit(layer: int, hidden: torch.Tensor, rows: list[int] = rows) -> None:
                ends = torch.tensor([texts[i].last_prompt for i in rows], device=hidden.device)
                last = hidden[torch.arange(len(rows), device=hidden.device), ends].float().cpu()
                if layer == self.layer:
                    states[rows] = last
                for k, probe in enumerate(self.personas):
                    if probe.layer == layer:
                        personas[rows, k] = last @ self._directions[k].cpu()

            begin = min(start for start, _ in batch.spans) - 1
            wanted = torch.arange(begin, batch.ids.shape[1], device=self.model.device)
            with observe(self.model, visit, layers):
                logits = self.model.lm(input_ids=batch.ids, use_cache=False, logits_to_keep=wanted).logits
            for row, (start, end) in enumerate(batch.spans):
                scores = logits[row, start - 1 - begin : end - 1 - begin].float().log_softmax(-1)
                tokens = batch.ids[row, start:end].unsqueeze(-1)
                refusals[rows[row]] = scores.gather(-1, tokens).mean().cpu()
                if not first.shape[1]:
                    first = torch.empty((count, scores.shape[-1]))
                first[rows[row]] = scores[0].cpu()
        return _PassResult(states, first, refusals, personas)

    def _batches(self, texts: Sequence[Encoded]) -> list[list[int]]:
        lengths = [len(text.ids) for text in texts]
        return plan_rows(self.model.rotary_switch, lengths, budget=EFFECT_BUDGET, most=64, name=self.model.name)


def text_parts(text: str) -> list[str]:
    """A text in parts that are read one by one: passages, and pieces of what has no sentences."""
    if len(text) <= PART_CHARACTERS:
        return [text]
    parts: list[str] = []
    for passage in split_passages(text):
        for first in range(0, len(passage), PART_CHARACTERS):
            piece = passage[first : first + PART_CHARACTERS]
            if parts and len(parts[-1]) + len(piece) < PART_CHARACTERS:
                parts[-1] = f"{parts[-1]} {piece}"
            else:
                parts.append(piece)
    return parts or [text[:PART_CHARACTERS]]


def _turns(system: str, question: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def _divergence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Jensen-Shannon divergence in bits of rows of log-probabilities [q, V]."""
    middle = torch.logaddexp(a, b) - torch.log(torch.tensor(2.0))
    halves = [(p.exp() * (p - middle)).sum(-1) for p in (a, b)]
    return (halves[0] + halves[1]) / (2 * torch.log(torch.tensor(2.0)))
