"""Spans of requests for OpenTelemetry: where their time went, by the GenAI conventions, and nothing that they say.

Spans are made once a request is over, from the times that were noted on its way, so that nothing else has to know of
traces. Nothing of OpenTelemetry is imported before traces are wanted.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from poise.errors import MissingExtra
from poise.serve.observing import RequestRecord, steering_names
from poise.serve.responses import VERSION

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

__all__ = ["RequestTracer", "exporting_processor"]


def exporting_processor() -> SpanProcessor:
    """Sends spans in batches to where ``OTEL_EXPORTER_OTLP_ENDPOINT`` and its like say, from a thread of its own.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra.of(f"Traces need a part that is not installed ({error.name})", "otel") from error
    return BatchSpanProcessor(OTLPSpanExporter())


class RequestTracer:
    """Makes spans of requests that are over.

    Args:
        processor: What takes them.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        environment = Resource.create()
        name = str(environment.attributes["service.name"])
        unnamed = name.startswith("unknown_service")
        resource = environment.merge(
            Resource({"service.name": "poise" if unnamed else name, "service.version": VERSION})
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("poise.serve", VERSION)
        self._propagator = TraceContextTextMapPropagator()

    def trace(self, record: RequestRecord) -> None:
        """Make the spans of a request, below the caller's where it named one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        if not record.is_logged:
            return
        carrier = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        span = self._tracer.start_span(
            f"{record.method} {record.route}",
            self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=_present(
                {
                    "http.request.method": record.method,
                    "http.route": record.route,
                    "http.response.status_code": record.status or None,
                    "client.address": record.client,
                    "error.type": record.error,
                    "poise.request_id": record.request_id,
                    "poise.key": record.key,
                }
            ),
            start_time=_nanoseconds(record, record.began),
        )
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR, record.error))
        if record.exchange:
            self._trace_answers(record, set_span_in_context(span))
        span.end(_nanoseconds(record, record.began + record.seconds))

    def _trace_answers(self, record: RequestRecord, parent: Context) -> None:
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        if (exchange := record.exchange) is None:
            return
        times, attributes = exchange.times, _answer_attributes(record)
        end = times.ended or record.began + record.seconds
        name = f"{attributes['gen_ai.operation.name']} {attributes['gen_ai.request.model']}"
        opened = _nanoseconds(record, times.opened)
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=opened)
        if exchange.failure:
            span.set_status(Status(StatusCode.ERROR, exchange.failure))
        below = set_span_in_context(span)
        for stage, began, ended in (
            ("queue", times.submitted, times.began or end),
            ("read prompt", times.began, times.first_token or end),
            ("generate", times.first_token, end),
        ):
            if began is not None:
                child = self._tracer.start_span(stage, below, start_time=_nanoseconds(record, began))
                child.end(_nanoseconds(record, max(began, ended)))
        span.end(_nanoseconds(record, end))

    def close(self, wait: float = 5.0) -> None:
        """Send what waits, and end; a collector that does not answer is not waited for longer."""
        ending = threading.Thread(target=self._provider.shutdown, name="poise-traces", daemon=True)
        ending.start()
        ending.join(wait)


def _nanoseconds(record: RequestRecord, moment: float) -> int:
    """Nanoseconds since 1970 of a moment on the monotonic clock."""
    return round((record.time + moment - record.began) * 1e9)


def _answer_attributes(record: RequestRecord) -> dict[str, Any]:
    """By the semantic conventions for generative AI, and our own beside them."""
    if (exchange := record.exchange) is None:
        return {}
    plan, body = exchange.plan, exchange.body
    alarms = [alert.facts for choice in exchange.choices for alert in choice.alerts]
    return _present(
        {
            "gen_ai.operation.name": "chat" if exchange.kind == "chat" else "text_completion",
            "gen_ai.provider.name": "poise",
            "gen_ai.request.model": body.model,
            "gen_ai.response.model": exchange.head["model"],
            "gen_ai.response.id": exchange.head["id"],
            "gen_ai.request.max_tokens": plan.requests[0].sampling.max_new_tokens,
            "gen_ai.request.temperature": body.temperature,
            "gen_ai.request.top_p": body.top_p,
            "gen_ai.request.seed": body.seed,
            "gen_ai.request.choice.count": len(exchange.choices) if len(exchange.choices) > 1 else None,
            "gen_ai.request.stream": bool(body.stream) or None,
            "gen_ai.usage.input_tokens": plan.prompt_tokens,
            "gen_ai.usage.output_tokens": exchange.completion_tokens,
            "gen_ai.response.finish_reasons": [choice.finish or "error" for choice in exchange.choices],
            "error.type": exchange.failure,
            "poise.steer": steering_names(plan.steer) or None,
            "poise.forced": steering_names(plan.policy.steer) or None,
            "poise.alarms": [f"{alarm['trait']} {alarm['reading']} {alarm['action']}" for alarm in alarms] or None,
        }
    )


def _present(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value is not None}
