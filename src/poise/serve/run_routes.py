"""``/v1/poise/sessions``: the runs that a server follows, step by step, and the word that lets one go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Path, Query, Request
from pydantic import BaseModel

from poise.errors import RequestError
from poise.serve.responses import Deleted, iso
from poise.serve.run_following import drift_facts
from poise.serve.runs import FollowedRun, StepRecord

if TYPE_CHECKING:
    from poise.serve.service import Service

__all__ = ["add_run_routes"]

SessionName = Annotated[str, Path(max_length=200, description="A run's name.")]
KeyOfRuns = Annotated[str | None, Query(max_length=200, description="Runs of this key; others' for admins.")]


class TraitOfStep(BaseModel):
    """One vector at one step; ``s`` is the chart's sum after it, null without a chart."""

    prompt: float | None
    mean: float | None
    peak: float | None
    s: float | None


class DriftOfStep(BaseModel):
    """Drift that a step raised, and what was done."""

    trait: str
    side: Literal["above", "below"]
    action: str
    h: float


class ResultOfStep(BaseModel):
    """A tool's result, as the detector of hidden instructions read it."""

    message: int
    tool: str
    before: float | None
    after: float
    change: float | None
    reads: Literal["plain", "change"]
    score: float
    threshold: float
    rate: float
    flagged: bool
    action: str


class SessionStep(BaseModel):
    """A request and its answer."""

    number: int
    time: str
    request: str
    prompt_tokens: int
    tokens: int
    finish: str
    traits: dict[str, TraitOfStep]
    drift: list[DriftOfStep]
    tool_results: list[ResultOfStep]
    steer: str | None


class SessionSummary(BaseModel):
    """A run without its steps; ``earlier_answers`` in its history were not seen here."""

    id: str
    key: str | None
    named: bool
    state: Literal["open", "asking", "stopped"]
    reason: str
    began: str
    last: str
    steps: int
    alarms: int
    holds: dict[str, str]
    forked_from: tuple[str, int] | None
    earlier_answers: int


class SessionFacts(SessionSummary):
    """A run with the last of its steps."""

    data: list[SessionStep]


class SessionList(BaseModel):
    """Runs, the one that was touched last first."""

    object: Literal["list"]
    data: list[SessionSummary]


def add_run_routes(app: FastAPI, service: Service) -> None:
    """Answer what was read along runs."""
    book = service.runs.book

    @app.get("/v1/poise/sessions", response_model=SessionList)
    def sessions(
        request: Request,
        key: KeyOfRuns = None,
        state: Annotated[Literal["open", "asking", "stopped"] | None, Query(description="Runs in this state.")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Any:
        shown = _visible_key(service, request, key)
        everyone = shown is None
        runs = [run for run in book.of(shown, everyone=everyone) if state in (None, run.state)]
        return {"object": "list", "data": [run_summary(run) for run in runs[:limit]]}

    @app.get("/v1/poise/sessions/{name:path}", response_model=SessionFacts)
    def session(request: Request, name: SessionName, key: KeyOfRuns = None) -> Any:
        run = _session_run(service, request, name, key)
        with book.lock:
            return {**run_summary(run), "data": [_step_facts(step) for step in run.steps]}

    @app.post("/v1/poise/sessions/{name:path}/approve", response_model=SessionSummary)
    def approve(request: Request, name: SessionName, key: KeyOfRuns = None) -> Any:
        run = _session_run(service, request, name, key)
        rules, asking = service.policies.of(run.key).runs, getattr(request.state, "key", None)
        if rules and rules.approved_by == "admin" and not service.is_admin(asking):
            raise RequestError(403, "Only an admin key may let this run go on.", code="admin_only")
        with book.lock:
            if run.state != "asking":
                text = f"The run {name[:100]!r} waits for nothing; it is {run.state}."
                raise RequestError(409, text, code="nothing_to_approve")
            run.approve()
            return run_summary(run)

    @app.delete("/v1/poise/sessions/{name:path}", response_model=Deleted)
    def delete(request: Request, name: SessionName, key: KeyOfRuns = None) -> Any:
        book.forget(_session_run(service, request, name, key))
        return {"deleted": True, "id": name}


def _visible_key(service: Service, request: Request, key: str | None) -> str | None:
    """The key whose runs a request may see; ``None`` for all."""
    asking: str | None = getattr(request.state, "key", None)
    if key is not None and key != asking and not service.is_admin(asking):
        raise RequestError(403, "Only an admin key may see or change what is other keys'.", code="admin_only")
    return key if key is not None or service.is_admin(asking) else asking


def _session_run(service: Service, request: Request, name: str, key: str | None) -> FollowedRun:
    """The run of that name: of the request's own key where no other is given."""
    _visible_key(service, request, key)
    run = service.runs.book.find(getattr(request.state, "key", None) if key is None else key, name)
    if run is None:
        text = f"There is no run {name[:100]!r} here; GET /v1/poise/sessions lists those that are remembered."
        raise RequestError(404, text, code="session_not_found")
    return run


def run_summary(run: FollowedRun) -> dict[str, Any]:
    """A run as the API gives it."""
    return {
        "id": run.id,
        "key": run.key,
        "named": run.session,
        "state": run.state,
        "reason": run.reason,
        "began": iso(run.began),
        "last": iso(run.last),
        "steps": run.count,
        "alarms": sum(len(step.alarms) + sum(r.flagged for r in step.results) for step in run.steps),
        "holds": dict(run.holds),
        "forked_from": run.forked_from,
        "earlier_answers": run.earlier_answers,
    }


def _step_facts(step: StepRecord) -> dict[str, Any]:
    names = ("number", "request", "prompt_tokens", "tokens", "finish", "steer")
    traits = {
        name: {part: getattr(reading, part) for part in ("prompt", "mean", "peak", "s")}
        for name, reading in step.traits.items()
    }
    return {
        **{name: getattr(step, name) for name in names},
        "time": iso(step.time),
        "traits": traits,
        "drift": [drift_facts(alarm) for alarm in step.alarms],
        "tool_results": [result.facts for result in step.results],
    }
