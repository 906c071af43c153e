"""Prove that a vector is the trait: layer sweep, dose curve, controls and baselines → ``Certificate``.

Layer and dose are chosen on one half of the evaluation questions; everything reported is measured on
the other half (PAPER's trap: thresholds and layers picked on the data they are reported on).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from poise.arguments import check_number, check_type
from poise.contrast import ResponseRequest, instructions
from poise.errors import InvalidArgument
from poise.steer import Steering
from poise.trait import Trait
from poise.validate.certificate import Certificate, JudgeFacts, Point, Prompting, RandomControl, Sample, Spread
from poise.validate.conditions import Measured, Ordinary, ValidationRun, nanmean, over_questions
from poise.validate.verdict import Evidence, decide, monotone, usable_doses
from poise.vector import PersonaVector

__all__ = ["Certificate", "ValidationRun", "ValidationSettings", "certify", "check_question_count"]

SAMPLES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSettings:
    """How many layers and doses validation tries. Doses are ``α‖v‖ / mean‖h‖``.

    Attributes:
        layers: Number of layers that are tried.
        depth: First and last of them, as shares of the model's depth.
        sweep_doses: Doses at which the layers are compared.
        doses: Further doses that are tried at the best layer.
        curve: Points of the dose curve, as shares of the chosen dose.
        random_draws: Number of random directions that the vector is compared with.
        coherence_floor: Lowest coherence, from 0 to 100, at which a dose counts as usable.
        selection_margin: How far above the floor coherence must be for a dose to be chosen.
    """

    layers: int = 7
    depth: tuple[float, float] = (0.15, 0.75)
    sweep_doses: tuple[float, ...] = (0.2, 0.35)
    doses: tuple[float, ...] = (0.1, 0.15, 0.25, 0.3, 0.45)
    curve: tuple[float, ...] = (-1.0, -2 / 3, -1 / 3, 1 / 3, 2 / 3, 1.0, 4 / 3, 5 / 3)
    random_draws: int = 3
    coherence_floor: float = 50.0
    selection_margin: float = 10.0

    def __post_init__(self) -> None:
        for name in ("layers", "random_draws"):
            check_number(name, getattr(self, name), least=1, most=10_000)
        for name in ("coherence_floor", "selection_margin"):
            check_number(name, getattr(self, name), least=0, most=100)
        for name, least in (("depth", 0), ("sweep_doses", 1e-6), ("doses", 1e-6), ("curve", -100)):
            values = getattr(self, name)
            check_type(name, values, (tuple, list), "a tuple of numbers")
            for value in values:
                check_number(f"A value of {name}", value, least=least, most=1 if name == "depth" else 100)
        if len(self.depth) != 2 or self.depth[0] > self.depth[1]:
            raise InvalidArgument(f"depth is {self.depth}; give the first and the last share, such as (0.15, 0.75).")
        if not self.sweep_doses or not {-1.0, 1.0} <= set(self.curve):
            raise InvalidArgument("sweep_doses needs at least one dose, and curve the points -1.0 and 1.0.")

    def candidates(self, layers: int) -> list[int]:
        """Layers to try, evenly over the stated depth."""
        first, last = (round(share * layers) for share in self.depth)
        return sorted({round(x) for x in np.linspace(first, min(last, layers - 1), self.layers)})


@dataclass(frozen=True, slots=True)
class DoseChoice:
    """What the selection half settled on, and all that it saw."""

    layer: int
    dose: float
    sweep: tuple[Point, ...]


def check_question_count(n: int) -> None:
    """Refuse too few questions to select on one half and report on the other.

    Raises:
        InvalidArgument: fewer than 4.
    """
    if n < 4:
        questions = "question is" if n == 1 else "questions are"
        raise InvalidArgument(f"{n} evaluation {questions} too few to select and report on; ask for at least 4.")


def certify(
    vector: PersonaVector,
    run: ValidationRun,
    questions: Sequence[str],
    judge: JudgeFacts,
    *,
    settings: ValidationSettings | None = None,
    notes: Sequence[str] = (),
) -> Certificate:
    """Steer with the vector on questions that its extraction never saw, beside every control, and decide.

    Args:
        vector: A vector of the run's model.
        run: Engine, judges, sampling and run folder.
        questions: At least 4; the even ones select, the odd ones report.
        judge: What is known of the judge; an unusable one cannot certify anything.
        settings: How wide to look.
        notes: For the certificate.

    Returns:
        The certificate. ``induced`` only when the trait rises with the dose, rises more than along random directions,
        and coherence holds; else ``not-induced`` with every reason.
    """
    check_question_count(len(questions))
    wide = settings or ValidationSettings()
    selection, reporting = tuple(questions[0::2]), tuple(questions[1::2])
    ordinary = run.ordinary(questions)
    # Choosing needs less care than reporting, and sees many more conditions.
    choice = _select(vector, replace(run, rollouts=max(1, run.rollouts // 2)), selection, ordinary, wide)
    measured = _measure(vector, run, reporting, ordinary, choice, wide)
    return _certificate(vector, run, judge, choice, measured, wide, (selection, reporting), tuple(notes))


def _certificate(
    vector: PersonaVector,
    run: ValidationRun,
    judge: JudgeFacts,
    choice: DoseChoice,
    measured: dict[str, Measured],
    wide: ValidationSettings,
    questions: tuple[tuple[str, ...], tuple[str, ...]],
    notes: tuple[str, ...],
) -> Certificate:
    plain, chosen = measured["dose 0"], measured["dose 1"]
    draws = [measured[f"random {k}"] for k in range(wide.random_draws)]
    evidence = Evidence(
        rise=chosen.by_question - plain.by_question,
        random_rise=np.mean([d.by_question - plain.by_question for d in draws], axis=0),
        curve={f: measured[f"dose {f:g}"].by_question for f in _fractions(wide) if abs(f) <= 1},
        coherence=over_questions(nanmean(chosen.coherence)),
        floor=wide.coherence_floor,
        judge=judge,
    )
    verdict, reasons = decide(evidence)
    curve = tuple(_point(vector, choice.layer, f * choice.dose, measured[f"dose {f:g}"]) for f in _fractions(wide))
    return Certificate(
        verdict=verdict,
        reasons=reasons,
        layer=choice.layer,
        layers=vector.layers,
        coefficient=round(vector.coef(choice.dose, choice.layer), 4),
        dose=choice.dose,
        usable_doses=usable_doses(curve, wide.coherence_floor),
        coherence_floor=wide.coherence_floor,
        rise=over_questions(evidence.rise),
        monotone=monotone(evidence.curve),
        sweep=choice.sweep,
        curve=curve,
        random=_random(draws, evidence, choice.dose),
        prompting=_prompting(measured),
        spread=_spread(evidence.rise),
        agreement=vector.header.agreement[choice.layer] if vector.header.agreement else None,
        judge=judge,
        samples=_samples(questions[1], measured, run.rollouts),
        selected_on=questions[0],
        questions=questions[1],
        rollouts=run.rollouts,
        max_new_tokens=run.sampling.max_new_tokens,
        temperature=run.sampling.temperature,
        seed=run.seed,
        notes=notes,
    )


def _select(
    vector: PersonaVector, run: ValidationRun, questions: Sequence[str], ordinary: Ordinary, wide: ValidationSettings
) -> DoseChoice:
    """Layer first, at the sweep's doses, then the dose at that layer."""

    def tried(pairs: Sequence[tuple[int, float]], what: str) -> dict[tuple[int, float], Measured]:
        conditions = {
            f"{layer} {dose}": run.asks(
                questions, ResponseRequest(question="", steering=Steering.add(vector, dose=dose, layer=layer))
            )
            for layer, dose in pairs
        }
        return dict(zip(pairs, run.measure(conditions, ordinary, what=what).values(), strict=True))

    plain = run.measure({"plain": run.asks(questions, ResponseRequest(question=""))}, ordinary, what="unsteered")[
        "plain"
    ].mean_trait
    layers = [i for i in wide.candidates(vector.layers) if vector.norms[i]] or [vector.at("steer").layer]
    seen = tried([(layer, dose) for layer in layers for dose in wide.sweep_doses], "layer sweep")
    layer, _ = _best(seen, plain, wide)
    seen |= tried([(layer, dose) for dose in wide.doses], f"strengths at layer {layer}")
    _, dose = _best({key: m for key, m in seen.items() if key[0] == layer}, plain, wide)
    points = tuple(_point(vector, i, d, m) for (i, d), m in sorted(seen.items()))
    return DoseChoice(layer, dose, points)


