"""What steering by itself adds to a reading, so that a steered answer is judged by what it says."""

from __future__ import annotations

from typing import Literal

from poise.activations import Probe
from poise.model.parts import TokenPart
from poise.steer import Steering

__all__ = ["steering_offset"]


def steering_offset(
    steering: Steering | None,
    probe: Probe,
    phase: Literal["prompt", "response"],
    part: TokenPart = "reply",
) -> float | None:
    """What a steering by itself adds to a probe's reading: α·v along it, carried up by the residual stream.

    Where a vector is added at the layer that it is watched at, a reading less its push is exactly that of the same
    text unsteered. ``None`` where a condition, schedule, cap, clamp or projection works at or below the watched
    layer: what it does is not known beforehand, and stays in the reading. Of the response, ``part`` says which part's
    tokens are read; the marks around a thought are steered only with both.
    """
    at_work = zip(steering.terms, steering.directions(), strict=True) if steering else ()
    below = [(term, along) for term, along in at_work if min(term.touched) <= probe.layer]
    if not all(term.shared for term, _ in below):
        return None
    adding = [
        along
        for term, along in below
        if term.phase in (phase, "all") and (phase == "prompt" or term.part in (part, "both"))
    ]
    added = [v for along in adding for i, v in along.items() if i <= probe.layer]
    return float(sum(v @ probe.direction for v in added))
