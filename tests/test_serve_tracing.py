"""Traces of requests by OpenTelemetry's own SDK, and nothing of it without the extra."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import serving
import tiny
from poise.model import Model
from poise.serve.server import ServerOptions, check_options
from test_serve_faults import BODY
from test_serve_rules import eventually

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def traced(model: Model) -> Iterator[tuple[str, InMemorySpanExporter]]:
    """A server whose spans stay here."""
    spans = InMemorySpanExporter()
    given = serving.vectors(model)
    given["up"] = given["up"].with_alarms([serving.alarm(reading="prompt", threshold=-1e6)])
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("poise.serve.server.exporting_processor", lambda: SimpleSpanProcessor(spans))
            address, _ = stack.enter_context(serving.running(model, given, traces=True))
        spans._stopped = False  # the check at the start has ended a processor
        yield address, spans


def spans_of(traced: tuple[str, InMemorySpanExporter], n: int, **more: Any) -> list[ReadableSpan]:
    """The spans of one chat, in the order of their beginnings."""
    address, spans = traced
    spans.clear()
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=x"} if more.pop("caller", True) else {}
    httpx.post(f"{address}/v1/chat/completions", json={**BODY, **more}, headers=headers)
    eventually(lambda: len(spans.get_finished_spans()) >= n)
    return sorted(spans.get_finished_spans(), key=lambda span: (span.start_time or 0, -(span.end_time or 0)))


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_is_told_by_its_stages(traced: tuple[str, InMemorySpanExporter], stream: bool) -> None:
    steer = {"steer": "down=10%"}
    request, chat, *stages = spans_of(traced, 5, stream=stream, seed=7, max_tokens=6, poise=steer)
    assert [span.name for span in stages] == ["queue", "read prompt", "generate"]
    assert (request.name, request.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert chat.name == "chat tiny-llama"
    assert all(format(span.context.trace_id, "032x") == TRACE for span in (request, chat, *stages))
    assert request.parent
    assert format(request.parent.span_id, "016x") == CALLER
    assert request.context.trace_state.get("vendor") == "x"
    assert chat.parent == request.context
    assert all(stage.parent == chat.context for stage in stages)
    ends = [(span.start_time or 0, span.end_time or 0) for span in (request, chat, *stages)]
    assert all(start <= end for start, end in ends)
    assert ends[0][0] <= ends[1][0]
    assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(ends[2:]))
    assert chat.attributes
    told = dict(chat.attributes)
    assert told.pop("gen_ai.response.id", "").startswith("chatcmpl-")  # type: ignore[union-attr]
    assert told.pop("gen_ai.usage.input_tokens", 0) > 5  # type: ignore[operator]
    assert told.pop("gen_ai.request.stream", False) is stream
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "poise",
        "gen_ai.request.model": "tiny-llama",
        "gen_ai.response.model": "tiny-llama",
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.response.finish_reasons": ("length",),
        "poise.steer": ("down",),
        "poise.alarms": ("up prompt note",),
    }
    assert request.attributes
    assert request.attributes["http.response.status_code"] == 200
    assert str(request.attributes["poise.request_id"]).startswith("req_")
    assert request.resource.attributes["service.name"] == "poise"


def test_no_span_has_a_text(traced: tuple[str, InMemorySpanExporter]) -> None:
    spans = spans_of(traced, 5, stop=["zebra"], user="somebody")
    for text in ("boats", "zebra", "somebody"):
        assert not any(text in span.to_json() for span in spans)


def test_a_refusal_is_one_span_and_a_trace_of_its_own(traced: tuple[str, InMemorySpanExporter]) -> None:
    [request] = spans_of(traced, 1, model="other", caller=False)
    assert request.parent is None
    assert request.attributes
    assert (request.attributes["http.response.status_code"], request.attributes["error.type"]) == (
        404,
        "model_not_found",
    )
    assert request.status.status_code is StatusCode.UNSET  # the caller's fault, by the conventions


def test_a_large_seed_and_a_wrong_header_do_no_harm(traced: tuple[str, InMemorySpanExporter]) -> None:
    address, spans = traced
    spans.clear()
    body = {**BODY, "seed": 2**63 - 1}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body, headers={"traceparent": b"00-zz-\xe9"})
    assert answer.status_code == 200
    eventually(lambda: len(spans.get_finished_spans()) == 5)


def test_the_pulse_is_not_traced(traced: tuple[str, InMemorySpanExporter]) -> None:
    address, spans = traced
    spans.clear()
    assert httpx.get(f"{address}/readyz").status_code == 200
    assert httpx.get(f"{address}/v1/models").status_code == 200
    eventually(lambda: spans.get_finished_spans())
    assert [span.name for span in spans.get_finished_spans()] == ["GET /v1/models"]


def test_spans_are_sent_to_the_collector_that_the_environment_names(
    model: Model, monkeypatch: pytest.MonkeyPatch, httpserver_port: tuple[int, list[bytes]]
) -> None:
    port, bodies = httpserver_port
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "poise-in-a-test")
    check_options(ServerOptions(port=0, traces=True))
    with serving.running(model, traces=True) as (address, _):
        assert httpx.post(f"{address}/v1/chat/completions", json=BODY).status_code == 200
    assert any(b"poise-in-a-test" in body and b"chat tiny-llama" in body for body in bodies)


@pytest.fixture
def httpserver_port() -> Iterator[tuple[int, list[bytes]]]:
    import gzip
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    bodies: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            bodies.append(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, bodies
    server.shutdown()
    server.server_close()


def test_nothing_is_imported_without_the_extra() -> None:
    program = (
        "import sys\n"
        "for name in ('opentelemetry.sdk', 'opentelemetry.exporter'): sys.modules[name] = None\n"
        "from poise.errors import MissingExtra\n"
        "from poise.serve.server import ServerOptions, check_options\n"
        "check_options(ServerOptions(port=0))\n"
        "try: check_options(ServerOptions(port=0, traces=True))\n"
        "except MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Traces need a part that is not installed" in done.stdout
    assert "otel" in done.stdout
