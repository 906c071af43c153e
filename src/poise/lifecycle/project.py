"""``project.yaml``: a use case in words, who answers for it, what it must keep to, its data and candidates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from poise.errors import InvalidSettings, OutputExists
from poise.settings import ListOfTexts, Settings, read_settings
from poise.settings.scalar_types import FilledText
from poise.storage.atomic_write import saving
from poise.storage.output import check_writable

__all__ = [
    "CHECKLIST",
    "Project",
    "ProjectChecklist",
    "ProjectRequirements",
    "TraitBound",
    "begin_project",
    "read_project",
]

CHECKLIST = {
    "rules_suffice": "Could fixed rules, a search or a form do it? They are cheaper, faster and make nothing up",
    "cost_too_high": "Would a wrong or slow answer, or running the model, cost more than it saves?",
    "errors_unacceptable": "Is an answer that is wrong now and then unacceptable, with nobody to look at it?",
    "must_be_explained": "Must each decision be explained by its reasons, as for credit, work or health?",
}
"""When not to use a model at all."""

ChecklistAnswer = Literal["yes", "no", "open"]


class ChecklistItem(Settings):
    """An answer to one question of the checklist.

    Attributes:
        answer: ``yes`` speaks against a model; ``open`` where nobody answered yet.
        why: Reason, in words.
    """

    answer: ChecklistAnswer = "open"
    why: str = ""


class ProjectChecklist(Settings):
    """When not to use a model at all.

    Attributes:
        rules_suffice: Whether rules do it.
        cost_too_high: Whether it costs more than it saves.
        errors_unacceptable: Whether errors are unacceptable.
        must_be_explained: Whether each decision must be explained.
    """

    rules_suffice: ChecklistItem = Field(default_factory=ChecklistItem)
    cost_too_high: ChecklistItem = Field(default_factory=ChecklistItem)
    errors_unacceptable: ChecklistItem = Field(default_factory=ChecklistItem)
    must_be_explained: ChecklistItem = Field(default_factory=ChecklistItem)

    def answered(self, answer: ChecklistAnswer) -> list[str]:
        """Questions with this answer."""
        return [name for name in CHECKLIST if getattr(self, name).answer == answer]


class TraitBound(Settings):
    """How far a trait may go in ordinary answers, as an exemplar judge scores them from 0 to 100.

    Attributes:
        at_most: Highest mean score.
        at_least: Lowest mean score.
    """

    at_most: float | None = Field(None, ge=0, le=100)
    at_least: float | None = Field(None, ge=0, le=100)


class ProjectRequirements(Settings):
    """What a model must keep to.

    Attributes:
        licences: Licences that may be used, as the hub writes them; empty for any.
        memory_mib: Most memory for the weights, in MiB.
        tokens_per_second: Fewest tokens a second, one answer at a time, on the machine that measures.
        seconds_to_first_token: Longest wait for the first token.
        traits: Bounds on traits of the library, by name.
        guardrails: Guardrail files that it is served under.
        capability: Tasks, as ``poise shift`` takes them, and their lowest scores.
    """

    licences: ListOfTexts = ()
    memory_mib: float | None = Field(None, gt=0)
    tokens_per_second: float | None = Field(None, gt=0)
    seconds_to_first_token: float | None = Field(None, gt=0)
    traits: dict[str, TraitBound] = Field(default_factory=dict)
    guardrails: ListOfTexts = ()
    capability: dict[str, float] = Field(default_factory=dict)


class Project(Settings):
    """A use case.

    Attributes:
        use_case: What it is for, in words.
        responsible: Who answers for it.
        registry: Folder of its registry, from the file's own folder.
        candidates: Models to choose from: folders, GGUF files, bundled names, hub ids that were fetched, and
            ``endpoint:MODEL@URL``.
        data: Files of its data.
        requirements: What a model must keep to.
        checklist: Answers to when not to use a model at all.
        prices: Price of a million tokens by candidate, where one is charged, with its currency in words.
    """

    use_case: FilledText
    responsible: FilledText
    registry: FilledText = "registry"
    candidates: ListOfTexts = ()
    data: ListOfTexts = ()
    requirements: ProjectRequirements = Field(default_factory=ProjectRequirements)
    checklist: ProjectChecklist = Field(default_factory=ProjectChecklist)
    prices: dict[str, str] = Field(default_factory=dict)
    other_names: ClassVar[Mapping[str, str]] = {"owner": "responsible", "models": "candidates"}


def read_project(path: str | Path) -> Project:
    """What ``project.yaml`` says.

    Raises:
        InvalidSettings: no such file, no YAML, or a setting that is unknown or out of range; names file and line.
    """
    if not Path(path).exists():
        raise InvalidSettings(
            f"There is no use case at {path}; begin one with `poise project init`, or give the path of its file."
        )
    return read_settings(path, Project)


def begin_project(
    path: Path,
    *,
    use_case: str,
    responsible: str,
    candidates: tuple[str, ...] = (),
    answers: Mapping[str, tuple[ChecklistAnswer, str]] | None = None,
    force: bool = False,
) -> Project:
    """Write a ``project.yaml`` with every setting explained, and read it back.

    Raises:
        OutputExists: there is one.
        SaveFailed: the disk refused.
    """
    check_writable(path)
    if path.exists() and not force:
        raise OutputExists(f"{path} exists; edit it, or pass `force` to write over it.")
    text = _project_text(use_case, responsible, candidates, answers or {})
    with saving(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return read_project(path)


def _project_text(
    use_case: str, responsible: str, candidates: tuple[str, ...], answers: Mapping[str, tuple[str, str]]
) -> str:
    lines = [
        "# What is wanted, in words, and who answers for it.",
        f"use_case: {_yaml_text(use_case)}",
        f"responsible: {_yaml_text(responsible)}",
        "",
        "# Folders, .gguf files, bundled names, hub ids that were fetched, or endpoint:MODEL@URL.",
        "candidates:" + ("" if candidates else " []"),
        *(f"  - {_yaml_text(one)}" for one in candidates),
        "",
        "# Files of the data that answers are held to, or that a model is tuned on.",
        "data: []",
        "",
        "# What a model must keep to; take out the # of what counts.",
        "requirements:",
        "  licences: [apache-2.0, mit]",
        "  # memory_mib: 2000             # of weights",
        "  # tokens_per_second: 10        # one answer at a time, on this machine",
        "  # seconds_to_first_token: 2",
        "  # traits: {impolite: {at_most: 30}}   # 0 to 100; poise traits list",
        "  # guardrails: [guardrail.guard]",
        "  # capability: {arc_easy: 0.5}        # tasks of lm-eval, or NAME=FILE.jsonl; lowest scores",
        "",
        "# When not to use a model at all. yes speaks against one; say why.",
        "checklist:",
    ]
    for name, question in CHECKLIST.items():
        answer, why = answers.get(name, ("open", ""))
        lines += [f"  # {question}", f"  {name}: {{answer: {_yaml_text(answer)}, why: {_yaml_text(why)}}}"]
    return "\n".join(lines) + "\n"


def _yaml_text(text: Any) -> str:
    """As a YAML text that is nothing else."""
    import json

    return json.dumps(str(text), ensure_ascii=False)
