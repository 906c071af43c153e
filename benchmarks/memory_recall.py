"""Recall of planted facts in a memory of 10,000 entries, how long it takes, and what a write costs.

    python benchmarks/memory_recall.py --data ../shared/data [--entries 10000] [--planted 200]

Planted are passages that answer HaluEval's questions (``passages``; the question is the task) and made-up facts about
people, of which many share an attribute (``people``; tasks ask in other words than the facts). Around them stand
episodes of templates and texts of the other sets. Ways of ranking: by meaning alone, by words alone, and both as the
package does. Intervals are of 95 % over facts; a budget counts one token for four bytes. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poise.knowledge import BundledEncoder
from poise.memory import Memory, recalling
from poise.statistics.estimates import bounded_estimate

NAMES = [
    "Ada",
    "Bo",
    "Cleo",
    "Dag",
    "Esra",
    "Finn",
    "Gro",
    "Hugo",
    "Ines",
    "Jon",
    "Kaia",
    "Liv",
    "Max",
    "Nora",
    "Ola",
    "Pia",
    "Quin",
    "Rolf",
    "Siri",
    "Tor",
]
FAMILIES = [
    "Abel",
    "Brandt",
    "Costa",
    "Dahl",
    "Ekman",
    "Faber",
    "Gomez",
    "Holm",
    "Ito",
    "Jansen",
    "Koch",
    "Lund",
    "Meyer",
    "Novak",
    "Okafor",
    "Petrov",
    "Quist",
    "Rossi",
]
FACTS = [
    (
        "{who} works as a {v}.",
        "What is the profession of {who}?",
        ["baker", "pilot", "nurse", "welder", "lawyer", "painter"],
    ),
    (
        "{who} was born in {v}.",
        "Which town is {who} from?",
        ["Porto", "Ghent", "Turku", "Graz", "Leeds", "Malaga", "Bergen"],
    ),
    ("The phone extension of {who} is {v}.", "At which number do I reach {who}?", [str(n) for n in range(210, 290)]),
    ("{who} is allergic to {v}.", "What must {who} not eat?", ["nuts", "milk", "shellfish", "eggs", "celery", "soy"]),
    (
        "{who} drives a {v} car.",
        "What colour is the car of {who}?",
        ["red", "green", "white", "blue", "grey", "yellow"],
    ),
]
EPISODES = "Fetched the {a} of {b} in run {n}.|Wrote the {a} for {b} to file {n}.|Asked {b} about the {a}, call {n}."
THINGS = ["tides", "prices", "invoices", "photos", "minutes", "timetable", "budget", "contract", "weather", "tickets"]


class CachedEncoder(BundledEncoder):
    """Embeds what is known beforehand in one go."""

    def __init__(self, texts: Sequence[str]) -> None:
        vectors = BundledEncoder.__call__(self, texts)
        self.known = dict(zip(texts, vectors, strict=True))

    def __call__(self, texts: Sequence[str]) -> Any:
        if all(text in self.known for text in texts) and len(texts):
            return np.stack([self.known[text] for text in texts])
        return super().__call__(texts)


def planted_facts(data: Path, count: int) -> dict[str, list[tuple[str, str]]]:
    """Fact and task of each planted entry, by kind."""
    rng = np.random.default_rng(0)
    rows = [json.loads(line) for line in (data / "halueval" / "qa_pairs.jsonl").read_text("utf-8").splitlines()]
    passages = list({row["knowledge"].strip(): row["question"] for row in rows}.items())
    people = [f"{name} {family}" for name in NAMES for family in FAMILIES]
    facts = []
    for n, place in enumerate(rng.permutation(len(people))[:count]):
        fact, task, values = FACTS[n % len(FACTS)]
        facts.append((fact.format(who=people[place], v=rng.choice(values)), task.format(who=people[place])))
    return {"passages": passages[:count], "people": facts}


def filler(data: Path) -> Iterator[tuple[str, str]]:
    """Kind and text of the entries around them: real texts, then episodes without end."""
    for name, column in (
        ("truthfulqa/truthfulqa", "best_answer"),
        ("mistake_gsm8k/correct", "messages"),
        ("background_chat/gsm8k_train", "messages"),
        ("background_chat/self_instruct", "messages"),
        ("mmlu/mmlu", "question"),
    ):
        for line in (data / f"{name}.jsonl").read_text("utf-8").splitlines():
            value = json.loads(line)[column]
            text = value if isinstance(value, str) else value[0]["content"]
            if 0 < len(text.strip()) < 1500:
                yield "semantic", text
    rng = np.random.default_rng(1)
    forms = EPISODES.split("|")
    for n in range(10**9):
        who = f"{rng.choice(NAMES)} {rng.choice(FAMILIES)}"
        yield "episodic", str(rng.choice(forms)).format(a=rng.choice(THINGS), b=who, n=n)


def fill(memory: Memory, around: Sequence[tuple[str, str]], planted: Sequence[str]) -> None:
    """Write everything, the planted facts among the others."""
    step = max(len(around) // max(len(planted), 1), 1)
    waiting = list(planted)
    for n, (kind, text) in enumerate(around):
        memory.record(text, kind=kind, trust="tool", source=f"f{n}")  # type: ignore[arg-type]
        if n % step == 0 and waiting:
            memory.record(waiting.pop(), kind="semantic", trust="user")
    for text in waiting:
        memory.record(text, kind="semantic", trust="user")


def show_quality(memory: Memory, planted: dict[str, list[tuple[str, str]]]) -> None:
    """Recall at 1, 5 and 10 and in budgets, by way of ranking."""
    print("| facts | ranked by | at 1 | at 5 | at 10 | in 300 tokens | in 600 tokens |\n|---|---|---|---|---|---|---|")
    kept = {entry.text for entry in memory.entries("status = 'kept'")}
    weights = (recalling.WORDS_WEIGHT, recalling.LEAST_MEANING)
    for kind, facts in planted.items():
        facts = [(fact, task) for fact, task in facts if fact in kept]
        for way in ("meaning", "words", "both"):
            recalling.WORDS_WEIGHT, recalling.LEAST_MEANING = {
                "meaning": (0.0, weights[1]),
                "words": (100.0, 2.0),
                "both": weights,
            }[way]
            ranks, budgets = [], []
            for fact, task in facts:
                texts = [entry.text for entry in memory.recall(task, 100_000)]
                ranks.append(texts.index(fact) if fact in texts else 10**6)
                budgets.append([fact in [e.text for e in memory.recall(task, size)] for size in (300, 600)])
            cells = [np.array(ranks) < depth for depth in (1, 5, 10)] + list(np.array(budgets).T)
            shown = [f"{bounded_estimate(cell.astype(float), highest=1.0):.2f}" for cell in cells]
            print(f"| {kind}, n={len(facts)} | {way} | {' | '.join(shown)} |", flush=True)
    recalling.WORDS_WEIGHT, recalling.LEAST_MEANING = weights


def milliseconds(times: Sequence[float]) -> str:
    """Median and 95th percentile."""
    low, high = np.percentile(np.array(times) * 1000, [50, 95])
    return f"{low:.0f} ms, {high:.0f} ms, n={len(times)}"


def show_speed(memory: Memory, tasks: Sequence[str]) -> None:
    """How long a search and a write take."""
    recalls, writes, encoded = [], [], []
    for n, task in enumerate(tasks):
        began = time.perf_counter()
        memory.recall(task)
        recalls.append(time.perf_counter() - began)
        began = time.perf_counter()
        memory.encoder([f"{task} again {n}"])
        encoded.append(time.perf_counter() - began)
        began = time.perf_counter()
        memory.record(f"Looked up in run {n}: {task}", trust="tool", source=f"t{n}")
        writes.append(time.perf_counter() - began)
    began = time.perf_counter()
    Memory(memory.folder, memory.encoder).recall(tasks[0])
    first = time.perf_counter() - began
    print(f"\nrecall (p50, p95): {milliseconds(recalls)}; embedding alone: {milliseconds(encoded)}")
    print(f"write with the gate's rules: {milliseconds(writes)}; the first recall of a process: {first * 1000:.0f} ms")


def main() -> None:
    """Fill a memory and ask it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--planted", type=int, default=200)
    arguments = parser.parse_args()
    planted = planted_facts(arguments.data, arguments.planted)
    texts = [fact for facts in planted.values() for fact, _ in facts]
    source = filler(arguments.data)
    around = [next(source) for _ in range(arguments.entries - len(texts))]
    tasks = [task for facts in planted.values() for _, task in facts]
    encoder = CachedEncoder([*dict.fromkeys((*texts, *(text for _, text in around), *tasks))])
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory(Path(folder), encoder)
        began = time.perf_counter()
        fill(memory, around, texts)
        entries = memory.entries()
        states = {state: sum(e.status == state for e in entries) for state in ("kept", "quarantined")}
        size = (Path(folder) / "memory.sqlite").stat().st_size / 2**20
        print(f"{len(entries):,} entries ({states}), {size:.0f} MiB, {time.perf_counter() - began:.0f} s of writing\n")
        lost = [e for e in entries if e.status != "kept" and e.text in set(texts)]
        print(f"planted in quarantine: {len(lost)}", *(f"- {e.text[:90]}: {e.reasons}" for e in lost[:5]), sep="\n")
        show_quality(memory, planted)
        encoder.known.clear()
        show_speed(memory, tasks[:: max(len(tasks) // 100, 1)][:100])


if __name__ == "__main__":
    main()
