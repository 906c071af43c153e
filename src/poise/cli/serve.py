"""``poise serve``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from poise.cli.options import Device, Dtype, ModelName, OnOtherModel, ShowOption
from poise.cli.preview import show_data
from poise.cli.work import load_model, note, with_options, working
from poise.errors import InvalidArgument, MissingExtra

__all__ = ["serve"]

_WHO = "Who may do what"
_KEPT = "What is kept and told"
_LOAD = "Under load"

Vectors = Annotated[
    list[Path] | None,
    typer.Option("--vector", metavar="[NAME=]FILE", help="Watch it, and let requests steer with it. Repeat for more."),
]
Host = Annotated[str, typer.Option("--host", metavar="H", help="Where to listen; beyond this machine only with keys.")]
Port = Annotated[int, typer.Option("--port", metavar="P", min=0, max=65535, help="0 takes a free one.")]
Name = Annotated[str, typer.Option("--name", metavar="NAME", help="What requests call the model.")]
Normal = Annotated[
    list[str] | None,
    typer.Option(
        "--normal",
        metavar="DATA",
        help="Set alarms on these conversations first, in memory only: data as `poise calibrate` takes them.",
    ),
]
Rate = Annotated[float, typer.Option("--rate", metavar="R", help="False alarms a normal answer, with --normal.")]
Keys = Annotated[
    Path | None,
    typer.Option("--api-key-file", metavar="F", dir_okay=False, help="`NAME KEY` a line.", rich_help_panel=_WHO),
]
Rules = Annotated[
    Path | None,
    typer.Option("--policy", metavar="F", dir_okay=False, help="Rules for all and by key.", rich_help_panel=_WHO),
]
Guard = Annotated[
    list[Path] | None,
    typer.Option(
        "--guardrail",
        metavar="F|DIR",
        help="Guard prompts and answers by it, or by a folder of NAME/VERSION. Repeat for more.",
        rich_help_panel=_WHO,
    ),
]
Documents = Annotated[
    Path | None,
    typer.Option("--knowledge", metavar="KB", file_okay=False, help="Let chats be answered from this knowledge base."),
]
Memories = Annotated[
    list[Path] | None,
    typer.Option(
        "--memory", metavar="DIR", file_okay=False, help="Let chats have this memory, by its name. Repeat for more."
    ),
]
MemoryGate = Annotated[
    Path | None,
    typer.Option("--memory-gate", metavar="F", dir_okay=False, help="Have the model read what is to be remembered."),
]
Rerank = Annotated[
    str | None,
    typer.Option(
        "--rerank",
        metavar="R",
        help="Score the best 20 passages again: by a cross-encoder (folder or name), or by model:NAME, endpoint:NAME, "
        "likelihood:NAME.",
    ),
]
Cors = Annotated[
    list[str] | None,
    typer.Option("--cors", metavar="ORIGIN", help="Let this origin's pages ask.", rich_help_panel=_WHO),
]
Log = Annotated[
    Path | None,
    typer.Option(
        "--log", metavar="DB", dir_okay=False, help="SQLite file for readings and alarms.", rich_help_panel=_KEPT
    ),
]
LogText = Annotated[bool, typer.Option("--log-text", help="Keep prompts and answers there too.", rich_help_panel=_KEPT)]
KeepDays = Annotated[
    float, typer.Option("--keep-days", metavar="N", min=0.01, help="Delete what is older.", rich_help_panel=_KEPT)
]
Uploads = Annotated[
    Path | None,
    typer.Option(
        "--uploads", metavar="DIR", file_okay=False, help="Keep uploaded vectors there.", rich_help_panel=_KEPT
    ),
]
RequestLog = Annotated[
    Path | None,
    typer.Option(
        "--access-log",
        metavar="F",
        dir_okay=False,
        help="A line of JSON a request, without texts; - for stdout.",
        rich_help_panel=_KEPT,
    ),
]
Traces = Annotated[
    bool, typer.Option("--traces", help="Trace requests by OpenTelemetry (OTEL_* variables).", rich_help_panel=_KEPT)
]
Hook = Annotated[
    str | None,
    typer.Option("--webhook", metavar="URL", envvar="POISE_WEBHOOK", help="Post alarms there.", rich_help_panel=_KEPT),
]
HookFile = Annotated[
    Path | None,
    typer.Option(
        "--webhook-file", metavar="F", dir_okay=False, help="Post them to the URL in it.", rich_help_panel=_KEPT
    ),
]
HookSecret = Annotated[
    Path | None,
    typer.Option(
        "--webhook-secret-file",
        metavar="F",
        dir_okay=False,
        help="Sign them with the secrets in it; or with $POISE_WEBHOOK_SECRET.",
        rich_help_panel=_KEPT,
    ),
]
Batch = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Most answers at once.", rich_help_panel=_LOAD)]
CacheTokens = Annotated[
    int,
    typer.Option("--cache-tokens", metavar="N", min=0, help="Most cached tokens; 0: by memory.", rich_help_panel=_LOAD),
]
Queue = Annotated[
    int, typer.Option("--queue", metavar="N", min=1, help="Most that wait; more get 429.", rich_help_panel=_LOAD)
]
Deadline = Annotated[
    float,
    typer.Option("--deadline", metavar="S", min=0, help="Seconds an answer may take; 0: any.", rich_help_panel=_LOAD),
]
Connections = Annotated[
    int, typer.Option("--connections", metavar="N", min=1, help="Most open connections.", rich_help_panel=_LOAD)
]
AddressConnections = Annotated[
    int,
    typer.Option(
        "--address-connections",
        metavar="N",
        min=1,
        help="Most from one address; behind a proxy all have the proxy's.",
        rich_help_panel=_LOAD,
    ),
]
ServeEngine = Annotated[
    Literal["local", "vllm"],
    typer.Option(
        "--engine", help="What generates. local: the loaded model. vllm: vLLM, in this process.", rich_help_panel=_LOAD
    ),
]
EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        metavar="NAME=VALUE",
        help="An argument of vllm.LLM, such as gpu_memory_utilization=0.8. Repeat for more.",
        rich_help_panel=_LOAD,
    ),
]
Proxies = Annotated[
    list[str] | None,
    typer.Option(
        "--proxy",
        metavar="ADDRESS",
        help="Take this proxy's word (X-Forwarded-For) on who asks. Repeat for more.",
        rich_help_panel=_LOAD,
    ),
]
Grace = Annotated[
    float, typer.Option("--grace", metavar="S", min=0, help="Seconds for answers at the end.", rich_help_panel=_LOAD)
]


def serve(
    ctx: typer.Context,
    model: ModelName,
    vector: Vectors = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = "",
    normal: Normal = None,
    show: ShowOption = None,
    rate: Rate = 0.01,
    api_key_file: Keys = None,
    policy: Rules = None,
    guardrail: Guard = None,
    knowledge: Documents = None,
    memory: Memories = None,
    memory_gate: MemoryGate = None,
    rerank: Rerank = None,
    cors: Cors = None,
    log: Log = None,
    log_text: LogText = False,
    keep_days: KeepDays = 30,
    uploads: Uploads = None,
    access_log: RequestLog = None,
    traces: Traces = False,
    webhook: Hook = None,
    webhook_file: HookFile = None,
    webhook_secret_file: HookSecret = None,
    batch: Batch = 32,
    cache_tokens: CacheTokens = 0,
    queue: Queue = 256,
    deadline: Deadline = 600,
    connections: Connections = 512,
    address_connections: AddressConnections = 320,
    proxy: Proxies = None,
    grace: Grace = 20,
    engine: ServeEngine = "local",
    engine_option: EngineOptions = None,
    allow_other_model: OnOtherModel = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Serve a model to OpenAI's clients, watched and steered, with a page at /.

    Answers of different steering share batches. Ctrl-C stops taking requests and lets running answers end.
    """
    settings = dict(locals())
    if show is not None:
        _show_alarm_prompts(normal or [], model, show)
        return
    if engine_option and engine != "vllm":
        raise InvalidArgument("`engine_option` is for vLLM; say `engine` vllm too, or leave it out.")
    with working():
        _ignore_reloads()
        _end_in_order()
        run = _server_module()
        options = _server_options(run, settings)
        files = _named_files(vector or [])
        checked = run.check_options(options, files, normal or [])
        loaded = _start_engine(run, settings) if engine == "vllm" else load_model(model, dtype, device)
        vectors = run.load_vectors(files, loaded, normal=normal or [], rate=rate, allow_other_model=allow_other_model)
        server = run.make_server(loaded, vectors, options, checked, files=None if normal else files)
    root = ctx.find_root()
    with _options_in_logs(root):
        _run(server, root)


