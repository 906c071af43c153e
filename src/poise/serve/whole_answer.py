"""What a guardrail asks about an answer of which all is there: its sources, a policy, and a judge where it is not sure.

Such an answer is held back until it has been asked about. Where its guardrail streams asynchronously the text leaves as
it comes and only its end waits; what had left is said then. A judge about the prompt is asked before any text leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from poise.engine import GeneratedToken
from poise.guardrail import GuardFinding
from poise.guardrail.automated_reasoning import ReasonedAnswer
from poise.guardrail.findings import blocks
from poise.guardrail.grounding_policy import (
    NO_SCORES,
    GroundingReader,
    grounding_findings,
    grounding_reader,
    ungrounded_answer,
)
from poise.guardrail.guard_file import GuardDetector
from poise.guardrail.judging import BandJudge
from poise.guardrail.schema import Guardrail, Source
from poise.model import Model
from poise.serve.alarm_policy import GuardedOutput
from poise.serve.answer_form import AnswerForm
from poise.serve.call_splitter import CallSplitter
from poise.serve.guarded_turn import MOST_BEFORE, said_before
from poise.serve.guarding import ServerGuard, guarded_text, is_last
from poise.serve.intervention import intervention_facts
from poise.serve.knowledge_use import KnowledgeUse
from poise.serve.rendering import CompletionKind, as_thought
from poise.serve.requests import ChatCompletionRequest, CompletionRequest, OpenAIRequest

if TYPE_CHECKING:
    from poise.serve.service import Service

__all__ = ["AnswerContext", "WholeAnswer", "WholeAnswerChecks", "answer_context", "whole_answer_checks"]

UncertainReading = tuple[GuardDetector, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerContext:
    """What the answers of one request are to rest on, and what they answer.

    Attributes:
        sources: Texts that are marked as sources, tools' results since the user's last turn, and passages of documents.
        question: What is marked as the query, else what the user said last.
        prompt: All of the user's last turn, or of a completion's prompts.
        result: The last result of a tool; empty where the request does not end with one.
        before: What was said before the user's last turn.
        before_result: What was said before the last turn.
        conversation: All that was said, the last of it.
    """

    sources: tuple[str, ...] = ()
    question: str = ""
    prompt: str = ""
    result: str = ""
    before: str = ""
    before_result: str = ""
    conversation: str = ""


def answer_context(body: OpenAIRequest, model: Model) -> AnswerContext:
    """What a request says of that, as it may go on: judges and writers of others see no more than the model does."""
    if not isinstance(body, ChatCompletionRequest):
        prompts = body.prompts if isinstance(body, CompletionRequest) else []
        text = "\n".join(p if isinstance(p, str) else str(model.tokenizer.decode(p)) for p in prompts)
        return AnswerContext(question=text, prompt=text, conversation=text[-MOST_BEFORE:])
    turns = body.messages
    last = max((n for n, turn in enumerate(turns) if turn.role == "user"), default=-1)
    prompt = turns[last] if last >= 0 else None
    marked = [text for turn in turns for text in turn.marked("grounding_source")]
    results = [turn.text for turn in turns[last + 1 :] if turn.role == "tool" and not turn.marked("grounding_source")]
    query = "\n".join(text for turn in turns for text in turn.marked("query"))
    return AnswerContext(
        sources=(*marked, *results),
        question=query or (prompt.unmarked if prompt else ""),
        prompt=prompt.text if prompt else turns[-1].text,
        result=turns[-1].text if turns[-1].role == "tool" else "",
        before=said_before(turns[: max(last, 0)]),
        before_result=said_before(turns[:-1]),
        conversation=said_before(turns),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAnswerChecks:
    """What is asked about each answer of one request.

    Attributes:
        name: The guardrail's name and version.
        guardrail: Its rules.
        context: What the answers rest on.
        judge: Decides about readings in the uncertain band.
        reason: Reasons about an answer to a question.
        score: Scores an answer over sources; ``None`` where the engine cannot.
    """

    name: str
    guardrail: Guardrail
    context: AnswerContext
    judge: BandJudge | None
    reason: Callable[[str, str], ReasonedAnswer] | None
    score: GroundingReader | None
    _of_prompt: dict[str, GuardFinding | None] = field(default_factory=dict, repr=False)

    @property
    def need_all(self) -> bool:
        """Whether every answer is asked about, and not only one that a detector is not sure of."""
        return self.reason is not None or bool(self.guardrail.grounding and self.context.sources)

    def resting_on(self, use: KnowledgeUse | None) -> WholeAnswerChecks:
        """The same, with documents that the answers rest on."""
        if use is None or not use.passages:
            return self
        sources = (*self.context.sources, *(passage.text for passage in use.passages))
        return replace(self, context=replace(self.context, sources=sources, question=use.question))

    def of_prompt(self, readings: Sequence[UncertainReading]) -> list[GuardFinding]:
        """What the judge makes of uncertain readings of the prompt, once for all answers."""
        context = self.context
        texts = {"prompt": (context.prompt, context.before), "tool result": (context.result, context.before_result)}
        for detector, value in readings:
            if self.judge and detector.rule not in self._of_prompt:
                self._of_prompt[detector.rule] = self.judge.decide(detector, value, *texts[detector.reads])
        return [finding for d, _ in readings if (finding := self._of_prompt.get(d.rule))]

    def findings(self, readings: Sequence[UncertainReading], reply: str, words: str) -> list[GuardFinding]:
        """What is found in an answer, the dearest last and not where something has blocked it already.

        Args:
            readings: Uncertain readings of it.
            reply: All of it.
            words: What it says, calls of tools left out.
        """
        findings = self.judge.findings(readings, reply, self.context.conversation) if self.judge else []
        if not words.strip():
            return findings
        if self.guardrail.grounding and self.context.sources and not blocks(findings):
            findings += self._grounded(words)
        if self.reason and not blocks(findings):
            findings += self.reason(self.context.question, words).findings(len(words))
        return findings

    def _grounded(self, words: str) -> list[GuardFinding]:
        rules, context = self.guardrail.grounding, self.context
        if self.score is None:
            return ungrounded_answer(rules, NO_SCORES, len(words))
        return grounding_findings(rules, context.sources, context.question, words, self.score)[1]


def whole_answer_checks(
    service: Service, guard: ServerGuard, context: AnswerContext, judge: BandJudge | None
) -> WholeAnswerChecks | None:
    """What a guardrail asks about whole answers of a request; ``None`` for nothing."""
    guardrail = guard.checker.guardrail
    reason = guard.answer_reader(service.model, service.scheduler)
    if not (guardrail.grounding or reason or judge):
        return None
    scores = guardrail.grounding and service.engine.read_text is None
    return WholeAnswerChecks(
        name=guard.name,
        guardrail=guardrail,
        context=context,
        judge=judge,
        reason=reason,
        score=grounding_reader(service.model, service.scheduler.call) if scores else None,
    )


class WholeAnswer:
    """One answer, held back where it is to be asked about.

    Args:
        checks: What is asked.
        form: What the answer may be.
        kind: Kind of completion.
        leaves: Whether its text leaves as it comes, and only its end waits.

    Attributes:
        blocked: What has ended the answer: something in the prompt or in the answer.
        interventions: What was found.
    """

    def __init__(self, checks: WholeAnswerChecks, form: AnswerForm, kind: CompletionKind, *, leaves: bool) -> None:
        self._checks, self._form, self._kind, self._leaves = checks, form, kind, leaves
        self._reply: list[GeneratedToken] = []  # all of it
        self._held: list[GeneratedToken] = []
        self._left = 0  # characters of the reply
        self._judged: set[tuple[str, Source]] = set()
        self.blocked: Source | None = None
        self.interventions: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """The guardrail's."""
        return self._checks.name

    @property
    def message(self) -> str:
        """What follows an answer that was blocked."""
        messages = self._checks.guardrail.messages
        return messages.input if self.blocked == "INPUT" else messages.output

    def clear(self) -> None:
        """Let nothing of it leave any more."""
        self._held = []

    def take(self, guarded: GuardedOutput, readings: Sequence[UncertainReading]) -> GuardedOutput:
        """The output with what may leave; a worker's where ``waits`` says so.

        Args:
            guarded: What the guardrail has let go so far.
            readings: Readings of prompt and answer that its detectors are not sure of.
        """
        new = [(d, v) for d, v in readings if d.source == "INPUT" and (d.rule, d.source) not in self._judged]
        if new:
            self._judged |= {(d.rule, d.source) for d, _ in new}
            self._note(self._checks.of_prompt(new), "INPUT")
        last, tokens = is_last(guarded), self._add(guarded.output.tokens)
        of_answer = [(d, value) for d, value in readings if d.source == "OUTPUT"]
        if self.blocked is None and last and (of_answer or self._checks.need_all):
            self._note(self._checks.findings(of_answer, self._text(), self._words()), "OUTPUT")
        if self.blocked:
            self._held = []
            output = replace(guarded.output, tokens=(), ahead=(), finish=None, end=None)
            return replace(guarded, output=output, stopped=True)
        if self._leaves or last or not (self._checks.need_all or of_answer):
            tokens, self._held = [*self._held, *tokens], []
            self._left += sum(len(guarded_text(t, self._kind)) for t in tokens if self._is_reply(t))
            return replace(guarded, output=replace(guarded.output, tokens=tuple(tokens)))
        self._held += [token for token in tokens if self._is_reply(token)]
        leaving = tuple(token for token in tokens if not self._is_reply(token))
        return replace(guarded, output=replace(guarded.output, tokens=leaving))

    def waits(self, guarded: GuardedOutput, readings: Sequence[UncertainReading]) -> bool:
        """Whether taking in this output means asking somebody."""
        if is_last(guarded):
            return self._checks.need_all or bool(readings)
        return any(d.source == "INPUT" and (d.rule, d.source) not in self._judged for d, _ in readings)

    def _add(self, tokens: Sequence[GeneratedToken]) -> list[GeneratedToken]:
        """Keep what is of the reply, and give what comes now: what was taken for the reply may have been none."""
        coming: list[GeneratedToken] = []
        for token in tokens:
            if token.ends_unopened_thought:
                coming, self._held = as_thought([*self._held, *coming]), []
                self._reply = []
            coming.append(token)
            if self._is_reply(token):
                self._reply.append(token)
        return coming

    def _is_reply(self, token: GeneratedToken) -> bool:
        return self._kind == "text" or token.part == "reply"

    def _text(self) -> str:
        """All of the reply."""
        return "".join(guarded_text(token, self._kind) for token in self._reply)

    def _words(self) -> str:
        """The reply without calls of tools."""
        splitter = CallSplitter.of(self._form)
        if splitter is None:
            return self._text()
        splitter.split(self._reply, last=True)
        return splitter.words

    def _note(self, findings: Sequence[GuardFinding], source: Source) -> None:
        for finding in findings:
            [fact] = intervention_facts(self._checks.name, [finding], source)
            self.interventions.append(fact | ({"left": self._left} if self._leaves and source == "OUTPUT" else {}))
            if finding.action == "BLOCK" and self.blocked is None:
                self.blocked = source
