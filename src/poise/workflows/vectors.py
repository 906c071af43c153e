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
from poise.contrast import Run
from poise.contrast.collection import collect_contrast
from poise.engine import SamplingParams
from poise.errors import InvalidArgument
from poise.extract import NORM_TEXTS, extract, versions
from poise.judge.factory import check_judge
from poise.storage.atomic_write import saving
from poise.storage.lock import locked
from poise.storage.output import check_output, check_output_folder, check_writable
from poise.trait import OwnTrait, Trait
from poise.validate import Certificate, ValidationSettings, validate
from poise.vector import ModelId, PersonaVector
from poise.vector.importing import Foreign, Numbering, adopt
from poise.vector.vector_file import vector_loss
from poise.workflows.sources import ModelSource, current_vector, load_checked, load_now

__all__ = ["GenerationBudget", "ValidatedVector", "extract_vector", "import_vector", "validate_vector"]


REPORT_FILES = ("certificate.json", "report.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationBudget:
    """How much a job generates: questions, answers to each, their length, temperature and seed."""

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
class ValidatedVector:
    """A certified vector and where its report lies."""

    vector: PersonaVector
    certificate: Certificate
    report: Path


def extract_vector(
    trait: Trait | OwnTrait,
    model: ModelSource,
    out: Path,
    *,
    contrast: Literal["prompted", "exemplars"] = "exemplars",
    judge: str = "exemplars",
    budget: GenerationBudget | None = None,
    batch: int = 32,
    inputs: Sequence[Path] = (),
    force: bool = False,
) -> PersonaVector:
    """Trait and model → a vector file at ``out``. Run again after a kill, it continues in ``out`` + ``.run``.

    Args:
        trait: What to extract.
        model: On which model.
        out: The file; an earlier vector of this trait and model is replaced if it has no certificate and no alarms.
        contrast: Where the two sides come from.
        judge: Who filters prompted answers.
        budget: How much is generated for prompted contrast.
        batch: Most answers generated at once.
        inputs: Files that trait and pairs were read from, which ``out`` must not be.
        force: Write over an existing file whatever it holds.

    Raises:
        OutputExists: the file holds something that would be lost; before the model is loaded where that is known then.
        FolderInUse: another run is at work on this file.
    """
    check_output(out, inputs=inputs, loss=lambda existing: vector_loss(existing, trait.name), force=force)
    if contrast == "prompted":
        contrasts.check_prompted(trait)
        check_judge(judge, trait)
    loaded = load_now(model)
    identity = ModelId.of(loaded)
    check_output(out, loss=lambda existing: vector_loss(existing, trait.name, model=identity), force=force)
    if contrast == "exemplars":
        pairs = contrasts.exemplars(trait, loaded)
    else:
        amount, folder = budget or GenerationBudget(), out.with_name(out.name + ".run")
        with locked(folder, "extract"):
            pairs = collect_contrast(
                trait,
                loaded,
                contrast,
                judge=judge,
                questions=amount.questions,
                rollouts=amount.rollouts,
                sampling=amount.sampling,
                seed=amount.seed,
                batch=batch,
                run=Run(folder),
            )
    vector = extract(pairs, loaded)
    vectors.save(vector, out, force=force)
    return vector


def import_vector(
    foreign: Foreign,
    model: ModelSource,
    trait: Trait | OwnTrait,
    out: Path,
    *,
    layers_are: Numbering | None = None,
    inputs: Sequence[Path] = (),
    force: bool = False,
) -> PersonaVector:
    """Another tool's vector, as ``poise.vector.importing.read`` gave it → a vector file at ``out``.

    The unit of a dose is measured on the trait's answers without it, as in extraction. ``inputs`` and ``force`` as in
    ``extract_vector``.
    """
    inputs = (foreign.path, *inputs)
    check_output(out, inputs=inputs, loss=lambda existing: vector_loss(existing, trait.name), force=force)
    loaded = load_now(model)
    ordinary = contrasts.exemplars(trait, loaded, most=NORM_TEXTS).negative
    norm = reference_norm(loaded, [answer.encoded for answer in ordinary])
    vector = adopt(foreign, loaded, trait, norm, numbering=layers_are, software=versions())
    vectors.save(vector, out, force=force)
    return vector


def validate_vector(
    path: Path,
    model: ModelSource,
    out: Path,
    *,
    judge: str = "exemplars",
    budget: GenerationBudget | None = None,
    settings: ValidationSettings | None = None,
    batch: int = 32,
    allow_other_model: bool = False,
    monitor: bool = False,
    beside: Path | None = None,
    force: bool = False,
) -> ValidatedVector:
    """Validate the vector at ``path``, write the certificate into it and ``report.html`` and the run into ``out``.

    With ``monitor`` also test its readings; with ``beside``, another vector's file, what is lost when both steer.
    ``force`` writes over a report that this command did not write.

    Raises:
        OutputExists: files in ``out`` would be lost; before the model is loaded, as all that can be checked then.
        FolderInUse: another run is at work in ``out``.
    """
    vector = vectors.load(path)
    other = _other(beside, vector)
    check_output_folder(
        out,
        REPORT_FILES,
        job="validate",
        run_folder=out / "run",
        marks=("run",),
        inputs=[path, *([beside] if beside else [])],
        force=force,
    )
    check_writable(path)
    check_judge(judge, *(v.header.trait for v in (vector, other) if v))
    report.check_extra()
    loaded = load_checked([vector, *([other] if other else [])], model, allow_other_model=allow_other_model)
    amount = budget or GenerationBudget()
    with locked(out / "run", "validate", results=out):
        certificate = validate(
            vector,
            loaded,
            judge=judge,
            questions=amount.questions,
            rollouts=amount.rollouts,
            sampling=amount.sampling,
            seed=amount.seed,
            settings=settings,
            monitoring=monitor,
            beside=other,
            batch=batch,
            allow_other_model=allow_other_model,
            run=Run(out / "run"),
        )
        certified = current_vector(path, vector).with_certificate(certificate.model_dump(mode="json"))
        vectors.save(certified, path)
        with saving(out / "certificate.json") as temporary:
            temporary.write_text(certificate.model_dump_json(indent=2) + "\n", encoding="utf-8")
        report.write(certified, certificate, out / "report.html")
        return ValidatedVector(certified, certificate, out / "report.html")


def _other(path: Path | None, vector: PersonaVector) -> PersonaVector | None:
    """The second vector, checked before any work is done."""
    if path is None:
        return None
    other = vectors.load(path)
    if torch.equal(other.directions, vector.directions):
        raise InvalidArgument(f"{path} holds the same directions as the vector to validate; name another as `beside`.")
    return other
