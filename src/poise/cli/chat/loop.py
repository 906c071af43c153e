"""Line by line: read what the user wrote, ask the model, show its answer as it comes and what was read in it."""

from __future__ import annotations

import codecs
import contextlib
import io
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console, RenderableType

from poise.cli.chat import commands, tint
from poise.cli.chat.dialogue import ChatTurn, Dialogue, Setup, WatchedTrait, named
from poise.errors import InvalidArgument, PoiseError

if TYPE_CHECKING:
    from poise.engine import SamplingParams, TextChunk
    from poise.model import Encoded, Model
    from poise.model.rendering import Thinking
    from poise.steer import Steering
    from poise.vector import PersonaVector

__all__ = ["Screen", "answer", "converse", "prepare"]

PLAIN = {"−": "-", "─": "-", "━": "=", "│": "|", "●": "o", "▲": "^", "α": "a"}


def prepare(
    model: Model,
    sampling: SamplingParams,
    watch: Sequence[PersonaVector],
    steering: Steering | None,
    *,
    allow_other_model: bool = False,
    thinking: Thinking = False,
) -> tuple[Setup, Steering | None]:
    """Name every vector, and read each watched trait's normal.

    Returns:
        The setup, and the steering with each vector that is also watched as that same object.

    Raises:
        UnsuitableModel: thinking is asked for, and the model's template has no switch for it.
    """
    from poise.model import ask
    from poise.monitor.baseline import measure_baseline

    model.encode(ask("?"), thinking=thinking)
    for vector in watch:
        vector.check_model(model, allow_other_model=allow_other_model)
    names, steering = named(watch, steering)
    watched_vectors = {name: vector for name, vector in names.items() if any(vector is one for one in watch)}
    watched = tuple(
        WatchedTrait(
            name=name,
            vector=vector,
            probe=probe,
            normal=(baseline := measure_baseline(vector, probe, model)).mean,
            spread=baseline.spread,
        )
        for (name, vector), probe in ((item, item[1].at("read").probe) for item in watched_vectors.items())
    )
    return Setup(model=model, sampling=sampling, vectors=names, watched=watched, thinking=thinking), steering


def converse(dialogue: Dialogue, setup: Setup, screen: Screen) -> Dialogue:
    """Line by line until the user leaves; what goes wrong with a line leaves the dialogue as it was."""
    while (line := screen.ask()) is not None:
        try:
            outcome = commands.run(line.strip(), dialogue, setup)
            screen.say(outcome.output)
            if outcome.leave:
                break
            if outcome.ask is None:
                dialogue = outcome.dialogue
            elif turn := answer(outcome.ask, outcome.dialogue, setup, screen):
                dialogue = outcome.dialogue.told(turn)
                screen.say([*remarks(turn, setup, screen.out.width), ""])
        except PoiseError as error:
            screen.complain(str(error))
        except KeyboardInterrupt:
            screen.complain("Interrupted; what you asked last is forgotten.")
    return dialogue


def answer(user: str, dialogue: Dialogue, setup: Setup, screen: Screen) -> ChatTurn | None:
    """Ask the model, show its answer as it comes, and stop at Ctrl-C; ``None`` where not a word was said by then.

    Raises:
        PoiseError: the conversation is longer than the model's window, or the model broke down.
    """
    from poise.engine.static import LocalEngine

    prompt = setup.model.encode(dialogue.messages(user), thinking=setup.thinking)
    turn = ChatTurn(user=user, system=dialogue.system, steering=dialogue.steering, seed=dialogue.seed)
    engine = LocalEngine(setup.model, allow_other_model=True)  # the vectors were checked at the start
    probes = [w.probe for w in setup.watched]
    pieces = engine.stream(prompt, fitting(setup, prompt), seed=turn.seed, steering=turn.steering, probes=probes)
    stream = cast("Generator[TextChunk]", pieces)

    def heard(stopped: Callable[[], bool]) -> Iterator[TextChunk]:
        nonlocal turn
        for piece in stream:
            turn = turn.heard(piece)
            yield piece
            if stopped():
                return

    with stoppable() as stopped, contextlib.closing(stream):
        screen.stream(tint.tinted_texts(heard(stopped), turn, dialogue.tint, setup.watched))
    if turn.finish == "interrupted" and not turn.pieces:
        screen.complain("Stopped before a word was said; what you asked is forgotten.")
        return None
    return turn


