"""How a server runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poise.serve.connections import ConnectionLimits

__all__ = ["ServerOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How a server runs.

    Attributes:
        host: Address to listen on; beyond this machine only with keys.
        port: Port to listen on; 0 for a free one.
        name: Name by which requests call the model; by default its own name without folders.
        keys: File of API keys.
        policy: File of rules.
        guardrail: Files of guardrails, and folders of ``NAME/VERSION``; the first guards where no policy says else.
        knowledge: Folder of a knowledge base that chats may be answered from.
        rerank: What orders its best passages, such as a cross-encoder's folder; see ``poise.knowledge.text_reranker``.
        memory: Folders of memories that chats may have, by the folders' names.
        memory_gate: File of a gate that reads the model before an entry is let in.
        log: Database of readings; ``None`` keeps them until the server stops.
        keep_days: Days after which readings are deleted.
        log_text: Whether prompts and answers are stored too.
        uploads: Folder of uploaded vectors; ``None`` keeps them until the server stops.
        webhook: Address that alarms are posted to.
        webhook_file: File with that address, which then no list of processes shows.
        webhook_secret_file: File with the secrets that alarms are signed with, one a line.
        traces: Whether requests are traced by OpenTelemetry, to where its environment variables say.
        access_log: File for a line of JSON a request; ``-`` for stdout.
        proxies: Addresses of proxies whose word on a client's address is taken.
        cors: Origins whose pages may send requests.
        batch: Most answers at once.
        cache_tokens: Most tokens of prompts and answers cached at once, padding included; 0 for what a share of the
            memory holds.
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
    guardrail: Path | Sequence[Path] | None = None
    knowledge: Path | None = None
    rerank: str | None = None
    memory: tuple[Path, ...] = ()
    memory_gate: Path | None = None
    log: Path | None = None
    keep_days: float = 30.0
    log_text: bool = False
    uploads: Path | None = None
    webhook: str | None = None
    webhook_file: Path | None = None
    webhook_secret_file: Path | None = None
    traces: bool = False
    access_log: Path | None = None
    proxies: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    batch: int = 32
    cache_tokens: int = 0
    queue: int = 256
    deadline: float = 600.0
    grace: float = 20.0
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    allow_other_model: bool = False
