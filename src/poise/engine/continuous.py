"""Continuous batching: answers join the running batch between two tokens and leave it at once.

Every row has its own steering, probes, sampling and length, and says what it would say alone. Newcomers are read as a
batch of their own; their cache is then written into free rows of the running one, aligned at its end, which is where
the next token of every row goes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from poise.activations import Probe, by_layer
from poise.engine.kv_cache import join, joinable, roomy_cache, trim
from poise.engine.sampler import choose, newest_logits
from poise.engine.sequence import Row
from poise.engine.types import Job, Said
from poise.errors import InvalidArgument, NonFiniteActivation
from poise.model import Model
from poise.model.batching import pad
from poise.model.hooks import observe
from poise.model.self_check import require_cache
from poise.steer import AppliedSteering, Steering
from poise.steer.joined_rows import SteeredRows, apply_joined_steering

__all__ = ["ContinuousEngine"]

BUDGET = 16384  # cached tokens on a CPU
BUDGET_GPU = 262144
PREFILL = 2048  # padded prompt tokens read at once, while the others wait
PREFILL_GPU = 16384
ByLayer = dict[int, tuple[list[int], torch.Tensor]]
HOLES = 0.25  # free rows are run along with the others until they are more than this share


@dataclass(slots=True, eq=False)
class Steered:
    """Rows that began together, and what steers them; ``part`` is known while nobody comes or goes."""

    applied: AppliedSteering
    rows: list[Row]
    part: SteeredRows | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """What runs. S: slots, W: cached positions. Every row ends at the same position; a slot without a row is run idly.

    Attributes:
        slots: Rows; ``None`` for a free one.
        cache: Of S rows and W positions.
        mask: int64 [S, W], 0 on padding.
        position: int64 [S, 1], of each slot's newest cached token.
        chosen: int64 [S], tokens that the next pass takes in.
        steered: Cohorts in the order of their work.
    """

    slots: list[Row | None]
    cache: Any
    mask: torch.Tensor
    position: torch.Tensor
    chosen: torch.Tensor
    steered: list[Steered] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """Those that run, in the order of their slots."""
        return [row for row in self.slots if row is not None]


class ContinuousEngine:
    """Answers that come and go, with a model in this process; see ``poise.engine.Stepwise``.

    Args:
        model: Loaded, in evaluation mode.
        batch: Most rows at once.
        budget: Most cached tokens at once, by the longest that each row may become; default by device.
        allow_other_model: Let vectors of another model steer.
    """

    def __init__(
        self, model: Model, *, batch: int = 32, budget: int | None = None, allow_other_model: bool = False
    ) -> None:
        cpu = model.device.type == "cpu"
        self.pads_left = not require_cache(model).padding_fault
        self.model, self.most = model, batch
        self.budget = budget or (BUDGET if cpu else BUDGET_GPU)
        self.prefill = PREFILL if cpu else PREFILL_GPU
        self.allow_other_model = allow_other_model
        self._queue: deque[Row] = deque()
        self._batch: Batch | None = None
        self._read: tuple[list[Probe], ByLayer] = ([], {})

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Answers that are being generated."""
        return len(self._batch.rows) if self._batch else 0

    def check(self, job: Job) -> None:
        """Refuse what cannot be run; see ``poise.engine.Stepwise``."""
        prompt, new = len(job.prompt.ids), job.sampling.max_new_tokens
        if not prompt:
            raise InvalidArgument("The prompt is empty; give at least one token.")
        if prompt + new > self.model.window:
            raise InvalidArgument(
                f"The prompt ({prompt} tokens) and {new} new tokens exceed the window of {self.model.name} "
                f"({self.model.window}); shorten the prompt or ask for fewer new tokens."
            )
        terms = job.steering.terms if job.steering else ()
        for vector in {id(v): v for t in terms for v in (t.vector, *([t.when.vector] if t.when else []))}.values():
            vector.check_model(self.model, allow_other_model=self.allow_other_model)

    def add(self, key: Hashable, job: Job) -> None:
        """Take a job that has been checked; it begins at one of the next steps."""
        self._queue.append(Row(key, job, self.model))

    @torch.inference_mode()
    def abort(self, key: Hashable) -> None:
        """Drop a job, waiting or running; nothing more is said of it."""
        self._queue = deque(row for row in self._queue if row.key != key)
        self._leave([row for row in self._rows if row.key == key])

    def steer(self, key: Hashable, steering: Steering) -> None:
        """Steer an answer by this too, from its next token on."""
        rows = [row for row in self._rows if row.key == key]
        if self._batch and rows:
            applied = AppliedSteering(self.model, [steering] * len(rows))
            applied.decoding()
            self._batch.steered.append(Steered(applied, rows))

    @torch.inference_mode()
    def step(self) -> list[Said]:
        """Begin what there is room for, and generate one token of each.

        What goes wrong in a pass ends the rows that were in it, and they say so; the engine goes on.
        """
        said: list[Said] = []
        decoding = self._rows
        if newcomers := self._admit():
            said += self._begin(newcomers)
        if decoding and self._batch:
            try:
                said += self._decode(self._batch)
            except Exception as error:  # whatever it was, these rows are lost and the next ones need not be
                said += [Said(row.key, error=error) for row in self._rows]
                self._batch = None
        return said

    @property
    def _rows(self) -> list[Row]:
        return self._batch.rows if self._batch else []

    def _admit(self) -> list[Row]:
        """The longest-waiting jobs that fit beside what runs."""
        running = self._rows
        if running and self._batch and not (self.pads_left and joinable(self._batch.cache)):
            return []
        longest, newcomers = max((row.longest for row in running), default=0), list[Row]()
        while self._queue and len(running) + len(newcomers) < self.most:
            row = self._queue[0]
            rows, longest = len(running) + len(newcomers) + 1, max(longest, row.longest)
            read = (len(newcomers) + 1) * max(len(r.job.prompt.ids) for r in (*newcomers, row))
            if (rows > 1 and rows * longest > self.budget) or (newcomers and read > self.prefill):
                break
            if newcomers and not self.pads_left and len(row.job.prompt.ids) != len(newcomers[0].job.prompt.ids):
                break
            newcomers.append(self._queue.popleft())
        return newcomers

    def _begin(self, newcomers: list[Row]) -> list[Said]:
        """Read the newcomers' prompts; where that fails, one by one, so that only the culprit does."""
        try:
            fresh, said = self._prefill(newcomers)
        except Exception as error:  # as in ``step``
            if len(newcomers) == 1:
                return [Said(newcomers[0].key, error=error)]
            return [said for row in newcomers for said in self._retry(row.anew())]
        try:
            self._join(fresh)
            self._leave([row for row in newcomers if row.over])
        except Exception as error:  # the running batch may be half changed, so that nobody can go on
            lost = {row.key: row for row in (*self._rows, *newcomers)}
            self._batch = None
            return [Said(key, error=error) for key in lost]
        return said

    def _retry(self, row: Row) -> list[Said]:
        if self._batch and not joinable(self._batch.cache):
            self._queue.append(row)
            return []
        return self._begin([row])

    def _prefill(self, rows: list[Row]) -> tuple[Batch, list[Said]]:
        padded = pad([row.job.prompt for row in rows], side="left", device=self.model.device)
        cache = roomy_cache(self.model.lm.config)
        fresh = Batch(list(rows), cache, padded.real.long(), padded.positions[:, -1:], padded.ids[:, -1])
        if any(row.job.steering for row in rows):
            applied = AppliedSteering(self.model, [row.job.steering for row in rows])
            applied.announce(padded)
            fresh.steered = [Steered(applied, rows)]
        mask = fresh.mask if padded.padded else None
        logits, readings = self._pass(fresh, padded.ids, mask, padded.positions)
        plain = {row for row in rows if not row.job.steering}
        fresh.steered = [kept for s in fresh.steered if (kept := _without(s, plain, self.model.device))]
        for steered in fresh.steered:
            steered.applied.decoding()
        return fresh, self._hear(fresh, logits, readings)

    def _decode(self, batch: Batch) -> list[Said]:
        batch.position = batch.position + 1
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones((len(batch.slots), 1))], dim=1)
        logits, readings = self._pass(batch, batch.chosen.unsqueeze(1), batch.mask, batch.position)
        said = self._hear(batch, logits, readings)
        self._leave([row for row in batch.rows if row.over])
        return said

    def _pass(
        self, batch: Batch, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor
    ) -> tuple[torch.Tensor, dict[Row, tuple[float, ...]]]:
        """Logits float32 [S, vocabulary], and every row's projections on its own probes."""
        probes: dict[Probe, int] = {}
        for row in batch.rows:
            for probe in row.job.probes:
                probes.setdefault(probe, len(probes))
        if list(probes) != self._read[0]:
            self._read = (list(probes), by_layer(list(probes), self.model))
        grouped = self._read[1]
        values = torch.empty((len(ids), len(probes)), device=self.model.device)

        def visit(layer: int, h: torch.Tensor) -> None:
            columns, directions = grouped[layer]
            values[:, columns] = h[:, -1].float() @ directions

        with contextlib.ExitStack() as hooks:
            hooks.enter_context(apply_joined_steering(self.model, [_part(s, batch) for s in batch.steered]))
            if probes:
                hooks.enter_context(observe(self.model, visit, sorted(grouped)))
            logits = newest_logits(self.model, batch.cache, ids, mask, positions)
        listed = values.tolist()
        return logits, {
            row: tuple(listed[slot][probes[p]] for p in row.job.probes)
            for slot, row in enumerate(batch.slots)
            if row is not None
        }

    def _hear(self, batch: Batch, logits: torch.Tensor, readings: dict[Row, tuple[float, ...]]) -> list[Said]:
        """Choose every row's next token and let it say what it can."""
        live = [(slot, row) for slot, row in enumerate(batch.slots) if row is not None]
        at = torch.tensor([slot for slot, _ in live], device=logits.device)
        own = logits if len(live) == len(batch.slots) else logits[at]
        sound = torch.isfinite(own.amax(dim=-1)).tolist()
        chosen = choose(own, [row.job.sampling for _, row in live], [row.draw() for _, row in live])
        batch.chosen = batch.chosen.new_zeros(len(batch.slots)).index_copy(0, at, chosen)
        said = []
        for n, ((_, row), token) in enumerate(zip(live, chosen.tolist(), strict=True)):
            if not sound[n]:
                row.over = True
                said.append(Said(row.key, error=self._broken(row)))
            elif heard := row.hear(token, own[n], readings[row]):
                said.append(heard)
        return said

    def _broken(self, row: Row) -> NonFiniteActivation:
        return NonFiniteActivation(
            f"{self.model.name} gave NaN or infinite logits at token {len(row.speech.tokens)}; steer with less "
            "strength, or load the model with dtype=torch.float32."
        )

    def _join(self, fresh: Batch) -> None:
        """Put a batch that has just been read beside what runs."""
        batch = self._batch
        if batch is None:
            self._batch = fresh
            return
        free = [slot for slot, row in enumerate(batch.slots) if row is None]
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
        batch.position = _put(batch.position, fresh.position, at, total)
        batch.chosen = _put(batch.chosen, fresh.chosen, at, total)
        for steered in (*batch.steered, *fresh.steered):
            steered.part = None
        batch.slots += [None] * (total - len(batch.slots))
        for slot, row in zip(slots, fresh.slots, strict=True):
            batch.slots[slot] = row
        batch.steered += fresh.steered

    def _leave(self, rows: Sequence[Row]) -> None:
        """Free the slots of these rows, and what no other needs."""
        batch, gone = self._batch, set(rows)
        if batch is None or not gone:
            return
        batch.slots = [None if row in gone else row for row in batch.slots]
        batch.steered = [kept for s in batch.steered if (kept := _without(s, gone, self.model.device))]
        for steered in batch.steered:
            steered.part = None
        running = [slot for slot, row in enumerate(batch.slots) if row is not None]
        if not running:
            self._batch = None
            return
        if not self._queue and len(running) < (1 - HOLES) * len(batch.slots):
            at = torch.tensor(running, device=self.model.device)
            batch.cache.batch_select_indices(at)
            batch.mask, batch.position, batch.chosen = batch.mask[at], batch.position[at], batch.chosen[at]
            batch.slots = [batch.slots[slot] for slot in running]
        spare = batch.mask.shape[1] - max(row.cached for row in batch.rows)
        if spare and joinable(batch.cache):
            trim(batch.cache, spare)
            batch.mask = batch.mask[:, spare:]


def _part(steered: Steered, batch: Batch) -> SteeredRows:
    if steered.part is None:
        steered.part = _place(steered, batch)
    return steered.part


def _place(steered: Steered, batch: Batch) -> SteeredRows:
    place = {row: slot for slot, row in enumerate(batch.slots) if row is not None}
    slots = [place[row] for row in steered.rows]
    if slots == list(range(len(batch.slots))):
        return SteeredRows(steered.applied)
    return SteeredRows(steered.applied, torch.tensor(slots, device=batch.mask.device))


def _without(steered: Steered, gone: set[Row], kept_on: torch.device) -> Steered | None:
    kept = [n for n, row in enumerate(steered.rows) if row not in gone]
    if len(kept) < len(steered.rows):
        steered.part = None
        steered.rows = [steered.rows[n] for n in kept]
        steered.applied.select(torch.tensor(kept, dtype=torch.long, device=kept_on))
    return steered if kept else None


def _put(ours: torch.Tensor, theirs: torch.Tensor, at: torch.Tensor, total: int) -> torch.Tensor:
    out = ours.new_zeros((total, *ours.shape[1:]))
    out[: len(ours)] = ours
    out[at] = theirs
    return out
