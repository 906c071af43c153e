"""What all requests of one forward pass do, layer by layer, as tensors over its rows.

A pass runs a flat batch: some tokens of each request, one request after another; a row is one token. Passes that do the
same, as those of decoding mostly do, share one plan.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from poise.errors import HookDidNotFire
from poise.model.parts import TokenPart
from poise.steer import Operation
from poise.steer.operators import OPERATORS
from poise.vllm.programs import RequestProgram, SteeringWork
from poise.vllm.tokens import FollowedAnswer

__all__ = ["LayerPlan", "LayerStage", "OperationRound", "PassPiece", "PassPlan", "RequestState"]

Rows = slice | torch.Tensor


@dataclass(eq=False, kw_only=True)
class RequestState:
    """A request while it is generated.

    Attributes:
        program: What is done for it.
        prompt: Number of its prompt's tokens.
        decisions: What its conditions on the prompt came to; ``None`` until the prompt's last token has been read.
        answer: Tells the parts of its response apart; ``None`` where all is reply, or its program is told of them.
    """

    program: RequestProgram
    prompt: int
    decisions: list[bool | None] = field(default_factory=list)
    answer: FollowedAnswer | None = None

    def __post_init__(self) -> None:
        self.decisions = [None] * len(self.program.conditions)

    @property
    def first_read(self) -> int:
        """Position that is read first: the last of the prompt, unless all of it is read."""
        return 0 if self.program.reads_prompt else self.prompt - 1

    @property
    def parts(self) -> list[tuple[TokenPart, int]] | None:
        """Part of each token of the response so far, with its place there; ``None`` where all are reply."""
        return self.program.parts if self.answer is None else self.answer.parts

    def follow(self, tokens: Sequence[int]) -> None:
        """Look at the response so far, before its newest token is run."""
        if self.answer is None:
            return
        before = self.answer.revision
        self.answer.catch_up(tokens)
        if self.program.response and self.answer.revision > before:
            self.program.response.restart()


@dataclass(frozen=True, eq=False, kw_only=True)
class PassPiece:
    """The tokens of one request in a pass: its first row, how many rows, and the position of the first."""

    state: RequestState
    row: int
    count: int
    start: int

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for pieces for which the same is done in the same rows."""
        program, token = self.state.program, self.start - self.state.prompt
        steady = token >= program.steady_from and token >= 0 and self.state.parts is None
        where = "steady" if steady else (token, self.start)
        summed = program.response.seen - token if program.response else None
        return (program.number, self.row, self.count, where, summed, tuple(self.state.decisions))

    def rows(self, first: int, last: int) -> tuple[int, int]:
        """The rows of positions of the piece."""
        return self.row + first - self.start, self.row + last - self.start

    def steered_rows(self, work: SteeringWork) -> list[tuple[int, int]]:
        """The ranges of rows where a work steers."""
        last = self.start + self.count
        ranges = work.ranges(self.state.prompt, self.start, last, self.state.parts)
        return [self.rows(*positions) for positions in ranges]

    def summed_rows(self) -> list[tuple[int, int]]:
        """The ranges of rows of the reply that are to be summed: those that were not looked at yet."""
        last, prompt = self.start + self.count, self.state.prompt
        if (response := self.state.program.response) is None:
            return []
        first, parts = min(last, max(self.start, prompt + response.seen)), self.state.parts
        if parts is None:
            return [self.rows(first, last)] if first < last else []
        replies = [place for place in range(first, last) if parts[place - prompt][0] == "reply"]
        return [self.rows(place, place + 1) for place in replies]

    def read_rows(self) -> tuple[int, int]:
        """The rows that are read: the last prompt token, and those of the response."""
        last = self.start + self.count
        return self.rows(min(last, max(self.start, self.state.first_read)), last)


WorkRows = tuple[PassPiece, SteeringWork, int, int]
"""A work in a range of rows of a piece."""


@dataclass(eq=False, kw_only=True)
class OperationRound:
    """One operation in some rows: v float32 [n or 1, d] and level [n or 1, 1, 1].

    ``gates`` are columns of the pass's open conditions [n], of which column 0 is always open.
    """

    operation: Operation
    rows: Rows
    v: torch.Tensor
    level: torch.Tensor
    gates: torch.Tensor | None


@dataclass(eq=False, kw_only=True)
class GateRows:
    """Conditions on tokens: rows [n], v̂ [n, d], values and signs [n], and the columns [n] that they open."""

    rows: torch.Tensor
    units: torch.Tensor
    values: torch.Tensor
    signs: torch.Tensor
    columns: torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptGate:
    """A condition on the prompt that this pass decides, at the row of the last prompt token."""

    row: int
    piece: int
    index: int


@dataclass(eq=False, kw_only=True)
class ReadRows:
    """Readings: rows [m] on directions [d, u]; the n readings are taken from there and put into the pass's readings."""

    rows: Rows
    directions: torch.Tensor
    taken: tuple[torch.Tensor, torch.Tensor]
    places: tuple[torch.Tensor, torch.Tensor]


