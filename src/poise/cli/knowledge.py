"""``poise knowledge build`` and ``poise knowledge search``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from poise.cli.options import Json
from poise.cli.work import note, working
from poise.counting import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poise.knowledge import BuildSummary, Knowledge, RetrievedPassage

__all__ = [
    "KnowledgeFolder",
    "LabelOption",
    "ModeOption",
    "RerankOption",
    "TopOption",
    "WhereOption",
    "app",
    "note_unknown_labels",
]

app = typer.Typer(no_args_is_help=True, help="Keep documents that answers are grounded in.")
SKIPPED_LINES = 20

KnowledgeFolder = Annotated[Path, typer.Argument(metavar="KB", help="Folder of a knowledge base.", show_default=False)]
TopOption = Annotated[int, typer.Option("--top", metavar="N", min=1, help="Most passages.")]
ModeOption = Annotated[
    Literal["hybrid", "dense", "sparse"],
    typer.Option("--mode", help="By meaning (dense), by words (sparse), or by both."),
]
RerankOption = Annotated[
    str | None,
    typer.Option(
        "--rerank",
        metavar="R",
        help="Score the best 20 again: by a cross-encoder (folder or name), or by a language model: model:NAME, "
        "endpoint:NAME, likelihood:NAME.",
        show_default=False,
    ),
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--in", metavar="PATTERN", help="Only files whose names fit, such as docs/*.md; may be repeated."),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--as", metavar="LABEL", help="See only what those with this label may see; may be repeated."),
]

_Encoder = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="E",
        help="all-MiniLM-L6-v2, model2vec:FOLDER, or endpoint:NAME (OPENAI_BASE_URL). Default: that of the last build, "
        "else the first.",
        show_default=False,
    ),
]
_Rules = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="LABEL=PATTERN",
        help="Files whose names fit are seen by those with the label alone; may be repeated. Default: the rules of "
        "the last build.",
        show_default=False,
    ),
]
_NoLabels = Annotated[bool, typer.Option("--no-labels", help="Everybody sees every file.")]
_ChunkSize = Annotated[
    int | None,
    typer.Option(
        "--chunk",
        metavar="N",
        help="Most characters of a passage. Default: that of the last build, else 900.",
        show_default=False,
    ),
]
_Store = Annotated[
    Literal["lance", "exact", "qdrant"] | None,
    typer.Option(
        "--store",
        help="lance: LanceDB. exact: SQLite, all vectors compared; for small collections. qdrant: a server "
        "(QDRANT_URL), or local files. Default: that of the last build, else lance.",
        show_default=False,
    ),
]


@app.callback()
def knowledge() -> None:
    """Keep documents that answers are grounded in."""


@app.command("build")
def build_command(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="KB", file_okay=False, help="Folder to build in.")],
    documents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DOCS",
            help="Files and folders: Markdown, text, HTML, PDF, DOCX, CSV, JSONL. None: those of the last build.",
            show_default=False,
        ),
    ] = None,
    encoder: _Encoder = None,
    label: _Rules = None,
    no_labels: _NoLabels = False,
    chunk: _ChunkSize = None,
    store: _Store = None,
    as_json: Json = False,
) -> None:
    """Build a knowledge base, or bring it up to date: only what changed is read, and what is gone leaves."""
    from poise.cli import facts

    if label and no_labels:
        raise typer.BadParameter("--label and --no-labels exclude each other.")
    with working():
        from poise.knowledge import BuildSettings, build_knowledge, text_encoder

        labels = () if no_labels else tuple(label) if label else None
        settings = BuildSettings(chunk=chunk, labels=labels, store=store)
        summary = build_knowledge(documents or [], out, text_encoder(encoder) if encoder else None, settings)
    if as_json:
        facts.print_json({"out": str(out), **_build_facts(summary)})
        return
    for line in _build_lines(summary):
        typer.echo(line)
    note(f"Next: poise knowledge search {out} 'a question'")


def _build_facts(summary: BuildSummary) -> dict[str, object]:
    header = summary.header
    return {
        "files": len(header.files),
        "chunks": header.chunks,
        "added": summary.added,
        "changed": summary.changed,
        "removed": summary.removed,
        "unchanged": summary.unchanged,
        "embedded": summary.embedded,
        "reused": summary.reused,
        "marked": summary.marked,
        "repaired": summary.repaired,
        "labels": header.labels,
        "idle_labels": summary.idle_labels,
        "encoder": header.encoder,
        "store": header.store,
        "skipped": header.skipped,
    }


def _build_lines(summary: BuildSummary) -> list[str]:
    header = summary.header
    lines = [
        f"{counted(len(header.files), 'file')}, {counted(header.chunks, 'chunk')}: "
        f"{counted(summary.added, 'file')} added, {summary.changed:,} changed, {summary.removed:,} removed, "
        f"{summary.unchanged:,} as they were; "
        f"{counted(summary.embedded, 'chunk')} embedded, {summary.reused:,} reused."
    ]
    if summary.repaired:
        lines.append(f"The store was damaged: {summary.repaired}")
    if summary.marked:
        lines.append(f"Marked as reading like an instruction to a model, of the chunks just read: {summary.marked:,}.")
    if summary.idle_labels:
        name = next(iter(header.files), "")
        rules = ", ".join(summary.idle_labels)
        lines.append(f"No file is hidden by the label {rules}: no name fits it; names look like {name}.")
    skipped = list(header.skipped.items())
    lines += [f"skipped {path}: {reason}" for path, reason in skipped[:SKIPPED_LINES]]
    if len(skipped) > SKIPPED_LINES:
        lines.append(f"skipped {len(skipped) - SKIPPED_LINES:,} more; `--json` lists all.")
    return lines


@app.command("search")
def search_command(
    folder: KnowledgeFolder,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What is looked for.", show_default=False)],
    top: TopOption = 8,
    mode: ModeOption = "hybrid",
    rerank: RerankOption = None,
    where: WhereOption = None,
    label: LabelOption = None,
    as_json: Json = False,
) -> None:
    """Find the passages that fit a question best."""
    from dataclasses import asdict

    from poise.cli import facts

    with working():
        from poise.knowledge import ChunkFilter, Knowledge, text_reranker

        limits = ChunkFilter(paths=tuple(where or ()), labels=frozenset(label) if label else None)
        opened = Knowledge(folder, reranker=text_reranker(rerank) if rerank else None)
        passages = opened.search(question, top, mode, limits)
        note_unknown_labels(opened, label)
    if as_json:
        facts.print_json({"question": question, "mode": mode, "passages": [asdict(passage) for passage in passages]})
        return
    if not passages:
        note("Nothing fits.")
    for number, passage in enumerate(passages, 1):
        _show_passage(number, passage)


def note_unknown_labels(knowledge: Knowledge, labels: Sequence[str] | None) -> None:
    """Say which of the asker's labels no document has, since they let nobody see more."""
    known = knowledge.labels
    if unknown := [label for label in labels or () if label not in known]:
        here = f"there are: {', '.join(sorted(known))}" if known else "no document has a label"
        note(f"No document has the label {', '.join(unknown)}; {here}.")


def _show_passage(number: int, passage: RetrievedPassage) -> None:
    from poise.cli.render import plain_text

    marks = f"  ! reads as an instruction: {', '.join(passage.marks)}" if passage.marks else ""
    typer.echo(plain_text(f"[{number}] {passage.place}  ({passage.score:.3f}){marks}"))
    typer.echo(plain_text("\n".join(f"    {line}" for line in passage.text.splitlines())) + "\n")
