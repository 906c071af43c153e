"""One answer of a running batch: its random stream, its text, and its readings that have not been released yet."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as ListedTokens
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import Literal

import numpy as np

from poise.engine.detokenizer import Detokenizer
from poise.engine.grammar import AnswerConstraint, too_complex
from poise.engine.prefix_cache import PrefixBlock
from poise.engine.types import EngineOutput, GeneratedToken, GenerationRequest
from poise.errors import NonFiniteActivation
from poise.model import Model
from poise.model.parts import PartTracker
from poise.model.token_text import token_text

__all__ = ["MatchedPrefix", "Sequence", "SequenceStatus", "TokenScores"]

TokenScores = Callable[[int, int], tuple[float, ListedTokens[tuple[int, float]]]]
"""Log-probabilities of one step, by a token and a number: the token's, and those of so many likeliest ones."""


class SequenceStatus(Enum):
    """Where a sequence is in its life."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedPrefix:
    """What was read before and a prompt begins with.

    Attributes:
        scope: What the prompt's states depend on besides its tokens; ``None`` where they cannot be reused.
        blocks: Blocks of the prefix cache, in order.
        version: Version of the cache that they were looked for in.
    """

    scope: Hashable = None
    blocks: tuple[PrefixBlock, ...] = ()
    version: int = -1

    @property
    def tokens(self) -> int:
        """Tokens that need not be read."""
        return sum(len(block.ids) for block in self.blocks)


class Sequence:
    """The state of one answer.

    Args:
        key: The caller's name for it.
        request: What is generated, and how.
        model: The model that generates it.
        number: Place in the order in which requests came.
    """

    def __init__(self, key: Hashable, request: GenerationRequest, model: Model, number: int = 0) -> None:
        self.key, self.request, self.model, self.number = key, request, model, number
        self.detokenizer = Detokenizer(model.tokenizer, request.stop, shown=request.shown)
        self.tracker = self._new_tracker()
        grammar = request.grammar
        self._constraint = AnswerConstraint(grammar, model, may_think=request.may_think) if grammar else None
        self._heed_stops()
        self.status = SequenceStatus.WAITING
        self.began: float | None = None
        self.cached_tokens = len(request.prompt.ids)  # positions that the model has taken in
        self.prefix = MatchedPrefix()
        self.reused_tokens = 0  # of the prompt, which was not all read
        self._random = np.random.Generator(np.random.Philox(key=request.seed))
        self._logprobs: list[GeneratedToken] = []
        self._readings: list[tuple[float, ...]] = []
        self._shown = 0  # tokens whose readings have been given out, with or before their text
        self._finish: Literal["stop", "length"] | None = None
        self._end: GeneratedToken | None = None  # the token that ended it

    def restarted(self) -> Sequence:
        """The same request from its beginning."""
        return Sequence(self.key, self.request, self.model, self.number)

    @property
    def finished(self) -> bool:
        """Whether nothing of it remains to be run or released."""
        return self.status is SequenceStatus.FINISHED

    @property
    def unread_tokens(self) -> int:
        """Tokens of the prompt that have to be read."""
        return len(self.request.prompt.ids) - self.prefix.tokens

    @property
    def max_tokens(self) -> int:
        """Positions of the cache that it may come to take."""
        return len(self.request.prompt.ids) + self.request.sampling.max_new_tokens

    @property
    def constraint(self) -> AnswerConstraint | None:
        """What its next token is held to, while there is one to come."""
        return self._constraint if self._finish is None else None

    def draw(self) -> float:
        """The next number of its own random stream, in [0, 1)."""
        return float(self._random.random())

    def append(self, token: int, scores: TokenScores, readings: tuple[float, ...]) -> EngineOutput | None:
        """Add what a pass brought: the readings of what it ran, and the token sampled after it.

        A watched answer that has ended runs one pass more, for the reading of its last token.
        """
        prompt_readings = None
        if self.status is SequenceStatus.WAITING:
            self.status = SequenceStatus.RUNNING
            prompt_readings = readings if self.request.probes else None
        else:
            self.cached_tokens += 1
            if self.request.probes:
                self._readings.append(readings)
        if self.constraint and self.constraint.fault:
            self.status = SequenceStatus.FINISHED
            return EngineOutput(key=self.key, error=too_complex(self.constraint.fault, len(self.detokenizer.tokens)))
        if self._finish is None:
            self._append_token(token, scores)
        generated = len(self.detokenizer.tokens)
        read = len(self._readings) if self.request.probes else generated
        if self._finish is not None and read >= generated:
            self.status = SequenceStatus.FINISHED
        settled = min(self.detokenizer.releasable, self.tracker.settled, read)
        tokens = self._release(generated if self.finished else settled)
        ahead = self._read_ahead(min(self.tracker.foreseen, read)) if self.request.probes else ()
        if prompt_readings is None and not tokens and not ahead and not self.finished:
            return None
        return EngineOutput(
            key=self.key,
            prompt_readings=prompt_readings,
            tokens=tokens,
            ahead=ahead,
            finish=self._finish if self.finished else None,
            end=self._end if self.finished else None,
            began=self.began,
            reused_tokens=self.reused_tokens,
        )

    def break_off(self) -> EngineOutput:
        """End the answer where its logits are NaN or infinite."""
        self.status = SequenceStatus.FINISHED
        error = NonFiniteActivation(
            f"{self.model.name} gave NaN or infinite logits at token {len(self.detokenizer.tokens)}; steer with less "
            "strength, or load the model with dtype=torch.float32."
        )
        return EngineOutput(key=self.key, error=error)

    def cut(self, tokens: int) -> tuple[GeneratedToken, ...]:
        """End the answer after so many tokens; those of them that were not released yet."""
        self.detokenizer.keep(tokens)
        self._end_text()
        self.status = SequenceStatus.FINISHED
        return self._release(tokens)

    def _read_ahead(self, until: int) -> tuple[GeneratedToken, ...]:
        """Readings of tokens whose text waits, each once."""
        first = max(self._shown, self.detokenizer.released)
        self._shown = max(first, until)
        return tuple(
            GeneratedToken(
                text="",
                readings=self._readings[n],
                part=self.tracker.part_of(n),
                ends_unopened_thought=self.tracker.unopened == n,
            )
            for n in range(first, self._shown)
        )

    def _append_token(self, token: int, scores: TokenScores) -> None:
        if token in self.model.stop_ids and not self.tracker.goes_on(token):
            self._finish = "stop"
            self._end = self._with_logprobs(token, scores) if self.request.top_logprobs is not None else None
        else:
            self._logprobs.append(self._with_logprobs(token, scores))
            if self._constraint:
                self._constraint.take(token, self.tracker)
            if self._add(token):
                self._finish = "stop"
            elif len(self.detokenizer.tokens) >= self.request.sampling.max_new_tokens:
                self._finish = "length"
        if self._finish:
            self._end_text()

    def _add(self, token: int) -> bool:
        """Add a token to text and parts; true when a stop string is complete."""
        if self.detokenizer.add(token):
            return True
        self.tracker.add(token, self.detokenizer.pieces[-1])
        return self._heed_stops()

    def _heed_stops(self) -> bool:
        """Let stop strings end the reply and nothing else; true where one is in the text already."""
        if self.tracker.part != "reply":
            return self.detokenizer.stop_from(inf)
        if self.detokenizer.stops_from == inf:
            return self.detokenizer.stop_from(len(self.detokenizer.text) - len(self.tracker.texts[-1]))
        return False

    def _end_text(self) -> None:
        """Settle the last tokens; where the end has changed their texts, the parts are those of what is left."""
        self.detokenizer.finish()
        pieces = self.detokenizer.pieces
        if len(pieces) != len(self.tracker.pieces) or (pieces and pieces[-1] not in ("", self.tracker.pieces[-1])):
            self.tracker = self._new_tracker()
            for token, piece in zip(self.detokenizer.tokens, pieces, strict=True):
                self.tracker.add(token, piece)
        self.tracker.finish()

    def _new_tracker(self) -> PartTracker:
        return self.model.thought_marks.tracker(self.model.tokenizer, self.request.prompt.ids)

    def _with_logprobs(self, token: int, scores: TokenScores) -> GeneratedToken:
        if self.request.top_logprobs is None:
            return GeneratedToken(text="")
        logprob, top = scores(token, self.request.top_logprobs)
        return GeneratedToken(
            text="",
            decoded=self._decoded(token),
            logprob=logprob,
            top_logprobs=tuple((self._decoded(i), p) for i, p in top),
        )

    def _decoded(self, token: int) -> str:
        return token_text(self.model.tokenizer, token)

    def _release(self, until: int) -> tuple[GeneratedToken, ...]:
        first, self.detokenizer.released = self.detokenizer.released, max(until, self.detokenizer.released)
        numbers = range(first, self.detokenizer.released)
        scored = self.request.top_logprobs is not None
        begins = self.detokenizer.begins(first, numbers.stop) if scored else [0] * len(numbers)
        return tuple(
            GeneratedToken(
                text=self.tracker.texts[n],
                readings=self._readings[n] if self.request.probes else (),
                part=self.tracker.part_of(n),
                piece=self.tracker.pieces[n] if self.tracker.marked else None,
                ends_unopened_thought=self.tracker.unopened == n,
                decoded=self._logprobs[n].decoded,
                begins=begins[n - first],
                logprob=self._logprobs[n].logprob,
                top_logprobs=self._logprobs[n].top_logprobs,
            )
            for n in numbers
        )
