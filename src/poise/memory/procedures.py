"""Procedures as files that one can read and edit: ``procedures/NAME.md``, committed where the folder is in Git."""

from __future__ import annotations

import subprocess
from pathlib import Path

from poise.errors import InvalidMemory
from poise.storage.atomic_write import saving
from poise.storage.disk_errors import save_failed

__all__ = ["edited_procedures", "procedure_path", "remove_procedure", "write_procedure"]

PROCEDURES = "procedures"
_GIT_SECONDS = 30


def procedure_path(folder: Path, name: str) -> Path:
    """Where a procedure's text is."""
    return folder / PROCEDURES / f"{name}.md"


def write_procedure(folder: Path, name: str, text: str, version: int) -> str:
    """Write a procedure's file, and commit it where the folder is in Git; why it was not committed, else empty.

    Raises:
        SaveFailed: the disk refused.
    """
    path = procedure_path(folder, name)
    with saving(path) as temporary:
        temporary.write_bytes(_file_bytes(text))
    return _commit(folder, path, f"{name}: version {version}")


def remove_procedure(folder: Path, name: str) -> str:
    """Remove a procedure's file; what of it stays in Git, in words, else empty.

    Raises:
        SaveFailed: the disk refused.
    """
    path = procedure_path(folder, name)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise save_failed(f"Cannot remove {path}", error) from error
    if not _is_in_git(folder):
        return ""
    _commit(folder, path, f"{name}: removed")
    return f"earlier versions of {path} stay in Git's history"


def edited_procedures(folder: Path, known: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Name and text of each file that is not as any version of its procedure was.

    Args:
        folder: Folder of the memory.
        known: Texts of all versions, by name.

    Raises:
        InvalidMemory: a file cannot be read.
    """
    edited = []
    for path in sorted((folder / PROCEDURES).glob("*.md")):
        try:
            text = path.read_bytes().decode("utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidMemory(f"{path} cannot be read ({error}); fix or remove it.") from error
        if text not in known.get(path.stem, set()):
            edited.append((path.stem, text))
    return edited


def _file_bytes(text: str) -> bytes:
    return f"{text}\n".encode()


def _is_in_git(folder: Path) -> bool:
    try:
        return _git(folder, "ls-files", "-z", PROCEDURES).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _commit(folder: Path, path: Path, message: str) -> str:
    if not _is_in_git(folder):
        return ""
    try:
        for arguments in (
            ("add", "-A", "--", str(path.resolve())),
            ("commit", "-q", "-m", message, "--", str(path.resolve())),
        ):
            done = _git(folder, *arguments)
            if done.returncode and "nothing to commit" not in done.stdout + done.stderr:
                problem = " ".join((done.stderr or done.stdout).split())[:200]
                return f"{path} was not committed: {problem}"
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path} was not committed: {error}"
    return ""


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(folder.resolve()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
