"""Alarms on their way out: signed after Standard Webhooks, tried again, bounded, verified by the example receiver."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

import serving
import tiny
from poise.errors import InvalidArgument
from poise.model import Model
from poise.serve.server import ServerOptions, check_options
from poise.serve.webhook import MAX_WAITING, Webhook, read_webhook, read_webhook_secrets, webhook_signature
from test_serve_rules import chat, eventually

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # of the standard's own example, as is what it signs
POST = ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def receiver() -> ModuleType:
    path = Path(__file__).parents[1] / "deploy" / "webhook_receiver.py"
    spec = importlib.util.spec_from_file_location("webhook_receiver", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Post:
    """What came to an address."""

    def __init__(self, headers: Any, body: bytes) -> None:
        self.headers, self.body = {k.lower(): v for k, v in headers.items()}, body


@pytest.fixture
def hook() -> Iterator[tuple[str, list[Post], list[int]]]:
    """An address, what came to it, and the statuses that it is to answer first."""
    posts: list[Post] = []
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(Post(self.headers, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(statuses.pop(0) if statuses else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/alarms", posts, statuses
    server.shutdown()
    server.server_close()


class TestASignature:
    def test_is_that_of_the_standard(self, receiver: ModuleType) -> None:
        [key] = secrets_of(SECRET)
        assert webhook_signature(key, *POST) == SIGNATURE
        headers = {"webhook-id": POST[0], "webhook-timestamp": POST[1], "webhook-signature": f"v1,old {SIGNATURE}"}
        receiver.verify(SECRET, headers, POST[2], now=1614265330 + 299)

    @pytest.mark.parametrize(
        ("changes", "body", "later"),
        [
            ({}, b'{"test": 2432232315}', 0),
            ({"webhook-id": "msg_other"}, POST[2], 0),
            ({"webhook-timestamp": "1614265331"}, POST[2], 0),
            ({"webhook-timestamp": "soon"}, POST[2], 0),
            ({"webhook-signature": ""}, POST[2], 0),
            ({"webhook-signature": "v1,\xe9"}, POST[2], 0),
            ({}, POST[2], 301),
            ({}, POST[2], -301),
        ],
    )
    def test_fits_nothing_else(self, receiver: ModuleType, changes: dict[str, str], body: bytes, later: int) -> None:
        headers = {"webhook-id": POST[0], "webhook-timestamp": POST[1], "webhook-signature": SIGNATURE} | changes
        with pytest.raises(receiver.WrongSignature):
            receiver.verify(SECRET, headers, body, now=1614265330 + later)


def secrets_of(text: str, path: Path | None = None) -> tuple[bytes, ...]:
    if path is None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POISE_WEBHOOK_SECRET", text)
            return read_webhook_secrets(None)
    path.write_text(text)
    return read_webhook_secrets(path)


class TestSecrets:
    def test_come_from_a_file_or_the_environment(self, tmp_path: Path) -> None:
        [key] = secrets_of(SECRET)
        assert secrets_of(f"\n{SECRET}\n", tmp_path / "secret") == (key,)
        assert len(secrets_of(f"{SECRET}\nwhsec_{'A' * 32}\n", tmp_path / "secret")) == 2
        assert secrets_of("") == ()

    @pytest.mark.parametrize(
        "text",
        ["", "hunter2", "whsec_hunter2", "whsec_", f"{SECRET}\nhunter2", f"whsec_{'A' * 88}", f"whsec_{'é' * 32}"],
    )
    def test_that_are_none_are_refused_without_being_told(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InvalidArgument, match=r"secret.*whsec_") as refusal:
            secrets_of(text, tmp_path / "secret")
        assert "hunter2" not in str(refusal.value)

    def test_without_an_address_or_a_file_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text(SECRET)
        with pytest.raises(InvalidArgument, match="signed for a webhook"):
            check_options(ServerOptions(webhook_secret_file=tmp_path / "secret"))
        with pytest.raises(InvalidArgument, match=r"`webhook_secret_file` .*none: No such file"):
            check_options(ServerOptions(webhook="http://a", webhook_secret_file=tmp_path / "none"))

    def test_are_not_shown(self) -> None:
        webhook = Webhook(url="http://127.0.0.1:9/", secrets=secrets_of(SECRET))
        webhook.close()
        assert repr(secrets_of(SECRET)[0]) not in repr(webhook)

    @pytest.mark.parametrize("url", ["http://", "https:///x", "http://[::1", "http://a:b/", "http://a b"])
    def test_no_address_is_taken_that_cannot_be_posted_to(self, url: str) -> None:
        with pytest.raises(InvalidArgument, match="has to begin with http"):
            read_webhook(url, None)


class TestAnAlarm:
    def test_is_verified_by_the_example_and_keeps_its_id_when_tried_again(
        self, model: Model, hook: tuple[str, list[Post], list[int]], receiver: ModuleType, tmp_path: Path
    ) -> None:
        url, posts, statuses = hook
        statuses[:] = [500]
        secret_file = tmp_path / "secret"
        secret_file.write_text(f"{SECRET}\nwhsec_{'A' * 32}\n")
        given = serving.vectors(model)
        given["up"] = given["up"].with_alarms([serving.alarm(reading="prompt", threshold=-1e6)])
        with serving.running(model, given, webhook=url, webhook_secret_file=secret_file) as (address, server):
            assert server.service.webhook
            server.service.webhook.pause = 0.02
            chat(address)
            eventually(lambda: server.service.webhook and server.service.webhook.sent)
            assert server.service.webhook.failures == 1
        assert len(posts) == 2
        for post in posts:
            for secret in (SECRET, f"whsec_{'A' * 32}"):
                receiver.verify(secret, post.headers, post.body)
            with pytest.raises(receiver.WrongSignature):
                receiver.verify(f"whsec_{'B' * 32}", post.headers, post.body)
        assert posts[0].headers["webhook-id"] == posts[1].headers["webhook-id"]
        alarm = json.loads(posts[0].body)
        assert (alarm["type"], alarm["trait"], alarm["action"]) == ("poise.alarm", "up", "note")
        assert "haircut" not in posts[0].body.decode()

    def test_without_a_secret_is_posted_unsigned(self, hook: tuple[str, list[Post], list[int]]) -> None:
        url, posts, _ = hook
        webhook = Webhook(url=url)
        webhook.put({"trait": "up"})
        eventually(lambda: webhook.sent)
        webhook.close()
        assert "webhook-signature" not in posts[0].headers
        assert posts[0].headers["content-type"] == "application/json"

    def test_waits_as_long_as_the_receiver_wants(self, hook: tuple[str, list[Post], list[int]]) -> None:
        answer = httpx.Response(429, headers={"retry-after": "7"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(httpx.Client, "post", lambda *a, **k: answer)
            webhook = Webhook(url="http://a/", pause=0.0)
            waits: list[float] = []
            patch.setattr(webhook._closing, "wait", lambda seconds: bool(waits.append(seconds)))
            webhook.put({"trait": "up"})
            eventually(lambda: webhook.lost)
            webhook.close()
        assert waits == [7.0] * 6

    def test_is_given_up_where_too_many_wait(self, caplog: pytest.LogCaptureFixture) -> None:
        webhook = Webhook(url="http://127.0.0.1:9/", pause=60.0)
        began = time.monotonic()
        for number in range(MAX_WAITING + 12):
            webhook.put({"number": number})
        assert time.monotonic() - began < 60  # nobody waited
        assert webhook.lost >= 11  # one may be on its way
        assert next(r.getMessage() for r in caplog.records if "given up" in r.getMessage()) == (
            "1000 alarms wait for the webhook already, and one more is given up (1 so far)."
        )
        webhook.close(wait=0.1)


def test_the_example_says_what_came_and_refuses_the_others(
    receiver: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver.Receiver, "secret", SECRET)
    server = ThreadingHTTPServer(("127.0.0.1", 0), receiver.Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    webhook = Webhook(url=url, secrets=secrets_of(SECRET))
    try:
        webhook.put({"trait": "evil", "reading": "peak", "value": 1.5, "action": "cap"})
        eventually(lambda: webhook.sent)
        assert httpx.post(url, json={"trait": "forged"}).status_code == 401
    finally:
        webhook.close()
        server.shutdown()
        server.server_close()
    assert capsys.readouterr().out == "alarm: evil peak 1.50 cap\n"
