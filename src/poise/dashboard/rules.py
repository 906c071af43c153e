"""The file of a dashboard: which servers and runs, which rules raise alerts, and who is notified."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from poise.settings import ListOfTexts, SettingFault, Settings, placed_fault, read_settings
from poise.settings.scalar_types import FilledText

__all__ = [
    "DEFAULT_RULES",
    "AlertCondition",
    "AlertMail",
    "AlertRule",
    "DashboardSettings",
    "WatchedSource",
    "read_dashboard",
]

AlertCondition = Literal["down", "drift", "trait", "latency", "errors", "alarms", "interventions", "changed"]
CONDITION_FIELDS: Mapping[str, frozenset[str]] = {
    "down": frozenset({"seconds"}),
    "drift": frozenset({"trait", "reading", "part", "side", "every", "baseline"}),
    "trait": frozenset({"trait", "reading", "part", "above", "below", "answers"}),
    "latency": frozenset({"of", "quantile", "above", "minutes"}),
    "errors": frozenset({"above", "minutes"}),
    "alarms": frozenset({"above", "minutes"}),
    "interventions": frozenset({"above", "minutes"}),
    "changed": frozenset(),
}
"""Settings that each kind of rule takes besides its name, servers and severity."""
NEEDS_LIMIT = ("latency", "errors", "alarms", "interventions")
SHARED_FIELDS = {"name", "when", "servers", "severity"}


class WatchedSource(Settings):
    """A server, or a run that left readings: something to watch.

    Attributes:
        name: Name that the page calls it by.
        url: Address of a server of ``poise serve``; its ``/metrics`` are read.
        readings: Database that ``poise serve`` writes readings to.
        key_file: File with the API key of the server, alone on a line.
        version: What is served, in words; figures are kept apart by it, and otherwise by model and software.
    """

    name: FilledText
    url: str = ""
    readings: str = ""
    key_file: str = ""
    version: str = ""

    @field_validator("url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("has to begin with http:// or https://")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _has_something_to_read(self) -> WatchedSource:
        if not (self.url or self.readings):
            raise placed_fault("needs a url, a database of readings, or both", "name")
        return self


class AlertRule(Settings):
    """When people are notified.

    Attributes:
        name: Name of the rule.
        when: What it looks at.
        servers: Sources that it is for; empty for all.
        severity: ``page`` for at once, ``ticket`` for the working day.
        seconds: ``down``: how long a server may be away.
        trait: ``drift``, ``trait``: name of the vector; empty for every one.
        reading: Which reading of an answer: ``mean``, ``peak`` or ``prompt``.
        part: Part of the answers that was read.
        side: ``drift``: upwards, downwards or both.
        every: ``drift``: ordinary answers to a false alarm, on average and at least.
        baseline: ``drift``: answers that say what is ordinary; the first ones that are there.
        above: Limit from above: of a mean reading, of seconds, or of a share.
        below: ``trait``: limit from below.
        answers: ``trait``: how many of the last answers are averaged.
        of: ``latency``: seconds to the first token, of a request, or of a token.
        quantile: ``latency``: which share of requests is to be faster.
        minutes: Time that counts are taken over.
    """

    name: FilledText
    when: AlertCondition
    servers: ListOfTexts = ()
    severity: Literal["page", "ticket"] = "ticket"
    seconds: float = Field(60.0, ge=0)
    trait: str = ""
    reading: Literal["mean", "peak", "prompt"] = "mean"
    part: Literal["reply", "thought", "both"] = "reply"
    side: Literal["above", "below", "both"] = "both"
    every: float = Field(1000.0, ge=20)
    baseline: int = Field(300, ge=100, le=100_000)
    above: float | None = None
    below: float | None = None
    answers: int = Field(100, ge=10, le=100_000)
    of: Literal["first_token", "request", "token"] = "first_token"
    quantile: float = Field(0.95, gt=0, lt=1)
    minutes: float = Field(15.0, ge=5, le=7 * 24 * 60)

    @model_validator(mode="after")
    def _fits_its_condition(self) -> AlertRule:
        for field in sorted(self.model_fields_set - SHARED_FIELDS - CONDITION_FIELDS[self.when]):
            takes = ", ".join(sorted(CONDITION_FIELDS[self.when])) or "nothing else"
            raise placed_fault(f"is not for a rule of {self.when}, which takes {takes}", field)
        if self.when in NEEDS_LIMIT and self.above is None:
            raise placed_fault(f"is a rule of {self.when} and needs above", "when")
        if self.when == "trait" and self.above is None and self.below is None:
            raise placed_fault("is a rule of trait and needs above, below or both", "when")
        return self


class AlertMail(Settings):
    """Where mail is handed in.

    Attributes:
        host: Server that takes mail (SMTP).
        port: Its port.
        sender: Address that mail comes from.
        to: Addresses that it goes to.
        security: ``starttls``, ``tls`` from the first byte, or ``none`` for a server on this machine.
        user: Name to log in with; empty without.
        password_file: File with the password.
    """

    host: FilledText
    port: int = Field(587, ge=1, le=65535)
    sender: FilledText
    to: ListOfTexts
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: str = ""
    password_file: str = ""
    other_names: ClassVar[Mapping[str, str]] = {"from": "sender"}

    @field_validator("to")
    @classmethod
    def _someone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or any("@" not in address or len(address.split()) != 1 for address in value):
            raise ValueError("has to be one address or more, such as ada@example.org")
        return value


DEFAULT_RULES = (
    AlertRule(name="down", when="down", severity="page"),
    AlertRule(name="drift", when="drift"),
    AlertRule(name="changed", when="changed"),
)
"""What is watched where a file says nothing."""


class DashboardSettings(Settings):
    """A dashboard.

    Attributes:
        servers: What is watched.
        rules: When people are notified.
        webhook: Address that alerts are posted to.
        webhook_secret_file: File with the secrets that they are signed with.
        mail: Server that mail is handed in at.
        operators: Names of keys that may acknowledge, silence and test; the others only view.
        every_seconds: Pause between two polls of a source, in seconds.
        keep_days: Counts and alerts that are over are deleted when they are older.
    """

    servers: tuple[WatchedSource, ...] = Field(min_length=1)
    rules: tuple[AlertRule, ...] = DEFAULT_RULES
    webhook: str = ""
    webhook_secret_file: str = ""
    mail: AlertMail | None = None
    operators: ListOfTexts = ()
    every_seconds: float = Field(15.0, ge=0.05, le=3600)
    keep_days: float = Field(90.0, ge=1, le=3650)
    other_names: ClassVar[Mapping[str, str]] = {"sources": "servers", "email": "mail"}

    @field_validator("webhook")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("has to begin with http:// or https://")
        return value

    @model_validator(mode="after")
    def _names_fit(self) -> DashboardSettings:
        for kind, names in (("servers", [s.name for s in self.servers]), ("rules", [r.name for r in self.rules])):
            for number, name in enumerate(names):
                if name in names[:number]:
                    raise placed_fault("is there twice; give each its own", kind, number, "name")
        known = [source.name for source in self.servers]
        for number, rule in enumerate(self.rules):
            for place, name in enumerate(rule.servers):
                if name not in known:
                    fault = f"is {name!r}, {unknown_name(name, known)}"
                    raise placed_fault(fault, "rules", number, "servers", place)
        return self

    def rules_for(self, source: str) -> list[AlertRule]:
        """Rules that are for a source."""
        return [rule for rule in self.rules if not rule.servers or source in rule.servers]

    def trait_faults(self, traits: Sequence[str]) -> Iterator[SettingFault]:
        """Rules that name a trait which nothing reads, of those that are read."""
        for number, rule in enumerate(self.rules):
            if rule.trait and traits and rule.trait not in traits:
                yield ("rules", number, "trait"), f"is {rule.trait!r}, {unknown_name(rule.trait, traits)}"


def unknown_name(name: str, known: Sequence[str]) -> str:
    """What to do about a name that is not among the known ones."""
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    return (
        f"which is not there; did you mean {near[0]}?" if near else f"which is not there; there are {', '.join(known)}"
    )


def read_dashboard(path: str | Path) -> DashboardSettings:
    """What a dashboard's file says; paths in it begin in the file's folder.

    Raises:
        InvalidSettings: no such file, no YAML, or a setting that is unknown or out of range; names file and line.
    """
    settings = read_settings(path, DashboardSettings)
    folder = Path(path).parent

    def placed(text: str) -> str:
        return str(folder / text) if text else ""

    return settings.model_copy(
        update={
            "servers": tuple(
                source.model_copy(update={"readings": placed(source.readings), "key_file": placed(source.key_file)})
                for source in settings.servers
            ),
            "webhook_secret_file": placed(settings.webhook_secret_file),
            "mail": settings.mail
            and settings.mail.model_copy(update={"password_file": placed(settings.mail.password_file)}),
        }
    )
