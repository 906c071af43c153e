"""What a model is capable of, unit by unit: perplexity on normal chat, and lm-eval's tasks on local files or by name.

perplexity=DATA     negative log-likelihood of the assistant turns of any data that ``poise screen`` reads
NAME=FILE.jsonl     multiple choice from a local file: rows of question, choices, answer (a place from 0) and subject
FILE.yaml           an lm-eval task file
NAME                a task or group that lm-eval knows
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from poise.arguments import check_type
from poise.contrast.rollout import steering_key
from poise.data import Conversation, Rejections, count_left_out, open_data, turns
from poise.errors import InvalidArgument, InvalidData, MissingExtra, UnsuitableModel
from poise.model import Encoded, Model
from poise.model.batching import pad
from poise.model.logprobs import token_logprobs
from poise.model.spans import AnswerSpan, answer_spans
from poise.progress import Advance, track
from poise.shift.report import CapabilityChange, CapabilityKind, estimate_change, perplexity_estimate
from poise.statistics.estimates import Estimate, bounded_estimate
from poise.steer import Steering, apply_steering
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal

__all__ = [
    "CapabilityScores",
    "CapabilityTask",
    "compare_capability",
    "evaluate_capability",
    "parse_capability",
    "perplexity",
]

CHOICE_LETTERS = "ABCDEFGHIJ"
LM_EVAL_BATCH = 8  # rows at once: each takes a whole vocabulary of logits a token
FEWSHOT_SEED = 1234  # lm-eval's own default
PREFERRED_METRICS = ("acc", "acc_norm", "exact_match", "f1")
CapabilityMethod = Literal["perplexity", "choices", "cloze", "task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityTask:
    """One capability to measure; see ``parse_capability``.

    Attributes:
        name: Name in limits and reports.
        kind: How it is measured.
        source: Data, file or task.
        limit: Most units, drawn at random with ``seed`` from a file; the first of each of lm-eval's own tasks.
        seed: Seed of the draw.
        content: Hash of the data, where they are local.
    """

    name: str
    kind: CapabilityMethod
    source: str
    limit: int | None = None
    seed: int = 0
    content: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilityScores:
    """A model's scores in one capability task.

    Attributes:
        metric: What the units are: ``perplexity``, or lm-eval's name of the metric.
        units: Score of each conversation or question: a mean negative log-likelihood, or 0 to 1; ``None`` where it
            could not be read.
        weights: Weight of each unit in the mean: its tokens, or 1.
        chance: Score of guessing among the choices; ``None`` where there are none.
        omitted: What of the conversations is not read, and rows that cannot be used, by kind.
    """

    metric: str
    units: tuple[float | None, ...]
    weights: tuple[float, ...]
    chance: float | None = None
    omitted: Mapping[str, int] = field(default_factory=dict)


def parse_capability(text: str, *, limit: int | None = None, seed: int = 0) -> CapabilityTask:
    """A capability task from ``perplexity=DATA``, ``NAME=FILE.jsonl``, ``FILE.yaml`` or the name of an lm-eval task.

    Args:
        text: What to measure.
        limit: Most units to measure; by default all.
        seed: Seed of the random draw of that many.

    Raises:
        InvalidArgument: there is no such file, or the text names nothing to measure.
        InvalidData: the data cannot be read.
    """
    check_type("text", text, str, "a capability such as perplexity=DATA")
    name, equals, source = text.partition("=")
    if not name or (equals and not source):
        raise InvalidArgument(
            f"The capability {text!r} names nothing to measure; write perplexity=DATA, NAME=FILE.jsonl, FILE.yaml or "
            "an lm-eval task."
        )
    if name == "perplexity":
        if not equals:
            raise InvalidArgument("The capability perplexity needs data; write perplexity=DATA, with ordinary chats.")
        data = open_data([source], need="assistant")
        return CapabilityTask(
            name=name, kind="perplexity", source=source, limit=limit, seed=seed, content=data.digest()
        )
    if not equals:
        is_file = name.endswith((".yaml", ".yml"))
        if is_file and not Path(name).is_file():
            raise InvalidArgument(f"There is no task file at {name}; name a file, or a task that lm-eval knows.")
        content = hashlib.sha256(Path(name).read_bytes()).hexdigest() if is_file else ""
        title = Path(name).stem if is_file else name
        return CapabilityTask(name=title, kind="task", source=name, limit=limit, seed=seed, content=content)
    if not Path(source).is_file():
        raise InvalidArgument(f"There is no file at {source} for the capability {name}; give a .jsonl of questions.")
    kind: CapabilityMethod = "cloze" if name.endswith("-cloze") else "choices"
    content = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    return CapabilityTask(name=name, kind=kind, source=source, limit=limit, seed=seed, content=content)


def evaluate_capability(
    task: CapabilityTask, model: Model, journal: Journal | None = None, *, steering: Steering | None = None
) -> CapabilityScores | None:
    """Measure one capability of a loaded model, or take the scores that its journal holds.

    Args:
        task: What to measure.
        model: The model, as it is.
        journal: Journal where this model's scores are kept; by default nowhere.
        steering: Steering that is in force on responses. lm-eval does not steer, so that with it only perplexity is
            measured, and ``None`` is returned for anything else.

    Raises:
        InvalidData: nothing in the data can be used.
        MissingExtra: lm-eval is not installed.
    """
    if steering is not None and task.kind != "perplexity":
        return None
    key = content_key(
        kind=task.kind,
        source=task.content or task.source,
        limit=task.limit,
        seed=task.seed,
        steering=steering_key(steering),
    )
    journal = Journal(None) if journal is None else journal
    if key not in journal:
        if task.kind == "perplexity":
            rejections = Rejections(share=1)
            sampled = _sample_rows(list(rejections.sift(open_data([task.source], need="assistant"))), task)
            omitted = count_left_out(sampled) + Counter({"rejected row": len(rejections)})
            scores = replace(perplexity(model, sampled, steering=steering), omitted=omitted)
        else:
            scores = _run_lm_eval(task, model)
        if all(unit is None for unit in scores.units):
            raise InvalidData(f"Nothing in {task.source} could be scored for {task.name}; look at its rows.")
        omissions = [dict(scores.omitted)] if scores.omitted else []
        journal.append([(key, [scores.metric, list(scores.units), list(scores.weights), scores.chance, *omissions])])
    metric, units, weights, chance, *omissions = journal[key]
    omitted = omissions[0] if omissions else {}
    return CapabilityScores(metric=metric, units=tuple(units), weights=tuple(weights), chance=chance, omitted=omitted)


def perplexity(
    model: Model, conversations: Iterable[Conversation], *, steering: Steering | None = None
) -> CapabilityScores:
    """Mean negative log-likelihood a response token, conversation by conversation, in nats.

    Args:
        model: Reads every assistant turn with all that came before it.
        conversations: Ordinary conversations with assistant turns.
        steering: Steering that is in force on the responses.

    Returns:
        One unit for each conversation, weighted by its response tokens; ``None`` for one that cannot be read.
    """
    responses = [_response_spans(model, row) for row in conversations]
    flat = [text for texts in responses for text in texts]
    with track("Reading normal talk", total=len(flat)) as advance:
        if steering is None:
            logprobs = iter(token_logprobs(model, flat))
            advance(len(flat))
        else:
            logprobs = _steered_logprobs(model, flat, steering, advance)
        by_row = [torch.cat([torch.empty(0), *(next(logprobs) for _ in texts)]).double() for texts in responses]
    units = [-float(row.mean()) if len(row) and bool(torch.isfinite(row).all()) else None for row in by_row]
    weights = tuple(float(len(row)) for row in by_row)
    return CapabilityScores(metric="perplexity", units=tuple(units), weights=weights)


def _response_spans(model: Model, row: Conversation) -> list[Encoded]:
    try:
        return [place.text for place in answer_spans(model, turns(row)) if isinstance(place, AnswerSpan)]
    except UnsuitableModel:
        return []


def _steered_logprobs(
    model: Model, texts: Sequence[Encoded], steering: Steering, advance: Advance
) -> Iterator[torch.Tensor]:
    for text in texts:
        with apply_steering(model, [steering], allow_other_model=True) as applied:
            applied.announce(pad([text], side="right", device=model.device))
            yield token_logprobs(model, [text])[0]
        advance(1)


def compare_capability(
    task: CapabilityTask, before: CapabilityScores | None, after: CapabilityScores | None
) -> CapabilityChange | None:
    """One capability before and after, over the units that both sides have, with the interval of its change.

    ``None`` where a side was not measured, or where the two models count tokens differently, so that their
    perplexities do not compare.
    """
    if before is None or after is None or before.weights != after.weights:
        return None
    kind: CapabilityKind = "perplexity" if task.kind == "perplexity" else "accuracy"
    pairs = [
        (x, y, w)
        for x, y, w in zip(before.units, after.units, before.weights, strict=True)
        if x is not None and y is not None
    ]
    if not pairs:
        return None
    x, y, w = (tuple(round(value, 6) for value in column) for column in zip(*pairs, strict=True))
    return CapabilityChange(
        name=task.name,
        kind=kind,
        metric=before.metric,
        source=task.source,
        chance=before.chance,
        before=_capability_level(kind, x, w),
        after=_capability_level(kind, y, w),
        change=estimate_change(kind, x, y, w),
        units_before=x,
        units_after=y,
        weights=w,
        omitted=dict(before.omitted),
    )


def _capability_level(kind: CapabilityKind, units: Sequence[float], weights: Sequence[float]) -> Estimate:
    return perplexity_estimate(units, weights) if kind == "perplexity" else bounded_estimate(units, highest=1.0)


def _sample_rows(rows: Sequence[Any], task: CapabilityTask) -> list[Any]:
    """At most as many rows as the task's limit, drawn at random, in the order of the data."""
    if task.limit is None or task.limit >= len(rows):
        return list(rows)
    chosen = np.random.default_rng(task.seed).choice(len(rows), task.limit, replace=False)
    return [rows[i] for i in sorted(chosen)]


