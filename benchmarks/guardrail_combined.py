"""Content rules read by activations and by the encoder together: which combination is better than either.

    python benchmarks/guardrail_combined.py --data DIR [--model M] [--rows N]

Both are fitted by ``fit_guard`` on one part of ordinary talk, as ``guardrail_shipped.py`` does. A combination is a sum
of the two readings in standard deviations of ordinary talk, the encoder's times a weight, or the higher of the two;
every way's threshold is set on another part of talk. Prints means over the comparisons of the half that is chosen on,
then those and each comparison of the other half. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from guardrail_comparisons import COMPARISONS, Comparison, Half, talk
from guardrail_quality import auc_shown, shown, threshold_of
from guardrail_shipped import RATE, TYPES, ShippedRules, conversations
from poise.model import load_model
from poise.statistics.estimates import grouped_auc_estimate

CombinedReadings = NDArray[np.float64]
Way = Callable[[CombinedReadings, CombinedReadings], CombinedReadings]
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
WAYS: Mapping[str, Way] = {
    "activations": lambda a, e: a,
    "encoder": lambda a, e: e,
    **{f"activations + {w:g} encoder": (lambda a, e, w=w: a + w * e) for w in WEIGHTS},
    "the higher": np.maximum,
}


class BothReaders:
    """Scores of texts by both, and the thresholds of each way."""

    def __init__(self, options: argparse.Namespace) -> None:
        rows: list[Any] = conversations(options.data, "fit")
        model = load_model(options.model)
        self._by = [
            ShippedRules("activations", TYPES, model, rows, "INPUT"),
            ShippedRules("encoder", TYPES, None, rows, "INPUT"),
        ]
        self._ordinary = talk(options.data, "threshold")
        self.number = len(self._ordinary)

    def scores(self, way: Way, rule: str, texts: list[str]) -> CombinedReadings:
        """Readings of a way."""
        by_activations, by_encoder = (rules.scores(rule, texts) for rules in self._by)
        return way(by_activations, by_encoder)

    def limit(self, way: Way, rule: str) -> float:
        """Its threshold."""
        return threshold_of(self.scores(way, rule, list(self._ordinary)), RATE)


def measured(
    readers: BothReaders, way: Way, sides: Mapping[Comparison, tuple[list[str], list[str]]]
) -> list[tuple[Comparison, CombinedReadings, CombinedReadings, float]]:
    """Each comparison's readings, and the threshold."""
    return [
        (c, readers.scores(way, c.filter, above), readers.scores(way, c.filter, below), readers.limit(way, c.filter))
        for c, (above, below) in sides.items()
    ]


def means(rows: list[tuple[Comparison, CombinedReadings, CombinedReadings, float]]) -> str:
    """Means over comparisons as cells, and the recall at the same alarms."""
    values = []
    for _, above, below, limit in rows:
        units = (np.arange(len(above)), np.arange(len(below)) + len(above))
        auc = grouped_auc_estimate(above, below, units).value or 0.0
        values.append((auc, float((above > limit).mean()), float((below > limit).mean())))
    return " | ".join(f"{value:.3f}" for value in np.mean(values, axis=0))


def main(options: argparse.Namespace) -> None:
    readers = BothReaders(options)
    print(f"{options.model}, thresholds of {RATE:g} on {readers.number} prompts, at most {options.rows} rows a side.\n")
    for half in get_args(Half):
        sides = {}
        for c in COMPARISONS:
            if c.half == half:
                above, below = c.sides(options.data, options.rows)
                sides[c] = (list(above), list(below)[: 2 * options.rows])
        print(f"**{half}**, {len(sides)} comparisons\n\n| way | mean AUC | recall at 1 % | stopped of the others |")
        print("|---|---|---|---|")
        for name, way in WAYS.items():
            print(f"| {name} | {means(measured(readers, way, sides))} |", flush=True)
        ordinary = list(talk(options.data, half))[: 2 * options.rows]
        print("\n| way | ordinary talk that any rule stops |\n|---|---|")
        for name, way in WAYS.items():
            hits = [readers.scores(way, rule, ordinary) > readers.limit(way, rule) for rule in TYPES]
            print(
                f"| {name} | {shown(int(np.any(hits, axis=0).sum()), len(ordinary))} of {len(ordinary)} |", flush=True
            )
        if half == "report":
            print("\n| way | filter | comparison | n | AUC | recall at 1 % | stopped of the others |")
            print("|---|---|---|---|---|---|---|")
            for name in options.detail:
                for c, above, below, limit in measured(readers, WAYS[name], sides):
                    units = (np.arange(len(above)), np.arange(len(below)) + len(above))
                    cells = " | ".join(shown(int((side > limit).sum()), len(side)) for side in (above, below))
                    value = auc_shown(grouped_auc_estimate(above, below, units))
                    print(f"| {name} | {c.filter} | {c.name} | {len(above)} + {len(below)} | {value} | {cells} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m", help="whose activations are read")
    parser.add_argument("--rows", type=int, default=50, help="most rows a side of a comparison")
    parser.add_argument(
        "--detail", nargs="+", choices=WAYS, default=("activations", "encoder", "activations + 1 encoder")
    )
    main(parser.parse_args())
