"""Which columns of a row hold the conversation, and the messages in them.

The shape of a file is recognised in its first rows and kept for all of them: a row that differs is rejected. What is
recognised, and what is refused with which remedy, is said in ``recognition``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from poise.data.chat_markup import clean_turn, doubtful_mark, has_markup, parse_markup, parse_prompt
from poise.data.columns import (
    CONTEXTS,
    EXCHANGE_KEYS,
    NAMED_TURNS,
    SYSTEMS,
    RowColumns,
    as_list,
    chat_kind,
    find_column,
    is_filled,
    is_text,
    last_words,
    names_present,
    unwrap,
)
from poise.data.encoded_cells import decode_parts, decode_turns, refuse_repr
from poise.data.left_out import left_out_kinds, why_no_answer
from poise.data.loss_marks import is_learnt, labelled_off
from poise.data.media_columns import count_media
from poise.data.messages import AnswerPart, Message, Need, is_answer
from poise.data.recognition import answer_after, objection, recognise_pair
from poise.data.row_extras import add_row_thought, apply_loss_mask, history_of, tools_of
from poise.data.shapes import DataShape, is_system
from poise.data.tool_calls import calls_from_json
from poise.data.turn_parsing import describe_type, excerpt, parse_turn, split_answer, text_of
from poise.data.turn_thoughts import join_thought_turns
from poise.errors import InvalidRow

__all__ = ["RowContent", "is_utf8", "read_row", "shape_of_row"]

PAIR_SHAPES = ("pairs", "alpaca")


@dataclass(frozen=True, slots=True)
class RowContent:
    """What a row says.

    Attributes:
        messages: Turns in order.
        tools: Definitions of the tools that the conversation may use, as chat templates take them.
        left_out: What is not read, by kind: ``image``, ``turn not to be learnt``.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(slots=True)
class _Turns:
    messages: list[Message] = field(default_factory=list)
    left_out: list[tuple[Message, str]] = field(default_factory=list)  # what is no text, with the turn it stands in
    in_file: list[list[Message]] = field(default_factory=list)  # the messages of each turn of the file
    tools: list[Any] = field(default_factory=list)  # definitions of tools that stand at a turn, as GLM's do

    def add(self, turns: _Turns) -> None:
        self.messages += turns.messages
        self.left_out += turns.left_out
        self.tools += turns.tools
        self.in_file += turns.in_file or [[message] for message in turns.messages]


