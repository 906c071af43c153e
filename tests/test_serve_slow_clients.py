"""Clients that never finish a request, never read an answer, or are too many: attacks, and what each of them got."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny
from poise.model import Model
from poise.serve import exchange
from poise.serve.connections import SPARE, ConnectionBook, ConnectionLimits, descriptors_left
from poise.serve.server import RunningServer
from serving import eventually

BODY: dict[str, Any] = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
HALF_A_HEADER = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
HALF_A_BODY = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 1000\r\n\r\n{"model": '
)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def limits(**changes: Any) -> ConnectionLimits:
    return ConnectionLimits(**{"header_seconds": 60.0, "body_seconds": 60.0, "write_seconds": 60.0, **changes})


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextlib.contextmanager
def clients(address: str, n: int, begin: bytes, receive_buffer: int | None = None) -> Iterator[list[socket.socket]]:
    """Connections that have sent that much and no more."""
    opened: list[socket.socket] = []
    try:
        for _ in range(n):
            client = socket.socket()
            opened.append(client)
            if receive_buffer:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            client.settimeout(30)
            client.connect(("127.0.0.1", port(address)))
            with contextlib.suppress(ConnectionError):  # it may have been sent away already
                client.sendall(begin)
        yield opened
    finally:
        for client in opened:
            client.close()


def got(client: socket.socket) -> str:
    """The first line that a client hears before its connection ends; empty for none."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65536):
            heard += part
    return heard.split(b"\r\n")[0].decode()


def is_well(address: str) -> None:
    assert httpx.get(f"{address}/healthz", timeout=20).status_code == 200
    assert httpx.post(f"{address}/v1/chat/completions", json=BODY, timeout=20).status_code == 200


def closed(server: RunningServer, reason: str) -> float:
    return server.service.metrics.registry.get_sample_value("poise_connections_closed_total", {"reason": reason}) or 0.0


class TestSlowHeaders:
    @pytest.mark.parametrize("n", [30, 300])
    def test_keep_nobody_out_and_get_nothing(self, model: Model, n: int) -> None:
        """Slowloris: each is sent away once it has owed its header too long."""
        with (
            serving.running(model, connections=limits(header_seconds=2.0)) as (address, server),
            clients(address, n, HALF_A_HEADER) as slow,
        ):
            is_well(address)
            assert Counter(got(client) for client in slow) == {"": n}
            assert closed(server, "header") == n
            eventually(lambda: len(server.connections) == 0)
            is_well(address)

    @pytest.mark.parametrize("n", [30, 300])
    def test_make_room_where_connections_run_out(self, model: Model, n: int) -> None:
        """The longest waiting goes for each newcomer, so that a request in one piece is always let in."""
        with (
            serving.running(model, connections=limits(total=20)) as (address, server),
            clients(address, n, HALF_A_HEADER),
        ):
            eventually(lambda: closed(server, "evicted") >= n - 20)
            is_well(address)
            assert closed(server, "refused") == 0
            assert len(server.connections) <= 20

    def test_of_one_address_make_room_for_that_address_alone(self) -> None:
        ended: list[str] = []
        book = ConnectionBook(limits(total=4, per_address=2))

        class Connection:
            def __init__(self, name: str) -> None:
                self.name = name

            def end(self, reason: str) -> None:
                ended.append(f"{self.name} {reason}")
                book.forget(self)  # type: ignore[arg-type]

        def arrive(name: str, address: str, busy: bool = False) -> str:
            connection: Any = Connection(name)
            answer = book.admit(connection, address)
            book.work(connection) if busy else book.wait(connection)
            return answer

        assert [arrive("a1", "a"), arrive("b1", "b"), arrive("b2", "b"), arrive("b3", "b")] == ["admitted"] * 4
        assert ended == ["b1 evicted"]
        assert [arrive("c1", "c", busy=True), arrive("c2", "c", busy=True)] == ["admitted"] * 2
        assert ended == ["b1 evicted", "a1 evicted"]
        assert arrive("c3", "c", busy=True) == "overfull"
        assert arrive("d1", "d") == "admitted"
        assert ended[2:] == ["b2 evicted", "b3 evicted"]
        assert [arrive(f"c{n}", "c", busy=True) for n in range(4, 4 + SPARE)] == ["overfull"] * (SPARE - 1) + [
            "refused"
        ]

    def test_after_an_answer_are_no_better(self, model: Model) -> None:
        with serving.running(model, connections=limits(header_seconds=1.0)) as (address, server):
            whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with clients(address, 1, whole + HALF_A_HEADER) as [client]:
                assert got(client) == "HTTP/1.1 200 OK"
            assert closed(server, "header") == 1


