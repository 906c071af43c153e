"""Turns of a chat as the model may read them: with marks for what is masked, and without what is blocked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from poise.guardrail.findings import GuardFinding, blocks, masked, masked_between, masked_parts

if TYPE_CHECKING:
    from poise.guardrail import Checker
    from poise.serve.requests import ChatCompletionRequest, ChatMessage, TextPart
    from poise.serve.tool_requests import ToolCallMessage

__all__ = ["MOST_BEFORE", "REMOVED", "entries_as_kept", "said_before", "shown_text", "turn_as_read"]

REMOVED = "[removed]"
"""What stands in the history for a turn that was blocked."""
MOST_BEFORE = 2000  # characters of earlier turns that a judge is shown
MOST_OF_TURN = 600


def turn_as_read(turn: ChatMessage, findings: Sequence[GuardFinding], checker: Checker) -> ChatMessage:
    """The turn as the model may read it, its thought and its calls too, by words and patterns.

    Args:
        turn: The turn.
        findings: What was found in its text.
        checker: Looks through the rest of it.
    """
    changes: dict[str, object] = {}
    if blocks(findings):
        changes["content"] = REMOVED
    elif any(f.action == "ANONYMIZE" for f in findings):
        changes["content"] = _masked_content(turn, findings)
    if thought := turn.reasoning_content:
        in_thought = checker.find(thought, "OUTPUT")
        changes["reasoning_content"] = None if blocks(in_thought) else masked(thought, in_thought) or None
    if turn.tool_calls:
        changes["tool_calls"] = [_call_as_read(call, checker) for call in turn.tool_calls]
    changed = {name: value for name, value in changes.items() if value != getattr(turn, name)}
    return turn.model_copy(update=changed) if changed else turn


def _masked_content(turn: ChatMessage, findings: Sequence[GuardFinding]) -> str | list[TextPart]:
    """The content with marks; parts stay parts, and a match that goes over several has its mark in the first."""
    if not isinstance(turn.content, list):
        return masked(turn.text, findings)
    text, parts, reached = turn.text, masked_parts(turn.text, findings), 0
    content = []
    for part in turn.content:
        end = reached + len(part.text)
        content.append(part.model_copy(update={"text": masked_between(text, parts, reached, end)}))
        reached = end
    return content


def _call_as_read(call: ToolCallMessage, checker: Checker) -> ToolCallMessage:
    """A call of an earlier turn; where its arguments are blocked, without them."""
    arguments = call.function.arguments
    findings = checker.find(arguments, "OUTPUT")
    read = "{}" if blocks(findings) else masked(arguments, findings)
    return call.model_copy(update={"function": call.function.model_copy(update={"arguments": read})})


def entries_as_kept(body: ChatCompletionRequest, checker: Checker) -> tuple[ChatCompletionRequest, list[GuardFinding]]:
    """The chat with what it has a memory keep as that may be kept, and what was found in it."""
    wanted = body.poise.memory if body.poise else None
    entries = [] if wanted is None or isinstance(wanted, bool | str) else wanted.write
    of_entries = [checker.find(entry.text, "INPUT") for entry in entries]
    if body.poise is None or wanted is None or isinstance(wanted, bool | str) or not any(of_entries):
        return body, []
    as_kept = [e.model_copy(update={"text": masked(e.text, each)}) for e, each in zip(entries, of_entries, strict=True)]
    memory = wanted.model_copy(update={"write": as_kept})
    poise = body.poise.model_copy(update={"memory": memory})
    return body.model_copy(update={"poise": poise}), [finding for each in of_entries for finding in each]


def shown_text(text: str, checker: Checker) -> str:
    """A text beside an answer, such as a passage that it rests on, as the answer may show it."""
    findings = checker.find(text, "OUTPUT")
    return REMOVED if blocks(findings) else masked(text, findings)


def said_before(turns: Sequence[ChatMessage]) -> str:
    """The last of what was said, each turn with who said it, for a judge to understand a text by; no system turns."""
    lines: list[str] = []
    room = MOST_BEFORE
    for turn in reversed(turns):
        if room <= 0:
            break
        if turn.role not in ("system", "developer") and (text := turn.text.strip()):
            shown = text if len(text) <= MOST_OF_TURN else f"{text[: MOST_OF_TURN // 2]} … {text[-MOST_OF_TURN // 2 :]}"
            lines.append(f"{turn.role}: {shown}")
            room -= len(shown)
    return "\n".join(reversed(lines))
