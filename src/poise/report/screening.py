"""The HTML page of a screening: what was found in training data, and the rows to look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from poise.report import naming_the_extra
from poise.report.tinted import STEPS, Tinted, plain, step_of, tinted
from poise.report.wording import number, promised_rate
from poise.storage.atomic_write import saving

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup
    from matplotlib.figure import Figure as Canvas

    from poise.screen.summary import AnswerExample, LengthDecile, ScreeningSummary, TraitSummary
    from poise.statistics.estimates import Estimate

__all__ = ["html_screening", "write_screening"]

METHODS = {
    "difference": "a projection difference: an answer’s mean projection less that of the model’s own answer to the "
    "same prompt",
    "prompt": "an answer’s mean projection less that of the prompt’s last token, which foretells the model’s own "
    "answer",
    "raw": "an answer’s mean projection, as it is",
    "preference": "the chosen answer’s mean projection less the rejected answer’s; their shared prompt is not counted",
}
UNITS = ("answer", "pair")  # what is scored; the second by the method preference
STYLES = ("style.css", "screening.css")
Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of n, with its Wilson interval, all in per cent."""

    part: int
    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Decile:
    """Answers of like length, and the flagged share as a bar in per cent of the width."""

    lengths: str
    share: Share
    width: float


@dataclass(frozen=True, slots=True)
class Card:
    """One answer with its tints; ``lit`` is ``None`` where it has no tokens, ``other`` where it is no pair."""

    shown: AnswerExample
    lit: Tinted | None
    other: Tinted | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Answers under one heading, and what is said where there are none; of ``open`` ones the first are unfolded."""

    open: bool
    name: str
    title: str
    about: str
    none: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One trait made ready. ``bounds`` are where shades begin, from the first above the centre."""

    t: TraitSummary
    name: str
    digits: int
    flagged: Share
    thresholds: str
    above: str
    beside: str
    densities: Markup | None
    means: Markup | None
    deciles: tuple[Decile, ...]
    overall: float
    lengths: str
    trait: str
    rule: str
    against: str
    bounds: tuple[str, ...]
    groups: tuple[Group, ...]


def html_screening(summary: ScreeningSummary) -> str:
    """One page with nothing outside itself and no script. Equal summaries give equal text.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
    """
    with naming_the_extra():
        from markupsafe import Markup

        css = Markup("\n".join(files("poise.report").joinpath(f).read_text("utf-8") for f in STYLES))
        return _template().render(
            s=summary,
            css=css,
            name=plain(summary.data, 200),
            rows=_share(summary.flagged_rows, summary.rows - sum(summary.rejected.values())),
            scored=summary.units - sum(summary.unread.values()),
            method=METHODS[summary.method],
            pairs=summary.method == "preference",
            unit=UNITS[summary.method == "preference"],
            promise=promised_rate(summary),
            sections=[_section(f"t{i}", t, summary) for i, t in enumerate(summary.traits, 1)],
            has_normal=any(t.normal for t in summary.traits),
            steps=STEPS,
            row_files=".parquet" if "clean.parquet" in summary.files else ".jsonl",
        )


