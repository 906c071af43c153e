"""``poise bias``: what a model does about one group and not about another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise.cli.options import BatchOption, Device, Dtype, DtypeName, Force, Json, ModelName, OutFolder, Seed
from poise.cli.work import load_model, working
from poise.errors import InvalidArgument

if TYPE_CHECKING:
    from poise.lifecycle.bias import BiasReport, GroupGap, SwapMeasures
    from poise.lifecycle.bias_sets import SwapCell
    from poise.model import Model

__all__ = ["bias_command"]

REPORT_NAME, FAIRNESS_NAME = "bias.json", "fairness.json"
SHOWN = 12  # gaps in the summary


PromptsOption = Annotated[
    int | None, typer.Option("--prompts", metavar="N", min=2, help="Most prompts of each axis; all by default.")
]
PlantOption = Annotated[
    str | None,
    typer.Option("--plant", metavar="GROUP=EXPR", help="Steer the answers about one group, to see it found."),
]
LabelledOption = Annotated[
    Path | None,
    typer.Option(
        "--labelled",
        metavar="JSONL",
        dir_okay=False,
        help="Instead: yes-or-no questions with group and label a line, and fairlearn's metrics of the answers.",
    ),
]


def bias_command(
    model: ModelName,
    out: OutFolder,
    vectors: Annotated[
        list[Path] | None,
        typer.Option("--vector", metavar="FILE", dir_okay=False, help="A trait that answers are read for; once each."),
    ] = None,
    judged: Annotated[
        list[str] | None,
        typer.Option(
            "--judged", metavar="TRAIT", help="A trait of the library that answers are scored for; once each."
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="M", help="An adapter or a model whose gaps are compared with --model's."),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option("--set", metavar="YAML", dir_okay=False, help="Your own groups and prompts; docs/bias.md."),
    ] = None,
    axes: Annotated[
        list[str] | None, typer.Option("--axis", metavar="A", help="Only this axis; once for each.")
    ] = None,
    templates: PromptsOption = None,
    plant: PlantOption = None,
    labelled: LabelledOption = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer.")] = 40,
    seed: Seed = 0,
    batch: BatchOption = 32,
    dtype: Dtype = "auto",
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Ask a model the same about people of several groups, and say what differs: traits, refusals, length, likelihood.

    Two members of one group are the control: they show how often a difference comes out that is none.
    """
    if labelled:
        _measure_labelled(labelled, model, out, (dtype, device, seed), force=force, as_json=as_json)
        return
    with working():
        from poise.lifecycle.bias import bias_report, compare_bias
        from poise.lifecycle.bias_sets import draw_swaps, read_bias_set
        from poise.model.loading import check_model_exists
        from poise.storage.atomic_write import saving
        from poise.storage.output import check_output

        check_output(out / REPORT_NAME, force=force)
        cells = draw_swaps(read_bias_set(groups), axes=axes or (), templates=templates, seed=seed)
        if after is not None:
            check_model_exists(after)
        options = (vectors or [], judged or [], max_new_tokens, batch, out)
        first = _measure_one(load_model(model, dtype, device), cells, plant, *options)
        if after is None:
            report = bias_report(model, cells, first, seed=seed, max_new_tokens=max_new_tokens)
        else:
            second = _measure_one(load_model(after, dtype, device), cells, plant, *options)
            report = compare_bias(model, after, cells, (first, second), seed=seed, max_new_tokens=max_new_tokens)
        with saving(out / REPORT_NAME) as temporary:
            temporary.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    _show_bias(report, out, as_json=as_json)


def _measure_labelled(
    path: Path, model: str, out: Path, options: tuple[DtypeName, str, int], *, force: bool, as_json: bool
) -> None:
    """Fairness of the answers to questions whose answers are known."""
    from poise.cli import facts, render

    dtype, device, seed = options
    with working():
        from poise.lifecycle.bias_labels import fairness_report, read_labelled, yes_or_no
        from poise.storage.atomic_write import saving
        from poise.storage.output import check_output

        check_output(out / FAIRNESS_NAME, inputs=[path], force=force)
        questions = read_labelled(path)
        answers = yes_or_no(load_model(model, dtype, device), questions)
        report = fairness_report(model, questions, answers, seed=seed)
        with saving(out / FAIRNESS_NAME) as temporary:
            temporary.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    if as_json:
        facts.print_json(report.model_dump(mode="json"))
        return
    lines = [f"{model}: {len(questions)} questions"]
    lines += [
        f"  {one.group}: yes {one.selected:.2f}, right {one.right:.2f}, yes where it is right {one.recall:.2f}, "
        f"n = {one.selected.n}"
        for one in report.groups
    ]
    lines.append(f"Demographic parity difference {report.demographic_parity_difference:.2f}")
    lines.append(f"Equalized odds difference {report.equalized_odds_difference:.2f}, n = {len(questions)}")
    render.show([*map(render.plain_text, lines), f"Report: {out / FAIRNESS_NAME}"])


def _show_bias(report: BiasReport, out: Path, *, as_json: bool) -> None:
    from poise.cli import facts, render

    if as_json:
        facts.print_json(report.model_dump(mode="json") | {"findings": [gap.name for gap in report.findings]})
    else:
        render.show([*map(render.plain_text, _bias_lines(report)), f"Report: {out / REPORT_NAME}"])


def _measure_one(
    model: Model,
    cells: list[SwapCell],
    plant: str | None,
    vectors: list[Path],
    judged: list[str],
    max_new_tokens: int,
    batch: int,
    out: Path,
) -> SwapMeasures:
    from poise.lifecycle.bias import measure_swaps
    from poise.vector import load_vector
    from poise.workflows.generation import steer_by

    planted = {}
    if plant:
        group, sign, expression = plant.partition("=")
        if not sign or group not in {cell.group for cell in cells}:
            names = ", ".join(dict.fromkeys(cell.group for cell in cells))
            raise InvalidArgument(f"`plant` is {plant!r}; give GROUP=EXPRESSION, of the groups {names}.")
        planted = {group: steer_by([expression], model)}
    opened = [load_vector(path) for path in vectors]
    return measure_swaps(
        model,
        cells,
        opened,
        judged=judged,
        max_new_tokens=max_new_tokens,
        steering={group: steering for group, steering in planted.items() if steering},
        batch=batch,
        folder=out / "work",
    )


def _bias_lines(report: BiasReport) -> list[str]:
    what = f"changes of gaps from {report.before}" if report.before else "gaps"
    prompts = ", ".join(f"{axis} {n}" for axis, n in report.prompts.items())
    rate = report.control_rate
    findings = report.findings
    lines = [
        f"{report.model}: {what}, {report.answers} answers; prompts: {prompts}",
        f"Swap controls (two members of one group): {round((rate.value or 0) * rate.n)} of {rate.n} with p ≤ 0.05, "
        f"{rate:.3f}",
        f"{len(findings)} of {len(report.gaps)} gaps stand after correction (Benjamini–Hochberg, 0.05)",
        "",
    ]
    shown = (findings or sorted(report.gaps, key=lambda gap: gap.p))[:SHOWN]
    if not findings and shown:
        lines.append("None stands; those with the smallest p:")
    lines += [_gap_line(gap) for gap in shown]
    if len(findings) > SHOWN:
        lines.append(f"  … and {len(findings) - SHOWN} more in the report")
    return lines


def _gap_line(gap: GroupGap) -> str:
    return f"  {gap.name}: {gap.gap:.3g}, n = {gap.gap.n}, adjusted p {gap.adjusted:.2g}"
