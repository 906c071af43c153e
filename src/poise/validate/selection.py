"""Layer and dose of a vector, chosen on one half of the questions. Random directions choose in the very same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from poise.contrast import ResponseRequest
from poise.steer import Steering
from poise.validate.certificate import Point
from poise.validate.conditions import Measured, Ordinary, ValidationRun
from poise.validate.settings import ValidationSettings
from poise.vector import PersonaVector

__all__ = ["DoseChoice", "choose_doses", "curve_point"]

Tried = Mapping[tuple[int, float], Measured]


@dataclass(frozen=True, slots=True)
class DoseChoice:
    """What the selection half settled on, and all that it saw."""

    layer: int
    dose: float
    sweep: tuple[Point, ...]


def choose_doses(
    vectors: Sequence[PersonaVector],
    run: ValidationRun,
    questions: Sequence[str],
    ordinary: Ordinary,
    wide: ValidationSettings,
) -> list[DoseChoice]:
    """For each vector the layer first, at the sweep's doses, then the dose at that layer; all in the same batches."""

    def tried(trials: Sequence[tuple[int, int, float]], what: str) -> dict[tuple[int, int, float], Measured]:
        conditions = {
            f"{k} {layer} {dose}": run.asks(
                questions, ResponseRequest(question="", steering=Steering.add(vectors[k], dose=dose, layer=layer))
            )
            for k, layer, dose in trials
        }
        return dict(zip(trials, run.measure(conditions, ordinary, what=what).values(), strict=True))

    unsteered = run.measure({"plain": run.asks(questions, ResponseRequest(question=""))}, ordinary, what="unsteered")
    plain = unsteered["plain"].mean_trait
    sweep = [
        (k, layer, dose)
        for k, vector in enumerate(vectors)
        for layer in ([i for i in wide.candidates(vector.layers) if vector.norms[i]] or [vector.at("steer").layer])
        for dose in wide.sweep_doses
    ]
    seen = tried(sweep, "layer sweep")
    layers = [_best(_of(seen, k), plain, wide)[0] for k in range(len(vectors))]
    where = f"strengths at layer {layers[0]}" if len(vectors) == 1 else "strengths"
    seen |= tried([(k, layer, dose) for k, layer in enumerate(layers) for dose in wide.doses], where)
    return [_choice(vector, _of(seen, k), layers[k], plain, wide) for k, vector in enumerate(vectors)]


def _of(seen: Mapping[tuple[int, int, float], Measured], k: int) -> dict[tuple[int, float], Measured]:
    return {(layer, dose): measured for (vector, layer, dose), measured in seen.items() if vector == k}


def _choice(vector: PersonaVector, seen: Tried, layer: int, plain: float, wide: ValidationSettings) -> DoseChoice:
    _, dose = _best({key: m for key, m in seen.items() if key[0] == layer}, plain, wide)
    return DoseChoice(layer, dose, tuple(curve_point(vector, i, d, m) for (i, d), m in sorted(seen.items())))


def _best(seen: Tried, plain: float, wide: ValidationSettings) -> tuple[int, float]:
    """The best balance among what stays coherent with a margin; if nothing does, the most coherent.

    Balance is the harmonic mean of coherence and the trait's rise, as a share of the room above the unsteered score
    (AxBench weighs concept and fluency so, arXiv:2501.17148). The highest trait score alone picks the strength just
    before the text breaks; the score itself, without what was there before, picks almost no strength.
    """
    floor = wide.coherence_floor + wide.selection_margin
    coherent = {key: m for key, m in seen.items() if m.mean_coherence >= floor}
    if coherent:
        return max(coherent, key=lambda key: _balance(coherent[key], plain))
    return max(seen, key=lambda key: seen[key].mean_coherence)


def _balance(measured: Measured, plain: float) -> float:
    rise = 100 * (measured.mean_trait - plain) / max(100 - plain, 1.0)
    if rise <= 0:
        return rise  # below all that rise
    return 2 * rise * measured.mean_coherence / (rise + measured.mean_coherence)


def curve_point(vector: PersonaVector, layer: int, dose: float, measured: Measured) -> Point:
    """All answers at one layer and dose."""
    trait, coherence = measured.figures()
    return Point(
        layer=layer,
        coefficient=round(vector.coef(dose, layer), 4),
        dose=round(dose, 4),
        trait=trait,
        coherence=coherence,
        missing=measured.missing,
    )
