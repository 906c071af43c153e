"""Vector and model to ``Certificate`` in one call, in memory: judges, questions, sampling and the optional parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from poise.arguments import check_number, check_type
from poise.contrast import ResponseStore
from poise.engine import Engine, SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument
from poise.judge.exemplars import ExemplarJudge
from poise.judge.factory import ChosenJudges, choose_judges, trait_judge
from poise.judge.local_model import LocalJudge
from poise.model import Model, load_model
from poise.model.relation import ModelRelation
from poise.trait import OwnTrait
from poise.trait.library import evaluation_questions
from poise.validate.certificate import Certificate, JudgeFacts
from poise.validate.combined import SecondVector, combined_steering
from poise.validate.conditions import ValidationRun
from poise.validate.dose_curve import ValidationSettings, certify
from poise.validate.ladder import measure_ladder
from poise.vector import PersonaVector

__all__ = ["CERTIFICATE_BELONGS", "validate"]

CERTIFICATE_BELONGS = "a certificate measured there would pass for one of the vector's own model"


def validate(
    vector: PersonaVector,
    model: Model,
    *,
    judge: str | ChosenJudges = "exemplars",
    questions: int | Sequence[str] = 20,
    rollouts: int = 3,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    settings: ValidationSettings | None = None,
    monitoring: bool = False,
    beside: PersonaVector | None = None,
    batch: int = 32,
    allow_other_model: bool = False,
    run: ResponseStore | None = None,
    engine: Engine | None = None,
) -> Certificate:
    """Prove that a vector is its trait: steer with it on questions that its extraction never saw, beside every control.

    Layer and dose are chosen on the even questions; everything reported is measured on the odd ones. No file is
    touched, unless ``run`` has a folder.

    Args:
        vector: The vector to validate.
        model: The model that it was computed on.
        judge: ``exemplars``, ``model:NAME``, ``endpoint:NAME``, or judges that ``poise.judge.factory.choose`` gave.
        questions: How many of the trait's evaluation questions are asked, or the questions; at least 4.
        rollouts: Answers for each question and condition.
        sampling: How answers are sampled; by default at most 96 tokens at temperature 0.7.
        seed: Seed of the answers.
        settings: How many layers and doses are tried.
        monitoring: Also test the readings: does the prompt's last token say what the answers will be like?
        beside: A second vector; also measure what each trait loses when both steer.
        batch: Most answers at once.
        allow_other_model: Allow a model that the vector was not computed on, if it has its shape.
        run: Where finished answers and scores are kept; by default in memory.
        engine: What answers, such as ``VllmEngine``; by default an engine on ``model``, which judges and reads anyway.

    Returns:
        The certificate. ``induced`` only if the trait rises with the dose, rises more than along random directions
        that choose layer and dose as the vector does, and coherence holds; ``not-induced`` with every reason that
        speaks against it; ``indicative`` where none does and the evidence is too thin, as on fewer than 20 questions
        or with ``ValidationSettings(random_searches=0)``. Scores are from 0 to 100, doses are ``α‖v‖ / mean‖h‖``.

    Raises:
        OtherModel: the vector was computed on another model.
        InvalidArgument: fewer than 4 questions or 1 rollout, no such judge, or ``beside`` holds the same directions.
    """
    check_type("vector", vector, PersonaVector, "a PersonaVector, as load_vector(path) gives")
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    check_type("judge", judge, (str, ChosenJudges), "exemplars, model:NAME, endpoint:NAME or chosen judges")
    if isinstance(questions, str):
        raise InvalidArgument("questions is text; give a list of questions, or how many of the trait's are asked.")
    relation = vector.check_model(model, allow_other_model=allow_other_model, record=CERTIFICATE_BELONGS)
    check_number("rollouts", rollouts, least=1, most=2**31)
    check_number("seed", seed, least=0, most=2**63 - 1)
    if beside is not None:
        beside.check_model(model, allow_other_model=allow_other_model, record=CERTIFICATE_BELONGS)
        if torch.equal(beside.directions, vector.directions):
            raise InvalidArgument(f"{beside.name} beside {vector.name} holds the same directions; take another vector.")
    run = run or ResponseStore(None)
    judges = choose_judges(judge, vector.header.trait, model, cache=run.folder) if isinstance(judge, str) else judge
    second = _second(beside, judge, judges, run) if beside is not None else None
    work = ValidationRun(
        engine=engine or LocalEngine(model, batch=batch, allow_other_model=allow_other_model),
        model=model,
        judge=judges.trait,
        scope=vector.header.trait_hash,
        coherence=judges.coherence,
        sampling=sampling or SamplingParams(max_new_tokens=96, temperature=0.7),
        rollouts=rollouts,
        seed=seed,
        store=run,
    )
    if isinstance(questions, int):
        questions = evaluation_questions(vector.header.trait)[:questions]
    notes = [*_model_notes(vector, model, relation), *_trait_notes(vector), *_engine_notes(engine)]
    certificate = certify(vector, work, questions, _judge_facts(judges), settings=settings, notes=notes)
    if monitoring:
        certificate = certificate.model_copy(update={"monitoring": measure_ladder(vector, work, questions)})
    if second is not None:
        certificate = certificate.model_copy(update={"together": combined_steering(vector, certificate, second, work)})
    return certificate


def _second(beside: PersonaVector, judge: str | ChosenJudges, judges: ChosenJudges, run: ResponseStore) -> SecondVector:
    """The second vector with a judge of the same kind; a local one judges with the model that is loaded already."""
    if not isinstance(judge, str):
        raise InvalidArgument(f"beside needs a judge of {beside.name} too; name the judge, as exemplars or model:NAME.")
    loaded = judges.trait.model if isinstance(judges.trait, LocalJudge) else None
    second = trait_judge(judge, beside.header.trait, cache=run.folder, local=lambda name: loaded or load_model(name))
    return SecondVector(beside, second, second.why_unusable if isinstance(second, ExemplarJudge) else "")


def _judge_facts(judges: ChosenJudges) -> JudgeFacts:
    return JudgeFacts(
        name=judges.trait.name,
        auc=judges.auc,
        held_out_auc=judges.held_out_auc,
        usable=not judges.why_unusable,
        why_unusable=judges.why_unusable,
        coherence=judges.coherence_is,
    )


def _model_notes(vector: PersonaVector, model: Model, relation: ModelRelation) -> list[str]:
    if relation.kind == "same":
        return []
    return [
        f"Measured on {model.name}, not on {vector.header.model.name}, on which the vector was computed: {model.name} "
        f"{relation.sentence}."
    ]


def _engine_notes(engine: Engine | None) -> list[str]:
    return [f"The answers were generated by {name}." for name in [getattr(engine, "name", "")] if name]


def _trait_notes(vector: PersonaVector) -> list[str]:
    if not isinstance(vector.header.trait, OwnTrait):
        return []
    return [
        "The trait is given by exemplars alone: the same pairs made the vector and the judge, so the judge's figures "
        "are cross-validated on them and there is no held-out set.",
        "There is no prompting baseline, because the trait has no instructions; questions come from the general bank.",
    ]
