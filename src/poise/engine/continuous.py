"""Continuous batching: sequences join the running batch between two tokens and leave it as soon as they end.

``step`` = schedule, prefill, and for what runs: forward, sample, postprocess. Every sequence has its own steering,
probes, sampling and length, and gives what it would give alone. New sequences are read as a batch of their own; their
cache is then written into free slots of the running one, aligned at its end, where the next token of every row goes.

By hand, because steering, probes and sampling belong to each row of one batch. Static batches
(``poise.engine.static_batch``) are a second loop, not a case of this one: they sum activations at every layer for
response means, take the readings as one tensor at the end instead of a list at every token, and carry no text, stop
strings or slots.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch

from poise.activations import Probe, by_layer
from poise.engine.kv_cache import cache_budget, check_room, join, joinable, roomy_cache, select_rows, trim
from poise.engine.sampler import sample_tokens
from poise.engine.sequence import Sequence, SequenceStatus
from poise.engine.types import EngineOutput, GenerationRequest, check_count
from poise.errors import InvalidArgument, NonFiniteActivation
from poise.model import Model
from poise.model.adapter_structure import adapters_in_force
from poise.model.batching import pad
from poise.model.cached_pass import newest_logits
from poise.model.hooks import observe
from poise.model.self_check import require_cache
from poise.steer import AppliedSteering, Steering
from poise.steer.joined_rows import SteeredRows, apply_joined_steering
from poise.vector import PersonaVector

__all__ = ["ContinuousEngine"]

PREFILL_CPU = 2048  # padded prompt tokens read at once, while the others wait
PREFILL_GPU = 16384
ProbesByLayer = dict[int, tuple[list[int], torch.Tensor]]
FREE_SHARE = 0.25  # free slots are run along with the others until they are more than this share


@dataclass(slots=True, eq=False)
class SteeredGroup:
    """Sequences that began together, and what steers them; ``part`` is known while none joins or leaves."""

    applied: AppliedSteering
    sequences: list[Sequence]
    part: SteeredRows | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class RunningBatch:
    """The running sequences. S: slots, W: cached positions. Every row ends at the same position; a free slot runs idly.

    Attributes:
        slots: Sequence in each slot; ``None`` for a free one.
        cache: Key-value cache of S rows and W positions.
        mask: int64 [S, W], 0 on padding.
        position: Position of each slot's newest cached token, int64 [S, 1].
        next_tokens: Tokens that the next pass takes in, int64 [S].
        groups: Steered groups in the order in which they are applied.
    """

    slots: list[Sequence | None]
    cache: Any
    mask: torch.Tensor
    position: torch.Tensor
    next_tokens: torch.Tensor
    groups: list[SteeredGroup] = field(default_factory=list)

    @property
    def sequences(self) -> list[Sequence]:
        """Those that run, in the order of their slots."""
        return [sequence for sequence in self.slots if sequence is not None]


class ContinuousEngine:
    """Generates requests that arrive and leave, with a model in this process; see ``poise.engine.StepEngine``.

    Args:
        model: Model in evaluation mode.
        batch: Most sequences at once.
        budget: Most cached tokens at once, by the longest that each sequence may become; default by device.
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
        self.allow_other_model = allow_other_model
        self._checked: WeakKeyDictionary[PersonaVector, str] = WeakKeyDictionary()
        self._waiting: deque[Sequence] = deque()
        self._batch: RunningBatch | None = None
        self._last_probes: tuple[list[Probe], ProbesByLayer] = ([], {})

    @property
    def waiting(self) -> int:
        """Number of requests that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of answers that are being generated."""
        return len(self._running)

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
        self._waiting.append(Sequence(key, request, self.model))

    @torch.inference_mode()
    def abort(self, key: Hashable) -> None:
        """Drop a request, waiting or running; it gives no further output."""
        self._waiting = deque(sequence for sequence in self._waiting if sequence.key != key)
        self._remove([sequence for sequence in self._running if sequence.key == key])

    def steer(self, key: Hashable, steering: Steering) -> None:
        """Add this steering to an answer's own, from its next token on."""
        sequences = [sequence for sequence in self._running if sequence.key == key]
        if self._batch and sequences:
            applied = AppliedSteering(self.model, [steering] * len(sequences))
            applied.decoding()
            self._batch.groups.append(SteeredGroup(applied, sequences))

    @torch.inference_mode()
    def step(self) -> list[EngineOutput]:
        """Start the requests that fit, and generate one token of each running answer.

        An error in a pass ends the sequences that were in it, and their outputs say so; the engine goes on.
        """
        outputs: list[EngineOutput] = []
        any_running = bool(self._running)
        if scheduled := self._schedule():
            outputs += self._start(scheduled)
        if any_running and self._batch:
            try:
                outputs += self._decode(self._batch)
            except Exception as error:  # whatever it was, these sequences are lost and the next ones need not be
                outputs += [EngineOutput(key=sequence.key, error=error) for sequence in self._running]
                self._batch = None
        return outputs

    @property
    def _running(self) -> list[Sequence]:
        return self._batch.sequences if self._batch else []

    def _schedule(self) -> list[Sequence]:
        """The longest-waiting requests that fit beside what runs."""
        running = self._running
        if running and self._batch and not (self.pads_left and joinable(self._batch.cache)):
            return []
        longest, scheduled = max((sequence.max_tokens for sequence in running), default=0), list[Sequence]()
        while self._waiting and len(running) + len(scheduled) < self.max_sequences:
            sequence = self._waiting[0]
            if self._is_long(sequence) != self._is_long([*running, *scheduled, sequence][0]):
                break
            rows, longest = len(running) + len(scheduled) + 1, max(longest, sequence.max_tokens)
            prefill = (len(scheduled) + 1) * max(len(s.request.prompt.ids) for s in (*scheduled, sequence))
            if (rows > 1 and rows * longest > self.budget) or (scheduled and prefill > self.prefill_budget):
                break
            if (
                scheduled
                and not self.pads_left
                and len(sequence.request.prompt.ids) != len(scheduled[0].request.prompt.ids)
            ):
                break
            scheduled.append(self._waiting.popleft())
        return scheduled

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
        try:
            self._join(fresh)
            self._remove([sequence for sequence in scheduled if sequence.finished])
        except Exception as error:  # the running batch may be half changed, so that none can go on
            lost = {sequence.key: sequence for sequence in (*self._running, *scheduled)}
            self._batch = None
            return [EngineOutput(key=key, error=error) for key in lost]
        return outputs

    def _retry(self, sequence: Sequence) -> list[EngineOutput]:
        if self._batch and not joinable(self._batch.cache):
            self._waiting.append(sequence)
            return []
        return self._start([sequence])

    def _prefill(self, sequences: list[Sequence]) -> tuple[RunningBatch, list[EngineOutput]]:
        padded = pad([sequence.request.prompt for sequence in sequences], side="left", device=self.model.device)
        fresh = RunningBatch(
            slots=list(sequences),
            cache=roomy_cache(self.model.lm.config),
            mask=padded.real.long(),
            position=padded.positions[:, -1:],
            next_tokens=padded.ids[:, -1],
        )
        if any(sequence.request.steering for sequence in sequences):
            applied = AppliedSteering(self.model, [sequence.request.steering for sequence in sequences])
            applied.announce(padded)
            fresh.groups = [SteeredGroup(applied, sequences)]
        mask = fresh.mask if padded.padded else None
        logits, readings = self._forward(fresh, padded.ids, mask, padded.positions)
        fresh.groups = _groups_without(fresh, {sequence for sequence in sequences if not sequence.request.steering})
        for group in fresh.groups:
            group.applied.decoding()
        return fresh, self._postprocess(fresh, logits, self._sample(fresh, logits), readings)

    def _decode(self, batch: RunningBatch) -> list[EngineOutput]:
        batch.position = batch.position + 1
        if not self._is_long(batch.sequences[0]):  # a free slot runs on, and must not reach the switch for the others
            batch.position = batch.position.clamp(max=self.model.rotary_switch.tokens - 1)
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones((len(batch.slots), 1))], dim=1)
        for group in batch.groups:
            trackers = [sequence.tracker for sequence in group.sequences]
            marked = any(tracker.marked for tracker in trackers)
            group.applied.announce_tokens([(t.part, t.place) for t in trackers] if marked else None)
        logits, readings = self._forward(batch, batch.next_tokens.unsqueeze(1), batch.mask, batch.position)
        outputs = self._postprocess(batch, logits, self._sample(batch, logits), readings)
        self._remove([sequence for sequence in batch.sequences if sequence.finished])
        return outputs

    def _forward(
        self, batch: RunningBatch, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor
    ) -> tuple[torch.Tensor, dict[Sequence, tuple[float, ...]]]:
        """Logits float32 [S, vocabulary], and every sequence's projections on its own probes."""
        probes: dict[Probe, int] = {}
        for sequence in batch.sequences:
            for probe in sequence.request.probes:
                probes.setdefault(probe, len(probes))
        if list(probes) != self._last_probes[0]:
            self._last_probes = (list(probes), by_layer(list(probes), self.model))
        probes_by_layer = self._last_probes[1]
        values = torch.empty((len(ids), len(probes)), device=self.model.device)

        def visit(layer: int, h: torch.Tensor) -> None:
            columns, directions = probes_by_layer[layer]
            values[:, columns] = h[:, -1].float() @ directions

        with contextlib.ExitStack() as hooks:
            hooks.enter_context(apply_joined_steering(self.model, [_part_of(group, batch) for group in batch.groups]))
            if probes:
                hooks.enter_context(observe(self.model, visit, sorted(probes_by_layer)))
            logits = newest_logits(self.model, batch.cache, ids, mask, positions)
        rows = values.tolist()
        return logits, {
            sequence: tuple(rows[slot][probes[p]] for p in sequence.request.probes)
            for slot, sequence in enumerate(batch.slots)
            if sequence is not None
        }

    def _sample(self, batch: RunningBatch, logits: torch.Tensor) -> list[int]:
        """The next token of every sequence, in the order of their slots; the batch takes them in at its next pass."""
        slots = torch.tensor([n for n, s in enumerate(batch.slots) if s is not None], device=logits.device)
        sequences = batch.sequences
        live_logits = logits if len(sequences) == len(batch.slots) else logits[slots]
        tokens = sample_tokens(live_logits, [s.request.sampling for s in sequences], [s.draw() for s in sequences])
        batch.next_tokens = batch.next_tokens.new_zeros(len(batch.slots)).index_copy(0, slots, tokens)
        return tokens.tolist()

    def _postprocess(
        self,
        batch: RunningBatch,
        logits: torch.Tensor,
        tokens: list[int],
        readings: dict[Sequence, tuple[float, ...]],
    ) -> list[EngineOutput]:
        """Give every sequence its token and readings; what each can release."""
        finite = torch.isfinite(logits.amax(dim=-1)).tolist()
        outputs = []
        live = [(slot, sequence) for slot, sequence in enumerate(batch.slots) if sequence is not None]
        for (slot, sequence), token in zip(live, tokens, strict=True):
            if not finite[slot]:
                sequence.status = SequenceStatus.FINISHED
                outputs.append(EngineOutput(key=sequence.key, error=self._non_finite(sequence)))
            elif output := sequence.append(token, logits[slot], readings[sequence]):
                outputs.append(output)
        return outputs

    def _non_finite(self, sequence: Sequence) -> NonFiniteActivation:
        return NonFiniteActivation(
            f"{self.model.name} gave NaN or infinite logits at token {len(sequence.detokenizer.tokens)}; steer with "
            "less strength, or load the model with dtype=torch.float32."
        )

    def _join(self, fresh: RunningBatch) -> None:
        """Put a batch that has just been read beside what runs."""
        batch = self._batch
        if batch is None:
            self._batch = fresh
            return
        free = [slot for slot, sequence in enumerate(batch.slots) if sequence is None]
        slots = [*free, *range(len(batch.slots), len(batch.slots) + len(fresh.slots))][: len(fresh.slots)]
        total = max(len(batch.slots), max(slots) + 1)
        at = torch.tensor(slots, device=self.model.device)
        join(batch.cache, fresh.cache, at, total)
        width = max(batch.mask.shape[1], fresh.mask.shape[1])
        mask = batch.mask.new_zeros((total, width))
        mask[: len(batch.slots), width - batch.mask.shape[1] :] = batch.mask
        mask[at] = 0
        mask[at, width - fresh.mask.shape[1] :] = fresh.mask
        batch.mask = mask
        batch.position = _with_rows(batch.position, fresh.position, at, total)
        batch.next_tokens = _with_rows(batch.next_tokens, fresh.next_tokens, at, total)
        for group in (*batch.groups, *fresh.groups):
            group.part = None
        batch.slots += [None] * (total - len(batch.slots))
        for slot, sequence in zip(slots, fresh.slots, strict=True):
            batch.slots[slot] = sequence
        batch.groups += fresh.groups

    def _remove(self, sequences: Iterable[Sequence]) -> None:
        """Free the slots of these sequences, and what no other needs."""
        batch, removed = self._batch, set(sequences)
        if batch is None or not removed:
            return
        batch.slots = [None if sequence in removed else sequence for sequence in batch.slots]
        batch.groups = _groups_without(batch, removed)
        for group in batch.groups:
            group.part = None
        running = [slot for slot, sequence in enumerate(batch.slots) if sequence is not None]
        if not running:
            self._batch = None
            return
        if not self._waiting and len(running) < (1 - FREE_SHARE) * len(batch.slots):
            at = torch.tensor(running, device=self.model.device)
            select_rows(batch.cache, at)
            batch.mask, batch.position, batch.next_tokens = batch.mask[at], batch.position[at], batch.next_tokens[at]
            batch.slots = [batch.slots[slot] for slot in running]
        spare = batch.mask.shape[1] - max(sequence.cached_tokens for sequence in batch.sequences)
        if spare and joinable(batch.cache):
            trim(batch.cache, spare)
            batch.mask = batch.mask[:, spare:]


