"""The first answers of a data set exactly as they would be scored or learnt, before anything is.

What is shown comes from the code that reads and trains: the same reader, the same template, the same spans.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Literal

from poise.arguments import check_choice, is_whole
from poise.counting import counted
from poise.data import (
    AnswerPart,
    Conversation,
    DataSet,
    InputRow,
    Message,
    RejectedRow,
    Turn,
    count_left_out,
    data_from_rows,
    describe_left_out,
    last_user,
    turns,
)
from poise.errors import InvalidArgument, UnsuitableModel
from poise.model.chat_template import end_of_answer_ids, render_answer, render_prompt
from poise.model.language_model import Model
from poise.model.spans import AnswerSpan, answer_spans, fit_history, learnt_end
from poise.model.tokenizing import ModelTokenizer, token_texts

__all__ = ["AnswerPreview", "DataPreview", "RowUse", "readable_line", "show_rows"]

RowUse = Literal["score", "learn", "answer"]
"""What is done with answers: they are scored, or learnt from, or the model is to write its own."""

ROWS_LOOKED_AT = 1000  # rows of which none may have what is wanted
VERBS = {"score": "scored", "learn": "learnt", "answer": "answered by the model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPreview:
    """One answer as it would be used, or one prompt that the model would answer.

    Attributes:
        file: The file, or the data set's name on the hub.
        row: Place of its row in that file, from 0.
        index: Place of its row in the whole data set, from 0.
        turn: Which of the conversation's assistant turns, from 0; ``None`` for a prompt to be answered.
        history: The messages before it, without those that the model's window cannot hold.
        prompt: The text before what is used, as the chat template makes it; ``None`` without a tokenizer.
        thought: The thought before the reply, as the row has it.
        reply: The reply.
        text: What is scored or learnt, to the letter; empty for a prompt to be answered.
        tokens: The tokens that are scored or learnt, as text; empty without a tokenizer.
        cut: What of it is lost for its length; empty where nothing is.
        unread: Why it cannot be used; empty where it can.
        left_out: What of the whole row is not read, by kind; a tool's definition where the template shows none.
    """

    file: str
    row: int
    index: int
    turn: int | None
    history: tuple[Message, ...]
    prompt: str | None
    thought: str
    reply: str
    text: str
    tokens: tuple[str, ...]
    cut: str
    unread: str
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPreview:
    """The first answers of a data set. ``print`` it to read it.

    Attributes:
        how: What is read from which columns.
        use: What is done with the answers.
        part: Which part of them it is done with.
        template: Model whose chat template and tokens are shown; empty without one.
        answers: At most as many as were asked for.
        rejected: As many of the rows before the last answer that cannot be used.
        rows: Rows that were looked at.
        rejected_rows: How many of them cannot be used.
        left_out: What the other rows leave out, by kind.
        notes: What else to know.
    """

    how: str
    use: RowUse
    part: AnswerPart
    template: str
    answers: tuple[AnswerPreview, ...]
    rejected: tuple[RejectedRow, ...]
    rows: int
    rejected_rows: int
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(readable_line(line) for line in self._lines())

    def as_json(self) -> dict[str, Any]:
        """The same as a plain object; of rejected rows all but their content."""
        rejected = [asdict(replace(row, raw=None)) for row in self.rejected]
        for facts in rejected:
            del facts["raw"]
        return asdict(replace(self, rejected=())) | {"rejected": rejected}

    def _lines(self) -> Iterator[str]:
        yield self.how
        yield from self.notes
        placed: list[tuple[int, Iterable[str]]] = [(row.index, _rejected_lines(row)) for row in self.rejected]
        placed += [(one.index, _answer_lines(one, self.use, self.part)) for one in self.answers]
        for _, lines in sorted(placed, key=lambda place: place[0]):
            yield ""
            yield from lines
        yield ""
        lost = f", {self.rejected_rows:,} rejected" if self.rejected_rows else ""
        left = describe_left_out(self.left_out)
        yield f"{counted(self.rows, 'row')} looked at{lost}" + (f"; left out: {left}." if left else ".")


def show_rows(
    rows: DataSet | Iterable[InputRow],
    model: Model | Any = None,
    n: int = 3,
    *,
    shape: str = "auto",
    part: AnswerPart = "reply",
    use: RowUse = "score",
    longest: int | None = None,
    prepare: Callable[[Conversation], Conversation] | None = None,
) -> DataPreview:
    """The first answers of data as they would be scored or learnt: text, tokens, and what is left out.

    Args:
        rows: Rows, or a data set; see ``poise.data.data_from_rows``.
        model: A loaded model, or a fast tokenizer with a chat template; without it, texts are shown as the rows
            have them.
        n: Most answers to show.
        shape: Shape of the rows, as in ``poise.data.open_data``.
        part: Which part of an answer is read or learnt; a data set has its own.
        use: ``score``, ``learn``, or ``answer`` for prompts that the model is to answer itself.
        longest: Most tokens: of a text that is learnt, which is cut there, or of a prompt. Default, the window.
        prepare: What is done to conversations before they are learnt, such as another system prompt.

    Raises:
        InvalidArgument: ``n`` is less than 1, or ``use`` is unknown.
        InvalidData: no known shape fits the rows.
        UnsuitableModel: the tokenizer gives no character offsets.
    """
    if not is_whole(n) or n < 1:
        raise InvalidArgument(f"n is {reprlib.repr(n)}; it must be a whole number, at least 1.")
    check_choice("use", use, list(VERBS))
    data = data_from_rows(rows, shape=shape, part=part, need="user" if use == "answer" else "assistant")
    texts = model if model is None or isinstance(model, Model | ModelTokenizer) else ModelTokenizer.of(model)
    reader = _AnswerReader(texts, use, longest)
    answers: list[AnswerPreview] = []
    rejected: list[RejectedRow] = []
    good: list[Conversation] = []
    looked_at = 0
    for row in islice(data, max(ROWS_LOOKED_AT, n)):
        looked_at += 1
        if isinstance(row, RejectedRow):
            rejected.append(row)
            continue
        good.append(row)
        answers += reader.read(prepare(row) if prepare else row)
        if len(answers) >= n:
            break
    return DataPreview(
        how=data.how,
        use=use,
        part=data.answer_part,
        template=texts.name if texts else "",
        answers=tuple(answers[:n]),
        rejected=tuple(rejected[:n]),
        rows=looked_at,
        rejected_rows=len(rejected),
        left_out=dict(count_left_out(good)),
    )


@dataclass(frozen=True, slots=True)
class _AnswerReader:
    texts: Model | ModelTokenizer | None
    use: RowUse
    longest: int | None

    def read(self, row: Conversation) -> list[AnswerPreview]:
        """The row's answers, or its prompt."""
        if self.use == "answer":
            return [self._prompt(row)]
        row_turns = turns(row)
        if self.texts is None:
            return [_preview(row, turn, text=turn.text) for turn in row_turns]
        places = answer_spans(self.texts, row_turns)
        return [
            self._answer(self.texts, row, turn, place)
            if isinstance(place, AnswerSpan)
            else _preview(row, turn, unread=place.reason)
            for turn, place in zip(row_turns, places, strict=True)
        ]

    def _answer(self, texts: Model | ModelTokenizer, row: Conversation, turn: Turn, place: AnswerSpan) -> AnswerPreview:
        tokenizer = texts.tokenizer
        rendered = render_answer(tokenizer, place.history, place.answer, part=turn.part, tools=turn.tools)
        ids, start, end = place.text.ids, place.text.start, place.text.end
        cut = "earlier turns, which the model's window cannot hold" if place.cut else ""
        if self.use == "learn":
            ending = end_of_answer_ids(tokenizer, texts.stop_ids)
            ids = (*ids[:end], *ending)
            end = learnt_end(ids, end, ending, turn.part)
            longest = min(self.longest or texts.window, texts.window)
            if start >= longest:
                return _preview(row, turn, unread=f"its prompt alone takes {longest} tokens")
            if end > longest:
                cut, end = f"its end, beyond {longest} tokens", longest
        told, untold = (render_prompt(tokenizer, place.history, tools=tools) for tools in (turn.tools, ()))
        return _preview(
            row,
            turn,
            history=tuple(place.history),
            prompt=rendered.text[: rendered.start],
            left_out=(*row.left_out, *("tool definition" for _ in turn.tools if told == untold)),
            text=rendered.text[rendered.start : rendered.end],
            tokens=token_texts(tokenizer, ids[start:end]),
            cut=cut,
        )

    def _prompt(self, row: Conversation) -> AnswerPreview:
        turn = Turn(history=last_user(row), answer="", number=-1, tools=row.tools)
        if self.texts is None:
            return _preview(row, turn)
        try:
            fitted = fit_history(self.texts, turn.history, None, self.longest or self.texts.window, tools=row.tools)
        except UnsuitableModel as error:
            return _preview(row, turn, unread=f"refused by the chat template: {error.__cause__ or error}")
        if fitted is None:
            return _preview(row, turn, unread="longer than the model's window")
        history = fitted[1]
        cut = "earlier turns, which the model's window cannot hold" if len(history) < len(turn.history) else ""
        prompt = render_prompt(self.texts.tokenizer, history, tools=row.tools)
        return _preview(row, turn, history=tuple(history), prompt=prompt, cut=cut)


