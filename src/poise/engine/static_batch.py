"""One batch being generated to its end: forward, sample, postprocess, shrink.

A loop beside the continuous engine's, whose first lines say why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from poise.activations import Probe, by_layer
from poise.engine.answer_parts import AnswerParts
from poise.engine.grammar import AnswerConstraint, Grammar, constrain, too_complex
from poise.engine.kv_cache import roomy_cache, select_rows
from poise.engine.sampler import sample_tokens
from poise.engine.types import Generation, SamplingParams
from poise.errors import NonFiniteActivation
from poise.model import Encoded, Model
from poise.model.batching import pad
from poise.model.cached_pass import newest_logits
from poise.model.hooks import observe
from poise.steer import AppliedSteering, Steering, apply_steering

__all__ = ["StaticBatch"]

RUNNING_SHARE = 0.75  # drop finished rows from the batch once no more than this share is still running


class StaticBatch:
    """The state of one batch. B: rows, L: decoder blocks, d: model width, k: probes.

    Rows are left-padded, so that the last position of every row is its newest token. Finished rows are dropped from
    the batch in bulk; ``rows`` maps what still runs to the caller's order.
    """

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Encoded],
        sampling: SamplingParams,
        *,
        seeds: Sequence[int],
        steering: Sequence[Steering | None],
        probes: Sequence[Probe] = (),
        keep_means: bool = False,
        allow_other_model: bool = False,
        grammar: Grammar | None = None,
        may_think: bool = False,
    ) -> None:
        self.model, self.sampling = model, sampling
        self.steering = list(steering)
        self.allow_other_model = allow_other_model
        self.batch = pad(prompts, side="left", device=model.device)
        self.rows = list(range(len(prompts)))
        self.answers = [AnswerParts(model, prompt.ids) for prompt in prompts]
        self.constraints = [AnswerConstraint(grammar, model, may_think=may_think) for _ in prompts] if grammar else None
        self.finish: list[Literal["stop", "length"] | None] = [None] * len(prompts)
        self.means: dict[int, torch.Tensor] = {}
        self.passes: list[tuple[list[int], torch.Tensor]] = []  # a forward pass: which rows, their projections [B, k]
        self.probes_by_layer = by_layer(probes, model)
        self.probe_count = len(probes)
        self.draws = [np.random.Generator(np.random.Philox(key=seed)).random(sampling.max_new_tokens) for seed in seeds]
        self.sums = torch.zeros((len(prompts), model.layers, model.width), device=model.device) if keep_means else None
        self.summed = [0] * len(prompts)  # tokens in each row's sums
        self.resets = [0] * len(prompts)  # how often each row's sums were begun anew, since there is a thought
        self.weights: torch.Tensor | None = None  # float32 [B, 1], which rows' tokens the running pass adds to the sums
        self.decoding = False
        self.current = torch.empty(0)

    def steps(self) -> Generator[list[int]]:
        """Generate to the end; yields after every token with the rows that have just finished."""
        cache = roomy_cache(self.model.lm.config)
        need_states = self.sums is not None or bool(self.probes_by_layer)
        with contextlib.ExitStack() as hooks:
            applied = None
            if any(self.steering):
                applied = hooks.enter_context(
                    apply_steering(self.model, self.steering, allow_other_model=self.allow_other_model)
                )
            if need_states:
                layers = range(self.model.layers) if self.sums is not None else sorted(self.probes_by_layer)
                hooks.enter_context(observe(self.model, self._visit, list(layers)))
            logits = self._prefill(cache, applied)
            for step in range(self.sampling.max_new_tokens):
                tokens = self._sample(logits, step)
                finished = self._postprocess(tokens)
                last = step + 1 == self.sampling.max_new_tokens
                if last and need_states and not self._all_finished():
                    self._forward(cache, applied, tokens)
                if last:
                    finished += self._finish_all("length")
                yield finished
                if last or self._all_finished():
                    return
                tokens = self._drop_finished(cache, applied, tokens)
                logits = self._forward(cache, applied, tokens)

    def generations(self) -> list[Generation]:
        """The finished answers, in the caller's order."""
        blank = torch.full((self.model.layers, self.model.width), float("nan"))
        readings = self._readings()
        generations = []
        for row, answer in enumerate(self.answers):
            if self.probes_by_layer:
                answer.complete()
            text = answer.text
            generations.append(
                Generation(
                    ids=tuple(answer.tokens),
                    text=text,
                    finish=self.finish[row] or "length",
                    mean=self.means.get(row, blank) if self.sums is not None else None,
                    readings=readings[row][: len(answer.tokens) + 1] if self.probes_by_layer else None,
                    pieces=tuple(answer.tracker.pieces) if self.probes_by_layer else (),
                    parts=answer.parts,
                    thought=answer.thought,
                    reply=answer.reply,
                )
            )
        return generations

    def _readings(self) -> list[torch.Tensor]:
        """The passes sorted by row: float32 [1 + T, k] each."""
        by_row: list[list[torch.Tensor]] = [[] for _ in self.answers]
        for rows, values in self.passes:
            for row, value in zip(rows, values.cpu(), strict=True):
                by_row[row].append(value)
        return [torch.stack(values) if values else torch.empty(0) for values in by_row]

    def _prefill(self, cache: Any, applied: AppliedSteering | None) -> torch.Tensor:
        self.mask = self.batch.real.long() if self.batch.padded else None
        self.current = torch.empty((len(self.rows), self.probe_count), device=self.model.device)
        if applied:
            applied.announce(self.batch)
        logits = self._run(cache, self.batch.ids, self.batch.positions)
        self.position = self.batch.positions[:, -1:]
        self.decoding = True
        if applied:
            applied.decoding()
        return logits

    def _forward(self, cache: Any, applied: AppliedSteering | None, tokens: torch.Tensor) -> torch.Tensor:
        answers = [self.answers[row] for row in self.rows]
        marked = any(answer.marked for answer in answers)
        if applied:
            applied.announce_tokens([(a.part, a.place) for a in answers] if marked else None)
        if self.sums is not None:
            self._weigh(answers, marked=marked)
        self.position = self.position + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones((len(self.rows), 1))], dim=1)
        return self._run(cache, tokens.unsqueeze(1), self.position)

    def _weigh(self, answers: Sequence[AnswerParts], *, marked: bool) -> None:
        """Means are of replies: what was summed of an answer whose thought shows itself only now is left out."""
        assert self.sums is not None
        replies = [answer.part == "reply" for answer in answers]
        for at, (row, answer) in enumerate(zip(self.rows, answers, strict=True)):
            resets = answer.tracker.revision + answer.tracker.begins_marked
            if resets > self.resets[row]:
                self.resets[row] = resets
                self.sums[at] = 0
                self.summed[row] = 0
            self.summed[row] += replies[at] and self.finish[row] is None
        weights = torch.tensor(replies, dtype=torch.float32, device=self.sums.device).unsqueeze(1) if marked else None
        self.weights = weights

    def _run(self, cache: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One pass: logits of each row's last position, float32 [B, vocabulary]."""
        logits = newest_logits(self.model, cache, ids, self.mask, positions)
        if self.probes_by_layer:
            self.passes.append((self.rows, self.current))
            self.current = torch.empty_like(self.current)
        return logits

    def _visit(self, layer: int, h: torch.Tensor) -> None:
        newest = h[:, -1]
        if self.sums is not None and self.decoding:
            self.sums[:, layer] += newest if self.weights is None else newest * self.weights
        if layer in self.probes_by_layer:
            columns, directions = self.probes_by_layer[layer]
            self.current[:, columns] = newest.float() @ directions

    def _sample(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """The next token of each row, int64 [B]: greedy, or by the row's own random stream."""
        if not torch.isfinite(logits.amax(dim=-1)).all():
            raise NonFiniteActivation(
                f"{self.model.name} gave NaN or infinite logits at token {step}; steer with less strength, or "
                "load the model with dtype=torch.float32."
            )
        if self.constraints:
            running = [self.constraints[row] if self.finish[row] is None else None for row in self.rows]
            logits = constrain(logits, running, [self.answers[row].tracker for row in self.rows])
            if fault := next((each.fault for each in running if each and each.fault), ""):
                raise too_complex(fault, step)
        return sample_tokens(logits, [self.sampling] * len(self.rows), [self.draws[row][step] for row in self.rows])

    def _postprocess(self, tokens: torch.Tensor) -> list[int]:
        finished = []
        for at, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
            if self.finish[row] is not None:
                continue
            if token in self.model.stop_ids and not self.answers[row].tracker.goes_on(token):
                self._finish_row(at, row, "stop")
                finished.append(row)
            else:
                if self.constraints:
                    self.constraints[row].take(token, self.answers[row].tracker)
                self.answers[row].add(token)
        return finished

    def _finish_row(self, at: int, row: int, reason: Literal["stop", "length"]) -> None:
        self.finish[row] = reason
        self.answers[row].finish()
        if self.sums is not None and self.summed[row] and not self.answers[row].divided:
            self.means[row] = (self.sums[at] / self.summed[row]).cpu()

    def _finish_all(self, reason: Literal["stop", "length"]) -> list[int]:
        ended = [(at, row) for at, row in enumerate(self.rows) if self.finish[row] is None]
        for at, row in ended:
            self._finish_row(at, row, reason)
        return [row for _, row in ended]

    def _all_finished(self) -> bool:
        return all(self.finish)

    def _drop_finished(self, cache: Any, applied: AppliedSteering | None, tokens: torch.Tensor) -> torch.Tensor:
        """Drop finished rows once they are many enough to be worth copying the cache."""
        running = [at for at, row in enumerate(self.rows) if self.finish[row] is None]
        if len(running) > RUNNING_SHARE * len(self.rows):
            return tokens
        at = torch.tensor(running, device=tokens.device)
        select_rows(cache, at)
        if applied:
            applied.select(at)
        self.rows = [self.rows[i] for i in running]
        self.position, self.current = self.position[at], self.current[at]
        self.sums = self.sums[at] if self.sums is not None else None
        self.mask = self.mask[at] if self.mask is not None else None
        return tokens[at]
