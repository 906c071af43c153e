"""The dashboard over HTTP: the page, what it shows, and what an operator may do."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter

from poise.dashboard.alerts import acknowledge_alert, lift_silence, make_silence
from poise.dashboard.notifications import AlertNotifier
from poise.dashboard.overview import dashboard_overview, source_traits
from poise.dashboard.rules import DashboardSettings
from poise.dashboard.watching import DashboardWatch
from poise.errors import InvalidData, RequestError, SaveFailed
from poise.serve.auth import ApiKeys
from poise.serve.error_answers import add_error_answers
from poise.serve.page_files import add_page
from poise.settings import FrozenModel

__all__ = ["build_dashboard", "try_rule"]

NOT_AN_OPERATOR = "This key may view and not change anything; list it under operators in the dashboard's file."
RowNumber = Annotated[int, PathParameter(ge=0, lt=2**63)]
LOCAL_USER = "a local user"


class Acknowledgement(FrozenModel):
    """What an operator says of an alert."""

    note: str = ""
    new_normal: bool = False


class SilenceRequest(FrozenModel):
    """What nobody is notified of for a while; empty for everything."""

    rule: str = ""
    source: str = ""
    hours: float
    note: str = ""


def build_dashboard(watch: DashboardWatch, notifier: AlertNotifier, keys: ApiKeys) -> FastAPI:
    """The application of a dashboard.

    Args:
        watch: What is shown.
        notifier: What notifies people, for tests of alerts.
        keys: Keys that may view; without any, whoever connects from this machine is an operator.
    """
    app = FastAPI(title="Poise dashboard", openapi_url=None, docs_url=None, redoc_url=None)
    add_error_answers(app)
    _view_routes(app, watch, keys)
    _operator_routes(app, watch, notifier, keys)
    add_page(app, "poise.dashboard")
    return app


def _view_routes(app: FastAPI, watch: DashboardWatch, keys: ApiKeys) -> None:
    @app.get("/api/overview")
    def overview(request: Request, hours: Annotated[float, Query(gt=0, le=24 * 366)] = 24) -> Any:
        role = "operator" if is_operator(watch.settings, keys, request) else "viewer"
        return _unless_refused(lambda: {"role": role, "keys": bool(keys), **dashboard_overview(watch, hours=hours)})

    @app.get("/api/sources/{name:path}/traits")
    def traits(name: str, days: Annotated[float, Query(gt=0, le=366)] = 7) -> Any:
        if name not in watch.pollers:
            raise RequestError(404, f"There is no source {name[:100]!r}.", code="no_source")
        return _unless_refused(lambda: source_traits(watch, name, days=days))

    @app.get("/healthz")
    def healthz() -> Any:
        return {"status": "ok"}

    @app.get("/readyz")
    def readyz() -> Any:
        return {"status": "ready"}


def _operator_routes(app: FastAPI, watch: DashboardWatch, notifier: AlertNotifier, keys: ApiKeys) -> None:
    def operator(request: Request) -> str:
        if not is_operator(watch.settings, keys, request):
            raise RequestError(403, NOT_AN_OPERATOR, code="operators_only")
        return _key_name(request) or LOCAL_USER

    @app.post("/api/alerts/{number}/acknowledge")
    def acknowledge(number: RowNumber, body: Acknowledgement, request: Request) -> Any:
        by, now = operator(request), watch.clock()
        note = body.note[:2000]
        return _unless_refused(
            lambda: acknowledge_alert(watch.database, number, by=by, note=note, now=now, new_normal=body.new_normal)
        )

    @app.post("/api/silences", status_code=201)
    def silence(body: SilenceRequest, request: Request) -> Any:
        by = operator(request)
        for name, known, what in (
            (body.rule, [rule.name for rule in watch.settings.rules], "rule"),
            (body.source, list(watch.pollers), "source"),
        ):
            if name and name not in known:
                raise RequestError(400, f"There is no {what} {name[:100]!r}; there are {', '.join(known)}.", param=what)
        return _unless_refused(
            lambda: {
                "id": make_silence(
                    watch.database,
                    rule=body.rule,
                    source=body.source,
                    seconds=body.hours * 3600,
                    by=by,
                    note=body.note[:2000],
                    now=watch.clock(),
                )
            }
        )

    @app.delete("/api/silences/{number}")
    def lift(number: RowNumber, request: Request) -> Any:
        operator(request)
        _unless_refused(lambda: lift_silence(watch.database, number, watch.clock()))
        return {"lifted": number}

    @app.post("/api/rules/{name:path}/test")
    def test(name: str, request: Request) -> Any:
        by = operator(request)
        if name not in {rule.name for rule in watch.settings.rules}:
            raise RequestError(404, f"There is no rule {name[:100]!r}.", code="no_rule")
        return {"sent": try_rule(watch, notifier, name, by=by)}


def try_rule(watch: DashboardWatch, notifier: AlertNotifier, name: str, *, by: str) -> list[dict[str, str]]:
    """Send a message that says it is a test by every channel, at once; what went wrong with each, or nothing.

    Args:
        watch: The watch.
        notifier: What notifies people.
        name: Name of the rule.
        by: Who tests.
    """
    rule = next(rule for rule in watch.settings.rules if rule.name == name)
    body = {
        "event": "test",
        "rule": name,
        "source": ", ".join(rule.servers) or "every source",
        "severity": rule.severity,
        "kind": rule.when,
        "text": f"A test of the rule {name} by {by}: nothing has happened.",
        "began": watch.clock(),
    }
    name_of_post = f"msg_{secrets.token_hex(8)}"
    return [
        {"channel": channel, "fault": notifier.send_once(channel, body, f"{name_of_post}_{channel}")}
        for channel in notifier.channels
    ]


def _key_name(request: Request) -> str | None:
    name: str | None = getattr(request.state, "key", None)
    return name


def is_operator(settings: DashboardSettings, keys: ApiKeys, request: Request) -> bool:
    """Whether a request may change something."""
    return not keys or _key_name(request) in settings.operators


def _unless_refused(work: Callable[[], Any]) -> Any:
    """What the work gives; a disk that refuses is a 503 with its sentence."""
    try:
        return work()
    except (SaveFailed, InvalidData) as error:
        raise RequestError(503, str(error), code="unavailable", headers={"Retry-After": "5"}) from error
