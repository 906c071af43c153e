"""A conversation's calls and results in other words, for templates that cannot take them as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from poise.data.messages import Message

__all__ = ["fold_tools", "with_arguments_as_text"]


def with_arguments_as_text(messages: Sequence[Message]) -> list[Message]:
    """Calls whose arguments are JSON text, for templates that join them to other text."""
    return [
        {**message, "tool_calls": [_with_text(call) for call in calls]}
        if (calls := message.get("tool_calls"))
        else message
        for message in messages
    ]


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def fold_tools(messages: Sequence[Message]) -> list[Message]:
    """Calls as JSON in the assistant's turn, and results as the user's, for templates that know no tools."""
    folded: list[Message] = []
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "tool":
            role, text = "user", f"<tool_response>\n{text}\n</tool_response>"
        calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
        text = "\n".join([*([text] if text.strip() else []), *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)])
        if folded and folded[-1]["role"] == role == "user":
            folded[-1] = {"role": role, "content": f"{folded[-1]['content']}\n{text}"}
        else:
            folded.append({"role": role, "content": text})
    return folded
