"""``poise extract``, ``poise validate`` and ``poise show``."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from poise.cli.options import (
    BatchOption,
    Contrast,
    Device,
    Dtype,
    EngineOption,
    ExemplarsOption,
    Force,
    Json,
    JudgeOption,
    MaxNewTokens,
    ModelName,
    OnOtherModel,
    QuestionsOption,
    Rollouts,
    Seed,
    SplitQuestions,
    Temperature,
    VectorFile,
    VectorOut,
)
from poise.cli.work import load_model, note, working

__all__ = ["extract_command", "show_command", "validate_command"]

Monitor = Annotated[
    bool,
    typer.Option(
        "--monitor",
        help="Also test the readings: does the prompt's last token say what the answers will be like? Takes 8 more "
        "answers for each question and rollout; where system prompts are ignored, up to 9, with long prompts.",
    ),
]
Beside = Annotated[
    Path | None,
    typer.Option(
        "--with",
        metavar="FILE",
        dir_okay=False,
        help="Also steer together with this second vector: what does each trait lose? Takes up to 5 more answers for "
        "every other question and rollout.",
    ),
]


def extract_command(
    trait: Annotated[
        str,
        typer.Argument(
            metavar="TRAIT",
            help="A trait of the library, the path of a trait file, or with --exemplars any new name.",
            show_default=False,
        ),
    ],
    model: ModelName,
    out: VectorOut,
    contrast: Annotated[
        Contrast,
        typer.Option(
            "--contrast",
            metavar="KIND",
            help="exemplars: read the trait's written answers. prompted: let the model answer under contrasting "
            "instructions; --judge and the amounts below are for this one.",
        ),
    ] = "exemplars",
    exemplars: ExemplarsOption = None,
    judge: JudgeOption = "exemplars",
    questions: QuestionsOption = 20,
    rollouts: Rollouts = 3,
    max_new_tokens: MaxNewTokens = 96,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    engine: EngineOption = "local",
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch: BatchOption = 32,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn a trait into a vector of this model.

    Interrupt it when you like; the same command goes on where it stopped.
    """
    from poise.cli import facts, render
    from poise.trait import library

    subject = library.own_trait(trait, library.read_pairs(exemplars)) if exemplars else library.load_trait(trait)
    with working():
        from poise.workflows import GenerationBudget, extract_vector

        amount = {"questions": questions, "rollouts": rollouts, "max_new_tokens": max_new_tokens, "seed": seed}
        vector = extract_vector(
            subject,
            partial(load_model, model, dtype, device),
            out,
            contrast=contrast,
            judge=judge,
            budget=GenerationBudget(temperature=temperature, **amount),
            batch=batch,
            inputs=[exemplars] if exemplars else [Path(trait)],
            force=force,
            engine=engine,
        )
    if as_json:
        facts.print_json(facts.of_vector(vector, out))
        return
    render.show(render.vector(vector, out))
    note(f"Next, prove it: poise validate {shlex.quote(str(out))} --model {shlex.quote(model)}")


def validate_command(
    file: VectorFile,
    model: ModelName,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            file_okay=False,
            help="Where the report goes; otherwise FILE-report, beside FILE.",
        ),
    ] = None,
    monitor: Monitor = False,
    beside: Beside = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A first look, indicative at best: random directions do not choose."),
    ] = False,
    judge: JudgeOption = "exemplars",
    questions: SplitQuestions = 20,
    rollouts: Rollouts = 3,
    max_new_tokens: MaxNewTokens = 96,
    temperature: Temperature = 0.7,
    seed: Seed = 0,
    allow_other_model: OnOtherModel = False,
    engine: EngineOption = "local",
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch: BatchOption = 32,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Prove that a vector is its trait, on questions that it was not computed from.

    Finds layer and dose, then steers beside random directions, which find theirs, and beside prompting.
    Says what it costs before it begins. The certificate goes into FILE, report.html into DIR.

    Interrupt it when you like; the same command goes on where it stopped.
    """
    from poise.cli import facts, render

    folder = out or file.with_name(f"{file.stem}-report")
    with working():
        from poise.validate import ValidationSettings
        from poise.workflows import GenerationBudget, validate_vector

        amount = {"questions": questions, "rollouts": rollouts, "max_new_tokens": max_new_tokens, "seed": seed}
        budget = GenerationBudget(temperature=temperature, **amount)
        done = validate_vector(
            file,
            partial(load_model, model, dtype, device),
            folder,
            judge=judge,
            budget=budget,
            batch=batch,
            allow_other_model=allow_other_model,
            settings=ValidationSettings(random_searches=0) if quick else None,
            monitor=monitor,
            beside=beside,
            force=force,
            engine=engine,
        )
    if as_json:
        facts.print_json(facts.of_certificate(done.certificate, done.report))
        return
    render.show([*render.certificate(done.vector.name, model, done.certificate), f"Report: {done.report}"])


def show_command(file: VectorFile, as_json: Json = False) -> None:
    """Say what a vector file holds."""
    from poise import vector as vectors
    from poise.cli import facts, render

    vector = vectors.load_vector(file)
    if as_json:
        facts.print_json(facts.of_whole_vector(vector, file))
    else:
        render.show(render.whole_vector(vector, file))
