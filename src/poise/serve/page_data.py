"""Vectors and readings as the page shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from poise.serve.readings_db import StoredMean
from poise.serve.rendering import finite
from poise.serve.responses import iso
from poise.serve.vector_registry import WatchedVector
from poise.statistics.intervals import mean_interval
from poise.steer import limits

__all__ = ["history", "vector_entry"]


def vector_entry(watched: WatchedVector) -> dict[str, Any]:
    """A vector as the API gives it."""
    vector, header, normal = watched.vector, watched.vector.header, watched.normal
    default = vector.at("steer").layer
    norms = {str(default): finite(float(vector.norms[default]))}
    norms[str(watched.probe.layer)] = finite(vector.at("read", watched.probe.layer).difference)
    return {
        "name": watched.name,
        "description": str(getattr(header.trait, "description", "")),
        "layers": vector.layers,
        "width": vector.width,
        "default_layer": default,
        "watched_layer": watched.probe.layer,
        "norm": norms,
        "dose_of_one": finite(vector.dose(1.0, default)),
        "dial": {
            "most": limits.LARGEST_DIAL_DOSE,
            "range": list(limits.UNCERTIFIED_DIAL_RANGE),
            "risky": limits.RISKY_DOSE,
            "rounding": limits.DOSE_ROUNDING,
        },
        "relation": watched.relation.kind,
        "fixed": watched.fixed,
        "owner": watched.owner,
        "certificate": header.certificate,
        "normal": normal and {"mean": normal.mean, "sd": normal.spread, "n": normal.n},
        "alarms": [alarm.model_dump(mode="json") for alarm in watched.alarms],
    }


def history(rows: Sequence[StoredMean], width: float) -> list[dict[str, Any]]:
    """Readings in stretches of ``width`` seconds, by trait and part of the answers; empty stretches are left out."""
    sorted_in: dict[tuple[str, str], dict[int, list[tuple[float | None, float | None, int]]]] = {}
    for trait, part, time, mean, peak, alarmed in rows:
        stretches = sorted_in.setdefault((trait, part), {})
        stretches.setdefault(math.floor(time / width), []).append((mean, peak, alarmed))
    return [
        {"trait": trait, "part": part, "buckets": [_bucket(at * width, rows) for at, rows in sorted(buckets.items())]}
        for (trait, part), buckets in sorted(sorted_in.items())
    ]


def _bucket(start: float, rows: Sequence[tuple[float | None, float | None, int]]) -> dict[str, Any]:
    means = np.array([mean for mean, _, _ in rows if mean is not None])
    peaks = np.array([peak for _, peak, _ in rows if peak is not None])
    low, high = _mean_interval(means)
    return {
        "start": iso(start),
        "n": len(means),
        "mean": float(means.mean()) if len(means) else None,
        "low": low,
        "high": high,
        "peak_p95": float(np.quantile(peaks, 0.95)) if len(peaks) else None,
        "alarms": sum(alarmed for _, _, alarmed in rows),
    }


def _mean_interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    low, high = mean_interval(values)
    return float(low), float(high)
