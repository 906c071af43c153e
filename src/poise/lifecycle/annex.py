"""An annex in the order of the EU AI Act's technical documentation: filled from records, "not recorded" elsewhere.

Regulation (EU) 2024/1689, Annex IV. It puts what is recorded into that order; whether it suffices is not for it to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from poise.counting import counted
from poise.lifecycle.cards import related_reports, report_of
from poise.lifecycle.registry import Registry
from poise.lifecycle.registry_records import RegistryRecord

__all__ = ["ANNEX_IV", "technical_annex"]

NO_RECORD = "not recorded"

ANNEX_IV: tuple[tuple[str, str, str], ...] = (
    ("1(a)", "Intended purpose, provider, version and its relation to earlier versions", "purpose"),
    ("1(b)", "How it interacts with hardware or software that is not part of it", "interaction"),
    ("1(c)", "Versions of relevant software, and requirements on updates", "software"),
    ("1(d)", "Forms in which it is placed on the market or put into service", "forms"),
    ("1(e)", "Hardware that it is intended to run on", "hardware"),
    ("1(f)", "Where it is part of products: their outside, marking and inner layout", "product"),
    ("1(g)", "User interface for the deployer", "interface"),
    ("1(h)", "Instructions for use for the deployer", "instructions"),
    ("2(a)", "Methods and steps of its development, with pre-trained systems and tools of others", "lineage"),
    ("2(b)", "Design specifications: logic, assumptions, choices, what it is optimised for, trade-offs", "design"),
    ("2(c)", "Architecture, and the computing resources used", "architecture"),
    ("2(d)", "Data: provenance, scope, selection, labelling, cleaning", "data"),
    ("2(e)", "Human oversight measures and how outputs are made interpretable", "oversight"),
    ("2(f)", "Changes determined in advance", "planned_changes"),
    ("2(g)", "Validation and testing: data, metrics, discriminatory impacts, dated and signed reports", "testing"),
    ("2(h)", "Cybersecurity measures", "security"),
    (
        "3",
        "Monitoring, functioning and control: capabilities, limits, accuracy for groups, foreseeable risks",
        "limits",
    ),
    ("4", "Why the performance metrics are appropriate", "metrics"),
    ("5", "Risk management system (Article 9)", "risk_management"),
    ("6", "Changes made through its lifecycle", "changes"),
    ("7", "Harmonised standards applied, or other solutions", "standards"),
    ("8", "EU declaration of conformity (Article 47)", "declaration"),
    ("9", "Evaluation after it is on the market, and the monitoring plan (Article 72)", "monitoring"),
)


def technical_annex(registry: Registry, name: str, project: Mapping[str, Any] | None = None) -> str:
    """A record's technical documentation in the order of Annex IV.

    Args:
        registry: The registry.
        name: Name or hash of the record of the system's model, adapter or guardrail.
        project: What ``project.yaml`` says of the use case.

    Raises:
        InvalidRegistry: no such record.
    """
    digest = registry.find(name)
    record = registry.record(digest)
    filled = dict(_filled(registry, digest, project or {}))
    filled |= {key: str(record.facts[key]) for _, _, key in ANNEX_IV if isinstance(record.facts.get(key), str)}
    points = [f"### {number} {title}\n\n{filled.get(key) or f'*{NO_RECORD}*'}" for number, title, key in ANNEX_IV]
    recorded = sum(bool(filled.get(key)) for _, _, key in ANNEX_IV)
    head = (
        f"# Technical documentation of {record.name}\n\nIn the order of Annex IV of Regulation (EU) 2024/1689. "
        f"{recorded} of {len(ANNEX_IV)} points are filled from the records of the registry; whether they suffice is "
        f"for whoever answers for the system to say. Record `{digest}`."
    )
    return "\n\n".join([head, *points]) + "\n"


def _filled(registry: Registry, digest: str, project: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What records and the project say, under the points' names."""
    record = registry.record(digest)
    events, reports = registry.events(digest), related_reports(registry, digest)
    purpose = [f"Use case: {project['use_case']}"] if project.get("use_case") else []
    purpose += [f"Answers for it: {project['responsible']}"] if project.get("responsible") else []
    if purpose:
        yield "purpose", "\n".join([*(f"- {line}" for line in purpose), f"- Version: record `{digest[:12]}`"])
    if record.software:
        yield "software", ", ".join(f"{key} {value}" for key, value in record.software.items())
    yield "forms", f"{record.kind}, {counted(len(record.files), 'file')} of {record.bytes:,} bytes"
    yield "lineage", _parents(registry, record)
    if record.facts.get("architecture"):
        yield "architecture", f"{record.facts['architecture']}, {record.facts.get('parameters', 0):,} parameters"
    yield "data", "\n".join(_data_lines(registry, record, project))
    yield "design", _requirements(project)
    yield "testing", "\n".join(_test_lines(registry, reports))
    yield "limits", str(record.facts.get("limits") or "")
    yield "changes", "\n".join(f"- {one.event.time}: {one.event.stage}, by {one.event.by}. {one.event.note}".strip()
                               for one in events)  # fmt: skip
    guards = [registry.record(child) for child in registry.children(digest)]
    yield (
        "oversight",
        "\n".join(f"- {one.kind} `{one.name}`" for one in guards if one.kind in ("guardrail", "detector")),
    )
    monitors = [one for one in reports if "drift" in str(report_of(one)) or one.facts.get("monitoring")]
    yield "monitoring", "\n".join(f"- report `{one.name}`" for one in monitors)


def _parents(registry: Registry, record: RegistryRecord) -> str:
    parents = [(one, registry.record(one)) for one in record.parents]
    lines = [f"- {parent.kind} `{parent.name}` (`{one[:12]}`)" for one, parent in parents]
    base = record.facts.get("base_model_name_or_path")
    return "\n".join([*lines, *([f"- pre-trained by others: `{base}`"] if base else [])])


def _data_lines(registry: Registry, record: RegistryRecord, project: Mapping[str, Any]) -> list[str]:
    parents = [registry.record(one) for one in record.parents]
    lines = [
        f"- `{one.name}`, {one.bytes:,} bytes, SHA-256 `{one.files[0].sha256}`" for one in parents if one.kind == "data"
    ]
    return lines or [f"- `{name}` (named by the project, not recorded)" for name in project.get("data") or ()]


def _requirements(project: Mapping[str, Any]) -> str:
    requirements = project.get("requirements") or {}
    return "\n".join(f"- {key}: {value}" for key, value in requirements.items() if value)


def _test_lines(registry: Registry, reports: Sequence[RegistryRecord]) -> list[str]:
    names = {record.name: digest for digest, record in registry}
    lines = []
    for report in reports:
        events = registry.events(names[report.name])
        signed = "signed" if any(one.signature for one in events) else "not signed"
        lines.append(f"- report `{report.name}`, {events[0].event.time if events else NO_RECORD}, {signed}")
    return lines
