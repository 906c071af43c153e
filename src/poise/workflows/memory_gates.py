"""The gate of a memory from files to a file: a model, vectors and useful entries in, a direction and threshold out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from poise.errors import InvalidData, OutputExists
from poise.memory.effect_gate import FittedEffectGate, fit_effect_gate
from poise.storage.journal import Journal
from poise.storage.lock import locked
from poise.storage.output import check_writable
from poise.vector import load_vector
from poise.workflows.sources import ModelSource, load_now

__all__ = ["fit_memory_gate"]


def fit_memory_gate(
    model: ModelSource,
    *,
    out: Path,
    vectors: Sequence[Path] = (),
    useful: Path | None = None,
    rate: float = 0.05,
    seed: int = 0,
    force: bool = False,
) -> FittedEffectGate:
    """Fit a gate and write it; what was read is kept in ``OUT.run``, so that a fit that was ended goes on.

    Args:
        model: Model that the memory is for, or what loads it.
        out: File to write.
        vectors: Files of persona vectors that are read beside what is fitted.
        useful: A text file of useful entries, one a line.
        rate: Share of useful entries that may wait in quarantine.
        seed: Seed of the parting.
        force: Write over an existing file.

    Raises:
        OutputExists: ``out`` is there; before the model is loaded.
        InvalidData: the file of useful entries cannot be read.
        OtherModel: a vector is of another model.
    """
    if out.exists() and not force:
        raise OutputExists(f"{out} is there already; choose another file, or replace it with `force`.")
    check_writable(out)
    entries = _useful_lines(useful) if useful else []
    loaded_vectors = [load_vector(path) for path in vectors]
    run_folder = out.with_name(f"{out.name}.run")
    with locked(run_folder, "memory fit"):
        loaded = load_now(model)
        personas = {}
        for vector in loaded_vectors:
            vector.check_model(loaded)
            placed = vector.at("read")
            personas[placed.trait] = placed.probe
        journal = Journal(run_folder / "entries.jsonl")
        fitted = fit_effect_gate(loaded, personas=personas, useful=entries, rate=rate, seed=seed, journal=journal)
        fitted.save(out, force=force)
    return fitted


def _useful_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"{path} cannot be read ({error}); give a text file with one useful entry a line.") from error
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
