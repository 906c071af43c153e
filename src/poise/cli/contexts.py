"""Options and tables of what is measured under training-like prompts and extracted again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from poise.data import DataSet
    from poise.shift.contexts import PromptContext
    from poise.shift.report import ContextSummary, ModelShift, ShiftReport
    from poise.statistics.estimates import Estimate

__all__ = [
    "ContextData",
    "ContextOptions",
    "ContextShare",
    "ContextTexts",
    "ExtractAgain",
    "MostContexts",
    "context_tables",
    "direction_table",
    "find_all_contexts",
    "format_estimate",
    "show_inputs",
]

_CONTEXTS = "Training-like prompts"

ContextData = Annotated[
    list[str] | None,
    typer.Option(
        "--contexts",
        metavar="DATA",
        help="The training data, to ask the questions also under the system prompts, prefixes, suffixes and formats "
        "that recur in them, and after two of their rows. Several add up.",
        rich_help_panel=_CONTEXTS,
    ),
]
ContextTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--context",
        metavar="WHAT",
        help="A context to ask under: system=TEXT, prefix=TEXT, suffix=TEXT, or a YAML file of contexts. Several add "
        "up.",
        rich_help_panel=_CONTEXTS,
    ),
]
ContextShare = Annotated[
    float,
    typer.Option(
        "--context-share",
        metavar="P",
        min=0,
        max=1,
        help="Least share of the rows, and at least 5 of them, that a context in --contexts is found by.",
        rich_help_panel=_CONTEXTS,
    ),
]
MostContexts = Annotated[
    int,
    typer.Option(
        "--most-contexts",
        metavar="N",
        min=1,
        help="Most contexts that are taken from --contexts, the most frequent of each kind in turn.",
        rich_help_panel=_CONTEXTS,
    ),
]
ExtractAgain = Annotated[
    bool,
    typer.Option(
        "--extract-again",
        help="Also extract each direction on both models from the trait's exemplars, and report the cosine.",
        rich_help_panel="What is measured",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ContextOptions:
    """Where the contexts come from; see each option."""

    data: list[str]
    texts: list[str]
    share: float
    most: int

    @property
    def files(self) -> list[Path]:
        """Files that are read."""
        return [path for path in map(Path, (*self.data, *self.texts)) if path.exists()]

    @property
    def chosen(self) -> bool:
        """Whether there are any."""
        return bool(self.data or self.texts)


def find_all_contexts(options: ContextOptions, seed: int) -> tuple[tuple[PromptContext | str, ...], tuple[str, ...]]:
    """The contexts in the data and those that are given, and what there is to say of the search."""
    from poise.cli.work import note
    from poise.shift import find_contexts

    if not options.data:
        return tuple(options.texts), ()
    search = find_contexts(options.data, share=options.share, most=options.most, seed=seed)
    for line in search.notes:
        note(line)
    return (*search.contexts, *options.texts), search.notes


def show_inputs(
    options: ContextOptions, data: list[DataSet], model: str | None, n: int, *, seed: int, as_json: bool
) -> None:
    """Print the contexts under which questions would be asked, if any, and the first answers of each data set."""
    from poise.cli import facts
    from poise.cli.preview import previews_json, print_previews, read_previews
    from poise.cli.work import working

    with working():
        from poise.shift.contexts import check_contexts

        contexts, _ = find_all_contexts(options, seed)
        checked = check_contexts(contexts)
    previews = read_previews(*data, model=model, n=n)
    if not options.chosen:
        print_previews(*previews, as_json=as_json)
        return
    if as_json:
        shown = {"contexts": [context.model_dump(mode="json") for context in checked]}
        facts.print_json(shown | previews_json(*previews) if previews else shown)
        return
    _print_contexts(checked)
    if previews:
        typer.echo("\n" + "\n\n".join(map(str, previews)))


def _print_contexts(contexts: Iterable[PromptContext]) -> None:
    from poise.cli import render

    for number, context in enumerate(contexts, 1):
        parts: list[Any] = [f"{number}  {context.label} ({context.origin})"]
        texts = {"system": context.system, "prefix": context.prefix, "suffix": context.suffix}
        parts += [f"   {kind} {text!r}" for kind, text in texts.items() if text]
        for turn in context.turns:
            parts += [f"   user {turn.user!r}", f"   assistant {turn.assistant!r}"]
        render.show(parts)


def context_tables(tuned: ModelShift, report: ShiftReport) -> list[Any]:
    """What changed under the worst context of each trait, beside the mean of all and no context; and what they are."""
    from rich import box
    from rich.table import Table

    if not tuned.contexts:
        return []
    parts: list[Any] = []
    numbers = {context.label: str(number) for number, context in enumerate(report.contexts, 1)}
    for measure, head in (("shift", "Shift"), ("judged", "Judged change")):
        summaries = [summary for summary in tuned.under_contexts if summary.measure == measure]
        if not summaries:
            continue
        table = Table(head, "Without", "Mean", "Worst", "Under", box=box.SIMPLE_HEAD, pad_edge=False)
        for summary in summaries:
            digits = 2 if measure == "shift" else 1
            figures = (plain_change(tuned, summary), summary.mean, summary.worst.change)
            table.add_row(summary.trait, *(format_estimate(f, digits) for f in figures), numbers[summary.worst.context])
        parts.append(table)
    parts.append("Asked under these contexts; the interval of the worst holds for all of them at once:")
    parts += [f"  {numbers[context.label]}  {context.label} ({context.origin})" for context in report.contexts]
    return parts


def plain_change(tuned: ModelShift, summary: ContextSummary) -> Estimate | None:
    """What changed without a context."""
    if summary.measure == "shift":
        cell = tuned.cell(summary.trait)
        return cell.shift if cell else None
    return next((j.change for j in tuned.judged if j.trait == summary.trait), None)


def direction_table(tuned: ModelShift) -> list[Any]:
    """Cosines of the directions extracted again."""
    from rich import box
    from rich.table import Table

    if not tuned.extracted_again:
        return []
    table = Table("Extracted again", "Layer", "Cosine", "Length", "Pairs", box=box.SIMPLE_HEAD, pad_edge=False)
    for direction in tuned.extracted_again:
        ratio = "–" if direction.norm_ratio is None else f"× {direction.norm_ratio:.2f}"
        cosine = format_estimate(direction.cosine, 3)
        table.add_row(direction.trait, str(direction.layer), cosine, ratio, str(direction.pairs))
    notes = [
        f"{d.trait}: the vector itself has a cosine of {d.vector_cosine:.3f} with the tuned model's direction and "
        f"{d.vector_cosine_before:.3f} with the base's; it is not from these pairs alone."
        for d in tuned.extracted_again
        if d.vector_cosine is not None and d.vector_cosine_before is not None and d.vector_cosine_before < 0.999
    ]
    return [table, *notes]


def format_estimate(estimate: Estimate | None, digits: int = 1) -> str:
    """``1.5 [1.2, 1.8]``."""
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
