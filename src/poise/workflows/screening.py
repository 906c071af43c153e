"""Screening of training data by vectors in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from poise import report
from poise.data import DataSet
from poise.data.preference_data import PreferenceData
from poise.screen import pipeline as screening
from poise.screen.compare_methods import MethodComparison, compare_methods
from poise.screen.preference import PreferenceSettings, check_preferences, screen_preference_data
from poise.screen.scoring import ScreenSettings
from poise.screen.summary import ScreeningSummary
from poise.workflows.output_address import working_folder
from poise.workflows.sources import ModelSource, load_checked, open_vectors

__all__ = ["estimate_screening", "screen_files", "screen_preference_files"]


def screen_files(
    data: DataSet,
    paths: Sequence[Path],
    model: ModelSource,
    out: str | Path,
    plan: ScreenSettings,
    *,
    normal: DataSet | None = None,
    name: str = "",
    projection: bool = False,
    allow_other_model: bool = False,
    force: bool = False,
) -> ScreeningSummary:
    """Screen a data set by the vectors at ``paths`` into ``out``, with ``report.html``; resumes.

    ``out`` is a folder, or an address that fsspec knows, such as ``s3://bucket/screened``. ``projection`` scores by the
    vectors' own directions, whatever detectors they have; ``force`` writes over files in ``out`` that no screening
    wrote. All that can be checked without the model is checked before it is loaded.
    """
    report.check_extra()
    from poise.report.screening import write_screening

    opened = open_vectors(paths, projection=projection)
    with working_folder(out, screening.RESULTS) as folder:
        screening.check_screening(data, opened, folder, plan, normal=normal, inputs=paths, force=force)
        loaded = load_checked(opened, model, allow_other_model=allow_other_model)
        summary = screening.screen_data(data, loaded, opened, folder, plan, normal=normal, name=name, force=force)
        write_screening(summary, folder / "report.html")
    return summary


def screen_preference_files(
    data: PreferenceData,
    paths: Sequence[Path],
    model: ModelSource,
    out: str | Path,
    plan: PreferenceSettings,
    *,
    normal: PreferenceData | None = None,
    name: str = "",
    projection: bool = False,
    allow_other_model: bool = False,
    force: bool = False,
) -> ScreeningSummary:
    """Screen preference pairs by the vectors at ``paths`` into the folder ``out``, with ``report.html``; resumes.

    The arguments are those of ``screen_files``.
    """
    report.check_extra()
    from poise.report.screening import write_screening

    opened = open_vectors(paths, projection=projection)
    with working_folder(out, screening.RESULTS) as folder:
        check_preferences(data, folder, plan, normal=normal, inputs=paths, force=force)
        loaded = load_checked(opened, model, allow_other_model=allow_other_model)
        summary = screen_preference_data(data, loaded, opened, folder, plan, normal=normal, name=name, force=force)
        write_screening(summary, folder / "report.html")
    return summary


def estimate_screening(
    data: DataSet,
    paths: Sequence[Path],
    model: ModelSource,
    out: str | Path,
    plan: ScreenSettings,
    *,
    sample: int = 300,
    projection: bool = False,
    allow_other_model: bool = False,
    force: bool = False,
) -> MethodComparison:
    """Try all methods on a random sample of a data set and write ``estimate.json`` into the folder ``out``."""
    opened = open_vectors(paths, projection=projection)
    with working_folder(out, screening.RESULTS) as folder:
        screening.check_screening(data, opened, folder, plan, inputs=paths, force=force)
        loaded = load_checked(opened, model, allow_other_model=allow_other_model)
        return compare_methods(data, loaded, opened, folder, plan, sample=sample)
