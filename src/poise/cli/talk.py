"""``poise generate``."""

from __future__ import annotations

from typing import Annotated

import typer

from poise.cli.given_texts import given_file, given_texts, parse_schema
from poise.cli.options import (
    BatchOption,
    Device,
    Dtype,
    EngineOption,
    Json,
    MaxNewTokens,
    ModelName,
    OnOtherModel,
    Seed,
    Temperature,
    ThinkingOption,
    thinking_choice,
)
from poise.cli.work import load_model, note, working
from poise.errors import InvalidArgument

__all__ = ["generate_command"]


PromptTexts = Annotated[
    list[str],
    typer.Argument(
        metavar="PROMPT",
        help="Each is answered on its own: a text, @FILE, or - for standard input.",
        show_default=False,
    ),
]
SystemText = Annotated[str | None, typer.Option("--system", metavar="TEXT|@FILE", help="A system prompt before each.")]
SteerTerms = Annotated[
    list[str] | None,
    typer.Option(
        "--steer",
        metavar="FILE[@LAYER]=X",
        help="Add a vector: X is 1.5 (times the vector) or 30% (of the activations' size; text breaks near 100%). "
        "Or out, cap:3, clamp:0; and after it: on prompt|all, in thought|both, first N, after N, if \\[prompt] "
        "FILE>3. Several add up.",
    ),
]
SchemaFile = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="FILE",
        help="Every answer is JSON that fits this schema; - for standard input. Say in the prompt what is wanted.",
    ),
]


def generate_command(
    prompts: PromptTexts,
    model: ModelName,
    system: SystemText = None,
    steer: SteerTerms = None,
    json_schema: SchemaFile = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    allow_other_model: OnOtherModel = False,
    engine: EngineOption = "local",
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch: BatchOption = 32,
    thinking: ThinkingOption = "off",
    as_json: Json = False,
) -> None:
    """Answer prompts, steered by as many vectors as you like."""
    from poise.cli import facts, render

    with working():
        if json_schema == "-" and "-" in prompts:
            raise InvalidArgument("Standard input can be read once: for a prompt, or for --json-schema.")
        schema = parse_schema(given_file(json_schema), json_schema) if json_schema is not None else None
        prompts, system = _prompts_and_system(prompts, system)
        from poise import workflows as recipes
        from poise.engine import SamplingParams
        from poise.steer import cautions
        from poise.vllm.choice import check_generator

        sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature)
        check_generator(engine)
        steering = recipes.read_steering(steer or [])
        loaded = load_model(model, dtype, device)
        recipes.check_steering(steering, loaded, allow_other_model=allow_other_model)
        for caution in cautions(steering):
            note(f"warning: {caution}")
        answers = recipes.generate(
            prompts,
            loaded,
            system=system,
            steering=steering,
            sampling=sampling,
            seed=seed,
            batch=batch,
            thinking=thinking_choice(thinking),
            engine=engine,
            schema=schema,
        )
    if cut := sum(answer.finish == "length" for answer in answers) if schema is not None else 0:
        note(f"warning: {cut} of {len(answers)} answers are incomplete JSON, cut by --max-new-tokens {max_new_tokens}")
    if as_json:
        facts.print_json(facts.of_answers(loaded.name, prompts, answers, steering, seed, system))
        return
    for term in render.terms(steering):
        note(term)
    render.show(render.answers(prompts, answers))


def _prompts_and_system(prompts: list[str], system: str | None) -> tuple[list[str], str | None]:
    """What files and standard input hold in their place."""
    if any(not prompt.strip() for prompt in prompts):
        raise InvalidArgument('A prompt is empty; write what the model is asked, as in: poise generate "Who are you?"')
    given = given_texts([*prompts, *([system] if system else [])])
    return given[: len(prompts)], given[-1] if system else None
