"""Requests that no client would send, by the thousand: none may be a fault of the server (5xx).

    python benchmarks/fuzz_server.py --requests 10000 --seed 0

Mutates good requests to every route: values of other types and sizes, fields left out, doubled or unknown, broken JSON
and UTF-8, nesting, methods, addresses, queries, headers, encodings, and vector files with flipped bytes. A server with
a tiny random model runs in this process. Prints how many requests were answered with which status, by route.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}
ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where do the boats go?"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
SAMPLING: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "stream": False}
POISE = {"steer": "up=0.2 first 3; down=-0.1", "watch": ["up"]}
TURNS: list[Any] = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Tide?"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
    {"type": "function_call", "call_id": "call12345", "name": "tide", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call12345", "output": "at five"},
]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 2, **SAMPLING, "n": 1, "stop": ["x"], "poise": POISE}),
    ("/v1/chat/completions", {"messages": ASK, "max_completion_tokens": 2, "logprobs": True, "top_logprobs": 2}),
    (
        "/v1/chat/completions",
        {"messages": ASK, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
    ),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 2, "tools": [TOOL], "tool_choice": "auto"}),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 2, "response_format": FORMAT, "metadata": {"a": "b"}}),
    ("/v1/chat/completions", {"messages": ASK, "max_tokens": 2, "chat_template_kwargs": {"enable_thinking": False}}),
    ("/v1/completions", {"prompt": ["The boats", "The sea"], "max_tokens": 2, **SAMPLING, "logprobs": 2}),
    ("/v1/completions", {"prompt": [[5, 6, 7], [8]], "max_tokens": 0, "echo": True, "logprobs": 1}),
    ("/v1/completions", {"prompt": "The boats", "max_tokens": 1, "echo": True, "stream": True, "poise": POISE}),
    ("/v1/responses", {"input": "Tide?", "max_output_tokens": 2, "instructions": "Be brief.", "poise": POISE}),
    ("/v1/responses", {"input": TURNS, "max_output_tokens": 2, "stream": True, "include": [], "metadata": {}}),
    ("/v1/responses", {"input": ASK, "max_output_tokens": 2, "text": {"format": {"type": "text"}}, "reasoning": {}}),
    ("/v1/embeddings", {"input": ["boats", "fog"], "encoding_format": "base64", "dimensions": 384}),
]
READS = [
    "/v1/models",
    "/v1/models/tiny-llama",
    "/v1/poise/vectors",
    "/v1/poise/readings",
    "/v1/poise/readings/summary",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/",
    "/nothing/here",
]
QUERIES: dict[str, list[str]] = {
    "/v1/poise/readings": ["key", "trait", "part", "since", "until", "alarmed", "limit", "after"],
    "/v1/poise/readings/summary": ["key", "hours", "bucket_minutes"],
    "/v1/poise/vectors": ["everyone", "name"],
}
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW"]
TEXTS = [
    *(
        "",
        "x",
        " ",
        "\n",
        "\x00",
        "\ud800",
        "naïve 日本 🚣",
        "a" * 5000,
        "{{ 7*7 }}",
        "{% raise %}",
        "<|im_end|>",
        "../../etc",
    ),
    *("null", "NaN", "-1", "up=0.2", "up=1e400", "up=", "evil=30%", "up@99=1", "%s%n", "'; --", "2026-05-04T12:00:00Z"),
    *(
        "9999-99-99",
        "10000-01-01T00:00:00Z",
        "auto",
        "none",
        "required",
        "user",
        "tool",
        "assistant",
        "json_object",
        "true",
    ),
]
NUMBERS: list[Any] = [0, 1, -1, 2, 3.5, 1e308, -1e308, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e-320, True, False]
SPECIAL_NUMBERS = [float("nan"), float("inf"), -float("inf")]


@dataclass(slots=True)
class FuzzResult:
    """What came of it: answers by route and status, and the requests that were a fault of the server."""

    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def by_status(self) -> dict[int, int]:
        """Answers by status alone."""
        out: Counter[int] = Counter()
        for (_, status), number in self.counts.items():
            out[status] += number
        return dict(sorted(out.items()))


class Fuzzer:
    """Draws requests and sends them.

    Args:
        client: Its base URL is the server's. The caller closes it.
        seed: What the requests are drawn with.
        vector: Bytes of a good vector file.
    """

    def __init__(self, client: httpx.Client, seed: int, vector: bytes) -> None:
        self.client, self.vector, self.result = client, vector, FuzzResult()
        self.random = random.Random(seed)

    def run(self, requests: int) -> FuzzResult:
        """Send so many."""
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.post_json, 70),
            (self.read, 12),
            (self.upload, 8),
            (self.odd_address, 5),
            (self.raw, 5),
        ]
        actions, weights = zip(*kinds, strict=True)
        for _ in range(requests):
            self.random.choices(actions, weights)[0]()
        return self.result

    def value(self, depth: int = 0) -> Any:
        """Anything that JSON can hold, and a little more."""
        draw = self.random.random()
        if draw < 0.3:
            return self.random.choice(TEXTS)
        if draw < 0.6:
            return self.random.choice(NUMBERS)
        if draw < 0.65:
            return self.random.choice(SPECIAL_NUMBERS)
        if draw < 0.75 or depth > 3:
            return None
        if draw < 0.9:
            return [self.value(depth + 1) for _ in range(self.random.choice([0, 1, 2, 3, 40]))]
        return {self.random.choice(TEXTS): self.value(depth + 1) for _ in range(self.random.choice([0, 1, 2]))}

    def mutate(self, body: dict[str, Any]) -> Any:
        """A body with some of its values, at any depth, changed."""
        body = copy.deepcopy(body)
        for _ in range(self.random.choice([0, 1, 1, 1, 2, 3])):
            holders: list[Any] = []
            _collect(body, holders)
            holder = self.random.choice(holders)
            places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            what = self.random.random()
            if not places or what < 0.15:
                if isinstance(holder, dict):
                    holder[self.random.choice([*TEXTS, "poise", "tools", "n", "stop", "echo", "store"])] = self.value()
                else:
                    holder.append(self.value())
                continue
            place = self.random.choice(places)
            if what < 0.7:
                holder[place] = self.value()
            elif what < 0.8:
                del holder[place]
            elif what < 0.9:
                holder[place] = [holder[place]] * self.random.choice([1, 2, 70])
            else:
                nested: Any = holder[place]
                for _ in range(self.random.choice([1, 5, 40])):
                    nested = {"a": nested} if self.random.random() < 0.5 else [nested]
                holder[place] = nested
        return body

    def post_json(self) -> None:
        """A good body of a route, mutated, then perhaps broken as text."""
        path, good = self.random.choice(BODIES)
        model = "all-MiniLM-L6-v2" if path.endswith("embeddings") else "tiny-llama"
        data = json.dumps(self.mutate({"model": model, **good})).encode("utf-8", "surrogatepass")
        headers = {"content-type": "application/json"}
        draw = self.random.random()
        if draw < 0.05:
            data = data[: self.random.randrange(len(data) + 1)]
        elif draw < 0.1:
            spoilt = bytearray(data)
            for _ in range(self.random.choice([1, 3, 20])):
                spoilt[self.random.randrange(len(spoilt))] = self.random.randrange(256)
            data = bytes(spoilt)
        elif draw < 0.13:
            headers["content-type"] = self.random.choice(
                ["text/plain", "application/xml", "", "multipart/form-data", "a/b+json"]
            )
        elif draw < 0.16:
            headers[self.random.choice(["content-encoding", "transfer-encoding", "expect", "accept", "origin"])] = (
                self.random.choice(["gzip", "br", "100-continue", "application/xml", "http://evil.example", "identity"])
            )
        elif draw < 0.18:
            headers["authorization"] = self.random.choice(
                ["Bearer", "Bearer ", "Basic eA==", "Bearer " + "x" * 3000, "é"]
            )
        self.send("POST", path, content=data, headers=headers)

    def read(self) -> None:
        """A route that reads, with a query."""
        path = self.random.choice(READS)
        names = QUERIES.get(path, ["q", "name"])
        draws = self.random.sample(names, k=self.random.randint(0, len(names)))
        query = "&".join(f"{name}={quote(str(self.value()), errors='replace')[:3000]}" for name in draws)
        method = self.random.choice(METHODS) if self.random.random() < 0.2 else "GET"
        self.send(method, f"{path}?{query}" if query else path, route=path)

    def upload(self) -> None:
        """A vector file with some of its bytes changed, or one taken away."""
        name = self.random.choice(["mine", "up", "a b", "x" * 100, "é", "..", "%00", "m1", "m2"])
        if self.random.random() < 0.2:
            self.send("DELETE", f"/v1/poise/vectors/{quote(name)}", route="/v1/poise/vectors/NAME")
            return
        data = bytearray(self.vector)
        draw = self.random.random()
        if draw < 0.3:
            del data[self.random.randrange(len(data)) :]
        elif draw < 0.8:
            for _ in range(self.random.choice([1, 2, 8, 64])):
                data[self.random.randrange(min(len(data), 4000))] = self.random.randrange(256)
        elif draw < 0.9:
            data = bytearray(self.random.randbytes(self.random.choice([0, 1, 8, 100, 5000])))
        self.send("POST", f"/v1/poise/vectors?name={quote(name)}", content=bytes(data), route="/v1/poise/vectors")

    def odd_address(self) -> None:
        """An address or method that there is not."""
        path = "/" + "/".join(quote(str(self.random.choice(TEXTS)), errors="replace")[:500] for _ in range(3))
        self.send(
            self.random.choice(METHODS),
            self.random.choice([path, "//", "/v1/", "/v1/chat", "/%ff", "/v1/models/%2e%2e"]),
            route="other",
        )

    def raw(self) -> None:
        """Bytes that are hardly HTTP; an answer there need not be."""
        lines = [
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\n{}   ",
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /healthz HTTP/9.9\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00",
            b"GET / HTTP/1.1\r\nHost: a\x00b\r\n\r\n",
        ]
        data = bytearray(self.random.choice(lines))
        if self.random.random() < 0.5:
            data[self.random.randrange(len(data))] = self.random.randrange(256)
        host, port = self.client.base_url.host, self.client.base_url.port or 80
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(bytes(data))
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(10)
            head = b""
            with contextlib.suppress(OSError):
                head = connection.recv(64)
        status = int(head[9:12]) if head[9:12].isdigit() else 0
        self.note("raw", status, bytes(data).hex())

    def send(self, method: str, path: str, *, route: str | None = None, **more: Any) -> None:
        """Send a request and read all of the answer."""
        try:
            answer = self.client.request(method, path, **more)
        except (httpx.HTTPError, UnicodeError, ValueError) as error:
            self.note(route or path, 0, f"{method} {path}: {type(error).__name__}")
            return
        content = more.get("content", b"")[:2000]
        told = f"{method} {path} {content!r} -> {answer.text[:300]}"
        status = answer.status_code
        if status == 200 and b'"code": "server_error"' in answer.content:
            status = 599  # a stream that ended with a fault of the server
        if 400 <= status < 500 and method != "HEAD" and "error" not in answer.text:
            status = 598  # a refusal that says nothing
        self.note(route or path, status, told)

    def note(self, route: str, status: int, told: str) -> None:
        """Count an answer."""
        self.result.counts[route, status] += 1
        if status >= 500:
            self.result.faults.append(told)


def _collect(value: Any, holders: list[Any]) -> None:
    if isinstance(value, dict | list):
        holders.append(value)
        for item in value.values() if isinstance(value, dict) else value:
            _collect(item, holders)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import serving
    import tiny
    from poise.vector import save_vector

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = tiny.model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        save_vector(serving.vectors(model)["up"], path / "up.safetensors")
        rules = serving.uploading(path, most_vectors=4, most_tokens=8, default_tokens=2)
        began = time.monotonic()
        with (
            serving.running(model, policy=rules) as (address, _),
            httpx.Client(base_url=address, timeout=60) as client,
        ):
            fuzzer = Fuzzer(client, options.seed, (path / "up.safetensors").read_bytes())
            result = fuzzer.run(options.requests)
            well = httpx.get(f"{address}/readyz").status_code
    routes = sorted({route for route, _ in result.counts})
    for route in routes:
        statuses = {status: n for (r, status), n in sorted(result.counts.items()) if r == route}
        print(f"{route:32} " + "  ".join(f"{status}: {n}" for status, n in statuses.items()))
    print(f"all, {time.monotonic() - began:.0f} s: {result.by_status}; ready afterwards: {well}")
    for told in result.faults[:20]:
        print("FAULT", told)
    sys.exit(bool(result.faults))


if __name__ == "__main__":
    main()
