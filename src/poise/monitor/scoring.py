"""Finished conversations to readings: one after another, a window of rows at a time, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

from poise.activations import Probe, project_each
from poise.arguments import check_type
from poise.data import AnswerPart, Conversation, DataSet, InputRow, RejectedRow, Rejections, data_from_rows
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, RowSpans, UnreadAnswer
from poise.model.spans_ahead import SpansByRow, spans_ahead
from poise.monitor.readings import AnswerReadings, summarize_response
from poise.vector import PersonaVector
from poise.vector.algebra import check_distinct
from poise.vector.persona_vector import as_vectors

__all__ = ["WINDOW_ROWS", "ScoredTurn", "read_rows", "score_turns", "topic_of"]

WINDOW_ROWS = 256  # rows read together: enough to batch answers of like length


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTurn:
    """One answer of a conversation.

    Attributes:
        conversation: Conversation that the turn stands in.
        turn: Which of its answers, from 0.
        readings: ``None`` where it could not be read.
        cut: Whether earlier turns were left out to fit the model's window.
        unread: Why it could not be read.
    """

    conversation: Conversation
    turn: int
    readings: AnswerReadings | None
    cut: bool = False
    unread: str = ""


def score_turns(
    rows: Iterable[Conversation | RejectedRow],
    model: Model,
    probes: Sequence[Probe],
    rejections: Rejections,
    *,
    ahead: bool = True,
) -> Iterator[tuple[int, list[ScoredTurn]]]:
    """Read every answer of every conversation.

    Args:
        rows: Rows as a ``DataSet`` gives them, in order.
        model: Model whose activations are read.
        probes: k of them.
        rejections: Counts and lists the rows that cannot be used, and those of which no answer can be read.
        ahead: Whether the rows of the next window are taken and tokenised while the model reads.

    Yields:
        For each window of 256 rows of the data in which a conversation is: the index after its last one, and its
        answers in order. Windows lie by index, so that a run that begins again there meets the same windows.

    Raises:
        InvalidData: too many rows are rejected.
    """
    placed: dict[int, RowSpans] = {}
    windows = (list(members) for _, members in groupby(rows, key=lambda row: row.index // WINDOW_ROWS))

    def readable(
        windows: Iterator[tuple[list[Conversation | RejectedRow], SpansByRow]],
    ) -> Iterator[Conversation | RejectedRow]:
        for window, spans in windows:
            for place, row in enumerate(window):
                if isinstance(row, Conversation):
                    if unread := _why_unread(spans[place]):
                        yield RejectedRow(file=row.file, row=row.row, index=row.index, line=None, reason=unread)
                        continue
                    placed[row.index] = spans[place]
                yield row

    with closing(spans_ahead(model, windows, ahead=ahead)) as spans_by_window:
        sifted = rejections.sift(readable(spans_by_window))
        for _, conversations in groupby(sifted, key=lambda c: c.index // WINDOW_ROWS):
            members = list(conversations)
            yield members[-1].index + 1, _read_window(model, members, [placed.pop(c.index) for c in members], probes)


def read_rows(
    rows: DataSet | Iterable[InputRow],
    vectors: PersonaVector | Sequence[PersonaVector],
    model: Model,
    *,
    layer: int | None = None,
    shape: str = "auto",
    part: AnswerPart = "reply",
    allow_other_model: bool = False,
) -> Iterator[ScoredTurn]:
    """Read every answer of rows in memory, in order, without touching a file.

    Args:
        rows: Rows with answers, or a data set; see ``poise.data.data_from_rows``.
        vectors: k of them, of this model.
        model: The model whose activations are read.
        layer: Layer for all vectors, counted from 0; default, the layer at which each is read.
        shape: Shape of the rows, as in ``poise.data.open_data``.
        part: Which part of an answer is read; a data set has its own.
        allow_other_model: Let vectors of another model of the same shape be used.

    Raises:
        InvalidData: no known shape fits, or too many rows are rejected.
        OtherModel: a vector was computed on another model.
    """
    vectors = as_vectors(vectors)
    check_distinct(vectors)
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    for vector in vectors:
        vector.check_model(model, allow_other_model=allow_other_model)
    probes = [vector.at("read", layer).probe for vector in vectors]
    data = data_from_rows(rows, shape=shape, part=part)
    return (
        turn for _, window in score_turns(data, model, probes, Rejections(), ahead=bool(data.files)) for turn in window
    )


def _why_unread(row_places: Sequence[AnswerSpan | UnreadAnswer]) -> str:
    """The first answer's reason where no answer can be read, else nothing."""
    first = row_places[0]
    return (
        first.reason if isinstance(first, UnreadAnswer) and all(isinstance(f, UnreadAnswer) for f in row_places) else ""
    )


def _read_window(
    model: Model,
    conversations: Sequence[Conversation],
    window_places: Sequence[Sequence[AnswerSpan | UnreadAnswer]],
    probes: Sequence[Probe],
) -> list[ScoredTurn]:
    ids = list(
        {
            id(p.text.ids): p.text.ids for row_places in window_places for p in row_places if isinstance(p, AnswerSpan)
        }.values()
    )
    read = dict(zip(map(id, ids), project_each(model, [Encoded(i, 0, len(i)) for i in ids], probes), strict=True))
    out = []
    for conversation, places in zip(conversations, window_places, strict=True):
        for place in places:
            if isinstance(place, UnreadAnswer):
                out.append(ScoredTurn(conversation=conversation, turn=place.turn, readings=None, unread=place.reason))
            elif (values := read[id(place.text.ids)]) is None:
                out.append(
                    ScoredTurn(
                        conversation=conversation,
                        turn=place.turn,
                        readings=None,
                        cut=place.cut,
                        unread="the model gave NaN or infinity",
                    )
                )
            else:
                out.append(
                    ScoredTurn(
                        conversation=conversation,
                        turn=place.turn,
                        readings=summarize_response(values, place.text),
                        cut=place.cut,
                    )
                )
    return out


def topic_of(conversation: Conversation, field: str | None) -> str | None:
    """What a row says in ``field``, as text; ``None`` where it says nothing."""
    value = conversation.fields.get(field) if field else None
    return None if value is None else str(value)
