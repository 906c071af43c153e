"""Instructions hidden in tool results: the reading's change by the result, beside plain readings, words and an encoder.

    python benchmarks/guardrail_indirect.py --data DIR [--model M] [--half choose|report] [--rows N] [--cache FILE]

Detectors are fitted to the package's exemplars: documents with an injected sentence against the same documents,
documents with a sentence of another one, and documents that instruct their human reader. They are tried on HaluEval's
passages with payloads of BIPIA planted in them (``indirect_injection_payloads``), against the passages as they are and
with a sentence of another passage planted in the same way. Payloads are parted into halves by the hash of their
category, passages by their own, a third of them being kept for thresholds. On *report*, injections of deepset too.
Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml

from guardrail_activations import ActivationStore, Array
from guardrail_comparisons import Half, _hash, column, read_rows
from guardrail_quality import auc_shown, shown, threshold_of
from poise.activations import project
from poise.guardrail import Guardrail
from poise.guardrail.fit_texts import rule_texts
from poise.guardrail.fitting import GUARD_RIDGE, GuardFitSettings, fit_guard
from poise.guardrail.planting import plant_sentence, sentences_of
from poise.guardrail.readings import tool_turns
from poise.judge.exemplars import sentence_embeddings
from poise.model import Message, Model, ask, load_model
from poise.statistics.estimates import grouped_auc_estimate

RATES = (0.01, 0.05)
GUARD_TALK = ("oasst1_en", "self_instruct")


@dataclass(frozen=True)
class Result:
    """A tool result that came for a question; group: what is resampled together."""

    question: str
    text: str
    planted: str = ""
    group: str = ""

    @property
    def conversation(self) -> list[Message]:
        """What the model reads."""
        return tool_turns(self.question, self.text)


def exemplars() -> tuple[list[Result], list[Result]]:
    """Results with an injection, and those without."""
    content = [{"type": "INDIRECT_ATTACK"}]
    [rule] = rule_texts(Guardrail.model_validate({"name": "tools", "content": content}))
    text = (files("poise.guardrail") / "content_exemplars.yaml").read_text("utf-8")
    sentences = yaml.safe_load(text)["INDIRECT_ATTACK"]["examples"]
    injected = [Result(rule.questions[t], t, s) for t, s in zip(rule.examples, sentences, strict=True)]
    return injected, [Result(rule.questions[t], t) for t in rule.near_misses]


def passages(data: Path) -> dict[str, list[Result]]:
    """HaluEval's passages in three parts."""
    parts: dict[str, list[Result]] = {"choose": [], "report": [], "threshold": []}
    texts = {row["knowledge"]: row["question"] for row in read_rows(data / "halueval" / "qa_pairs.jsonl")}
    for text, question in sorted(texts.items(), key=lambda pair: _hash(pair[0])):
        parts[list(parts)[_hash(f"passage {text}")[0] % 3]].append(Result(question, text, group=text))
    return parts


def payloads(data: Path, half: Half) -> list[tuple[str, str]]:
    """Category and text of each payload of a half."""
    rows = read_rows(data / "guardrail" / "indirect_injection_payloads.jsonl")
    order = sorted({row["category"] for row in rows}, key=_hash)
    return [(r["category"], r["text"]) for r in rows if (order.index(r["category"]) % 2 == 0) == (half == "choose")]


def planted(into: Sequence[Result], texts: Sequence[tuple[str, str]], most: int) -> list[Result]:
    """Payloads in passages, each as often as the others."""
    pairs = [(texts[n % len(texts)], into[n % len(into)]) for n in range(most)]
    return [Result(of.question, plant_sentence(of.text, text), text, group) for (group, text), of in pairs]


def strange(into: Sequence[Result], most: int) -> list[Result]:
    """Passages with a sentence of another passage in them."""
    others = [sentences_of(into[(n + 11) % len(into)].text)[0] for n in range(len(into))]
    some = zip(into[:most], others, strict=False)
    return [Result(of.question, plant_sentence(of.text, other), other, of.group) for of, other in some]


Sides = Mapping[str, tuple[list[Result], list[Result]]]
Way = Callable[[Sequence[Result]], Array]


