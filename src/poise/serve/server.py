"""The process: parts put together, a socket, and an orderly end."""

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from poise import vector as vector_file
from poise.data import open_data
from poise.engine import SamplingParams
from poise.engine.grammar import grammar_compiler
from poise.errors import InvalidArgument, UserError
from poise.model import Model
from poise.monitor.calibrate import CalibrationSettings, calibrate_alarms, normal_answer_length
from poise.serve.access_log import AccessLog, check_access_log
from poise.serve.app import build
from poise.serve.auth import ApiKeys, RequestGate, is_loopback
from poise.serve.connections import ConnectionBook, ConnectionLimits, GuardedConnection, possible_limits
from poise.serve.gauges import add_gauges
from poise.serve.guardrail_set import check_guardrail_rules, read_guardrails
from poise.serve.http_server import DrainingServer, check_address, has_terminal, tell_systemd
from poise.serve.knowledge_use import check_document_rules, read_knowledge
from poise.serve.memory_use import check_memories, read_memories
from poise.serve.observing import RequestObserver, RequestRecord
from poise.serve.policy import Policies, read_policies
from poise.serve.readings_db import ReadingsStore, check_database
from poise.serve.reload import Reloader, alarm_remarks, check_policies, check_rules, policy_lines, webhook_target
from poise.serve.request_body import BodyLimits
from poise.serve.scheduler import NEVER, Scheduler
from poise.serve.served_engine import ServedEngine, on_transformers, on_vllm
from poise.serve.server_options import ServerOptions
from poise.serve.service import Service
from poise.serve.tracing import RequestTracer, exporting_processor
from poise.serve.vector_registry import VectorRegistry
from poise.serve.webhook import Webhook
from poise.storage.output import check_writable
from poise.vector import PersonaVector

__all__ = [
    "ConnectionLimits",
    "RunningServer",
    "ServedEngine",
    "ServerOptions",
    "check_options",
    "load_vectors",
    "make_server",
    "on_vllm",
]

log = logging.getLogger("poise.serve")


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
    with policy_lines(options.policy):
        check_policies(policies, keys)
        check_guardrail_rules(policies, read_guardrails(options.guardrail), keys.names)
        check_document_rules(policies, read_knowledge(options.knowledge, options.rerank), keys.names)
    check_memories(options.memory, options.memory_gate)
    webhook_target(options)
    if options.traces:
        exporting_processor().shutdown()
    if options.access_log:
        check_access_log(options.access_log)
    check_address(options.host, options.port)
    return keys, policies


def load_vectors(
    files: Mapping[str, Path],
    model: Model | ServedEngine,
    *,
    normal: Sequence[str] = (),
    rate: float = 0.01,
    allow_other_model: bool = False,
) -> dict[str, PersonaVector]:
    """Vectors by name, with alarms set on normal talk where there is any; their files stay as they are.

    Raises:
        UserError: a file is no vector of this model, or the talk cannot bear the rate.
    """
    model = model.model if isinstance(model, ServedEngine) else model
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


def _engine_of(model: Model, options: ServerOptions) -> ServedEngine:
    return on_transformers(
        model,
        batch=options.batch,
        cache_tokens=options.cache_tokens,
        allow_other_model=options.allow_other_model,
    )


def make_server(
    model: Model | ServedEngine,
    vectors: Mapping[str, PersonaVector],
    options: ServerOptions,
    checked: tuple[ApiKeys, Policies] | None = None,
    *,
    files: Mapping[str, Path] | None = None,
) -> RunningServer:
    """A server that is ready to be run.

    Args:
        model: Who answers: a model in this process, or one that vLLM runs (``on_vllm``).
        vectors: By the name that requests use.
        options: How.
        checked: What ``check_options`` gave.
        files: Files of the vectors, for a reload; without those whose alarms ``load_vectors`` has set.

    Raises:
        InvalidArgument: the policy names a vector that is not there.
    """
    keys, policies = checked or check_options(options)
    engine = _engine_of(model, options) if isinstance(model, Model) else model
    model = engine.model
    scheduler = Scheduler(engine.steps, queue=options.queue)
    registry = VectorRegistry(
        model,
        folder=options.uploads,
        owners=keys.names,
        allow_other_model=options.allow_other_model,
        between=scheduler.call,
        read_text=engine.read_text,
        check_steering=engine.check_steering,
    )
    for name, vector in vectors.items():
        registry.add(name, vector, fixed=True)
    _check_ready(model, policies, registry, keys, options)
    service = Service(
        model=model,
        engine=engine,
        name=options.name or (Path(model.name).name if Path(model.name).exists() else model.name),
        scheduler=scheduler,
        registry=registry,
        policies=policies,
        store=ReadingsStore(options.log, keep_days=options.keep_days, private=options.log_text),
        webhook=Webhook(url=hook[0], secrets=hook[1]) if (hook := webhook_target(options)) else None,
        guardrails=read_guardrails(options.guardrail, model),
        knowledge=read_knowledge(options.knowledge, options.rerank),
        memories=read_memories(
            options.memory, options.memory_gate, model, scheduler.call, reads=engine.read_text is None
        ),
        deadline=options.deadline or NEVER,
        log_text=options.log_text,
    )
    reloader = Reloader(service=service, keys=keys, options=options, files=files or {})
    access_log = AccessLog(options.access_log) if options.access_log else None
    add_gauges(service, access_log, reloader)
    app = build(service)
    gate = RequestGate(
        app=app,
        keys=keys,
        limits=BodyLimits(seconds=options.connections.body_seconds),
        workers=service.workers,
        may_upload=lambda key: service.policies.of(key).may_change_vectors,
        origins=options.cors,
        hosts=("localhost", "127.0.0.1", "::1", options.host) if is_loopback(options.host) and not keys else (),
    )
    paths = frozenset(getattr(route, "path", "none") for route in app.routes)
    tracer = RequestTracer(exporting_processor()) if options.traces else None
    observer = RequestObserver(gate, paths, tuple(_listeners(service, access_log, tracer)))
    ends = (engine.close, *(part.close for part in (access_log, tracer, service.memories) if part))
    return RunningServer(service, observer, options, reloader=reloader, ends=ends)


