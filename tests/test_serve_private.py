"""What a server keeps to itself: files for their owner alone, addresses that no list of processes shows."""

from __future__ import annotations

import json
import sqlite3
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

import serving
import tiny
from poise.cli import app as command_line
from poise.errors import InvalidArgument, InvalidVector
from poise.model import Model
from poise.serve.readings_db import ReadingRecord, ReadingsStore
from poise.serve.server import ServerOptions, check_options
from poise.serve.webhook import read_webhook
from poise.vector import PersonaVector

BODY: dict[str, Any] = {
    "model": "tiny-llama",
    "messages": [{"role": "user", "content": "my very secret words"}],
    "max_tokens": 2,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def rights(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


class TestTheDatabase:
    def test_of_texts_and_what_lies_beside_it_are_for_their_owner_alone(self, model: Model, tmp_path: Path) -> None:
        log = tmp_path / "readings.sqlite"
        with serving.running(model, log=log, log_text=True) as (address, server):
            assert httpx.post(f"{address}/v1/chat/completions", json=BODY, timeout=30).status_code == 200
            db = sqlite3.connect(log)  # a reader, so that the files beside it stay
            try:
                server.service.store.close()
                assert db.execute("SELECT count(*) FROM texts").fetchone() == (1,)
                files = sorted(tmp_path.glob("readings.sqlite*"))
                assert [f.name.removeprefix("readings.sqlite") for f in files] == ["", "-shm", "-wal"]
                assert [rights(f) for f in files] == ["0o600"] * 3
            finally:
                db.close()

    def test_that_others_could_read_is_closed_to_them_where_texts_are_kept(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name, private, after in (("a", False, "0o644"), ("b", True, "0o600")):
            path = tmp_path / name
            ReadingsStore(path).close()
            path.chmod(0o644)
            store = ReadingsStore(path, private=private)
            store.put([ReadingRecord(time=1.0, request="r", texts=("p", "a"))])
            store.close()
            assert rights(path) == after
        assert [r.getMessage() for r in caplog.records if "could be read" in r.getMessage()] == [
            f"{tmp_path / 'b'} could be read by others (644); its owner alone can now, since texts are kept."
        ]


class TestTheFolderOfUploads:
    def test_is_made_for_its_owner_alone_and_left_as_it_is_where_it_was_there(
        self, model: Model, tmp_path: Path
    ) -> None:
        (tmp_path / "there").mkdir(mode=0o750)
        for name, mode in (("new", "0o700"), ("there", "0o750")):
            with serving.running(model, uploads=tmp_path / name):
                assert rights(tmp_path / name) == mode


class TestAWebhook:
    def test_is_read_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "hook").write_text("https://hooks.example/secret\n")
        assert read_webhook(None, tmp_path / "hook") == "https://hooks.example/secret"
        assert read_webhook("http://a", None) == "http://a"
        assert read_webhook(None, None) is None
        check_options(ServerOptions(webhook_file=tmp_path / "hook"))

    @pytest.mark.parametrize(
        ("url", "text", "says"),
        [
            ("http://secret", "http://secret", "There are two addresses"),
            (None, "ftp://secret", "has to begin with http:// or https://"),
            (None, "", "has to begin with http:// or https://"),
            (None, "https://secret\nhttps://secret2", "has to begin with"),
            (None, None, r"Cannot read `webhook_file` .*hook: No such file"),
            ("gopher://secret", None, "`webhook` has to begin with"),
        ],
    )
    def test_that_is_none_is_refused_without_being_told(
        self, tmp_path: Path, url: str | None, text: str | None, says: str
    ) -> None:
        if text is not None:
            (tmp_path / "hook").write_text(text)
        file = None if url and text is None else tmp_path / "hook"
        with pytest.raises(InvalidArgument, match=says) as refusal:
            read_webhook(url, file)
        assert "secret" not in str(refusal.value)

    def test_is_taken_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POISE_WEBHOOK", "ftp://secret")
        answer = CliRunner().invoke(command_line, ["serve", "--model", "no-such-model"])
        assert answer.exit_code == 2
        assert "--webhook has to begin with http:// or https://" in answer.output
        assert "secret" not in answer.output


def upload(address: str, vector: PersonaVector, header: Any = None, name: str = "new") -> httpx.Response:
    document = header if isinstance(header, str) else json.dumps(vector.header.model_dump(mode="json") | (header or {}))
    tensors = {"directions": vector.directions, "reference_norm": vector.reference_norm}
    data = save(tensors, metadata={"poise": document})
    return httpx.post(f"{address}/v1/poise/vectors", params={"name": name}, content=data)


class TestAnUploadedVector:
    def test_with_a_hostile_header_is_refused(self, model: Model, tmp_path: Path) -> None:
        vector, nested = tiny.vector(model, seed=3), '{"a": ' * 5000 + "1" + "}" * 5000
        headers = {
            "deep": nested,
            "deep inside": json.dumps(vector.header.model_dump(mode="json"))[:-1] + f', "certificate": {nested}}}',
            "not as deep": json.dumps(vector.header.model_dump(mode="json"))[:-1]
            + ', "certificate": '
            + '{"a": ' * 500
            + "1"
            + "}" * 501,
            "no verdict": {"certificate": {"layer": 1}},
            "no layer": {"certificate": {"verdict": "induced", "usable_doses": [-1, 1]}},
            "a layer in words": {"certificate": {"verdict": "induced", "layer": "one", "usable_doses": [-1, 1]}},
            "no such layer": {"certificate": {"verdict": "induced", "layer": 99, "usable_doses": [-1, 1]}},
            "doses in words": {"certificate": {"verdict": "induced", "layer": 1, "usable_doses": ["a", "b"]}},
            "half a character": {"certificate": {"verdict": "\ud800", "layer": 1, "usable_doses": [-1, 1]}},
            "monitoring of a wrong type": {
                "certificate": {"verdict": "induced", "layer": 1, "usable_doses": [-1, 1], "monitoring": [1]}
            },
        }
        with serving.running(model, policy=serving.uploading(tmp_path)) as (address, _):
            for what, header in headers.items():
                answer = upload(address, vector, header)
                assert answer.status_code == 400, (what, answer.text)
                assert answer.json()["error"]["code"] == "invalid_vector"
            endless = {"certificate": {"verdict": "induced", "layer": 1, "usable_doses": [-1, 1e999]}}
            assert upload(address, vector, endless, "endless").json()["certificate"]["usable_doses"] == [-1, None]
            assert httpx.get(f"{address}/v1/poise/vectors").status_code == 200
            assert upload(address, vector).status_code == 201

    def test_with_reference_norms_that_hide_its_doses_is_refused(self, model: Model, tmp_path: Path) -> None:
        vector = tiny.vector(model, seed=3)
        loud = PersonaVector(vector.directions, vector.reference_norm * 1000, vector.header)
        with serving.running(model, policy=serving.uploading(tmp_path)) as (address, _):
            answer = upload(address, loud)
        assert answer.status_code == 400
        assert "more than 2 times those of the vectors that are here" in answer.json()["error"]["message"]

    def test_that_is_too_long_for_float32_is_refused(self, model: Model) -> None:
        vector = tiny.vector(model, seed=3)
        with pytest.raises(InvalidVector, match="that long"):
            PersonaVector(torch.full_like(vector.directions, 3e38), vector.reference_norm, vector.header)

    @pytest.mark.parametrize("scale", [1e37, 1e30, 1e20, 1e-20, 1e-30])
    def test_of_any_other_length_reads_as_it_should(self, model: Model, scale: float) -> None:
        plain = tiny.vector(model, seed=3)
        scaled = PersonaVector(plain.directions.double() * scale, plain.reference_norm, plain.header)
        h = torch.randn((5, tiny.D), generator=torch.Generator().manual_seed(0))
        for layer in range(tiny.L):
            assert torch.allclose(scaled.project(h, layer), plain.project(h, layer), atol=1e-5)
            assert float(scaled.unit(layer).norm()) == pytest.approx(1, abs=1e-5)
        assert torch.allclose(scaled.cosine(plain), torch.ones(tiny.L), atol=1e-5)
        assert scaled.dose(1 / scale, 1) == pytest.approx(plain.dose(1.0, 1), rel=1e-4)
        assert scaled.at("read").difference == pytest.approx(plain.at("read").difference * scale, rel=1e-4)


class TestPromptsReadBefore:
    def test_are_reused_by_the_key_that_sent_them_alone(self, model: Model, tmp_path: Path) -> None:
        """What another key has asked cannot be told from how much of a prompt is read again."""
        keys = tmp_path / "keys"
        keys.write_text("ana aaaaaaaaaaaaaaaaaaaa\nben bbbbbbbbbbbbbbbbbbbb\n")
        body = BODY | {"messages": [{"role": "user", "content": "my very secret words " * 9}]}
        tokens = len(model.encode(body["messages"]).ids)
        with serving.running(model, keys=keys) as (address, _):

            def cached(letter: str, **more: Any) -> int:
                headers = {"authorization": f"Bearer {letter * 20}"}
                answer = httpx.post(f"{address}/v1/chat/completions", json=body | more, headers=headers, timeout=30)
                usage = answer.json()["usage"]
                assert usage["prompt_tokens"] == tokens
                return int(usage["prompt_tokens_details"]["cached_tokens"])

            block = (tokens - 1) // 32 * 32
            assert block >= 32
            assert [cached("a"), cached("a"), cached("b"), cached("b")] == [0, block, 0, block]
            assert [cached("a", n=3), cached("a", poise={"steer": "up=0.2"})] == [block, block]
            assert [cached("a", poise={"steer": "up=0.2 on all"}) for _ in range(2)] == [0, block]
            metrics = httpx.get(f"{address}/metrics", headers={"authorization": f"Bearer {'a' * 20}"}).text
        assert "poise_prefix_hits_total 7.0" in metrics
        assert f"poise_prompt_tokens_reused_total {7.0 * block}" in metrics
        assert "poise_prefix_tokens " in metrics
