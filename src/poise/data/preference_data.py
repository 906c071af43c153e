"""Files of preference pairs as one data set, whose rows stream in order; and the same as conversations, two a pair."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poise.data.dataset import DataPart, DataSet, first_rows, refuse_unfit, rejected_row
from poise.data.labelled_answers import JoinedAnswers, find_label_columns
from poise.data.locate import DataSource, locate_sources
from poise.data.messages import AnswerPart, RejectedRow
from poise.data.preference_rows import (
    SIDES,
    PreferencePair,
    PreferenceShape,
    detect_preference_shape,
    parse_preference_request,
    read_pair,
    side_messages,
)
from poise.data.preferences import PairColumns
from poise.data.row_values import RowItem, RowReader, RowValue, to_columns
from poise.data.shapes import DataShape
from poise.errors import InvalidData, InvalidRow

__all__ = ["PreferenceData", "open_preferences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceData:
    """Preference pairs in files, read as often as wanted.

    Attributes:
        source: The files, with their rows as they are; their digest, count and schema are those of the pairs.
        shapes: How each file's rows become pairs.
    """

    source: DataSet
    shapes: tuple[PreferenceShape, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, in order."""
        return self.source.files

    @property
    def how(self) -> str:
        """What is read from which columns and how that is known, a line for each way that files are read."""
        return self.source.how

    @property
    def answer_part(self) -> AnswerPart:
        """Which part of an answer is read."""
        return self.source.answer_part

    def shape_of(self, file: str) -> PreferenceShape:
        """How the rows of one file become pairs."""
        return next(shape for part, shape in zip(self.source.parts, self.shapes, strict=True) if part.name == file)

    def __iter__(self) -> Iterator[PreferencePair | RejectedRow]:
        """Every row in order, as a pair or as the reason why it is none."""
        first = 0
        for part, shape in zip(self.source.parts, self.shapes, strict=True):
            first += yield from self._rows(part, shape, first)

    def conversations(self) -> DataSet:
        """Each pair as two conversations, the chosen answer's and the rejected one's, in which these alone are scored.

        A pair of index i becomes the rows 2 i and 2 i + 1, and a row that is no pair two that are rejected.
        """
        parts = []
        for part, shape in zip(self.source.parts, self.shapes, strict=True):
            label = f"both answers of {', '.join(shape.used)}"
            read = _BothAnswers(part.read, shape, self.answer_part, label)
            parts.append(DataPart(name=part.name, paths=part.paths, read=read, shape=DataShape("messages", (label,))))
        return replace(self.source, parts=tuple(parts), stated=True)

    def _rows(
        self, part: DataPart, shape: PreferenceShape, first: int
    ) -> Generator[PreferencePair | RejectedRow, None, int]:
        items = part.read(0)
        while True:
            try:
                row, line, value = next(items)
            except StopIteration as end:
                return int(end.value)
            try:
                content = read_pair(shape, to_columns(value), self.answer_part)
            except InvalidRow as bad:
                yield rejected_row(part, (row, line, value), first + row, bad)
            else:
                raw: Any = value  # a row that cannot be read was raised
                yield PreferencePair(
                    file=part.name,
                    row=row,
                    index=first + row,
                    content=content,
                    raw=raw,
                    answer_part=self.answer_part,
                )


@dataclass(frozen=True, slots=True)
class _BothAnswers:
    """A reader of rows, of which each is given twice: the turns with the chosen answer, and with the rejected one."""

    read: RowReader
    shape: PreferenceShape
    part: AnswerPart
    column: str

    def __call__(self, skip: int) -> Generator[RowItem, None, int]:
        items = self.read(skip // 2)
        while True:
            try:
                row, line, value = next(items)
            except StopIteration as end:
                return 2 * int(end.value)
            for number, answer in enumerate(self._both(value), start=2 * row):
                if number >= skip:
                    yield number, line, answer

    def _both(self, value: RowValue) -> tuple[RowValue, RowValue]:
        try:
            content = read_pair(self.shape, to_columns(value), self.part)
        except InvalidRow as bad:
            return bad, bad
        tools = {"tools": list(content.tools)} if content.tools else {}
        chosen, rejected = ({self.column: list(side_messages(content, side)), **tools} for side in SIDES)
        return chosen, rejected


def _open_part(place: DataSource, request: PairColumns | None) -> tuple[DataPart, PreferenceShape]:
    """One file, and how its rows become pairs: as they are, or labelled answers joined by their prompts."""
    schema, rows = place.open_schema(), place.read
    sample = first_rows(place.name, rows)
    labels = find_label_columns(sample) if request is None else ()
    if labels and (joined := JoinedAnswers(rows, labels)).has_pairs:
        whole = DataShape("labelled answers, joined by their prompts", labels)
        shape = detect_preference_shape(first_rows(place.name, joined))
        return DataPart(name=place.name, paths=place.paths, read=joined, shape=whole), shape
    shape = detect_preference_shape(sample, request)
    return DataPart(name=place.name, paths=place.paths, read=rows, shape=shape.whole, schema=schema), shape


def open_preferences(
    source: str | Path | Sequence[str | Path], *, shape: str = "auto", part: AnswerPart = "reply"
) -> PreferenceData:
    """Find files of preference pairs, and in their first rows the columns of each.

    Labelled answers (KTO's) are joined into pairs where a prompt has a good and a bad one.

    Args:
        source: Files, folders and names, as in ``poise.data.open_data``.
        shape: ``auto``, or the columns: ``preference:PROMPT,CHOSEN,REJECTED``, or ``preference:CHOSEN,REJECTED`` where
            the answers have the prompt in themselves.
        part: Which part of an answer is read: the reply, the thought before it, or both.

    Raises:
        InvalidData: something is not there, empty, cannot be read, or has no two answers to one prompt.
        InvalidArgument: there is no such shape.
        MissingExtra: pyarrow or datasets is needed and not installed.
    """
    request = parse_preference_request(shape)
    sources, left_out = locate_sources(source)
    parts: list[DataPart] = []
    shapes: list[PreferenceShape] = []
    unfit: dict[str, list[str]] = {}
    for place in sources:
        try:
            part_of_file, pair_shape = _open_part(place, request)
            parts.append(part_of_file)
            shapes.append(pair_shape)
        except InvalidData as error:
            unfit.setdefault(str(error).removeprefix(f"{place.name}: "), []).append(place.name)
    refuse_unfit(unfit)
    data = DataSet(
        parts=tuple(parts), need="assistant", stated=request is not None, answer_part=part, left_out=left_out
    )
    return PreferenceData(source=data, shapes=tuple(shapes))
