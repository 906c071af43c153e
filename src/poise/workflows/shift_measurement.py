"""What fine-tuning did, with its files: what ``poise shift`` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from poise import vector as vectors
from poise.judge.factory import check_judge
from poise.model import load_model
from poise.report.shift import check_extra, write_shift
from poise.shift import ShiftReport, ShiftSettings, TunedModel, save_report, shift
from poise.shift.evaluation import ModelLoader
from poise.storage.output import check_output_folder
from poise.vector.algebra import check_distinct

__all__ = ["measure_shift_files"]


def measure_shift_files(
    base: str,
    tuned: Sequence[TunedModel],
    paths: Sequence[Path],
    out: Path,
    settings: ShiftSettings,
    *,
    load: ModelLoader = load_model,
    check: Callable[[str], None] = lambda source: None,
    inputs: Sequence[Path] = (),
    force: bool = False,
) -> ShiftReport:
    """Measure tuned models by the vectors at ``paths``, and write ``shift.json`` and ``report.html`` into ``out``.

    Run again after a kill, it continues in ``out/.run``. ``check`` is asked about every tuned model before the base is
    measured; ``inputs`` are other files and folders that are read;
    ``force`` writes over files in ``out`` that this command did not write.

    Raises:
        OutputExists: files in ``out`` would be lost; before a model is loaded.
        FolderInUse: another run is at work in ``out``.
    """
    check_extra()
    loaded = [vectors.load_vector(path) for path in paths]
    check_distinct(loaded)
    models = [Path(source) for source in (base, *(model.source for model in tuned)) if isinstance(source, str)]
    sources = [Path(task.rpartition("=")[2] if isinstance(task, str) else task.source) for task in settings.capability]
    check_output_folder(
        out,
        ("shift.json", "report.html"),
        job="shift",
        run_folder=out / ".run",
        marks=(".run",),
        inputs=[*paths, *models, *sources, *inputs],
        force=force,
    )
    for model in tuned:
        if isinstance(model.source, str):
            check(model.source)
    if settings.judge:
        check_judge(settings.judge, *(vector.header.trait for vector in loaded))
    report = shift(base, tuned, loaded, settings, folder=out / ".run", load=load)
    save_report(report, out / "shift.json")
    write_shift(report, out / "report.html")
    return report
