"""From messages to token ids with a response span, in one tokenisation.

Prompts are rendered by the model's own chat template. Where the template refuses a system role, the
system text is folded into the first user turn; where there is no template, a plain one is used.
Spans come from character offsets: tokenising prompt and answer separately moves the boundary wherever
a merge crosses it.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from poise.arguments import check_choice, check_type
from poise.data.messages import Message
from poise.data.thought_marks import MARKS
from poise.data.thoughts import locate_thought
from poise.errors import InvalidArgument, UnsuitableModel
from poise.model.generation_header import QUESTION, REPLY
from poise.model.parts import Part
from poise.model.rendering import Thinking, render_answer_prompt, render_prompt

__all__ = [
    "Encoded",
    "Message",
    "Part",
    "RenderedAnswer",
    "ask",
    "encode",
    "end_of_answer_ids",
    "place_answer",
    "render_answer",
    "render_checked",
    "render_prompt",
    "stop_ids",
    "template_text",
]

TEMPLATE_ROLES = ("system", "developer", "user", "assistant", "tool")
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "</s>")


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids with the span of the response.

    ``ids[:start]`` is the prompt with its generation header, ``ids[start:end]`` the response. A bare prompt has
    ``start == end == len(ids)``. ``ids[last_prompt]`` is the last prompt token: the one before the response, or before
    what the answer has in front of the part that is read.
    """

    ids: tuple[int, ...]
    start: int
    end: int
    prompt_end: int | None = None

    @property
    def last_prompt(self) -> int:
        """Place of the last prompt token."""
        return (self.start if self.prompt_end is None else self.prompt_end) - 1


