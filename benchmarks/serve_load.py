"""A server under load: streamed, watched requests of mixed lengths and steering, against the engine alone and others.

    python benchmarks/serve_load.py [--model smollm2-135m] [--requests 200] [--clients 32] [--scale 1] [--against]
    python benchmarks/serve_load.py --lean 3 --against                        # the same range, mostly short
    python benchmarks/serve_load.py --requests 64 --scale 0.1 --against       # the scaled form, a few CPU-minutes
    python benchmarks/serve_load.py --memory 1000     # resident memory over so many requests, on a tiny random model

Prompts have 20 to 6,000 tokens and ``max_tokens`` is 8 to 4,096, both drawn log-uniformly from a seed and multiplied by
``--scale`` where they are above the least; ``--lean K`` takes the K-th power of the uniform number, so that most are
short and a few are long, as what users send is. The clients are a process of their own on the loopback and read as
fast as they can. Tokens are those of the text that came, counted by one tokenizer for all servers. ``engine`` is the
server's engine in this process with all requests at once: what the server could reach at best. ``--against`` runs
``transformers serve`` with continuous batching on the same model, requests (without what only Poise has) and number of
threads, and ``--llama`` llama.cpp's server in ``xllamacpp`` on a GGUF file of the model, which may be quantised.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from poise.contrast import exemplars
from poise.engine import GenerationRequest, SamplingParams
from poise.engine.cache_memory import serving_positions
from poise.engine.continuous import ContinuousEngine
from poise.extract import extract
from poise.model import Model, ask, load_model, wrap
from poise.model.loading import locate
from poise.serve.server import ServerOptions, make_server
from poise.statistics.estimates import bootstrap
from poise.steer import SteeringExpression
from poise.trait import library
from poise.vector import PersonaVector

STEERINGS = ["", "impolite=20%", "humorous=-15%", "impolite=10%; humorous=10%", "humorous=20% first 8"]
PROMPT_TOKENS, ANSWER_TOKENS = (20, 6000), (8, 4096)
READY_SECONDS = 300


def mixed_requests(model: Model, n: int, scale: float, lean: float, seed: int = 0) -> list[dict[str, Any]]:
    """Bodies without a model's name; no two prompts begin alike."""
    rng = random.Random(seed)
    words = " ".join(library.evaluation_questions(library.load_trait("impolite"))).split()

    def drawn(least: int, most: int) -> int:
        low, high = math.log(least), math.log(max(least + 1, most * scale))
        return round(math.exp(low + (high - low) * rng.random() ** lean))

    bodies = []
    for number in range(n):
        tokens = drawn(*PROMPT_TOKENS)
        text = f"{number}. " + " ".join(rng.choice(words) for _ in range(tokens))
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
        messages = [{"role": "user", "content": model.tokenizer.decode(ids)}]
        bodies.append({"messages": messages, "max_tokens": drawn(*ANSWER_TOKENS), "temperature": 0, "stream": True})
    return bodies


async def send_all(address: str, bodies: list[dict[str, Any]], clients: int) -> list[dict[str, Any]]:
    """Of every request its status, time to the first text, pauses between texts, and the text."""
    waiting, results = bodies[::-1], []

    async def client(http: httpx.AsyncClient) -> None:
        while waiting:
            body = waiting.pop()
            began, times, text = time.perf_counter(), list[float](), ""
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    for choice in json.loads(line[6:]).get("choices") or ():
                        if added := choice.get("delta", {}).get("content"):
                            times.append(time.perf_counter() - began)
                            text += added
            results.append({"status": answer.status_code, "times": times, "text": text})

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=address, timeout=3600, limits=limits) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return results


