"""What goes wrong around a server, and that it lives on."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny
from poise import vector as vectors
from poise.engine import model_pass
from poise.model import Model
from poise.serve.readings_db import ReadingRecord, ReadingsQuery, ReadingsStore
from poise.serve.server import RunningServer
from serving import eventually

BODY: dict[str, Any] = {
    "model": "tiny-llama",
    "messages": [{"role": "user", "content": "Where do the boats go?"}],
    "max_tokens": 12,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def chat(address: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json={**BODY, **more}, timeout=30)


def idle(server: RunningServer) -> bool:
    scheduler = server.service.scheduler
    return not (scheduler.running or scheduler.waiting or scheduler.engine.running or scheduler.engine.waiting)


class Held:
    """A server whose model waits at every step until it is let go on."""

    def __init__(self, server: RunningServer) -> None:
        self.go, engine = threading.Event(), server.service.scheduler.engine
        step = engine.step

        def held() -> Any:
            self.go.wait(20)
            return step()

        engine.step = held  # type: ignore[method-assign]


class TestClientsThatHangUp:
    @pytest.mark.slow
    def test_leave_no_slot_taken_a_hundred_times(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        real = model_pass.newest_logits

        def slow(*given: Any) -> Any:
            time.sleep(0.01)  # 200 tokens take far longer than a client stays
            return real(*given)

        monkeypatch.setattr(model_pass, "newest_logits", slow)
        with serving.running(model, batch=8) as (address, server):

            def hang_up(number: int) -> None:
                body = {**BODY, "max_tokens": 200, "stream": number % 5 > 0, "poise": {"watch": True}}
                patience = 30 if body["stream"] else 0.3  # one leaves at the first line, the other without an answer
                try:
                    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=patience) as answer:
                        next(answer.iter_lines())
                except httpx.ReadTimeout:
                    assert not body["stream"]

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(hang_up, range(100)))
            eventually(lambda: idle(server))
            metrics = httpx.get(f"{address}/metrics").text
            assert "poise_answers_total{" not in metrics, "no answer went on to its end"
            assert chat(address).status_code == 200
            rows = server.service.store.readings(ReadingsQuery(limit=1000))[0]
            assert rows, "what was read of them is kept"


class TestTooMuchWork:
    def test_is_refused_with_when_to_come_again(self, model: Model) -> None:
        with serving.running(model, batch=1, queue=2) as (address, server), ThreadPoolExecutor(3) as pool:
            held = Held(server)
            waiting = [pool.submit(chat, address) for _ in range(2)]
            eventually(lambda: server.service.scheduler.waiting == 2)
            refused = chat(address)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            says = "2 requests are waiting already, and 2 may; try again in "
            assert refused.json()["error"]["message"].startswith(says), "of a server without keys"
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            too_many = chat(address, n=3)
            assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "n")
            held.go.set()
            assert [w.result().status_code for w in waiting] == [200, 200]
            assert chat(address).status_code == 200

    @pytest.mark.parametrize("stream", [False, True])
    def test_ends_at_its_deadline(self, model: Model, stream: bool) -> None:
        with serving.running(model, deadline=0.2) as (address, server):
            held = Held(server)
            threading.Timer(0.5, held.go.set).start()
            found = chat(address, stream=stream, max_tokens=200)
            if stream:
                assert found.text.endswith("data: [DONE]\n\n")
                assert '"deadline_exceeded"' in found.text
            else:
                assert (found.status_code, found.json()["error"]["code"]) == (504, "deadline_exceeded")
            eventually(lambda: idle(server))


class TestAnExceptionInAForwardPass:
    def test_ends_its_batch_with_clean_errors_and_the_server_lives_on(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serving.running(model) as (address, server), ThreadPoolExecutor(4) as pool:
            expected = chat(address).json()["choices"]
            real, broken = model_pass.newest_logits, threading.Event()

            def fails(m: Any, cache: Any, ids: Any, *rest: Any) -> Any:
                if ids.shape[1] == 1 and not broken.is_set():
                    raise RuntimeError("secret words of a prompt")
                return real(m, cache, ids, *rest)

            monkeypatch.setattr(model_pass, "newest_logits", fails)
            held = Held(server)
            asked = [pool.submit(chat, address, stream=i == 0) for i in range(4)]
            eventually(lambda: server.service.scheduler.waiting == 4)
            held.go.set()
            streamed, *whole = [a.result() for a in asked]
            assert [a.status_code for a in whole] == [500] * 3
            assert {a.json()["error"]["code"] for a in whole} == {"model_failed"}
            assert "secret" not in "".join(a.text for a in (streamed, *whole))
            assert json.loads(streamed.text.split("\n\n")[-3][6:])["error"]["type"] == "server_error"
            assert streamed.text.endswith("data: [DONE]\n\n")
            broken.set()
            assert chat(address).json()["choices"] == expected
            assert idle(server)
            assert httpx.get(f"{address}/readyz").status_code == 200

    def test_by_a_steering_that_is_too_strong_is_the_requests_own_fault(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with serving.running(model) as (address, _):
            real = model_pass.newest_logits
            monkeypatch.setattr(model_pass, "newest_logits", lambda *given: real(*given) * float("nan"))
            found = chat(address, poise={"steer": "up=0.2"})
            assert (found.status_code, found.json()["error"]["param"]) == (400, "poise.steer")
            assert chat(address).status_code == 500 or chat(address).status_code == 400


class TestADatabase:
    def test_that_is_locked_holds_no_answer_up_and_loses_nothing(self, model: Model, tmp_path: Path) -> None:
        path = tmp_path / "r.sqlite"
        with serving.running(model, log=path) as (address, server):
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            assert [chat(address).status_code for _ in range(3)] == [200] * 3
            eventually(lambda: server.service.store.counts.failures)
            other.execute("ROLLBACK")
            other.close()
            eventually(lambda: server.service.store.counts.written == 6)
            assert len(server.service.store.readings(ReadingsQuery())[0]) == 6
            assert server.service.store.counts.lost == 0

    def test_that_is_full_is_tried_again_and_gives_up_the_oldest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.serve.readings_db.BACKLOG", 10)
        monkeypatch.setattr("poise.serve.readings_db.PAUSE", 0.01)
        store = ReadingsStore(tmp_path / "r.sqlite")
        real = ReadingsStore._write

        def full(*given: Any, **more: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(ReadingsStore, "_write", full)
        store.put([ReadingRecord(time=1.0, request=f"r{i}", trait="up") for i in range(15)])
        eventually(lambda: store.counts.failures > 2)
        monkeypatch.setattr(ReadingsStore, "_write", real)
        eventually(lambda: store.counts.written)
        store.close()
        assert store.counts.lost == 5

    def test_that_cannot_be_read_is_said_to_be_busy(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        def locked(*given: Any, **more: Any) -> Any:
            raise sqlite3.OperationalError("database is locked")

        with serving.running(model) as (address, _):
            with monkeypatch.context() as patch:
                patch.setattr(ReadingsStore, "_connect", locked)
                found = httpx.get(f"{address}/v1/poise/readings")
            assert (found.status_code, found.json()["error"]["code"]) == (503, "store_busy")
            assert httpx.get(f"{address}/v1/poise/readings").status_code == 200


class TestAWebhook:
    def test_that_is_down_holds_nothing_up(self, model: Model) -> None:
        given = serving.vectors(model)
        given["up"] = given["up"].with_alarms([serving.alarm(reading="prompt", threshold=-1e6)])
        with serving.running(model, given, webhook="http://127.0.0.1:9/") as (address, server):
            assert [chat(address).status_code for _ in range(3)] == [200] * 3
        hook = server.service.webhook
        assert hook is not None
        assert (hook.sent, hook.lost) == (0, 3)


class TestShuttingDown:
    @pytest.mark.parametrize("patient", [True, False])
    def test_lets_streams_end_or_ends_them_cleanly(self, model: Model, patient: bool) -> None:
        with serving.running(model) as (address, server):
            held = Held(server)
            lines: list[str] = []

            def read() -> None:
                with httpx.stream(
                    "POST", f"{address}/v1/chat/completions", json={**BODY, "stream": True}, timeout=30
                ) as answer:
                    lines.extend(line for line in answer.iter_lines() if line)

            reader = threading.Thread(target=read)
            reader.start()
            eventually(lambda: server.service.scheduler.waiting or server.service.scheduler.running)
            ending = threading.Thread(target=server.stop)
            ending.start()
            eventually(lambda: not server.service.scheduler.alive)
            if not patient:
                eventually(lambda: server.service.scheduler._stopping)
            held.go.set()
            reader.join()
            ending.join()
        assert lines[-1] == "data: [DONE]"
        assert ('"finish_reason": "length"' in lines[-2]) == patient
        assert ('"shutting_down"' in lines[-2]) == (not patient)


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    model.lm.save_pretrained(tmp_path / "m")
    model.tokenizer.save_pretrained(tmp_path / "m")
    from poise.model import load_model

    vectors.save_vector(tiny.vector(load_model(str(tmp_path / "m"), device="cpu")), tmp_path / "up.safetensors")
    return tmp_path


@pytest.mark.slow
class TestTheProcess:
    def start(self, folder: Path) -> Iterator[Any]:
        command = [
            *(sys.executable, "-m", "poise", "serve", "--model", str(folder / "m"), "--device", "cpu", "--port", "0"),
            *("--vector", f"up={folder / 'up.safetensors'}", "--log", str(folder / "r.sqlite")),
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
        try:
            assert process.stderr
            said = ""
            while not (found := re.search(r"http://[\d.:]+", said)):
                said = process.stderr.readline()
                assert said, "it ended before it listened"
            yield process, found[0]
        finally:
            process.kill()
            process.wait()
            assert process.stderr
            process.stderr.close()

    def test_keeps_every_committed_reading_over_a_kill_and_ends_in_order(self, folder: Path) -> None:
        body = {**BODY, "model": "m"}
        first = self.start(folder)
        process, address = next(first)
        for _ in range(5):
            httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).raise_for_status()
        get = lambda: httpx.get(f"{address}/v1/poise/readings").json()["data"]  # noqa: E731
        before = eventually(lambda: len(get()) == 5 and get())
        process.send_signal(signal.SIGKILL)
        process.wait()
        first.close()
        second = self.start(folder)
        process, address = next(second)
        assert httpx.get(f"{address}/v1/poise/readings").json()["data"] == before
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=30).raise_for_status()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        second.close()
        assert len(ReadingsStore(folder / "r.sqlite").readings(ReadingsQuery())[0]) == 6
