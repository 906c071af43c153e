"""A server under load: 200 streamed, watched requests of different steering from 32 clients, against the engine alone.

    python benchmarks/serve_load.py [--model smollm2-135m] [--requests 200] [--clients 32] [--tokens 48] [--rounds 3]
    python benchmarks/serve_load.py --memory 1000     # resident memory over so many requests, on a tiny random model

The clients are a process of their own on the loopback. All answers have the same length (nothing stops them), which is
the engine's best case: its static batches have no holes. The ratio is tokens a second through the server over tokens a
second of ``LocalEngine.generate`` on the same prompts, steering and probes, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from common import median_ratio, seconds, shown
from poise.contrast import exemplars
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.extract import extract
from poise.model import Model, ask, load_model, wrap
from poise.serve.server import ServerOptions, make_server
from poise.statistics.estimates import bootstrap
from poise.steer import SteeringExpression
from poise.trait import library
from poise.vector import PersonaVector

STEERINGS = ["", "impolite=20%", "humorous=-15%", "impolite=10%; humorous=10%", "humorous=20% first 8"]


def questions(n: int) -> list[str]:
    """Of different lengths."""
    known = library.evaluation_questions(library.load_trait("impolite"))
    return [" ".join([known[i % len(known)]] * (1 + i % 3)) for i in range(n)]


async def drive(address: str, name: str, requests: int, clients: int, tokens: int, watched: bool) -> list[Any]:
    """Every request's status, time to its first token and between tokens."""
    waiting = list(enumerate(questions(requests)))[::-1]
    done: list[Any] = []

    async def client(http: httpx.AsyncClient) -> None:
        while waiting:
            number, question = waiting.pop()
            steer = STEERINGS[number % len(STEERINGS)] if watched else ""
            body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": question}]}
            body |= {"max_tokens": tokens, "temperature": 0, "stream": True}
            body["poise"] = {"steer": steer, "watch": watched}
            began, last, first, gaps, said = time.perf_counter(), 0.0, 0.0, [], 0
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    [choice] = json.loads(line[6:])["choices"]
                    now, new = (
                        time.perf_counter(),
                        len(choice.get("poise", {}).get("tokens", ())) or bool(choice["delta"].get("content")),
                    )
                    if new and not first:
                        first = now - began
                    elif new:
                        gaps.append((now - last) / new)
                    last, said = (now, said + new) if new else (last, said)
            done.append([answer.status_code, first, gaps, said])

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return done


def clients(*given: Any) -> tuple[list[Any], float]:
    """The clients' process: what they saw, and the seconds from first to last."""
    began = time.perf_counter()
    run = subprocess.run(
        [sys.executable, __file__, "--drive", json.dumps(given)], capture_output=True, text=True, check=True
    )
    seen = json.loads(run.stdout)
    assert time.perf_counter() - began > seen["seconds"]
    return seen["done"], seen["seconds"]


def vectors(model: Model) -> dict[str, PersonaVector]:
    """Two of the library's."""
    traits = [library.load_trait(name) for name in ("impolite", "humorous")]
    return {t.name: extract(exemplars(t, model, most=12), model, min_kept=1) for t in traits}


def quantile(values: list[float], q: float) -> str:
    """In milliseconds, with its interval over requests."""
    found = bootstrap(lambda i: np.quantile(np.array(values)[i], q, axis=-1), len(values), draws=500)
    return f"{found.value * 1e3:.0f} [{found.low * 1e3:.0f}, {found.high * 1e3:.0f}]"


def load_test(name: str, requests: int, most: int, tokens: int, rounds: int) -> None:
    model = dataclasses.replace(load_model(name), stop_ids=frozenset())
    given = vectors(model)
    prompts = [model.encode(ask(q)) for q in questions(requests)]
    steering = [SteeringExpression.parse(s).steering(given) if s else None for s in STEERINGS]
    rows = [steering[i % len(STEERINGS)] for i in range(requests)]
    engine, probes = LocalEngine(model, batch=most), [v.at("read").probe for v in given.values()]
    sampling = SamplingParams(tokens, temperature=0)
    server = make_server(model, given, ServerOptions(port=0, batch=most, queue=requests))
    address = server.start()
    alone, served, seen = [], [], []
    clients(address, model.name, most, most, 4, True)  # warm
    for _ in range(rounds):
        alone.append(seconds(lambda: engine.generate(prompts, sampling, steering=rows, probes=probes)))
        done, took = clients(address, model.name, requests, most, tokens, True)
        served.append(took)
        seen += done
    server.stop()
    print(
        f"{name}, {model.lm.dtype}, {model.device}, {torch.get_num_threads()} threads; {requests} requests of {tokens}"
    )
    statuses, said = sorted({d[0] for d in seen}), sum(d[3] for d in seen)
    print(f"tokens from {most} clients, {rounds} rounds; statuses {statuses}; {said} tokens came")
    firsts, gaps = [d[1] for d in seen], [float(np.mean(d[2])) for d in seen if d[2]]
    print(f"to the first token, ms: p50 {quantile(firsts, 0.5)}, p95 {quantile(firsts, 0.95)}, n={len(firsts)}")
    print(f"per token, ms (mean of a request): p50 {quantile(gaps, 0.5)}, p95 {quantile(gaps, 0.95)}, n={len(gaps)}")
    rate = [requests * tokens / s for s in (*alone, *served)]
    print(f"tokens a second: engine {np.median(rate[:rounds]):.0f}, server {np.median(rate[rounds:]):.0f}")
    print(f"server / engine: {shown(median_ratio(served, alone))}")


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def memory_test(requests: int) -> None:
    tokenizer = load_model("smollm2-135m").tokenizer
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=2048, pad_token_id=None,
    )  # fmt: skip
    model = wrap(AutoModelForCausalLM.from_config(config).eval(), tokenizer, name="tiny")
    server = make_server(model, vectors(model), ServerOptions(port=0))
    address = server.start()
    found = []
    for _ in range(10):
        done, _ = clients(address, "tiny", requests // 10, 32, 24, True)
        assert {d[0] for d in done} == {200}
        found.append(resident())
    server.stop()
    print(f"MiB resident after each tenth of {requests} requests: {' '.join(f'{m:.0f}' for m in found)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    for option, default in (("requests", 200), ("clients", 32), ("tokens", 48), ("rounds", 3), ("memory", 0)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    said = parser.parse_args()
    if said.drive:
        began = time.perf_counter()
        results = asyncio.run(drive(*json.loads(said.drive)))
        print(json.dumps({"done": results, "seconds": time.perf_counter() - began}))
    elif said.memory:
        memory_test(said.memory)
    else:
        load_test(said.model, said.requests, said.clients, said.tokens, said.rounds)
