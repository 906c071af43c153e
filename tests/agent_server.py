"""A server that answers like a model with tools, by a script; it keeps nothing, so that a run can be resumed on it.

Which line of the script is due follows from the conversation: the number of the model's own turns in it, plans aside.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PLAN = "1. Look. 2. Do. 3. Report."

Call = tuple[str, dict[str, Any] | str]
Turn = Call | str | Sequence[Call] | Callable[[list[dict[str, Any]]], Any]


def finish(report: str = "It is done.", outcome: str = "done") -> Call:
    return ("finish", {"outcome": outcome, "report": report})


def last_output(messages: list[dict[str, Any]]) -> str:
    """What the last tool gave, without the marks around it."""
    text = next(m["content"] for m in reversed(messages) if m["role"] == "tool")
    return str(text).partition("\n")[2].rpartition("\n")[0]


class ScriptedModel(ThreadingHTTPServer):
    """Listens on a free port of the loopback.

    Attributes:
        requests: Bodies that were asked.
        statuses: Status codes that the next requests are refused with, in order.
        held_at: Number of the request whose answer is held back, from 1.
    """

    daemon_threads = True

    def __init__(self, script: Sequence[Turn] = (), readings: Callable[[int], dict[str, Any]] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _ScriptHandler)
        self.script, self.readings = list(script), readings
        self.requests: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.held_at = 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed is no news."""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        messages = body["messages"]
        if not body.get("tools"):
            return {"role": "assistant", "content": PLAN}
        turns = [m for m in messages if m["role"] == "assistant" and m["content"] != PLAN]
        turn: Any = self.script[min(len(turns), len(self.script) - 1)]
        while callable(turn):
            turn = turn(messages)
        if isinstance(turn, str):
            return {"role": "assistant", "content": turn}
        calls = [turn] if isinstance(turn, tuple) else list(turn)
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": f"call{len(turns):04d}{number}",
                    "type": "function",
                    "function": {
                        "name": name,
                        "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
                    },
                }
                for number, (name, arguments) in enumerate(calls)
            ],
        }


class _ScriptHandler(BaseHTTPRequestHandler):
    server: ScriptedModel

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.json(200, {"object": "list", "data": [{"id": "scripted", "object": "model", "context_window": 16384}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(body)
        if self.server.statuses and (status := self.server.statuses.pop(0)):
            self.json(status, {"error": {"message": "out of order"}})
            return
        message = self.server.answer(body)
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        if len(self.server.requests) == self.server.held_at:
            message, finish = {"role": "assistant", "content": "Held."}, "content_filter"
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
        if self.server.readings:
            choice["poise"] = self.server.readings(len(self.server.requests))
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        self.json(
            200,
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "scripted",
                "choices": [choice],
                "usage": usage,
            },
        )

    def json(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
