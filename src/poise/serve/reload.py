"""Keys, rules, vectors and guardrails read again while the server runs: all of them, or none where one is faulty."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from poise import vector as vector_file
from poise.counting import counted
from poise.errors import InvalidArgument, InvalidVector, UserError
from poise.serve.auth import ApiKeys, file_version
from poise.serve.guardrail_set import check_guardrail_rules, read_guardrails
from poise.serve.knowledge_use import check_document_rules
from poise.serve.policy import Policies, Policy, read_policies
from poise.serve.run_rules import plan_faults, run_rule_faults
from poise.serve.service import Service
from poise.serve.vector_registry import VectorRegistry, WatchedVector
from poise.serve.webhook import read_webhook, read_webhook_secrets
from poise.settings import SettingFault, faults_error, located_faults
from poise.settings.other_names import Place
from poise.steer import Steering
from poise.vector import PersonaVector

__all__ = ["Reloader", "alarm_remarks", "check_policies", "check_rules", "policy_lines", "webhook_target"]

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
    def guardrail(self) -> Path | Sequence[Path] | None:
        """Files and folders of guardrails."""

    @property
    def webhook(self) -> str | None:
        """Address that alarms are posted to."""

    @property
    def webhook_file(self) -> Path | None:
        """File with that address."""

    @property
    def webhook_secret_file(self) -> Path | None:
        """File with what they are signed with."""


def policy_lines(path: Path | None) -> contextlib.AbstractContextManager[None]:
    """Inside the block, rules that cannot be kept are told with the policy's file and line."""
    return located_faults(path, Policies) if path else contextlib.nullcontext()


def check_policies(policies: Policies, keys: ApiKeys) -> None:
    """Refuse rules for keys that there are not.

    Raises:
        InvalidArgument: names the key.
    """
    faults: list[SettingFault] = []
    for name in policies.keys:
        if not keys:
            faults.append((("keys", name), "are rules for a key, and there is no key; name a file of keys with `keys`"))
        elif name not in keys.names:
            text = f"are rules for the key {name!r}, which the key file lacks; it has: {', '.join(keys.names)}"
            faults.append((("keys", name), text))
    if keys and not any(policies.of(name).admin for name in keys.names):
        text = "is admin, and no key is one's, so that nobody could let a run go on; set `admin` for a key"
        rules: list[tuple[Place, Policy]] = [(("default",), policies.default)]
        rules += [(("keys", name), policy) for name, policy in policies.keys.items()]
        asks = [place for place, policy in rules if policy.runs and policy.runs.approved_by == "admin"]
        faults += [((*place, "runs", "approved_by"), text) for place in asks]
    if faults:
        raise faults_error(faults)


def check_rules(
    policies: Policies,
    registry: VectorRegistry,
    keys: Sequence[str],
    anew: Mapping[str, WatchedVector] | None = None,
) -> None:
    """Refuse rules that cannot be kept.

    Those about vectors that are not there, that watch a part of answers with alarms set on another, or that cap at an
    alarm which the vector's own direction has not.

    Args:
        policies: The rules.
        registry: Registry of the vectors.
        keys: Names of the keys, some of which have vectors of their own.
        anew: Vectors that are to take the places of those for all.

    Raises:
        InvalidArgument: names field and vector.
    """
    faults: dict[SettingFault, None] = {}
    for key in (None, *keys):
        place: Place = ("keys", key) if key in policies.keys else ("default",)
        entries = {**registry.of(key), **(anew or {})}
        faults |= dict.fromkeys(_rule_faults(policies.of(key), entries, place, registry.check_steering))
    if faults:
        raise faults_error(faults)


