"""``Steering`` is data; ``steering(model, rows)`` is the only code that changes a forward pass.

Add (Chen et al. 2025, section 3.2): h ← h + α·v. Project out: h ← h − ⟨h, v̂⟩·v̂. At one layer, at
several, or as increments v_ℓ − v_{ℓ−1} at all of them (section 5.2). Every row of a batch may be steered
differently. Hooks return new tensors, are set all or none, and come off whatever happens.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from poise.errors import HookDidNotFire, InvalidSteering
from poise.model import Model
from poise.model.batch import Batch
from poise.model.blocks import residual
from poise.vector import PersonaVector

__all__ = ["Applied", "Spec", "Steering", "Term", "at", "steering"]

Operation = Literal["add", "project_out"]
Phase = Literal["response", "prompt", "all"]


@dataclass(frozen=True, slots=True)
class Term:
    """One vector at work: ``α·v`` added, or ``v̂`` projected out, at one layer, several, or all as increments.

    ``response`` steers only tokens that the model generates (or the response span of a given text), never the last
    prompt token; ``prompt`` the tokens before; ``all`` both. Padding is never steered.
    """

    vector: PersonaVector
    coef: float
    layers: tuple[int, ...] | Literal["increments"]
    operation: Operation = "add"
    phase: Phase = "response"

    def __post_init__(self) -> None:
        if not math.isfinite(self.coef):
            raise InvalidSteering(f"The strength of {self.vector.name} is {self.coef}; give a finite number.")
        if self.operation == "project_out" and self.layers == "increments":
            raise InvalidSteering("Increments are for adding; project out at named layers.")
        for layer in self.layers if self.layers != "increments" else ():
            self.vector.check_layer(layer)

    def directions(self) -> dict[int, torch.Tensor]:
        """By layer, what is added (float32 [d]) or the unit direction that is projected out."""
        v = self.vector.directions
        if self.operation == "project_out":
            return {i: self.vector.unit(i) for i in self.layers if not isinstance(i, str)}
        if self.layers == "increments":
            increments = torch.diff(v, dim=0, prepend=torch.zeros_like(v[:1]))
            return {i: self.coef * increments[i] for i in range(len(v))}
        return {i: self.coef * v[i] for i in self.layers}


@dataclass(frozen=True, slots=True)
class Steering:
    """Several terms together; those of one layer add up, projections come before additions."""

    terms: tuple[Term, ...]


def at(
    vector: PersonaVector,
    *,
    coef: float | None = None,
    dose: float | None = None,
    layer: int | None = None,
    operation: Operation = "add",
    phase: Phase = "response",
) -> Steering:
    """Steering by one vector at one layer.

    Args:
        vector: Whose direction.
        coef: α, in mean differences. Give this or ``dose``.
        dose: ``α‖v‖ / mean‖h‖`` at that layer, e.g. 0.3.
        layer: From 0; default the certificate's layer, or a third of the depth.
        operation: ``add`` or ``project_out`` (which takes no strength).
        phase: Which tokens.
    """
    chosen = vector.default_layer if layer is None else vector.check_layer(layer)
    if operation == "project_out":
        coef, dose = 1.0, None
    if (coef is None) == (dose is None):
        raise InvalidSteering(f"Give one strength for {vector.name}: either coef (α) or dose.")
    alpha = coef if coef is not None else vector.coef(dose or 0.0, chosen)
    return Steering((Term(vector, alpha, (chosen,), operation, phase),))


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed ``FILE[@LAYER]=STRENGTH``, before its file is read."""

    file: str
    layer: int | None
    coef: float | None
    dose: float | None

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read ``evil.safetensors=1.5`` or ``evil.safetensors@12=30%``.

        Raises:
            InvalidSteering: not of that shape.
        """
        match = re.fullmatch(
            r"(?P<file>.+?)(@(?P<layer>\d+))?=(?P<number>[-+−]?[\d.]+(e[-+]?\d+)?)(?P<percent>%?)", text.strip()
        )
        try:
            number = float((match or {"number": ""})["number"].replace("−", "-"))
        except ValueError:
            match = None
        if match is None:
            raise InvalidSteering(f"Cannot read the steering {text!r}; write FILE=1.5, FILE=30% or FILE@LAYER=1.5.")
        layer = int(match["layer"]) if match["layer"] else None
        if match["percent"]:
            return cls(match["file"], layer, None, number / 100)
        return cls(match["file"], layer, number, None)

    def steering(self, vector: PersonaVector) -> Steering:
        """The steering itself, once the file is loaded."""
        return at(vector, coef=self.coef, dose=self.dose, layer=self.layer)


class Applied:
    """What a steered forward pass needs to know: which rows are there, and which positions are response.

    The engine announces each pass. A caller who does not, say with the model's own ``generate``, gets the usual
    reading: one token a row is a response token, more are the prompt.
    """

    def __init__(self, model: Model, rows: Sequence[Steering | None]) -> None:
        self._plan = _compile(model, rows)
        self._now = self._plan
        self._masks: dict[Phase, torch.Tensor] | None = None
        self.silent = {layer for layer, _, _ in self._plan}
        self.touched = not self._plan

    @property
    def layers(self) -> list[int]:
        """Layers at which any row is steered, ascending."""
        return sorted({layer for layer, _, _ in self._plan})

    def announce(self, batch: Batch) -> None:
        """The next pass runs this batch: prompts and spans say where to steer."""
        prompt = batch.inside(batch.prompts) & batch.real
        response = batch.inside(batch.spans) & batch.real
        self._masks = {"prompt": prompt, "response": response, "all": batch.real}

    def decoding(self) -> None:
        """From now on every pass runs one response token a row; there may be none, where all answers end at once."""
        self._masks = None
        self.touched = True

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self._now = {key: values[rows] for key, values in self._now.items()}

    def change(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        """The hidden states [B, T, d] of a block, steered."""
        self.silent.discard(layer)
        for operation in ("project_out", "add"):
            for phase in ("prompt", "response", "all"):
                values = self._now.get((layer, operation, phase))
                if values is not None:
                    h = self._change(h, values, operation, phase)
        return h

    def _change(self, h: torch.Tensor, values: torch.Tensor, operation: str, phase: Phase) -> torch.Tensor:
        if self._masks is None and phase not in ("all", "response" if h.shape[1] == 1 else "prompt"):
            return h
        if operation == "add":
            delta = values
        else:
            delta = -(h.float() * values).sum(-1, keepdim=True) * values
        if self._masks is not None:
            mask = self._masks[phase]
            self.touched |= bool(mask.any())
            delta = delta * mask.unsqueeze(-1)
        else:
            self.touched = True
        return h + delta.to(h.dtype)


@contextlib.contextmanager
def steering(
    model: Model, rows: Steering | Sequence[Steering | None], *, allow_other_model: bool = False
) -> Iterator[Applied]:
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
    listed = [rows] if isinstance(rows, Steering) else list(rows)
    for vector in {id(t.vector): t.vector for s in listed if s for t in s.terms}.values():
        vector.check_model(model, allow_other_model=allow_other_model)
    applied = Applied(model, listed)
    with contextlib.ExitStack() as hooks:
        for layer in applied.layers:

            def hook(module: Any, args: Any, output: Any, layer: int = layer) -> Any:
                h = applied.change(layer, residual(output))
                return (h, *output[1:]) if isinstance(output, tuple) else h

            hooks.callback(model.blocks[layer].register_forward_hook(hook).remove)
        yield applied
    if applied.silent:
        raise HookDidNotFire(
            f"Layers {sorted(applied.silent)} of {model.name} were never run, so nothing was steered there."
        )
    if not applied.touched:
        raise HookDidNotFire(
            f"Nothing was steered on {model.name}: no position belonged to the phase that was asked for. Announce "
            "the batch, "
            "or steer phase='all'."
        )


def _compile(model: Model, rows: Sequence[Steering | None]) -> dict[tuple[int, str, Phase], torch.Tensor]:
    """By layer, operation and phase: [B, 1, d], zero for rows that are left alone."""
    plan: dict[tuple[int, str, Phase], torch.Tensor] = {}
    for row, steered in enumerate(rows):
        for term in steered.terms if steered else ():
            for layer, direction in term.directions().items():
                key = (layer, term.operation, term.phase)
                if key not in plan:
                    plan[key] = torch.zeros((len(rows), 1, model.width))
                if term.operation == "project_out" and plan[key][row].any():
                    raise InvalidSteering(
                        f"Two directions are projected out at layer {layer}; project out one a layer."
                    )
                plan[key][row, 0] += direction
    dtype = model.lm.dtype
    return {key: values.to(model.device, dtype if key[1] == "add" else torch.float32) for key, values in plan.items()}
