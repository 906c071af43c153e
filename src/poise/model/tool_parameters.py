"""How a chat template writes a call's arguments one at a time: in tags, as Qwen3-Coder does, or as Python does.

Found out as the rest of a format is: calls of unknown names are rendered, with two arguments, with one of each kind,
and with none, and what stands between is the format. What it comes to is rendered again, and has to be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["ParameterFormat", "ParameterFrame", "parameter_frame"]

RenderCalls = Callable[[Mapping[str, Mapping[str, Any]]], str]
"""What a template writes for calls, by their names, up to the end of the turn; empty where it cannot."""

FIRST, SECOND = "Q00005zX", "Q00007zX"
TEXT, OTHER_TEXT, NUMBER = "Q00006zX", "Q00008zX", 70605
LITERALS: tuple[tuple[str, Any], ...] = (("true", True), ("false", False), ("null", None))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterFormat:
    """The text around arguments that are written one at a time.

    Attributes:
        first: Text between a tool's name and the name of its first argument.
        assign: Text between an argument's name and its value.
        more: Text between a value and the next argument's name.
        end: Text after the last value.
        bare: What stands for ``first`` to ``end`` in a call without arguments.
        stop: Beginning of what follows any value, at which it ends; empty where values end by themselves, since texts
            among them stand in quotation marks.
        literals: How ``true``, ``false`` and ``null`` are written.
    """

    first: str
    assign: str
    more: str
    end: str
    bare: str
    stop: str
    literals: Mapping[str, str]

    def written(self, arguments: Mapping[str, str]) -> str:
        """Arguments by their names, given as they are written, as a call has them."""
        pairs = [name + self.assign + value for name, value in arguments.items()]
        return self.first + self.more.join(pairs) + self.end if pairs else self.bare


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterFrame:
    """A format of arguments, and the text around calls in it, as ``ToolCallFormat`` has it.

    Attributes:
        opening: Text before the first call's name.
        between: Text between the end of one call's arguments and the next call's name; ``None`` where there is one
            call a turn.
        closing: Text after the last call's arguments.
        parameters: How the arguments are written.
    """

    opening: str
    between: str | None
    closing: str
    parameters: ParameterFormat


def parameter_frame(render: RenderCalls, names: tuple[str, str], marks: Collection[str]) -> ParameterFrame | None:
    """The format of a template that writes arguments one at a time; ``None`` where it does not.

    Args:
        render: The template.
        names: Two names that calls are rendered of.
        marks: Tokens that no text is made of, none of which may be cut in two.
    """
    one, other = names
    two_texts, no_text = render({one: {FIRST: TEXT, SECOND: OTHER_TEXT}}), render({one: {}})
    pieces = _split_at(two_texts, (one, FIRST, TEXT, SECOND, OTHER_TEXT))
    bare_pieces = _split_at(no_text, (one,))
    if pieces is None or bare_pieces is None or bare_pieces[0] != pieces[0]:
        return None
    opening, first, assign, more, assign_again, tail = pieces
    quote = _quotation_mark(render, one, assign)
    if assign_again != assign or not all((opening.strip(), assign)):
        return None
    if quote:
        assign, more, tail = assign.removesuffix(quote), more.removeprefix(quote), tail.removeprefix(quote)
    closing = _common_end(tail, bare_pieces[1], marks)
    end, bare = tail.removesuffix(closing), bare_pieces[1].removesuffix(closing)
    between = _between_calls(render, names, quote + end)
    followers = [more, tail] + ([end + between] if between is not None else [])
    stop = "" if quote else _whole_marks(_common_head(followers), more, marks)
    if any(mark in stop[1:] for mark in marks) and not any(stop.startswith(mark) for mark in marks):
        return None  # a text would swallow what stands before the mark
    parameters = ParameterFormat(
        first=first,
        assign=assign,
        more=more,
        end=end,
        bare=bare,
        stop=stop,
        literals={
            word: _written_word(render, one, (opening + one + first, assign, tail), word, value)
            for word, value in LITERALS
        },
    )
    frame = ParameterFrame(opening=opening.lstrip(), between=between, closing=closing, parameters=parameters)
    texts = {name: f"{quote}{value}{quote}" for name, value in ((FIRST, TEXT), (SECOND, OTHER_TEXT))}
    if (
        between is not None
        and _rebuilt(frame, names, texts) != render({one: {FIRST: TEXT, SECOND: OTHER_TEXT}, other: {}}).lstrip()
    ):
        frame = ParameterFrame(opening=frame.opening, between=None, closing=closing, parameters=parameters)
    return frame


def _split_at(text: str, marks: tuple[str, ...]) -> list[str] | None:
    """The text between marks that stand in it once each, in this order."""
    pieces = []
    for mark in marks:
        before, seen, text = text.partition(mark)
        if not seen or mark in text:
            return None
        pieces.append(before)
    return [*pieces, text]


def _quotation_mark(render: RenderCalls, name: str, assign: str) -> str:
    """The mark that texts stand in and numbers do not; empty where there is none."""
    quote = assign[-1:]
    if quote not in ('"', "'"):
        return ""
    return "" if f"{FIRST}{assign}{NUMBER}{quote}" in render({name: {FIRST: NUMBER}}) else quote


def _between_calls(render: RenderCalls, names: tuple[str, str], end: str) -> str | None:
    pieces = _split_at(render({names[0]: {FIRST: TEXT}, names[1]: {FIRST: OTHER_TEXT}}), (TEXT, names[1]))
    return pieces[1].removeprefix(end) if pieces and pieces[1].startswith(end) else None


def _written_word(render: RenderCalls, name: str, around: tuple[str, str, str], word: str, value: Any) -> str:
    """How a value is written where it is one word; as JSON has it elsewhere."""
    head, assign, tail = around
    text = render({name: {FIRST: value}})
    begin, end = head + FIRST + assign, tail
    written = text[len(begin) : len(text) - len(end)] if text.startswith(begin) and text.endswith(end) else ""
    return written if written.lower() in (word, "none" if word == "null" else word) else word


def _common_end(one: str, other: str, marks: Collection[str]) -> str:
    """The longest end of both that cuts no mark in two."""
    size = len(_common_head([one[::-1], other[::-1]]))
    for start in range(len(one) - size, len(one) + 1):
        if not _is_cut(one, start, marks) and not _is_cut(other, len(other) - len(one) + start, marks):
            return one[start:]
    return ""


def _common_head(texts: Sequence[str]) -> str:
    """The longest beginning of all."""
    head = min(texts, key=len)
    return next(head[:size] for size in range(len(head), -1, -1) if all(text.startswith(head[:size]) for text in texts))


def _whole_marks(head: str, text: str, marks: Collection[str]) -> str:
    """As much of the head of a text as cuts no mark in two."""
    return next(head[:end] for end in range(len(head), -1, -1) if not _is_cut(text, end, marks))


def _is_cut(text: str, place: int, marks: Collection[str]) -> bool:
    for mark in marks:
        begin = text.find(mark, max(place - len(mark) + 1, 0)) if mark else -1
        if 0 <= begin < place < begin + len(mark):
            return True
    return False


def _rebuilt(frame: ParameterFrame, names: tuple[str, str], arguments: Mapping[str, str]) -> str:
    """A call with arguments and one without, by the format."""
    one, other = names
    parameters = frame.parameters
    calls = one + parameters.written(arguments) + str(frame.between) + other + parameters.written({})
    return frame.opening + calls + frame.closing
