"""What a server refuses: strangers, floods, and anything that is not what it says."""

from __future__ import annotations

import contextlib
import json
import pickle
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import poise.serve
import serving
import tiny
from poise.cli import app as command_line
from poise.errors import InvalidArgument
from poise.model import Model
from poise.serve.auth import ApiKeys, is_loopback
from poise.serve.request_body import BodyLimits, check_body
from poise.serve.server import RunningServer, ServerOptions, check_options

KEY = "k" * 24
CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def locked(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"ana {KEY}\n")
    with serving.running(model, keys=path, cors=("https://friend.example",)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def server(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, RunningServer]]:
    with serving.running(model, policy=serving.uploading(tmp_path_factory.mktemp("policy"))) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: tuple[str, RunningServer]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server[0], timeout=30) as found:
        yield found


class TestKeys:
    @pytest.mark.parametrize(
        "header",
        [
            None,
            "",
            "Bearer",
            f"Bearer {KEY[:-1]}",
            f"Bearer {KEY}k",
            f"Bearer {KEY[:-1]}K",
            f"Basic {KEY}",
            KEY,
        ],
    )
    @pytest.mark.parametrize(
        "path", ["/v1/models", "/v1/poise/vectors", "/v1/poise/readings", "/metrics", "/openapi.json"]
    )
    def test_that_are_missing_wrong_or_nearly_right_open_nothing(self, locked: str, path: str, header: str) -> None:
        found = httpx.get(locked + path, headers={} if header is None else {"authorization": header})
        assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")
        assert found.headers["www-authenticate"] == "Bearer"
        assert KEY not in found.text

    def test_open_everything_when_they_are_right(self, locked: str) -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        assert httpx.get(f"{locked}/v1/models", headers=headers).status_code == 200
        assert httpx.post(locked + CHAT, json=ASK, headers=headers).status_code == 200

    def test_are_not_needed_for_the_page_and_the_pulse(self, locked: str) -> None:
        assert [httpx.get(locked + p).status_code for p in ("/healthz", "/readyz")] == [200, 200]
        assert httpx.get(f"{locked}/page/nothing.js").status_code == 404

    @pytest.mark.parametrize("text", ["", "# none\n", "short\n", "a b c\n", f"ana {KEY}\nana {KEY}x\n"])
    def test_in_a_file_that_makes_no_sense_are_refused_without_being_told(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "keys").write_text(text)
        with pytest.raises(InvalidArgument) as caught:
            ApiKeys.read(tmp_path / "keys")
        assert KEY not in str(caught.value)

    def test_without_a_name_are_named_by_their_line(self, tmp_path: Path) -> None:
        (tmp_path / "keys").write_text(f"# mine\n{KEY}\n")
        keys = ApiKeys.read(tmp_path / "keys")
        assert keys.find(f"bearer {KEY}") == "key-2"
        assert keys.find(None) is None


class TestListening:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org"])
    def test_beyond_this_machine_needs_a_key(self, host: str) -> None:
        with pytest.raises(InvalidArgument, match="no key"):
            check_options(ServerOptions(host=host))
        assert not is_loopback(host)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
    def test_on_this_machine_does_not(self, host: str) -> None:
        check_options(ServerOptions(host=host))

    def test_is_refused_before_a_model_is_loaded(self) -> None:
        found = CliRunner().invoke(command_line, ["serve", "--model", "no-such-model", "--host", "0.0.0.0"])
        assert found.exit_code == 2
        assert "--api-key-file" in found.output


class TestTheCommand:
    @pytest.mark.parametrize(
        ("given", "says"),
        [
            (["--vector", "none.safetensors"], "no vector file at none.safetensors"),
            (["--vector", "a=x", "--vector", "a=y"], "Two vectors are called a"),
            (["--policy", "none.yaml"], "Cannot read the settings none.yaml"),
            (["--api-key-file", "none"], "Cannot read the key file"),
            (["--webhook", "ftp://x"], "--webhook"),
        ],
    )
    def test_says_what_to_mend_before_a_model_is_loaded(self, given: list[str], says: str) -> None:
        found = CliRunner().invoke(command_line, ["serve", "--model", "no-such-model", *given])
        assert found.exit_code == 2
        assert says in found.output

    def test_names_the_extra_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "poise.serve.server")
        monkeypatch.delattr(poise.serve, "server")
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        found = CliRunner().invoke(command_line, ["serve", "--model", "no-such-model"])
        assert (found.exit_code, "pip install -e '.[serve]'" in found.output) == (2, True)


