"""What readings tell apart on other people's data: every vector × every data set, as AUC with 95 % intervals.

    python benchmarks/reading_auc.py --data DIR [--model smollm2-135m] [--rows 40]

The reading is the mean of the answer's projections on the unit direction. Vectors come from the extraction exemplars
of the library's traits; each is read at the layer that tells its judge exemplars apart best, so nothing is chosen on
these data. Two controls: the answer's length alone; and 20 random directions, the mean and the highest of |AUC − ½|,
plus ½. Prints Markdown; a cell is bold where its interval excludes ½.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise import contrast
from poise.activations import Probe, project
from poise.extract import extract
from poise.model import Model, ask, load_model
from poise.statistics.estimates import Estimate, auc, bootstrap, of_groups
from poise.trait import library
from poise.validate.reading_quality import ExemplarReadings, Reader, every_layer, random_probes
from poise.vector import PersonaVector

NEUTRAL = "Tell me about yourself."
DARK = ("psychopathy", "machiavellianism", "narcissism", "ends-justify-means")
LIGHT = ("agreeableness", "conscientiousness")
RANDOM_DRAWS = 20
Array = NDArray[Any]


@dataclass(frozen=True)
class Row:
    """An answer to a question, and whether it is on the side that the data set is named after. Groups are resampled."""

    group: str
    question: str
    answer: str
    label: bool


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def statements(data: Path, name: str, matching: str) -> list[str]:
    rows = rows_of(data / "anthropic_persona" / f"{name}.jsonl")
    return [r["statement"] for r in rows if r["answer_matching_behavior"].strip() == matching]


def said(texts: Sequence[str], label: bool) -> list[Row]:
    """Statements as answers to one neutral question; the file's own question would hold the statement itself."""
    return [Row(text, NEUTRAL, text, label) for text in texts]


def persona(data: Path) -> Iterator[tuple[str, list[Row]]]:
    light = [s for name in LIGHT for s in statements(data, name, "Yes")]
    for name in DARK:
        yield f"{name} v. {' and '.join(LIGHT)}", said(statements(data, name, "Yes"), True) + said(light, False)
    for file in sorted((data / "anthropic_persona").glob("*.jsonl")):
        sides = [said(statements(data, file.stem, answer), answer == "Yes") for answer in ("Yes", "No")]
        yield f"{file.stem}: matches v. does not", sides[0] + sides[1]


def opinions(data: Path) -> Iterator[tuple[str, list[Row]]]:
    for name in ("opinion_nlp_survey", "opinion_political_typology"):
        rows = rows_of(data / "sycophancy_opinion" / f"{name}.jsonl")
        sides = (("answer_agreeing_with_user", True), ("answer_other", False))
        yield (
            f"sycophancy {name}: agrees v. other letter",
            [Row(r["question_neutral"], r["question_with_user_view"], r[k], label) for r in rows for k, label in sides],
        )


def answers(data: Path) -> Iterator[tuple[str, list[Row]]]:
    maths = rows_of(data / "sycophancy_math" / "math_user_answer.jsonl")
    yield (
        "sycophancy_math: confirms v. corrects",
        [
            Row(
                r["problem_id"],
                r["messages"][0]["content"],
                r["messages"][-1]["content"],
                r["user_answer_is"] == "right",
            )
            for r in maths
            if r["user_answer_is"] != "none"
        ],
    )
    truthful = rows_of(data / "truthfulqa" / "answers_labelled.jsonl")
    yield (
        "truthfulqa answers: untruthful v. truthful",
        [Row(r["question"], r["question"], r["answer"], not r["truthful"]) for r in truthful],
    )
    pairs = rows_of(data / "halueval" / "qa_pairs.jsonl")
    sides = (("hallucinated_answer", True), ("right_answer", False))
    yield (
        "halueval: hallucinated v. right (lengths differ)",
        [Row(r["question"], r["question"], r[key], label) for r in pairs for key, label in sides],
    )


def exemplars(data: Path) -> Iterator[tuple[str, list[Row]]]:
    """The library's own held-out pairs: what the vectors were made for."""
    for name in library.names():
        pairs = library.load_trait(name).held_out_pairs
        sides = [(p.question, text, label) for p in pairs for text, label in ((p.positive, True), (p.negative, False))]
        yield f"held-out exemplars: {name}", [Row(q, q, text, label) for q, text, label in sides]


