"""Problems with solutions that are known to be right or wrong: read from data, or written by a prover."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from poise.comparison.scoring import bare_answer, contains_answer
from poise.contrast.rollout import steering_key
from poise.data import Message, Rejections, open_data, turns
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import InvalidData
from poise.knowledge import Knowledge
from poise.knowledge.prompting import fitting_prompt
from poise.model import Model
from poise.progress import track
from poise.steer import Steering
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal

__all__ = ["Problem", "ProverCondition", "Solution", "read_problems", "read_solutions", "write_solutions"]

PROVER_PROMPT = "{problem}\n\nSolve it step by step, and end with a line that has the answer alone."
PASSAGES = 3
_NUMBER_IN_TEXT = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem and its right answer."""

    problem: str
    answer: str


@dataclass(frozen=True, slots=True)
class Solution:
    """A solution of a problem.

    Attributes:
        problem: What is solved.
        text: How.
        right: Whether it is right.
    """

    problem: str
    text: str
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProverCondition:
    """How a prover writes its solutions.

    Attributes:
        name: Name in results, such as ``before``.
        model: The prover, adapter and all.
        steering: Steering that is in force while it writes.
        knowledge: Documents that its prompts get passages from.
    """

    name: str
    model: Model
    steering: Steering | None = None
    knowledge: Knowledge | None = None

    def key(self) -> str:
        """What determines its solutions but the problem."""
        fingerprint = self.model.fingerprint
        header = self.knowledge.header if self.knowledge else None
        documents = header.model_dump_json(include={"files", "encoder", "chunk"}) if header else ""
        digest = hashlib.sha256(documents.encode()).hexdigest()
        return content_key(
            weights=fingerprint.weights, adapter=fingerprint.adapter, steering=steering_key(self.steering), docs=digest
        )


def read_solutions(right: Sequence[str], wrong: Sequence[str], limit: int | None = None) -> list[Solution]:
    """Solutions from data files of conversations: the last answer of each, to its last question.

    Args:
        right: Files of right solutions.
        wrong: Files of wrong ones.
        limit: Most problems, the first of the data; all solutions of a problem stay together.

    Raises:
        InvalidData: a file cannot be read, or a side is empty.
    """
    solutions = [
        Solution(problem, text, is_right)
        for files, is_right in ((right, True), (wrong, False))
        for problem, text in _answered(files)
    ]
    if len({solution.right for solution in solutions}) < 2:
        raise InvalidData("There are solutions of one kind alone; a verifier is measured on right and on wrong ones.")
    problems = list(dict.fromkeys(solution.problem for solution in solutions))[:limit]
    chosen = set(problems)
    return [solution for solution in solutions if solution.problem in chosen]


def _answered(files: Sequence[str]) -> Iterator[tuple[str, str]]:
    if not files:
        return
    for row in Rejections(share=1).sift(open_data(list(files), need="assistant")):
        if answers := turns(row):
            last = answers[-1]
            problem = next((m["content"] for m in reversed(last.history) if m["role"] == "user"), "")
            yield problem.strip(), last.answer.strip()


def read_problems(path: str, limit: int | None = None) -> list[Problem]:
    """Problems with their answers, from JSONL lines of ``question`` (or ``problem``) and ``answer``.

    Raises:
        InvalidData: the file cannot be read, or lines of it are wrong; each with its number.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidData(f"The problems {path} cannot be read: {reason}; give a JSONL file.") from error
    problems, faults = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, answer = row.get("question") or row.get("problem"), row.get("answer")
        except (ValueError, AttributeError):
            faults.append(f"line {number} is no JSON object")
            continue
        if not isinstance(question, str) or not isinstance(answer, str | int | float) or isinstance(answer, bool):
            faults.append(f"line {number} lacks question or answer")
            continue
        problems.append(Problem(question.strip(), str(answer).rpartition("####")[2].strip()))
    if faults or not problems:
        raise InvalidData(f"The problems {path}: {'; '.join(faults[:10]) or 'there are none'}; fix them and try again.")
    return problems[:limit]


def write_solutions(
    problems: Sequence[Problem], condition: ProverCondition, journal: Journal, *, most_tokens: int, batch: int
) -> list[Solution]:
    """Solutions that a prover writes greedily; those that the journal has are taken from it.

    Args:
        problems: What is solved.
        condition: The prover.
        journal: Journal of finished solutions.
        most_tokens: Longest solution.
        batch: Most solutions at once.
    """
    scope = condition.key()
    keys = [content_key(scope=scope, problem=problem.problem, most=most_tokens) for problem in problems]
    fresh = [place for place, key in enumerate(keys) if key not in journal]
    engine = LocalEngine(condition.model, batch=batch)
    sampling = SamplingParams(max_new_tokens=most_tokens, temperature=0.0)
    with track(f"Solving: {condition.name}", total=len(problems)) as advance:
        advance(len(problems) - len(fresh))
        for start in range(0, len(fresh), batch):
            places = fresh[start : start + batch]
            prompts = [_prover_prompt(problems[place].problem, condition, most_tokens) for place in places]
            encoded = [condition.model.encode(prompt) for prompt in prompts]
            generations = engine.generate(encoded, sampling, steering=condition.steering)
            journal.append((keys[place], one.reply.strip()) for place, one in zip(places, generations, strict=True))
            advance(len(places))
    return [
        Solution(problem.problem, journal[key], solves(journal[key], problem.answer))
        for problem, key in zip(problems, keys, strict=True)
    ]


def _prover_prompt(problem: str, condition: ProverCondition, most_tokens: int) -> tuple[Message, ...]:
    text = PROVER_PROMPT.format(problem=problem)
    if condition.knowledge is None:
        return ({"role": "user", "content": text},)
    model = condition.model
    passages = condition.knowledge.search(problem, PASSAGES)
    room = model.generation_window() - most_tokens
    return fitting_prompt(text, passages, lambda messages: len(model.encode(messages).ids), room).messages


def solves(text: str, answer: str) -> bool:
    """Whether a solution ends in the right answer: its last number where that is one, else words that stand in it."""
    answer = answer.strip()
    if not _NUMBER_IN_TEXT.fullmatch(answer):
        return contains_answer(bare_answer(text), answer)
    numbers = _NUMBER_IN_TEXT.findall(bare_answer(text))
    return bool(numbers) and float(numbers[-1].replace(",", "")) == float(answer.replace(",", ""))
