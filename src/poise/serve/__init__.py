"""An OpenAI-compatible server that watches, steers and warns. It parses, asks the rooms below, and renders.

From the model up:

    scheduler   the one thread that owns the model: jobs in, what was said out
    guard       alarms of an answer while it is generated, and what is done about them
    shelf       the vectors that requests may name
    policy      what a key may do and what is done to its answers
    store       readings and alarms on disk
    metrics     counters for Prometheus
    webhook     alarms to somebody's address
    wire        the requests and answers of the API
    asked       a request to jobs
    answer      what was said to an answer
    security    keys, limits and headers, before any route
    app         the routes
    run         the process: start, stop, shut down
"""

from __future__ import annotations
