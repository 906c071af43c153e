"""What a model can do, unit by unit: perplexity on normal chat, and lm-eval's tasks on local files or by name.

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
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch

from poise.contrast.rollout import steering_key
from poise.data import Conversation, open_data, turns
from poise.errors import InvalidArgument, InvalidData, MissingExtra, UnsuitableModel
from poise.model import Encoded, Model
from poise.model.batching import pad
from poise.model.logprobs import token_logprobs
from poise.model.spans import Place, places
from poise.progress import Advance, track
from poise.shift.report import Capability, Kind, change_of
from poise.statistics.estimates import Estimate, bootstrap
from poise.steer import Steering
from poise.steer import steering as steered
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal

__all__ = ["Ability", "Scores", "compare", "evaluate", "parse", "perplexity"]

LETTERS = "ABCDEFGHIJ"
ROWS_AT_ONCE = 8  # of lm-eval: each takes a whole vocabulary of logits a token
UNSEEDED = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"))  # of this process, which may train
PREFERRED = ("acc", "acc_norm", "exact_match", "f1")


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing to measure.

    Attributes:
        name: As limits and reports call it.
        kind: How it is measured.
        source: Data, file or task.
        limit: Most units, drawn at random with ``seed`` from a file; the first of each of lm-eval's own tasks.
        seed: Of the draw.
        content: Hash of the data, where they are local.
    """

    name: str
    kind: Literal["perplexity", "choices", "cloze", "task"]
    source: str
    limit: int | None = None
    seed: int = 0
    content: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """An ability's units, ``None`` where one could not be read: a mean negative log-likelihood, or 0 to 1.

    ``chance`` is what guessing among the choices scores.
    """

    metric: str
    units: tuple[float | None, ...]
    weights: tuple[float, ...]
    chance: float | None = None


def parse(text: str, *, limit: int | None = None, seed: int = 0) -> Ability:
    """What a user writes after ``--capability``.

    Raises:
        InvalidArgument: there is no such file, or the text says nothing.
        InvalidData: the data cannot be read.
    """
    name, given, source = text.partition("=")
    if not name or (given and not source):
        raise InvalidArgument(
            f"--capability {text!r} says nothing; write perplexity=DATA, NAME=FILE.jsonl, FILE.yaml or an lm-eval task."
        )
    if name == "perplexity":
        if not given:
            raise InvalidArgument(
                "--capability perplexity needs data: perplexity=DATA, conversations as they usually are."
            )
        data = open_data([source], need="assistant")
        return Ability(name, "perplexity", source, limit, seed, data.digest())
    if not given:
        is_file = name.endswith((".yaml", ".yml"))
        if is_file and not Path(name).is_file():
            raise InvalidArgument(f"There is no task file at {name}; name a file, or a task that lm-eval knows.")
        content = hashlib.sha256(Path(name).read_bytes()).hexdigest() if is_file else ""
        return Ability(Path(name).stem if is_file else name, "task", name, limit, seed, content)
    if not Path(source).is_file():
        raise InvalidArgument(f"There is no file at {source} for --capability {name}; give a .jsonl file of questions.")
    kind: Literal["choices", "cloze"] = "cloze" if name.endswith("-cloze") else "choices"
    return Ability(name, kind, source, limit, seed, hashlib.sha256(Path(source).read_bytes()).hexdigest())


def evaluate(ability: Ability, model: Model, kept: Journal, *, steering: Steering | None = None) -> Scores | None:
    """Measure one ability of a loaded model, or take what the journal, which is this model's own, holds of it.

    Args:
        ability: To be measured.
        model: As it is.
        kept: Where scores are kept.
        steering: In force on responses; ``None`` comes back for what lm-eval measures, which does not steer.

    Raises:
        InvalidData: nothing in the data can be used.
        MissingExtra: lm-eval is not installed.
    """
    if steering is not None and ability.kind != "perplexity":
        return None
    key = content_key(
        kind=ability.kind,
        source=ability.content or ability.source,
        limit=ability.limit,
        seed=ability.seed,
        steering=steering_key(steering),
    )
    if key not in kept:
        if ability.kind == "perplexity":
            scores = perplexity(model, _drawn(_conversations(ability), ability), steering=steering)
        else:
            scores = _lm_eval(ability, model)
        if all(unit is None for unit in scores.units):
            raise InvalidData(f"Nothing in {ability.source} could be scored for {ability.name}; look at its rows.")
        kept.append([(key, [scores.metric, list(scores.units), list(scores.weights), scores.chance])])
    metric, units, weights, chance = kept[key]
    return Scores(metric, tuple(units), tuple(weights), chance)


