"""What a line that begins with a slash does: each command is a function from one dialogue to the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from poise.errors import InvalidArgument, InvalidSteering, OutputExists
from poise.storage.atomic_write import saving
from poise.storage.output import same_file

if TYPE_CHECKING:
    from rich.console import RenderableType

    from poise.cli.chat.dialogue import Dialogue, Setup, WatchedTrait

__all__ = ["Outcome", "at_work", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a line comes to.

    Attributes:
        dialogue: The dialogue from here on, once ``ask`` has been answered.
        output: What is shown to the user.
        ask: What is asked of the model; ``None`` for nothing.
        leave: Whether the chat ends.
    """

    dialogue: Dialogue
    output: Sequence[RenderableType] = ()
    ask: str | None = None
    leave: bool = False


Act = Callable[[str, "Dialogue", "Setup"], Outcome]


def run(line: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    """A line without its margins: a command, something to ask, or nothing. ``//`` asks what begins with a slash.

    Raises:
        PoiseError: a sentence that says what is wrong with it; the dialogue stays as it is.
    """
    if not line.startswith("/"):
        return Outcome(dialogue=dialogue, ask=line or None)
    if line.startswith("//"):
        return Outcome(dialogue=dialogue, ask=line[1:])
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        raise InvalidArgument(f"There is no command {name}; /help lists them, and // sends a line that begins with /.")
    return COMMANDS[name][2](argument.strip(), dialogue, setup)


def at_work(dialogue: Dialogue, setup: Setup) -> list[str]:
    """What steers, and what it adds to the readings by itself."""
    from poise.cli import render
    from poise.cli.chat.dialogue import push
    from poise.cli.chat.tint import reading_figure

    pushes = [(w, push(dialogue.steering, w, "response")) for w in setup.watched]
    off = ", ".join(f"{reading_figure(p, w)} of {w.name}" for w, p in pushes if p)
    left = " and ".join(w.name for w, p in pushes if p is None)
    return [
        *(f"steered by {term}" for term in render.terms(dialogue.steering)),
        *([f"left out of the readings: the push itself, {off}"] if off else []),
        *([f"left in the readings of {left}: what the steering itself does to them"] if left else []),
    ]


def _dial(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    from poise.steer import SteeringExpression, cautions

    if not argument:
        return Outcome(dialogue=dialogue, output=at_work(dialogue, setup) or ["Nothing is steered."])
    name, _, how = argument.replace("=", " ", 1).partition(" ")
    bare, _, layers = name.partition("@")
    if bare not in setup.vectors:
        known = ", ".join(setup.vectors) or "none, as the chat was begun without --watch and --steer"
        raise InvalidSteering(f"There is no vector {bare!r} here; there are: {known}.")
    if not how.strip():
        raise InvalidSteering(f"Say how far to turn {bare}: /dial {bare} 30%, /dial {bare} 1.5 or /dial {bare} off.")
    vector = setup.vectors[bare]
    if how.strip() == "off":
        after = dialogue.dialled([vector], None)
        return Outcome(dialogue=after, output=[f"{bare} is off.", *at_work(after, setup)])
    where = layers or _layers(dialogue, vector)
    new = SteeringExpression.parse(f"{bare}{'@' if where else ''}{where}={how.strip()}").steering(setup.vectors)
    after = dialogue.dialled([term.vector for term in new.terms], new)
    return Outcome(
        dialogue=after, output=[*at_work(after, setup), *(f"warning: {caution}" for caution in cautions(new))]
    )


def _layers(dialogue: Dialogue, vector: object) -> str:
    """Where a vector works already, as an expression has it, if it works at one place."""
    placements = {t.layers for t in (dialogue.steering.terms if dialogue.steering else ()) if t.vector is vector}
    if len(placements) != 1:
        return ""
    layers = placements.pop()
    return layers if isinstance(layers, str) else ",".join(map(str, layers))


def _tint(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    from poise.cli.chat.tint import Legend

    if argument == "off":
        return Outcome(dialogue=replace(dialogue, tint=None), output=["Tokens are not tinted."])
    for w in setup.watched:
        if w.name == argument:
            return Outcome(dialogue=replace(dialogue, tint=argument), output=[Legend(w)])
    names = ", ".join(w.name for w in setup.watched) or "nothing"
    raise InvalidArgument(f"/tint takes a watched trait or off, not {argument!r}; {names} is watched.")


def _watch(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    from poise.cli.chat.tint import BAR_MEANS, Legend, reading_figure

    lines: list[RenderableType] = []
    for w in setup.watched:
        lines.append(Legend(w))
        lines += [
            f"  alarm (!): {a.reading} above {reading_figure(a.threshold, w)}, in {100 * a.rate:g}% of normal answers"
            for a in w.alarms
        ] or [f"  {_why_no_alarm(w)}"]
    bars = [f"bars: {BAR_MEANS}"] if lines else ["Nothing is watched; start with --watch FILE."]
    return Outcome(dialogue=dialogue, output=[*lines, *bars, *at_work(dialogue, setup)])


def _why_no_alarm(watched: WatchedTrait) -> str:
    place = watched.vector.at("read", watched.probe.layer)
    if place.lacks_alarms:
        return place.missing_alarm("mean").replace("`", "")
    return "no alarm is set; poise calibrate sets one"


def _set_system_prompt(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    if not argument:
        return Outcome(
            dialogue=dialogue,
            output=[f"The system prompt is: {dialogue.system}" if dialogue.system else "There is none."],
        )
    if argument == "off":
        return Outcome(dialogue=replace(dialogue, system=""), output=["No system prompt from here on."])
    return Outcome(
        dialogue=replace(dialogue, system=argument),
        output=["From here on the whole conversation is under this system prompt."],
    )


def _retry(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    _check_begun(dialogue)
    return Outcome(dialogue=dialogue.undone(), ask=dialogue.turns[-1].user)


def _undo(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    _check_begun(dialogue)
    return Outcome(
        dialogue=dialogue.undone(), output=[f"Took back the last answer and what you asked: {dialogue.turns[-1].user}"]
    )


def _check_begun(dialogue: Dialogue) -> None:
    if not dialogue.turns:
        raise InvalidArgument("Nothing has been said yet.")


def _reset(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    return Outcome(
        dialogue=replace(dialogue, turns=()),
        output=["The conversation begins anew; system prompt, dials and tint stay."],
    )


def _save(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    from poise.cli.chat.dialogue import transcript

    path = Path(argument).expanduser() if argument else dialogue.saved
    if path is None:
        raise InvalidArgument("Say where to: /save FILE.")
    if path.exists() and not (dialogue.saved and same_file(path, dialogue.saved)):
        raise OutputExists(f"{path} is there already; save under another name.")
    with saving(path) as temporary:
        temporary.write_text(json.dumps(transcript(dialogue, setup)) + "\n", encoding="utf-8")
    turns = len(dialogue.turns)
    return Outcome(dialogue=replace(dialogue, saved=path), output=[f"Saved {turns} turn{'s' * (turns != 1)} to {path}"])


def _help(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for usage, meaning, _ in COMMANDS.values():
        table.add_row(Text(usage), Text(meaning))
    return Outcome(dialogue=dialogue, output=[table, "Ctrl-C stops an answer; Ctrl-D leaves."])


def _quit(argument: str, dialogue: Dialogue, setup: Setup) -> Outcome:
    return Outcome(dialogue=dialogue, leave=True)


COMMANDS: dict[str, tuple[str, str, Act]] = {
    "/dial": ("/dial NAME 30%|1.5|off", "Steer by a dose, by α, or by what --steer takes after =.", _dial),
    "/tint": ("/tint NAME|off", "Tint tokens by another trait.", _tint),
    "/watch": ("/watch", "What is watched and steered, and how to read it.", _watch),
    "/system": ("/system TEXT|off", "Set the system prompt.", _set_system_prompt),
    "/retry": ("/retry", "Ask the last question again.", _retry),
    "/undo": ("/undo", "Take the last question and answer back.", _undo),
    "/reset": ("/reset", "Begin anew.", _reset),
    "/save": ("/save FILE", "Save everything with every token's readings, as JSON.", _save),
    "/help": ("/help", "This.", _help),
    "/quit": ("/quit", "Leave.", _quit),
}
