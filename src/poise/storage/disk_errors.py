"""What a disk's refusal means for the user: the remedy that fits the error."""

from __future__ import annotations

import errno

from poise.errors import SaveFailed

__all__ = ["remedy", "save_failed"]

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def remedy(error: OSError) -> str:
    """What helps against an error of the operating system, as the middle of a sentence."""
    if error.errno in _FULL:
        return "free some space, or choose another path"
    if error.errno in _FORBIDDEN:
        return "get permission to write there, or choose another path"
    return "choose another path"


def save_failed(what: str, error: OSError, after: str = "") -> SaveFailed:
    """The error to raise when the disk refused something.

    Args:
        what: What failed, as the beginning of a sentence: ``Cannot save v.safetensors``.
        error: What the operating system said.
        after: What happens when the user has done as told, as the end of a sentence.
    """
    return SaveFailed(f"{what}: {error.strerror or error}; {remedy(error)}{', ' + after if after else ''}.")
