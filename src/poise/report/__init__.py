"""What was found out about a vector, for people: one self-contained HTML file, one sentence, one picture.

Reads finished values and computes nothing about a model. Colours never carry a meaning alone, and what
is missing is shown as ``–`` with words.

    words    numbers and sentences
    plots    the figures, as inline SVG or PNG
    page     the HTML page
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from poise.errors import MissingExtra
from poise.report.wording import headline
from poise.storage.atomic_write import saving

if TYPE_CHECKING:
    from poise.validate.certificate import Certificate
    from poise.vector import PersonaVector

__all__ = ["figure_png", "headline", "html", "write"]

EXTRA = {"jinja2", "markupsafe", "matplotlib"}


def html(vector: PersonaVector, certificate: Certificate) -> str:
    """One page with nothing outside itself: no script, no font, no picture to fetch. Equal inputs give equal text.

    Args:
        vector: Whose header says where the direction comes from.
        certificate: What was measured about it.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
    """
    with naming_the_extra():
        from poise.report.validation import render
    return render(vector.header, certificate)


def write(vector: PersonaVector, certificate: Certificate, path: str | Path) -> None:
    """Write ``html`` to a file, whole or not at all.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    text = html(vector, certificate)
    with saving(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def figure_png(vector: PersonaVector, certificate: Certificate, path: str | Path) -> None:
    """Write the dose curve as a PNG on a light background, with a title of its own.

    Raises:
        MissingExtra: matplotlib is not installed.
        SaveFailed: the disk refused; an earlier file is untouched.
    """
    with naming_the_extra():
        from poise.report import validation_plots as plots
    header = vector.header
    picture = plots.png(
        certificate, f"{header.trait.name} on {header.model.name}: {certificate.verdict.replace('-', ' ')}"
    )
    with saving(Path(path)) as temporary:
        temporary.write_bytes(picture)


def check_extra() -> None:
    """Check before hours of work that its report can be drawn.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed.
    """
    with naming_the_extra():
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401


@contextlib.contextmanager
def naming_the_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRA:
            raise
        raise MissingExtra.of(f"A report needs {name}, which is not installed", "report") from error
