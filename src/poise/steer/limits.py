"""What a certificate has to say about the strength that somebody asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from poise.model.parts import Part
from poise.steer.steering import Phase, Steering, Term
from poise.steer.total_dose import total_dose
from poise.vector import PersonaVector

__all__ = ["LARGEST_DIAL_DOSE", "RISKY_DOSE", "UNCERTIFIED_DIAL_RANGE", "cautions"]

DOSE_ROUNDING = 1e-4  # a dose is rounded on its way through α
RISKY_DOSE = 0.6  # a dose beyond which text usually breaks; nothing better is known without a certificate
UNCERTIFIED_DIAL_RANGE = (-0.4, 0.4)  # doses that a dial is scaled to where no certificate says which are usable
LARGEST_DIAL_DOSE = 1.5  # no dial goes further to either side; text usually breaks near 1


def cautions(steering: Steering | None) -> list[str]:
    """A sentence for each vector whose certificate does not cover what is added, with the range that it does cover.

    One more where all terms and layers together are strong, though each by itself may not be.
    """
    terms = steering.terms if steering else ()
    added: dict[int, list[Term]] = {}
    for term in terms:
        if term.operation == "add":
            added.setdefault(id(term.vector), []).append(term)
    sentences = [text for several in added.values() for text in _vector_cautions(several[0].vector, several)]
    return sentences + _total_caution(steering)


def _vector_cautions(vector: PersonaVector, terms: Sequence[Term]) -> list[str]:
    certificate = vector.header.certificate
    if certificate is not None and certificate["verdict"] == "not-induced":
        return [
            f"{vector.name} is certified not-induced on {vector.header.model.name}: steering with it does something "
            "else, or nothing; see `poise show`."
        ]
    at_layers = [term for term in terms if term.layers != "increments"]
    doses = {layer: _strongest(at_layers, layer) for layer in sorted({i for t in at_layers for i in t.touched})}
    out = []
    if certificate is not None and (dose := doses.pop(certificate["layer"], None)) is not None:
        low, high = certificate["usable_doses"]
        if not low - DOSE_ROUNDING <= dose <= high + DOSE_ROUNDING:
            out.append(
                f"A dose of {_percent_apart(dose, low, high)} of {vector.name} lies outside {low:.0%} to {high:.0%}, "
                "where its certificate saw coherent text; expect broken text."
            )
    layer, dose = max(doses.items(), key=lambda item: abs(item[1]), default=(0, 0.0))
    if abs(dose) > RISKY_DOSE + DOSE_ROUNDING:
        known = (
            "it has no certificate" if certificate is None else f"its certificate is for layer {certificate['layer']}"
        )
        out.append(
            f"A dose of {dose:.0%} of {vector.name} at layer {layer} of {vector.layers} is strong, and {known}: text "
            "usually breaks near 100%; run `poise validate`, or use less."
        )
    return out


def _percent_apart(dose: float, *bounds: float) -> str:
    """A dose with as many decimals as it takes to tell it from these."""
    for decimals in range(17):
        if (text := f"{dose:.{decimals}%}") not in [f"{bound:.{decimals}%}" for bound in bounds]:
            break
    return text


def _strongest(terms: Sequence[Term], layer: int) -> float:
    """The strongest dose, either way, that one token gets of one vector at a layer by all terms together."""
    acting = [term for term in terms if layer in term.touched]
    sums = [0.0]
    for phase in get_args(Phase)[:2]:
        for part in get_args(Part)[:2]:
            here = [t for t in acting if t.phase in (phase, "all") and (phase == "prompt" or t.part in (part, "both"))]
            for token in {t.tokens[0] for t in here}:
                now = [t for t in here if t.tokens[0] <= token and (t.tokens[1] is None or token < t.tokens[1])]
                always = sum(t.value for t in now if t.when is None)
                perhaps = [t.value for t in now if t.when is not None]
                sums += [always, always + sum(x for x in perhaps if x > 0), always + sum(x for x in perhaps if x < 0)]
    return acting[0].vector.dose(max(sums, key=abs), layer)


def _total_caution(steering: Steering | None) -> list[str]:
    """Where the sum is strong and is more than one vector's at one layer, which has its own sentence."""
    total = total_dose(steering)
    places = {(id(share.term.vector), share.layer, share.term.operation == "add") for share in total.shares}
    if total.added <= RISKY_DOSE + DOSE_ROUNDING or (len(places) == 1 and all(added for _, _, added in places)):
        return []
    return [
        f"The steering comes to a dose of {total.added:.0%} in all ({total.sum_of_added}): text usually breaks near "
        "100%, and certificates cover one vector at one layer; use less."
    ]