def _best(seen: dict[tuple[int, float], Measured], plain: float, wide: ValidationSettings) -> tuple[int, float]:
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


def _measure(
    vector: PersonaVector,
    run: ValidationRun,
    questions: Sequence[str],
    ordinary: Ordinary,
    choice: DoseChoice,
    wide: ValidationSettings,
) -> dict[str, Measured]:
    """Dose curve, random directions and prompting on the reporting half, in shared batches."""
    conditions: dict[str, list[ResponseRequest]] = {}
    for fraction in _fractions(wide):
        steered = Steering.add(vector, dose=fraction * choice.dose, layer=choice.layer) if fraction else None
        conditions[f"dose {fraction:g}"] = run.asks(questions, ResponseRequest(question="", steering=steered))
    for k in range(wide.random_draws):
        steered = random_like(vector, choice.layer, choice.dose, seed=run.seed + k)
        conditions[f"random {k}"] = run.asks(questions, ResponseRequest(question="", steering=steered))
    if isinstance(trait := vector.header.trait, Trait):
        for side in ("positive", "negative"):
            systems = instructions(trait, side)
            conditions[f"prompting {side}"] = [
                a
                for i, question in enumerate(questions)
                for a in run.asks([question], ResponseRequest(question="", system=systems[i % len(systems)]))
            ]
    return run.measure(conditions, ordinary, what="dose curve and controls")


