"""``Steering``, the value: which vectors work where, how strongly, on which tokens and on what condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from poise.errors import InvalidSteering
from poise.steer.operators import Operation
from poise.vector import PersonaVector

__all__ = ["Condition", "Phase", "Steering", "Term", "at"]

Phase = Literal["response", "prompt", "all"]


@dataclass(frozen=True, slots=True)
class Condition:
    """Steer only while a probe says so (arXiv:2409.05907): the projection on v̂ at a layer, above or below a value.

    Attributes:
        vector: Whose unit direction is read.
        layer: Where. It may not lie above the steered layers, which run later in the same pass; a prompt's reading
            may, where only generated tokens are steered.
        value: In residual-stream units, as ``PersonaVector.project`` gives.
        above: Steer while the reading is above the value; else while it is below.
        reading: ``token`` decides for each token by itself, before this layer is steered; ``prompt`` once for the
            whole answer, by the last prompt token.
    """

    vector: PersonaVector
    layer: int
    value: float
    above: bool = True
    reading: Literal["token", "prompt"] = "token"

    def __post_init__(self) -> None:
        self.vector.check_layer(self.layer)
        if not math.isfinite(self.value):
            raise InvalidSteering(f"The condition on {self.vector.name} has the value {self.value}; give a number.")


@dataclass(frozen=True, slots=True)
class Term:
    """One vector at work at one layer, several, or as increments v_ℓ − v_{ℓ−1} at all of them (section 5.2).

    Attributes:
        vector: Whose direction.
        value: α for ``add``, in mean differences; the level for ``clamp`` and ``cap``, in residual-stream units;
            nothing for ``project_out``.
        layers: From 0, or ``increments``.
        operation: See ``poise.steer.operators``.
        phase: ``response`` steers only tokens that the model generates (or the response span of a given text), never
            the last prompt token; ``prompt`` the tokens before; ``all`` both. Padding is never steered.
        tokens: Of the response, from the first up to, not including, the last; ``(0, None)`` is all of it.
        when: Steer on this condition only.
    """

    vector: PersonaVector
    value: float
    layers: tuple[int, ...] | Literal["increments"]
    operation: Operation = "add"
    phase: Phase = "response"
    tokens: tuple[int, int | None] = (0, None)
    when: Condition | None = None

    def __post_init__(self) -> None:
        name = self.vector.name
        if not math.isfinite(self.value):
            raise InvalidSteering(f"The strength of {name} is {self.value}; give a finite number.")
        if self.operation != "add" and self.layers == "increments":
            raise InvalidSteering(f"Increments are for adding; {self.operation} {name} at named layers.")
        if not self.touched:
            raise InvalidSteering(f"No layer is named for {name}; name one, or increments.")
        for layer in self.touched:
            self.vector.check_layer(layer)
        first, last = self.tokens
        if first < 0 or (last is not None and last <= first):
            raise InvalidSteering(f"Tokens {first} to {last} for {name} are none; count from 0, and upwards.")
        if self.scheduled and self.phase != "response":
            raise InvalidSteering(f"Tokens are counted in the response; steer {name} there, not on {self.phase}.")
        self._check_condition()

    def _check_condition(self) -> None:
        c, first = self.when, min(self.touched)
        decided_before = c is not None and c.reading == "prompt" and self.phase == "response"
        if c is not None and c.layer > first and not decided_before:
            raise InvalidSteering(
                f"{self.vector.name} is steered from layer {first} on a condition read at layer {c.layer}, which runs "
                f"later; read it at layer {first} or below, or by the prompt."
            )

    @property
    def touched(self) -> tuple[int, ...]:
        """The layers that are changed."""
        return tuple(range(self.vector.layers)) if self.layers == "increments" else self.layers

    @property
    def scheduled(self) -> bool:
        """Whether only some tokens of the response are steered."""
        return self.tokens != (0, None)

    @property
    def shared(self) -> bool:
        """Whether the term is a plain sum that others of its phase and layer can be added to beforehand."""
        return self.operation == "add" and not self.scheduled and self.when is None

    def directions(self, within: torch.Tensor | None = None) -> dict[int, torch.Tensor]:
        """By layer, what is added (α·v), or the unit direction that is worked along: float32 [d].

        Args:
            within: float32 [L, d] in place of the vector's own directions.
        """
        v = self.vector.directions if within is None else within
        if self.operation != "add":
            return {i: v[i] / torch.linalg.vector_norm(v[i]).clamp(min=1e-12) for i in self.touched}
        if self.layers == "increments":
            v = torch.diff(v, dim=0, prepend=torch.zeros_like(v[:1]))
        return {i: self.value * v[i] for i in self.touched}


@dataclass(frozen=True, slots=True)
class Steering:
    """Several terms together. At one layer: project out, then add, then clamp, then cap.

    Several directions that are projected out on the same tokens go with all that they span. What is added is summed:
    as it is, or, where ``orthogonal``, without the part that lies along vectors added before it, layer by layer in
    the order given (arXiv:2603.03326). α then multiplies what is left, which is shorter than v.
    """

    terms: tuple[Term, ...]
    orthogonal: bool = False

    def directions(self) -> list[dict[int, torch.Tensor]]:
        """What each term works along, by layer: α·v [d] for additions, unit directions for the rest."""
        added: list[torch.Tensor] = []
        removed: dict[object, list[torch.Tensor]] = {}
        out = []
        for term in self.terms:
            v = term.vector.directions
            if term.operation == "add" and self.orthogonal:
                v = _without(v, added)
                added.append(_only(v, term.touched))
            elif term.operation == "project_out":
                earlier = removed.setdefault((term.phase, term.tokens, term.when), [])
                v = _without(v, earlier)
                earlier.append(_only(v, term.touched))
            out.append(term.directions(v))
        return out


def _only(v: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """Directions [L, d] with zeros at all other layers."""
    kept = torch.zeros_like(v)
    kept[list(layers)] = v[list(layers)]
    return kept


def _without(v: torch.Tensor, earlier: Sequence[torch.Tensor]) -> torch.Tensor:
    """Directions [L, d] without their part along earlier ones (which are orthogonal to each other), layer by layer.

    What is left after removing all of a vector is rounding, and counts as zero.
    """
    rest = v.double()
    for other in earlier:
        u = other.double()
        u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True).clamp(min=1e-12)
        rest = rest - (rest * u).sum(-1, keepdim=True) * u
    kept = torch.linalg.vector_norm(rest, dim=-1, keepdim=True)
    whole = torch.linalg.vector_norm(v.double(), dim=-1, keepdim=True)
    return torch.where(kept > 1e-5 * whole, rest, 0.0).float()


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
        coef: α, in mean differences; for ``clamp`` and ``cap`` the level. Give this or ``dose``.
        dose: ``α‖v‖ / mean‖h‖`` at that layer, e.g. 0.3.
        layer: From 0; default the certificate's layer, or a third of the depth.
        operation: ``add``, ``project_out`` (which takes no strength), ``clamp`` or ``cap`` (which take no dose).
        phase: Which tokens.
    """
    chosen = vector.at("steer", layer).layer
    if operation == "project_out":
        coef, dose = 1.0, None
    if (coef is None) == (dose is None):
        raise InvalidSteering(f"Give one strength for {vector.name}: either coef (α) or dose.")
    if operation in ("clamp", "cap") and coef is None:
        raise InvalidSteering(f"To {operation} {vector.name}, give the level as coef: a projection has no dose.")
    value = coef if coef is not None else vector.coef(dose or 0.0, chosen)
    return Steering((Term(vector, value, (chosen,), operation, phase),))
