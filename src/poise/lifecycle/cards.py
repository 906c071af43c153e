"""A card of a record in Hugging Face's format: YAML that the hub reads, then what people read.

Everything in it comes from records; what no record says is named as not measured or not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from poise.errors import InvalidRegistry, MissingExtra
from poise.lifecycle.registry import Registry
from poise.lifecycle.registry_records import RegistryRecord

__all__ = ["check_card", "record_card", "related_reports", "report_of"]

NOT_RECORDED = "Not recorded."
LIBRARIES = {"adapter": "peft", "model": "transformers"}
WHAT_IT_IS = {
    "model": "A language model.",
    "adapter": "An adapter: a change to the weights of its base.",
    "vector": "A persona vector: a direction in the activations of one model, to read or steer a trait with.",
    "detector": "A detector: a persona vector with a fitted direction that a trait is read with.",
    "guardrail": "A guardrail: rules and detectors for what is kept out of prompts and answers.",
    "knowledge": "A knowledge base: documents cut into passages, with their vectors.",
    "data": "A data set.",
    "report": "A report of measurements.",
    "project": "A use case: what is wanted, who answers for it, and what it must keep to.",
}
RISKS = {
    "model": "A language model states what is false, repeats the slant of its data, and follows instructions that are "
    "hidden in what it reads.",
    "adapter": "A fine-tune may change more than was asked for; what was not measured before and after is not known.",
    "vector": "Steering changes more than the trait, and more so the higher the dose; on another model than its own "
    "the vector means nothing.",
    "detector": "A detector misses answers and raises false alarms at the rates that it was fitted for, on data like "
    "those it was fitted on, and at unknown ones elsewhere.",
    "guardrail": "A guardrail lets some of what it is for pass and blocks some of what it is not for.",
    "knowledge": "Answers are as right and as recent as its documents; what a passage says may be an instruction.",
    "data": "What a model learns from data is not seen in the data alone.",
}
MEASUREMENTS = (
    ("what it does to traits, before and after", ("tuned", "verdict")),
    ("capability before and after", ("capability",)),
    ("bias between groups", ("gaps",)),
    ("speed and memory", ("candidates",)),
)


def record_card(registry: Registry, name: str) -> str:
    """The card of a record.

    Args:
        registry: The registry.
        name: Name or hash of the record.

    Raises:
        InvalidRegistry: no such record.
        MissingExtra: huggingface_hub is not installed.
    """
    digest = registry.find(name)
    record = registry.record(digest)
    reports = related_reports(registry, digest)
    parts = [
        f"# {_table_text(record.name)}",
        f"{WHAT_IT_IS[record.kind]} {_origin(record)}".strip(),
        "## Use",
        _table_text(str(record.facts.get("use") or record.facts.get("description") or NOT_RECORDED)),
        "## Traits and capability, before and after",
        *(_effect_parts(reports) or [NOT_RECORDED]),
        *_certificate_parts(record),
        "## Limits",
        _table_text(str(record.facts.get("limits") or NOT_RECORDED)),
        "## Data",
        *_relatives(registry, record, "data"),
        "## Risks",
        RISKS.get(record.kind, ""),
        *([_table_text(str(record.facts["risks"]))] if record.facts.get("risks") else []),
        *_finding_parts(record),
        "## What was not measured",
        _not_measured(record, reports),
        "## Where it comes from",
        *_lineage(registry, digest),
        "## Files",
        _file_table(record),
        "## History",
        _history(registry, digest),
    ]
    return f"---\n{_card_metadata(registry, record)}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def check_card(text: str) -> list[str]:
    """What is wrong with a card, by huggingface_hub's own parser; nothing is asked of the hub.

    Raises:
        MissingExtra: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import ModelCard
    except ImportError as error:
        raise MissingExtra.of("Checking a card needs huggingface_hub", "train") from error
    try:
        card = ModelCard(text)
    except Exception as error:  # the parser raises YAML's errors and ValueError
        return [str(error).splitlines()[0]]
    faults = [] if re.search(r"^# ", card.text, flags=re.MULTILINE) else ["It has no title."]
    metadata: Any = card.data
    if not metadata.to_dict():
        faults.append("It has no metadata.")
    return faults


def related_reports(registry: Registry, digest: str) -> list[RegistryRecord]:
    """Reports about a record: those that came from it, and those that it names."""
    ids = [*registry.children(digest), *registry.record(digest).parents]
    records = [registry.record(one) for one in dict.fromkeys(ids)]
    return [record for record in records if record.kind == "report"]


def report_of(record: RegistryRecord) -> Mapping[str, Any]:
    """The JSON of a report's record; empty where it holds none."""
    report = record.facts.get("report")
    return report if isinstance(report, Mapping) else {}


def _card_metadata(registry: Registry, record: RegistryRecord) -> str:
    try:
        from huggingface_hub import ModelCardData
    except ImportError as error:
        raise MissingExtra.of("A card needs huggingface_hub", "train") from error
    facts = record.facts
    base = str(facts.get("base_model_name_or_path") or facts.get("model") or "")
    data = [registry.record(parent).name for parent in record.parents if registry.record(parent).kind == "data"]
    metadata = ModelCardData(
        license=str(facts.get("licence") or "") or None,
        base_model=base if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) else None,
        datasets=[name for name in data if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)] or None,
        library_name=LIBRARIES.get(record.kind, "poise"),
        pipeline_tag="text-generation" if record.kind in LIBRARIES else None,
        tags=["poise", f"poise-{record.kind}"],
    )
    return str(metadata.to_yaml()).strip()


