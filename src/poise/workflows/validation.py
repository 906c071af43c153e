"""A vector file to its certificate and report: what ``poise validate`` runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from poise import report
from poise import vector as vectors
from poise.contrast import ResponseStore
from poise.errors import InvalidArgument, OutputExists
from poise.judge.factory import check_judge
from poise.storage.atomic_write import saving
from poise.storage.lock import locked
from poise.storage.output import check_output_folder, check_writable
from poise.trait.library import evaluation_questions
from poise.validate import Certificate, ValidationSettings, validate
from poise.validate.dose_curve import check_question_count
from poise.validate.validation import CERTIFICATE_BELONGS
from poise.vector import PersonaVector
from poise.vllm.choice import GeneratorName, check_generator, choose_engine
from poise.workflows.budget import GenerationBudget
from poise.workflows.sources import ModelSource, current_vector, load_checked

__all__ = ["REPORT_FILES", "ValidatedVector", "validate_vector"]

REPORT_FILES = ("certificate.json", "report.html")


@dataclass(frozen=True, slots=True)
class ValidatedVector:
    """A certified vector and where its report lies."""

    vector: PersonaVector
    certificate: Certificate
    report: Path


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
    engine: GeneratorName = "local",
) -> ValidatedVector:
    """Validate the vector at ``path``, write the certificate into it and ``report.html`` and the run into ``out``.

    With ``monitor`` also test its readings; with ``beside``, another vector's file, what is lost when both steer.
    ``force`` writes over a report that this command did not write, and over a certificate that rests on more;
    ``engine`` generates, ``local`` or ``vllm``.

    Raises:
        OutputExists: files in ``out`` would be lost, or a certificate that rests on more answers or on random
            directions that this validation leaves out; before the model is loaded, as all that can be checked then.
        FolderInUse: another run is at work in ``out``.
    """
    vector = vectors.load_vector(path)
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
    check_generator(engine)
    check_judge(judge, *(v.header.trait for v in (vector, other) if v))
    report.check_extra()
    amount = budget or GenerationBudget()
    questions = evaluation_questions(vector.header.trait)[: amount.questions]
    check_question_count(len(questions))
    _check_stronger(path, vector, len(questions) * amount.rollouts, settings or ValidationSettings(), force=force)
    with locked(out / "run", "validate", results=out):
        loaded = load_checked(
            [vector, *([other] if other else [])],
            model,
            allow_other_model=allow_other_model,
            record=CERTIFICATE_BELONGS,
        )
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
            run=ResponseStore(out / "run"),
            engine=choose_engine(engine, loaded, batch=batch, allow_other_model=allow_other_model, started=True),
        )
        return _write_results(path, vector, certificate, out)


def _write_results(path: Path, vector: PersonaVector, certificate: Certificate, out: Path) -> ValidatedVector:
    certified = current_vector(path, vector).with_certificate(certificate.model_dump(mode="json"))
    vectors.save_vector(certified, path)
    with saving(out / "certificate.json") as temporary:
        temporary.write_text(certificate.model_dump_json(indent=2) + "\n", encoding="utf-8")
    report.write(certified, certificate, out / "report.html")
    return ValidatedVector(certified, certificate, out / "report.html")


def _check_stronger(
    path: Path, vector: PersonaVector, answers: int, settings: ValidationSettings, *, force: bool
) -> None:
    """Refuse to replace a certificate by one that rests on less."""
    before = vector.header.certificate
    if before is None or force:
        return
    questions = len(before["selected_on"]) + len(before.get("asked", before.get("questions", ())))
    searched = bool(before["random"].get("search"))
    if questions * before["rollouts"] > answers or (searched and not settings.random_searches):
        random = ", beside random directions" if searched else ""
        raise OutputExists(
            f"{path} is certified {before['verdict']} by {questions} questions × {before['rollouts']} answers{random}, "
            f"which {answers} answers{'' if settings.random_searches else ' without them'} would replace; validate a "
            "copy of the file, or pass `force`."
        )


def _other(path: Path | None, vector: PersonaVector) -> PersonaVector | None:
    """The second vector, checked before any work is done."""
    if path is None:
        return None
    other = vectors.load_vector(path)
    if torch.equal(other.directions, vector.directions):
        raise InvalidArgument(f"{path} holds the same directions as the vector to validate; name another as `beside`.")
    return other
