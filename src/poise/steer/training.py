"""Steering while a model learns: the same operators, in the passes that gradients flow through and in no others.

Evaluation, generation and a frozen reference model's passes are left alone, since these run without gradients or in
evaluation mode. Nothing is written into the model: what is saved has no trace of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from poise.errors import HookDidNotFire, InvalidSteering
from poise.model import Fingerprint, Model
from poise.model.hooks import before_pass, rewrite
from poise.steer.operators import OPERATORS, Operation
from poise.steer.steering import Steering
from poise.vector import PersonaVector

__all__ = ["IGNORED", "MARK", "Positions", "TrainingSteering", "check_base", "steer_training"]

Positions = Literal["all", "response"]
IGNORED = -100  # the label of a token that is not learnt from
MARK = "vaccinated"  # what a batch calls the rows [B] that are to be steered, where that is not all of them
LayerOperation = tuple[Operation, torch.Tensor, float]


class TrainingSteering:
    """What the hooks share: what is done at which layer, how strongly at this step, and where.

    Attributes:
        strength: 0-dimensional float32, multiplies whatever is done; changed in place by ``set``, so that compiled
            passes see it.
        fired: Layers whose hook has steered since ``begin``.
    """

    def __init__(self, model: Model, steering: Steering, positions: Positions, *, marked: bool) -> None:
        self.model, self.positions, self.marked = model, positions, marked
        self.strength = torch.ones((), device=model.device)
        self.works = _layer_operations(model, steering)
        self.fired: set[int] = set()
        self._rehearsing = False
        self._mask: torch.Tensor | None = None

    @property
    def masked(self) -> bool:
        """Whether a pass has positions that are left alone."""
        return self.marked or self.positions == "response"

    def set(self, strength: float) -> None:
        """Do a share of it from now on: 1 is all, 0 nothing."""
        self.strength.fill_(strength)

    def begin(self) -> None:
        """Forget which layers were steered."""
        self.fired.clear()

    def check(self) -> None:
        """Every layer was steered since ``begin``.

        Raises:
            HookDidNotFire: some were not; names them.
        """
        if silent := sorted(set(self.works) - self.fired):
            raise HookDidNotFire(
                f"Layers {silent} of {self.model.name} were not steered in this training step: their blocks did not "
                "run in training mode with gradients, so training would go on without the vaccine."
            )

    @torch.no_grad()
    def rehearse(self) -> None:
        """Run two tokens through the model to see that every hook fires; changes nothing.

        Raises:
            HookDidNotFire: some block is not run by this model.
        """
        self.begin()
        self._rehearsing = True
        modes = [(module, module.training) for module in self.model.lm.modules()]
        try:
            self.model.lm.eval()
            self.model.backbone(input_ids=torch.zeros((1, 2), dtype=torch.long, device=self.model.device))
        finally:
            self._rehearsing = False
            for module, training in modes:
                module.training = training
        self.check()
        self.begin()

    def change(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        """The hidden states [B, T, d] of a block, steered where this pass is learnt from."""
        if self._rehearsing:
            self.fired.add(layer)
            return h
        if not (self.model.blocks[layer].training and torch.is_grad_enabled()):
            return h
        if not torch.compiler.is_compiling():
            self.fired.add(layer)
        for operation, v, level in self.works[layer]:
            full = v if operation == "add" else OPERATORS[operation](h.float(), v, torch.tensor(level, device=h.device))
            delta = self.strength * full
            if self.masked:
                delta = delta * self._where(h)
            h = h + delta.to(h.dtype)
        return h

    def _where(self, h: torch.Tensor) -> torch.Tensor:
        """Which positions [B, T, 1] of this pass are steered; a trainer may go around the marked model."""
        if self._mask is None or self._mask.shape[:2] != h.shape[:2]:
            known = "none" if self._mask is None else "x".join(map(str, self._mask.shape[:2]))
            raise InvalidSteering(
                f"Only some positions are to be steered, and this pass of {'x'.join(map(str, h.shape[:2]))} tokens "
                f"came without its labels or marks (last seen: {known}); steer all positions of all rows."
            )
        return self._mask

    def mark(self, arguments: dict[str, Any]) -> None:
        """Before a pass of the whole model: where it is to be steered. The marks are not an input of the model."""
        rows, labels = arguments.pop(MARK, None), arguments.get("labels")
        if self.model.lm.training and torch.is_grad_enabled():
            self._mask = self._places(arguments.get("input_ids", labels), labels, rows)

    def _places(
        self, ids: torch.Tensor | None, labels: torch.Tensor | None, rows: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Which positions [B, T, 1] of a batch are steered; ``None`` for all."""
        if self.marked and rows is None:
            raise InvalidSteering(
                f"Only marked rows are to be steered, and this batch has no `{MARK}`; use a collator from "
                "`poise.train.examples.marking` with remove_unused_columns=False and no packing, or steer all rows."
            )
        if rows is not None and not self.marked:
            raise InvalidSteering(
                f"This batch marks rows as `{MARK}`, and all are to be steered; say marked=True, or drop the column."
            )
        if not self.masked:
            return None
        if ids is None or (labels is None and self.positions == "response"):
            raise InvalidSteering(
                "Only response positions or marked rows are to be steered, and this trainer does not hand labels or "
                "token ids to the model by name; steer positions='all' of all rows."
            )
        where = torch.ones_like(ids, dtype=torch.bool)
        if labels is not None and self.positions == "response":
            where = torch.ne(labels, IGNORED)
        if rows is not None:
            if len(rows) != len(where):
                raise InvalidSteering(
                    f"This batch has {len(rows)} marks for {len(where)} texts, as where pairs are learnt from; steer "
                    "all rows."
                )
            where = where & rows.bool().unsqueeze(-1)
        return where.unsqueeze(-1)


