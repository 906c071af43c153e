"""What is kept of a request's answers: readings by vector, and their texts where they are logged."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from poise.monitor.readings import READING_NAMES
from poise.serve.readings_db import ReadingRecord
from poise.serve.rendering import answer_summary

if TYPE_CHECKING:
    from poise.serve.exchange import CompletionExchange

__all__ = ["answer_records"]


def answer_records(exchange: CompletionExchange) -> list[ReadingRecord]:
    """Records of a request, whose readings are added to the metrics as well."""
    plan, service = exchange.plan, exchange.service
    now, records = time.time(), []
    for choice, request in zip(exchange.choices, exchange.requests, strict=True):
        readings = choice.readings or request.guard.readings()
        if readings is None:
            continue
        name = str(exchange.head["id"]) if len(exchange.choices) == 1 else f"{exchange.head['id']}/{choice.index}"
        for column, watched in enumerate(plan.watched):
            summary, part = answer_summary(readings[column]), plan.policy.part_of(watched.name)
            for reading in READING_NAMES if watched.fixed else ():
                service.metrics.projections.observe(watched.name, reading, summary[reading], part)
            alarms = [a.facts for a in choice.alerts if a.trait == watched.name]
            records.append(
                ReadingRecord(
                    time=now,
                    request=name,
                    key=exchange.key,
                    trait=watched.name,
                    layer=watched.probe.layer,
                    steer=plan.steer,
                    **summary,
                    part=part,
                    alarms=alarms,
                )
            )
        if service.log_text:
            texts = json.dumps(exchange.body.model_dump(include={"messages", "prompt"}), ensure_ascii=False)
            records.append(ReadingRecord(time=now, request=name, texts=(texts, choice.text_with_calls)))
    return records
