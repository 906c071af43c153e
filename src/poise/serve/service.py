"""Everything that a server is made of, and the life of one request in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from poise.errors import NonFiniteActivation, RequestError, UserError
from poise.model import Model
from poise.serve.alarm_policy import Guard, Heard
from poise.serve.metrics import Metrics
from poise.serve.planning import Plan, plan
from poise.serve.policy import Policies
from poise.serve.readings_db import Record, Store
from poise.serve.rendering import Choice, Kind, summary
from poise.serve.requests import Asked, ChatRequest
from poise.serve.scheduler import NEVER, Scheduler, Ticket
from poise.serve.vector_registry import Shelf
from poise.serve.webhook import Webhook

__all__ = ["Exchange", "Service"]

log = logging.getLogger("poise.serve")


@dataclass(frozen=True, slots=True)
class Service:
    """A server's parts.

    Attributes:
        model: Who answers.
        name: What requests call it.
        scheduler: Runs it.
        shelf: Vectors.
        policies: By key.
        store: Readings.
        metrics: Counters.
        webhook: Who hears of alarms.
        deadline: Seconds that an answer may take, waiting included.
        log_text: Keep prompts and answers in the store.
        began: When the server was started, seconds since 1970.
    """

    model: Model
    name: str
    scheduler: Scheduler
    shelf: Shelf
    policies: Policies
    store: Store
    metrics: Metrics = field(default_factory=Metrics)
    webhook: Webhook | None = None
    deadline: float = NEVER
    log_text: bool = False
    began: int = field(default_factory=lambda: int(time.time()))

    def open(self, asked: Asked, key: str | None) -> Exchange:
        """Check a request and begin to answer it.

        Raises:
            RequestError: it cannot be answered, or not now.
        """
        found = plan(asked, self.model, self.name, self.shelf, self.policies.of(key))
        kind: Kind = "chat" if isinstance(asked, ChatRequest) else "text"
        exchange = Exchange(self, found, kind, key, asked)
        try:
            self.scheduler.submit(exchange.tickets)
        except UserError as error:
            raise RequestError(400, str(error), code="invalid_request") from error
        self.metrics.tokens.labels("prompt").inc(found.prompt_tokens)
        return exchange


class Exchange:
    """A request and its answers, as they come. It belongs to the event loop that made it.

    Attributes:
        head: Id, created and model, as every answer and chunk has them.
        choices: As far as they have come.
    """

    def __init__(self, service: Service, plan: Plan, kind: Kind, key: str | None, asked: Asked) -> None:
        self.service, self.plan, self.kind, self.key, self.asked = service, plan, kind, key, asked
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        self.head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.name,
        }
        self.choices = [Choice(index, plan, kind) for index in range(len(plan.jobs))]
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[tuple[int, Heard]] = asyncio.Queue()
        self._began = time.monotonic()
        self._spoken = self._closed = False
        deadline = self._began + service.deadline
        self.tickets = [
            Ticket(job, Guard(plan.watched, plan.policy, plan.pushes), self._sink(index), deadline)
            for index, job in enumerate(plan.jobs)
        ]

    def _sink(self, index: int) -> Any:
        def sink(heard: Heard) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._heard.put_nowait, (index, heard))

        return sink

    async def steps(self) -> AsyncGenerator[tuple[Choice, Heard]]:
        """What is said, step by step, until all answers are over. Leaving early gives the slots back at once.

        Raises:
            RequestError: an answer failed; the others of the request end with it.
        """
        waiting = len(self.choices)
        try:
            while waiting:
                index, heard = await self._heard.get()
                if heard.said.error is not None:
                    raise self._failed(heard.said.error)
                choice = self.choices[index]
                choice.hear(heard)
                self._count(choice, heard)
                waiting -= choice.finish is not None
                yield choice, heard
        finally:
            self.close()

    def close(self) -> None:
        """Nobody waits any more: give the slots back, and keep what was read. Once is enough."""
        if not self._closed:
            self._closed = True
            self.service.scheduler.drop(self.tickets)
            self._record()

    def _failed(self, error: Exception) -> RequestError:
        if isinstance(error, RequestError):
            return error
        if isinstance(error, NonFiniteActivation) and self.plan.jobs[0].steering:
            message = "The model's activations broke under this steering; steer with less."
            return RequestError(400, message, code="broken_activations", param="poise.steer")
        if isinstance(error, UserError):
            return RequestError(400, str(error), code="invalid_request")
        log.error("%s failed: %s", self.head["id"], type(error).__name__, exc_info=error)
        return RequestError(500, "The model failed on this batch; the server goes on. Try again.", code="model_failed")

    def _count(self, choice: Choice, heard: Heard) -> None:
        metrics = self.service.metrics
        metrics.tokens.labels("completion").inc(len(heard.said.tokens))
        if heard.said.tokens and not self._spoken:
            self._spoken = True
            metrics.first.observe(time.monotonic() - self._began)
        for alert in heard.alerts:
            metrics.alarms.labels(alert.trait, alert.raised.alarm.reading, alert.action).inc()
            if self.service.webhook:
                told = {"request": self.head["id"], "model": self.service.name, "time": time.time(), "key": self.key}
                self.service.webhook.put({**told, **alert.facts})
        if choice.finish:
            metrics.finished.labels(choice.finish).inc()

    def _record(self) -> None:
        """Keep what was read, also of answers that nobody waited for to the end."""
        now, records = time.time(), []
        for choice, ticket in zip(self.choices, self.tickets, strict=True):
            readings = choice.readings or ticket.guard.readings()
            if readings is None:
                continue
            name = self.head["id"] if len(self.choices) == 1 else f"{self.head['id']}/{choice.index}"
            for column, watched in enumerate(self.plan.watched):
                found = summary(readings, column)
                for reading in ("prompt", "mean", "peak"):
                    self.service.metrics.projections.observe(watched.name, reading, found[reading])
                alarms = [a.facts for a in choice.alerts if a.trait == watched.name]
                records.append(
                    Record(
                        now,
                        str(name),
                        self.key,
                        watched.name,
                        watched.probe.layer,
                        self.plan.steer,
                        **found,
                        alarms=alarms,
                    )
                )
            if self.service.log_text:
                records.append(Record(now, str(name), texts=(self._asked_text(), choice.text)))
        self.service.store.put(records)

    def _asked_text(self) -> str:
        body = self.asked.model_dump(include={"messages", "prompt"})
        return json.dumps(body, ensure_ascii=False)
