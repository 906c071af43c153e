"""``POST /guardrail-checks/invoke`` in the shape of Amazon Bedrock: the request names its checks, and no guardrail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from poise.errors import InvalidArgument, RequestError
from poise.guardrail.guard_file import FittedGuard, GuardDetector
from poise.guardrail.judging import DetectorReader
from poise.guardrail.pii_types import PiiType
from poise.guardrail.schema import Source
from poise.guardrail.stateless_checks import (
    AttackCategory,
    ContentCategory,
    MessageToCheck,
    RequestedChecks,
    invoke_checks,
)
from poise.serve.api_description import taken
from poise.serve.request_body import read_request
from poise.steer.request_field import RequestText, StrictRequest

if TYPE_CHECKING:
    from poise.serve.service import Service

__all__ = ["InvokeChecksRequest", "add_guardrail_checks_route"]


class TextToCheck(StrictRequest):
    """A part of a message; only texts are taken."""

    text: RequestText = Field(min_length=1)


class CheckedMessage(StrictRequest):
    """A message."""

    role: Literal["user", "assistant", "system"]
    content: list[TextToCheck] = Field(min_length=1, max_length=1000)


class ContentCheck(StrictRequest):
    """A category of content."""

    category: ContentCategory


class AttackCheck(StrictRequest):
    """A category of attacks."""

    category: AttackCategory


class EntityCheck(StrictRequest):
    """A type of sensitive information."""

    type: PiiType


class ContentChecks(StrictRequest):
    """Categories of content."""

    categories: list[ContentCheck] = Field(min_length=1, max_length=5)


class AttackChecks(StrictRequest):
    """Categories of attacks."""

    categories: list[AttackCheck] = Field(min_length=1, max_length=3)


class EntityChecks(StrictRequest):
    """Types of sensitive information."""

    entities: list[EntityCheck] = Field(min_length=1, max_length=31)


class ChecksOfRequest(StrictRequest):
    """What is checked."""

    content_filter: ContentChecks | None = Field(None, alias="contentFilter")
    prompt_attack: AttackChecks | None = Field(None, alias="promptAttack")
    sensitive_information: EntityChecks | None = Field(None, alias="sensitiveInformation")


class InvokeChecksRequest(StrictRequest):
    """``POST /guardrail-checks/invoke``."""

    messages: list[CheckedMessage] = Field(min_length=1, max_length=1000)
    checks: ChecksOfRequest


def add_guardrail_checks_route(app: FastAPI, service: Service) -> None:
    """Answer what Bedrock's clients send."""

    @app.post("/guardrail-checks/invoke", openapi_extra=taken(InvokeChecksRequest))
    async def invoke(request: Request) -> Response:
        data, content_type = await request.body(), request.headers.get("content-type", "")
        key = getattr(request.state, "key", None)
        service.rates.take_request(key, service.policies.of(key).limits)
        work = partial(_invoked, service, key, data, content_type)
        answer = await service.workers.run(work, size=len(data), waits=True)
        return Response(json.dumps(answer), media_type="application/json")


def _invoked(service: Service, key: str | None, data: bytes, content_type: str) -> dict[str, Any]:
    body = read_request(InvokeChecksRequest, data, content_type or "application/json")
    wanted = body.checks
    checks = RequestedChecks(
        content=tuple(each.category for each in wanted.content_filter.categories) if wanted.content_filter else (),
        attacks=tuple(each.category for each in wanted.prompt_attack.categories) if wanted.prompt_attack else (),
        types=tuple(each.type for each in wanted.sensitive_information.entities)
        if wanted.sensitive_information
        else (),
    )
    messages = [MessageToCheck(m.role, tuple(part.text for part in m.content)) for m in body.messages]
    try:
        return invoke_checks(messages, checks, RuleReaders(service, key, checks.rules) if checks.rules else None)
    except InvalidArgument as error:
        raise RequestError(400, str(error), code="invalid_value") from error


class RuleReaders:
    """Reads content with the detectors of the server's guardrails: those of the key's own, else of the first with any.

    Args:
        service: The server.
        key: Name of the key that asks.
        rules: Types of content that are to be read.

    Raises:
        RequestError: nobody has fitted a rule for one of them.
    """

    def __init__(self, service: Service, key: str | None, rules: Sequence[str]) -> None:
        of_key = service.guardrails.choose(service.policies.of(key), None)
        self._readers: list[tuple[set[str], DetectorReader]] = []
        missing = set(rules)
        for guard in [*([of_key] if of_key else []), *service.guardrails.guards.values()]:
            if guard.fitted and (reads := missing & _content_rules(guard.fitted)):
                missing -= reads
                reader = DetectorReader(guard.fitted, service.model, service.scheduler.call, service.engine.read_text)
                self._readers.append((reads, reader))
        if missing:
            text = (
                f"No guardrail here reads {', '.join(sorted(missing))}; fit one with these `content` rules by "
                "`poise guardrail fit`, and start the server with it as `guardrail`."
            )
            raise RequestError(400, text, code="unsupported", param="checks")

    def __call__(self, text: str, source: Source) -> list[tuple[GuardDetector, float]]:
        """Each detector with what it reads of a prompt or an answer."""
        return [
            (detector, value)
            for reads, reader in self._readers
            for detector, value in reader.projections(text, source)
            if detector.rule in reads
        ]


def _content_rules(fitted: FittedGuard) -> set[str]:
    return {detector.rule for detector in fitted.header.detectors if detector.kind == "CONTENT"}
