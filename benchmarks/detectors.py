"""How well detectors read the seven traits on other people's data, beside today's reading and simple baselines.

    python benchmarks/detectors.py --data DIR [--model smollm2-135m] [--half choose|report] [--cache FILE]

Every kind of detector × layer × set of exemplar pairs, as the mean AUC over the comparisons of one half of
``detector_comparisons.py``; then, for the default detector, AUC and recall at 1 % false alarms of each comparison,
beside the projection on the mean difference at a third of the depth (today's reading), a bag of words, a bag of
character n-grams, the exemplar judge and the answer's length. Pairs are the library's; ordinary talk is ``FIT_TALK``.
Choose on *choose*; figures for the docs come from *report*. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detector_comparisons import COMPARISONS, FIT_TALK, Comparison, Row, talk
from poise.activations import read
from poise.detector.fitting import DETECTOR_DEPTH
from poise.detector.kinds import DIRECTION_FITS, AnswerGroups
from poise.judge.exemplars import ExemplarJudge
from poise.model import Encoded, Model, ask, load_model
from poise.statistics.estimates import Estimate, auc, bootstrap, mean_estimate, of_groups
from poise.trait import ExemplarPair, Trait, library

FRACTIONS = (1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.75, 0.85)
SETS: Mapping[str, Callable[[Trait], Sequence[ExemplarPair]]] = {
    "extraction": lambda trait: trait.extraction_pairs,
    "detector": lambda trait: trait.exemplars.detector,
    "both": lambda trait: trait.detector_pairs,
}
FIT_ROWS = 150  # a source of ordinary talk
Array = NDArray[Any]


class Reader:
    """Response means of texts at every layer, each text read once and kept in a file.

    Args:
        model: Read in its own dtype.
        cache: File of what was read; ``None`` keeps nothing.
        longest: Tokens of an answer that are read.
    """

    def __init__(self, model: Model, cache: Path | None, longest: int) -> None:
        self.model, self.cache, self.longest = model, cache, longest
        self.means: dict[tuple[str, str], torch.Tensor] = {}
        self.tokens: dict[tuple[str, str], int] = {}
        if cache and cache.exists():
            self.means, self.tokens = torch.load(cache, weights_only=True)

    def encode(self, question: str, answer: str) -> Encoded | None:
        text = self.model.encode(ask(question), answer)
        end = min(text.end, text.start + self.longest)
        return Encoded(text.ids[:end], text.start, end) if text.start < end <= self.model.window else None

    def read(self, texts: Sequence[tuple[str, str]]) -> None:
        """Read what was not read yet."""
        fresh = [(key, text) for key in dict.fromkeys(texts) if key not in self.means and (text := self.encode(*key))]
        for start in range(0, len(fresh), 512):
            part = fresh[start : start + 512]
            for (key, text), mean in zip(part, read(self.model, [text for _, text in part]), strict=True):
                self.means[key], self.tokens[key] = mean.half(), text.end - text.start
            if self.cache:
                torch.save((self.means, self.tokens), self.cache)

    def features(self, texts: Sequence[tuple[str, str]], layer: int) -> Array:
        """Response means at a layer, float64 [n, d]."""
        return torch.stack([self.means[key][layer] for key in texts]).double().numpy()


@dataclass(frozen=True)
class Fitted:
    """Where a trait's directions come from: its pairs by set, and ordinary talk."""

    traits: Mapping[str, Trait]
    talk: Sequence[tuple[str, str]]
    reader: Reader

    def groups(self, trait: str, pair_set: str, layer: int) -> AnswerGroups:
        pairs = SETS[pair_set](self.traits[trait])
        return AnswerGroups(
            positive=self.reader.features([(p.question, p.positive) for p in pairs], layer),
            negative=self.reader.features([(p.question, p.negative) for p in pairs], layer),
            talk=self.reader.features(self.talk, layer),
        )


def usable(reader: Reader, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if (row.question, row.answer) in reader.means]


def grouped_auc(scores: Array, rows: Sequence[Row]) -> Estimate:
    """AUC over all rows, resampled by group."""
    labels = np.array([row.label for row in rows])
    places = {group: place for place, group in enumerate(dict.fromkeys(row.group for row in rows))}
    by_group, n = of_groups(lambda i: auc(scores[i], labels[i]), [places[row.group] for row in rows])
    return bootstrap(by_group, n, draws=1000)


def recall(scores: Array, rows: Sequence[Row]) -> float:
    """Share of the rows with the trait above all but 1 % of the others."""
    labels = np.array([row.label for row in rows])
    return float((scores[labels] > np.quantile(scores[~labels], 0.99)).mean())


def scan(
    comparisons: Sequence[Comparison], rows: Mapping[str, list[Row]], fitted: Fitted, layers: Sequence[int]
) -> None:
    """The table of kinds, sets and layers: mean AUC over the comparisons."""
    print("| kind | pairs |", " | ".join(f"layer {layer}" for layer in layers), "|")
    print("|---|---|" + "---|" * len(layers))
    for kind, pair_set in itertools.product(DIRECTION_FITS, SETS):
        cells = []
        for layer in layers:
            directions = {c.trait: DIRECTION_FITS[kind](fitted.groups(c.trait, pair_set, layer)) for c in comparisons}
            values = []
            for c in comparisons:
                listed = rows[c.trait + c.name]
                scores = fitted.reader.features([(r.question, r.answer) for r in listed], layer) @ directions[c.trait]
                values.append(float(auc(scores, [row.label for row in listed])))
            cells.append(f"{np.mean(values):.3f}")
        print(f"| {kind} | {pair_set} |", " | ".join(cells), "|", flush=True)


