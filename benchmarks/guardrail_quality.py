"""How well a guardrail's content filters read other people's data, beside words, an encoder, a word list and a judge.

    python benchmarks/guardrail_quality.py --data DIR [--model M] [--half choose|report] [--rows N] [--cache FILE]

Filters are fitted as ``poise guardrail fit`` fits them, from the exemplars in the package and a part of ordinary talk;
thresholds of 1 % and 5 % are set on another part. On *choose*: readings, layers, regularisation, exemplars, as means
over the comparisons of ``guardrail_comparisons.py``. On *report*: every comparison, false alarms on talk that neither
fit nor threshold saw, harmless prompts of XSTest that any filter stops, and what each way costs. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml

import guardrail_baselines as baselines
from guardrail_activations import ActivationStore, Array, Reading
from guardrail_baselines import FilterTexts, Scorer
from guardrail_comparisons import COMPARISONS, Comparison, Half, talk, xstest
from poise.guardrail.fitting import GUARD_DEPTH, GUARD_RIDGE
from poise.model import ask, load_model
from poise.statistics.conformal import exact_interval, rank_of_threshold
from poise.statistics.estimates import Estimate, grouped_auc_estimate

RATES = (0.01, 0.05)
FEW = 8  # exemplars a side that there were at first


@dataclass(frozen=True)
class Fit:
    """How a filter is fitted and read."""

    layer: int
    reading: Reading = "last"
    strength: float = GUARD_RIDGE
    """C of the regression on standardised activations."""
    exemplars: int | None = None
    """The first so many a side; ``None`` for all."""
    others: bool = False
    """Whether near misses of the other filters are negatives too."""


@dataclass(frozen=True)
class Figures:
    """What a way of scoring comes to on a comparison."""

    auc: Estimate
    recalls: tuple[tuple[int, int], ...]
    """Stopped and all of the texts that are to be stopped, at each rate."""
    alarms: tuple[tuple[int, int], ...]
    """The same of those that are not."""


class Filters:
    """Exemplars, ordinary talk and what of them is read."""

    def __init__(self, store: ActivationStore, data: Path, share: int) -> None:
        self.store = store
        text = (files("poise.guardrail") / "content_exemplars.yaml").read_text("utf-8")
        self.exemplars: Mapping[str, Mapping[str, list[str]]] = yaml.safe_load(text)
        self.exemplars = {name: sides for name, sides in self.exemplars.items() if name != "INDIRECT_ATTACK"}
        self.talk = {part: talk(data, part)[::share] for part in ("fit", "threshold", "choose", "report")}
        self._ids: dict[str, tuple[int, ...]] = {}

    def texts(self, name: str, fit: Fit) -> FilterTexts:
        """What a filter is fitted to."""
        most = fit.exemplars
        near = list(self.exemplars[name]["near_misses"][:most])
        if fit.others:
            near += [t for other, sides in self.exemplars.items() if other != name for t in sides["near_misses"][:most]]
        return FilterTexts(self.exemplars[name]["examples"][:most], near, self.talk["fit"])

    def read(self, texts: Sequence[str]) -> None:
        """Read what was not read yet."""
        self.store.read([ask(text) for text in dict.fromkeys(texts)])

    def ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of prompts."""
        for text in texts:
            if text not in self._ids:
                self._ids[text] = self.store.model.encode(ask(text)).ids
        return [self._ids[text] for text in texts]

    def scorer(self, name: str, fit: Fit) -> Scorer:
        """A filter fitted to its texts."""
        texts = self.texts(name, fit)
        features = self.store.of_texts(self.ids(texts.all), fit.layer, fit.reading)
        direction = logistic(features, texts, fit.strength)
        return lambda some: self.store.scores(self.ids(some), fit.layer, fit.reading, direction)


def logistic(features: Array, texts: FilterTexts, strength: float) -> Array:
    """A logistic regression's direction on features of equal spread, as ``poise.detector.kinds`` has it."""
    from sklearn.linear_model import LogisticRegression

    spread = features.std(0) + 1e-6 * features.std()
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=500)
    model.fit((features - features.mean(0)) / spread, texts.labels, sample_weight=texts.weights)
    return np.asarray(model.coef_[0] / spread)


