"""Windows of rows with the spans of their answers, the next window's made in a thread while the model reads this one.

The thread is given one window at a time and does nothing but render and tokenise, so that rows are taken, errors are
raised and an interrupt is met in the caller's own thread, in the data's order.
"""

from __future__ import annotations

import contextvars
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

from poise.data import Conversation, RejectedRow, turns
from poise.model.batch_encoding import Stopped, never
from poise.model.spans import RowSpans, TextModel, answer_spans_together

__all__ = ["SpansByRow", "WindowRows", "spans_ahead", "window_spans"]

WindowRows = TypeVar("WindowRows", bound=Sequence[Conversation | RejectedRow])
SpansByRow = dict[int, RowSpans]
"""Spans of a conversation's answers by its place in the window."""


def window_spans(model: TextModel, rows: Sequence[Conversation | RejectedRow], stopped: Stopped = never) -> SpansByRow:
    """The spans of every conversation among the rows, each under its place among them."""
    places = [place for place, row in enumerate(rows) if isinstance(row, Conversation)]
    answers = [turns(row) for row in rows if isinstance(row, Conversation)]
    return dict(zip(places, answer_spans_together(model, answers, stopped=stopped), strict=True))


def spans_ahead(
    model: TextModel, windows: Iterable[WindowRows], *, ahead: bool = True
) -> Generator[tuple[WindowRows, SpansByRow], None, None]:
    """Each window with its spans; they are the same whether they are made ahead or not.

    Close the generator, or run it to its end, so that the thread ends.

    Args:
        model: Its template, tokenizer and window.
        windows: Taken one further than is handed out, where spans are made ahead. An error of theirs is raised after
            what was taken before it was handed out.
        ahead: Whether a thread makes the next window's spans.
    """
    if not ahead:
        for window in windows:
            yield window, window_spans(model, window)
        return
    stop, upcoming = Event(), iter(windows)
    with ThreadPoolExecutor(1, thread_name_prefix="poise-tokenizing") as worker:

        def take() -> tuple[WindowRows, Future[SpansByRow]] | Exception | None:
            try:
                window = next(upcoming)
            except StopIteration:
                return None
            except Exception as error:  # not the fault of the window in hand
                return error
            in_context = contextvars.copy_context().run
            return window, worker.submit(in_context, window_spans, model, window, stop.is_set)

        try:
            taken = take()
            while taken and not isinstance(taken, Exception):
                window, future = taken
                spans = future.result()
                taken = take()
                yield window, spans
            if taken:
                raise taken
        finally:
            stop.set()