def write_screening(summary: ScreeningSummary, path: Path) -> None:
    """Write the page of a screening to a file, whole or not at all.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    text = html_screening(summary)
    with saving(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, plain=plain, interval=_interval, share=_share_words)
    return environment.from_string(files("poise.report").joinpath("screening.html.j2").read_text("utf-8"))


def _section(name: str, t: TraitSummary, summary: ScreeningSummary) -> Section:
    digits = _digits(t.norm)
    shown = (*t.top, *t.passed_by_judge, *t.seen_by_judge_only)
    centres = [_centre(one, t, summary) for one in shown]
    away = (value - c for one, c in zip(shown, centres, strict=True) for _, value in (*one.pieces, *one.rejected))
    step = step_of(away)
    cards = [
        Card(one, *(tinted(pieces, c, step, digits) if pieces else None for pieces in (one.pieces, one.rejected)))
        for one, c in zip(shown, centres, strict=True)
    ]
    deciles, overall = _deciles(t)
    return Section(
        t=t,
        name=name,
        digits=digits,
        flagged=_share(t.flagged, t.units),
        thresholds=_thresholds(t, digits),
        above="the threshold of their length" if len(t.bands) > 1 else _thresholds(t, digits),
        beside=_beside(t),
        densities=_densities(name, t, digits, summary.method),
        means=_means(name, t, summary.method, digits),
        deciles=deciles,
        overall=overall,
        lengths=_lengths(t),
        trait=plain(t.trait, 100),
        rule=_sentence(t.rule),
        against=_against(t, summary),
        bounds=tuple(number(step * i, _places(step)) for i in range(1, STEPS + 1)),
        groups=_groups(name, t, summary, cards),
    )


def _thresholds(t: TraitSummary, digits: int) -> str:
    """A number, or the range of those by length."""
    if len(t.bands) < 2:
        return number(t.threshold, digits)
    values = [band.threshold for band in t.bands]
    return f"{number(min(values), digits)} to {number(max(values), digits)}, by length"


def _digits(norm: float) -> int:
    """Places after the point that show a hundredth of ‖v‖ or so."""
    return min(max(1 - math.floor(math.log10(norm)), 0), 6) + 1 if norm > 0 and math.isfinite(norm) else 2


def _places(step: float) -> int:
    text = f"{step:.10f}".rstrip("0")
    return len(text.partition(".")[2])


def _sentence(words: str) -> str:
    kept = plain(words).strip()
    return f"{kept[:1].upper()}{kept[1:]}{'' if kept.endswith(('.', '!', '?')) or not kept else '.'}"


def _usual(t: TraitSummary) -> Estimate:
    return t.normal if t.normal and t.normal.value is not None else t.mean


def _centre(one: AnswerExample, t: TraitSummary, summary: ScreeningSummary) -> float:
    """What has no tint: where the score would be 0 for projection differences, and for others the usual score.

    Distances from it average to the score, or to what the score has above the usual, over the tokens shown.
    """
    if one.readings:  # half way between the two answers of a pair
        return sum(one.readings) / 2
    usual = 0.0 if summary.method == "difference" else _usual(t).value or 0.0
    if summary.method == "raw":
        return usual
    known = [value for _, value in one.pieces if math.isfinite(value)]
    return sum(known) / max(len(known), 1) - one.score + usual


def _against(t: TraitSummary, summary: ScreeningSummary) -> str:
    """The centre in words."""
    if summary.method == "preference":
        return "the middle between the two answers"
    if summary.method == "difference":
        return "the model’s own answer"
    return f"the mean of {'normal data' if _usual(t) is t.normal else 'all answers'}"


def _share(part: int, n: int) -> Share:
    """Wilson's interval, which holds near 0 and 1 too."""
    if n <= 0:
        return Share(part=part, n=n, value=None, low=None, high=None)
    p, z2 = part / n, Z * Z
    middle, half = (p + z2 / (2 * n)) / (1 + z2 / n), Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Share(part=part, n=n, value=100 * p, low=100 * max(middle - half, 0.0), high=100 * min(middle + half, 1.0))


def _share_words(share: Share) -> str:
    """``3.5 % [2.6, 4.8]``."""
    if share.value is None:
        return "– none to count"
    return f"{number(share.value)}\N{NO-BREAK SPACE}% [{number(share.low)}, {number(share.high)}]"


def _interval(found: Estimate | None, digits: int) -> str:
    if found is None or found.value is None:
        return "not measured"
    if found.low is None or found.high is None:
        return "no interval"
    return f"[{number(found.low, digits)}, {number(found.high, digits)}]"


def _beside(t: TraitSummary) -> str:
    """How the two means lie, by their intervals."""
    if t.normal is None:
        return "No normal data were given to compare with."
    ours, usual = t.mean, t.normal
    if ours.low is None or ours.high is None or usual.low is None or usual.high is None:
        return "The two means cannot be compared: an interval is missing."
    few = ours.too_few or usual.too_few
    if few and (ours.low > usual.high or ours.high < usual.low):
        side = "above" if ours.low > usual.high else "below"
        return f"The data’s mean lies {side} that of normal data, which is only indicative: {few}."
    if ours.low > usual.high:
        return "The data’s mean lies above that of normal data, and their intervals do not meet."
    if ours.high < usual.low:
        return "The data’s mean lies below that of normal data, and their intervals do not meet."
    return "The intervals of the data’s mean and of normal data’s meet: the two are not told apart."


def _deciles(t: TraitSummary) -> tuple[tuple[Decile, ...], float]:
    """Bars to one scale, and where the share of all answers lies on it."""
    shares = [_share(d.flagged, d.units) for d in t.by_length]
    overall = _share(t.flagged, t.units).value or 0.0
    full = max([s.value or 0.0 for s in shares] + [overall]) or 1.0
    rows = tuple(
        Decile(
            _span(d),
            share,
            round(100 * (share.value or 0.0) / full, 2),
        )
        for d, share in zip(t.by_length, shares, strict=True)
    )
    return rows, round(100 * overall / full, 2)


