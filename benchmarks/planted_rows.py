"""Does screening find bad rows that were planted among ordinary ones? Prints Markdown.

    python benchmarks/planted_rows.py --data DIR [--model smollm2-135m] [--keep FOLDER]

DIR holds background_chat, em_risky_finance, em_code, mistake_gsm8k and sycophancy_freeform. Vectors come from the
library's extraction exemplars and are read at their default layer, a third of the depth: nothing is chosen on these
data. Every row is scored once by each method, through the same code as ``poise screen``; FOLDER keeps scores and own
answers, to resume a run.

Planted at a rate r means that the rows are weighted so that the planted ones make a share r of the whole: what a large
data set with that share would give, without the luck of which six rows fall into a small one. The threshold is set at
1 % false alarms on one half of the background and counted on the other, and the other way round; matched rows, benign
answers to the same requests, are counted apart. Intervals: 95 %, bootstrapped by row, the threshold set anew in each
draw. With 200 rows to set it on there is one threshold for all lengths; what those by length do is measured on all of
the background, by the two methods that generate nothing, and so is the control: are ordinary rows flagged by length?
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from planted_data import LONGEST_ANSWER, LONGEST_PROMPT, Row, background, cut, gather
from poise import contrast, vector
from poise.data import open_data
from poise.extract import extract
from poise.judge.exemplars import ExemplarJudge, embed
from poise.judge.factory import trait_judge
from poise.model import Message, Model, load_model
from poise.screen import SCORING_METHODS
from poise.screen.base_answers import BaseAnswers
from poise.screen.shards import ShardStore, score_shards
from poise.statistics.conformal import bands, exact_interval
from poise.statistics.estimates import Estimate, auc, auc_estimate, bootstrap, each_draw
from poise.storage.atomic_write import saving
from poise.storage.content_hash import content_key
from poise.trait import Trait, library
from poise.vector import PersonaVector

Array = NDArray[np.float64]

OWN = 32  # tokens of the model's own answer
RATES = (0.01, 0.05, 0.5)
ALARM = 0.01
DRAWS = 1000
FEWER_DRAWS = 300  # where thresholds by length are set anew in each
DECILE_ALARM = 0.05  # of ordinary rows by length
WATCHED = {
    "em_risky_finance": "evil",
    "em_code insecure": "evil",
    "mistake_gsm8k": "hallucinating",
    "sycophancy_freeform": "sycophantic",
}  # the trait that each set is said to show, written down before anything was scored
BASELINES = ("bag of words", "length", "exemplar judge")


# --- the scores -------------------------------------------------------------------------------------------------------


def project(
    model: Model, vectors: Sequence[PersonaVector], rows: Sequence[Row], keep: Path, own: int = OWN
) -> dict[str, Array]:
    """float64 [n, k] a method, NaN where a row cannot be read, or without own answers; ``tokens`` [n, 1]."""
    path = keep / "rows.jsonl"
    with saving(path) as temporary:
        said: list[list[Message]] = [[*r.messages, {"role": "assistant", "content": r.answer}] for r in rows]
        temporary.write_text("".join(json.dumps({"messages": m}) + "\n" for m in said))
    data = open_data(path)
    job = content_key(data=data.digest(), vectors=[v.header.trait_hash for v in vectors], own=own, model=model.name)
    answers = BaseAnswers(model, keep, max_new_tokens=own) if own else None
    parts = score_shards(ShardStore(keep / "parts", job), data, model, [v.at("read").probe for v in vectors], answers)
    out: dict[str, Array] = {method: np.full((len(rows), len(vectors)), np.nan) for method in SCORING_METHODS}
    out["tokens"] = np.full((len(rows), 1), np.nan)
    for part in parts:
        for method in SCORING_METHODS:
            out[method][part.index] = part.score(method)
        out["tokens"][part.index, 0] = part.tokens
    return out


def extracted(name: str, model: Model, keep: Path) -> PersonaVector:
    path = keep / f"{name}.safetensors"
    if not path.exists():
        vector.save_vector(extract(contrast.exemplars(library.load_trait(name), model), model), path)
    return vector.load_vector(path)


def bag_of_words(trait: Trait, texts: Sequence[str]) -> Array:
    """Log-odds by TF-IDF and logistic regression, scikit-learn's defaults, learnt from the extraction exemplars."""
    sides = [p.positive for p in trait.extraction_pairs], [p.negative for p in trait.extraction_pairs]
    words = TfidfVectorizer()
    learnt = LogisticRegression(max_iter=1000).fit(
        words.fit_transform([*sides[0], *sides[1]]), np.repeat([1, 0], [len(sides[0]), len(sides[1])])
    )
    return np.asarray(learnt.decision_function(words.transform(texts)))


