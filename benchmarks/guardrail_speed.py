"""What a guardrail costs a server: throughput with it over throughput without, and the time to the first token.

    python benchmarks/guardrail_speed.py [--model smollm2-135m] [--clients 16] [--tokens 96] [--rounds 12]

One server has all guardrails, and each request names the one that it is to have, so that the arms alternate in one run
on one model: ``none``; ``detectors`` (three topics, in and out, of random directions that never act: what they cost
does not depend on what they find); ``words`` (a thousand words, profanity, all 31 types of sensitive information, two
own expressions); ``both``; ``short``, the same with 96 characters, some 24 tokens, held back instead of 128. A round
sends every client's request in every arm, in an order that turns; figures are medians of the rounds' ratios with
bootstrap intervals. ``by processor time`` is the same ratio of tokens a second of processor time, clients included,
which other work on the machine disturbs less. ``asynchronous`` is ``words`` whose text leaves at once; ``encoder`` has
the topics of ``detectors``, read by the sentence encoder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import httpx
import torch

from common import median_ratio, shown
from poise.guardrail import Guardrail
from poise.guardrail.guard_file import (
    ENCODER,
    ENCODER_WIDTH,
    DetectorFigures,
    FittedGuard,
    GuardDetector,
    GuardHeader,
    OperatingPoint,
)
from poise.guardrail.pii_types import PiiType
from poise.guardrail.schema import ReadBy
from poise.model import Model, load_model
from poise.serve.server import ServerOptions, make_server
from poise.trait import library
from poise.vector.header import ModelId

TOPICS = ("investment advice", "medicine", "rivals")
ARMS = ("detectors", "words", "both", "short")


def detectors(model: Model, name: str, *, by: ReadBy = "activations", **more: Any) -> FittedGuard:
    """Three topics on both ways, whose thresholds nothing reaches."""
    topics = [{"name": t, "definition": t, "examples": ["a", "b", "c", "d"], "read_by": by} for t in TOPICS]
    figures = dict.fromkeys(DetectorFigures.model_fields, 0)
    point = OperatingPoint(value=1e9, rate=0.01, low=0.0, high=0.02, n=100)
    layer = int(0.6 * model.layers)
    rules = [
        GuardDetector(
            kind="TOPIC",
            rule=topic,
            source=source,
            action="BLOCK",
            read_by=by,
            layer=layer if by == "activations" else None,
            centre=0.0,
            point=point,
            figures=DetectorFigures.model_validate(figures),
        )
        for topic in TOPICS
        for source in ("INPUT", "OUTPUT")
    ]
    header = GuardHeader(
        guardrail=Guardrail.model_validate({"name": name, "topics": topics, **more}),
        model=ModelId.of(model) if by == "activations" else None,
        encoder=ENCODER if by == "encoder" else None,
        detectors=tuple(rules),
        window=24,
        rate=0.01,
        seed=0,
        normal={},
        normal_sha256="",
        examples_sha256="",
    )
    width = model.width if by == "activations" else ENCODER_WIDTH
    directions = torch.randn(len(rules), width, generator=torch.Generator().manual_seed(0))
    empty = torch.zeros(0, width)
    return FittedGuard(header, directions) if by == "activations" else FittedGuard(header, empty, directions)


def word_rules() -> dict[str, Any]:
    words = [f"forbidden thing {n}" for n in range(1000)]
    types = [{"type": kind, "action": "BLOCK"} for kind in get_args(PiiType)]
    regexes = [{"name": n, "pattern": p} for n, p in (("ticket", "TCK-[0-9]{6,12}"), ("case", "(?i)case no [0-9]+"))]
    return {
        "words": {"custom": words, "profanity": {"action": "NONE"}},
        "sensitive": {"types": types, "regexes": regexes},
    }


def guardrail_files(model: Model, folder: Path) -> dict[str, Path]:
    """Files by arm."""
    files = {name: folder / f"{name}.guard" for name in ("detectors", "words", "both", "encoder")}
    detectors(model, "encoder", by="encoder").save(files["encoder"])
    detectors(model, "detectors").save(files["detectors"])
    files["words"].write_text(json.dumps({"name": "words", **word_rules()}))
    detectors(model, "both", **word_rules()).save(files["both"])
    files["short"] = folder / "short.guard"
    detectors(model, "short", window=96, **word_rules()).save(files["short"])
    files["asynchronous"] = folder / "asynchronous.yaml"
    files["asynchronous"].write_text(json.dumps({"name": "asynchronous", "streaming": "asynchronous", **word_rules()}))
    return files


def ask(client: httpx.Client, model: str, question: str, arm: str, tokens: int, seed: int) -> tuple[float, int]:
    """Seconds to the first text, and tokens that came."""
    poise = {"guardrail": arm} if arm != "none" else {}
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "seed": seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "poise": poise,
    }
    began, first, usage = time.perf_counter(), 0.0, {}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            usage = event.get("usage") or usage
            if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - began
    return first, usage["completion_tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer; shorter where the model ends it")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--arms", nargs="+", metavar="ARM", default=ARMS, help="beside none")
    options = parser.parse_args()
    model = load_model(options.model)
    questions = library.evaluation_questions(library.load_trait("impolite"))
    with tempfile.TemporaryDirectory() as folder:
        files = {name: path for name, path in guardrail_files(model, Path(folder)).items() if name in options.arms}
        rules = Path(folder) / "policy.yaml"
        rules.write_text(json.dumps({"default": {"guardrail": False, "may_choose_guardrail": True}}))
        server = make_server(
            model, {}, ServerOptions(port=0, guardrail=list(files.values()), policy=rules, batch=options.clients)
        )
        arms = ["none", *files]
        rates: dict[str, list[float]] = {arm: [] for arm in arms}
        firsts: dict[str, list[float]] = {arm: [] for arm in arms}
        works: dict[str, list[float]] = {arm: [] for arm in arms}
        with (
            httpx.Client(base_url=server.start(), timeout=600, limits=httpx.Limits(max_connections=64)) as client,
            ThreadPoolExecutor(options.clients) as pool,
        ):
            for number in range(options.rounds + 1):
                turned = arms[number % len(arms) :] + arms[: number % len(arms)]
                for arm in turned if number % 2 else turned[::-1]:
                    began, worked = time.perf_counter(), time.process_time()
                    work = [
                        pool.submit(ask, client, server.service.name, question, arm, options.tokens, 100 * number + n)
                        for n, question in zip(range(options.clients), itertools.cycle(questions), strict=False)
                    ]
                    results = [each.result() for each in work]
                    seconds, worked = time.perf_counter() - began, time.process_time() - worked
                    if number:  # the first round warms up
                        tokens = sum(tokens for _, tokens in results)
                        rates[arm].append(tokens / seconds)
                        works[arm].append(worked / tokens)
                        firsts[arm].append(statistics.median(first for first, _ in results))
        server.stop()
    print(f"{options.clients} clients, {options.rounds} rounds, answers of at most {options.tokens} tokens\n")
    print("| guardrail | tokens/s | over none | by processor time | first text, s | beside none |")
    print("|---|---|---|---|---|---|")
    for arm in arms:
        rate, first = statistics.median(rates[arm]), statistics.median(firsts[arm])
        over, beside = median_ratio(rates["none"], rates[arm]), median_ratio(firsts["none"], firsts[arm])
        spent = median_ratio(works[arm], works["none"])
        print(f"| {arm} | {rate:.0f} | {shown(over)} | {shown(spent)} | {first:.2f} | {shown(beside)} |")


if __name__ == "__main__":
    main()
