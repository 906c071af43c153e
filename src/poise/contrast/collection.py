"""Trait and model to a ``ContrastSet`` in one call: the trait's exemplars, or the model's own judged answers."""

from __future__ import annotations

from typing import Literal

from poise.arguments import check_number, check_type
from poise.contrast.contrast_set import ContrastSet, exemplars, prompted
from poise.contrast.rollout import ResponseStore
from poise.engine import Engine, SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument
from poise.judge.factory import choose_judges
from poise.model import Model
from poise.trait import OwnTrait, Trait

__all__ = ["collect_contrast"]


def collect_contrast(
    trait: Trait | OwnTrait,
    model: Model,
    source: Literal["exemplars", "prompted"] = "exemplars",
    *,
    judge: str = "exemplars",
    questions: int = 20,
    rollouts: int = 3,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    batch: int = 32,
    run: ResponseStore | None = None,
    engine: Engine | None = None,
) -> ContrastSet:
    """Pairs of answers with the trait and without it, from which ``extract`` makes a vector.

    Chen et al. 2025 (arXiv:2507.21509), section 2.2, for ``prompted``.

    Args:
        trait: What the vector is to be of.
        model: The model whose activations are compared.
        source: ``exemplars`` reads the answers that the trait carries: seconds, no sampling. ``prompted`` lets the
            model answer under contrasting system prompts and keeps the pairs that the judge tells apart; all further
            arguments are for this one.
        judge: ``exemplars``, ``model:NAME`` or ``endpoint:NAME``.
        questions: How many of the trait's extraction questions are asked.
        rollouts: Answers for each question and instruction; the paper has 10.
        sampling: How answers are sampled; by default at most 96 tokens at temperature 1.
        seed: Seed of the answers.
        batch: Most answers at once.
        run: Store of the finished batches; by default in memory.
        engine: What answers, such as ``VllmEngine``; by default an engine on ``model``.

    Returns:
        The pairs, and how many were dropped for which reason.

    Raises:
        InvalidTrait: ``prompted``, of a trait that is given by exemplars alone.
        InvalidArgument: there is no such source or judge.
        TooFewResponses: no pair came through the filter.
    """
    check_type("trait", trait, (Trait, OwnTrait), "a Trait, as load_trait(name) gives")
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    check_type("judge", judge, str, "exemplars, model:NAME or endpoint:NAME")
    for name, number in (("questions", questions), ("rollouts", rollouts), ("batch", batch)):
        check_number(name, number, least=1, most=2**31)
    if source == "exemplars":
        return exemplars(trait, model)
    if source != "prompted":
        raise InvalidArgument(f"There is no contrast source {source!r}; use exemplars or prompted.")
    run = run or ResponseStore(None)
    judges = choose_judges(judge, trait, model, cache=run.folder)
    return prompted(
        trait,
        engine or LocalEngine(model, batch=batch),
        model,
        judges.trait,
        judges.coherence,
        sampling=sampling or SamplingParams(max_new_tokens=96, temperature=1.0),
        questions=questions,
        rollouts=rollouts,
        seed=seed,
        run=run,
    )