def _span(d: LengthDecile) -> str:
    return f"{d.shortest:,}" if d.shortest == d.longest else f"{d.shortest:,}–{d.longest:,}"


def _lengths(t: TraitSummary) -> str:
    """Whether any tenth stands out from the share of all, allowing for as many looks as there are tenths."""
    if not t.flagged:
        return "Nothing is flagged, so there is nothing to split by length."
    overall = t.flagged / t.units
    rare = 0.05 / 2 / max(len(t.by_length), 1)
    off = [
        f"{_span(d)} tokens ({'more' if d.flagged > overall * d.units else 'fewer'})"
        for d in t.by_length
        if _tail(d.flagged, d.units, overall) < rare
    ]
    if not off:
        return "No tenth differs from all answers by more than chance would have it among ten."
    return (
        f"Flagged more or less often than chance among ten tenths would have it: {', '.join(off)}. Length, or what "
        "goes with it in these data, has a part in the flags."
    )


def _tail(k: int, n: int, p: float) -> float:
    """The smaller of P(X ≤ k) and P(X ≥ k), X binomial."""
    if not 0 < p < 1:
        return 1.0
    logs = np.append(0.0, np.log(np.arange(1, n + 1)).cumsum())  # of factorials
    j = np.arange(n + 1)
    mass = np.exp(logs[n] - logs - logs[::-1] + j * math.log(p) + (n - j) * math.log1p(-p))
    return float(min(mass[: k + 1].sum(), mass[k:].sum()))


def _groups(name: str, t: TraitSummary, summary: ScreeningSummary, cards: Sequence[Card]) -> tuple[Group, ...]:
    top, passed, unit = len(t.top), len(t.passed_by_judge), UNITS[summary.method == "preference"]
    groups = [
        Group(
            open=True,
            name=f"{name}-top",
            title="Furthest above the threshold of their length" if len(t.bands) > 1 else "The highest scores",
            about=f"The {top:,} highest of {t.units:,} {unit}s.",
            none=f"– No {unit} has a score.",
            cards=tuple(cards[:top]),
        )
    ]
    if summary.judge is None:
        return tuple(groups)
    judge = plain(summary.judge, 200)
    return (
        *groups,
        Group(
            open=False,
            name=f"{name}-passed",
            title="Flagged here, passed by the judge",
            about=f"The projection flags these and the judge “{judge}” scores them low. Either may be wrong; in the "
            "paper, rows that a judge let pass and the projection did not still moved the model.",
            none="– None among the answers that the judge was asked about.",
            cards=tuple(cards[top : top + passed]),
        ),
        Group(
            open=False,
            name=f"{name}-alone",
            title="Seen by the judge alone",
            about=f"The judge “{judge}” scores these high and the projection does not flag them.",
            none="– None among the answers that the judge was asked about.",
            cards=tuple(cards[top + passed :]),
        ),
    )


def _densities(name: str, t: TraitSummary, digits: int, method: str) -> Markup | None:
    from poise.report import screening_plots as plots

    if len(t.edges) < 2 or t.edges[-1] <= t.edges[0]:
        return None
    said = f"Scores run from {number(t.edges[0], digits)} to {number(t.edges[-1], digits)}. "
    if t.threshold is not None or t.bands:
        said += f"{t.flagged:,} of {t.units:,} lie above the threshold, {_thresholds(t, digits)}. "
    unit = UNITS[method == "preference"]
    return _both(
        f"{name}-densities", lambda w: plots.densities(t, w, digits, unit), "Distribution of scores", said + _beside(t)
    )


def _means(name: str, t: TraitSummary, method: str, digits: int) -> Markup | None:
    from poise.report import screening_plots as plots

    if t.mean.value is None:
        return None
    parts = [("data", t.mean), ("normal data", t.normal)]
    said = "; ".join(f"{who}: {number(f.value, digits)} {_interval(f, digits)}, n = {f.n:,}" for who, f in parts if f)
    return _both(f"{name}-means", lambda w: plots.means(t, method, w, digits), "Mean scores", f"{said}.")


def _both(name: str, draw: Callable[[int], Canvas], title: str, description: str) -> Markup:
    """A figure for wide and for narrow screens; the style sheet shows one of the two."""
    from markupsafe import Markup

    from poise.report import validation_plots as plots

    sizes = {"wide": plots.WIDE, "narrow": plots.NARROW}
    drawn = (Markup(plots.svg(draw(width), f"{name}-{size}", title, description)) for size, width in sizes.items())
    return Markup("\n").join(drawn)
