"""What a row of a data file is: recognised by its columns and their types, and never guessed.

A row has a known shape, or it is refused with what was seen in it and the shape that would read it. No column is taken
for the text because it is the only one left: a name, an id or a version is not an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from poise.data.chat_markup import has_markup, parse_markup
from poise.data.columns import (
    ANSWERS,
    CHATS,
    CONTEXTS,
    INSTRUCTIONS,
    NAMED_TURNS,
    OUTPUTS,
    PROMPTS,
    STRONG_PROMPTS,
    SYSTEMS,
    TEXTS,
    RowColumns,
    as_list,
    chat_kind,
    find_column,
    is_chat,
    is_filled,
    is_text,
    last_words,
    names_present,
    unwrap,
)
from poise.data.encoded_cells import decode_json, holds_repr
from poise.data.messages import Need
from poise.data.preferences import Recognition, recognise_preference
from poise.data.turn_parsing import ROLE_KEYS, ROLES, TEXT_KEYS, describe_type, excerpt

__all__ = ["Recognition", "objection", "recognise", "recognise_pair"]


COLUMN_NAMES = frozenset((*CHATS, *PROMPTS, *ANSWERS, *SYSTEMS, *TEXTS))
RESPONSES = ("response", "completion", "output", "reply", "assistant")  # an `answer` may be what is right
LOOSE_CHATS = ("data", "contents")  # names that lists of other things have as well
UNSPOKEN = ("turns", "contents")  # of MT-Bench the user's turns alone, of others passages
SENTENCE = 4  # words from which on a column `user` holds what is asked, and no name
ID_LIKE = re.compile(
    r"(?=\S*\d)[\w.:/#@%+=-]{3,}", re.ASCII
)  # one word with a digit in it: an id, an address, a number


def recognise(row: RowColumns, need: Need) -> Recognition:
    """The first shape that fits, or a refusal. Judged by columns and types; texts only for the marks of a chat."""
    for recogniser in (
        _recognise_spread,
        recognise_preference,
        _recognise_doubtful,
        _recognise_chat,
        recognise_pair,
        _recognise_text,
    ):
        if recognition := recogniser(row, need):
            return recognition
    shown = ", ".join(f"{name} ({_sketch(value)})" for name, value in row.items())
    example = "pairs:QUESTION,ANSWER or messages:CHAT" if need == "assistant" else "pairs:QUESTION or messages:CHAT"
    return Recognition(
        refusal=f"no known shape; its columns are {shown}",
        remedy=_remedy_for_columns(row) or f"name the columns with a shape like {example}",
    )


def _remedy_for_columns(row: RowColumns) -> str:
    """What would help where a column has the name of an answer, a prompt or a chat, and holds something else."""
    for name in names_present(row, CHATS):
        turns = as_list(row[name])
        if turns and isinstance(turns[0], Mapping) and "content" in turns[0] and "type" in turns[0]:
            return f"the turns in {name} say in type who speaks; name that key role"
    for names, noun in ((PROMPTS, "prompt"), ((*ANSWERS, "answers", "responses", "completions"), "answer")):
        present = names_present(row, names)
        if not present or any(is_text(row[name]) for name in present):
            continue
        value = row[present[0]]
        holds = f"{present[0]} holds {_sketch(value)}, and no text"
        if isinstance(value, list | Mapping):
            return f"{holds}: write one {noun} as text, in a column {noun}"
        return f"{holds}: write it as text" if value is not None else f"{present[0]} holds nothing: write a text"
    return ""


def objection(kind: str, row: RowColumns, need: Need) -> str:
    """Why a row of a file whose shape was recognised is not read in it, as its first rows would not have been.

    A verdict, a second answer or a second prompt may begin late in a file. Empty where nothing is against it.
    """
    recognisers = [recognise_preference, _recognise_doubtful]
    recognisers += {"pairs": [recognise_pair], "alpaca": [recognise_pair], "text": [_prompt_beside_text]}.get(kind, [])
    for recogniser in recognisers:
        seen = recogniser(row, need)
        if seen and seen.refusal:
            return f"{seen.refusal}; {seen.remedy}"
    return ""


def _recognise_spread(row: RowColumns, need: Need) -> Recognition | None:
    """Conversations that are spread over lines, or wrapped in something else."""
    names = {str(name).strip().lower() for name in row}
    if "parent_id" in names and ("message_id" in names or "role" in names):
        return Recognition(
            refusal="one message of a tree, linked to others by parent_id",
            remedy='join each path from a root to a leaf into one row {"messages": [{"role", "content"}, …]}',
        )
    if "columns" in names and "data" in names and ("index" in names or len(names) == 2):
        return Recognition(
            refusal='a table as pandas writes it with orient="split": columns apart from their data',
            remedy='write it again with DataFrame.to_json(path, orient="records", lines=True)',
        )
    tree = row.get("prompt")
    if isinstance(tree, Mapping) and isinstance(tree.get("replies"), list):
        return Recognition(
            refusal="a tree of replies (prompt.replies)",
            remedy='write each path from the root to a leaf as one row {"messages": [{"role", "content"}, …]}',
        )
    if "custom_id" in names and isinstance(row.get("response"), Mapping):
        return Recognition(
            refusal="a result of a batch API: the answer is in response.body, and its prompt is in the request file",
            remedy='join both files by custom_id into rows {"messages": [{"role", "content"}, …]}',
        )
    role = find_column(row, ROLE_KEYS, is_text)
    if (
        role
        and find_column(row, TEXT_KEYS, lambda value: isinstance(value, str | list))
        and not find_column(row, CHATS, is_chat)
    ):
        return Recognition(
            refusal=f"a single message (columns {', '.join(map(str, row))}): the conversation is spread over lines",
            remedy='put the messages of each conversation into one row {"messages": [{"role", "content"}, …]}',
        )
    return None


def _recognise_doubtful(row: RowColumns, need: Need) -> Recognition | None:
    """Columns of which either may be meant: names that differ in upper case alone, two chats, a chat and an answer."""
    names: dict[str, str] = {}
    for name in row:
        first = names.setdefault(str(name).strip().lower(), name)
        if (
            first != name
            and str(name).strip().lower() in COLUMN_NAMES
            and row[first]
            and row[name] not in (row[first], None)
        ):
            return Recognition(
                refusal=f"ambiguous: {first} and {name} differ in upper case or spaces alone",
                remedy="rename one of them",
            )
    for column in names_present(row, CHATS):
        if is_text(row[column]) and holds_repr(row[column]):
            return Recognition(
                refusal=f"{column} ({_sketch(row[column])})", remedy="write the file again as JSON Lines or Parquet"
            )
    chats = chat_columns(row, need)
    for other in chats[1:]:
        if last_words(row[chats[0]]) != last_words(row[other]):
            return Recognition(
                refusal=f"ambiguous: {chats[0]} and {other} are two chats",
                remedy=f"give the shape {chat_kind(row[chats[0]])}:{chats[0]} or {chat_kind(row[other])}:{other}",
            )
    systems = [name for name in names_present(row, SYSTEMS) if is_text(row[name]) and row[name].strip()]
    if len({row[name].strip() for name in systems}) > 1:
        return Recognition(
            refusal=f"ambiguous: {' and '.join(systems)} are two system prompts", remedy="keep the one that is meant"
        )
    return _recognise_beside_chat(row, chats[0], need) if chats else None


def _recognise_beside_chat(row: RowColumns, chat: str, need: Need) -> Recognition | None:
    """A history, a prompt or an answer beside a chat that does not have it, so that either may be meant."""
    kind, words = chat_kind(row[chat]), [_spaced(text) for text in texts_in(as_list(row[chat]))]
    follows = answer_after(row, chat) if need == "assistant" else None
    ways = f"{kind}:{','.join(filter(None, (chat, follows)))}"
    history = find_column(row, ("history",), lambda value: isinstance(value, list | str) and bool(value))
    turns = as_list(row[history]) if history else None
    if turns and all(isinstance(turn, list | tuple | Mapping) for turn in turns):
        new = [text for text in texts_in(turns) if _spaced(text) not in words and text not in ROLES]
        if new:
            return Recognition(
                refusal=f"ambiguous: {history} holds turns that {chat} does not",
                remedy=f"put them into {chat}, or give the shape {ways} to leave {history} out",
            )
    prompt = find_column(row, STRONG_PROMPTS, lambda value: is_text(value) and is_filled(value))
    apart = prompt and not any(_spaced(row[prompt]) in text for text in words)
    if apart and (follows or kind not in NAMED_TURNS):
        answer = follows or find_column(row, ANSWERS, _is_answer)
        other = f" or pairs:{prompt}" if need == "user" else f" or pairs:{prompt},{answer}" if answer else ""
        return Recognition(
            refusal=f"ambiguous: {prompt} could be the prompt, or what {chat} holds",
            remedy=f"give the shape {ways}{other}",
        )
    answer = find_column(row, RESPONSES if kind in NAMED_TURNS else ANSWERS, _is_answer) if need == "assistant" else ""
    speaker, last = last_words(row[chat])
    if not answer or answer == chat or speaker != "assistant":
        return None
    text = unwrap(row[answer]) if is_text(unwrap(row[answer])) else last_words(row[answer])[1]
    if text.strip() in last:
        return None
    prompt = find_column(row, PROMPTS, is_text)
    instead = f" or messages:{chat},{answer}" if kind in NAMED_TURNS else ", or write its turns with their roles"
    return Recognition(
        refusal=f"ambiguous: {chat} ends with an answer, and {answer} holds another",
        remedy=f"give the shape {'messages' if kind in NAMED_TURNS else kind}:{chat}"
        + (f" or pairs:{prompt},{answer}" if prompt else instead),
    )


def _spaced(text: str) -> str:
    return " ".join(text.split())


def texts_in(value: Any) -> Iterator[str]:
    """Every text in the turns of a chat, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(inner)


