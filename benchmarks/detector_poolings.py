"""Where in an answer a detector is best read, and with what beside it. Prints Markdown.

    python benchmarks/detector_poolings.py --data DIR [--model smollm2-135m] [--half choose|report] [--cache FILE]

A ranking detector for each trait, fitted as ``detectors.py`` does at 0.6 of the depth, on the first tokens of each
answer. Then the same direction read in other ways: the most active tokens, the highest segment, the median token, the
cosine, the last token (also with a fit of its own), without the first tokens; a combination of all seven traits'
readings, learnt from readings out of fold (after arXiv:2605.09391); and the exemplar judge added. Mean AUC over the
comparisons of a half, the gain over the plain mean with a 95 % t interval over comparisons, mean recall at 1 % false
alarms.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression

from detector_comparisons import COMPARISONS, FIT_TALK, talk
from detectors import recall
from poise.activations import forward
from poise.detector.fitting import default_layer
from poise.detector.kinds import AnswerGroups, ranking
from poise.judge.exemplars import ExemplarJudge, embed
from poise.model import Encoded, Model, ask, load_model
from poise.model.batching import pad, plan_batches
from poise.model.hooks import observe
from poise.statistics.estimates import auc
from poise.trait import Trait, library

Array = NDArray[np.float64]
Text = tuple[str, str]  # question and answer
FIT_ROWS = 100  # a source of ordinary talk
FIRST = 4  # tokens that a reading without the first ones leaves out
FOLDS = 5


def token_states(model: Model, texts: Sequence[Text], longest: int) -> dict[Text, torch.Tensor]:
    """Activations of each answer's first tokens at the detector's layer: float16 [T, d] a text."""
    layer = default_layer(model.layers)
    encoded: dict[Text, Encoded] = {}
    for text in dict.fromkeys(texts):
        whole = model.encode(ask(text[0]), text[1])
        end = min(whole.end, whole.start + longest)
        if whole.start < end <= model.window:
            encoded[text] = Encoded(whole.ids[:end], whole.start, end)
    keys, states = list(encoded), {}
    for rows in plan_batches([len(one.ids) for one in encoded.values()], budget=2048, most=64):

        def visit(_: int, hidden: torch.Tensor, rows: list[int] = rows) -> None:
            for row, i in enumerate(rows):
                states[keys[i]] = hidden[row, encoded[keys[i]].start : encoded[keys[i]].end].half().cpu()

        with observe(model, visit, [layer], stop=True):
            forward(model, pad([encoded[keys[i]] for i in rows], side="right", device=model.device))
    return states


def tokens_of(state: torch.Tensor) -> Array:
    return np.asarray(state.double().numpy())


def mean_of(state: torch.Tensor) -> Array:
    return np.asarray(tokens_of(state).mean(0))


def last_of(state: torch.Tensor) -> Array:
    return np.asarray(tokens_of(state)[-1])


def fit_on(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], others: Sequence[torch.Tensor],
           pool: Callable[[torch.Tensor], Array] = mean_of) -> Array:  # fmt: skip
    """A ranking direction [d] from pairs and talk, each pooled alike."""
    positive, negative = (np.stack([pool(pair[side]) for pair in pairs]) for side in (0, 1))
    return ranking(AnswerGroups(positive=positive, negative=negative, talk=np.stack([pool(one) for one in others])))


def poolings(state: torch.Tensor, direction: Array, on_last: Array) -> dict[str, float]:
    """One answer's reading in each way."""
    each = tokens_of(state) @ direction
    highest = np.sort(each)[::-1]
    readings = {"mean": each.mean(), "median token": np.median(each), "last token": each[-1]}
    readings["last token, fitted on last tokens"] = last_of(state) @ on_last
    readings[f"mean without the first {FIRST}"] = each[min(FIRST, len(each) - 1) :].mean()
    readings["cosine"] = each.mean() / np.linalg.norm(mean_of(state))
    readings["most active 8 tokens"] = highest[:8].mean()
    for share in (0.1, 0.25, 0.5):
        readings[f"most active {share:.0%} of the tokens"] = highest[: max(1, round(share * len(each)))].mean()
    for width in (8, 16, 32):
        parts = np.array_split(each, max(1, len(each) // width))
        readings[f"highest segment of {width} tokens"] = max(part.mean() for part in parts)
    return {name: float(reading) for name, reading in readings.items()}


class TraitReadings:
    """All traits' detectors, their readings in spreads of ordinary talk, and combinations of them."""

    def __init__(
        self, states: Mapping[Text, torch.Tensor], traits: Mapping[str, Trait], others: Sequence[Text]
    ) -> None:
        self.states, self.names = states, list(traits)
        self.pairs: dict[str, list[tuple[Text, Text]]] = {}
        for name, trait in traits.items():
            sides = [((p.question, p.positive), (p.question, p.negative)) for p in trait.detector_pairs]
            self.pairs[name] = [(a, b) for a, b in sides if a in states and b in states]
        self.talk = [text for text in others if text in states]
        self.directions = {name: self._fit(name, mean_of) for name in self.names}
        self.on_last = {name: self._fit(name, last_of) for name in self.names}

    def standardised(self, texts: Sequence[Text], directions: Mapping[str, Array] | None = None) -> Array:
        """Readings of every trait [n, k], in spreads of ordinary talk."""
        means, usual = (np.stack([mean_of(self.states[t]) for t in some]) for some in (texts, self.talk))
        columns = []
        for direction in (directions or self.directions).values():
            base = usual @ direction
            columns.append((means @ direction - base.mean()) / base.std())
        return np.stack(columns, axis=1)

    def combination(self, name: str) -> Array:
        """Weights [k] by which all traits' readings rank this trait's pairs; its own readings are out of fold."""
        draw = np.random.default_rng(0)
        pairs, column = self.pairs[name], self.names.index(name)
        fold, talk_fold = draw.permutation(len(pairs)) % FOLDS, draw.permutation(len(self.talk)) % FOLDS
        positive, negative = (self.standardised([pair[side] for pair in pairs]) for side in (0, 1))
        usual = self.standardised(self.talk)
        for k in range(FOLDS):
            direction = {name: self._fit(name, mean_of, fold != k, talk_fold != k)}
            for values, texts, held in (
                (positive, [p for p, _ in pairs], fold == k),
                (negative, [n for _, n in pairs], fold == k),
                (usual, self.talk, talk_fold == k),
            ):
                out_of_fold = [text for text, out in zip(texts, held, strict=True) if out]
                values[held, column] = self.standardised(out_of_fold, direction)[:, 0]
        drawn = [positive - usual[draw.integers(len(usual), size=len(pairs))] for _ in range(4)]
        above = np.concatenate([positive - negative, *drawn])
        weights = np.r_[np.ones(len(pairs)), np.full(4 * len(pairs), 1 / 16)]
        model = LogisticRegression(C=0.1, fit_intercept=False)
        model.fit(np.r_[above, -above], np.arange(2 * len(above)) < len(above), sample_weight=np.r_[weights, weights])
        return np.asarray(model.coef_[0])

    def _fit(self, name: str, pool: Callable[[torch.Tensor], Array], pairs: Any = None, others: Any = None) -> Array:
        kept = [p for i, p in enumerate(self.pairs[name]) if pairs is None or pairs[i]]
        usual = [t for i, t in enumerate(self.talk) if others is None or others[i]]
        return fit_on([(self.states[a], self.states[b]) for a, b in kept], [self.states[t] for t in usual], pool)


def judged(trait: Trait, answers: Sequence[str], usual: Sequence[str]) -> Array:
    """The exemplar judge's log-odds, in spreads of ordinary talk."""
    judge = ExemplarJudge.fit(trait.judge_pairs)
    odds, base = (judge.slope * judge.boundary.distance(embed(some)) + judge.offset for some in (answers, usual))
    return np.asarray((odds - base.mean()) / base.std())


def main(name: str, data: Path, half: str, most: int, longest: int, cache: Path | None) -> None:
    model = load_model(name)
    traits = {trait: library.load_trait(trait) for trait in library.names()}
    others = [(q, a) for source in FIT_TALK for _, q, a in talk(source).rows(data)[:FIT_ROWS]]
    comparisons = [c for c in COMPARISONS if c.half == half]
    rows = {c: c.rows(data, most) for c in comparisons}
    pairs = [(p.question, a) for t in traits.values() for p in t.detector_pairs for a in (p.positive, p.negative)]
    texts = [*pairs, *others, *((r.question, r.answer) for listed in rows.values() for r in listed)]
    states = torch.load(cache, weights_only=True) if cache and cache.exists() else token_states(model, texts, longest)
    if cache and not cache.exists():
        torch.save(states, cache)
    readings = TraitReadings(states, traits, others)
    combined = {trait: readings.combination(trait) for trait in {c.trait for c in comparisons}}
    aucs: dict[str, list[float]] = {}
    recalls: dict[str, list[float]] = {}
    for c in comparisons:
        usable = [row for row in rows[c] if (row.question, row.answer) in states]
        keys = [(row.question, row.answer) for row in usable]
        each = [poolings(states[key], readings.directions[c.trait], readings.on_last[c.trait]) for key in keys]
        scores = {way: np.array([one[way] for one in each]) for way in each[0]}
        every = readings.standardised(keys)
        alone, judge = (
            every[:, readings.names.index(c.trait)],
            judged(traits[c.trait], [a for _, a in keys], [a for _, a in others]),
        )
        scores |= {"all seven traits' readings": every @ combined[c.trait], "exemplar judge": judge}
        scores |= {"detector plus judge": alone + judge, "higher of detector and judge": np.maximum(alone, judge)}
        for way, values in scores.items():
            aucs.setdefault(way, []).append(float(auc(values, [row.label for row in usable])))
            recalls.setdefault(way, []).append(recall(values, usable))
    print(f"{model.name}, {half} half, {len(comparisons)} comparisons, at most {most} rows a side, {longest} tokens.\n")
    print("| read | mean AUC | gain over the mean | recall at 1 % |\n|---|---|---|---|")
    for way in sorted(aucs, key=lambda way: -float(np.mean(aucs[way]))):
        gain = np.array(aucs[way]) - np.array(aucs["mean"])
        wide = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
        shown = f"{gain.mean():+.3f} [{gain.mean() - wide:+.3f}, {gain.mean() + wide:+.3f}]" if way != "mean" else "–"
        print(f"| {way} | {np.mean(aucs[way]):.3f} | {shown} | {np.mean(recalls[way]):.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--half", choices=("choose", "report"), default="choose")
    parser.add_argument("--rows", type=int, default=50, help="most rows a side of a comparison")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of an answer that are read")
    parser.add_argument("--cache", type=Path, help="file that keeps what was read")
    options = parser.parse_args()
    main(options.model, options.data, options.half, options.rows, options.tokens, options.cache)
