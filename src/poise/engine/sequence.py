"""One answer of a running batch: its draws, its words, and what has been read of it and not yet let out."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal

import numpy as np
import torch

from poise.engine.detokenizer import Speech
from poise.engine.types import Job, Said, Token
from poise.model import Model

__all__ = ["Row"]


class Row:
    """The state of one answer.

    Args:
        key: The caller's name for it.
        job: What was asked.
        model: Who answers.
    """

    def __init__(self, key: Hashable, job: Job, model: Model) -> None:
        self.key, self.job, self.model = key, job, model
        self.speech = Speech(model.tokenizer, job.stop)
        self.over = False
        self.cached = len(job.prompt.ids)  # positions that the model has taken in
        self._random = np.random.Generator(np.random.Philox(key=job.seed))
        self._chances: list[Token] = []
        self._readings: list[tuple[float, ...]] = []
        self._began = False
        self._finish: Literal["stop", "length"] | None = None

    def anew(self) -> Row:
        """The same job from its beginning."""
        return Row(self.key, self.job, self.model)

    @property
    def longest(self) -> int:
        """Positions that it may come to take."""
        return len(self.job.prompt.ids) + self.job.sampling.max_new_tokens

    def draw(self) -> float:
        """The next number of its own stream, in [0, 1)."""
        return float(self._random.random())

    def hear(self, token: int, logits: torch.Tensor, readings: tuple[float, ...]) -> Said | None:
        """Take in what a pass brought: the readings of what it ran, and the token chosen after it.

        A watched answer that has found its end runs one pass more, for the reading of its last token.
        """
        prompt = None
        if not self._began:
            prompt, self._began = (readings if self.job.probes else None), True
        else:
            self.cached += 1
            if self.job.probes:
                self._readings.append(readings)
        if self._finish is None:
            self._take(token, logits)
        read = len(self._readings) if self.job.probes else len(self.speech.tokens)
        self.over = self._finish is not None and read >= len(self.speech.tokens)
        tokens = self._let_out(len(self.speech.tokens) if self.over else min(self.speech.safe, read))
        if prompt is None and not tokens and not self.over:
            return None
        return Said(self.key, prompt, tokens, self._finish if self.over else None)

    def _take(self, token: int, logits: torch.Tensor) -> None:
        if token in self.model.stop_ids:
            self._finish = "stop"
        else:
            self._chances.append(self._chance(token, logits))
            if self.speech.hear(token):
                self._finish = "stop"
            elif len(self.speech.tokens) >= self.job.sampling.max_new_tokens:
                self._finish = "length"
        if self._finish:
            self.speech.end()

    def _chance(self, token: int, logits: torch.Tensor) -> Token:
        if self.job.top is None:
            return Token("")
        logprobs = torch.log_softmax(logits, dim=-1)
        best = torch.topk(logprobs, self.job.top)
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Token("", (), self._alone(token), float(logprobs[token]), tuple((self._alone(i), p) for i, p in top))

    def _alone(self, token: int) -> str:
        return str(self.model.tokenizer.decode([token]))

    def _let_out(self, until: int) -> tuple[Token, ...]:
        first, self.speech.out = self.speech.out, max(until, self.speech.out)
        return tuple(
            Token(
                self.speech.pieces[n],
                self._readings[n] if self.job.probes else (),
                self._chances[n].alone,
                self._chances[n].logprob,
                self._chances[n].top,
            )
            for n in range(first, self.speech.out)
        )