def chat_columns(row: RowColumns, need: Need) -> list[str]:
    """The columns that hold chats, the likeliest first.

    A list whose turns do not say who speaks, under a name that other lists have as well, such as ``data``, is none
    beside a chat with roles or a prompt with its answer: it holds passages, names of files or examples.
    """
    kinds = {column: chat_kind(row[column]) for column in names_present(row, CHATS)}
    with_roles = any(kind in NAMED_TURNS for kind in kinds.values())
    if not with_roles and any(kinds.values()):
        prompt = find_column(row, PROMPTS, lambda value: is_text(value) and is_filled(value))
        answered = need == "user" or find_column(row, ANSWERS, _is_answer)
        with_roles = bool(prompt and answered)
    loose = LOOSE_CHATS if with_roles else ()
    return [
        column
        for column, kind in kinds.items()
        if kind in NAMED_TURNS or (kind and column.strip().lower() not in loose)
    ]


def _is_answer(value: Any) -> bool:
    value = unwrap(value)
    return bool(value.strip()) if is_text(value) else chat_kind(value) in NAMED_TURNS


def _recognise_chat(row: RowColumns, need: Need) -> Recognition | None:
    column = next(iter(chat_columns(row, need)), None)
    if column is None:
        return None
    kind = chat_kind(row[column])
    if kind == "alternating" and need == "assistant" and column.strip().lower() in UNSPOKEN:
        texts = "\n\n".join(as_list(row[column]) or ())
        if not parse_markup(texts):
            return Recognition(
                refusal=f"{column} is a list of texts, and does not say who speaks",
                remedy=f"if user and assistant take turns in it, give the shape alternating:{column}; if all are the "
                'user\'s, write rows {"prompt", "response"}',
            )
    answer = answer_after(row, column) if need == "assistant" else None
    return Recognition(kind=kind, columns=(column, answer) if answer else (column,))


