"""Do alarms keep the false-alarm rate that they were set for? Prints Markdown.

    python benchmarks/false_alarms.py --data DIR [--model smollm2-135m] [--tokens 40] [--each N] [--detectors]
        [--keep FOLDER]

DIR holds normal talk, a file a topic. The model answers the prompts itself, watched by a vector of each of the
library's traits (from exemplars). Alarms are set on a random half of the answers and counted on the other; then topic
by topic, set on the topic itself, and set on all other topics. FOLDER keeps the answers, to resume a run. With
--detectors each vector is read by a detector, fitted on the library's pairs and the given answers of three topics.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import betabinom

from planted_detectors import with_detectors
from poise import contrast
from poise.data import Conversation, Rejections, open_data
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import TooFewResponses
from poise.extract import extract
from poise.model import Model, load_model
from poise.monitor import raised_alarms
from poise.monitor.calibrate import AlarmSource, set_alarms
from poise.monitor.readings import READING_NAMES
from poise.monitor.reference_readings import ReferenceReadings, read_generated_answers
from poise.statistics.conformal import exact_interval
from poise.statistics.cusum import cusum_step, fit_cusum
from poise.storage.journal import Journal
from poise.trait import library
from poise.vector import Alarm, PersonaVector

RATES = (0.01, 0.05)
FACTS = AlarmSource(answers="own", max_new_tokens=0, temperature=1.0, data="", data_sha256="", seed=0)
Counted = dict[tuple[str, str, float], int]  # trait, reading, rate: alarms


def main(data: Path, name: str, tokens: int, each: int | None, detectors: bool, keep: Path | None) -> None:
    model = load_model(name)
    vectors = [extract(contrast.exemplars(library.load_trait(n), model), model) for n in library.names()]
    vectors = with_detectors(vectors, data.parent, model) if detectors else vectors
    normal = answered(model, vectors, data, tokens, each, keep)
    traits = [v.name for v in vectors]
    fit, test = halves(normal, seed=0)
    topics = sorted({t for t in normal.topics if t})
    layer = vectors[0].at("read").layer
    print(
        f"{name}, {model.lm.dtype}, layer {layer} of {model.layers}; {len(normal.readings)} answers of up to {tokens} "
        f"tokens, temperature 1; left out: {dict(normal.left_out) or 'none'}; set on {len(fit.readings)}, counted on "
        f"{len(test.readings)}.\n"
    )
    set_on = alarms_of(fit, traits)
    overall(set_on, fit, test, traits)
    print("\nBy topic: median over the traits [lowest, highest], in per cent.\n")
    print(
        "| topic | n counted | rate | reading | set on all topics | set on the topic itself | set on all other topics |"
    )
    print("|---|---|---|---|---|---|---|")
    for topic in topics:
        mine, others = only(test, lambda t, topic=topic: t == topic), only(fit, lambda t, topic=topic: t != topic)
        ways = [count(set_on, mine)]
        ways += [count(found, mine) for found in (alarms_of(only(fit, lambda t, topic=topic: t == topic), traits),
                                                  alarms_of(others, traits))]  # fmt: skip
        for rate in RATES:
            for reading in READING_NAMES:
                cells = [spread([way.get((t, reading, rate)) for t in traits], len(mine.readings)) for way in ways]
                if any(ways[0].get((t, reading, rate)) is not None for t in traits):
                    print(f"| {topic} | {len(mine.readings)} | {rate:.0%} | {reading} | {' | '.join(cells)} |")
    print("\nMean of the answer at 5 %, set on all topics, counted by topic, in per cent.\n")
    print(f"| trait | {' | '.join(topics)} |")
    print("|---|" + "---|" * len(topics))
    by_topic = {
        t: (count(set_on, part), len(part.readings)) for t in topics if (part := only(test, lambda x, t=t: x == t))
    }
    for trait in traits:
        shares = [f"{100 * c[trait, 'mean', 0.05] / n:.1f}" for c, n in by_topic.values()]
        print(f"| {trait} | {' | '.join(shares)} |")
    drift(fit, test, traits)


def answered(
    model: Model, vectors: list[PersonaVector], data: Path, tokens: int, each: int | None, keep: Path | None
) -> ReferenceReadings:
    """Readings of the model's own answers to the prompts of each file, at most ``each`` a file, drawn at random."""
    talk: list[Conversation] = []
    for path in sorted(data.glob("*.jsonl")):
        rows = list(Rejections().sift(open_data(path, need="user")))
        if each is not None and len(rows) > each:
            rows = [rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[:each])]
        talk += rows
    talk = [replace(c, index=i) for i, c in enumerate(talk)]
    journal = Journal(keep / "readings.jsonl" if keep else None)
    found = read_generated_answers(
        talk,
        LocalEngine(model, batch=32),
        model,
        [v.at("read").probe for v in vectors],
        SamplingParams(tokens),
        journal=journal,
    )
    return replace(found, topics=tuple(Path(talk[i].file).stem for i in found.conversations))


def pick(normal: ReferenceReadings, rows: Iterable[int]) -> ReferenceReadings:
    rows = list(rows)
    readings, conversations = (tuple(x[i] for i in rows) for x in (normal.readings, normal.conversations))
    return ReferenceReadings(
        readings=readings, conversations=conversations, topics=tuple(normal.topics[i] for i in rows)
    )


