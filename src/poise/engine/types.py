"""Engines turn prompts into answers, steered and watched row by row.

``Engine`` is the protocol for whole answers and ``StepEngine`` the one for requests that arrive and leave while others
are generated, as a server needs; ``static`` and ``continuous`` are the references on transformers.
An engine knows nothing of traits or judges.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from numbers import Integral, Real
from typing import Literal, Protocol

import torch

from poise.activations import Probe
from poise.engine.grammar import Grammar
from poise.errors import InvalidArgument
from poise.model import Encoded
from poise.model.parts import Part, TokenPart, in_part
from poise.notebook import tinted_tokens_html
from poise.steer import Steering

__all__ = [
    "Engine",
    "EngineOutput",
    "GeneratedToken",
    "Generation",
    "GenerationRequest",
    "Probe",
    "SamplingParams",
    "StepEngine",
    "TextChunk",
    "engine_key",
]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. ``temperature=0`` is greedy.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        temperature: What logits are divided by before drawing; 0 always takes the likeliest token.
        top_p: Only the likeliest tokens that together have this probability are drawn; 1 for all.

    Raises:
        InvalidArgument: A value has the wrong type or is out of range; names the argument, the value and the limit.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_count("max_new_tokens", self.max_new_tokens)
        if not (_is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise InvalidArgument(f"temperature is {self.temperature!r}; it must be a number, 0 (greedy) or more.")
        if not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise InvalidArgument(f"top_p is {self.top_p!r}; it must be a number above 0 and at most 1.")


def check_count(name: str, value: object) -> None:
    """Raise ``InvalidArgument`` unless ``value`` is an integer of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InvalidArgument(f"{name} is {value!r}; it must be a whole number, at least 1.")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One answer. T: its tokens, k: probes.

    Attributes:
        ids: Generated tokens without the one that ended the answer.
        text: The answer, with its thought and the marks around it where it has one.
        finish: ``stop`` for an end-of-turn token, ``length`` for the limit.
        mean: Mean activations of the reply float32 [L, d] where asked for; NaN for an empty one.
        readings: Projections float32 [1 + T, k] where probes were given: the last prompt token, then each token,
            whatever its part; ``readings_of`` has those of one part.
        pieces: T texts where probes were given, what each token adds; empty for all but the last of the tokens that
            make one character.
        parts: Part of each of the T tokens.
        thought: What the model thought before its reply; empty where it did not.
        reply: The answer without its thought.
    """

    ids: tuple[int, ...]
    text: str
    finish: Literal["stop", "length"]
    mean: torch.Tensor | None = None
    readings: torch.Tensor | None = None
    pieces: tuple[str, ...] = ()
    parts: tuple[TokenPart, ...] = ()
    thought: str = ""
    reply: str = ""

    def __post_init__(self) -> None:
        if not self.parts:
            object.__setattr__(self, "parts", ("reply",) * len(self.ids))
        if not self.thought and not self.reply:
            object.__setattr__(self, "reply", "" if "mark" in self.parts else self.text)

    def readings_of(self, part: Part) -> torch.Tensor | None:
        """Projections of the last prompt token and of the tokens of one part, or of all: float32 [1 + n, k]."""
        if self.readings is None:
            return None
        return self.readings[[True, *(in_part(token_part, part) for token_part in self.parts)]]

    def _repr_html_(self) -> str:
        """The answer, its tokens tinted by the readings of the first probe where there is one."""
        if self.readings is None or len(self.pieces) != len(self.readings) - 1:
            return f'<div style="white-space:pre-wrap">{escape(self.text)}</div>'
        return tinted_tokens_html(self.pieces, self.readings[1:, 0].tolist())


@dataclass(frozen=True, slots=True)
class TextChunk:
    """One piece of a streamed answer: some text, and the readings of the tokens that it is made of.

    Attributes:
        text: Text added by this piece; empty in the first piece and in one that only ends the answer.
        readings: Projections float32 [tokens, k]; the first piece holds those of the last prompt token.
        finish: Reason why the answer ended; set in the last piece.
        part: Part of the answer that all of its tokens are in; those of a mark have no text.
    """

    text: str
    readings: torch.Tensor
    finish: Literal["stop", "length"] | None = None
    part: TokenPart = "reply"


class Engine(Protocol):
    """Answers prompts in batches.

    An engine whose random streams are others than those of the engines on transformers has a ``key``, under which its
    answers are kept.
    """

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

        Raises:
            InvalidArgument: Seeds, steerings or lists of probes are not as many as the prompts, or a prompt with its
                new tokens exceeds the model's window.
            NonFiniteActivation: The model gave NaN or infinite logits.
        """
        ...


