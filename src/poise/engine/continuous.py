"""Continuous batching: sequences join the running batch between two tokens and leave it as soon as they end.

``step`` = schedule, prefill, and for what runs: forward, sample, postprocess. Every sequence has its own steering,
probes, sampling and length, and gives what it would give alone. New sequences are read as a batch of their own; their
cache is then written into free slots of the running one, aligned at its end, where the next token of every row goes.

Sequences are admitted by what they use of the cache, not by what they may come to use. Where it grows full, or a client
waits while another has several answers under way, the newest sequence of the client that has most is put aside, cache
and all, and goes on later as if nothing had happened. Long prompts are read a part at a step, and what an earlier text
began with is not read again. Long sequences run in a batch of their own where padding all to them would not fit.

By hand, because steering, probes and sampling belong to each row of one batch. Static batches
(``poise.engine.static_batch``) are a second loop, not a case of this one: they sum activations at every layer for
response means, take the readings as one tensor at the end instead of a list at every token, and carry no text, stop
strings or slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

import torch

from poise.engine.batch_groups import give_up_slots, group_cost, padded_positions, plan_groups, regroup
from poise.engine.cache_memory import pass_positions
from poise.engine.kv_cache import cache_budget, check_room, joinable, roomy_cache
from poise.engine.model_pass import ModelPass, postprocess, sample_next
from poise.engine.prefix_cache import PrefixCache
from poise.engine.prompt_reading import (
    PromptPart,
    PromptReading,
    can_read_in_parts,
    keep_answers,
    keep_prompts,
    match_prefix,
    prompts_in_one_pass,
)
from poise.engine.running_batch import RunningBatch, SteeredGroup
from poise.engine.sequence import Sequence
from poise.engine.types import EngineOutput, GeneratedToken, GenerationRequest, check_count
from poise.engine.waiting import WaitingSequences, to_put_aside
from poise.errors import InvalidArgument
from poise.model import Model
from poise.model.adapter_structure import adapters_in_force
from poise.model.self_check import require_cache
from poise.steer import AppliedSteering, Steering
from poise.vector import PersonaVector

__all__ = ["ContinuousEngine"]

PREFILL_CPU = 2048  # padded prompt tokens read between two tokens of the others
PREFILL_GPU = 16384
PROMPTS_CPU = 512  # of them in one pass, after which its sequences have their first token
PROMPTS_GPU = 4096
PREFIX_SHARE = 0.5  # of the cache that what was read before may take while nobody else needs it
MOVING_SHARE = 0.25  # of a pass, which is to be saved at every token before rows are moved between batches
HEADROOM = 64  # positions that a sequence is to find when it begins


class ContinuousEngine:
    """Generates requests that arrive and leave, with a model in this process; see ``poise.engine.StepEngine``.

    Args:
        model: Model in evaluation mode.
        batch: Most sequences at once.
        budget: Most cached tokens at once, padding included; default by device.
        allow_other_model: Let vectors of another model steer.

    Raises:
        InvalidArgument: ``batch`` or ``budget`` is below 1.
        UnsuitableModel: Cached steps of this model do not give what the whole text gives.
    """

    def __init__(
        self, model: Model, *, batch: int = 32, budget: int | None = None, allow_other_model: bool = False
    ) -> None:
        check_count("batch", batch)
        if budget is not None:
            check_count("budget", budget)
        self.pads_left = not require_cache(model).padding_fault
        self.model, self.max_sequences = model, batch
        self.budget = budget or cache_budget(model)
        self.prefill_budget = PREFILL_CPU if model.device.type == "cpu" else PREFILL_GPU
        self.prompt_budget = PROMPTS_CPU if model.device.type == "cpu" else PROMPTS_GPU
        self.allow_other_model = allow_other_model
        self._joins = self.pads_left and joinable(roomy_cache(model.lm.config))
        self._checked: WeakKeyDictionary[PersonaVector, str] = WeakKeyDictionary()
        self._waiting = WaitingSequences()
        self._reading: PromptReading | None = None
        self._batches: list[RunningBatch] = []
        self._added = self._prefilled = 0
        self._pass_cost = pass_positions(model)
        self._pass = ModelPass(model)
        self.prefixes = PrefixCache(int(self.budget * PREFIX_SHARE) if self._joins else 0)

    @property
    def waiting(self) -> int:
        """Number of requests that have not begun."""
        return len(self._waiting.new) + (self._reading is not None)

    @property
    def running(self) -> int:
        """Number of answers that are being generated, those put aside among them."""
        return len(self._running) + len(self._waiting.aside)

    def check(self, request: GenerationRequest) -> None:
        """Raise where a request cannot be run; see ``poise.engine.StepEngine``."""
        prompt, new = len(request.prompt.ids), request.sampling.max_new_tokens
        if not prompt:
            raise InvalidArgument("The prompt is empty; give at least one token.")
        check_room(self.model, prompt, new)
        terms = request.steering.terms if request.steering else ()
        for vector in {id(v): v for t in terms for v in (t.vector, *([t.when.vector] if t.when else []))}.values():
            in_force = adapters_in_force(self.model.lm)  # hashing what they add takes tens of milliseconds a request
            if self._checked.get(vector) != in_force:
                vector.check_model(self.model, allow_other_model=self.allow_other_model)
                self._checked[vector] = in_force

    def add(self, key: Hashable, request: GenerationRequest) -> None:
        """Queue a request that has been checked; it begins at one of the next steps."""
        self._added += 1
        self._waiting.new.append(Sequence(key, request, self.model, self._added))

    @torch.inference_mode()
    def abort(self, key: Hashable) -> None:
        """Drop a request, waiting or running; it gives no further output."""
        self._waiting.drop(key)
        if self._reading and self._reading.sequence.key == key:
            self._reading = None
        self._remove([sequence for sequence in self._running if sequence.key == key])

    def steer(self, key: Hashable, steering: Steering) -> None:
        """Add this steering to an answer's own, from its next token on."""
        for batch in (*self._batches, *self._waiting.aside):
            if sequences := [sequence for sequence in batch.sequences if sequence.key == key]:
                applied = AppliedSteering(self.model, [steering] * len(sequences))
                applied.decoding(after=sequences[0].cached_tokens - len(sequences[0].request.prompt.ids))
                batch.groups.append(SteeredGroup(applied, sequences))

    def cut(self, key: Hashable, tokens: int) -> tuple[GeneratedToken, ...]:
        """End a running answer after so many tokens, which have been read; those of them that were not released yet."""
        sequences = [s for batch in (*self._batches, *self._waiting.aside) for s in batch.sequences if s.key == key]
        released = tuple(token for sequence in sequences for token in sequence.cut(tokens))
        self.abort(key)
        return released

    @torch.inference_mode()
    def step(self) -> list[EngineOutput]:
        """Start the requests that fit, and generate one token of each running answer.

        An error in a pass ends the sequences that were in it, and their outputs say so; the engine goes on.
        """
        outputs: list[EngineOutput] = []
        any_running = bool(self._running)
        if scheduled := self._schedule():
            outputs += self._start(scheduled)
        if self._reading:
            outputs += self._read_part(self._reading)
        elif scheduled and self._waiting.new and self._prefilled < self.prefill_budget:
            return outputs  # more prompts can be read before the others go on
        if any_running:
            outputs += self._continue()
        self._prefilled = 0
        return outputs

    def _continue(self) -> list[EngineOutput]:
        """One token of each running answer that the cache has room for."""
        while self._joins and len(running := self._running) > 1 and not self._has_room(running, 1):
            self._put_aside(to_put_aside(running))
        self._leave_room(self._running)
        outputs = self._lost_in(self._arrange, self._running)
        outputs += self._lost_in(lambda: give_up_slots(self._batches, self.budget), self._running)
        for batch in list(self._batches):
            try:
                outputs += self._decode(batch)
            except Exception as error:  # whatever it was, these sequences are lost and the next ones need not be
                self._batches.remove(batch)
                outputs += [EngineOutput(key=sequence.key, error=error) for sequence in batch.sequences]
        return outputs

    def _arrange(self) -> None:
        """Have the running rows in the batches that cost least; they move where that saves a good part of a pass."""
        running, widths = self._running, [sequence.cached_tokens + 1 for sequence in self._running]
        if not self._joins or len(running) < 2:
            return
        wanted = self._groups(running, HEADROOM) or self._groups(running, 1) or [running]
        number = {sequence: row for row, sequence in enumerate(running)}
        present = [[number[sequence] for sequence in batch.sequences] for batch in self._batches]
        planned = [[number[sequence] for sequence in group] for group in wanted]
        saved = group_cost(present, widths, self._pass_cost) - group_cost(planned, widths, self._pass_cost)
        if saved > MOVING_SHARE * self._pass_cost or padded_positions(present, widths) > self.budget:
            self._batches = regroup(self._batches, wanted, refill=self._others_wait)

    def _groups(self, sequences: list[Sequence], ahead: int) -> list[list[Sequence]] | None:
        """The sequences that share a batch each, so that the cache holds them for a while; ``None`` where it cannot."""
        widths = [min(each.cached_tokens + ahead, each.max_tokens) for each in sequences]
        groups = plan_groups(widths, self.budget, self._pass_cost)
        return None if groups is None else [[sequences[row] for row in group] for group in groups]

    def _lost_in(self, work: Callable[[], None], sequences: list[Sequence]) -> list[EngineOutput]:
        """Do what may leave the running batches half changed, so that none of these can go on; errors if it fails."""
        try:
            work()
        except Exception as error:  # as in ``step``
            self._batches = []
            return [EngineOutput(key=key, error=error) for key in {sequence.key: sequence for sequence in sequences}]
        return []

    @property
    def _running(self) -> list[Sequence]:
        return [sequence for batch in self._batches for sequence in batch.sequences]

    @property
    def _others_wait(self) -> bool:
        return bool(self._waiting.new or self._waiting.aside)

    def _schedule(self) -> list[Sequence]:
        """The sequences to be read now; what was put aside and fits again is back when they are known."""
        if self._running and not self._joins:
            return []
        scheduled: list[Sequence] = []
        active = self._running + ([self._reading.sequence] if self._reading else [])
        while upcoming := self._waiting.next(active, self._may_begin):
            sequence, aside = upcoming
            if scheduled and not aside and not self._reads_beside(sequence, scheduled):
                break
            if not (self._fits(sequence, active) or self._make_room(sequence, active)):
                break
            self._waiting.take(sequence)
            self._match(sequence)
            if aside:
                self._join(aside)
            elif self._is_read_in_parts(sequence):
                self._reading = PromptReading(sequence, self.model, self.prefixes)
            else:
                scheduled.append(sequence)
            waiting_aside = set(self._waiting.sequences_aside)
            active = [each for each in (*active, sequence) if each not in waiting_aside]
        self._leave_room(active)
        return scheduled

    def _leave_room(self, sequences: list[Sequence]) -> None:
        """What was read before is forgotten before anybody has to wait for its place."""
        widths = [each.cached_tokens + 1 for each in sequences]
        groups = plan_groups(widths, self.budget, self._pass_cost)
        self.prefixes.leave(0 if groups is None else self.budget - padded_positions(groups, widths))

    def _may_begin(self, sequence: Sequence) -> bool:
        """One long prompt is read at a time; short ones need not wait for it."""
        return not (self._reading and self._is_read_in_parts(sequence))

    def _is_read_in_parts(self, sequence: Sequence) -> bool:
        if len(sequence.request.prompt.ids) <= self.prompt_budget:
            return False
        self._match(sequence)
        long = sequence.unread_tokens > self.prompt_budget
        return long and self._joins and can_read_in_parts(sequence.request, self.model)

    def _reads_beside(self, sequence: Sequence, scheduled: list[Sequence]) -> bool:
        """Whether a prompt can be read in one pass with others."""
        self._match(sequence)
        lengths = [each.unread_tokens for each in (*scheduled, sequence)]
        widths = [len(each.request.prompt.ids) for each in (*scheduled, sequence)]
        padding = len(widths) * max(widths) - sum(widths)  # more than what is read where some is known already
        if padding > self.prefill_budget or len(lengths) * max(lengths) > self.prompt_budget:
            return False
        return self.pads_left or len(set(lengths)) == 1

    def _match(self, sequence: Sequence) -> None:
        if self._joins and self.prefixes.capacity:
            match_prefix(sequence, self.model, self.prefixes)

    def _fits(self, sequence: Sequence, active: list[Sequence]) -> bool:
        """Whether a sequence can run beside others."""
        if any(self._is_long(other) != self._is_long(sequence) for other in active[:1]):
            return False
        return len(active) < self.max_sequences and self._has_room([*active, sequence], HEADROOM)

    def _has_room(self, sequences: list[Sequence], ahead: int) -> bool:
        """Whether the cache holds these for a while; one alone may take all of it."""
        if self._joins:
            return len(sequences) == 1 or self._groups(sequences, ahead) is not None
        width = max(each.max_tokens for each in sequences)  # nothing could be put aside later on, nor moved
        return len(sequences) == 1 or len(sequences) * width <= self.budget

    def _make_room(self, sequence: Sequence, active: list[Sequence]) -> bool:
        """Put answers of the client that has most aside, for one that has at least two fewer; or do nothing."""
        remaining, chosen = list(active), list[Sequence]()
        running = set(self._running) if self._joins else set()
        while not self._fits(sequence, remaining):
            candidates = [each for each in remaining if each in running]
            if not candidates:
                return False
            newest = to_put_aside(candidates)
            clients = Counter(each.request.client for each in remaining)
            if clients[newest.request.client] - clients[sequence.request.client] < 2:
                return False
            remaining.remove(newest)
            chosen.append(newest)
        for each in chosen:
            self._put_aside(each)
        return True

    def _put_aside(self, sequence: Sequence) -> None:
        for batch in self._batches:
            if sequence in batch.sequences:
                self._waiting.aside.append(batch.take_out(sequence))
        self._remove([sequence])

    def _is_long(self, sequence: Sequence) -> bool:
        """On which side of the rotary embeddings' switch a sequence runs, to its end."""
        return self.model.rotary_switch.is_long(len(sequence.request.prompt.ids))

    def _start(self, scheduled: list[Sequence]) -> list[EngineOutput]:
        """Read the scheduled prompts; where that fails, one by one, so that only the culprit does."""
        try:
            fresh, outputs = self._prefill(scheduled)
        except Exception as error:  # as in ``step``
            if len(scheduled) == 1:
                return [EngineOutput(key=scheduled[0].key, error=error)]
            return [output for sequence in scheduled for output in self._retry(sequence.restarted())]
        return self._begin(fresh, outputs)

    def _begin(self, fresh: RunningBatch, outputs: list[EngineOutput]) -> list[EngineOutput]:
        """Let a batch that has been read run; its outputs, or the errors of all that are lost."""
        scheduled = fresh.sequences

        def join() -> None:
            self._join(fresh)
            self._remove([sequence for sequence in scheduled if sequence.finished])

        return self._lost_in(join, [*self._running, *scheduled]) or outputs

    def _read_part(self, reading: PromptReading) -> list[EngineOutput]:
        """Read the next part of a long prompt; its answer begins with the last one."""
        try:
            part = reading.advance(self.prompt_budget)
            logits, readings = self._pass.run(reading.batch, part)
            keep_prompts(self.prefixes, reading.batch, logits)
            if not reading.done:
                return []
            outputs = self._first_tokens(reading.batch, logits, readings)
        except Exception as error:  # as in ``step``
            self._reading = None
            return [EngineOutput(key=reading.sequence.key, error=error)]
        self._reading = None
        return self._begin(reading.batch, outputs)

    def _first_tokens(
        self, fresh: RunningBatch, logits: torch.Tensor, readings: dict[Sequence, tuple[float, ...]]
    ) -> list[EngineOutput]:
        fresh.unsteer({sequence for sequence in fresh.sequences if not sequence.request.steering})
        for group in fresh.groups:
            group.applied.decoding()
        return postprocess(fresh, logits, sample_next(fresh, logits), readings)

    def _retry(self, sequence: Sequence) -> list[EngineOutput]:
        if self._batches and not self._joins:
            self._waiting.new.append(sequence)
            return []
        return self._start([sequence])

    def _prefill(self, sequences: list[Sequence]) -> tuple[RunningBatch, list[EngineOutput]]:
        fresh, part = prompts_in_one_pass(sequences, self.model, self.prefixes)
        logits, readings = self._pass.run(fresh, part)
        self._prefilled += part.ids.numel()
        keep_prompts(self.prefixes, fresh, logits)
        return fresh, self._first_tokens(fresh, logits, readings)

    def _decode(self, batch: RunningBatch) -> list[EngineOutput]:
        batch.position = batch.position + 1
        if not self._is_long(batch.sequences[0]):  # a free slot runs on, and must not reach the switch for the others
            batch.position = batch.position.clamp(max=self.model.rotary_switch.tokens - 1)
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones((len(batch.slots), 1))], dim=1)
        for group in batch.groups:
            trackers = [sequence.tracker for sequence in group.sequences]
            marked = any(tracker.marked for tracker in trackers)
            group.applied.announce_tokens([(t.part, t.place) for t in trackers] if marked else None)
        part = PromptPart(ids=batch.next_tokens.unsqueeze(1), positions=batch.position, mask=batch.mask)
        logits, readings = self._pass.run(batch, part)
        outputs = postprocess(batch, logits, sample_next(batch, logits), readings)
        keep_answers(self.prefixes, batch)
        self._remove([sequence for sequence in batch.sequences if sequence.finished])
        return outputs

    def _join(self, fresh: RunningBatch) -> None:
        """Put a batch that has just been read, or was put aside, beside what runs."""
        self._batches.append(fresh)
        self._arrange()

    def _remove(self, sequences: list[Sequence]) -> None:
        """Free the slots of these sequences, and what no other needs."""
        removed = set(sequences)
        for batch in self._batches:
            if not removed.isdisjoint(batch.sequences):
                batch.remove(removed, refill=self._others_wait)
        self._batches = [batch for batch in self._batches if batch.sequences]
