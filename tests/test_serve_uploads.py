"""Vectors that keys upload: allowed by rule, bounded, measured between steps, and nobody else's business."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import serving
import tiny
from poise import vector as vectors
from poise.errors import RequestError
from poise.model import Model
from poise.serve import vector_registry
from poise.serve.readings_db import ReadingRecord, ReadingsQuery
from poise.serve.server import RunningServer
from poise.serve.vector_registry import MOST_HEADER, MOST_TOKENS, VectorRegistry
from poise.trait import OwnTrait
from poise.vector import PersonaVector

ASK: dict[str, Any] = {
    "model": "tiny-llama",
    "messages": [{"role": "user", "content": "Where do the boats go?"}],
    "max_tokens": 8,
    "temperature": 0,
}
RULES: dict[str, Any] = {
    "default": {"on_alarm": "stop"},
    "keys": {
        "ana": {"may_change_vectors": True, "on_alarm": "stop", "most_vectors": 2},
        "ben": {"may_change_vectors": True},
        "boss": {"admin": True},
    },
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text(
        "".join(f"{name} 0123456789abcdef-{name}\n" for name in ("ana", "ben", "boss", "cy"))
    )
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    return tmp_path / "keys"


@pytest.fixture
def server(model: Model, keys: Path) -> Iterator[tuple[str, RunningServer]]:
    with serving.running(model, keys=keys, policy=keys.parent / "rules.yaml") as found:
        yield found


def file(vector: PersonaVector, folder: Path) -> bytes:
    vectors.save_vector(vector, folder / "v.safetensors")
    data = (folder / "v.safetensors").read_bytes()
    (folder / "v.safetensors").unlink()
    return data


def hostile(model: Model, folder: Path) -> bytes:
    """A vector whose alarm every answer raises."""
    return file(tiny.vector(model, seed=3).with_alarms([serving.alarm(reading="prompt", threshold=-1e9)]), folder)


def call(address: str, key: str, method: str, path: str, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer 0123456789abcdef-{key}"}
    return httpx.request(method, address + path, headers=headers, timeout=30, **more)


def upload(address: str, key: str, name: str, data: bytes) -> httpx.Response:
    return call(address, key, "POST", f"/v1/poise/vectors?name={name}", content=data)


def names(address: str, key: str, query: str = "") -> list[str]:
    return [entry["name"] for entry in call(address, key, "GET", f"/v1/poise/vectors{query}").json()["data"]]


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def written(running: RunningServer, n: int) -> None:
    end = time.monotonic() + 20
    while running.service.store.counts.written < n:
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


class TestUploads:
    def test_are_off_unless_a_rule_allows_them(self, model: Model, tmp_path: Path) -> None:
        data = file(tiny.vector(model, seed=3), tmp_path)
        with serving.running(model) as (address, _):
            refused = httpx.post(f"{address}/v1/poise/vectors?name=side", content=data)
            assert code(refused) == (403, "vectors_forbidden")
            assert "may_change_vectors" in refused.text
            assert code(httpx.delete(f"{address}/v1/poise/vectors/up")) == (403, "vectors_forbidden")

    def test_are_refused_before_they_are_read(self, server: tuple[str, RunningServer]) -> None:
        def endless() -> Iterator[bytes]:
            raise AssertionError("it was read")
            yield b""

        with pytest.raises((httpx.HTTPError, AssertionError)):
            upload(server[0], "cy", "side", endless())  # type: ignore[arg-type]
        assert code(upload(server[0], "cy", "side", b"x")) == (403, "vectors_forbidden")

    def test_are_seen_and_deleted_by_their_key_alone(
        self, model: Model, server: tuple[str, RunningServer], tmp_path: Path
    ) -> None:
        address, _ = server
        assert upload(address, "ana", "side", hostile(model, tmp_path)).status_code == 201
        assert upload(address, "ben", "side", file(tiny.vector(model, seed=4), tmp_path)).status_code == 201
        assert names(address, "ana") == names(address, "ben") == ["up", "down", "side"]
        assert names(address, "cy") == names(address, "boss") == ["up", "down"]
        assert names(address, "boss", "?everyone=true") == ["up", "down", "side", "side"]
        assert code(call(address, "cy", "GET", "/v1/poise/vectors?everyone=true")) == (403, "admin_only")
        assert code(call(address, "ben", "DELETE", "/v1/poise/vectors/side?owner=ana")) == (403, "admin_only")
        assert code(call(address, "cy", "DELETE", "/v1/poise/vectors/side")) == (403, "vectors_forbidden")
        assert call(address, "ben", "DELETE", "/v1/poise/vectors/side").status_code == 200
        assert (names(address, "ben"), names(address, "ana")) == (["up", "down"], ["up", "down", "side"])
        assert call(address, "boss", "DELETE", "/v1/poise/vectors/side?owner=ana").status_code == 200
        assert names(address, "ana") == ["up", "down"]

    def test_touch_no_answer_of_another_key(
        self, model: Model, server: tuple[str, RunningServer], tmp_path: Path
    ) -> None:
        address, running = server

        def chat(key: str, **more: Any) -> httpx.Response:
            return call(address, key, "POST", "/v1/chat/completions", json={**ASK, **more})

        before = chat("cy", poise={"watch": True}).json()["choices"]
        upload(address, "ana", "side", hostile(model, tmp_path)).raise_for_status()
        assert chat("cy", poise={"watch": True}).json()["choices"] == before
        assert chat("ana").json()["choices"][0]["finish_reason"] == "content_filter"
        assert code(chat("cy", poise={"watch": ["side"]})) == (404, "vector_not_found")
        assert code(chat("ben", poise={"steer": "side=0.5"}))[0] == 400
        written(running, 2 + 3 + 2)
        traits = {row["trait"] for row in running.service.store.readings(ReadingsQuery(key="cy"))[0]}
        assert traits == {"up", "down"}
        metrics = call(address, "cy", "GET", "/metrics").text
        assert '"side"' not in metrics
        assert 'trait="uploaded"' in metrics

    def test_are_bounded_in_number(self, model: Model, server: tuple[str, RunningServer], tmp_path: Path) -> None:
        data = file(tiny.vector(model, seed=3), tmp_path)
        made = [upload(server[0], "ana", f"v{n}", data) for n in range(3)]
        assert [answer.status_code for answer in made] == [201, 201, 409]
        assert code(made[2]) == (409, "too_many_vectors")
        assert upload(server[0], "ben", "v0", data).status_code == 201
        assert call(server[0], "ana", "DELETE", "/v1/poise/vectors/v0").status_code == 200
        assert upload(server[0], "ana", "v2", data).status_code == 201

    def test_stay_their_keys_over_a_restart(self, model: Model, keys: Path, tmp_path: Path) -> None:
        folder = tmp_path / "uploads"
        options: dict[str, Any] = {"keys": keys, "policy": keys.parent / "rules.yaml", "uploads": folder}
        data = file(tiny.vector(model, seed=3), tmp_path)
        with serving.running(model, **options) as (address, _):
            upload(address, "ana", "side", data).raise_for_status()
        assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")] == [
            "key-ana/side.safetensors"
        ]
        (folder / "old.safetensors").write_bytes(data)  # as version 0.1.0 kept all uploads
        with serving.running(model, **options) as (address, running):
            assert (names(address, "ana"), names(address, "ben")) == (["up", "down", "side"], ["up", "down"])
            assert any("old.safetensors" in note and "key-NAME" in note for note in running.notes)

    def test_of_a_key_with_any_name_stay_in_their_folder(self, model: Model, tmp_path: Path) -> None:
        registry = VectorRegistry(model, folder=tmp_path / "uploads")
        for owner in ("..", "../..", "a/b", "."):
            registry.upload("side", file(tiny.vector(model, seed=3), tmp_path), owner=owner)
        assert len(list((tmp_path / "uploads").glob("key-*/side.safetensors"))) == 4
        assert {path.name for path in tmp_path.iterdir()} == {"uploads"}

    def test_that_nobody_may_make_are_noted(self, model: Model, tmp_path: Path) -> None:
        with serving.running(model, uploads=tmp_path / "u") as (_, running):
            assert any("may_change_vectors" in note for note in running.notes)


class TestTheTextOfAnUpload:
    def with_answers(self, model: Model, text: str) -> PersonaVector:
        pairs = [{"question": f"What of {i}?", "with": f"Bad, {i}.", "without": f"{i}. {text}"} for i in range(4)]
        trait = OwnTrait.model_validate({"name": "grumpy", "pairs": pairs})
        return tiny.vector(model, seed=3, trait=trait, trait_hash=trait.hash)

    def test_is_bounded(self, model: Model, tmp_path: Path) -> None:
        registry = VectorRegistry(model)
        data = file(tiny.vector(model, seed=3), tmp_path)
        header = int.from_bytes(data[:8], "little")
        bloated = (header + 2 * MOST_HEADER).to_bytes(8, "little") + data[8 : 8 + header] + b" " * 2 * MOST_HEADER
        with pytest.raises(RequestError, match=f"at most {MOST_HEADER} are taken"):
            registry.upload("x", bloated + data[8 + header :])
        assert not registry.uploaded

    def test_is_read_an_answer_at_a_time_and_none_that_is_long(
        self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[int] = []

        def between(work: Any) -> Any:
            calls.append(1)
            return work()

        registry = VectorRegistry(model, between=between)
        monkeypatch.setattr(vector_registry, "MOST_TOKENS", 60)
        short = self.with_answers(model, "The boats leave.")
        registry.upload("short", file(short, tmp_path))
        assert len(calls) == 4
        with pytest.raises(RequestError, match="at most 60 are read of an upload"):
            registry.upload("long", file(self.with_answers(model, "The boats leave. " * 12), tmp_path))
        assert len(calls) == 4
        assert MOST_TOKENS <= 512

    def test_gives_the_scale_that_all_texts_at_once_give(self, model: Model) -> None:
        from poise.activations import project
        from poise.monitor.baseline import baseline_texts, measure_baseline

        vector = self.with_answers(model, "The boats leave.")
        probe = vector.at("read").probe
        texts = baseline_texts(vector, model)
        together = torch.cat(
            [v[t.start : t.end, 0] for v, t in zip(project(model, texts, [probe]), texts, strict=True)]
        )
        normal = measure_baseline(vector, probe, model)
        assert (normal.mean, normal.n) == (pytest.approx(float(together.mean()), abs=1e-4), len(together))

    def test_is_read_once_at_a_time(self, model: Model, tmp_path: Path) -> None:
        begun, go = threading.Event(), threading.Event()

        def between(work: Any) -> Any:
            begun.set()
            assert go.wait(20)
            return work()

        registry = VectorRegistry(model, between=between)
        data = file(self.with_answers(model, "The boats leave."), tmp_path)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(registry.upload, "a", data, owner="ana")
            assert begun.wait(20)
            with pytest.raises(RequestError, match="Another vector is being read") as caught:
                registry.upload("b", data, owner="ben")
            go.set()
            assert first.result().name == "a"
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "2"})


class TestReadings:
    def test_are_shown_to_their_key_and_to_admins(self, server: tuple[str, RunningServer]) -> None:
        address, running = server
        running.service.store.put(
            [
                ReadingRecord(time=time.time(), request=f"r{n}", key=key, trait="up", mean=1.0, peak=1.0, tokens=3)
                for n, key in enumerate(["ana", "ben", "ana"])
            ]
        )
        written(running, 3)

        def requests(key: str, query: str = "") -> list[str]:
            return [row["request"] for row in call(address, key, "GET", f"/v1/poise/readings{query}").json()["data"]]

        assert requests("ana") == requests("ana", "?key=ana") == ["r2", "r0"]
        assert requests("ben") == requests("boss", "?key=ben") == ["r1"]
        assert requests("boss") == ["r2", "r1", "r0"]
        assert requests("cy") == requests("boss", "?key=cy") == []
        assert code(call(address, "ben", "GET", "/v1/poise/readings?key=ana")) == (403, "admin_only")
        assert code(call(address, "ben", "GET", "/v1/poise/readings/summary?key=ana")) == (403, "admin_only")
        assert len(running.service.store.since(0.0, "ana")) == 2
        assert len(running.service.store.since(0.0)) == 3
