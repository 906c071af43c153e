"""Steering while a model learns: the same operators, in the passes that are learnt from and in no others.

Which those are does not follow from gradient mode: checkpointing runs blocks without gradients in passes that are
learnt from, and a policy's reference has to be read as the policy is. A trainer's passes are those of its training
steps (``TrainingSteering.step``); in a loop of one's own a pass is learnt from if it begins in training mode with
gradients.
Nothing is written into the model: what is saved has no trace of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from poise.errors import HookDidNotFire, InvalidSteering
from poise.model import Fingerprint, Model
from poise.model.hooks import around_generation, around_pass, before_pass, rewrite
from poise.steer.operators import OPERATORS, Operation
from poise.steer.places import IGNORED, MARK, Positions, SteeredPlaces
from poise.steer.steering import Steering
from poise.vector import PersonaVector

__all__ = ["IGNORED", "MARK", "Positions", "TrainingSteering", "check_base", "check_bases", "steer_training"]

LayerOperation = tuple[Operation, torch.Tensor, float]


class TrainingSteering:
    """What the hooks share: what is done at which layer, how strongly at this step, where, and in which passes.

    Attributes:
        strength: 0-dimensional float32, multiplies whatever is done; changed in place by ``set``, so that compiled
            passes see it.
        learnt_passes: Passes with gradients that were steered since the training step began.
        compiled: Whether blocks run compiled, so that they keep no record of having been steered.
    """

    def __init__(self, model: Model, steering: Steering, positions: Positions, *, marked: bool) -> None:
        self.model, self.places = model, SteeredPlaces(positions, marked=marked)
        self.strength = torch.ones((), device=model.device)
        self.works = _layer_operations(model, steering)
        self.compiled = any(_is_compiled(module) for module in (model.lm, model.backbone, *model.blocks))
        self.learnt_passes = 0
        self._every_pass = self._generating = self._rehearsing = False
        self._in_pass = self._steered_pass = False
        self._fired: set[int] = set()

    def set(self, strength: float) -> None:
        """Do a share of it from now on: 1 is all, 0 nothing."""
        self.strength.fill_(strength)

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Steer the passes inside the block that begin in training mode and with gradients."""
        with (
            rewrite(self.model, self.change, list(self.works), must_run=False),
            before_pass(self.model, self._before_pass),
            around_pass(self.model, self._begin_pass, self._end_pass),
        ):
            try:
                yield
            finally:
                self._in_pass = False
                self.places.forget()

    @contextlib.contextmanager
    def step(self, *, rollouts: bool = False) -> Iterator[None]:
        """Steer every pass inside the block, which is a trainer's training step, with gradients or without.

        So the passes that a policy is compared with (reference and old log-probabilities) are steered as it is.

        Args:
            rollouts: Whether the model is steered also while it generates.
        """
        self.learnt_passes = 0
        generation = contextlib.nullcontext() if rollouts else around_generation(self.model, self._paused)
        self._every_pass = True
        try:
            with self.hooked(), generation:
                yield
        finally:
            self._every_pass = False

    def check(self) -> None:
        """The last training step learnt from a pass that was steered.

        Raises:
            HookDidNotFire: it did not.
        """
        if not self.learnt_passes and not self.compiled:
            raise HookDidNotFire(
                f"No pass of {self.model.name} with gradients was steered in this training step, so training would go "
                "on without the vaccine: the trainer runs the blocks itself, or another model."
            )

    @torch.no_grad()
    def rehearse(self) -> None:
        """Run two tokens through the model to see that every hook fires; changes nothing.

        Raises:
            HookDidNotFire: some block is not run by this model.
        """
        self._rehearsing = True
        modes = [(module, module.training) for module in self.model.lm.modules()]
        try:
            self.model.lm.eval()
            with self.hooked():
                ids = torch.zeros((1, 2), dtype=torch.long, device=self.model.device)
                self.model.lm(input_ids=ids, use_cache=False)
        finally:
            self._rehearsing = False
            for module, training in modes:
                module.training = training
        self._check_fired()

    def change(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        """The hidden states [B, T, d] of a block, steered where this pass is learnt from."""
        if self._rehearsing:
            self._fired.add(layer)
            return h
        if not self._steers(layer):
            return h
        if self._in_pass and not torch.compiler.is_compiling():
            self._fired.add(layer)
        strength = self.strength if self.strength.device == h.device else self.strength.to(h.device)
        for operation, direction, level in self.works[layer]:
            v = direction if direction.device == h.device else direction.to(h.device)
            full = v if operation == "add" else OPERATORS[operation](h.float(), v, torch.tensor(level, device=h.device))
            delta = strength * full
            if self.places.masked:
                delta = delta * self.places.mask(h, in_pass=self._in_pass)
            h = h + delta.to(h.dtype)
        return h

    def _steers(self, layer: int) -> bool:
        """Whether a block's run is steered: as its pass is, or, if a backward pass runs it again, as the pass was."""
        if self._generating:
            return False
        if self._every_pass:
            return True
        if self._in_pass:
            return self._steered_pass
        return self.model.blocks[layer].training and torch.is_grad_enabled()

    def _steers_pass(self) -> bool:
        """Whether a pass that begins now is steered."""
        if self._generating or self._rehearsing:
            return False
        return self._every_pass or (bool(self.model.lm.training) and torch.is_grad_enabled())

    def _before_pass(self, arguments: dict[str, Any]) -> None:
        """Find where the pass is to be steered. The marks are not an input of the model."""
        rows = arguments.pop(MARK, None)
        if self._steers_pass():
            self.places.announce(arguments, rows)

    def _begin_pass(self) -> None:
        self._in_pass, self._steered_pass = True, self._steers_pass()
        if not torch.compiler.is_compiling():
            self._fired.clear()
        self.places.begin(learnt=self._steered_pass and torch.is_grad_enabled())

    def _end_pass(self) -> None:
        self._in_pass = False
        if not self._steered_pass or torch.compiler.is_compiling():
            return
        if not self.compiled:
            self._check_fired()
        if torch.is_grad_enabled():
            self.learnt_passes += 1

    def _check_fired(self) -> None:
        if silent := sorted(set(self.works) - self._fired):
            raise HookDidNotFire(
                f"Layers {silent} of {self.model.name} were not steered in this pass: their blocks did not run, so "
                "training would go on without the vaccine."
            )

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        outer, self._generating = self._generating, True
        try:
            yield
        finally:
            self._generating = outer


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

    Those are the passes that begin in training mode and with gradients, and what checkpointing runs again of them. For
    a loop of one's own; trainers take ``poise.train.VaccineCallback``.

    Args:
        model: In training; PEFT-wrapped or not.
        steering: Plain terms: no conditions, no schedule by tokens.
        positions: ``all``, as in the paper (padding too, which nothing attends to), or ``response``: those with a
            label.
        marked: Whether only those rows are steered that a batch marks, bool [B], under ``MARK``.
        allow_other_model: Use vectors that were computed on another model of the same shape.

    Yields:
        ``TrainingSteering``; the strength starts at 1.

    Raises:
        InvalidSteering: conditions, schedules, or terms that name the prompt.
        OtherModel: a vector does not belong to this model.
        HookDidNotFire: a pass ended without running a block that is to be steered.
    """
    check_bases(model, steering, allow_other_model=allow_other_model)
    shared = TrainingSteering(model, steering, positions, marked=marked)
    with shared.hooked():
        yield shared


# Models that a vector was accepted for, by their first block: what is trained again is still the model that it was,
# however far its weights have gone since.
_trained_models: WeakKeyDictionary[nn.Module, set[Fingerprint]] = WeakKeyDictionary()


def check_bases(model: Model, steering: Steering, *, allow_other_model: bool = False) -> None:
    """Check the base of every vector of a steering, as ``check_base`` does."""
    for vector in {id(t.vector): t.vector for t in steering.terms}.values():
        check_base(vector, model, allow_other_model=allow_other_model)


def check_base(vector: PersonaVector, model: Model, *, allow_other_model: bool = False) -> None:
    """Refuse a model in training whose base the vector was not computed on; the adapter is what is being trained.

    Raises:
        OtherModel: another base, or another shape.
    """
    seen = _trained_models.setdefault(model.blocks[0], set())
    own = vector.header.model.fingerprint
    vector.check_model(model, allow_other_model=allow_other_model or own in seen)
    seen.add(own)


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _layer_operations(model: Model, steering: Steering) -> dict[int, list[LayerOperation]]:
    """What is done at each layer, in working order, with directions [1, d] on the device of its block."""
    out: dict[int, list[LayerOperation]] = {}
    for term, directions in zip(steering.terms, steering.directions(), strict=True):
        if term.when is not None or term.scheduled or term.phase == "prompt" or term.part != "reply":
            raise InvalidSteering(
                f"A vaccine works on whole texts; {term.vector.name} comes with a condition, a schedule, a part of the "
                "answer or the prompt alone. Give its strength and layers only."
            )
        for layer, v in directions.items():
            level = 0.0 if term.operation in ("add", "project_out") else term.value
            direction = v.to(_block_device(model, layer), torch.float32).unsqueeze(0)
            out.setdefault(layer, []).append((term.operation, direction, level))
    order = list(OPERATORS)
    return {layer: sorted(works, key=lambda w: order.index(w[0])) for layer, works in sorted(out.items())}


def _block_device(model: Model, layer: int) -> torch.device:
    """Where a block runs: where its weights are, unless they are elsewhere until they are needed."""
    weight = next(model.blocks[layer].parameters(), None)
    return model.device if weight is None or weight.device.type in ("cpu", "meta") else weight.device