def read_row(shape: DataShape, row: RowColumns, need: Need, part: AnswerPart = "reply") -> RowContent:
    """The messages of a row, of whose answers that part is read.

    Raises:
        InvalidRow: it has no text where the shape wants some, or lacks the turn that is needed.
    """
    if not shape.columns:
        columns = ", ".join(f"{name} ({describe_type(value)})" for name, value in row.items())
        raise InvalidRow(f"not {shape.kind}: it has the columns {excerpt(columns, 200)}")
    if shape.recognised and (complaint := objection(shape.kind, row, need)):
        raise InvalidRow(complaint)
    shape = shape_of_row(shape, row)
    turns = _READERS[shape.kind](shape, row, need)
    used = shape.used
    beside = add_row_thought(turns.messages, row, used, last=shape.kind in PAIR_SHAPES)
    apply_loss_mask(turns.messages, turns.in_file, row)
    if shape.kind != "text":
        _add_system(turns.messages, row, shape.system)
    messages = [turn for turn in turns.messages if turn["role"] != "system" or turn["content"].strip()]
    if shape.kind != "markup":
        for number, turn in enumerate(messages, start=1):
            clean_turn(turn, number)
        for turn, following in pairwise(messages):
            if following["role"] == "tool" and (calls := calls_from_json(turn["content"])):
                turn["content"], turn["tool_calls"] = "", [*turn.get("tool_calls", ()), *calls]
    media = count_media(messages, turns.left_out, {name: row[name] for name in row if name not in used})
    media_of = {id(turn): kind for turn, kind in media}
    for number, turn in enumerate(messages, start=1):
        _check_turn(turn, number, media_of.get(id(turn)))
    if not any(is_answer(turn, part) if need == "assistant" else turn["role"] == need for turn in messages):
        raise InvalidRow(why_no_answer(messages, part) if need == "assistant" else "no user turn")
    tools, unread = tools_of(row)
    for cell in turns.tools:
        at_turn, unread_there = tools_of({"tools": cell})
        tools += tuple(tool for tool in at_turn if tool not in tools)
        unread += unread_there
    if tools and not is_utf8(json.dumps(tools, ensure_ascii=False, default=str)):
        raise InvalidRow("not UTF-8 text: half a character in the definitions of tools")
    kinds = (*left_out_kinds(messages, media, need, part), *(beside if need == "assistant" else ()), *unread)
    return RowContent(tuple(messages), tools, kinds)


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; half a character cannot, nor a byte that ``surrogateescape`` kept."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _check_turn(turn: Message, number: int, media: str | None) -> None:
    empty = not turn["content"].strip() and turn["role"] != "tool"
    if empty and not turn.get("tool_calls") and not turn.get("thought"):
        what = f", holds only: {media}" if media else ""
        raise InvalidRow(f"empty turn: {turn['role']}, turn {number}{what}")
    calls = json.dumps(turn.get("tool_calls", ()), ensure_ascii=False, default=str) if "tool_calls" in turn else ""
    if not all(map(is_utf8, (turn["content"], turn.get("thought", ""), calls))):
        raise InvalidRow(f"not UTF-8 text: half a character in turn {number}")


def _add_system(messages: list[Message], row: RowColumns, column: str | None) -> None:
    """The system prompt of a column of its own, unless the turns bring theirs."""
    filled = [name for name in names_present(row, SYSTEMS) if is_filled(row[name])]
    if len({str(row[name]).strip() for name in filled if is_text(row[name])}) > 1:
        raise InvalidRow(f"ambiguous: {' and '.join(filled)} are two system prompts; keep the one that is meant")
    column = column if not filled or column in filled else filled[0]
    value = decode_parts(row.get(column)) if column else None
    if column is None or value is None or (messages and messages[0]["role"] == "system"):
        return
    if not is_system(value):
        raise InvalidRow(f"not text: {column} holds {describe_type(value)}, and no system prompt")
    if isinstance(value, str) and value.lstrip()[:2] in ("{'", "[{"):
        raise InvalidRow(f"not text: {column} holds a Python repr, and no system prompt")
    messages.insert(0, {"role": "system", "content": text_of(value, column)})