class TestPagesOfOthers:
    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
    def test_may_not_ask(self, client: httpx.Client, origin: str) -> None:
        found = client.post(CHAT, json=ASK, headers={"origin": origin})
        assert (found.status_code, found.json()["error"]["code"]) == (403, "origin")
        assert "access-control-allow-origin" not in found.headers

    def test_may_ask_when_they_are_named(self, locked: str) -> None:
        friend = {"origin": "https://friend.example", "access-control-request-method": "POST"}
        flight = httpx.options(locked + CHAT, headers=friend)
        assert (flight.status_code, flight.headers["access-control-allow-origin"]) == (204, "https://friend.example")
        found = httpx.get(f"{locked}/v1/models", headers={**friend, "authorization": f"Bearer {KEY}"})
        assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, "https://friend.example")
        stranger = {**friend, "origin": "https://evil.example"}
        assert httpx.options(locked + CHAT, headers=stranger).status_code == 403

    def test_do_not_get_in_by_another_name_of_this_machine(self, client: httpx.Client) -> None:
        found = client.get("/v1/models", headers={"host": "rebound.example:8000"})
        assert (found.status_code, found.json()["error"]["code"]) == (421, "host")

    def test_are_the_servers_own_where_the_origin_is_its_own(self, server: tuple[str, RunningServer]) -> None:
        assert httpx.post(server[0] + CHAT, json=ASK, headers={"origin": server[0]}).status_code == 200


class TestEveryAnswer:
    @pytest.mark.parametrize("path", ["/", "/healthz", "/v1/models", "/none", "/page/x.js"])
    def test_has_headers_that_keep_a_browser_strict(self, client: httpx.Client, path: str) -> None:
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def raw(address: str, request: bytes) -> bytes:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        out = b""
        with contextlib.suppress(ConnectionResetError):  # it need not hear all of a request that it has refused
            while part := connection.recv(65536):
                out += part
    return out