def _preview(row: Conversation, turn: Turn, **shown: Any) -> AnswerPreview:
    nothing: dict[str, Any] = {
        "prompt": None,
        "text": "",
        "tokens": (),
        "cut": "",
        "unread": "",
        "history": turn.history,
    }
    return AnswerPreview(
        file=row.file,
        row=row.row,
        index=row.index,
        turn=turn.number if turn.number >= 0 else None,
        thought=turn.thought,
        reply=turn.answer,
        **({"history": turn.history, "left_out": row.left_out} | nothing | shown),
    )


def _answer_lines(one: AnswerPreview, use: RowUse, part: AnswerPart) -> Iterator[str]:
    place = f"{one.file}, row {one.row}"
    yield f"── {place}, turn {one.turn}" if one.turn is not None else f"── {place}"
    if one.unread:
        yield f"not {VERBS[use]}: {one.unread}"
    if one.prompt is None:
        for message in one.history:
            yield from _block(f"{message['role']}:", message["content"])
            yield from (f"    calls {json.dumps(call['function'])}" for call in message.get("tool_calls", ()))
    else:
        yield from _block("prompt:", one.prompt)
    if one.thought and part == "reply":
        yield from _block(f"thought, not {VERBS[use]}:", one.thought)
    if one.text:
        names = {"reply": "reply", "thought": "thought", "both": "thought and reply" if one.thought else "reply"}
        yield from _block(f"{names[part]}, {VERBS[use]}:", one.text)
    if one.reply and part == "thought":
        yield from _block(f"reply, not {VERBS[use]}:", one.reply)
    if one.tokens:
        yield f"{counted(len(one.tokens), 'token')} {VERBS[use]}: {'│'.join(one.tokens)}".replace("\n", "⏎")
    if use == "answer" and not one.unread:
        yield "the answer is the model's own"
    if one.cut:
        yield f"cut off: {one.cut}"
    if one.left_out:
        yield f"left out of this row: {describe_left_out(Counter(one.left_out))}"


def _rejected_lines(row: RejectedRow) -> Iterator[str]:
    line = f", line {row.line}" if row.line else ""
    yield f"── {row.file}, row {row.row}{line}"
    yield f"rejected: {row.reason}"


def _block(title: str, text: str) -> Iterator[str]:
    yield title
    yield from (f"    {line}" for line in text.split("\n"))


def readable_line(line: str) -> str:
    """A line without signs that move the cursor."""
    return "".join(c if c.isprintable() or c in "\t\n" else repr(c)[1:-1] for c in line)
