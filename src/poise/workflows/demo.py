"""The main job on the bundled model, start to end: what ``poise demo`` runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from poise.model import load
from poise.trait import library
from poise.validate.certificate import Certificate, Sample
from poise.workflows.vectors import Budget, extract_vector, validate_vector

__all__ = ["Demo", "run"]

TRAIT = "impolite"
MODEL = "smollm2-135m"
BUDGET = Budget(questions=20, rollouts=2, max_new_tokens=48)
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo made."""

    vector_path: Path
    report: Path
    certificate: Certificate
    samples: tuple[Sample, ...]
    seconds: float


def run(out: Path) -> Demo:
    """Extract ``impolite`` on the bundled model, validate it, and write vector and report into ``out``.

    Interrupted and run again, it continues where it stopped.
    """
    began = time.monotonic()
    model = load(MODEL)
    path = out / f"{TRAIT}.safetensors"
    extract_vector(library.load(TRAIT), model, path)
    done = validate_vector(path, model, out, budget=BUDGET)
    return Demo(path, done.report, done.certificate, done.certificate.samples[:SHOWN], time.monotonic() - began)