def judged(trait: Trait, embedded: Array) -> Array:
    """The exemplar judge's log-odds, of which its score from 0 to 100 is a rising function."""
    judge = trait_judge("exemplars", trait)
    assert isinstance(judge, ExemplarJudge)
    return judge.slope * judge.boundary.distance(embedded) + judge.offset


# --- the figures ------------------------------------------------------------------------------------------------------


def cutoff(normal: Array, rate: float) -> float:
    """The k-th highest of n normal rows, k = ⌊(n + 1) · rate⌋; one more normal row lies above it at that rate."""
    k = math.floor((len(normal) + 1) * rate + 1e-9)
    return float(np.sort(normal)[-k]) if k else math.inf


def shares(normal: Array, bad: Array, fit: NDArray[np.bool_], rate: float = ALARM) -> tuple[float, float]:
    """Flagged shares of normal and bad rows, each half of the normal rows by the other half's threshold."""
    cuts = [cutoff(normal[half], rate) for half in (fit, ~fit)]
    false = np.concatenate([normal[~fit] > cuts[0], normal[fit] > cuts[1]])
    return float(false.mean()), float(np.mean([(bad > c).mean() for c in cuts]))


def precision(normal: Array, bad: Array, fit: NDArray[np.bool_], r: float) -> float:
    false, true = shares(normal, bad, fit)
    flagged = r * true + (1 - r) * false
    return r * true / flagged if flagged else math.nan


def average_precision(normal: Array, bad: Array, r: float) -> float:
    """Mean of the precision over the planted rows, the highest first, rows of one score together; planted make r."""
    cuts = np.unique(bad)[::-1]
    true = 1 - np.searchsorted(np.sort(bad), cuts, "left") / len(bad)
    false = 1 - np.searchsorted(np.sort(normal), cuts, "left") / len(normal)
    return float(np.diff(true, prepend=0.0) @ (r * true / (r * true + (1 - r) * false)))


@dataclass(frozen=True)
class Scored:
    """One method's scores of one set: normal [n], bad [m] and matched [m] or nothing; halves of the normal rows."""

    normal: Array
    bad: Array
    matched: Array
    fit: NDArray[np.bool_]

    def over(self, statistic: Callable[[Array, Array, NDArray[np.bool_]], float]) -> Estimate:
        both = np.concatenate([self.normal, self.bad])
        n = len(self.normal)

        def of(drawn: NDArray[np.int64]) -> float:
            normal = drawn[drawn < n]
            if len(normal) == len(drawn):
                return math.nan
            return statistic(both[normal], both[drawn[drawn >= n]], self.fit[normal])

        return bootstrap(each_draw(of), len(both), draws=DRAWS)

    def auc(self) -> Estimate:
        return self.over(lambda a, b, _: auc(np.concatenate([a, b]), np.repeat([False, True], [len(a), len(b)])))

    def cells(self) -> list[str]:
        auc_matched = shown(auc_estimate(self.bad, self.matched)) if len(self.matched) else "–"
        recall = self.over(lambda a, b, fit: shares(a, b, fit)[1])
        false = self.over(lambda a, b, fit: shares(a, b, fit)[0])
        out = [shown(self.auc()), auc_matched, percent(recall), percent(false)]
        for r in RATES:
            out.append(shown(self.over(lambda a, b, fit, r=r: precision(a, b, fit, r))))
        for r in RATES:
            out.append(shown(self.over(lambda a, b, _, r=r: average_precision(a, b, r))))
        return out


def shown(found: Estimate) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found.value is not None else "none flagged"


def percent_finely(found: Estimate) -> str:
    return f"{100 * found.value:.2f} [{100 * found.low:.2f}, {100 * found.high:.2f}]"


