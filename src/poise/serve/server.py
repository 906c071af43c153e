"""The process: parts put together, a socket, and an orderly end."""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from poise import vector as vector_file
from poise.data import open_data
from poise.engine import SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.engine.grammar import grammar_compiler
from poise.errors import InvalidArgument, UserError
from poise.model import Model
from poise.monitor.calibrate import CalibrationSettings, calibrate_alarms, normal_answer_length
from poise.serve.app import build
from poise.serve.auth import ApiKeys, RequestGate, is_loopback
from poise.serve.connections import ConnectionBook, ConnectionLimits, GuardedConnection, descriptors_left
from poise.serve.metrics import Counting
from poise.serve.policy import Policies, Policy, read_policies
from poise.serve.readings_db import ReadingsStore, check_database
from poise.serve.request_body import BodyLimits
from poise.serve.scheduler import NEVER, Scheduler
from poise.serve.service import Service
from poise.serve.vector_registry import VectorRegistry, WatchedVector
from poise.serve.webhook import Webhook, read_webhook, read_webhook_secrets
from poise.storage.output import check_writable
from poise.vector import PersonaVector

__all__ = ["ConnectionLimits", "RunningServer", "ServerOptions", "check_options", "load_vectors", "make_server"]

log = logging.getLogger("poise.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How a server runs.

    Attributes:
        host: Address to listen on; beyond this machine only with keys.
        port: Port to listen on; 0 for a free one.
        name: Name by which requests call the model; by default its own name without folders.
        keys: File of API keys.
        policy: File of rules.
        log: Database of readings; ``None`` keeps them until the server stops.
        keep_days: Days after which readings are deleted.
        log_text: Whether prompts and answers are stored too.
        uploads: Folder of uploaded vectors; ``None`` keeps them until the server stops.
        webhook: Address that alarms are posted to.
        webhook_file: File with that address, which then no list of processes shows.
        webhook_secret_file: File with the secrets that alarms are signed with, one a line.
        cors: Origins whose pages may send requests.
        batch: Most answers at once.
        queue: Most requests that wait.
        deadline: Seconds that an answer may take, waiting included; 0 for any.
        grace: Seconds that running answers are given when the server is told to stop.
        connections: How many clients there may be, and how slow.
        allow_other_model: Whether vectors of another model of the same shape are accepted.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    keys: Path | None = None
    policy: Path | None = None
    log: Path | None = None
    keep_days: float = 30.0
    log_text: bool = False
    uploads: Path | None = None
    webhook: str | None = None
    webhook_file: Path | None = None
    webhook_secret_file: Path | None = None
    cors: tuple[str, ...] = ()
    batch: int = 32
    queue: int = 256
    deadline: float = 600.0
    grace: float = 20.0
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    allow_other_model: bool = False


def check_options(
    options: ServerOptions, vectors: Mapping[str, Path] | None = None, normal: Sequence[str] = ()
) -> tuple[ApiKeys, Policies]:
    """Read the files and refuse what is not safe, before a model is loaded.

    Raises:
        UserError: a file or an option is wrong; says which, and how to fix it.
    """
    for path in (vectors or {}).values():
        vector_file.load_vector(path)
    if normal:
        open_data(list(normal), need="user")
    if options.log:
        check_database(options.log)
    if options.uploads:
        check_writable(options.uploads / "x.safetensors")
    keys, policies = ApiKeys.read(options.keys), read_policies(options.policy)
    if not is_loopback(options.host) and not keys:
        raise InvalidArgument(
            f"{options.host} can be reached from other machines, and there is no key; name a file of keys with "
            "`keys`, or listen on 127.0.0.1."
        )
    if unknown := sorted(set(policies.keys) - set(keys.names)):
        raise InvalidArgument(f"The policy names the key {unknown[0]!r}, which the key file lacks; fix one of them.")
    _webhook_target(options)
    return keys, policies


def _webhook_target(options: ServerOptions) -> tuple[str, tuple[bytes, ...]] | None:
    """The address that alarms are posted to, and what they are signed with."""
    url = read_webhook(options.webhook, options.webhook_file)
    secrets = read_webhook_secrets(options.webhook_secret_file)
    if options.webhook_secret_file and not url:
        raise InvalidArgument("Alarms are signed for a webhook; give its address as `webhook` or `webhook_file`.")
    return (url, secrets) if url else None


def load_vectors(
    files: Mapping[str, Path],
    model: Model,
    *,
    normal: Sequence[str] = (),
    rate: float = 0.01,
    allow_other_model: bool = False,
) -> dict[str, PersonaVector]:
    """Vectors by name, with alarms set on normal talk where there is any; their files stay as they are.

    Raises:
        UserError: a file is no vector of this model, or the talk cannot bear the rate.
    """
    loaded = {name: vector_file.load_vector(path) for name, path in files.items()}
    for vector in loaded.values():
        vector.check_model(model, allow_other_model=allow_other_model)
    if not normal:
        return loaded
    if not loaded:
        raise InvalidArgument("Alarms are a vector's; name the vectors that `normal` is to set them for as `vector`.")
    data = open_data(list(normal), need="user")
    sampling = SamplingParams(max_new_tokens=normal_answer_length(model.generation_window()))
    settings = CalibrationSettings(rates=(rate,), sampling=sampling)
    done = calibrate_alarms(data, model, list(loaded.values()), settings, allow_other_model=True)  # checked above
    return dict(zip(loaded, done.vectors, strict=True))


def make_server(
    model: Model,
    vectors: Mapping[str, PersonaVector],
    options: ServerOptions,
    checked: tuple[ApiKeys, Policies] | None = None,
) -> RunningServer:
    """A server that is ready to be run.

    Args:
        model: Who answers.
        vectors: By the name that requests use.
        options: How.
        checked: What ``check`` gave.

    Raises:
        InvalidArgument: the policy names a vector that is not there.
    """
    keys, policies = checked or check_options(options)
    engine = ContinuousEngine(model, batch=options.batch, allow_other_model=options.allow_other_model)
    scheduler = Scheduler(engine, queue=options.queue)
    registry = VectorRegistry(
        model,
        folder=options.uploads,
        owners=keys.names,
        allow_other_model=options.allow_other_model,
        between=scheduler.call,
    )
    for name, vector in vectors.items():
        registry.add(name, vector, fixed=True)
    with contextlib.suppress(UserError):  # said where a request needs it
        grammar_compiler(model)
    for key, rules in ((None, policies.default), *policies.keys.items()):
        _check_rules(rules, registry.of(key))
    service = Service(
        model=model,
        name=options.name or (Path(model.name).name if Path(model.name).exists() else model.name),
        scheduler=scheduler,
        registry=registry,
        policies=policies,
        store=ReadingsStore(options.log, keep_days=options.keep_days, private=options.log_text),
        webhook=Webhook(url=hook[0], secrets=hook[1]) if (hook := _webhook_target(options)) else None,
        deadline=options.deadline or NEVER,
        log_text=options.log_text,
    )
    _gauges(service)
    service.metrics.add_gauge(
        "poise_prefix_tokens", "Tokens of earlier texts that are kept.", lambda: engine.prefixes.tokens
    )
    hosts = ("localhost", "127.0.0.1", "::1", options.host) if is_loopback(options.host) and not keys else ()
    gate = RequestGate(
        app=Counting(build(service), service.metrics),
        keys=keys,
        limits=BodyLimits(seconds=options.connections.body_seconds),
        workers=service.workers,
        may_upload=lambda key: policies.of(key).may_change_vectors,
        origins=options.cors,
        hosts=hosts,
    )
    return RunningServer(service, gate, options)


def _check_rules(rules: Policy, entries: Mapping[str, WatchedVector]) -> None:
    """Refuse rules that cannot be kept.

    Those about vectors that are not there, that watch a part of answers with alarms set on another, or that cap at an
    alarm which the vector's own direction has not.
    """
    if unknown := sorted(rules.named - set(entries)):
        raise InvalidArgument(f"The policy names the vector {unknown[0]!r}, which is not here; give it as `vector`.")
    rules.steering(None, {name: watched.vector for name, watched in entries.items()})
    for name, watched in entries.items():
        part = rules.part_of(name)
        if part != "reply" and (missing := watched.missing_alarms(part)):
            raise InvalidArgument(f"The policy watches the {part} of answers by {name}: {missing}.")
        if rules.action(name) == "cap" and (missing := watched.missing_cap(part)):
            raise InvalidArgument(f"The policy caps {name} at its alarm: {missing}.")


def _gauges(service: Service) -> None:
    add_gauge, store = service.metrics.add_gauge, service.store
    add_gauge("poise_queue", "Answers that wait to begin.", lambda: service.scheduler.waiting)
    add_gauge("poise_running", "Answers that are being generated.", lambda: service.scheduler.running)
    add_gauge("poise_readings_written", "Readings on disk since the start.", lambda: store.counts.written)
    add_gauge("poise_readings_lost", "Readings given up because the disk refused too long.", lambda: store.counts.lost)
    add_gauge("poise_store_failures", "Writes that were refused and tried again.", lambda: store.counts.failures)
    if hook := service.webhook:
        add_gauge("poise_webhook_sent", "Alarms that the webhook took.", lambda: hook.sent)
        add_gauge("poise_webhook_lost", "Alarms that the webhook never took.", lambda: hook.lost)


class RunningServer:
    """A server with its parts. ``run`` in the main thread, or ``start`` and ``stop`` from another."""

    def __init__(self, service: Service, app: Any, options: ServerOptions) -> None:
        self.service, self.options = service, options
        self.connections = ConnectionBook(_possible(options.connections), service.metrics.count_closed)
        service.metrics.add_gauge("poise_connections", "Open connections.", lambda: len(self.connections))
        config = uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(options.grace) + 2,
            h11_max_incomplete_event_size=2**16,
            http=partial(GuardedConnection, book=self.connections),  # type: ignore[arg-type] # called, never subclassed
            ws="none",
            lifespan="off",
        )
        self.server = _Server(config, service, options.grace)
        self._thread: threading.Thread | None = None

    @property
    def notes(self) -> list[str]:
        """What its user should know: vectors whose alarms are not in force, and uploads that nobody can make or use."""
        policies, registry, folder = self.service.policies, self.service.registry, self.options.uploads
        missing = (w.missing_alarms(policies.default.part_of(name)) for name, w in registry.entries.items())
        notes = [f"{sentence}, or set `part` in the policy." for sentence in missing if sentence]
        if folder and not any(rules.may_change_vectors for rules in (policies.default, *policies.keys.values())):
            notes.append("Nobody may upload vectors; set `may_change_vectors` in the policy for a key or for all.")
        if folder and self.options.keys and (files := sorted(path.name for path in folder.glob("*.safetensors"))):
            notes.append(
                f"{', '.join(files)} in {folder} are no key's and not in use; give them as `vector`, or move them into "
                "the folder key-NAME of a key."
            )
        return notes

    def run(self, listening: Callable[[str], None] = lambda address: None) -> None:
        """Serve until a signal ends it; running answers get their grace, and their streams an end.

        Args:
            listening: Called with the address as soon as there is one.

        Raises:
            InvalidArgument: the port is taken, or the host is not here.
        """
        self.server.listening = lambda: listening(self.address)
        # A full collection would look through the model and all libraries, and hold every thread for half a second.
        gc.collect()
        gc.freeze()
        self.service.scheduler.start()
        main = threading.current_thread() is threading.main_thread()
        # Uvicorn raises the signal again once it has ended; by then there is something left to write.
        before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
        try:
            self.server.run()
        except SystemExit as error:  # uvicorn's, once it has logged why
            raise InvalidArgument(
                f"Cannot listen on {self.options.host}:{self.options.port}; try another `port` or `host`."
            ) from error
        finally:
            self._close()
            gc.unfreeze()
            for number, handler in before.items():
                signal.signal(number, handler)

    def start(self) -> str:
        """Serve in a thread of its own; the address, once it listens."""
        self._thread = threading.Thread(target=self.run, name="poise-serve", daemon=True)
        self._thread.start()
        while not self.server.started:
            if not self._thread.is_alive():
                raise InvalidArgument(f"Cannot listen on {self.options.host}:{self.options.port}; try another `port`.")
            self._thread.join(0.02)
        return self.address

    def stop(self) -> None:
        """As a signal would."""
        self.server.handle_exit(15, None)
        if self._thread:
            self._thread.join()

    @property
    def address(self) -> str:
        """Where it listens."""
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        sockets: Sequence[Any] = self.server.servers[0].sockets
        return f"http://{host}:{sockets[0].getsockname()[1]}"

    def _close(self) -> None:
        self.service.scheduler.stop()
        self.service.workers.close()
        self.service.store.close()
        if self.service.webhook:
            self.service.webhook.close()