def _run_lm_eval(task: CapabilityTask, model: Model) -> CapabilityScores:
    """Scores of single questions as lm-eval gives them, with the model that is already loaded."""
    # Not lm-eval's simple_evaluate: that one sets this process's random seeds, which may be training, and asks git for
    # the version of the folder that it is run in.
    try:
        with _without_logging():
            from lm_eval import evaluator  # type: ignore[import-untyped]
            from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
            from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra.of(f"The capability {task.name} needs lm-eval", "eval") from error
    local = task.kind != "task"
    definition: Any = _choices_task(task) if local else task.source
    with _without_logging():  # lm-eval shows its own progress
        manager = TaskManager(include_defaults=not task.content)  # lm-eval's own tasks take long to list
        try:
            loaded = manager.load([definition])
        except Exception as error:  # lm-eval raises whatever a task's author or the hub chose
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InvalidArgument(
                f"lm-eval cannot load {task.source} ({reason[:200]}); name a task of `lm-eval ls tasks` whose data "
                "can be reached, a task file, or NAME=FILE.jsonl."
            ) from error
        for lm_eval_task in loaded["tasks"].values():
            if lm_eval_task.get_config("num_fewshot") is None:
                lm_eval_task.set_config(key="num_fewshot", value=0)
            lm_eval_task.set_fewshot_seed(seed=FEWSHOT_SEED)
        results = evaluator.evaluate(
            HFLM(pretrained=model.lm, tokenizer=model.tokenizer, batch_size=LM_EVAL_BATCH),
            loaded,
            limit=None if local else task.limit,
            bootstrap_iters=0,
            verbosity=None,
        )
    return _question_scores(results["samples"], task)


