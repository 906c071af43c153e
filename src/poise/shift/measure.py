"""What fine-tuning did to a model's character: the finetuning shift, judged answers and abilities, before and after.

The shift of Chen et al. 2025, section 6: mean state of the last prompt token over evaluation questions, tuned minus
base, on each trait's unit direction; all traits' questions along all directions, because a trait's own direction does
not always tell best (Fig. 20).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poise.engine import SamplingParams
from poise.errors import InvalidArgument, InvalidData
from poise.judge import Judge
from poise.judge.factory import trait_judge
from poise.model import Encoded, Model
from poise.model import load as load_model
from poise.shift.capability import Ability
from poise.shift.comparison import coherence, compared
from poise.shift.evaluation import Load, Look, Sitting, check_source, free, look, open_tuned, projections
from poise.shift.report import Asked, Direction, ShiftReport, mean_of
from poise.statistics.estimates import Estimate
from poise.steer import Steering
from poise.trait.library import evaluation_questions
from poise.vector import PersonaVector

__all__ = ["Plan", "Tuned", "measure", "projections", "read_screened", "shift"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        judge: ``exemplars``, ``model:NAME``, ``endpoint:NAME``, or ``None`` for no answers at all.
        questions: Of each trait's evaluation questions, how many are answered; all of them are read.
        rollouts: Answers a question.
        max_new_tokens: Longest answer.
        temperature: Of the answers.
        seed: Of the answers.
        batch: Most answers at once.
        layer: Where directions are read; otherwise each certificate's.
        abilities: See ``poise.shift.capability.parse``.
        allow_other_model: Let vectors be used whose model is not the base, but of its shape.
    """

    judge: str | None = "exemplars"
    questions: int = 20
    rollouts: int = 3
    max_new_tokens: int = 96
    temperature: float = 0.7
    seed: int = 0
    batch: int = 32
    layer: int | None = None
    abilities: tuple[Ability, ...] = ()
    allow_other_model: bool = False

    def __post_init__(self) -> None:
        for name in ("questions", "rollouts"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True, slots=True)
class Tuned:
    """A model to compare with its base.

    Attributes:
        source: A folder, a hub id, a PEFT adapter folder on the base, or a loaded model.
        name: For reports; otherwise the source's.
        predicted: By trait, what ``poise screen`` said of its data.
        steering: In force while it answers and while perplexity is measured: steering after the fact. It must act on
            responses alone, so that the prompt's reading is the model's own.
    """

    source: str | Model
    name: str = ""
    predicted: Mapping[str, Estimate] = field(default_factory=dict)
    steering: Steering | None = None

    def __post_init__(self) -> None:
        if self.steering and any(term.phase != "response" for term in self.steering.terms):
            raise InvalidArgument("A tuned model is steered on its responses only; leave the phase at response.")

    @property
    def called(self) -> str:
        """Its name in reports."""
        return self.name or (self.source.name if isinstance(self.source, Model) else self.source)


def shift(
    base: Model,
    tuned: Model,
    prompts: Sequence[Encoded],
    vectors: Sequence[PersonaVector],
    layers: int | Sequence[int] | None = None,
) -> list[Estimate]:
    """The finetuning shift along each direction: a mean over prompts of tuned minus base, with its bootstrap interval.

    n: prompts, k: vectors.

    Args:
        base: The vectors' model.
        tuned: Of its shape.
        prompts: n of them.
        vectors: k of them.
        layers: One for all or one each; otherwise each certificate's.

    Returns:
        k figures in residual-stream units; ‖v‖ is one mean difference.

    Raises:
        OtherModel: the vectors were not computed on the base, or the tuned model has another shape.
    """
    _check(vectors, base)
    _check(vectors, tuned, other=True)
    change = projections(tuned, prompts, vectors, layers) - projections(base, prompts, vectors, layers)
    return [mean_of(column) for column in change.double().T.numpy()]


