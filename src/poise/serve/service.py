"""Everything that a server is made of."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from poise.errors import InvalidSteering, RequestError, UserError
from poise.guardrail.injection_reading import InjectionReader, result_detector
from poise.guardrail.judging import BandJudge
from poise.knowledge import GroundingScores, model_scores
from poise.memory import InjectionEffect
from poise.model import Encoded, Model
from poise.model.rendering import has_thinking_switch
from poise.serve.embeddings import SentenceEncoder
from poise.serve.exchange import CompletionExchange
from poise.serve.fact_writer import served_turn
from poise.serve.guarding import GuardedRequest, ServerGuard
from poise.serve.guardrail_set import GuardrailSet
from poise.serve.knowledge_use import KnowledgeUse, ServerKnowledge, TurnWriter, with_knowledge
from poise.serve.memory_use import ServerMemories, with_memory
from poise.serve.metrics import Metrics
from poise.serve.observing import named_session, note_exchange
from poise.serve.planning import plan_request
from poise.serve.policy import Policies, Policy
from poise.serve.prompt_scorer import PromptScorer
from poise.serve.rate_limits import RateLimiter
from poise.serve.readings_db import ReadingsStore
from poise.serve.rendering import CompletionKind
from poise.serve.request_workers import RequestWorkers
from poise.serve.requests import ChatCompletionRequest, OpenAIRequest
from poise.serve.result_reading import ResultReader
from poise.serve.run_following import FollowedStep, RunFollower
from poise.serve.scheduler import NEVER, Scheduler
from poise.serve.served_engine import ServedEngine
from poise.serve.vector_registry import VectorRegistry
from poise.serve.webhook import Webhook
from poise.serve.whole_answer import answer_context, whole_answer_checks

__all__ = ["Service"]


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
        memories: Memories that chats may have.
        guardrails: Guardrails on prompts and answers; replaced as a whole, as policies are.
        runs: Runs of agents that are followed.
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
    memories: ServerMemories | None = None
    runs: RunFollower = field(default_factory=RunFollower)
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
    def passage_scores(self) -> GroundingScores | None:
        """How well passages carry sentences by the model, each pass between two steps; ``None`` on vLLM."""
        if self.engine.read_text is not None:
            return None
        return model_scores(self.model, self.scheduler.call)

    @cached_property
    def turn_writer(self) -> TurnWriter | None:
        """Has the model write a little, as one request among the others; ``None`` on vLLM."""
        if self.engine.read_text is not None:
            return None
        return partial(served_turn, self.model, self.scheduler)

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
        loop, session = asyncio.get_running_loop(), named_session(body)
        waits = self.policies.of(key).runs is not None and bool(self.guardrails.guards)  # for results to be read
        waits = waits or self.guardrails.encode or bool(body.poise and body.poise.memory)
        exchange = await self.workers.run(lambda: self._plan(body, key, loop, session), size=size, waits=waits)
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
            if exchange.step:
                exchange.step.withdraw()
            raise
        self.metrics.tokens.labels("prompt").inc(exchange.plan.prompt_tokens)
        return exchange

    def _plan(
        self, body: OpenAIRequest, key: str | None, loop: asyncio.AbstractEventLoop, session: str | None
    ) -> CompletionExchange:
        """All that takes a time which grows with the request; a worker's."""
        policy = self.policies.of(key)
        guard = self.guardrails.choose(policy, body.poise.guardrail if body.poise else None)
        judge = guard.judge(self.model, self.scheduler.call, self.engine.read_text) if guard else None
        guarded = self._guard_request(guard, body, judge)
        checks = whole_answer_checks(self, guard, answer_context(guarded.body, self.model), judge) if guard else None
        step = None if guarded.blocked else self._follow(body, guarded, key, session, policy)
        if step:
            policy, guarded = step.policy, step.guarded(guarded)
        try:
            exchange, use = self._exchange(guarded, policy, key, loop, step)
            if checks:
                exchange.ask_about_answers(checks.resting_on(use))
            return exchange
        except BaseException:
            if step:
                step.withdraw()
            raise

    def _exchange(
        self,
        guarded: GuardedRequest,
        policy: Policy,
        key: str | None,
        loop: asyncio.AbstractEventLoop,
        step: FollowedStep | None,
    ) -> tuple[CompletionExchange, KnowledgeUse | None]:
        """What a request comes to, once it is known how it may go on, and the documents that it rests on."""
        body, use, remembered, guard = guarded.body, None, None, guarded.guard
        if not guarded.blocked:
            effect = self._injection_effect(guard) if self.memories else None
            body, remembered = with_memory(self.memories, body, key, policy, self.model, effect)
            body, use = with_knowledge(self.knowledge, body, policy, self.model, self.passage_scores, self.turn_writer)
            use, remembered = _as_shown(use, remembered, guard)
        plan = plan_request(body, self.model, self.name, self.registry, policy, key)
        if plan.scoring and self.engine.no_scores:
            raise RequestError(400, self.engine.no_scores, code="unsupported", param="echo")
        kind: CompletionKind = "chat" if isinstance(body, ChatCompletionRequest) else "text"
        if guarded.blocked:
            plan = replace(plan, echoes=(), scoring=None)
        elif guard:
            plan = guard.read_along(plan)
        exchange = CompletionExchange(self, plan, kind, key, guarded, loop, step)
        exchange.rest_on(use, remembered)
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
        return exchange, use

    def _injection_effect(self, guard: ServerGuard | None) -> InjectionEffect | None:
        """What a request's guardrail reads in entries that are to be remembered, where it reads tools' results."""
        if guard is None or guard.fitted is None or self.engine.read_text or not result_detector(guard.fitted):
            return None
        return InjectionEffect(InjectionReader(guard.fitted, self.model, between=self.scheduler.call))

    def _follow(
        self, sent: OpenAIRequest, guarded: GuardedRequest, key: str | None, session: str | None, policy: Policy
    ) -> FollowedStep | None:
        """The step of a run that a request is, if its run is followed."""
        body = guarded.body
        if not isinstance(sent, ChatCompletionRequest) or not isinstance(body, ChatCompletionRequest):
            return None
        fitted, reader = guarded.guard.fitted if guarded.guard else None, None
        if policy.runs and guarded.guard and (reads := result_detector(fitted)):
            reader = ResultReader(
                name=guarded.guard.name,
                detector=reads[0],
                probe=reads[1],
                model=self.model,
                between=self.scheduler.call,
                read_text=self.engine.read_text,
                memory=self.runs.memory,
                key=key,
            )
        return self.runs.begin(sent, body, key, session, policy, reader)

    def _guard_request(self, guard: ServerGuard | None, body: OpenAIRequest, judge: BandJudge | None) -> GuardedRequest:
        if guard is None:
            return GuardedRequest(body=body)
        with self.metrics.guardrails.timed(guard.name, "prompt"):
            guarded = guard.guard_request(body, self.model, judge)
        self.metrics.guardrails.count(guarded.interventions)
        return guarded


def _as_shown(
    use: KnowledgeUse | None, remembered: dict[str, Any] | None, guard: ServerGuard | None
) -> tuple[KnowledgeUse | None, dict[str, Any] | None]:
    """What an answer tells of documents and of a memory, as its guardrail lets it."""
    if guard is None:
        return use, remembered
    if remembered:
        recalled = [{**entry, "text": guard.shown(entry["text"])} for entry in remembered["recalled"]]
        remembered = {**remembered, "recalled": recalled}
    return use and replace(use, shown=guard.shown), remembered
