"""What the check of citations catches, and what it wrongly marks: by words, numbers, names and quotations alone.

    python benchmarks/knowledge_citations.py --data ../shared/data

On HaluEval: each row's knowledge stands among two drawn passages. *right* is the right answer, *hallucinated* the other
one, both as they are in the set. The planted kinds take a sentence of the passage itself, cited rightly, and change one
thing: *number* (another number), *name* (a name of another row's passage), *citation* (another passage is cited),
*foreign* (a sentence of a passage that is not there). What is counted is the share that is marked as unsupported, with
exact intervals of 95 %.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from pathlib import Path

from poise.grounding.sentences import split_sentences
from poise.knowledge import RetrievedPassage
from poise.knowledge.citations import check_citations
from poise.statistics.conformal import exact_interval

NUMBER = re.compile(r"\b\d{2,4}\b")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b")


def passage(text: str, n: int) -> RetrievedPassage:
    return RetrievedPassage(str(n), f"{n}.md", "", (), None, text, 1.0, (), ())


def sentences_of(text: str) -> list[str]:
    parts = [text[start:end] for start, end in split_sentences(text)]
    return [part for part in parts if len(part) > 40]


def marked(answer: str, passages: list[RetrievedPassage], question: str) -> bool:
    return any(not sentence.supported for sentence in check_citations(answer, passages, question))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    lines = (args.data / "halueval" / "qa_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    rng = random.Random(0)
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        others = rng.sample([other for other in rows if other["knowledge"] != row["knowledge"]], 3)
        texts = [row["knowledge"], others[0]["knowledge"], others[1]["knowledge"]]
        passages = [passage(text, n) for n, text in enumerate(texts)]
        question = row["question"]
        outcomes["right"].append(marked(row["right_answer"], passages, question))
        outcomes["hallucinated"].append(marked(row["hallucinated_answer"], passages, question))
        pool = sentences_of(row["knowledge"])
        if not pool:
            continue
        sentence = rng.choice(pool)
        outcomes["sentence of the passage"].append(marked(f"{sentence} [1]", passages, question))
        outcomes["citation"].append(marked(f"{sentence} [2]", passages, question))
        if foreign := sentences_of(others[2]["knowledge"]):
            outcomes["foreign"].append(marked(f"{rng.choice(foreign)} [1]", passages, question))
        if numbers := NUMBER.findall(sentence):
            number = rng.choice(numbers)
            changed = sentence.replace(number, str(int(number) + rng.randint(1, 9)), 1)
            outcomes["number"].append(marked(f"{changed} [1]", passages, question))
        names = NAME.findall(sentence)
        strangers = [name for name in NAME.findall(others[2]["knowledge"]) if name not in row["knowledge"]]
        if names and strangers:
            changed = sentence.replace(rng.choice(names), rng.choice(strangers), 1)
            outcomes["name"].append(marked(f"{changed} [1]", passages, question))
    print("| answers | n | marked as unsupported |\n|---|---|---|")
    for kind, values in outcomes.items():
        low, high = exact_interval(sum(values), len(values))
        print(f"| {kind} | {len(values)} | {sum(values) / len(values):.2f} [{low:.2f}, {high:.2f}] |")


if __name__ == "__main__":
    main()
