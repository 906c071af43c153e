"""Numbers and sentences of a report: every figure with its interval and n, and what is missing in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poise.validate.certificate import Certificate, Figure, Point
    from poise.vector import Header

__all__ = ["chosen", "figure", "headline", "interval", "limits", "meaning", "mirrored", "moved", "number", "plain"]

MISSING = "–"


def number(value: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """A number with a true minus sign; ``–`` where there is none."""
    if value is None:
        return MISSING
    rounded = round(value, digits) + 0.0  # + 0.0: no minus before a zero
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}".replace("-", "−")


def interval(figure: Figure, digits: int = 1, *, signed: bool = False) -> str:
    """``[low, high]``, or the words for its absence."""
    if figure.value is None:
        return "not measured"
    if figure.low is None or figure.high is None:
        return "no interval"
    return f"[{number(figure.low, digits, signed=signed)}, {number(figure.high, digits, signed=signed)}]"


def figure(figure: Figure, digits: int = 1, *, signed: bool = False) -> str:
    """``31.2 [24.1, 38.0]``; an absent part is said in brackets."""
    span = interval(figure, digits, signed=signed)
    return f"{number(figure.value, digits, signed=signed)} {span if span.startswith('[') else f'({span})'}"


def headline(certificate: Certificate) -> str:
    """The verdict in one or two plain sentences: how far the score rises beside random directions, or what failed."""
    if certificate.verdict == "induced":
        return f"induced: {moved(certificate)}"
    sentence = moved(certificate)
    return f"not induced: {'; '.join(certificate.reasons)}. {sentence[0].upper()}{sentence[1:]}"


def moved(certificate: Certificate) -> str:
    """What steering did at the chosen dose, beside what random directions did."""
    where = f"at layer {certificate.layer} of {certificate.layers} and dose {number(certificate.dose, 2)}"
    rise = certificate.rise
    if rise.value is None:
        return f"{where} no change of the trait score could be measured (n = {rise.n} questions)."
    random = certificate.random.rise
    beside = "random directions were not measured" if random.value is None else f"random directions by {figure(random)}"
    return f"{where} the trait score {_change(rise)} points (n = {rise.n} questions); {beside}."


def _change(rise: Figure) -> str:
    """``rises by …`` or, where it does not, ``changes by …``."""
    return f"{'rises' if (rise.value or 0) > 0 else 'changes'} by {figure(rise)}"


def chosen(certificate: Certificate) -> Point | None:
    """The point of the curve at the chosen dose."""
    return _at(certificate.curve, certificate.dose)


def mirrored(certificate: Certificate) -> Point | None:
    """The point of the curve at minus the chosen dose."""
    return _at(certificate.curve, -certificate.dose)


def plain(certificate: Certificate) -> Point | None:
    """The unsteered point of the curve."""
    return _at(certificate.curve, 0.0)


def _at(points: Sequence[Point], dose: float) -> Point | None:
    return next((p for p in points if abs(p.dose - dose) < 5e-4), None)


def meaning(header: Header, certificate: Certificate) -> tuple[str, str]:
    """What the verdict means, and what it does not, each a paragraph for somebody new to the subject."""
    trait, model, judge = header.trait.adjective, header.model.name, certificate.judge.name
    if certificate.verdict == "induced":
        return (
            f"Adding this direction to the activations of {model} while it writes makes its answers more {trait}, as "
            f"the judge “{judge}” scores them. The score rises with the dose and rises more than along random "
            "directions of the same length, and coherence stays above the floor. This was measured on "
            f"{len(certificate.asked)} questions that neither extraction nor the choice of layer and dose had seen.",
            f"It does not mean that the model is {trait} when left alone, that the direction holds this trait and "
            "nothing else, or that the effect carries over to other models, other languages or long conversations.",
        )
    means = (
        f"Steering {model} along this direction did not pass every check, for the reasons given above. Until it does, "
        f"the direction is not shown to be “{trait}”: do not rely on it to steer or to watch that trait."
    )
    if not certificate.judge.usable:
        means += (
            f" The judge “{judge}” could not tell answers with the trait from answers without it, so the trait scores "
            "on this page say nothing, for or against."
        )
    return (
        means,
        f"It does not mean that {model} cannot be {trait}, or that the direction is noise. Another source of contrast, "
        "more exemplars or questions, or another judge may still show it. The figures below help to see what is wrong.",
    )


def limits(header: Header, certificate: Certificate) -> list[str]:
    """What the figures cannot say, each a sentence or two."""
    c = certificate
    return [
        f"The trait is what “{c.judge.name}” scores, which is not always what a person would say.",
        f"Intervals are 95 % bootstraps over {len(c.asked)} questions. They cover which questions were asked, not the "
        "judge's own errors, and are not corrected for how many are shown.",
        f"Every answer is a single turn of at most {c.max_new_tokens} tokens, sampled {_times(c.rollouts)} a question "
        f"at temperature {c.temperature:g}. Longer talk was not tried.",
        f"Steering acts at one layer, found on {len(c.selected_on)} other questions. Doses outside those shown were "
        "not tried.",
        "Coherence says how well-formed the text is, not whether it is true, helpful or safe. General ability was not "
        "measured.",
        "Only this trait was scored. A direction can carry its neighbours along, and traits that overlap share "
        "directions.",
        f"The random control is {c.random.draws} directions; a rarer one could do more.",
        f"The vector belongs to {header.model.name} with the fingerprint given above, and to no other model.",
    ]


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")
