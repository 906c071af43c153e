"""A vector as notebooks show it: a small table and, once validated, its certificate with the dose curve as SVG.

Written by hand rather than with the room of reports, which stands above this one; nothing is needed to draw it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.vector.persona_vector import PersonaVector

__all__ = ["vector_html"]

WIDTH, HEIGHT, MARGIN = 340, 150, 30  # pixels
TRAIT, COHERENCE = "#b3261e", "#5f6368"


def vector_html(vector: PersonaVector) -> str:
    """A table of what the vector is, with every text escaped."""
    header = vector.header
    steer, layers = vector.at("steer").layer, vector.layers
    rows = [
        ("Trait", _description(vector)),
        ("Model", f"{header.model.name}, {layers} layers of width {vector.width}"),
        ("Source", header.provenance or header.contrast),
        ("Steers at", f"layer {steer} of {layers}, where coefficient 1 is a dose of {_percent(vector, steer)}"),
    ]
    if vector.norms.any() and (place := vector.at("read")).layer != steer:
        rows.append(("Read at", f"layer {place.layer} of {layers}"))
    if header.detector:
        rows.append(("Detector", f"{header.detector.kind} at layer {header.detector.layer}"))
    if header.alarms:
        rows.append(("Alarms", f"{len(header.alarms)} at layer {header.alarms[0].layer}"))
    rows.append(("Certificate", _certificate_text(header.certificate)))
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in rows
    )
    return (
        f"<div><strong>{escape(vector.name)}</strong><table>{cells}</table>{dose_curve_svg(header.certificate)}</div>"
    )


def dose_curve_svg(certificate: Mapping[str, Any] | None) -> str:
    """Trait score and coherence over the dose, as an SVG; empty where there are fewer than two points to draw."""
    points = _curve_points(certificate)
    if len(points) < 2:
        return ""
    doses = [dose for dose, _, _ in points]
    low, high = min(doses), max(doses)
    if low == high:
        return ""

    def line(column: int, colour: str) -> str:
        places = " ".join(
            f"{MARGIN + (p[0] - low) / (high - low) * (WIDTH - 2 * MARGIN):.1f},{_height(p[column]):.1f}"
            for p in points
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{places}"/>'

    def label(x: float, y: float, text: str, *, anchor: str = "middle", colour: str = "currentColor") -> str:
        return f'<text x="{x}" y="{y}" font-size="10" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'

    bottom = HEIGHT - MARGIN
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="Trait score and coherence by dose">'
        f'<path d="M{MARGIN},{MARGIN / 2} V{bottom} H{WIDTH - MARGIN}" fill="none" stroke="currentColor"/>'
        f"{line(1, TRAIT)}{line(2, COHERENCE)}"
        f"{label(MARGIN - 4, _height(100) + 4, '100', anchor='end')}{label(MARGIN - 4, bottom, '0', anchor='end')}"
        f"{label(MARGIN, bottom + 14, f'{low:.0%}')}{label(WIDTH - MARGIN, bottom + 14, f'{high:.0%}')}"
        f"{label(WIDTH / 2, bottom + 14, 'dose')}"
        f"{label(MARGIN + 6, MARGIN / 2 + 8, 'trait score', anchor='start', colour=TRAIT)}"
        f"{label(MARGIN + 70, MARGIN / 2 + 8, 'coherence', anchor='start', colour=COHERENCE)}"
        "</svg>"
    )


def _height(score: float) -> float:
    """Where a score from 0 to 100 is drawn."""
    top, bottom = MARGIN / 2, HEIGHT - MARGIN
    return bottom - min(max(score, 0.0), 100.0) / 100 * (bottom - top)


def _curve_points(certificate: Mapping[str, Any] | None) -> Sequence[tuple[float, float, float]]:
    """Dose, trait score and coherence in the order of the dose; points without a figure are left out."""
    points: list[tuple[float, float, float]] = []
    for point in (certificate or {}).get("curve") or ():
        try:
            points.append((float(point["dose"]), float(point["trait"]["value"]), float(point["coherence"]["value"])))
        except (KeyError, TypeError, ValueError):  # a header may hold any JSON
            continue
    return sorted(point for point in points if all(abs(x) < float("inf") for x in point))


def _certificate_text(certificate: Mapping[str, Any] | None) -> str:
    if certificate is None:
        return "none; run poise.validate or `poise validate`"
    text = f"{certificate.get('verdict', 'unknown')} at layer {certificate.get('layer')}"
    dose = certificate.get("dose")
    return f"{text} and a dose of {dose:.0%}" if isinstance(dose, int | float) else text


def _percent(vector: PersonaVector, layer: int) -> str:
    return f"{vector.dose(1.0, layer):.0%}" if vector.reference_norm[layer] else "unknown"


def _description(vector: PersonaVector) -> str:
    return str(getattr(vector.header.trait, "description", "") or "given by exemplars alone")
