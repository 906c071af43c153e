"""The one thread that owns the model: jobs come in from any thread, what was said goes out to their sinks."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from poise.engine import Job, Said, Stepwise
from poise.errors import RequestError
from poise.serve.alarm_policy import Guard, Heard

__all__ = ["Scheduler", "Ticket"]

log = logging.getLogger("poise.serve")

NEVER = float("inf")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Ticket:
    """A job on its way.

    Attributes:
        job: What is generated.
        guard: Hears every step first.
        sink: Called in the model's thread with every step; it must not wait. Nothing follows a finish, a stop or an
            error.
        deadline: On the monotonic clock; the answer ends with an error then.
    """

    job: Job
    guard: Guard
    sink: Callable[[Heard], None]
    deadline: float = NEVER
    begun: bool = field(default=False, init=False)
    over: bool = field(default=False, init=False)


class Scheduler:
    """Runs a stepwise engine in a thread of its own.

    Args:
        engine: Only this thread calls it, but for ``check``.
        queue: Most jobs that wait to begin; more are refused.
    """

    def __init__(self, engine: Stepwise, *, queue: int = 256) -> None:
        self.engine, self.limit = engine, queue
        self._changed = threading.Condition()
        self._new: deque[Ticket] = deque()
        self._dropped: list[Ticket] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._live: set[Ticket] = set()  # in the engine; the thread's own
        self._waiting = 0  # tickets that have not begun
        self._pace = 1.0  # seconds an answer, lately, over all rows
        self._ended_at = time.monotonic()
        self._draining = self._stopping = False
        self._thread = threading.Thread(target=self._run, name="poise-model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are taken and worked on."""
        return self._thread.is_alive() and not self._draining

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self._waiting

    @property
    def running(self) -> int:
        """Answers that are being generated."""
        return len(self._live) - sum(not ticket.begun for ticket in tuple(self._live))

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Take all of these jobs or none.

        Raises:
            UserError: a job cannot be run.
            RequestError: 429 where too many wait, with when to try again; 503 when shutting down.
        """
        if len(tickets) > self.limit:
            raise RequestError(
                400,
                f"The request asks for {len(tickets)} answers, and {self.limit} may wait here; ask for fewer.",
                code="too_many_answers",
                param="n",
            )
        for ticket in tickets:
            self.engine.check(ticket.job)
        with self._changed:
            if not self.alive:
                raise RequestError(
                    503, "The server is shutting down.", code="shutting_down", headers={"Retry-After": "5"}
                )
            if self._waiting + len(tickets) > self.limit:
                wait = str(min(max(round(self._waiting * self._pace), 1), 60))
                raise RequestError(
                    429,
                    f"{self._waiting} requests are waiting already, and {self.limit} may; try again in {wait} s.",
                    code="queue_full",
                    headers={"Retry-After": wait},
                )
            self._new.extend(tickets)
            self._waiting += len(tickets)
            self._changed.notify()

    def drop(self, tickets: Sequence[Ticket]) -> None:
        """End jobs that nobody waits for any more; their slots are free at the next step."""
        with self._changed:
            self._dropped.extend(ticket for ticket in tickets if not ticket.over)
            self._changed.notify()

    def call(self, work: Callable[[], T]) -> T:
        """Do other work with the model between two steps; nothing else may touch it while answers are generated.

        Raises:
            RequestError: 503 when shutting down.
        """
        if not self._thread.is_alive():
            return work()
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except Exception as error:  # the caller's to judge
                done.set_exception(error)

        with self._changed:
            if not self.alive:
                raise RequestError(
                    503, "The server is shutting down.", code="shutting_down", headers={"Retry-After": "5"}
                )
            self._calls.append(run)
            self._changed.notify()
        return done.result()

    def drain(self) -> None:
        """Take no more jobs; those that have been taken go on."""
        with self._changed:
            self._draining = True

    def stop(self, wait: float = 10.0) -> None:
        """End everything that still runs with an error, and the thread."""
        with self._changed:
            self._draining = self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(wait)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._new or self._dropped or self._calls or self._live or self._stopping):
                    self._changed.wait()
                new, dropped, stopping = list(self._new), self._dropped, self._stopping
                calls = list(self._calls)
                self._new.clear()
                self._calls.clear()
                self._dropped = []
            for call in calls:
                call()
            if stopping:
                for ticket in [*new, *self._live]:
                    self._fail(ticket, RequestError(503, "The server shut down before the end.", code="shutting_down"))
                return
            self._take(new)
            for ticket in dropped:
                self._end(ticket)
            self._expire()
            if self._live:
                self._step()

    def _take(self, new: Sequence[Ticket]) -> None:
        for ticket in new:
            self._live.add(ticket)
            try:
                self.engine.add(ticket, ticket.job)
            except Exception as error:  # this thread must outlive any job
                self._fail(ticket, error)

    def _expire(self) -> None:
        now = time.monotonic()
        for ticket in [t for t in self._live if t.deadline <= now]:
            self._fail(ticket, RequestError(504, "The answer took longer than allowed here.", code="deadline_exceeded"))

    def _step(self) -> None:
        try:
            said = self.engine.step()
        except Exception as error:  # the engine answers for its passes; this would be a fault of its own
            log.exception("A step failed")
            for ticket in list(self._live):
                self._fail(ticket, error)
            return
        for one in said:
            assert isinstance(one.key, Ticket)
            try:
                self._hear(one.key, one)
            except Exception as error:  # one answer's guard or sink must not end the others
                log.exception("An answer could not be handed out")
                self._fail(one.key, error)

    def _hear(self, ticket: Ticket, said: Said) -> None:
        if ticket.over:
            return
        self._begin(ticket)
        if said.error is not None:
            self._fail(ticket, said.error)
            return
        heard = ticket.guard.hear(said)
        if heard.cap:
            self.engine.steer(ticket, heard.cap)
        if heard.stopped or said.finish:
            now = time.monotonic()
            self._pace += 0.1 * (min(now - self._ended_at, 60.0) - self._pace)
            self._ended_at = now
            self._end(ticket)
        ticket.sink(heard)

    def _begin(self, ticket: Ticket) -> None:
        if not ticket.begun:
            ticket.begun = True
            with self._changed:
                self._waiting -= 1

    def _end(self, ticket: Ticket) -> None:
        if not ticket.over:
            self._begin(ticket)
            ticket.over = True
            self._live.discard(ticket)
            self.engine.abort(ticket)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if not ticket.over:
            self._end(ticket)
            with contextlib.suppress(RuntimeError):  # its event loop may be gone
                ticket.sink(Heard(Said(ticket, error=error)))
