"""A registry: a folder of records and events that are written once, each under its own hash, and never changed.

Two writers at once lose nothing: a record's name is its content, and an event takes its number by creating a file that
must not be there yet.

    records/ab/abcd….json           what is recorded of an artefact
    events/abcd…/000001.json        what happened to it, each with the hash of the event before
"""

from __future__ import annotations

import datetime
import difflib
import getpass
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from poise.data.addresses import is_address
from poise.errors import InvalidRegistry
from poise.lifecycle.artefacts import artefact_facts, artefact_files, artefact_kind, artefact_place
from poise.lifecycle.model_files import file_sha256
from poise.lifecycle.registry_mirror import RegistryMirror, address_text
from poise.lifecycle.registry_records import (
    STAGES,
    ArtefactKind,
    RegistryEvent,
    RegistryRecord,
    SignedEvent,
    Stage,
    canonical_bytes,
    digest_of,
)
from poise.lifecycle.signing import sign_event
from poise.progress import remark
from poise.storage.atomic_write import creating
from poise.storage.lock import one_at_a_time

__all__ = ["Registry", "who_is_at_work"]

MARKER = "poise-registry.json"
SHORTEST_ID = 4  # digits of a record's hash that name it


class Registry:
    """The records in a folder, or at an address that fsspec knows.

    Args:
        folder: The folder, which is made by the first record, or an address such as ``s3://bucket/registry``.
    """

    def __init__(self, folder: str | Path) -> None:
        self._mirror = RegistryMirror(address) if is_address(address := address_text(folder)) else None
        self.folder = self._mirror.folder if self._mirror else Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise InvalidRegistry(f"{folder} is a file; a registry is a folder.")
        try:
            is_foreign = self.folder.is_dir() and any(self.folder.iterdir()) and not self.is_one
        except OSError as error:
            raise InvalidRegistry(f"The registry {folder} cannot be read ({error.strerror}).") from error
        if is_foreign:
            raise InvalidRegistry(f"{folder} holds files and is no registry; choose an empty folder or a registry.")

    @property
    def is_one(self) -> bool:
        """Whether something was recorded in the folder before."""
        return (self.folder / MARKER).is_file() or (self.folder / "records").is_dir()

    def add(
        self,
        artefact: str,
        *,
        kind: ArtefactKind | None = None,
        name: str = "",
        parents: Iterable[str] = (),
        facts: Mapping[str, Any] | None = None,
        by: str = "",
        note: str = "",
        key: Path | None = None,
    ) -> tuple[str, bool]:
        """Record an artefact as a draft.

        Args:
            artefact: Path of a file or folder, or a model's name.
            kind: Kind of artefact; otherwise told by its files.
            name: Name that people call it by; otherwise the file's.
            parents: Records that it came from, by name or hash.
            facts: What else is to be recorded.
            by: Who records it; otherwise who is logged in.
            note: Why, in words.
            key: Signing key to sign the record with.

        Returns:
            The record's hash, and whether it is new.

        Raises:
            InvalidRegistry: nothing there, its kind cannot be told, or there is no such parent.
            SaveFailed: the disk refused; nothing that was there is changed.
        """
        self._catch_up()
        place = artefact_place(artefact)
        chosen = kind or artefact_kind(place)
        record = RegistryRecord(
            kind=chosen,
            name=name or (artefact if place.name not in artefact else place.stem if place.is_file() else place.name),
            place=str(place.absolute()),
            files=artefact_files(place),
            parents=tuple(sorted({self.find(parent) for parent in parents})),
            facts={**artefact_facts(place, chosen), **(facts or {})},
            software={"poise": version("poise")},
        )
        digest = digest_of(record)
        if not record.parents and (known := self._recorded_before(record)):
            return known, False
        self._write_once(self.folder / MARKER, b'{"format":1}')
        is_new = self._write_once(self.record_path(digest), canonical_bytes(record))
        if not self.events(digest):
            self._append(digest, "draft", by, note, key)
        return digest, is_new

    def promote(
        self, record: str, stage: Stage, *, by: str = "", note: str = "", key: Path | None = None
    ) -> SignedEvent:
        """Bring a record to another stage; the event says who did it, when and why.

        Args:
            record: Name or hash.
            stage: Stage from now on: one further, any earlier one, or retired.
            by: Who approves; otherwise who is logged in.
            note: Why, in words.
            key: Signing key to sign the event with.

        Raises:
            InvalidRegistry: no such record, a stage is skipped, or the artefact is gone or another than was recorded.
            SaveFailed: the disk refused.
        """
        if stage not in STAGES:
            raise InvalidRegistry(f"There is no stage {stage}; use one of {', '.join(STAGES)}.")
        self._catch_up()
        digest = self.find(record)
        if stage == "production" and (changed := self.changed_files(digest)):
            raise InvalidRegistry(
                f"{self.record(digest).name} is not what was recorded ({'; '.join(changed)}); record it anew."
            )
        with one_at_a_time(self.folder / "events"):
            before = self.stage(digest)
            if STAGES.index(stage) > STAGES.index(before) + 1 and stage != "retired":
                raise InvalidRegistry(
                    f"{self.record(digest).name} is {before}; promote it to {STAGES[STAGES.index(before) + 1]} first."
                )
            if stage == before:
                last = self.events(digest)[-1].event
                raise InvalidRegistry(f"{self.record(digest).name} is {stage} already, by {last.by} on {last.time}.")
            return self._append(digest, stage, by, note, key)

    def records(self) -> dict[str, RegistryRecord]:
        """Every record by its hash, as they were added; damaged ones are left out, which ``check_registry`` names."""
        entries = []
        for path in sorted((self.folder / "records").glob("*/*.json")):
            try:
                record = RegistryRecord.model_validate_json(path.read_bytes())
            except (OSError, ValidationError):
                continue
            events = self.events(path.stem)
            entries.append((events[0].event.time if events else "", path.stem, record))
        return {digest: record for _, digest, record in sorted(entries, key=lambda entry: entry[:2])}

    def record(self, digest: str) -> RegistryRecord:
        """The record of a hash.

        Raises:
            InvalidRegistry: it is not there or damaged.
        """
        try:
            return RegistryRecord.model_validate_json(self.record_path(digest).read_bytes())
        except (OSError, ValidationError) as error:
            raise InvalidRegistry(
                f"The record {digest[:12]} in {self.folder} is missing or damaged; `poise registry verify` says more."
            ) from error

    def events(self, digest: str) -> list[SignedEvent]:
        """What happened to a record, in order; what cannot be read is left out, which ``check_registry`` names."""
        events = []
        for path in self.event_paths(digest):
            try:
                events.append(SignedEvent.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError):
                continue
        return events

    def event_paths(self, digest: str) -> list[Path]:
        """Files of a record's events, in order."""
        return sorted((self.folder / "events" / digest).glob(f"{'[0-9]' * 6}.json"))

    def stage(self, digest: str) -> Stage:
        """Stage that a record is in."""
        events = self.events(digest)
        return events[-1].event.stage if events else "draft"

    def find(self, name: str) -> str:
        """Hash of a record by its name, its file, or the first digits of its hash.

        Raises:
            InvalidRegistry: there is none, or several.
        """
        records = self.records()
        matches = [digest for digest, record in records.items() if record.name == name]
        if not matches:
            matches = [digest for digest, record in records.items() if Path(record.place).name == Path(name).name]
        if not matches and len(name) >= SHORTEST_ID:
            matches = [digest for digest in records if digest.startswith(name.lower())]
        if len(matches) == 1:
            return matches[0]
        if matches:
            ids = ", ".join(f"{digest[:12]}{self._added_words(digest)}" for digest in matches)
            raise InvalidRegistry(f"{name} names {len(matches)} records of {self.folder}: {ids}; give one of these.")
        near = difflib.get_close_matches(name, [record.name for record in records.values()], n=1)
        hint = f"did you mean {near[0]}?" if near else "`poise registry list` shows what there is."
        raise InvalidRegistry(f"There is no record {name} in {self.folder}; {hint}")

    def _added_words(self, digest: str) -> str:
        """When a record was added, to tell it from others of its name."""
        events = self.events(digest)
        return f" (of {events[0].event.time})" if events else ""

    def children(self, digest: str) -> list[str]:
        """Records that came from one, by their hashes."""
        return [child for child, record in self.records().items() if digest in record.parents]

    def changed_files(self, digest: str) -> list[str]:
        """What is no more as it was recorded, in words; empty where the artefact is what it was."""
        record = self.record(digest)
        place, changed = Path(record.place), []
        if not place.exists():
            return [f"{record.place} is gone"]
        for file in record.files:
            path = place if place.is_file() else place / file.name
            if not path.is_file():
                changed.append(f"{file.name} is gone")
            elif path.stat().st_size != file.bytes or file_sha256(path) != file.sha256:
                changed.append(f"{file.name} has changed")
        return changed

    def record_path(self, digest: str) -> Path:
        """File of a record."""
        return self.folder / "records" / digest[:2] / f"{digest}.json"

    def _recorded_before(self, record: RegistryRecord) -> str:
        """The record that says the same and also what it came from; empty where there is none."""
        for digest, known in self.records().items():
            if known.parents and known.model_copy(update={"parents": ()}) == record:
                return digest
        return ""

    def _catch_up(self) -> None:
        """Read what others wrote meanwhile, where the registry is at an address."""
        if self._mirror:
            self._mirror.fetch()

    def _write_once(self, path: Path, data: bytes) -> bool:
        """Write a file unless it is there; whether it is new."""
        if path.exists():
            return False
        if self._mirror:
            return self._mirror.create(path, data)
        try:
            with creating(path) as temporary:
                temporary.write_bytes(data)
        except FileExistsError:  # another writer was faster, with the same bytes
            return False
        return True

    def _append(self, digest: str, stage: Stage, by: str, note: str, key: Path | None) -> SignedEvent:
        """The next event of a record; where another writer takes its number, the number after."""
        while True:
            paths, events = self.event_paths(digest), self.events(digest)
            last = events[-1] if events else None
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            if last and now < last.event.time:
                remark(f"The clock says {now}, before the last event ({last.event.time}): events count, not clocks.")
            event = RegistryEvent(
                record=digest,
                number=int(paths[-1].stem) + 1 if paths else 1,
                previous=digest_of(last) if last else "",
                stage=stage,
                by=by or who_is_at_work(),
                time=now,
                note=note,
            )
            signed = SignedEvent(event=event, signature=sign_event(event, key) if key else None)
            if self._write_once(self.folder / "events" / digest / f"{event.number:06}.json", canonical_bytes(signed)):
                return signed

    def __iter__(self) -> Iterator[tuple[str, RegistryRecord]]:
        yield from self.records().items()


def who_is_at_work() -> str:
    """The name of whoever is logged in."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
