"""A request as a step of its run: what it goes on with, what the run adds to its rules, and what its answer tells."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from poise.data import AnswerPart
from poise.monitor import AnswerReadings, RunChart
from poise.serve.guarding import GuardedRequest
from poise.serve.policy import Policy
from poise.serve.rendering import AnswerChoice, answer_summary, finite
from poise.serve.requests import ChatCompletionRequest
from poise.serve.result_reading import ResultMemory, ResultReader
from poise.serve.run_chain import MessageChain
from poise.serve.run_policy import RunPolicy, TraitRule
from poise.serve.runs import FollowedRun, ResultReading, RunAlarm, RunBook, StepRecord, TraitReading
from poise.serve.vector_registry import WatchedVector

__all__ = ["FollowedStep", "RunFollower", "drift_chart", "hold_of"]

NO_RULES = RunPolicy()
LOCAL_RULE = TraitRule()


def drift_chart(watched: WatchedVector, rule: TraitRule, part: AnswerPart) -> RunChart | None:
    """The chart that a vector is watched with along a run: the rule's, else its file's for what is read here."""
    if rule.chart or rule.side != "above":
        return rule.chart
    drift, place = watched.vector.header.drift, watched.vector.at("read", watched.probe.layer, part=part)
    if drift is None or (drift.layer, drift.part, drift.detector) != (place.layer, part, place.read_with):
        return None
    return RunChart(mean=drift.mean, sd=drift.sd, k=drift.k, h=drift.h)


def hold_of(watched: WatchedVector, rule: TraitRule, part: AnswerPart) -> str | None:
    """The cap or floor of a rule as an expression; ``None`` where nothing says its level along the direction."""
    level, layer = rule.level, watched.probe.layer
    if level is None and rule.on_drift == "cap" and (alarm := watched.cap_alarm(part)):
        level, layer = alarm.threshold, alarm.layer
    if level is None and not watched.vector.at("read", layer, part=part).detector:
        chart = drift_chart(watched, rule, part)
        level = chart.mean if chart else None
    where = "" if part == "reply" else f" in {part}"
    return None if level is None else f"{watched.name}@{layer}={rule.on_drift}:{level:.6g}{where}"


@dataclass(slots=True, kw_only=True)
class FollowedStep:
    """One step of a run, from its request to the end of its answer.

    Attributes:
        run: The run.
        number: Number of the step, from 1.
        rules: What is watched.
        body: The request as the model reads it.
        policy: The key's rules, with what the run steers.
        steer: What the run adds to the steering.
        results: Tools' results that came with it.
        chain: Its history.
        book: Book that keeps the run.
        reader: What reads results, if a guardrail does.
        named: Whether the client asked for the run by name.
        blocked: Why the model is not asked: the run waits, or was stopped.
        alarms: Drift that its answer raised.
    """

    run: FollowedRun
    number: int
    rules: RunPolicy
    body: ChatCompletionRequest
    policy: Policy
    steer: str | None
    results: tuple[ResultReading, ...]
    chain: MessageChain
    book: RunBook
    reader: ResultReader | None
    named: bool
    blocked: Literal["asking", "stopped"] | None = None
    alarms: tuple[RunAlarm, ...] = ()
    _over: bool = field(default=False, repr=False)

    @property
    def message(self) -> str | None:
        """What is answered in the model's place while the run may not go on."""
        if self.blocked is None:
            return None
        text = self.rules.asking if self.blocked == "asking" else self.rules.stopped
        return text.replace("{reason}", self.run.reason)

    def end(
        self,
        choice: AnswerChoice,
        watched: Sequence[WatchedVector],
        readings: Sequence[AnswerReadings] | None,
        *,
        request: str,
    ) -> None:
        """Take in a complete answer: the first of a request's."""
        if self._over:
            return
        self._over = True
        traits = {} if self.blocked or readings is None else self._see(watched, readings)
        finish = self.blocked or choice.finish or ""
        prompt_tokens = choice.plan.prompt_tokens
        step = self._record(
            request=request, prompt_tokens=prompt_tokens, tokens=len(choice.tokens), finish=finish, traits=traits
        )
        self.book.end(self.run, step, self.chain.answered(choice.body["message"]))

    def guarded(self, request: GuardedRequest) -> GuardedRequest:
        """The request as its run lets it go on."""
        if self.message is None:
            return replace(request, body=self.body)
        return replace(request, body=self.body, blocked=True, message=self.message)

    def withdraw(self) -> None:
        """The request was refused: it was no step."""
        if not self._over:
            self._over = True
            self.book.withdraw(self.run, self.number)

    def abort(self, request: str, prompt_tokens: int, tokens: int) -> None:
        """The client went away before the end, which counts in no chart."""
        if not self._over:
            self._over = True
            step = self._record(request=request, prompt_tokens=prompt_tokens, tokens=tokens, finish="aborted")
            self.book.end(self.run, step)

    @property
    def facts(self) -> dict[str, Any]:
        """What an answer tells of its run."""
        facts: dict[str, Any] = {"session": self.run.id, "step": self.number}
        if self.steer:
            facts["steer"] = self.steer
        if self.results:
            facts["tool_results"] = [result.facts for result in self.results]
        if self.alarms:
            facts["drift"] = [drift_facts(alarm) for alarm in self.alarms]
        return facts

    @property
    def ask(self) -> dict[str, Any] | None:
        """What somebody is to approve, where the run waits for it."""
        if self.run.state != "asking":
            return None
        return {
            "session": self.run.id,
            "reason": self.run.reason,
            "approve": f"POST /v1/poise/sessions/{self.run.id}/approve",
            **({"by": "admin"} if self.rules.approved_by == "admin" else {}),
        }

    @property
    def has_news(self) -> bool:
        """Whether it is told to a client that has not asked."""
        flagged = any(result.flagged for result in self.results)
        return self.named or bool(self.alarms) or flagged or self.run.state != "open"

    def _record(self, **facts: Any) -> StepRecord:
        return StepRecord(
            number=self.number,
            time=time.time(),
            results=self.results,
            steer=self.steer,
            alarms=self.alarms,
            sums=dict(self.run.sums),
            holds=dict(self.run.holds),
            **facts,
        )

    def _see(self, watched: Sequence[WatchedVector], readings: Sequence[AnswerReadings]) -> dict[str, TraitReading]:
        traits, alarms = {}, []
        with self.book.lock:
            for vector, reading in zip(watched, readings, strict=True):
                rule, part = self.rules.traits.get(vector.name, LOCAL_RULE), self.policy.part_of(vector.name)
                chart, mean = drift_chart(vector, rule, part), reading.of("mean")[0]
                s: float | None = None
                if chart is not None and math.isfinite(mean):
                    s, alarm = chart.sum_after(self.run.sums.get(vector.name, 0.0), mean)
                    self.run.sums[vector.name] = 0.0 if alarm else s
                    if alarm:
                        alarms.append(self._act(vector, rule, part, chart))
                summary = answer_summary(reading)
                traits[vector.name] = TraitReading(
                    prompt=summary["prompt"], mean=summary["mean"], peak=summary["peak"], s=s and finite(s)
                )
        self.alarms = tuple(alarms)
        return traits

    def _act(self, vector: WatchedVector, rule: TraitRule, part: AnswerPart, chart: RunChart) -> RunAlarm:
        action: str = rule.on_drift
        if rule.on_drift in ("cap", "floor"):
            if hold := hold_of(vector, rule, part):
                self.run.holds[vector.name] = hold
            else:
                action = "note"
        elif rule.on_drift in ("ask", "stop"):
            reason = f"{vector.name} has drifted {chart.side} what is usual"
            self.run.halt("asking" if rule.on_drift == "ask" else "stopped", reason)
        return RunAlarm(trait=vector.name, side=chart.side, action=action, h=chart.h)


