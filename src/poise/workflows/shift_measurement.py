"""What fine-tuning did, with its files: what ``poise shift`` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from poise import vector as vectors
from poise.model import load as load_model
from poise.report.shift import check_extra, write_shift
from poise.shift import ShiftReport, ShiftSettings, TunedModel, save_report, shift
from poise.shift.evaluation import ModelLoader

__all__ = ["measure_shift_files"]


def measure_shift_files(
    base: str,
    tuned: Sequence[TunedModel],
    paths: Sequence[Path],
    out: Path,
    settings: ShiftSettings,
    *,
    load: ModelLoader = load_model,
) -> ShiftReport:
    """Measure tuned models by the vectors at ``paths``, and write ``shift.json`` and ``report.html`` into ``out``.

    Run again after a kill, it continues in ``out/.run``.
    """
    check_extra()
    loaded = [vectors.load(path) for path in paths]
    report = shift(base, tuned, loaded, settings, folder=out / ".run", load=load)
    save_report(report, out / "shift.json")
    write_shift(report, out / "report.html")
    return report
