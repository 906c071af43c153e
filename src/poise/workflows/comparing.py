"""Arms of one task beside one another, with their files: what ``poise compare`` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from poise import vector as vectors
from poise.comparison import (
    ARMS,
    Comparison,
    ComparisonTask,
    learnt_questions,
    measure_arms,
    read_questions,
    save_comparison,
    summarise,
)
from poise.judge.factory import check_judge
from poise.knowledge import BuildSettings, Knowledge, build_knowledge
from poise.model import load_model
from poise.progress import remark
from poise.report.comparison import check_extra, write_comparison
from poise.shift import parse_capability
from poise.shift.evaluation import ModelLoader
from poise.storage.lock import locked
from poise.storage.output import check_output_folder
from poise.vector.algebra import check_distinct

__all__ = ["compare_arms"]

COMPARISON_FILES = ("result.json", "report.html")


def compare_arms(
    task: ComparisonTask,
    out: Path,
    *,
    load: ModelLoader | None = None,
    inputs: Sequence[Path] = (),
    force: bool = False,
) -> Comparison:
    """Measure every arm of a task, and write ``result.json`` and ``report.html`` into ``out``.

    Run again after a kill, it continues in ``out/.run``; finished work is not done again. ``inputs`` are files that
    are read besides those that the settings name; ``force`` writes over files in ``out`` that no comparison wrote.

    Raises:
        OutputExists: files in ``out`` would be lost; before a model is loaded.
        FolderInUse: another run is at work in ``out``.
        InvalidData: questions that cannot be used.
    """
    check_extra()
    questions = read_questions(task.questions, task.counts)
    loaded = [vectors.load_vector(path).without_detector() for path in task.vectors]
    if loaded:
        check_distinct(loaded)
    if loaded and task.traits.answered:
        check_judge(task.traits.judge, *(vector.header.trait for vector in loaded))
    for text in task.capability:
        parse_capability(text)
    run_folder = out / ".run"
    names = [*task.questions, *task.documents, *task.vectors, *(task.training.data if task.training else ())]
    check_output_folder(
        out,
        COMPARISON_FILES,
        job="compare",
        run_folder=run_folder,
        marks=(".run",),
        inputs=[*inputs, *(Path(name).expanduser() for name in names)],
        force=force,
    )
    notes = _task_notes(task, learnt_questions(task, questions), len(questions))
    with locked(run_folder, "compare", results=out):
        knowledge = _open_documents(task, run_folder)
        measured = measure_arms(task, questions, loaded, knowledge, run_folder, load or _loader(task))
        comparison = summarise(task, questions, loaded, measured, notes)
        save_comparison(comparison, out / "result.json")
        write_comparison(comparison, out / "report.html")
    return comparison


def _open_documents(task: ComparisonTask, run_folder: Path) -> Knowledge | None:
    """The documents, built or brought up to date; ``None`` where no arm reads any."""
    if not any(ARMS[arm].retrieves for arm in task.measured_arms):
        return None
    if task.knowledge:
        return Knowledge(Path(task.knowledge))
    folder = run_folder / "knowledge"
    settings = BuildSettings(chunk=task.retrieval.chunk, store=task.retrieval.store)
    summary = build_knowledge(list(task.documents), folder, None, settings)
    for path, reason in summary.header.skipped.items():
        remark(f"{path} was left out: {reason}")
    return Knowledge(folder)


def _loader(task: ComparisonTask) -> ModelLoader:
    """Loads models as the task says."""
    dtype = None if task.dtype == "auto" else getattr(torch, task.dtype)
    device = None if task.device == "auto" else task.device
    return lambda name: load_model(name, dtype=dtype, device=device)


def _task_notes(task: ComparisonTask, learnt: int, questions: int) -> list[str]:
    """What a reader should know before the figures."""
    notes = []
    if left_out := [f"{ARMS[arm].title} (needs {why})" for arm in ARMS if (why := task.lacks(arm))]:
        notes.append(f"Not measured: {'; '.join(left_out)}.")
    if learnt:
        notes.append(
            f"{learnt} of {questions} questions stand word for word among the training rows; arms that are fine-tuned "
            "may have learnt their answers by heart."
        )
    if task.training and len(task.seeds) == 1:
        notes.append("One training run: intervals cover the choice of questions, and not the luck of training.")
    for note in notes:
        remark(note)
    return notes