def drift_facts(alarm: RunAlarm) -> dict[str, Any]:
    """Drift as the API gives it."""
    return {"trait": alarm.trait, "side": alarm.side, "action": alarm.action, "h": alarm.h}


@dataclass(slots=True)
class RunFollower:
    """Follows the chats of a server.

    Attributes:
        book: All runs.
        memory: What was read of tools' results.
    """

    book: RunBook = field(default_factory=RunBook)
    memory: ResultMemory = field(default_factory=ResultMemory)

    def begin(
        self,
        sent: ChatCompletionRequest,
        body: ChatCompletionRequest,
        key: str | None,
        session: str | None,
        policy: Policy,
        reader: ResultReader | None,
    ) -> FollowedStep | None:
        """The step that a chat is; ``None`` where nobody wants it to be followed.

        Args:
            sent: The chat as its client sent it, by which its run is known.
            body: The chat as a guardrail lets it go on.
            key: Its key.
            session: Name of the run, where the client gives one.
            policy: The key's rules.
            reader: What reads tools' results.
        """
        if policy.runs is None and session is None:
            return None
        rules, chain = policy.runs or NO_RULES, MessageChain.of(sent.messages)
        results: tuple[ResultReading, ...] = ()
        if reader is not None:
            body, results = reader.read(body, chain, rules)
        run, number = self.book.begin(key, session, chain, rules.most)
        for result in results:
            if result.flagged and rules.tool_results in ("ask", "stop"):
                reason = f"a result of {result.tool or 'a tool'} seems to hold instructions"
                run.halt("asking" if rules.tool_results == "ask" else "stopped", f"{reason} (message {result.message})")
        texts = [policy.steer, rules.planned(number), *run.holds.values()]
        added = "; ".join(text for text in texts[1:] if text) or None
        steered = "; ".join(text for text in texts if text) or None
        return FollowedStep(
            run=run,
            number=number,
            rules=rules,
            body=body,
            policy=policy.model_copy(update={"steer": steered}) if added else policy,
            steer=added,
            results=results,
            chain=chain,
            book=self.book,
            reader=reader,
            named=session is not None,
            blocked=None if run.state == "open" else run.state,
        )
