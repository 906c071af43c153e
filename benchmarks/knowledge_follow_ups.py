"""What finds the passages of a follow-up question: it alone, with the question before it, or rewritten by a model.

    python benchmarks/knowledge_follow_ups.py --docs /usr/share/doc/python3.11/html --knowledge KB --model smollm2-135m

``python_docs_follow_ups.tsv`` has pairs of questions that were written from the list of headings before anything was
searched: the second needs the first, and the last column asks it by itself, as a person words it. Of as many changed
topics the second question stands alone, and the first is one about another page. The way is chosen on one half of the
pairs (by a hash of the question) and reported on the other. ``KB`` is built where it is not there yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from knowledge_retrieval import DEPTH, QUESTIONS, Hit, figures, section_queries
from poise.grounding.facts import content_words
from poise.knowledge import BuildSettings, Knowledge, LocalAnswerWriter, RetrievedPassage, build_knowledge
from poise.knowledge.follow_ups import joined_question, search_text
from poise.model import load_model
from poise.statistics.estimates import mean_estimate

FOLLOW_UPS = Path(__file__).parent / "python_docs_follow_ups.tsv"
MEASURES = ("recall@1", "recall@5", "MRR@10")


class Pair(NamedTuple):
    first: str
    second: str
    file: str
    section: str
    alone: str

    def joined(self, words: int) -> str:
        """The second question; with the first where it has at most so many words of content."""
        return "\n".join(self[:2]) if len(content_words(self.second)) <= words else self.second


Ranking = Callable[[Pair], Sequence[Hit]]


def pairs() -> tuple[list[Pair], list[Pair]]:
    """Follow-ups, and as many changed topics."""
    follow_ups = [Pair(*line.split("\t")) for line in FOLLOW_UPS.read_text(encoding="utf-8").splitlines()]
    alone = [line.split("\t") for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    rng = np.random.default_rng(0)
    changed = []
    for place in rng.permutation(len(alone))[: len(follow_ups)]:
        text, file, section = alone[place]
        others = [question for question, other, _ in alone if other != file]
        changed.append(Pair(str(rng.choice(others)), text, file, section, text))
    return follow_ups, changed


def ways(knowledge: Knowledge, models: Sequence[str]) -> dict[str, Ranking]:
    def hits(text: str) -> list[Hit]:
        return [Hit(p.path, p.headings, p.page) for p in knowledge.search(text, DEPTH)]

    def fused(pair: Pair) -> list[Hit]:
        scores: dict[str, float] = {}
        passages: dict[str, RetrievedPassage] = {}
        for text in (pair.second, pair.joined(1000)):
            for rank, passage in enumerate(knowledge.search(text, 50), 1):
                passages[passage.id] = passage
                scores[passage.id] = scores.get(passage.id, 0.0) + 1 / (60 + rank)
        best = sorted(scores, key=lambda key: -scores[key])[:DEPTH]
        return [Hit(p.path, p.headings, p.page) for p in map(passages.__getitem__, best)]

    rankings: dict[str, Ranking] = {
        "the second question alone": lambda pair: hits(pair.second),
        "with the first, if it has at most 2 words": lambda pair: hits(pair.joined(2)),
        "with the first, if it has at most 3 words": lambda pair: hits(joined_question(pair[:2])),
        "with the first, if it has at most 4 words": lambda pair: hits(pair.joined(4)),
        "with the first, always": lambda pair: hits(pair.joined(1000)),
        "both searches, fused": fused,
    }
    for name in models:
        writer = LocalAnswerWriter(load_model(name))
        rankings[f"rewritten by {writer.name}"] = rewriting(writer, hits)
    rankings["asked by itself, as a person words it"] = lambda pair: hits(pair.alone)
    return rankings


def rewriting(writer: LocalAnswerWriter, hits: Callable[[str], list[Hit]]) -> Ranking:
    shown: list[str] = []

    def ranking(pair: Pair) -> list[Hit]:
        text = search_text(pair[:2], "rewrite", lambda messages, most: writer(messages, most).text)
        if len(shown) < 6:
            shown.append(text)
            print(f"  {pair.first} | {pair.second} -> {text!r}", flush=True)
        return hits(text)

    return ranking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--knowledge", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True)
    parser.add_argument("--model", nargs="*", default=[])
    args = parser.parse_args()
    lines = [line.split("\t") for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    pages = sorted({args.docs / file for _, file, _ in lines})
    build_knowledge(pages, args.knowledge, None, BuildSettings(store="exact"))
    knowledge = Knowledge(args.knowledge)
    rankings = ways(knowledge, args.model)
    for kind, rows in zip(("Follow-ups", "Changed topics"), pairs(), strict=True):
        half = np.array([crc32(pair.second.encode()) % 2 for pair in rows])
        rowed = [(pair.second, pair.file, pair.section) for pair in rows]
        queries = section_queries(args.knowledge, args.docs, rowed)
        print(f"\n{kind}: {(half == 0).sum()} to choose on, {(half == 1).sum()} to report\n")
        print(f"| | chosen on: {' | '.join(MEASURES)} | reported: {' | '.join(MEASURES)} |")
        print(f"|---|{'---|' * 2 * len(MEASURES)}", flush=True)
        for way, ranking in rankings.items():
            waiting = iter(rows)
            values = figures(lambda _, waiting=waiting, ranking=ranking: ranking(next(waiting)), queries)
            cells = [f"{mean_estimate(values[name][half == part]):.2f}" for part in (0, 1) for name in MEASURES]
            print(f"| {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