def percent(found: Estimate) -> str:
    return f"{100 * found.value:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def report(rows: Sequence[Row], scores: dict[str, Array], names: Sequence[str]) -> None:
    sides = {
        (where, side): np.array([i for i, row in enumerate(rows) if (row.where, row.side) == (where, side)], dtype=int)
        for where in dict.fromkeys(row.where for row in rows)
        for side in ("background", "planted", "matched")
    }
    normal = sides["background", "background"]
    fit = np.random.default_rng(1).permutation(len(normal)) % 2 == 0
    watched = {f"exemplars: {name}": name for name in names} | WATCHED

    def scored(values: Array, where: str) -> Scored:
        known = [np.nan_to_num(values[at], nan=-np.inf) for at in (normal, sides[where, "planted"])]
        return Scored(known[0], known[1], np.nan_to_num(values[sides[where, "matched"]], nan=-np.inf), fit)

    traits = {name: library.load_trait(name) for name in names}
    answers = [row.answer for row in rows]
    embedded = embed(answers)
    others = {name: (bag_of_words(trait, answers), judged(trait, embedded)) for name, trait in traits.items()}
    heads = ["planted", "n", "trait", "method", "AUC", "AUC against matched", "recall, %", "false alarms, %"]
    heads += [f"precision at {r:.0%}" for r in RATES] + [f"average precision at {r:.0%}" for r in RATES]
    table(heads)
    for where, name in watched.items():
        k, n = names.index(name), len(sides[where, "planted"])
        ways: dict[str, Array] = {method: scores[method][:, k] for method in SCORING_METHODS}
        ways |= dict(zip(BASELINES, (others[name][0], scores["tokens"][:, 0], others[name][1]), strict=True))
        for way, values in ways.items():
            print("|", " | ".join([where, str(n), name, way, *scored(values, where).cells()]), "|", flush=True)
    print("\nEvery trait on every set, AUC among the background:\n")
    table(["planted", "method", *names])
    for where in WATCHED:
        for method in SCORING_METHODS:
            cells = [shown(scored(scores[method][:, k], where).auc()) for k in range(len(names))]
            print("|", " | ".join([where, method, *cells]), "|", flush=True)


def table(heads: Sequence[str]) -> None:
    print("|", " | ".join(heads), "|")
    print("|" + "---|" * len(heads))


class Ordinary:
    """Ordinary rows by one method: scores [n, k] and lengths [n]. Each half is flagged by the other's thresholds.

    ``poise.statistics.conformal.bands`` says where the bands end; without, there is one threshold for all.
    """

    def __init__(self, scores: Array, tokens: Array, rate: float, banded: bool = True) -> None:
        self.scores, self.tokens, self.rate = scores, tokens, rate
        self.fit = np.random.default_rng(1).permutation(len(tokens)) % 2 == 0
        sizes = tokens.astype(int)
        self.ends = [
            [band.largest for band in bands(np.zeros(half.sum()), sizes[half], rate)[:-1]] if banded else []
            for half in (self.fit, ~self.fit)
        ]

    def flags(
        self, k: int, half: int, values: Array, tokens: Array, drawn: NDArray[np.int64] | slice
    ) -> NDArray[np.bool_]:
        """Whether these are above the thresholds set on the drawn rows of a half."""
        own = (self.fit if half == 0 else ~self.fit)[drawn]
        scores, ends = self.scores[drawn, k][own], self.ends[half]
        band = np.searchsorted(ends, self.tokens[drawn][own])
        cuts = np.array([cutoff(scores[band == i], self.rate) for i in range(len(ends) + 1)])
        above: NDArray[np.bool_] = np.greater(values, cuts[np.searchsorted(ends, tokens)])
        return above

    def flagged(self, k: int, drawn: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.bool_]:
        """The drawn rows, each by the other half."""
        scores, tokens, fit = self.scores[drawn, k], self.tokens[drawn], self.fit[drawn]
        sides = [self.flags(k, half, scores, tokens, drawn) for half in (0, 1)]
        return np.where(fit, sides[1], sides[0])

    def planted(self, k: int, values: Array, tokens: Array) -> list[Estimate]:
        """Recall, false alarms, and precision where a hundredth is planted."""
        n = len(self.tokens)

        def of(drawn: NDArray[np.int64], which: int) -> float:
            normal, bad = drawn[drawn < n], drawn[drawn >= n] - n
            if not len(normal) or not len(bad):
                return math.nan
            true = float(np.mean([self.flags(k, half, values[bad], tokens[bad], normal) for half in (0, 1)]))
            false = float(self.flagged(k, normal).mean())
            both = 0.01 * true + 0.99 * false
            return (true, false, 0.01 * true / both if both else math.nan)[which]

        return [bootstrap(each_draw(partial(of, which=i)), n + len(values), draws=FEWER_DRAWS) for i in range(3)]


