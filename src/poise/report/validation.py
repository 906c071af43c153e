"""The HTML page: values in, template filled, one string out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from poise.report import readings
from poise.report import validation_plots as plots
from poise.report import wording as words

if TYPE_CHECKING:
    from poise.statistics.estimates import Estimate
    from poise.validate.certificate import Certificate, Monitoring
    from poise.vector import Header

__all__ = ["render"]

_SOURCES = {"prompted": "contrasting system prompts", "exemplars": "exemplar pairs", "imported": "another tool"}
LEAST_SCALE = 25.0  # points: bars of small changes must not look large


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A row of the table of controls; ``None`` where there is no such figure."""

    name: str
    dose: float | None
    trait: Estimate | None
    coherence: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One question's change, and its bar in per cent of the width; no bar without a score."""

    question: str
    value: float | None
    left: float = 0.0
    width: float = 0.0
    zero: float = 0.0


def render(header: Header, certificate: Certificate) -> str:
    """The whole page."""
    means, means_not = words.meaning(header, certificate)
    return _template().render(
        header=header,
        c=certificate,
        css=Markup(_read("style.css")),
        induced=certificate.verdict == "induced",
        headline=words.headline(certificate),
        moved=words.moved(certificate),
        searched=words.searched(certificate.random.search) if certificate.random.search else "",
        means=means,
        means_not=means_not,
        chosen=words.chosen(certificate),
        dose_figure=_both("dose", plots.dose_curve, certificate, "Dose curve", _dose_words(certificate)),
        layer_figure=_both("layers", plots.layer_sweep, certificate, "Layer sweep", _layer_words(certificate)),
        **_readings(certificate),
        controls=_controls(certificate),
        changes=_changes(certificate),
        wrong=_wrong(certificate),
        provenance=_provenance(header, certificate),
        limits=words.limits(header, certificate),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=words.number, dose=words.dose, interval=words.interval, unusable=words.unusable)
    environment.filters.update(monitored=words.monitored, told=words.told, beside=words.beside)
    return environment.get_template("page.html.j2")


def _read(name: str) -> str:
    return files("poise.report").joinpath(name).read_text(encoding="utf-8")


def _readings(certificate: Certificate) -> dict[str, Markup]:
    if (m := certificate.monitoring) is None:
        return {}
    drawn = (
        ("ladder_figure", "rungs", readings.ladder, "The ladder", readings.describe_ladder(m)),
        ("readings_figure", "readings", readings.layers, "Readings by layer", readings.describe_layers(m)),
    )
    return {name: _both(prefix, draw, m, title, said) for name, prefix, draw, title, said in drawn}


def _both(name: str, draw: Any, value: Certificate | Monitoring, title: str, description: str) -> Markup:
    """A figure for wide and for narrow screens; the style sheet shows one of the two."""
    sizes = {"wide": plots.WIDE, "narrow": plots.NARROW}
    return Markup("\n").join(
        Markup(plots.svg(draw(value, width), f"{name}-{size}", title, description)) for size, width in sizes.items()
    )


def _dose_words(c: Certificate) -> str:
    number = words.number
    points = [
        f"dose {words.dose(p.dose)}: trait {number(p.trait.value)}, coherence {number(p.coherence.value)}"
        for p in c.curve
    ]
    random = f"Random directions at dose {words.dose(c.dose)}: trait {words.figure(c.random.trait)}."
    return f"{'; '.join(points)}. {random} The table below has every figure."


def _layer_words(c: Certificate) -> str:
    tried = sorted({p.layer for p in c.sweep})
    points = [p for p in c.sweep if p.trait.value is not None]
    if not points:
        return f"Layers {', '.join(map(str, tried)) or 'none'} were tried; no trait score could be had."
    best = max(points, key=lambda p: p.trait.value or 0.0)
    return (
        f"Layers tried: {', '.join(map(str, tried))}. Layer {c.layer} was chosen. The highest trait score, "
        f"{words.figure(best.trait)}, was at layer {best.layer} and dose {words.dose(best.dose)}."
    )


