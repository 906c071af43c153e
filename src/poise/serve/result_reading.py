"""Tools' results as a fitted guardrail reads them: where the model would answer without a result, and with it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from poise.activations import project
from poise.errors import InvalidArgument, UserError
from poise.guardrail.guard_file import GuardDetector
from poise.model import Encoded, Model
from poise.model.probe import Probe
from poise.monitor.baseline import ReadsText
from poise.serve.answer_form import template_tools
from poise.serve.planning import request_messages
from poise.serve.requests import ChatCompletionRequest, ChatMessage
from poise.serve.run_chain import MessageChain
from poise.serve.run_policy import RunPolicy
from poise.serve.runs import ResultReading

__all__ = ["ResultMemory", "ResultReader", "result_places"]

MOST_READ = 16  # results of one request; of a long history that was never seen, the last ones
MOST_KEPT = 16_384  # readings, of all keys
Known = tuple[str | None, str, bytes]  # key, guardrail and hash of a beginning


def result_places(messages: Sequence[ChatMessage], marks: Sequence[str]) -> list[int]:
    """Which messages are tools' results: those of tools, and users' that begin with a framework's mark for them."""
    return [
        place
        for place, message in enumerate(messages)
        if message.role == "tool" or (message.role == "user" and marks and message.text.startswith(tuple(marks)))
    ]


@dataclass(slots=True)
class ResultMemory:
    """What was read before: a framework sends each result again with every step."""

    readings: OrderedDict[Known, float] = field(default_factory=OrderedDict)
    verdicts: OrderedDict[Known, ResultReading] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, known: Known, value: float | ResultReading) -> None:
        """Remember a reading, or what was made of it."""
        with self._lock:
            table: OrderedDict[Known, Any] = self.readings if isinstance(value, float) else self.verdicts
            table[known] = value
            while len(table) > MOST_KEPT:
                table.popitem(last=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultReader:
    """Reads the results in a chat with the detector of a guardrail.

    Attributes:
        name: The guardrail's.
        detector: The detector.
        probe: What reads it.
        model: The model.
        between: Runs work on the model while nothing else uses it.
        read_text: Reads a text, where another engine than transformers runs the model.
        memory: What was read before.
        key: Key of the request.
    """

    name: str
    detector: GuardDetector
    probe: Probe
    model: Model
    between: Callable[[Callable[[], Any]], Any]
    read_text: ReadsText | None
    memory: ResultMemory
    key: str | None

    def read(
        self, body: ChatCompletionRequest, chain: MessageChain, rules: RunPolicy
    ) -> tuple[ChatCompletionRequest, tuple[ResultReading, ...]]:
        """The chat without the results that are dropped, and what was read of those after the last answer.

        A result that cannot be read, since the history is too long or no template can show it, is left to the checks
        of the request.
        """
        places = result_places(body.messages, rules.result_marks)
        answered = max((n for n, turn in enumerate(body.messages) if turn.role == "assistant"), default=-1)
        unread = [place for place in places if self._known(chain, place) not in self.memory.verdicts][-MOST_READ:]
        new: list[ResultReading] = []
        for place in places:
            verdict = self.memory.verdicts.get(self._known(chain, place))
            if verdict is None and place in unread:
                verdict = self._judge(body, chain, place, rules)
            if verdict is None:
                continue
            if place > answered:
                new.append(verdict)
            if verdict.flagged and rules.tool_results == "drop":
                body = _without_result(body, place, rules)
        return body, tuple(new)

    def prompt_reading(self, chain: MessageChain, value: float) -> None:
        """Take in what a prompt read in the pass that was run anyway."""
        self.memory.keep(self._known(chain, len(chain.spoken) - 1), float(value))

    def _known(self, chain: MessageChain, place: int) -> Known:
        return self.key, self.name, chain.spoken[place]

    def _judge(
        self, body: ChatCompletionRequest, chain: MessageChain, place: int, rules: RunPolicy
    ) -> ResultReading | None:
        turns = [n for n in range(place) if body.messages[n].role == "assistant"]
        begin = turns[-1] if turns else place
        earlier = [n for n in result_places(body.messages[:place], rules.result_marks) if n >= begin]
        flagged = [n for n in earlier if (v := self.memory.verdicts.get(self._known(chain, n))) and v.flagged]
        end = flagged[-1] + 1 if flagged and rules.tool_results != "drop" else begin
        try:
            before = self._reading(body, chain, end) if end else None
            after = self._reading(body, chain, place + 1)
        except UserError:
            return None
        verdict = self._verdict(before, after)
        action = rules.tool_results if verdict.flagged else "none"
        verdict = replace(verdict, message=place, tool=_tool_of(body.messages, place), action=action)
        self.memory.keep(self._known(chain, place), verdict)
        return verdict

    def _verdict(self, before: float | None, after: float) -> ResultReading:
        change = self.detector.change
        if change is None or before is None:
            point, score, reads = self.detector.point, after - self.detector.centre, "plain"
        else:
            point, score, reads = change, after - before, "change"
        return ResultReading(
            message=0,
            tool="",
            before=before,
            after=after,
            score=score,
            threshold=point.value,
            reads="plain" if reads == "plain" else "change",
            rate=point.rate,
            flagged=score > point.value,
        )

    def _reading(self, body: ChatCompletionRequest, chain: MessageChain, length: int) -> float:
        """What the detector reads where the model would answer the first messages."""
        known = self._known(chain, length - 1)
        if (value := self.memory.readings.get(known)) is not None:
            return value
        beginning = body.model_copy(update={"messages": body.messages[:length]})
        tools = template_tools(body.tools, body.tool_choice)
        encoded = self.model.encode(request_messages(beginning), tools=tools, thinking=body.thinking)
        if len(encoded.ids) > self.model.window:
            raise InvalidArgument(f"The history has {len(encoded.ids):,} tokens, more than the window of the model.")
        value = float(self.between(lambda: self._project(encoded)))
        self.memory.keep(known, value)
        return value

    def _project(self, encoded: Encoded) -> float:
        if self.read_text:
            return float(self.read_text(encoded, self.probe)[encoded.last_prompt])
        last = Encoded(encoded.ids, encoded.last_prompt, encoded.last_prompt + 1)
        [values] = project(self.model, [last], [self.probe])
        return float(values[encoded.last_prompt, 0])


def _tool_of(messages: Sequence[ChatMessage], place: int) -> str:
    names = {call.id: call.function.name for message in messages[:place] for call in message.tool_calls}
    return names.get(messages[place].tool_call_id or "", "")


def _without_result(body: ChatCompletionRequest, place: int, rules: RunPolicy) -> ChatCompletionRequest:
    messages = list(body.messages)
    mark = next((m for m in rules.result_marks if messages[place].text.startswith(m)), "")
    shown = f"{mark} {rules.note}" if messages[place].role == "user" else rules.note
    messages[place] = messages[place].model_copy(update={"content": shown})
    return body.model_copy(update={"messages": messages})
