"""Reading and writing inside one folder, and nowhere else.

A path is walked from the folder's own handle, one name at a time, and no link is ever followed: what is checked is
what is opened, whatever another process renames meanwhile. Hidden files, hard links, devices and pipes are refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from poise.agent.function_tools import function_tool
from poise.agent.tool import AgentTool
from poise.counting import counted
from poise.errors import InvalidArgument, ToolFailed, first_line

__all__ = ["FolderFiles", "file_tools"]

MOST_FILE_BYTES = 1_000_000  # of a file that is read or written
MOST_PARTS = 16  # names in a path
MOST_LISTED = 500  # names in a listing
LONGEST_NAME = 200  # bytes

PathText = Annotated[str, Field(description="Path inside the folder, such as notes/summary.md.", max_length=2000)]
FileText = Annotated[str, Field(description="Text of the file.")]


class FolderFiles:
    """The files of one folder.

    Args:
        folder: The folder; it is made where it is not there and may be written in.
        may_write: Whether files may be written.

    Raises:
        InvalidArgument: it cannot be used, or this system cannot open files without following links.
    """

    def __init__(self, folder: Path, *, may_write: bool) -> None:
        if os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
            raise InvalidArgument(
                "This system cannot open files without following links; leave `files` out of the tools."
            )
        try:
            if may_write:
                folder.mkdir(parents=True, exist_ok=True)
            self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise InvalidArgument(
                f"The tools cannot use the folder {str(folder)!r} ({reason}); name a folder that is there."
            ) from error
        self.folder, self.may_write = folder, may_write

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._root)

    def read_file(
        self,
        path: PathText,
        first_line: Annotated[int, Field(description="Line to begin with, from 1.", ge=1)] = 1,
    ) -> str:
        """Read a text file of the folder."""
        with self._parent(path) as (parent, name):
            data = _read_regular(parent, name, path)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ToolFailed(f"{path} is not UTF-8 text.") from error
        return text if first_line == 1 else "\n".join(text.splitlines()[first_line - 1 :])

    def list_files(self, path: Annotated[str, Field(description="Folder inside it; empty for all.")] = "") -> str:
        """List the files of the folder, with their sizes in bytes."""
        lines: list[str] = []
        with self._directory(_path_parts(path) if path.strip(" ./") else (), path, make=False) as handle:
            self._list(handle, "", lines, depth=0)
        cut = len(lines) > MOST_LISTED
        return "\n".join([*sorted(lines[:MOST_LISTED]), *(["… more are not listed"] if cut else [])]) or "(no files)"

    def _list(self, handle: int, prefix: str, lines: list[str], depth: int) -> None:
        for name in sorted(os.listdir(handle)):
            if name.startswith(".") or len(lines) > MOST_LISTED:
                continue
            with contextlib.suppress(OSError):
                status = os.stat(name, dir_fd=handle, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    lines.append(f"{prefix}{name}\t{status.st_size}")
                elif stat.S_ISDIR(status.st_mode) and depth < MOST_PARTS:
                    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
                    try:
                        self._list(inner, f"{prefix}{name}/", lines, depth + 1)
                    finally:
                        os.close(inner)

    def write_file(self, path: PathText, text: FileText) -> str:
        """Write a text file of the folder, whole; one that is there is replaced."""
        data = _encoded_text(text, path)
        with self._parent(path, make=True) as (parent, name):
            _refuse_odd_file(parent, name, path)
            _replace_whole(parent, name, data, path)
        return f"Wrote {counted(len(data), 'byte')} to {path}."

    def append_file(self, path: PathText, text: FileText, prepared: Any = None) -> str:
        """Add text to the end of a file of the folder, which is made where it is not there."""
        data = _encoded_text(text, path)
        with self._parent(path, make=True) as (parent, name):
            before = _read_regular(parent, name, path, missing_ok=True)
            size = (prepared or {}).get("size", len(before))
            digest = (prepared or {}).get("sha256", hashlib.sha256(before).hexdigest())
            if hashlib.sha256(before[:size]).hexdigest() != digest or before[size:] not in (b"", data):
                raise ToolFailed(f"{path} was changed by somebody else meanwhile; read it again.")
            if before[size:] != data:
                if len(before) + len(data) > MOST_FILE_BYTES:
                    raise ToolFailed(f"{path} would have more than {MOST_FILE_BYTES:,} bytes.")
                _replace_whole(parent, name, before + data, path)
        return f"Added {counted(len(data), 'byte')} to {path}."

    def state_before(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """How a file was before something is added to it, so that a kill in between does not add it twice."""
        path = str(arguments["path"])
        try:
            with self._parent(path) as (parent, name):
                data = _read_regular(parent, name, path, missing_ok=True)
        except ToolFailed:  # a folder that is not there yet; what cannot be used is said by the call
            data = b""
        return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    @contextlib.contextmanager
    def _parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The handle of the folder that a file is in, and the file's name there."""
        *folders, name = _path_parts(path)
        with self._directory(tuple(folders), path, make=make) as handle:
            yield handle, name

    @contextlib.contextmanager
    def _directory(self, parts: tuple[str, ...], path: str, *, make: bool) -> Iterator[int]:
        handle = os.dup(self._root)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=handle)
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
                os.close(handle)
                handle = inner
            yield handle
        except OSError as error:
            raise ToolFailed(_system_words(error, path)) from error
        finally:
            os.close(handle)