def _check_ready(
    model: Model, policies: Policies, registry: VectorRegistry, keys: ApiKeys, options: ServerOptions
) -> None:
    """Refuse rules that cannot be kept; what holds answers to a grammar is made before the first needs it."""
    with contextlib.suppress(UserError):  # said where a request needs it
        grammar_compiler(model)
    with policy_lines(options.policy):
        check_rules(policies, registry, keys.names)


def _listeners(
    service: Service, access_log: AccessLog | None, tracer: RequestTracer | None
) -> Iterator[Callable[[RequestRecord], None]]:
    """Who is told of each request that is over."""
    yield service.metrics.observe
    if access_log:
        yield lambda record: access_log.put(record.facts) if record.is_logged else None
    if tracer:
        yield tracer.trace


class RunningServer:
    """A server with its parts. ``run`` in the main thread, or ``start`` and ``stop`` from another."""

    def __init__(
        self,
        service: Service,
        app: Any,
        options: ServerOptions,
        *,
        reloader: Reloader,
        ends: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.service, self.options, self.reloader, self._ends = service, options, reloader, ends
        self.connections = ConnectionBook(possible_limits(options.connections), service.metrics.count_closed)
        service.metrics.add_gauge("poise_connections", "Open connections.", lambda: len(self.connections))
        config = uvicorn.Config(
            app,
            host=options.host,
            port=options.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=bool(options.proxies),
            forwarded_allow_ips=list(options.proxies),
            h11_max_incomplete_event_size=2**16,
            http=partial(GuardedConnection, book=self.connections),  # type: ignore[arg-type] # called, never subclassed
            ws="none",
            lifespan="off",
        )
        self.server = DrainingServer(config, service.scheduler, options.grace)
        self._thread: threading.Thread | None = None
        self._terminal = has_terminal()

    @property
    def notes(self) -> list[str]:
        """What its user should know: vectors whose alarms are not in force, and uploads that nobody can make or use."""
        policies, folder = self.service.policies, self.options.uploads
        notes = alarm_remarks(policies, self.service.registry)
        if folder and not any(rules.may_change_vectors for rules in (policies.default, *policies.keys.values())):
            notes.append("Nobody may upload vectors; set `may_change_vectors` in the policy for a key or for all.")
        if folder and self.options.keys and (files := sorted(path.name for path in folder.glob("*.safetensors"))):
            notes.append(
                f"{', '.join(files)} in {folder} are no key's and not in use; give them as `vector`, or move them into "
                "the folder key-NAME of a key."
            )
        secrets = (self.options.keys, self.options.webhook_file, self.options.webhook_secret_file)
        notes += self.service.guardrails.notes
        return notes + [
            f"{path} can be read by everybody on this machine; close it with `chmod 600 {path}`."
            for path in secrets
            if path and path.stat().st_mode & stat.S_IROTH
        ]

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
        if main and hasattr(signal, "SIGHUP"):
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hear_hangup)
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

    def reload(self) -> None:
        """Read keys, rules and changed vectors again, in a thread of its own; what ``SIGHUP`` does."""
        threading.Thread(target=self._reload, name="poise-reload", daemon=True).start()

    def _hear_hangup(self, number: int, frame: Any) -> None:
        """Reload, or end where the signal means that the terminal was closed."""
        if self._terminal and not has_terminal():
            self.server.handle_exit(number, frame)
        else:
            self.reload()

    def _reload(self) -> None:
        tell_systemd(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        self.reloader.reload()
        tell_systemd("READY=1")

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
        for end in self._ends:
            end()
