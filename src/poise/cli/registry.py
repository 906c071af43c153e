"""``poise registry``: records of what was made, their stages, and whether they are what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from poise.cli.options import Json
from poise.cli.work import note, working
from poise.counting import counted

if TYPE_CHECKING:
    from poise.lifecycle.registry import Registry

__all__ = ["DEFAULT_FOLDER", "RecordName", "RegistryFolder", "app", "open_registry"]

app = typer.Typer(no_args_is_help=True, help="Record what was made, bring it through stages, and check all of it.")

RegistryFolder = Annotated[
    Path,
    typer.Option(
        "--registry",
        metavar="DIR",
        envvar="POISE_REGISTRY",
        file_okay=False,
        help="The registry's folder, or its address.",
    ),
]
RecordName = Annotated[
    str,
    typer.Argument(metavar="RECORD", help="Name of a record, or the first digits of its hash.", show_default=False),
]
ByOption = Annotated[str, typer.Option("--by", metavar="NAME", help="Who does it; otherwise who is logged in.")]
NoteOption = Annotated[str, typer.Option("--note", metavar="TEXT", help="Why, in words.")]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", dir_okay=False, help="Sign with this key; see poise registry keygen."),
]
ArtefactKindName = Literal[
    "model", "adapter", "vector", "detector", "guardrail", "knowledge", "data", "report", "project"
]
DEFAULT_FOLDER = Path("registry")


@app.command("add")
def add_record(
    artefacts: Annotated[
        list[str],
        typer.Argument(metavar="ARTEFACT", help="Files or folders, or a model's name.", show_default=False),
    ],
    registry: RegistryFolder = DEFAULT_FOLDER,
    kind: Annotated[
        ArtefactKindName | None, typer.Option("--kind", help="Kind of artefact, where its files do not tell.")
    ] = None,
    name: Annotated[str, typer.Option("--name", metavar="N", help="Name to call it by; otherwise the file's.")] = "",
    parents: Annotated[
        list[str] | None,
        typer.Option("--parent", metavar="RECORD", help="A record that it came from; once for each."),
    ] = None,
    facts: Annotated[
        list[str] | None,
        typer.Option("--fact", metavar="KEY=VALUE", help="What else is to be recorded, such as licence=apache-2.0."),
    ] = None,
    by: ByOption = "",
    why: NoteOption = "",
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Record artefacts as drafts: their files by hash, what they say of themselves, and what they came from."""
    from poise.cli.facts import print_json

    if name and len(artefacts) > 1:
        raise typer.BadParameter("one name is for one artefact.", param_hint="--name")
    with working():
        from poise.lifecycle.registry import Registry

        opened = Registry(registry)
        records = []
        for artefact in artefacts:
            digest, is_new = opened.add(
                artefact,
                kind=kind,
                name=name,
                parents=parents or (),
                facts=dict(_fact_pairs(facts or ())),
                by=by,
                note=why,
                key=key,
            )
            records.append((digest, is_new, opened.record(digest)))
    if as_json:
        print_json({"records": [{"record": one[0], "new": one[1], "name": one[2].name} for one in records]})
        return
    for digest, is_new, record in records:
        typer.echo(f"{digest[:12]}  {record.kind}  {record.name}{'' if is_new else '  (recorded before)'}")


def _fact_pairs(facts: list[str] | tuple[str, ...]) -> list[tuple[str, Any]]:
    pairs = []
    for fact in facts:
        key, sign, text = fact.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{fact} is not KEY=VALUE.", param_hint="--fact")
        try:
            pairs.append((key, json.loads(text, parse_constant=_refuse_constant)))
        except ValueError:
            pairs.append((key, text))
    return pairs


def _refuse_constant(text: str) -> None:
    raise ValueError(text)


@app.command("list")
def list_records(
    registry: RegistryFolder = DEFAULT_FOLDER,
    kind: Annotated[ArtefactKindName | None, typer.Option("--kind", help="Only artefacts of this kind.")] = None,
    stage: Annotated[str, typer.Option("--stage", metavar="S", help="Only records in this stage.")] = "",
    as_json: Json = False,
) -> None:
    """Every record with its stage, and who brought it there when."""
    from poise.cli import facts, render

    with working():
        opened = open_registry(registry)
        rows = []
        for digest, record in opened:
            if (kind and record.kind != kind) or (stage and opened.stage(digest) != stage):
                continue
            events = opened.events(digest)
            last = events[-1].event if events else None
            rows.append((digest, record.kind, record.name, opened.stage(digest), last))
    if as_json:
        listed = [
            {"record": row[0], "kind": row[1], "name": row[2], "stage": row[3], "last": row[4] and row[4].model_dump()}
            for row in rows
        ]
        facts.print_json({"records": listed})
        return
    lines = [f"{row[0][:12]}  {row[1]:9}  {row[3]:10}  {row[2]}" + (f"  ({row[4].by}, {row[4].time})" if row[4] else "")
             for row in rows]  # fmt: skip
    render.show([*map(render.plain_text, lines)] or ["No record yet: poise registry add ARTEFACT"])


