"""A question to an answer that cites passages, each of its sentences checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from poise.arguments import check_choice, check_number
from poise.data import Message
from poise.grounding import ground
from poise.knowledge.answer_writers import AnswerWriter
from poise.knowledge.citations import (
    CitedSentence,
    GroundingScores,
    Unsupported,
    check_citations,
    rendered_answer,
)
from poise.knowledge.follow_ups import FollowUpSearch, latest_turns, search_text
from poise.knowledge.prompting import NOT_IN_DOCUMENTS, fitting_prompt, says_not_there, without_echo
from poise.knowledge.searching import Knowledge, RetrievedPassage, SearchMode
from poise.knowledge.store import NO_FILTER, ChunkFilter
from poise.model import Model

__all__ = [
    "AnswerSettings",
    "GroundedAnswer",
    "answer_facts",
    "answer_question",
    "checked_answer",
    "model_scores",
    "passage_facts",
    "sentence_facts",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """How questions are answered.

    Attributes:
        top: Most passages.
        mode: How they are found.
        where: What the search is limited to.
        follow_up: What is looked for where the question follows others.
        most_tokens: Longest answer, in tokens.
        budget: Most tokens of the prompt; ``None`` for what the model's window leaves.
        unsupported: ``mark`` sentences that the passages do not support, ``remove`` them, or ``refuse`` the answer.
        least: Lowest score of a supported sentence, from 0 to 1.
    """

    top: int = 6
    mode: SearchMode = "hybrid"
    where: ChunkFilter = NO_FILTER
    follow_up: FollowUpSearch = "join"
    most_tokens: int = 200
    budget: int | None = None
    unsupported: Unsupported = "mark"
    least: float = 0.5

    def __post_init__(self) -> None:
        check_choice("`follow_up`", self.follow_up, get_args(FollowUpSearch))
        check_choice("`unsupported`", self.unsupported, get_args(Unsupported))
        check_number("`least`", self.least, least=0, most=1)
        check_number("`top`", self.top, least=1, most=50)
        check_number("`most_tokens`", self.most_tokens, least=1, most=100_000)
        if self.budget is not None:
            check_number("`budget`", self.budget, least=50, most=10_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundedAnswer:
    """An answer and what it rests on.

    Attributes:
        question: What was asked.
        sought: What was looked for; the question, unless it followed others.
        text: The answer with its citations, after what was to be done about unsupported sentences.
        answered: Whether it is an answer, and not that the documents have none.
        written: What the model wrote.
        sentences: All of its sentences, checked; those that were left out too.
        passages: What the model was given; the first is number 1.
        prompt_tokens: Tokens of the prompt.
        tokens: Tokens that the model wrote.
        seconds: Time from question to answer.
    """

    question: str
    sought: str
    text: str
    answered: bool
    written: str
    sentences: tuple[CitedSentence, ...]
    passages: tuple[RetrievedPassage, ...]
    prompt_tokens: int
    tokens: int
    seconds: float

    @property
    def sources(self) -> tuple[int, ...]:
        """Numbers of the passages that the answer cites."""
        if not self.answered:
            return ()
        return tuple(sorted({number for sentence in self.sentences for number in sentence.passages}))

    @property
    def grounding(self) -> float | None:
        """The lowest score of a sentence; ``None`` where there is none."""
        return min((sentence.score for sentence in self.sentences), default=None)

    @property
    def unsupported(self) -> int:
        """Number of sentences that the passages do not support."""
        return sum(not sentence.supported for sentence in self.sentences)


def answer_question(
    knowledge: Knowledge,
    question: str,
    writer: AnswerWriter,
    settings: AnswerSettings | None = None,
    *,
    score: GroundingScores | None = None,
    history: Sequence[Message] = (),
) -> GroundedAnswer:
    """Find passages, have a model answer from them, and check what it says.

    Args:
        knowledge: Knowledge base that passages are found in.
        question: What is asked.
        writer: What answers.
        settings: How.
        score: Another measure of how well passages carry a sentence, such as ``model_scores(model)``.
        history: Turns before, of which as many of the latest are shown as have a third of the room.

    Raises:
        InvalidArgument: the question does not fit the model's window.
        EncoderUnavailable: the endpoint for embeddings does not answer.
        EndpointUnavailable: the endpoint of the model does not answer.
    """
    settings = settings or AnswerSettings()
    began = time.monotonic()
    questions = [*(turn["content"] for turn in history if turn["role"] == "user"), question]
    sought = search_text(questions, settings.follow_up, lambda messages, most: writer(messages, most).text)
    passages = knowledge.search(sought, settings.top, settings.mode, settings.where)
    if not passages:
        return _no_answer(question, sought, time.monotonic() - began)
    room = writer.window - settings.most_tokens
    most = room if settings.budget is None else min(room, settings.budget)
    earlier = latest_turns(history, writer.count, most // 3)
    prompt = fitting_prompt(question, passages, writer.count, most, earlier)
    written = writer(prompt.messages, settings.most_tokens)
    user_words = "\n".join(questions[-2:])
    reply = without_echo(written.text, question, prompt.passages)
    text, answered, sentences = checked_answer(reply, prompt.passages, user_words, settings, score)
    return GroundedAnswer(
        question=question,
        sought=sought,
        text=text,
        answered=answered,
        written=written.text,
        sentences=sentences,
        passages=prompt.passages,
        prompt_tokens=prompt.tokens,
        tokens=written.tokens,
        seconds=time.monotonic() - began,
    )


def checked_answer(
    written: str,
    passages: Sequence[RetrievedPassage],
    question: str,
    settings: AnswerSettings,
    score: GroundingScores | None = None,
) -> tuple[str, bool, tuple[CitedSentence, ...]]:
    """What a model wrote, as it may be shown; whether it is an answer; and its sentences."""
    if says_not_there(written):
        return NOT_IN_DOCUMENTS, False, ()
    sentences = check_citations(written, passages, question, least=settings.least, score=score)
    text = rendered_answer(sentences, settings.unsupported)
    refused = settings.unsupported == "refuse" and not all(sentence.supported for sentence in sentences)
    if refused or not text:
        return NOT_IN_DOCUMENTS, False, sentences
    return text, True, sentences


def model_scores(model: Model, between: Callable[[Callable[[], Any]], Any] = lambda work: work()) -> GroundingScores:
    """Scores by how much likelier the passages make a sentence under a model; see ``poise.grounding``.

    Args:
        model: Reads them.
        between: Runs one pass of the model after the other; by default here and now.
    """

    def scores(passages: Sequence[str], question: str, answer: str) -> list[tuple[int, int, float]]:
        measured = ground(model, passages, question, answer, passages=False, between=between)
        return [(sentence.start, sentence.end, sentence.score) for sentence in measured.sentences]

    return scores


def answer_facts(answer: GroundedAnswer) -> dict[str, Any]:
    """An answer as plain values."""
    return {
        "question": answer.question,
        "sought": answer.sought,
        "answer": answer.text,
        "answered": answer.answered,
        "written": answer.written,
        "grounding": answer.grounding,
        "unsupported": answer.unsupported,
        "sentences": [sentence_facts(sentence) for sentence in answer.sentences],
        "passages": [passage_facts(number, passage) for number, passage in enumerate(answer.passages, 1)],
        "sources": list(answer.sources),
        "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.tokens,
        "seconds": round(answer.seconds, 3),
    }


def sentence_facts(sentence: CitedSentence) -> dict[str, Any]:
    """A checked sentence as plain values."""
    return {
        "text": sentence.text,
        "start": sentence.start,
        "end": sentence.end,
        "passages": list(sentence.passages),
        "cited_by": "model" if sentence.by_model else "words",
        "score": round(sentence.score, 4),
        "supported": sentence.supported,
        "problem": sentence.problem,
    }


def passage_facts(number: int, passage: RetrievedPassage) -> dict[str, Any]:
    """A numbered passage as plain values."""
    return {
        "number": number,
        "path": passage.path,
        "title": passage.title,
        "headings": list(passage.headings),
        "page": passage.page,
        "text": passage.text,
        "score": round(passage.score, 4),
        "marks": list(passage.marks),
    }


def _no_answer(question: str, sought: str, seconds: float) -> GroundedAnswer:
    return GroundedAnswer(
        question=question,
        sought=sought,
        text=NOT_IN_DOCUMENTS,
        answered=False,
        written="",
        sentences=(),
        passages=(),
        prompt_tokens=0,
        tokens=0,
        seconds=seconds,
    )