def _origin(record: RegistryRecord) -> str:
    facts = record.facts
    sentences = []
    if trait := facts.get("trait"):
        sentences.append(f"It is of the trait `{trait}` on the model `{facts.get('model', 'not recorded')}`.")
    if base := facts.get("base_model_name_or_path"):
        sentences.append(f"Its base is `{base}`.")
    if parameters := facts.get("parameters"):
        sentences.append(f"{parameters:,} parameters ({facts.get('architecture') or 'architecture not recorded'}).")
    sentences.append(f"Licence: {facts.get('licence') or 'not recorded'}.")
    return " ".join(sentences)


def _effect_parts(reports: Sequence[RegistryRecord]) -> list[str]:
    """What shift reports say of traits and capability; other reports by their figures."""
    parts: list[str] = []
    for record in reports:
        content = report_of(record)
        if "tuned" in content:
            from poise.shift.model_card import effect_sections
            from poise.shift.report import ShiftReport

            try:
                report = ShiftReport.model_validate(content)
            except ValidationError:
                continue
            for tuned in report.tuned:
                parts += [
                    f"### {_table_text(tuned.name)}, beside {_table_text(report.base)}",
                    *effect_sections(report, tuned)[1:],
                ]
        elif figures := dict(_estimate_figures("", content)):
            rows = [f"| {_table_text(key)} | {value} |" for key, value in list(figures.items())[:40]]
            parts += [f"### {_table_text(record.name)}", "\n".join(["| Figure | Value |", "|---|---|", *rows])]
    return parts


def _estimate_figures(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Estimates in a report, with n and interval, under the names that lead to them."""
    if isinstance(value, Mapping):
        if {"value", "low", "high", "n"} <= set(value):
            ends = "no interval" if value["low"] is None else f"[{value['low']:.3g}, {value['high']:.3g}]"
            number = "no value" if value["value"] is None else f"{value['value']:.3g} {ends}"
            yield name, f"{number}, n = {value['n']}"
            return
        for key, inner in value.items():
            yield from _estimate_figures(f"{name} {key}".strip(), inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            label = inner.get("name", "") if isinstance(inner, Mapping) else ""
            yield from _estimate_figures(f"{name} {label}".strip(), inner)


def _certificate_parts(record: RegistryRecord) -> list[str]:
    certificate = record.facts.get("certificate")
    if record.kind not in ("vector", "detector"):
        return []
    if not isinstance(certificate, Mapping):
        return ["It has no certificate: what it does when a model is steered with it was not measured."]
    figures = dict(_estimate_figures("", {"rise": certificate.get("rise"), "monotone": certificate.get("monotone")}))
    listed = "; ".join(f"{key} {value}" for key, value in figures.items())
    reasons = "".join(f"\n- {_table_text(str(reason))}" for reason in certificate.get("reasons") or ())
    return [
        f"Certificate: **{certificate.get('verdict')}** at layer {certificate.get('layer')}, dose "
        f"{certificate.get('dose'):.3g}; {listed}.{reasons}"
    ]


def _relatives(registry: Registry, record: RegistryRecord, kind: str) -> list[str]:
    parents = [(parent, registry.record(parent)) for parent in record.parents]
    lines = [
        f"- `{one.name}`, {one.bytes:,} bytes, record `{parent[:12]}`" for parent, one in parents if one.kind == kind
    ]
    return ["\n".join(lines) or NOT_RECORDED]


def _finding_parts(record: RegistryRecord) -> list[str]:
    findings = [one for one in record.facts.get("findings") or () if one.get("severity") != "note"]
    return ["\n".join(f"- {one['severity']}, `{one['file']}`: {_table_text(one['text'])}" for one in findings)]


def _not_measured(record: RegistryRecord, reports: Sequence[RegistryRecord]) -> str:
    text = " ".join(str(key) for report in reports for key in _all_keys(report_of(report)))
    text += " verdict" if record.facts.get("certificate") else ""
    missing = [label for label, marks in MEASUREMENTS if not any(f" {mark} " in f" {text} " for mark in marks)]
    listed = "\n".join(f"- {label}" for label in missing)
    return f"No record says anything of:\n\n{listed}" if missing else "Nothing of what this card asks for."


def _all_keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner not in (None, [], (), {}):
                yield str(key)
                yield from _all_keys(inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _all_keys(inner)


def _lineage(registry: Registry, digest: str) -> list[str]:
    record = registry.record(digest)
    lines = [
        f"- from {registry.record(one).kind} `{registry.record(one).name}` (`{one[:12]}`)" for one in record.parents
    ]
    lines += [
        f"- led to {registry.record(one).kind} `{registry.record(one).name}` (`{one[:12]}`)"
        for one in registry.children(digest)
    ]
    return [f"Record `{digest}`.", "\n".join(lines) or "No other record is tied to it."]


def _file_table(record: RegistryRecord) -> str:
    rows = [f"| `{_table_text(file.name)}` | {file.bytes:,} | `{file.sha256}` |" for file in record.files]
    return "\n".join(["| File | Bytes | SHA-256 |", "|---|---|---|", *rows])


def _history(registry: Registry, digest: str) -> str:
    rows = []
    for signed in registry.events(digest):
        event = signed.event
        mark = f"`{signed.signature.key[:16]}`" if signed.signature else "not signed"
        rows.append(f"| {event.stage} | {_table_text(event.by)} | {event.time} | {mark} | {_table_text(event.note)} |")
    return "\n".join(["| Stage | By | When | Signed | Why |", "|---|---|---|---|---|", *rows])


def _table_text(text: str) -> str:
    """On one line, safe in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def check_is_card(text: str) -> None:
    """Refuse a card that huggingface_hub cannot read.

    Raises:
        InvalidRegistry: says what is wrong.
    """
    if faults := check_card(text):
        raise InvalidRegistry(f"The card cannot be read by huggingface_hub ({'; '.join(faults)}); report this.")