def words(fitted: Fitted, trait: str, **options: Any) -> Callable[[Sequence[Row]], Array]:
    """Logistic regression on TF-IDF features of the same pairs and the same talk."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pairs = fitted.traits[trait].detector_pairs
    texts = [p.positive for p in pairs] + [p.negative for p in pairs] + [answer for _, answer in fitted.talk]
    labels = np.arange(len(texts)) < len(pairs)
    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, **options), LogisticRegression(C=10.0, class_weight="balanced")
    )
    model.fit(texts, labels)
    return lambda rows: np.asarray(model.decision_function([row.answer for row in rows]))


def readings(fitted: Fitted, trait: str, kind: str, pair_set: str, layer: int) -> Callable[[Sequence[Row]], Array]:
    direction = DIRECTION_FITS[kind](fitted.groups(trait, pair_set, layer))  # type: ignore[index]
    return lambda rows: fitted.reader.features([(r.question, r.answer) for r in rows], layer) @ direction


def judged(fitted: Fitted, trait: str) -> Callable[[Sequence[Row]], Array]:
    judge = ExemplarJudge.fit(fitted.traits[trait].judge_pairs)
    return lambda rows: np.array(
        [one.score if one.score is not None else 50.0 for one in judge(["" for _ in rows], [r.answer for r in rows])]
    )


def report(comparisons: Sequence[Comparison], rows: Mapping[str, list[Row]], fitted: Fitted) -> None:
    """The table of comparisons × readers, and the mean of each with the interval of its gain over the baselines."""
    layers = fitted.reader.model.layers
    third, deep = round(layers / 3), min(round(layers * DETECTOR_DEPTH), layers - 1)
    readers: dict[str, Callable[[str], Callable[[Sequence[Row]], Array]]] = {
        "detector": lambda t: readings(fitted, t, "ranking", "both", deep),
        "today": lambda t: readings(fitted, t, "mean-difference", "extraction", third),
        "words": lambda t: words(fitted, t),
        "characters": lambda t: words(fitted, t, analyzer="char_wb", ngram_range=(2, 5)),
        "judge": lambda t: judged(fitted, t),
        "length": lambda t: lambda rows: np.array([fitted.reader.tokens[r.question, r.answer] for r in rows], float),
    }
    print("| trait | comparison | n |", " | ".join(readers), "| recall at 1 %: detector, today |")
    print("|---|---|---|" + "---|" * (len(readers) + 1))
    made = {(name, t): build(t) for name, build in readers.items() for t in {c.trait for c in comparisons}}
    values: dict[str, list[float]] = {name: [] for name in readers}
    recalls: dict[str, list[float]] = {"detector": [], "today": []}
    for c in comparisons:
        listed = rows[c.trait + c.name]
        cells = []
        for name in readers:
            scores = made[name, c.trait](listed)
            estimate = grouped_auc(scores, listed)
            values[name].append(estimate.value or 0.0)
            cells.append(f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]")
            if name in recalls:
                recalls[name].append(recall(scores, listed))
        n = sum(row.label for row in listed)
        shares = ", ".join(f"{recalls[name][-1]:.2f}" for name in recalls)
        print(f"| {c.trait} | {c.name} | {n} + {len(listed) - n} |", " | ".join(cells), f"| {shares} |", flush=True)
    print()
    for name in readers:
        gain = mean_estimate(np.array(values["detector"]) - np.array(values[name]))
        print(f"- {name}: mean AUC {np.mean(values[name]):.3f}; detector's gain {gain}")
    for name, shares_of in recalls.items():
        print(f"- mean recall at 1 % false alarms, {name}: {np.mean(shares_of):.3f}")


def main(name: str, data: Path, half: str, most: int, cache: Path | None, longest: int) -> None:
    model = load_model(name)
    reader = Reader(model, cache, longest)
    traits = {trait: library.load_trait(trait) for trait in library.names()}
    fit_talk = [(q, a) for source in FIT_TALK for _, q, a in talk(source).rows(data)[:FIT_ROWS]]
    comparisons = [c for c in COMPARISONS if c.half == half]
    wanted = [traits[trait] for trait in sorted({c.trait for c in COMPARISONS})]
    pairs = [(p.question, a) for t in wanted for p in t.detector_pairs for a in (p.positive, p.negative)]
    listed = {c.trait + c.name: c.rows(data, most) for c in comparisons}
    reader.read([*pairs, *fit_talk, *((r.question, r.answer) for rows in listed.values() for r in rows)])
    rows = {key: usable(reader, some) for key, some in listed.items()}
    fitted = Fitted(traits, [text for text in fit_talk if text in reader.means], reader)
    print(f"{model.name}, {half} half, {len(comparisons)} comparisons, at most {most} rows a side.\n")
    scan(comparisons, rows, fitted, [min(round(f * model.layers), model.layers - 1) for f in FRACTIONS])
    print()
    report(comparisons, rows, fitted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--half", choices=("choose", "report"), default="choose")
    parser.add_argument("--rows", type=int, default=100, help="most rows a side of a comparison")
    parser.add_argument("--tokens", type=int, default=700, help="most tokens of an answer that are read")
    parser.add_argument("--cache", type=Path, help="file that keeps what was read")
    options = parser.parse_args()
    main(options.model, options.data, options.half, options.rows, options.cache, options.tokens)
