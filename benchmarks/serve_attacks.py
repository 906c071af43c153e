"""How long every other route takes while a server handles the worst requests that it accepts or refuses.

    python benchmarks/serve_attacks.py [--rounds 3] [--window 8192]

The server is a process of its own with a tiny random model and SmolLM2's tokenizer. One client sends the request,
another asks for /healthz and /v1/models all the while; the figure is the longest that any of its answers took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM

from poise.model import load_model, wrap
from poise.serve.server import ServerOptions, make_server

PULSES = ("/healthz", "/v1/models")
JSON = {"content-type": "application/json"}
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def chat(*texts: str, **more: Any) -> bytes:
    messages = [{"role": "user", "content": text} for text in texts]
    return json.dumps({"model": "tiny", "messages": messages, "max_tokens": 1, **more}).encode()


def prompt(item: str, times: int) -> bytes:
    return b'{"model": "tiny", "max_tokens": 1, "prompt": [' + ",".join([item] * times).encode() + b"]}"


ATTACKS: dict[str, tuple[str, bytes]] = {
    "nothing": ("/healthz", b""),
    "800,000 words": (CHAT, chat("word " * 800_000)),
    "one word of 4 MB": (CHAT, chat("a" * 4_100_000)),
    "4 MB of spaces": (CHAT, chat(" " * 4_100_000)),
    "1,000 messages of 4 kB": (CHAT, chat(*["word " * 800] * 1000)),
    "1,000 short messages": (CHAT, chat(*["words"] * 1000)),
    "1.3 million brackets": (PLAIN, prompt("[]", 1_390_000)),
    "19,000 brackets": (PLAIN, prompt("[]", 19_000)),
    "299,000 numbers": (PLAIN, prompt("1", 299_000)),
    "64 prompts of 60 kB": (PLAIN, prompt(json.dumps("word " * 12_000), 64)),
}


def serve(window: int) -> None:
    tokenizer = load_model("smollm2-135m").tokenizer
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=len(tokenizer), max_position_embeddings=window, pad_token_id=None,
    )  # fmt: skip
    model = wrap(AutoModelForCausalLM.from_config(config).eval(), tokenizer, name="tiny")
    server = make_server(model, {}, ServerOptions(port=0))
    print(server.start(), flush=True)
    sys.stdin.read()
    server.stop()


def longest_pulse(address: str, route: str, body: bytes) -> tuple[float, float, int]:
    """Seconds of the slowest pulse and of the attack itself, and its status."""
    done, slowest = threading.Event(), [0.0]

    def pulse() -> None:
        with httpx.Client(base_url=address, timeout=600) as client:
            while not done.is_set():
                for path in PULSES:
                    began = time.perf_counter()
                    client.get(path)
                    slowest[0] = max(slowest[0], time.perf_counter() - began)

    thread = threading.Thread(target=pulse)
    thread.start()
    time.sleep(0.2)
    began = time.perf_counter()
    answer = httpx.post(address + route, content=body, headers=JSON, timeout=600)
    took = time.perf_counter() - began
    time.sleep(0.2)
    done.set()
    thread.join()
    return slowest[0], took, answer.status_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.window)
        return
    command = [sys.executable, __file__, "--serve", "--window", str(options.window)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        longest_pulse(address, *ATTACKS["nothing"])  # warm
        for name, (route, body) in ATTACKS.items():
            runs = [longest_pulse(address, route, body) for _ in range(options.rounds)]
            pulse, took = (1e3 * float(np.median(column)) for column in list(zip(*runs, strict=True))[:2])
            worst = 1e3 * max(run[0] for run in runs)
            print(f"{name}: {len(body)} bytes, status {runs[0][2]} after {took:.0f} ms;", end=" ")
            print(f"slowest pulse {pulse:.0f} ms, worst of {len(runs)} {worst:.0f} ms", flush=True)
        process.communicate()


if __name__ == "__main__":
    main()