def perplexity(model: Model, conversations: Iterable[Conversation], *, steering: Steering | None = None) -> Scores:
    """Mean negative log-likelihood a response token, conversation by conversation, in nats.

    Args:
        model: Reads every assistant turn with all that came before it.
        conversations: As people have them.
        steering: In force on the responses.

    Returns:
        A unit a conversation, weighted by its response tokens; ``None`` for one that cannot be read.
    """
    found = [_placed(model, row) for row in conversations]
    flat = [text for texts in found for text in texts]
    with track("Reading normal talk", total=len(flat)) as advance:
        if steering is None:
            read = iter(token_logprobs(model, flat))
            advance(len(flat))
        else:
            read = _steered_logprobs(model, flat, steering, advance)
        sides = [torch.cat([torch.empty(0), *(next(read) for _ in texts)]).double() for texts in found]
    units = [-float(side.mean()) if len(side) and bool(torch.isfinite(side).all()) else None for side in sides]
    return Scores("perplexity", tuple(units), tuple(float(len(side)) for side in sides))


def _placed(model: Model, row: Conversation) -> list[Encoded]:
    try:
        return [place.text for place in places(model, turns(row)) if isinstance(place, Place)]
    except UnsuitableModel:
        return []


def _steered_logprobs(
    model: Model, texts: Sequence[Encoded], steering: Steering, advance: Advance
) -> Iterator[torch.Tensor]:
    for text in texts:
        with steered(model, [steering], allow_other_model=True) as applied:
            applied.announce(pad([text], side="right", device=model.device))
            yield token_logprobs(model, [text])[0]
        advance(1)


def compare(ability: Ability, before: Scores | None, after: Scores | None) -> Capability | None:
    """One ability before and after, over the units that both sides have, with the interval of its change.

    Nothing where a side was not measured, or where the two count tokens differently: those perplexities do not compare.
    """
    if before is None or after is None or before.weights != after.weights:
        return None
    kind: Kind = "perplexity" if ability.kind == "perplexity" else "accuracy"
    both = [
        (x, y, w)
        for x, y, w in zip(before.units, after.units, before.weights, strict=True)
        if x is not None and y is not None
    ]
    if not both:
        return None
    x, y, w = (tuple(round(value, 6) for value in side) for side in zip(*both, strict=True))
    return Capability(
        name=ability.name,
        kind=kind,
        metric=before.metric,
        source=ability.source,
        chance=before.chance,
        before=_level(kind, x, w),
        after=_level(kind, y, w),
        change=change_of(kind, x, y, w),
        units_before=x,
        units_after=y,
        weights=w,
    )


def _level(kind: Kind, units: Sequence[float], weights: Sequence[float]) -> Estimate:
    x, w = np.asarray(units, dtype=float), np.asarray(weights, dtype=float)

    def mean(i: Any) -> float:
        value = float((x[i] * w[i]).sum() / w[i].sum())
        return math.exp(value) if kind == "perplexity" else value

    return bootstrap(mean, len(x))


def _conversations(ability: Ability) -> list[Conversation]:
    return [row for row in open_data([ability.source], need="assistant") if isinstance(row, Conversation)]


def _drawn(rows: Sequence[Any], ability: Ability) -> list[Any]:
    """At most as many as the limit, drawn at random, in the order of the data."""
    if ability.limit is None or ability.limit >= len(rows):
        return list(rows)
    chosen = np.random.default_rng(ability.seed).choice(len(rows), ability.limit, replace=False)
    return [rows[i] for i in sorted(chosen)]