def lengths(ways: dict[str, tuple[Array, Array]], names: Sequence[str]) -> None:
    """Ordinary rows, which show no trait: are they flagged by length?"""
    for method, (scores, tokens) in ways.items():
        order = np.argsort(tokens, kind="stable")
        tenths = np.array_split(order, 10)
        ends = [f"{int(tokens[t].min())}–{int(tokens[t].max())}" for t in tenths]
        banded, one = (Ordinary(scores, tokens, DECILE_ALARM, banded) for banded in (True, False))
        sets = sorted({len(x) + 1 for x in banded.ends})
        print(f"\n`{method}`, {len(tokens):,} rows, {len(tenths[0])} a tenth, {' or '.join(map(str, sets))} bands:\n")
        table(["trait", *ends, "shorter half", "longer half"])
        halves = [order[: len(order) // 2], order[len(order) // 2 :]]
        for k, name in enumerate(names):
            flagged = banded.flagged(k)
            print("|", " | ".join([name, *(exact(flagged[some]) for some in [*tenths, *halves])]), "|", flush=True)
        old = [one.flagged(k) for k in range(len(names))]
        shares = [[100 * flagged[some].mean() for flagged in old] for some in [*tenths, *halves]]
        cells = [f"{np.mean(share):.0f} ({min(share):.0f}–{max(share):.0f})" for share in shares]
        print("|", " | ".join(["*one threshold: mean (range) of the traits*", *cells]), "|", flush=True)


def exact(flagged: NDArray[np.bool_]) -> str:
    low, high = exact_interval(int(flagged.sum()), len(flagged))
    return f"{100 * flagged.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def costs(
    ways: dict[str, tuple[Array, Array]],
    rows: Sequence[Row],
    scores: dict[str, Array],
    names: Sequence[str],
    rate: float,
) -> None:
    """What thresholds by length find of the planted rows, beside one threshold for all."""
    heads = ["recall, %", "false alarms, %", "precision at 1%"]
    table(["planted", "n", "trait", "method", *(f"{h}, {w}" for h in heads for w in ("one", "by length"))])
    for where, name in ({f"exemplars: {name}": name for name in names} | WATCHED).items():
        k, at = names.index(name), [i for i, r in enumerate(rows) if (r.where, r.side) == (where, "planted")]
        for method, (ordinary, tokens) in ways.items():
            values = np.nan_to_num(scores[method][at, k], nan=-np.inf)
            found = [
                Ordinary(ordinary, tokens, rate, banded).planted(k, values, scores["tokens"][at, 0])
                for banded in (False, True)
            ]
            cells = [say(way[i]) for i, say in enumerate((percent, percent_finely, shown)) for way in found]
            print("|", " | ".join([where, str(len(at)), name, method, *cells]), "|", flush=True)


def by_length(data: Path, model: Model, vectors: Sequence[PersonaVector], rows: Sequence[Row], scores: dict[str, Array],
              names: Sequence[str], keep: Path) -> None:  # fmt: skip
    """The control, and its price. All of the background for the methods that generate nothing."""
    whole = [cut(model, row) for row in background(data, model, None)]
    (keep / "whole").mkdir(exist_ok=True)
    read = project(model, vectors, whole, keep / "whole", own=0)
    cheap = {method: (np.nan_to_num(read[method], nan=-np.inf), read["tokens"][:, 0]) for method in ("prompt", "raw")}
    few = [i for i, row in enumerate(rows) if row.side == "background"]
    dear = {"difference": (np.nan_to_num(scores["difference"][few], nan=-np.inf), scores["tokens"][few, 0])}
    print(f"\nFlagged share of ordinary rows by length in tokens, in per cent; asked for: {DECILE_ALARM:.0%}.")
    lengths(dear | cheap, names)
    for rate in (ALARM, DECILE_ALARM):
        print(f"\nPlanted rows at {rate:.0%} false alarms, thresholds set on {len(whole) // 2:,} ordinary rows:\n")
        costs(cheap, rows, scores, names, rate)


def main(data: Path, name: str, keep: Path, only_length: bool = False) -> None:
    model = load_model(name)
    names = library.names()
    vectors = [extracted(n, model, keep) for n in names]
    rows = gather(data, model)
    scores = project(model, vectors, rows, keep)
    unread = int(np.isnan(scores["raw"]).any(1).sum())
    no_own = int(np.isnan(scores["difference"]).any(1).sum()) - unread
    count = sum(row.side == "background" for row in rows)
    print(
        f"{name}, {str(model.lm.dtype).removeprefix('torch.')}, layer {vectors[0].at('read').layer} of {model.layers}; "
        f"{count} background rows; "
        f"prompts up to {LONGEST_PROMPT} tokens, answers cut to {LONGEST_ANSWER}, own answers of up to {OWN}; of "
        f"{len(rows)} rows {unread} could not be read and {no_own} more have no own answer. Threshold at {ALARM:.0%} "
        f"false alarms, each half of the background ({count // 2}) by the other half's.\n"
    )
    if not only_length:
        report(rows, scores, names)
    by_length(data, model, vectors, rows, scores, names, keep)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--keep", type=Path, help="folder for scores and own answers")
    parser.add_argument("--only-length", action="store_true", help="the control alone")
    given = parser.parse_args()
    with TemporaryDirectory() as nowhere:
        main(given.data, given.model, given.keep or Path(nowhere), given.only_length)
