"""How long work says where it is. Silent until somebody, such as the command line, asks to show it.

with track("Reading activations", total=n) as advance:
    ...
    advance(len(batch))
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

__all__ = ["Advance", "Show", "quiet", "shown_by", "track"]

Advance = Callable[[int], None]
Show = Callable[[str, int | None], contextlib.AbstractContextManager[Advance]]


@contextlib.contextmanager
def _silent(what: str, total: int | None) -> Iterator[Advance]:
    yield lambda steps: None


_show: ContextVar[Show] = ContextVar("poise_progress", default=_silent)


def track(what: str, total: int | None = None) -> contextlib.AbstractContextManager[Advance]:
    """Announce a piece of work of ``total`` steps (``None``: unknown); call what it yields with the steps done."""
    return _show.get()(what, total)


@contextlib.contextmanager
def shown_by(show: Show) -> Iterator[None]:
    """Have all work inside the block reported through ``show``."""
    token = _show.set(show)
    try:
        yield
    finally:
        _show.reset(token)


def quiet() -> contextlib.AbstractContextManager[None]:
    """Show nothing of the work inside the block, which is a small part of something larger."""
    return shown_by(_silent)
