"""``poise memory``: add, recall, list, quarantine, consolidate, forget, export, delete, fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from poise.cli.options import Device, Dtype, Force, Json, ModelName, Seed
from poise.cli.work import load_model, note, working
from poise.counting import counted

if TYPE_CHECKING:
    from poise.memory import Memory, MemoryEntry
    from poise.memory.write_gate import MeasuresEffect
    from poise.model import Model

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Keep what an agent remembers.")

MemoryFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a memory.", show_default=False)]
KindName = Literal["episodic", "semantic", "procedural"]
EVERY_KIND: tuple[KindName, ...] = ("episodic", "semantic", "procedural")
_KIND_HELP = "episodic: what happened; semantic: a fact; procedural: how something is done."
_Kind = Annotated[KindName, typer.Option("--kind", help=_KIND_HELP)]
_OfKind = Annotated[KindName | None, typer.Option("--kind", help="Only of this kind.")]
_Outcome = Annotated[Literal["success", "failure"] | None, typer.Option("--outcome", help="How it went.")]
_Trust = Annotated[Literal["user", "tool", "web", "model"], typer.Option("--trust", help="Who it comes from.")]
_Yes = Annotated[bool, typer.Option("--yes", help="Do it; without this, what would go is listed.")]
_Subject = Annotated[
    str | None, typer.Option("--subject", metavar="S", help="Entries about S, or that name it.", show_default=False)
]


@app.callback()
def memory() -> None:
    """Keep what an agent remembers."""


@app.command("add")
def add_command(
    folder: MemoryFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is to be remembered.", show_default=False)],
    kind: _Kind = "episodic",
    trust: _Trust = "user",
    source: Annotated[str, typer.Option("--source", metavar="S", help="Where it comes from.")] = "",
    subject: Annotated[str, typer.Option("--subject", metavar="S", help="Whom or what it is about.")] = "",
    outcome: _Outcome = None,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of a procedure.")] = "",
    gate: Annotated[
        Path | None,
        typer.Option("--gate", metavar="F", dir_okay=False, help="What `poise memory fit` wrote; needs --model."),
    ] = None,
    guardrail: Annotated[
        Path | None,
        typer.Option(
            "--guardrail",
            metavar="F",
            dir_okay=False,
            help="Fitted guardrail that reads for instructions; needs --model.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="M", help="The gate's model, which reads the entry.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Write an entry, if the gate lets it in; else it is quarantined with the reasons."""
    from poise.cli import facts

    if (gate is None and guardrail is None) != (model is None):
        raise typer.BadParameter(
            "--gate or --guardrail and --model go together: they read on the model that they were fitted on."
        )
    with working():
        from dataclasses import asdict

        from poise.memory import Memory

        effect = _entry_effect(gate, guardrail, lambda: load_model(str(model), dtype, device)) if model else None
        written = Memory(folder, effect=effect).record(
            text, kind=kind, trust=trust, source=source, subject=subject, outcome=outcome or "", name=name
        )
    if as_json:
        facts.print_json(asdict(written))
        return
    reasons = f": {'; '.join(written.reasons)}" if written.reasons else ""
    typer.echo(f"{written.verdict} {written.id}{reasons}")
    if written.verdict == "quarantined":
        note(f"Let it in: poise memory quarantine {folder} --approve {written.id}")


def _entry_effect(gate: Path | None, guardrail: Path | None, load: Callable[[], Model]) -> MeasuresEffect:
    """What a model is read with before an entry is let in; files are read before it is loaded."""
    from poise.guardrail.guard_file import load_guard
    from poise.guardrail.injection_reading import InjectionReader
    from poise.memory import EffectGate, InjectionEffect, joined_effect, load_effect_gate

    fitted, guard = load_effect_gate(gate) if gate else None, load_guard(guardrail) if guardrail else None
    model = load()
    effects: list[MeasuresEffect] = [EffectGate(fitted, model)] if fitted else []
    if guard:
        effects.append(InjectionEffect(InjectionReader(guard, model)))
    return joined_effect(*effects)


@app.command("recall")
def recall_command(
    folder: MemoryFolder,
    task: Annotated[str, typer.Argument(metavar="TASK", help="What is to be done or answered.", show_default=False)],
    budget: Annotated[int, typer.Option("--budget", metavar="N", min=1, help="Most tokens.")] = 600,
    kind: _OfKind = None,
    outcome: _Outcome = None,
    as_json: Json = False,
) -> None:
    """Show what of the memory would go into the prompt of a task, and why."""
    from poise.cli import facts

    with working():
        from poise.memory import entry_facts

        opened = _opened(folder)
        entries = opened.recall(task, budget, kinds=(kind,) if kind else EVERY_KIND, outcome=outcome)
    if as_json:
        rows = [{"why": e.why, "score": e.score, "tokens": e.tokens, "entry": entry_facts(e.entry)} for e in entries]
        facts.print_json({"task": task, "budget": budget, "entries": rows})
        return
    from poise.cli.render import plain_text

    for entry in entries:
        typer.echo(plain_text(f"[{entry.id}] {entry.line[2:]}\n      {entry.why}; {entry.tokens} tokens"))
    shown = counted(len(entries), "entry", "entries")
    note(f"{shown}, {sum(entry.tokens for entry in entries)} of {counted(budget, 'token')}.")


