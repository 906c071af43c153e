"""Grounding scores on right answers against made-up ones, beside what is cheaper: AUC with 95 % intervals.

    python benchmarks/grounding.py --data DIR [--model smollm2-135m] [--rows 64] [--cache FILE] [--fit]

Four sets, whose even rows weights are chosen on and whose odd rows are reported:

    halueval    right against hallucinated answers. The right ones are short: their length alone tells them apart
    same form   a right answer against another name or number of the same source, so that form and words tell nothing
    truthfulqa  a true answer against a false one; the source is the other true answers to the question
    swaps       a sentence of the source against the same with one name or number of another source

``score`` has the library's weights. With ``--fit`` the even rows are read too: every set of features is fitted to
those of three of the sets and tried on those of the fourth, the best ones are printed, and ``unseen`` has, for each
set, the chosen features with weights from the even rows of the others: what an answer of another kind may expect.
Relevance: a right answer to its question against the same to another row's. Passages: the right one of eight.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from poise.grounding import GROUNDING_FEATURES, ground, split_sentences
from poise.grounding.facts import FactIndex
from poise.grounding.score import GROUNDING_WEIGHTS, grounding_score
from poise.judge.exemplars import sentence_embeddings
from poise.model import Model, load_model
from poise.statistics.conformal import exact_interval
from poise.statistics.estimates import Estimate, grouped_auc_estimate
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal

SETS = ("halueval", "same form", "truthfulqa", "swaps")
NAME = re.compile(r"\b[A-Z][\w'’-]+(?:\s+(?:of |the )?[A-Z][\w'’-]+)*|\b\d[\d,.]*\d\b|\b\d\b")
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An answer over a source, and whether it is right. Rows of one unit are resampled together."""

    set: str
    unit: int
    source: str
    query: str
    answer: str
    right: bool


Scored = tuple[Case, Mapping[str, float]]


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def is_first_half(unit: int) -> bool:
    return unit % 2 == 0


def same_form(row: Row, rng: np.random.Generator) -> str | None:
    """Another name or number of the source, of the right answer's kind, that neither it nor the question has."""
    right = str(row["right_answer"])
    digits = any(c.isdigit() for c in right)
    if right.casefold() not in row["knowledge"].casefold() or not (digits or right[:1].isupper()):
        return None
    taken = f"{right} {row['question']}".casefold()
    others = [m.group() for m in NAME.finditer(row["knowledge"])]
    others = [o for o in others if any(c.isdigit() for c in o) == digits and o.casefold() not in taken and len(o) > 1]
    others = [o for o in others if not any(w in taken.split() for w in o.casefold().split())]
    return str(rng.choice(others)) if others else None


def swapped(sentence: str, row: Row, others: Sequence[Row], rng: np.random.Generator) -> str | None:
    """The sentence with one of its names or numbers replaced by one of another source."""
    matches = [m for m in NAME.finditer(sentence) if m.start() > 0 and len(m.group()) > 1]
    if not matches:
        return None
    match = matches[int(rng.integers(len(matches)))]
    digits = any(c.isdigit() for c in match.group())
    for place in rng.permutation(len(others)):
        for other in NAME.finditer(others[place]["knowledge"]):
            name = other.group()
            if any(c.isdigit() for c in name) == digits and name not in row["knowledge"] and other.start() > 0:
                return sentence[: match.start()] + name + sentence[match.end() :]
    return None


def cases(data: Path, most: int) -> Iterator[Case]:
    rng, more = np.random.default_rng(0), np.random.default_rng(1)
    rows = rows_of(data / "halueval" / "qa_pairs.jsonl")
    for unit, row in enumerate(rows[:most]):
        source, query = row["knowledge"], row["question"]
        yield Case("halueval", unit, source, query, row["right_answer"], True)
        yield Case("halueval", unit, source, query, row["hallucinated_answer"], False)
        if other := same_form(row, rng):
            yield Case("same form", unit, source, query, row["right_answer"], True)
            yield Case("same form", unit, source, query, other, False)
        sentences = [source[start:end] for start, end in split_sentences(source)]
        sentence = sentences[int(rng.integers(len(sentences)))]
        if other := swapped(sentence, row, rows, more if is_first_half(unit) else rng):
            yield Case("swaps", unit, source, query, sentence, True)
            yield Case("swaps", unit, source, query, other, False)
    questions = [row for row in rows_of(data / "truthfulqa" / "truthfulqa.jsonl") if len(row["correct_answers"]) > 2]
    for unit, row in enumerate(questions[:most]):
        *others, right = row["correct_answers"]
        wrong = str(rng.choice(row["incorrect_answers"]))
        yield Case("truthfulqa", unit, ". ".join(others) + ".", row["question"], right, True)
        yield Case("truthfulqa", unit, ". ".join(others) + ".", row["question"], wrong, False)


