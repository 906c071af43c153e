"""Whether a registry is what was written: records, events and artefacts by their hashes, signatures by keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from poise.lifecycle.registry import MARKER, Registry
from poise.lifecycle.registry_records import RegistryRecord, SignedEvent, digest_of
from poise.lifecycle.signing import signature_holds
from poise.progress import track
from poise.settings import FrozenModel

_REGISTRY_NAME = re.compile(r"(\d{6}|[0-9a-f]{64})\.json")

__all__ = ["RegistryFinding", "RegistryReview", "check_registry"]


class RegistryFinding(FrozenModel):
    """Something about a registry that is not as it was written, or should be known.

    Attributes:
        severity: ``fault`` for what is not as it was written; ``note`` for what should be known.
        place: File or record.
        text: One sentence.
    """

    severity: Literal["fault", "note"]
    place: str
    text: str


class RegistryReview(FrozenModel):
    """What a check of a registry found.

    Attributes:
        records: Records that were read.
        events: Events that were read.
        signed: Events whose signature holds.
        findings: What is not as it should be.
    """

    records: int
    events: int
    signed: int
    findings: tuple[RegistryFinding, ...]

    @property
    def holds(self) -> bool:
        """Whether everything is as it was written."""
        return not any(finding.severity == "fault" for finding in self.findings)


def check_registry(
    registry: Registry,
    *,
    trusted: frozenset[str] = frozenset(),
    require_signatures: bool = False,
    artefacts: bool = True,
) -> RegistryReview:
    """Hold every record, event and artefact to its hash, and every signature to its key.

    Args:
        registry: The registry.
        trusted: Public keys whose signatures count; with none, a signature says only that nothing was changed since.
        require_signatures: Whether an event without a signature is a fault.
        artefacts: Whether the artefacts' files are hashed again.

    Raises:
        MissingExtra: there are signatures, and PyNaCl is not installed.
    """
    findings, digests = list(_strangers(registry)), []
    for path in sorted((registry.folder / "records").glob("*/*.json")):
        fault = _record_fault(path)
        findings += [_registry_fault(path.stem[:12], fault)] if fault else []
        digests += [] if fault else [path.stem]
    events = signed = 0
    with track("Checking records", total=len(digests)) as advance:
        for digest in digests:
            record = registry.record(digest)
            name = f"{record.name} ({digest[:12]})"
            missing = [parent[:12] for parent in record.parents if parent not in digests]
            findings += (
                [_registry_fault(name, f"Its parent {', '.join(missing)} is missing or damaged.")] if missing else []
            )
            if artefacts and registry.stage(digest) != "retired":
                findings += [
                    _registry_fault(name, f"The artefact: {change}.") for change in registry.changed_files(digest)
                ]
            faults, count, holding = _history_faults(registry, digest, trusted, require_signatures=require_signatures)
            findings += [_registry_fault(name, fault) for fault in faults]
            events, signed = events + count, signed + holding
            advance(1)
    if signed and not trusted:
        text = f"{signed} signatures hold, but by keys that nobody vouched for; give public keys with `trusted`."
        findings.append(RegistryFinding(severity="note", place=str(registry.folder), text=text))
    return RegistryReview(records=len(digests), events=events, signed=signed, findings=tuple(findings))


def _strangers(registry: Registry) -> Iterator[RegistryFinding]:
    """Files in the folder that no registry writes, and events of no record."""
    for path in sorted(registry.folder.rglob("*")):
        parts = path.relative_to(registry.folder).parts
        if path.is_dir() or path.name in (MARKER, ".lock") or path.name.endswith(".part"):
            continue
        place = Path(*parts).as_posix()
        if len(parts) == 3 and parts[0] in ("records", "events") and _REGISTRY_NAME.fullmatch(path.name):
            if parts[0] == "events" and not registry.record_path(parts[1]).is_file():
                yield _registry_fault(place, "An event of a record that is not there.")
            continue
        yield RegistryFinding(severity="note", place=place, text="A file that is no part of the registry; left alone.")


def _record_fault(path: Path) -> str:
    """Why a record is not what was written; empty where it is."""
    try:
        record = RegistryRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        return f"The record cannot be read ({error.strerror})."
    except ValidationError:
        return "The record is damaged: it is no record of this version."
    return "" if digest_of(record) == path.stem else "The record was changed: its content has another hash."


def _history_faults(
    registry: Registry, digest: str, trusted: frozenset[str], *, require_signatures: bool
) -> tuple[list[str], int, int]:
    """What is wrong with a record's events, how many there are, and how many have a signature that holds."""
    faults, previous, signed = [], "", 0
    paths = registry.event_paths(digest)
    if not paths:
        return ["It has no event: nobody is recorded to have added it."], 0, 0
    for number, path in enumerate(paths, start=1):
        try:
            entry = SignedEvent.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            faults.append(f"Event {number} is damaged.")
            break
        event = entry.event
        if (event.number, event.record, event.previous, path.stem) != (number, digest, previous, f"{number:06}"):
            faults.append(
                f"Event {number} ({event.stage}, {event.by}) does not follow the one before: one was changed."
            )
        previous = digest_of(entry)
        if entry.signature is None:
            faults += [f"Event {number} ({event.stage}, {event.by}) is not signed."] if require_signatures else []
        elif not signature_holds(event, entry.signature):
            faults.append(f"Event {number} ({event.stage}, {event.by}) has a signature that does not hold.")
        elif trusted and entry.signature.key not in trusted:
            faults.append(f"Event {number} ({event.stage}, {event.by}) is signed by a key that is not trusted.")
        else:
            signed += 1
    return faults, len(paths), signed


def _registry_fault(place: str, text: str) -> RegistryFinding:
    return RegistryFinding(severity="fault", place=place, text=text)
