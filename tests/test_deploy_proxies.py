"""nginx and Caddy, really run with the files of deploy/, in front of a server: streams, limits, addresses."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny
from poise.serve.server import RunningServer
from test_serve_faults import BODY
from test_serve_rules import eventually

DEPLOY = Path(__file__).parents[1] / "deploy"
PROXIES = ["nginx", "caddy"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def nginx(folder: Path, port: int, upstream: str) -> tuple[list[str], dict[str, str]]:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in (
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("/etc/ssl/poise/fullchain.pem", str(folder / "cert.pem")),
        ("/etc/ssl/poise/privkey.pem", str(folder / "key.pem")),
        ("server 127.0.0.1:8000;", f"server {upstream};"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "poise.conf").write_text(text)
    paths = "".join(
        f"  {name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder / 'pid'};\nerror_log {folder / 'errors'};\nevents {{}}\n"
        f"http {{\n{paths}  access_log off;\n  include {folder / 'poise.conf'};\n}}\n"
    )
    return ["nginx", "-e", str(folder / "errors"), "-c", str(folder / "nginx.conf")], {}


def caddy(folder: Path, port: int, upstream: str) -> tuple[list[str], dict[str, str]]:
    settings = "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n\tlocal_certs\n}\n"
    (folder / "Caddyfile").write_text(settings + (DEPLOY / "Caddyfile").read_text())
    environment = {
        "POISE_DOMAIN": f"https://localhost:{port}",
        "POISE_UPSTREAM": upstream,
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "HOME": str(folder),
    }
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"], environment


@pytest.fixture(scope="module", params=PROXIES)
def proxied(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str, RunningServer, Path]]:
    """The proxy's address, the server's own, the server, and its access log."""
    if not shutil.which(request.param) or not shutil.which("openssl"):
        pytest.skip(f"{request.param} is not here (apt-get install {request.param})")
    folder = tmp_path_factory.mktemp(request.param)
    log, port = folder / "access.jsonl", free_port()
    with serving.running(tiny.model(), access_log=log, proxies=("127.0.0.1",)) as (address, server):
        start = nginx if request.param == "nginx" else caddy
        command, environment = start(folder, port, address.removeprefix("http://"))
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
        try:
            url = f"https://localhost:{port}"

            def answers() -> bool:
                assert process.poll() is None, (folder / "output").read_text()
                try:
                    return httpx.get(f"{url}/healthz", verify=False).status_code in (200, 421)
                except httpx.TransportError:
                    return False

            eventually(answers, 30)
            yield url, address, server, log
        finally:
            process.terminate()
            process.wait(20)


def client(url: str, source: str = "127.0.0.1") -> httpx.Client:
    transport = httpx.HTTPTransport(verify=False, local_address=source)
    return httpx.Client(base_url=url, transport=transport, timeout=30)


class OneStepAtATime:
    """A server whose model takes a step only where it is let."""

    def __init__(self, server: RunningServer) -> None:
        self.engine = server.service.scheduler.engine
        self.steps, self.step = threading.Semaphore(0), self.engine.step
        self.engine.step = self.held  # type: ignore[method-assign]

    def held(self) -> Any:
        assert self.steps.acquire(timeout=30)
        return self.step()

    def end(self) -> None:
        self.engine.step = self.step  # type: ignore[method-assign]
        self.steps.release(1000)


def test_tokens_go_through_as_they_come(proxied: Any) -> None:
    url, _, server, _ = proxied
    model, texts = OneStepAtATime(server), []
    body = {**BODY, "max_tokens": 40, "stream": True}
    try:
        model.steps.release(20)  # and no further, until some text has come through
        with client(url) as session, session.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    [choice] = json.loads(line.removeprefix("data: "))["choices"]
                    texts.append(choice["delta"].get("content", ""))
                    if texts[-1]:
                        model.steps.release(40)
    finally:
        model.end()
    assert sum(map(bool, texts)) > 1  # the first of them while the model was held


def test_a_client_that_hangs_up_frees_its_place(proxied: Any) -> None:
    url, _, server, _ = proxied
    model = OneStepAtATime(server)
    try:
        with client(url) as session, session.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}):
            eventually(lambda: server.service.scheduler.waiting or server.service.scheduler.running)
        model.steps.release(3)
        eventually(lambda: server.service.scheduler.idle)
    finally:
        model.end()


@pytest.mark.parametrize(
    ("path", "size", "statuses"),
    [
        ("/v1/chat/completions", 2**22 + 1, {413}),
        ("/v1/chat/completions", 2**22 - 100, {400}),
        ("/v1/poise/vectors?name=x", 2**22 + 1, {403}),  # as far as Poise, which takes none
        ("/v1/poise/vectors?name=x", 2**25 + 1, {403, 413}),
    ],
)
def test_bodies_have_the_limits_of_the_server(proxied: Any, path: str, size: int, statuses: set[int]) -> None:
    url, _, _, _ = proxied
    with client(url) as session:
        try:
            assert session.post(path, content=b" " * size).status_code in statuses
        except httpx.TransportError:
            assert 413 in statuses  # closed while more was being sent
        assert session.get("/readyz").status_code == 200


def test_only_the_proxy_s_word_counts_for_who_asked(proxied: Any) -> None:
    url, address, _, log = proxied
    before = len(log.read_text().splitlines())
    for base in (url, address):
        with client(base, source="127.0.0.5") as session:
            forged = {"x-forwarded-for": "203.0.113.9", "forwarded": "for=203.0.113.9"}
            assert session.get("/v1/models", headers={**forged, "host": re.sub("https?://", "", base)}).is_success
    eventually(lambda: len(log.read_text().splitlines()) == before + 2)
    lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    assert [line["client"] for line in lines] == ["127.0.0.5", "127.0.0.5"]


def test_metrics_are_not_for_the_world(proxied: Any) -> None:
    url, address, _, _ = proxied
    with client(url) as session:
        assert session.get("/metrics").status_code == 404
        assert session.get("/readyz").status_code == 200
    assert httpx.get(f"{address}/metrics").status_code == 200
