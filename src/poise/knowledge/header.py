"""``knowledge.json``: what a knowledge base holds and how it was made, replaced whole at the end of every build."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from poise.errors import InvalidKnowledge
from poise.knowledge.exact_store import ExactStore
from poise.knowledge.lance_store import LanceStore
from poise.knowledge.qdrant_store import LOCAL_NAME, QdrantStore
from poise.knowledge.store import ChunkStore
from poise.storage.atomic_write import saving

__all__ = ["HEADER_NAME", "KnowledgeFile", "KnowledgeHeader", "StoreName", "open_store", "put_aside", "read_header"]

HEADER_NAME = "knowledge.json"
FORMAT = 1
StoreName = Literal["lance", "exact", "qdrant"]
STORE_NAMES = ("chunks.lance", "chunks.sqlite", LOCAL_NAME)


class KnowledgeFile(BaseModel):
    """A file in a knowledge base."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = Field(description="Hash of its content and of how it was read.")
    chunks: int = Field(description="Number of its chunks.")
    labels: tuple[str, ...] = Field((), description="Who may see it.")


class KnowledgeHeader(BaseModel):
    """What a knowledge base holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    store: StoreName = Field(description="What keeps the chunks.")
    version: int = Field(description="Version of the store that readers see.")
    encoder: str = Field(description="Encoder that made the vectors.")
    width: int = Field(description="Numbers of a vector.")
    chunk: int = Field(description="Most characters of a chunk.")
    sources: tuple[str, ...] = Field(description="Files and folders that it is built of.")
    labels: tuple[str, ...] = Field((), description="Rules LABEL=PATTERN of who may see which files.")
    files: dict[str, KnowledgeFile] = Field(description="Files by name.")
    skipped: dict[str, str] = Field(description="Why each file that could not be read was left out.")

    @property
    def chunks(self) -> int:
        """Number of all chunks."""
        return sum(file.chunks for file in self.files.values())

    def save(self, folder: Path) -> None:
        """Replace the header of a knowledge base.

        Raises:
            SaveFailed: the disk refused; the earlier header is untouched.
        """
        with saving(folder / HEADER_NAME) as temporary:
            temporary.write_text(self.model_dump_json(indent=1), encoding="utf-8")


def read_header(folder: Path) -> KnowledgeHeader:
    """The header of a knowledge base.

    Raises:
        InvalidKnowledge: there is none, or it is damaged or of another version of Poise.
    """
    path = folder / HEADER_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidKnowledge(
            f"{folder} is not a knowledge base: it has no {HEADER_NAME}. Build one with `poise knowledge build`; one "
            "that was interrupted goes on when the same command is run again."
        ) from error
    except OSError as error:
        raise InvalidKnowledge(
            f"{path} cannot be read: {error.strerror or error}; get permission to read it."
        ) from error
    except ValueError as error:
        raise InvalidKnowledge(f"{path} cannot be read ({error}); remove {folder} and build it again.") from error
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version != FORMAT:
        raise InvalidKnowledge(f"{path} is of format {version}, and this Poise reads {FORMAT}; build it again.")
    try:
        return KnowledgeHeader.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        raise InvalidKnowledge(
            f"{path} is damaged ({place}: {fault['msg']}); remove {folder} and build it again."
        ) from error


def open_store(folder: Path, store: StoreName, width: int, version: int | None = None) -> ChunkStore:
    """A knowledge base's chunks; the latest, to be written, where ``version`` is ``None``."""
    if store == "lance":
        return LanceStore(folder, width, version)
    return ExactStore(folder, width) if store == "exact" else QdrantStore(folder, width)


def put_aside(folder: Path) -> Path | None:
    """Move a store that cannot be read out of the way; nothing of it is removed. ``None`` where there is none."""
    for name in STORE_NAMES:
        if (store := folder / name).exists():
            aside = next(p for n in count(1) if not (p := folder / f"damaged-{n}-{name}").exists())
            return store.rename(aside)
    return None
