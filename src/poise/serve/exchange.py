"""The life of one request in a server: its answers as they come, and what is kept of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from poise.engine import EngineOutput
from poise.errors import NonFiniteActivation, RequestError, UserError
from poise.serve.alarm_policy import AlarmGuard, GuardedOutput
from poise.serve.answer_records import answer_records
from poise.serve.answer_support import HeldAnswer
from poise.serve.asynchronous_guard import AsynchronousGuard
from poise.serve.detector_guard import DetectorGuard
from poise.serve.echo import echoed_logprobs
from poise.serve.guarding import AnswerGuard, GuardedRequest, ServerGuard, is_last
from poise.serve.knowledge_use import KnowledgeUse
from poise.serve.observing import AnswerTimes
from poise.serve.planning import RequestPlan
from poise.serve.rate_limits import TokenReservation
from poise.serve.rendering import AnswerChoice, CompletionKind
from poise.serve.requests import ChatCompletionRequest, CompletionRequest
from poise.serve.run_following import FollowedStep
from poise.serve.run_telling import end_step
from poise.serve.scheduler import ScheduledRequest
from poise.serve.whole_answer import WholeAnswer, WholeAnswerChecks

if TYPE_CHECKING:
    from poise.serve.service import Service

__all__ = ["CompletionExchange"]

log = logging.getLogger("poise.serve")

Checked = TypeVar("Checked")
UPLOADED = "uploaded"  # stands in metrics for all vectors that single keys have uploaded
_HEADER_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
MOST_UNREAD = 4096  # outputs of a choice that wait for their client to read


class CompletionExchange:
    """A request and its answers, as they come. It belongs to one event loop.

    Attributes:
        head: Id, time and model, as every answer and chunk has them.
        choices: Answers as far as they have come.
        reservation: Tokens that the request's key is charged with until it is known how many they are.
        scored: Whether the request counts among those whose prompts are scored.
        times: When its answers got how far.
        failure: Code of the error that the answers ended with; ``disconnected`` where the client went away.
        guarded: The request as its guardrail let it go on.
        step: The step of a run that it is, where its run is followed.
    """

    def __init__(
        self,
        service: Service,
        plan: RequestPlan,
        kind: CompletionKind,
        key: str | None,
        guarded: GuardedRequest,
        loop: asyncio.AbstractEventLoop,
        step: FollowedStep | None = None,
    ) -> None:
        self.service, self.plan, self.kind, self.key = service, plan, kind, key
        self.guarded, self.body, self.step = guarded, guarded.body, step
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        self.head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.name,
        }
        self.choices = [AnswerChoice(index=index, plan=plan, kind=kind) for index in range(len(plan.requests))]
        self.scored = False
        self._loop = loop
        self._shared_names = {watched.name for watched in plan.watched if watched.fixed}
        self._outputs: asyncio.Queue[tuple[int, GuardedOutput]] = asyncio.Queue()
        self.times = AnswerTimes()
        self.failure: str | None = None
        self._closed = False
        self.reservation: TokenReservation | None = None
        deadline = self.times.opened + service.deadline
        self.requests = [
            ScheduledRequest(
                request=request,
                guard=self._output_guard(index),
                sink=self._sink(index),
                deadline=deadline,
            )
            for index, request in enumerate(plan.requests)
        ]
        self._held: list[HeldAnswer] = []
        self._whole: list[WholeAnswer] = []
        guard, indexes = guarded.guard, range(len(self.requests))
        self._answer_guards = [self._answer_guard(guard, index) for index in indexes] if guard else []
        for choice in self.choices if guarded.blocked or not plan.most_new_tokens else ():
            if guarded.blocked:
                choice.stop_message = guarded.message
            output = EngineOutput(key=choice.index, finish=None if guarded.blocked else "length")
            self._outputs.put_nowait((choice.index, GuardedOutput(output=output, stopped=guarded.blocked)))
        for choice in self.choices:
            choice.interventions, choice.step = list(guarded.interventions), step

    def rest_on(self, use: KnowledgeUse | None, remembered: dict[str, Any] | None = None) -> None:
        """Have all answers rest on documents, and tell of a memory; once, before any has come."""
        for choice in self.choices:
            choice.knowledge, choice.memory = use, remembered
        if use and use.unsupported != "leave":
            self._held = [HeldAnswer(use) for _ in self.choices]

    def ask_about_answers(self, checks: WholeAnswerChecks) -> None:
        """Have the guardrail ask about all of each answer; once, before any has come."""
        guardrail = checks.guardrail
        leaves = self.body.stream and guardrail.streaming == "asynchronous"
        self._whole = [WholeAnswer(checks, self.plan.form, self.kind, leaves=leaves) for _ in self.choices]

    def _output_guard(self, index: int) -> AlarmGuard | DetectorGuard:
        plan, guard = self.plan, self.guarded.guard
        alarms = AlarmGuard(plan.watched, plan.policy, plan.pushes, requested=plan.requested, forced=plan.forced)
        if guard is None:
            return alarms
        results_read = self.step is not None and self.step.reader is not None
        return guard.with_detectors(
            alarms, len(plan.watched), self.body, self._prompts_of(index), results_read=results_read
        )

    def _prompts_of(self, index: int) -> list[str]:
        """Turns after the assistant's last one, or the prompt that a choice completes."""
        if isinstance(self.body, ChatCompletionRequest):
            turns = list(itertools.takewhile(lambda turn: turn.role != "assistant", reversed(self.body.messages)))
            return [turn.text for turn in turns if turn.role in ("user", "tool")]
        prompts = self.body.prompts if isinstance(self.body, CompletionRequest) else [""]
        prompt = prompts[index // self.body.n]
        return [prompt if isinstance(prompt, str) else str(self.service.model.tokenizer.decode(prompt))]

    def _answer_guard(self, guard: ServerGuard, index: int) -> AnswerGuard | AsynchronousGuard:
        readings = self.requests[index].guard
        if not (self.body.stream and guard.checker.guardrail.streaming == "asynchronous"):
            return AnswerGuard(guard, self.kind, readings)
        ended = GuardedOutput(output=EngineOutput(key=index), stopped=True)
        wake = partial(self._outputs.put_nowait, (index, ended))
        return AsynchronousGuard(guard, self.kind, readings, run=partial(self._run_check, guard.name), wake=wake)

    def _sink(self, index: int) -> Any:
        def sink(guarded: GuardedOutput) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self._take, index, guarded)

        return sink

    def _take(self, index: int, guarded: GuardedOutput) -> None:
        """Keep an output until it is read; where too many wait, the answer ends."""
        unread = self._outputs.qsize()
        if unread < MOST_UNREAD * len(self.choices):
            self._outputs.put_nowait((index, guarded))
        elif not self._closed:
            late = RequestError(408, "The answer was not read while it came; read faster.", code="unread")
            self._outputs.put_nowait((index, GuardedOutput(output=EngineOutput(key=index, error=late))))
            self.close()

    @property
    def headers(self) -> dict[str, str]:
        """Headers that say which run it is a step of."""
        return {"x-poise-session": self.step.run.id} if self.step and _HEADER_VALUE.fullmatch(self.step.run.id) else {}

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers, as far as they have come."""
        return sum(len(choice.tokens) + choice.withheld for choice in self.choices)

    @property
    def size(self) -> int:
        """Tokens of all answers together, each with the likeliest ones that are reported beside it."""
        beside = 1 + max(request.top_logprobs or 0 for request in self.plan.requests)
        echoed = self.plan.prompt_tokens if self.plan.echoes else 0
        return beside * (echoed + self.completion_tokens)

    async def steps(self) -> AsyncGenerator[tuple[AnswerChoice, GuardedOutput]]:
        """Outputs, step by step, until all answers are over. Leaving early gives the slots back at once.

        Raises:
            RequestError: an answer failed; the others of the request end with it.
        """
        waiting = len(self.choices)
        try:
            await self._score_prompts()
            while waiting:
                index, guarded = await self._outputs.get()
                if guarded.output.error is not None:
                    raise self._failed(guarded.output.error)
                choice = self.choices[index]
                if choice.finish is not None:  # a guardrail has ended it
                    continue
                guarded = await self._guard_answer(choice, guarded)
                guarded = await self._hold_answer(choice, guarded)
                guarded = await self._ask_about(choice, guarded)
                if guarded.output.reused_tokens and not choice.reused_tokens:
                    self.service.metrics.prefix_hits.inc()
                    self.service.metrics.reused.inc(guarded.output.reused_tokens)
                choice.add(guarded)
                if choice.finish and choice.knowledge and not choice.support:
                    facts = partial(choice.knowledge.facts, choice.text)
                    choice.support = await self.service.workers.run(facts, waits=choice.knowledge.score is not None)
                self._count(choice, guarded)
                waiting -= choice.finish is not None
                yield choice, guarded
        finally:
            self.close()

    async def _guard_answer(self, choice: AnswerChoice, guarded: GuardedOutput) -> GuardedOutput:
        """Of an output what the guardrail lets go; where it ends the answer, the model stops writing it."""
        if not self._answer_guards or self.guarded.blocked:
            return guarded
        guard = self._answer_guards[choice.index]
        if isinstance(guard, AsynchronousGuard):
            done = await guard.take(guarded)
        elif guard.is_due(guarded):
            done = await self._run_check(guard.name, partial(guard.take, guarded))
        else:
            done = guard.take(guarded)
        answer_facts = self._whole[choice.index].interventions if self._whole else ()
        choice.interventions = [*self.guarded.interventions, *guard.interventions, *answer_facts]
        return self._stopped(choice, done, guard.message) if guard.blocked else done

    def _stopped(self, choice: AnswerChoice, guarded: GuardedOutput, message: str) -> GuardedOutput:
        """The end of an answer that the guardrail blocks: nobody goes on writing it."""
        choice.stop_message = message
        self.service.scheduler.drop([self.requests[choice.index]])
        if self.body.stream:
            return guarded
        choice.withhold()
        return replace(guarded, output=replace(guarded.output, tokens=()))

    async def _ask_about(self, choice: AnswerChoice, guarded: GuardedOutput) -> GuardedOutput:
        """Of an output what may leave before somebody has been asked about all of the answer; at its end, all."""
        if not self._whole or self.guarded.blocked:
            return guarded
        asking, guard = self._whole[choice.index], self._answer_guards[choice.index]
        if guard.blocked:
            asking.clear()
            return guarded
        before, readings = len(guarded.output.tokens), guard.uncertain
        take = partial(asking.take, guarded, readings)
        guarded = await self._run_check(asking.name, take, waits=True) if asking.waits(guarded, readings) else take()
        choice.withheld += before - len(guarded.output.tokens)
        choice.interventions = [*self.guarded.interventions, *guard.interventions, *asking.interventions]
        return self._stopped(choice, guarded, asking.message) if asking.blocked else guarded

    async def _hold_answer(self, choice: AnswerChoice, guarded: GuardedOutput) -> GuardedOutput:
        """Of an output what may leave before the documents have been asked about the whole answer; at its end, all."""
        if not self._held:
            return guarded
        held, before = self._held[choice.index], len(guarded.output.tokens)
        if self._answer_guards and self._answer_guards[choice.index].blocked:
            held.tokens.clear()  # they stay counted
            return guarded
        guarded = held.hold(guarded)
        if is_last(guarded):
            waits = held.use.score is not None
            guarded = await self.service.workers.run(partial(held.release, guarded), waits=waits)
            choice.support = held.facts
        choice.withheld += before - len(guarded.output.tokens)
        return guarded

    async def _run_check(self, guardrail: str, check: Callable[[], Checked], *, waits: bool = False) -> Checked:
        def timed() -> Checked:
            with self.service.metrics.guardrails.timed(guardrail, "answer"):
                return check()

        return await self.service.workers.run(timed, waits=waits or self.service.guardrails.encode)

    async def _score_prompts(self) -> None:
        if (scoring := self.plan.scoring) is None:
            return
        try:
            await self.service.scorer.run(scoring, deadline=self.requests[0].deadline)
        except (UserError, NonFiniteActivation) as error:
            raise self._failed(error) from error

        def render() -> list[dict[str, Any]]:
            pairs = zip(self.plan.echoes, scoring.scores, strict=True)
            return [echoed_logprobs(echo, scores, self.service.model) for echo, scores in pairs]

        rendered = await self.service.workers.run(render, size=self.size)
        for choice in self.choices:
            choice.echoed_logprobs = rendered[choice.prompt_number]

    def close(self) -> None:
        """Nobody waits any more: give the slots back, and keep what was read. Once is enough."""
        if not self._closed:
            self._closed = True
            self.times.ended = time.monotonic()
            if self.failure is None and any(choice.finish is None for choice in self.choices):
                self.failure = "disconnected"
            self.service.scheduler.drop(self.requests)
            if self.scored:
                self.service.scorer.release(self.key)
            if self.reservation:
                self.service.rates.settle(self.reservation, self.plan.prompt_tokens + self.completion_tokens)
            self._record()

    def _failed(self, error: Exception) -> RequestError:
        refusal = self._refusal(error)
        self.failure = refusal.code
        return refusal

    def _refusal(self, error: Exception) -> RequestError:
        if isinstance(error, RequestError):
            return error
        if isinstance(error, NonFiniteActivation) and self.plan.requests[0].steering:
            message = "The model's activations broke under this steering; steer with less."
            return RequestError(400, message, code="broken_activations", param="poise.steer")
        if isinstance(error, UserError):
            return RequestError(400, str(error), code="invalid_request")
        log.error("%s failed: %s", self.head["id"], type(error).__name__, exc_info=error)
        return RequestError(500, "The model failed on this batch; the server goes on. Try again.", code="model_failed")

    def _count(self, choice: AnswerChoice, guarded: GuardedOutput) -> None:
        metrics = self.service.metrics
        metrics.tokens.labels("completion").inc(len(guarded.output.tokens))
        self.times.note(guarded.output)
        for alert in guarded.alerts:
            trait = alert.trait if alert.trait in self._shared_names else UPLOADED
            metrics.alarms.labels(trait, alert.raised.alarm.reading, alert.action).inc()
            if self.service.webhook:
                facts = {"type": "poise.alarm", "request": self.head["id"], "model": self.service.name}
                self.service.webhook.put({**facts, "time": time.time(), "key": self.key, **alert.facts})
        if choice.finish:
            metrics.finished.labels(choice.finish).inc()
            if self.step and choice.index == 0:
                end_step(self, self.step)

    def _record(self) -> None:
        """Keep what was read, also of answers that nobody waited for to the end."""
        for guarding in (*self._answer_guards, *self._whole):
            self.service.metrics.guardrails.count(guarding.interventions)
        if self.step:
            self.step.abort(str(self.head["id"]), self.plan.prompt_tokens, self.completion_tokens)
        self.service.store.put(answer_records(self))
