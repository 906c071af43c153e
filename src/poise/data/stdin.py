"""Standard input as a file: it is kept beside the other temporary files while the process lives, to be read as often as
work needs. Piped again, the same data are known by their digest, and a killed run goes on."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from poise.data.input_files import InputFile
from poise.data.row_values import BOM
from poise.errors import InvalidData
from poise.storage.disk_errors import save_failed

__all__ = ["STDIN", "spool_stdin"]

STDIN = "-"
MAGIC = {
    b"\x1f\x8b": ".json.gz",
    b"BZh": ".json.bz2",
    b"\xfd7zXZ\0": ".json.xz",
    b"\x28\xb5\x2f\xfd": ".json.zst",
    b"\x04\x22\x4d\x18": ".json.lz4",
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"PK\x03\x04": ".zip",
    b"\xff\xfe": ".json",  # UTF-16, which is refused with what would help
    b"\xfe\xff": ".json",
}
HEAD = 2**20


def spool_stdin() -> InputFile:
    """All of standard input in a temporary file, whose format its first bytes tell.

    Raises:
        InvalidData: it is a terminal, empty, or of a format that its bytes do not tell.
        SaveFailed: the disk refused.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise InvalidData("Nothing is piped into standard input; write it as in: zcat chats.jsonl.gz | poise … -")
    stream = sys.stdin.buffer
    head = stream.read(HEAD)
    if not head.removeprefix(BOM).strip():
        raise InvalidData("Standard input is empty; pipe rows into it. It can be read once.")
    ending = _ending(head)
    try:
        handle, name = tempfile.mkstemp(prefix="poise-stdin-", suffix=ending)
        atexit.register(Path(name).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            file.write(head)
            shutil.copyfileobj(stream, file, HEAD)
    except OSError as error:
        raise save_failed("Cannot keep standard input in a temporary file", error) from error
    return InputFile(f"stdin{ending}", Path(name))


def _ending(head: bytes) -> str:
    for magic, ending in MAGIC.items():
        if head.startswith(magic):
            return ending
    first, _, more = head.removeprefix(BOM).lstrip().partition(b"\n")
    if first[:1] not in (b"{", b"["):
        raise InvalidData(
            "Standard input holds neither JSON, Parquet, Arrow nor a zip archive; write it to a file whose name says "
            "what it is, such as rows.csv."
        )
    try:
        lines = bool(more.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        lines = False
    return ".jsonl" if lines else ".json"
