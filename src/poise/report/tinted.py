"""A text token by token: how far each projection lies from a centre, where it is brightest, and what may be shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from poise.report.wording import number

__all__ = ["STEPS", "Snippet", "Tinted", "Token", "plain", "step_of", "tinted"]

STEPS = 4  # shades a side
WINDOW = 8  # tokens of a snippet
ROUND = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
LONGEST_TOKEN = 80
LONGEST = 4000

_UNSEEN = re.compile(  # what reorders text or hides in it; joiners stay, since scripts and emoji need them
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def plain(text: str, most: int = LONGEST) -> str:
    """Text with nothing unseen in it: characters that control, hide or reorder are shown by number, as ``[U+202E]``.

    Args:
        text: Anything.
        most: Characters; what is left out is counted.
    """
    kept = _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text[:most].replace("\r\n", "\n"))
    return kept if len(text) <= most else f"{kept}… [{len(text) - most:,} more characters]"


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its text, its shade from −4 to 4, and its projection and distance from the centre in words."""

    text: str
    shade: int
    value: str

    @property
    def tone(self) -> str:
        """The style sheet's name of the shade: ``a`` above the centre, ``b`` below."""
        return f"{'a' if self.shade > 0 else 'b'}{abs(self.shade)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """Some tokens in a row: the first's number from 1, the last's, their text and mean; ``None`` without one."""

    first: int
    last: int
    text: str
    mean: float | None

    @property
    def tokens(self) -> int:
        """How many."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tinted:
    """A text ready to be shown: before, in and after its brightest snippet, and all of it snippet by snippet."""

    centre: float
    before: tuple[Token, ...]
    bright: tuple[Token, ...]
    after: tuple[Token, ...]
    brightest: Snippet
    snippets: tuple[Snippet, ...]


def step_of(distances: Iterable[float]) -> float:
    """Width of a shade, a round number: the last begins at the 95th percentile of distances or a little above."""
    sizes = sorted(abs(d) for d in distances if math.isfinite(d))
    size = sizes[int(0.95 * (len(sizes) - 1))] / STEPS if sizes else 0.0
    if size <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(size))
    return next(m for m in ROUND if m * power >= size * (1 - 1e-9)) * power


def tinted(pieces: Sequence[tuple[str, float]], centre: float, step: float, digits: int) -> Tinted:
    """Shades and snippets of a text.

    Args:
        pieces: Tokens with their projections.
        centre: What has no shade.
        step: Width of a shade.
        digits: After the decimal point.
    """
    tokens = [_token(text, value, centre, step, digits) for text, value in pieces]
    starts = range(max(1, len(pieces) - WINDOW + 1))
    first = max(starts, key=lambda i: _known(_mean(v for _, v in pieces[i : i + WINDOW])))
    last = min(first + WINDOW, len(pieces))
    blank_before, bright, blank_after = _without_blanks(tokens[first:last])
    return Tinted(
        centre=centre,
        before=(*tokens[:first], *blank_before),
        bright=bright,
        after=(*blank_after, *tokens[last:]),
        brightest=_snippet(pieces, first),
        snippets=tuple(_snippet(pieces, i) for i in range(0, len(pieces), WINDOW)),
    )


def _token(text: str, value: float, centre: float, step: float, digits: int) -> Token:
    shown = plain(text, LONGEST_TOKEN)
    if not math.isfinite(value):
        return Token(shown, 0, "–")
    away = value - centre
    shade = int(math.copysign(min(abs(away) // step, STEPS), away))
    return Token(shown, shade, f"{number(value, digits)} ({number(away, digits, signed=True)})")


def _without_blanks(tokens: Sequence[Token]) -> tuple[tuple[Token, ...], tuple[Token, ...], tuple[Token, ...]]:
    """Blanks at either end set apart: where a line ends in them, a box around them would be an empty one."""
    before: list[Token] = []
    after: list[Token] = []
    inner = list(tokens)
    while inner and (rest := inner[0].text.lstrip()) != inner[0].text:
        head = inner.pop(0)
        before.append(replace(head, text=head.text[: len(head.text) - len(rest)]))
        if rest:
            inner.insert(0, replace(head, text=rest))
    while inner and (rest := inner[-1].text.rstrip()) != inner[-1].text:
        tail = inner.pop()
        after.insert(0, replace(tail, text=tail.text[len(rest) :]))
        if rest:
            inner.append(replace(tail, text=rest))
    return tuple(before), tuple(inner), tuple(after)


def _snippet(pieces: Sequence[tuple[str, float]], first: int) -> Snippet:
    some = pieces[first : first + WINDOW]
    mean = _mean(value for _, value in some)
    return Snippet(
        first=first + 1, last=first + len(some), text="".join(plain(t, LONGEST_TOKEN) for t, _ in some), mean=mean
    )


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    mean = sum(known) / len(known) if known else math.nan
    return mean if math.isfinite(mean) else None


def _known(mean: float | None) -> float:
    return -math.inf if mean is None else mean
