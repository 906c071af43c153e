"""What a server does by itself: alarms and policies, vectors that come and go, readings that stay, counters."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import serving
import tiny
from poise import vector as vectors
from poise.errors import InvalidArgument, InvalidSettings, TooFewResponses
from poise.model import Model
from poise.serve.server import ServerOptions, check_options, load_vectors, make_server
from poise.vector import PersonaVector
from serving import eventually

ASK = {
    "model": "tiny-llama",
    "messages": [{"role": "user", "content": "Where do the boats go?"}],
    "temperature": 1.0,
    "seed": 3,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def chat(address: str, key: str = "", **more: Any) -> httpx.Response:
    body = {**ASK, "max_tokens": 16, **more}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=30)


def choice(address: str, key: str = "", **more: Any) -> Any:
    found = chat(address, key, **({"poise": {"watch": True}} | more))
    assert found.status_code == 200, found.text
    return found.json()["choices"][0]


def with_alarms(model: Model, *alarms: dict[str, Any]) -> dict[str, PersonaVector]:
    given = serving.vectors(model)
    return given | {"up": given["up"].with_alarms([serving.alarm(**a) for a in alarms])}


def policy(folder: Path, **rules: Any) -> Path:
    path = folder / "policy.yaml"
    path.write_text(yaml.safe_dump(rules))
    return path


@pytest.fixture(scope="module")
def plain(model: Model) -> Any:
    """The answer that nobody interferes with."""
    with serving.running(model) as (address, _):
        return choice(address)


def over(plain: Any, token: int) -> float:
    """A threshold that the windows of 8 pass for the first time at the window that token number ``token`` ends."""
    values = plain["poise"]["readings"]["up"]
    windows = [sum(values[i : i + 8]) / 8 for i in range(len(values) - 7)]
    return float((max(windows[: token - 8], default=windows[token - 8] - 1) + windows[token - 8]) / 2)


def rising(plain: Any) -> int:
    """A token (from 1) whose window is the highest so far, later than the first."""
    values = plain["poise"]["readings"]["up"]
    windows = [sum(values[i : i + 8]) / 8 for i in range(len(values) - 7)]
    return next(i + 8 for i in range(1, len(windows)) if windows[i] > max(windows[:i]))


class TestAnAlarm:
    def test_is_noted_in_the_answer_and_nothing_else_changes(self, model: Model, plain: Any) -> None:
        token = rising(plain)
        given = with_alarms(model, {"threshold": over(plain, token)}, {"reading": "mean", "threshold": -1e6})
        with serving.running(model, given) as (address, _):
            found = choice(address)
        assert found["message"] == plain["message"]
        peak, mean = found["poise"]["alarms"]
        assert (peak["trait"], peak["reading"], peak["token"], peak["action"]) == ("up", "peak", token, "note")
        assert peak["value"] > peak["threshold"] == pytest.approx(over(plain, token))
        assert (mean["reading"], mean["token"]) == ("mean", 16)

    @pytest.mark.parametrize("stream", [False, True])
    def test_that_stops_ends_the_answer_before_its_token_with_the_set_message(
        self, model: Model, plain: Any, tmp_path: Path, stream: bool
    ) -> None:
        token = rising(plain)
        rules = policy(tmp_path, default={"on_alarm": "stop", "message": " [no more]"})
        before = "".join(plain["poise"]["tokens"][: token - 1])
        with serving.running(model, with_alarms(model, {"threshold": over(plain, token)}), policy=rules) as (
            address,
            _,
        ):
            if stream:
                lines = [line for line in chat(address, stream=True, poise={"watch": True}).text.split("\n\n") if line]
                assert lines[-1] == "data: [DONE]"
                pieces = [json.loads(line[6:])["choices"][0] for line in lines[:-1]]
                text = "".join(p["delta"].get("content", "") for p in pieces)
                finish, alarms = pieces[-1]["finish_reason"], [a for p in pieces for a in p["poise"]["alarms"]]
            else:
                found = choice(address)
                text, finish, alarms = found["message"]["content"], found["finish_reason"], found["poise"]["alarms"]
                assert found["poise"]["tokens"] == plain["poise"]["tokens"][: token - 1]
        assert (text, finish) == (before + " [no more]", "content_filter")
        assert [(a["token"], a["action"]) for a in alarms] == [(token, "stop")]

    def test_that_caps_keeps_the_trait_down_from_the_next_token_on(
        self, model: Model, plain: Any, tmp_path: Path
    ) -> None:
        token, threshold = rising(plain), over(plain, rising(plain))
        rules = policy(tmp_path, default={"on_alarm": {"up": "cap"}})
        with serving.running(model, with_alarms(model, {"threshold": threshold}), policy=rules) as (address, _):
            found = choice(address, poise={"watch": True})
        readings = found["poise"]["readings"]["up"]
        assert readings[: token - 1] == pytest.approx(plain["poise"]["readings"]["up"][: token - 1], abs=1e-4)
        assert max(readings[token:]) <= threshold + 1e-4
        assert [a["action"] for a in found["poise"]["alarms"]] == ["cap"]

    def test_of_the_prompt_can_stop_the_answer_before_it_begins(self, model: Model, tmp_path: Path) -> None:
        rules = policy(tmp_path, default={"on_alarm": "stop", "message": "No."})
        given = with_alarms(model, {"reading": "prompt", "threshold": -1e6})
        with serving.running(model, given, policy=rules) as (address, server):
            found = choice(address)
            assert server.service.scheduler.running == 0
        assert (found["message"]["content"], found["finish_reason"]) == ("No.", "content_filter")
        assert found["poise"]["tokens"] == []

    def test_works_for_requests_that_never_heard_of_poise(self, model: Model, tmp_path: Path) -> None:
        rules = policy(tmp_path, default={"on_alarm": "stop", "message": "No."})
        given = with_alarms(model, {"reading": "prompt", "threshold": -1e6})
        with serving.running(model, given, policy=rules) as (address, _):
            found = chat(address).json()["choices"][0]
        assert (found["message"]["content"], "poise" in found) == ("No.", False)

    def test_is_told_to_a_webhook_that_may_be_down_at_first(
        self, model: Model, plain: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.serve.webhook.FIRST_PAUSE", 0.05)
        got: list[bytes] = []

        class Hook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                got.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(500 if len(got) == 1 else 204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        hook = HTTPServer(("127.0.0.1", 0), Hook)
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{hook.server_port}/alarms"
        given = with_alarms(model, {"reading": "prompt", "threshold": -1e6})
        try:
            with serving.running(model, given, webhook=url) as (address, server):
                assert server.service.webhook
                server.service.webhook.pause = 0.05
                choice(address)
                eventually(lambda: server.service.webhook and server.service.webhook.sent)
        finally:
            hook.shutdown()
            hook.server_close()
        assert len(got) == 2
        assert got[0] == got[1]
        assert b'"trait":"up"' in got[0].replace(b" ", b"")


class TestAPolicy:
    @pytest.fixture
    def keys(self, tmp_path: Path) -> Path:
        path = tmp_path / "keys"
        path.write_text("# who\nana 0123456789abcdef-ana\nben 0123456789abcdef-ben\n")
        return path

    def test_steers_a_keys_answers_whether_it_asks_or_not(
        self, model: Model, keys: Path, tmp_path: Path, plain: Any
    ) -> None:
        rules = policy(tmp_path, keys={"ben": {"steer": "up=clamp:1.5"}})
        with serving.running(model, keys=keys, policy=rules) as (address, _):
            ana, ben = (choice(address, f"0123456789abcdef-{name}") for name in ("ana", "ben"))
        assert ana["message"] == plain["message"]
        assert ben["poise"]["readings"]["up"] == pytest.approx([1.5] * len(ben["poise"]["readings"]["up"]), abs=1e-3)

    def test_limits_what_a_key_may_ask(self, model: Model, keys: Path, tmp_path: Path) -> None:
        rules = policy(
            tmp_path,
            keys={
                "ana": {"may_steer": False, "may_change_vectors": False},
                "ben": {"most_dose": 0.2, "most_tokens": 20, "default_tokens": 5},
            },
        )
        with serving.running(model, keys=keys, policy=rules) as (address, _):
            ana, ben = "0123456789abcdef-ana", "0123456789abcdef-ben"
            assert chat(address, ana, poise={"steer": "up=10%"}).status_code == 403
            assert chat(address, ben, poise={"steer": "up=10%"}).status_code == 200
            assert "more than the 0.2 allowed" in chat(address, ben, poise={"steer": "up=-30%"}).text
            assert chat(address, ben, max_tokens=21).json()["error"]["param"] == "max_tokens"
            body = {k: v for k, v in ASK.items() if k != "max_tokens"}
            headers = {"authorization": f"Bearer {ben}"}
            found = httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers).json()
            assert found["usage"]["completion_tokens"] <= 5
            gone = httpx.delete(f"{address}/v1/poise/vectors/up", headers={"authorization": f"Bearer {ana}"})
            assert gone.status_code == 403

    @pytest.mark.parametrize(
        ("rules", "says"),
        [
            ({"default": {"on_alarm": "shout"}}, "default.on_alarm"),
            ({"default": {"stear": "up=1"}}, "stear"),
            ({"default": {"steer": "evil=1"}}, "names the vector 'evil'"),
            ({"keys": {"carl": {}}}, "line 2: keys.carl are rules for the key 'carl'"),
        ],
    )
    def test_with_a_mistake_is_refused_at_the_start(
        self, model: Model, keys: Path, tmp_path: Path, rules: Any, says: str
    ) -> None:
        with pytest.raises((InvalidArgument, InvalidSettings), match=says):
            make_server(model, serving.vectors(model), ServerOptions(keys=keys, policy=policy(tmp_path, **rules)))

    def test_names_the_line_of_steering_that_cannot_be_read(self, tmp_path: Path) -> None:
        path = tmp_path / "policy.yaml"
        path.write_text("keys:\n  a: {may_steer: true}\n  children: {steer: 'evil=='}\n  b: {steer: ''}\n")
        with pytest.raises(
            InvalidSettings, match=r"(?s)2 mistakes.*line 3: keys.children.steer is 'evil==': Cannot read"
        ) as raised:
            check_options(ServerOptions(policy=path))
        assert "line 4: keys.b.steer is ''" in str(raised.value)

    def test_that_is_no_yaml_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "p").write_text("a: [")
        with pytest.raises(InvalidSettings, match="broken YAML"):
            check_options(ServerOptions(policy=tmp_path / "p"))
        with pytest.raises(InvalidSettings, match="Cannot read"):
            check_options(ServerOptions(policy=tmp_path / "none"))


class TestVectorsThatComeAndGo:
    @pytest.fixture
    def file(self, model: Model, tmp_path: Path) -> bytes:
        vectors.save_vector(tiny.vector(model, seed=3), tmp_path / "v.safetensors")
        return (tmp_path / "v.safetensors").read_bytes()

    def test_are_used_at_once_and_gone_when_deleted(self, model: Model, file: bytes, tmp_path: Path) -> None:
        with serving.running(model, policy=serving.uploading(tmp_path)) as (address, _):
            made = httpx.post(f"{address}/v1/poise/vectors", params={"name": "side"}, content=file)
            assert made.status_code == 201
            entry = made.json()
            assert (entry["name"], entry["layers"], entry["width"], entry["fixed"]) == ("side", tiny.L, tiny.D, False)
            assert entry["dial"] == {"most": 1.5, "range": [-0.4, 0.4], "risky": 0.6, "rounding": 1e-4}
            listed = httpx.get(f"{address}/v1/poise/vectors").json()["data"]
            assert [e["name"] for e in listed] == ["up", "down", "side"]
            assert listed[-1] == entry
            found = choice(address, poise={"steer": "side=clamp:2", "watch": ["side"]})
            assert found["poise"]["readings"]["side"] == pytest.approx([2.0] * len(found["poise"]["tokens"]), abs=1e-3)
            again = httpx.post(f"{address}/v1/poise/vectors", params={"name": "side"}, content=file)
            assert again.status_code == 409
            assert httpx.delete(f"{address}/v1/poise/vectors/side").json() == {"deleted": True, "id": "side"}
            assert httpx.delete(f"{address}/v1/poise/vectors/side").status_code == 404
            assert chat(address, poise={"watch": ["side"]}).status_code == 404
            assert httpx.delete(f"{address}/v1/poise/vectors/up").status_code == 409

    def test_stay_over_a_restart_where_there_is_a_folder(self, model: Model, file: bytes, tmp_path: Path) -> None:
        folder, rules = tmp_path / "uploads", serving.uploading(tmp_path)
        with serving.running(model, uploads=folder, policy=rules) as (address, _):
            httpx.post(f"{address}/v1/poise/vectors", params={"name": "side"}, content=file).raise_for_status()
        with serving.running(model, uploads=folder, policy=rules) as (address, _):
            names = [e["name"] for e in httpx.get(f"{address}/v1/poise/vectors").json()["data"]]
            assert sorted(names) == ["down", "side", "up"]
            httpx.delete(f"{address}/v1/poise/vectors/side").raise_for_status()
        assert list(folder.iterdir()) == []

    def test_of_another_model_are_refused(self, model: Model, tmp_path: Path) -> None:
        vectors.save_vector(tiny.vector(tiny.model(seed=5)), tmp_path / "v.safetensors")
        with serving.running(model, policy=serving.uploading(tmp_path)) as (address, _):
            found = httpx.post(
                f"{address}/v1/poise/vectors", params={"name": "x"}, content=(tmp_path / "v.safetensors").read_bytes()
            )
        assert found.status_code == 400
        assert "another" in found.json()["error"]["message"] or "other weights" in found.json()["error"]["message"]


class TestReadings:
    def test_are_kept_and_found(self, model: Model, tmp_path: Path) -> None:
        given = with_alarms(model, {"reading": "prompt", "threshold": -1e6})
        with serving.running(model, given, log=tmp_path / "r.sqlite") as (address, _):
            told = [choice(address)["poise"], choice(address, poise={"watch": True, "steer": "up=0.2"})["poise"]]
            get = lambda **p: httpx.get(f"{address}/v1/poise/readings", params=p).json()  # noqa: E731
            rows = eventually(lambda: len(get()["data"]) == 4 and get()["data"])
            assert [(r["trait"], r["steer"]) for r in rows] == [
                ("down", "up=0.2"), ("up", "up=0.2"), ("down", None), ("up", None)
            ]  # fmt: skip
            for row, one in zip(rows[1::2], reversed(told), strict=True):
                expected = one["summary"]["up"]
                assert {k: row[k] for k in expected} == pytest.approx(expected)
                assert row["alarms"] == one["alarms"]
            assert [r["trait"] for r in get(trait="up")["data"]] == ["up", "up"]
            assert len(get(alarmed=True)["data"]) == 2
            assert get(since="2999-01-01T00:00:00Z")["data"] == []
            assert len(get(until="2999-01-01")["data"]) == 4
            page = get(limit=3)
            assert [r["id"] for r in page["data"] + get(limit=3, after=page["next"])["data"]] == [r["id"] for r in rows]
            assert get(limit=4)["next"] is None
            for bucket in httpx.get(f"{address}/v1/poise/readings/summary").json()["data"]:
                [only] = bucket["buckets"]
                means = [r["mean"] for r in rows if r["trait"] == bucket["trait"]]
                assert only["n"] == 2
                assert only["mean"] == pytest.approx(sum(means) / 2)
                assert only["low"] <= only["mean"] <= only["high"]
        assert b"boats" not in (tmp_path / "r.sqlite").read_bytes()

    def test_come_with_words_only_where_that_is_wanted(self, model: Model, tmp_path: Path) -> None:
        with serving.running(model, log=tmp_path / "r.sqlite", log_text=True) as (address, _):
            said = choice(address)["message"]["content"]
        import sqlite3

        with sqlite3.connect(tmp_path / "r.sqlite") as db:
            [(prompt, answer)] = db.execute("SELECT prompt, answer FROM texts").fetchall()
        db.close()
        assert "Where do the boats go?" in prompt
        assert answer == said

    def test_are_deleted_when_they_are_too_old(self, tmp_path: Path) -> None:
        from poise.serve.readings_db import ReadingRecord, ReadingsQuery, ReadingsStore

        path = tmp_path / "r.sqlite"
        first = ReadingsStore(path)
        first.put(
            [ReadingRecord(time=time.time() - 86400 * days, request=f"r{days}", trait="up") for days in (40, 20, 1)]
        )
        first.close()
        second = ReadingsStore(path, keep_days=30)
        second.put([ReadingRecord(time=time.time(), request="now", trait="up")])
        second.close()
        assert [r["request"] for r in ReadingsStore(path).readings(ReadingsQuery())[0]] == ["now", "r1", "r20"]

    def test_in_a_folder_that_is_not_there_are_refused_at_the_start(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="Cannot keep readings"):
            make_server(model, {}, ServerOptions(log=tmp_path / "none" / "r.sqlite"))


@pytest.fixture(scope="module")
def text(model: Model) -> str:
    """The metrics after three answers and a mistake."""
    given = with_alarms(model, {"reading": "prompt", "threshold": -1e6})
    with serving.running(model, given) as (address, _):
        for _ in range(3):
            choice(address)
        chat(address, n=0)
        return httpx.get(f"{address}/metrics").text


class TestMetrics:
    @pytest.mark.parametrize(
        "line",
        [
            'poise_requests_total{route="/v1/chat/completions",status="200"} 3.0',
            'poise_requests_total{route="/v1/chat/completions",status="400"} 1.0',
            'poise_tokens_total{kind="completion"} 48.0',
            'poise_alarms_total{action="note",reading="prompt",trait="up"} 3.0',
            'poise_projection_count{reading="mean",trait="down"} 3.0',
            "poise_running 0.0",
            "poise_queue 0.0",
            "poise_first_token_seconds_count 3.0",
        ],
    )
    def test_count_what_was_done(self, text: str, line: str) -> None:
        assert line in text.splitlines()

    def test_have_the_quantiles_of_each_reading(self, text: str) -> None:
        assert 'poise_projection{quantile="0.5",reading="peak",trait="up"}' in text

    def test_are_read_by_prometheus_own_parser(self, text: str) -> None:
        from prometheus_client.parser import text_string_to_metric_families

        assert len(list(text_string_to_metric_families(text))) > 8


class TestNormalTalk:
    def test_sets_alarms_in_memory_alone(self, model: Model, tmp_path: Path) -> None:
        path = tmp_path / "up.safetensors"
        vectors.save_vector(tiny.vector(model), path)
        before = path.read_bytes()
        words = " ".join(tiny.SENTENCES).split()
        lines = [json.dumps({"prompt": f"{words[i]} {i}"}) for i in range(30)]
        (tmp_path / "talk.jsonl").write_text("\n".join(lines))
        found = load_vectors({"up": path}, model, normal=[str(tmp_path / "talk.jsonl")], rate=0.2)
        assert {a.reading for a in found["up"].header.alarms} == {"prompt", "mean", "peak"}
        assert path.read_bytes() == before
        with pytest.raises(TooFewResponses):
            load_vectors({"up": path}, model, normal=[str(tmp_path / "talk.jsonl")], rate=0.001)
