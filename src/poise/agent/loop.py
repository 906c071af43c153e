"""The loop of an agent: its states, and what each does.

The loop is a function of what the model, tools and people answered; each answer is on record before it is used, so that
the same loop goes through a run again up to where it stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from poise.agent.call_runner import CallRunner, arguments_object, call_text
from poise.agent.limits import RunUse
from poise.agent.memory import AgentMemory, RecalledText
from poise.agent.model_endpoint import AgentModel, RequestedCall, prompt_estimate
from poise.agent.person import Person
from poise.agent.prompts import (
    CALL_A_TOOL,
    CUT_ANSWER,
    FINISH_OFFER,
    GO_ON,
    LEFT_OUT_CALLS,
    assistant_message,
    call_in_words,
    fitting_messages,
    goal_message,
    marked_output,
    plan_prompt,
    system_prompt,
    tool_message,
)
from poise.agent.records import RunRecords
from poise.agent.result_guard import ResultGuard
from poise.agent.run_settings import AgentResult, AgentSettings
from poise.agent.states import (
    ActState,
    AdaptState,
    CallOutcome,
    EndState,
    ObserveState,
    PlanState,
    RetryState,
    RunOutcome,
    RunState,
    state_graph,
)
from poise.agent.tool import AgentTool
from poise.errors import EndpointUnavailable, InvalidRun, ToolFailed
from poise.storage.content_hash import content_key

__all__ = ["AgentLoop"]

REQUEST_SECONDS = 300.0
FEWEST_TOKENS = 16  # of an answer that is worth asking for
FIRST_PAUSE_SECONDS = 0.5  # before something is tried again; twice as long each time


class AgentLoop:
    """The states' work; see ``states``."""

    def __init__(
        self,
        goal: str,
        model: AgentModel,
        tools: Mapping[str, AgentTool],
        records: RunRecords,
        settings: AgentSettings,
        person: Person,
        memory: AgentMemory | None,
        guard: ResultGuard | None = None,
    ) -> None:
        self.goal, self.model, self.tools, self.records = goal, model, tools, records
        self.settings, self.limits, self.person, self.memory, self.guard = (
            settings,
            settings.limits,
            person,
            memory,
            guard,
        )
        self.use, self.plan_text, self.revisions, self.alarms = RunUse(), "", 0, 0
        self._bad_answers, self._wordy, self._changes = 0, False, 0
        self._must_call, self._asked_calls = False, 0
        self._seen: Counter[str] = Counter()
        self._offers = [*(tool.offer for tool in tools.values()), FINISH_OFFER]
        self._begin()
        run_key = content_key(begin=records.rows[0]["at"], goal=goal)
        self._runner = CallRunner(
            tools, records, self.limits, self.use, person=person, approve=settings.approve, run_key=run_key, guard=guard
        )
        self._recalled = self._recall()
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": system_prompt(settings.persona)},
            {"role": "user", "content": goal_message(goal, self._recalled)},
        ]

    @property
    def work(self) -> dict[type, Callable[[Any], RunState]]:
        """The method that does each state's work."""
        return {
            PlanState: self.plan,
            ActState: self.act,
            ObserveState: self.observe,
            AdaptState: self.adapt,
            RetryState: self.retry,
        }

    @classmethod
    def graph(cls) -> dict[str, tuple[str, ...]]:
        """Which states may follow each, by their names."""
        return state_graph(
            {
                PlanState: cls.plan,
                ActState: cls.act,
                ObserveState: cls.observe,
                AdaptState: cls.adapt,
                RetryState: cls.retry,
            }
        )

    def run(self) -> EndState:
        """Go from state to state until one is an end."""
        work = self.work
        state: RunState = PlanState()
        while not isinstance(state, EndState):
            state = work[type(state)](state)
        if state.outcome in ("asks", "limit"):
            if not self.records.replaying:
                self.records.add("pause", outcome=state.outcome, report=state.report)
        else:
            self.records.note("end", outcome=state.outcome, report=state.report)
            self._remember(state)
        return state

    def result(self, end: EndState) -> AgentResult:
        """What the run came to."""
        return AgentResult(
            outcome=end.outcome,
            report=end.report,
            use=self.use,
            plan=self.plan_text,
            revisions=self.revisions,
            alarms=self.alarms,
        )

    def plan(self, state: PlanState) -> ActState | EndState:
        """Have a plan written, or changed."""
        request = {"role": "user", "content": plan_prompt(state.reason, self.tools.values())}
        answer = self._ask([*self.messages, request], purpose="plan")
        if isinstance(answer, EndState):
            return answer
        self.plan_text = str(answer["text"]).strip() or "(The model wrote no plan.)"
        self.revisions += bool(state.reason)
        self._changes += bool(state.reason)
        self.records.note("plan", revision=self.revisions, reason=state.reason, text=self.plan_text)
        self.messages += [request, {"role": "assistant", "content": self.plan_text}]
        return ActState(GO_ON)

    def act(self, state: ActState) -> ObserveState | RetryState | ActState | EndState:
        """Ask the model for the next step."""
        if state.prompt:
            self.messages.append({"role": "user", "content": state.prompt})
        answer = self._ask(self.messages, purpose="act")
        if isinstance(answer, EndState):
            return answer
        if answer["held"]:
            self.messages.append(assistant_message(str(answer["text"]), ()))
            return self._consult(f"The server holds the answer back: {answer['text']}")
        calls = tuple(RequestedCall(**call) for call in answer["calls"][: self.limits.calls])
        self._asked_calls = len(answer["calls"])
        text = str(answer["text"])
        if not calls and (call := call_in_words(text, {*self.tools, "finish"})):
            text, calls = "", (call,)
        self.messages.append(assistant_message(text, calls))
        if not calls:
            return self._without_call(answer)
        self._wordy = False
        if self._asked_calls > len(calls):
            self.records.note("left_out", asked=self._asked_calls, made=len(calls))
        if len(calls) == self._asked_calls == 1 and calls[0].name == "finish" and (end := _requested_end(calls[0])):
            if end.outcome != "asks":
                return end
            self.messages.append(tool_message(calls[0], "The user was asked."))
            return self._consult(end.report)
        return ObserveState(calls)

    def _without_call(self, answer: Mapping[str, Any]) -> RetryState | EndState:
        """Words instead of a call: asked for a call once, then taken as the answer."""
        self._must_call = True
        if answer["cut"]:
            return RetryState(CUT_ANSWER)
        text = str(answer["text"]).strip()
        if self._wordy and text:
            return EndState("answered", text)
        self._wordy = True
        return RetryState(CALL_A_TOOL)

    def observe(self, state: ObserveState) -> AdaptState | RetryState | EndState:
        """Make the calls, and tell the model what came of them."""
        outcomes = list(state.settled)
        for place, call in enumerate(state.calls):
            outcome = self._runner.run(call)
            if isinstance(outcome, EndState):
                return outcome
            tries = state.tries if place == 0 else 0
            if outcome.kind == "passing" and outcome.may_repeat and tries < self.limits.retries:
                again = ObserveState(state.calls[place:], tuple(outcomes), tries + 1)
                return RetryState(f"{call.name}: {outcome.output}", again)
            outcomes.append(outcome)
        for number, outcome in enumerate(outcomes):
            shown = marked_output(
                outcome.call.name,
                self.use.calls - len(outcomes) + number + 1,
                outcome.output,
                ok=outcome.ok,
                most=self.limits.output,
            )
            self.messages.append(tool_message(outcome.call, shown))
        if self._asked_calls > len(outcomes):
            told = LEFT_OUT_CALLS.format(asked=self._asked_calls, made=len(outcomes))
            self.messages[-1]["content"] += f"\n{told}"
        if all(outcome.kind == "arguments" for outcome in outcomes):
            return RetryState(outcomes[0].output)
        return AdaptState(tuple(outcomes))

    def retry(self, state: RetryState) -> ActState | ObserveState | EndState:
        """Do something once more, where that has not been done too often."""
        self.records.note("retry", reason=state.reason)
        if state.again is not None:
            self._wait(state.again.tries - 1)
            return state.again
        self._bad_answers += 1
        if self._bad_answers > self.limits.retries:
            return self._consult(
                f"The model's answers cannot be used, {self._bad_answers} in a row ({state.reason}) What shall it do?"
            )
        is_told = self.messages[-1]["role"] == "tool"
        return ActState("" if is_told else state.reason)

    def adapt(self, state: AdaptState) -> PlanState | ActState | EndState:
        """Weigh what came of the calls: go on, change the plan, or ask."""
        self._bad_answers = 0
        repeated = 0
        for outcome in state.outcomes:
            signature = content_key(tool=outcome.call.name, arguments=outcome.call.arguments, output=outcome.output)
            self._seen[signature] += 1
            repeated = max(repeated, self._seen[signature])
        last = state.outcomes[-1]
        reason = ""
        if repeated >= self.limits.repeats:
            reason = f"{_short_call(last)} gave the same output {repeated} times."
        elif failures := [outcome for outcome in state.outcomes if not outcome.ok]:
            reason = f"{_short_call(failures[0])} failed: {failures[0].output[:300]}"
        if not reason:
            return ActState()
        if repeated > self.limits.repeats or self._changes >= self.limits.revisions:
            return self._consult(
                f"No progress: {reason} Changes of the plan so far: {self._changes}. What shall it do?"
            )
        return PlanState(reason)

    def _consult(self, question: str) -> ActState | EndState:
        """Ask the user; without an answer the run stops until there is one."""
        row = self.records.take("answer", question=question)
        if row is None:
            reply = None if self.records.replaying else self.person.answer(question)
            if not (reply or "").strip():
                return EndState("asks", question)
            row = self.records.add("answer", question=question, reply=str(reply).strip())
        self._bad_answers, self._wordy, self._changes = 0, False, 0
        self._seen.clear()
        return ActState(f"The user says: {row['reply']}")

    def _ask(self, messages: list[dict[str, Any]], purpose: str) -> dict[str, Any] | EndState:
        """An answer of the model, from the records or from itself; an end where a limit is reached."""
        row = self.records.take("model", purpose=purpose)
        if row is None:
            if limit := self.use.reached(self.limits, call=False):
                return EndState("limit", f"{limit}, answers of the model among them.")
            fitted = fitting_messages(messages, self.model.window - self.limits.answer_tokens)
            prompt = prompt_estimate(fitted)
            most = min(
                self.use.most_answer(self.limits, prompt), self.model.window - min(prompt, self.model.window // 2)
            )
            if most < FEWEST_TOKENS:
                return EndState("limit", "What is left of tokens or money is not enough for another answer.")
            row = self._asked(fitted, [] if purpose == "plan" else self._offers, most, purpose)
        self.use.answers += 1
        self.use.prompt_tokens += row["prompt_tokens"]
        self.use.answer_tokens += row["answer_tokens"]
        self.use.seconds += row["seconds"]
        self.alarms += len(row["alarms"])
        return row

    def _asked(
        self, messages: list[dict[str, Any]], offers: list[dict[str, Any]], most: int, purpose: str
    ) -> dict[str, Any]:
        """Ask the model; failures that pass are put on record with their reasons, and tried again."""
        begin, tries = time.monotonic(), 0
        while True:
            try:
                seconds = self.use.seconds_left(self.limits, REQUEST_SECONDS)
                answer = self.model.ask(messages, offers, most, seconds, must_call=self._must_call)
                break
            except EndpointUnavailable as error:
                self.records.add("fault", reason=str(error))
                if not error.passing or tries >= self.limits.retries:
                    raise
                self._wait(tries)
                tries += 1
        facts = asdict(answer)
        return self.records.add(
            "model",
            purpose=purpose,
            text=answer.text,
            calls=[{name: call[name] for name in ("id", "name", "arguments")} for call in facts["calls"]],
            prompt_tokens=answer.prompt_tokens,
            answer_tokens=answer.answer_tokens,
            cut=answer.is_cut,
            held=answer.is_held,
            readings={name: dict(values) for name, values in answer.readings.items()},
            alarms=[dict(alarm) for alarm in answer.alarms],
            seconds=round(time.monotonic() - begin, 3),
        )

    def _wait(self, tries: int) -> None:
        if not self.records.replaying:
            time.sleep(FIRST_PAUSE_SECONDS * 2**tries)

    def _begin(self) -> None:
        """Put on record what the run is, or check that it is that."""
        rows = self.records.rows
        if rows and rows[0].get("goal") != self.goal:
            raise InvalidRun(
                f"The folder holds a run of another goal, {str(rows[0].get('goal'))[:200]!r}; choose another output, "
                "or give that goal."
            )
        tools = content_key(offers=self._offers, persona=self.settings.persona)
        if self.records.take("begin", goal=self.goal, tools=tools) is None:
            self.records.add(
                "begin",
                goal=self.goal,
                tools=tools,
                model=self.model.name,
                offered={tool.name: sorted(tool.touches) for tool in self.tools.values()},
                approve=sorted(self.settings.approve),
                limits=asdict(self.limits),
            )

    def _recall(self) -> list[RecalledText]:
        if self.memory is None:
            return []
        row = self.records.take("recall")
        if row is None:
            entries = list(self.memory.recall(self.goal, self.settings.recall))
            entries, flagged = self.guard.recalled(entries) if self.guard else (entries, [])
            row = self.records.add("recall", entries=[[entry.id, entry.text] for entry in entries], flagged=flagged)
        return [RecalledText(*entry) for entry in row["entries"]]

    def _remember(self, end: EndState) -> None:
        """Give the memory what came of the run; announced first, so that a kill in between writes nothing twice."""
        if self.memory is None:
            return
        if self.records.take("remembering") is None:
            self.records.add("remembering")
            ids = list(self.memory.record(self.goal, end.outcome, end.report, list(self._step_texts())))
            self.records.add("remembered", ids=ids)
        else:
            self.records.take("remembered")

    def _step_texts(self) -> Iterator[str]:
        """The calls in order, a line each."""
        call = ""
        for row in self.records.rows:
            if row["kind"] == "intent":
                call = call_text(row["tool"], row["arguments"])
            elif row["kind"] == "result":
                yield f"{call}: {'done' if row['ok'] else 'failed, ' + row['output'][:200]}"


def _requested_end(call: RequestedCall) -> EndState | None:
    """The end that a call of finish asks for; ``None`` where its arguments cannot be read."""
    try:
        values = arguments_object(call)
    except ToolFailed:
        return None
    outcomes: dict[str, RunOutcome] = {"done": "done", "impossible": "impossible", "question": "asks"}
    outcome, report = outcomes.get(str(values.get("outcome"))), values.get("report")
    return EndState(outcome, report.strip()) if outcome and isinstance(report, str) and report.strip() else None


def _short_call(outcome: CallOutcome) -> str:
    with contextlib.suppress(ToolFailed):
        return call_text(outcome.call.name, arguments_object(outcome.call))
    return outcome.call.name