def _part_of(group: SteeredGroup, batch: RunningBatch) -> SteeredRows:
    """What the group steers, by the slots that its sequences hold now."""
    if group.part is None:
        slot_of = {sequence: slot for slot, sequence in enumerate(batch.slots) if sequence is not None}
        slots = [slot_of[sequence] for sequence in group.sequences]
        every_slot = slots == list(range(len(batch.slots)))
        rows = None if every_slot else torch.tensor(slots, device=batch.mask.device)
        group.part = SteeredRows(group.applied, rows)
    return group.part


def _groups_without(batch: RunningBatch, removed: set[Sequence]) -> list[SteeredGroup]:
    """The batch's groups that still have a sequence when these are gone."""
    for group in batch.groups:
        remaining = [n for n, sequence in enumerate(group.sequences) if sequence not in removed]
        if len(remaining) < len(group.sequences):
            group.part = None
            group.sequences = [group.sequences[n] for n in remaining]
            group.applied.select(torch.tensor(remaining, dtype=torch.long, device=batch.mask.device))
    return [group for group in batch.groups if group.sequences]


def _with_rows(ours: torch.Tensor, theirs: torch.Tensor, at: torch.Tensor, total: int) -> torch.Tensor:
    out = ours.new_zeros((total, *ours.shape[1:]))
    out[: len(ours)] = ours
    out[at] = theirs
    return out
