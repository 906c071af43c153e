"""Chats that a file keeps as one marked-up text: ChatML, Llama's headers, ``### Human:`` and their kin, as messages.

A text that carries such marks is a conversation and not an answer: reading it whole would score the question, the
marks and the answer as one.
"""

from __future__ import annotations

import re

from poise.data.messages import Message
from poise.data.turn_parsing import ROLES, parse_call, split_answer

__all__ = ["has_markup", "parse_markup"]

_ROLE_NAMES = r"(?:human|user|assistant|system|prompter|bot|gpt)"
_END_MARKS = re.compile(
    r"(?:\s*(?:<\|im_end\|>|<\|eot_id\|>|<\|end_of_text\|>|<end_of_turn>|<eos>|</s>|<\|endoftext\|>|<\|end\|>))*\s*\Z"
)
_PATTERNS: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = (
    # (where a turn begins, what ends it)
    (re.compile(r"<\|im_start\|>\s*(\w+)[ \t]*\n?"), _END_MARKS),
    (re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>\s*"), _END_MARKS),
    (re.compile(r"<start_of_turn>\s*(\w+)[ \t]*\n?"), _END_MARKS),
    (re.compile(r"<\|(user|assistant|system|prompter)\|>\s*"), _END_MARKS),
    (re.compile(rf"#{{2,3}}\s*({_ROLE_NAMES})\s*:\s*", re.I), re.compile(r"\s*(?:</s>|<\|endoftext\|>)?\s*\Z")),
    (re.compile(r"(?:\A|\n\n)\s*(Human|User|Assistant|System)\s*:[ \t]*"), re.compile(r"\s*\Z")),
    (re.compile(r"(?:\A|\n)\s*(Human|User|Assistant|System)\s*:[ \t]*"), re.compile(r"\s*\Z")),
    (re.compile(rf"(?:\A|\n)\s*({_ROLE_NAMES.upper()})\s*:[ \t]*"), re.compile(r"\s*(?:</s>)?\s*\Z")),
)
_INSTRUCT = re.compile(
    r"\[INST\](?:\s*<<SYS>>(.*?)<</SYS>>)?(.*?)\[/INST\](.*?)(?=(?:</s>\s*)?(?:<s>\s*)?\[INST\]|(?:</s>)?\s*\Z)", re.S
)
_ALPACA = re.compile(
    r"#{2,3}\s*Instruction:\s*(.*?)(?:\s*#{2,3}\s*Input:\s*(.*?))?"
    r"\s*#{2,3}\s*(?:Response|Output|Answer):[ \t]*\n?(.*?)(?:</s>|<\|endoftext\|>)?\s*\Z",
    re.S,
)
_HARMONY = re.compile(r"<\|start\|>([^<]*)(?:<\|channel\|>([^<]*))?(?:<\|constrain\|>[^<]*)?<\|message\|>")
_HARMONY_END = re.compile(r"<\|(?:end|return|call)\|>\s*(?:<\|start\|>\s*assistant\s*)?\Z")
_ADDRESS = re.compile(r"to=(?:functions\.)?([\w.-]+)")
_ANY = re.compile(
    rf"<\|im_start\|>|<\|start\|>\w+[^<]*<\||<\|start_header_id\|>|<start_of_turn>|<\|(?:user|assistant)\|>|\[/INST\]"
    rf"|^#{{2,3}}\s*(?:{_ROLE_NAMES}|Instruction|Response)\s*:|(?:\A|\n\n)\s*(?:Human|Assistant):"
    r"|<｜User｜>|<\|START_OF_TURN_TOKEN\|>|<\|start_of_role\|>|<\|header_start\|>|<\|im_user\|>|<\|prompter\|>|<\|turn>"
    r"|GPT4 (?:Correct )?User:|<extra_id_1>User",
    re.M | re.I,
)
_WORDS = re.compile(
    r"\A\s*<?(?:user|human|question|q)>?\s*:.*?\s<?(?:assistant|bot|gpt|ai|answer|a)>?\s*:", re.S | re.I
)


def has_markup(text: str) -> bool:
    """Whether a text carries the marks of a chat."""
    return bool(_ANY.search(text) or _WORDS.match(text))


def parse_markup(text: str) -> list[Message] | None:
    """The turns of a marked-up text; ``None`` where its marks cannot be taken apart for certain."""
    for parse in (_parse_harmony, _parse_instruct, _parse_alpaca, _parse_turns):
        if messages := parse(text):
            return messages
    return None


def _parse_harmony(text: str) -> list[Message] | None:
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
    return messages


def _parse_turns(text: str) -> list[Message] | None:
    for begins, ends in _PATTERNS:
        marks = list(begins.finditer(text))
        roles = [ROLES.get(mark[1].lower()) for mark in marks]
        if not any(role == "assistant" for role in roles) or any(role in (None, "call") for role in roles):
            continue
        preamble = re.sub(r"<s>|<bos>|<\|begin_of_text\|>", "", text[: marks[0].start()]).strip()
        messages: list[Message] = [{"role": "system", "content": preamble}] if preamble else []
        bounds = [mark.start() for mark in marks[1:]] + [len(text)]
        for role, mark, end in zip(roles, marks, bounds, strict=True):
            messages.append(_message(str(role), ends.sub("", text[mark.end() : end])))
        if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
            messages.pop()  # a generation header
        return messages
    return None


def _parse_instruct(text: str) -> list[Message] | None:
    messages: list[Message] = []
    for system, question, answer in _INSTRUCT.findall(text):
        if system.strip():
            messages.append({"role": "system", "content": system.strip()})
        messages.append(_message("user", question.strip()))
        if answer.strip():
            messages.append(_message("assistant", answer.strip()))
    return messages


def _parse_alpaca(text: str) -> list[Message] | None:
    match = _ALPACA.search(text)
    if match is None:
        return None
    instruction, context, answer = (part.strip() for part in match.groups(default=""))
    return [_message("user", f"{instruction}\n\n{context}" if context else instruction), _message("assistant", answer)]


def _message(role: str, text: str) -> Message:
    message: Message = {"role": role, "content": text.strip()}
    if role == "assistant":
        thought, message["content"] = split_answer(message["content"], "an answer")
        if thought:
            message["thought"] = thought
    return message