@app.command("show")
def show_record(record: RecordName, registry: RegistryFolder = DEFAULT_FOLDER, as_json: Json = False) -> None:
    """One record: its files, what it says of itself, what it came from and led to, and its history."""
    from poise.cli import facts, render

    with working():
        opened = open_registry(registry)
        digest = opened.find(record)
        entry, events = opened.record(digest), opened.events(digest)
        family = {
            side: [(one[:12], opened.record(one).name) for one in ids]
            for side, ids in (("From", entry.parents), ("Led to", opened.children(digest)))
        }
    if as_json:
        history = [event.model_dump(mode="json") for event in events]
        facts.print_json({"record": digest, **entry.model_dump(mode="json"), "events": history})
        return
    lines = [f"{entry.name}: {entry.kind}, {opened.stage(digest)}, {digest}", f"  Place     {entry.place}"]
    lines += [f"  File      {file.sha256[:16]}  {file.bytes:>12,}  {file.name}" for file in entry.files]
    lines += [f"  {side:8}  {name} ({one})" for side, relatives in family.items() for one, name in relatives]
    lines += [
        f"  {key:8}  {_short_value(value)}" for key, value in entry.facts.items() if value not in ("", None, [], {})
    ]
    for signed in events:
        event = signed.event
        mark = f", signed by {signed.signature.key[:16]}" if signed.signature else ""
        why = f": {event.note}" if event.note else ""
        lines.append(f"  {event.number:>3}       {event.time}  {event.stage} by {event.by}{mark}{why}")
    render.show([*map(render.plain_text, lines)])


def _short_value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:150]}… ({len(text):,} characters; --json has all of it)"


@app.command("diff")
def diff_records(
    first: RecordName,
    second: Annotated[str, typer.Argument(metavar="OTHER", help="The record beside it.", show_default=False)],
    registry: RegistryFolder = DEFAULT_FOLDER,
    as_json: Json = False,
) -> None:
    """What differs between two records: files, and every fact by its name."""
    from poise.cli import facts, render

    with working():
        from poise.lifecycle.registry_diff import record_differences

        opened = open_registry(registry)
        differences = record_differences(opened.record(opened.find(first)), opened.record(opened.find(second)))
    if as_json:
        facts.print_json({"differences": [{"field": a, "first": b, "second": c} for a, b, c in differences]})
        return
    lines = [f"{field}: {_short_value(before)} → {_short_value(after)}" for field, before, after in differences]
    render.show([*map(render.plain_text, lines)] or ["They are equal but for their names."])


@app.command("promote")
def promote_record(
    record: RecordName,
    stage: Annotated[
        Literal["draft", "candidate", "production", "retired"],
        typer.Option("--to", help="Stage from now on; no stage is skipped.", show_default=False),
    ],
    registry: RegistryFolder = DEFAULT_FOLDER,
    by: ByOption = "",
    why: NoteOption = "",
    key: KeyOption = None,
    as_json: Json = False,
) -> None:
    """Bring a record to another stage, with who approves and when. For production its files are hashed again."""
    from poise.cli.facts import print_json

    with working():
        opened = open_registry(registry)
        signed = opened.promote(record, stage, by=by, note=why, key=key)
    if as_json:
        print_json(signed.model_dump(mode="json"))
        return
    event = signed.event
    typer.echo(f"{record}: {event.stage} by {event.by} at {event.time}{', signed' if signed.signature else ''}")


@app.command("verify")
def verify_registry(
    registry: RegistryFolder = DEFAULT_FOLDER,
    trusted: Annotated[
        list[str] | None,
        typer.Option("--trusted", metavar="KEY", help="A public key, or its file, whose signatures count."),
    ] = None,
    require_signatures: Annotated[
        bool, typer.Option("--require-signatures", help="An event without a signature is a fault.")
    ] = False,
    artefacts: Annotated[
        bool, typer.Option("--artefacts/--records-only", help="Whether the artefacts' files are hashed again.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Hold every record, event, signature and artefact to its hash. Exit code 1 where something was changed."""
    from poise.cli import facts, render

    with working():
        from poise.lifecycle.registry_check import check_registry
        from poise.lifecycle.signing import public_keys

        review = check_registry(
            open_registry(registry),
            trusted=public_keys(trusted or ()),
            require_signatures=require_signatures,
            artefacts=artefacts,
        )
    if as_json:
        facts.print_json(review.model_dump(mode="json") | {"holds": review.holds})
    else:
        lines = [
            f"{'FAULT' if one.severity == 'fault' else 'note':6}  {one.place}: {one.text}" for one in review.findings
        ]
        counts = (
            f"{counted(review.records, 'record')}, {counted(review.events, 'event')}, {review.signed} of them signed"
        )
        lines.append(f"{counts}: {'all as it was written' if review.holds else 'NOT as it was written'}.")
        render.show([*(render.plain_text(line.replace("`trusted`", "--trusted")) for line in lines)])
    if not review.holds:
        raise typer.Exit(1)


@app.command("keygen")
def make_signing_key(
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", dir_okay=False, help="The key's file; KEY.pub lies beside it."),
    ],
) -> None:
    """Make a key to sign records with, readable by you alone."""
    with working():
        from poise.lifecycle.signing import make_key

        public, text = make_key(out)
    typer.echo(text)
    note(
        f"{out} signs; keep it to yourself. Give {public} to whoever verifies: poise registry verify --trusted {public}"
    )


def open_registry(folder: Path) -> Registry:
    """The registry in a folder; an error where nothing was recorded there."""
    from poise.errors import InvalidRegistry
    from poise.lifecycle.registry import Registry

    opened = Registry(folder)
    if not opened.is_one:
        raise InvalidRegistry(f"There is no registry in {folder}; `poise registry add` begins one.")
    return opened
