"""Every arm of a task, measured: one model in memory at a time, and each piece of work kept when it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from poise.comparison.answering import ArmAnswer, answer_by_arm
from poise.comparison.arms import ARMS, ArmName
from poise.comparison.character import TraitReadings, read_character
from poise.comparison.questions import EvaluationQuestion
from poise.comparison.result import TrainingCost
from poise.comparison.scoring import judge_answers
from poise.comparison.task import ComparisonTask
from poise.judge import Judge
from poise.judge.factory import trait_judge
from poise.judge.yes_no import yes_no_reader
from poise.knowledge import Knowledge
from poise.model import Model
from poise.shift.capability import CapabilityScores, CapabilityTask, evaluate_capability, parse_capability
from poise.shift.evaluation import free_memory, load_tuned_model
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal
from poise.train import TrainResult, train
from poise.vector import PersonaVector

__all__ = ["ArmRun", "Measurements", "measure_arms"]

ANSWERS_FILE, READINGS_FILE, VERDICTS_FILE = "answers.jsonl", "readings.jsonl", "verdicts.jsonl"
Loader = Callable[[str], Model]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """One arm in one training run.

    Attributes:
        seed: Seed of its training; ``None`` for an arm without.
        answers: Answers in the order of the questions.
        traits: Readings by trait.
        capability: Scores in the order of the tasks; ``None`` where one was not measured.
    """

    seed: int | None
    answers: tuple[ArmAnswer, ...]
    traits: Mapping[str, TraitReadings]
    capability: tuple[CapabilityScores | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Every arm's runs, and what training cost.

    Attributes:
        weights: Fingerprint of the base.
        arms: Runs by arm.
        training: Cost by arm, for those that are trained.
        tasks: Capability tasks.
    """

    weights: str
    arms: Mapping[ArmName, tuple[ArmRun, ...]]
    training: Mapping[ArmName, TrainingCost]
    tasks: tuple[CapabilityTask, ...]


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all arms are measured on."""

    task: ComparisonTask
    questions: Sequence[EvaluationQuestion]
    vectors: Sequence[PersonaVector]
    knowledge: Knowledge | None
    folder: Path
    judges: Mapping[str, Judge]
    capability: tuple[CapabilityTask, ...]
    answers: Journal = field(init=False)
    readings: Journal = field(init=False)

    def __post_init__(self) -> None:
        for name, file in (("answers", ANSWERS_FILE), ("readings", READINGS_FILE)):
            object.__setattr__(self, name, Journal(self.folder / file))

    def documents_key(self) -> str:
        """What the documents are known by: the content of every file and how it was read."""
        header = self.knowledge.header if self.knowledge else None
        return header.model_dump_json(include={"files", "encoder", "chunk"}) if header else ""

    def scope(self, arm: ArmName, weights: str) -> str:
        """What determines an arm's work but the question: weights, documents, and how answers are made and counted."""
        documents = self.documents_key() if ARMS[arm].retrieves else ""
        retrieval = self.task.retrieval.model_dump() if ARMS[arm].retrieves else {}
        return content_key(
            weights=weights,
            documents=documents,
            retrieval=retrieval,
            answers=self.task.answers.model_dump(),
            counts=self.task.counts,
            dtype=self.task.dtype,
        )


def measure_arms(
    task: ComparisonTask,
    questions: Sequence[EvaluationQuestion],
    vectors: Sequence[PersonaVector],
    knowledge: Knowledge | None,
    folder: Path,
    load: Loader,
) -> Measurements:
    """Measure all arms of a task; what ``folder`` holds of an earlier run is not done again.

    Args:
        task: What is compared.
        questions: Its evaluation questions.
        vectors: Vectors of the traits that are read, one for each.
        knowledge: Documents of the arms that look up.
        folder: Folder of finished work and adapters.
        load: Loads a model by name.

    Raises:
        OtherModel: a vector was not computed on the model.
        InvalidArgument: a question does not fit the model's window.
        TrainingFailed: gradients are NaN or infinite.
    """
    judged = vectors if task.traits.answered else ()
    judges = {v.name: trait_judge(task.traits.judge, v.header.trait, cache=folder, local=load) for v in judged}
    tasks = tuple(parse_capability(text, limit=task.capability_limit) for text in task.capability)
    bench = _Bench(task, questions, vectors, knowledge, folder, judges, tasks)
    arms = task.measured_arms
    runs: dict[ArmName, list[ArmRun]] = {arm: [] for arm in arms}
    model = load(task.model)
    for vector in vectors:
        vector.check_model(model)
    weights = model.fingerprint.weights
    _measure_model(bench, model, weights, None, [arm for arm in arms if not ARMS[arm].trains], runs)
    del model
    free_memory()
    costs: dict[ArmName, TrainingCost] = {}
    for vaccinated in (False, True):
        group: list[ArmName] = [arm for arm in arms if ARMS[arm].trains and ARMS[arm].vaccinated == vaccinated]
        if group:
            cost = _measure_trained(bench, weights, group, vaccinated, runs, load)
            costs |= dict.fromkeys(group, cost)
    if task.counts == "judge":
        runs = _judge_runs(task, questions, runs, folder, load)
    return Measurements(
        weights=weights, arms={arm: tuple(each) for arm, each in runs.items()}, training=costs, tasks=tasks
    )


