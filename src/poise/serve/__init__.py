"""An OpenAI-compatible server that watches, steers and warns. It parses, calls the rooms below, and renders.

From the model up:

    scheduler        the one thread that owns the model: requests in, outputs out
    alarm_policy     alarms of an answer while it is generated, and what is done about them
    vector_registry  the vectors that requests may name
    policy           what a key may do and what is done to its answers
    readings_db      readings and alarms on disk
    metrics          counters for Prometheus
    webhook          alarms to an address
    requests         request bodies of the API
    responses        response bodies of the API, as its description has them
    planning         a request body to requests of the engine
    rendering        outputs of the engine to response bodies
    page_data        vectors and readings as the page shows them
    auth             keys, limits and headers, before any route
    service          the parts together, and the life of one request
    observing        what is told of a request once it is over
    access_log       to a file, a line each
    tracing          to OpenTelemetry, as spans
    gauges           the state of the parts, for Prometheus
    app              the routes
    reload           keys, rules and vectors read again
    http_server      uvicorn's server, drained in order
    server           the process: start, stop, shut down
"""

from __future__ import annotations
