"""The runs that a server follows: what each step read, and which run a request goes on with. Numbers and hashes only.

A run is named by its client (``poise.session``, the header ``X-Poise-Session``), or known by its history: a request
that begins with all messages of an earlier step, and an answer to it, is the next step. One that goes on from an
earlier step than the last is a fork, a run of its own which begins with what that step had. All belongs to one API
key: nobody goes on with another's run, or sees it. What is kept is bounded, the runs untouched longest go first.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from poise.serve.run_chain import MessageChain

__all__ = ["FollowedRun", "ResultReading", "RunAlarm", "RunBook", "SessionState", "StepRecord", "TraitReading"]

MOST_RUNS = 10_000  # of all keys together
MOST_STEPS = 100_000  # of all runs together
STEPS_KEPT = 500  # of one run; those before them are counted
UNANSWERED = ("aborted", "asking", "stopped")  # how steps end that are done again when they are sent again
SessionState = Literal["open", "asking", "stopped"]
StepPlace = tuple["FollowedRun", int]  # a run, and the step that a history ends with


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitReading:
    """One vector at one step: what the prompt, the answer's mean and its peak read, and the chart's sum after it."""

    prompt: float | None
    mean: float | None
    peak: float | None
    s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAlarm:
    """A trait that has drifted, and what was done."""

    trait: str
    side: str
    action: str
    h: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultReading:
    """A tool's result as the detector of hidden instructions reads it.

    Attributes:
        message: Its place among the request's messages, from 0.
        tool: Name of the tool, where the history says.
        before: Reading where the model would have answered without the result.
        after: Reading where it answers with it.
        score: What is compared with the threshold.
        threshold: What the score is compared with.
        reads: Which of the two the score is: the reading after the result, or its change.
        rate: Share of ordinary results above the threshold that is promised.
        flagged: Whether it is above.
        action: What was done.
    """

    message: int
    tool: str
    before: float | None
    after: float
    score: float
    threshold: float
    reads: Literal["plain", "change"]
    rate: float
    flagged: bool
    action: str = "none"

    @property
    def facts(self) -> dict[str, Any]:
        """As the API gives it."""
        change = None if self.before is None else self.after - self.before
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"change": change}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step of a run: a request and its answer.

    Attributes:
        number: Number of the step, from 1.
        time: When it ended, seconds since 1970.
        request: Id of the answer.
        prompt_tokens: Tokens of its prompt.
        tokens: Tokens of its answer.
        finish: How the answer ended; ``aborted`` where its client went away, ``asking`` or ``stopped`` where the run
            did not go on.
        traits: Readings by vector.
        alarms: Drift that it raised.
        results: Tools' results that were read before it.
        steer: What the run added to the steering.
        sums: Sums of the charts after it.
        holds: Caps and floors in force after it, by vector.
    """

    number: int
    time: float
    request: str
    prompt_tokens: int
    tokens: int
    finish: str
    traits: Mapping[str, TraitReading] = field(default_factory=dict)
    alarms: tuple[RunAlarm, ...] = ()
    results: tuple[ResultReading, ...] = ()
    steer: str | None = None
    sums: Mapping[str, float] = field(default_factory=dict)
    holds: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class FollowedRun:
    """A run.

    Attributes:
        id: Name by which it is asked for.
        key: Key that it belongs to.
        session: Whether its client named it.
        forked_from: Run and step that it began with.
        earlier_answers: Answers in the history that it began with, which were not seen here.
        count: Steps that have begun.
        steps: The last of them that are over.
        sums: Sums of the charts.
        holds: Caps and floors in force, by vector.
        state: Whether it may go on.
        reason: Why it may not.
        approved: Reasons that somebody has approved.
    """

    id: str
    key: str | None
    session: bool = False
    forked_from: tuple[str, int] | None = None
    earlier_answers: int = 0
    began: float = field(default_factory=time.time)
    last: float = field(default_factory=time.time)
    count: int = 0
    steps: list[StepRecord] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    holds: dict[str, str] = field(default_factory=dict)
    state: SessionState = "open"
    reason: str = ""
    approved: set[str] = field(default_factory=set)
    marks: list[bytes] = field(default_factory=list)

    def step(self, number: int) -> StepRecord | None:
        """The record of this step, where it is kept."""
        return next((step for step in reversed(self.steps) if step.number == number), None)

    def halt(self, state: SessionState, reason: str) -> None:
        """Let it go on no further, unless that was approved."""
        if reason not in self.approved and self.state != "stopped":
            self.state, self.reason = state, reason

    def approve(self) -> None:
        """Let it go on."""
        self.approved.add(self.reason)
        self.state, self.reason = "open", ""

    def go_back(self, number: int) -> None:
        """Begin again after this step, as if what came later had not been."""
        before = self.step(number)
        self.count = number
        self.steps = [step for step in self.steps if step.number <= number]
        self.sums = dict(before.sums) if before else {}
        self.holds = dict(before.holds) if before else {}