def _controls(c: Certificate) -> list[Control]:
    rows = []
    for name, point in (
        ("Unsteered", words.plain(c)),
        ("This vector, +", words.chosen(c)),
        ("This vector, −", words.mirrored(c)),
    ):
        if point is not None:
            rows.append(Control(name=name, dose=point.dose, trait=point.trait, coherence=point.coherence))
    rows.append(
        Control(
            name=f"Random directions ({c.random.draws} draws)",
            dose=c.random.dose,
            trait=c.random.trait,
            coherence=c.random.coherence,
        )
    )
    if c.prompting is None:
        return [*rows, Control(name="System prompts", dose=None, trait=None, coherence=None)]
    return [
        *rows,
        Control(
            name="System prompt for the trait", dose=None, trait=c.prompting.positive, coherence=c.prompting.coherence
        ),
        Control(
            name="System prompt against it",
            dose=None,
            trait=c.prompting.negative,
            coherence=c.prompting.negative_coherence,
        ),
    ]


def _changes(c: Certificate) -> list[Change]:
    """Questions from the largest rise to the largest fall, those without a score last."""
    known = [x for x in c.spread.changes if x is not None]
    low, high = min([0.0, *known]), max([LEAST_SCALE, *known])
    scale = 100 / (high - low)
    rows = []
    for question, value in zip(c.questions, c.spread.changes, strict=True):
        if value is None:
            rows.append(Change(question=question, value=None))
        else:
            left, zero = (min(value, 0.0) - low) * scale, -low * scale
            rows.append(
                Change(
                    question=question,
                    value=value,
                    left=round(left, 2),
                    width=round(abs(value) * scale, 2),
                    zero=round(zero, 2),
                )
            )
    return sorted(rows, key=lambda row: (row.value is None, -(row.value or 0.0)))


def _wrong(c: Certificate) -> str:
    known = [x for x in c.spread.changes if x is not None]
    if not known:
        return "– No question has a score both with and without steering, so no share can be given."
    fell = sum(x < 0 for x in known)
    said = f"{fell} of {len(known)} questions ({100 * c.spread.wrong_way:.0f} %) went the wrong way: their score fell."
    absent = len(c.spread.changes) - len(known)
    return f"{said} {absent} more had no score (–) and count in neither number." if absent else said


def _provenance(header: Header, c: Certificate) -> list[tuple[str, list[tuple[str, str]]]]:
    model = header.model
    hashes = [("architecture", model.architecture), ("weights", model.weights), ("chat template", model.template)]
    if model.adapter:
        hashes.append(("adapter", model.adapter))
    made = [
        ("Source", header.provenance or _SOURCES[header.contrast]),
        ("Kept", _counts(header.kept) or "– not known"),
        ("Dropped", _counts(header.dropped) or "none"),
        ("Filtered by", f"{header.judge} ({_counts(header.thresholds)})" if header.judge else "nobody"),
        ("Agreement of single differences", f"mean cosine {words.number(c.agreement, 2)} at layer {c.layer}"),
        ("Pooling", header.pooling.replace("_", " ")),
        ("Seed", str(header.seed)),
        ("Versions", _counts(header.software)),
    ]
    measured = [
        ("Questions", f"{len(c.selected_on)} to choose layer and dose, {len(c.questions)} others for everything else"),
        ("Answers a question", str(c.rollouts)),
        ("Longest answer", f"{c.max_new_tokens} tokens"),
        ("Temperature", f"{c.temperature:g}"),
        ("Usable doses", " to ".join(words.dose(d) for d in c.usable_doses)),
        ("Seed", str(c.seed)),
    ]
    description = getattr(header.trait, "description", "given by exemplar pairs alone")
    return [
        ("Trait", [("Name", header.trait.name), ("Description", description), ("Hash", header.trait_hash[:16])]),
        (
            "Model",
            [
                ("Name", model.name),
                ("Revision", model.revision or "– none given"),
                ("Fingerprint", ", ".join(f"{part} {value}" for part, value in hashes)),
                ("Layers", f"{c.layers}; {header.layers_are}"),
            ],
        ),
        ("Vector", made),
        ("Validation", measured),
    ]


def _counts(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
