"""Ten denied topics, each from five phrases: what of the topic is stopped, and what beside it.

    python benchmarks/guardrail_topics.py --data DIR [--model M] [--rate R]

``guardrail_topics.yaml`` has the phrases and, in other words, prompts on each topic and beside it. Detectors are fitted
by ``fit_guard`` on ordinary talk, as ``poise guardrail fit`` does, and read as the server reads prompts; ``encoder
rules`` are those that are `read_by: encoder`, ``rules of both`` those that are `read_by: both`, the same way. False
alarms are on talk that the fit has not seen, and a prompt on one topic is talk to the other nine. Beside them, words
and the sentence encoder, fitted to the same texts, with thresholds on the same part of it. Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import guardrail_baselines as baselines
from guardrail_baselines import FilterTexts
from guardrail_comparisons import talk
from guardrail_quality import auc_shown, shown, threshold_of
from poise.activations import project
from poise.guardrail import Guardrail
from poise.guardrail.fitting import GuardFitSettings, fit_guard
from poise.guardrail.judging import DetectorReader
from poise.model import Model, ask, load_model
from poise.statistics.estimates import grouped_auc_estimate

Topics = Mapping[str, Mapping[str, list[str]]]
Scores = Mapping[str, Mapping[str, Any]]


def guard_scores(
    model: Model, topics: Topics, ordinary: Sequence[str], tried: Sequence[str], rate: float
) -> tuple[Scores, dict[str, float]]:
    """Readings of the texts by each topic's detector, and its threshold."""
    rules = [
        {"name": name, "definition": name, "examples": texts["phrases"], "output": "SKIP"}
        for name, texts in topics.items()
    ]
    guardrail = Guardrail.model_validate({"name": "topics", "topics": rules})
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ordinary]
    fitted = fit_guard(guardrail, model, rows, GuardFitSettings(rate=rate))
    encoded = [model.encode(ask(text)) for text in tried]
    values = project(model, encoded, fitted.probes)
    last = np.stack([v.double().numpy()[text.last_prompt] for v, text in zip(values, encoded, strict=True)])
    scores = {
        detector.rule: dict(zip(tried, last[:, k] - detector.centre, strict=True))
        for k, detector in enumerate(fitted.header.detectors)
    }
    return scores, {detector.rule: detector.point.value for detector in fitted.header.detectors}


def rule_scores(
    topics: Topics, ordinary: Sequence[str], tried: Sequence[str], rate: float, model: Model | None
) -> tuple[Scores, dict[str, float]]:
    """The same, of rules that are `read_by: encoder` or, with a model, `read_by: both`, as they are shipped."""
    by = "both" if model else "encoder"
    rules = [
        {"name": name, "definition": name, "examples": texts["phrases"], "output": "SKIP", "read_by": by}
        for name, texts in topics.items()
    ]
    guardrail = Guardrail.model_validate({"name": "topics", "topics": rules})
    rows = [{"messages": [{"role": "user", "content": text}]} for text in ordinary]
    fitted = fit_guard(guardrail, model, rows, GuardFitSettings(rate=rate))
    reader, scores = DetectorReader(fitted, model, lambda work: work()), {name: dict[str, float]() for name in topics}
    for text in tried:
        for detector, value in reader.projections(text, "INPUT"):
            scores[detector.rule][text] = value - detector.centre
    return scores, {detector.rule: detector.point.value for detector in fitted.header.detectors}


def text_scores(
    topics: Topics, ordinary: Sequence[str], tried: Sequence[str], rate: float, way: str
) -> tuple[Scores, dict[str, float]]:
    """The same, by words or by the encoder."""
    n_fit = round(0.3 * len(ordinary))
    scores, thresholds = {}, {}
    for name, texts in topics.items():
        fit = FilterTexts(texts["phrases"], [], ordinary[:n_fit])
        scorer = baselines.words(fit) if way == "words" else baselines.encoder(fit, 1.0)
        scores[name] = dict(zip(tried, scorer(tried), strict=True))
        thresholds[name] = threshold_of(scorer(ordinary[n_fit:]), rate)
    return scores, thresholds


def table(topics: Topics, scores: Scores, thresholds: Mapping[str, float], unseen: Sequence[str]) -> list[str]:
    """A row a topic, and one of all."""
    lines, totals = [], np.zeros((4, 2), dtype=int)
    for name, texts in topics.items():
        others = [t for other, some in topics.items() if other != name for t in some["on_topic"]]
        of, limit = scores[name], thresholds[name]
        on, beside = [of[t] for t in texts["on_topic"]], [of[t] for t in texts["beside"]]
        usual = [of[t] for t in unseen]
        units = (np.arange(len(on)), np.arange(len(usual)) + len(on))
        groups = (on, beside, usual, [of[t] for t in others])
        counts = [(int(sum(v > limit for v in group)), len(group)) for group in groups]
        totals += np.array(counts)
        cells = " | ".join(shown(*pair) for pair in counts)
        lines.append(f"| {name} | {auc_shown(grouped_auc_estimate(on, usual, units))} | {cells} |")
    return [*lines, "| all | | " + " | ".join(f"{shown(int(k), int(n))} of {n}" for k, n in totals) + " |"]


def main(options: argparse.Namespace) -> None:
    topics: Topics = yaml.safe_load((Path(__file__).parent / "guardrail_topics.yaml").read_text("utf-8"))
    step = options.talk_step
    ordinary = [*talk(options.data, "fit"), *talk(options.data, "threshold"), *talk(options.data, "choose")][::step]
    unseen = talk(options.data, "report")[::step]
    tried = [*unseen, *(t for texts in topics.values() for key in ("on_topic", "beside") for t in texts[key])]
    print(f"{options.model}, rate {options.rate:g}, {len(ordinary)} conversations for fit and thresholds.\n")
    for way in options.ways:
        if way == "encoder rules":
            scores, thresholds = rule_scores(topics, ordinary, tried, options.rate, None)
        elif way == "rules of both":
            scores, thresholds = rule_scores(topics, ordinary, tried, options.rate, load_model(options.model))
        elif way == "detectors":
            model = load_model(options.model)
            scores, thresholds = guard_scores(model, topics, ordinary, tried, options.rate)
        else:
            scores, thresholds = text_scores(topics, ordinary, tried, options.rate, way)
        lines = table(topics, scores, thresholds, unseen)
        print(f"**{way}**\n\n| topic | AUC against talk | on the topic | beside it | other talk | other topics |")
        print("|---|---|---|---|---|---|")
        print("\n".join(lines) + "\n", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rate", type=float, default=0.01)
    ways = ("detectors", "encoder rules", "rules of both", "words", "encoder")
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways, metavar="WAY", help="default, all of them")
    parser.add_argument("--talk-step", type=int, default=1, help="take every so many-th text of ordinary talk")
    main(parser.parse_args())
