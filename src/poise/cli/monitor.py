"""``poise calibrate`` and ``poise read``."""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.options import (
    BatchOption,
    Device,
    Dtype,
    EngineOption,
    Force,
    Json,
    MaxNewTokens,
    ModelName,
    OnOtherModel,
    PartOption,
    ProjectionOption,
    Seed,
    ShowOption,
    Temperature,
)
from poise.cli.preview import show_data
from poise.cli.work import load_model, note, with_options, working
from poise.counting import counted

if TYPE_CHECKING:
    from poise.data import AnswerPart, Rejections
    from poise.monitor.calibrate import Calibration
    from poise.monitor.table import FinishedTable

__all__ = ["calibrate_command", "read_command"]

TOPICS_SHOWN = 5  # topics that a note names
TEXT_COLUMNS = 80  # of a sentence below a table

DataShapeOption = Annotated[
    str,
    typer.Option(
        "--shape",
        metavar="SHAPE",
        help="What the columns are, e.g. messages, sharegpt, pairs:question,answer; otherwise found in the first rows.",
    ),
]
ReadingLayer = Annotated[
    int | None,
    typer.Option("--layer", metavar="I", min=0, help="Read there; otherwise where each vector is watched."),
]


TopicField = Annotated[
    str | None,
    typer.Option("--by", metavar="FIELD", help="Tell topics apart by this field of the rows: each has its own alarms."),
]
FinishedConversations = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA",
        help="Conversations: a file, a folder, a glob, an address, a name on the hub, or - for standard input. Several "
        "add up.",
        show_default=False,
    ),
]
NormalConversations = Annotated[
    list[str],
    typer.Option(
        "--normal",
        metavar="DATA",
        help="Conversations as they usually are: a file, a folder, a glob, an address, a name on the hub, or - for "
        "standard input. Several add up.",
        show_default=False,
    ),
]
AlarmRates = Annotated[
    list[float] | None,
    typer.Option("--rate", metavar="R", help="False alarms a normal answer, 0.01 unless said. Several: an alarm each."),
]
GivenAnswers = Annotated[
    bool, typer.Option("--given", help="Read the answers in the data instead of having the model answer itself.")
]
AlarmedVectorOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", dir_okay=False, help="Write there, not into the vector's own file."),
]
ConversationLimit = Annotated[
    int, typer.Option("--limit", metavar="N", min=1, help="Most conversations, drawn at random from the data.")
]


