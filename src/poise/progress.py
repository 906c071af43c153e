"""How long work says where it is, and what it has to remark. Progress is silent until somebody, such as the command
line, asks to show it; remarks go to the log then.

with track("Reading activations", total=n) as advance:
    ...
    advance(len(batch))
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar

__all__ = ["Advance", "Show", "quiet", "remark", "remarks_by", "shown_by", "track"]

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


@functools.lru_cache(maxsize=1024)
def _log_once(sentence: str) -> None:
    logging.getLogger("poise").warning("%s", sentence)


_remarks: ContextVar[Callable[[str], None]] = ContextVar("poise_remarks", default=_log_once)


def remark(sentence: str) -> None:
    """Tell the user what was accepted and should be known; the same sentence is shown once."""
    _remarks.get()(sentence)


@contextlib.contextmanager
def remarks_by(show: Callable[[str], None]) -> Iterator[None]:
    """Have every remark made inside the block shown by ``show``, each once."""
    token = _remarks.set(functools.lru_cache(maxsize=1024)(show))
    try:
        yield
    finally:
        _remarks.reset(token)