class RunBook:
    """All runs, for any thread.

    Args:
        most: Most runs of all keys.
        most_steps: Most steps of all runs.
    """

    def __init__(self, most: int = MOST_RUNS, most_steps: int = MOST_STEPS) -> None:
        self._most, self._most_steps, self._steps = most, most_steps, 0
        self._runs: OrderedDict[tuple[str | None, str], FollowedRun] = OrderedDict()
        self._places: dict[tuple[str | None, bytes], StepPlace] = {}
        self._counts: dict[str | None, int] = {}
        self.lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._runs)

    def find(self, key: str | None, name: str) -> FollowedRun | None:
        """The run of this name, where it is this key's."""
        return self._runs.get((key, name))

    def of(self, key: str | None, *, everyone: bool = False) -> list[FollowedRun]:
        """Runs of a key, the one that was touched last first."""
        with self.lock:
            return [run for run in reversed(self._runs.values()) if everyone or run.key == key]

    def begin(self, key: str | None, session: str | None, chain: MessageChain, most: int) -> tuple[FollowedRun, int]:
        """The run that a request goes on with, a new one where there is none, and the number of its step."""
        with self.lock:
            run = self._named(key, session) if session is not None else self._by_history(key, chain)
            run.count, run.last = run.count + 1, time.time()
            self._runs[key, run.id] = run
            self._runs.move_to_end((key, run.id))
            self._mark(run, chain.full[-1], run.count)
            self._forget_oldest(key, most)
            return run, run.count

    def end(self, run: FollowedRun, step: StepRecord, marks: tuple[bytes, ...] = ()) -> None:
        """Keep a step that is over, and know its run by these histories."""
        with self.lock:
            if self._runs.get((run.key, run.id)) is not run:
                return  # forgotten meanwhile
            run.steps.append(step)
            run.last, self._steps = step.time, self._steps + 1
            if len(run.steps) > STEPS_KEPT:
                self._steps -= 1
                del run.steps[0]
            for mark in marks:
                self._mark(run, mark, step.number)
            self._forget_oldest(run.key, self._most)

    def withdraw(self, run: FollowedRun, number: int) -> None:
        """A step that had begun was none: where nothing else has, it leaves no run behind."""
        with self.lock:
            if run.count == number:
                run.count -= 1
            if not run.count and not run.steps:
                self.forget(run)

    def forget(self, run: FollowedRun) -> None:
        """Keep nothing of it."""
        with self.lock:
            if self._runs.pop((run.key, run.id), None) is None:
                return
            self._steps -= len(run.steps)
            self._counts[run.key] -= 1
            if not self._counts[run.key]:
                del self._counts[run.key]
            for mark in run.marks:
                if (place := self._places.get((run.key, mark))) and place[0] is run:
                    del self._places[run.key, mark]

    def _named(self, key: str | None, session: str) -> FollowedRun:
        return self._runs.get((key, session)) or self._new(key, session, session=True)

    def _by_history(self, key: str | None, chain: MessageChain) -> FollowedRun:
        if again := self._places.get((key, chain.full[-1])):
            run, number = again
            if chain.answers or run.state != "open":  # else two may well begin with the same words
                return self._from(run, number - 1)
        for place in range(len(chain.full) - 2, -1, -1):
            answers_it = chain.roles[place + 1] == "assistant"
            for mark in (chain.full[place], chain.spoken[place]):
                known = self._places.get((key, mark))
                if known and (chain.roles[place] == "assistant" or (answers_it and mark == chain.full[place])):
                    return self._from(*known)
        return self._new(key, f"run_{secrets.token_hex(8)}", earlier_answers=chain.answers)

    def _from(self, run: FollowedRun, number: int) -> FollowedRun:
        """The run itself where that was its last step, or the one before; else a fork of it."""
        if run.count == number:
            return run
        last = run.step(run.count)
        if run.count == number + 1 and (run.state != "open" or last is None or last.finish in UNANSWERED):
            self._steps -= sum(step.number > number for step in run.steps)
            run.go_back(number)
            return run
        fork = self._new(run.key, f"run_{secrets.token_hex(8)}", forked_from=(run.id, number))
        before = run.step(number)
        fork.count, fork.approved = number, set(run.approved)
        fork.steps = [replace(step) for step in run.steps if step.number <= number]
        self._steps += len(fork.steps)
        fork.sums, fork.holds = (dict(before.sums), dict(before.holds)) if before else ({}, {})
        return fork

    def _new(self, key: str | None, name: str, **facts: Any) -> FollowedRun:
        run = FollowedRun(id=name, key=key, **facts)
        self._counts[key] = self._counts.get(key, 0) + 1
        self._runs[key, name] = run
        return run

    def _mark(self, run: FollowedRun, mark: bytes, number: int) -> None:
        if len(run.marks) >= 3 * STEPS_KEPT:
            old = run.marks.pop(0)
            if (place := self._places.get((run.key, old))) and place[0] is run:
                del self._places[run.key, old]
        if (run.key, mark) not in self._places or self._places[run.key, mark][0] is not run:
            run.marks.append(mark)
        self._places[run.key, mark] = (run, number)

    def _forget_oldest(self, key: str | None, most: int) -> None:
        while self._counts.get(key, 0) > most:
            self.forget(next(run for run in self._runs.values() if run.key == key))
        while len(self._runs) > self._most or (self._steps > self._most_steps and len(self._runs) > 1):
            self.forget(next(iter(self._runs.values())))
