"""``poise dashboard``: many servers and runs on one page, with alerts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.options import Json
from poise.cli.work import note, working
from poise.counting import counted
from poise.errors import InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from poise.dashboard import DashboardSettings

__all__ = ["dashboard_command"]

DEFAULT_OUT = Path("dashboard")


def dashboard_command(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="YAML", dir_okay=False, help="Servers, rules and who is notified.", show_default=False),
    ] = None,
    servers: Annotated[
        list[str] | None,
        typer.Option("--server", metavar="[NAME=]URL", help="Watch this server, without a file. Repeat for more."),
    ] = None,
    readings: Annotated[
        list[str] | None,
        typer.Option(
            "--readings",
            metavar="[NAME=]DB",
            help="The readings of the server of that name, or of a run, without a file.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", file_okay=False, help="Folder of its alerts and counts.")
    ] = DEFAULT_OUT,
    host: Annotated[
        str, typer.Option("--host", metavar="H", help="Where to listen; beyond this machine only with keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="P", min=0, max=65535, help="0 takes a free one.")] = 8100,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="F", dir_okay=False, help="`NAME KEY` a line.")
    ] = None,
    once: Annotated[
        bool,
        typer.Option(
            "--once",
            help="Poll once, print what is so, and end: exit code 1 where an alert is open or a source is away.",
        ),
    ] = False,
    test: Annotated[
        str | None, typer.Option("--test", metavar="RULE", help="Send a test notification of this rule, and exit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show many servers and runs on one page: health, latency, traits over days, drift alerts.

    Alerts and acknowledgements are kept in a folder; Ctrl-C ends it, and the same command goes on.
    """
    if once and test:
        raise InvalidArgument("`once` polls and `test` sends a test notification; give one of them.")
    if as_json and not once:
        raise InvalidArgument("`as_json` prints one poll; give `once` too.")
    with working():
        settings = _dashboard_settings(path, servers or [], readings or [])
        if test:
            sent = _test(settings, out, test)
        elif once:
            overview = _poll_once(settings, out, path)
        else:
            server = _server(settings, out, host, port, api_key_file)
    if test:
        _say_test(sent)
    elif once:
        _say_overview(overview, as_json=as_json)
    else:
        note(f"Watching {', '.join(source.name for source in settings.servers)}; alerts are kept in {out}.")
        server.run(lambda address: note(f"Listening on {address}; Ctrl-C stops it."))
        note("Stopped.")


def _dashboard_settings(path: Path | None, servers: list[str], readings: list[str]) -> DashboardSettings:
    from poise.dashboard import DashboardSettings, WatchedSource, read_dashboard

    if path is not None:
        if servers or readings:
            raise InvalidArgument("A file says what is watched; leave `servers` and `readings` out, or the file.")
        return read_dashboard(path)
    named: dict[str, dict[str, str]] = {}
    for field, texts in (("url", servers), ("readings", readings)):
        for text in texts:
            before, equals, after = text.partition("=")
            is_named = bool(equals) and "/" not in before and ":" not in before
            value = after if is_named else text
            if field == "url" and not value.startswith(("http://", "https://")):
                raise InvalidArgument(f"{text} names no server; give its address, such as http://127.0.0.1:8000.")
            name = before if is_named else (value.split("://")[-1] if field == "url" else Path(value).stem)
            if field in named.setdefault(name, {}):
                raise InvalidArgument(f"Two are called {name}; name one, as OTHER={value}.")
            named[name][field] = value
    if not named:
        raise InvalidArgument("Nothing to watch; name a file, or a server by `servers`, or a database by `readings`.")
    return DashboardSettings(servers=tuple(WatchedSource(name=name, **fields) for name, fields in named.items()))


def _server(settings: DashboardSettings, out: Path, host: str, port: int, keys: Path | None) -> Any:
    try:
        from poise.dashboard.dashboard_server import DashboardServer
        from poise.serve.auth import ApiKeys
    except ImportError as error:
        raise _missing_part(error) from error
    return DashboardServer(settings, out, keys=ApiKeys.read(keys), host=host, port=port)


def _missing_part(error: ImportError) -> MissingExtra:
    return MissingExtra.of(f"poise dashboard needs a part that is not installed ({error.name})", "serve")


def _poll_once(settings: DashboardSettings, out: Path, path: Path | None) -> dict[str, Any]:
    try:
        from poise.dashboard.overview import dashboard_overview, known_traits
        from poise.dashboard.watching import DashboardWatch
    except ImportError as error:
        raise _missing_part(error) from error
    from poise.settings import faults_error, located_faults
    from poise.storage.lock import locked

    with locked(out, "dashboard"):
        watch = DashboardWatch.open(settings, out)
        watch.poll()
        faults = list(settings.trait_faults(sorted(known_traits(watch))))
        if faults and path is not None:
            with located_faults(path, type(settings)):
                raise faults_error(faults)
        return dashboard_overview(watch)


def _test(settings: DashboardSettings, out: Path, name: str) -> list[dict[str, str]]:
    try:
        from poise.dashboard.alert_database import AlertDatabase
        from poise.dashboard.dashboard_app import try_rule
        from poise.dashboard.notifications import AlertNotifier
        from poise.dashboard.rules import unknown_name
        from poise.dashboard.watching import DashboardWatch
    except ImportError as error:
        raise _missing_part(error) from error
    names = [rule.name for rule in settings.rules]
    if name not in names:
        raise InvalidArgument(f"There is no rule {name!r}, {unknown_name(name, names)}.".replace("?.", "?"))
    database = AlertDatabase(out / "dashboard.sqlite")
    notifier = AlertNotifier(settings, database)
    if not notifier.channels:
        raise InvalidArgument("There is nobody to notify: the file has no webhook and no mail; add one of them.")
    return try_rule(DashboardWatch(settings, database), notifier, name, by="the command line")


def _say_test(sent: list[dict[str, str]]) -> None:
    for one in sent:
        typer.echo(f"{one['channel']}: {one['fault'] or 'sent'}")
    if any(one["fault"] for one in sent):
        raise typer.Exit(1)


def _say_overview(overview: dict[str, Any], *, as_json: bool) -> None:
    from poise.cli import facts, render

    alerts = [alert for alert in overview["alerts"] if alert["ended"] is None]
    if as_json:
        facts.print_json(overview)
    else:
        lines = [f"{one['name']}: {one['fault'] or 'well'}{_chart_words(one['charts'])}" for one in overview["sources"]]
        lines += [f"ALERT  {alert['rule']} of {alert['source']}: {alert['text']}" for alert in alerts]
        lines += overview["notes"] or []
        lines.append(f"{counted(len(alerts), 'open alert')}.")
        render.show([*map(render.plain_text, lines)])
    if alerts or any(one["fault"] for one in overview["sources"]):
        raise typer.Exit(1)


def _chart_words(charts: list[dict[str, Any]]) -> str:
    words = [f"{one['trait']}: {one['promise'] or one['note'] or _collecting(one)}" for one in charts]
    return "".join(f"\n  {text}" for text in words)


def _collecting(chart: dict[str, Any]) -> str:
    return f"{chart['have']:,} of {chart['wanted']:,} ordinary answers"
