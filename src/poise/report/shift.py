"""The HTML page of a shift report: what fine-tuning did to each trait, beside what was foretold and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from poise.report import check_extra, naming_the_extra
from poise.report.shift_contexts import ContextTable, heat_tables, hidden_traits
from poise.report.tinted import plain
from poise.report.wording import number
from poise.storage.atomic_write import saving

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

    from poise.shift.report import AnswerPair, JudgedChange, ModelShift, ShiftCell, ShiftReport, TraitDirection
    from poise.statistics.estimates import Estimate

__all__ = ["check_extra", "html_shift", "write_shift"]

STYLES = ("style.css", "shift.css")
DIGITS = 2  # of projections


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trait of one tuned model: its own shift, what was foretold of it, and the judge's scores where they count."""

    direction: TraitDirection
    cell: ShiftCell | None
    predicted: Estimate | None
    judged: JudgedChange | None
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One tuned model made ready."""

    t: ModelShift
    name: str
    called: str
    lead: str
    rows: tuple[Row, ...]
    matrix: tuple[tuple[str, tuple[ShiftCell, ...]], ...]
    picture: Markup | None
    samples: tuple[AnswerPair, ...]
    contexts: tuple[ContextTable, ...]
    hidden: tuple[str, ...]


def html_shift(report: ShiftReport) -> str:
    """One page with nothing outside itself and no script. Equal reports give equal text.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
    """
    with naming_the_extra():
        from markupsafe import Markup

        css = Markup("\n".join(files("poise.report").joinpath(f).read_text("utf-8") for f in STYLES))
        sections = [_section(f"m{i}", t, report) for i, t in enumerate(report.tuned, 1)]
        return _template().render(r=report, css=css, sections=sections, digits=DIGITS, base=plain(report.base, 200))


def write_shift(report: ShiftReport, path: Path) -> None:
    """Write the page to a file, whole or not at all.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    text = html_shift(report)
    with saving(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, plain=plain, interval=_interval)
    return environment.from_string(files("poise.report").joinpath("shift.html.j2").read_text("utf-8"))


def _section(name: str, t: ModelShift, report: ShiftReport) -> Section:
    rows = tuple(_row(d, t) for d in report.directions)
    matrix = tuple((a.trait, tuple(c for c in t.matrix if c.asked == a.trait)) for a in report.asked)
    return Section(
        t=t,
        name=name,
        called=plain(t.name, 200),
        lead=_lead(rows),
        rows=rows,
        matrix=matrix,
        picture=_picture(name, rows),
        samples=t.samples,
        contexts=heat_tables(t, report),
        hidden=tuple(hidden_traits(t)),
    )


def _row(direction: TraitDirection, t: ModelShift) -> Row:
    judged = next((j for j in t.judged if j.trait == direction.trait), None)
    counts = judged is not None and not judged.why_unusable and judged.change.value is not None
    return Row(
        direction=direction,
        cell=t.cell(direction.trait),
        predicted=t.predicted.get(direction.trait),
        judged=judged,
        counts=counts,
    )


def _lead(rows: Sequence[Row]) -> str:
    """Which traits moved which way, by their intervals; what is not told apart from no shift is said to be so."""
    ways: dict[str, list[str]] = {}
    for row in rows:
        ways.setdefault(_way(row), []).append(row.direction.trait)
    return " ".join(f"{way}: {', '.join(traits)}." for way, traits in ways.items())


def _way(row: Row) -> str:
    shift = row.cell.shift if row.cell else None
    if shift is None or shift.value is None:
        return "Not measured"
    if shift.low is None or shift.high is None:
        return "No interval"
    if shift.low <= 0 <= shift.high:
        return "Not told apart from no shift"
    way = "towards" if shift.low > 0 else "away from"
    return f"Only indicative ({shift.too_few}), {way}" if shift.too_few else f"Moved {way}"


def _picture(name: str, rows: Sequence[Row]) -> Markup | None:
    from markupsafe import Markup

    from poise.report import validation_plots as plots
    from poise.report.shift_plots import shifts

    shown = [(r.direction, r.cell.shift, r.predicted) for r in rows if r.cell and r.cell.shift.value is not None]
    if not shown:
        return None
    parts = []
    for direction, shift, predicted in shown:
        said = f", predicted {number(predicted.value, DIGITS)}" if predicted else ""
        parts.append(
            f"{direction.trait}: {number(shift.value, DIGITS)} {_interval(shift, DIGITS)}, n = {shift.n}{said}"
        )
    sizes = {"wide": plots.WIDE, "narrow": plots.NARROW}
    drawn = [
        Markup(plots.svg(shifts(shown, width), f"{name}-shifts-{size}", "Shift of each trait", "; ".join(parts) + "."))
        for size, width in sizes.items()
    ]
    return Markup("\n").join(drawn)


def _interval(found: Estimate | None, digits: int = DIGITS) -> str:
    if found is None or found.value is None:
        return "not measured"
    if found.low is None or found.high is None:
        return "no interval"
    return f"[{number(found.low, digits)}, {number(found.high, digits)}]"