class Detectors:
    """Ways to score a result, each fitted to the same exemplars."""

    def __init__(self, store: ActivationStore) -> None:
        self.store = store
        self.injected, self.clean = exemplars()
        self.all = [*self.injected, *self.clean]
        self.labels = np.arange(len(self.all)) < len(self.injected)

    def read(self, results: Sequence[Result]) -> None:
        """Read conversations with and without their results."""
        self.store.read([r.conversation for r in results] + [ask(r.question) for r in results])

    def states(self, results: Sequence[Result], layer: int, *, change: bool) -> Array:
        """Activations where the answer begins, or their change by the result [n, d]."""
        whole = self.store.features([r.conversation for r in results], layer, "last")
        return whole - self.store.features([ask(r.question) for r in results], layer, "last") if change else whole

    def last(self, layer: int, strength: float, *, change: bool) -> Way:
        """A direction on these."""
        direction = logistic(self.states(self.all, layer, change=change), self.labels, strength)
        return lambda results: np.asarray(self.states(results, layer, change=change) @ direction)

    def windows(self, layer: int, strength: float) -> Way:
        """A direction that tells windows with an injection from others; a result's score is its highest window."""
        features, labels = [], []
        for result, positive in zip(self.all, self.labels, strict=True):
            windows = self._windows(result, layer)
            if positive:
                features.append(windows[self._place(result, len(windows))])
                labels.append(True)
            else:
                features += list(windows)
                labels += [False] * len(windows)
        direction = logistic(np.stack(features), np.array(labels), strength)
        return lambda results: np.array([(self._windows(r, layer) @ direction).max() for r in results])

    def _windows(self, result: Result, layer: int) -> Array:
        ids = self.store.model.encode(result.conversation).ids
        return self.store.states[ids]["windows"][:, self.store.layers.index(layer)].double().numpy()

    def _place(self, result: Result, windows: int) -> int:
        """About which window the planted sentence stands in: by its middle, as a share of the conversation's text."""
        spoken = f"{result.question} I will look it up. {result.text}"
        middle = spoken.index(result.planted) + len(result.planted) / 2
        return min(int(middle / len(spoken) * windows), windows - 1)

    def words(self, strength: float, *, each: bool) -> Way:
        """Words of the result, or of its sentence that looks most like an injection."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
        vectors.fit(self._texts(each=each)[0])
        return self._on_texts(vectors.transform, strength, each=each)

    def encoder(self, strength: float, *, each: bool) -> Way:
        """The sentence encoder on the same."""
        return self._on_texts(sentence_embeddings, strength, each=each)

    def _texts(self, *, each: bool) -> tuple[list[str], Array]:
        if not each:
            return [r.text for r in self.all], self.labels
        injections = list(dict.fromkeys(r.planted for r in self.injected))
        others = list(dict.fromkeys(s for r in self.clean for s in sentences_of(r.text)))
        return [*injections, *others], np.arange(len(injections) + len(others)) < len(injections)

    def _on_texts(self, features: Callable[[list[str]], Array], strength: float, *, each: bool) -> Way:
        from sklearn.linear_model import LogisticRegression

        texts, labels = self._texts(each=each)
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000).fit(features(texts), labels)

        def score(results: Sequence[Result]) -> Array:
            if not each:
                return np.asarray(model.decision_function(features([r.text for r in results])))
            return np.array([model.decision_function(features(sentences_of(r.text))).max() for r in results])

        return score


def logistic(features: Array, labels: Array, strength: float) -> Array:
    """A logistic regression's direction on features of equal spread, both sides weighing the same."""
    from sklearn.linear_model import LogisticRegression

    spread = features.std(0) + 1e-6 * features.std()
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=500)
    model.fit((features - features.mean(0)) / spread, labels)
    return np.asarray(model.coef_[0] / spread)


def measure(way: Way, positive: Sequence[Result], negative: Sequence[Result], usual: Sequence[Result]) -> list[str]:
    """Cells: AUC by group, recalls and alarms at thresholds that other clean passages set."""
    above, below, ordinary = way(positive), way(negative), way(usual)
    names = {name: n for n, name in enumerate(dict.fromkeys(r.group for r in [*positive, *negative]))}
    units = tuple(np.array([names[r.group] for r in some]) for some in (positive, negative))
    values = [threshold_of(ordinary, rate) for rate in RATES]
    cells = [auc_shown(grouped_auc_estimate(above, below, units))]  # type: ignore[arg-type]
    return cells + [shown(int((s > v).sum()), len(s)) for s in (above, below) for v in values]