@contextlib.contextmanager
def steer_training(
    model: Model,
    steering: Steering,
    *,
    positions: Positions = "all",
    marked: bool = False,
    allow_other_model: bool = False,
) -> Iterator[TrainingSteering]:
    """Steer every pass inside the block that a model learns from (Chen et al. 2025, section 5.2).

    Args:
        model: In training; PEFT-wrapped or not.
        steering: Plain terms: no conditions, no schedule by tokens.
        positions: ``all``, as in the paper (padding too, which nothing attends to), or ``response``: those with a
            label.
        marked: Whether only those rows are steered that a batch marks, bool [B], under ``MARK``.
        allow_other_model: Use vectors that were computed on another model of the same shape.

    Yields:
        ``Learning``; the strength starts at 1.

    Raises:
        InvalidSteering: conditions, schedules, or terms that name the prompt.
        OtherModel: a vector does not belong to this model.
    """
    for vector in {id(t.vector): t.vector for t in steering.terms}.values():
        check_base(vector, model, allow_other_model=allow_other_model)
    shared = TrainingSteering(model, steering, positions, marked=marked)
    with rewrite(model, shared.change, list(shared.works), must_run=False), before_pass(model, shared.mark):
        yield shared


# Models that a vector was accepted for, by their first block: what is trained again is still the model that it was,
# however far its weights have gone since.
_trained_models: WeakKeyDictionary[nn.Module, set[Fingerprint]] = WeakKeyDictionary()


def check_base(vector: PersonaVector, model: Model, *, allow_other_model: bool = False) -> None:
    """Refuse a model in training whose base the vector was not computed on; the adapter is what is being trained.

    Raises:
        OtherModel: another base, or another shape.
    """
    seen = _trained_models.setdefault(model.blocks[0], set())
    own = vector.header.model.fingerprint
    vector.check_model(model, allow_other_model=allow_other_model or own in seen)
    seen.add(own)


def _layer_operations(model: Model, steering: Steering) -> dict[int, list[LayerOperation]]:
    """What is done at each layer, in working order, with directions [1, d] on the model's device."""
    out: dict[int, list[LayerOperation]] = {}
    for term, directions in zip(steering.terms, steering.directions(), strict=True):
        if term.when is not None or term.scheduled or term.phase == "prompt" or term.part != "reply":
            raise InvalidSteering(
                f"A vaccine works on whole texts; {term.vector.name} comes with a condition, a schedule, a part of the "
                "answer or the prompt alone. Give its strength and layers only."
            )
        for layer, v in directions.items():
            level = 0.0 if term.operation in ("add", "project_out") else term.value
            out.setdefault(layer, []).append((term.operation, v.to(model.device, torch.float32).unsqueeze(0), level))
    order = list(OPERATORS)
    return {layer: sorted(works, key=lambda w: order.index(w[0])) for layer, works in sorted(out.items())}