def features(model: Model, journal: Journal, case: Case) -> Mapping[str, float]:
    """Of the answer's weakest sentence, and its relevance."""
    key = content_key(model=model.name, source=case.source, query=case.query, answer=case.answer)
    if key not in journal:
        result = ground(model, case.source, case.query, case.answer, passages=False)
        sentences = [s.features for s in result.sentences] or [dict.fromkeys(GROUNDING_FEATURES, 0.0)]
        journal.append([(key, {"sentences": sentences, "relevance": result.relevance or 0.0})])
    record = journal[key]
    return {**min(record["sentences"], key=grounding_score), "relevance": record["relevance"]}


def similarity(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Cosine of the encoder's embeddings: the highest with a sentence of the source."""
    texts = [(answer, [source[a:b] for a, b in split_sentences(source)] or [source]) for answer, source in pairs]
    flat = list(dict.fromkeys(t for answer, parts in texts for t in [answer, *parts]))
    vectors = dict(zip(flat, sentence_embeddings(flat), strict=True))
    return np.array([max(float(vectors[answer] @ vectors[p]) for p in parts) for answer, parts in texts])


def shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def auc(rows: Sequence[Case], scores: Sequence[float]) -> Estimate:
    sides = [[(s, c.unit) for s, c in zip(scores, rows, strict=True) if c.right == right] for right in (True, False)]
    units = {unit: n for n, unit in enumerate(sorted({c.unit for c in rows}))}
    places = tuple(np.array([units[unit] for _, unit in side]) for side in sides)
    return grouped_auc_estimate([s for s, _ in sides[0]], [s for s, _ in sides[1]], (places[0], places[1]))


def fitted_weights(rows: Sequence[Scored], names: Sequence[str], without: str = "") -> dict[str, float]:
    """A logistic regression on the even rows of all sets but one, each set with the same weight."""
    chosen = [(c, f) for c, f in rows if c.set != without and is_first_half(c.unit)]
    x = np.array([[f[name] for name in names] for _, f in chosen])
    sizes = Counter(c.set for c, _ in chosen)
    weight = np.array([len(chosen) / len(sizes) / sizes[c.set] for c, _ in chosen])
    scale = x.std(axis=0) + 1e-9
    fit = LogisticRegression(C=1.0).fit(x / scale, [c.right for c, _ in chosen], sample_weight=weight)
    weights = {name: round(float(w), 3) for name, w in zip(names, fit.coef_[0] / scale, strict=True)}
    return {**weights, "constant": round(float(fit.intercept_[0]), 3)}


def print_choice(rows: Sequence[Scored], most: int = 6) -> None:
    """Sets of features by their mean AUC on even rows of the set that the weights have not seen."""
    trials = []
    for names in (n for k in range(1, 6) for n in combinations(GROUNDING_FEATURES, k)):
        values = []
        for name in SETS:
            weights = fitted_weights(rows, names, without=name)
            some = [(c, f) for c, f in rows if c.set == name and is_first_half(c.unit)]
            values.append(auc([c for c, _ in some], [grounding_score(f, weights) for _, f in some]).value or 0.0)
        trials.append((float(np.mean(values)), names, [f"{value:.2f}" for value in values]))
    for mean, names, each in sorted(trials, reverse=True)[:most]:
        print(f"{mean:.3f} {', '.join(names)}: {', '.join(each)}; {fitted_weights(rows, names)}")
    print()


def print_sets(rows: Sequence[Scored], *, unseen: bool) -> None:
    chosen = [name for name in GROUNDING_WEIGHTS if name != "constant"]
    names = ("score", *(("unseen",) if unseen else ()), *GROUNDING_FEATURES, "encoder", "short")
    print("| set | answers | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))
    for name in SETS:
        some = [(c, f) for c, f in rows if c.set == name and not is_first_half(c.unit)]
        answers = [c for c, _ in some]
        other = fitted_weights(rows, chosen, without=name) if unseen else GROUNDING_WEIGHTS
        columns: dict[str, Sequence[float]] = {
            "score": [grounding_score(f) for _, f in some],
            "unseen": [grounding_score(f, other) for _, f in some],
            **{each: [-f[each] if each == "missing" else f[each] for _, f in some] for each in GROUNDING_FEATURES},
            "encoder": list(similarity([(f"{c.query} {c.answer}", c.source) for c in answers])),
            "short": [-float(len(c.answer)) for c in answers],
        }
        estimates = [auc(answers, columns[each]) for each in names]
        print(f"| {name} | {len(some)} of {estimates[0].n} rows | " + " | ".join(map(shown, estimates)) + " |")
    print("\n| set | right answers below 0.5 | others below 0.5 |\n|---|---|---|")
    for name in SETS:
        some = [(c, f) for c, f in rows if c.set == name and not is_first_half(c.unit)]
        cells = []
        for right in (True, False):
            below = [grounding_score(f) < 0.5 for c, f in some if c.right == right]
            low, high = exact_interval(sum(below), len(below))
            cells.append(f"{sum(below) / len(below):.2f} [{low:.2f}, {high:.2f}] of {len(below)}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def print_relevance(model: Model, journal: Journal, data: Path, most: int) -> None:
    rows = [row for n, row in enumerate(rows_of(data / "halueval" / "qa_pairs.jsonl")[:most]) if not is_first_half(n)]
    asked = [(row, rows[(n + k) % len(rows)]["question"]) for n, row in enumerate(rows) for k in (0, 1)]
    pairs = [
        Case("relevance", n // 2, row["knowledge"], question, row["right_answer"], n % 2 == 0)
        for n, (row, question) in enumerate(asked)
    ]
    gains = [features(model, journal, case)["relevance"] for case in pairs]
    encoder = similarity([(case.answer, case.query) for case in pairs])
    print(f"\nRelevance, {len(rows)} rows: {shown(auc(pairs, gains))}; encoder {shown(auc(pairs, list(encoder)))}")


def print_passages(model: Model, data: Path, most: int, among: int = 8) -> None:
    rng = np.random.default_rng(1)
    rows = rows_of(data / "halueval" / "qa_pairs.jsonl")[:most]
    hits: dict[str, list[bool]] = {"likelihood": [], "encoder": [], "words": []}
    for place, row in enumerate(rows):
        if is_first_half(place):
            continue
        others = rng.choice([n for n in range(len(rows)) if n != place], among - 1, replace=False)
        passages = [rows[n]["knowledge"] for n in others]
        right = int(rng.integers(among))
        passages.insert(right, row["knowledge"])
        answer, query = row["right_answer"], row["question"]
        [*sentences] = ground(model, passages, query, answer).sentences
        hits["likelihood"].append(bool(sentences) and sentences[0].passage == right)
        hits["encoder"].append(bool(np.argmax(similarity([(f"{query} {answer}", p) for p in passages])) == right))
        hits["words"].append(bool(np.argmax([FactIndex(p).share(answer) for p in passages]) == right))
    print(f"\nThe right one of {among} passages, {len(hits['words'])} answers: ", end="")
    for name, values in hits.items():
        low, high = exact_interval(sum(values), len(values))
        print(f"{name} {sum(values) / len(values):.3f} [{low:.3f}, {high:.3f}]", end="; ")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--passages", type=int, default=60, help="rows whose passages are told; 0 for none")
    parser.add_argument("--cache", type=Path, help="file of what was read, so that a run goes on")
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    model, journal = load_model(args.model), Journal(args.cache)
    wanted = [case for case in cases(args.data, args.rows) if args.fit or not is_first_half(case.unit)]
    rows = [(case, features(model, journal, case)) for case in wanted]
    print(f"{model.name}, weights {dict(GROUNDING_WEIGHTS)}\n")
    if args.fit:
        print_choice(rows)
    print_sets(rows, unseen=args.fit)
    print_relevance(model, journal, args.data, args.rows)
    if args.passages:
        print_passages(model, args.data, args.passages)


if __name__ == "__main__":
    main()
