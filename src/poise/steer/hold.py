"""Steering that holds whatever else is asked for: a server's forced caps beside what a request steers.

A cap at layer 10 says nothing of layer 11, where a request may add again what the cap took away. So what is forced is
done again, along the same direction and at the same level, wherever the request steers later and in the last block, and
at those layers the request acts without its part along the forced vector.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from poise.model.parts import Part
from poise.steer.steering import Phase, Steering, Term, orthogonal_part
from poise.vector import PersonaVector

__all__ = ["HeldSteering", "hold_again", "hold_forced", "hold_later"]

NEGLIGIBLE = 1e-5  # share of a direction's length that is rounding
PUSHES = {"add": 1, "floor": 1, "cap": -1}  # which way along its direction an operator moves; the others, both
HOLD_WORDS = {"cap": "caps", "floor": "holds up", "clamp": "clamps", "project_out": "projects out"}


@dataclass(frozen=True, slots=True)
class HeldSteering:
    """What a request steers and what is forced, together.

    Attributes:
        steering: All that is done.
        notes: A sentence for each term of the request that is not done as it was asked for.
    """

    steering: Steering
    notes: tuple[str, ...] = ()


def hold_forced(requested: Steering, forced: Steering) -> HeldSteering:
    """Both together, so that the forced caps, floors, clamps and projections hold from their layer on.

    They are done again at every later layer that the request steers, at the vector's read layer where that is later,
    and in the last block: along the direction of their own layer, at their own level, also on the prompt and in the
    thought where the request steers there. At later layers the request's terms lose what they have of the forced
    vector's direction at that layer, of a cap only what points up and of a floor only what points down; so they do
    at the layer itself where another operator than a cap works, since only a cap comes last. An addition is a push,
    not a limit: it is done as it is.
    """
    if not requested.terms or not forced.terms:
        return HeldSteering(requested if requested.terms else forced)
    holds = [term for term in forced.terms if term.operation != "add"]
    terms, notes = [], []
    for term in _concrete(requested).terms:
        stripped, lost = _without_holds(term, _single_layers(holds))
        terms.append(stripped)
        notes += [
            f"{term.vector.name} at layer {layer} acts without its part along {hold.vector.name}, which this server "
            f"{HOLD_WORDS[hold.operation]} from layer {hold.touched[0]} on."
            for layer, hold in lost
        ]
    pushes = tuple(term for term in _concrete(forced).terms if term.operation == "add")
    again = hold_again(Steering(tuple(holds)), requested)
    return HeldSteering(Steering((*terms, *pushes, *again.terms)), tuple(dict.fromkeys(notes)))


def hold_again(holds: Steering, requested: Steering | None) -> Steering:
    """These caps, floors, clamps and projections, done again where a request steers at later layers."""
    if requested is None or not requested.terms:
        return holds
    return Steering(tuple(_done_again(hold, requested.terms) for hold in _single_layers(holds.terms)))


def hold_later(ranks: Sequence[Steering], requested: Steering | None) -> Steering:
    """Caps and other holds that begin within an answer, each of which holds against those before it.

    Each is done again wherever the request or an earlier one acts, and acts without what works against a later one.
    A condition on the prompt, which has been read by then, counts as met.

    Args:
        ranks: What is to hold, the weakest first.
        requested: What is steered already.
    """
    below, done = requested.terms if requested else (), list[Term]()
    holds = [[_without_prompt_condition(t) for t in rank.terms if t.operation != "add"] for rank in ranks]
    for number, rank in enumerate(holds):
        above = _single_layers([term for stronger in holds[number + 1 :] for term in stronger])
        again = hold_again(Steering(tuple(rank)), Steering((*below, *done)))
        done += [_without_holds(term, above)[0] for term in again.terms]
    return Steering(tuple(done))


def _without_prompt_condition(term: Term) -> Term:
    return replace(term, when=None) if term.when and term.when.reading == "prompt" else term


def _single_layers(holds: Sequence[Term]) -> list[Term]:
    """The same, a term for each layer, since each layer has a direction of its own."""
    return [replace(hold, layers=(layer,)) for hold in holds for layer in hold.touched]


def _done_again(hold: Term, requested: Sequence[Term]) -> Term:
    [first], read = hold.touched, hold.vector.at("read").layer
    later = {layer for term in requested for layer in term.touched} | {read, hold.vector.layers - 1}
    phase, part = _where(hold, requested)
    return replace(
        hold,
        vector=_one_direction(hold.vector, first),
        layers=(first, *sorted(layer for layer in later if layer > first)),
        phase=phase,
        part=part,
    )


def _where(hold: Term, requested: Sequence[Term]) -> tuple[Phase, Part]:
    """Where the hold works: where it says, and where the request steers, unless it counts its tokens."""
    if hold.scheduled:
        return hold.phase, hold.part
    phases = {hold.phase, *(term.phase for term in requested)}
    parts = {term.part for term in (hold, *requested) if term.phase != "prompt"}
    phase: Phase = next(iter(phases)) if len(phases) == 1 else "all"
    part: Part = "reply" if phase == "prompt" else next(iter(parts)) if len(parts) == 1 else "both"
    return phase, part


@functools.lru_cache(maxsize=64)
def _one_direction(vector: PersonaVector, layer: int) -> PersonaVector:
    """The vector with its direction of one layer at all of them."""
    directions = vector.directions
    return PersonaVector(directions[layer].expand_as(directions), vector.reference_norm, vector.header)


def _concrete(steering: Steering) -> Steering:
    """The same with nothing left to be made orthogonal, so that what it is joined with does not change it."""
    if not steering.orthogonal:
        return steering
    terms = []
    for term, along in zip(steering.terms, steering.directions(), strict=True):
        done = term
        if term.operation == "add" and term.value:
            done = replace(term, vector=_with_added(term, along))
        terms.append(done)
    return Steering(tuple(terms))


def _with_added(term: Term, added: dict[int, torch.Tensor]) -> PersonaVector:
    """The vector of a term that adds, so that the term adds this at its layers."""
    directions = term.vector.directions
    for layer, v in added.items():
        directions[layer] = v / term.value
    if term.layers == "increments":
        directions = directions.cumsum(dim=0)
    return PersonaVector(directions, term.vector.reference_norm, term.vector.header)


def _without_holds(term: Term, holds: Sequence[Term]) -> tuple[Term, list[tuple[int, Term]]]:
    """The term without its parts along what is held at each layer, and what it lost: layers, each with its hold."""
    along, lost = term.directions(), []
    for layer in term.touched:
        for hold in holds:
            changed = _without_part(along[layer], hold, layer, PUSHES.get(term.operation))
            if changed is not along[layer]:
                along[layer] = changed
                lost.append((layer, hold))
    if not lost:
        return term, []
    if term.operation == "add":
        return replace(term, vector=_with_added(term, along)), lost
    directions = term.vector.directions
    for layer, v in along.items():
        directions[layer] = v
    return replace(term, vector=PersonaVector(directions, term.vector.reference_norm, term.vector.header)), lost


def _without_part(v: torch.Tensor, hold: Term, layer: int, pushes: int | None) -> torch.Tensor:
    """v without what works against a hold at a layer; v itself where nothing does."""
    [first] = hold.touched
    if layer < first or (layer == first and hold.operation == "cap"):
        return v
    unit = hold.vector.unit(layer)
    if pushes is not None:
        push = pushes * float(v.double() @ unit.double())
        if (hold.operation == "cap" and push <= 0) or (hold.operation == "floor" and push >= 0):
            return v
    against = [unit]
    if hold.operation != "cap":  # which alone comes after every other operator
        against.append(orthogonal_part(hold.vector.unit(first)[None], [unit[None]])[0])
    remainder = orthogonal_part(v[None], [u[None] for u in against])[0]
    lost = torch.linalg.vector_norm(v - remainder) > NEGLIGIBLE * torch.linalg.vector_norm(v)
    return remainder if lost else v
