"""The API's own description: what its routes take, answer and refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from poise.serve.responses import ErrorReply

__all__ = ["REFUSALS", "UPLOAD", "answered", "describe", "taken"]

WORDS = {
    400: "The request cannot be done; says why.",
    401: "The key is missing or wrong.",
    403: "This key, or a page from there, may not do that.",
    404: "There is no such thing.",
    405: "Not with this method.",
    408: "The body did not come in time.",
    409: "It clashes with what is there.",
    413: "Too large.",
    415: "The body is compressed.",
    421: "The server is not called that.",
    429: "Too many requests are waiting; Retry-After says when to come again.",
    500: "The model failed on this batch.",
    503: "Not now.",
    504: "It took longer than allowed.",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": words} for status, words in WORDS.items()
}
UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "The bytes of a Poise vector file.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def taken(request: type[BaseModel]) -> dict[str, Any]:
    """Of a route that reads its body itself."""
    schema = {"$ref": f"#/components/schemas/{request.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answered(reply: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Of a route that answers whole or as a stream."""
    stream = {"text/event-stream": {"schema": {"description": "Server-sent events: chunks, then `data: [DONE]`."}}}
    return {200: {"model": reply, "content": stream}}


def describe(app: FastAPI, requests: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """The OpenAPI description: as FastAPI has it, but a request that does not validate is answered by 400.

    Args:
        app: Its routes are described.
        requests: Bodies that routes read themselves, so that FastAPI does not know them.
    """
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        modes: list[tuple[type[BaseModel], Literal["validation"]]] = [(request, "validation") for request in requests]
        _, bodies = models_json_schema(modes, ref_template="#/components/schemas/{model}")
        schema["components"]["schemas"] |= bodies["$defs"]
        schema["components"].setdefault("securitySchemes", {})["key"] = {"type": "http", "scheme": "bearer"}
        schema["security"] = [{"key": []}, {}]
        app.openapi_schema = schema
    return app.openapi_schema