def _possible(limits: ConnectionLimits) -> ConnectionLimits:
    """No more connections than the process may open: without descriptors it could not even refuse them."""
    left = descriptors_left()
    if left is None or left >= limits.total:
        return limits
    log.warning(
        "%d connections are allowed, and this process may open %d files more; it takes %d connections. Raise the limit "
        "of open files (ulimit -n) for more.",
        *(limits.total, left, left),
    )
    return replace(limits, total=left)


def _is_no_refused_address(record: logging.LogRecord) -> bool:
    """Uvicorn logs the system's words for a port that is taken; whoever called ``run`` gets a sentence."""
    return not isinstance(record.msg, OSError)


class _Server(uvicorn.Server):
    """Uvicorn's, which at a signal takes no more requests and ends what still runs after the grace."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self.service, self.grace = service, grace
        self.listening: Callable[[], None] = lambda: None

    async def startup(self, sockets: Any = None) -> None:
        log = logging.getLogger("uvicorn.error")
        log.addFilter(_is_no_refused_address)
        try:
            await super().startup(sockets)
        finally:
            log.removeFilter(_is_no_refused_address)
        self.listening()

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.service.scheduler.drain()
        timer = threading.Timer(self.grace, self.service.scheduler.stop)
        timer.daemon = True
        timer.start()
        super().handle_exit(sig, frame)
