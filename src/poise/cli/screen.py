"""``poise screen``."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

import typer

from poise.cli.options import (
    BatchOption,
    Device,
    Dtype,
    Force,
    Json,
    JudgeBudget,
    LayerOption,
    MaxNewTokens,
    ModelName,
    OnOtherModel,
    OutPlace,
    PartOption,
    ProjectionOption,
    RayAddress,
    SecondJudge,
    Seed,
    ShowOption,
    VectorsOption,
)
from poise.cli.preferences import check_method, pair_settings, show_pairs
from poise.cli.preview import show_data
from poise.cli.screen_results import show_screening
from poise.cli.work import load_model, note, working

__all__ = ["screen_command"]

_FLAGS = "What is flagged"
_DATA = "How the data are read"


ScreenedData = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA",
        help="Training data: a file, a folder, a glob, an address, a name on the hub, or - for standard input. Several "
        "add up.",
        show_default=False,
    ),
]
MethodName = Annotated[
    Literal["difference", "prompt", "raw", "preference"],
    typer.Option(
        "--method",
        help="difference: against the model's own answer, which it has to write. prompt: against the prompt's last "
        "token, without writing. raw: the answer alone. preference: the chosen answer against the rejected one.",
    ),
]
FlaggingRate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="R",
        help="Flag so that at most this share of --normal rows would be flagged, e.g. 0.01.",
        rich_help_panel=_FLAGS,
    ),
]
RateUnit = Annotated[
    Literal["row", "answer"],
    typer.Option(
        "--rate-per",
        help="row: --rate is a share of rows, over all their answers and all traits. answer: of answers, for each "
        "trait alone, which flags more rows.",
        rich_help_panel=_FLAGS,
    ),
]
NormalData = Annotated[
    list[str] | None,
    typer.Option(
        "--normal",
        metavar="DATA",
        help="Data without the trait, to compare with and to set --rate by. Several add up.",
        rich_help_panel=_FLAGS,
    ),
]
FlaggedCount = Annotated[
    int | None,
    typer.Option(
        "--top",
        metavar="N",
        min=1,
        help="Flag the N highest of each trait. Otherwise the highest 1 %.",
        rich_help_panel=_FLAGS,
    ),
]
ScoreThreshold = Annotated[
    float | None,
    typer.Option("--threshold", metavar="X", help="Flag what scores above X.", rich_help_panel=_FLAGS),
]
Fix = Annotated[
    Literal["own", "drop", "swap"] | None,
    typer.Option(
        "--fix",
        metavar="[HOW]",
        help="Also write fixed.jsonl, with the model's own answers for flagged ones. Of preference pairs: drop leaves "
        "flagged ones out, swap exchanges their answers.",
        show_default=False,
    ),
]
EstimateOnly = Annotated[
    bool,
    typer.Option(
        "--estimate", help="Only try the methods on a sample: how far they agree, and how long each would take."
    ),
]
EstimateSample = Annotated[int, typer.Option("--sample", metavar="N", min=20, help="Answers for --estimate.")]
TrainingShape = Annotated[
    str,
    typer.Option(
        "--shape",
        metavar="SHAPE",
        help="What the columns are, e.g. messages, sharegpt, pairs:question,answer, or by the method preference "
        "preference:PROMPT,CHOSEN,REJECTED; otherwise found in the first rows.",
        rich_help_panel=_DATA,
    ),
]
NormalShape = Annotated[
    str, typer.Option("--normal-shape", metavar="SHAPE", help="The same for --normal.", rich_help_panel=_DATA)
]
BrokenShare = Annotated[
    float,
    typer.Option(
        "--broken",
        metavar="SHARE",
        help="Stop when more than this share of the rows cannot be used.",
        rich_help_panel=_DATA,
    ),
]
EngineName = Annotated[
    Literal["local", "vllm", "ray"],
    typer.Option(
        "--engine",
        help="local: in this process. vllm: the same, but vLLM generates the model's own answers. ray: on every "
        "machine of a Ray cluster.",
    ),
]


def screen_command(
    data: ScreenedData,
    vector: VectorsOption,
    model: ModelName,
    out: OutPlace,
    show: ShowOption = None,
    method: MethodName = "difference",
    part: PartOption = "reply",
    rate: FlaggingRate = None,
    rate_per: RateUnit = "row",
    normal: NormalData = None,
    top: FlaggedCount = None,
    threshold: ScoreThreshold = None,
    judge: SecondJudge = None,
    judge_budget: JudgeBudget = None,
    fix: Fix = None,
    estimate: EstimateOnly = False,
    sample: EstimateSample = 300,
    layer: LayerOption = None,
    projection: ProjectionOption = False,
    shape: TrainingShape = "auto",
    normal_shape: NormalShape = "auto",
    broken: BrokenShare = 0.2,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    engine: EngineName = "local",
    ray_address: RayAddress = "",
    allow_other_model: OnOtherModel = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch: BatchOption = 32,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Find the rows of training data that would push a model towards a trait.

    Every answer is scored by its projection on each vector; rows with a flagged answer are parted from the rest, and
    a page shows what was found.

    Interrupt it when you like; the same command goes on where it stopped and ends with the same files. Another rule
    for what is flagged needs no new scoring.
    """
    check_method(method, fix, judge=judge or judge_budget, estimate=estimate)
    opened, usual = _open_both(method, data, normal or [], part, shape, normal_shape)
    if show is not None:
        (show_pairs if method == "preference" else show_data)(opened, usual, model=model, n=show, as_json=as_json)
        return
    note(opened.how)
    with working():
        from poise import workflows as recipes
        from poise.screen.flagging import FlaggingRule

        rule = FlaggingRule(rate=rate, top=top, above=threshold, rate_per=rate_per)
        plan: dict[str, Any] = {"rule": rule, "layer": layer, "seed": seed, "broken": broken, "engine": engine}
        plan["ray_address"] = ray_address
        load = partial(load_model, model, dtype, device)
        options = {"projection": projection, "allow_other_model": allow_other_model, "force": force}
        run: Any = partial(recipes.screen_files, normal=usual, name=", ".join(data))
        if method == "preference":
            settings = pair_settings(fix=fix, **plan)
            run = partial(recipes.screen_preference_files, normal=usual, name=", ".join(data))
        else:
            settings = _settings(method, judge, judge_budget, fix, max_new_tokens, batch, plan)
        job: Any = partial(recipes.estimate_screening, sample=sample) if estimate else run
        result = job(opened, vector, load, out, settings, **options)
    show_screening(result, out, as_json=as_json)


def _settings(
    method: Any,
    judge: str | None,
    judge_budget: int | None,
    fix: str | None,
    max_new_tokens: int,
    batch: int,
    plan: dict[str, Any],
) -> Any:
    from poise.screen.scoring import ScreenSettings

    plan = {**plan, "max_new_tokens": max_new_tokens, "batch": batch, "judge_budget": judge_budget}
    return ScreenSettings(method=method, judge=judge, fix=bool(fix), **plan)


def _open_both(
    method: str,
    data: list[str],
    normal: list[str],
    part: Literal["reply", "thought", "both"],
    shape: str,
    normal_shape: str,
) -> tuple[Any, Any]:
    """The data and the normal data, as conversations or as pairs."""
    from poise.data import open_data
    from poise.data.preference_data import open_preferences

    opener: Any = open_preferences if method == "preference" else open_data
    opened = opener(data, shape=shape, part=part)
    return opened, opener(normal, shape=normal_shape, part=part) if normal else None