def calibrate_command(
    ctx: typer.Context,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", dir_okay=False, help="Vector files.", show_default=False)
    ],
    model: ModelName,
    normal: NormalConversations,
    show: ShowOption = None,
    rate: AlarmRates = None,
    given_answers: GivenAnswers = False,
    part: PartOption = "reply",
    by: TopicField = None,
    layer: ReadingLayer = None,
    out: AlarmedVectorOut = None,
    shape: DataShapeOption = "auto",
    limit: ConversationLimit = 2000,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    allow_other_model: OnOtherModel = False,
    engine: EngineOption = "local",
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch: BatchOption = 32,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Set alarms that normal answers raise at a known rate.

    The model answers the data's prompts and is watched while it does. The vector files keep
    the thresholds and what they promise.

    Interrupt it when you like; the same command goes on where it stopped.
    """
    if show is not None:
        _show_normal(normal, model, show, shape, part, given_answers, max_new_tokens, as_json=as_json)
        return
    with working():
        from poise import workflows as recipes
        from poise.engine import SamplingParams
        from poise.monitor.calibrate import CalibrationSettings

        sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature)
        plan = CalibrationSettings(
            rates=tuple(rate or [0.01]),
            read_given_answers=given_answers,
            by=by,
            layer=layer,
            sampling=sampling,
            limit=limit,
            batch=batch,
            seed=seed,
        )
        done = recipes.calibrate_vectors(
            files,
            partial(load_model, model, dtype, device),
            normal,
            plan,
            shape=shape,
            part=part,
            out=out,
            allow_other_model=allow_other_model,
            force=force,
            engine=engine,
        )
    _print_calibration(done, ctx, as_json=as_json)


def read_command(
    data: FinishedConversations,
    vector: Annotated[
        list[Path],
        typer.Option("--vector", metavar="FILE", dir_okay=False, help="Once for each trait.", show_default=False),
    ],
    model: ModelName,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            dir_okay=False,
            help="The table: .jsonl or .parquet, a row for each answer and trait.",
            show_default=False,
        ),
    ],
    show: ShowOption = None,
    part: PartOption = "reply",
    shape: DataShapeOption = "auto",
    layer: ReadingLayer = None,
    projection: ProjectionOption = False,
    by: TopicField = None,
    allow_other_model: OnOtherModel = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Score finished conversations: how much of each trait is in every answer.

    Rows that cannot be used are left out, counted, listed in FILE.rejected.jsonl, and kept as they
    came in FILE.rejected_rows.jsonl.

    Interrupt it when you like; the same command goes on where it stopped and ends with the same table.
    """
    from poise.cli import facts

    if show is not None:
        from poise.data import open_data

        show_data(open_data(data, shape=shape, part=part), model=model, n=show, as_json=as_json)
        return
    with working():
        from poise import workflows as recipes

        done = recipes.read_data(
            data,
            vector,
            partial(load_model, model, dtype, device),
            out,
            shape=shape,
            part=part,
            layer=layer,
            projection=projection,
            by=by,
            allow_other_model=allow_other_model,
            force=force,
        )
    if as_json:
        facts.print_json(_table_json(done))
    else:
        _show_table(done)


def _show_normal(
    normal: list[str],
    model: str | None,
    n: int,
    shape: str,
    part: AnswerPart,
    given_answers: bool,
    max_new_tokens: int,
    *,
    as_json: bool,
) -> None:
    """What calibration would read: the data's answers, or the prompts that the model answers itself."""
    from poise.data import open_data

    opened = open_data(normal, shape=shape, need="assistant" if given_answers else "user", part=part)
    if given_answers:
        show_data(opened, model=model, n=n, as_json=as_json)
    else:
        show_data(opened, model=model, n=n, as_json=as_json, use="answer", max_new_tokens=max_new_tokens)


def _print_calibration(done: Calibration, ctx: typer.Context, *, as_json: bool) -> None:
    from poise.cli import facts

    for topic, why in list(done.topics_without_alarms.items())[:TOPICS_SHOWN]:
        note(f"{_printable(topic)} goes by the alarms of all topics: {with_options(why, ctx.find_root())}")
    if len(done.topics_without_alarms) > TOPICS_SHOWN:
        more = len(done.topics_without_alarms) - TOPICS_SHOWN
        note(f"{more:,} more topics have none; those of all topics are used there.")
    if as_json:
        facts.print_json(_calibration_json(done))
    else:
        _show_calibration(done)


def _calibration_json(done: Calibration) -> dict[str, Any]:
    return {
        "read": done.how,
        "answers": len(done.reference.readings),
        "left_out": dict(done.reference.left_out),
        "omitted": dict(done.reference.omitted),
        "rows": done.rejections.rows,
        "rejected": dict(done.rejections.kinds),
        "rejected_list": str(done.rejections.path) if len(done.rejections) else None,
        "without": done.topics_without_alarms,
        "without_drift_chart": done.without_drift_chart,
        "reach": [one.model_dump(mode="json") for one in done.reach],
        "vectors": [
            {"trait": v.name, **v.header.model_dump(mode="json", include={"alarms", "drift"})} for v in done.vectors
        ],
    }


