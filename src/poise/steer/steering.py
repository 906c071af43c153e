"""``Steering``, the value: which vectors work where, how strongly, on which tokens and on what condition."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal, get_args

import torch

from poise.errors import InvalidArgument, InvalidSteering
from poise.model.parts import Part
from poise.steer.operators import OPERATORS, Operation
from poise.vector import PersonaVector
from poise.vector.lengths import unit_direction
from poise.vector.persona_vector import LARGEST

__all__ = ["Condition", "Phase", "Steering", "Term", "orthogonal_part"]

Phase = Literal["response", "prompt", "all"]
ConditionReading = Literal["token", "prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Steer only while a probe says so (arXiv:2409.05907): the projection on v̂ at a layer, above or below a value.

    Attributes:
        vector: Vector whose unit direction is read.
        layer: Layer that is read, counted from 0. It may not lie above the steered layers, which run later in the same
            pass; a prompt's reading may, where only generated tokens are steered.
        value: Threshold in residual-stream units, as ``PersonaVector.project`` gives them.
        above: Steer while the reading is above the value; else while it is below.
        reading: ``token`` decides for each token by itself, before this layer is steered; ``prompt`` once for the
            whole answer, by the last prompt token.
    """

    vector: PersonaVector
    layer: int
    value: float
    above: bool = True
    reading: ConditionReading = "token"

    def __repr__(self) -> str:
        prompt, sign = "prompt " if self.reading == "prompt" else "", ">" if self.above else "<"
        return f"Condition({prompt}{self.vector.name}@{self.layer}{sign}{self.value:g})"

    def __post_init__(self) -> None:
        self.vector.check_layer(self.layer)
        _check_number(self.value, f"The condition on {self.vector.name} has the value")
        _check_choice(self.reading, get_args(ConditionReading), f"reading of the condition on {self.vector.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One vector at work at one layer, several, or as increments v_ℓ − v_{ℓ−1} at all of them (section 5.2).

    Attributes:
        vector: Vector whose direction is used.
        value: α for ``add``, in mean differences; the level for ``clamp``, ``floor`` and ``cap``, in residual-stream
            units; 1 for ``project_out``, which takes no strength.
        layers: Layers that are changed, counted from 0, or ``increments``.
        operation: See ``poise.steer.operators``.
        phase: ``response`` steers only tokens that the model generates (or the response span of a given text), never
            the last prompt token; ``prompt`` the tokens before; ``all`` both. Padding is never steered.
        part: Part of the response that is steered, where the model thinks before it replies: ``reply``, ``thought`` or
            ``both``, with the marks around a thought. Where it does not think, all is reply.
        tokens: Tokens of that part that are steered: from the first up to, not including, the last; ``(0, None)`` is
            all of it.
        when: Condition on which to steer; ``None`` for always.
    """

    vector: PersonaVector
    value: float
    layers: tuple[int, ...] | Literal["increments"]
    operation: Operation = "add"
    phase: Phase = "response"
    part: Part = "reply"
    tokens: tuple[int, int | None] = (0, None)
    when: Condition | None = None

    def __repr__(self) -> str:
        """The vector by its name, and what differs from the defaults."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "vector"}
        defaults = {f.name: f.default for f in fields(self)}
        shown = [f"{name}={value!r}" for name, value in values.items() if value != defaults[name]]
        return f"Term({', '.join([repr(self.vector.name), *shown])})"

    def __post_init__(self) -> None:
        name = self.vector.name
        _check_choice(self.operation, tuple(OPERATORS), f"operation on {name}")
        _check_choice(self.phase, get_args(Phase), f"phase in which {name} is steered")
        _check_choice(self.part, get_args(Part), f"part of the answer in which {name} is steered")
        if self.phase == "prompt" and self.part != "reply":
            raise InvalidSteering(f"The {self.part} is a part of the response; steer {name} there, not on the prompt.")
        _check_number(self.value, f"The strength of {name} is")
        if self.operation == "project_out" and self.value != 1:
            raise InvalidSteering(
                f"Projecting out {name} removes all of it and takes no strength, but {self.value:g} was given; leave "
                "it out, or clamp or cap the projection."
            )
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
        condition, first = self.when, min(self.touched)
        if condition is None or condition.layer <= first:
            return
        if condition.reading == "prompt" and self.phase == "response":
            return  # decided before the first token of the response
        raise InvalidSteering(
            f"{self.vector.name} is steered from layer {first} on a condition read at layer {condition.layer}, which "
            f"runs later; read it at layer {first} or below, or by the prompt."
        )

    @property
    def touched(self) -> tuple[int, ...]:
        """The layers that are changed."""
        return tuple(range(self.vector.layers)) if self.layers == "increments" else tuple(self.layers)

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
            return {i: unit_direction(v[i]) for i in self.touched}
        if self.layers == "increments":
            v = torch.diff(v, dim=0, prepend=torch.zeros_like(v[:1]))
        return {i: self.value * v[i] for i in self.touched}


@dataclass(frozen=True, slots=True)
class Steering:
    """Several terms together, combined by ``+``. At one layer: project out, then add, clamp, floor and cap.

        Steering.add(evil, dose=-0.3) + Steering.cap(sycophantic, level=2.5)

    Several directions that are projected out on the same tokens go with all that they span. What is added is summed:
    as it is, or, where ``orthogonal``, without the part that lies along vectors added before it, layer by layer in
    the order given (arXiv:2603.03326). α then multiplies what is left, which is shorter than v.

    Attributes:
        terms: What is done, each vector by itself.
        orthogonal: Whether what is added is made orthogonal, term by term.
    """

    terms: tuple[Term, ...] = ()
    orthogonal: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.terms, Iterable):
            raise InvalidSteering("A steering is made of a tuple of terms; use Steering.add.")
        object.__setattr__(self, "terms", tuple(self.terms))
        for term in self.terms:
            if not isinstance(term, Term):
                raise InvalidSteering(f"A steering is made of terms, not of {type(term).__name__}; use Steering.add.")

    @classmethod
    def add(
        cls,
        vector: PersonaVector,
        *,
        dose: float | None = None,
        coef: float | None = None,
        layer: int | None = None,
        phase: Phase = "response",
        part: Part = "reply",
    ) -> Steering:
        """Add α·v at one layer (Chen et al. 2025, section 3.2): more of the trait, or with a minus sign less of it.

        Args:
            vector: Vector whose direction is added.
            dose: Strength as ``α‖v‖ / mean‖h‖`` at that layer, e.g. 0.3; text usually breaks near 1.
            coef: Strength as α, in mean differences. Give this or ``dose``.
            layer: Counted from 0; default, the vector's layer to steer at.
            phase: Which tokens are steered.
            part: Which part of the response, where the model thinks before it replies.

        Raises:
            InvalidSteering: no strength or two, one that is not finite, no such layer or phase.
        """
        _check_vector(vector)
        if (coef is None) == (dose is None):
            raise InvalidSteering(f"Give one strength for {vector.name}: either coef (α) or dose.")
        chosen = vector.at("steer", layer).layer
        if coef is None:
            _check_number(dose, f"The dose of {vector.name} is")
            coef = vector.coef(float(dose or 0.0), chosen)
        return cls((Term(vector=vector, value=coef, layers=(chosen,), phase=phase, part=part),))

    @classmethod
    def project_out(
        cls, vector: PersonaVector, *, layer: int | None = None, phase: Phase = "response", part: Part = "reply"
    ) -> Steering:
        """Leave nothing along the direction at one layer.

        Args:
            vector: Vector whose direction is removed.
            layer: Counted from 0; default, the vector's layer to steer at.
            phase: Which tokens are steered.
            part: Which part of the response, where the model thinks before it replies.

        Raises:
            InvalidSteering: no such layer or phase.
        """
        return cls._at_level(vector, 1.0, layer, "project_out", phase, part)

    @classmethod
    def clamp(
        cls,
        vector: PersonaVector,
        *,
        level: float,
        layer: int | None = None,
        phase: Phase = "response",
        part: Part = "reply",
    ) -> Steering:
        """Hold the projection on the unit direction at a level.

        Args:
            vector: Vector along whose direction it is held.
            level: Projection in residual-stream units, as ``PersonaVector.project`` gives it.
            layer: Counted from 0; default, the vector's layer to steer at.
            phase: Which tokens are steered.
            part: Which part of the response, where the model thinks before it replies.

        Raises:
            InvalidSteering: a level that is not finite, no such layer or phase.
        """
        return cls._at_level(vector, level, layer, "clamp", phase, part)

    @classmethod
    def cap(
        cls,
        vector: PersonaVector,
        *,
        level: float,
        layer: int | None = None,
        phase: Phase = "response",
        part: Part = "reply",
    ) -> Steering:
        """Keep the projection on the unit direction at a level or below (arXiv:2601.10387).

        Args:
            vector: Vector along whose direction it is capped.
            level: Projection in residual-stream units. For the threshold of an alarm, give the layer too:
                ``place = vector.without_detector().at("read")``, ``place.alarm("mean").threshold``,
                ``place.layer``.
            layer: Counted from 0; default, the vector's layer to steer at.
            phase: Which tokens are steered.
            part: Which part of the response, where the model thinks before it replies.

        Raises:
            InvalidSteering: a level that is not finite, no such layer or phase.
        """
        return cls._at_level(vector, level, layer, "cap", phase, part)

    @classmethod
    def floor(
        cls,
        vector: PersonaVector,
        *,
        level: float,
        layer: int | None = None,
        phase: Phase = "response",
        part: Part = "reply",
    ) -> Steering:
        """Keep the projection on the unit direction at a level or above: the mirror of a cap.

        Args:
            vector: Vector along whose direction it is held up.
            level: Projection in residual-stream units, as ``PersonaVector.project`` gives it.
            layer: Counted from 0; default, the vector's layer to steer at.
            phase: Which tokens are steered.
            part: Which part of the response, where the model thinks before it replies.

        Raises:
            InvalidSteering: a level that is not finite, no such layer or phase.
        """
        return cls._at_level(vector, level, layer, "floor", phase, part)

    @classmethod
    def _at_level(
        cls, vector: PersonaVector, level: float, layer: int | None, operation: Operation, phase: Phase, part: Part
    ) -> Steering:
        _check_vector(vector)
        chosen = vector.at("steer", layer).layer
        term = Term(vector=vector, value=level, layers=(chosen,), operation=operation, phase=phase, part=part)
        return cls((term,))

    def __add__(self, other: Steering) -> Steering:
        """Both together; orthogonal if either is."""
        if not isinstance(other, Steering):
            return NotImplemented
        return Steering((*self.terms, *other.terms), self.orthogonal or other.orthogonal)

    def directions(self) -> list[dict[int, torch.Tensor]]:
        """What each term works along, by layer: α·v [d] for additions, unit directions for the rest."""
        added: list[torch.Tensor] = []
        removed: dict[object, list[torch.Tensor]] = {}
        by_term = []
        for term in self.terms:
            v = term.vector.directions
            if term.operation == "add" and self.orthogonal:
                v = orthogonal_part(v, added)
                added.append(_at_layers(v, term.touched))
            elif term.operation == "project_out":
                earlier = removed.setdefault((term.phase, term.part, term.tokens, term.when), [])
                v = orthogonal_part(v, earlier)
                earlier.append(_at_layers(v, term.touched))
            by_term.append(term.directions(v))
        return by_term


