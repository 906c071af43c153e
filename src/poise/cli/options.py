"""Arguments and options that several commands share, each said once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from poise.model.rendering import Thinking

__all__ = [
    "BatchOption",
    "Contrast",
    "Device",
    "Dtype",
    "DtypeName",
    "EngineOption",
    "ExemplarsOption",
    "Force",
    "Json",
    "JudgeBudget",
    "JudgeOption",
    "LayerOption",
    "MaxNewTokens",
    "ModelName",
    "OnOtherModel",
    "OutFolder",
    "OutPlace",
    "PartOption",
    "ProjectionOption",
    "QuestionsOption",
    "RayAddress",
    "Rollouts",
    "SecondJudge",
    "Seed",
    "ShowOption",
    "SplitQuestions",
    "Temperature",
    "ThinkingOption",
    "TraitArgument",
    "VectorFile",
    "VectorOut",
    "VectorsOption",
    "thinking_choice",
]

DtypeName = Literal["auto", "bfloat16", "float32"]
Contrast = Literal["prompted", "exemplars"]

_MODEL = "How the model runs"
_AMOUNT = "How much is generated"

TraitArgument = Annotated[
    str,
    typer.Argument(metavar="TRAIT", help="A trait of the library, or the path of a trait file.", show_default=False),
]
VectorFile = Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="A vector file.", show_default=False)]
VectorsOption = Annotated[
    list[Path],
    typer.Option("--vector", metavar="FILE", dir_okay=False, help="Once for each trait.", show_default=False),
]
LayerOption = Annotated[
    int | None,
    typer.Option(
        "--layer", metavar="I", min=0, help="Read there; otherwise where each vector's alarms or certificate say."
    ),
]
VectorOut = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FILE", dir_okay=False, help="The vector file to write.", show_default=False),
]
OutFolder = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="The folder for the results.", show_default=False),
]
OutPlace = Annotated[
    str,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        help="The folder for the results, or an address such as s3://bucket/folder.",
        show_default=False,
    ),
]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="M",
        help="A hub id, a folder, a .gguf file, or smollm2-135m.",
        show_default=False,
    ),
]
PartOption = Annotated[
    Literal["reply", "thought", "both"],
    typer.Option("--part", help="Which part of an answer is read: the reply, the thought before it, or both."),
]
ShowOption = Annotated[
    int | None,
    typer.Option(
        "--show",
        metavar="N",
        min=1,
        help="Print exactly what the first N answers are, their prompts, tokens and what is left out, and stop: "
        "nothing is loaded or written.",
    ),
]
ExemplarsOption = Annotated[
    Path | None,
    typer.Option(
        "--exemplars",
        metavar="JSONL",
        dir_okay=False,
        help="Your own pairs, one {question, positive, negative} a line. The trait is then these and its name alone.",
    ),
]
JudgeOption = Annotated[
    str,
    typer.Option("--judge", metavar="J", help="Who scores: exemplars, model:NAME or endpoint:NAME (OPENAI_BASE_URL)."),
]
QuestionsOption = Annotated[
    int, typer.Option("--questions", metavar="N", min=1, help="Questions asked.", rich_help_panel=_AMOUNT)
]
SplitQuestions = Annotated[
    int,
    typer.Option(
        "--questions",
        metavar="N",
        help="Questions asked, at least 4: one half chooses layer and dose, the other reports.",
        rich_help_panel=_AMOUNT,
    ),
]
Rollouts = Annotated[
    int, typer.Option("--rollouts", metavar="N", min=1, help="Answers a question.", rich_help_panel=_AMOUNT)
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Longest answer.", rich_help_panel=_AMOUNT)
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        metavar="T",
        min=0.0,
        help="0 always takes the likeliest token.",
        rich_help_panel=_AMOUNT,
    ),
]


def _check_seed(seed: int) -> int:
    if seed >= 2**63:
        raise typer.BadParameter(f"{seed} is too large; it must be less than 2**63.")
    return seed


Seed = Annotated[
    int,
    typer.Option(
        "--seed", metavar="S", min=0, callback=_check_seed, help="Of all that is random.", rich_help_panel=_AMOUNT
    ),
]
ThinkingName = Literal["off", "on", "minimal", "low", "medium", "high", "xhigh"]
ThinkingOption = Annotated[
    ThinkingName,
    typer.Option(
        "--thinking",
        metavar="HOW",
        help="Let the model think before it replies: off, on, or a level such as high, where its template has them.",
        rich_help_panel=_AMOUNT,
    ),
]


def thinking_choice(text: ThinkingName) -> Thinking:
    """What ``--thinking`` says, as the library takes it."""
    return text == "on" if text == "on" or text == "off" else text


ProjectionOption = Annotated[
    bool,
    typer.Option("--projection", help="Read by the vector's own direction, as the paper does, not by its detector."),
]
OnOtherModel = Annotated[
    bool,
    typer.Option(
        "--allow-other-model",
        help="Use a vector of a stranger of the same shape, or keep what is measured on a relative.",
        rich_help_panel=_MODEL,
    ),
]
Dtype = Annotated[
    DtypeName,
    typer.Option(
        "--dtype", metavar="TYPE", help="auto (the fastest here), bfloat16 or float32.", rich_help_panel=_MODEL
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="D", help="auto (the best there is), cpu, cuda, cuda:1 or mps.", rich_help_panel=_MODEL
    ),
]
BatchOption = Annotated[
    int, typer.Option("--batch", metavar="N", min=1, help="Most answers generated at once.", rich_help_panel=_MODEL)
]
EngineOption = Annotated[
    Literal["local", "vllm"],
    typer.Option(
        "--engine",
        help="What generates. local: the loaded model. vllm: the same weights in vLLM, which sizes its own batches; "
        "the loaded model still reads and judges.",
        rich_help_panel=_MODEL,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Write over existing files, whatever they hold, but never over inputs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]
SecondJudge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="J",
        help="A second opinion on flagged answers and on as many others: exemplars, model:NAME or endpoint:NAME.",
    ),
]
JudgeBudget = Annotated[
    int | None,
    typer.Option(
        "--judge-budget",
        metavar="N",
        min=1,
        help="Show the judge N answers, of all traits together: the highest and, as a control, others drawn at random. "
        "Precision and recall are estimated from them.",
    ),
]
RayAddress = Annotated[
    str,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        envvar="RAY_ADDRESS",
        help="The running cluster that --engine ray joins, or auto. Otherwise one of this machine alone is started.",
        show_default=False,
    ),
]
