"""Content rules as `poise guardrail fit` makes them and as they are read, by the model's activations or by the encoder.

    python benchmarks/guardrail_shipped.py --data DIR [--by encoder activations] [--way input|output] [--half report]

The comparisons are those of ``guardrail_comparisons.py``. A guardrail with the content rules is fitted by ``fit_guard``
on the parts of ordinary talk for fit and thresholds, at a rate of 1 % for each rule, and each text is read by what
`poise guardrail check` reads it with. With ``--way output`` the same texts are read as answers, after answers of the
same talk. ``--half choose`` prints means alone, for each ``--ridge`` and each ``--parts LEAST:MOST`` of prompts or
answers, which the encoder's rules were chosen on. Prints Markdown.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guardrail_comparisons import COMPARISONS, TALK_ROWS, Comparison, Part, read_rows, talk, xstest
from guardrail_quality import auc_shown, shown
from poise.guardrail import Guardrail, encoder_fitting, encoder_reader
from poise.guardrail.fitting import GuardFitSettings, fit_guard
from poise.guardrail.judging import DetectorReader
from poise.guardrail.schema import ReadBy, Source
from poise.guardrail.text_units import UNIT_LENGTHS, UnitLengths
from poise.model import Model, load_model
from poise.statistics.estimates import grouped_auc_estimate

RATE = 0.01
TYPES = ("HATE", "INSULTS", "SEXUAL", "VIOLENCE", "MISCONDUCT", "PROMPT_ATTACK")
Sides = Mapping[Comparison, tuple[Sequence[str], Sequence[str]]]


@functools.cache
def embedding(text: str) -> NDArray[np.float64]:
    return np.asarray(sentence_embeddings([text])[0])


sentence_embeddings = encoder_reader.sentence_embeddings


def conversations(data: Path, part: Part) -> list[dict[str, Any]]:
    """Conversations of ordinary talk of one part: what the user says first, and the answer."""
    wanted, rows = dict.fromkeys(talk(data, part)), []
    for name in TALK_ROWS:
        for row in read_rows(data / "background_chat" / f"{name}.jsonl"):
            first = next(m["content"] for m in row["messages"] if m["role"] == "user")
            answer = next((m["content"] for m in row["messages"] if m["role"] == "assistant"), "")
            if first in wanted and answer.strip():
                del wanted[first]
                rows.append(
                    {"messages": [{"role": "user", "content": first}, {"role": "assistant", "content": answer}]}
                )
    return rows


class ShippedRules:
    """The content rules, fitted, with the scores of texts."""

    def __init__(self, by: ReadBy, types: Sequence[str], model: Model | None, rows: Sequence[Any], way: Source) -> None:
        rules: list[dict[str, Any]] = [
            {"type": t, "read_by": by, **({"output": "NONE"} if way == "INPUT" else {"input": "NONE"})} for t in types
        ]
        guardrail = Guardrail.model_validate({"name": "content", "content": rules})
        self.way = way
        self.fitted = fit_guard(guardrail, model, rows, GuardFitSettings(rate=RATE))
        self._reader = DetectorReader(self.fitted, model, lambda work: work())
        self.thresholds = {d.rule: d.point.value for d in self.fitted.header.detectors}
        self._known: dict[str, dict[str, float]] = {}

    def scores(self, rule: str, texts: Sequence[str]) -> NDArray[np.float64]:
        """Readings by a rule."""
        for text in texts:
            if text not in self._known:
                pairs = self._reader.projections(text, self.way)
                self._known[text] = {d.rule: value - d.centre for d, value in pairs}
        return np.array([self._known[text][rule] for text in texts])

    def milliseconds(self, texts: Sequence[str]) -> float:
        """Of one core, a text by itself."""
        began = time.process_time()
        for text in texts:
            self._reader.projections(text, self.way)
        return 1000 * (time.process_time() - began) / len(texts)


def means(rules: ShippedRules, sides: Sides) -> tuple[float, float, float]:
    """AUC, recall and alarms, over the comparisons."""
    rows = []
    for c, (positive, negative) in sides.items():
        above, below = rules.scores(c.filter, positive), rules.scores(c.filter, negative)
        value = grouped_auc_estimate(above, below, (np.arange(len(above)), np.arange(len(below)) + len(above))).value
        limit = rules.thresholds[c.filter]
        rows.append((value or 0.0, float((above > limit).mean()), float((below > limit).mean())))
    auc, recall, alarms = np.mean(rows, axis=0)
    return float(auc), float(recall), float(alarms)


def choose(sides: Sides, rows: Sequence[Any], options: argparse.Namespace, way: Source) -> None:
    """Means by the encoder's regularisation and by the length of parts."""
    encoder_reader.sentence_embeddings = lambda texts: np.stack([embedding(text) for text in texts])
    place = "prompt" if way == "INPUT" else "answer"
    types = sorted({c.filter for c in sides})
    print("| C | parts | mean AUC | recall at 1 % | stopped of the others |\n|---|---|---|---|---|")
    for ridge, parts in itertools.product(options.ridge, options.parts or [""]):
        encoder_fitting.ENCODER_RIDGE = ridge
        if parts:
            least, most = map(int, parts.split(":"))
            UNIT_LENGTHS[place] = UnitLengths(least, most)  # type: ignore[index]
        auc, recall, alarms = means(ShippedRules("encoder", types, None, rows, way), sides)
        print(f"| {ridge:g} | {parts or 'as they are'} | {auc:.3f} | {recall:.3f} | {alarms:.3f} |", flush=True)