def measure(
    base: str | Model,
    tuned: Sequence[Tuned],
    vectors: Sequence[PersonaVector],
    plan: Plan | None = None,
    *,
    folder: Path | None = None,
    load: Load = load_model,
) -> ShiftReport:
    """Measure tuned models against their base; nothing is loaded beside another model but a judge.

    Args:
        base: Its name, or loaded.
        tuned: At least one.
        vectors: One a trait, computed on the base.
        plan: How much is measured.
        folder: Where finished work is kept: a run that was killed goes on, and the base is not paid for twice.
        load: Loads a model by name.

    Raises:
        OtherModel: a vector is not the base's, or a tuned model has another shape.
        ModelNotFound: there is no such base, or tuned model.
        InvalidArgument: no tuned model, no vector, or two of one trait.
        InvalidData: data for an ability cannot be used.
        MissingExtra: the judge or an ability needs a part that is not installed.
    """
    wanted = plan or Plan()
    names = [v.name for v in vectors]
    if not tuned or not names or len(set(names)) < len(names):
        raise InvalidArgument(
            f"{len(tuned)} tuned models and vectors of {', '.join(names) or 'no trait'}: a shift needs at least one "
            "tuned model, and one vector of each trait."
        )
    for one in tuned:
        if isinstance(one.source, str):
            check_source(one.source)
    loaded: dict[str, Model] = {}
    judges = _judges(wanted.judge, vectors, folder, lambda name: loaded.setdefault(name, load(name)))
    sitting = Sitting(
        vectors=tuple(vectors),
        layers=tuple(vector.at("read", wanted.layer).layer for vector in vectors),
        prompts={v.name: tuple(evaluation_questions(v.header.trait)) for v in vectors},
        asked=wanted.questions,
        rollouts=wanted.rollouts,
        sampling=SamplingParams(max_new_tokens=wanted.max_new_tokens, temperature=wanted.temperature),
        seed=wanted.seed,
        batch=wanted.batch,
        judges=judges,
        abilities=wanted.abilities,
        folder=folder,
        allow_other_model=wanted.allow_other_model,
    )
    before = _look(base, base, sitting, load)
    looks = [_look(one.source, base, sitting, load, before, one.steering) for one in tuned]
    fluent = coherence(wanted.judge, base, [before, *looks], judges, folder, load) if judges else None
    return ShiftReport(
        base=before.model,
        base_digest=before.digest,
        directions=tuple(
            Direction(trait=v.name, layer=i, layers=v.layers, norm=float(v.norms[i]))
            for v, i in zip(vectors, sitting.layers, strict=True)
        ),
        asked=tuple(
            Asked(trait=t, questions=q, judged=min(sitting.asked, len(q)) if judges else 0)
            for t, q in sitting.prompts.items()
        ),
        rollouts=wanted.rollouts,
        max_new_tokens=wanted.max_new_tokens,
        temperature=wanted.temperature,
        seed=wanted.seed,
        tuned=tuple(
            compared(one.called, before, after, sitting, fluent, predicted=one.predicted)
            for one, after in zip(tuned, looks, strict=True)
        ),
    )


def read_screened(folder: Path) -> dict[str, Estimate]:
    """By trait, the mean projection difference of the data that ``poise screen`` wrote a summary of.

    Raises:
        InvalidData: no summary, not one of this version, or of raw projections, whose mean predicts nothing.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        method = summary["method"]
        means = {t["trait"]: Estimate.model_validate(t["mean"]) for t in summary["traits"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidData(
            f"{path} is no summary of a screening ({type(error).__name__}); name the folder that `poise screen --out` "
            "wrote."
        ) from error
    if method == "raw":
        raise InvalidData(
            f"{path} is of raw projections, whose mean has no zero and predicts nothing; screen the data by "
            "--method difference or prompt."
        )
    return means


def _check(vectors: Sequence[PersonaVector], model: Model, *, other: bool = False) -> None:
    for vector in vectors:
        vector.check_model(model, allow_other_model=other)


def _look(
    source: str | Model,
    base: str | Model,
    sitting: Sitting,
    load: Load,
    before: Look | None = None,
    steering: Steering | None = None,
) -> Look:
    """Opened, checked, looked at, and let go."""
    if isinstance(source, Model):
        model = source
    elif before is None:
        model = load(source)
    else:
        model = open_tuned(source, base.name if isinstance(base, Model) else base, load)
    _check(sitting.vectors, model, other=sitting.allow_other_model or before is not None)
    found = look(model, sitting, base=before, steering=steering)
    del model
    free()
    return found


def _judges(spec: str | None, vectors: Sequence[PersonaVector], folder: Path | None, local: Load) -> dict[str, Judge]:
    """A judge for each trait, before any work, so that one that cannot be had costs nothing."""
    if spec is None:
        return {}
    return {v.name: trait_judge(spec, v.header.trait, cache=folder, local=local) for v in vectors}
