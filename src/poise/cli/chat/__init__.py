"""``poise chat``: talk to a model in the terminal, its traits watched and steered while it talks.

dialogue   the state as a value, and the file that it is saved in
commands   what a line does: a command, or something to ask
tint       how tokens, gauges and the legend look
loop       line by line: read, ask, show
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.options import (
    Device,
    Dtype,
    MaxNewTokens,
    ModelName,
    OnOtherModel,
    Seed,
    Temperature,
    ThinkingOption,
    thinking_choice,
)
from poise.cli.work import load_model, note, working

__all__ = ["chat"]


def chat(
    model: ModelName,
    watch: Annotated[
        list[Path] | None,
        typer.Option(
            "--watch", metavar="FILE", help="Watch a vector's trait; the first also tints the text. Repeat for more."
        ),
    ] = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(
            "--steer", metavar="FILE[@LAYER]=X", help="Steer with a vector, as generate does; /dial turns it later."
        ),
    ] = None,
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="The system prompt.")] = "",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    allow_other_model: OnOtherModel = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    thinking: ThinkingOption = "off",
) -> None:
    """Talk to a model, each token tinted by a trait, with dials to turn between turns.

    /help in the chat lists its commands. Lines may also be piped in, one a turn.
    """
    from poise.cli.chat import commands, loop, tint
    from poise.cli.chat.dialogue import Dialogue

    with working():
        from poise import workflows as recipes
        from poise.engine import SamplingParams
        from poise.steer import cautions
        from poise.vector import load_vector
        from poise.vector.algebra import check_distinct

        sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature)
        steering = recipes.read_steering(steer or [])
        vectors = [load_vector(path) for path in watch or []]
        check_distinct(vectors)
        loaded = load_model(model, dtype, device)
        recipes.check_steering(steering, loaded, allow_other_model=allow_other_model)
        for caution in cautions(steering):
            note(f"warning: {caution}")
        setup, steering = loop.prepare(
            loaded,
            sampling,
            vectors,
            steering,
            allow_other_model=allow_other_model,
            thinking=thinking_choice(thinking),
        )
    screen = loop.Screen.of_terminal()
    first = setup.watched[:1]
    begun = Dialogue(system=system, steering=steering, tint=first[0].name if first else None, seed=seed)
    head = f"{loaded.name}. /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves."
    screen.say([head, *commands.at_work(begun, setup), *(tint.Legend(w) for w in first), ""])
    loop.converse(begun, setup, screen)