def answer_after(row: RowColumns, chat: str) -> str | None:
    """The column of the answer to a chat in which the user speaks last."""
    if last_words(row[chat])[0] not in ("user", "tool"):
        return None
    answer = find_column(row, ANSWERS, _is_answer)
    return None if answer == chat else answer


def recognise_pair(row: RowColumns, need: Need) -> Recognition | None:
    """A prompt and its answer in columns of their own, with or without an input; or why that is ambiguous."""

    def side(value: Any) -> bool:
        return is_text(unwrap(value)) or (chat_kind(value) in NAMED_TURNS and not is_text(value))

    instruction, output = find_column(row, INSTRUCTIONS, is_text), find_column(row, OUTPUTS, is_text)
    contexts = [name for name in names_present(row, CONTEXTS) if is_text(row[name])]
    context = next((name for name in contexts if row[name].strip()), contexts[0] if contexts else None)
    prompts = [name for name in names_present(row, PROMPTS) if side(row[name])]
    prompts = [name for name in prompts if is_filled(row[name])] or prompts
    prompts.sort(key=lambda name: name.strip().lower() not in STRONG_PROMPTS)
    answers = [name for name in names_present(row, ANSWERS) if side(row[name]) and name not in prompts[:1]]
    answers = [name for name in dict.fromkeys(answers) if unwrap(row[name])] or answers
    if prompts and len({str(row[name]) for name in answers}) > 1 and need == "assistant":
        ways = " or ".join(f"pairs:{prompts[0]},{name}" for name in answers)
        return Recognition(
            refusal=f"ambiguous: {' and '.join(answers)} could each be the answer to {prompts[0]}",
            remedy=f"give the shape {ways}",
        )
    rivals = _rival_prompts(row, prompts, answers)
    if len(rivals) > 1 and (answers or need == "user") and rivals != [instruction, context]:
        return _refuse_prompts(row, rivals, answers[0] if answers else "")
    if instruction and context and (output or need == "user"):
        return Recognition(kind="alpaca", columns=(instruction, context, output or ""))
    if prompts and answers:
        return Recognition(kind="pairs", columns=(prompts[0], answers[0]))
    return Recognition(kind="pairs", columns=(prompts[0],)) if prompts and need == "user" else None


