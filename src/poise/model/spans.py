"""Conversations as forward passes: every answer of one in a single pass where the chat template allows it.

A template that only appends gives each answer the text before it that the model saw when it was asked, so that one
pass over the whole conversation reads all of its answers. Where a template rewrites earlier turns, and for what the
model's window cannot hold, an answer gets a pass of its own, its history cut at a turn's beginning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from poise.data import Message, Turn
from poise.data.thought_marks import REPLY_TAGS, THOUGHT_TAGS
from poise.errors import UnsuitableModel
from poise.model.batch_encoding import EncodingSteps, Stopped, encode_together, never
from poise.model.chat_template import Encoded, Part, ask, place_answer, render_checked, template_text
from poise.model.rendering import render_prompt

__all__ = [
    "AnswerSpan",
    "RowSpans",
    "TextModel",
    "UnreadAnswer",
    "answer_spans",
    "answer_spans_together",
    "fit",
    "fit_history",
    "learnt_end",
    "turn_begin",
]


class TextModel(Protocol):
    """What reading a text takes of a model: its tokenizer with the chat template, and how much it reads at once."""

    @property
    def tokenizer(self) -> Any:
        """A fast tokenizer."""

    @property
    def window(self) -> int:
        """Most tokens at once."""

    def encode(
        self,
        messages: Sequence[Message],
        answer: str | None = None,
        *,
        part: Part = "reply",
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Encoded:
        """Token ids of a conversation and the span of its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpan:
    """Where an answer stands. Answers of one pass share ``text.ids`` (the same object).

    Attributes:
        turn: Which of the conversation's answers, from 0.
        text: The pass, and in it the answer's span.
        history: The messages before the answer that are in the pass.
        answer: The answer as it stands there, with its thought where that is read.
        cut: Whether earlier turns were left out.
    """

    turn: int
    text: Encoded
    history: Sequence[Message]
    answer: str
    cut: bool = False


@dataclass(frozen=True, slots=True)
class UnreadAnswer:
    """An answer that cannot be read, and why."""

    turn: int
    reason: str


RowSpans = list[AnswerSpan | UnreadAnswer]


def answer_spans(model: TextModel, turns: Sequence[Turn], *, part: Part | None = None) -> RowSpans:
    """Every answer's place, in order.

    Args:
        model: Its template, tokenizer and window.
        turns: All answers of one conversation. One without anything before it answers an empty user turn.
        part: Which part of an answer its span is: the reply, the thought before it, or both; an answer without a
            thought has none to give. By default the part that the data were opened for.
    """
    return answer_spans_together(model, [turns], part=part)[0]


def answer_spans_together(
    model: TextModel, rows: Sequence[Sequence[Turn]], *, part: Part | None = None, stopped: Stopped = never
) -> list[RowSpans]:
    """The same of many conversations, tokenised in few calls; the spans are those of ``answer_spans``.

    Args:
        model: Its template, tokenizer and window.
        rows: All answers of each conversation.
        part: Which part of an answer its span is, as ``answer_spans`` takes it.
        stopped: Asked between two calls of the tokenizer; once it says yes, ``CancelledError`` is raised.
    """
    return encode_together(model.tokenizer, [_row_steps(model, turns, part) for turns in rows], stopped)


def _row_steps(model: TextModel, turns: Sequence[Turn], part: Part | None) -> EncodingSteps[RowSpans]:
    part = part or (turns[0].part if turns else "reply")
    try:
        shared = (yield from _shared(model, turns)) if part == "reply" else []
        within = [place for place in shared if place.text.end <= model.window]
        if within:  # causal: what comes after the last of them is not needed
            ids = within[-1].text.ids[: within[-1].text.end]
            within = [replace(place, text=Encoded(ids, place.text.start, place.text.end)) for place in within]
        row_spans: RowSpans = [*within]
        begin = 0
        for turn in turns[len(within) :]:
            span = yield from _alone(model, turn, part, begin)
            begin = turn_begin(turn, span) if isinstance(span, AnswerSpan) else begin
            row_spans.append(span)
        return row_spans
    except UnsuitableModel as error:
        return [
            UnreadAnswer(turn.number, f"refused by the chat template: {error.__cause__ or error}") for turn in turns
        ]


def fit(
    model: TextModel,
    history: Sequence[Message],
    answer: str | None,
    room: int,
    *,
    part: Part = "reply",
    tools: Sequence[Mapping[str, Any]] = (),
    begin: int = 0,
) -> tuple[Encoded, bool] | None:
    """A prompt with its answer, or to be answered, in at most ``room`` tokens, and whether earlier turns were cut.

    The system turn stays; what is left begins with a user's turn, as early as fits. ``begin`` is the message at which
    the search for it begins, which changes nothing but how long it takes.

    Returns:
        ``None`` where not even the last user turn fits.

    Raises:
        UnsuitableModel: the template refuses the conversation.
    """
    fitted = fit_history(model, history, answer, room, part=part, tools=tools, begin=begin)
    return (fitted[0], len(fitted[1]) < len(history)) if fitted else None


def fit_history(
    model: TextModel,
    history: Sequence[Message],
    answer: str | None,
    room: int,
    *,
    part: Part = "reply",
    tools: Sequence[Mapping[str, Any]] = (),
    begin: int = 0,
) -> tuple[Encoded, Sequence[Message]] | None:
    """The same as ``fit`` with the messages that are in the text, in place of whether some were cut."""
    steps = _fit_steps(model, history, answer, room, part=part, tools=tools, begin=begin)
    return encode_together(model.tokenizer, [steps])[0]


Fitted = tuple[Encoded, Sequence[Message]] | None