@app.command("list")
def list_command(
    folder: MemoryFolder,
    kind: _OfKind = None,
    subject: _Subject = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="Superseded entries, too.")] = False,
    as_json: Json = False,
) -> None:
    """List what is kept."""
    with working():
        from poise.memory import entries_about

        opened = _opened(folder)
        entries = opened.entries() if subject is None else entries_about(opened, subject)
        states = ("kept", "superseded") if superseded else ("kept",)
        entries = [e for e in entries if e.status in states and kind in (None, e.kind)]
        waiting = len(opened.quarantined())
    _show_entries(entries, as_json)
    if waiting and not as_json:
        waits = "waits" if waiting == 1 else "wait"
        note(f"{waiting:,} more {waits} in quarantine: poise memory quarantine {folder}")


@app.command("quarantine")
def quarantine_command(
    folder: MemoryFolder,
    approve: Annotated[
        list[int] | None,
        typer.Option("--approve", metavar="ID", help="Let it in; what it contradicts is superseded."),
    ] = None,
    drop: Annotated[list[int] | None, typer.Option("--drop", metavar="ID", help="Delete it.")] = None,
    as_json: Json = False,
) -> None:
    """List what was not let in, with the reasons; let entries in, or drop them."""
    with working():
        from poise.errors import InvalidArgument

        opened = _opened(folder)
        waiting = {entry.id for entry in opened.quarantined()}
        if wrong := [key for key in (*(approve or ()), *(drop or ())) if key not in waiting]:
            raise InvalidArgument(f"Entry {wrong[0]} is not in quarantine; nothing was changed.")
        approved = [opened.approve(key).id for key in approve or ()]
        dropped = opened.delete(drop) if drop else []
        entries = opened.quarantined()
    if approved or dropped:
        note(f"{len(approved)} let in, {len(dropped)} dropped.")
    _show_entries(entries, as_json)


@app.command("consolidate")
def consolidate_command(
    folder: MemoryFolder,
    least: Annotated[int, typer.Option("--least", metavar="N", min=2, help="Fewest like episodes of a fact.")] = 3,
    dry: Annotated[bool, typer.Option("--dry-run", help="Show the facts, and write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make a fact of every group of like episodes, with these as its sources."""
    from poise.cli import facts

    with working():
        from poise.memory import consolidate

        groups = consolidate(_opened(folder), least=least, dry=dry)
    if as_json:
        rows = [
            {
                "text": fact.text,
                "episodes": [entry.id for entry in fact.episodes],
                "verdict": fact.written.verdict if fact.written else "",
                "id": fact.written.id if fact.written else None,
            }
            for fact in groups
        ]
        facts.print_json({"facts": rows})
        return
    from poise.cli.render import plain_text

    for fact in groups:
        place = f"{fact.written.verdict} {fact.written.id}" if fact.written else "would be written"
        episodes = ", ".join(str(entry.id) for entry in fact.episodes)
        typer.echo(plain_text(f"{place}: {fact.text}  (of {episodes})"))
    note(f"{counted(len(groups), 'fact')}.")


@app.command("forget")
def forget_command(
    folder: MemoryFolder,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", help="What happened so long ago.")
    ] = None,
    unused_for: Annotated[
        float | None, typer.Option("--unused-for", metavar="DAYS", help="What was not recalled for so long.")
    ] = None,
    quarantined_for: Annotated[
        float | None, typer.Option("--quarantined-for", metavar="DAYS", help="What waited in quarantine for so long.")
    ] = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="What other entries stand for.")] = False,
    kind: _OfKind = None,
    yes: _Yes = False,
    as_json: Json = False,
) -> None:
    """Delete entries by rule; procedures only where they are superseded."""
    with working():
        from poise.memory import ForgetRule, forgettable

        opened = _opened(folder)
        rule = ForgetRule(
            older_than=older_than,
            unused_for=unused_for,
            quarantined_for=quarantined_for,
            superseded=superseded,
            kinds=(kind,) if kind else EVERY_KIND,
        )
        entries = forgettable(opened, rule)
        if yes:
            opened.delete([entry.id for entry in entries])
    _show_entries(entries, as_json)
    _say_deleted(entries, yes=yes)