def _lm_eval(ability: Ability, model: Model) -> Scores:
    """Scores of single questions as lm-eval gives them, with the model that is already loaded."""
    try:
        with _quiet():
            from lm_eval import evaluator  # type: ignore[import-untyped]
            from lm_eval.models.huggingface import HFLM  # type: ignore[import-untyped]
            from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtra(
            f'--capability {ability.name} needs lm-eval; install it with pip install "poise[eval]".'
        ) from error
    local = ability.kind != "task"
    task: Any = _choices_task(ability) if local else ability.source
    # lm-eval shows its own progress; it also asks git for the version of the folder that it is run in.
    with _quiet(), patch.object(evaluator, "get_git_commit_hash", return_value=""):
        manager = TaskManager(include_defaults=not ability.content)  # its own take long to list
        try:
            manager.load([task])
        except Exception as error:  # lm-eval raises whatever a task's author or the hub chose
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InvalidArgument(
                f"lm-eval cannot load {ability.source} ({first[:200]}); name a task of `lm-eval ls tasks` whose data "
                "can be reached, a task file, or NAME=FILE.jsonl."
            ) from error
        found = evaluator.simple_evaluate(
            HFLM(pretrained=model.lm, tokenizer=model.tokenizer, batch_size=ROWS_AT_ONCE),
            tasks=[task],
            task_manager=manager,
            limit=None if local else ability.limit,
            bootstrap_iters=0,
            **UNSEEDED,
        )
    return _of_samples(found["samples"], ability)


def _of_samples(samples: Mapping[str, Sequence[Mapping[str, Any]]], ability: Ability) -> Scores:
    rows = [(task, row) for task in sorted(samples) for row in sorted(samples[task], key=lambda r: r["doc_id"])]
    metrics = {m for _, row in rows for m in row["metrics"] if isinstance(row[m], int | float | bool)}
    metric = next((m for m in PREFERRED if m in metrics), min(metrics, default=""))
    firsts: dict[tuple[str, int], float] = {}  # of several filters, the first
    for task, row in rows:
        if metric in row["metrics"]:
            firsts.setdefault((task, row["doc_id"]), float(row[metric]))
    if not firsts:
        raise InvalidArgument(f"{ability.name} has no score for each question ({', '.join(metrics) or 'none'}).")
    counts = [len(row["resps"]) for _, row in rows]  # of multiple choice one a choice, else one
    chance = float(np.mean([1 / n for n in counts])) if min(counts) > 1 else None
    return Scores(metric, tuple(firsts.values()), (1.0,) * len(firsts), chance)


def _choices_task(ability: Ability) -> dict[str, Any]:
    """Questions without worked examples: lettered choices in the wording of MMLU, or the choices as they are."""
    from datasets import Dataset

    rows, cloze = _drawn(_questions(Path(ability.source)), ability), ability.kind == "cloze"
    metric = "acc_norm" if cloze else "acc"
    return {
        "task": f"poise_{hashlib.sha256(ability.name.encode()).hexdigest()[:8]}",
        "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": _bare if cloze else _lettered,
        "doc_to_choice": lambda row: row["choices"] if cloze else list(LETTERS[: len(row["choices"])]),
        "doc_to_target": lambda row: row["answer"],
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
    }


def _lettered(row: Mapping[str, Any]) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=False))
    head = f"The following are multiple choice questions (with answers){_about(row)}."
    return f"{head}\n\n{row['question'].strip()}\n{choices}\nAnswer:"


def _bare(row: Mapping[str, Any]) -> str:
    return f"The following are questions (with answers){_about(row)}.\n\n{row['question'].strip()}\nAnswer:"


def _about(row: Mapping[str, Any]) -> str:
    return f" about {row['subject'].replace('_', ' ')}" if row["subject"] else ""


def _questions(path: Path) -> list[dict[str, Any]]:
    """The rows of a local file, all of them sound."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            choices, answer = [str(c) for c in row["choices"]], int(row["answer"])
            if not 2 <= len(choices) <= len(LETTERS) or not 0 <= answer < len(choices):
                raise ValueError(f"answer {answer} of {len(choices)} choices")
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidData(
                f"{path}, line {number}: {type(error).__name__}: {error}; every row needs question, choices (2 to "
                f"{len(LETTERS)}) and answer, a place from 0."
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
def _quiet() -> Iterator[None]:
    """Without what lm-eval and the libraries below it log; their own words about a fault come as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
