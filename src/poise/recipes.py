"""Whole jobs in one call: what a command runs, for those who would rather call it from Python.

Each recipe strings rooms together and holds no logic of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from poise import contrast as contrasts
from poise import report
from poise import vector as vectors
from poise.contrast import ContrastSet, Run
from poise.engine import Generation, Sampling
from poise.engine.local import LocalEngine
from poise.errors import InvalidOption
from poise.extract import extract
from poise.journal import saving
from poise.judge.choose import Chosen, choose
from poise.model import Model, ask
from poise.steer import Spec, Steering, Term
from poise.trait import OwnTrait, Trait
from poise.trait.library import evaluation_questions
from poise.validate import Bench, Certificate, Settings, validate
from poise.validate.certificate import Figure, JudgeFacts
from poise.vector import PersonaVector

__all__ = ["Budget", "Validated", "extract_vector", "generate", "steer_by", "validate_vector"]


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a job generates."""

    questions: int = 20
    rollouts: int = 3
    max_new_tokens: int = 96
    temperature: float = 0.7
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("questions", "rollouts"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def sampling(self) -> Sampling:
        """The same, as the engine takes it."""
        return Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature)


@dataclass(frozen=True, slots=True)
class Validated:
    """A certified vector and where its report lies."""

    vector: PersonaVector
    certificate: Certificate
    report: Path


def extract_vector(
    trait: Trait | OwnTrait,
    model: Model,
    out: Path,
    *,
    contrast: Literal["prompted", "exemplars"] = "exemplars",
    judge: str = "exemplars",
    budget: Budget | None = None,
    batch: int = 32,
) -> PersonaVector:
    """Trait and model → a vector file at ``out``. Run again after a kill, it continues in ``out`` + ``.run``."""
    if contrast == "exemplars":
        pairs = contrasts.exemplars(trait, model)
    else:
        pairs = _prompted(trait, model, out.with_name(out.name + ".run"), judge, budget or Budget(), batch)
    vector = extract(pairs, model)
    vectors.save(vector, out)
    return vector


def _prompted(
    trait: Trait | OwnTrait, model: Model, folder: Path, judge: str, budget: Budget, batch: int
) -> ContrastSet:
    chosen = choose(judge, trait, model, cache=folder)
    return contrasts.prompted(
        trait,
        LocalEngine(model, batch=batch),
        model,
        chosen.trait,
        chosen.coherence,
        sampling=budget.sampling,
        questions=budget.questions,
        rollouts=budget.rollouts,
        seed=budget.seed,
        run=Run(folder),
    )


def validate_vector(
    path: Path,
    model: Model,
    out: Path,
    *,
    judge: str = "exemplars",
    budget: Budget | None = None,
    settings: Settings | None = None,
    batch: int = 32,
    allow_other_model: bool = False,
) -> Validated:
    """Validate the vector at ``path``, write the certificate into it and ``report.html`` and the run into ``out``."""
    vector = vectors.load(path)
    vector.check_model(model, allow_other_model=allow_other_model)
    wanted = budget or Budget()
    chosen = choose(judge, vector.header.trait, model, cache=out / "run")
    bench = Bench(
        engine=LocalEngine(model, batch=batch, allow_other_model=allow_other_model),
        model=model,
        judge=chosen.trait,
        scope=vector.header.trait_hash,
        coherence=chosen.coherence,
        sampling=wanted.sampling,
        rollouts=wanted.rollouts,
        seed=wanted.seed,
        run=Run(out / "run"),
    )
    questions = evaluation_questions(vector.header.trait)[: wanted.questions]
    certificate = validate(vector, bench, questions, _facts(chosen), settings=settings, notes=_notes(vector))
    certified = vector.with_certificate(certificate.model_dump(mode="json"))
    vectors.save(certified, path)
    with saving(out / "certificate.json") as temporary:
        temporary.write_text(certificate.model_dump_json(indent=2) + "\n", encoding="utf-8")
    report.write(certified, certificate, out / "report.html")
    return Validated(certified, certificate, out / "report.html")


def _facts(chosen: Chosen) -> JudgeFacts:
    return JudgeFacts(
        name=chosen.trait.name,
        auc=Figure.of(chosen.auc) if chosen.auc else None,
        held_out_auc=Figure.of(chosen.held_out_auc) if chosen.held_out_auc else None,
        usable=chosen.usable,
        coherence=chosen.coherence_is,
    )


def _notes(vector: PersonaVector) -> list[str]:
    if isinstance(vector.header.trait, OwnTrait):
        return [
            "The trait is given by exemplars alone: the same pairs made the vector and the judge, so the judge's "
            "figures are "
            "cross-validated on them and there is no held-out set.",
            "There is no prompting baseline, because the trait has no instructions; questions come from the "
            "general bank.",
        ]
    return []


def steer_by(specs: list[str], model: Model, *, allow_other_model: bool = False) -> Steering | None:
    """Steering from what a user writes, ``FILE[@LAYER]=1.5|30%``, several adding up; ``None`` for none."""
    terms: list[Term] = []
    for text in specs:
        spec = Spec.parse(text)
        vector = vectors.load(spec.file)
        vector.check_model(model, allow_other_model=allow_other_model)
        terms += spec.steering(vector).terms
    return Steering(tuple(terms)) if terms else None


def generate(
    prompts: list[str],
    model: Model,
    *,
    steering: Steering | None = None,
    sampling: Sampling,
    seed: int = 0,
    batch: int = 32,
) -> list[Generation]:
    """Answer prompts, steered or not."""
    engine = LocalEngine(model, batch=batch, allow_other_model=True)
    encoded = [model.encode(ask(p)) for p in prompts]
    return engine.generate(encoded, sampling, seeds=[seed + i for i in range(len(prompts))], steering=steering)
