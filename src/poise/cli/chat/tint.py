"""How a chat looks: tokens tinted by a trait and wrapped as they come, gauges, and the legend.

A token's tint is its distance from the trait's normal in spreads: from one on it is coloured, from two above on it is
underlined as well or, where there is no colour, set in brackets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from poise.cli.chat.dialogue import push
from poise.report import wording as words

if TYPE_CHECKING:
    from poise.cli.chat.dialogue import ChatTurn, WatchedTrait
    from poise.engine import TextChunk
    from poise.model.parts import TokenPart
    from poise.monitor import RaisedAlarm
    from poise.monitor.readings import ReadingName
    from poise.steer import Steering, Term
    from poise.vector import PersonaVector

__all__ = [
    "BAR_MEANS",
    "Legend",
    "cleaned",
    "gauges",
    "level",
    "marked",
    "palette",
    "reading_figure",
    "tinted_texts",
    "wrapped",
]

Mark = tuple[str, str]  # text, style
Palette = Mapping[int, str]  # level to style

HIGH = 2  # spreads above normal that get a sign beside the colour
TINTS = {
    -3: "black on #4393c3",
    -2: "black on #92c5de",
    -1: "black on #d1e5f0",
    0: "",
    1: "black on #fddbc7",
    2: "black underline on #f4a582",
    3: "black underline on #d6604d",
}
FEW = {  # of a terminal with 16 colours
    -3: "white on blue",
    -2: "black on cyan",
    -1: "cyan",
    0: "",
    1: "yellow",
    2: "black underline on yellow",
    3: "white underline on red",
}
BAR_COLOURS = {False: "#4393c3", True: "#d6604d"}  # by whether it is above normal
SPAN = 4  # spreads on either side of normal that a bar shows
SHORTEST, LONGEST = 10, 40  # bars, in columns
DIGITS, TAIL = 5, 9  # least widths, so that gauges of one answer and the next stand below each other
READINGS: tuple[ReadingName, ...] = ("prompt", "mean", "peak")
BAR_MEANS = f"│ normal, {SPAN} spreads to either end; ● mean of the answer, ▲ peak: its highest 8 tokens in a row"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
PARTS = re.compile(r"\n|[^\S\n]+|[⺀-鿿가-힣豈-﫿]|[^\s⺀-鿿가-힣豈-﫿]+")
CJK = re.compile(r"[⺀-鿿가-힣豈-﫿]")


def tinted_texts(
    pieces: Iterable[TextChunk], turn: ChatTurn, by: str | None, watched: Sequence[WatchedTrait]
) -> Iterator[tuple[str, int]]:
    """The texts of an answer to ``turn`` with their levels by a watched trait; 0 where there is none.

    A thought stands in brackets before its reply, without levels: what is watched is the reply.
    """
    column = next((k for k, w in enumerate(watched) if w.name == by), None)
    less = 0.0 if column is None else push(turn.steering, watched[column], "response") or 0.0
    part: TokenPart = "reply"
    for piece in pieces:
        if not piece.text:
            continue
        if piece.part != part:
            yield ("[thinking: ", 0) if piece.part == "thought" else ("]\n", 0)
            part = piece.part
        plain = column is None or piece.part == "thought"
        height = 0 if plain else level(float(piece.readings[:, column].max()) - less, watched[column or 0])
        yield cleaned(piece.text), height
    if part == "thought":
        yield "]", 0


def cleaned(text: str) -> str:
    """Without control characters, with which a model could move the cursor, set a title or turn text round."""
    return CONTROL.sub("", text)


def level(value: float, of: WatchedTrait) -> int:
    """How many whole spreads a reading is above normal, −3 to 3; 0 for none."""
    spreads = (value - of.normal) / of.spread
    return max(-3, min(3, int(spreads))) if math.isfinite(spreads) else 0


def marked(texts: Iterable[tuple[str, int]], tints: Palette) -> Iterator[Mark]:
    """Texts with their levels as styled text, or without tints with what is high in brackets: ``a [word or two]``."""
    return _styled(texts, tints) if tints else _bracketed(texts)


def _styled(texts: Iterable[tuple[str, int]], tints: Palette) -> Iterator[Mark]:
    before = 0
    for text, at in texts:
        word = text.lstrip()
        between = min(before, at, key=abs) if before * at > 0 else 0  # a blank is tinted inside of a passage only
        yield text[: len(text) - len(word)], tints[between]
        yield word, tints[at]
        before = at


def _bracketed(texts: Iterable[tuple[str, int]]) -> Iterator[Mark]:
    inside, blank = False, ""  # a blank waits for what follows it: brackets hold words
    for text, at in texts:
        lead, word = blank + text[: len(text) - len(text.lstrip())], text.strip()
        if not word:
            blank += text
            continue
        if (at >= HIGH) != inside:
            inside = not inside
            lead = lead + "[" if inside else "]" + lead
        yield lead + word, ""
        blank = text[len(text.rstrip()) :]
    yield "]" * inside + blank, ""


def wrapped(marks: Iterable[Mark], width: int) -> Iterator[Text]:
    """The same text in pieces that can be printed one after another, with line breaks between words.

    A word is held back until it ends; one that is wider than the line is broken where the line ends, never inside a
    wide character. Chinese, Japanese and Korean may break between any two characters.
    """
    column, gap, word = 0, Text(), Text()
    for text, style in marks:
        for part in PARTS.findall(text.replace("\t", "    ")):
            ends = part.isspace() or CJK.match(part) is not None
            if not ends:
                word.append(part, style)
            if ends or word.cell_len >= width:
                piece, column = _placed(gap, word, column, width)
                yield piece
                gap, word = Text(), Text()
            if part == "\n":
                yield Text("\n")
                column = 0
            elif part.isspace():
                gap = Text(part, style)
            elif ends:
                piece, column = _placed(gap, Text(part, style), column, width)
                yield piece
    yield _placed(gap, word, column, width)[0]


def _placed(gap: Text, word: Text, column: int, width: int) -> tuple[Text, int]:
    """A word after its gap, on this line or without the gap on the next; and the column after it."""
    if column + gap.cell_len + word.cell_len <= width:
        return gap + word, column + gap.cell_len + word.cell_len
    lines = chop_cells(word.plain, width)
    out, start = Text(), 0
    for line in lines:
        out.append("\n" if start or column else "").append_text(word[start : start + len(line)])
        start += len(line)
    return out, cell_len(lines[-1]) if lines else column


def gauges(turn: ChatTurn, watched: Sequence[WatchedTrait], raised: Sequence[RaisedAlarm], width: int) -> list[Text]:
    """A line for each trait: readings, bar, what steers it; three short lines where the terminal is narrow.

    A reading that raised its alarm has a ``!`` after it.
    """
    readings = turn.readings(watched)
    values = [[reading_figure(readings.of(name)[k], w) for name in READINGS] for k, w in enumerate(watched)]
    digits = max(DIGITS, *(len(value) for row in values for value in row))
    alarms = {(r.column, r.alarm.reading) for r in raised}
    names = [w.name.ljust(max(len(w.name) for w in watched)) for w in watched]
    tails = [_strength(turn.steering, w.vector) for w in watched]
    lines = []
    for k, w in enumerate(watched):
        name, read = Text(f"  {names[k]}  ", "bold"), Text()
        for reading, value in zip(READINGS, values[k], strict=True):
            cell = (f"{value:>{digits}}! ", "bold red") if (k, reading) in alarms else f"{value:>{digits}}  "
            read += Text.assemble((f"{reading} ", "dim"), cell)
        room = width - name.cell_len - read.cell_len - 2 - max(TAIL, *map(len, tails))
        if room < SHORTEST:
            bar = _bar(w, readings.mean[k], readings.peak[k], min(LONGEST, max(SHORTEST, width - 4)))
            lines += [Text.assemble(name, tails[k]), Text.assemble("  ", read), Text.assemble("  ", bar)]
        else:
            bar = _bar(w, readings.mean[k], readings.peak[k], min(LONGEST, room))
            lines.append(Text.assemble(name, read, bar, "  ", tails[k]))
    for line in lines:
        line.rstrip()
    return lines


def _bar(of: WatchedTrait, mean: float, peak: float, width: int) -> Text:
    """Normal in the middle, a heavy line from there to the answer's mean, and its peak; empty for an empty answer."""
    middle = width // 2

    def place(value: float) -> int:
        return middle + round(max(-1.0, min(1.0, (value - of.normal) / (SPAN * of.spread))) * (middle - 1))

    signs = [("─", "dim")] * width
    signs[middle] = ("│", "")
    if math.isfinite(mean):
        at, style = place(mean), BAR_COLOURS[mean > of.normal]
        for i in range(min(at, middle + 1), max(at, middle - 1) + 1):
            signs[i] = ("━", style) if i != middle else signs[i]
        signs[place(peak)] = ("▲", BAR_COLOURS[peak > of.normal])
        signs[at] = ("●", style)
    return Text.assemble(*signs)


