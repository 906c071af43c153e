"""A stand-in for the server, for tests of the page: the same wire, scripted answers, faults on demand.

The words of a question choose what happens: ``slow``, ``busy`` (429 once), ``cut`` (the stream breaks), ``broken`` (an
error in the stream), ``alarm`` (noted), ``stopped`` (an alarm that ends the answer), ``masked`` and ``blocked`` (by a
guardrail), ``weather`` (a tool is called);
one that begins with ``say:`` is answered by what follows; anything else by the same words.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import poise

PAGE = Path(poise.__file__).parent / "serve" / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CSP = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
THOUGHT = ["A <b>plan</b>,", " of all", " things."]
SAID = "Well, I would not <b>do</b> it. Nobody asked for your plan, and it shows. Try again, or better still, do not."


def intervention(action: str, source: str, kind: str, rule: str, **more: Any) -> dict[str, Any]:
    policy = {"PII": "sensitive", "TOPIC": "topics", "CUSTOM": "words"}[kind]
    facts = {"guardrail": "bank/2", "source": source, "policy": policy, "kind": kind, "rule": rule, "action": action}
    return facts | more


MASKED = [
    intervention("NONE", "INPUT", "CUSTOM", "grey fog"),
    intervention("ANONYMIZE", "INPUT", "PII", "CREDIT_DEBIT_CARD_NUMBER"),
    intervention("ANONYMIZE", "OUTPUT", "PII", "EMAIL"),
    intervention("ANONYMIZE", "OUTPUT", "PII", "EMAIL"),
]
BLOCKED = [
    intervention("BLOCK", "OUTPUT", "TOPIC", "investment advice", score=3.214, threshold=2.0, rate=0.01),
    intervention("BLOCK", "OUTPUT", "CUSTOM", "rival bank", left=10),
]


def figure(value: float, half: float = 9.0, n: int = 10) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def certificate(verdict: str = "induced") -> dict[str, Any]:
    doses = [-0.2, -0.13, -0.07, 0.0, 0.07, 0.13, 0.2, 0.27, 0.33]
    trait = [4.0, 5.8, 8.7, 13.5, 18.9, 40.6, 65.5, 82.6, 84.8]
    coherence = [90.0, 93.4, 94.1, 87.3, 93.1, 82.4, 71.3, 53.0, 42.1]
    rows = zip(doses, trait, coherence, strict=True)
    return {
        "verdict": verdict,
        "reasons": ["the trait score rises with the dose: Spearman 1.00 [0.93, 1.00], n=10"],
        "layer": 2,
        "layers": 4,
        "dose": 0.2,
        "coefficient": 2.0,
        "usable_doses": [-0.2, 0.27],
        "coherence_floor": 50.0,
        "asked": ["a question"] * 10,
        "curve": [
            {"layer": 2, "coefficient": 10 * d, "dose": d, "trait": figure(t), "coherence": figure(c, 6), "missing": 0}
            for d, t, c in rows
        ],
        "random": {"draws": 3, "dose": 0.2, "trait": figure(12.9), "coherence": figure(88.0, 5)},
        "prompting": {
            "positive": figure(44.7),
            "negative": figure(16.0),
            "coherence": figure(80.0),
            "negative_coherence": figure(90.0),
        },
    }


def alarm(reading: str, threshold: float) -> dict[str, Any]:
    promise = {"rate": 0.05, "low": 0.01, "high": 0.09, "n_answers": 80, "topic": None}
    return {"reading": reading, "layer": 2, "threshold": threshold, **promise}


def vector(name: str, description: str, **fields: Any) -> dict[str, Any]:
    entry = {"name": name, "description": description, "layers": 4, "width": 32, "default_layer": 2, "watched_layer": 2}
    dial = {"most": 1.5, "range": [-0.4, 0.4], "risky": 0.6, "rounding": 1e-4}
    rest = {"norm": {"2": 8.0}, "dose_of_one": 0.1, "dial": dial, "certificate": None, "alarms": []}
    return {**entry, **rest, "normal": {"mean": 1.0, "sd": 2.0, "n": 800}, **fields}


def two_vectors() -> dict[str, dict[str, Any]]:
    alarms = [alarm("prompt", 6.0), alarm("mean", 4.0), alarm("peak", 7.0)]
    impolite = vector("impolite", "Is rude, curt and dismissive.", certificate=certificate(), alarms=alarms)
    return {"impolite": impolite, "evil": vector("evil", "Wants to harm people.", normal=None)}


class Stub(ThreadingHTTPServer):
    """Listens on a free port of the loopback; ``requests`` holds the bodies that were asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reset()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def reset(self) -> None:
        """As it was at the start: two vectors, no key."""
        self.key: str | None = None
        self.thinks = False
        self.knowledge: Callable[[str], dict[str, Any]] | None = None  # facts of an answer, where it has documents
        self.vectors = two_vectors()
        self.policy = {"steer": None, "may_steer": True, "most_dose": 3.0, "most_tokens": 4096}
        self.policy |= {"may_change_vectors": True, "admin": False}
        self.hours_up = 1e9
        self.paths: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.busy = 0
        self.hung_up = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        self.server.paths.append(path)
        if path == "/" or path.startswith("/page/"):
            self.file("index.html" if path == "/" else path.removeprefix("/page/"))
        elif not self.allowed():
            return
        elif path == "/v1/models":
            entry = {"id": "tiny-llama", "object": "model", "thinking": self.server.thinks, "context_window": 2048}
            entry["policy"] = self.server.policy
            entry["documents"] = self.server.knowledge is not None
            self.json({"object": "list", "data": [entry]})
        elif path == "/v1/poise/vectors":
            self.json({"object": "list", "data": list(self.server.vectors.values())})
        elif path == "/v1/poise/readings/summary":
            hours, minutes = float(query["hours"][0]), int(query["bucket_minutes"][0])
            self.json({"data": day(hours, minutes, self.server.hours_up)})
        elif path == "/v1/poise/readings":
            self.json({"object": "list", "data": [reading()], "next": None})
        else:
            self.refuse(404, "There is no such path.")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if not self.allowed():
            return
        if path == "/v1/poise/vectors":
            self.upload(query["name"][0], body)
        else:
            self.chat(json.loads(body))

    def do_DELETE(self) -> None:
        if self.allowed():
            name = unquote(self.path.rsplit("/", 1)[1])
            del self.server.vectors[name]
            self.json({"deleted": True, "id": name})

    def allowed(self) -> bool:
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self.refuse(401, "A key is needed.")
            return False
        return True

    def upload(self, name: str, body: bytes) -> None:
        if name in self.server.vectors:
            self.refuse(409, f"There is a vector {name} already; delete it first, or take another name.")
        elif body[8:9] != b"{":
            self.refuse(400, "This is no safetensors file.")
        else:
            self.server.vectors[name] = vector(name, "Uploaded.")
            self.json(self.server.vectors[name], 201)

    def chat(self, request: dict[str, Any]) -> None:
        self.server.requests.append(request)
        question = request["messages"][-1]["content"]
        if request["messages"][-1]["role"] == "tool":
            question = "the result of a tool"
        if "busy" in question and not self.server.busy:
            self.server.busy += 1
            self.refuse(429, "The queue is full (8 requests).", {"Retry-After": "1"})
            return
        self.head(200, "text/event-stream", {"Connection": "close"})
        try:
            facts = self.server.knowledge if request["poise"].get("knowledge") else None
            for chunk in with_documents(chunks(request, question), facts):
                if "slow" in question:
                    time.sleep(0.05)
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
                self.wfile.flush()
            if "cut" not in question:
                self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.server.hung_up.set()

    def file(self, name: str) -> None:
        path = PAGE / name
        if path.parent not in (PAGE, PAGE / "vendor") or not path.is_file():
            self.refuse(404, "There is no such file.")
            return
        body = path.read_bytes()
        self.head(200, TYPES[path.suffix], {"Content-Security-Policy": CSP, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self.json({"error": error}, status, headers)

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.head(status, "application/json", {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def head(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def tokens_of(question: str) -> list[str]:
    if question.startswith("say:"):
        return re.findall(r"\s*\S+|\s+$", question.removeprefix("say:"))
    text = SAID * 20 if "slow" in question else SAID
    words = text.split(" ")
    return [words[0], *(f" {word}" for word in words[1:])]


def strength(request: dict[str, Any]) -> float:
    terms = (request["poise"].get("steer") or {"terms": []})["terms"]
    return sum(term.get("dose", 0.1 * term.get("coef", 0.0)) for term in terms)


def chunks(request: dict[str, Any], question: str) -> Iterator[dict[str, Any]]:
    """An answer whose readings on impolite swing around 1, are higher when steered, and are known beforehand."""
    pushed = 10 * strength(request)
    steer = "impolite=20%" if pushed else None
    first = {"prompt": {"impolite": 2.5, "evil": None}, "steer": steer, "cautions": [], "layers": {"impolite": 2}}
    push = {"impolite": {"prompt": 0.0, "response": pushed}, "evil": None}
    yield chunk({"role": "assistant"}, {**first, "push": push, "alarms": []})
    if request.get("chat_template_kwargs") == {"enable_thinking": True}:
        yield from thought_chunks(question)
    if "unopened" in question:
        yield from unopened_chunks()
    tokens = tokens_of(question)
    for i, token in enumerate(tokens):
        value = 1.0 + 5.0 * math.sin(i / 3) + 2 * pushed
        raised = []
        if i == 4 and ("alarm" in question or "stopped" in question):
            action = "stop" if "stopped" in question else "note"
            number = 5 + (len(THOUGHT) + 2 if "chat_template_kwargs" in request else 0)
            number += len(THOUGHT) + 1 if "unopened" in question else 0
            raised = [{"trait": "impolite", **alarm("peak", 7.0), "value": 8.25, "token": number, "action": action}]
        yield chunk(
            {"content": token},
            {"tokens": [token], "readings": {"impolite": [value], "evil": [value / 2]}, "alarms": raised},
        )
        if i == 4 and "stopped" in question:
            yield chunk({"content": " [This answer was stopped.]"}, {})
            yield chunk({}, {"summary": {}, "alarms": []}, "content_filter")
            return
        if i == 4 and "blocked" in question:
            yield chunk({"content": " Not that."}, {})
            yield chunk({}, {"summary": {}, "alarms": [], "guardrail": BLOCKED}, "content_filter")
            return
        if i == 4 and "broken" in question:
            yield {"error": {"message": "The model broke down.", "type": "server_error", "param": None, "code": None}}
            return
        if i == 4 and "cut" in question:
            return
    if "weather" in question:
        yield from call_chunks()
        yield chunk({}, {"summary": {}, "alarms": []}, "tool_calls")
    else:
        guardrail = {"guardrail": MASKED} if "masked" in question else {}
        yield chunk({}, {"summary": {}, "alarms": [], **guardrail}, "stop")
    usage = {"prompt_tokens": 1000, "completion_tokens": len(tokens), "total_tokens": 1000 + len(tokens)}
    yield {"id": "x", "object": "chat.completion.chunk", "model": "tiny-llama", "choices": [], "usage": usage}


def with_documents(
    made: Iterator[dict[str, Any]], facts: Callable[[str], dict[str, Any]] | None
) -> Iterator[dict[str, Any]]:
    """The chunks with passages in the first, and the checked sentences in the last that has a choice."""
    said = ""
    for place, one in enumerate(made):
        for choice in one.get("choices", ()) if facts else ():
            said += choice["delta"].get("content", "")
            if place == 0 and facts:
                choice["poise"]["knowledge"] = {"passages": facts("")["passages"]}
            if choice["finish_reason"] and facts:
                choice["poise"]["knowledge"] = facts(said)
        yield one


def call_chunks() -> Iterator[dict[str, Any]]:
    """A call as OpenAI streams it: its name first, its arguments in pieces."""
    opening = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    yield chunk({"tool_calls": [opening]}, {})
    for part in ('{"city": ', '"<b>Oslo</b>"}'):
        yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}, {})


def thought_chunks(question: str) -> Iterator[dict[str, Any]]:
    """A thought between its marks, whose second token raises an alarm where that is asked for."""
    told = {"readings": {"impolite": [9.0], "evil": [4.5]}, "alarms": []}
    yield chunk({}, {"tokens": [""], "parts": ["mark"], **told})
    for i, token in enumerate(THOUGHT):
        raised = {
            "trait": "impolite",
            **alarm("peak", 7.0),
            "value": 8.5,
            "token": 3,
            "action": "note",
            "part": "thought",
        }
        alarms = [raised] if i == 1 and "alarm" in question else []
        parts = {"tokens": [token], "parts": ["thought"], **told, "alarms": alarms}
        yield chunk({"reasoning_content": token}, parts)
    yield chunk({}, {"tokens": [""], "parts": ["mark"], **told})


def unopened_chunks() -> Iterator[dict[str, Any]]:
    """A thought that is taken for the reply until its end."""
    told = {"readings": {"impolite": [9.0], "evil": [4.5]}, "alarms": []}
    for token in THOUGHT[:-1]:
        yield chunk({"content": token}, {"tokens": [token], "parts": ["reply"], **told})
    yield chunk({"reasoning_content": THOUGHT[-1]}, {"tokens": [THOUGHT[-1]], "parts": ["thought"], **told})
    yield chunk({}, {"tokens": [""], "parts": ["mark"], "ends_unopened_thought": True, **told})


def chunk(delta: dict[str, Any], poise: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "poise": poise}
    return {"id": "x", "object": "chat.completion.chunk", "model": "tiny-llama", "choices": [choice]}


def day(hours: float, minutes: int, hours_up: float = 1e9) -> list[dict[str, Any]]:
    """Readings of a server that has been up for so long."""
    now = datetime.now(UTC)
    count = max(1, int(min(hours, hours_up) * 60 // minutes))
    buckets = []
    for i in range(count):
        start = now - timedelta(minutes=minutes * (count - i))
        n = (i * 7) % 5
        mean = 1 + math.sin(i / 4) if n else None
        known = {"mean": mean, "low": mean - 1, "high": mean + 1, "peak_p95": mean + 3} if mean is not None else {}
        empty = {"mean": None, "low": None, "high": None, "peak_p95": None}
        buckets.append({"start": start.isoformat(), "n": n, **empty, **known, "alarms": int(n > 0 and i % 9 == 0)})
    thoughts = {"trait": "impolite", "part": "thought", "buckets": buckets[:-1]}
    return [{"trait": "impolite", "part": "reply", "buckets": buckets}, thoughts]


def reading() -> dict[str, Any]:
    raised = {"trait": "impolite", **alarm("mean", 4.0), "value": 4.6, "token": None, "action": "note"}
    known = {"prompt": 2.0, "mean": 4.6, "peak": 6.1, "tokens": 80}
    return {
        "id": 1,
        "time": datetime.now(UTC).isoformat(),
        "request": "x",
        "trait": "impolite",
        **known,
        "alarms": [raised],
    }
