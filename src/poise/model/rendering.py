"""A conversation as the text that a model sees, by its own chat template, and checked: every turn's words are in it.

A template may refuse a system role, take content as parts only, or know no tools. What it cannot take is tried in the
next form; a text that lacks a turn's words is never used, since it would make different conversations equal. Thinking
is off unless it is asked for: known switches are set, a thought block that the template opens is closed, and of
templates with channels the final one is taken.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

from poise.data.messages import Message
from poise.data.thought_marks import begins_with_mark
from poise.data.thoughts import AnswerSections, split_thought
from poise.errors import UnsuitableModel
from poise.model.generation_header import AnswerHeader, strip_closed_thought
from poise.model.template_check import check_structure
from poise.model.template_clock import DATE_STRING, check_repeats, pin_clock
from poise.model.tool_turns import fold_tools, with_arguments_as_text

__all__ = [
    "Effort",
    "Thinking",
    "fold_system",
    "has_thinking_switch",
    "least_effort",
    "opened_headers",
    "render_answer_prompt",
    "render_prompt",
]

Effort = Literal["minimal", "low", "medium", "high", "xhigh"]
Thinking = bool | Effort
"""Whether the model is to think before it replies, or how much where its template has levels (which is on)."""

TEMPLATE_OPTIONS: dict[str, Any] = {"date_string": DATE_STRING}
THINKING_OFF: dict[str, Any] = {"enable_thinking": False, "thinking": False}
EFFORTS_OFF = ("none", "minimal", "low")
UNKNOWN_EFFORT = "Q00003zX"
THINKING_ON: dict[str, Any] = {"enable_thinking": True, "thinking": True}
THINKING_KEY = re.compile(r"""\.thinking\b|['"]thinking['"]\s+in\s|\[['"]thinking['"]\]""")
HARMONY_HEADER, FINAL_CHANNEL = "<|start|>assistant", "<|channel|>final<|message|>"

Content = Callable[[str], Any]


@dataclass(slots=True)
class TemplateFacts:
    """What has been found out about a tokenizer's template.

    Attributes:
        template: The template.
        headers: Headers of answers, by whether and how much the model is told to think.
        structures: What it does to conversations, by how they are rendered and by their structure.
        effort: The ``reasoning_effort`` that stands for no thinking, as ``least_effort`` gives it.
    """

    template: Any
    effort: str | None = None
    headers: dict[Thinking, AnswerHeader] = field(default_factory=dict)
    structures: dict[str, dict[str, str]] = field(default_factory=dict)


_FACTS: WeakKeyDictionary[Any, TemplateFacts] = WeakKeyDictionary()


def render_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    header: bool = True,
    thinking: Thinking = False,
) -> str:
    """The text of a conversation, and after it the header under which the model answers.

    Args:
        tokenizer: Its chat template; without one, turns are named in plain words.
        messages: At least one.
        tools: Definitions of the tools that may be called, where the template can show them; else it shows none.
        header: Whether the text ends with the header of an answer.
        thinking: Whether the answer begins with a thought.

    Raises:
        UnsuitableModel: the template fails on the conversation, or leaves words of it out; names its complaint. Or it
            has no switch for thinking.
    """
    text = _render(tokenizer, messages, tools, header=header, thinking=thinking)
    if thinking and header and text == _render(tokenizer, messages, tools, header=header, thinking=False):
        raise UnsuitableModel(
            "The model's chat template has no switch for thinking; leave `thinking` out: what the model thinks by "
            "itself is told apart from its reply anyway."
        )
    return text


def has_thinking_switch(tokenizer: Any) -> bool:
    """Whether the template lets a model think or not, as it is told."""
    question: list[Message] = [{"role": "user", "content": "?"}]
    try:
        on, off = (_render(tokenizer, question, (), header=True, thinking=thinking) for thinking in (True, False))
    except UnsuitableModel:
        return False
    return on != off


def _render(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    *,
    header: bool,
    thinking: Thinking,
) -> str:
    if not tokenizer.chat_template:
        return _render_plain(tokenizer, messages, header=header)
    options = _options(tokenizer, thinking, tools)
    known = _facts(tokenizer).structures
    complaints: list[str] = []
    cause: Exception | None = None
    for form in _forms(messages):
        for content in (_as_text, _as_parts):
            try:
                text = _apply(tokenizer, form, content, options, header=header)
            except Exception as error:  # templates raise whatever their author chose
                cause = cause or error
                complaints.append(str(error))
                continue
            missing = _missing(form, text) or (content is _as_parts and _printed_parts(form, text))
            if not missing:
                way = json.dumps([options, content is _as_parts, header], sort_keys=True, default=str)
                render = functools.partial(_apply, tokenizer, content=content, options=options, header=header)
                missing = check_structure(form, render, known.setdefault(way, {}))
                missing = missing or check_repeats(str(tokenizer.chat_template), functools.partial(render, form))
            if missing:
                complaints.append(missing)
                continue
            return _with_header(tokenizer, text, thinking) if header else text
    if tools:  # a template may fail on definitions that it does not expect
        return _render(tokenizer, messages, (), header=header, thinking=thinking)
    raise UnsuitableModel(f"The model's chat template cannot render this conversation: {complaints[0]}.") from cause