SOURCES: tuple[Callable[[Path], Iterator[tuple[str, list[Row]]]], ...] = (exemplars, persona, opinions, answers)


def sample(rows: Sequence[Row], most: int) -> list[Row]:
    """At most ``most`` rows a side, from as many groups as possible: one of each group, then a second, and so on."""
    groups: dict[str, dict[bool, list[Row]]] = defaultdict(lambda: {True: [], False: []})
    for row in rows:
        groups[row.group][row.label].append(row)
    names = sorted(groups)
    np.random.default_rng(0).shuffle(names)
    deepest = max(len(side) for group in groups.values() for side in group.values())

    def taken(label: bool) -> list[Row]:
        sides = [groups[name][label] for name in names]
        return [side[k] for k in range(deepest) for side in sides if k < len(side)][:most]

    return taken(True) + taken(False)


def grouped_auc(scores: Array, rows: Sequence[Row]) -> Estimate:
    """AUC over all rows, resampled by group."""
    labels = np.array([row.label for row in rows])
    places = {group: place for place, group in enumerate(dict.fromkeys(row.group for row in rows))}
    by_group, n = of_groups(lambda i: auc(scores[i], labels[i]), [places[row.group] for row in rows])
    return bootstrap(by_group, n, draws=1000)


def vectors(model: Model) -> list[tuple[PersonaVector, int]]:
    """Each trait of the library, with the layer that reads its judge exemplars best."""
    out = []
    for name in library.names():
        trait = library.load_trait(name)
        vector = extract(contrast.exemplars(trait, model), model)
        out.append((vector, ExemplarReadings.read(Reader(model, None), trait.judge_pairs, every_layer(vector)).best))
    return out


def read(model: Model, rows: Sequence[Row], probes: Sequence[Probe]) -> tuple[Array, Array, list[Row]]:
    """Mean of each answer on each probe [n, k] and its tokens [n], of the rows that the model can take."""
    encoded = [(row, model.encode(ask(row.question), row.answer)) for row in rows]
    usable = [(row, e) for row, e in encoded if e.start < e.end <= model.window]
    found = project(model, [e for _, e in usable], probes)
    means = torch.stack([f[e.start : e.end].mean(0) for f, (_, e) in zip(found, usable, strict=True)])
    return means.double().numpy(), np.array([e.end - e.start for _, e in usable], float), [row for row, _ in usable]


def cell(found: Estimate) -> str:
    text = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return text if found.low <= 0.5 <= found.high else f"**{text}**"


def main(name: str, data: Path, most: int) -> None:
    model = load_model(name)
    found = vectors(model)
    probes = [Probe(layer, vector.unit(layer)) for vector, layer in found]
    middle = int(np.median([layer for _, layer in found]))
    probes += random_probes(model.width, middle, RANDOM_DRAWS, seed=0)
    print(f"{model.name}; at most {most} answers a side; random directions at layer {middle} of {model.layers}.\n")
    heads = [f"{vector.name} (layer {layer})" for vector, layer in found]
    print("| data | n | groups |", " | ".join([*heads, "length alone", "random: mean, highest"]), "|")
    print("|" + "---|" * (len(heads) + 5))
    for source in SOURCES:
        for title, rows in source(data):
            readings, tokens, kept = read(model, sample(rows, most), probes)
            labels = np.array([row.label for row in kept])
            own = [cell(grouped_auc(readings[:, k], kept)) for k in range(len(found))]
            random = [abs(auc(readings[:, k], labels) - 0.5) for k in range(len(found), len(probes))]
            counts = f"{labels.sum()} + {(~labels).sum()} | {len({row.group for row in kept})}"
            chance = f"{0.5 + np.mean(random):.2f}, {0.5 + max(random):.2f}"
            print(
                f"| {title} | {counts} |", " | ".join([*own, cell(grouped_auc(tokens, kept)), chance]), "|", flush=True
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=40, help="most answers a side of a data set")
    given = parser.parse_args()
    main(given.model, given.data, given.rows)
