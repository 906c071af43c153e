"""Chats that a file keeps as one marked-up text: ChatML, Llama's headers, ``### Human:`` and their kin, as messages.

A text that carries such marks is a conversation and not an answer: reading it whole would score the question, the
marks and the answer as one. What cannot be taken apart for certain is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from poise.data.headings import are_headings
from poise.data.markup_styles import (
    BEGIN_MARKS,
    CONTROL_STYLES,
    CONTROL_TOKEN,
    HASH_MARK,
    TURN_TOKEN,
    WORD_STYLES,
    may_have_tokens,
    role_of_mark,
    strip_begin_marks,
    strip_end_marks,
)
from poise.data.messages import Message
from poise.data.tool_calls import calls_from_json, parse_call, split_calls
from poise.data.turn_parsing import ROLES, split_answer
from poise.errors import InvalidRow

__all__ = ["clean_turn", "doubtful_mark", "has_markup", "parse_markup", "parse_prompt"]

_HARMONY = re.compile(r"<\|start\|>([^<]*)(?:<\|channel\|>([^<]*))?(?:<\|constrain\|>[^<]*)?<\|message\|>")
_HARMONY_END = re.compile(r"<\|(?:end|return|call)\|>\s*(?:<\|start\|>\s*assistant\s*)?\Z")
_ADDRESS = re.compile(r"to=(?:functions\.)?([\w.-]+)")
_INSTRUCT = re.compile(r"\[(/?)(INST|SYSTEM_PROMPT|TOOL_RESULTS|AVAILABLE_TOOLS)\]")
_SYS = re.compile(r"\A\s*<<SYS>>(.*?)<</SYS>>", re.S)
_TAGGED = re.compile(r"<(user|human|assistant|system|bot)>(.*?)</\1>\s*", re.S | re.I)
_ROUNDS = re.compile(r"\A\s*\[Round \d+\]")  # ChatGLM, LongCat
_STOCK_PREAMBLE = re.compile(
    r"\A\s*(?:Below is an? |以下は、|(?:以下|下面)是一?[个個条條]?描述|아래는 )", re.I
)  # Alpaca's, which says nothing of the task
_GLM_CALL = re.compile(r"\A\s*([\w.-]+)\s*\n\s*(\{.*\})\s*\Z", re.S)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.S)
_QUOTES = "`'\"“‘«"
_PACKED = re.compile(  # a conversation that ended, and another after it
    r"(?:<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>|<\|end\|>|<end_of_turn>)\s*"
    r"(?:<\|endoftext\|>|<\|end_of_text\|>|<eos>|<bos>|<\|begin_of_text\|>|</?s>)\s*(?=<)"
    r"|(?<=\S)\s*(?:<\|begin_of_text\|>|<bos>|<[|｜]begin▁of▁sentence[|｜]>)\s*(?=<)"
)


@dataclass(frozen=True, slots=True)
class _Markup:
    """A text taken apart.

    Attributes:
        messages: Its turns.
        header: Whether it ends in the header of an answer that is to come.
        control: Whether the marks are control tokens, which are in no prose.
    """

    messages: list[Message]
    header: bool = False
    control: bool = True


def has_markup(text: str) -> bool:
    """Whether a text carries the marks of a chat."""
    text = strip_begin_marks(text)
    if _control_mark(text, TURN_TOKEN) or _control_mark(strip_end_marks(text), CONTROL_TOKEN):
        return True
    return bool(_ROUNDS.match(text) or _TAGGED.match(text) or _has_hashes(text) or _has_words(text))


def parse_markup(text: str) -> list[Message] | None:
    """The turns of a marked-up text; ``None`` where its marks cannot be taken apart for certain."""
    markup = _take_apart(text)
    answered = markup and any(message["role"] == "assistant" for message in markup.messages)
    return markup.messages if markup and (markup.header or answered) else None


def parse_prompt(text: str) -> list[Message] | None:
    """The turns of a prompt that was already put into a template; ``None`` for one that is ordinary text."""
    if not has_markup(text):
        return None
    markup = _take_apart(text)
    if markup is None or markup.messages[-1]["role"] not in ("user", "tool"):
        return None
    return markup.messages if markup.header or markup.control else None


def clean_turn(message: Message, number: int) -> None:
    """Take the marks of a template away that stand around one turn's text, and calls out of it.

    Raises:
        InvalidRow: there are marks inside the text.
    """
    role, text = message["role"], message["content"]
    if role == "tool" or not text:
        return
    if not (text.rstrip().endswith("</s>") and "<s>" in text[1:]):  # struck out in HTML
        text = strip_end_marks(strip_begin_marks(text))
    if TURN_TOKEN.match(text.lstrip()) and (markup := _take_apart(text)):
        if [turn["role"] for turn in markup.messages] != [role]:
            raise InvalidRow(f"chat marks inside one turn: {role}, turn {number}, holds several turns")
        text = markup.messages[0]["content"]
        if thought := markup.messages[0].get("thought"):
            message["thought"] = thought
    patterns = (TURN_TOKEN, CONTROL_TOKEN) if role == "assistant" else (TURN_TOKEN,)
    if role == "assistant":
        text, calls = split_calls(text)
        if calls:
            message["tool_calls"] = [*message.get("tool_calls", ()), *calls]
    mark = next(filter(None, (_control_mark(text, pattern) for pattern in patterns)), "")
    if mark:
        raise InvalidRow(f"chat marks inside one turn: {role}, turn {number}, holds {mark}")
    message["content"] = text


def _control_mark(text: str, pattern: re.Pattern[str]) -> str:
    """The first control token outside code and quotation marks; empty where there is none."""
    if not may_have_tokens(text) or not pattern.search(text):
        return ""
    prose = _CODE.sub("", text)
    marks = (match for match in pattern.finditer(prose) if prose[match.start() - 1 : match.start()] not in (*_QUOTES,))
    return next((match[0] for match in marks), "")


def _has_hashes(text: str) -> bool:
    """Whether a question and an answer, or a human and an assistant, stand under headings of three signs."""
    marks = list(HASH_MARK.finditer(text)) if "##" in text else []
    if are_headings(text, marks):
        return False
    names = [mark[1].lower() for mark in marks]
    roles = [role_of_mark(name) for name in names]
    if any(name in ROLES or name in ("instruction", "response") for name in names):
        return True
    return "user" in roles and "assistant" in roles[roles.index("user") :]


def _has_words(text: str) -> bool:
    for begins, preamble in WORD_STYLES:
        marks = list(begins.finditer(text))
        roles = [role_of_mark(mark[1]) for mark in marks]
        if not marks or "user" not in roles or "assistant" not in roles[roles.index("user") :]:
            continue
        begins_there = not text[: marks[0].start()].strip() and roles[0] in ("user", "system", "context")
        if begins_there or (preamble and _alternate(roles)):
            return True
    return bool(re.match(r"\s*(?:Human|Assistant):", text))


def _alternate(roles: Sequence[str | None]) -> bool:
    """Whether questions and answers take turns, after at most one system prompt."""
    spoken = list(roles[1:] if roles[:1] == ["system"] else roles)
    return spoken[:2] == ["user", "assistant"] and all(
        role == ("user", "assistant")[place % 2] for place, role in enumerate(spoken)
    )


def doubtful_mark(text: str) -> str:
    """Why a mark of a thought inside a marked-up text may be a word; empty where none may be."""
    try:
        _take_apart_or_raise(text)
    except InvalidRow as fault:
        return str(fault) if str(fault).startswith("mark or word") else ""
    return ""


def _take_apart(text: str) -> _Markup | None:
    try:
        return _take_apart_or_raise(text)
    except InvalidRow:
        return None


def _take_apart_or_raise(text: str) -> _Markup | None:
    if _is_packed(text):
        return None
    parsers: tuple[Callable[[str], _Markup | None], ...] = (
        _parse_harmony, _parse_mistral, _parse_control, _parse_tags, _parse_hashes, _parse_words,
    )  # fmt: skip
    for parse in parsers:
        markup = parse(text)
        if markup and markup.messages:
            return None if any(_has_marks(message) for message in markup.messages) else markup
        if markup is None and parse is _parse_control and TURN_TOKEN.search(text):
            return None  # words inside a text with control tokens are words
    return None


def _is_packed(text: str) -> bool:
    """Whether a text holds several conversations one after another."""
    text = strip_end_marks(strip_begin_marks(text))
    return may_have_tokens(text) and _PACKED.search(text) is not None


def _has_marks(message: Message) -> bool:
    texts = (message["content"], message.get("thought", ""))
    return any(_control_mark(text, pattern) for text in texts for pattern in (TURN_TOKEN, CONTROL_TOKEN))


def _parse_harmony(text: str) -> _Markup | None:
    """The channels of one answer become one turn: its thought, its calls and its reply."""
    marks = list(_HARMONY.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return None
    messages: list[Message] = []
    bounds = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, bounds, strict=True):
        name, channel = (mark[1].split() or [""])[0], (mark[2] or "").strip()
        role = ROLES.get(name.lower(), "tool" if "." in name else None)
        if role in (None, "call"):
            return None
        body = _HARMONY_END.sub("", text[mark.end() : end]).strip()
        if role != "assistant":
            messages.append({"role": str(role), "content": body})
            continue
        last = messages[-1] if messages else None
        if last is None or last["role"] != "assistant" or last["content"]:
            last = {"role": "assistant", "content": ""}
            messages.append(last)
        address = _ADDRESS.search(f"{mark[1]} {channel}")
        if address and address[1] != "assistant":
            last["tool_calls"] = [*last.get("tool_calls", ()), parse_call(address[1], body)]
        elif channel.partition(" ")[0] in ("", "final"):
            last["content"] = body
        else:
            last["thought"] = "\n\n".join(filter(None, (last.get("thought", ""), body)))
    return _Markup(messages, header=text.rstrip().endswith("<|start|>assistant"))


def _parse_control(text: str) -> _Markup | None:
    """Turns that control tokens begin; words before the first are the system prompt."""
    for begins in CONTROL_STYLES:
        marks = list(begins.finditer(text))
        roles = [role_of_mark(mark[1]) for mark in marks]
        if marks and not any(role in (None, "call", "context") for role in roles):
            return _turns_between(text, marks, [str(role) for role in roles], control=True)
    return None


def _parse_tags(text: str) -> _Markup | None:
    """``<user>…</user><assistant>…</assistant>`` and nothing beside."""
    if not _TAGGED.match(text.strip()) or _TAGGED.sub("", text.strip()).strip():
        return None
    turns = [_message(str(role_of_mark(role)), body) for role, body in _TAGGED.findall(text.strip())]
    return _Markup(turns)


def _parse_hashes(text: str) -> _Markup | None:
    """``### Instruction:``, ``### Response:`` and their kin. A text has one name for each side; others are headings."""
    if are_headings(text):
        return None
    labels: dict[str, str] = {}
    marks: list[re.Match[str]] = []
    for mark in HASH_MARK.finditer(text):
        role = str(role_of_mark(mark[1]))
        last = str(role_of_mark(marks[-1][1])) if marks else ""
        if role == "context" and last != "user":
            continue
        if labels.setdefault(role, mark[1].lower()) == mark[1].lower():
            marks.append(mark)
    roles = [str(role_of_mark(mark[1])) for mark in marks]
    if not _alternate([role for role in roles if role != "context"]):
        return None
    return _turns_between(text, marks, roles, control=False)


