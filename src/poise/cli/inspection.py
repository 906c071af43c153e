"""``poise inspect``: what a model is as files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poise.cli.given_texts import given_text
from poise.cli.options import Json
from poise.cli.work import working
from poise.counting import counted

if TYPE_CHECKING:
    from poise.lifecycle import FileFinding, ModelInspection, TokenCounts

__all__ = ["inspect_command"]

WIDEST_BYTES = 60  # characters of a column
SIGNS = {"danger": "DANGER", "warning": "warning", "note": "note"}


def inspect_command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a .gguf or .safetensors file, a bundled name, or a hub id that was fetched before.",
            show_default=False,
        ),
    ],
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            metavar="TEXT",
            help="Show this text (also @FILE or -) as tokens, and how many languages and code take.",
        ),
    ] = None,
    safe: Annotated[
        bool,
        typer.Option(
            "--safe", help="Look into every archive and pickle for what loading it would do; nothing is loaded."
        ),
    ] = False,
    hashes: Annotated[
        bool, typer.Option("--hashes/--no-hashes", help="Hash every file with SHA-256, which reads all of them.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Say what a model is as files: parts, sizes, vocabulary, template, licence, hashes. Nothing of it is run.

    Exit code 1 where loading or unpacking a file would run foreign code or write elsewhere.
    """
    from poise.cli import facts, render

    with working():
        from poise.lifecycle import count_tokens, inspect_model

        if tokens is not None:
            counts = count_tokens(model, given_text(tokens))
        else:
            inspection = inspect_model(model, hashes=hashes, safe=safe)
    if tokens is not None:
        if as_json:
            facts.print_json(counts.model_dump(mode="json"))
        else:
            render.show([*_token_lines(counts)])
        return
    if as_json:
        facts.print_json(inspection.model_dump(mode="json") | {"dangerous": inspection.dangerous})
    else:
        render.show([*_inspection_lines(inspection, safe=safe)])
    if inspection.dangerous:
        raise typer.Exit(1)


def _inspection_lines(of: ModelInspection, *, safe: bool) -> list[str]:
    from poise.cli.render import plain_text

    rows = [("Files", f"{len(of.files)}, {_size(sum(file.bytes for file in of.files))}")]
    if of.shape:
        rows.append(("Shape", ", ".join(f"{key} {value}" for key, value in of.shape.items())))
    if of.parameters:
        dtypes = ", ".join(f"{name} {count / of.parameters:.1%}" for name, count in of.dtypes.items())
        blocks = f" in {of.blocks} blocks" if of.blocks else ""
        rows.append(("Parameters", f"{of.parameters:,}{blocks}, {_size(of.weight_bytes)} of weights: {dtypes}"))
        rows += [(f"  {part}", f"{count:,} ({count / of.parameters:.1%})") for part, count in of.parts.items()]
    if of.tied_head:
        rows.append(("  output head", "the embeddings again (tied), or none"))
    rows += [
        ("Vocabulary", _vocabulary_words(of)),
        ("Template", f"{len(of.template):,} characters, SHA-256 {of.template_sha256[:16]}" if of.template else "none"),
        ("Licence", of.licence or "not stated in its files"),
    ]
    width = max(len(name) for name, _ in rows)
    place = "" if of.place == of.model else f", {of.place}"
    is_known = any(file.contents != "not recognised" for file in of.files)
    nothing = "no architecture stated" if is_known else "nothing that a model is made of"
    lines = [f"{of.model}: {of.architecture or nothing}{place}"]
    lines += [f"  {name:{width}}  {value}" for name, value in rows]
    names = max(len(file.name) for file in of.files)
    lines += ["", "What each file holds"]
    lines += [
        f"  {file.name:{names}}  {_size(file.bytes):>10}  {file.sha256[:16] or '-':16}  {file.contents}"
        for file in of.files
    ]
    lines += ["", *_finding_lines(of.findings, safe=safe)]
    return [plain_text(line) for line in lines]


def _vocabulary_words(of: ModelInspection) -> str:
    vocabulary = of.vocabulary
    if vocabulary.tokens is None:
        return "no tokenizer that can be read without loading it"
    special = f", {vocabulary.special} of them special" if vocabulary.special is not None else ""
    rows = f"; {vocabulary.rows:,} rows of embeddings" if vocabulary.rows else ""
    return f"{vocabulary.tokens:,} tokens ({vocabulary.kind or 'kind not stated'}){special}{rows}"


def _finding_lines(findings: tuple[FileFinding, ...], *, safe: bool) -> list[str]:
    if findings:
        return [f"{SIGNS[one.severity]:8}  {one.file}: {one.text}".replace("`safe`", "--safe") for one in findings]
    looked = "Every archive and pickle was looked into" if safe else "No pickles and no code of its own"
    return [f"{looked}: nothing to warn of."]


def _size(count: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} B"


def _token_lines(of: TokenCounts) -> list[str]:
    data = of.text.encode()
    special = sum(token.special for token in of.tokens)
    width = min(max((len(token.bytes) for token in of.tokens), default=0), WIDEST_BYTES)
    lines = [
        f"{counted(len(of.tokens), 'token')} ({special} special), {counted(len(of.text), 'character')}, "
        f"{counted(len(data), 'byte')}",
        "",
        f"  {'id':>8}  {'bytes':{width}}  text",
    ]
    for token in of.tokens:
        text = f"{token.text}  (special)" if token.special else repr(token.text)
        lines.append(f"  {token.id:>8}  {token.bytes:{width}}  {text}")
    english = next((share for share in of.shares if share.name == "English"), of.shares[0])
    lines += ["", "What the same sentence takes in other languages, and code", ""]
    lines.append(f"  {'':10}{'tokens':>7}{'characters':>12}{'characters a token':>20}{'beside English':>16}")
    for share in of.shares:
        ratio = f"{share.tokens / english.tokens:.2f} ×" if share.name not in ("Python", "JSON", "numbers") else "–"
        counts = f"{share.tokens:>7}{share.characters:>12}{share.characters / share.tokens:>20.1f}"
        lines.append(f"  {share.name:10}{counts}{ratio:>16}")
    return lines