def _path_parts(path: str) -> tuple[str, ...]:
    """The names of a path inside the folder; raises for every path that says, or may be read to say, another place."""
    if not path or path != path.strip() or any(ord(sign) < 32 or ord(sign) == 127 for sign in path):
        raise ToolFailed(f"{path!r} is no path; write one such as notes/summary.md.")
    if path.startswith(("/", "~")) or "\\" in path or ":" in path:
        raise ToolFailed(f"{path!r} is refused: paths are relative to the folder, with / between names.")
    parts = tuple(path.removeprefix("./").split("/"))
    if any(part in ("", ".", "..") for part in parts):
        raise ToolFailed(f"{path!r} is refused: a path has no empty names, no . and no .. in it.")
    if any(part.startswith(".") for part in parts):
        raise ToolFailed(f"{path!r} is refused: hidden files are not read or written.")
    if len(parts) > MOST_PARTS or any(len(part.encode(errors="surrogatepass")) > LONGEST_NAME for part in parts):
        raise ToolFailed(f"The path is too long; at most {MOST_PARTS} names of {LONGEST_NAME} bytes.")
    if any(0xD800 <= ord(sign) <= 0xDFFF for sign in path):
        raise ToolFailed(f"{path!r} is no path: it holds halves of characters.")
    return parts


def _encoded_text(text: str, path: str) -> bytes:
    data = text.encode(errors="backslashreplace")
    if len(data) > MOST_FILE_BYTES:
        raise ToolFailed(f"The text for {path} has {len(data):,} bytes; at most {MOST_FILE_BYTES:,} are written.")
    return data


def _read_regular(parent: int, name: str, path: str, *, missing_ok: bool = False) -> bytes:
    """A regular file's bytes, opened without following a link and without waiting for a pipe's other end."""
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError as error:
        if missing_ok:
            return b""
        raise ToolFailed(f"There is no file {path}.") from error
    with os.fdopen(handle, "rb") as file:
        _check_plain(os.fstat(file.fileno()), path)
        data = file.read(MOST_FILE_BYTES + 1)
    if len(data) > MOST_FILE_BYTES:
        raise ToolFailed(f"{path} has more than {MOST_FILE_BYTES:,} bytes; it is not read.")
    return data


def _refuse_odd_file(parent: int, name: str, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        _check_plain(os.stat(name, dir_fd=parent, follow_symlinks=False), path)


def _check_plain(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ToolFailed(f"{path} is refused: it is not a regular file.")
    if status.st_nlink > 1:
        raise ToolFailed(f"{path} is refused: it has other names (hard links), which may lie outside the folder.")


def _replace_whole(parent: int, name: str, data: bytes, path: str) -> None:
    """Put a file in its place, whole; a link that somebody put there meanwhile is replaced and not followed."""
    temporary = f".{name}.part"  # one name, so that what a killed run left is taken away when it goes on
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=parent)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        os.fsync(parent)
    except OSError as error:
        raise ToolFailed(_system_words(error, path)) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=parent)


def _system_words(error: OSError, path: str) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return f"{path} is refused: a part of it is a link, or no folder."
    return f"{path}: {error.strerror or error}."


def file_tools(files: FolderFiles) -> list[AgentTool]:
    """Tools over a folder's files: all that reads, and what writes where that is allowed."""
    tools = [
        function_tool(files.list_files, touches=["read"], repeatable=True),
        function_tool(files.read_file, touches=["read"], repeatable=True),
    ]
    if files.may_write:
        tools += [
            function_tool(files.write_file, touches=["write"], repeatable=True),
            function_tool(files.append_file, touches=["write"], repeatable=True, prepare=files.state_before),
        ]
    return tools