def _parse_words(text: str) -> _Markup | None:
    if _ROUNDS.match(text):
        return None
    for begins, preamble in WORD_STYLES:
        marks = list(begins.finditer(text))
        apart = [mark for mark in marks if not text[: mark.start()].strip() or text[: mark.start()].endswith("\n\n")]
        fits = [
            group
            for group in ([marks, apart] if len(apart) < len(marks) else [marks])
            if _alternate([role for role in (role_of_mark(mark[1]) for mark in group) if role != "context"])
            and role_of_mark(group[-1][1]) != "context"
            and (preamble or not text[: group[0].start()].strip())
        ]
        if len(fits) == 2:
            return None  # turns a blank line apart, and names inside them: either may be meant
        if fits:
            markup = _turns_between(text, fits[0], [str(role_of_mark(mark[1])) for mark in fits[0]], control=False)
            return markup if preamble or markup is None else replace(markup, header=False)  # a prompt may end in "A:"
    return None


def _turns_between(text: str, marks: Sequence[re.Match[str]], roles: Sequence[str], *, control: bool) -> _Markup | None:
    """Each mark begins a turn that ends at the next."""
    preamble = BEGIN_MARKS.sub("", text[: marks[0].start()]).strip()
    preamble = "" if _STOCK_PREAMBLE.match(preamble) else strip_end_marks(preamble)
    messages: list[Message] = [{"role": "system", "content": preamble}] if preamble else []
    bounds = [mark.start() for mark in marks[1:]] + [len(text)]
    colons = control and all(
        re.match(r"[ \t]*:(?:\s|\Z)", text[mark.end() : end]) for mark, end in zip(marks, bounds, strict=True)
    )
    about = ""
    for place, (role, mark, end) in enumerate(zip(roles, marks, bounds, strict=True)):
        body = strip_end_marks(text[mark.end() : end]).strip()
        body = body.removeprefix(":").strip() if colons else body
        if role == "context" and not (messages and messages[-1]["role"] == "user"):
            about = f"{about}{body}\n\n" if body else about  # of the question that follows
        elif role == "context":
            messages[-1]["content"] += f"\n\n{body}" if body else ""
        elif role == "user":
            messages.append(_message(role, f"{about}{body}"))
            about = ""
        elif role == "assistant" and roles[place + 1 : place + 2] == ["tool"] and (call := _GLM_CALL.match(body)):
            messages.append({"role": role, "content": "", "tool_calls": [parse_call(call[1], call[2])]})
        else:
            messages.append(_message(role, body))
    last = messages[-1]
    header = last["role"] == "assistant" and not (last["content"] or last.get("thought") or last.get("tool_calls"))
    messages = messages[:-1] if header else messages
    empty = [turn for turn in messages if turn["role"] == "user" and not turn["content"]]
    messages = [turn for turn in messages if turn["role"] != "system" or turn["content"]]
    if empty and messages[-1] is empty[-1]:  # an answer that ends with the mark of the next question
        messages.pop()
    return _Markup(messages, header, control)


