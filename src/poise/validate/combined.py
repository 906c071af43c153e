"""What is lost when two vectors steer at once: each trait's rise alone and in company, paired by question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from poise.contrast import ResponseRequest
from poise.errors import InvalidArgument
from poise.judge import Judge
from poise.statistics.estimates import Estimate
from poise.steer import Steering
from poise.trait import Trait, same_question
from poise.trait.library import evaluation_questions
from poise.validate.certificate import Certificate, CombinedSteering, CombinedTrait
from poise.validate.conditions import Measured, ValidationRun, change_over_questions, nanmean, over_questions
from poise.vector import PersonaVector

__all__ = ["DEFAULT_DOSE", "SecondVector", "combined_steering"]

DEFAULT_DOSE = 0.2
"""Dose of a second vector without a certificate: the lowest that validation tries at every layer."""


@dataclass(frozen=True, slots=True)
class SecondVector:
    """The vector that steers as well, its judge, and why no score of that judge counts (empty where it is usable)."""

    vector: PersonaVector
    judge: Judge
    why_unusable: str = ""

    @property
    def certificate(self) -> dict[str, object]:
        """What its file says of it; empty where it was never validated."""
        return dict(self.vector.header.certificate or {})

    @property
    def layer(self) -> int:
        """The layer that the second vector steers at."""
        return self.vector.at("steer").layer

    @property
    def dose(self) -> float:
        """The certificate's, or the default."""
        dose = self.certificate.get("dose")
        return float(dose) if isinstance(dose, int | float) else DEFAULT_DOSE


def combined_steering(
    vector: PersonaVector, certificate: Certificate, second: SecondVector, run: ValidationRun
) -> CombinedSteering:
    """Steer by each vector alone, by their plain sum and, where they share a layer, by both made orthogonal.

    Args:
        vector: The first, at its certificate's layer and dose.
        certificate: The first vector's certificate.
        second: At its own certificate's layer and dose, or the default ones.
        run: The run of ``certify``; its judge scores the first trait. Up to five conditions × questions × rollouts.

    Returns:
        Rises over the unsteered answers and what company costs. Questions come from both traits in turn, as many as
        the first's certificate reported on; none chose a layer or a dose or went into a vector or a judge.

    Raises:
        InvalidArgument: no question is left that neither vector has seen.
    """
    other = second.vector
    questions = _questions(vector, certificate, second)
    one = Steering.add(vector, dose=certificate.dose, layer=certificate.layer)
    two = Steering.add(other, dose=second.dose, layer=second.layer)
    both = (*one.terms, *two.terms)
    ways = {
        "unsteered": None,
        "first alone": one,
        "second alone": two,
        "plain sum": Steering(both),
    }
    if certificate.layer == second.layer:
        ways["orthogonal"] = Steering(both, orthogonal=True)
    conditions = {name: run.asks(questions, ResponseRequest(question="", steering=way)) for name, way in ways.items()}
    ordinary = run.ordinary(questions)
    runs = (run, replace(run, judge=second.judge, scope=other.header.trait_hash))
    firsts, seconds = (b.measure(conditions, ordinary, what=f"beside {other.name}") for b in runs)
    return CombinedSteering(
        other=other.name,
        other_hash=other.header.trait_hash,
        other_certified=second.certificate.get("verdict") == "induced",
        layer=certificate.layer,
        dose=certificate.dose,
        other_layer=second.layer,
        other_dose=second.dose,
        cosine=round(float(vector.cosine(other)[second.layer]), 4),
        conditions=tuple(_combined_trait(name, firsts, seconds) for name in ways if name != "unsteered"),
        questions=questions,
        notes=tuple(_notes(certificate, second)),
    )


def _combined_trait(name: str, firsts: dict[str, Measured], seconds: dict[str, Measured]) -> CombinedTrait:
    shared = name not in ("first alone", "second alone")
    return CombinedTrait.model_validate(
        {
            "name": name,
            "first": _paired_change(firsts, name, "unsteered"),
            "second": _paired_change(seconds, name, "unsteered"),
            "coherence": over_questions(nanmean(firsts[name].coherence)),
            "first_lost": _paired_change(firsts, "first alone", name) if shared else None,
            "second_lost": _paired_change(seconds, "second alone", name) if shared else None,
        }
    )


def _paired_change(scores: dict[str, Measured], after: str, before: str) -> Estimate:
    return change_over_questions(scores[after].by_question, scores[before].by_question)


def _questions(vector: PersonaVector, certificate: Certificate, second: SecondVector) -> tuple[str, ...]:
    """From both traits in turn, without what either vector, its judge or its choice of layer and dose has seen."""
    seen = _seen(vector, certificate.selected_on) | _seen(second.vector, second.certificate.get("selected_on"))
    questions = second.certificate.get("asked")
    others = questions if isinstance(questions, list | tuple) else evaluation_questions(second.vector.header.trait)
    turns = chain.from_iterable(zip_longest(certificate.questions, map(str, others)))
    fresh = {same_question(q): q for q in turns if q is not None and same_question(q) not in seen}
    if not fresh:
        raise InvalidArgument(
            f"{vector.name} and {second.vector.name} leave no question that neither has seen; validate with more "
            "`questions`."
        )
    return tuple(fresh.values())[: len(certificate.questions)]


def _seen(vector: PersonaVector, selected_on: object) -> set[str]:
    trait = vector.header.trait
    pairs = trait.extraction_pairs + trait.judge_pairs
    questions = trait.questions.extraction if isinstance(trait, Trait) else ()
    chosen = selected_on if isinstance(selected_on, Sequence) else ()
    return {same_question(str(q)) for q in (*(p.question for p in pairs), *questions, *chosen)}


def _notes(certificate: Certificate, second: SecondVector) -> list[str]:
    name = second.vector.name
    notes = []
    if second.certificate.get("verdict") != "induced":
        verdict = str(second.certificate.get("verdict", "")).replace("-", " ")
        what = f"is certified as {verdict}" if verdict else "has no certificate"
        notes.append(f"{name} {what}, so its rise may be small for reasons of its own.")
    if second.why_unusable:
        notes.append(f"{second.why_unusable}, so no score of {name} counts.")
    if certificate.layer != second.layer:
        notes.append(
            f"The vectors work at layers {certificate.layer} and {second.layer}. At neither does one lie along the "
            "other, so making them orthogonal changes nothing, and the plain sum alone was measured."
        )
    return notes
