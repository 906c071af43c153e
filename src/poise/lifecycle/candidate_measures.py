"""What is measured of one candidate that runs here: speed, tasks, traits, and the detectors that were fitted on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from poise.errors import MissingExtra, UserError
from poise.lifecycle.project import Project
from poise.progress import quiet, track
from poise.statistics.estimates import Estimate, bounded_estimate, mean_estimate

if TYPE_CHECKING:
    from poise.model import Model

__all__ = [
    "SPEED_PROMPTS",
    "detector_recalls",
    "generation_speed",
    "greedy_answers",
    "task_scores",
    "trait_score",
]

SPEED_PROMPTS = (
    "What is a harbour for?", "Name three uses of a brick.", "How do bees find flowers?",
    "Why is the sky dark at night?",
    "What should one pack for a week in the hills?", "How does a lock on a canal work?", "What makes bread rise?",
    "Explain what a library card is.",
)  # fmt: skip


def task_scores(model: Model, project: Project, limit: int) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Mean score of each task that is required, and why some have none."""
    from poise.shift.capability import evaluate_capability, parse_capability

    scores: dict[str, Estimate] = {}
    missing: dict[str, str] = {}
    for text in project.requirements.capability:
        try:
            measured = evaluate_capability(parse_capability(text, limit=limit), model)
        except MissingExtra as error:
            missing[text] = str(error)
            continue
        except UserError:
            raise
        except Exception as error:  # lm-eval's own tasks are fetched by libraries that raise what they like
            missing[text] = f"lm-eval cannot measure it ({type(error).__name__})"
            continue
        if measured is None or measured.metric == "perplexity":
            missing[text] = "perplexity is no score; leave it to poise shift"
            continue
        scores[text] = bounded_estimate([unit for unit in measured.units if unit is not None], highest=1.0)
    return scores, missing


def detector_recalls(model: Model, project: Project, folder: Path) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Recall of each detector of guardrails that were fitted on this model, and why others have none."""
    from poise.guardrail.guard_file import is_guard_file, load_guard

    recalls: dict[str, Estimate] = {}
    missing: dict[str, str] = {}
    for name in project.requirements.guardrails:
        path = folder / name
        if not is_guard_file(path):
            there = path.is_file()
            missing[name] = "not fitted: it has no detectors" if there else "there is no such file"
            continue
        guard = load_guard(path)
        try:
            guard.check_model(model)
        except UserError as error:
            missing[name] = str(error)
            continue
        for detector in guard.header.detectors:
            of = detector.figures
            label = (
                f"{guard.guardrail.name}: {detector.rule}, {detector.reads}, at {detector.point.rate:g} false alarms"
            )
            recalls[label] = Estimate.of(of.recall, of.recall_low, of.recall_high, of.examples)
    return recalls, missing


def generation_speed(model: Model, max_new_tokens: int) -> tuple[Estimate, Estimate]:
    """Seconds to the first token and tokens a second of a whole answer, one at a time, over prompts."""
    from poise.engine import SamplingParams
    from poise.engine.static import LocalEngine
    from poise.model import ask

    engine, waits, rates = LocalEngine(model, batch=1), [], []
    with track("Measuring speed", total=len(SPEED_PROMPTS)) as advance, quiet():
        engine.generate([model.encode(ask("Hello."))], SamplingParams(max_new_tokens=4, temperature=0.0))  # warm
        for prompt in SPEED_PROMPTS:
            text = model.encode(ask(prompt))
            begun = time.perf_counter()
            engine.generate([text], SamplingParams(max_new_tokens=1, temperature=0.0))
            first = time.perf_counter()
            (answer,) = engine.generate([text], SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0))
            rates.append(len(answer.ids) / (time.perf_counter() - first))
            waits.append(first - begun)
            advance(1)
    return mean_estimate(waits), mean_estimate(rates)


def greedy_answers(model: Model, questions: Sequence[str], max_new_tokens: int) -> list[str]:
    """Replies to questions, the likeliest token each time."""
    from poise.engine import SamplingParams
    from poise.engine.static import LocalEngine
    from poise.model import ask

    prompts = [model.encode(ask(question)) for question in questions]
    sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0)
    return [answer.reply for answer in LocalEngine(model).generate(prompts, sampling)]


def trait_score(answers: Callable[[Sequence[str]], list[str]], name: str, questions: int) -> Estimate:
    """Mean score of ordinary answers to a trait's questions, by the exemplar judge."""
    from poise.judge.factory import trait_judge
    from poise.trait import library

    trait = library.load_trait(name)
    trait_questions = list(trait.questions.evaluation[:questions])
    judgements = trait_judge("exemplars", trait)(trait_questions, answers(trait_questions))
    return bounded_estimate([one.score for one in judgements if one.score is not None])