@dataclass(eq=False, kw_only=True)
class LayerStage:
    """Conditions that are read, and then what is done, in this order."""

    gates: GateRows | None = None
    prompt_gates: list[PromptGate] = field(default_factory=list)
    rounds: list[OperationRound] = field(default_factory=list)


@dataclass(eq=False, kw_only=True)
class LayerPlan:
    """What is done at one layer, in this order; what is added to running requests has stages of its own."""

    stages: list[LayerStage] = field(default_factory=lambda: [LayerStage()])
    reads: ReadRows | None = None
    summed: tuple[Rows, torch.Tensor] | None = None  # rows [m], and whose of the pass's sums they belong to [m]

    def stage(self, number: int) -> LayerStage:
        """The stage of that number."""
        self.stages += [LayerStage() for _ in range(number + 1 - len(self.stages))]
        return self.stages[number]


class PassPlan:
    """The work of one pass by layer, and what it brings.

    Args:
        pieces: The pass's requests that are steered or read.
        rows: Number of rows of the pass.
        device: Device of the model.
    """

    def __init__(self, pieces: Sequence[PassPiece], rows: int, device: torch.device) -> None:
        self.signature = tuple(piece.signature for piece in pieces)
        self._rows, self._device = rows, device
        self.layers: dict[int, LayerPlan] = {}
        self.read_ranges: list[tuple[int, int]] = []
        self.begin(pieces)
        self._plan_operations()
        self._plan_reads()
        self._plan_sums()

    def begin(self, pieces: Sequence[PassPiece]) -> None:
        """The plan is about to be run for these pieces, of equal signatures."""
        self.pieces = list(pieces)
        self.visited: set[int] = set()
        columns = 1 + max((len(p.state.program.conditions) for p in pieces), default=0)
        self.open = torch.zeros((self._rows, columns), dtype=torch.bool, device=self._device)
        self.open[:, 0] = True
        read = sum(last - first for first, last in (p.read_rows() for p in pieces if p.state.program.probes))
        width = max((len(p.state.program.probes) for p in pieces), default=0)
        self.readings = torch.full((read, width), torch.nan, device=self._device)
        summed = [p.state.program.response for p in pieces if p.state.program.response]
        self.sums = torch.zeros((len(summed), *summed[0].total.shape), device=self._device) if summed else None

    def fits(self, pieces: Sequence[PassPiece], rows: int) -> bool:
        """Whether the plan does for these pieces what is to be done."""
        return rows == self._rows and tuple(piece.signature for piece in pieces) == self.signature

    def finish(self) -> Iterator[tuple[PassPiece, torch.Tensor]]:
        """The readings [n, k] of each piece that has any, once the pass has run.

        Raises:
            HookDidNotFire: a layer was not visited, so that somebody was not steered or read.
        """
        if missing := sorted(self.layers.keys() - self.visited):
            raise HookDidNotFire(
                f"vLLM ran a pass without Poise's work at layer {missing[0]}; run it without full CUDA graphs."
            )
        self._add_sums()
        values = self.readings.cpu()
        for piece, (first, last) in zip(self.pieces, self.read_ranges, strict=True):
            if last > first:
                yield piece, values[first:last, : len(piece.state.program.probes)]

    def _plan_operations(self) -> None:
        entries: dict[tuple[int, int], dict[tuple[int, int], list[WorkRows]]] = {}
        order = list(OPERATORS)
        for number, piece in enumerate(self.pieces):
            counts: dict[tuple[int, int, Operation], int] = {}
            for work in piece.state.program.works:
                ranges = piece.steered_rows(work)
                for layer in work.directions if ranges and self._is_open(piece, work) else ():
                    place = (layer, work.stage, work.operation)
                    turn = counts[place] = counts.get(place, -1) + 1
                    at = entries.setdefault((layer, work.stage), {}).setdefault((order.index(work.operation), turn), [])
                    at += [(piece, work, *rows) for rows in ranges]
            self._plan_gates(number, piece)
        for (layer, stage), rounds in entries.items():
            self._at(layer).stage(stage).rounds = [self._round(layer, rounds[key]) for key in sorted(rounds)]

    def _is_open(self, piece: PassPiece, work: SteeringWork) -> bool:
        """Whether a work may do something: not where its condition on the prompt has been decided against."""
        if work.gate is None or piece.state.program.conditions[work.gate].condition.reading == "token":
            return True
        decision = piece.state.decisions[work.gate]
        if decision is None:
            raise HookDidNotFire("A response is steered on a prompt's reading that was never taken; report this.")
        return decision

    def _round(self, layer: int, entries: Sequence[WorkRows]) -> OperationRound:
        counts = torch.tensor([last - first for _, _, first, last in entries])
        v = torch.stack([work.directions[layer] for _, work, _, _ in entries])
        level = torch.tensor([work.level for _, work, _, _ in entries]).reshape(-1, 1, 1)
        if len(entries) > 1:
            v, level = v.repeat_interleave(counts, 0), level.repeat_interleave(counts, 0)
        gates = None
        if any(self._column(piece, work) for piece, work, _, _ in entries):
            columns = torch.tensor([self._column(piece, work) for piece, work, _, _ in entries])
            gates = columns.repeat_interleave(counts).to(self._device)
        return OperationRound(
            operation=entries[0][1].operation,
            rows=self._row_index([(first, last) for _, _, first, last in entries]),
            v=v.to(self._device),
            level=level.to(self._device),
            gates=gates,
        )

    @staticmethod
    def _column(piece: PassPiece, work: SteeringWork) -> int:
        if work.gate is None or piece.state.program.conditions[work.gate].condition.reading == "prompt":
            return 0
        return work.gate + 1

    def _row_index(self, ranges: Sequence[tuple[int, int]]) -> Rows:
        """The rows of several ranges: a slice where they follow each other."""
        if all(before[1] == after[0] for before, after in itertools.pairwise(ranges)):
            return slice(ranges[0][0], ranges[-1][1])
        return torch.cat([torch.arange(first, last) for first, last in ranges]).to(self._device)

    def _at(self, layer: int) -> LayerPlan:
        return self.layers.setdefault(layer, LayerPlan())

    def _plan_gates(self, number: int, piece: PassPiece) -> None:
        last_prompt = piece.state.prompt - 1
        for index, unit in enumerate(piece.state.program.conditions):
            plan = self._at(unit.layer).stage(unit.stage)
            if unit.condition.reading == "prompt":
                if piece.start <= last_prompt < piece.start + piece.count and piece.state.decisions[index] is None:
                    row, _ = piece.rows(last_prompt, last_prompt)
                    plan.prompt_gates.append(PromptGate(row=row, piece=number, index=index))
                continue
            rows = torch.arange(piece.row, piece.row + piece.count)
            gates = GateRows(
                rows=rows.to(self._device),
                units=unit.unit.expand(piece.count, -1).to(self._device),
                values=torch.full((piece.count,), unit.condition.value, device=self._device),
                signs=torch.full((piece.count,), 1.0 if unit.condition.above else -1.0, device=self._device),
                columns=torch.full((piece.count,), index + 1, device=self._device),
            )
            plan.gates = gates if plan.gates is None else _joined_gates(plan.gates, gates)

    def _plan_sums(self) -> None:
        summed = [piece for piece in self.pieces if piece.state.program.response]
        ranges = [piece.summed_rows() for piece in summed]
        counts = torch.tensor([sum(last - first for first, last in rows) for rows in ranges], dtype=torch.long)
        if self.sums is None or not counts.sum():
            return
        owners = torch.arange(len(summed)).repeat_interleave(counts).to(self._device)
        rows = self._row_index(list(itertools.chain.from_iterable(ranges)))
        for layer in range(self.sums.shape[1]):
            self._at(layer).summed = (rows, owners)

    def _add_sums(self) -> None:
        if self.sums is None:
            return
        summed = [piece for piece in self.pieces if piece.state.program.response]
        for piece, total in zip(summed, self.sums.cpu(), strict=True):
            response = piece.state.program.response
            assert response is not None
            response.total += total
            response.tokens += sum(last - first for first, last in piece.summed_rows())
            response.seen = max(response.seen, piece.start + piece.count - piece.state.prompt)

    def _plan_reads(self) -> None:
        entries: dict[int, list[tuple[int, int, int, int, torch.Tensor]]] = {}
        read = 0
        for piece in self.pieces:
            first, last = piece.read_rows() if piece.state.program.probes else (0, 0)
            self.read_ranges.append((read, read + last - first))
            if last > first:
                for column, probe in enumerate(piece.state.program.probes):
                    entries.setdefault(probe.layer, []).append((first, last, read, column, probe.direction))
            read += last - first
        for layer, at in entries.items():
            self._at(layer).reads = self._read_rows(at)

    def _read_rows(self, entries: Sequence[tuple[int, int, int, int, torch.Tensor]]) -> ReadRows:
        ranges = list(dict.fromkeys((first, last) for first, last, *_ in entries))
        begin, total = {}, 0
        for first, last in ranges:
            begin[first], total = total, total + last - first
        directions = list({id(entry[4]): entry[4] for entry in entries}.values())
        number = {id(direction): n for n, direction in enumerate(directions)}
        index: list[list[torch.Tensor]] = [[], [], [], []]
        for first, last, read, column, direction in entries:
            steps = torch.arange(last - first)
            places = (begin[first] + steps, torch.full_like(steps, number[id(direction)]))
            for part, values in zip(index, (*places, read + steps, torch.full_like(steps, column)), strict=True):
                part.append(values)
        row, unit, place, column_index = (torch.cat(part).to(self._device) for part in index)
        return ReadRows(
            rows=self._row_index(ranges),
            directions=torch.stack(directions, dim=1).to(self._device),
            taken=(row, unit),
            places=(place, column_index),
        )


def _joined_gates(first: GateRows, second: GateRows) -> GateRows:
    return GateRows(
        rows=torch.cat([first.rows, second.rows]),
        units=torch.cat([first.units, second.units]),
        values=torch.cat([first.values, second.values]),
        signs=torch.cat([first.signs, second.signs]),
        columns=torch.cat([first.columns, second.columns]),
    )
