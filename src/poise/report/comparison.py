"""The HTML page of a comparison: what to do, accuracy and character of every arm, what it costs, and answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from poise.report import check_extra, naming_the_extra
from poise.report.tinted import plain
from poise.report.wording import interval, number
from poise.storage.atomic_write import saving

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup
    from matplotlib.figure import Figure as Canvas

    from poise.comparison.result import Comparison

__all__ = ["check_extra", "html_comparison", "write_comparison"]

COMPARISON_STYLES = ("style.css", "shift.css", "comparison.css")


def html_comparison(comparison: Comparison) -> str:
    """One page with nothing outside itself and no script. Equal results give equal text.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
    """
    with naming_the_extra():
        from markupsafe import Markup

        css = Markup("\n".join(files("poise.report").joinpath(f).read_text("utf-8") for f in COMPARISON_STYLES))
        titles = {arm.arm: arm.title for arm in comparison.arms}
        return _comparison_template().render(
            c=comparison,
            css=css,
            titles=titles,
            accuracy=_accuracy_picture(comparison),
            character=_character_picture(comparison),
            traits=[trait.trait for trait in comparison.arms[0].traits],
            abilities=[arm for arm in comparison.arms if arm.capability],
        )


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page to a file, whole or not at all.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    text = html_comparison(comparison)
    with saving(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@cache
def _comparison_template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, plain=plain, interval=interval)
    return environment.from_string(files("poise.report").joinpath("comparison.html.j2").read_text("utf-8"))


def _accuracy_picture(comparison: Comparison) -> Markup:
    from poise.report.comparison_plots import accuracies

    words = "; ".join(f"{arm.title}: {arm.accuracy:.2f}, n = {arm.accuracy.n}" for arm in comparison.arms)
    return _drawn(lambda width: accuracies(comparison.arms, width), "accuracy", "Accuracy of each arm", words)


def _character_picture(comparison: Comparison) -> Markup | None:
    from poise.report.comparison_plots import movements

    if not any(arm.traits for arm in comparison.arms[1:]):
        return None
    words = "; ".join(
        f"{arm.title}, {trait.trait}: {trait.shift:.2f}, n = {trait.shift.n}"
        for arm in comparison.arms[1:]
        for trait in arm.traits
    )
    return _drawn(lambda width: movements(comparison.arms[1:], width), "character", "Shift of each trait by arm", words)


def _drawn(draw: Callable[[int], Canvas], name: str, title: str, words: str) -> Markup:
    from markupsafe import Markup

    from poise.report import validation_plots as plots

    sizes = {"wide": plots.WIDE, "narrow": plots.NARROW}
    return Markup("\n").join(
        Markup(plots.svg(draw(width), f"{name}-{size}", title, f"{words}.")) for size, width in sizes.items()
    )
