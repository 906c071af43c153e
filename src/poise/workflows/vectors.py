"""Whole jobs in one call: what a command runs, for those who would rather call it from Python.

Each recipe strings rooms together and holds no logic of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from poise import contrast as contrasts
from poise import report
from poise import vector as vectors
from poise.activations import reference_norm
from poise.contrast import ContrastSet, Run
from poise.data import DataSet, open_data
from poise.engine import Generation, SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument
from poise.extract import NORM_TEXTS, extract, versions
from poise.judge.exemplars import ExemplarJudge
from poise.judge.factory import Chosen, choose, trait_judge
from poise.judge.local_model import LocalJudge
from poise.model import Model, ask, load
from poise.monitor import table
from poise.monitor.calibrate import Calibrated, Plan, calibrate
from poise.screen import pipeline as screening
from poise.screen.compare_methods import MethodComparison, compare_methods
from poise.screen.scoring import ScreenSettings as ScreenPlan
from poise.screen.summary import ScreeningSummary
from poise.steer import Spec, Steering
from poise.storage.atomic_write import saving
from poise.trait import OwnTrait, Trait
from poise.trait.library import evaluation_questions
from poise.validate import Bench, Certificate, Settings, validate
from poise.validate.certificate import JudgeFacts
from poise.validate.combined import Second, together
from poise.validate.ladder import climb
from poise.vector import PersonaVector
from poise.vector.importing import Foreign, Numbering, adopt

__all__ = [
    "Budget",
    "Validated",
    "calibrate_vectors",
    "estimate_screening",
    "extract_vector",
    "generate",
    "import_vector",
    "read_data",
    "screen_files",
    "steer_by",
    "validate_vector",
]


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
                raise InvalidArgument(f"{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def sampling(self) -> SamplingParams:
        """The same, as the engine takes it."""
        return SamplingParams(max_new_tokens=self.max_new_tokens, temperature=self.temperature)


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


def import_vector(
    found: Foreign, model: Model, trait: Trait | OwnTrait, out: Path, *, layers_are: Numbering | None = None
) -> PersonaVector:
    """Another tool's vector, as ``poise.vector.importing.read`` gave it → a vector file at ``out``.

    The unit of a dose is measured on the trait's answers without it, as in extraction.
    """
    ordinary = contrasts.exemplars(trait, model, most=NORM_TEXTS).negative
    norm = reference_norm(model, [answer.encoded for answer in ordinary])
    vector = adopt(found, model, trait, norm, numbering=layers_are, software=versions())
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
    monitor: bool = False,
    beside: Path | None = None,
) -> Validated:
    """Validate the vector at ``path``, write the certificate into it and ``report.html`` and the run into ``out``.

    With ``monitor`` also test its readings; with ``beside``, another vector's file, what is lost when both steer.
    """
    vector = vectors.load(path)
    vector.check_model(model, allow_other_model=allow_other_model)
    other = _other(beside, vector, model, allow_other_model=allow_other_model)
    wanted = budget or Budget()
    chosen = choose(judge, vector.header.trait, model, cache=out / "run")
    second = _second(other, judge, chosen, cache=out / "run") if other else None
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
    if monitor:
        certificate = certificate.model_copy(update={"monitoring": climb(vector, bench, questions)})
    if second:
        certificate = certificate.model_copy(update={"together": together(vector, certificate, second, bench)})
    certified = vector.with_certificate(certificate.model_dump(mode="json"))
    vectors.save(certified, path)
    with saving(out / "certificate.json") as temporary:
        temporary.write_text(certificate.model_dump_json(indent=2) + "\n", encoding="utf-8")
    report.write(certified, certificate, out / "report.html")
    return Validated(certified, certificate, out / "report.html")


def _other(path: Path | None, vector: PersonaVector, model: Model, *, allow_other_model: bool) -> PersonaVector | None:
    """The second vector, checked before any work is done."""
    if path is None:
        return None
    other = vectors.load(path)
    other.check_model(model, allow_other_model=allow_other_model)
    if torch.equal(other.directions, vector.directions):
        raise InvalidArgument(f"{path} holds the same directions as the vector to validate; name another with --with.")
    return other


def _second(other: PersonaVector, spec: str, chosen: Chosen, *, cache: Path) -> Second:
    """With a judge of the same kind for the other trait; a local one judges with the model that is loaded already."""
    loaded = chosen.trait.model if isinstance(chosen.trait, LocalJudge) else None
    judge = trait_judge(spec, other.header.trait, cache=cache, local=lambda name: loaded or load(name))
    return Second(other, judge, judge.why_unusable if isinstance(judge, ExemplarJudge) else "")


def _facts(chosen: Chosen) -> JudgeFacts:
    return JudgeFacts(
        name=chosen.trait.name,
        auc=chosen.auc if chosen.auc else None,
        held_out_auc=chosen.held_out_auc if chosen.held_out_auc else None,
        usable=not chosen.why_unusable,
        why_unusable=chosen.why_unusable,
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
    """Steering from expressions whose names are files, in that order; ``None`` for none."""
    if not specs:
        return None
    parsed = [Spec.parse(text) for text in specs]
    whole = Spec(terms=tuple(t for p in parsed for t in p.terms), orthogonal=any(p.orthogonal for p in parsed))
    files = {name: vectors.load(name) for name in whole.names}
    for vector in files.values():
        vector.check_model(model, allow_other_model=allow_other_model)
    return whole.steering(files)


def generate(
    prompts: list[str],
    model: Model,
    *,
    steering: Steering | None = None,
    sampling: SamplingParams,
    seed: int = 0,
    batch: int = 32,
) -> list[Generation]:
    """Answer prompts, steered or not."""
    engine = LocalEngine(model, batch=batch, allow_other_model=True)
    encoded = [model.encode(ask(p)) for p in prompts]
    return engine.generate(encoded, sampling, seeds=[seed + i for i in range(len(prompts))], steering=steering)


def calibrate_vectors(
    paths: Sequence[Path],
    model: Model,
    source: Sequence[str],
    plan: Plan,
    *,
    shape: str = "auto",
    out: Path | None = None,
    allow_other_model: bool = False,
) -> Calibrated:
    """Set alarms on normal talk and write them into the vector files at ``paths``, or one vector's into ``out``.

    Run again after a kill, it continues in the first file + ``.calibration``.
    """
    if out and len(paths) > 1:
        raise InvalidArgument(
            f"{out} cannot take {len(paths)} vectors; leave --out away to write into their own files."
        )
    loaded = _on(paths, model, allow_other_model=allow_other_model)
    targets = [out] if out else list(paths)
    folder = targets[0].with_name(targets[0].name + ".calibration")
    data = open_data(list(source), shape=shape, need="assistant" if plan.given else "user")
    done = calibrate(data, model, loaded, plan, folder)
    for vector, path in zip(done.vectors, targets, strict=True):
        vectors.save(vector, path)
    return done


def read_data(
    source: Sequence[str],
    paths: Sequence[Path],
    model: Model,
    out: Path,
    *,
    shape: str = "auto",
    layer: int | None = None,
    by: str | None = None,
    allow_other_model: bool = False,
) -> table.Done:
    """Score every answer of a data set by the vectors at ``paths`` and write the table to ``out``; resumes."""
    loaded = _on(paths, model, allow_other_model=allow_other_model)
    return table.read(open_data(list(source), shape=shape), model, loaded, out, layer=layer, by=by)


def screen_files(
    data: DataSet,
    paths: Sequence[Path],
    model: Model,
    out: Path,
    plan: ScreenPlan,
    *,
    normal: DataSet | None = None,
    name: str = "",
    allow_other_model: bool = False,
) -> ScreeningSummary:
    """Screen a data set by the vectors at ``paths`` into the folder ``out``, with ``report.html``; resumes."""
    with report.naming_the_extra():  # before any work
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    from poise.report.screening import write_screening

    loaded = _on(paths, model, allow_other_model=allow_other_model)
    summary = screening.screen_data(data, model, loaded, out, plan, normal=normal, name=name)
    write_screening(summary, out / "report.html")
    return summary


def estimate_screening(
    data: DataSet,
    paths: Sequence[Path],
    model: Model,
    out: Path,
    plan: ScreenPlan,
    *,
    sample: int = 300,
    allow_other_model: bool = False,
) -> MethodComparison:
    """Try all methods on a random sample of a data set and write ``estimate.json`` into the folder ``out``."""
    return compare_methods(
        data, model, _on(paths, model, allow_other_model=allow_other_model), out, plan, sample=sample
    )


def _on(paths: Sequence[Path], model: Model, *, allow_other_model: bool) -> list[PersonaVector]:
    """Vectors that may be used on the model."""
    loaded = [vectors.load(path) for path in paths]
    for vector in loaded:
        vector.check_model(model, allow_other_model=allow_other_model)
    return loaded
