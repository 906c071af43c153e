"""Everything that a server is made of, and the life of one request in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from poise.engine import EngineOutput
from poise.errors import InvalidSteering, NonFiniteActivation, RequestError, UserError
from poise.model import Encoded, Model
from poise.model.rendering import has_thinking_switch
from poise.serve.alarm_policy import AlarmGuard, GuardedOutput
from poise.serve.answer_records import answer_records
from poise.serve.asynchronous_guard import AsynchronousGuard
from poise.serve.detector_guard import DetectorGuard
from poise.serve.echo import echoed_logprobs
from poise.serve.embeddings import SentenceEncoder
from poise.serve.guarding import AnswerGuard, GuardedRequest, ServerGuard
from poise.serve.guardrail_set import GuardrailSet
from poise.serve.knowledge_use import ServerKnowledge, with_knowledge
from poise.serve.metrics import Metrics
from poise.serve.observing import AnswerTimes, note_exchange
from poise.serve.planning import RequestPlan, plan_request
from poise.serve.policy import Policies
from poise.serve.prompt_scorer import PromptScorer
from poise.serve.rate_limits import RateLimiter, TokenReservation
from poise.serve.readings_db import ReadingsStore
from poise.serve.rendering import AnswerChoice, CompletionKind
from poise.serve.request_workers import RequestWorkers
from poise.serve.requests import ChatCompletionRequest, OpenAIRequest
from poise.serve.scheduler import NEVER, ScheduledRequest, Scheduler
from poise.serve.served_engine import ServedEngine
from poise.serve.vector_registry import VectorRegistry
from poise.serve.webhook import Webhook

__all__ = ["CompletionExchange", "Service"]

log = logging.getLogger("poise.serve")

Checked = TypeVar("Checked")
UPLOADED = "uploaded"  # stands in metrics for all vectors that single keys have uploaded
MOST_UNREAD = 4096  # outputs of a choice that wait for their client to read


@dataclass(kw_only=True)
class Service:
    """A server's parts.

    Attributes:
        model: Model that answers.
        name: Name by which requests call the model.
        engine: What the model is run by.
        scheduler: Thread that runs it.
        workers: Threads for work on the texts of requests.
        rates: What each key has used of its limits.
        registry: Vectors that watch, and that requests may steer with.
        policies: Rules for all, and for keys by their name; replaced as a whole where they are read again.
        store: Database of readings.
        metrics: Counters for Prometheus.
        webhook: Address that alarms are posted to.
        knowledge: Documents that chats may be answered from.
        guardrails: Guardrails on prompts and answers; replaced as a whole, as policies are.
        deadline: Seconds that an answer may take, waiting included.
        log_text: Whether prompts and answers are stored too.
        began: Time when the server was started, seconds since 1970.
    """

    model: Model
    name: str
    engine: ServedEngine
    scheduler: Scheduler
    registry: VectorRegistry
    policies: Policies
    store: ReadingsStore
    metrics: Metrics = field(default_factory=Metrics)
    workers: RequestWorkers = field(default_factory=RequestWorkers)
    rates: RateLimiter = field(default_factory=RateLimiter)
    webhook: Webhook | None = None
    guardrails: GuardrailSet = field(default_factory=GuardrailSet)
    knowledge: ServerKnowledge | None = None
    deadline: float = NEVER
    log_text: bool = False
    began: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def scorer(self) -> PromptScorer:
        """Scores the prompts of requests."""
        return PromptScorer(self.scheduler)

    @cached_property
    def sentences(self) -> SentenceEncoder:
        """Embeds texts."""
        return SentenceEncoder()

    @cached_property
    def thinks(self) -> bool:
        """Whether requests may have the model think before it replies."""
        return has_thinking_switch(self.model.tokenizer)

    def is_admin(self, key: str | None) -> bool:
        """Whether everybody's readings and uploads may be seen; without keys there is one user."""
        return key is None or self.policies.of(key).admin

    async def open(self, body: OpenAIRequest, key: str | None, *, size: int = 0) -> CompletionExchange:
        """Check a request and begin to answer it.

        Args:
            body: The request.
            key: Name of the key that it came with.
            size: Bytes that it came in.

        Raises:
            RequestError: it cannot be answered, or not now.
        """
        loop = asyncio.get_running_loop()
        exchange = await self.workers.run(lambda: self._plan(body, key, loop), size=size)
        note_exchange(exchange)
        most = exchange.plan.prompt_tokens + exchange.plan.most_new_tokens
        exchange.reservation = self.rates.reserve(key, exchange.plan.policy.limits, most)
        try:
            if exchange.plan.scoring:
                self.scorer.admit(key)
                exchange.scored = True
            if exchange.plan.most_new_tokens and not exchange.guarded.blocked:
                self.scheduler.submit(exchange.requests)
            exchange.times.submitted = time.monotonic()
        except RequestError:
            self.rates.settle(exchange.reservation, 0)
            if exchange.scored:
                self.scorer.release(key)
            raise
        self.metrics.tokens.labels("prompt").inc(exchange.plan.prompt_tokens)
        return exchange

    def _plan(self, body: OpenAIRequest, key: str | None, loop: asyncio.AbstractEventLoop) -> CompletionExchange:
        """All that takes a time which grows with the request; a worker's."""
        policy = self.policies.of(key)
        guard = self.guardrails.choose(policy, body.poise.guardrail if body.poise else None)
        guarded = self._guard_request(guard, body)
        body, use = guarded.body, None
        if not guarded.blocked:
            body, use = with_knowledge(self.knowledge, body, policy, self.model)
        plan = plan_request(body, self.model, self.name, self.registry, policy, key)
        if plan.scoring and self.engine.no_scores:
            raise RequestError(400, self.engine.no_scores, code="unsupported", param="echo")
        kind: CompletionKind = "chat" if isinstance(body, ChatCompletionRequest) else "text"
        if guarded.blocked:
            plan = replace(plan, echoes=(), scoring=None)
        elif guard:
            plan = guard.read_along(plan)
        exchange = CompletionExchange(self, plan, kind, key, guarded, loop)
        for choice in exchange.choices:
            choice.knowledge = use
        try:
            if plan.most_new_tokens:
                self.scheduler.check(exchange.requests)
            else:  # of the steering alone: there need be no room for an answer
                first = plan.requests[0]
                self.scheduler.engine.check(replace(first, prompt=Encoded(first.prompt.ids[:1], 1, 1)))
        except InvalidSteering as error:
            raise RequestError(400, str(error), code="invalid_steering", param="poise.steer") from error
        except UserError as error:
            raise RequestError(400, str(error), code="invalid_request") from error
        return exchange

    def _guard_request(self, guard: ServerGuard | None, body: OpenAIRequest) -> GuardedRequest:
        if guard is None:
            return GuardedRequest(body=body)
        with self.metrics.guardrails.timed(guard.name, "prompt"):
            guarded = guard.guard_request(body, self.model)
        self.metrics.guardrails.count(guarded.interventions)
        return guarded


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
    """

    def __init__(
        self,
        service: Service,
        plan: RequestPlan,
        kind: CompletionKind,
        key: str | None,
        guarded: GuardedRequest,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.service, self.plan, self.kind, self.key = service, plan, kind, key
        self.guarded, self.body = guarded, guarded.body
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
                guard=self._output_guard(),
                sink=self._sink(index),
                deadline=deadline,
            )
            for index, request in enumerate(plan.requests)
        ]
        guard, indexes = guarded.guard, range(len(self.requests))
        self._answer_guards = [self._answer_guard(guard, index) for index in indexes] if guard else []
        for choice in self.choices if guarded.blocked or not plan.most_new_tokens else ():
            if guarded.blocked and guard:
                choice.stop_message = guard.checker.guardrail.messages.input
            output = EngineOutput(key=choice.index, finish=None if guarded.blocked else "length")
            self._outputs.put_nowait((choice.index, GuardedOutput(output=output, stopped=guarded.blocked)))
        for choice in self.choices:
            choice.interventions = list(guarded.interventions)

    def _output_guard(self) -> AlarmGuard | DetectorGuard:
        plan, guard = self.plan, self.guarded.guard
        alarms = AlarmGuard(plan.watched, plan.policy, plan.pushes, requested=plan.requested, forced=plan.forced)
        return guard.with_detectors(alarms, len(plan.watched), self.guarded.body) if guard else alarms

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
                if guarded.output.reused_tokens and not choice.reused_tokens:
                    self.service.metrics.prefix_hits.inc()
                    self.service.metrics.reused.inc(guarded.output.reused_tokens)
                choice.add(guarded)
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
        choice.interventions = [*self.guarded.interventions, *guard.interventions]
        if guard.blocked:
            choice.stop_message = guard.message
            self.service.scheduler.drop([self.requests[choice.index]])
            if not self.body.stream:
                choice.withhold()
                done = replace(done, output=replace(done.output, tokens=()))
        return done

    async def _run_check(self, guardrail: str, check: Callable[[], Checked]) -> Checked:
        def timed() -> Checked:
            with self.service.metrics.guardrails.timed(guardrail, "answer"):
                return check()

        return await self.service.workers.run(timed)

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

    def _record(self) -> None:
        """Keep what was read, also of answers that nobody waited for to the end."""
        for guard in self._answer_guards:
            self.service.metrics.guardrails.count(guard.interventions)
        self.service.store.put(answer_records(self))