def _start_engine(run: Any, settings: Mapping[str, Any]) -> Any:
    """A model in vLLM."""
    from poise.cli.work import torch_dtype
    from poise.progress import track

    if settings["device"] != "auto":
        raise InvalidArgument("vLLM runs on the device that it was built for; leave `device` out with `engine` vllm.")
    if settings["cache_tokens"]:
        raise InvalidArgument("vLLM sizes its own cache; give `engine_option` kv_cache_memory_bytes=BYTES instead.")
    if settings["normal"]:
        raise InvalidArgument(
            "`normal` sets alarms with the model on transformers; with `engine` vllm run `poise calibrate` on the "
            "vectors first, which takes --engine vllm too, and serve the files that it writes."
        )
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    with track(f"Loading {settings['model']} into vLLM"):
        return run.on_vllm(
            settings["model"],
            batch=settings["batch"],
            dtype=torch_dtype(settings["dtype"]),
            settings=_engine_settings(settings["engine_option"] or []),
            allow_other_model=settings["allow_other_model"],
        )


def _engine_settings(options: list[str]) -> dict[str, Any]:
    """Settings by name, their values as JSON where they are that, and else as text."""
    named: dict[str, Any] = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InvalidArgument(f"`engine_option` is {text!r}; write NAME=VALUE, such as max_model_len=4096.")
        try:
            named[name] = json.loads(value)
        except ValueError:
            named[name] = value
    return named


