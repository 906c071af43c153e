"""Whether a chat template shows a conversation as it is: every text once, and the turns in their order.

The conversation's structure is rendered with a mark of its own in place of every text, argument and result, so that no
text can stand in for another. What a template may do with a thought is its own affair, and a system text may stand
anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.data.messages import Message
from poise.data.thoughts import locate_thought

__all__ = ["Skeleton", "check_structure"]

ANYWHERE = ("system", "developer")


@dataclass(frozen=True, slots=True)
class PlacedMark:
    """A mark, the turn that it stands for, counted from 1, and what it is there."""

    text: str
    turn: int
    role: str
    what: str


@dataclass(slots=True)
class Skeleton:
    """A conversation with marks in place of its texts.

    Attributes:
        messages: The turns.
        marks: Those that the rendered text must have, once each.
    """

    messages: list[Message] = field(default_factory=list)
    marks: list[PlacedMark] = field(default_factory=list)
    _count: int = 0
    _ids: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, messages: Sequence[Message]) -> Skeleton:
        """That of a conversation; conversations of one structure have the same."""
        skeleton = cls()
        for turn, message in enumerate(messages, start=1):
            skeleton._add(turn, message)
        return skeleton

    def key(self) -> str:
        """What identifies the structure."""
        return json.dumps(self.messages, sort_keys=True, default=str)

    def complaint(self, text: str) -> str:
        """What a rendered text does to the structure; empty where it keeps it."""
        latest, turn_before = -1, 0
        for mark in self.marks:
            places = text.count(mark.text)
            if places != 1 and not (places and mark.what == "tool call"):  # an id may have the name once more
                verb = "repeats" if places else "leaves out"
                return f"it {verb} the {mark.what} of turn {mark.turn}" + (
                    f" ({mark.role})" if mark.what == "words" else ""
                )
        turns: dict[int, list[int]] = {}
        for mark in self.marks:
            if mark.role not in ANYWHERE:
                turns.setdefault(mark.turn, []).append(text.index(mark.text))
        for turn, places_of_turn in turns.items():
            if min(places_of_turn) < latest:
                return f"it puts turn {turn} before turn {turn_before}"
            latest, turn_before = max(places_of_turn), turn
        return ""

    def _add(self, turn: int, message: Message) -> None:
        role = message["role"]
        marked: Message = {"role": role, "content": self._content(turn, message)}
        if message.get("thought"):
            marked["thought"] = self._mark()
        if calls := message.get("tool_calls"):
            marked["tool_calls"] = [self._call(turn, role, call) for call in calls]
        if "tool_call_id" in message:
            marked["tool_call_id"] = self._id(message["tool_call_id"])
        if "name" in message:
            marked["name"] = "name"
        self.messages.append(marked)

    def _content(self, turn: int, message: Message) -> str:
        content, role = message["content"], message["role"]
        sections = locate_thought(content) if role == "assistant" else None
        if not content.strip():
            return content
        if sections is None or not sections.marked:
            return self._placed(turn, role, "words")
        spans = sorted([*((span, False) for span in sections.thoughts), *((span, True) for span in sections.replies)])
        text, at = "", 0
        for (start, end), is_reply in spans:
            mark = "" if start == end else self._placed(turn, role, "words") if is_reply else self._mark()
            text, at = text + content[at:start] + mark, end
        return text + content[at:]

    def _call(self, turn: int, role: str, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call["function"]
        name = self._placed(turn, role, "tool call") if function["name"] else ""
        arguments = self._argument(turn, role, function.get("arguments", {}))
        marked = {**call, "function": {**function, "name": name, "arguments": arguments}}
        return marked | ({"id": self._id(call["id"], function["name"], name)} if "id" in call else {})

    def _argument(self, turn: int, role: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._argument(turn, role, one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._argument(turn, role, one) for one in value]
        return self._placed(turn, role, "arguments of the tool call") if value != "" else value

    def _id(self, call: str, name: str = "", mark: str = "") -> str:
        """Nine letters and digits, as Mistral's templates take them; an id with the tool's name in it keeps that."""
        mark = call.replace(name, mark) if name and name in call else f"call{len(self._ids):05d}"
        return self._ids.setdefault(call, mark)

    def _placed(self, turn: int, role: str, what: str) -> str:
        mark = PlacedMark(self._mark(), turn, role, what)
        self.marks.append(mark)
        return mark.text

    def _mark(self) -> str:
        self._count += 1
        return f"Q{self._count:05d}zX"


def check_structure(
    messages: Sequence[Message], render: Callable[[Sequence[Message]], str], known: dict[str, str]
) -> str:
    """What a template does to the structure of a conversation; empty where it keeps it.

    Args:
        messages: The conversation.
        render: Renders messages by the template.
        known: What is known of the template by structure; what is found out is added.
    """
    skeleton = Skeleton.of(messages)
    key = skeleton.key()
    if key not in known:
        try:
            known[key] = skeleton.complaint(render(skeleton.messages))
        except Exception:  # a template may want texts of a form, such as a date; theirs are looked for by themselves
            known[key] = ""
    return known[key]
