"""Guardrails from files to files: a YAML and ordinary talk in, detectors for one model out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from poise.data import open_data
from poise.guardrail.fit_texts import rule_texts
from poise.guardrail.fitting import GuardFitSettings, check_fit_model, fit_guard
from poise.guardrail.guard_file import FittedGuard, guard_loss
from poise.guardrail.schema import load_guardrail
from poise.storage.output import check_output, check_writable
from poise.workflows.sources import ModelSource, load_now

__all__ = ["fit_guard_file"]


def fit_guard_file(
    path: Path,
    model: ModelSource | None,
    normal: Sequence[str],
    settings: GuardFitSettings,
    *,
    out: Path,
    shape: str = "auto",
    force: bool = False,
) -> FittedGuard:
    """Fit the guardrail in ``path`` and write it with its detectors into ``out``.

    Args:
        path: The guardrail's YAML.
        model: Model that is to be guarded, or what loads it; not loaded where the encoder reads all rules.
        normal: Names of ordinary talk.
        settings: Rate, layer, folds, seed.
        out: File to write.
        shape: Shape of the talk.
        force: Write over an existing file whatever it holds.

    Raises:
        OutputExists: ``out`` would be lost; before the model is loaded, as all that can be checked then.
    """
    guardrail = load_guardrail(path)
    list(rule_texts(guardrail))
    check_fit_model(guardrail, model, settings)
    data = open_data(list(normal), shape=shape, need="user")
    inputs = [path, *data.files]
    check_output(out, inputs=inputs, loss=lambda existing: guard_loss(existing, guardrail.name), force=force)
    check_writable(out)
    loaded = load_now(model) if model is not None and guardrail.needs_model else None
    fitted = fit_guard(guardrail, loaded, data, settings)
    fitted.save(out, force=force)
    return fitted
