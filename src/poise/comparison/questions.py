"""Evaluation questions with their answers, from JSONL, each line checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.comparison.task import ComparisonTask, Counting
from poise.data import Rejections, open_data
from poise.errors import InvalidData

__all__ = ["EvaluationQuestion", "learnt_questions", "read_questions"]

MOST_FAULTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationQuestion:
    """A question and when its answer is right.

    Attributes:
        question: What is learnt_prompts.
        answers: Answers that are right, or patterns of them; empty where the right answer is that there is none.
        wrong: Answers that are wrong, to choose among by likelihood.
        source: Name of the document that the answer stands in; empty where the row does not say.
    """

    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    source: str = ""


def read_questions(paths: Sequence[str], counts: Counting) -> tuple[EvaluationQuestion, ...]:
    """The questions of JSONL files, in their order.

    Raises:
        InvalidData: a file cannot be read or is empty, or lines of it are wrong; each with its number.
    """
    rows: list[EvaluationQuestion] = []
    faults: list[str] = []
    places: dict[str, str] = {}
    for name in paths:
        path = Path(name).expanduser()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise InvalidData(f"The questions {path} cannot be read: {reason}; give a JSONL file.") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path.name}, line {number}"
            try:
                row = _question(json.loads(line), counts)
            except ValueError as error:
                reason = "it is not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
                faults.append(f"{place}: {reason}")
                continue
            key = " ".join(row.question.casefold().split())
            if key in places:
                faults.append(f"{place}: it asks what {places[key]} asks; a question counts once")
            places.setdefault(key, place)
            rows.append(row)
    if faults:
        more = f"\n  and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        listed = "".join(f"\n  {fault}" for fault in faults[:MOST_FAULTS])
        raise InvalidData(f"The questions have {len(faults)} mistakes; fix them and try again:{listed}{more}")
    if not rows:
        raise InvalidData(f"There are no questions in {', '.join(paths)}; a line is {{question, answer}}.")
    return tuple(rows)


def _question(row: Any, counts: Counting) -> EvaluationQuestion:
    """A line as a question; ``ValueError`` says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError("it is no object with question and answer")
    question, source = row.get("question"), row.get("source") or ""
    if not isinstance(question, str) or not question.strip():
        raise ValueError("question is missing")
    if "answer" not in row:
        raise ValueError("answer is missing; where the right answer is that there is none, it is null")
    answers, wrong = (_texts(row, name) for name in ("answer", "wrong"))
    if not isinstance(source, str):
        raise ValueError("source is not the name of a document")
    if counts == "pattern":
        for pattern in answers:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"answer is not a regular expression ({error})") from None
    if counts == "likelihood" and not (answers and wrong):
        raise ValueError("counts: likelihood needs an answer and a list of wrong ones")
    return EvaluationQuestion(question=question.strip(), answers=answers, wrong=wrong, source=source)


def _texts(row: dict[str, Any], name: str) -> tuple[str, ...]:
    value = row.get(name)
    texts = [] if value is None else value if isinstance(value, list) else [value]
    numbers = [str(text) if isinstance(text, int | float) and not isinstance(text, bool) else text for text in texts]
    if not all(isinstance(text, str) and text.strip() for text in numbers):
        raise ValueError(f"{name} is not a text, or several")
    return tuple(numbers)


def learnt_questions(task: ComparisonTask, questions: Sequence[EvaluationQuestion]) -> int:
    """How many of the questions stand among the training rows, word for word."""
    if task.training is None:
        return 0
    learnt_prompts = set(_prompts(task.training.data, task.training.shape))
    return sum(" ".join(row.question.casefold().split()) in learnt_prompts for row in questions)


def _prompts(data: Sequence[str], shape: str) -> Iterator[str]:
    rejections = Rejections(share=1)
    for row in rejections.sift(open_data(list(data), shape=shape, need="assistant")):
        for message in row.messages:
            if message["role"] == "user":
                yield " ".join(message["content"].casefold().split())
