"""How well questions find their passages, and how fast: dense, sparse and hybrid, beside bm25s and LanceDB's defaults.

    python benchmarks/knowledge_retrieval.py quality --data ../shared/data --docs /usr/share/doc/python3.11/html
    python benchmarks/knowledge_retrieval.py quality --data ../shared/data --rerank likelihood:smollm2-135m --limit 80
    python benchmarks/knowledge_retrieval.py scale --sizes 1000 10000 100000
    python benchmarks/knowledge_retrieval.py again --files 10000

``--docs`` is Python's documentation as HTML, such as the Debian package python3-doc has; its questions, with the
section that answers each, are in ``python_docs_questions.tsv`` and were written from the list of headings before
anything was searched. A passage counts where it is of that section. HaluEval's knowledge passages are documents, and
its questions the queries. Intervals are of 95 %, over questions; differences are paired.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import numpy as np

from poise.knowledge import (
    BuildSettings,
    BundledEncoder,
    ChunkFilter,
    Knowledge,
    TextReranker,
    build_knowledge,
    text_reranker,
)
from poise.knowledge.exact_store import ExactStore
from poise.knowledge.header import open_store
from poise.knowledge.lance_store import LanceStore
from poise.knowledge.searching import reranked
from poise.knowledge.store import ChunkStore, StoredChunk, VectorArray
from poise.statistics.estimates import mean_estimate

QUESTIONS = Path(__file__).parent / "python_docs_questions.tsv"
PARTS = ("tutorial", "howto", "faq", "reference", "library")
DEPTH = 10
RERANKED_DEPTH = 10


@dataclass(frozen=True)
class Hit:
    path: str
    headings: tuple[str, ...]
    row: int | None


@dataclass(frozen=True)
class Query:
    text: str
    relevant: Callable[[Hit], bool]
    count: int


Search = Callable[[str], Sequence[Hit]]
Rerankers = Sequence[TextReranker]
Row = TypeVar("Row")


def figures(search: Search, queries: Sequence[Query]) -> dict[str, np.ndarray[Any, Any]]:
    """Recall at 1, 5 and 10, reciprocal rank and nDCG at 10 of each query."""
    rows: dict[str, list[float]] = {name: [] for name in ("recall@1", "recall@5", "recall@10", "MRR@10", "nDCG@10")}
    for query in queries:
        right = [query.relevant(hit) for hit in search(query.text)[:DEPTH]]
        for k in (1, 5, 10):
            rows[f"recall@{k}"].append(float(any(right[:k])))
        rows["MRR@10"].append(next((1 / rank for rank, ok in enumerate(right, 1) if ok), 0.0))
        gain = sum(1 / np.log2(rank + 1) for rank, ok in enumerate(right, 1) if ok)
        best = sum(1 / np.log2(rank + 1) for rank in range(1, min(query.count, DEPTH) + 1))
        rows["nDCG@10"].append(float(gain / best))
    return {name: np.array(values) for name, values in rows.items()}


def show(name: str, queries: Sequence[Query], searches: dict[str, Search]) -> None:
    print(f"\n{name}: {len(queries)} questions\n")
    results: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for way, search in searches.items():
        results[way] = values = figures(search, queries)
        if len(results) == 1:
            print(f"| | {' | '.join(values)} |\n|---|{'---|' * len(values)}")
        print(f"| {way} | {' | '.join(f'{mean_estimate(each):.2f}' for each in values.values())} |", flush=True)
    for way in results:
        if way != "hybrid":
            difference = mean_estimate(results["hybrid"]["nDCG@10"] - results[way]["nDCG@10"])
            print(f"\nhybrid − {way}, nDCG@10: {difference:.3f}", end="")
    print()


def searches_of(folder: Path, exact: Path) -> dict[str, Search]:
    knowledge, plain = Knowledge(folder), Knowledge(exact)
    encoder = BundledEncoder()
    opened: Any = open_store(folder, "lance", encoder.width, knowledge.header.version)

    def ours(of: Knowledge, mode: Any) -> Search:
        return lambda text: [Hit(p.path, p.headings, p.page) for p in of.search(text, DEPTH, mode)]

    def lance_hybrid(text: str) -> list[Hit]:
        search = opened._table.search(query_type="hybrid", vector_column_name="vector", fts_columns="words")
        rows = search.vector(encoder([text])[0]).text(_plain(text)).limit(DEPTH).to_list()
        return [Hit(row["path"], tuple(row["headings"]), row["page"]) for row in rows]

    return {
        "dense": ours(knowledge, "dense"),
        "sparse": ours(knowledge, "sparse"),
        "hybrid": ours(knowledge, "hybrid"),
        "bm25s alone": ours(plain, "sparse"),
        "exact store, hybrid": ours(plain, "hybrid"),
        "LanceDB's hybrid, its defaults": lance_hybrid,
    }


def _plain(text: str) -> str:
    return " ".join("".join(sign if sign.isalnum() else " " for sign in text).split())


def built(documents: Sequence[Path], folder: Path) -> tuple[Path, Path]:
    """The same passages in both stores; the second reuses what the first has embedded."""
    encoder = Remembering()
    began = time.perf_counter()
    header = build_knowledge(documents, folder / "lance", encoder).header
    took = time.perf_counter() - began
    print(f"{len(header.files)} files, {header.chunks:,} passages, {took:.0f} s, {header.chunks / took:.0f} a second")
    print(f"left out: {header.skipped or 'nothing'}")
    build_knowledge(documents, folder / "exact", encoder, BuildSettings(store="exact"))
    return folder / "lance", folder / "exact"


class Remembering(BundledEncoder):
    def __init__(self) -> None:
        self._vectors: dict[str, VectorArray] = {}

    def __call__(self, texts: Sequence[str]) -> VectorArray:
        fresh = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        self._vectors |= zip(fresh, super().__call__(fresh), strict=True)
        return np.stack([self._vectors[text] for text in texts]) if texts else super().__call__(texts)


def quality(data: Path | None, docs: Path | None, limit: int | None, rerankers: Rerankers, *, every: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if data:
            _halueval(data / "halueval" / "qa_pairs.jsonl", folder, limit, rerankers)
        if docs:
            _python_docs(docs, folder, limit, rerankers, every=every)


def reranked_searches(folder: Path, rerankers: Rerankers) -> dict[str, Search]:
    """Hybrid, its best passages scored again; models read the same ones."""
    knowledge = Knowledge(folder)

    def search(reranker: TextReranker, text: str) -> list[Hit]:
        passages = reranked(text, knowledge.search(text, RERANKED_DEPTH), reranker)
        return [Hit(p.path, p.headings, p.page) for p in passages]

    return {
        f"hybrid, its best {RERANKED_DEPTH} by {reranker.name}": partial(search, reranker) for reranker in rerankers
    }


def _halueval(path: Path, folder: Path, limit: int | None, rerankers: Rerankers) -> None:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = list(dict.fromkeys(row["knowledge"] for row in rows))
    numbers = {text: n for n, text in enumerate(texts, 1)}
    source = folder / "halueval.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")

    def query(row: dict[str, str]) -> Query:
        number = numbers[row["knowledge"]]
        return Query(row["question"], lambda hit: hit.row == number, 1 + len(row["knowledge"]) // 900)

    (folder / "h").mkdir()
    lance, exact = built([source], folder / "h")
    queries = [query(row) for row in drawn_rows(rows, limit)]
    show("HaluEval", queries, searches_of(lance, exact) | reranked_searches(lance, rerankers))


def drawn_rows(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """All rows, or so many of them, drawn by a fixed seed."""
    return list(rows) if limit is None else [rows[n] for n in np.random.default_rng(0).permutation(len(rows))[:limit]]


def _python_docs(docs: Path, folder: Path, limit: int | None, rerankers: Rerankers, *, every: bool) -> None:
    (folder / "p").mkdir()
    lines = [line.split("\t") for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    places = [docs / part for part in PARTS] if every else sorted({docs / file for _, file, _ in lines})
    lance, exact = built(places, folder / "p")
    rows = [(text, file, section) for text, file, section in drawn_rows(lines, limit)]
    queries = section_queries(exact, docs, rows)
    show("Python's documentation", queries, searches_of(lance, exact) | reranked_searches(lance, rerankers))


def section_queries(folder: Path, docs: Path, rows: Sequence[tuple[str, str, str]]) -> list[Query]:
    """Queries of text, file and section, over a knowledge base of the exact store."""
    store: Any = open_store(folder, "exact", 384)
    sections = [(chunk.path, [heading.lower() for heading in chunk.headings]) for chunk in store._load()]
    return [_section_query(text, str(docs / file), section.lower(), sections) for text, file, section in rows]


def _section_query(text: str, path: str, section: str, sections: Sequence[tuple[str, list[str]]]) -> Query:
    def of_section(place: str, headings: Sequence[str]) -> bool:
        return place == path and any(section in heading.lower() for heading in headings)

    count = sum(of_section(place, headings) for place, headings in sections)
    if not count:
        raise SystemExit(f"No passage is of {path}, {section}.")
    return Query(text, lambda hit: of_section(hit.path, hit.headings), count)


WORDS = [f"{a}{b}{c}" for a in ("ta", "ri", "mo", "ke", "su", "lo") for b in ("na", "pe", "vi", "du") for c in "xyzst"]


def drawn(
    count: int, first: int, centres: VectorArray, rng: np.random.Generator
) -> tuple[list[StoredChunk], VectorArray]:
    """Passages of drawn words, by a law as of words, with vectors around centres, as texts on subjects have them."""
    law = 1 / np.arange(1, 2001)
    words = np.array([f"{w}{n}" for w in WORDS for n in range(20)])[:2000]
    texts = [" ".join(rng.choice(words, 120, p=law / law.sum())) for _ in range(count)]
    near = centres[rng.integers(0, len(centres), count)] + 0.7 * rng.normal(size=(count, 384)) / np.sqrt(384)
    vectors = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    keys = range(first, first + count)
    chunks = [
        StoredChunk(f"c{n}", f"d/{n % 997}.md", "text", "", (), 0, n, text, f"t{n}", "f", (), ())
        for n, text in zip(keys, texts, strict=True)
    ]
    return chunks, vectors


def scale(sizes: Sequence[int], queries: int) -> None:
    columns = ("passages", "store", "written, a second", "dense p50, p95 ms", "sparse p50, p95 ms", "of the nearest 10")
    print(f"| {' | '.join(columns)} | MiB |\n|---|---|---|---|---|---|---|", flush=True)
    for size in sizes:
        for kind in ("exact", "lance"):
            own_process = [sys.executable, __file__, "row", str(size), kind, str(queries)]
            subprocess.run(own_process, check=True)


def _scale_row(size: int, kind: str, folder: Path, queries: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(300, 384)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    store: ChunkStore = LanceStore(folder, 384) if kind == "lance" else ExactStore(folder, 384)
    probes, vectors = drawn(queries, size, centres, np.random.default_rng(1))
    nearest: list[list[tuple[float, str]]] = [[] for _ in probes]  # kept as passages come, which are not all held
    took = 0.0
    for first in range(0, size, 5000):
        chunks, written = drawn(min(5000, size - first), first, centres, rng)
        began = time.perf_counter()
        store.add(chunks, written)
        took += time.perf_counter() - began
        for best, likeness in zip(nearest, (written @ vectors.T).T, strict=True):
            near = np.argsort(-likeness)[:10]
            best[:] = sorted([*best, *((float(likeness[n]), f"c{first + n}") for n in near)], reverse=True)[:10]
    began = time.perf_counter()
    store.commit()
    took += time.perf_counter() - began
    store.dense(vectors[0], 10, ChunkFilter())
    store.sparse("tanax0", 10, ChunkFilter())
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    right = []
    for chunk, vector, best in zip(probes, vectors, nearest, strict=True):
        began = time.perf_counter()
        hits = store.dense(vector, 10, ChunkFilter())
        times["dense"].append(time.perf_counter() - began)
        right.append(len({name for _, name in best} & {hit.chunk.id for hit in hits}) / 10)
        began = time.perf_counter()
        store.sparse(" ".join(chunk.text.split()[:8]), 10, ChunkFilter())
        times["sparse"].append(time.perf_counter() - began)
    cells = [f"{np.percentile(t, 50) * 1e3:.1f}, {np.percentile(t, 95) * 1e3:.1f}" for t in times.values()]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = f"{mean_estimate(right):.3f}"
    print(f"| {size:,} | {kind} | {size / took:,.0f} | {' | '.join(cells)} | {found} | {memory:,.0f} |", flush=True)


class HashEncoder:
    """Words to places of a vector: takes no time, so that what is measured is the build."""

    name, width = "hash", 384

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, texts: Sequence[str]) -> VectorArray:
        self.count += len(texts)
        out = np.zeros((len(texts), self.width), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in text.split():
                row[crc32(word.encode()) % self.width] += 1
        return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9), dtype=np.float32)


def again(files: int) -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        docs, out = Path(name) / "docs", Path(name) / "kb"
        for n in range(files):
            place = docs / f"{n % 100:02}"
            place.mkdir(parents=True, exist_ok=True)
            text = " ".join(rng.choice(WORDS, 250))
            (place / f"{n}.md").write_text(f"# Document {n}\n\n{text}\n\n## More\n\n{text[::-1]}\n")
        for what in ("first", "nothing changed", "one file changed", "one file deleted"):
            if what == "one file changed":
                (docs / "07" / "7.md").write_text("# Document 7\n\nOther words.\n")
            if what == "one file deleted":
                (docs / "08" / "8.md").unlink()
            encoder = HashEncoder()
            began = time.perf_counter()
            summary = build_knowledge([docs], out, encoder)
            took = time.perf_counter() - began
            print(
                f"{what}: {took:.1f} s; {summary.added:,} added, {summary.changed:,} changed, {summary.removed:,} "
                f"removed, {encoder.count:,} passages embedded, {summary.header.chunks:,} in all",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("quality")
    command.add_argument("--data", type=Path)
    command.add_argument("--docs", type=Path)
    command.add_argument("--limit", type=int, help="so many drawn questions of each set")
    command.add_argument("--rerank", nargs="*", default=[], help="as `poise knowledge search --rerank` takes them")
    command.add_argument("--every", action="store_true", help="all of its pages, not those alone that are asked about")
    command = commands.add_parser("scale")
    command.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    command.add_argument("--queries", type=int, default=50)
    command = commands.add_parser("row", help="one row of `scale`, whose memory is its own")
    command.add_argument("size", type=int)
    command.add_argument("kind", choices=["lance", "exact"])
    command.add_argument("queries", type=int)
    command = commands.add_parser("again")
    command.add_argument("--files", type=int, default=10_000)
    args = parser.parse_args()
    if args.command == "quality":
        rerankers = [text_reranker(name) for name in args.rerank]
        quality(args.data, args.docs, args.limit, rerankers, every=args.every)
    elif args.command == "scale":
        scale(args.sizes, args.queries)
    elif args.command == "row":
        with tempfile.TemporaryDirectory() as name:
            _scale_row(args.size, args.kind, Path(name), args.queries)
    else:
        again(args.files)


if __name__ == "__main__":
    main()