def _show_calibration(done: Calibration) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from poise.cli import render
    from poise.data import describe_left_out

    note(done.how)
    for vector in done.vectors:
        table = Table("Reading", "Rate", "95 % interval", "Alarm above", "Answers", "Topic", box=box.SIMPLE_HEAD)
        first = vector.header.alarms[0]
        for a in (alarm for alarm in vector.header.alarms if alarm.detector == first.detector):
            cells = (a.reading, f"{a.rate:.3g}", f"{a.low:.4f} to {a.high:.4f}", f"{a.threshold:.4g}", str(a.n_answers))
            table.add_row(*cells, "all" if a.topic is None else Text(_printable(a.topic)))
        chart = vector.header.drift
        drift = chart if chart and (chart.layer, chart.detector) == (first.layer, first.detector) else None
        sentence = (
            f"Drift: CUSUM of the answers' means, alarm above {drift.h:.3g} standard deviations; a false one every "
            f"{drift.arl:.0f} answers [{drift.low:.0f}, {'∞' if drift.high is None else f'{drift.high:.0f}'}]"
            if drift
            else textwrap.fill(f"Drift: no chart. {done.without_drift_chart.get(vector.name, '')}", TEXT_COLUMNS)
        )
        read_with = "its detector, " if first.detector else ""
        render.show([f"{vector.name}, {read_with}layer {first.layer} of {vector.layers}", table, sentence, ""])
    left = _printable(", ".join(f"{n} {why}" for why, n in done.reference.left_out.items()))
    omitted = describe_left_out(done.reference.omitted)
    render.show(
        [
            "Each rate is of one reading alone; several together raise more alarms.",
            f"Data: {_rejection_summary(done.rejections)}" + (f"; not read: {left}" if left else ""),
            *([f"Left out: {omitted}."] if omitted else []),
            *(f"{one}." for one in done.reach),
        ]
    )


def _table_json(done: FinishedTable) -> dict[str, Any]:
    counts = done.counts
    return {
        "out": str(done.out),
        "read": done.how,
        "rows": done.rejections.rows,
        "answers": counts.turns,
        "unread": counts.unread,
        "cut": counts.cut,
        "omitted": counts.left_out,
        "part": done.part,
        "notes": list(done.notes),
        "reach": [one.model_dump(mode="json") for one in done.reach],
        "longer_than_calibrated": counts.longer,
        "alarms": counts.alarms,
        "rejected": dict(done.rejections.kinds),
        "rejected_list": str(done.rejections.path) if len(done.rejections) else None,
        "rejected_rows": str(done.rejected_rows.path) if done.rejected_rows else None,
        "resumed_at": done.began_at,
    }


def _show_table(done: FinishedTable) -> None:
    from poise.data import describe_left_out

    typer.echo(done.out)
    counts = done.counts
    note(done.how)
    unread = "".join(f"; {n:,} not read ({why})" for why, n in counts.unread.items())
    note(f"{counted(counts.turns, 'answer')}{unread}; {_rejection_summary(done.rejections)}")
    if done.rejected_rows:
        note(f"{done.rejected_rows}.")
    if left_out := describe_left_out(counts.left_out):
        note(f"Left out: {left_out}.")
    for sentence in done.notes:
        note(f"{sentence}.")
    if counts.cut:
        note(f"{counted(counts.cut, 'answer')} read without the earliest turns, which the model's window cannot hold.")
    for trait, alarms in counts.alarms.items():
        alarm_counts = ", ".join(f"{name} {n:,}" for name, n in alarms.items())
        if alarm_counts:
            note(f"{trait}: {alarm_counts}")
        elif not any(sentence.startswith(f"{trait} has no calibrated alarm") for sentence in done.notes):
            note(f"{trait} has no alarms; poise calibrate sets them.")
    if counts.longer:
        note(
            f"{counted(counts.longer, 'answer')} longer than those the alarms were set on: such peaks promise nothing."
        )


def _rejection_summary(rejections: Rejections) -> str:
    return f"{rejections}, listed in {rejections.path}" if len(rejections) else str(rejections)


def _printable(text: str) -> str:
    """What data says, without signs that move the cursor."""
    return "".join(c for c in text if c.isprintable())