def engine_key(engine: Engine) -> dict[str, str]:
    """What of an engine is in the keys of kept work, so that a run never mixes the answers of two.

    Nothing for the engines on transformers, which draw the same answers; else the engine's ``key``.
    """
    name = getattr(engine, "key", "")
    return {"engine": name} if name else {}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GenerationRequest:
    """One answer to be generated among others. k: its probes.

    Attributes:
        prompt: Tokens that the answer follows.
        sampling: How the answer's tokens are drawn.
        seed: Seed of the answer's own random stream.
        steering: Steering of this answer alone.
        probes: Probes that read this answer.
        stop: Strings that end the answer; they are no part of it. Those in a thought do not.
        top_logprobs: Likeliest tokens to report beside each chosen one; ``None`` for no log-probabilities at all.
        client: Who asks: those with fewer answers under way come first, and what was read for one is reused for no
            other.
        grammar: What the reply may be; ``None`` for anything.
        may_think: Whether an answer with a grammar may begin with a thought, which is not held to it.
        shown: Texts of tokens that the tokenizer decodes to nothing and that are text in this answer.
    """

    prompt: Encoded
    sampling: SamplingParams
    seed: int = 0
    steering: Steering | None = None
    probes: tuple[Probe, ...] = ()
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    client: str | None = None
    grammar: Grammar | None = None
    may_think: bool = False
    shown: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedToken:
    """A token of an answer.

    Attributes:
        text: Text that the token adds to its part of the answer; the texts joined are the thought and the reply.
        readings: Projections [k].
        part: Part of the answer that the token is in.
        piece: What the token adds to the answer with the marks around a thought; ``None`` for no more than ``text``.
        ends_unopened_thought: Whether the token is the end of a thought that no mark had opened: what came before it
            was thought, though it was given out as reply.
        decoded: The token by itself, as ``poise.model.token_text`` has it, where log-probabilities are asked for.
        begins: Characters from the beginning of its piece to its own, where log-probabilities are asked for: more than
            0 where it comes in one piece with an incomplete character before it.
        logprob: Log-probability of the token under the steered model, before temperature and top-p.
        top_logprobs: The likeliest tokens at this position, each by itself, with its log-probability.
    """

    text: str
    readings: tuple[float, ...] = ()
    part: TokenPart = "reply"
    piece: str | None = None
    ends_unopened_thought: bool = False
    decoded: str = ""
    begins: int = 0
    logprob: float | None = None
    top_logprobs: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOutput:
    """What one step brought of one answer.

    Attributes:
        key: The caller's name for the request.
        prompt_readings: Projections [k] at the last prompt token; set once, before any token.
        tokens: New tokens, each with its readings: a token is released when it has been read.
        ahead: Tokens after them that have been read and are not released yet, since their text may still change, each
            once: part, as far as it is known, and readings.
        finish: Reason why the answer ended; set at its end.
        end: Token that ended the answer and is no part of it, where log-probabilities are asked for.
        error: What went wrong with this answer or its batch; set where the answer ended without a finish.
        began: Time on the monotonic clock at which the prompt began to be read, where the engine knows it.
        reused_tokens: Prompt tokens that were not read again, since an earlier text began with them.
    """

    key: Hashable
    prompt_readings: tuple[float, ...] | None = None
    tokens: tuple[GeneratedToken, ...] = ()
    ahead: tuple[GeneratedToken, ...] = ()
    finish: Literal["stop", "length"] | None = None
    end: GeneratedToken | None = None
    error: Exception | None = None
    began: float | None = None
    reused_tokens: int = 0


class StepEngine(Protocol):
    """Generates requests that arrive at any time, one token of each at a step. Only one thread may call it."""

    @property
    def waiting(self) -> int:
        """Number of requests that have not begun."""
        ...

    @property
    def running(self) -> int:
        """Number of answers that are being generated."""
        ...

    def check(self, request: GenerationRequest) -> None:
        """Raise where a request cannot be run: too long, or steered by another model's vector. Any thread may call it.

        Raises:
            UserError: The request cannot be run; says why.
        """
        ...

    def add(self, key: Hashable, request: GenerationRequest) -> None:
        """Queue a request that has been checked; it begins at one of the next steps."""
        ...

    def steer(self, key: Hashable, steering: Steering) -> None:
        """Add this steering to an answer's own, from its next token on."""
        ...

    def cut(self, key: Hashable, tokens: int) -> tuple[GeneratedToken, ...]:
        """End a running answer after so many tokens, which have been read; those of them that were not released yet."""
        ...

    def abort(self, key: Hashable) -> None:
        """Drop a request, waiting or running; it gives no further output."""
        ...

    def step(self) -> list[EngineOutput]:
        """Start the requests that fit, and generate one token of each running answer."""
        ...
