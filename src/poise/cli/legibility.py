"""``poise legibility``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.options import Device, Dtype, Force, Json, OutFolder
from poise.cli.talk import SteerTerms
from poise.cli.work import load_model, working

if TYPE_CHECKING:
    from poise.legibility import Legibility, LegibilityFigures

__all__ = ["legibility_command"]

_PROVER_PANEL = "Solutions that a prover writes"
_FILES_PANEL = "Solutions as they are"


_VerifierName = Annotated[
    str,
    typer.Option(
        "--verifier", metavar="V", help="A small model, or endpoint:NAME (OPENAI_BASE_URL).", show_default=False
    ),
]
_ProblemsFile = Annotated[
    str | None,
    typer.Argument(metavar="PROBLEMS.jsonl", help="Lines of question and answer, for --prover.", show_default=False),
]
_RightSolutions = Annotated[
    list[str] | None,
    typer.Option("--right", metavar="DATA", help="Right solutions; may be repeated.", rich_help_panel=_FILES_PANEL),
]
_WrongSolutions = Annotated[
    list[str] | None,
    typer.Option("--wrong", metavar="DATA", help="Wrong ones of the same problems.", rich_help_panel=_FILES_PANEL),
]
_ProverName = Annotated[
    str | None,
    typer.Option("--prover", metavar="M", help="The model that solves them.", rich_help_panel=_PROVER_PANEL),
]
_TunedProver = Annotated[
    str | None,
    typer.Option(
        "--tuned",
        metavar="M2",
        help="An adapter folder on it, or a tuned model, that solves them as well.",
        rich_help_panel=_PROVER_PANEL,
    ),
]
_ProverDocuments = Annotated[
    Path | None,
    typer.Option(
        "--knowledge",
        metavar="KB",
        file_okay=False,
        help="A knowledge base that it solves them with as well.",
        rich_help_panel=_PROVER_PANEL,
    ),
]
_MostProblems = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Most problems.")]
_LongestSolution = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest solution that is written.")
]
_SolutionBatch = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Most solutions at once.")]


def legibility_command(
    verifier: _VerifierName,
    out: OutFolder,
    problems: _ProblemsFile = None,
    right: _RightSolutions = None,
    wrong: _WrongSolutions = None,
    prover: _ProverName = None,
    steer: SteerTerms = None,
    tuned: _TunedProver = None,
    knowledge: _ProverDocuments = None,
    limit: _MostProblems = None,
    max_new_tokens: _LongestSolution = 200,
    batch: _SolutionBatch = 8,
    dtype: Dtype = "auto",
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Say how often a small verifier tells right solutions from wrong ones, before and after steering or training."""
    from poise.cli import facts

    with working():
        from poise.workflows.legibility import LegibilityRequest, measure_legibility

        request = LegibilityRequest(
            verifier=verifier,
            right=tuple(right or ()),
            wrong=tuple(wrong or ()),
            problems=problems,
            prover=prover,
            steer=tuple(steer or ()),
            tuned=tuned,
            knowledge=knowledge,
            limit=limit,
            most_tokens=max_new_tokens,
            batch=batch,
        )
        result = measure_legibility(request, out, load=lambda name: load_model(name, dtype, device), force=force)
    if as_json:
        facts.print_json({"out": str(out / "legibility.json"), **result.model_dump(mode="json")})
    else:
        _print_legibility(result, out)


def _print_legibility(result: Legibility, out: Path) -> None:
    from rich import box
    from rich.table import Table

    from poise.cli import render
    from poise.cli.contexts import format_estimate

    figures = Table(
        "Solutions", "Right", "Verifier tells", "Chance", "Says yes", "AUC", box=box.SIMPLE_HEAD, pad_edge=False
    )
    lengths = Table("Solutions", "Words", "n", "Verifier tells", "Chance", "AUC", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in result.conditions:
        shares = [format_estimate(share, 2) for share in (one.solved, one.accuracy)]
        figures.add_row(
            one.name, *shares, f"{one.chance:.2f}", format_estimate(one.says_yes, 2), format_estimate(one.auc, 2)
        )
        for band in one.bands:
            words = f"{band.shortest} to {band.longest}"
            accuracy, auc = (format_estimate(share, 2) for share in (band.accuracy, band.auc))
            lengths.add_row(one.name, words, str(band.solutions), accuracy, f"{band.chance:.2f}", auc)
    parts: list[Any] = [f"{result.verifier} on solutions: {result.prover}", figures, lengths]
    parts += [sentence for one in result.conditions for sentence in _sentences(one)]
    for name, change in result.changes.items():
        parts.append(
            f"{name}: the verifier tells {format_estimate(change, 2)} more than before (n = {change.n} problems)."
        )
    parts += ["Brackets hold 95 % intervals over problems.", "", str(out / "legibility.json")]
    render.show(parts)


def _sentences(one: LegibilityFigures) -> list[str]:
    """What the figures come to, and what else could explain them."""
    from poise.cli.contexts import format_estimate

    verdict_words = {
        "told": "right solutions are told from wrong ones better than by chance",
        "not told": "right solutions are not shown to be told from wrong ones",
        "too few": "too few problems for a verdict, which takes ten",
    }[one.verdict]
    sentences = [f"{one.name}: {verdict_words} (n = {one.auc.n} problems, {one.solutions} solutions)."]
    sentences.append(f"  Length alone: AUC {format_estimate(one.length_auc, 2)}, the shorter one taken for right.")
    if one.mass < 0.5:
        sentences.append(f"  The verifier's mind is elsewhere: yes and no have {one.mass:.0%} of its probability.")
    if one.unread:
        sentences.append(f"  {one.unread} solutions got neither yes nor no, and are left out.")
    return sentences