def _rule_faults(
    rules: Policy, entries: Mapping[str, WatchedVector], place: Place, check_steering: Callable[[Steering], None]
) -> Iterator[SettingFault]:
    unknown = {name: setting for name, setting in rules.places.items() if name not in entries}
    for name, setting in unknown.items():
        known = f"name one that is ({', '.join(entries)})" if entries else "leave it out"
        yield (
            (*place, *setting),
            f"names the vector {name!r}, which is not here; {known}, or start the server with it as `vector`",
        )
    if "steer" not in {setting[0] for setting in unknown.values()}:
        try:
            held = rules.steering(None, {name: watched.vector for name, watched in entries.items()})
            check_steering(held.steering)
        except UserError as error:
            yield (*place, "steer"), f"is {rules.steer!r}: {str(error).removesuffix('.')}"
    if not unknown:
        yield from (((*place, *setting), text) for setting, text in plan_faults(rules, entries, check_steering))
    for name, watched in entries.items():
        part = rules.part_of(name)
        if part != "reply" and (missing := watched.missing_alarms(part)):
            yield (*place, *rules.field_of("part", name)), f"is {part!r} for {name!r}: {missing}"
        if rules.runs and name in rules.runs.traits:
            yield from ((((*place, "runs", "traits", name, f)), text) for f, text in run_rule_faults(watched, rules))
        if rules.action(name) == "cap" and (missing := watched.missing_cap(part)):
            yield (*place, *rules.field_of("on_alarm", name)), f"caps {name!r} at its alarm: {missing}"


def check_same_trait(path: Path, before: WatchedVector, vector: PersonaVector) -> None:
    """Refuse another trait's vector in the place of one that is served: its readings would go under a wrong name.

    Raises:
        InvalidVector: names both traits.
    """
    trait, trait_before = vector.header.trait.name, before.vector.header.trait.name
    if trait != trait_before:
        raise InvalidVector(
            f"{path} holds a vector of {trait!r} now, and {before.name!r} was one of {trait_before!r}; put one of "
            f"{trait_before!r} there, or start the server again for the other trait."
        )


def lost_alarms(before: WatchedVector, after: WatchedVector) -> str:
    """The alarms that a vector no longer has in its new file, as a sentence; empty where it has them all."""
    remaining = {(alarm.part, alarm.reading) for alarm in after.alarms}
    lost = dict.fromkeys(a.reading for a in before.alarms if (a.part, a.reading) not in remaining)
    if not lost:
        return ""
    what = f"alarm for its {', '.join(lost)}" if remaining else "alarms"
    return f"{after.name} has no {what} any more; run `poise calibrate` on its file and reload again."


def alarm_remarks(policies: Policies, registry: VectorRegistry) -> list[str]:
    """A sentence for each vector for all whose alarms were set on another part of answers than is watched."""
    missing = (w.missing_alarms(policies.default.part_of(name)) for name, w in registry.entries.items())
    return [f"{sentence}, or set `part` in the policy." for sentence in missing if sentence]


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
                changes, remarks = self._reload()
            except UserError as error:
                self.failed = True
                log.error("Not reloaded, all is as before: %s", error)
            else:
                self.failed, self.succeeded = False, time.time()
                log.warning("Reloaded: %s.", changes)
                for sentence in remarks:
                    log.warning("%s", sentence)
            self.service.metrics.reloads.labels("refused" if self.failed else "taken").inc()
            return not self.failed

    def _reload(self) -> tuple[str, list[str]]:
        """What has changed, and what should be known of it."""
        keys, policies = ApiKeys.read(self.options.keys), read_policies(self.options.policy)
        with policy_lines(self.options.policy):
            check_policies(policies, keys)
        target = webhook_target(self.options)
        registry, service = self.service.registry, self.service
        guardrails = read_guardrails(self.options.guardrail, service.model, before=service.guardrails)
        versions = {name: file_version(path) for name, path in self.files.items()}
        changed = [name for name, version in versions.items() if version != self._versions[name]]
        before, vectors = registry.of(None), dict[str, WatchedVector]()
        for name in changed:
            vector = vector_file.load_vector(self.files[name])
            check_same_trait(self.files[name], before[name], vector)
            vectors[name] = registry.prepared(name, vector)
        with policy_lines(self.options.policy):
            check_rules(policies, registry, keys.names, vectors)
            check_guardrail_rules(policies, guardrails, keys.names)
            check_document_rules(policies, service.knowledge, keys.names)
        lost = [sentence for name in changed if (sentence := lost_alarms(before[name], vectors[name]))]
        registry.replace_shared(vectors)
        self._versions = versions
        service.policies, service.guardrails = policies, guardrails
        self.keys.replace(keys)
        if target and self.service.webhook:
            self.service.webhook.url, self.service.webhook.secrets = target
        which = f"{', '.join(changed)} anew" if changed else "vectors as before"
        changes = f"{counted(len(keys.names), 'key')}, rules for all and for {len(policies.keys)} of them, {which}"
        if guardrails.guards:
            changes += f", guardrails {', '.join(guardrails.names)}"
        return changes, [*lost, *alarm_remarks(policies, registry)]
