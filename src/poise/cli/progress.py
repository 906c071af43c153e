"""What the terminal shows while work runs: bars on a terminal, one plain line a stage elsewhere. All on stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from poise.progress import Advance, shown_by

__all__ = ["showing"]

SPEED_OVER = 600.0  # seconds; batches that finish minutes apart still give a time left


@contextlib.contextmanager
def showing(console: Console) -> Iterator[None]:
    """Show on ``console`` whatever work inside the block says about itself."""
    with _bars(console) if console.is_interactive else _line_progress(console):
        yield


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[None]:
    """A live bar for each piece of work under way, and a line that stays for each finished stage."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        _Said(_count, "progress.percentage"),
        _Said(lambda task: _clock(task.elapsed or 0), "progress.elapsed"),
        _Said(_left, "progress.remaining"),
    )
    with Progress(
        *columns, console=console, expand=True, refresh_per_second=4, speed_estimate_period=SPEED_OVER
    ) as progress:
        depth = 0

        @contextlib.contextmanager
        def show(what: str, total: int | None) -> Iterator[Advance]:
            nonlocal depth
            number = progress.add_task("  " * depth + what, total=total, moved=time.monotonic())
            task = next(task for task in progress.tasks if task.id == number)
            depth += 1
            try:
                yield lambda steps: progress.update(number, advance=steps, moved=time.monotonic())
            finally:
                depth -= 1
                progress.remove_task(number)
            if depth == 0:
                progress.console.print(_finished(task))

        with shown_by(show):
            yield


@contextlib.contextmanager
def _line_progress(console: Console) -> Iterator[None]:
    """The name of each stage as it begins; work inside a stage says nothing."""
    depth = 0

    @contextlib.contextmanager
    def show(what: str, total: int | None) -> Iterator[Advance]:
        nonlocal depth
        if depth == 0:
            size = "" if total is None else f" ({total})"
            console.print(f"{what}{size} ...", markup=False, highlight=False, soft_wrap=True)
        depth += 1
        try:
            yield lambda steps: None
        finally:
            depth -= 1

    with shown_by(show):
        yield


def _finished(task: Task) -> Text:
    parts = [task.description, _count(task), _clock(task.elapsed or 0)]
    return Text.assemble(("✓ ", "green"), "  ".join(part for part in parts if part))


class _Said(ProgressColumn):
    """A column of words."""

    def __init__(self, say: Callable[[Task], str], style: str) -> None:
        super().__init__()
        self._say, self._style = say, style

    def render(self, task: Task) -> Text:
        return Text(self._say(task), style=self._style)


def _count(task: Task) -> str:
    return "" if task.total is None else f"{task.completed:.0f} of {task.total:.0f}"


def _left(task: Task) -> str:
    """Time left, once it can be told; counts down between steps that are minutes apart."""
    at_last_step = task.time_remaining
    if at_last_step is None or task.finished:
        return ""
    return f"{_clock(max(0.0, at_last_step - (time.monotonic() - task.fields['moved'])))} left"


def _clock(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"
