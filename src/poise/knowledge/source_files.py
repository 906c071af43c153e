"""Which files a knowledge base is built of, and what is in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from poise.errors import InvalidArgument, InvalidDocument
from poise.knowledge.reading import DOCUMENT_ENDINGS, LARGEST_DOCUMENT

__all__ = ["document_bytes", "document_names", "is_utf8_name", "printable_name"]


def document_names(sources: Sequence[str], out: Path) -> list[str]:
    """Names of all files, in order; of a folder those that can be read, but hidden ones and the knowledge base's."""
    names: dict[str, None] = {}

    def note_unreadable(error: OSError) -> None:
        names[str(error.filename)] = None

    for source in sources:
        place = Path(source)
        if not is_utf8_name(source):
            raise InvalidArgument(f"The name {printable_name(source)} is not UTF-8; rename the file or folder.")
        if place.is_file():
            names[source] = None
        elif place.is_dir():
            for folder, folders, files in os.walk(place, onerror=note_unreadable):
                folders[:] = sorted(f for f in folders if f[0] != "." and not (Path(folder) / f).samefile(_there(out)))
                readable = sorted(f for f in files if f[0] != "." and Path(f).suffix.lower() in DOCUMENT_ENDINGS)
                names |= {str(Path(folder) / f): None for f in readable}
        else:
            raise InvalidArgument(f"There is no document or folder {source}; correct its name.")
    if not sources:
        raise InvalidArgument(f"{out} is not a knowledge base yet; name files or folders to build it of.")
    if not names:
        where = ", ".join(sources)
        raise InvalidArgument(f"{where} has no documents; files are read that end in {', '.join(DOCUMENT_ENDINGS)}.")
    return sorted(names)


def is_utf8_name(name: str) -> bool:
    """Whether a file's name can be written down; names are bytes, of any kind."""
    return not any("\udc80" <= sign <= "\udcff" for sign in name)


def printable_name(name: str) -> str:
    """A name with the bytes that are not UTF-8 written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _there(out: Path) -> Path:
    return out if out.exists() else Path(os.devnull)


def document_bytes(path: Path) -> bytes:
    """What is in a document.

    Raises:
        InvalidDocument: it is no file, too large, or cannot be read.
    """
    try:
        stat = path.stat()
        if S_ISDIR(stat.st_mode):
            raise InvalidDocument("it is a folder that cannot be read; get permission to read it")
        if not S_ISREG(stat.st_mode):
            raise InvalidDocument("it is a pipe, socket or device and not a file")
        if stat.st_size > LARGEST_DOCUMENT:
            raise InvalidDocument(f"it has {stat.st_size:,} bytes, and at most {LARGEST_DOCUMENT:,} are read; split it")
        return path.read_bytes()
    except OSError as error:
        raise InvalidDocument(f"it cannot be read: {error.strerror or error}") from error
