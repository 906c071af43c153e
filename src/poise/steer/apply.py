"""``apply_steering(model, rows)``: the only code that changes a forward pass.

Rows of a batch may be steered differently. Terms that do the same kind of thing in different rows share a ``Slot``: one
tensor operation for all of them. Hooks return new tensors, are set all or none, and come off whatever happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from poise.arguments import check_type
from poise.errors import HookDidNotFire, InvalidSteering
from poise.model import Model
from poise.model.batching import PaddedBatch
from poise.model.hooks import rewrite
from poise.model.parts import Part, TokenPart
from poise.steer.operators import LEVELED, OPERATORS, Operation
from poise.steer.steering import Condition, Phase, Steering, Term

__all__ = ["AppliedSteering", "apply_steering"]

ENDLESS = 1 << 40


@dataclass(slots=True, kw_only=True)
class ConditionGate:
    """Conditions of one layer and kind, a row each: v̂ [B, 1, d], value [B, 1, 1], sign + for above and − for below."""

    layer: int
    reading: str
    unit: torch.Tensor
    value: torch.Tensor
    sign: torch.Tensor
    open: torch.Tensor | None = None  # bool [B, T or 1, 1], in the pass that runs or for the answer

    def read(self, h: torch.Tensor, newest: torch.Tensor | None) -> None:
        """Decide for each token, or for each row by the position [B] of its last prompt token."""
        if self.reading == "prompt":
            if newest is None:
                return  # the prompt has been read already
            rows = torch.arange(len(h), device=h.device)
            h = h[rows, newest].unsqueeze(1)
        along = torch.matmul(h.float(), self.unit.mT)
        self.open = (along - self.value) * self.sign > 0


@dataclass(slots=True, kw_only=True)
class OperationSlot:
    """One operation at one layer for all rows: v [B, 1, d], zero where a row has none of it; level [B, 1, 1]."""

    operation: Operation
    phase: Phase
    part: Part
    v: torch.Tensor
    level: torch.Tensor
    first: torch.Tensor | None  # int64 [B, 1], with ``last`` the tokens of the response
    last: torch.Tensor | None
    gate: ConditionGate | None

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        """What is to be added to h [B, T, d], before masks."""
        return self.v if self.operation == "add" else OPERATORS[self.operation](h.float(), self.v, self.level)


@dataclass(slots=True, kw_only=True)
class PassPositions:
    """Where the running forward pass may be steered: masks bool [B, T], and which response token each position is."""

    masks: dict[Phase, torch.Tensor] | None = None
    some: dict[Phase, bool] = field(default_factory=dict)
    token: torch.Tensor | None = None  # int64 [B, T] or [1, 1]
    parts: dict[Part, torch.Tensor] = field(default_factory=dict)  # bool [B, 1]; empty where all tokens are reply
    place: torch.Tensor | None = None  # int64 [B, 1], of the token in its part
    newest: torch.Tensor | None = None  # int64 [B], the last prompt token


class AppliedSteering:
    """What a steered forward pass needs to know: which rows are there, and which positions are response.

    The engine announces each pass. A caller who does not, say with the model's own ``generate``, gets the usual
    reading: one token a row is a response token, more are the prompt, padded on the left. Every token of a response is
    taken for reply unless the engine says otherwise; of a text that is announced, the response is the part that its
    span was encoded for.
    """

    def __init__(self, model: Model, rows: Sequence[Steering | None]) -> None:
        self._slots, self._gates = _compile_slots(model, rows)
        self._rows = len(rows)
        self._announced = False
        self._pass = PassPositions()
        self._age = -1  # of the newest token, counted in the response
        self._tokens: Sequence[tuple[TokenPart, int]] | None = None
        self.touched = not self._slots

    @property
    def layers(self) -> list[int]:
        """Layers at which any row is steered or read, ascending."""
        return sorted({*self._slots, *self._gates})

    def announce(self, batch: PaddedBatch) -> None:
        """The next pass runs this batch: prompts and spans say where to steer."""
        response = batch.inside(batch.spans) & batch.real
        masks: dict[Phase, torch.Tensor] = {
            "prompt": batch.inside(batch.prompts) & batch.real,
            "response": response,
            "all": batch.real,
        }
        newest = torch.tensor([last - 1 for _, last in batch.prompts], device=response.device)
        some = {phase: bool(mask.any()) for phase, mask in masks.items()}
        self._pass = PassPositions(masks=masks, some=some, token=response.long().cumsum(1) - 1, newest=newest)
        self._announced, self._age = True, -1
        self._forget()

    def decoding(self, after: int | None = None) -> None:
        """From now on every pass runs one response token a row; there may be none, where all answers end at once.

        Args:
            after: Tokens of the response that have been run already, where the steering begins within it.
        """
        self._pass, self._announced = PassPositions(), False
        if after is not None:
            self._age = after - 1
        self.touched = True

    def announce_tokens(self, tokens: Sequence[tuple[TokenPart, int]] | None) -> None:
        """The next pass runs these tokens, one a row: part and place in that part; ``None`` where all are reply."""
        self._tokens = tokens

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self._rows = len(rows)
        for gate in {id(g): g for gates in self._gates.values() for g in gates}.values():
            gate.unit, gate.value, gate.sign = gate.unit[rows], gate.value[rows], gate.sign[rows]
            gate.open = gate.open[rows] if gate.open is not None else None
        for slot in (s for slots in self._slots.values() for s in slots):
            slot.v, slot.level = slot.v[rows], slot.level[rows]
            slot.first = slot.first[rows] if slot.first is not None else None
            slot.last = slot.last[rows] if slot.last is not None else None

    def change(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        """The hidden states [B, T, d] of a block, steered."""
        if self._rows not in (1, len(h)):
            raise InvalidSteering(f"There are {self._rows} steerings for a batch of {len(h)} rows; give one for each.")
        if layer == self.layers[0] and not self._announced:
            self._begin(h)
        for gate in self._gates.get(layer, ()):
            gate.read(h, self._pass.newest)
        for slot in self._slots.get(layer, ()):
            h = self._change(h, slot)
        return h

    def _begin(self, h: torch.Tensor) -> None:
        """A pass that nobody announced: a token a row, or a prompt."""
        if h.shape[1] == 1:
            self._age += 1
            self._pass = PassPositions(token=torch.full((1, 1), self._age, device=h.device))
            if self._tokens is not None:
                self._begin_parts(self._tokens, h)
        else:
            self._age = -1
            self._pass = PassPositions(newest=torch.full((len(h),), h.shape[1] - 1, device=h.device))
            self._forget()

    def _begin_parts(self, tokens: Sequence[tuple[TokenPart, int]], h: torch.Tensor) -> None:
        if len(tokens) != self._rows:
            raise InvalidSteering(
                f"{len(tokens)} tokens were announced for {self._rows} steered rows; announce one for each."
            )
        reply, thought = (
            torch.tensor([[own == part] for own, _ in tokens], device=h.device) for part in ("reply", "thought")
        )
        self._pass.parts = {"reply": reply, "thought": thought}
        self._pass.place = torch.tensor([[place] for _, place in tokens], device=h.device)

    def _forget(self) -> None:
        for gates in self._gates.values():
            for gate in gates:
                gate.open = None

    def _change(self, h: torch.Tensor, slot: OperationSlot) -> torch.Tensor:
        now = self._pass
        if now.masks is None:
            if slot.phase not in ("all", "prompt" if now.newest is not None else "response"):
                return h
            if slot.part == "thought" and now.newest is None and not now.parts:
                return h
        elif not now.some[slot.phase]:
            return h
        self.touched = True
        mask = self._mask(slot, h)
        delta = slot.delta(h)
        if mask is not None:
            delta = delta * mask
        delta = delta.to(h.dtype)
        # Where nothing is to be changed, h stays bit for bit: adding 0 would turn −0 into 0.
        return h + delta if slot.operation == "add" and mask is None else torch.where(delta != 0, h + delta, h)

    def _mask(self, slot: OperationSlot, h: torch.Tensor) -> torch.Tensor | None:
        """[B, T, 1], or ``None`` for everywhere."""
        now, masks = self._pass, []
        if now.masks is not None:
            masks.append(now.masks[slot.phase].unsqueeze(-1))
        if slot.part in now.parts:
            masks.append(now.parts[slot.part].unsqueeze(-1))
        token = now.place if slot.part in now.parts else now.token
        if slot.first is not None and slot.last is not None and token is not None:
            masks.append(((token >= slot.first) & (token < slot.last)).unsqueeze(-1))
        if slot.gate is not None:
            if slot.gate.open is None:
                raise InvalidSteering(
                    f"A condition on the prompt at layer {slot.gate.layer} is not known when an earlier layer of the "
                    "same pass is to be steered; read it at that layer or below, or generate."
                )
            masks.append(slot.gate.open)
        if not masks:
            return None
        out = masks[0]
        for mask in masks[1:]:
            out = out & mask
        return out


@contextlib.contextmanager
def apply_steering(
    model: Model, rows: Steering | Sequence[Steering | None], *, allow_other_model: bool = False
) -> Iterator[AppliedSteering]:
    """Steer every forward pass inside the block.

    Args:
        model: Its blocks are hooked.
        rows: One steering for all rows, or one for each row of the batch (``None``: leave that row alone).
        allow_other_model: Use vectors that were computed on another model of the same shape.

    Yields:
        ``Applied``, to announce batches to.

    Raises:
        OtherModel: a vector does not belong to this model.
        HookDidNotFire: the block ended normally and some layer was never run, or nothing was steered at all.
    """
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    listed = [rows] if isinstance(rows, Steering) else list(rows) if isinstance(rows, Sequence) else [rows]
    if not all(isinstance(row, Steering) or (row is None and isinstance(rows, Sequence)) for row in listed):
        raise InvalidSteering(
            f"rows is {type(rows).__name__}; give a Steering, as Steering.add(vector, dose=…) makes, or one or None "
            "for each row."
        )
    terms = [t for s in listed if s for t in s.terms]
    used = [t.vector for t in terms] + [t.when.vector for t in terms if t.when]
    for vector in {id(v): v for v in used}.values():
        vector.check_model(model, allow_other_model=allow_other_model)
    applied = AppliedSteering(model, listed)
    with rewrite(model, applied.change, applied.layers):
        yield applied
    if not applied.touched:
        raise HookDidNotFire(
            f"Nothing was steered on {model.name}: no position belonged to the phase that was asked for. Announce "
            "the batch, or steer phase='all'."
        )


Key = tuple[Any, ...]


def _compile_slots(
    model: Model, rows: Sequence[Steering | None]
) -> tuple[dict[int, list[OperationSlot]], dict[int, list[ConditionGate]]]:
    """Slots and gates by layer, in working order. Rows without a term of that kind have zeros in its slot."""
    slots: dict[int, dict[Key, OperationSlot]] = {}
    gates: dict[Key, ConditionGate] = {}
    for row, steered in enumerate(rows):
        if steered is None:
            continue
        for number, (term, directions) in enumerate(zip(steered.terms, steered.directions(), strict=True)):
            key = _slot_key(term, number)
            gate = _gate(gates, key, term.when, row, len(rows), model) if term.when else None
            for layer, v in directions.items():
                at = slots.setdefault(layer, {})
                if key not in at:
                    at[key] = _slot(term, gate, len(rows), model)
                _fill(at[key], row, term, v)
    order = list(OPERATORS)
    ready = {
        layer: [
            _ready(at[key], model)
            for key in sorted(at, key=lambda key: (order.index(at[key].operation), -1 if key[-1] is None else key[-1]))
        ]
        for layer, at in slots.items()
    }
    read: dict[int, list[ConditionGate]] = {}
    for gate in gates.values():
        read.setdefault(gate.layer, []).append(gate)
    return ready, read


def _slot_key(term: Term, number: int) -> Key:
    """Terms of equal keys share a slot. Plain sums do so within a row too; the rest keep their place in the row."""
    condition = (term.when.layer, term.when.reading) if term.when else None
    return (term.operation, term.phase, term.part, term.scheduled, condition, None if term.shared else number)


def _slot(term: Term, gate: ConditionGate | None, n: int, model: Model) -> OperationSlot:
    counted = torch.zeros((n, 1), dtype=torch.long, device=model.device) if term.scheduled else None
    return OperationSlot(
        operation=term.operation,
        phase=term.phase,
        part=term.part,
        v=torch.zeros((n, 1, model.width)),
        level=torch.zeros((n, 1, 1)),
        first=counted,
        last=counted.clone() if counted is not None else None,
        gate=gate,
    )


def _fill(slot: OperationSlot, row: int, term: Term, v: torch.Tensor) -> None:
    slot.v[row, 0] += v
    if term.operation in LEVELED:
        slot.level[row] = term.value
    if slot.first is not None and slot.last is not None:
        slot.first[row], slot.last[row] = term.tokens[0], ENDLESS if term.tokens[1] is None else term.tokens[1]


def _gate(
    gates: dict[Key, ConditionGate], key: Key, when: Condition | None, row: int, n: int, model: Model
) -> ConditionGate:
    assert when is not None
    if key not in gates:
        zeros = torch.zeros((n, 1, 1), device=model.device)
        unit = torch.zeros((n, 1, model.width), device=model.device)
        gates[key] = ConditionGate(
            layer=when.layer, reading=when.reading, unit=unit, value=zeros, sign=torch.zeros_like(zeros)
        )
    gate = gates[key]
    gate.unit[row, 0] = when.vector.unit(when.layer).to(model.device)
    gate.value[row], gate.sign[row] = when.value, 1.0 if when.above else -1.0
    return gate


def _ready(slot: OperationSlot, model: Model) -> OperationSlot:
    dtype = model.lm.dtype if slot.operation == "add" else torch.float32
    slot.v, slot.level = slot.v.to(model.device, dtype), slot.level.to(model.device)
    return slot
