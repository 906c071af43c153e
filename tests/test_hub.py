"""Sharing what is on record: a stand-in of the hub's API over HTTP, places that fsspec knows, and a registry there."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

fsspec = pytest.importorskip("fsspec", reason="needs fsspec (extra data)")
pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")

import tiny  # noqa: E402
from poise import vector as vectors  # noqa: E402
from poise.errors import EndpointUnavailable, InvalidRegistry, OutputExists, SaveFailed  # noqa: E402
from poise.lifecycle.hub_exchange import pull_artefact, push_artefact  # noqa: E402
from poise.lifecycle.registry import Registry  # noqa: E402
from poise.lifecycle.registry_check import check_registry  # noqa: E402

TOKEN = "hf_stand_in_0123456789"


class StandInHub:
    """Repositories in memory, behind the part of the hub's API that its client uses."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refuses = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for key, value in {"content-length": str(len(body)), **(headers or {})}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length") or 0))
                if hub.refuses or self.headers.get("authorization") != f"Bearer {TOKEN}":
                    self.reply(hub.refuses or 401, b'{"error": "no"}')
                    return
                parts = self.path.strip("/").split("/")
                if self.path == "/api/repos/create":
                    body = json.loads(data)
                    name = f"{body.get('organization') or 'ada'}/{body['name']}"
                    hub.repositories.setdefault(name, {})
                    self.reply(200, json.dumps({"url": f"{hub.url}/{name}", "name": name}).encode())
                elif "preupload" in parts:
                    files = [
                        {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for one in json.loads(data)["files"]
                    ]
                    self.reply(200, json.dumps({"files": files}).encode())
                elif "commit" in parts:
                    name = "/".join(parts[2:4])
                    for line in data.decode().splitlines():
                        entry = json.loads(line)
                        if entry["key"] == "file":
                            hub.repositories[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                    answer = {
                        "success": True,
                        "commitOid": "0" * 40,
                        "commitUrl": f"{hub.url}/{name}/commit/{'0' * 40}",
                    }
                    self.reply(200, json.dumps(answer).encode())
                else:
                    self.reply(200, b"{}")

            def do_GET(self) -> None:
                parts = unquote(self.path.partition("?")[0]).strip("/").split("/")
                if hub.refuses:
                    self.reply(hub.refuses, b"{}")
                elif len(parts) > 4 and parts[2] == "resolve":
                    content = hub.repositories.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
                    if content is None:
                        code = "EntryNotFound" if "/".join(parts[:2]) in hub.repositories else "RepoNotFound"
                        self.reply(404, b"", {"x-error-code": code})
                        return
                    etag = hashlib.sha1(content).hexdigest()
                    self.reply(200, content, {"etag": f'"{etag}"', "x-repo-commit": "0" * 40})
                else:
                    known = "/".join(parts[2:4]) in hub.repositories
                    self.reply(
                        200 if known else 404, b'{"siblings": []}', {} if known else {"x-error-code": "RepoNotFound"}
                    )

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    stand_in = StandInHub()
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A vector without a certificate, under a licence."""
    vectors.save_vector(tiny.vector(tiny.model(), seed=1), tmp_path / "up.safetensors")
    opened = Registry(tmp_path / "registry")
    opened.add(str(tmp_path / "up.safetensors"), facts={"licence": "apache-2.0"}, by="ada")
    return opened


class TestTheHub:
    def test_takes_what_comes_back_as_it_was(self, registry: Registry, hub: StandInHub, tmp_path: Path) -> None:
        sent = push_artefact(registry, "up", "ada/up", uncertified=True, endpoint=hub.url, token=TOKEN)
        assert sent.place == f"{hub.url}/ada/up"
        files = hub.repositories["ada/up"]
        assert set(files) == {"up.safetensors", "README.md", "poise-record.json"}
        assert files["README.md"].decode().startswith("---\n")
        assert "license: apache-2.0" in files["README.md"].decode()
        assert str(tmp_path) not in files["poise-record.json"].decode()
        fetched = pull_artefact("ada/up", tmp_path / "fetched", endpoint=hub.url)
        assert (fetched.kind, fetched.licence) == ("vector", "apache-2.0")
        assert (tmp_path / "fetched" / "up.safetensors").read_bytes() == (tmp_path / "up.safetensors").read_bytes()
        assert vectors.load_vector(tmp_path / "fetched" / "up.safetensors").layers == 4

    def test_gives_nothing_that_was_changed(self, registry: Registry, hub: StandInHub, tmp_path: Path) -> None:
        push_artefact(registry, "up", "ada/up", uncertified=True, endpoint=hub.url, token=TOKEN)
        good = hub.repositories["ada/up"]["up.safetensors"]
        hub.repositories["ada/up"]["up.safetensors"] = good[:-1] + b"x"
        with pytest.raises(InvalidRegistry, match="not what its record says"):
            pull_artefact("ada/up", tmp_path / "fetched", endpoint=hub.url)
        document = json.loads(hub.repositories["ada/up"]["poise-record.json"])
        document["record"]["files"][0]["name"] = "../../evil"
        hub.repositories["ada/up"]["poise-record.json"] = json.dumps(document).encode()
        with pytest.raises(InvalidRegistry, match="would be written elsewhere"):
            pull_artefact("ada/up", tmp_path / "fetched", endpoint=hub.url)
        hub.repositories["ada/up"]["poise-record.json"] = b"[]"
        with pytest.raises(InvalidRegistry, match="no record of Poise"):
            pull_artefact("ada/up", tmp_path / "fetched", endpoint=hub.url)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["registry", "up.safetensors"]

    def test_says_no_in_a_sentence(self, registry: Registry, hub: StandInHub, tmp_path: Path) -> None:
        with pytest.raises(EndpointUnavailable, match=r"with 401: it does not know you|no ada/up that you may see"):
            push_artefact(registry, "up", "ada/up", uncertified=True, endpoint=hub.url, token="hf_wrong")
        with pytest.raises(EndpointUnavailable, match="no no/thing that you may see"):
            pull_artefact("no/thing", tmp_path / "out", endpoint=hub.url)
        hub.refuses = 403
        with pytest.raises(EndpointUnavailable, match="403"):
            push_artefact(registry, "up", "ada/up", uncertified=True, endpoint=hub.url, token=TOKEN)

    def test_that_is_down_is_a_sentence(self, registry: Registry, tmp_path: Path) -> None:
        for work in (
            lambda: push_artefact(
                registry, "up", "ada/up", uncertified=True, endpoint="http://127.0.0.1:9", token=TOKEN
            ),
            lambda: pull_artefact("ada/up", tmp_path / "out", endpoint="http://127.0.0.1:9"),
        ):
            with pytest.raises(EndpointUnavailable, match="cannot be reached"):
                work()


class TestWhatMayBeShared:
    def test_has_a_licence_and_a_certificate(self, tmp_path: Path, registry: Registry) -> None:
        with pytest.raises(InvalidRegistry, match="has no certificate"):
            push_artefact(registry, "up", "memory://shared/none")
        bare = Registry(tmp_path / "bare")
        bare.add(str(tmp_path / "up.safetensors"), by="ada")
        with pytest.raises(InvalidRegistry, match="has no licence on record"):
            push_artefact(bare, "up", "memory://shared/none", uncertified=True)
        (tmp_path / "rows.jsonl").write_text('{"user": "a"}\n')
        registry.add(str(tmp_path / "rows.jsonl"), facts={"licence": "mit"}, by="ada")
        with pytest.raises(InvalidRegistry, match="is a data, which is not shared so"):
            push_artefact(registry, "rows", "memory://shared/none")
        with (tmp_path / "up.safetensors").open("ab") as file:
            file.write(b"x")
        with pytest.raises(InvalidRegistry, match="is not what was recorded"):
            push_artefact(registry, "up", "memory://shared/none", uncertified=True)

    def test_goes_to_any_place(self, registry: Registry, tmp_path: Path) -> None:
        for place in ("memory://shared/up", f"file://{tmp_path}/disk/up"):
            push_artefact(registry, "up", place, uncertified=True)
            out = tmp_path / place.partition(":")[0]
            pull_artefact(place, out)
            assert (out / "up.safetensors").read_bytes() == (tmp_path / "up.safetensors").read_bytes()
            with pytest.raises(OutputExists):
                pull_artefact(place, out)
        with pytest.raises(EndpointUnavailable, match="has no record of Poise"):
            pull_artefact("memory://shared/nothing", tmp_path / "x")
        with pytest.raises(InvalidRegistry, match="is no place to share at"):
            push_artefact(registry, "up", "just-a-name", uncertified=True)


class TestARegistryElsewhere:
    def test_is_one_registry_for_two(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"user": "a"}\n')
        place = f"memory://registries/{tmp_path.name}"
        first, second = Registry(place), Registry(place)
        digest, is_new = first.add(str(tmp_path / "a.jsonl"), by="ada")
        assert is_new
        again, is_new = second.add(str(tmp_path / "a.jsonl"), by="bo")
        assert (again, is_new) == (digest, False)
        first.promote("a", "candidate", by="ada")
        second.promote("a", "production", by="bo")
        third = Registry(place)
        assert [event.event.stage for event in third.events(digest)] == ["draft", "candidate", "production"]
        assert [event.event.number for event in third.events(digest)] == [1, 2, 3]
        assert check_registry(third).holds

    def test_finds_what_was_changed_there(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"user": "a"}\n')
        place = f"memory://registries/{tmp_path.name}"
        digest, _ = Registry(place).add(str(tmp_path / "a.jsonl"), by="ada")
        system = fsspec.filesystem("memory")
        path = f"/registries/{tmp_path.name}/records/{digest[:2]}/{digest}.json"
        system.pipe(path, system.cat(path).replace(b'"a"', b'"b"'))
        assert not check_registry(Registry(place)).holds

    def test_that_may_not_be_written_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.jsonl").write_text('{"user": "a"}\n')
        place = f"memory://registries/{tmp_path.name}"
        opened = Registry(place)

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "Access denied")

        monkeypatch.setattr(fsspec.filesystem("memory"), "open", refuse)
        with pytest.raises(SaveFailed, match="Cannot write to the registry memory://"):
            opened.add(str(tmp_path / "a.jsonl"), by="ada")
        with pytest.raises(InvalidRegistry, match="Protocol not known"):
            Registry("nosuch://place")


def test_the_commands_go_there_and_back(registry: Registry, tmp_path: Path) -> None:
    run = [sys.executable, "-m", "poise", "hub"]
    place = f"file://{tmp_path}/disk/up"
    refused = subprocess.run(
        [*run, "push", "up", place, "--registry", str(registry.folder)], capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "send it all the same with --uncertified" in refused.stderr
    subprocess.run([*run, "push", "up", place, "--registry", str(registry.folder), "--uncertified"], check=True)
    done = subprocess.run(
        [*run, "pull", place, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path / 'out' / 'up.safetensors'}\n"