def _at_layers(v: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """Directions [L, d] with zeros at all other layers."""
    masked = torch.zeros_like(v)
    masked[list(layers)] = v[list(layers)]
    return masked


def orthogonal_part(v: torch.Tensor, earlier: Sequence[torch.Tensor]) -> torch.Tensor:
    """Directions [L, d] without their part along earlier ones (which are orthogonal to each other), layer by layer.

    What is left after removing all of a vector is rounding, and counts as zero.
    """
    remainder = v.double()
    for other in earlier:
        u = other.double()
        u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True).clamp(min=1e-100)
        remainder = remainder - (remainder * u).sum(-1, keepdim=True) * u
    norm_after = torch.linalg.vector_norm(remainder, dim=-1, keepdim=True)
    norm_before = torch.linalg.vector_norm(v.double(), dim=-1, keepdim=True)
    return torch.where(norm_after > 1e-5 * norm_before, remainder, 0.0).float()


def _check_number(value: Any, subject: str) -> None:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if isinstance(value, Real) and not isinstance(value, int):
        number = float(value)
    if not abs(number) <= LARGEST:
        shown = "too large" if isinstance(value, int) and not isinstance(value, bool) else repr(value)
        raise InvalidSteering(f"{subject} {shown}; give a finite number.")


def _check_vector(vector: Any) -> None:
    if not isinstance(vector, PersonaVector):
        raise InvalidSteering(
            f"A steering takes a PersonaVector, not {type(vector).__name__}; load one with load_vector(path)."
        )


def _check_choice(value: Any, choices: Sequence[str], subject: str) -> None:
    if value not in choices:
        raise InvalidArgument(f"The {subject} is {value!r}; it must be one of {', '.join(choices)}.")