def threshold_of(scores: Array, rate: float) -> float:
    """The value that at most so large a share of talk to come is above."""
    rank = rank_of_threshold(len(scores), rate)
    if rank < 1:
        raise ValueError(f"{len(scores)} texts set no threshold of {rate:g}; take more ordinary talk.")
    return float(np.sort(scores)[::-1][rank - 1])


def measure(scorer: Scorer, positive: Sequence[str], negative: Sequence[str], ordinary: Sequence[str]) -> Figures:
    """AUC, and what is stopped at thresholds that ordinary talk set."""
    above, below, usual = scorer(positive), scorer(negative), scorer(ordinary)
    thresholds = [threshold_of(usual, rate) for rate in RATES]
    units = (np.arange(len(above)), np.arange(len(below)) + len(above))
    return Figures(
        grouped_auc_estimate(above, below, units),
        tuple((int((above > value).sum()), len(above)) for value in thresholds),
        tuple((int((below > value).sum()), len(below)) for value in thresholds),
    )


def shown(k: int, n: int) -> str:
    """A share with its exact interval."""
    low, high = exact_interval(k, n)
    return f"{k / n:.2f} [{low:.2f}, {high:.2f}]"


def auc_shown(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


Sides = Mapping[Comparison, tuple[list[str], list[str]]]


def summary(of: Callable[[str], Scorer], sides: Sides, ordinary: Sequence[str]) -> str:
    """Means over comparisons, as cells of a table."""
    scorers = {name: of(name) for name in {c.filter for c in sides}}
    figures = [measure(scorers[c.filter], *texts, ordinary) for c, texts in sides.items()]
    means = [np.mean([f.auc.value or 0.0 for f in figures])]
    means += [np.mean([f.recalls[k][0] / f.recalls[k][1] for f in figures]) for k in range(len(RATES))]
    return " | ".join(f"{mean:.3f}" for mean in means)


def choose(filters: Filters, sides: Sides) -> None:
    """Tables of ways to fit, as means over the comparisons of the half."""
    ordinary = filters.talk["threshold"]
    print("| fit | mean AUC | recall at 1 % | at 5 % |\n|---|---|---|---|")

    def row(title: str, of: Callable[[str], Scorer]) -> None:
        print(f"| {title} | {summary(of, sides, ordinary)} |", flush=True)

    def filter_row(title: str, fit: Fit) -> None:
        row(title, lambda name: filters.scorer(name, fit))

    layers = filters.store.layers
    readings: tuple[Reading, ...] = ("last", "mean", "windows")
    for reading, layer, few in itertools.product(readings, layers, (FEW, None)):
        fit = Fit(layer, reading, exemplars=few)
        filter_row(f"{reading}, layer {layer}, {few or 'all'} exemplars", fit)
    for reading, strength, others in itertools.product(readings, (3e-5, 1e-4, 3e-4, 3e-3, 1e-1), (False, True)):
        fit = Fit(layers[3], reading, strength, others=others)
        filter_row(f"{reading}, layer {layers[3]}, C {strength:g}, {'all' if others else 'own'} near misses", fit)
    base = Fit(layers[3])
    for strength, others in itertools.product((0.1, 1.0, 10.0), (False, True)):
        fit = replace(base, others=others)
        for way, fitted in (("words", baselines.words), ("encoder", baselines.encoder)):
            title = f"{way}, C {strength:g}, {'all' if others else 'own'} near misses"
            row(title, lambda name, f=fit, c=strength, fitted=fitted: fitted(filters.texts(name, f), c))  # type: ignore[misc]
    row("word list", lambda _: baselines.word_list())


def report(filters: Filters, sides: Sides, fit: Fit, data: Path | None, judged: int) -> None:
    """Every comparison by every way of scoring, false alarms, XSTest and costs."""
    ordinary = filters.talk["threshold"]
    names = list(filters.exemplars)
    ways: dict[str, Mapping[str, Scorer]] = {
        "filter": {name: filters.scorer(name, fit) for name in names},
        "words": {name: baselines.words(filters.texts(name, fit)) for name in names},
        "encoder": {name: baselines.encoder(filters.texts(name, fit), 1.0) for name in names},
        "word list": dict.fromkeys(names, baselines.word_list()),
    }
    print("| filter | comparison | way | n | AUC | recall at 1 % | at 5 % | alarms at 1 % | at 5 % |")
    print("|---|---|---|---|---|---|---|---|---|")
    for c, (positive, negative) in sides.items():
        for way, scorers in ways.items():
            figures = measure(scorers[c.filter], positive, negative, ordinary)
            shares = " | ".join(shown(*pair) for pair in (*figures.recalls, *figures.alarms))
            n = f"{len(positive)} + {len(negative)}"
            print(f"| {c.filter} | {c.name} | {way} | {n} | {auc_shown(figures.auc)} | {shares} |", flush=True)
    print("\nMeans over the comparisons:\n\n| way | AUC | recall at 1 % | at 5 % |\n|---|---|---|---|")
    for way, scorers in ways.items():
        print(f"| {way} | {summary(scorers.__getitem__, sides, ordinary)} |")
    if data:
        any_filter(filters, ways, ordinary, data)
    costs(filters, ways, fit, [text for texts, _ in sides.values() for text in texts][:200:4])
    if judged:
        judge_table(filters, sides, ways["filter"], judged)


def any_filter(filters: Filters, ways: Mapping[str, Mapping[str, Scorer]], ordinary: Sequence[str], data: Path) -> None:
    """Prompts that any filter stops, each at its own rate."""
    groups = {
        "ordinary talk": filters.talk["report"],
        "XSTest, safe": xstest("safe", "report")(data),
        "XSTest, unsafe": xstest("unsafe", "report")(data),
    }
    print("\nStopped by any of the six:\n\n| way | rate of each | " + " | ".join(groups) + " |")
    print("|---|---|" + "---|" * len(groups))
    for (way, scorers), rate in itertools.product(ways.items(), RATES):
        thresholds = {name: threshold_of(scorer(ordinary), rate) for name, scorer in scorers.items()}
        cells = []
        for texts in groups.values():
            stopped = np.any([scorer(texts) > thresholds[name] for name, scorer in scorers.items()], axis=0)
            cells.append(f"{shown(int(stopped.sum()), len(texts))} of {len(texts)}")
        print(f"| {way} | {rate:.0%} | " + " | ".join(cells) + " |", flush=True)


def costs(filters: Filters, ways: Mapping[str, Mapping[str, Scorer]], fit: Fit, texts: Sequence[str]) -> None:
    """Milliseconds of one core a turn, for all filters."""
    ids = filters.ids(texts)
    began = time.process_time()
    filters.store.read_anew(ids)
    reading = (time.process_time() - began) / len(texts)
    states = filters.store.of_texts(ids, fit.layer, fit.reading).astype(np.float32)
    directions = np.ones((states.shape[1], len(filters.exemplars)), dtype=np.float32)
    tokens = np.mean([len(i) for i in ids])
    print(f"\nMilliseconds of one core a turn, all filters; {len(texts)} prompts of {tokens:.0f} tokens:\n")
    print("| way | ms |\n|---|---|")
    print(
        f"| filter, in the pass that is run anyway | {best_of(lambda: [s @ directions for s in states], texts):.3f} |"
    )
    print(f"| filter, in a pass of its own up to layer {filters.store.layers[-1]} | {1000 * reading:.1f} |")
    for way in ("words", "word list"):
        scorers = ways[way].values() if way == "words" else [next(iter(ways[way].values()))]
        one_by_one = best_of(lambda s=scorers: [scorer([text]) for scorer in s for text in texts], texts)
        print(f"| {way} | {one_by_one:.2f} |")
    print(f"| encoder | {best_of(lambda: [baselines.sentence_embeddings([text]) for text in texts], texts):.1f} |")
    asked = baselines.judge(filters.store.model, "HATE")
    few = texts[:10]
    print(f"| judge, one question | {best_of(lambda: [asked([text]) for text in few], few, 1):.1f} |")


def best_of(work: Callable[[], object], texts: Sequence[str], times: int = 3) -> float:
    """Fewest milliseconds a text."""
    spent = []
    for _ in range(times):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return 1000 * min(spent) / len(texts)


def judge_table(filters: Filters, sides: Sides, scorers: Mapping[str, Scorer], most: int) -> None:
    """The model asked, beside the filter on the same texts."""
    print("\nThe judge alone, AUC:\n\n| filter | comparison | n | judge | filter |\n|---|---|---|---|---|")
    values: dict[str, list[float]] = {"judge": [], "filter": []}
    for c, (positive, negative) in sides.items():
        a, b = positive[:most], negative[:most]
        units = (np.arange(len(a)), np.arange(len(b)) + len(a))
        cells = []
        for way, scorer in (("judge", baselines.judge(filters.store.model, c.filter)), ("filter", scorers[c.filter])):
            estimate = grouped_auc_estimate(scorer(a), scorer(b), units)
            values[way].append(estimate.value or 0.0)
            cells.append(auc_shown(estimate))
        print(f"| {c.filter} | {c.name} | {len(a)} + {len(b)} | {' | '.join(cells)} |", flush=True)
    print(f"\nMeans: {', '.join(f'{way} {np.mean(each):.3f}' for way, each in values.items())}.")


def main(options: argparse.Namespace) -> None:
    model = load_model(options.model)
    filters = Filters(ActivationStore(model, options.cache), options.data, options.talk_step)
    half: Half = options.half
    if options.filters:
        filters.exemplars = {name: filters.exemplars[name] for name in options.filters}
    sides: dict[Comparison, tuple[list[str], list[str]]] = {}
    for c in COMPARISONS:
        if c.half == half and c.filter in filters.exemplars:
            positive, negative = c.sides(options.data, options.rows)
            sides[c] = (positive, negative if c.negative else filters.talk[half])
    texts = [t for pair in sides.values() for side in pair for t in side]
    texts += [t for s in filters.exemplars.values() for side in s.values() for t in side]
    parts = ("fit", "threshold", half)
    texts += [t for part in parts for t in filters.talk[part]]
    if half == "report" and not options.filters:
        texts += xstest("safe", half)(options.data) + xstest("unsafe", half)(options.data)
    filters.read(texts)
    sizes = ", ".join(f"{len(filters.talk[part])} {part}" for part in parts)
    print(f"{model.name}, {half} half; at most {options.rows} rows a side; ordinary talk: {sizes}.\n")
    if half == "choose":
        choose(filters, sides)
    else:
        layer = min(filters.store.layers, key=lambda one: abs(one - options.depth * (model.layers - 1)))
        fit = Fit(layer, options.reading, options.strength, others=options.others)
        print(f"{fit}\n")
        report(filters, sides, fit, None if options.filters else options.data, options.judged)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--half", choices=("choose", "report"), default="choose")
    parser.add_argument("--filters", nargs="+", metavar="TYPE", help="these alone, without XSTest; default, all six")
    parser.add_argument("--rows", type=int, default=100, help="most rows a side of a comparison")
    parser.add_argument("--talk-step", type=int, default=1, help="take every so many-th text of ordinary talk")
    parser.add_argument("--cache", type=Path, help="file that keeps what was read")
    parser.add_argument("--depth", type=float, default=GUARD_DEPTH, help="of the layer that is reported")
    parser.add_argument("--reading", choices=("last", "mean", "windows"), default="last")
    parser.add_argument("--strength", type=float, default=GUARD_RIDGE, help="C of the regression that is reported")
    parser.add_argument("--others", action="store_true", help="near misses of other filters are negatives too")
    parser.add_argument("--judged", type=int, default=30, help="rows a side that the judge is asked about; 0 for none")
    main(parser.parse_args())