def _fit_steps(
    model: TextModel,
    history: Sequence[Message],
    answer: str | None,
    room: int,
    *,
    part: Part,
    tools: Sequence[Mapping[str, Any]],
    begin: int,
) -> EncodingSteps[Fitted]:
    """Where the text may begin is searched from ``begin`` in strides that double, and then between the last two.

    A conversation's next answer is cut a turn or two after the one before, which takes two or three tokenisations.
    """
    messages = list(history) or ask("")
    system = messages[:1] if messages[0]["role"] == "system" else []
    users = [i for i, m in enumerate(messages) if m["role"] == "user" and i > len(system)]
    begins = [len(system), *users]
    encoded: dict[int, Encoded] = {}

    def fits(which: int) -> EncodingSteps[bool]:
        if which not in encoded:
            messages_within = [*system, *messages[begins[which] :]]
            rendered = render_checked(model.tokenizer, messages_within, answer, part=part, tools=tools)
            encoded[which] = place_answer(rendered, *(yield rendered.text))
        return len(encoded[which].ids) <= room

    near = max(bisect_right(begins, begin) - 1, 0)
    too_long, fitting, stride = -1, len(begins), 1
    if (yield from fits(near)):
        fitting = near
        while fitting > too_long + 1:
            probe = max(fitting - stride, 0)
            if not (yield from fits(probe)):
                too_long = probe
                break
            fitting, stride = probe, 2 * stride
    else:
        too_long = near
        while too_long < fitting - 1:
            probe = min(too_long + stride, len(begins) - 1)
            if (yield from fits(probe)):
                fitting = probe
                break
            too_long, stride = probe, 2 * stride
    while fitting - too_long > 1:
        middle = (too_long + fitting) // 2
        if (yield from fits(middle)):
            fitting = middle
        else:
            too_long = middle
    if fitting == len(begins):
        return None
    return encoded[fitting], [*system, *messages[begins[fitting] :]]


def turn_begin(turn: Turn, span: AnswerSpan) -> int:
    """The message of a turn's history at which its text begins, after the system turn."""
    return len(turn.history) - len(span.history) + (1 if turn.history and turn.history[0]["role"] == "system" else 0)


def _alone(model: TextModel, turn: Turn, part: Part, begin: int) -> EncodingSteps[AnswerSpan | UnreadAnswer]:
    if part == "thought" and not turn.thought:
        return UnreadAnswer(turn.number, "no thought")
    answer = turn.answer if part == "reply" or not turn.thought else with_thought(model, turn)
    fitted = yield from _fit_steps(model, turn.history, answer, model.window, part=part, tools=turn.tools, begin=begin)
    if fitted is None:
        return UnreadAnswer(turn.number, f"longer than the model's window: {model.window} tokens")
    text, history = fitted
    if text.end <= text.start:
        return UnreadAnswer(turn.number, "empty turn: no tokens")
    cut = len(history) < len(turn.history)
    return AnswerSpan(turn=turn.number, text=text, history=history, answer=answer, cut=cut)


def with_thought(model: TextModel, turn: Turn) -> str:
    """A turn's thought and reply as one text, in the marks or channels that the model's template knows."""
    template = template_text(model.tokenizer)
    if "<|start|>" in template and "<|message|>" in template:  # the harmony format
        header = "<|channel|>{}<|message|>".format
        reply = f"<|start|>assistant{header('final')}{turn.answer}" if turn.answer else ""
        return f"{header('analysis')}{turn.thought}<|end|>{reply}"
    opening, closing = next((tags for tags in THOUGHT_TAGS if tags[0] in template), THOUGHT_TAGS[0])
    reply = next((mark for mark, _ in REPLY_TAGS if mark in template), "")
    return f"{opening}\n{turn.thought}\n{closing}\n\n{reply}{turn.answer}"


def learnt_end(ids: Sequence[int], end: int, ending: Sequence[int], part: Part = "reply") -> int:
    """Where what is learnt of an answer ends: after the tokens that end it, where they follow, unless a thought is.

    Args:
        ids: The pass, with ``ending`` after its last answer.
        end: Where the answer's span ends.
        ending: Tokens that the template puts after an answer, as ``end_of_answer_ids`` gives them.
        part: Which part of the answer is learnt.
    """
    last = end
    while part != "thought" and last < min(len(ids), end + len(ending)) and ids[last] == ending[last - end]:
        last += 1
    return last


def _shared(model: TextModel, turns: Sequence[Turn]) -> EncodingSteps[list[AnswerSpan]]:
    """The answers in one pass over the last of them; nothing where the template or a token runs across a boundary."""
    if len(turns) < 2 or not turns[0].history:
        return []
    prompts = [render_prompt(model.tokenizer, turn.history, tools=turn.tools) for turn in turns]
    conversation_text = prompts[-1] + turns[-1].answer
    ends = [len(prompt) + len(turn.answer) for prompt, turn in zip(prompts, turns, strict=True)]
    for turn, prompt in zip(turns, prompts, strict=True):
        if not (conversation_text.startswith(prompt) and conversation_text.startswith(turn.answer, len(prompt))):
            return []
    token_ids, offsets = yield conversation_text
    ids, spans = tuple(token_ids), []
    for turn, prompt, end in zip(turns, prompts, ends, strict=True):
        first = bisect_right(offsets, len(prompt), key=lambda span: span[1])
        last = len(ids) if turn is turns[-1] else bisect_right(offsets, end, key=lambda span: span[1])
        if first >= last or (last < len(ids) and offsets[last][0] < end):
            return []
        text = Encoded(ids, first, last)
        spans.append(AnswerSpan(turn=turn.number, text=text, history=turn.history, answer=turn.answer))
    return spans