class TestBadInput:
    def refused(self, found: httpx.Response, status: int = 400) -> str:
        assert found.status_code == status, found.text
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}
        return str(found.json()["error"]["message"])

    def post(self, client: httpx.Client, content: bytes, kind: str = "application/json") -> httpx.Response:
        return client.post(CHAT, content=content, headers={"content-type": kind})

    def test_of_ten_megabytes_is_not_taken(self, client: httpx.Client) -> None:
        assert "at most 4194304" in self.refused(self.post(client, b'{"a": "' + b"x" * 10_000_000 + b'"}'), 413)

        def endless() -> Iterator[bytes]:
            for _ in range(160):
                yield b" " * 65536

        found = client.post(CHAT, content=endless(), headers={"content-type": "application/json"})
        self.refused(found, 413)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"[" * 100_000, "more than 32 deep"),
            (b'{"model": ' * 40 + b"1" + b"}" * 40, "more than 32 deep"),
            (b'{"model": "\xff\xfe"}', "not UTF-8"),
            (b"", ""),
            (b"{", "not JSON"),
            (b"null", ""),
            (b"[]", ""),
            (b'{"model": NaN}', "model"),
            (json.dumps({**ASK, "temperature": float("nan")}).encode(), "temperature"),
            (json.dumps({**ASK, "temperature": float("inf")}).encode(), "temperature"),
            (json.dumps({**ASK, "max_tokens": 10**30}).encode(), "max_tokens"),
            (b'{"model": "tiny-llama", "max_tokens": ' + b"9" * 5000 + b"}", ""),
            (json.dumps({**ASK, "messages": [{"role": "user", "content": "\ud800"}]}).encode(), ""),
            (json.dumps({**ASK, "\ud800": 1}).encode(), ""),
            (json.dumps({**ASK, "poise": {"steer": "\ud800=1"}}).encode(), ""),
            (json.dumps({**ASK, "poise": {"steer": "up=1" * 5000}}).encode(), ""),
            (
                json.dumps({**ASK, "messages": [{"role": "user", "content": "a" * 50_000}]}).encode(),
                "maximum context length is 256 tokens",
            ),
            (json.dumps({**ASK, "poise": {"steer": {"terms": [{"vector": "up", "coef": 1e309}]}}}).encode(), "poise"),
        ],
    )
    def test_of_every_kind_is_refused_in_a_sentence(self, client: httpx.Client, content: bytes, says: str) -> None:
        assert says in self.refused(self.post(client, content))

    def test_of_another_content_type_is_refused(self, client: httpx.Client) -> None:
        words = self.refused(self.post(client, json.dumps(ASK).encode(), "text/plain"))
        assert "The request needs a JSON object as its body, with Content-Type: application/json." in words

    @pytest.mark.parametrize(
        "steer", ["up=1e9", "up=-1e9", "up=1e308", "up=1e999", "up=nan", "up=cap:1e999", "up@1=1e30%"]
    )
    def test_of_strength_is_refused(self, client: httpx.Client, steer: str) -> None:
        self.refused(client.post(CHAT, json={**ASK, "poise": {"steer": steer}}))

    @pytest.mark.parametrize("prompt", [[], [[]], "", [-1], [10**9], [""], ["a", ""], [["a"]]])
    def test_of_a_plain_prompt_is_refused(self, client: httpx.Client, prompt: Any) -> None:
        self.refused(client.post("/v1/completions", json={"model": "tiny-llama", "prompt": prompt, "max_tokens": 1}))

    def test_of_braces_in_a_string_is_no_depth(self) -> None:
        check_body(json.dumps({"a": "[" * 1000 + '"\\' + "{" * 1000}).encode(), BodyLimits(depth=1))

    def test_of_garbage_instead_of_http_ends_the_connection_alone(self, server: tuple[str, RunningServer]) -> None:
        assert b"400" in raw(server[0], b"\x00\xff\x01 nothing\r\n\r\n")
        long = b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n"
        assert b" 200 " not in raw(server[0], long)
        assert httpx.get(f"{server[0]}/healthz").status_code == 200


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/page/..%2f..%2f..%2fpyproject.toml",
            "/page/%2e%2e/app.py",
            "/page/../app.py",
            "/page//etc/passwd",
            "/page/index.html%00.js",
            "/page/..\\app.py",
            "/app.py",
        ],
    )
    def test_of_a_request_reach_no_file(self, server: tuple[str, RunningServer], path: str) -> None:
        out = raw(server[0], f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert out.startswith(b"HTTP/1.1 404")

    @pytest.mark.parametrize(
        "name",
        ["../up", "a/b", "..", ".", "", "a" * 65, "up.safetensors", "a b", "a\x00", "a=1", "ü", "/etc/passwd", "-a"],
    )
    def test_are_no_names_of_vectors(self, client: httpx.Client, name: str, tmp_path: Path) -> None:
        found = client.post("/v1/poise/vectors", params={"name": name}, content=b"x")
        assert (found.status_code, found.json()["error"]["param"]) == (400, "name")
        assert list(tmp_path.iterdir()) == []


class TestUploads:
    def upload(self, client: httpx.Client, content: bytes) -> httpx.Response:
        return client.post("/v1/poise/vectors", params={"name": "new"}, content=content)

    def contents(self, model: Model) -> dict[str, bytes]:
        from safetensors.torch import save

        whole = save({"directions": tiny.vector(model).directions, "reference_norm": tiny.vector(model).reference_norm})
        return {
            "a pickle": pickle.dumps({"directions": [1.0]}),
            "nothing": b"",
            "text": b"not a vector",
            "a header that is said to be huge": (2**62).to_bytes(8, "little") + b"{}",
            "a header cut short": whole[:40],
            "safetensors of something else": whole,
        }

    @pytest.mark.parametrize(
        "what",
        [
            "a pickle",
            "nothing",
            "text",
            "a header that is said to be huge",
            "a header cut short",
            "safetensors of something else",
        ],
    )
    def test_of_anything_but_a_vector_are_refused(self, client: httpx.Client, model: Model, what: str) -> None:
        found = self.upload(client, self.contents(model)[what])
        assert (found.status_code, found.json()["error"]["code"]) == (400, "invalid_vector")
        assert "/tmp" not in found.text
        assert "new" not in client.get("/v1/poise/vectors").text

    def test_that_are_too_large_are_not_read(self, client: httpx.Client) -> None:
        assert self.upload(client, b"x" * (33 * 2**20)).status_code == 413


class TestTheLog:
    def test_has_neither_prompts_nor_keys(self, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "keys").write_text(f"ana {KEY}\n")
        with caplog.at_level("DEBUG"), serving.running(model, keys=tmp_path / "keys") as (address, _):
            for key in (KEY, KEY + "x"):
                body = {**ASK, "messages": [{"role": "user", "content": "my very secret words"}]}
                httpx.post(address + CHAT, json=body, headers={"authorization": f"Bearer {key}"})
        said = "\n".join(
            f"{r.name} {r.getMessage()}" for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))
        )
        assert "secret words" not in said
        assert KEY not in said
