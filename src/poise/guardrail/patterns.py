"""RE2, which takes a time that grows with the text and never with what a pattern makes of it."""

from __future__ import annotations

import functools
from typing import Any

from poise.errors import MissingExtra

__all__ = ["check_pattern", "compile_pattern", "need_extra"]

MEMORY = 2**22  # bytes that one pattern may take compiled
LOOKING = ("(?=", "(?!", "(?<=", "(?<!")


def need_extra(what: str) -> MissingExtra:
    """What is raised where a package of the extra is missing."""
    return MissingExtra.of(f"{what}", "guardrail")


@functools.lru_cache(maxsize=512)
def compile_pattern(pattern: str) -> Any:
    """The pattern, compiled once.

    Raises:
        MissingExtra: google-re2 is not installed.
        re2.error: it is no pattern of RE2's.
    """
    try:
        import re2
    except ImportError as error:
        raise need_extra("Regular expressions of guardrails need google-re2") from error
    options = re2.Options()
    options.log_errors, options.max_mem = False, MEMORY
    return re2.compile(pattern, options)


def check_pattern(pattern: str) -> str | None:
    """What is wrong with a pattern, in words that follow its field; ``None`` where it can be used."""
    try:
        compiled = compile_pattern(pattern)
    except MissingExtra:
        raise
    except Exception as error:  # re2.error, which is only known where it is installed
        reason = str(error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else error)
        if any(sign in pattern for sign in LOOKING):
            return "looks ahead or behind, which RE2 does not; match the whole text that is to be found instead"
        if "too large" in reason:
            return "is too large once its repetitions are written out; use smaller counts"
        return f"is no regular expression of RE2's ({reason}); see github.com/google/re2/wiki/Syntax"
    if compiled.search("") is not None:
        return "matches empty text, and would match everywhere; use + for *, or name what it is to match"
    return None
