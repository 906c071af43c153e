"""What the scripts of tasks for agents do at each step, and what is checked at their end."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def ls() -> tuple[str, dict[str, Any]]:
    return ("list_files", {})


def read(path: str) -> tuple[str, dict[str, Any]]:
    return ("read_file", {"path": path})


def write(path: str, text: str) -> tuple[str, dict[str, Any]]:
    return ("write_file", {"path": path, "text": text})


def add(path: str, text: str) -> tuple[str, dict[str, Any]]:
    return ("append_file", {"path": path, "text": text})


def calc(expression: str) -> tuple[str, dict[str, Any]]:
    return ("calculate", {"expression": expression})


def end(report: str, outcome: str = "done") -> tuple[str, dict[str, Any]]:
    return ("finish", {"outcome": outcome, "report": report})


def write_last(path: str) -> Callable[[list[dict[str, Any]]], Any]:
    """Write what the last tool gave."""

    def turn(messages: list[dict[str, Any]]) -> Any:
        text = next(m["content"] for m in reversed(messages) if m["role"] == "tool")
        return write(path, text.partition("\n")[2].rpartition("\n")[0])

    return turn


def text_of(folder: Path, path: str) -> str:
    file = folder / path
    return file.read_text().strip() if file.is_file() else ""


def holds(path: str, *words: str) -> Callable[[Path, Any], bool]:
    """The run is done, and the file has all of these, numbers as numbers."""

    def check(folder: Path, result: Any) -> bool:
        text = text_of(folder, path)
        numbers = {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))}
        present = all(float(word) in numbers if re.fullmatch(r"-?[\d.]+", word) else word in text for word in words)
        return result.outcome in ("done", "answered") and present

    return check


def ends_as(outcome: str, *absent: str) -> Callable[[Path, Any], bool]:
    return lambda folder, result: result.outcome == outcome and not any((folder / path).exists() for path in absent)


def both(*checks: Callable[[Path, Any], bool]) -> Callable[[Path, Any], bool]:
    return lambda folder, result: all(check(folder, result) for check in checks)
