"""The work of a pass at one block: read its conditions, steer, read. vLLM's graphs call it as one opaque operation.

vLLM keeps the residual stream in two parts, what a block added last and the stream before that; their sum is the
stream.
"""

from __future__ import annotations

import torch

from poise.steer.operators import OPERATORS
from poise.vllm.passes import GateRows, LayerStage, OperationRound, PassPlan, ReadRows, Rows

__all__ = ["work_at_layer"]


def work_at_layer(plan: PassPlan, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Do what a pass does at a layer.

    Args:
        plan: The pass.
        layer: Block whose output this is, counted from 0.
        hidden: What the block added, or all of its output [T, d]; changed in place.
        residual: The stream before that; ``None`` where ``hidden`` is the whole output.
    """
    work = plan.layers.get(layer)
    if work is None:
        return
    plan.visited.add(layer)
    for stage in work.stages:
        if stage.gates is not None:
            _open_gates(plan, stage.gates, hidden, residual)
        if stage.prompt_gates:
            _decide(plan, stage, hidden, residual)
        for step in stage.rounds:
            _operate(plan, step, hidden, residual)
    if work.reads is not None:
        _take_readings(plan, work.reads, hidden, residual)
    if work.summed is not None and plan.sums is not None:
        rows, owners = work.summed
        plan.sums[:, layer].index_add_(0, owners, _stream(rows, hidden, residual))


def _stream(rows: Rows, hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """The output of the block in some rows, rounded as the model rounds it, in float32 [n, d]."""
    return (hidden[rows] if residual is None else hidden[rows] + residual[rows]).float()


def _open_gates(plan: PassPlan, gates: GateRows, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
    along = (_stream(gates.rows, hidden, residual) * gates.units).sum(-1)
    plan.open[gates.rows, gates.columns] = (along - gates.values) * gates.signs > 0


def _decide(plan: PassPlan, stage: LayerStage, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
    for gate in stage.prompt_gates:
        state = plan.pieces[gate.piece].state
        unit = state.program.conditions[gate.index]
        h = _stream(slice(gate.row, gate.row + 1), hidden, residual)[0]
        along = float(h @ unit.unit.to(h.device))
        sign = 1.0 if unit.condition.above else -1.0
        state.decisions[gate.index] = (along - unit.condition.value) * sign > 0


def _operate(plan: PassPlan, step: OperationRound, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
    if step.operation == "add":
        delta = step.v.to(hidden.dtype)
    else:
        h = _stream(step.rows, hidden, residual).unsqueeze(1)
        delta = OPERATORS[step.operation](h, step.v.unsqueeze(1), step.level).squeeze(1).to(hidden.dtype)
    if step.gates is not None:
        rows = torch.arange(hidden.shape[0], device=hidden.device)[step.rows]
        delta = delta * plan.open[rows, step.gates].unsqueeze(-1)
    hidden[step.rows] += delta


def _take_readings(plan: PassPlan, reads: ReadRows, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
    along = _stream(reads.rows, hidden, residual) @ reads.directions
    plan.readings[reads.places] = along[reads.taken]