def _measure_trained(
    bench: _Bench,
    weights: str,
    arms: Sequence[ArmName],
    vaccinated: bool,
    runs: dict[ArmName, list[ArmRun]],
    load: Loader,
) -> TrainingCost:
    """Train once for each seed, measure the arms with each adapter, and say what the training cost."""
    costs = []
    for seed in bench.task.seeds:
        name = f"seed-{seed}-vaccinated" if vaccinated else f"seed-{seed}"
        result = train(bench.task.train_config(seed, bench.folder / "training" / name, vaccinated=vaccinated))
        free_memory()
        costs.append(_training_cost(result))
        model = load_tuned_model(str(result.adapter), bench.task.model, load)
        _measure_model(bench, model, f"{weights} {_adapter_digest(result)}", seed, arms, runs)
        del model
        free_memory()
    return TrainingCost(
        runs=len(costs),
        steps=sum(cost.steps for cost in costs),
        seconds=round(sum(cost.seconds for cost in costs), 1),
        tokens=sum(cost.tokens for cost in costs),
    )


def _measure_model(
    bench: _Bench,
    model: Model,
    weights: str,
    seed: int | None,
    arms: Sequence[ArmName],
    runs: dict[ArmName, list[ArmRun]],
) -> None:
    """Measure all arms that are of one model: with and without documents."""
    key = content_key(weights=weights, dtype=bench.task.dtype)
    journal = Journal(bench.folder / f"abilities-{key[:16]}.jsonl")
    capability = tuple(evaluate_capability(one, model, journal) for one in bench.capability)
    for arm in arms:
        shape, scope = ARMS[arm], bench.scope(arm, weights)
        knowledge = bench.knowledge if shape.retrieves else None
        what = shape.title if seed is None else f"{shape.title}, seed {seed}"
        answers = answer_by_arm(
            bench.questions, bench.task, model, knowledge, bench.answers, scope, f"Answering: {what}"
        )
        traits = read_character(
            bench.vectors, bench.task, model, knowledge, bench.judges, bench.readings, scope, f"Reading: {what}"
        )
        runs[arm].append(ArmRun(seed=seed, answers=tuple(answers), traits=traits, capability=capability))


def _adapter_digest(result: TrainResult) -> str:
    digest = hashlib.sha256()
    for path in sorted(result.adapter.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _training_cost(result: TrainResult) -> TrainingCost:
    """Steps, seconds and tokens of one run, from its log; seconds are those since it was last resumed."""
    lines = list(_log_lines(result.folder / "log.jsonl"))
    return TrainingCost(
        runs=1,
        steps=int(result.facts["steps"]),
        seconds=float(next((line["train_runtime"] for line in reversed(lines) if "train_runtime" in line), 0.0)),
        tokens=int(next((line["num_tokens"] for line in reversed(lines) if "num_tokens" in line), 0)),
    )


def _log_lines(path: Path) -> Iterator[dict[str, float]]:
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def _judge_runs(
    task: ComparisonTask,
    questions: Sequence[EvaluationQuestion],
    runs: Mapping[ArmName, Sequence[ArmRun]],
    folder: Path,
    load: Loader,
) -> dict[ArmName, list[ArmRun]]:
    """The same runs with a judge's word on every answer; the judge is loaded only where something is left to judge."""
    journal = Journal(folder / VERDICTS_FILE)
    keys: dict[str, tuple[EvaluationQuestion, str]] = {}
    for each in runs.values():
        for run in each:
            for row, answer in zip(questions, run.answers, strict=True):
                keys[_verdict_key(task, row, answer)] = (row, answer.text)
    fresh = [key for key in keys if key not in journal]
    if fresh:
        reader = yes_no_reader(task.judge, load)
        for start in range(0, len(fresh), 32):
            part = fresh[start : start + 32]
            verdicts = judge_answers(reader, [keys[key][0] for key in part], [keys[key][1] for key in part])
            journal.append(zip(part, verdicts, strict=True))
    return {arm: [_judged_run(task, questions, run, journal) for run in each] for arm, each in runs.items()}


def _judged_run(task: ComparisonTask, questions: Sequence[EvaluationQuestion], run: ArmRun, journal: Journal) -> ArmRun:
    answers = tuple(
        replace(answer, right=journal[_verdict_key(task, row, answer)])
        for row, answer in zip(questions, run.answers, strict=True)
    )
    return replace(run, answers=answers)


def _verdict_key(task: ComparisonTask, row: EvaluationQuestion, answer: ArmAnswer) -> str:
    return content_key(judge=task.judge, question=row.question, right=row.answers, answer=answer.text)
