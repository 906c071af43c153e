"""The routes: parse, one call, render.

What is ``async`` here runs on the event loop, where nothing may take a time that grows with a request: texts are worked
on by ``Service.workers``, and every other route is a plain function, which FastAPI runs in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.routing import APIRoute
from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool

from poise.data import AnswerPart
from poise.errors import RequestError
from poise.serve import responses as replies
from poise.serve.api_description import REFUSALS, UPLOAD, answered, describe, taken
from poise.serve.auth import VECTORS_FORBIDDEN
from poise.serve.embeddings import EmbeddingRequest, Embeddings, embedding_body
from poise.serve.error_answers import add_error_answers
from poise.serve.exchange import CompletionExchange
from poise.serve.guardrail_checks_route import InvokeChecksRequest, add_guardrail_checks_route
from poise.serve.guardrail_route import ApplyRequest, add_guardrail_route
from poise.serve.metrics import CONTENT_TYPE
from poise.serve.model_entry import ModelEntry, Models, model_entry
from poise.serve.page_data import history, vector_entry
from poise.serve.page_files import add_page
from poise.serve.readings_db import ReadingsQuery
from poise.serve.rendering import chunk_body, completion_body, usage_body
from poise.serve.request_body import json_pieces, read_request
from poise.serve.requests import ChatCompletionRequest, CompletionRequest, OpenAIRequest
from poise.serve.response_events import ResponseReply
from poise.serve.response_requests import CreateResponse
from poise.serve.response_route import open_response, response_events, written_response
from poise.serve.run_routes import add_run_routes
from poise.serve.service import Service
from poise.serve.streaming import ExchangeStream, unless_hung_up, with_signs_of_life
from poise.steer.request_field import VECTOR_NAME

__all__ = ["build"]

log = logging.getLogger("poise.serve")

VectorName = Annotated[str, Path(pattern=VECTOR_NAME, description="A vector's name.")]
KeyName = Annotated[str | None, Query(max_length=200, description="Readings of this key alone; others' for admins.")]
Instant = Annotated[str | None, Query(max_length=40, description="A time, ISO 8601 in UTC.")]


def build(service: Service) -> FastAPI:
    """The application of a server."""
    app = FastAPI(
        title="Poise",
        description="OpenAI's API with persona vectors: answers are watched, steered and warned of.",
        version=replies.VERSION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        responses=REFUSALS,
    )
    add_error_answers(app)
    _openai(app, service)
    _vectors(app, service)
    _readings_routes(app, service)
    add_guardrail_route(app, service)
    add_run_routes(app, service)
    add_guardrail_checks_route(app, service)
    _state(app, service)
    _answer_heads(app)
    add_page(app)
    return app


def _answer_heads(app: FastAPI) -> None:
    """Take HEAD wherever there is GET, as probes and proxies expect; the connection leaves the body out."""
    for route in [route for route in app.routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())]:
        app.add_api_route(
            route.path,
            route.endpoint,
            methods=["HEAD"],
            response_model=route.response_model,
            response_class=route.response_class,
            include_in_schema=False,
        )


def _openai(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=Models)
    def models(request: Request) -> Any:
        return {"object": "list", "data": [model_entry(service, _key(request))]}

    @app.get("/v1/models/{name:path}", response_model=ModelEntry)
    def model(request: Request, name: str) -> Any:
        if name != service.name:
            raise RequestError(
                404, f"There is no model {name[:100]!r} here; it is {service.name!r}.", code="model_not_found"
            )
        return model_entry(service, _key(request))

    chat_body, plain_body = taken(ChatCompletionRequest), taken(CompletionRequest)

    @app.post("/v1/chat/completions", responses=answered(replies.ChatCompletion), openapi_extra=chat_body)
    async def chat(request: Request) -> Response:
        return await _complete(service, ChatCompletionRequest, request)

    @app.post("/v1/completions", responses=answered(replies.Completion), openapi_extra=plain_body)
    async def complete(request: Request) -> Response:
        return await _complete(service, CompletionRequest, request)

    @app.post("/v1/embeddings", response_model=Embeddings, openapi_extra=taken(EmbeddingRequest))
    async def embed(request: Request) -> Response:
        return await _answer_embeddings(service, request)

    responses_body = taken(CreateResponse)

    @app.post("/v1/responses", responses=answered(ResponseReply), openapi_extra=responses_body)
    async def respond(request: Request) -> Response:
        return await _respond(service, request)


@contextlib.contextmanager
def _rates_on_refusals(service: Service, key: str | None) -> Iterator[None]:
    """Say in a refusal too what is left of the limits: it counts as a request."""
    try:
        yield
    except RequestError as error:
        error.headers = {**service.rates.headers(key, service.policies.of(key).limits), **error.headers}
        raise


async def _respond(service: Service, request: Request) -> Response:
    data, content_type, key = await request.body(), request.headers.get("content-type", ""), _key(request)
    limits = service.policies.of(key).limits
    service.rates.take_request(key, limits)
    with _rates_on_refusals(service, key):
        body, exchange = await open_response(service, data, content_type, key)
    headers = {**service.rates.headers(key, limits), **exchange.headers}
    if body.stream:
        return ExchangeStream(exchange, response_events(body, exchange), headers)
    try:
        if await unless_hung_up(request, asyncio.ensure_future(_to_the_end(exchange))) is None:
            return Response(status_code=499)  # which nobody reads
        written = await service.workers.run(partial(written_response, body, exchange), size=exchange.size)
        return Response(written, media_type="application/json", headers=headers)
    finally:
        exchange.close()


async def _answer_embeddings(service: Service, request: Request) -> Response:
    data, content_type, key = await request.body(), request.headers.get("content-type", ""), _key(request)
    limits = service.policies.of(key).limits
    service.rates.take_request(key, limits)
    with _rates_on_refusals(service, key):
        body = await service.workers.run(partial(read_request, EmbeddingRequest, data, content_type), size=len(data))
        body.check()
        texts = body.texts
        tokens = await service.workers.run(partial(service.sentences.count, texts), size=len(data))
        reservation = service.rates.reserve(key, limits, tokens)
        try:
            work = asyncio.ensure_future(service.sentences.embed(texts))
            vectors = await unless_hung_up(request, work)
        except BaseException:
            service.rates.settle(reservation, 0)
            raise
    service.rates.settle(reservation, tokens)
    if vectors is None:
        return Response(status_code=499)  # which nobody reads

    def write() -> bytes:
        return "".join(json_pieces(embedding_body(vectors, tokens, body.encoding_format))).encode()

    written = await service.workers.run(write, size=vectors.size)
    return Response(written, media_type="application/json", headers=service.rates.headers(key, limits))


async def _complete(service: Service, kind: type[OpenAIRequest], request: Request) -> Response:
    data, content_type = await request.body(), request.headers.get("content-type", "")
    key = _key(request)
    limits = service.policies.of(key).limits
    service.rates.take_request(key, limits)
    with _rates_on_refusals(service, key):
        body = await service.workers.run(partial(read_request, kind, data, content_type), size=len(data))
        exchange = await service.open(body, key, size=len(data))
    headers = {**service.rates.headers(key, limits), **exchange.headers}
    if body.stream:
        chunks = _event_stream(exchange, include_usage=body.stream_options.include_usage)
        return ExchangeStream(exchange, chunks, headers)
    try:
        if await unless_hung_up(request, asyncio.ensure_future(_to_the_end(exchange))) is None:
            return Response(status_code=499)  # which nobody reads
        written = await service.workers.run(partial(_completion_json, exchange), size=exchange.size)
        return Response(written, media_type="application/json", headers=headers)
    finally:
        exchange.close()


async def _to_the_end(exchange: CompletionExchange) -> bool:
    async with contextlib.aclosing(exchange.steps()) as steps:
        async for _ in steps:
            pass
    return True


def _completion_json(exchange: CompletionExchange) -> bytes:
    body = completion_body(exchange.head, exchange.kind, exchange.plan, exchange.choices)
    return "".join(json_pieces(body)).encode()


async def _event_stream(exchange: CompletionExchange, *, include_usage: bool) -> AsyncIterator[bytes]:
    head, kind = exchange.head, exchange.kind
    more: dict[str, Any] = {"usage": None} if include_usage else {}
    opened: set[int] = set()
    try:
        async with contextlib.aclosing(exchange.steps()) as steps:
            async for step in with_signs_of_life(steps):
                if step is None:
                    yield format_sse_event(comment="waiting")
                    continue
                choice, guarded = step
                if choice.index not in opened:
                    opened.add(choice.index)
                    yield await _opening_event(exchange, chunk_body(head, kind, [choice.opening_chunk()], **more))
                for piece in choice.chunks(guarded):
                    yield _event(chunk_body(head, kind, [piece], **more))
    except RequestError as error:
        yield _event(error.body)
    else:
        if include_usage:
            yield _event(chunk_body(head, kind, [], usage=usage_body(exchange.plan, exchange.choices)))
    yield format_sse_event(data_str="[DONE]")


async def _opening_event(exchange: CompletionExchange, body: dict[str, Any]) -> bytes:
    """The first chunk, which may hold the scores of a whole prompt."""
    if exchange.plan.scoring is None:
        return _event(body)
    text = await exchange.service.workers.run(lambda: "".join(json_pieces(body)), size=exchange.size)
    return format_sse_event(data_str=text)


def _event(body: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(body, ensure_ascii=False, allow_nan=False))


def _vectors(app: FastAPI, service: Service) -> None:
    registry = service.registry

    @app.get("/v1/poise/vectors", response_model=replies.VectorList)
    def vectors(
        request: Request, everyone: Annotated[bool, Query(description="The uploads of all keys too; admins.")] = False
    ) -> Any:
        key = _key(request)
        entries = list(registry.of(key).values())
        if everyone:
            _check_admin(service, key)
            entries = [w for w in entries if w.fixed] + registry.uploaded
        return {"object": "list", "data": [vector_entry(w) for w in entries]}

    @app.post("/v1/poise/vectors", status_code=201, response_model=replies.Vector, openapi_extra=UPLOAD)
    async def upload(request: Request, name: Annotated[str, Query(pattern=VECTOR_NAME)]) -> Any:
        key, data = _key(request), await request.body()  # the gate has asked whether the key may
        most = service.policies.of(key).most_vectors
        return await run_in_threadpool(lambda: vector_entry(registry.upload(name, data, owner=key, most=most)))

    @app.delete("/v1/poise/vectors/{name}", response_model=replies.Deleted)
    def delete(
        request: Request,
        name: VectorName,
        owner: Annotated[str | None, Query(max_length=200, description="The key whose upload it is; admins.")] = None,
    ) -> Any:
        key = _key(request)
        if owner is not None and owner != key:
            _check_admin(service, key)
        elif not (service.policies.of(key).may_change_vectors or service.policies.of(key).admin):
            raise RequestError(403, VECTORS_FORBIDDEN, code="vectors_forbidden")
        if name in service.policies.named:
            raise RequestError(409, f"{name} is part of the server's policy; change that first.", code="in_policy")
        registry.delete(name, key if owner is None else owner)
        return {"deleted": True, "id": name}


def _key(request: Request) -> str | None:
    """Name of the key that a request came with."""
    key: str | None = getattr(request.state, "key", None)
    return key


def _check_admin(service: Service, key: str | None) -> None:
    if not service.is_admin(key):
        raise RequestError(403, "Only an admin key may see or change what is other keys'.", code="admin_only")


def _readings_of(service: Service, request: Request, key: str | None) -> str | None:
    """The key whose readings a request may have; ``None`` for all."""
    asking = _key(request)
    if key is not None and key != asking:
        _check_admin(service, asking)
    return key if key is not None or service.is_admin(asking) else asking


def _readings_routes(app: FastAPI, service: Service) -> None:
    @app.get("/v1/poise/readings", response_model=replies.ReadingsPage)
    def readings(
        request: Request,
        key: KeyName = None,
        trait: Annotated[str | None, Query(max_length=64)] = None,
        part: Annotated[AnswerPart | None, Query(description="Answers read in this part.")] = None,
        since: Instant = None,
        until: Instant = None,
        alarmed: bool | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: Annotated[int | None, Query(ge=0, lt=2**63, description="The last answer's `next`.")] = None,
    ) -> Any:
        shown_key = _readings_of(service, request, key)
        if trait is not None:
            _check_trait(service, trait, shown_key)
        query = ReadingsQuery(
            key=shown_key,
            trait=trait,
            part=part,
            since=_instant("since", since),
            until=_instant("until", until),
            alarmed=alarmed,
            limit=limit,
            after=after,
        )
        rows, following = service.store.readings(query)
        shown = [{**row, "time": replies.iso(row["time"])} for row in rows]
        return {"object": "list", "data": shown, "next": following}

    @app.get("/v1/poise/readings/summary", response_model=replies.ReadingsHistory)
    def summarised(
        request: Request,
        key: KeyName = None,
        hours: Annotated[float, Query(gt=0, le=24 * 366)] = 24,
        bucket_minutes: Annotated[float, Query(ge=1, le=24 * 60)] = 30,
    ) -> Any:
        if hours * 60 / bucket_minutes > 2000:
            raise RequestError(400, "That is more than 2,000 buckets; ask for longer ones.", param="bucket_minutes")
        rows = service.store.since(time.time() - hours * 3600, _readings_of(service, request, key))
        return {"data": history(rows, bucket_minutes * 60)}


def _check_trait(service: Service, trait: str, key: str | None) -> None:
    """Refuse a name that no vector has or had: readings outlive the vectors that they came from."""
    served = {**service.registry.of(key), **{w.name: w for w in service.registry.uploaded if key is None}}
    if trait not in served and trait not in (read := service.store.traits(key)):
        names = ", ".join(dict.fromkeys([*served, *read])) or "none"
        text = f"There are no readings by {trait!r}; there are readings by: {names}."
        raise RequestError(404, text, code="vector_not_found", param="trait")


def _instant(param: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return replies.seconds(text)
    except (ValueError, OverflowError) as error:
        raise RequestError(400, f"{param} is not a time such as 2026-05-04T12:00:00Z.", param=param) from error


def _state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", response_model=replies.State)
    async def healthz() -> Any:
        if not service.scheduler.healthy:
            raise RequestError(503, "The model fails at every step; restart the server.", code="unhealthy")
        return {"status": "ok"}

    @app.get("/readyz", response_model=replies.State)
    async def readyz() -> Any:
        if not service.scheduler.alive:
            text = "Not ready: the model's thread has ended or is ending."
            raise RequestError(503, text, code="not_ready", headers={"Retry-After": "5"})
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/openapi.json", include_in_schema=False)
    def description() -> Response:
        of_openai = (ChatCompletionRequest, CompletionRequest, EmbeddingRequest, CreateResponse)
        return JSONResponse(describe(app, (*of_openai, ApplyRequest, InvokeChecksRequest)))
