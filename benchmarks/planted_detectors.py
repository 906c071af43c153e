"""Planted rows once more: read by detectors, beside the vectors' own direction and the judge. Prints Markdown.

    python benchmarks/planted_detectors.py --data DIR [--model smollm2-135m] [--keep FOLDER]

The rows, scores and statistics are those of ``planted_rows.py``, with two changes: detectors are fitted on the
library's pairs and on ordinary talk of ``FIT_TALK`` alone, and the background comes from ``TEST_TALK`` alone, so that
no fit has seen its sources. *Today* is the projection on the mean difference at a third of the depth, as ``screen
--projection`` reads it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from detector_comparisons import FIT_TALK, TEST_TALK, talk
from planted_data import Row, cut, draw, gather, short
from planted_rows import RATES, WATCHED, Array, Scored, extracted, judged, project, table
from poise.detector.fitting import DetectorSettings, fit_checked, read_talk
from poise.judge.exemplars import embed
from poise.model import Model, ask, load_model
from poise.trait import library
from poise.vector import PersonaVector

FIT_ROWS = 150  # a source of ordinary talk
BACKGROUND_ROWS = 200  # a source of the background


def background(data: Path, model: Model) -> list[Row]:
    """The first answers of both test sources, as many of each."""
    rows: list[Row] = []
    for source in TEST_TALK:
        drawn = [Row("background", "background", tuple(ask(q)), a) for _, q, a in talk(source).rows(data) if a.strip()]
        usable = [row for row in (drawn[i] for i in draw(len(drawn), 2 * BACKGROUND_ROWS)) if short(model, row)]
        rows += usable[:BACKGROUND_ROWS]
    return [cut(model, row) for row in rows]


def with_detectors(vectors: Sequence[PersonaVector], data: Path, model: Model) -> list[PersonaVector]:
    rows = [{"prompt": q, "response": a} for s in FIT_TALK for _, q, a in talk(s).rows(data)[:FIT_ROWS]]
    read_once = read_talk(model, rows, limit=len(rows), seed=0)
    settings = DetectorSettings()
    return [fit_checked(v, model, read_once, v.header.trait.detector_pairs, settings) for v in vectors]


def report(rows: Sequence[Row], readers: dict[str, Array], names: Sequence[str]) -> None:
    """A line for each set and reader: AUC among the background and against matched rows, recall, precision."""
    normal = np.array([i for i, row in enumerate(rows) if row.side == "background"])
    fit = np.random.default_rng(1).permutation(len(normal)) % 2 == 0
    heads = ["planted", "n", "trait", "reader", "AUC", "AUC against matched", "recall, %", "false alarms, %"]
    table([*heads, *(f"{what} at {r:.0%}" for what in ("precision", "average precision") for r in RATES)])
    for where, name in ({f"exemplars: {name}": name for name in names} | WATCHED).items():
        sides = [
            np.array([i for i, r in enumerate(rows) if (r.where, r.side) == (where, s)], int)
            for s in ("planted", "matched")
        ]
        for reader, values in readers.items():
            column = np.nan_to_num(values[:, names.index(name)], nan=-np.inf)
            scored = Scored(column[normal], column[sides[0]], column[sides[1]], fit)
            print("|", " | ".join([where, str(len(sides[0])), name, reader, *scored.cells()]), "|", flush=True)


def main(data: Path, name: str, keep: Path) -> None:
    model = load_model(name)
    names = library.names()
    vectors = [extracted(trait, model, keep) for trait in names]
    detectors = with_detectors(vectors, data, model)
    rows = background(data, model) + [row for row in gather(data, model) if row.side != "background"]
    readers: dict[str, Array] = {}
    for reader, read_by in (("detector", detectors), ("today", vectors)):
        (keep / reader).mkdir(exist_ok=True)
        readers[reader] = project(model, read_by, rows, keep / reader, own=0)["raw"]
    embedded = embed([row.answer for row in rows])
    readers["exemplar judge"] = np.stack([judged(library.load_trait(trait), embedded) for trait in names], axis=1)
    count = sum(row.side == "background" for row in rows)
    print(f"{model.name}, {count} background rows of {' and '.join(TEST_TALK)}, {len(rows)} rows in all.\n")
    report(rows, readers, names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--keep", type=Path, help="folder for scores, to resume a run")
    options = parser.parse_args()
    with TemporaryDirectory() as nowhere:
        main(options.data, options.model, options.keep or Path(nowhere))
