"""The questions of a task, asked of one arm: prompts, answers, citations; each batch kept as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from poise.comparison.questions import EvaluationQuestion
from poise.comparison.scoring import bare_answer, declines, right_by_text
from poise.comparison.task import ComparisonTask
from poise.data import Message
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.knowledge import AnswerSettings, Knowledge, RetrievedPassage, model_scores
from poise.knowledge.answering import checked_answer
from poise.knowledge.prompting import fitting_prompt
from poise.model import Encoded, Model
from poise.model.logprobs import token_logprobs
from poise.progress import track
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal

__all__ = ["ArmAnswer", "ArmPrompt", "answer_by_arm", "arm_prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmAnswer:
    """One answer of one arm.

    Attributes:
        text: What the model wrote; by likelihood the choice that it finds likeliest.
        right: 1 or 0; ``None`` where a judge is still to say, or said nothing.
        declined: Whether it is that there is no answer.
        tokens: Tokens that were written.
        prompt_tokens: Tokens of the prompt.
        seconds: Time of its batch, shared out among the answers of the batch.
        sentences: Sentences of the answer; 0 without documents.
        cited: How many of them the model cited passages for.
        supported: How many the passages carry.
        cited_supported: How many of those that are cited their passages carry.
        retrieved: Whether the document that the question names is among the passages; ``None`` where it names none.
    """

    text: str
    right: float | None
    declined: bool
    tokens: int
    prompt_tokens: int
    seconds: float
    sentences: int = 0
    cited: int = 0
    supported: int = 0
    cited_supported: int = 0
    retrieved: bool | None = None


@dataclass(frozen=True, slots=True)
class ArmPrompt:
    """A question as an arm asks it.

    Attributes:
        messages: What the model is given.
        passages: Passages in it.
    """

    messages: tuple[Message, ...]
    passages: tuple[RetrievedPassage, ...] = ()


def arm_prompt(question: str, task: ComparisonTask, model: Model, knowledge: Knowledge | None, most: int) -> ArmPrompt:
    """A question under the task's instruction, with passages where there are documents.

    Args:
        question: What is asked.
        task: Instruction, and how passages are found.
        model: Model whose window takes the prompt beside ``most`` tokens of an answer.
        knowledge: Documents; ``None`` for an arm without.
        most: Longest answer.

    Raises:
        InvalidArgument: the question does not fit the window.
    """
    instruction = task.answers.instruction
    history: tuple[Message, ...] = ({"role": "system", "content": instruction},) if instruction else ()
    if knowledge is None:
        return ArmPrompt((*history, {"role": "user", "content": question}))
    passages = knowledge.search(question, task.retrieval.top, task.retrieval.mode)
    room = model.generation_window() - most
    prompt = fitting_prompt(question, passages, lambda messages: len(model.encode(messages).ids), room, history)
    return ArmPrompt(prompt.messages, prompt.passages)


def answer_by_arm(
    questions: Sequence[EvaluationQuestion],
    task: ComparisonTask,
    model: Model,
    knowledge: Knowledge | None,
    journal: Journal,
    scope: str,
    what: str,
) -> list[ArmAnswer]:
    """Answers to all questions; those that the journal has are taken from it.

    Args:
        questions: What is asked.
        task: How it is answered and counted.
        model: The arm's model, adapter and all.
        knowledge: Its documents; ``None`` for an arm without.
        journal: Journal of finished answers.
        scope: Key of the arm and of everything that determines its answers but the question.
        what: Name of the work, for progress.
    """
    keys = [content_key(scope=scope, question=asdict(row)) for row in questions]
    fresh = [place for place, key in enumerate(keys) if key not in journal]
    size = task.answers.batch
    with track(what, total=len(questions)) as advance:
        advance(len(questions) - len(fresh))
        for start in range(0, len(fresh), size):
            places = fresh[start : start + size]
            answers = _answer_batch([questions[place] for place in places], task, model, knowledge)
            journal.append((keys[place], asdict(answer)) for place, answer in zip(places, answers, strict=True))
            advance(len(places))
    return [ArmAnswer(**journal[key]) for key in keys]


def _answer_batch(
    rows: Sequence[EvaluationQuestion], task: ComparisonTask, model: Model, knowledge: Knowledge | None
) -> list[ArmAnswer]:
    began = time.monotonic()
    most = task.answers.max_new_tokens
    prompts = [arm_prompt(row.question, task, model, knowledge, most) for row in rows]
    encoded = [model.encode(prompt.messages) for prompt in prompts]
    if task.counts == "likelihood":
        texts = [_likeliest(row, prompt.messages, model) for row, prompt in zip(rows, prompts, strict=True)]
        counts = [0] * len(rows)
    else:
        texts, counts = _write_answers(encoded, task, model)
    seconds = (time.monotonic() - began) / len(rows)
    return [
        ArmAnswer(
            text=text,
            right=_rightness(text, row, task),
            declined=declines(bare_answer(text)),
            tokens=count,
            prompt_tokens=len(ids.ids),
            seconds=round(seconds, 4),
            **_citation_counts(text, row, prompt, task, model),
        )
        for row, prompt, ids, text, count in zip(rows, prompts, encoded, texts, counts, strict=True)
    ]


def _write_answers(encoded: Sequence[Encoded], task: ComparisonTask, model: Model) -> tuple[list[str], list[int]]:
    engine = LocalEngine(model, batch=task.answers.batch)
    sampling = SamplingParams(max_new_tokens=task.answers.max_new_tokens, temperature=0.0)
    generations = engine.generate(list(encoded), sampling)
    return [generation.reply.strip() for generation in generations], [len(generation.ids) for generation in generations]


def _rightness(text: str, row: EvaluationQuestion, task: ComparisonTask) -> float | None:
    if task.counts == "judge":
        return None
    if task.counts == "likelihood":
        return float(text in row.answers)
    return float(right_by_text(text, row, task.counts))


def _likeliest(row: EvaluationQuestion, messages: Sequence[Message], model: Model) -> str:
    """The choice whose tokens are the likeliest on average."""
    choices = [*row.answers, *row.wrong]
    logprobs = token_logprobs(model, [model.encode(messages, choice) for choice in choices])
    means = torch.stack([values.mean() for values in logprobs])
    return choices[int(means.argmax())]


def _citation_counts(
    text: str, row: EvaluationQuestion, prompt: ArmPrompt, task: ComparisonTask, model: Model
) -> dict[str, Any]:
    """What of an answer the passages carry, by the checks of `poise ask`."""
    if not prompt.passages or task.counts == "likelihood":
        return {}
    settings = AnswerSettings(least=task.retrieval.least)
    score = model_scores(model) if task.retrieval.grounding == "model" else None
    sentences = checked_answer(text, prompt.passages, row.question, settings, score)[2]
    cited = [sentence for sentence in sentences if sentence.by_model]
    return {
        "sentences": len(sentences),
        "cited": len(cited),
        "supported": sum(sentence.supported for sentence in sentences),
        "cited_supported": sum(sentence.supported for sentence in cited),
        "retrieved": _has_source(row.source, prompt.passages) if row.source else None,
    }


def _has_source(source: str, passages: Sequence[RetrievedPassage]) -> bool:
    return any(passage.path == source or passage.path.endswith(f"/{source}") for passage in passages)
