"""What every client asks."""

from __future__ import annotations

from typing import Any

QUESTION = "What is the weather in Rome?"
MESSAGES: list[dict[str, str]] = [{"role": "user", "content": QUESTION}]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a place.", "parameters": PARAMETERS},
}
TOO_LONG = [{"role": "user", "content": "word " * 4000}]
