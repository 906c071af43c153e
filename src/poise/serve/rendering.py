"""Outputs of the engine in OpenAI's shapes, complete or chunk by chunk, with the readings beside them.

Built as plain dictionaries, not as ``openai.types`` models: those serialise every optional field that OpenAI has and
this server does not, and a chunk a token is the hot path. ``tests/test_serve_types.py`` validates bodies of every kind
against these types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, Protocol

from poise.data import AnswerPart
from poise.engine import GeneratedToken
from poise.monitor import AnswerReadings
from poise.monitor.readings import READING_NAMES
from poise.serve.alarm_policy import Alert, GuardedOutput
from poise.serve.call_splitter import CallPiece, CallSplitter, ShownPart
from poise.serve.knowledge_use import KnowledgeUse
from poise.serve.logprob_bodies import chat_logprobs, raw_text, text_logprobs, with_distinct
from poise.serve.planning import RequestPlan, SteeringPush

__all__ = ["AnswerChoice", "CompletionKind", "as_thought", "chunk_body", "completion_body", "usage_body"]

CompletionKind = Literal["chat", "text"]


class StepFacts(Protocol):
    """What an answer tells of its run."""

    @property
    def facts(self) -> dict[str, Any]:
        """The run, the step, and what happened in it."""

    @property
    def ask(self) -> dict[str, Any] | None:
        """What somebody is to approve."""

    @property
    def has_news(self) -> bool:
        """Whether it is told."""


@dataclass(slots=True, kw_only=True)
class AnswerChoice:
    """One answer as far as it has come.

    Attributes:
        index: Place of the choice in the request, counted from 0.
        plan: Plan of the request that it belongs to.
        kind: Kind of completion that was requested.
        prompt: Readings [k] of the last prompt token.
        tokens: Tokens so far.
        alerts: Alarms so far.
        finish: Reason why the answer ended; set once it is over.
        readings: Readings of the complete answer by each watched vector, once it is over and where any watched.
        end: Token that ended the answer, where log-probabilities are asked for.
        echoed_logprobs: Log-probabilities of the prompt that the answer begins with, where they are asked for.
        reused_tokens: Tokens of the prompt that were not read again.
        stop_message: What follows the answer where a guardrail stopped it; ``None`` for the policy's message.
        interventions: What a guardrail found in the prompt and the answer.
        knowledge: Documents that the answer rests on.
        support: What they say of it, once it is over.
        memory: What a memory gave and took.
        withheld: Number of tokens that a guardrail took back.
        step: What is told of the step of a run that it is.
    """

    index: int
    plan: RequestPlan
    kind: CompletionKind
    prompt: tuple[float, ...] | None = None
    tokens: list[GeneratedToken] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    finish: str | None = None
    readings: tuple[AnswerReadings, ...] | None = None
    end: GeneratedToken | None = None
    echoed_logprobs: dict[str, Any] | None = None
    reused_tokens: int = 0
    stop_message: str | None = None
    interventions: list[dict[str, Any]] = field(default_factory=list)
    knowledge: KnowledgeUse | None = None
    support: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    withheld: int = 0
    step: StepFacts | None = None
    _calls: CallSplitter | None = field(default=None, init=False)
    _pieces: list[CallPiece] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._calls = CallSplitter.of(self.plan.form)

    @property
    def prompt_number(self) -> int:
        """Place among the request's prompts of the one that is answered."""
        return self.index * len(self.plan.echoes) // len(self.plan.requests)

    @property
    def echo(self) -> str:
        """The prompt that the answer begins with; empty where it was not asked for."""
        return self.plan.echoes[self.prompt_number].text if self.plan.echoes else ""

    def add(self, guarded: GuardedOutput) -> None:
        """Add the output of a step."""
        output = guarded.output
        self.prompt = output.prompt_readings if output.prompt_readings is not None else self.prompt
        if any(token.ends_unopened_thought for token in output.tokens):
            self.tokens = as_thought(self.tokens)
            self._calls = CallSplitter.of(self.plan.form)
        self.tokens += output.tokens
        self.alerts += guarded.alerts
        self.readings = guarded.readings or self.readings
        self.end = output.end or self.end
        self.reused_tokens = max(self.reused_tokens, output.reused_tokens)
        self.finish = "content_filter" if guarded.stopped else output.finish
        if self._calls:
            self._pieces = self._calls.split(output.tokens, last=self.finish is not None)
            if self.finish == "stop" and self._calls.calls:
                self.finish = "tool_calls"

    def withhold(self) -> None:
        """Take back what has come: nobody has read it."""
        self.withheld, self.tokens = self.withheld + len(self.tokens), []
        self._calls = CallSplitter.of(self.plan.form)

    @property
    def _ending_message(self) -> str:
        """What follows an answer that was stopped."""
        if self.finish != "content_filter":
            return ""
        return self.plan.policy.message if self.stop_message is None else self.stop_message

    @property
    def text(self) -> str:
        """The reply of a chat, or all of a completion; and the message after it where an alarm stopped it."""
        if self._calls:
            text = self._calls.words
        elif self.kind == "chat":
            text = "".join(token.text for token in self.tokens if token.part == "reply")
        else:
            text = self.echo + "".join(raw_text(token) for token in self.tokens)
        return text + self._ending_message

    @property
    def text_with_calls(self) -> str:
        """The same, with calls as the model wrote them."""
        if self._calls is None:
            return self.text
        reply = "".join(token.text for token in self.tokens if token.part == "reply")
        return reply + self._ending_message

    @property
    def reasoning(self) -> str:
        """What the model thought before its reply."""
        return "".join(token.text for token in self.tokens if token.part == "thought")

    @property
    def body(self) -> dict[str, Any]:
        """The ``choices[i]`` of a complete answer."""
        body: dict[str, Any] = {"index": self.index, "finish_reason": self.finish}
        if self.kind == "chat":
            calls = self._calls.calls if self._calls else []
            content = self.text or (None if calls else "")
            body["message"] = {"role": "assistant", "content": content, "refusal": None}
            if self.reasoning:
                body["message"]["reasoning_content"] = self.reasoning
            if calls:
                body["message"]["tool_calls"] = [call.body for call in calls]
        else:
            body["text"] = self.text
        body["logprobs"] = self._joined_logprobs()
        if _has_poise_field(self.plan):
            body["poise"] = {
                **self._steering_facts(),
                "prompt": self._values_by_name(self.prompt),
                **self._tokens(self.tokens),
                **({"parts": self._calls.parts_of(self.tokens)} if self._calls else {}),
                "summary": self._summary(),
                "alarms": self._alarms(self.alerts),
            }
        return self._with_interventions(body)

    def _with_interventions(self, body: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {"guardrail": self.interventions, "knowledge": self.support, "memory": self.memory}
        if self.step and self.step.has_news and self.index == 0:
            facts |= {"run": self.step.facts, "ask": self.step.ask}
        return _with_facts(body, facts)

    def opening_chunk(self) -> dict[str, Any]:
        """The ``choices[i]`` of the first chunk, before any token."""
        poise = {
            **self._steering_facts(),
            "prompt": self._values_by_name(self.prompt),
            "alarms": self._alarms(self.alerts),
        }
        logprobs = with_distinct(self.echoed_logprobs) if self.echoed_logprobs else None
        body = self._chunk_choice({"role": "assistant", "content": ""}, self.echo, poise, logprobs=logprobs)
        passages = self.knowledge.passage_facts if self.knowledge else None
        return _with_facts(body, {"knowledge": passages, "memory": self.memory})

    def chunks(self, guarded: GuardedOutput) -> list[dict[str, Any]]:
        """The ``choices[i]`` of the chunks that a step makes, once it has been added."""
        alerts = list(guarded.alerts)
        out = self._call_chunks(alerts) if self._calls else self._part_chunks(guarded.output.tokens, alerts)
        if out:
            alerts = []
        if self.finish == "content_filter":
            message = self._ending_message
            poise = {**self._tokens(()), "alarms": self._alarms(alerts)}
            out.append(self._chunk_choice({"content": message}, message, poise))
            alerts = []
        if self.finish:
            poise = {"summary": self._summary(), "alarms": self._alarms(alerts)}
            length = len(self.echo) + sum(len(raw_text(token)) for token in self.tokens)
            end = self._logprobs([self.end], length) if self.end and self.plan.echoes else None
            last = self._chunk_choice({}, "", poise, logprobs=end, finish=self.finish)
            out.append(self._with_interventions(last))
        return out

    def _call_chunks(self, alerts: Sequence[Alert]) -> list[dict[str, Any]]:
        """Those of an answer that may call tools."""
        out: list[dict[str, Any]] = []
        for piece in self._pieces:
            name = "reasoning_content" if piece.part == "thought" else "content"
            delta: dict[str, Any] = {name: piece.text} if piece.text else {}
            if piece.calls:
                delta["tool_calls"] = [call.body for call in piece.calls]
            poise = {**self._tokens(piece.tokens, piece.part), "alarms": self._alarms(() if out else alerts)}
            if any(token.ends_unopened_thought for token in piece.tokens):
                poise["ends_unopened_thought"] = True
            if delta or _has_poise_field(self.plan):
                out.append(self._chunk_choice(delta, "", poise, logprobs=self._logprobs(piece.tokens, 0)))
        return out

    def _part_chunks(self, tokens: Sequence[GeneratedToken], alerts: Sequence[Alert]) -> list[dict[str, Any]]:
        """Those of an answer that is words alone."""
        out = []
        offset = len(self.echo) + sum(len(raw_text(token)) for token in self.tokens)
        offset -= sum(len(raw_text(token)) for token in tokens)
        for part, same in groupby(tokens, key=lambda token: token.part):
            run = list(same)
            text = "".join(token.text for token in run)
            raw = "".join(map(raw_text, run))
            name = "reasoning_content" if part == "thought" else "content"
            delta = {} if part == "mark" else {name: text}
            poise = {**self._tokens(run), "alarms": self._alarms(alerts)}
            if any(token.ends_unopened_thought for token in run):
                poise["ends_unopened_thought"] = True
            if delta or _has_poise_field(self.plan) or self.kind == "text":
                out.append(self._chunk_choice(delta, raw, poise, logprobs=self._logprobs(run, offset)))
                alerts = ()
            offset += len(raw)
        return out

    def _chunk_choice(
        self,
        delta: dict[str, Any],
        text: str,
        poise: dict[str, Any],
        *,
        logprobs: Any = None,
        finish: str | None = None,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"index": self.index, "finish_reason": finish, "logprobs": logprobs}
        body |= {"delta": delta} if self.kind == "chat" else {"text": text}
        return body | ({"poise": poise} if _has_poise_field(self.plan) else {})

    def _steering_facts(self) -> dict[str, Any]:
        return {
            "steer": self.plan.steer,
            "cautions": list(self.plan.cautions),
            "layers": {w.name: w.probe.layer for w in self.plan.shown},
            "push": self._push(),
        }

    def _push(self) -> dict[str, dict[str, float] | None]:
        known = dict(zip(self.plan.watched, self.plan.pushes, strict=True))
        return {w.name: _push_facts(known[w]) for w in self.plan.shown}

    def _values_by_name(self, values: Sequence[float] | None) -> dict[str, float | None]:
        place = {w: n for n, w in enumerate(self.plan.watched)}
        return {w.name: None if values is None else finite(values[place[w]]) for w in self.plan.shown}

    def _tokens(self, tokens: Sequence[GeneratedToken], part: ShownPart | None = None) -> dict[str, Any]:
        """What is shown of tokens, all of one part where it is given."""
        place = {w: n for n, w in enumerate(self.plan.watched)}
        readings = {w.name: [finite(t.readings[place[w]]) for t in tokens] for w in self.plan.shown}
        return {"tokens": [t.text for t in tokens], "readings": readings, "parts": [part or t.part for t in tokens]}

    def _summary(self) -> dict[str, Any]:
        place = {w: n for n, w in enumerate(self.plan.watched)}
        return {
            w.name: answer_summary(self.readings[place[w]] if self.readings else None)
            | _part_facts(self.plan.policy.part_of(w.name))
            for w in self.plan.shown
        }

    def _alarms(self, alerts: Sequence[Alert]) -> list[dict[str, Any]]:
        return [alert.facts for alert in alerts]

    def _joined_logprobs(self) -> dict[str, Any] | None:
        """Of the complete answer. Beside an echoed prompt stands the token that ended it, so that the last is always
        one that was generated: what scores a text leaves that out.
        """
        if not self.echoed_logprobs:
            return self._logprobs(self.tokens, 0)
        end = [self.end] if self.end else []
        generated = text_logprobs([*self.tokens, *end], len(self.echo))
        return {name: [*values, *generated[name]] for name, values in with_distinct(self.echoed_logprobs).items()}

    def _logprobs(self, tokens: Sequence[GeneratedToken], offset: int) -> dict[str, Any] | None:
        """Of these tokens, which begin at this character of the text."""
        if self.plan.requests[self.index].top_logprobs is None:
            return None
        if self.kind == "text":
            return text_logprobs(tokens, offset)
        return chat_logprobs([token for token in tokens if token.part == "reply"])


def answer_summary(readings: AnswerReadings | None) -> dict[str, Any]:
    """One vector's readings of an answer; ``None`` where there are none."""
    if readings is None:
        return {"prompt": None, "mean": None, "peak": None, "tokens": 0}
    return {**{name: finite(readings.of(name)[0]) for name in READING_NAMES}, "tokens": readings.tokens}


def _push_facts(push: SteeringPush | None) -> dict[str, float] | None:
    """What steering adds to readings; to those of a thought only where something is watched or steered there."""
    if push is None:
        return None
    thought = push.tokens["thought"]
    return {"prompt": push.prompt, "response": push.tokens["reply"]} | ({"thought": thought} if thought else {})


def _part_facts(part: AnswerPart) -> dict[str, str]:
    """Which part was read; of replies nothing is said, as before there were others."""
    return {} if part == "reply" else {"part": part}


def as_thought(tokens: Sequence[GeneratedToken]) -> list[GeneratedToken]:
    """Tokens that were taken for a reply, or for the marks before it, and were thought; marks that open it stay."""
    first = next((n for n, token in enumerate(tokens) if token.part != "mark"), 0)
    texts = [raw_text(token) if n else token.text for n, token in enumerate(tokens[first:])]
    thought = [replace(token, part="thought", text=text) for token, text in zip(tokens[first:], texts, strict=True)]
    return [*tokens[:first], *thought]


def finite(value: float) -> float | None:
    """A number as JSON has it: missing is null."""
    return value if math.isfinite(value) else None


def _with_facts(body: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """A choice with what there is to tell under ``poise``."""
    told = {name: value for name, value in facts.items() if value}
    return {**body, "poise": {**body.get("poise", {}), **told}} if told else body


def _has_poise_field(plan: RequestPlan) -> bool:
    """Whether the answer speaks of steering and readings: a client that has not asked gets OpenAI's fields alone."""
    return bool(plan.shown or plan.steer)


def usage_body(plan: RequestPlan, choices: Sequence[AnswerChoice]) -> dict[str, Any]:
    """Tokens of a request. The token that ended an answer is not counted."""
    generated = sum(len(choice.tokens) + choice.withheld for choice in choices)
    reused: dict[int, int] = {}  # by prompt, which is counted once whatever the number of its choices
    for choice, request in zip(choices, plan.requests, strict=True):
        prompt = id(request.prompt)
        reused[prompt] = min(choice.reused_tokens, reused.get(prompt, choice.reused_tokens))
    return {
        "prompt_tokens": plan.prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": plan.prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": sum(reused.values())},
        "completion_tokens_details": {
            "reasoning_tokens": sum(token.part == "thought" for choice in choices for token in choice.tokens)
        },
    }


def completion_body(
    head: dict[str, Any], kind: CompletionKind, plan: RequestPlan, choices: Sequence[AnswerChoice]
) -> dict[str, Any]:
    """A complete answer. ``head``: id, created and model."""
    object_is = "chat.completion" if kind == "chat" else "text_completion"
    return {**head, "object": object_is, "choices": [c.body for c in choices], "usage": usage_body(plan, choices)}


def chunk_body(
    head: dict[str, Any], kind: CompletionKind, choices: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """A chunk of a streamed answer."""
    object_is = "chat.completion.chunk" if kind == "chat" else "text_completion"
    return {**head, "object": object_is, "choices": choices, **more}