class TestSlowBodies:
    @pytest.mark.parametrize("n", [1, 30])
    def test_are_told_and_sent_away(self, model: Model, n: int) -> None:
        with (
            serving.running(model, connections=limits(body_seconds=1.0)) as (address, server),
            clients(address, n, HALF_A_BODY) as slow,
        ):
            is_well(address)
            assert Counter(got(client) for client in slow) == {"HTTP/1.1 408 Request Timeout": n}
            eventually(lambda: len(server.connections) == 0)

    def test_have_longer_where_they_are_large(self, model: Model) -> None:
        def slowly() -> Iterator[bytes]:
            yield b'{"model": "' + b"x" * 2**20
            time.sleep(1.5)
            yield b'"}'

        with serving.running(model, connections=limits(body_seconds=1.0)) as (address, _):
            headers = {"content-type": "application/json"}
            answer = httpx.post(f"{address}/v1/chat/completions", content=slowly(), headers=headers, timeout=30)
            assert answer.status_code == 400


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps({**BODY, **body}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


LARGE_STREAM = {
    "stream": True,
    "max_tokens": 200,
    "n": 16,
    "seed": 1,
    "logprobs": True,
    "top_logprobs": 20,
    "temperature": 2,
}


class TestClientsThatNeverRead:
    def test_lose_their_answer_and_free_its_slots(self, model: Model) -> None:
        with (
            serving.running(model, connections=limits(write_seconds=1.0)) as (address, server),
            clients(address, 2, request(LARGE_STREAM), receive_buffer=4096),
        ):
            eventually(lambda: len(server.connections) == 2)
            eventually(lambda: len(server.connections) == 0)
            eventually(lambda: not server.service.scheduler.running and not server.service.scheduler.waiting)
            assert closed(server, "write") + closed(server, "header") <= 2  # the system may have been quicker
            is_well(address)

    def test_cost_bounded_memory(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exchange, "MOST_UNREAD", 10)
        sizes: list[int] = []
        real = exchange.CompletionExchange._take

        def counted(self: Any, *given: Any) -> None:
            real(self, *given)
            sizes.append(self._outputs.qsize())

        monkeypatch.setattr(exchange.CompletionExchange, "_take", counted)
        with (
            serving.running(model, connections=limits()) as (address, server),
            clients(address, 1, request(LARGE_STREAM), receive_buffer=4096) as [client],
        ):
            eventually(lambda: len(sizes) > 16 * 20)
            eventually(lambda: not server.service.scheduler.running and not server.service.scheduler.waiting)
            assert max(sizes) == 10 * 16 + 1
            heard = b""
            while not heard.endswith(b"0\r\n\r\n"):
                heard += client.recv(65536)
            assert b'"code": "unread"' in heard
            assert b"data: [DONE]" in heard

    def test_are_no_reason_to_wait_at_the_end(self, model: Model) -> None:
        with (
            serving.running(model, connections=limits()) as (address, _),
            clients(address, 1, request(LARGE_STREAM), receive_buffer=4096),
        ):
            is_well(address)


class TestTooManyConnections:
    def test_that_are_busy_are_refused_in_a_sentence_and_the_pulse_is_still_felt(self, model: Model) -> None:
        with (
            serving.running(model, connections=limits(total=3)) as (address, server),
            clients(address, 3, HALF_A_BODY) as busy,
        ):
            eventually(lambda: len(server.connections) == 3 and not server.connections._waiting)
            refused = httpx.post(f"{address}/v1/chat/completions", json=BODY, timeout=20)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_connections")
            assert refused.headers["retry-after"] == "5"
            assert httpx.get(f"{address}/healthz").status_code == httpx.get(f"{address}/readyz").status_code == 200
            with clients(address, 2 * SPARE, HALF_A_BODY) as many:
                lines = Counter(got(client) for client in many)
                assert lines["HTTP/1.1 503 Service Unavailable"]
                assert set(lines) <= {"HTTP/1.1 503 Service Unavailable", ""}
            busy.pop().close()
            eventually(lambda: len(server.connections) == 2)
            is_well(address)

    def test_never_exceed_what_the_process_may_open(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda what: (200, 200))
        left = descriptors_left()
        assert left is not None
        assert 1 <= left < 200 - 2 * SPARE

    @pytest.mark.slow
    def test_of_a_process_with_few_descriptors_do_not_end_it(self, model: Model, tmp_path: Path) -> None:
        script = (
            "import resource, serving, sys\n"
            "from poise.serve.connections import ConnectionLimits\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
            "with serving.running(connections=ConnectionLimits(header_seconds=60)) as (address, _):\n"
            "    print(address, flush=True)\n"
            "    sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", script]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parent)
        assert process.stdout
        assert process.stdin
        try:
            address = process.stdout.readline().strip()
            with clients(address, 300, HALF_A_HEADER):
                is_well(address)
            is_well(address)
        finally:
            process.stdin.close()
            process.wait(30)
            process.stdout.close()
