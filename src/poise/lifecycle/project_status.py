"""Where a use case stands, by what its registry holds, and the next command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from poise.lifecycle.cards import report_of
from poise.lifecycle.project import CHECKLIST, Project
from poise.lifecycle.registry import Registry
from poise.lifecycle.registry_records import RegistryRecord
from poise.settings import FrozenModel

__all__ = ["ProjectStep", "project_steps"]

SERVED_KINDS = ("model", "adapter", "vector", "detector", "guardrail", "knowledge")
"""What answers are given by or under: data, reports and the use case itself are not deployed."""
READINGS_FILE = "readings.sqlite"
"""Where the next command has a server write its readings, in the folder of ``project.yaml``."""


class ProjectStep(FrozenModel):
    """One stage of a use case.

    Attributes:
        name: Name of the stage.
        done: Whether records say that it was done.
        state: What is there or missing, in words.
        action: What to do next; empty where it is done.
        values: What it is done with, by name.
        vectors: Files of the vectors that are read while answers are given.
    """

    name: str
    done: bool
    state: str
    action: Literal["", "check", "edit", "choose", "extract", "bias", "promote", "serve", "watch"] = ""
    values: dict[str, str] = Field(default_factory=dict)
    vectors: tuple[str, ...] = ()


def project_steps(path: Path, project: Project) -> list[ProjectStep]:
    """The stages of a use case, in order.

    Args:
        path: Its ``project.yaml``, in whose folder the registry's path begins.
        project: What that says.

    Raises:
        InvalidRegistry: the registry's folder holds something else.
    """
    folder = path.parent / project.registry
    registry = Registry(folder)
    records = registry.records()
    return list(_stage_steps(path, project, registry, records, folder))


def _stage_steps(
    path: Path, project: Project, registry: Registry, records: dict[str, RegistryRecord], folder: Path
) -> Iterator[ProjectStep]:
    file = str(path)
    yield _question_step(project, file)
    reports = [(digest, record) for digest, record in records.items() if record.kind == "report"]
    choices = [record.name for _, record in reports if "candidates" in report_of(record)]
    yield ProjectStep(
        name="choose",
        done=bool(choices),
        state=f"compared: {', '.join(choices)}"
        if choices
        else f"candidates that are not compared: {len(project.candidates)}",
        action="" if choices else "choose" if project.candidates else "edit",
        values={"file": file},
    )
    improved = [record.name for record in records.values() if record.kind in SERVED_KINDS[1:]]
    model = project.candidates[0] if project.candidates else "MODEL"
    trait = next(iter(project.requirements.traits), "impolite")
    yield ProjectStep(
        name="improve",
        done=bool(improved),
        state=f"recorded: {', '.join(improved)}" if improved else "no adapter, vector, guardrail or documents recorded",
        action="" if improved else "extract",
        values={"trait": trait, "model": model},
    )
    marks = ("tuned", "gaps", "verdict", "checks")
    tested = [record.name for _, record in reports if any(mark in report_of(record) for mark in marks)]
    tested += [record.name for record in records.values() if record.facts.get("certificate")]
    yield ProjectStep(
        name="evaluate",
        done=bool(tested),
        state=f"measured: {', '.join(tested)}" if tested else "no report of a certificate, a shift, a gate or bias",
        action="" if tested else "bias",
        values={"model": model},
    )
    yield _deploy_step(registry, records, folder)
    watched = [
        record.name for _, record in reports if {"drift", "readings", "alarms", "alerts"} & set(report_of(record))
    ]
    yield _watch_step(path, project, registry, records, watched)


def _watch_step(
    path: Path, project: Project, registry: Registry, records: dict[str, RegistryRecord], watched: list[str]
) -> ProjectStep:
    """Whether a look at what is served is on record: first it is served, then somebody looks."""
    readings = path.parent / READINGS_FILE
    model = project.candidates[0] if project.candidates else "MODEL"
    vectors = [
        record.place
        for digest, record in records.items()
        if record.kind == "vector" and registry.stage(digest) == "production"
    ]
    return ProjectStep(
        name="watch",
        done=bool(watched),
        state=f"recorded: {', '.join(watched)}" if watched else "no report of readings or drift",
        action="" if watched else "watch" if readings.is_file() else "serve",
        values={
            "model": model,
            "readings": str(readings),
            "registry": str(path.parent / project.registry),
            "report": str(path.parent / "watch.json"),
        },
        vectors=tuple(vectors),
    )


def _deploy_step(registry: Registry, records: dict[str, RegistryRecord], folder: Path) -> ProjectStep:
    """Whether something that answers are given by or under is in production."""
    served = [
        record.name
        for digest, record in records.items()
        if record.kind in SERVED_KINDS and registry.stage(digest) == "production"
    ]
    usable = [digest for digest, record in records.items() if record.kind in SERVED_KINDS]
    ready = next((digest for digest in usable if registry.stage(digest) == "candidate"), "")
    draft = next((digest for digest in usable if registry.stage(digest) == "draft"), "RECORD")
    target, stage = (ready, "production") if ready else (draft, "candidate")
    return ProjectStep(
        name="deploy",
        done=bool(served),
        state=f"in production: {', '.join(served)}" if served else "nothing is in production",
        action="" if served else "promote",
        values={"record": target[:12], "stage": stage, "registry": str(folder)},
    )


def _question_step(project: Project, file: str) -> ProjectStep:
    """Whether a model is the thing to use at all."""
    against, undecided = project.checklist.answered("yes"), project.checklist.answered("open")
    if undecided:
        state = f"not answered: {', '.join(undecided)}"
        return ProjectStep(name="is a model needed", done=False, state=state, action="check", values={"file": file})
    reasons = "; ".join(
        f"{name}{f' ({why})' if (why := getattr(project.checklist, name).why) else ''}" for name in against
    )
    state = (
        f"{len(against)} of {len(CHECKLIST)} answers speak against a model: {reasons}"
        if against
        else "yes, by the checklist"
    )
    return ProjectStep(name="is a model needed", done=True, state=state)
