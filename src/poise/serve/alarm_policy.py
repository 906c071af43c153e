"""Alarms of one answer while it is generated, and what is done about them before its next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch

from poise.data import AnswerPart
from poise.engine import EngineOutput, GeneratedToken
from poise.errors import RequestError
from poise.model.parts import TokenPart, in_part
from poise.monitor import AlarmWatcher, AnswerReadings, RaisedAlarm
from poise.serve.planning import SteeringPush
from poise.serve.policy import Action, Policy
from poise.serve.vector_registry import WatchedVector
from poise.steer import Steering, Term
from poise.steer.hold import hold_later
from poise.vector import Alarm

__all__ = ["AlarmGuard", "Alert", "GuardedOutput", "PartGuard"]


@dataclass(frozen=True, slots=True)
class Alert:
    """An alarm that was raised, and what was done."""

    trait: str
    raised: RaisedAlarm
    action: Action

    @property
    def facts(self) -> dict[str, Any]:
        """The alarm as the API gives it."""
        alarm = self.raised.alarm
        return {
            "trait": self.trait,
            "reading": alarm.reading,
            "layer": alarm.layer,
            "rate": alarm.rate,
            "threshold": alarm.threshold,
            "value": self.raised.value,
            "token": self.raised.token,
            "action": self.action,
            "part": alarm.part,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedOutput:
    """What a step brought of an answer, once its guard has looked at it.

    Attributes:
        output: The engine's output, without the tokens that came with an alarm that stops the answer.
        alerts: Alarms raised in this step.
        stopped: Whether an alarm ends the answer here.
        length: Tokens of an answer that is stopped; those that have not come yet may be released.
        cap: Steering to apply from the next token on.
        readings: Readings of the complete answer, one a watched vector; set at its end where anything was watched.
    """

    output: EngineOutput
    alerts: tuple[Alert, ...] = ()
    stopped: bool = False
    length: int = 0
    cap: Steering | None = None
    readings: tuple[AnswerReadings, ...] | None = None

    @property
    def has_news(self) -> bool:
        """Whether there is anything in it for whoever waits for the answer."""
        output = self.output
        return bool(output.prompt_readings is not None or output.tokens or output.finish or self.alerts or self.stopped)


class PartGuard:
    """Vectors that watch one part of an answer.

    Args:
        part: Which part.
        columns: Their places among all watched vectors.
        alarms: Alarms in force of each.
    """

    def __init__(self, part: AnswerPart, columns: Sequence[int], alarms: Sequence[Sequence[Alarm]]) -> None:
        self.part, self.columns, self.alarms = part, list(columns), list(alarms)
        self.watcher = AlarmWatcher(self.alarms)
        self.begun = False
        self._numbers: list[int] = []  # of the tokens that count, by their number in the answer, from 1
        self._prompt: torch.Tensor | None = None

    def begin(self, prompt: torch.Tensor) -> list[RaisedAlarm]:
        """Take in the last prompt token's readings, of all watched vectors."""
        self._prompt, self.begun = prompt[self.columns], True
        return self._placed(self.watcher.see(self._prompt.unsqueeze(0)))

    def see(self, tokens: Sequence[tuple[int, TokenPart, torch.Tensor]]) -> list[RaisedAlarm]:
        """Take in tokens, each with its number in the answer; alarms that they raise."""
        mine = [(number, row) for number, part, row in tokens if in_part(part, self.part)]
        if not mine:
            return []
        self._numbers += [number for number, _ in mine]
        return self._placed(self.watcher.see(torch.stack([row[self.columns] for _, row in mine])))

    def restart(self) -> None:
        """Forget the tokens so far; alarms that they raised stay raised."""
        self.watcher, self._numbers = AlarmWatcher(self.alarms), []
        if self._prompt is not None:
            self.watcher.see(self._prompt.unsqueeze(0))

    def end(self) -> list[RaisedAlarm]:
        """The alarms that only the whole part raises."""
        return self._placed(self.watcher.end())

    def readings(self) -> dict[int, AnswerReadings]:
        """Of the part so far, by the vectors' places."""
        together = self.watcher.readings()
        return {
            column: AnswerReadings(
                prompt=(together.prompt[k],),
                mean=(together.mean[k],),
                peak=(together.peak[k],),
                tokens=together.tokens,
            )
            for k, column in enumerate(self.columns)
        }

    def _placed(self, alarms: Sequence[RaisedAlarm]) -> list[RaisedAlarm]:
        """Alarms with columns of all watched vectors and tokens of the whole answer."""
        return [
            replace(
                raised,
                column=self.columns[raised.column],
                token=self._numbers[raised.token - 1] if raised.token else 0,
            )
            for raised in alarms
        ]


