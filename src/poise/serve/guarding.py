"""A guardrail in the server: on prompts before they are read, and on answers before they leave."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from poise.engine import GeneratedToken
from poise.errors import InvalidArgument, RequestError
from poise.guardrail import Checker, GuardFinding
from poise.guardrail.apply import ActivationFinder
from poise.guardrail.automated_reasoning import AnswerReasoner, ReasonedAnswer
from poise.guardrail.encoder_reader import AnswerEncoding, EncoderReader
from poise.guardrail.findings import blocks, masked
from poise.guardrail.guard_file import FittedGuard, GuardDetector
from poise.guardrail.judging import BandJudge, judged_reader
from poise.guardrail.release import ReleaseWindow
from poise.guardrail.schema import Source
from poise.model import Model
from poise.monitor.baseline import ReadsText
from poise.reasoning import EndpointFactWriter
from poise.serve.alarm_policy import AlarmGuard, GuardedOutput
from poise.serve.detector_guard import DetectorGuard
from poise.serve.fact_writer import ServedFactWriter
from poise.serve.guarded_turn import REMOVED, entries_as_kept, said_before, shown_text, turn_as_read
from poise.serve.intervention import intervention_facts
from poise.serve.planning import RequestPlan
from poise.serve.rendering import CompletionKind
from poise.serve.requests import ChatCompletionRequest, CompletionRequest, OpenAIRequest
from poise.serve.scheduler import Scheduler

__all__ = [
    "AnswerGuard",
    "GuardedRequest",
    "ServerGuard",
    "encoded_text",
    "guarded_part",
    "guarded_text",
    "is_last",
    "masked_token",
    "uncertain_readings",
]

UNKNOWN_LOGPROB = -9999.0  # OpenAI's, of what is not among the likeliest
MOST_REMEMBERED = 4096  # turns whose findings are kept; a conversation sends all of its turns again


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedRequest:
    """A request as it may go on.

    Attributes:
        body: The request, with marks for what is masked, and without the turns that are blocked.
        blocked: Whether its prompt may not be answered.
        interventions: What was found, for the answer's ``poise`` field.
        guard: What guards its answers; ``None`` for nothing.
        message: What is answered where it is blocked; default, the policy's message.
    """

    body: OpenAIRequest
    guard: ServerGuard | None = None
    blocked: bool = False
    interventions: tuple[dict[str, Any], ...] = ()
    message: str | None = None


@dataclass(slots=True)
class ServerGuard:
    """A guardrail of a server.

    Attributes:
        checker: The guardrail with its finders.
        fitted: The guardrail with its detectors, where it was fitted.
        reasoner: Reasons about answers, where its policy says so.
        encoder: Reads texts for the rules that the sentence encoder reads, where there are any.
    """

    checker: Checker
    fitted: FittedGuard | None = None
    reasoner: AnswerReasoner | None = None
    encoder: EncoderReader | None = field(default=None, repr=False)
    _remembered: dict[tuple[bytes, Source], list[GuardFinding]] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # requests come from several threads

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.checker.guardrail.name}/{self.checker.guardrail.version}"

    @property
    def notes(self) -> list[str]:
        """What the server's user should know of what it does not see."""
        notes, leaves = self.checker.notes, self.checker.guardrail.streaming == "asynchronous"
        waits = "that have left by then" if leaves else "that wait for it"
        if self.reasoner:
            notes.append(f"{self.name} reasons about answers, {waits}.")
        if self.checker.guardrail.grounding:
            text = f"{self.name} scores answers, {waits}, over the sources that a request marks, tools' results"
            notes.append(f"{text} and passages of documents.")
        return notes

    def read_along(self, plan: RequestPlan) -> RequestPlan:
        """The plan with the detectors read in every pass, behind the watched vectors."""
        if self.fitted is None or not (probes := self.fitted.probes):
            return plan
        return replace(plan, requests=tuple(replace(r, probes=(*r.probes, *probes)) for r in plan.requests))

    def with_detectors(
        self,
        alarms: AlarmGuard,
        watched: int,
        body: OpenAIRequest,
        prompts: Sequence[str],
        *,
        results_read: bool = False,
    ) -> AlarmGuard | DetectorGuard:
        """What looks at the readings of one answer to a prompt; not at tools' results, where these were read before."""
        if self.fitted is None or not self.fitted.activation_detectors:
            return alarms
        after_tool = not results_read and isinstance(body, ChatCompletionRequest) and body.messages[-1].role == "tool"
        encoded = self.encoder.highest_of_both(prompts) if self.encoder else []
        return DetectorGuard(self.fitted, alarms, watched, after_tool=after_tool, encoded=encoded)

    def reader(
        self, model: Model, between: Callable[[Callable[[], Any]], Any], read_text: ReadsText | None = None
    ) -> ActivationFinder | None:
        """What reads a text by itself with the detectors, those of activations between two steps of the model."""
        if self.fitted is None:
            return None
        return judged_reader(self.fitted, model, between, read_text)

    @property
    def input_message(self) -> str:
        """What is answered to a request that is blocked."""
        return self.checker.guardrail.messages.input

    @property
    def waits(self) -> bool:
        """Whether checking a text by itself waits for a model."""
        return bool(self.fitted or self.reasoner or self.checker.guardrail.grounding)

    def answer_reader(self, model: Model, scheduler: Scheduler) -> Callable[[str, str], ReasonedAnswer] | None:
        """What reasons about an answer to a question; ``None`` without a policy for it."""
        reasoner = self.reasoner
        if reasoner is None:
            return None
        writer = reasoner.rule.writer.partition(":")[2]
        write = EndpointFactWriter(writer) if writer else ServedFactWriter(model, scheduler)
        return lambda question, answer: reasoner(question, answer, write)

    def answer_encoding(self) -> AnswerEncoding | None:
        """What reads one answer while it is written; ``None`` where the encoder reads no answers."""
        return AnswerEncoding(self.encoder) if self.encoder and self.encoder.reads("answer") else None

    def message(self, detectors: DetectorGuard | None) -> str:
        """What follows an answer that was blocked."""
        messages = self.checker.guardrail.messages
        return messages.input if detectors and detectors.stopped_by == "INPUT" else messages.output

    def judge(
        self, model: Model, between: Callable[[Callable[[], Any]], Any], read_text: ReadsText | None = None
    ) -> BandJudge | None:
        """Who is asked about readings that the detectors are not sure of; ``None`` where nobody is."""
        if self.fitted is None or self.checker.guardrail.judge is None:
            return None
        return BandJudge(self.fitted, model, between, read_text)

    def find(
        self, text: str, source: Source, judge: BandJudge | None = None, *, before: str = ""
    ) -> list[GuardFinding]:
        """What is found in a turn, which is looked at once however often it is sent, unless its judge fails.

        Args:
            text: What the turn says.
            source: Whether it is a prompt or an answer.
            judge: Who is asked about uncertain readings; about none of a turn that is blocked anyway.
            before: What was said before it, for the judge.
        """
        key = (hashlib.blake2b(f"{before}\0{text}".encode(), digest_size=16).digest(), source)
        findings = self._remembered.get(key)
        if findings is None:
            findings = self.checker.find(text, source)
            failed = judge.failed if judge else 0
            if self.encoder:
                readings = self.encoder.projections(text, "prompt" if source == "INPUT" else "answer")
                alone = [(detector, value) for detector, value in readings if detector.read_by == "encoder"]
                certain = [finding for detector, value in alone if (finding := detector.finding(value, len(text)))]
                asks = judge is not None and not blocks(findings)
                shown = masked(text, findings)  # a judge may be somebody else's
                findings = [*findings, *(judge.findings(alone, shown, before) if judge and asks else certain)]
            if judge and judge.failed > failed:
                return findings
            with self._lock:
                while len(self._remembered) >= MOST_REMEMBERED:
                    self._remembered.pop(next(iter(self._remembered)))
                self._remembered[key] = findings
        return findings

    def shown(self, text: str) -> str:
        """A text beside an answer, as the answer may show it."""
        return shown_text(text, self.checker)

    def guard_request(self, body: OpenAIRequest, model: Model, judge: BandJudge | None = None) -> GuardedRequest:
        """Look at what a request says: a chat's turns, or the prompts of a completion.

        What users and tools say is a prompt, what the assistant said an answer; system turns are the server's own
        affair. Of a chat, only turns after the assistant's last one end the request: earlier ones that are blocked are
        taken out of the history.

        Raises:
            RequestError: a text is longer than is checked.
        """
        try:
            if isinstance(body, ChatCompletionRequest):
                return self._guard_chat(body, judge)
            if isinstance(body, CompletionRequest):
                return self._guard_prompts(body, model, judge)
        except InvalidArgument as error:
            raise RequestError(400, str(error), code="invalid_value") from error
        return GuardedRequest(body=body, guard=self)

    def _guard_chat(self, body: ChatCompletionRequest, judge: BandJudge | None) -> GuardedRequest:
        turns = list(body.messages)
        answered = max((n for n, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        interventions: list[dict[str, Any]] = []
        blocked = False
        for place, turn in enumerate(turns):
            if turn.role in ("system", "developer"):
                continue
            source: Source = "OUTPUT" if turn.role == "assistant" else "INPUT"
            findings = self.find(turn.text, source, judge, before=said_before(turns[:place]) if judge else "")
            if place > answered:
                interventions += self._facts(findings, source)
                blocked = blocked or blocks(findings)
            turns[place] = turn_as_read(turn, findings, self.checker)
        if turns != body.messages:
            body = body.model_copy(update={"messages": turns})
        body, of_entries = entries_as_kept(body, self.checker)
        interventions += self._facts(of_entries, "INPUT")
        blocked = blocked or blocks(of_entries)
        facts = tuple(interventions)
        return GuardedRequest(body=body, guard=self, blocked=blocked, interventions=facts, message=self.input_message)

    def _guard_prompts(self, body: CompletionRequest, model: Model, judge: BandJudge | None) -> GuardedRequest:
        texts = [p if isinstance(p, str) else str(model.tokenizer.decode(p)) for p in body.prompts]
        findings = [self.find(text, "INPUT", judge) for text in texts]
        facts = [fact for each in findings for fact in self._facts(each, "INPUT")]
        blocked = any(map(blocks, findings))
        if any(f.action in ("BLOCK", "ANONYMIZE") for each in findings for f in each):
            changed = [
                REMOVED if blocks(each) else masked(text, each) for text, each in zip(texts, findings, strict=True)
            ]
            body = body.model_copy(update={"prompt": changed[0] if len(changed) == 1 else changed})
        done = tuple(facts)
        return GuardedRequest(body=body, guard=self, blocked=blocked, interventions=done, message=self.input_message)

    def _facts(self, findings: Sequence[GuardFinding], source: Source) -> list[dict[str, Any]]:
        return intervention_facts(self.name, findings, source)


class AnswerGuard:
    """Guards one answer while it comes: the text of each part by itself.

    Args:
        guard: The server's guardrail.
        kind: Kind of completion.
        readings: What looks at the answer's readings; where it is a guardrail's detectors, they end the answer too.

    Attributes:
        blocked: Whether the guardrail has ended the answer.
    """

    def __init__(self, guard: ServerGuard, kind: CompletionKind, readings: object = None) -> None:
        self._guard, self._kind = guard, kind
        self._detectors = readings if isinstance(readings, DetectorGuard) else None
        self.blocked = False
        self._window = self._new_window()
        self._encoding = guard.answer_encoding()
        self._part = ""
        self._pending: list[GeneratedToken] = []
        self._facts: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """The guardrail's."""
        return self._guard.name

    @property
    def interventions(self) -> list[dict[str, Any]]:
        """What was found so far."""
        return [*self._facts, *(self._detectors.facts if self._detectors else ())]

    @property
    def uncertain(self) -> list[tuple[GuardDetector, float]]:
        """Readings that a judge is to be asked about."""
        return uncertain_readings(self._detectors, self._encoding)

    @property
    def message(self) -> str:
        """What follows an answer that was blocked."""
        return self._guard.message(self._detectors)

    def is_due(self, guarded: GuardedOutput) -> bool:
        """Whether taking in this output means a check, which takes a while."""
        more = sum(len(self._text(token)) for token in guarded.output.tokens)
        changed = any(self._part_of(token) != self._part for token in guarded.output.tokens)
        return changed or self._window.is_due(more, last=is_last(guarded))

    def take(self, guarded: GuardedOutput) -> GuardedOutput:
        """The output with the tokens that may now leave, masked, in the place of those that have come."""
        if guarded.stopped and self._detectors and self._detectors.stopped_by:
            self._pending, self.blocked = [], True
            return guarded
        released: list[GeneratedToken] = []
        blocked = self._encoded_block(guarded)
        for token in guarded.output.tokens if not blocked else ():
            if self._part_of(token) != self._part:
                blocked = blocked or self._release([], released, last=True)
                self._window, self._part = self._new_window(), self._part_of(token)
            if not blocked:
                blocked = self._release([token], released, last=False)
        if not blocked and is_last(guarded):
            blocked = self._release([], released, last=True)
        output = replace(guarded.output, tokens=tuple(released))
        if blocked:
            self._pending, self.blocked = [], True
            return replace(guarded, output=replace(output, ahead=(), finish=None, end=None), stopped=True)
        return replace(guarded, output=output)

    def _encoded_block(self, guarded: GuardedOutput) -> bool:
        """Whether what the encoder reads of the reply so far ends the answer; it looks whenever the window does."""
        if self._encoding is None:
            return False
        self._encoding.add(encoded_text(guarded, self._kind))
        if not self.is_due(guarded):
            return False
        findings = self._encoding.look(last=is_last(guarded))
        self._facts += intervention_facts(self._guard.name, findings, "OUTPUT")
        return blocks(findings)

    def _release(self, tokens: Sequence[GeneratedToken], released: list[GeneratedToken], *, last: bool) -> bool:
        self._pending += tokens
        release = self._window.add([self._text(token) for token in tokens], last=last)
        for piece in release.pieces:
            token = self._pending.pop(0)
            released.append(masked_token(token, piece.text) if piece.masked else token)
        self._facts += intervention_facts(self._guard.name, release.findings, "OUTPUT")
        return release.blocked

    def _new_window(self) -> ReleaseWindow:
        checker = self._guard.checker
        return ReleaseWindow(lambda text: checker.find(text, "OUTPUT"), window=checker.guardrail.window)

    def _part_of(self, token: GeneratedToken) -> str:
        return guarded_part(token, self._kind)

    def _text(self, token: GeneratedToken) -> str:
        return guarded_text(token, self._kind)


def uncertain_readings(
    detectors: DetectorGuard | None, encoding: AnswerEncoding | None
) -> list[tuple[GuardDetector, float]]:
    """Readings of one answer and its prompt, whoever read them, that a judge is to be asked about."""
    return [*(detectors.uncertain if detectors else ()), *(encoding.uncertain if encoding else ())]


def guarded_part(token: GeneratedToken, kind: CompletionKind) -> str:
    """Part of an answer that is guarded by itself."""
    return token.part if kind == "chat" else "all"


def guarded_text(token: GeneratedToken, kind: CompletionKind) -> str:
    """What is read of a token."""
    return token.text if kind == "chat" or token.piece is None else token.piece


def encoded_text(guarded: GuardedOutput, kind: CompletionKind) -> str:
    """What the encoder reads of an output: the reply, as detectors do, and no thought."""
    return "".join(guarded_text(token, kind) for token in guarded.output.tokens if token.part == "reply")


def is_last(guarded: GuardedOutput) -> bool:
    """Whether the answer ends with this output."""
    return guarded.stopped or guarded.output.finish is not None


def masked_token(token: GeneratedToken, text: str) -> GeneratedToken:
    """The token with a mark for what it said, and without what the model might have said instead."""
    piece = None if token.piece is None else text
    if token.logprob is None:
        return replace(token, text=text, piece=piece)
    return replace(token, text=text, piece=piece, decoded=text, logprob=UNKNOWN_LOGPROB, top_logprobs=(), begins=0)