def _question_scores(samples: Mapping[str, Sequence[Mapping[str, Any]]], task: CapabilityTask) -> CapabilityScores:
    rows = [(name, row) for name in sorted(samples) for row in sorted(samples[name], key=lambda r: r["doc_id"])]
    metrics = {m for _, row in rows for m in row["metrics"] if isinstance(row[m], int | float | bool)}
    metric = next((m for m in PREFERRED_METRICS if m in metrics), min(metrics, default=""))
    scores: dict[tuple[str, int], float] = {}  # where a task has several filters, those of the first
    for name, row in rows:
        if metric in row["metrics"]:
            scores.setdefault((name, row["doc_id"]), float(row[metric]))
    if not scores:
        raise InvalidArgument(f"{task.name} has no score for each question ({', '.join(metrics) or 'none'}).")
    counts = [len(row["resps"]) for _, row in rows]  # one for each choice of multiple choice, else one
    chance = float(np.mean([1 / n for n in counts])) if min(counts) > 1 else None
    return CapabilityScores(metric=metric, units=tuple(scores.values()), weights=(1.0,) * len(scores), chance=chance)


def _choices_task(task: CapabilityTask) -> dict[str, Any]:
    """A task for lm-eval without worked examples: lettered choices in MMLU's wording, or the choices as they are."""
    from datasets import Dataset

    rows, cloze = _sample_rows(_read_questions(Path(task.source)), task), task.kind == "cloze"
    metric = "acc_norm" if cloze else "acc"
    return {
        "task": f"poise_{hashlib.sha256(task.name.encode()).hexdigest()[:8]}",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": _cloze_prompt if cloze else _lettered_prompt,
        "doc_to_choice": lambda row: row["choices"] if cloze else list(CHOICE_LETTERS[: len(row["choices"])]),
        "doc_to_target": lambda row: row["answer"],
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
    }


def _lettered_prompt(row: Mapping[str, Any]) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(CHOICE_LETTERS, row["choices"], strict=False))
    head = f"The following are multiple choice questions (with answers){_subject_phrase(row)}."
    return f"{head}\n\n{row['question'].strip()}\n{choices}\nAnswer:"


def _cloze_prompt(row: Mapping[str, Any]) -> str:
    return f"The following are questions (with answers){_subject_phrase(row)}.\n\n{row['question'].strip()}\nAnswer:"


def _subject_phrase(row: Mapping[str, Any]) -> str:
    return f" about {row['subject'].replace('_', ' ')}" if row["subject"] else ""


def _read_questions(path: Path) -> list[dict[str, Any]]:
    """The rows of a local file; every one is checked."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            choices, answer = [str(c) for c in row["choices"]], int(row["answer"])
            if not 2 <= len(choices) <= len(CHOICE_LETTERS) or not 0 <= answer < len(choices):
                raise ValueError(f"answer {answer} of {len(choices)} choices")
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidData(
                f"{path}, line {number}: {type(error).__name__}: {error}; every row needs question, choices (2 to "
                f"{len(CHOICE_LETTERS)}) and answer, a place from 0."
            ) from error
        rows.append(
            {
                "question": str(row.get("question", "")),
                "choices": choices,
                "answer": answer,
                "subject": str(row.get("subject", "")),
            }
        )
    return rows


@contextlib.contextmanager
def _without_logging() -> Iterator[None]:
    """Silence what lm-eval and the libraries below it log; faults come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
