"""What the terminal shows while work runs: bars on a terminal, one plain line a stage elsewhere. All on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from poise.progress import Advance, shown_by

__all__ = ["showing"]

SPEED_OVER = 600.0  # seconds; batches that finish minutes apart still give a time left


@contextlib.contextmanager
def showing(console: Console) -> Iterator[None]:
    """Show on ``console`` whatever work inside the block says about itself."""
    with _bars(console) if console.is_interactive else _lines(console):
        yield


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[None]:
    """A live bar for each piece of work under way, and a line that stays for each finished stage."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        _Count(),
        TimeElapsedColumn(),
        _Left(),
    )
    with Progress(
        *columns, console=console, expand=True, refresh_per_second=4, speed_estimate_period=SPEED_OVER
    ) as progress:
        depth = 0

        @contextlib.contextmanager
        def show(what: str, total: int | None) -> Iterator[Advance]:
            nonlocal depth
            task = progress.add_task("  " * depth + what, total=total)
            depth += 1
            try:
                yield lambda steps: progress.advance(task, steps)
                if depth == 1:
                    progress.console.print(_finished(progress, task))
            finally:
                depth -= 1
                progress.remove_task(task)

        with shown_by(show):
            yield


@contextlib.contextmanager
def _lines(console: Console) -> Iterator[None]:
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


def _finished(progress: Progress, task: int) -> Text:
    done = next(t for t in progress.tasks if t.id == task)
    count = _count(done)
    return Text.assemble(
        ("✓ ", "green"), done.description, f"  {count}" if count else "", (f"  {_clock(done.elapsed or 0)}", "dim")
    )


class _Count(ProgressColumn):
    """``3 of 20``, or nothing where the total is unknown."""

    def render(self, task: Task) -> Text:
        return Text(_count(task), style="progress.percentage")


class _Left(ProgressColumn):
    """Time left, once it can be told."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text("" if left is None or task.finished else f"{_clock(left)} left", style="progress.remaining")


def _count(task: Task) -> str:
    return "" if task.total is None else f"{task.completed:.0f} of {task.total:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