def opened_headers(tokenizer: Any) -> dict[str, str]:
    """Ends of prompts that leave a thought open with words in it, each with the mark that closes it."""
    if not tokenizer.chat_template:
        return {}
    ends = {}
    for thinking in (True, False):
        header = answer_header(tokenizer, thinking)
        if opened := header.opened(header.live):
            ends[header.live[opened.start :]] = opened.closing
    return ends


def answer_header(tokenizer: Any, thinking: Thinking) -> AnswerHeader:
    """What the template puts before an answer; found out once."""
    headers = _facts(tokenizer).headers
    if thinking not in headers:
        options = _options(tokenizer, thinking, ())

        def render(messages: Sequence[Message], header: bool) -> str:
            try:
                text = _apply(tokenizer, messages, _as_text, options, header=header)
            except Exception:  # it may take parts alone
                text = ""
            missing = _missing(messages, text)
            return _apply(tokenizer, messages, _as_parts, options, header=header) if missing else text

        headers[thinking] = AnswerHeader.of(render)
    return headers[thinking]


def _facts(tokenizer: Any) -> TemplateFacts:
    facts = _FACTS.get(tokenizer)
    if facts is None or facts.template != tokenizer.chat_template:
        facts = _FACTS[tokenizer] = TemplateFacts(tokenizer.chat_template)
    return facts


def _options(tokenizer: Any, thinking: Thinking, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    options = TEMPLATE_OPTIONS | (THINKING_ON if thinking else THINKING_OFF)
    if effort := thinking if isinstance(thinking, str) else "" if thinking else least_effort(tokenizer):
        options["reasoning_effort"] = effort
    return options | ({"tools": [dict(tool) for tool in tools]} if tools else {})


def least_effort(tokenizer: Any) -> str:
    """The ``reasoning_effort`` that comes nearest to no thinking; empty where the template takes none of them.

    ``none`` and ``minimal`` are taken where the template knows them: it does with them what it does not do with a word
    that means nothing. ``low`` is taken where it renders.
    """
    facts = _facts(tokenizer)
    if facts.effort is None:
        facts.effort = EFFORTS_OFF[-1]
        if "reasoning_effort" in str(tokenizer.chat_template):
            texts = {effort: _with_effort(tokenizer, effort) for effort in (*EFFORTS_OFF, UNKNOWN_EFFORT)}
            known = [effort for effort in EFFORTS_OFF[:-1] if texts[effort] not in (None, texts[UNKNOWN_EFFORT])]
            low = [EFFORTS_OFF[-1]] if texts[EFFORTS_OFF[-1]] is not None else []
            facts.effort = next(iter([*known, *low]), "")
    return facts.effort


def _with_effort(tokenizer: Any, effort: str) -> str | None:
    """A question as it is rendered at some effort, whose word is left out; ``None`` where the template refuses it."""
    question: list[Message] = [{"role": "user", "content": "?"}]
    for content in (_as_text, _as_parts):
        try:
            options = TEMPLATE_OPTIONS | THINKING_OFF | {"reasoning_effort": effort}
            return _apply(tokenizer, question, content, options, header=True).replace(effort, "")
        except Exception:  # templates raise whatever their author chose
            continue
    return None


def render_answer_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    answer: str,
    sections: AnswerSections,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: Thinking = False,
) -> tuple[str, str]:
    """What stands before an answer that is given, and the prompt that a model would have written it after.

    The two differ where the template opens a thought and the answer brings the opening mark itself. An answer with a
    thought gets the prompt of a model that thinks, where there is a switch; one without gets that of one that does not.

    Raises:
        UnsuitableModel: as ``render_prompt``.
    """
    if thinking:
        render_prompt(tokenizer, messages, tools=tools, thinking=thinking)  # refuses where there is no switch
    live = _render(tokenizer, messages, tools, header=True, thinking=(thinking or True) if sections.thinks else False)
    if not sections.marked or not tokenizer.chat_template:
        return live, live
    header = answer_header(tokenizer, (thinking or True) if sections.thinks else False)
    return _open_prompt(live, answer, header), live