def _server_options(run: Any, settings: Mapping[str, Any]) -> Any:
    """The command's parameters as the library has them."""
    known = {each.name for each in dataclasses.fields(run.ServerOptions)}
    limits = run.ConnectionLimits(total=settings["connections"], per_address=settings["address_connections"])
    renamed = {
        "keys": settings["api_key_file"],
        "cors": tuple(settings["cors"] or ()),
        "memory": tuple(settings["memory"] or ()),
        "proxies": tuple(settings["proxy"] or ()),
        "connections": limits,
    }
    return run.ServerOptions(**{name: value for name, value in settings.items() if name in known} | renamed)


@contextlib.contextmanager
def _options_in_logs(root: Any) -> Iterator[None]:
    """What the library logs while it serves, such as of a reload, has the command's options for its arguments."""
    logger = logging.getLogger("poise.serve")

    def name_options(record: logging.LogRecord) -> bool:
        record.msg, record.args = with_options(record.getMessage(), root), ()
        return True

    logger.addFilter(name_options)
    try:
        yield
    finally:
        logger.removeFilter(name_options)


def _run(server: Any, root: Any) -> None:
    """Until a signal ends it."""
    engine = server.service.engine
    where = engine.device if engine.name == "local" else f"{engine.device} by {engine.name}"
    watched = ", ".join(server.service.registry.entries) or "nothing yet"
    note(f"{server.service.name} on {where}, watched by {watched}.")
    for sentence in server.notes:
        note(with_options(sentence, root))
    server.run(lambda address: note(f"Listening on {address}; Ctrl-C stops it."))
    _end_at_once()
    note("Stopped.")


def _ignore_reloads() -> None:
    """While the model loads: who asks for a reload then would end the server. Closing a terminal still does."""
    if hasattr(signal, "SIGHUP") and not os.isatty(0):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _end_in_order() -> None:
    """While the model loads, a signal to end is obeyed as it is afterwards: with a word, and no failure."""

    def end(number: int, frame: Any) -> None:
        note("Stopped before it was listening.")
        raise SystemExit(0)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def _end_at_once() -> None:
    """All is written and closed: one more signal leaves nothing undone, so it is no failure either."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def _server_module() -> Any:
    """The server, which needs parts that not everybody has."""
    try:
        from poise.serve import server
    except ImportError as error:
        raise MissingExtra.of(f"poise serve needs a part that is not installed ({error.name})", "serve") from error
    return server


def _show_alarm_prompts(normal: list[str], model: str | None, n: int) -> None:
    """The prompts that the model would answer for its alarms."""
    from poise.data import open_data
    from poise.monitor.calibrate import normal_answer_length

    if not normal:
        raise InvalidArgument("A server reads conversations to set alarms alone; name some with --normal DATA.")
    opened = open_data(normal, need="user")
    show_data(opened, model=model, n=n, as_json=False, use="answer", max_new_tokens=normal_answer_length)


def _named_files(arguments: list[Path]) -> dict[str, Path]:
    """Files by the name before the equals sign, or else their own up to the first dot."""
    named: dict[str, Path] = {}
    for text in arguments:
        before, equals, after = str(text).partition("=")
        name, file = (before, Path(after)) if equals else (text.name.split(".")[0], text)
        if name in named:
            raise InvalidArgument(f"Two vectors are called {name}; name one with --vector OTHER={file}.")
        named[name] = file
    return named
