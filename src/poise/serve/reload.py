"""Keys, rules and vectors read again while the server runs: all of them, or none where one is faulty."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from poise import vector as vector_file
from poise.errors import InvalidArgument, UserError
from poise.serve.auth import ApiKeys, file_version
from poise.serve.policy import Policies, Policy, read_policies
from poise.serve.service import Service
from poise.serve.vector_registry import WatchedVector
from poise.serve.webhook import read_webhook, read_webhook_secrets

__all__ = ["Reloader", "check_policies", "check_rules", "webhook_target"]

log = logging.getLogger("poise.serve")


class ConfigurationFiles(Protocol):
    """Where a server's settings are, as ``ServerOptions`` has them."""

    @property
    def keys(self) -> Path | None:
        """File of API keys."""

    @property
    def policy(self) -> Path | None:
        """File of rules."""

    @property
    def webhook(self) -> str | None:
        """Address that alarms are posted to."""

    @property
    def webhook_file(self) -> Path | None:
        """File with that address."""

    @property
    def webhook_secret_file(self) -> Path | None:
        """File with what they are signed with."""


def check_policies(policies: Policies, keys: ApiKeys) -> None:
    """Refuse rules for keys that there are not.

    Raises:
        InvalidArgument: names the key.
    """
    if unknown := sorted(set(policies.keys) - set(keys.names)):
        raise InvalidArgument(f"The policy names the key {unknown[0]!r}, which the key file lacks; fix one of them.")


def check_rules(rules: Policy, entries: Mapping[str, WatchedVector]) -> None:
    """Refuse rules that cannot be kept.

    Those about vectors that are not there, that watch a part of answers with alarms set on another, or that cap at an
    alarm which the vector's own direction has not.

    Raises:
        InvalidArgument: names the vector.
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


def webhook_target(options: ConfigurationFiles) -> tuple[str, tuple[bytes, ...]] | None:
    """The address that alarms are posted to, and what they are signed with.

    Raises:
        InvalidArgument: one of them cannot be used.
    """
    url = read_webhook(options.webhook, options.webhook_file)
    secrets = read_webhook_secrets(options.webhook_secret_file)
    if options.webhook_secret_file and not url:
        raise InvalidArgument("Alarms are signed for a webhook; give its address as `webhook` or `webhook_file`.")
    return (url, secrets) if url else None


@dataclass(kw_only=True)
class Reloader:
    """Reads a server's files again.

    Attributes:
        service: Server's parts.
        keys: Keys, which are changed in place.
        options: Options that name the files.
        files: Files of vectors by name; those whose alarms were set at the start are not among them.
        succeeded: Time of the last reload that was taken, or of the start, in seconds since 1970.
        failed: Whether the last one was refused.
    """

    service: Service
    keys: ApiKeys
    options: ConfigurationFiles
    files: Mapping[str, Path] = field(default_factory=dict)
    succeeded: float = field(default_factory=time.time)
    failed: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._versions = {name: file_version(path) for name, path in self.files.items()}

    def reload(self) -> bool:
        """Take what the files have now, where all of it can be; whether it could, which is logged too."""
        with self._lock:
            try:
                changes = self._reload()
            except UserError as error:
                self.failed = True
                log.error("Not reloaded, all is as before: %s", error)
            else:
                self.failed, self.succeeded = False, time.time()
                log.warning("Reloaded: %s.", changes)
            self.service.metrics.reloads.labels("refused" if self.failed else "taken").inc()
            return not self.failed

    def _reload(self) -> str:
        keys, policies = ApiKeys.read(self.options.keys), read_policies(self.options.policy)
        check_policies(policies, keys)
        target = webhook_target(self.options)
        registry = self.service.registry
        versions = {name: file_version(path) for name, path in self.files.items()}
        changed = [name for name, version in versions.items() if version != self._versions[name]]
        vectors = {name: registry.prepared(name, vector_file.load_vector(self.files[name])) for name in changed}
        for key in (None, *keys.names):
            entries = registry.of(key)
            check_rules(policies.of(key), {**entries, **vectors})
        registry.replace_shared(vectors)
        self._versions = versions
        self.service.policies = policies
        self.keys.replace(keys)
        if target and self.service.webhook:
            self.service.webhook.url, self.service.webhook.secrets = target
        which = f"{', '.join(changed)} anew" if changed else "vectors as before"
        return f"{len(keys.names)} keys, rules for all and for {len(policies.keys)} of them, {which}"
