"""Engines turn prompts into answers, steered and watched row by row.

``Engine`` is the protocol for whole answers and ``Stepwise`` the one for answers that come and go while others are
generated, as a server needs; ``static`` and ``continuous`` are the references on transformers.
An engine knows nothing of traits or judges.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from poise.activations import Probe
from poise.errors import InvalidArgument
from poise.model import Encoded
from poise.steer import Steering

__all__ = ["Engine", "Generation", "Job", "Piece", "Probe", "Said", "SamplingParams", "Stepwise", "Token"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. ``temperature=0`` is greedy."""

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidArgument(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise InvalidArgument(f"temperature is {self.temperature}; it must be 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise InvalidArgument(f"top_p is {self.top_p}; it must be above 0 and at most 1.")


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer. T: its tokens, k: probes.

    Attributes:
        ids: Generated tokens without the one that ended the answer.
        text: The answer.
        finish: ``stop`` for an end-of-turn token, ``length`` for the limit.
        mean: Response-mean activations float32 [L, d] where asked for; NaN for an empty answer.
        readings: Projections float32 [1 + T, k] where probes were given: the last prompt token, then each token.
    """

    ids: tuple[int, ...]
    text: str
    finish: Literal["stop", "length"]
    mean: torch.Tensor | None = None
    readings: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What a stream gives at a time: some text, and the readings of the tokens that it is made of.

    Attributes:
        text: What was added; empty in the first piece and in one that only ends the answer.
        readings: float32 [tokens, k]; in the first piece the last prompt token's, before anything is said.
        finish: Set in the last piece.
    """

    text: str
    readings: torch.Tensor
    finish: Literal["stop", "length"] | None = None


class Engine(Protocol):
    """Answers prompts in batches."""

    def plan(self, prompts: Sequence[Encoded], sampling: SamplingParams) -> list[list[int]]:
        """The batches that ``generate`` will run, as indices; planning one batch's members again gives that batch."""
        ...

    def generate(
        self,
        prompts: Sequence[Encoded],
        sampling: SamplingParams,
        *,
        seeds: Sequence[int] | None = None,
        steering: Steering | Sequence[Steering | None] | None = None,
        probes: Sequence[Probe] | Sequence[Sequence[Probe]] = (),
        keep_means: bool = False,
    ) -> list[Generation]:
        """Answer each prompt, in order. Row i is drawn with ``seeds[i]`` (default i) whatever shares its batch.

        Steering and probes are one for all rows, or one (a list of probes) for each.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One answer to be generated among others. k: its probes.

    Attributes:
        prompt: What is answered.
        sampling: How its tokens are drawn.
        seed: Of its draws.
        steering: Of this row alone.
        probes: That read this row.
        stop: Strings that end the answer, and are no part of it.
        top: Likeliest tokens to report beside each chosen one; ``None`` for no log-probabilities at all.
    """

    prompt: Encoded
    sampling: SamplingParams
    seed: int = 0
    steering: Steering | None = None
    probes: tuple[Probe, ...] = ()
    stop: tuple[str, ...] = ()
    top: int | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer.

    Attributes:
        text: What it adds to the answer; the texts joined are the answer.
        readings: Projections [k].
        alone: The token decoded by itself, where log-probabilities are asked for.
        logprob: Its log-probability under the steered model, before temperature and top-p.
        top: The likeliest tokens there, decoded alone, with theirs.
    """

    text: str
    readings: tuple[float, ...] = ()
    alone: str = ""
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Said:
    """What one step brought of one answer.

    Attributes:
        key: Whose.
        prompt: Projections [k] at the last prompt token, once, before any token.
        tokens: New ones, each with its readings: a token is let out when it has been read.
        finish: Set at the end.
        error: Set at an end that is none: what went wrong with this row or its batch.
    """

    key: Hashable
    prompt: tuple[float, ...] | None = None
    tokens: tuple[Token, ...] = ()
    finish: Literal["stop", "length"] | None = None
    error: Exception | None = None


class Stepwise(Protocol):
    """Answers jobs that come at any time, a token of each at a step. One thread calls it."""

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        ...

    @property
    def running(self) -> int:
        """Answers that are being generated."""
        ...

    def check(self, job: Job) -> None:
        """Refuse what cannot be run: too long, or of another model. Any thread may ask.

        Raises:
            UserError: says why.
        """
        ...

    def add(self, key: Hashable, job: Job) -> None:
        """Take a job that has been checked; it begins at one of the next steps."""
        ...

    def steer(self, key: Hashable, steering: Steering) -> None:
        """Steer an answer by this too, from its next token on."""
        ...

    def abort(self, key: Hashable) -> None:
        """Drop a job, waiting or running; nothing more is said of it."""
        ...

    def step(self) -> list[Said]:
        """Begin what there is room for, and generate one token of each."""
        ...