def _parse_mistral(text: str) -> _Markup | None:
    """``[INST]`` and its kin: what stands between a mark and the one that closes it, and answers after them."""
    marks = list(_INSTRUCT.finditer(text))
    if not any(mark[0] == "[/INST]" for mark in marks):
        return None
    messages: list[Message] = []
    before = BEGIN_MARKS.sub("", text[: marks[0].start()]).strip()
    if before:
        messages.append({"role": "system", "content": before})
    bounds = [mark.start() for mark in marks[1:]] + [len(text)]
    opened = ""
    for mark, end in zip(marks, bounds, strict=True):
        body = text[mark.end() : end].strip()
        if (opened if mark[1] else "") != (mark[2] if mark[1] else opened):
            return None  # closes another mark than is open, or opens one inside another
        opened = "" if mark[1] else mark[2]
        if mark[1]:
            if answer := strip_end_marks(body).strip():
                if mark[2] not in ("INST", "TOOL_RESULTS"):
                    return None
                messages.append(_message("assistant", answer))
        elif mark[2] == "SYSTEM_PROMPT":
            messages.append({"role": "system", "content": body})
        elif mark[2] == "TOOL_RESULTS":
            messages.append({"role": "tool", "content": body})
        elif mark[2] == "INST":
            if system := _SYS.match(body):
                messages.append({"role": "system", "content": system[1].strip()})
            messages.append({"role": "user", "content": body[system.end() if system else 0 :].strip()})
        elif calls_from_json(body) or body not in ("", "[]"):
            return None  # definitions of tools, which have no place among the turns
    if opened:
        return None
    return _Markup(
        [m for m in messages if m["role"] != "system" or m["content"]], header=messages[-1]["role"] == "user"
    )


def _message(role: str, text: str) -> Message:
    message: Message = {"role": role, "content": text.strip()}
    if role == "assistant":
        thought, reply = split_answer(message["content"], "an answer")
        message["content"], calls = split_calls(reply)
        if thought:
            message["thought"] = thought
        if calls:
            message["tool_calls"] = calls
    return message
