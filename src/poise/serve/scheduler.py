"""The one thread that owns the model: requests come in from any thread, outputs go out to their sinks."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, cast

from poise.engine import EngineOutput, GenerationRequest, StepEngine
from poise.errors import NonFiniteActivation, RequestError, UserError
from poise.monitor import AnswerReadings
from poise.serve.alarm_policy import GuardedOutput

__all__ = ["NEVER", "ScheduledRequest", "Scheduler"]

log = logging.getLogger("poise.serve")

NEVER = float("inf")
MOST_FAILURES = 10  # steps in a row; a broken GPU fails them all
T = TypeVar("T")


class OutputGuard(Protocol):
    """What looks at an answer between two tokens."""

    def inspect(self, output: EngineOutput) -> GuardedOutput:
        """Read a step's output, and decide whether the answer goes on."""
        ...

    def readings(self) -> tuple[AnswerReadings, ...] | None:
        """Readings of what there is so far, one a watched vector."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class ScheduledRequest:
    """A request to the engine on its way.

    Attributes:
        request: Answer to be generated.
        guard: Guard that inspects every output before the sink has it.
        sink: Called in the model's thread with every output; it must not wait. Nothing follows a finish, a stop or an
            error.
        deadline: Time on the monotonic clock at which the answer ends with an error.
        begun: Whether the engine has given any output of it.
        over: Whether the last output has been handed out.
    """

    request: GenerationRequest
    guard: OutputGuard
    sink: Callable[[GuardedOutput], None]
    deadline: float = NEVER
    begun: bool = field(default=False, init=False)
    over: bool = field(default=False, init=False)


class Scheduler:
    """Runs a ``StepEngine`` in a thread of its own.

    Args:
        engine: Engine that only this thread calls, but for ``check``.
        queue: Most requests that wait to begin; more are refused. One key may have half of them.

    Attributes:
        failed_steps: Steps in which the model failed.
    """

    def __init__(self, engine: StepEngine, *, queue: int = 256) -> None:
        self.engine, self.limit = engine, queue
        self._changed = threading.Condition()
        self._new: deque[ScheduledRequest] = deque()
        self._dropped: list[ScheduledRequest] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._live: set[ScheduledRequest] = set()  # in the engine; only this thread changes it
        self._waiting: Counter[str | None] = Counter()  # requests that have not begun, by client
        self._pace = 1.0  # seconds an answer, lately, over all rows
        self._ended_at = time.monotonic()
        self._draining = self._stopping = False
        self._step_began: float | None = None
        self._failures = 0  # steps in a row that failed and brought nothing
        self.failed_steps = 0
        self._thread = threading.Thread(target=self._run, name="poise-model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are accepted and worked on."""
        return self._thread.is_alive() and not self._draining

    @property
    def healthy(self) -> bool:
        """Whether it may still answer; false where its thread has died, or each of many steps in a row failed."""
        died = self._thread.ident is not None and not self._thread.is_alive()
        return self._stopping or not (died or self._failures >= MOST_FAILURES)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is being generated."""
        with self._changed:
            return not (self.waiting or self._live or self._calls)

    @property
    def step_age(self) -> float:
        """Seconds that the model has been in its present step; 0 between two."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def waiting(self) -> int:
        """Number of requests that have not begun."""
        return sum(list(self._waiting.values()))

    @property
    def running(self) -> int:
        """Number of answers that are being generated."""
        return len(self._live) - sum(not scheduled.begun for scheduled in tuple(self._live))

    def check(self, requests: Sequence[ScheduledRequest]) -> None:
        """Refuse what could never be run; any thread may ask.

        Raises:
            UserError: a request cannot be run.
            RequestError: 400 for more answers than may wait.
        """
        if len(requests) > (most := self._most(requests)):
            raise RequestError(
                400,
                f"The request asks for {len(requests)} answers, and {most} may wait here; ask for fewer.",
                code="too_many_answers",
                param="n",
            )
        for scheduled in requests:
            self.engine.check(scheduled.request)

    def submit(self, requests: Sequence[ScheduledRequest]) -> None:
        """Accept all of these requests, which have been checked, or none.

        Raises:
            RequestError: 429 where too many wait, with when to try again; 503 when shutting down.
        """
        with self._changed:
            if not self.alive:
                raise RequestError(
                    503, "The server is shutting down.", code="shutting_down", headers={"Retry-After": "5"}
                )
            client, most = requests[0].request.client if requests else None, self._most(requests)
            mine, waiting = self._waiting[client], self.waiting
            if waiting + len(requests) > self.limit or mine + len(requests) > most:
                wait = str(min(max(round(waiting * self._pace), 1), 60))
                of_key = client is not None and mine + len(requests) > most
                whose, number, limit = (" of this key", mine, most) if of_key else ("", waiting, self.limit)
                are = "request{} is" if number == 1 else "requests{} are"
                raise RequestError(
                    429,
                    f"{number} {are.format(whose)} waiting already, and {limit} may; try again in {wait} s.",
                    code="queue_full",
                    headers={"Retry-After": wait},
                )
            self._new.extend(requests)
            self._waiting[client] += len(requests)
            self._changed.notify()

    def _most(self, requests: Sequence[ScheduledRequest]) -> int:
        """Requests that may wait of whoever asks, so that no key fills the queue for the others."""
        has_key = bool(requests) and requests[0].request.client is not None
        return max(self.limit // 2, 1) if has_key else self.limit

    def drop(self, requests: Sequence[ScheduledRequest]) -> None:
        """End requests that nobody waits for any more; their slots are free at the next step."""
        with self._changed:
            self._dropped.extend(scheduled for scheduled in requests if not scheduled.over)
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
        """Accept no more requests; those that have been accepted go on."""
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
                calls = self._next_calls()
                self._new.clear()
                self._dropped = []
            for call in calls:
                call()
            if stopping:
                for scheduled in [*new, *self._live]:
                    self._fail(
                        scheduled, RequestError(503, "The server shut down before the end.", code="shutting_down")
                    )
                return
            self._take(new)
            for scheduled in dropped:
                self._end(scheduled)
            self._expire()
            if self._live:
                self._step()

    def _next_calls(self) -> list[Callable[[], None]]:
        """Other work that is done before the next step: one piece, so that answers wait for no more than one."""
        number = len(self._calls) if self._stopping else min(1, len(self._calls))
        return [self._calls.popleft() for _ in range(number)]

    def _take(self, new: Sequence[ScheduledRequest]) -> None:
        for scheduled in new:
            self._live.add(scheduled)
            try:
                self.engine.add(scheduled, scheduled.request)
            except Exception as error:  # this thread must outlive any request
                self._fail(scheduled, error)

    def _expire(self) -> None:
        now = time.monotonic()
        for scheduled in [r for r in self._live if r.deadline <= now]:
            self._fail(
                scheduled, RequestError(504, "The answer took longer than allowed here.", code="deadline_exceeded")
            )

    def _step(self) -> None:
        self._step_began = time.monotonic()
        try:
            outputs = self.engine.step()
        except Exception as error:  # the engine answers for its passes; this would be a fault of its own
            log.exception("A step failed")
            self._count_step(failed=True)
            for scheduled in list(self._live):
                self._fail(scheduled, error)
            return
        finally:
            self._step_began = None
        errors = [output.error for output in outputs if output.error is not None]
        self._count_step(
            failed=any(not isinstance(error, UserError | NonFiniteActivation) for error in errors),
            brought=any(output.tokens or output.finish for output in outputs),
        )
        for output in outputs:
            scheduled = cast("ScheduledRequest", output.key)  # ``_take`` gave the engine no other
            try:
                self._hand_out(scheduled, output)
            except Exception as error:  # one answer's guard or sink must not end the others
                log.exception("An answer could not be handed out")
                self._fail(scheduled, error)

    def _count_step(self, *, failed: bool, brought: bool = False) -> None:
        self.failed_steps += failed
        self._failures = 0 if brought else self._failures + failed

    def _hand_out(self, scheduled: ScheduledRequest, output: EngineOutput) -> None:
        if scheduled.over:
            return
        self._begin(scheduled)
        if output.error is not None:
            self._fail(scheduled, output.error)
            return
        guarded = scheduled.guard.inspect(output)
        if guarded.stopped and not output.finish:
            unreleased = self.engine.cut(scheduled, guarded.length)
            guarded = replace(guarded, output=replace(guarded.output, tokens=guarded.output.tokens + unreleased))
        if guarded.cap:
            self.engine.steer(scheduled, guarded.cap)
        if guarded.stopped or output.finish:
            now = time.monotonic()
            self._pace += 0.1 * (min(now - self._ended_at, 60.0) - self._pace)
            self._ended_at = now
            self._end(scheduled)
        if guarded.has_news:
            scheduled.sink(guarded)

    def _begin(self, scheduled: ScheduledRequest) -> None:
        if not scheduled.begun:
            scheduled.begun = True
            with self._changed:
                self._waiting[scheduled.request.client] -= 1

    def _end(self, scheduled: ScheduledRequest) -> None:
        if not scheduled.over:
            self._begin(scheduled)
            scheduled.over = True
            self._live.discard(scheduled)
            self.engine.abort(scheduled)

    def _fail(self, scheduled: ScheduledRequest, error: Exception) -> None:
        if not scheduled.over:
            self._end(scheduled)
            with contextlib.suppress(RuntimeError):  # its event loop may be gone
                scheduled.sink(GuardedOutput(output=EngineOutput(key=scheduled, error=error)))
