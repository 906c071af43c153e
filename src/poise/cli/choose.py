"""``poise choose``: a use case's candidates side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poise.cli.options import Device, Force, Json, OutFolder
from poise.cli.project import DEFAULT_FILE, ProjectFile
from poise.cli.work import note, working

if TYPE_CHECKING:
    from poise.lifecycle.choice import ModelChoice

__all__ = ["choose_command"]


def choose_command(
    out: OutFolder,
    path: ProjectFile = DEFAULT_FILE,
    questions: Annotated[
        int, typer.Option("--questions", metavar="N", min=2, help="Questions of each trait that is bounded.")
    ] = 8,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=2, help="Longest answer.")] = 48,
    capability_limit: Annotated[
        int, typer.Option("--capability-limit", metavar="N", min=2, help="Most questions of each task.")
    ] = 100,
    record: Annotated[
        bool, typer.Option("--record", help="Record the comparison in the project's registry as a report.")
    ] = False,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure a project's candidates: licence, size, memory, speed, traits, tasks; and say which one is spoken for.

    Writes choice.json and choice.html. Where the figures do not tell, it says so.
    """
    from poise.cli import facts, render

    with working():
        from poise.lifecycle.choice import choose_model
        from poise.lifecycle.choice_page import choice_page
        from poise.lifecycle.project import read_project
        from poise.lifecycle.registry import Registry
        from poise.storage.atomic_write import saving
        from poise.storage.output import check_output

        project = read_project(path)
        if not project.candidates:
            raise typer.BadParameter(f"{path} names no candidates.", param_hint="YAML")
        for name in ("choice.json", "choice.html"):
            check_output(out / name, force=force)
        registry = Registry(path.parent / project.registry)
        choice = choose_model(
            project,
            questions=questions,
            max_new_tokens=max_new_tokens,
            registry=registry,
            device=None if device == "auto" else device,
            capability_limit=capability_limit,
            folder=path.parent,
        )
        for name, text in (
            ("choice.json", choice.model_dump_json(indent=1) + "\n"),
            ("choice.html", choice_page(choice)),
        ):
            with saving(out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        if record:
            registry.add(str(out / "choice.json"), kind="report")
    if as_json:
        facts.print_json(choice.model_dump(mode="json"))
    else:
        render.show([*map(render.plain_text, _choice_lines(choice)), f"Page: {out / 'choice.html'}"])
    if not record:
        note(f"To record it: poise registry add {out / 'choice.json'} --registry {path.parent / project.registry}")


def _choice_lines(choice: ModelChoice) -> list[str]:
    from poise.lifecycle.choice_page import choice_rows

    lines = []
    for place, one in enumerate(choice.candidates):
        lines.append(one.name)
        if one.fault:
            lines += [f"  could not be measured: {one.fault}", ""]
            continue
        lines += [f"  {label:24}  {texts[place]}" for label, texts in choice_rows(choice)]
        lines += [f"  {check.state:12}  {check.name}: {check.text}" for check in one.checks]
        lines.append("")
    return [*lines, f"{choice.recommended or 'No recommendation'}: {choice.why}"]
