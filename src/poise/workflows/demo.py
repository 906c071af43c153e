"""The main job on the bundled model, start to end: what ``poise demo`` runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from poise.errors import InvalidVector
from poise.model import Model, load_model
from poise.storage.output import check_output, check_output_folder
from poise.trait import library
from poise.validate.certificate import Certificate, Sample
from poise.validate.settings import ValidationSettings
from poise.vector import load_vector
from poise.vector.vector_file import vector_loss
from poise.workflows.budget import GenerationBudget
from poise.workflows.extraction import extract_vector
from poise.workflows.validation import REPORT_FILES, validate_vector

__all__ = ["DemoResult", "run_demo"]

TRAIT = "impolite"
MODEL = "smollm2-135m"
DEMO_BUDGET = GenerationBudget(questions=20, rollouts=2, max_new_tokens=48)
FIRST_LOOK = ValidationSettings(random_searches=0)
SHOWN_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demo made."""

    vector_path: Path
    report: Path
    certificate: Certificate
    samples: tuple[Sample, ...]
    seconds: float


def run_demo(out: Path, *, force: bool = False) -> DemoResult:
    """Extract ``impolite`` on the bundled model, validate it, and write vector and report into ``out``.

    Interrupted and run again, it continues where it stopped; a vector that it has made before is not made again.
    ``force`` writes over files that no demo wrote.
    """
    began = time.monotonic()
    trait, path = library.load_trait(TRAIT), out / f"{TRAIT}.safetensors"
    check_output(path, loss=lambda existing: vector_loss(existing, TRAIT, certificate=True, alarms=True), force=force)
    check_output_folder(
        out, REPORT_FILES, job="validate", run_folder=out / "run", marks=("run",), inputs=(), force=force
    )
    model = load_model(MODEL)
    if not _is_made(path, model, trait.hash):
        extract_vector(trait, model, path, force=force)
    done = validate_vector(path, model, out, budget=DEMO_BUDGET, settings=FIRST_LOOK, force=force)
    return DemoResult(
        vector_path=path,
        report=done.report,
        certificate=done.certificate,
        samples=done.certificate.samples[:SHOWN_SAMPLES],
        seconds=time.monotonic() - began,
    )


def _is_made(path: Path, model: Model, trait_hash: str) -> bool:
    """Whether an earlier demo left the vector, of this very trait and model."""
    if not path.exists():
        return False
    try:
        header = load_vector(path).header
    except InvalidVector:
        return False
    return header.trait_hash == trait_hash and header.model.relation(model).kind == "same"