def remarks(turn: ChatTurn, setup: Setup, width: int) -> list[RenderableType]:
    """What stands under an answer: how it ended, if not by itself, and a gauge for each trait."""
    from poise.monitor import raised_alarms

    nothing = "" if turn.answer else "(no answer)"
    ended = {"stop": nothing, "length": "(cut short)", "interrupted": "(stopped)"}[turn.finish]
    parts: list[RenderableType] = [ended] if ended else []
    if setup.watched:
        raised = raised_alarms(turn.readings(setup.watched), [w.alarms for w in setup.watched])
        parts += tint.gauges(turn, setup.watched, raised, width)
    return parts


def fitting(setup: Setup, prompt: Encoded) -> SamplingParams:
    """The sampling, with fewer new tokens where the window has no room for all of them."""
    window = setup.model.generation_window(len(prompt.ids))
    room = window - len(prompt.ids)
    if room < 1:
        raise InvalidArgument(
            f"The conversation ({len(prompt.ids)} tokens) fills the window of {setup.model.name} "
            f"({window}); take turns back with /undo, or begin anew with /reset."
        )
    return replace(setup.sampling, max_new_tokens=min(setup.sampling.max_new_tokens, room))


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Inside the block the first Ctrl-C only asks to stop, so that no forward pass is torn; the next interrupts."""
    stop_requested = False

    def ask(number: int, frame: Any) -> None:
        nonlocal stop_requested
        stop_requested = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: stop_requested
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True, slots=True)
class Screen:
    """Where the chat is read and written: the transcript goes out on stdout, complaints on stderr.

    Attributes:
        out: Console of the transcript.
        err: Console of complaints.
        ask: The user's next line; ``None`` at the end.
    """

    out: Console
    err: Console
    ask: Callable[[], str | None]

    @classmethod
    def of_terminal(cls) -> Screen:
        """Of this process."""
        codecs.register_error("in plain signs", _in_plain_signs)
        for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "in plain signs")):
            with contextlib.suppress(AttributeError, io.UnsupportedOperation):
                stream.reconfigure(errors=errors)  # type: ignore[union-attr]
        out = Console(highlight=False)
        typed = sys.stdin.isatty() and sys.stdout.isatty()
        return cls(out, Console(stderr=True, highlight=False), partial(_typed if typed else _piped, out))

    def say(self, parts: Iterable[RenderableType]) -> None:
        """Print, wrapped at words; plain words stand back behind the conversation."""
        for part in parts:
            self.out.print(part, markup=False, style="dim" if isinstance(part, str) else None)

    def complain(self, text: str) -> None:
        """Print one sentence on stderr."""
        self.err.print(f"error: {text}\n", markup=False, style="red")

    def stream(self, texts: Iterable[tuple[str, int]]) -> None:
        """Print texts with their levels as they come, then end the line."""
        try:
            for piece in tint.wrapped(tint.marked(texts, tint.palette(self.out)), max(self.out.width, 10)):
                self.out.print(piece, end="", soft_wrap=True)
        finally:
            self.out.print()


def _in_plain_signs(error: UnicodeError) -> tuple[str | bytes, int]:
    """For terminals that know no Unicode: the signs of gauges by others, the rest by numbers."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    return (PLAIN[sign], error.start + 1) if sign in PLAIN else codecs.backslashreplace_errors(error)


def _typed(out: Console) -> str | None:
    """A line from a terminal, edited with readline where there is one; Ctrl-C begins it anew, Ctrl-D ends the chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() uses it)
    bold, plain = ("\x01\x1b[1m\x02", "\x1b[0m") if out.color_system else ("", "")  # \x01 \x02: takes no room
    while True:
        try:
            return input(f"{bold}> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
        finally:
            print(plain, end="", flush=True)


def _piped(out: Console) -> str | None:
    """A line from anywhere else, repeated, so that the transcript is whole."""
    line = sys.stdin.readline()
    if line.strip():
        out.print(f"> {tint.cleaned(line.strip())}", markup=False, soft_wrap=True)
    return line or None
