"""Where the bytes of a data file come from: a path, a member of a zip archive or an address; how they are unpacked."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from poise.errors import InvalidData, MissingExtra, first_line

__all__ = [
    "PACKINGS",
    "READ_ERRORS",
    "FileSpan",
    "InputFile",
    "import_extra",
    "open_stored",
    "open_unpacked",
    "why_broken_off",
]

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of data.

    Attributes:
        name: What messages call it, and what its ending is taken from: a path, a member's path inside its archive, or
            an address.
        path: What is on disk, itself or its archive; ``None`` for an address.
        member: Its name inside a zip archive; empty for a file that stands alone.
    """

    name: str
    path: Path | None
    member: str = ""

    @property
    def endings(self) -> tuple[str, str]:
        """How it is packed, if at all, and its format."""
        plain = self.name
        if self.path is None:  # of chained addresses the first that names a file, without a query
            plain = next((part for part in plain.split("::") if "://" in part), plain).partition("://")[2]
            plain = plain.partition("?")[0] if self.name.startswith(("http://", "https://")) else plain
        *_, kind, packing = ["", "", *(suffix.lower() for suffix in PurePosixPath(plain).suffixes)]
        return (packing, kind) if packing in PACKINGS else ("", packing)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpan:
    """A stretch of a file that is too long to be held.

    Attributes:
        file: The file.
        start: Its first byte, of the file unpacked.
        size: How many bytes; ``None`` for all that follow.
        is_line: Whether it is a line of JSON Lines, and not text of another format.
    """

    file: InputFile
    start: int
    size: int | None
    is_line: bool

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, a block at a time, as far as the file can be read."""
        with open_unpacked(self.file) as stream:
            left = self.start
            while left and (block := stream.read(min(BLOCK, left))):
                left -= len(block)
            left = self.size if self.size is not None else -1
            while left:
                try:
                    block = stream.read(BLOCK if left < 0 else min(BLOCK, left))
                except READ_ERRORS:
                    return
                if not block:
                    return
                left -= len(block) if left > 0 else 0
                yield block


def open_unpacked(file: InputFile) -> BinaryIO:
    """The file's content, without what packs it.

    Raises:
        InvalidData: it cannot be opened.
        MissingExtra: what unpacks it is not installed.
    """
    packing = file.endings[0]
    if not packing:
        return open_stored(file)
    try:
        source = file.path if file.path and not file.member else open_stored(file)
        return cast(BinaryIO, PACKINGS[packing](source))
    except OSError as error:
        raise _cannot_be_read(file, error) from error


def open_stored(file: InputFile) -> BinaryIO:
    """The file's bytes as they are stored.

    Raises:
        InvalidData: it cannot be opened.
    """
    try:
        if file.path is None:
            return _open_address(file.name)
        if not file.member:
            return file.path.open("rb", buffering=BLOCK)
        with zipfile.ZipFile(file.path) as archive:
            return cast(BinaryIO, archive.open(file.member))
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise _cannot_be_read(file, error) from error


def why_broken_off(error: Exception) -> str:
    """What a file that breaks off has lost."""
    if isinstance(error, EOFError) or "runcated" in str(error):
        return "cut short: the packed file ends in the middle, and all after this place is lost"
    return f"damaged: {error}; all after this place is lost"


def import_extra(module: str, what: str) -> Any:
    """A module of the ``data`` extra.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra.of(f"{what} needs {package}", "data") from error


def _cannot_be_read(file: InputFile, error: Exception) -> InvalidData:
    reason = getattr(error, "strerror", None) or first_line(error)
    return InvalidData(f"{file.name}: cannot be read, {reason.removesuffix('.')}.")


def _arrow_stream(codec: str, source: Path | BinaryIO) -> BinaryIO:
    arrow = import_extra("pyarrow", f"Reading {source if isinstance(source, Path) else 'a file packed by ' + codec}")
    stream = arrow.input_stream(str(source) if isinstance(source, Path) else source, compression=codec)
    return cast(BinaryIO, io.BufferedReader(stream))


PACKINGS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": partial(_arrow_stream, "zstd"),
    ".lz4": partial(_arrow_stream, "lz4"),
}


class _AddressStream(io.RawIOBase):
    """An address's bytes. A connection that fails is not a broken row: it ends the run."""

    def __init__(self, address: str, stream: Any) -> None:
        self.address, self.stream = address, stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.stream.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self.stream.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            block = self.stream.read(len(buffer))
        except Exception as error:
            raise InvalidData(f"{self.address} broke off: {first_line(error)}; run the same command again.") from error
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self.stream.close()
        super().close()


def _open_address(address: str) -> BinaryIO:
    fsspec = import_extra("fsspec", f"Reading {address}")
    try:
        stream = fsspec.open(address, "rb").open()
    except FileNotFoundError as error:
        raise InvalidData(f"{address}: cannot be read, it is not there or cannot be reached.") from error
    except Exception as error:
        raise InvalidData(f"{address}: cannot be read, {first_line(error).removesuffix('.')}.") from error
    return cast(BinaryIO, io.BufferedReader(_AddressStream(address, stream), BLOCK))
