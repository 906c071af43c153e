"""How likely a model finds given texts, token by token, steered as it is while it answers; a pass at a time.

Each pass reads a bounded number of tokens, since every one of them takes a whole vocabulary of logits, so that whoever
owns the model can do other work between two passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from poise.engine.kv_cache import joinable, roomy_cache
from poise.errors import InvalidArgument, InvalidSteering, NonFiniteActivation
from poise.model import Encoded, Model
from poise.model.batching import pad
from poise.model.cached_pass import all_logits
from poise.model.rotary import plan_rows
from poise.steer import AppliedSteering, Steering
from poise.steer.joined_rows import SteeredRows, apply_joined_steering

__all__ = ["PromptScoring", "TextScores"]

PASS_CPU, PASS_GPU = 512, 2048  # tokens read in one pass
WHOLE_CPU, WHOLE_GPU = 2048, 8192  # most tokens of a text that cannot be read in parts
ROWS_A_PASS = 64


@dataclass(frozen=True, slots=True, eq=False)
class TextScores:
    """How likely the tokens of a text were. T: its tokens, of which nothing says how likely the first is.

    Attributes:
        logprobs: Log-probability of each token but the first given all before it, float32 [T - 1].
        top_ids: The likeliest tokens at each of these places, int64 [T - 1, top].
        top_logprobs: Their log-probabilities, float32 [T - 1, top].
    """

    logprobs: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one pass reads: these texts whole, or tokens ``first`` to ``last`` of one of them."""

    rows: list[int]
    first: int
    last: int


class PromptScoring:
    """Scores of texts that are given, as if the model had answered with them: all of their tokens are response.

    Args:
        model: Model in evaluation mode.
        texts: Token ids of each text, at least one.
        steering: Steering in force. Terms for thoughts do nothing, since nothing says that a text is one.
        top: Likeliest tokens to give beside each one.
        pass_tokens: Most tokens read in one pass; default by device.

    Raises:
        InvalidSteering: A term is for the prompt or waits for what it reads, and here is none.
        InvalidArgument: A text cannot be read in parts and is too long to be read at once.
    """

    def __init__(
        self,
        model: Model,
        texts: Sequence[Sequence[int]],
        *,
        steering: Steering | None = None,
        top: int = 0,
        pass_tokens: int | None = None,
    ) -> None:
        on_cpu = model.device.type == "cpu"
        self.model, self.texts, self.top = model, [tuple(text) for text in texts], top
        self.steering = _for_replies(steering)
        self._most = pass_tokens or (PASS_CPU if on_cpu else PASS_GPU)
        self._whole = max(WHOLE_CPU if on_cpu else WHOLE_GPU, self._most)
        self._passes = self._plan()
        self._done = 0
        self._cache: DynamicCache | None = None
        self._scores: list[list[TextScores]] = [[] for _ in texts]

    @property
    def passes(self) -> int:
        """Number of passes in all."""
        return len(self._passes)

    @property
    def done(self) -> bool:
        """Whether all texts have been read."""
        return self._done == len(self._passes)

    @property
    def scores(self) -> list[TextScores]:
        """Those of each text, as far as it has been read."""
        return [
            TextScores(*(torch.cat(column) for column in zip(*map(_columns, parts), strict=True)))
            for parts in self._scores
        ]

    @torch.inference_mode()
    def advance(self) -> None:
        """Run the next pass.

        Raises:
            NonFiniteActivation: The model gave NaN or infinite logits.
        """
        upcoming = self._passes[self._done]
        in_parts = upcoming.last - upcoming.first < len(self.texts[upcoming.rows[0]])
        if upcoming.first == 0:
            self._cache = roomy_cache(self.model.lm.config) if in_parts else None
        parts = [self.texts[row][upcoming.first : upcoming.last] for row in upcoming.rows]
        batch = pad([Encoded(ids, 0, len(ids)) for ids in parts], side="right", device=self.model.device)
        steered = []
        if self.steering:
            applied = AppliedSteering(self.model, [self.steering] * len(parts))
            applied.announce(batch)
            steered = [SteeredRows(applied)]
        mask = positions = None
        if in_parts:
            positions = torch.arange(upcoming.first, upcoming.last, device=self.model.device).unsqueeze(0)
            mask = torch.ones((1, upcoming.last), dtype=torch.long, device=self.model.device)
        with apply_joined_steering(self.model, steered):
            logits = all_logits(self.model, self._cache, batch.ids, mask, positions)
        for row, row_logits in zip(upcoming.rows, logits, strict=True):
            following = self.texts[row][upcoming.first + 1 : upcoming.last + 1]
            self._scores[row].append(self._score(row_logits[: len(following)], following))
        self._done += 1
        if self.done or self._passes[self._done].first == 0:
            self._cache = None

    def _score(self, logits: torch.Tensor, following: Sequence[int]) -> TextScores:
        logprobs = logits.float().log_softmax(-1)
        if not bool(torch.isfinite(logprobs.amax(-1)).all()):
            raise NonFiniteActivation(
                f"{self.model.name} gave NaN or infinite logits on this text; steer with less strength, or load the "
                "model with dtype=torch.float32."
            )
        tokens = torch.tensor(following, dtype=torch.long, device=logits.device).unsqueeze(-1)
        best = logprobs.topk(self.top, dim=-1)
        return TextScores(logprobs.gather(-1, tokens).squeeze(-1).cpu(), best.indices.cpu(), best.values.cpu())

    def _plan(self) -> list[_Pass]:
        lengths = [len(text) for text in self.texts]
        passes = []
        for rows in plan_rows(
            self.model.rotary_switch, lengths, budget=self._most, most=ROWS_A_PASS, name=self.model.name
        ):
            longest = lengths[rows[0]]
            if longest <= self._most or not (in_parts := self._can_be_read_in_parts(longest)):
                self._check_length(longest)
                passes.append(_Pass(rows, 0, longest))
            elif in_parts:
                starts = range(0, longest, self._most)
                passes += [_Pass(rows, first, min(first + self._most, longest)) for first in starts]
        return passes

    def _can_be_read_in_parts(self, length: int) -> bool:
        """Not where frequencies depend on the length, the cache cannot grow, or steering counts the tokens."""
        scheduled = self.steering is not None and any(term.scheduled for term in self.steering.terms)
        long = self.model.rotary_switch.is_long(length)
        return not (scheduled or long) and joinable(roomy_cache(self.model.lm.config))

    def _check_length(self, length: int) -> None:
        if length > self._whole:
            raise InvalidArgument(
                f"A text of {length} tokens cannot be scored in parts on {self.model.name} or under this steering, "
                f"and at most {self._whole} tokens are read at once; give a shorter text."
            )


def _columns(scores: TextScores) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return scores.logprobs, scores.top_ids, scores.top_logprobs


def _for_replies(steering: Steering | None) -> Steering | None:
    """The terms that act on a reply."""
    terms = tuple(term for term in steering.terms if term.part != "thought") if steering else ()
    for term in terms:
        if term.phase == "prompt" or (term.when and term.when.reading == "prompt"):
            how = "on the prompt" if term.phase == "prompt" else "if the prompt reads so"
            raise InvalidSteering(
                f"{term.vector.name} is steered {how}, and all of a text that is scored counts as response; steer it "
                "on the response."
            )
    return Steering(terms) if terms else None
