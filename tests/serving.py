"""A server on a free port with a tiny random model, for the tests that talk to it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tiny
from poise.model import Model
from poise.serve.server import RunningServer, ServerOptions, make_server
from poise.vector import Alarm, PersonaVector


def alarm(**changes: Any) -> Alarm:
    facts: dict[str, Any] = {
        "reading": "peak",
        "layer": 1,
        "threshold": 0.0,
        "rate": 0.01,
        "low": 0.0,
        "high": 0.05,
        "n_answers": 100,
        "n_conversations": 100,
        "answers": "own",
        "max_new_tokens": 64,
        "temperature": 1.0,
        "data": "talk.jsonl",
        "data_sha256": "0",
        "seed": 0,
    }
    return Alarm(**(facts | changes))


def vectors(model: Model) -> dict[str, PersonaVector]:
    return {"up": tiny.vector(model, seed=1), "down": tiny.vector(model, seed=2)}


def uploading(folder: Path, **rules: Any) -> Path:
    """A policy that lets everybody upload vectors."""
    path = folder / "uploading.yaml"
    path.write_text(json.dumps({"default": {"may_change_vectors": True, **rules}}))
    return path


def eventually(get: Callable[[], Any], least: float = 30.0) -> Any:
    """The first answer that is true; what a server does after it has answered takes its time."""
    end = time.monotonic() + least
    while not (found := get()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def running(
    model: Model | None = None, given: Mapping[str, PersonaVector] | None = None, **options: Any
) -> Iterator[tuple[str, RunningServer]]:
    """Its address, and the server itself."""
    loaded = model or tiny.model()
    server = make_server(
        loaded, vectors(loaded) if given is None else given, ServerOptions(port=0, grace=1.0, **options)
    )
    address = server.start()
    try:
        yield address, server
    finally:
        server.stop()