def halves(normal: ReferenceReadings, seed: int) -> tuple[ReferenceReadings, ReferenceReadings]:
    order = np.random.default_rng(seed).permutation(len(normal.readings)).tolist()
    return pick(normal, order[::2]), pick(normal, order[1::2])


def only(normal: ReferenceReadings, wanted: Callable[[str | None], bool]) -> ReferenceReadings:
    return pick(normal, [i for i, topic in enumerate(normal.topics) if wanted(topic)])


def alarms_of(normal: ReferenceReadings, traits: list[str]) -> dict[str, list[Alarm]]:
    """Alarms at each rate that so many answers can bear."""
    found: dict[str, list[Alarm]] = {trait: [] for trait in traits}
    plain = replace(normal, topics=(None,) * len(normal.readings))
    for column, trait in enumerate(traits):
        for rate in RATES:
            try:
                found[trait] += set_alarms(plain, column, 0, [rate], FACTS)[0]
            except TooFewResponses:
                continue
    return found


def count(set_on: dict[str, list[Alarm]], test: ReferenceReadings) -> Counted:
    counted: Counted = {
        (trait, a.reading, a.rate): 0
        for trait, read_generated_answers in set_on.items()
        for a in read_generated_answers
    }
    names = list(set_on)
    for readings in test.readings:
        for raised in raised_alarms(readings, list(set_on.values())):
            counted[names[raised.column], raised.alarm.reading, raised.alarm.rate] += 1
    return counted


def overall(set_on: dict[str, list[Alarm]], fit: ReferenceReadings, test: ReferenceReadings, traits: list[str]) -> None:
    """One table a rate, and how often any alarm at all is raised."""
    counted, m = count(set_on, test), len(test.readings)
    for rate in RATES:
        first = next((a for a in set_on[traits[0]] if a.rate == rate), None)
        if first is None:
            print(f"\nToo few answers for {rate:.0%}.")
            continue
        promised = f"{100 * first.low:.1f} to {100 * first.high:.1f} %"
        print(f"\nAsked for {rate:.0%}, promised {promised}; counted, in per cent:\n")
        print("| trait | prompt | mean | peak |\n|---|---|---|---|")
        inside = 0
        k = math.floor((first.n_answers + 1) * rate)
        low, high = betabinom.ppf([0.025, 0.975], m, k, first.n_answers + 1 - k)
        for trait in traits:
            cells = []
            for reading in READING_NAMES:
                x = counted[trait, reading, rate]
                interval = exact_interval(x, m)
                inside += low <= x <= high
                cells.append(f"{100 * x / m:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]")
            print(f"| {trait} | {' | '.join(cells)} |")
        print(f"\n{inside} of {3 * len(traits)} counts within {low:.0f} to {high:.0f}, where 95 % are expected.")
        own = [[a for a in set_on[t] if a.rate == rate] for t in traits]
        any_ = sum(bool(raised_alarms(r, own)) for r in test.readings)
        print(f"At least one of the {3 * len(traits)} alarms: {100 * any_ / m:.1f} % of the answers.")


def spread(counts: list[int | None], n: int) -> str:
    if any(c is None for c in counts):
        return "too few answers"
    shares = [100 * c / n for c in counts if c is not None]
    return f"{np.median(shares):.1f} [{min(shares):.1f}, {max(shares):.1f}]"


def drift(fit: ReferenceReadings, test: ReferenceReadings, traits: list[str], passes: int = 50) -> None:
    """Average run length on the other half: many random orders one after another, and topic after topic."""
    print("\nDrift: CUSUM of the answers' means, set for a false alarm every 1,000 answers.\n")
    print("| trait | h | interval | answers to a false alarm, random order | alarms when topic follows topic |")
    print("|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    for column, trait in enumerate(traits):
        made = fit_cusum(fit.column("mean", column)[0])
        assert made is not None
        values = test.column("mean", column)[0]
        orders = np.concatenate([rng.permutation(values) for _ in range(passes)])
        by_topic = [test.readings[i].mean[column] for i in np.argsort([str(t) for t in test.topics], kind="stable")]
        raised = []
        for sequence in (orders, np.array([x for x in by_topic if np.isfinite(x)])):
            s, alarm_count = 0.0, 0
            for x in sequence.tolist():
                s, alarm = cusum_step(s, x, mean=made.mean, sd=made.sd, k=made.k, h=made.h)
                s, alarm_count = (0.0, alarm_count + 1) if alarm else (s, alarm_count)
            raised.append(alarm_count)
        mean_run = f"{len(orders) / raised[0]:.0f}" if raised[0] else f"over {len(orders)}"
        between = f"{made.low:.0f} to {made.high:.0f}"
        print(f"| {trait} | {made.h:.2f} | {between} | {mean_run} | {raised[1]} in {len(by_topic)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--each", type=int, help="most prompts a topic, drawn at random")
    parser.add_argument("--detectors", action="store_true", help="read by detectors")
    parser.add_argument("--keep", type=Path, help="folder for finished answers")
    options = parser.parse_args()
    main(options.data, options.model, options.tokens, options.each, options.detectors, options.keep)
