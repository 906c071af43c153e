"""The first preference pairs of data exactly as they would be scored: the shared prompt and both answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from poise.counting import counted
from poise.data import RejectedRow, turns
from poise.data.preference_data import PreferenceData
from poise.data.preference_rows import SIDES, PairSide, PreferencePair
from poise.errors import InvalidArgument
from poise.model.chat_template import render_answer
from poise.model.preview import ROWS_LOOKED_AT, readable_line
from poise.model.spans import AnswerSpan, TextModel, answer_spans
from poise.model.tokenizing import token_texts

__all__ = ["PairPreview", "PairPreviews", "preview_preference_pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPreview:
    """One pair as it would be scored.

    Attributes:
        file: The file, or the data set's name on the hub.
        row: Place of its row in that file, from 0.
        index: Place of its row in the whole data set, from 0.
        prompt: What both answers share, as the chat template makes it; without a tokenizer turn by turn.
        chosen: The preferred answer, to the letter; ``rejected`` the other.
        rejected: The other answer.
        tokens: How many tokens of both answers are scored, by their names; empty without a tokenizer.
        unread: Why the pair has no score; empty where it has one.
    """

    file: str
    row: int
    index: int
    prompt: str
    chosen: str
    rejected: str
    tokens: dict[str, tuple[str, ...]]
    unread: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPreviews:
    """The first pairs of a data set. ``print`` it to read it.

    Attributes:
        how: What is read from which columns.
        pairs: At most as many as were asked for.
        rejected: Rows among the first that are no pairs.
        notes: What else to know.
    """

    how: str
    pairs: tuple[PairPreview, ...]
    rejected: tuple[RejectedRow, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(readable_line, self._lines()))

    def as_json(self) -> dict[str, Any]:
        """The same as a plain object; of rejected rows all but their content."""
        names = ("file", "row", "index", "line", "reason")
        return {
            "how": self.how,
            "pairs": [asdict(pair) for pair in self.pairs],
            "rejected": [{name: getattr(row, name) for name in names} for row in self.rejected],
            "notes": list(self.notes),
        }

    def _lines(self) -> Iterator[str]:
        yield self.how
        yield from self.notes
        rows: list[PairPreview | RejectedRow] = [*self.pairs, *self.rejected]
        for row in sorted(rows, key=lambda row: row.index):
            yield ""
            yield f"── {row.file}, row {row.row}"
            if isinstance(row, RejectedRow):
                yield f"rejected: {row.reason}"
                continue
            if row.unread:
                yield f"not scored: {row.unread}"
            parts = {"prompt": row.prompt, "chosen, scored": row.chosen, "rejected, scored": row.rejected}
            for title, text in parts.items():
                yield f"{title}:"
                yield from (f"    {line}" for line in text.split("\n"))
            for side, tokens in row.tokens.items():
                yield f"{counted(len(tokens), 'token')} {side}: {'│'.join(tokens)}".replace("\n", "⏎")


def preview_preference_pairs(data: PreferenceData, texts: TextModel | None, n: int) -> PairPreviews:
    """The first n pairs as they would be scored.

    Raises:
        InvalidArgument: ``n`` is less than 1.
    """
    if n < 1:
        raise InvalidArgument(f"n is {n}; it must be a whole number, at least 1.")
    pairs: list[PairPreview] = []
    rejected: list[RejectedRow] = []
    for row in islice(data, max(ROWS_LOOKED_AT, n)):
        if isinstance(row, RejectedRow):
            rejected.append(row)
            continue
        pairs.append(_preview_pair(row, texts))
        if len(pairs) >= n:
            break
    return PairPreviews(how=data.how, pairs=tuple(pairs), rejected=tuple(rejected[:n]))


def _preview_pair(pair: PreferencePair, texts: TextModel | None) -> PairPreview:
    sides: dict[PairSide, str] = {}
    tokens: dict[str, tuple[str, ...]] = {}
    unread = ""
    prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in pair.content.prompt)
    for side in SIDES:
        answers = turns(pair.conversation(side))
        sides[side] = "\n\n".join(turn.text for turn in answers)
        for turn, span in zip(answers, answer_spans(texts, answers) if texts else (), strict=bool(texts)):
            if not isinstance(span, AnswerSpan):
                unread = unread or f"{side}: {span.reason}"
                continue
            text = span.text
            if side == "chosen" and turn is answers[0] and texts:
                shown = render_answer(texts.tokenizer, span.history, span.answer, part=turn.part, tools=turn.tools)
                prompt = shown.text[: shown.start]
            if texts:
                tokens[side] = (*tokens.get(side, ()), *token_texts(texts.tokenizer, text.ids[text.start : text.end]))
    return PairPreview(
        file=pair.file,
        row=pair.row,
        index=pair.index,
        prompt=prompt,
        chosen=sides["chosen"],
        rejected=sides["rejected"],
        tokens=tokens,
        unread=unread,
    )