def report(name: str, rules: ShippedRules, sides: Sides, groups: Mapping[str, Sequence[str]]) -> None:
    """Every comparison, what any rule stops, means and cost."""
    print(f"\n**{name}**\n\n| filter | comparison | n | AUC | recall at 1 % | stopped of the others at 1 % |")
    print("|---|---|---|---|---|---|")
    for c, (positive, negative) in sides.items():
        above, below = rules.scores(c.filter, positive), rules.scores(c.filter, negative)
        units = (np.arange(len(above)), np.arange(len(below)) + len(above))
        limit = rules.thresholds[c.filter]
        cells = " | ".join(shown(int((side > limit).sum()), len(side)) for side in (above, below))
        n = f"{len(above)} + {len(below)}"
        print(f"| {c.filter} | {c.name} | {n} | {auc_shown(grouped_auc_estimate(above, below, units))} | {cells} |")
    auc, recall, alarms = means(rules, sides)
    print(f"\nMeans: AUC {auc:.2f}, recall {recall:.2f}, stopped of the others {alarms:.2f}.\n")
    for group, texts in groups.items():
        stopped = [rules.scores(rule, texts) > limit for rule, limit in rules.thresholds.items()]
        single = ", ".join(f"{rule} {each.mean():.3f}" for rule, each in zip(rules.thresholds, stopped, strict=True))
        any_of = shown(int(np.any(stopped, axis=0).sum()), len(texts))
        print(f"- {group}: any of them {any_of} of {len(texts)}; {single}")
    texts = [text for positive, _ in sides.values() for text in positive][:200:4]
    n = rules.fitted.header.detectors[0].point.n
    print(f"- set on {n}; {rules.milliseconds(texts):.1f} ms a text of one core, all rules", flush=True)


def main(options: argparse.Namespace) -> None:
    way: Source = "INPUT" if options.way == "input" else "OUTPUT"
    rows = [*conversations(options.data, "fit"), *conversations(options.data, "threshold")][:: options.talk_step]
    turn = 0 if way == "INPUT" else 1
    ordinary = [row["messages"][turn]["content"] for row in conversations(options.data, options.half)]
    ordinary = list(dict.fromkeys(ordinary))[:: options.talk_step]
    types = [t for t in options.filters if way == "INPUT" or t != "PROMPT_ATTACK"]
    sides = {}
    for c in COMPARISONS:
        if c.half == options.half and c.filter in types:
            positive, negative = c.sides(options.data, options.rows)
            sides[c] = (positive, negative if c.negative else ordinary)
    print(f"{options.way}, {options.half} half; {len(rows)} conversations, at most {options.rows} rows a side.\n")
    if options.half == "choose":
        return choose(sides, rows, options, way)
    groups = {"ordinary talk": ordinary}
    if way == "INPUT":
        groups |= {f"XSTest, {label}": xstest(label, options.half)(options.data) for label in ("safe", "unsafe")}
    for by in options.by:
        model = load_model(options.model) if by == "activations" else None
        name = f"by {by}" + (f", {model.name}" if model else "")
        report(name, ShippedRules(by, types, model, rows, way), sides, groups)
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--by", nargs="+", choices=("encoder", "activations"), default=("encoder",))
    parser.add_argument("--model", default="smollm2-135m", help="whose activations are read")
    parser.add_argument("--way", choices=("input", "output"), default="input")
    parser.add_argument("--half", choices=("choose", "report"), default="report")
    parser.add_argument("--filters", nargs="+", metavar="TYPE", default=TYPES)
    parser.add_argument("--rows", type=int, default=100, help="most rows a side of a comparison")
    parser.add_argument("--talk-step", type=int, default=1, help="take every so many-th conversation of ordinary talk")
    parser.add_argument("--ridge", type=float, nargs="+", default=(1e-3, 3e-3, 1e-2, 3e-2))
    parser.add_argument("--parts", nargs="+", metavar="LEAST:MOST", help="lengths of parts, in characters")
    main(parser.parse_args())