class AlarmGuard:
    """Watches one answer by its readings: what its steering by itself adds to a reading raises no alarm.

    Each vector watches the part that the policy says, since thresholds are set on one part; of the others, and of the
    marks around a thought, it counts nothing.

    Args:
        watched: k vectors, in the order of the request's probes.
        policy: Rules that say what is done on an alarm, and in which part.
        pushes: What steering adds to each one's reading; ``None`` where nobody knows.
        requested: What the request steers, which no cap may be undone by.
        forced: What the policy steers, which no cap may undo.
    """

    def __init__(
        self,
        watched: Sequence[WatchedVector],
        policy: Policy,
        pushes: Sequence[SteeringPush | None],
        *,
        requested: Steering | None = None,
        forced: Steering | None = None,
    ) -> None:
        self.watched, self.policy = tuple(watched), policy
        self.requested, self.forced = requested or Steering(), forced or Steering()
        columns: dict[AnswerPart, list[int]] = {}
        for column, w in enumerate(self.watched):
            columns.setdefault(policy.part_of(w.name), []).append(column)
        self._parts = [
            PartGuard(part, places, [self.watched[column].alarms_on(part) for column in places])
            for part, places in columns.items()
        ]
        self._prompt_push = torch.tensor([push.prompt if push else 0.0 for push in pushes])
        self._token_push = {
            part: torch.tensor([push.tokens[part] if push else 0.0 for push in pushes]) for part in get_args(TokenPart)
        }
        self._tokens = 0  # of the answer
        self._seen: dict[int, tuple[TokenPart, torch.Tensor]] = {}  # tokens by their number in the answer, from 1
        self._unopened = 1  # the first of them that may turn out to be thought
        self._raised: set[tuple[int, int]] = set()  # columns, with the alarm's identity
        self._caps: dict[int, Term] = {}  # by the column of the vector
        self._new_caps = False

    def inspect(self, output: EngineOutput) -> GuardedOutput:
        """Read a step's output, and decide whether the answer goes on."""
        if not self.watched:
            return GuardedOutput(output=output)
        alerts = [self._alert(raised) for raised in self._see(output)]
        stops = [a.raised.token for a in alerts if a.action == "stop"]
        if stops:
            length = max(min(stops) - 1, 0)
            before_alarm = max(length - self._tokens, 0)
            cut = replace(output, tokens=output.tokens[:before_alarm], ahead=(), finish=None, end=None)
            return GuardedOutput(
                output=cut, alerts=tuple(alerts), stopped=True, length=length, readings=self.readings()
            )
        self._tokens += len(output.tokens)
        if output.finish is None:
            return GuardedOutput(output=output, alerts=tuple(alerts), cap=self._cap())
        self._forget_after(self._tokens)
        late = [self._alert(raised, "note") for part in self._parts for raised in part.end()]  # nothing is left to stop
        return GuardedOutput(output=output, alerts=(*alerts, *late), readings=self.readings())

    def _see(self, output: EngineOutput) -> list[RaisedAlarm]:
        """What the prompt's readings and the tokens of a step raise, in the parts that they turned out to be in."""
        raised: list[RaisedAlarm] = []
        if output.prompt_readings is not None:
            prompt = torch.tensor(output.prompt_readings) - self._prompt_push
            raised += [alarm for part in self._parts for alarm in part.begin(prompt)]
        raised += self._correct(output.tokens)
        released = self._tokens + len(output.tokens)
        numbered = [
            *enumerate(output.tokens, start=self._tokens + 1),
            *enumerate(output.ahead, start=max(released, len(self._seen)) + 1),
        ]
        new = [(number, token) for number, token in numbered if number > len(self._seen)]
        ends = [n for n, (_, token) in enumerate(new) if token.ends_unopened_thought]
        tokens = [(number, token.part, self._row(token)) for number, token in new]
        self._seen |= {number: (part, row) for number, part, row in tokens}
        if ends:
            raised += self._turn_into_thought(tokens[: ends[-1]], before=tokens[ends[-1]][0])
            tokens = tokens[ends[-1] :]
        raised += [alarm for part in self._parts for alarm in part.see(tokens)]
        self._raised |= {(alarm.column, id(alarm.alarm)) for alarm in raised}
        return raised

    def _row(self, token: GeneratedToken) -> torch.Tensor:
        return torch.tensor(token.readings) - self._token_push[token.part]

    def _correct(self, released: Sequence[GeneratedToken]) -> list[RaisedAlarm]:
        """Tokens that were read before their text was known count for the parts that they turned out to be in."""
        corrected = False
        for number, token in enumerate(released, start=self._tokens + 1):
            if number in self._seen and self._seen[number][0] != token.part:
                self._seen[number], corrected = (token.part, self._row(token)), True
        return self._recount() if corrected else []

    def _recount(self) -> list[RaisedAlarm]:
        """Count all tokens anew; what that raises for the first time."""
        raised: list[RaisedAlarm] = []
        for part in self._parts:
            part.restart()
            raised += part.see([(number, p, row) for number, (p, row) in self._seen.items()])
        return [alarm for alarm in raised if (alarm.column, id(alarm.alarm)) not in self._raised]

    def _forget_after(self, length: int) -> None:
        """The answer has ended, and a stop string has taken tokens after these away."""
        if len(self._seen) > length:
            self._seen = {number: token for number, token in self._seen.items() if number <= length}
            self._recount()

    def _turn_into_thought(
        self, tokens: Sequence[tuple[int, TokenPart, torch.Tensor]], *, before: int
    ) -> list[RaisedAlarm]:
        """What was taken for a reply was thought: it counts as that from here on."""
        numbers = [number for number in self._seen if self._unopened <= number < before - len(tokens)]
        first = next((number for number in numbers if self._seen[number][0] != "mark"), self._unopened)
        for number in numbers:
            if number >= first:
                self._seen[number] = ("thought", self._seen[number][1])
        self._unopened = before
        raised: list[RaisedAlarm] = []
        for part in self._parts:
            if part.part == "both":
                raised += part.see(tokens)
            else:
                part.restart()
                raised += part.see([(n, p, row) for n, (p, row) in self._seen.items() if n < before])
        return raised

    def readings(self) -> tuple[AnswerReadings, ...] | None:
        """Readings of what there is so far, one a watched vector."""
        if not all(part.begun for part in self._parts) or not self._parts:
            return None
        by_column = {column: readings for part in self._parts for column, readings in part.readings().items()}
        return tuple(by_column[column] for column in range(len(self.watched)))

    def _alert(self, raised: RaisedAlarm, action: Action | None = None) -> Alert:
        watched = self.watched[raised.column]
        action = action or self.policy.action(watched.name)
        if action == "cap" and not self._is_capped(raised.column, raised.alarm.part):
            action = "note"
        return Alert(watched.name, raised, action)

    def _is_capped(self, column: int, part: AnswerPart) -> bool:
        """Whether a trait is kept at the threshold for tokens along its own direction, from the next token on at least.

        A key's upload caps as the key itself may steer. One that may not, or has no such threshold, caps nothing; a
        vector of the server's own without one is refused at its start.
        """
        if column in self._caps:
            return True
        watched = self.watched[column]
        if (level := watched.cap_alarm(part)) is None:
            return False
        term = Term(vector=watched.vector, value=level.threshold, layers=(level.layer,), operation="cap", part=part)
        if not watched.fixed:
            try:
                self.policy.check_steering(self.requested + self._caps_of(fixed=False) + Steering((term,)))
            except RequestError:
                return False
        self._caps[column], self._new_caps = term, True
        return True

    def _caps_of(self, *, fixed: bool) -> Steering:
        return Steering(tuple(term for column, term in self._caps.items() if self.watched[column].fixed == fixed))

    def _cap(self) -> Steering | None:
        """What caps from the next token on, where a cap is new: no upload undoes a cap of the server's, nor any of them
        what the policy forces.
        """
        if not self._new_caps:
            return None
        self._new_caps = False
        return hold_later([self._caps_of(fixed=False), self._caps_of(fixed=True), self.forced], self.requested)