@app.command("export")
def export_command(
    folder: MemoryFolder,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="JSONL", dir_okay=False, help="The file to write.")],
    subject: _Subject = None,
    force: Force = False,
) -> None:
    """Write all that is kept, or all about somebody, as JSONL."""
    with working():
        from poise.memory import entries_about, export_entries
        from poise.storage.output import check_output

        check_output(out, inputs=[folder], force=force)
        opened = _opened(folder)
        entries = opened.entries() if subject is None else entries_about(opened, subject)
        export_entries(entries, out, force=force)
    typer.echo(f"{counted(len(entries), 'entry', 'entries')} in {out}")


@app.command("delete")
def delete_command(
    folder: MemoryFolder,
    ids: Annotated[list[int] | None, typer.Argument(metavar="ID…", help="Entries.", show_default=False)] = None,
    subject: _Subject = None,
    yes: _Yes = False,
    as_json: Json = False,
) -> None:
    """Delete entries, or all about somebody, without a trace in any file of the folder."""
    if bool(ids) == bool(subject):
        raise typer.BadParameter("name entries by their numbers, or a subject with --subject.")
    with working():
        from poise.memory import entries_about

        opened = _opened(folder)
        entries = entries_about(opened, subject) if subject else [opened.entry(key) for key in ids or ()]
        if yes:
            opened.delete([entry.id for entry in entries])
    _show_entries(entries, as_json)
    _say_deleted(entries, yes=yes)


@app.command("fit")
def fit_gate_command(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="F", dir_okay=False, help="File to write.")],
    vector: Annotated[
        list[Path] | None,
        typer.Option("--vector", metavar="FILE", dir_okay=False, help="Persona vectors to read; once for each."),
    ] = None,
    useful: Annotated[
        Path | None,
        typer.Option("--useful", metavar="FILE", dir_okay=False, help="Useful entries of your own, one a line."),
    ] = None,
    rate: Annotated[
        float, typer.Option("--rate", metavar="R", help="Useful entries that may wait, as a share.")
    ] = 0.05,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fit the gate that reads a model with and without an entry, with a promised rate of false alarms."""
    from functools import partial

    from poise.cli import facts

    with working():
        from poise.workflows.memory_gates import fit_memory_gate

        fitted = fit_memory_gate(
            partial(load_model, model, dtype, device),
            out=out,
            vectors=vector or (),
            useful=useful,
            rate=rate,
            seed=seed,
            force=force,
        )
    header = fitted.header
    if as_json:
        facts.print_json({"out": str(out), **header.model_dump(mode="json", exclude={"model"})})
        return
    typer.echo(
        f"An entry waits above {header.threshold:.2f} standard deviations of useful entries: {header.rate:.0%} of them "
        f"[{header.low:.1%}, {header.high:.1%}], set on {header.useful} that nothing was fitted to."
    )
    typer.echo(
        f"Harmful exemplars above it, by fits that had not seen them: {header.recall:.2f} [{header.recall_low:.2f}, "
        f"{header.recall_high:.2f}], n={header.harmful}."
    )
    note(f"Next: poise memory add DIR TEXT --gate {out} --model {header.model.name}")


def _opened(folder: Path) -> Memory:
    from poise.memory import Memory

    return Memory(folder, create=False)


def _say_deleted(entries: Sequence[MemoryEntry], *, yes: bool) -> None:
    number = counted(len(entries), "entry", "entries")
    if entries and yes:
        note(f"{number} deleted.")
    elif entries:
        note(f"{number} would be deleted; add --yes to delete {'it' if len(entries) == 1 else 'them'}.")
    else:
        note("No entry is like that.")


def _show_entries(entries: Sequence[MemoryEntry], as_json: bool) -> None:
    from poise.cli import facts
    from poise.memory import entry_facts

    if as_json:
        facts.print_json({"entries": [entry_facts(entry) for entry in entries]})
        return
    for entry in entries:
        typer.echo(_entry_lines(entry))


def _entry_lines(entry: MemoryEntry) -> str:
    from poise.cli.render import plain_text

    parts: list[Any] = [entry.kind, entry.at.date().isoformat(), f"from {entry.trust}"]
    parts += [part for part in (entry.outcome, entry.subject, entry.source) if part]
    parts += [f"{entry.name} version {entry.version}"] if entry.name else []
    parts += [f"superseded by {entry.superseded_by}"] if entry.superseded_by else []
    text = " ".join(entry.text.split())
    shown = text if len(text) <= 300 else f"{text[:300]}…"
    lines = [f"[{entry.id}] {shown}", f"      {', '.join(parts)}"]
    return plain_text("\n".join([*lines, *(f"      ! {reason}" for reason in entry.reasons)]))