def ask(question: str, system: str | None = None) -> list[Message]:
    """A one-question conversation, with a system prompt or without."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": question}]


def check_messages(messages: Sequence[Message], template: str) -> None:
    """At least one turn, each with a known role and a text.

    Args:
        messages: The turns.
        template: Text of the chat template; a role that it names between quotes is known too.

    Raises:
        InvalidArgument: says which turn is not one.
    """
    check_type("messages", messages, (list, tuple), "a list of messages, such as ask('Who are you?')")
    if not messages:
        raise InvalidArgument("The conversation has no messages; give at least one, such as ask('Who are you?').")
    for place, message in enumerate(messages):
        if not (isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))):
            raise InvalidArgument(f"Message {place} of the conversation is not a mapping with a role and a content.")
        role = message["role"]
        if role not in TEMPLATE_ROLES and not re.search(rf"(['\"]){re.escape(role)}\1", template):
            close = difflib.get_close_matches(role, TEMPLATE_ROLES, n=1)
            raise InvalidArgument(
                f"Message {place} of the conversation has the role {role!r}, which the model's chat template does not "
                f"name; use {', '.join(TEMPLATE_ROLES[:-1])} or {TEMPLATE_ROLES[-1]}"
                f"{f'; did you mean {close[0]}?' if close else '.'}"
            )


def encode(
    tokenizer: Any,
    messages: Sequence[Message],
    answer: str | None = None,
    *,
    part: Part = "reply",
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: Thinking = False,
) -> Encoded:
    """Tokenise a conversation and, after it, the assistant's answer, as one text.

    A token belongs to the response when it covers at least one character of the part that is read; marks around a
    thought are in neither thought nor reply, as in an answer that is generated. Where that part ends the text, the
    response runs to the last token: no offset is asked, since some tokenizers leave spaces out of theirs.

    Args:
        tokenizer: A fast tokenizer (it must give character offsets).
        messages: Turns up to and including the last user turn.
        answer: The response to append; ``None`` for a prompt to be answered.
        part: Which part of an answer with a thought in it the response is: the reply, the thought, or both with the
            marks that the model writes itself. Of several thoughts the response runs from the first to the last.
        tools: Definitions of the tools that may be called, where the template can show them.
        thinking: Whether the model is to think first, or how much; off by default. A given answer decides for itself:
            with a thought it stands where a model that thinks would have written it.

    Raises:
        InvalidArgument: no messages, or one without a known role or without content; or a thought stands amid the
            reply, and one of the two is to be read.
        UnsuitableModel: the template fails on the conversation, leaves words of it out, or has no switch for thinking.
    """
    rendered = render_checked(tokenizer, messages, answer, part=part, tools=tools, thinking=thinking)
    out = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    return place_answer(rendered, out["input_ids"], out["offset_mapping"])


def render_checked(
    tokenizer: Any,
    messages: Sequence[Message],
    answer: str | None,
    *,
    part: Part = "reply",
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: Thinking = False,
) -> RenderedAnswer:
    """The text that ``encode`` tokenises, after its checks; of a bare prompt the response is empty."""
    check_messages(messages, template_text(tokenizer))
    check_type("answer", answer, (str, type(None)), "the text of the answer, or None for a prompt")
    check_choice("part", part, get_args(Part))
    if answer is not None:
        return render_answer(tokenizer, messages, answer, part=part, tools=tools, thinking=thinking)
    prompt = render_prompt(tokenizer, messages, tools=tools, thinking=thinking)
    return RenderedAnswer(prompt, len(prompt), len(prompt), len(prompt), bare=True)


def place_answer(rendered: RenderedAnswer, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Encoded:
    """Where the answer stands among the tokens of its text, by the characters that each of them covers."""
    if rendered.bare:
        return Encoded(tuple(ids), len(ids), len(ids))
    places = (rendered.start, rendered.prompt_end)
    start, prompt_end = (bisect_right(offsets, place, key=lambda span: span[1]) for place in places)
    ended = rendered.end == len(rendered.text)
    end = len(ids) if ended else bisect_left(offsets, rendered.end, key=lambda span: span[0])
    start = min(start, end)
    return Encoded(tuple(ids), start, end, prompt_end if prompt_end < start else None)


@dataclass(frozen=True, slots=True)
class RenderedAnswer:
    """A conversation with its answer as one text.

    Attributes:
        text: What is tokenised.
        start: Character at which the part that is read begins.
        end: Character after it.
        prompt_end: Character at which the prompt ends that a model would have written the answer after.
        bare: Whether the text is a prompt that is still to be answered.
    """

    text: str
    start: int
    end: int
    prompt_end: int
    bare: bool = False


def render_answer(
    tokenizer: Any,
    messages: Sequence[Message],
    answer: str,
    *,
    part: Part = "reply",
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: Thinking = False,
) -> RenderedAnswer:
    """The text that ``encode`` tokenises, and where the response stands in it; for the arguments see there."""
    sections = locate_thought(answer)
    prompt, live_prompt = render_answer_prompt(tokenizer, messages, answer, sections, tools=tools, thinking=thinking)
    text = prompt + answer
    prompt_end = max(len(prompt), len(live_prompt) if text.startswith(live_prompt) else 0)
    spans = {
        "reply": sections.replies or ((len(answer), len(answer)),),
        "thought": [span for span in sections.thoughts if span[0] < span[1]] or ((0, 0),),
        "both": ((prompt_end - len(prompt), len(answer)),),
    }[part]
    others = sections.thoughts if part == "reply" else sections.replies if part == "thought" else ()
    if any(spans[0][1] <= start < end <= spans[-1][0] for start, end in others):
        raise InvalidArgument(
            f"A thought stands amid the reply of the answer, so that no one span is its {part}; give the reply or the "
            "thought alone, as poise.data splits them, or read `part` both."
        )
    return RenderedAnswer(text, len(prompt) + spans[0][0], len(prompt) + spans[-1][1], prompt_end)


def end_of_answer_ids(tokenizer: Any, stops: Collection[int]) -> tuple[int, ...]:
    """Token ids that the template puts after an answer, up to the one that ends it, which is among ``stops``."""
    ids = tokenizer(_after_answer(tokenizer), add_special_tokens=False)["input_ids"]
    places = [position for position, token in enumerate(ids) if token in stops]
    if places:
        return tuple(ids[: places[0] + 1])
    return (tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else ()


def _after_answer(tokenizer: Any) -> str:
    """What the template puts after an answer that ends the conversation."""
    if not tokenizer.chat_template:
        return ""
    messages: list[Message] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": REPLY}]
    return render_prompt(tokenizer, messages, header=False).rpartition(REPLY)[2]


def template_text(tokenizer: Any) -> str:
    """What identifies the template, for the fingerprint."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else repr(sorted(template.items())) if template else "plain"


def stop_ids(lm: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the model's, the tokenizer's and the template's end of turn.

    That of the template is the first special token which it puts after an answer, the mark of a thought or reply aside.
    """
    configured = getattr(lm.generation_config, "eos_token_id", None)
    ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}
    template, vocabulary = template_text(tokenizer), tokenizer.get_vocab()
    ids |= {vocabulary.get(t) for t in END_OF_TURN if t in template}
    try:
        ending = tokenizer(_after_answer(tokenizer), add_special_tokens=False)["input_ids"]
    except UnsuitableModel:  # a template that cannot render an answer is refused where it is used
        ending = []
    added = {token: str(one) for token, one in tokenizer.added_tokens_decoder.items()}
    ends = [token for token in ending if token in added and added[token].strip().lower() not in MARKS]
    return frozenset(i for i in (*ids, *ends[:1]) if i is not None)
