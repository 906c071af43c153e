"""What was said to answers in OpenAI's shapes, whole or chunk by chunk, with the readings beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from poise.engine import Token
from poise.monitor import AnswerReadings
from poise.serve.alarm_policy import Alert, Heard
from poise.serve.planning import Plan

__all__ = ["Choice", "Kind", "chunk", "usage", "whole"]

Kind = Literal["chat", "text"]


@dataclass(slots=True)
class Choice:
    """One answer as far as it has come.

    Attributes:
        index: Of the choice.
        plan: That it belongs to.
        kind: Of the completion.
        prompt: Readings [k] of the last prompt token.
        tokens: So far.
        alerts: So far.
        finish: Once it is over.
        readings: Of the whole answer, once it is over and where anything was watched.
    """

    index: int
    plan: Plan
    kind: Kind
    prompt: tuple[float, ...] | None = None
    tokens: list[Token] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    finish: str | None = None
    readings: AnswerReadings | None = None

    def hear(self, heard: Heard) -> None:
        """Take in a step."""
        self.prompt = heard.said.prompt if heard.said.prompt is not None else self.prompt
        self.tokens += heard.said.tokens
        self.alerts += heard.alerts
        self.readings = heard.readings or self.readings
        self.finish = "content_filter" if heard.stopped else heard.said.finish

    @property
    def text(self) -> str:
        """What was said, and what is put after it where an alarm stopped it."""
        said = "".join(token.text for token in self.tokens)
        return said + (self.plan.policy.message if self.finish == "content_filter" else "")

    @property
    def facts(self) -> dict[str, Any]:
        """The ``choices[i]`` of a whole answer."""
        body: dict[str, Any] = {"index": self.index, "finish_reason": self.finish}
        if self.kind == "chat":
            body["message"] = {"role": "assistant", "content": self.text, "refusal": None}
        else:
            body["text"] = self.text
        body["logprobs"] = self._logprobs(self.tokens)
        if _told(self.plan):
            body["poise"] = {
                **self._setting(),
                "prompt": self._row(self.prompt),
                **self._tokens(self.tokens),
                "summary": self._summary(),
                "alarms": self._alarms(self.alerts),
            }
        return body

    def opening(self) -> dict[str, Any]:
        """The ``choices[i]`` of the first chunk, before anything is said."""
        told = {**self._setting(), "prompt": self._row(self.prompt), "alarms": self._alarms(self.alerts)}
        return self._piece({"role": "assistant", "content": ""}, "", told)

    def saying(self, heard: Heard) -> list[dict[str, Any]]:
        """The ``choices[i]`` of the chunks that a step makes, once it has been taken in."""
        out = []
        tokens, alerts = heard.said.tokens, list(heard.alerts)
        if tokens:
            text = "".join(token.text for token in tokens)
            told = {**self._tokens(tokens), "alarms": self._alarms(alerts)}
            out.append(self._piece({"content": text}, text, told, logprobs=self._logprobs(tokens)))
            alerts = []
        if self.finish == "content_filter":
            message = self.plan.policy.message
            told = {**self._tokens(()), "alarms": self._alarms(alerts)}
            out.append(self._piece({"content": message}, message, told))
            alerts = []
        if self.finish:
            told = {"summary": self._summary(), "alarms": self._alarms(alerts)}
            out.append(self._piece({}, "", told, finish=self.finish))
        return out

    def _piece(
        self, delta: dict[str, Any], text: str, told: dict[str, Any], *, logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"index": self.index, "finish_reason": finish, "logprobs": logprobs}
        body |= {"delta": delta} if self.kind == "chat" else {"text": text}
        return body | ({"poise": told} if _told(self.plan) else {})

    def _setting(self) -> dict[str, Any]:
        return {
            "steer": self.plan.steer,
            "cautions": list(self.plan.cautions),
            "layers": {w.name: w.probe.layer for w in self.plan.shown},
            "push": self._push(),
        }

    def _push(self) -> dict[str, dict[str, float] | None]:
        known = dict(zip(self.plan.watched, self.plan.pushes, strict=True))
        return {w.name: (p := known[w]) and {"prompt": p[0], "response": p[1]} for w in self.plan.shown}

    def _row(self, values: Sequence[float] | None) -> dict[str, float | None]:
        place = {w: n for n, w in enumerate(self.plan.watched)}
        return {w.name: None if values is None else finite(values[place[w]]) for w in self.plan.shown}

    def _tokens(self, tokens: Sequence[Token]) -> dict[str, Any]:
        place = {w: n for n, w in enumerate(self.plan.watched)}
        readings = {w.name: [finite(t.readings[place[w]]) for t in tokens] for w in self.plan.shown}
        return {"tokens": [token.text for token in tokens], "readings": readings}

    def _summary(self) -> dict[str, Any]:
        place = {w: n for n, w in enumerate(self.plan.watched)}
        return {w.name: summary(self.readings, place[w]) for w in self.plan.shown}

    def _alarms(self, alerts: Sequence[Alert]) -> list[dict[str, Any]]:
        return [alert.facts for alert in alerts]

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self.plan.jobs[self.index].top is None:
            return None
        return _chat_logprobs(tokens) if self.kind == "chat" else _text_logprobs(tokens)


def summary(readings: AnswerReadings | None, column: int) -> dict[str, Any]:
    """One vector's readings of an answer; ``None`` where there are none."""
    if readings is None:
        return {"prompt": None, "mean": None, "peak": None, "tokens": 0}
    values = {name: finite(getattr(readings, name)[column]) for name in ("prompt", "mean", "peak")}
    return {**values, "tokens": readings.tokens}


def finite(value: float) -> float | None:
    """A number as JSON has it: missing is null."""
    return value if math.isfinite(value) else None


def _told(plan: Plan) -> bool:
    """Whether the answer speaks of steering and readings: a client that has not asked gets OpenAI's fields alone."""
    return bool(plan.shown or plan.steer)


def _chat_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    def entry(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [{**entry(t.alone, t.logprob), "top_logprobs": [entry(*top) for top in t.top]} for t in tokens]
    return {"content": content, "refusal": None}


def _text_logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token.text)
    return {
        "tokens": [t.alone for t in tokens],
        "token_logprobs": [t.logprob for t in tokens],
        "top_logprobs": [dict(t.top) for t in tokens],
        "text_offset": offsets,
    }


def usage(plan: Plan, choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens of a request. The token that ended an answer is not counted."""
    said = sum(len(choice.tokens) for choice in choices)
    return {
        "prompt_tokens": plan.prompt_tokens,
        "completion_tokens": said,
        "total_tokens": plan.prompt_tokens + said,
    }


def whole(head: dict[str, Any], kind: Kind, plan: Plan, choices: Sequence[Choice]) -> dict[str, Any]:
    """A whole answer. ``head``: id, created and model."""
    object_is = "chat.completion" if kind == "chat" else "text_completion"
    return {**head, "object": object_is, "choices": [c.facts for c in choices], "usage": usage(plan, choices)}


def chunk(head: dict[str, Any], kind: Kind, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A chunk of a streamed answer."""
    object_is = "chat.completion.chunk" if kind == "chat" else "text_completion"
    return {**head, "object": object_is, "choices": choices, **more}
