"""``poise project``: a use case, where it stands, and the next command."""

from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated

import typer

from poise.cli.options import Force, Json
from poise.cli.work import note, working

if TYPE_CHECKING:
    from poise.lifecycle.project import ChecklistAnswer
    from poise.lifecycle.project_status import ProjectStep

__all__ = ["app", "next_command"]

app = typer.Typer(
    no_args_is_help=True, help="Carry a use case through choosing, improving, evaluating, serving, watching."
)

ProjectFile = Annotated[
    Path, typer.Argument(metavar="YAML", dir_okay=False, help="The use case's file; project.yaml unless said.")
]
DEFAULT_FILE = Path("project.yaml")
NEXT_COMMANDS = {
    "check": "poise project check {file}",
    "edit": "name candidates in {file}",
    "choose": "poise choose {file} --out choice --record",
    "extract": "poise extract {trait} --model {model} --out {trait}.safetensors",
    "bias": "poise bias --model {model} --out bias",
    "promote": "poise registry promote {record} --to {stage} --registry {registry}",
    "serve": "poise serve --model {model}{vectors} --log {readings}",
    "watch": "poise dashboard --server served=http://127.0.0.1:8000 --readings served={readings}"
    " --once --json > {report}\n"
    "poise registry add {report} --registry {registry}",
}
"""What to run for each action of a step."""


@app.command("init")
def begin(
    use_case: Annotated[
        str, typer.Option("--use-case", metavar="TEXT", help="What it is for, in words.", show_default=False)
    ],
    responsible: Annotated[
        str, typer.Option("--responsible", metavar="WHO", help="Who answers for it.", show_default=False)
    ],
    path: ProjectFile = DEFAULT_FILE,
    candidates: Annotated[
        list[str] | None, typer.Option("--candidate", metavar="MODEL", help="A model to choose from; once for each.")
    ] = None,
    answers: Annotated[
        list[str] | None,
        typer.Option("--answer", metavar="Q=A:WHY", help="An answer of the checklist, such as rules_suffice=no:WHY."),
    ] = None,
    force: Force = False,
) -> None:
    """Write project.yaml, with every setting explained."""
    with working():
        from poise.lifecycle.project import begin_project

        begin_project(
            path,
            use_case=use_case,
            responsible=responsible,
            candidates=tuple(candidates or ()),
            answers=dict(map(_checklist_answer, answers or ())),
            force=force,
        )
    typer.echo(path)
    note(f"Read it and say what counts, then: poise project status {path}")


def _checklist_answer(text: str) -> tuple[str, tuple[ChecklistAnswer, str]]:
    from poise.lifecycle.project import CHECKLIST

    question, sign, words = text.partition("=")
    answer, _, why = words.partition(":")
    if not sign or question not in CHECKLIST or answer not in ("yes", "no", "open"):
        raise typer.BadParameter(
            f"{text} is not QUESTION=yes, no or open, with :WHY after it; questions are {', '.join(CHECKLIST)}.",
            param_hint="--answer",
        )
    return question, (answer, why)  # type: ignore[return-value]


@app.command("check")
def show_checklist(path: ProjectFile = DEFAULT_FILE, as_json: Json = False) -> None:
    """The checklist of when not to use a model at all, and what was answered."""
    from poise.cli import facts, render

    with working():
        from poise.lifecycle.project import CHECKLIST, read_project

        project = read_project(path)
    if as_json:
        facts.print_json({"checklist": project.checklist.model_dump(mode="json")})
        return
    lines = []
    for name, question in CHECKLIST.items():
        item = getattr(project.checklist, name)
        lines += [f"{item.answer:5} {question}", f"      {name}{f': {item.why}' if item.why else ''}"]
    render.show([*map(render.plain_text, lines), "", f"Answers are written under checklist in {path}."])


@app.command("status")
def show_status(path: ProjectFile = DEFAULT_FILE, as_json: Json = False) -> None:
    """Where the use case stands, by the records of its registry, and the next command."""
    from poise.cli import facts, render

    steps = _read_steps(path)
    if as_json:
        facts.print_json({"steps": [step.model_dump() for step in steps], "next": next_command(steps)})
        return
    width = max(len(step.name) for step in steps)
    lines = [f"{'done' if step.done else '-':4}  {step.name:{width}}  {step.state}" for step in steps]
    render.show([*map(render.plain_text, [*lines, "", *_next_lines(steps)])])


@app.command("next")
def show_next(path: ProjectFile = DEFAULT_FILE, as_json: Json = False) -> None:
    """Print the next command alone."""
    from poise.cli import facts, render

    steps = _read_steps(path)
    if as_json:
        facts.print_json({"next": next_command(steps)})
        return
    render.show([*map(render.plain_text, _next_lines(steps)[-1:])])


def _read_steps(path: Path) -> list[ProjectStep]:
    with working():
        from poise.lifecycle.project import read_project
        from poise.lifecycle.project_status import project_steps

        return project_steps(path, read_project(path))


def next_command(steps: list[ProjectStep]) -> str:
    """What to run for the first step that is not done; empty where all are."""
    step = next((step for step in steps if not step.done), None)
    if step is None:
        return ""
    vectors = "".join(f" --vector {shlex.quote(_from_here(place))}" for place in step.vectors)
    values = {key: shlex.quote(text) for key, text in step.values.items()}
    return NEXT_COMMANDS[step.action].format(vectors=vectors, **values)


def _from_here(place: str) -> str:
    """A path as it is called in this folder, where it lies in it."""
    here = Path.cwd()
    return str(Path(place).relative_to(here)) if Path(place).is_relative_to(here) else place


def _next_lines(steps: list[ProjectStep]) -> list[str]:
    command = next_command(steps)
    return ["Next:", indent(command, "    ")] if command else ["Every stage has its record."]
