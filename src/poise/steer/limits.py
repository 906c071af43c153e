"""What a certificate has to say about the strength that somebody asks for."""

from __future__ import annotations

from poise.steer.steering import Steering, Term

__all__ = ["LARGEST_DIAL_DOSE", "RISKY_DOSE", "UNCERTIFIED_DIAL_RANGE", "cautions"]

DOSE_ROUNDING = 1e-4  # a dose is rounded on its way through α
RISKY_DOSE = 0.6  # a dose beyond which text usually breaks; nothing better is known without a certificate
UNCERTIFIED_DIAL_RANGE = (-0.4, 0.4)  # doses that a dial is scaled to where no certificate says which are usable
LARGEST_DIAL_DOSE = 1.5  # no dial goes further to either side; text usually breaks near 1


def cautions(steering: Steering | None) -> list[str]:
    """A sentence for each term that its certificate does not cover, with the range that it does cover."""
    return [text for term in (steering.terms if steering else ()) if (text := _term_caution(term))]


def _term_caution(term: Term) -> str | None:
    if term.operation != "add":
        return None
    vector, certificate = term.vector, term.vector.header.certificate
    if certificate is not None and certificate["verdict"] == "not-induced":
        return (
            f"{vector.name} is certified not-induced on {vector.header.model.name}: steering with it does something "
            "else, or nothing; see `poise show`."
        )
    if term.layers == "increments":
        return None
    doses = {layer: vector.dose(term.value, layer) for layer in term.layers}
    if certificate is not None and certificate["layer"] in doses:
        (low, high), dose = certificate["usable_doses"], doses[certificate["layer"]]
        if not low - DOSE_ROUNDING <= dose <= high + DOSE_ROUNDING:
            return (
                f"A dose of {dose:.0%} of {vector.name} lies outside {low:.0%} to {high:.0%}, where its certificate "
                "saw coherent text; expect broken text."
            )
        return None
    layer, dose = max(doses.items(), key=lambda item: abs(item[1]))
    if abs(dose) > RISKY_DOSE:
        known = (
            "it has no certificate" if certificate is None else f"its certificate is for layer {certificate['layer']}"
        )
        return (
            f"A dose of {dose:.0%} of {vector.name} at layer {layer} of {vector.layers} is strong, and {known}: text "
            "usually breaks near 100%; run `poise validate`, or use less."
        )
    return None