def _strength(steering: Steering | None, vector: PersonaVector) -> str:
    """What a steering does with a vector, in a word or two: ``dose 20%``."""
    return ", ".join(_in_a_word(term) for term in (steering.terms if steering else ()) if term.vector is vector)


def _in_a_word(term: Term) -> str:
    if term.layers == "increments":
        text = f"α {words.number(term.value, 2)}"
    elif term.operation == "add":
        text = f"dose {words.dose(max((term.vector.dose(term.value, i) for i in term.layers), key=abs))}"
    elif term.operation == "project_out":
        text = "out"
    else:
        text = f"{term.operation} {words.number(term.value)}"
    if term.part == "thought":
        text = f"{text} in thought"
    return f"{text} at times" if term.when or term.scheduled else text


@dataclass(frozen=True, slots=True)
class Legend:
    """What a tint means, in numbers; how it shows depends on the terminal that it is printed on."""

    of: WatchedTrait

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        of, normal = self.of, reading_figure(self.of.normal, self.of)
        layer, trait = f"layer {of.probe.layer} of {of.vector.layers}", reading_figure(of.with_trait, of)
        yield Text(f"{of.name} at {layer}: normal {normal}, with the trait about {trait}", "dim")
        if tints := palette(console):
            yield Text("").join(
                Text(f" {reading_figure(of.normal + n * of.spread, of)} ", tint) for n, tint in tints.items()
            )
        else:
            high = reading_figure(of.normal + HIGH * of.spread, of)
            yield Text(f"[in brackets]: {high} or more, {HIGH} spreads above normal", "dim")


def palette(console: Console) -> Palette:
    """A style for each level; none at all where there are no colours."""
    if console.color_system is None or console.no_color:
        return {}
    return TINTS if console.color_system in ("256", "truecolor") else FEW


def reading_figure(value: float, of: WatchedTrait) -> str:
    """A reading of a trait, signed, with as many decimals as its spread deserves."""
    decimals = max(0, 1 - math.floor(math.log10(of.spread)))
    return words.number(value if math.isfinite(value) else None, decimals, signed=True)