def _listed_messages(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    """The turns of a chat, and the answer beside it where the user speaks last."""
    turns = _chat_messages(_cell(row, shape.columns[0]), shape.columns[0])
    turns.add(_following_answer(shape, row, need))
    return turns


def _following_answer(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    """The answer in a column of its own to a chat in which the user speaks last."""
    turns = _Turns()
    if shape.recognised and last_words(_cell(row, shape.columns[0]))[0] == "assistant":
        return turns  # it repeats the last turn: another answer is refused
    for answer in shape.columns[1:] if need == "assistant" else ():
        if value := unwrap(row.get(answer)):
            turns.add(_side_messages(value, answer, "assistant"))
    return turns


def shape_of_row(shape: DataShape, row: RowColumns) -> DataShape:
    """The file's shape with the column of a row's answer to its chat, where that is another or begins late."""
    chats = (*NAMED_TURNS, "alternating")
    if not shape.recognised or shape.kind not in chats or any(unwrap(row.get(name)) for name in shape.columns[1:]):
        return shape
    answer = answer_after(row, shape.columns[0]) if shape.columns[0] in row else None
    return replace(shape, columns=(shape.columns[0], answer)) if answer else shape


def _exchanges(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    """A list of question and answer pairs."""
    turns = _Turns()
    for number, pair in enumerate(_list(_cell(row, shape.columns[0]), shape.columns[0]), start=1):
        keys = next((keys for keys in EXCHANGE_KEYS if isinstance(pair, Mapping) and set(keys) <= set(pair)), None)
        if keys is None:
            raise InvalidRow(f"not an exchange: number {number} is {describe_type(pair)}")
        for name in names_present(pair, SYSTEMS):
            text = text_of(decode_parts(pair[name]), f"{name} {number}")
            if (
                text.strip()
                and text not in [turn["content"] for turn in turns.messages if turn["role"] == "system"][-1:]
            ):
                turns.messages.append(_plain_message("system", text))
        prompts = _exchange_prompts(pair, keys, number)
        texts = [text_of(decode_parts(pair[key]), f"{key} {number}") for key in prompts]
        question = "\n\n".join(filter(str.strip, texts)) or texts[0]
        answer = text_of(decode_parts(pair[keys[1]]), f"{keys[1]} {number}")
        turns.messages += [_plain_message("user", question), _plain_message("assistant", answer)]
        add_row_thought(turns.messages[-1:], pair, keys)
        if not is_learnt(pair, f"exchange {number}"):
            turns.messages[-1]["learn"] = False
    return turns


def _exchange_prompts(pair: Mapping[str, Any], keys: tuple[str, str], number: int) -> tuple[str, ...]:
    """The keys of an exchange that make up its question: one, or an instruction and its input."""
    seen = recognise_pair(pair, "assistant")
    if seen and seen.refusal:
        raise InvalidRow(f"{seen.refusal}, exchange {number}; write its turns with their roles")
    if seen and seen.kind == "alpaca":
        return seen.columns[:2]
    return seen.columns[:1] if seen else keys[:1]


def _alternating(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    """A list of texts, the user's first; or each with the name of who speaks before it."""
    texts = _list(_cell(row, shape.columns[0]), shape.columns[0])
    roles = ("user", "assistant")
    if all(map(is_text, texts)) and len(named := parse_markup("\n\n".join(texts)) or ()) == len(texts):
        turns = _Turns(list(named))
    else:
        turns = _Turns([_plain_message(roles[n % 2], text_of(text, f"turn {n + 1}")) for n, text in enumerate(texts)])
    turns.add(_following_answer(shape, row, need))
    return turns


def _pair_messages(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    prompt, *answers = shape.columns
    turns = _before(shape, row)
    question = _side_messages(_cell(row, prompt), prompt, "user")
    context = find_column(row, CONTEXTS, is_text) if prompt.strip().lower() == "instruction" else None
    if context and question.messages and context not in shape.columns and row[context].strip():
        question.messages[-1]["content"] += f"\n\n{row[context]}"  # a column that begins late in the file
    turns.add(question)
    for column in answers:
        if need == "assistant" or row.get(column):  # the model will write its own
            turns.add(_side_messages(_cell(row, column), column, "assistant"))
    return turns


def _alpaca(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    instruction, context, output = shape.columns
    context = context or find_column(row, CONTEXTS, is_text) or ""
    about = text_of(row.get(context), context)
    turns = _before(shape, row)
    question = _side_messages(_cell(row, instruction), instruction, "user")
    if about.strip() and question.messages:
        asked = question.messages[-1]["content"]
        question.messages[-1]["content"] = f"{asked}\n\n{about}" if asked.strip() else about
    turns.add(question)
    if need == "assistant" or row.get(output):
        turns.add(_side_messages(_cell(row, output), output, "assistant"))
    return turns


def _before(shape: DataShape, row: RowColumns) -> _Turns:
    """Earlier questions and answers in a column ``history``."""
    if any(name.strip().lower() == "history" for name in shape.used):
        return _Turns()
    turns = _Turns()
    for number, (role, text) in enumerate(history_of(row), start=1):
        refuse_repr(text, f"history, turn {number}")
        turns.add(_Turns([_plain_message(role, text)]))
    return turns


def _markup_turns(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    text = text_of(_cell(row, shape.columns[0]), shape.columns[0])
    messages = parse_markup(text)
    if messages is None:
        if fault := doubtful_mark(text):
            raise InvalidRow(fault)
        why = (
            "chat marks that cannot be taken apart"
            if has_markup(text)
            else "no chat marks, in a file of marked-up text"
        )
        raise InvalidRow(f"{why}: {excerpt(text)}")
    return _Turns(messages)


def _cell_text(shape: DataShape, row: RowColumns, need: Need) -> _Turns:
    text = text_of(_cell(row, shape.columns[0]), shape.columns[0])
    refuse_repr(text, shape.columns[0])
    if chat_kind(text) == "messages":
        return _chat_messages(text, shape.columns[0])
    if has_markup(text):
        return _markup_turns(shape, row, need)
    return _Turns([_plain_message("assistant", text)])


_READERS: dict[str, Callable[[DataShape, RowColumns, Need], _Turns]] = {
    "messages": _listed_messages,
    "sharegpt": _listed_messages,
    "exchanges": _exchanges,
    "alternating": _alternating,
    "pairs": _pair_messages,
    "alpaca": _alpaca,
    "markup": _markup_turns,
    "text": _cell_text,
}


def _cell(row: RowColumns, column: str) -> Any:
    if column not in row:
        raise InvalidRow(f"missing column: {excerpt(column)} is not among {excerpt(', '.join(row))}")
    return row[column]


def _side_messages(value: Any, column: str, role: str) -> _Turns:
    """A prompt or an answer: its text, or the turns of a conversational data set (TRL's form), also as JSON text."""
    value = unwrap(value)
    if isinstance(value, str):
        refuse_repr(value, column)
        turns = decode_turns(value)
        if turns is value or (role == "assistant" and _speaker(turns) != role):  # JSON that somebody asked for
            value = decode_parts(value)
            if not isinstance(value, str):
                value = text_of(value, column)
            if role == "user" and (prompt := parse_prompt(value)):
                return _Turns(prompt)
            return _Turns([_plain_message(role, value)])
        value = turns
    if value is None:
        return _Turns([_plain_message(role, "")])
    if not isinstance(value, list | Mapping):
        raise InvalidRow(f"not text: {column} holds {describe_type(value)}")
    return _chat_messages(value, column)


def _speaker(turns: Any) -> str:
    """Who speaks first."""
    return last_words(turns[:1])[0] if isinstance(turns, list) else ""


def _plain_message(role: str, text: str) -> Message:
    message: Message = {"role": role, "content": text}
    if role == "assistant":
        thought, message["content"] = split_answer(text, "the answer")
        if thought:
            message["thought"] = thought
    return message


def _chat_messages(value: Any, column: str) -> _Turns:
    turns = _Turns()
    listed = _list(value, column)
    for number, (turn, off) in enumerate(zip(listed, labelled_off(listed), strict=True), start=1):
        parsed = parse_turn(turn, f"turn {number}")
        for message in parsed.messages if off else ():
            if message["role"] == "assistant":
                message["learn"] = False
        turns.messages += parsed.messages
        turns.in_file.append(parsed.messages)
        turns.left_out += [(parsed.messages[-1], kind) for kind in parsed.left_out]
        turns.tools += [turn[key] for key in ("tools", "functions") if turn.get(key)]
    turns.messages = join_thought_turns(turns.messages)
    return turns


def _list(value: Any, column: str) -> list[Any]:
    turns = as_list(value)
    if turns is None:
        what = "text that is not JSON" if isinstance(value, str) else describe_type(value)
        what += ", a Python repr" if isinstance(value, str) and value.lstrip()[:2] in ("[{", "{'") else ""
        raise InvalidRow(f"no list of turns: {column} holds {what}")
    return turns
