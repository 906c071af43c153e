"""From what a user writes (``exemplars``, ``model:NAME``, ``endpoint:NAME``) to judges of trait and coherence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from poise.errors import InvalidArgument
from poise.judge.coherence import LikelihoodCoherence
from poise.judge.endpoint import endpoint_coherence, endpoint_judge
from poise.judge.exemplars import ExemplarJudge
from poise.judge.judgement import Judge
from poise.judge.local_model import LocalJudge
from poise.model import Model, load_model
from poise.statistics.estimates import Estimate, auc_estimate
from poise.trait import OwnTrait, Trait

__all__ = ["ChosenJudges", "check_judge", "choose_judges", "trait_judge"]

OFFLINE = (
    "likelihood under the unsteered model and repetition of word trigrams, the worse of the two, mapped to 0–100 "
    "by the "
    "unsteered answers' own distribution"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenJudges:
    """The judges of one job and what is known of them.

    Attributes:
        trait: Scores the trait.
        coherence: Makes the judge of coherence from ordinary questions and answers (judges that need none ignore them).
        coherence_is: How coherence is scored, for reports.
        auc: Cross-validated on the judge's own exemplars; ``None`` for judges that have none.
        held_out_auc: On exemplars that neither the vector nor the judge saw; ``None`` where there are none.
        why_unusable: Why no score of ``trait`` counts; empty where it is usable.
    """

    trait: Judge
    coherence: Callable[[Sequence[str], Sequence[str]], Judge]
    coherence_is: str
    auc: Estimate | None
    held_out_auc: Estimate | None
    why_unusable: str


def trait_judge(
    spec: str, trait: Trait | OwnTrait, *, cache: Path | None = None, local: Callable[[str], Model] = load_model
) -> Judge:
    """The judge of a trait that ``spec`` names.

    Args:
        spec: ``exemplars``, ``model:NAME`` (any name that ``poise.model.load_model`` takes) or ``endpoint:NAME``.
        trait: To be judged.
        cache: Folder for what endpoints answered.
        local: Loads a model by name.

    Raises:
        InvalidArgument: no such judge, or one that needs a rubric which the trait does not have.
    """
    check_judge(spec, trait)
    kind, _, name = spec.partition(":")
    if spec == "exemplars":
        return ExemplarJudge.fit(trait.judge_pairs)
    if isinstance(trait, OwnTrait):
        raise _no_rubric(spec, trait)
    if kind == "endpoint":
        return endpoint_judge(name, trait, cache=cache)
    return LocalJudge.of_trait(local(name), trait)


def check_judge(spec: str, *traits: Trait | OwnTrait) -> None:
    """Check that there is a judge of that name which can score the traits, before a model is loaded.

    Raises:
        InvalidArgument: no such judge, or one that needs a rubric which a trait does not have.
    """
    kind, _, name = spec.partition(":")
    if spec == "exemplars":
        return
    if kind not in ("model", "endpoint") or not name:
        raise InvalidArgument(f"There is no judge {spec!r}; use exemplars, model:NAME or endpoint:NAME.")
    for trait in traits:
        if isinstance(trait, OwnTrait):
            raise _no_rubric(spec, trait)


def _no_rubric(spec: str, trait: OwnTrait) -> InvalidArgument:
    return InvalidArgument(
        f"{trait.name} is given by exemplars alone and has no rubric for {spec}; use exemplars as `judge`."
    )


def choose_judges(spec: str, trait: Trait | OwnTrait, model: Model, *, cache: Path | None = None) -> ChosenJudges:
    """The judges of trait and coherence that ``spec`` names; see ``trait_judge``.

    ``model`` is steered elsewhere; unsteered here, it measures coherence where the judge has no opinion of it.
    """
    judge = trait_judge(spec, trait, cache=cache, local=lambda name: model if name == model.name else load_model(name))
    held_out = _held_out(judge, trait)
    if isinstance(judge, ExemplarJudge):
        return ChosenJudges(
            trait=judge,
            coherence=_offline(model),
            coherence_is=OFFLINE,
            auc=judge.cv_auc,
            held_out_auc=held_out,
            why_unusable=judge.why_unusable,
        )
    fluent: Judge
    if isinstance(judge, LocalJudge):
        fluent = LocalJudge.of_coherence(judge.model)
    else:
        fluent = endpoint_coherence(spec.partition(":")[2], cache=cache)
    return ChosenJudges(
        trait=judge,
        coherence=lambda questions, answers: fluent,
        coherence_is=f"by {fluent.name}",
        auc=None,
        held_out_auc=held_out,
        why_unusable="",
    )


def _offline(model: Model) -> Callable[[Sequence[str], Sequence[str]], Judge]:
    return lambda questions, answers: LikelihoodCoherence.fit(model, questions, answers)


def _held_out(judge: Judge, trait: Trait | OwnTrait) -> Estimate | None:
    """AUC on the held-out pairs, over the pairs that could be scored on both sides."""
    pairs = trait.held_out_pairs
    if not pairs:
        return None
    questions = [p.question for p in pairs]
    sides = [judge(questions, [getattr(p, side) for p in pairs]) for side in ("positive", "negative")]
    scored = [(a.score, b.score) for a, b in zip(*sides, strict=True) if a.score is not None and b.score is not None]
    return auc_estimate([a for a, _ in scored], [b for _, b in scored]) if scored else None