def drive(address: str, bodies: list[dict[str, Any]], clients: int) -> tuple[list[dict[str, Any]], float]:
    """The clients' process: what they saw, and the seconds from first to last."""
    run = subprocess.run(
        [sys.executable, __file__, "--drive"],
        input=json.dumps([address, bodies, clients]),
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(run.stdout)
    return seen["results"], seen["seconds"]


def vectors(model: Model) -> dict[str, PersonaVector]:
    """Two of the library's."""
    traits = [library.load_trait(name) for name in ("impolite", "humorous")]
    return {t.name: extract(exemplars(t, model, most=12), model, min_kept=1) for t in traits}


def quantile(values: list[float], q: float) -> str:
    """In seconds, with its interval over requests."""
    estimate = bootstrap(lambda i: np.quantile(np.array(values)[i], q, axis=-1), len(values), draws=500)
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def report(name: str, model: Model, results: list[dict[str, Any]], seconds: float) -> float:
    """Print a server's figures; its tokens a second."""
    answered = [r for r in results if r["times"]]
    firsts = [r["times"][0] for r in answered]
    pauses = [max(np.diff(r["times"])) for r in answered if len(r["times"]) > 1]
    tokens = sum(len(model.tokenizer(r["text"], add_special_tokens=False)["input_ids"]) for r in results)
    print(f"{name}: statuses {sorted({r['status'] for r in results})}, n={len(results)}, {tokens} tokens", end=", ")
    print(f"{tokens / seconds:.1f} a second")
    if firsts:
        print(f"  to the first token, s: p50 {quantile(firsts, 0.5)}, p95 {quantile(firsts, 0.95)}", end=", ")
        print(f"worst {max(firsts):.2f}")
    if pauses:
        print(
            f"  longest pause inside a stream, s: median {np.median(pauses):.2f}, worst {max(pauses):.2f}", flush=True
        )
    return tokens / seconds


def engine_rate(model: Model, bodies: list[dict[str, Any]], given: dict[str, PersonaVector], most: int) -> float:
    """Tokens a second of the engine by itself, all requests at once."""
    engine = ContinuousEngine(model, batch=most, budget=serving_positions(model, most))
    probes = tuple(vector.at("read").probe for vector in given.values())
    for number, body in enumerate(bodies):
        steer = body["poise"]["steer"]
        request = GenerationRequest(
            prompt=model.encode(body["messages"]),
            sampling=SamplingParams(body["max_tokens"], temperature=0),
            steering=SteeringExpression.parse(steer).steering(given) if steer else None,
            probes=probes,
        )
        engine.add(number, request)
    began, texts = time.perf_counter(), [""] * len(bodies)
    while engine.waiting or engine.running:
        for output in engine.step():
            texts[int(str(output.key))] += "".join(token.text for token in output.tokens)
    seconds = time.perf_counter() - began
    tokens = sum(len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    print(f"engine, all at once: {tokens} tokens, {tokens / seconds:.1f} a second", flush=True)
    return tokens / seconds


def _healthy(address: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{address}/health").status_code == 200
    return False


@contextlib.contextmanager
def transformers_serve(path: str, dtype: str, positions: int) -> Iterator[str]:
    """Its address, once it answers."""
    port = random.randrange(20000, 60000)
    command = [str(Path(sys.executable).with_name("transformers")), "serve", path, "--continuous-batching"]
    command += ["--device", "cpu", "--dtype", dtype, "--port", str(port), "--log-level", "error"]
    # As many positions as Poise has; by itself it takes a share of a GPU's memory, and on a CPU gives no tokens.
    command += ["--cb-block-size", "32", "--cb-num-blocks", str(positions // 32), "--cb-max-batch-tokens", "512"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address, began = f"http://localhost:{port}", time.perf_counter()
            while True:
                if _healthy(address):
                    break
                if process.poll() is not None or time.perf_counter() - began > READY_SECONDS:
                    raise RuntimeError("transformers serve did not start; pip install 'transformers[serving]'")
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()


LLAMA_SERVER = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx = int(sys.argv[3]), int(sys.argv[4])
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[5])
params.n_threads_http = int(sys.argv[3]) + 2
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def llama_server(path: Path, slots: int, positions: int) -> Iterator[str]:
    """Address of llama.cpp's server, in xllamacpp; each of its slots has as many positions."""
    values = [path, random.randrange(20000, 60000), slots, slots * positions, torch.get_num_threads()]
    command = [sys.executable, "-c", LLAMA_SERVER, *map(str, values)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True) as process:
        if process.stdin is None or process.stdout is None or not (address := process.stdout.readline().strip()):
            raise RuntimeError("llama.cpp's server did not start; pip install xllamacpp")
        began = time.perf_counter()
        while not _healthy(address):  # it listens before the model is read
            if process.poll() is not None or time.perf_counter() - began > READY_SECONDS:
                raise RuntimeError(f"llama.cpp's server did not read {path}")
            time.sleep(0.5)
        yield address
        process.stdin.close()


def load_test(options: argparse.Namespace) -> None:
    """Print the figures of all that was asked for."""
    model = load_model(options.model)
    given = vectors(model)
    bodies = mixed_requests(model, options.requests, options.scale, options.lean)
    for number, body in enumerate(bodies):
        body["poise"] = {"steer": STEERINGS[number % len(STEERINGS)], "watch": True}
    lengths = [len(model.encode(body["messages"]).ids) for body in bodies]
    answers = [body["max_tokens"] for body in bodies]
    print(f"{options.model}, {model.lm.dtype}, {model.device}, {torch.get_num_threads()} threads; ", end="")
    print(
        f"{len(bodies)} requests from {options.clients} clients, scale {options.scale:g}, lean "
        f"{options.lean:g}: prompts of {min(lengths)} to"
    )
    print(f"{max(lengths)} tokens, {sum(lengths)} in all; max_tokens {min(answers)} to {max(answers)}, {sum(answers)}")
    alone = engine_rate(model, bodies, given, options.clients)
    server = make_server(model, given, ServerOptions(port=0, batch=options.clients, queue=2 * len(bodies)))
    engine: Any = server.service.scheduler.engine
    engine.prompt_budget = options.prompt_budget or engine.prompt_budget
    engine.prefill_budget = options.prefill_budget or engine.prefill_budget
    address = server.start()
    named = [{**body, "model": model.name} for body in bodies]
    drive(address, [{**named[0], "max_tokens": 2}], 1)  # warm
    rate = report("poise", model, *drive(address, named, options.clients))
    longest = max(named, key=lambda body: len(body["messages"][0]["content"]))
    text = "Once more: " + longest["messages"][0]["content"]
    once_more = {**longest, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    firsts = [drive(address, [once_more], 1)[0][0]["times"][0] for _ in range(2)]
    print(f"  the longest prompt alone, and again: first token after {firsts[0]:.2f} s, {firsts[1]:.2f} s")
    server.stop()
    print(f"poise / engine: {rate / alone:.3f}", flush=True)
    if options.against:
        path = locate(options.model)
        plain = [{**{k: v for k, v in body.items() if k != "poise"}, "model": path} for body in bodies]
        with transformers_serve(path, str(model.lm.dtype).removeprefix("torch."), engine.budget) as other:
            compare("transformers serve", model, other, plain, options.clients, rate)
    if options.llama:
        plain = [{**{k: v for k, v in body.items() if k != "poise"}, "model": "llama"} for body in bodies]
        with llama_server(
            options.llama, options.clients, max(map(sum, zip(lengths, answers, strict=True))) + 64
        ) as other:
            compare(f"llama.cpp, {options.llama.name}", model, other, plain, options.clients, rate)


def compare(name: str, model: Model, address: str, bodies: list[dict[str, Any]], clients: int, rate: float) -> None:
    """Another server's figures, and Poise's tokens a second over its."""
    drive(address, [{**bodies[0], "max_tokens": 2}], 1)  # warm
    theirs = report(name, model, *drive(address, bodies, clients))
    print(f"poise / {name}: {rate / theirs:.3f}" if theirs else f"{name} gave no tokens", flush=True)


def resident() -> float:
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def memory_test(requests: int) -> None:
    """Print the resident memory after each tenth of so many requests."""
    tokenizer = load_model("smollm2-135m").tokenizer
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(tokenizer), max_position_embeddings=2048, pad_token_id=None,
    )  # fmt: skip
    lm = AutoModelForCausalLM.from_config(config).eval()
    model = dataclasses.replace(wrap(lm, tokenizer, name="tiny"), stop_ids=frozenset())
    server = make_server(model, vectors(model), ServerOptions(port=0))
    address = server.start()
    sizes = []
    for tenth in range(10):
        messages = [ask(f"{tenth}, {n}: what do you think of my plan?") for n in range(requests // 10)]
        bodies = [
            {"model": "tiny", "messages": m, "max_tokens": 24, "temperature": 0, "stream": True} for m in messages
        ]
        results, _ = drive(address, bodies, 32)
        assert {r["status"] for r in results} == {200}
        sizes.append(resident())
    server.stop()
    print(f"MiB resident after each tenth of {requests} requests: {' '.join(f'{size:.0f}' for size in sizes)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--lean", type=float, default=1.0, metavar="K", help="1: log-uniform; above, mostly short")
    parser.add_argument("--against", action="store_true")
    parser.add_argument("--llama", type=Path, metavar="FILE.gguf", help="the same model, for llama.cpp's server")
    for option, default in (("requests", 200), ("clients", 32), ("memory", 0)):
        parser.add_argument(f"--{option}", type=int, default=default)
    for option in ("prompt-budget", "prefill-budget"):
        parser.add_argument(f"--{option}", type=int, default=0, help="of the engine, instead of its own")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        target, requests, number = json.load(sys.stdin)
        started = time.perf_counter()
        answers = asyncio.run(send_all(target, requests, number))
        print(json.dumps({"results": answers, "seconds": time.perf_counter() - started}))
    elif arguments.memory:
        memory_test(arguments.memory)
    else:
        load_test(arguments)
