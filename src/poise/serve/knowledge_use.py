"""Documents in the server: passages put before a chat's question, and citations under ``poise`` of its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from poise.data import Message
from poise.errors import InvalidArgument, RequestError, UserError
from poise.knowledge import (
    AnswerSettings,
    ChunkFilter,
    CitedSentence,
    GroundingScores,
    Knowledge,
    RetrievedPassage,
    text_reranker,
)
from poise.knowledge.answering import checked_answer, passage_facts, sentence_facts
from poise.knowledge.follow_ups import MOST_SOUGHT, search_text
from poise.knowledge.prompting import fitting_prompt
from poise.model import Model
from poise.serve.policy import Policies, Policy, UnsupportedRule
from poise.serve.requests import ChatCompletionRequest, ChatMessage, KnowledgeRequest, OpenAIRequest
from poise.settings import faults_error
from poise.settings.other_names import Place

__all__ = [
    "AnswerSupport",
    "KnowledgeUse",
    "ServerKnowledge",
    "TurnWriter",
    "check_document_rules",
    "read_knowledge",
    "with_knowledge",
]

UNSUPPORTED_ACTIONS = {"mark": "marked", "remove": "removed", "refuse": "a reason to refuse the answer"}
TurnWriter = Callable[[list[Message], int], str]
"""Answers a prompt with at most that many tokens."""

MARK_TOKENS = 16  # of the marks around a turn


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSupport:
    """What passages say of an answer.

    Attributes:
        answered: Whether it is an answer, and not that the documents have none.
        sentences: Its sentences, checked.
        checked_by: ``words`` or ``model``, or why it is not the model although that was asked for.
    """

    answered: bool
    sentences: tuple[CitedSentence, ...]
    checked_by: str

    @property
    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "answered": self.answered,
            "sentences": [sentence_facts(sentence) for sentence in self.sentences],
            "unsupported": sum(not sentence.supported for sentence in self.sentences),
            "checked_by": self.checked_by,
        }


@dataclass(frozen=True, slots=True)
class KnowledgeUse:
    """What one request's answers rest on.

    Attributes:
        question: The turn that is answered.
        passages: What stands before it; the first is number 1.
        settings: How answers are checked.
        unsupported: What is done about sentences that the passages do not support.
        score: The model's measure of how well passages carry a sentence; ``None`` for words alone.
        shown: What an answer may show of a passage's text, where a guardrail says; by default all of it.
    """

    question: str
    passages: tuple[RetrievedPassage, ...]
    settings: AnswerSettings
    unsupported: UnsupportedRule = "leave"
    score: GroundingScores | None = None
    shown: Callable[[str], str] | None = None

    @property
    def passage_facts(self) -> dict[str, Any]:
        """The passages, for the beginning of a stream."""
        facts = [passage_facts(number, passage) for number, passage in enumerate(self.passages, 1)]
        if shown := self.shown:
            facts = [each | {key: shown(each[key]) for key in ("text", "title") if each[key]} for each in facts]
        return {"passages": facts}

    def facts(self, text: str) -> dict[str, Any]:
        """The passages and what they say of each sentence of an answer."""
        support = self.support(text)
        return {**self.passage_facts, **support.facts}

    def support(self, text: str) -> AnswerSupport:
        """What the passages say of an answer; by words alone where the model cannot read it with them."""
        score, checked_by = self.score if self.passages else None, "words"
        if score is not None:
            try:
                _, answered, sentences = checked_answer(text, self.passages, self.question, self.settings, score)
                return AnswerSupport(answered=answered, sentences=sentences, checked_by="model")
            except InvalidArgument:
                checked_by = "words, since the model's window does not hold the answer with its passages"
        _, answered, sentences = checked_answer(text, self.passages, self.question, self.settings)
        return AnswerSupport(answered=answered, sentences=sentences, checked_by=checked_by)


@dataclass(slots=True)
class ServerKnowledge:
    """The knowledge base of a server.

    Attributes:
        knowledge: Knowledge base that passages are found in.
    """

    knowledge: Knowledge
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # requests come from several threads

    def use(
        self, body: ChatCompletionRequest, policy: Policy, model: Model, write: TurnWriter | None = None
    ) -> tuple[ChatCompletionRequest, KnowledgeUse]:
        """The request with passages before its last question, and what its answers rest on.

        Raises:
            RequestError: 400 where the question does not fit; 503 where nothing can be looked for.
        """
        wanted = _wanted(body)
        settings = _answer_settings(wanted, policy)
        unsupported = stricter(wanted.unsupported, policy.unsupported)
        if unsupported != "leave" and (body.tools or (body.response_format and body.response_format.type != "text")):
            raise RequestError(
                400,
                f"Sentences that documents do not support are {UNSUPPORTED_ACTIONS[unsupported]}, which would break "
                "calls and JSON; leave tools and response_format out.",
                code="unsupported",
                param="poise.knowledge",
            )
        question = body.messages[-1].text
        sought = _search_text(body.messages, wanted, write)
        try:
            with self._lock:
                passages = self.knowledge.search(sought, settings.top, settings.mode, settings.where)
        except InvalidArgument as error:
            raise RequestError(400, str(error), param="messages") from error
        except UserError as error:
            raise RequestError(
                503, f"The documents cannot be searched. {error}", code="knowledge_unavailable"
            ) from error

        def count(messages: Sequence[Message]) -> int:
            texts = [message["content"] for message in messages] + [turn.text for turn in body.messages[:-1]]
            return sum(
                len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) + MARK_TOKENS for text in texts
            )

        answer = min(body.max_new_tokens or policy.default_tokens, model.window // 2)
        try:
            prompt = fitting_prompt(question, passages, count, model.window - answer)
        except UserError as error:
            raise RequestError(400, str(error), code="context_length_exceeded", param="messages") from error
        turn = body.messages[-1].model_copy(update={"content": prompt.messages[-1]["content"]})
        changed = body.model_copy(update={"messages": [*body.messages[:-1], turn]})
        return changed, KnowledgeUse(question, prompt.passages, settings, unsupported)


def with_knowledge(
    knowledge: ServerKnowledge | None,
    body: OpenAIRequest,
    policy: Policy,
    model: Model,
    score: GroundingScores | None = None,
    write: TurnWriter | None = None,
) -> tuple[OpenAIRequest, KnowledgeUse | None]:
    """The request as it may go on: with passages, where it or its key's rules ask for them.

    Args:
        knowledge: The server's documents.
        body: The request.
        policy: The rules for its key.
        model: Model that answers.
        score: The model's measure of sentences; ``None`` where it has none.
        write: Has the model write a little, to rewrite a question; ``None`` where it cannot.

    Raises:
        RequestError: 400 where it asks for documents that are not here, or for a check by a model that cannot.
    """
    wanted = body.poise.knowledge if body.poise else None
    if wanted and (knowledge is None or not isinstance(body, ChatCompletionRequest)):
        text = "This server has no documents" if knowledge is None else "Documents are for chats"
        raise RequestError(400, f"{text}; leave poise.knowledge out.", code="no_knowledge", param="poise.knowledge")
    asked = policy.answer_from_documents if wanted is None else bool(wanted)
    if not asked or knowledge is None or not isinstance(body, ChatCompletionRequest):
        return body, None
    if body.messages[-1].role != "user":
        return body, None
    body, use = knowledge.use(body, policy, model, write)
    if not (policy.check_by_model or _wanted(body).by_model):
        return body, use
    if score is None:
        text = "Sentences are checked by the model on Poise's own engine alone; leave poise.knowledge.by_model out."
        raise RequestError(400, text, code="unsupported", param="poise.knowledge.by_model")
    return body, replace(use, score=score)


def _wanted(body: ChatCompletionRequest) -> KnowledgeRequest:
    """How a chat is to be answered; as by default where it only says that it is."""
    wanted = body.poise.knowledge if body.poise else None
    return wanted if isinstance(wanted, KnowledgeRequest) else KnowledgeRequest()


def stricter(one: UnsupportedRule, other: UnsupportedRule) -> UnsupportedRule:
    """Of two rules the one that lets less through."""
    return max(one, other, key=get_args(UnsupportedRule).index)


def _answer_settings(wanted: KnowledgeRequest, policy: Policy) -> AnswerSettings:
    where = ChunkFilter(paths=tuple(wanted.paths), labels=frozenset(policy.documents))
    return AnswerSettings(top=wanted.top, mode=wanted.mode, where=where, least=wanted.least)


def _search_text(messages: Sequence[ChatMessage], wanted: KnowledgeRequest, write: TurnWriter | None) -> str:
    """What is looked for: the last question, with or by what came before it."""
    if wanted.follow_up == "rewrite" and write is None:
        text = "Questions are rewritten on Poise's own engine alone; set poise.knowledge.follow_up to join or last."
        raise RequestError(400, text, code="unsupported", param="poise.knowledge.follow_up")
    sought = search_text([turn.text for turn in messages if turn.role == "user"], wanted.follow_up, write)
    return sought[-MOST_SOUGHT:]


def check_document_rules(policies: Policies, knowledge: ServerKnowledge | None, keys: Iterable[str]) -> None:
    """Refuse rules that have chats answered from documents on a server that has none.

    Raises:
        InvalidArgument: names the field.
    """
    if knowledge is not None:
        return
    faults: dict[Place, str] = {}
    for key in (None, *keys):
        place: Place = ("keys", key) if key in policies.keys else ("default",)
        if policies.of(key).answer_from_documents:
            field_place = (*place, "answer_from_documents")
            faults[field_place] = "is true, and this server has no documents; start it with `knowledge`"
    if faults:
        raise faults_error(faults.items())


def read_knowledge(folder: Path | None, rerank: str | None = None) -> ServerKnowledge | None:
    """The knowledge base in a folder, with what orders its best passages; ``None`` without one.

    Raises:
        InvalidArgument: there is no such reranker, or nothing to rerank.
        InvalidKnowledge: it is none, or damaged.
        MissingExtra: it needs packages that are not installed.
    """
    if folder is None:
        if rerank:
            raise InvalidArgument("`rerank` orders passages of documents; name them with `knowledge`, or leave it out.")
        return None
    return ServerKnowledge(Knowledge(folder, reranker=text_reranker(rerank) if rerank else None))