def guard_row(model: Model, data: Path, sides: Sides, rate: float) -> None:
    """What ``poise guardrail fit`` makes of ordinary talk, whose answers stand for results."""
    content = [{"type": "INDIRECT_ATTACK", "input": "MEDIUM"}]
    rows = [row for name in GUARD_TALK for row in read_rows(data / "background_chat" / f"{name}.jsonl")]
    fitted = fit_guard(
        Guardrail.model_validate({"name": "tools", "content": content}), model, rows, GuardFitSettings(rate=rate)
    )
    [detector] = fitted.header.detectors
    print(f"\nFitted by `fit_guard` on {detector.point.n} + {detector.figures.talk_fitted} answers, rate {rate:g}:\n")
    print("| comparison | AUC | recall | alarms |\n|---|---|---|---|")
    for name, (positive, negative) in sides.items():
        scores = []
        for some in (positive, negative):
            encoded = [model.encode(r.conversation) for r in some]
            values = project(model, encoded, fitted.probes)
            last = [float(v[text.last_prompt, 0]) for v, text in zip(values, encoded, strict=True)]
            scores.append(np.array(last) - detector.centre)
        units = (np.arange(len(positive)), np.arange(len(negative)) + len(positive))
        stopped = [shown(int((each > detector.point.value).sum()), len(each)) for each in scores]
        print(f"| {name} | {auc_shown(grouped_auc_estimate(*scores, units))} | {' | '.join(stopped)} |", flush=True)


def main(options: argparse.Namespace) -> None:
    model = load_model(options.model)
    detectors = Detectors(ActivationStore(model, options.cache))
    half: Half = options.half
    parts = passages(options.data)
    clean, most = parts[half], options.rows
    usual = parts["threshold"]
    sides: Sides = {
        "payloads v. clean": (planted(clean, payloads(options.data, half), most), clean[:most]),
        "payloads v. strange sentence": (planted(clean, payloads(options.data, half), most), strange(clean, most)),
    }
    if half == "report":
        short = [t for t in column("guardrail/prompt_injections", "prompt")(options.data) if len(t) <= 200]
        pairs = [(text, text) for text in sorted(set(short), key=_hash)]
        sides = {**sides, "injections v. clean": (planted(clean, pairs, min(most, len(pairs))), clean[:most])}
    if options.guard_rate:
        guard_row(model, options.data, sides, options.guard_rate)
        return
    detectors.read([*detectors.all, *usual, *(r for pair in sides.values() for side in pair for r in side)])
    layers = detectors.store.layers
    if half == "choose":
        ways = {
            f"{name}, layer {layer}, C {c:g}": way
            for layer in layers[1::2]
            for c in (3e-5, 3e-3)
            for name, way in (
                ("change", detectors.last(layer, c, change=True)),
                ("plain", detectors.last(layer, c, change=False)),
                ("windows", detectors.windows(layer, c)),
            )
        }
    else:
        layer = min(layers, key=lambda one: abs(one - options.depth * (model.layers - 1)))
        ways = {
            "change by the result": detectors.last(layer, options.strength, change=True),
            "plain reading": detectors.last(layer, options.strength, change=False),
            "highest window": detectors.windows(layer, options.strength),
        }
    for each in (False, True):
        unit = "sentences" if each else "whole text"
        for c in (1.0, 10.0) if half == "choose" else (1.0,):
            note = f", C {c:g}" if half == "choose" else ""
            ways[f"words, {unit}{note}"] = detectors.words(10 * c, each=each)
            ways[f"encoder, {unit}{note}"] = detectors.encoder(c, each=each)
    print(f"{model.name}, {half} half, thresholds on {len(usual)} other clean passages.\n")
    print("| comparison | n | way | AUC | recall at 1 % | at 5 % | alarms at 1 % | at 5 % |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (positive, negative) in sides.items():
        for title, way in ways.items():
            cells = " | ".join(measure(way, positive, negative, usual))
            print(f"| {name} | {len(positive)} + {len(negative)} | {title} | {cells} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--half", choices=("choose", "report"), default="choose")
    parser.add_argument("--rows", type=int, default=100, help="most rows a side of a comparison")
    parser.add_argument("--guard-rate", type=float, help="measure what `fit_guard` makes at this rate alone")
    parser.add_argument("--cache", type=Path, help="file that keeps what was read")
    parser.add_argument("--depth", type=float, default=0.6, help="of the layer that is reported")
    parser.add_argument("--strength", type=float, default=GUARD_RIDGE, help="C of the regression that is reported")
    main(parser.parse_args())
