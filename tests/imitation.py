"""An imitation of an OpenAI server: real HTTP on this machine, with answers that a test makes up."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]
"""Status and body: bytes as they are, all else as JSON."""

Behaviour = Callable[[dict[str, Any], int], Reply]


class _Http(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that gives up closes its connections; no need to tell."""


class Server:
    """Answers each request with ``behave(body, how many requests came before)``."""

    def __init__(self, behave: Behaviour) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    before = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                status, reply = behave(body, before)
                raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if raw.startswith(b"<") else "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = _Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@contextmanager
def servers() -> Iterator[Callable[[Behaviour], Server]]:
    """Starts as many as are asked for, and ends them all."""
    with ExitStack() as stack:
        yield lambda behave: stack.enter_context(closing(Server(behave)))


def completion(
    text: str | None, tops: list[dict[str, float]] | None = None, finish: str = "stop", tokens: list[str] | None = None
) -> dict[str, Any]:
    """An OpenAI chat completion; ``tops`` are the candidates' probabilities at each position."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish,
        "logprobs": None,
    }
    if tops is not None:
        chosen = tokens or [max(top, key=top.__getitem__) for top in tops]
        content = [
            {
                "token": token,
                "logprob": math.log(top[token]),
                "bytes": None,
                "top_logprobs": [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in top.items()],
            }
            for token, top in zip(chosen, tops, strict=True)
        ]
        choice["logprobs"] = {"content": content, "refusal": None}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "imitation",
        "choices": [choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
    }


def error(message: str) -> dict[str, Any]:
    """What an OpenAI server says where it fails."""
    return {"error": {"message": message, "type": "error", "code": None}}
