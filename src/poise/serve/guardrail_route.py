"""``POST /guardrail/{id}/version/{version}/apply`` in the shape of Amazon Bedrock, so that boto3 runs against it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from poise.errors import InvalidArgument, RequestError
from poise.grounding import Grounding
from poise.guardrail import GuardedText, apply_guardrail
from poise.guardrail.apply import Qualifier
from poise.guardrail.grounding_policy import NO_SCORES, GroundingReader, grounding_reader
from poise.serve.api_description import taken
from poise.serve.guarding import ServerGuard
from poise.serve.intervention import intervention_facts
from poise.serve.request_body import read_request
from poise.steer.request_field import RequestText, StrictRequest

if TYPE_CHECKING:
    from poise.serve.service import Service

__all__ = ["ApplyRequest", "add_guardrail_route", "aws_error"]

AWS_ERRORS = {
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    413: "ValidationException",
    415: "ValidationException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}


class QualifiedText(StrictRequest):
    """A text, and what it is."""

    text: RequestText
    qualifiers: list[Qualifier] = Field(default=[], max_length=3)


class ContentBlock(StrictRequest):
    """A part of what is to be checked; images are not supported."""

    text: QualifiedText


class ApplyRequest(StrictRequest):
    """``POST /guardrail/{id}/version/{version}/apply``."""

    source: Literal["INPUT", "OUTPUT"]
    content: list[ContentBlock] = Field(min_length=1, max_length=1000)
    output_scope: Literal["INTERVENTIONS", "FULL"] = Field(
        "INTERVENTIONS", alias="outputScope", description="FULL lists topics and content that were not found, too."
    )


def add_guardrail_route(app: FastAPI, service: Service) -> None:
    """Answer what Bedrock's clients send."""

    @app.post("/guardrail/{identifier:path}/version/{version}/apply", openapi_extra=taken(ApplyRequest))
    async def apply(request: Request, identifier: str, version: str) -> Response:
        data, content_type = await request.body(), request.headers.get("content-type", "")
        key = getattr(request.state, "key", None)
        service.rates.take_request(key, service.policies.of(key).limits)
        guard = service.guardrails.numbered(identifier.rpartition("/")[2], version)
        answer = await service.workers.run(
            partial(_answer, service, guard, data, content_type), size=len(data), waits=guard.waits
        )
        return Response(json.dumps(answer, ensure_ascii=False), media_type="application/json")


def _answer(service: Service, guard: ServerGuard, data: bytes, content_type: str) -> dict[str, Any]:
    body = read_request(ApplyRequest, data, content_type or "application/json")
    texts = [GuardedText(block.text.text, tuple(block.text.qualifiers)) for block in body.content]
    metrics = service.metrics.guardrails
    try:
        with metrics.timed(guard.name, "apply"):
            return apply_guardrail(
                guard.checker,
                texts,
                body.source,
                full=body.output_scope == "FULL",
                activations=guard.reader(service.model, service.scheduler.call, service.engine.read_text),
                reason=guard.answer_reader(service.model, service.scheduler),
                ground=_grounding_reader(service),
                tell=lambda findings: metrics.count(intervention_facts(guard.name, findings, body.source)),
            )
    except InvalidArgument as error:
        raise RequestError(400, str(error), code="invalid_value", param="content") from error


def _grounding_reader(service: Service) -> GroundingReader:
    """Scores answers with the server's model, between two of its steps."""
    if service.engine.read_text is None:
        return grounding_reader(service.model, service.scheduler.call)

    def refuse(sources: Sequence[str], query: str, answer: str) -> Grounding:
        raise InvalidArgument(NO_SCORES)

    return refuse


def aws_error(path: str, error: RequestError) -> tuple[dict[str, Any], dict[str, str]]:
    """Body and headers of a refusal; on Bedrock's routes with what its clients read beside it."""
    if not path.startswith(("/guardrail/", "/guardrail-checks/")):
        return error.body, error.headers
    kind = AWS_ERRORS.get(error.status, "ValidationException" if error.status < 500 else "InternalServerException")
    return {**error.body, "message": error.message}, {**error.headers, "x-amzn-errortype": kind}