def random_like(vector: PersonaVector, layer: int, dose: float, *, seed: int) -> Steering:
    """Steering along a random direction of the vector's norm: what any push of that strength does."""
    drawn = torch.randn(vector.directions.shape, generator=torch.Generator().manual_seed(seed))
    directions = drawn / drawn.norm(dim=-1, keepdim=True) * vector.norms.unsqueeze(-1)
    return Steering.add(PersonaVector(directions, vector.reference_norm, vector.header), dose=dose, layer=layer)


def _fractions(wide: ValidationSettings) -> list[float]:
    """Strengths of the curve as fractions of the chosen dose, zero included, ascending."""
    return sorted({0.0, 1.0, *wide.curve})


def _point(vector: PersonaVector, layer: int, dose: float, measured: Measured) -> Point:
    trait, coherence = measured.figures()
    return Point(
        layer=layer,
        coefficient=round(vector.coef(dose, layer), 4),
        dose=round(dose, 4),
        trait=trait,
        coherence=coherence,
        missing=measured.missing,
    )


def _random(draws: Sequence[Measured], evidence: Evidence, dose: float) -> RandomControl:
    every = Measured(
        answers=(),
        trait=np.concatenate([d.trait for d in draws], axis=1),
        coherence=np.concatenate([d.coherence for d in draws], axis=1),
    )
    trait, coherence = every.figures()
    return RandomControl(
        draws=len(draws),
        dose=dose,
        trait=trait,
        coherence=coherence,
        rise=over_questions(evidence.random_rise),
        margin=over_questions(evidence.rise - evidence.random_rise),
    )


def _prompting(measured: dict[str, Measured]) -> Prompting | None:
    if "prompting positive" not in measured:
        return None
    positive, coherence = measured["prompting positive"].figures()
    negative, other = measured["prompting negative"].figures()
    return Prompting(positive=positive, negative=negative, coherence=coherence, negative_coherence=other)


def _spread(rise: np.ndarray) -> Spread:
    known = rise[~np.isnan(rise)]
    return Spread(
        changes=tuple(None if np.isnan(x) else round(float(x), 2) for x in rise),
        wrong_way=round(float((known < 0).mean()), 4) if len(known) else 0.0,
    )


def _samples(questions: Sequence[str], measured: dict[str, Measured], rollouts: int) -> tuple[Sample, ...]:
    """The first rollout of the first questions at −, 0 and + of the chosen dose."""
    return tuple(
        Sample(
            question=question,
            negative=measured["dose -1"].answers[i * rollouts].text,
            plain=measured["dose 0"].answers[i * rollouts].text,
            positive=measured["dose 1"].answers[i * rollouts].text,
        )
        for i, question in enumerate(questions[:SAMPLES])
    )
