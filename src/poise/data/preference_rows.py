"""Rows with two answers to one prompt, the preferred one and another, read as pairs: what preference tuning learns.

Both answers are read as every other row is, by ``readers``; what they share is the prompt, what differs is the pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from poise.data.columns import SYSTEMS, RowColumns, as_list, find_column, is_chat, last_words
from poise.data.messages import AnswerPart, Conversation, Message
from poise.data.preferences import PairColumns, find_pair_columns, recognise_preference, shape_of_answer
from poise.data.readers import RowContent, read_row
from poise.data.shapes import DataShape, is_system
from poise.data.turn_parsing import describe_type, excerpt
from poise.errors import InvalidArgument, InvalidData, InvalidRow

__all__ = [
    "SIDES",
    "PairContent",
    "PairSide",
    "PreferencePair",
    "PreferenceShape",
    "detect_preference_shape",
    "parse_preference_request",
    "read_pair",
    "side_messages",
]

PairSide = Literal["chosen", "rejected"]
SIDES: tuple[PairSide, PairSide] = ("chosen", "rejected")

ANSWER = "the answer"  # the column of a side's answer: under its own name a reader might take it for a mark
EXAMPLE = "preference:PROMPT,CHOSEN,REJECTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceShape:
    """How one file's rows become pairs.

    Attributes:
        columns: Columns that hold the answers and their prompt.
        chosen: How the preferred answer is read with its prompt.
        rejected: How the other answer is read with its prompt.
    """

    columns: PairColumns
    chosen: DataShape
    rejected: DataShape

    @property
    def used(self) -> tuple[str, ...]:
        """All columns that are read."""
        names = (*self.chosen.used, *self.rejected.used)
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def whole(self) -> DataShape:
        """The same as one shape, for what is said of a file."""
        system = self.chosen.system
        return DataShape("preference", tuple(name for name in self.used if name != system), system)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairContent:
    """What a row of preference data says.

    Attributes:
        prompt: The turns that both answers share.
        chosen: The preferred answer: what follows the prompt, seldom more than one turn.
        rejected: The other answer.
        tools: Definitions of the tools that the conversation may use.
        left_out: What is not read, by kind.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether the two answers are the same."""
        return self.chosen == self.rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """One row that can be used.

    Attributes:
        content: Its prompt and answers.
        file: The file, or the data set's name on the hub.
        row: Place in that file, from 0.
        index: Place in the whole data set, from 0; rejected rows count.
        raw: The row as it was, as in ``Conversation``.
        answer_part: Which part of the answers is read.
    """

    content: PairContent
    file: str
    row: int
    index: int
    raw: bytes | Mapping[str, Any]
    answer_part: AnswerPart = "reply"

    def conversation(self, side: PairSide) -> Conversation:
        """The prompt with one answer, whose turns alone are to be scored; numbered so that a pair's two are neighbours.

        The pair of index i has the conversations 2 i, chosen, and 2 i + 1, rejected.
        """
        return Conversation(
            messages=side_messages(self.content, side),
            file=self.file,
            row=self.row,
            index=2 * self.index + SIDES.index(side),
            raw={},
            tools=self.content.tools,
            answer_part=self.answer_part,
        )


def side_messages(content: PairContent, side: PairSide) -> tuple[Message, ...]:
    """The turns of the prompt, of which none is to be scored, and of one answer."""
    prompt: list[Message] = [
        {**message, "learn": False} if message["role"] == "assistant" else message for message in content.prompt
    ]
    return (*prompt, *(content.chosen if side == "chosen" else content.rejected))


def parse_preference_request(text: str) -> PairColumns | None:
    """The columns in ``preference:PROMPT,CHOSEN,REJECTED`` or ``preference:CHOSEN,REJECTED``; ``None`` for ``auto``.

    Raises:
        InvalidArgument: it is another shape, or names another number of columns.
    """
    kind, _, names = text.partition(":")
    columns = [name.strip() for name in names.split(",") if name.strip()]
    if not names and kind in ("auto", "preference"):
        return None
    if kind != "preference" or len(columns) not in (2, 3) or len(set(columns)) < len(columns):
        raise InvalidArgument(
            f"`shape` is {excerpt(text)}; for pairs it is auto, {EXAMPLE} or, where the prompt is in the answers, "
            "preference:CHOSEN,REJECTED."
        )
    *prompt, chosen, rejected = columns
    return PairColumns(chosen=chosen, rejected=rejected, prompt=prompt[0] if prompt else None)


def detect_preference_shape(rows: Sequence[RowColumns], request: PairColumns | None = None) -> PreferenceShape:
    """The shape that most rows have.

    Args:
        rows: The first rows of a file.
        request: Columns that the user named.

    Raises:
        InvalidData: most rows have no two answers to one prompt; shows one, and what would help.
    """
    shapes = [_shape_of_row(row, request) for row in rows]
    counts = Counter(shape for shape in shapes if shape)
    if counts.total() <= len(rows) - counts.total():
        row = next(row for row, shape in zip(rows, shapes, strict=True) if shape is None)
        raise InvalidData(_refusal(row, request))
    return counts.most_common(1)[0][0]


def read_pair(shape: PreferenceShape, row: RowColumns, part: AnswerPart = "reply") -> PairContent:
    """The prompt and both answers of a row.

    Raises:
        InvalidRow: one of them cannot be read, or they answer different prompts.
    """
    contents = {side: _read_side(shape, row, side, part) for side in SIDES}
    chosen, rejected = contents["chosen"].messages, contents["rejected"].messages
    shared = next(
        (n for n, both in enumerate(zip(chosen, rejected, strict=False)) if not _same(*both)),
        min(len(chosen), len(rejected)),
    )
    if shared == len(chosen) == len(rejected):
        shared -= 1  # the same answer twice
    ends = [messages[shared]["role"] if shared < len(messages) else "" for messages in (chosen, rejected)]
    if ends != ["assistant", "assistant"]:
        words = [f"a turn of the {end}" if end else "no turn" for end in ends]
        raise InvalidRow(
            f"different prompts: where the two part, turn {shared + 1}, {shape.columns.chosen} has {words[0]} and "
            f"{shape.columns.rejected} {words[1]}"
        )
    counts = (Counter(content.left_out) for content in contents.values())
    return PairContent(
        prompt=chosen[:shared],
        chosen=chosen[shared:],
        rejected=rejected[shared:],
        tools=contents["chosen"].tools,
        left_out=tuple((next(counts) | next(counts)).elements()),
    )


def _same(first: Message, second: Message) -> bool:
    return {**first, "content": first["content"].strip()} == {**second, "content": second["content"].strip()}


def _shape_of_row(row: RowColumns, request: PairColumns | None) -> PreferenceShape | None:
    columns = _stated_columns(row, request) if request else find_pair_columns(row)
    if columns is None:
        return None
    system = find_column(row, SYSTEMS, is_system)
    chosen, rejected = columns.chosen, columns.rejected
    if columns.chosen == columns.chat:  # the chat ends with the answer that was preferred
        kind, names = shape_of_answer(row, rejected, None, columns.chat)
        other = (rejected,) if (kind, len(names)) == ("messages", 1) else (columns.chat, rejected)
        return PreferenceShape(
            columns=columns,
            chosen=DataShape("messages", (columns.chat,), system),
            rejected=DataShape("messages", other, system),
        )
    shapes = [shape_of_answer(row, name, columns.prompt, columns.chat) for name in (chosen, rejected)]
    if shapes[0][0] != shapes[1][0] or len(shapes[0][1]) != len(shapes[1][1]):
        return None
    first, second = (DataShape(kind, names, None if kind in ("text", "markup") else system) for kind, names in shapes)
    return PreferenceShape(columns=columns, chosen=first, rejected=second)


def _stated_columns(row: RowColumns, request: PairColumns) -> PairColumns | None:
    def named(name: str | None) -> str | None:
        return find_column(row, (name,), lambda value: value is not None) if name else None

    chosen, rejected, prompt = named(request.chosen), named(request.rejected), named(request.prompt)
    if not chosen or not rejected or (request.prompt and not prompt):
        return None
    if prompt and last_words(row[prompt])[0] == "user":
        return PairColumns(chosen=chosen, rejected=rejected, chat=prompt)
    return PairColumns(chosen=chosen, rejected=rejected, prompt=prompt)


def _refusal(row: RowColumns, request: PairColumns | None) -> str:
    """Why a row is no pair, and what would help."""
    shown = excerpt(", ".join(f"{name}: {value!r}" for name, value in row.items()), 300)
    seen = recognise_preference(row, "assistant")
    if request:
        wanted = ", ".join(name for name in (request.prompt, request.chosen, request.rejected) if name)
        reason = f"no pair in the columns {wanted}; name three of {', '.join(map(str, row))}, as in {EXAMPLE}"
    elif pair := find_pair_columns(row):
        reason = f"{pair.chosen} and {pair.rejected} are not of one form; write both as text or both as lists of turns"
    elif seen:
        reason = (
            f"labelled answers, one a row: {seen.columns[-1]} says which are good, and no prompt has a good and a bad "
            'one to compare; add the other answer, or write pairs as rows {"prompt", "chosen", "rejected"}'
        )
    else:
        columns = ", ".join(f"{name} ({describe_type(value)})" for name, value in row.items())
        reason = f"no two answers to one prompt; its columns are {columns}; name them with a shape like {EXAMPLE}"
    return f"{reason}. A row of it: {shown}."


def _read_side(shape: PreferenceShape, row: RowColumns, side: PairSide, part: AnswerPart) -> RowContent:
    """One answer with everything before it."""
    columns = shape.columns
    name = columns.chosen if side == "chosen" else columns.rejected
    own_shape = shape.chosen if side == "chosen" else shape.rejected
    if name not in row:
        raise InvalidRow(f"missing column: {excerpt(name)} is not among {excerpt(', '.join(map(str, row)))}")
    beside = {key: value for key, value in row.items() if key not in (columns.chosen, columns.rejected)}
    if side == "rejected" and columns.chosen == columns.chat and columns.chat in own_shape.columns:
        turns = as_list(row[columns.chat]) or []
        beside[columns.chat] = turns[:-1] if last_words(row[columns.chat])[0] == "assistant" else turns
    if columns.prompt in own_shape.columns and isinstance(request := row.get(columns.prompt), Mapping):
        beside |= _request_columns(request, columns.prompt)
    names = tuple(ANSWER if column == name else column for column in own_shape.columns)
    try:
        return read_row(replace(own_shape, columns=names), {**beside, ANSWER: row[name]}, "assistant", part)
    except InvalidRow as error:
        kind, colon, details = str(error).partition(":")
        raise InvalidRow(f"{kind}:{details} ({name})" if colon else f"{kind}: {name}") from error


def _request_columns(request: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    """A prompt that is a request to OpenAI's API: its messages and tools."""
    messages = request.get("messages")
    if not is_chat(messages):
        return {}
    tools = request.get("tools")
    return {str(column): messages} | ({"tools": tools} if tools else {})
