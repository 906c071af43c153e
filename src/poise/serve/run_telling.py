"""The end of a step of a run: its readings to its charts, and its alarms to whoever waits for them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from poise.serve.detector_guard import DetectorGuard
from poise.serve.run_following import FollowedStep, drift_facts

if TYPE_CHECKING:
    from poise.serve.exchange import CompletionExchange

__all__ = ["end_step"]


def end_step(exchange: CompletionExchange, step: FollowedStep) -> None:
    """Take in the first answer of a request, which is complete."""
    choice, request, plan = exchange.choices[0], exchange.requests[0], exchange.plan
    guard, reader = request.guard, step.reader
    step.end(choice, plan.watched, choice.readings or guard.readings(), request=str(exchange.head["id"]))
    if (
        reader
        and isinstance(guard, DetectorGuard)
        and not (request.request.steering or choice.knowledge or choice.memory)
    ):
        value = guard.prompt_projection(reader.detector)
        if value is not None:
            reader.prompt_reading(step.chain, value)
    service = exchange.service
    for result in step.results:
        service.metrics.tool_results.labels(result.action).inc()
    for alarm in step.alarms:
        fixed = any(watched.name == alarm.trait and watched.fixed for watched in plan.watched)
        service.metrics.run_alarms.labels(alarm.trait if fixed else "uploaded", alarm.side, alarm.action).inc()
    if service.webhook and (step.alarms or any(result.flagged for result in step.results)):
        facts = {"type": "poise.run", "request": exchange.head["id"], "model": service.name}
        news = {"drift": [drift_facts(alarm) for alarm in step.alarms]}
        news["tool_results"] = [result.facts for result in step.results if result.flagged]
        place = {"session": step.run.id, "step": step.number}
        service.webhook.put({**facts, "time": time.time(), "key": exchange.key, **place, **news})