def _open_prompt(prompt: str, answer: str, header: AnswerHeader) -> str:
    """A prompt without the thought block at its end, or the final channel, for an answer that brings its own."""
    head = answer.lstrip()
    if head.startswith(("<|channel|>", "<|start|>")):
        prompt = prompt.removesuffix(FINAL_CHANNEL)
        return prompt.removesuffix(HARMONY_HEADER) if head.startswith("<|start|>") else prompt
    if prompt.endswith(HARMONY_HEADER):
        return prompt + FINAL_CHANNEL  # whose marks are not the template's
    opened = header.opened(prompt)
    if opened and not begins_with_mark(answer):
        return prompt  # the answer goes on in the thought
    return prompt[: opened.start] if opened else strip_closed_thought(prompt)


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with its system text at the head of the first user turn."""
    system, *other_messages = messages
    first = other_messages.pop(0)["content"] if other_messages and other_messages[0]["role"] == "user" else ""
    return [{"role": "user", "content": f"{system['content']}\n\n{first}".strip()}, *other_messages]


def _forms(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The conversation as it is, and for templates that cannot take that, in other words.

    With arguments as text; without tool turns; with thoughts out of the content, where templates drop them; without a
    system turn. Each is made when it is asked for: most templates take the first.
    """
    yield messages
    forms: list[Sequence[Message]] = [messages]
    if any(m["role"] == "tool" or m.get("tool_calls") for m in messages):
        for retold in (with_arguments_as_text(messages), fold_tools(messages)):
            forms.append(retold)
            yield retold
    if any(m["role"] == "assistant" and split_thought(m["content"])[0] for m in messages):
        for form in tuple(forms):
            forms.append([_with_thought_apart(message) for message in form])
            yield forms[-1]
    if messages[0]["role"] == "system":
        yield from map(fold_system, forms)


def _with_thought_apart(message: Message) -> Message:
    """An assistant's turn whose content holds a thought, with the thought under its own key."""
    thought, reply = split_thought(message["content"]) if message["role"] == "assistant" else ("", "")
    return {"thought": thought, **message, "content": reply} if thought else message


def _apply(
    tokenizer: Any, messages: Sequence[Message], content: Content, options: Mapping[str, Any], *, header: bool
) -> str:
    template = str(tokenizer.chat_template)
    pinned = pin_clock(tokenizer.get_chat_template(tools=options.get("tools")))
    thought_key = "thinking" if "reasoning_content" not in template and THINKING_KEY.search(template) else ""
    return str(
        tokenizer.apply_chat_template(
            [_as_template_message(message, content, thought_key or "reasoning_content") for message in messages],
            tokenize=False,
            add_generation_prompt=header,
            chat_template=pinned,
            **options,
        )
    )


def _as_template_message(message: Message, content: Content, thought_key: str) -> dict[str, Any]:
    """A message under the names that chat templates know; an earlier turn's thought is left to the template."""
    known = {"thought": thought_key}
    renamed: dict[str, Any] = {known.get(key, key): value for key, value in message.items() if key != "learn"}
    return renamed | {"content": content(message["content"])}


def _as_text(text: str) -> Any:
    return text


def _as_parts(text: str) -> Any:
    return [{"type": "text", "text": text}]


def _missing(messages: Sequence[Message], text: str) -> str:
    """What of the conversation is not in the rendered text; empty where all of it is."""
    squeezed: str | None = None
    at = 0  # turns stand in order, so that each is looked for after the one before
    for number, message in enumerate(messages, start=1):
        content = message["content"].strip()
        place = text.find(content, at)
        at = place + len(content) if place >= 0 else at
        if place < 0 and content not in text:
            squeezed = " ".join(text.split()) if squeezed is None else squeezed
            escaped = json.dumps(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1]
            in_json = message["role"] == "tool" and any(form in text for form in escaped)
            if not in_json and " ".join(content.split()) not in squeezed:
                return f"it leaves out the words of turn {number} ({message['role']})"
        for call in message.get("tool_calls", ()):
            if call["function"]["name"] not in text:
                return f"it leaves out the tool call of turn {number}"
    return ""


def _printed_parts(messages: Sequence[Message], text: str) -> str:
    """Whether a template that cannot take parts has printed them as they are."""
    forms = [form for m in messages for form in (str(_as_parts(m["content"])), json.dumps(_as_parts(m["content"])))]
    return "it prints content parts as they are" if any(form in text for form in forms) else ""


def _with_header(tokenizer: Any, text: str, thinking: Thinking) -> str:
    """The text with an opened thought closed, or with the channel of the final answer, unless the model is to think."""
    header = answer_header(tokenizer, thinking)
    header.check()
    if thinking:
        return text
    missing = (header.shown or "").removeprefix(header.live)
    if text.endswith(HARMONY_HEADER) and missing.startswith(("<|channel|>", "<|message|>")):
        return text + FINAL_CHANNEL
    return header.closed(text)


def _render_plain(tokenizer: Any, messages: Sequence[Message], *, header: bool) -> str:
    """For models without a template: named turns, as base models have seen them in their training text."""
    bos = tokenizer.bos_token if tokenizer.bos_token_id in tokenizer("")["input_ids"] else ""
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    turns = "".join(f"{names.get(m['role'], m['role'])}: {m['content']}\n\n" for m in fold_tools(messages))
    return f"{bos}{turns}{'Assistant:' if header else ''}"
