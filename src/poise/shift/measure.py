"""What fine-tuning did to a model's character: the finetuning shift, judged answers and capability, before and after.

The shift of Chen et al. 2025, section 6: mean state of the last prompt token over evaluation questions, tuned minus
base, on each trait's unit direction; all traits' questions along all directions, because a trait's own direction does
not always tell best (Fig. 20).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poise.arguments import check_type
from poise.engine import SamplingParams
from poise.errors import InvalidArgument, InvalidData
from poise.judge import Judge
from poise.judge.factory import trait_judge
from poise.model import Encoded, Model, load_model
from poise.shift.capability import CapabilityTask, parse_capability
from poise.shift.comparison import compare_models, score_coherence
from poise.shift.contexts import PromptContext, check_contexts
from poise.shift.evaluation import (
    EvaluationSettings,
    ModelEvaluation,
    ModelLoader,
    check_tuned_source,
    evaluate_model,
    free_memory,
    load_tuned_model,
    project_prompts,
)
from poise.shift.report import ShiftReport, TraitDirection, TraitQuestions, estimate_mean
from poise.statistics.estimates import Estimate
from poise.steer import Steering
from poise.storage.lock import locked
from poise.trait.library import evaluation_questions
from poise.vector import PersonaVector
from poise.vector.persona_vector import as_vectors

__all__ = ["ShiftSettings", "TunedModel", "finetuning_shift", "read_predictions", "shift"]

CHANGES_BEGIN = "changes are measured from the vectors' own model"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftSettings:
    """How much is measured.

    Attributes:
        judge: ``exemplars``, ``model:NAME``, ``endpoint:NAME``, or ``None`` for no answers at all.
        questions: How many of each trait's evaluation questions are answered; all of them are read.
        rollouts: Answers a question.
        max_new_tokens: Longest answer.
        temperature: Sampling temperature of the answers.
        seed: Seed of the answers.
        batch: Most answers at once.
        layer: Layer at which all directions are read; by default each vector's own.
        capability: What else is measured: tasks, or texts that ``poise.shift.capability.parse_capability`` takes.
        allow_other_model: Allow vectors whose model is not the base, but of its shape.
        contexts: Contexts under which the same questions are asked as well: ``PromptContext`` values, as
            ``find_contexts`` finds them in training data, or texts that ``parse_contexts`` takes.
        context_notes: What was looked for in the training data, and found; shown in the report.
        extract_again: Whether each trait's direction is extracted again on both models, from the trait's exemplars.
    """

    judge: str | None = "exemplars"
    questions: int = 20
    rollouts: int = 3
    max_new_tokens: int = 96
    temperature: float = 0.7
    seed: int = 0
    batch: int = 32
    layer: int | None = None
    capability: tuple[CapabilityTask | str, ...] = ()
    allow_other_model: bool = False
    contexts: tuple[PromptContext | str, ...] = ()
    context_notes: tuple[str, ...] = ()
    extract_again: bool = False

    def __post_init__(self) -> None:
        for name in ("questions", "rollouts", "batch"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} is {getattr(self, name)}; it must be at least 1.")
        check_type("contexts", self.contexts, (list, tuple), "a tuple of contexts, as find_contexts(data).contexts is")
        check_contexts(self.contexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedModel:
    """A model to compare with its base.

    Attributes:
        source: A folder, a hub id, a PEFT adapter folder on the base, or a loaded model.
        name: Name in reports; by default the source's.
        predicted: Mean projection difference of its training data by trait, as ``read_predictions`` gives it.
        steering: Steering that is in force while it answers and while perplexity is measured: steering after the fact.
            It must act on responses alone, so that the prompt's reading is the model's own.
    """

    source: str | Model
    name: str = ""
    predicted: Mapping[str, Estimate] = field(default_factory=dict)
    steering: Steering | None = None

    def __post_init__(self) -> None:
        if self.steering and any(term.phase != "response" for term in self.steering.terms):
            raise InvalidArgument("A tuned model is steered on its responses only; leave the phase at response.")

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.name or (self.source.name if isinstance(self.source, Model) else self.source)


def finetuning_shift(
    base: Model,
    tuned: Model,
    prompts: Sequence[Encoded],
    vectors: Sequence[PersonaVector],
    layers: int | Sequence[int] | None = None,
) -> list[Estimate]:
    """The finetuning shift along each direction: a mean over prompts of tuned minus base, with its interval.

    n: prompts, k: vectors.

    Args:
        base: The vectors' model.
        tuned: A model of its shape.
        prompts: n prompts as ``Model.encode`` gives them.
        vectors: k vectors.
        layers: One for all or one each; by default the layer at which each vector is read.

    Returns:
        k figures in residual-stream units; ‖v‖ is one mean difference.

    Raises:
        OtherModel: the vectors were not computed on the base, or the tuned model has another shape.
    """
    _check_vectors(vectors, base, record=CHANGES_BEGIN)
    _check_vectors(vectors, tuned, allow_other_model=True)
    change = project_prompts(tuned, prompts, vectors, layers) - project_prompts(base, prompts, vectors, layers)
    return [estimate_mean(column) for column in change.double().T.numpy()]


def shift(
    base: str | Model,
    tuned: str | Model | TunedModel | Sequence[str | Model | TunedModel],
    vectors: PersonaVector | Sequence[PersonaVector],
    settings: ShiftSettings | None = None,
    *,
    folder: str | Path | None = None,
    load: ModelLoader = load_model,
) -> ShiftReport:
    """Measure what fine-tuning did: tuned models beside their base, on every trait's evaluation questions.

    Models given by name are loaded one after the other; nothing is loaded beside another model but a judge. Chen et
    al. 2025, section 6, for the shift.

    Args:
        base: The model before fine-tuning: its name, or loaded.
        tuned: One or several models after it: a folder, a hub id, a PEFT adapter folder, a loaded model, or one of
            these with a name and a prediction, as a ``TunedModel``.
        vectors: One vector for each trait, computed on the base.
        settings: How much is measured.
        folder: Folder where finished work is kept, so that a run that was killed can be resumed and the base is not
            paid for twice; by default no file is written.
        load: Loads a model by name.

    Returns:
        Every figure before and after with its interval: shifts in residual-stream units, judged scores from 0 to 100,
        capability in its own metric.

    Raises:
        OtherModel: a vector is not the base's, or a tuned model has another shape.
        ModelNotFound: there is no such base, or tuned model.
        InvalidArgument: no tuned model, no vector, or two of one trait; a capability that names nothing.
        InvalidData: data of a capability cannot be used.
        FolderInUse: another run is at work in the folder.
        MissingExtra: the judge or a capability needs a part that is not installed.
    """
    settings = settings or ShiftSettings()
    folder = Path(folder) if folder is not None else None
    vectors = [vector.without_detector() for vector in as_vectors(vectors)]  # a shift is along the vector
    kinds = (str, Model, TunedModel, list, tuple)
    check_type("base", base, (str, Model), "the name of a model, or a Model, as load_model(name) gives")
    check_type("tuned", tuned, kinds, "a model, its name, a TunedModel, or a list of these")
    check_type("settings", settings, ShiftSettings, "ShiftSettings(…)")
    sources = [tuned] if isinstance(tuned, (str, Model, TunedModel)) else list(tuned)
    models = [source if isinstance(source, TunedModel) else TunedModel(source=source) for source in sources]
    _check_arguments(models, vectors)
    with locked(folder, "shift") if folder else contextlib.nullcontext():
        return _measure_shift(base, models, vectors, settings, folder, load)


def _measure_shift(
    base: str | Model,
    models: Sequence[TunedModel],
    vectors: Sequence[PersonaVector],
    settings: ShiftSettings,
    folder: Path | None,
    load: ModelLoader,
) -> ShiftReport:
    loaded: dict[str, Model] = {}
    judges = _trait_judges(settings.judge, vectors, folder, lambda name: loaded.setdefault(name, load(name)))
    measured = _evaluation_settings(settings, vectors, judges, folder)
    before = _evaluate_source(base, base, measured, load)
    evaluations = [_evaluate_source(model.source, base, measured, load, before, model.steering) for model in models]
    coherence = score_coherence(settings.judge, base, [before, *evaluations], judges, folder, load) if judges else None
    return ShiftReport(
        base=before.model,
        base_digest=before.digest,
        directions=tuple(
            TraitDirection(trait=v.name, layer=i, layers=v.layers, norm=float(v.norms[i]))
            for v, i in zip(vectors, measured.layers, strict=True)
        ),
        asked=tuple(
            TraitQuestions(trait=t, questions=q, judged=min(measured.answered, len(q)) if judges else 0)
            for t, q in measured.prompts.items()
        ),
        rollouts=settings.rollouts,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=settings.seed,
        tuned=tuple(
            compare_models(model.label, before, after, measured, coherence, predicted=model.predicted)
            for model, after in zip(models, evaluations, strict=True)
        ),
        contexts=measured.contexts,
        context_notes=settings.context_notes,
    )


def _check_arguments(models: Sequence[TunedModel], vectors: Sequence[PersonaVector]) -> None:
    names = [v.name for v in vectors]
    if not models or not names or len(set(names)) < len(names):
        raise InvalidArgument(
            f"{len(models)} tuned models and vectors of {', '.join(names) or 'no trait'}: a shift needs at least one "
            "tuned model, and one vector of each trait."
        )
    for model in models:
        if isinstance(model.source, str):
            check_tuned_source(model.source)


def _evaluation_settings(
    settings: ShiftSettings, vectors: Sequence[PersonaVector], judges: Mapping[str, Judge], folder: Path | None
) -> EvaluationSettings:
    return EvaluationSettings(
        vectors=tuple(vectors),
        layers=tuple(vector.at("read", settings.layer).layer for vector in vectors),
        prompts={v.name: tuple(evaluation_questions(v.header.trait)) for v in vectors},
        answered=settings.questions,
        rollouts=settings.rollouts,
        sampling=SamplingParams(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature),
        seed=settings.seed,
        batch=settings.batch,
        judges=judges,
        tasks=tuple(
            parse_capability(task, seed=settings.seed) if isinstance(task, str) else task
            for task in settings.capability
        ),
        folder=folder,
        allow_other_model=settings.allow_other_model,
        contexts=check_contexts(settings.contexts),
        extract_again=settings.extract_again,
    )


def read_predictions(folder: Path) -> dict[str, Estimate]:
    """The mean projection difference of screened data by trait, from the summary that ``poise screen`` wrote.

    Raises:
        InvalidData: no summary, not one of this version, or of raw projections, whose mean predicts nothing.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        method = summary["method"]
        means = {t["trait"]: Estimate.model_validate(t["mean"]) for t in summary["traits"]}
        detected = [t["trait"] for t in summary["traits"] if t.get("detector")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidData(
            f"{path} is not the summary of a screening ({type(error).__name__}); name the folder that `poise screen "
            "--out` wrote."
        ) from error
    if method == "raw":
        raise InvalidData(
            f"{path} is of raw projections, whose mean has no zero and predicts nothing; screen the data by "
            "`method` difference or prompt."
        )
    if detected:
        raise InvalidData(
            f"{path} has {', '.join(detected)} scored by a detector, and the paper predicts from the projection on the "
            "vector's own direction; screen again by the `projection`."
        )
    if (part := summary.get("part", "reply")) != "reply":
        raise InvalidData(
            f"{path} is of the {part} of answers, and fine-tuning on them is foretold by their replies; screen these."
        )
    return means


def _check_vectors(
    vectors: Sequence[PersonaVector], model: Model, *, allow_other_model: bool = False, record: str = ""
) -> None:
    for vector in vectors:
        vector.check_model(model, allow_other_model=allow_other_model, record=record)


def _evaluate_source(
    source: str | Model,
    base: str | Model,
    settings: EvaluationSettings,
    load: ModelLoader,
    before: ModelEvaluation | None = None,
    steering: Steering | None = None,
) -> ModelEvaluation:
    """Load a model, check it, evaluate it, and release it."""
    if isinstance(source, Model):
        model = source
    elif before is None:
        model = load(source)
    else:
        model = load_tuned_model(source, base.name if isinstance(base, Model) else base, load)
    allow_other_model = settings.allow_other_model or before is not None
    _check_vectors(settings.vectors, model, allow_other_model=allow_other_model, record=CHANGES_BEGIN)
    evaluation = evaluate_model(model, settings, base=before, steering=steering)
    del model
    free_memory()
    return evaluation


def _trait_judges(
    spec: str | None, vectors: Sequence[PersonaVector], folder: Path | None, load: ModelLoader
) -> dict[str, Judge]:
    """A judge for each trait, before any work, so that one that cannot be had costs nothing."""
    if spec is None:
        return {}
    return {v.name: trait_judge(spec, v.header.trait, cache=folder, local=load) for v in vectors}
