"""What a registry holds, as values: records of artefacts, and events in which somebody adds, promotes or approves one.

Each is written once, under the hash of its own bytes, and never changed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field

from poise.settings import Frozen, FrozenModel

__all__ = [
    "KINDS",
    "STAGES",
    "ArtefactFile",
    "ArtefactKind",
    "EventSignature",
    "RegistryEvent",
    "RegistryRecord",
    "SignedEvent",
    "Stage",
    "canonical_bytes",
    "digest_of",
]

ArtefactKind = Literal["model", "adapter", "vector", "detector", "guardrail", "knowledge", "data", "report", "project"]
Stage = Literal["draft", "candidate", "production", "retired"]
KINDS = ("model", "adapter", "vector", "detector", "guardrail", "knowledge", "data", "report", "project")
STAGES = ("draft", "candidate", "production", "retired")


class ArtefactFile(FrozenModel):
    """One file of an artefact.

    Attributes:
        name: Path in the artefact's folder, or the file's own name.
        bytes: Size.
        sha256: Hash of its bytes.
    """

    name: str
    bytes: int
    sha256: str


class RegistryRecord(FrozenModel):
    """What is recorded of an artefact; equal content gives an equal record.

    Attributes:
        format: Version of this schema.
        kind: Kind of artefact.
        name: Name that people call it by.
        place: Path where it lay when it was added.
        files: Its files, with their hashes.
        parents: Records that it came from, by their hashes.
        facts: What else is known of it: licence, base, certificate, report.
        software: Versions of the libraries that recorded it.
    """

    format: Literal[1] = 1
    kind: ArtefactKind
    name: str
    place: str
    files: tuple[ArtefactFile, ...]
    parents: tuple[str, ...] = ()
    facts: Annotated[dict[str, Any], Frozen] = Field(default_factory=dict, validate_default=True)
    software: Annotated[dict[str, str], Frozen] = Field(default_factory=dict, validate_default=True)

    @property
    def bytes(self) -> int:
        """Size of all its files."""
        return sum(file.bytes for file in self.files)


class RegistryEvent(FrozenModel):
    """Something that happened to a record.

    Attributes:
        format: Version of this schema.
        record: Hash of the record.
        number: Place in the record's history, from 1.
        previous: Hash of the event before; empty for the first.
        stage: Stage from now on.
        by: Who did it.
        time: When, UTC, by the clock of the machine it was done on.
        note: Why, in words.
    """

    format: Literal[1] = 1
    record: str
    number: int
    previous: str
    stage: Stage
    by: str
    time: str
    note: str = ""


class EventSignature(FrozenModel):
    """Ed25519 over an event's canonical bytes.

    Attributes:
        key: Public key, in hexadecimal.
        signature: Signature, in hexadecimal.
    """

    key: str
    signature: str


class SignedEvent(FrozenModel):
    """An event as its file holds it.

    Attributes:
        event: What happened.
        signature: Who vouches for it; ``None`` where nobody signed.
    """

    event: RegistryEvent
    signature: EventSignature | None = None


def canonical_bytes(value: FrozenModel) -> bytes:
    """The one spelling of a value that is hashed, signed and written."""
    text = json.dumps(
        value.model_dump(mode="json"), sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return text.encode(errors="surrogatepass")


def digest_of(value: FrozenModel) -> str:
    """SHA-256 of a value's canonical bytes: the name that it is kept under."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()
