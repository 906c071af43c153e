"""What an operator relies on: the access log, metrics, probes, an orderly end, reloads, and files that go wrong."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml

import serving
import tiny
from poise import vector as vectors
from poise.cli import app
from poise.cli.serve import _end_in_order, _options_in_logs
from poise.cli.work import working
from poise.engine import model_pass
from poise.errors import InvalidArgument, InvalidSteering, OutputExists
from poise.model import Model
from poise.serve.access_log import AccessLog
from poise.serve.http_server import check_address, tell_systemd
from poise.serve.readings_db import ReadingRecord, ReadingsStore, check_database
from poise.serve.server import ServerOptions, check_options, make_server
from poise.serve.vector_registry import VectorRegistry
from poise.steer import Steering, cautions
from test_serve_faults import BODY, Held
from test_serve_rules import chat, eventually

KEYS = "ana ana-has-a-long-key-1\nbob bob-has-a-long-key-2\n"
ANA, BOB = "ana-has-a-long-key-1", "bob-has-a-long-key-2"


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def log(model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("log")
    (folder / "keys").write_text(KEYS)
    given = serving.vectors(model)
    given["up"] = given["up"].with_alarms([serving.alarm(reading="prompt", threshold=-1e6)])
    options = {"keys": folder / "keys", "access_log": folder / "access.jsonl", "proxies": ("127.0.0.1",)}
    with serving.running(model, given, **options) as (address, _):
        headers = {
            "authorization": f"Bearer {ANA}",
            "x-request-id": "mine-1",
            "x-forwarded-for": "203.0.113.9",
            "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        }
        body = {**BODY, "max_tokens": 5, "temperature": 0, "poise": {"steer": "down=10%"}}
        assert httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers).status_code == 200
        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json={**body, "stream": True}, headers=headers
        ) as answer:
            answer.read()
            assert answer.headers["x-accel-buffering"] == "no"
        assert httpx.get(f"{address}/v1/models", headers={"authorization": "Bearer secret-guess"}).status_code == 401
        assert httpx.get(f"{address}/what/ever?prompt=hush", headers=headers).status_code == 404
        assert httpx.post(f"{address}/v1/chat/completions", json={**body, "model": "x"}, headers=headers).is_error
        assert httpx.get(f"{address}/healthz").status_code == 200
        assert httpx.get(f"{address}/metrics").status_code == 401
        eventually(lambda: len(lines_of(folder / "access.jsonl")) == 6)
    return lines_of(folder / "access.jsonl")


class TestTheAccessLog:
    def test_has_a_line_a_request_but_for_the_pulse(self, log: list[dict[str, Any]]) -> None:
        assert [(line["method"], line["route"], line["status"], line["error"]) for line in log] == [
            ("POST", "/v1/chat/completions", 200, None),
            ("POST", "/v1/chat/completions", 200, None),
            ("GET", "/v1/models", 401, "invalid_api_key"),
            ("GET", "none", 404, "http_error"),
            ("POST", "/v1/chat/completions", 404, "model_not_found"),
            ("GET", "/metrics", 401, "invalid_api_key"),
        ]

    def test_says_who_asked_and_what_came_of_it(self, log: list[dict[str, Any]]) -> None:
        for line, stream in zip(log[:2], (False, True), strict=True):
            assert (line["key"], line["request_id"], line["client"]) == ("ana", "mine-1", "203.0.113.9")
            assert line["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
            assert (line["stream"], line["choices"], line["completion_tokens"]) == (stream, 1, 5)
            assert (line["finish"], line["steer"], line["forced"]) == (["length"], ["down"], [])
            assert line["alarms"] == [
                {"trait": "up", "reading": "prompt", "part": "reply", "action": "note", "token": 0}
            ]
            assert line["prompt_tokens"] > 5
            assert line["answer"].startswith("chatcmpl-")
            assert 0 <= line["queue_seconds"] <= line["first_token_seconds"] <= line["seconds"]
            assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", line["time"])
        assert log[2]["key"] is None

    def test_has_no_texts_and_no_keys(self, log: list[dict[str, Any]]) -> None:
        text = json.dumps(log)
        for secret in (ANA, "secret-guess", "hush", BODY["messages"][0]["content"]):
            assert secret not in text

    def test_is_for_its_owner_and_goes_on_where_it_is_moved(self, tmp_path: Path) -> None:
        path = tmp_path / "access.jsonl"
        log = AccessLog(path)
        log.put({"n": 1})
        eventually(lambda: log.written == 1)
        assert path.stat().st_mode & 0o777 == 0o600
        path.rename(tmp_path / "access.jsonl.1")
        log.put({"n": 2})
        eventually(lambda: log.written == 2)
        os.truncate(path, 0)  # logrotate's copytruncate
        log.put({"n": 3})
        log.close()
        assert lines_of(tmp_path / "access.jsonl.1") == [{"n": 1}]
        assert lines_of(path) == [{"n": 3}]

    def test_gives_lines_up_where_the_disk_is_full_and_goes_on_after_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        write, room = os.write, [12]

        def limited(descriptor: int, data: bytes) -> int:
            if not data.startswith((b"{", b"\n{", b'"')) and not room[0]:
                return write(descriptor, data)
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            length = write(descriptor, data[: room[0]])
            room[0] -= length
            return length

        log = AccessLog(tmp_path / "a")
        with monkeypatch.context() as patch:
            patch.setattr("poise.serve.access_log.os.write", limited)
            log.put({"n": 1})
            log.put({"n": 2})
            eventually(lambda: log.written + log.lost == 2)
        log.put({"n": 3})
        log.close()
        assert (log.written, log.lost) == (2, 1)
        assert (tmp_path / "a").read_text() == '{"n": 1}\n{"n\n{"n": 3}\n'
        assert [r.getMessage() for r in caplog.records] == [
            "Requests cannot be written to the access log (No space left on device): 1 lines given up so far."
        ]

    @pytest.mark.parametrize(
        ("name", "says"),
        [("none/a", "No such file or directory"), ("file", "is not a log of requests"), (".", "Is a directory")],
    )
    def test_that_cannot_be_is_refused_at_the_start(self, tmp_path: Path, name: str, says: str) -> None:
        (tmp_path / "file").write_text("dear diary\n")
        with pytest.raises(InvalidArgument, match=f"`access_log`.*{says}"):
            check_options(ServerOptions(port=0, access_log=tmp_path / name))

    def test_can_be_the_process_s_own_output(self) -> None:
        program = (
            "from pathlib import Path; from poise.serve.access_log import AccessLog; "
            "log = AccessLog(Path('-')); log.put({'n': 1}); log.close()"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout == '{"n": 1}\n'

    def test_takes_a_client_s_own_word_on_its_address_from_proxies_alone(self, model: Model, tmp_path: Path) -> None:
        with serving.running(model, access_log=tmp_path / "a") as (address, _):
            httpx.get(f"{address}/v1/models", headers={"x-forwarded-for": "203.0.113.9"})
            eventually(lambda: lines_of(tmp_path / "a"))
        assert lines_of(tmp_path / "a")[0]["client"] == "127.0.0.1"


class TestMetrics:
    def test_count_what_the_gate_refuses_and_how_answers_went(self, model: Model, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text(KEYS)
        with serving.running(model, keys=tmp_path / "keys") as (address, server):
            assert chat(address, ANA, max_tokens=4).status_code == 200
            assert chat(address, "wrong").status_code == 401
            value = server.service.metrics.registry.get_sample_value
            route = {"route": "/v1/chat/completions"}
            assert eventually(lambda: value("poise_requests_total", {**route, "status": "401"})) == 1
            assert eventually(lambda: value("poise_requests_total", {**route, "status": "200"})) == 1
            assert value("poise_errors_total", {"code": "invalid_api_key"}) == 1
            for name in ("queue_seconds", "first_token_seconds", "token_seconds", "request_completion_tokens"):
                assert value(f"poise_{name}_count") == 1
            assert value("poise_request_completion_tokens_sum") == 4
            assert (value("poise_ready"), value("poise_healthy"), value("poise_step_age_seconds")) == (1, 1, 0)
            info = {"version": "0.1.0", "model": "tiny-llama", "device": "cpu", "dtype": "float32", "engine": "local"}
            assert value("poise_info", info) == 1
            assert value("process_resident_memory_bytes")
            text = httpx.get(f"{address}/metrics", headers={"authorization": f"Bearer {ANA}"}).text
        assert "\npoise_readings_written_total " in text
        assert "\npoise_readings_written " in text  # as version 0.1.0 had it

    def test_have_no_label_that_a_client_can_choose(self, model: Model) -> None:
        with serving.running(model) as (address, _):
            for n in range(5):
                httpx.get(f"{address}/nowhere/{n}")
                httpx.get(f"{address}/v1/models/model-{n}")
                httpx.request(f"METHOD{n}", f"{address}/v1/models")
                chat(address, model=f"model-{n}")
                chat(address, poise={"steer": f"trait-{n}=10%"})
            text = httpx.get(f"{address}/metrics").text
        assert not re.search(r"(nowhere|model-|METHOD|trait-)", text)


class TestProbes:
    def test_stay_true_under_full_load(self, model: Model) -> None:
        with serving.running(model, batch=1, queue=1) as (address, server):
            held = Held(server)
            answers: list[int] = []
            ask = [threading.Thread(target=lambda: answers.append(chat(address).status_code)) for _ in range(6)]
            for thread in ask:
                thread.start()
            eventually(lambda: len(answers) >= 4)
            for path in ("/healthz", "/readyz"):
                assert httpx.get(f"{address}{path}", timeout=5).status_code == 200
            assert eventually(lambda: server.service.scheduler.step_age > 0)
            held.go.set()
            for thread in ask:
                thread.join()
        assert answers.count(429) >= 4
        assert answers.count(200) >= 1

    def test_say_that_only_a_restart_helps_where_each_step_fails(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*given: Any, **more: Any) -> Any:
            raise RuntimeError("CUDA error: device-side assert triggered")

        with serving.running(model) as (address, server):
            with monkeypatch.context() as patch:
                patch.setattr(model_pass, "newest_logits", broken)
                statuses = [(chat(address).status_code, httpx.get(f"{address}/healthz").status_code) for _ in range(10)]
            assert statuses == [*[(500, 200)] * 9, (500, 503)]
            assert chat(address).status_code == 200  # it was not so bad after all
            assert httpx.get(f"{address}/healthz").status_code == 200
            assert server.service.metrics.registry.get_sample_value("poise_failed_steps_total") == 10

    def test_do_not_take_a_user_s_fault_for_a_broken_model(self, model: Model) -> None:
        with serving.running(model) as (address, _):
            for _ in range(12):
                assert chat(address, poise={"steer": "up=1e30"}).status_code == 400
            assert httpx.get(f"{address}/healthz").status_code == 200


class TestAnEnd:
    def test_lets_answers_end_and_tells_newcomers_to_come_again(self, model: Model) -> None:
        with serving.running(model) as (address, server):
            held, answers = Held(server), list[httpx.Response]()
            first = threading.Thread(target=lambda: answers.append(chat(address)))
            first.start()
            eventually(lambda: server.service.scheduler.running or server.service.scheduler.waiting)
            server.server.grace = 30.0
            server.server.handle_exit(15, None)
            refused = chat(address)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["error"]["code"] == "shutting_down"
            ready = httpx.get(f"{address}/readyz")
            assert (ready.status_code, ready.headers["retry-after"]) == (503, "5")
            assert httpx.get(f"{address}/healthz").status_code == 200
            held.go.set()
            first.join()
            assert server._thread
            server._thread.join(10)
            assert not server._thread.is_alive()
        assert answers[0].status_code == 200

    def test_comes_at_once_at_a_second_signal(self, model: Model) -> None:
        with serving.running(model) as (address, server):
            held, answers = Held(server), list[httpx.Response]()
            first = threading.Thread(target=lambda: answers.append(chat(address)))
            first.start()
            eventually(lambda: server.service.scheduler.running or server.service.scheduler.waiting)
            server.server.grace = 300.0
            server.server.handle_exit(2, None)
            server.server.handle_exit(2, None)
            held.go.set()
            first.join(20)
        assert answers[0].status_code == 503

    def test_is_told_to_the_service_manager(
        self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.bind(str(tmp_path / "notify"))
            channel.settimeout(10)
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            with serving.running(model) as (_, server):
                assert channel.recv(100) == b"READY=1"
                server.reload()
                assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", channel.recv(100))
                assert channel.recv(100) == b"READY=1"
            assert channel.recv(100) == b"STOPPING=1"
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
        tell_systemd("READY=1")  # and goes on


class TestAnAddress:
    def test_that_is_taken_is_refused_before_a_model_is_loaded(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(InvalidArgument, match=rf"Cannot listen on 127.0.0.1:{port} \(Address already in use\)"):
                check_options(ServerOptions(port=port))
        check_address("127.0.0.1", port)

    def test_that_is_not_here_is_refused(self) -> None:
        with pytest.raises(InvalidArgument, match=r"Cannot listen on 192.0.2.1:80 \(Cannot assign"):
            check_address("192.0.2.1", 80)


@pytest.fixture
def reloading(model: Model, tmp_path: Path) -> Iterator[tuple[str, Any, Path]]:
    """A server from files, and their folder."""
    (tmp_path / "keys").write_text(KEYS)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"default": {"most_tokens": 8}}))
    vectors.save_vector(tiny.vector(model, seed=1), tmp_path / "up.safetensors")
    files = {"up": tmp_path / "up.safetensors"}
    options = ServerOptions(port=0, grace=1.0, keys=tmp_path / "keys", policy=tmp_path / "rules.yaml")
    loaded = {"up": vectors.load_vector(files["up"])}
    server = make_server(model, loaded, options, check_options(options, files), files=files)
    yield server.start(), server, tmp_path
    server.stop()


class TestAReload:
    def test_takes_keys_rules_and_vectors_together(self, model: Model, reloading: Any) -> None:
        address, server, folder = reloading
        assert chat(address, ANA, max_tokens=9).status_code == 400
        raised = tiny.vector(model, seed=1).with_alarms([serving.alarm(reading="prompt", threshold=-1e6)])
        vectors.save_vector(raised, folder / "up.safetensors", force=True)
        (folder / "keys").write_text(KEYS.replace(ANA, "ana-has-another-key-1"))
        rules = {"default": {"most_tokens": 9}, "keys": {"bob": {"on_alarm": "stop", "message": "No."}}}
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        before = server.reloader.succeeded
        assert server.reloader.reload()
        assert server.reloader.succeeded > before
        assert chat(address, ANA, max_tokens=9).status_code == 401
        assert chat(address, "ana-has-another-key-1", max_tokens=9).status_code == 200
        stopped = chat(address, BOB, max_tokens=9).json()["choices"][0]
        assert (stopped["message"]["content"], stopped["finish_reason"]) == ("No.", "content_filter")
        value = server.service.metrics.registry.get_sample_value
        assert value("poise_reloads_total", {"result": "taken"}) == 1
        assert value("poise_reload_last_successful") == 1

    @pytest.mark.parametrize(
        ("file", "text", "says"),
        [
            ("rules.yaml", "default: {most_tokens: -3}", "most_tokens"),
            (
                "rules.yaml",
                "default: {}\nkeys:\n  carla: {}",
                "rules.yaml, line 3: keys.carla are rules for the key 'carla', which the key file lacks; "
                "it has: ana, bob; fix it",
            ),
            (
                "rules.yaml",
                "default:\n  steer: down=10%",
                "rules.yaml, line 2: default.steer names the vector 'down', which is not here; name one that "
                "is (up), or start the server with it as `vector`; fix it and try again.",
            ),
            (
                "rules.yaml",
                "keys:\n  bob:\n    on_alarm:\n      up: note\n      down: stop",
                "rules.yaml, line 5: keys.bob.on_alarm.down names the vector 'down', which is not here",
            ),
            ("keys", "ana short\n", "Line 1 of the key file"),
            ("keys", None, "Cannot read the key file"),
            ("up.safetensors", "not a vector", "up.safetensors"),
        ],
    )
    def test_with_one_fault_changes_nothing(
        self, reloading: Any, caplog: pytest.LogCaptureFixture, file: str, text: str | None, says: str
    ) -> None:
        address, server, folder = reloading
        (folder / "keys").write_text(KEYS.replace(ANA, "ana-has-another-key-1"))
        (folder / "rules.yaml").write_text("default: {most_tokens: 9}")
        (folder / file).unlink() if text is None else (folder / file).write_text(text)
        server.service.policies, policies = server.service.policies, server.service.policies
        watched = dict(server.service.registry.entries)
        assert not server.reloader.reload()
        assert server.service.policies is policies
        assert dict(server.service.registry.entries) == watched
        assert server.reloader.keys.find(f"Bearer {ANA}") in ("ana", None)  # the key file is looked at by itself too
        [refusal] = [r.getMessage() for r in caplog.records if "Not reloaded" in r.getMessage()]
        assert says in refusal
        value = server.service.metrics.registry.get_sample_value
        assert value("poise_reloads_total", {"result": "refused"}) == 1
        assert value("poise_reload_last_successful") == 0
        assert httpx.get(f"{address}/readyz").status_code == 200

    def test_refuses_another_trait_s_vector(
        self, model: Model, reloading: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        _, server, folder = reloading
        other = tiny.trait().model_copy(update={"name": "envy"})
        envy = tiny.vector(model, seed=2, trait=other, trait_hash=other.hash)
        vectors.save_vector(envy, folder / "up.safetensors", force=True)
        before = server.service.registry.entries["up"]
        assert not server.reloader.reload()
        assert server.service.registry.entries["up"] is before
        mine = tiny.trait().name
        says = f"holds a vector of 'envy' now, and 'up' was one of {mine!r}; put one of {mine!r} there, or start"
        assert says in caplog.text

    def test_says_which_alarms_a_vector_has_no_longer(
        self, model: Model, reloading: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        _, server, folder = reloading
        plain = tiny.vector(model, seed=1)
        for readings in (("prompt", "mean", "peak"), ("mean",), ()):
            alarms = [serving.alarm(reading=reading) for reading in readings]
            vectors.save_vector(plain.with_alarms(alarms), folder / "up.safetensors", force=True)
            assert server.reloader.reload()
        remarks = [r.getMessage() for r in caplog.records if "any more" in r.getMessage()]
        assert remarks == [
            "up has no alarm for its prompt, peak any more; run `poise calibrate` on its file and reload again.",
            "up has no alarms any more; run `poise calibrate` on its file and reload again.",
        ]

    def test_leaves_answers_under_way_as_they_are(self, model: Model, reloading: Any) -> None:
        address, server, folder = reloading
        held, answers = Held(server), list[httpx.Response]()
        first = threading.Thread(target=lambda: answers.append(chat(address, ANA, max_tokens=8)))
        first.start()
        eventually(lambda: server.service.scheduler.running or server.service.scheduler.waiting)
        (folder / "rules.yaml").write_text("default: {most_tokens: 2}")
        assert server.reloader.reload()
        held.go.set()
        first.join()
        assert answers[0].json()["usage"]["completion_tokens"] == 8
        assert chat(address, ANA, max_tokens=8).status_code == 400


class TestAHangup:
    @pytest.mark.parametrize(("terminal", "there", "reloads"), [(False, False, 1), (True, True, 1), (True, False, 0)])
    def test_reloads_unless_a_terminal_was_closed(
        self, model: Model, monkeypatch: pytest.MonkeyPatch, terminal: bool, there: bool, reloads: int
    ) -> None:
        monkeypatch.setattr("poise.serve.server.has_terminal", lambda: terminal)
        with serving.running(model) as (_, server):
            monkeypatch.setattr("poise.serve.server.has_terminal", lambda: there)
            calls: list[int] = []
            monkeypatch.setattr(server, "reload", lambda: calls.append(1))
            server._hear_hangup(1, None)
            assert len(calls) == reloads
            assert server.service.scheduler.alive == bool(reloads)


class TestSecretFiles:
    def test_that_everybody_can_read_are_told_of(self, model: Model, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text(KEYS)
        (tmp_path / "keys").chmod(0o644)
        (tmp_path / "hook").write_text("http://127.0.0.1:9/secret")
        (tmp_path / "hook").chmod(0o600)
        options = ServerOptions(port=0, keys=tmp_path / "keys", webhook_file=tmp_path / "hook")
        server = make_server(model, {}, options)
        try:
            assert server.notes == [
                f"{tmp_path / 'keys'} can be read by everybody on this machine; close it with "
                f"`chmod 600 {tmp_path / 'keys'}`."
            ]
        finally:
            server._close()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root can read any file")
    def test_that_cannot_be_read_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text(KEYS)
        (tmp_path / "keys").chmod(0)
        with pytest.raises(InvalidArgument, match=r"Cannot read the key file .*PermissionError"):
            check_options(ServerOptions(port=0, keys=tmp_path / "keys"))


class TestAClockThatIsMoved:
    @pytest.mark.parametrize(("hours", "left"), [(0.5, 1), (24 * 365, 2)])
    def test_does_not_delete_all_readings(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hours: float, left: int
    ) -> None:
        now = time.time()
        store = ReadingsStore(tmp_path / "r", keep_days=1)
        store.put([ReadingRecord(time=now - age, request="r", trait="t") for age in (0, 23.8 * 3600)])
        eventually(lambda: store.counts.written == 2)
        with monkeypatch.context() as patch:
            patch.setattr("poise.serve.readings_db.time.time", lambda: now + hours * 3600)
            store._write([], sweep=True)
        store.close()
        with sqlite3.connect(tmp_path / "r") as db:
            [(rows,)] = db.execute("SELECT COUNT(*) FROM readings")
        db.close()
        assert rows == left
        assert ("The clock was changed by 8760.0 hours" in caplog.text) == (left == 2)


class TestAskingFor:
    def test_readings_of_an_unknown_trait_names_those_that_there_are(self, model: Model) -> None:
        with serving.running(model) as (address, server):
            server.service.store.put([ReadingRecord(time=time.time(), request="r", trait="gone")])
            eventually(lambda: server.service.store.traits())
            ask = partial(httpx.get, f"{address}/v1/poise/readings")
            assert ask(params={"trait": "up"}).json()["data"] == []
            assert [row["trait"] for row in ask(params={"trait": "gone"}).json()["data"]] == ["gone"]
            refused = ask(params={"trait": "envy"})
            error = refused.json()["error"]
            assert (refused.status_code, error["param"], error["code"]) == (404, "trait", "vector_not_found")
            assert error["message"] == "There are no readings by 'envy'; there are readings by: up, down, gone."

    @pytest.mark.parametrize("allowed", [False, True])
    def test_the_model_says_whether_vectors_may_be_uploaded(self, model: Model, tmp_path: Path, allowed: bool) -> None:
        rules = serving.uploading(tmp_path, may_change_vectors=allowed)
        with serving.running(model, policy=rules) as (address, _):
            [entry] = httpx.get(f"{address}/v1/models").json()["data"]
            assert entry["policy"]["may_change_vectors"] is allowed


class TestSigterm:
    def test_while_the_model_loads_is_obeyed_with_a_word(self, capsys: pytest.CaptureFixture[str]) -> None:
        before = signal.getsignal(signal.SIGTERM)
        try:
            _end_in_order()
            with pytest.raises(SystemExit) as end:
                signal.raise_signal(signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)
        assert end.value.code == 0
        assert capsys.readouterr().err == "Stopped before it was listening.\n"

    def test_after_the_end_is_no_failure(self) -> None:
        code = (
            "import signal; from poise.cli.serve import _end_at_once; _end_at_once(); signal.raise_signal(15); exit(3)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestTheStart:
    def test_tells_of_each_vector_once(self, model: Model, capsys: pytest.CaptureFixture[str]) -> None:
        with working():
            VectorRegistry(model).add("up", tiny.vector(model, seed=1), fixed=True)
        shown = capsys.readouterr().err.splitlines()
        assert len(shown) == 1
        assert shown[0].startswith("Reading answers without the trait (")

    def test_calls_a_vector_as_requests_call_it(self, model: Model) -> None:
        watched = VectorRegistry(model).add("courtesy", tiny.vector(model, seed=1), fixed=True)
        [caution] = cautions(Steering.add(watched.vector, coef=0.5))
        assert "of courtesy at layer" in caution
        with pytest.raises(InvalidSteering, match="courtesy has layers 0 to 3"):
            Steering.add(watched.vector, coef=0.5, layer=-1)
        assert watched.vector.header.trait.name == tiny.vector(model, seed=1).name

    def test_refuses_a_log_that_is_no_database_without_advice_that_it_cannot_take(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("notes\n" * 200)
        with pytest.raises(OutputExists) as refusal:
            check_database(tmp_path / "log")
        says = "exists and holds something that is not a database; choose another file."
        assert str(refusal.value) == f"{tmp_path / 'log'} {says}"

    def test_names_options_in_what_is_logged_later(self, caplog: pytest.LogCaptureFixture) -> None:
        context = typer.Context(typer.main.get_command(app), info_name="poise")
        context.invoked_subcommand = "serve"
        with _options_in_logs(context):
            logging.getLogger("poise.serve").error("Start with %s, `keys` and `poise calibrate`.", "`vector`")
        assert caplog.messages == ["Start with --vector, --api-key-file and `poise calibrate`."]