def _rival_prompts(row: RowColumns, prompts: Sequence[str], answers: Sequence[str]) -> list[str]:
    """The prompt, and the columns beside it that may be the prompt as well, or a part of it."""
    rivals = list(prompts[:1])
    for name in prompts[1:]:
        plain, text = name.strip().lower(), str(row[name])
        speaks = any(answer.strip().lower() == "assistant" for answer in answers) or len(text.split()) >= SENTENCE
        if text in (str(row[rival]) for rival in rivals) or (plain in ("user", "human") and not speaks):
            continue  # a user's name or number
        if plain not in STRONG_PROMPTS and any(text in str(row[rival]) for rival in rivals):
            continue  # the prompt was filled in with it
        rivals.append(name)
    return rivals


def _refuse_prompts(row: RowColumns, rivals: Sequence[str], answer: str) -> Recognition:
    rivals = sorted(rivals, key=lambda name: name.strip().lower() not in INSTRUCTIONS)
    ways = [f"pairs:{name},{answer}".rstrip(",") for name in rivals]
    if len(rivals) == 2 and all(is_text(row[name]) for name in rivals):
        ways.insert(0, f"alpaca:{','.join(rivals)},{answer or 'ANSWER'} (both, one after the other)")
    return Recognition(
        refusal=f"ambiguous: {' and '.join(rivals)} could each be the prompt, or a part of it",
        remedy=f"give the shape {' or '.join(ways)}",
    )


def _recognise_text(row: RowColumns, need: Need) -> Recognition | None:
    column = find_column(row, TEXTS, is_text)
    if column is None:
        chat = find_column(row, CHATS, lambda value: is_text(value) and has_markup(value))
        return Recognition(kind="markup", columns=(chat,)) if chat else None
    text = row[column]
    if holds_repr(text):
        return Recognition(
            refusal=f"{column} ({_sketch(text)})", remedy="write the file again as JSON Lines, with a chat in messages"
        )
    if chat_kind(text) == "messages":
        return Recognition(kind="messages", columns=(column,))
    if isinstance(inner := decode_json(text), dict) and recognise_pair(inner, "assistant"):
        return Recognition(
            refusal=f"a row of its own as JSON in {column}, with {', '.join(map(str, inner))}",
            remedy="write these rows as JSON Lines, in a file whose name ends in .jsonl",
        )
    if has_markup(text):
        return Recognition(kind="markup", columns=(column,))
    if need == "user":
        return None
    if ambiguous := _prompt_beside_text(row, need):
        return ambiguous
    if ID_LIKE.fullmatch(text.strip()):
        return Recognition(
            refusal=f"an id or a number alone in {column} ({excerpt(text)}) is no answer",
            remedy=f"give the shape text:{column} if it is one",
        )
    return Recognition(kind="text", columns=(column,))


def _prompt_beside_text(row: RowColumns, need: Need) -> Recognition | None:
    """Why a text beside a prompt is refused: it may be the answer, or stand alone."""
    names = (*STRONG_PROMPTS, "inputs", "input")
    prompt, column = find_column(row, names, _is_answer), find_column(row, TEXTS, is_text)
    if not prompt or not column or need == "user":
        return None
    return Recognition(
        refusal=f"ambiguous: {column} could be the answer to {prompt}, or stand alone",
        remedy=f"give the shape pairs:{prompt},{column} or text:{column}",
    )


def _sketch(value: Any) -> str:
    """What a cell holds, in few words."""
    turns = as_list(value) if isinstance(value, list) else None
    if isinstance(value, Mapping) and value:
        return f"an object with {', '.join(map(str, value))}"
    if turns and isinstance(turns[0], Mapping):
        return f"a list of objects with {', '.join(map(str, turns[0]))}"
    if isinstance(value, str) and re.match(r"\s*(?:\[\s*)?\{\s*'", value):
        return "text, a Python repr and not JSON"
    return describe_type(value)
