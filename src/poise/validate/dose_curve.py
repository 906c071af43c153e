"""Prove that a vector is the trait: layer sweep, dose curve, controls and baselines → ``Certificate``.

Layer and dose are chosen on one half of the evaluation questions; everything reported is measured on
the other half (PAPER's trap: thresholds and layers picked on the data they are reported on).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from poise.contrast import ResponseRequest, instructions
from poise.progress import remark
from poise.steer import Steering
from poise.trait import Trait
from poise.validate.certificate import Certificate, JudgeFacts, Prompting, Sample, Spread
from poise.validate.conditions import Measured, Ordinary, ValidationRun, change_over_questions, nanmean, over_questions
from poise.validate.cost import validation_cost
from poise.validate.random_control import fixed_control, random_like, search_random, selection_run
from poise.validate.selection import DoseChoice, choose_doses, curve_point
from poise.validate.settings import ValidationSettings, check_question_count
from poise.validate.verdict import Evidence, decide, monotone, objections, usable_doses
from poise.vector import PersonaVector

__all__ = ["Certificate", "ValidationRun", "ValidationSettings", "certify", "check_question_count"]

SAMPLES = 6


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
        The certificate. ``induced`` only when the trait rises with the dose, rises more than along random directions
        that choose layer and dose as the vector does, and coherence holds; ``not-induced`` with every reason that
        speaks against it; ``indicative`` where none does and the evidence is too thin for a verdict.
    """
    check_question_count(len(questions))
    wide = settings or ValidationSettings()
    halves = tuple(questions[0::2]), tuple(questions[1::2])
    ordinary, pace = _timed_ordinary(run, questions)
    remark(validation_cost(vector, len(questions), run, wide).sentence(pace))
    (choice,) = choose_doses([vector], selection_run(run), halves[0], ordinary, wide)
    measured = _measure(vector, run, halves[1], ordinary, choice, wide)
    evidence = _evidence(measured, judge, wide)
    search = None
    if wide.random_searches and not objections(evidence):
        search = search_random(vector, run, halves, ordinary, wide, (measured["dose 1"], measured["dose 0"]))
    return _certificate(vector, run, choice, measured, wide, halves, replace(evidence, search=search), tuple(notes))


def _timed_ordinary(run: ValidationRun, questions: Sequence[str]) -> tuple[Ordinary, float | None]:
    """Unsteered answers, and the seconds that one took; ``None`` where they are kept from before."""
    before, began = len(run.store.answers), time.monotonic()
    ordinary = run.ordinary(questions)
    answered = len(run.store.answers) - before
    return ordinary, (time.monotonic() - began) / answered if answered else None


def _evidence(measured: dict[str, Measured], judge: JudgeFacts, wide: ValidationSettings) -> Evidence:
    plain, chosen = measured["dose 0"], measured["dose 1"]
    draws = [measured[f"random {k}"] for k in range(wide.random_draws)]
    return Evidence(
        rise=change_over_questions(chosen.by_question, plain.by_question),
        margin=fixed_control(draws, chosen, plain, 0.0, None).margin,
        curve={f: measured[f"dose {f:g}"].by_question for f in wide.fractions() if abs(f) <= 1},
        coherence=over_questions(nanmean(chosen.coherence)),
        floor=wide.coherence_floor,
        judge=judge,
    )


def _certificate(
    vector: PersonaVector,
    run: ValidationRun,
    choice: DoseChoice,
    measured: dict[str, Measured],
    wide: ValidationSettings,
    questions: tuple[tuple[str, ...], tuple[str, ...]],
    evidence: Evidence,
    notes: tuple[str, ...],
) -> Certificate:
    plain, chosen = measured["dose 0"], measured["dose 1"]
    draws = [measured[f"random {k}"] for k in range(wide.random_draws)]
    verdict, reasons = decide(evidence)
    curve = tuple(curve_point(vector, choice.layer, f * choice.dose, measured[f"dose {f:g}"]) for f in wide.fractions())
    return Certificate(
        verdict=verdict,
        reasons=reasons,
        layer=choice.layer,
        layers=vector.layers,
        coefficient=round(vector.coef(choice.dose, choice.layer), 4),
        dose=choice.dose,
        usable_doses=usable_doses(curve, wide.coherence_floor),
        coherence_floor=wide.coherence_floor,
        rise=evidence.rise,
        monotone=monotone(evidence.curve),
        sweep=choice.sweep,
        curve=curve,
        random=fixed_control(draws, chosen, plain, choice.dose, evidence.search),
        prompting=_prompting(measured),
        spread=_spread(chosen.by_question - plain.by_question),
        agreement=vector.header.agreement[choice.layer] if vector.header.agreement else None,
        judge=evidence.judge,
        samples=_samples(questions[1], measured, run.rollouts),
        selected_on=questions[0],
        questions=questions[1],
        rollouts=run.rollouts,
        max_new_tokens=run.sampling.max_new_tokens,
        temperature=run.sampling.temperature,
        seed=run.seed,
        notes=notes,
    )


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
    for fraction in wide.fractions():
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
