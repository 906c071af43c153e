"""What goes wrong, as OpenAI's clients know it; what is not there is answered by what is."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from poise.errors import RequestError
from poise.serve.guardrail_route import aws_error
from poise.serve.request_faults import fault

__all__ = ["add_error_answers"]

log = logging.getLogger("poise.serve")

MOST_SHOWN = 100  # characters of an address that a message repeats


def add_error_answers(app: FastAPI) -> None:
    """Answer every error of the application."""

    @app.exception_handler(RequestError)
    async def request_error(request: Request, error: RequestError) -> Response:
        body, headers = aws_error(request.url.path, error)
        return JSONResponse(body, error.status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        refusal = fault(error.errors())
        return JSONResponse(refusal.body, refusal.status)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        refusal = _routing_fault(app, request, error)
        return JSONResponse(refusal.body, refusal.status, headers={**(error.headers or {}), **refusal.headers})

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        log.error("%s failed", request.url.path, exc_info=error)
        refusal = RequestError(500, "The server failed on this request.", code="internal")
        body, headers = aws_error(request.url.path, refusal)
        return JSONResponse(body, 500, headers={**headers, "Connection": "close"})  # as the server does after a failure


def _routing_fault(app: FastAPI, request: Request, error: HTTPException) -> RequestError:
    path = request.url.path
    shown = path[:MOST_SHOWN].encode("utf-8", "replace").decode()
    if error.status_code == 404:
        addresses = [
            f"{method} {address}" for address, methods in _addresses(app).items() for method in sorted(methods)
        ]
        text = f"There is nothing at {shown}; there are: {', '.join(addresses)}."
        if nearest := _nearest(path, list(_addresses(app))):
            text = f"There is nothing at {shown}. Do you mean {nearest}? There are: {', '.join(addresses)}."
        return RequestError(404, text, code="http_error")
    if error.status_code == 405:
        allowed = sorted({m for r in _routes(app) if r.path_regex.fullmatch(path) for m in r.methods or ()})
        text = f"{shown} does not take {request.method}; it takes {' and '.join(allowed) or 'another method'}."
        return RequestError(405, text, code="http_error", headers={"Allow": ", ".join(allowed)} if allowed else {})
    return RequestError(error.status_code, str(error.detail), code="http_error")


def _routes(app: FastAPI) -> list[APIRoute]:
    return [route for route in app.routes if isinstance(route, APIRoute)]


def _addresses(app: FastAPI) -> dict[str, list[str]]:
    """All addresses, with their methods; of the page the first alone."""
    out: dict[str, list[str]] = {}
    for route in _routes(app):
        if not route.path_format.startswith("/page/"):
            out.setdefault(route.path_format, []).extend(route.methods or ())
    return out


def _nearest(path: str, addresses: Sequence[str]) -> str | None:
    """The address that a path may be a slip of; where ``/v1`` is missing, it is with it."""
    trimmed = "/" + path.strip("/")
    for candidate in (trimmed, f"/v1{trimmed}", trimmed.removeprefix("/v1")):
        if candidate in addresses:
            return candidate
    close = difflib.get_close_matches(trimmed[:MOST_SHOWN], addresses, n=1, cutoff=0.75)
    return close[0] if close else None
