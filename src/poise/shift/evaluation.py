"""One model, base or tuned, evaluated: its projections on prompts, its answers and their scores, its capability.

Models are large: each is loaded, evaluated and released before the next. Answers, scores and capability are kept under
what they were computed from, so that a second tuned model does not pay for the base again, nor a second run for either.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from poise.activations import project_each
from poise.arguments import check_type
from poise.contrast import Response, ResponseRequest, ResponseStore
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.judge import Judge, Judgement
from poise.model import Encoded, Model, load_model, wrap
from poise.model.adapter_folder import ADAPTER_FILE, load_adapter, remark_on_base
from poise.model.chat_template import template_text
from poise.model.loading import HUB_IDS, locate
from poise.progress import track
from poise.shift.capability import CapabilityScores, CapabilityTask, evaluate_capability
from poise.shift.contexts import PromptContext
from poise.shift.extracted_again import PairDifferences, pair_differences
from poise.steer import Steering
from poise.storage.journal import Journal
from poise.vector import ModelId, PersonaVector

__all__ = [
    "EvaluationSettings",
    "ModelEvaluation",
    "ModelLoader",
    "PromptEvaluation",
    "check_tuned_source",
    "evaluate_model",
    "free_memory",
    "load_tuned_model",
    "model_digest",
    "project_prompts",
    "question_request",
]

ModelLoader = Callable[[str], Model]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What every model is measured on.

    Attributes:
        vectors: Vectors whose directions are read; k of them, one a trait.
        layers: Layer at which each vector is read, counted from 0.
        prompts: Evaluation questions by trait; all of them are read.
        answered: How many of each trait's questions are answered; 0 for none.
        rollouts: Answers a question.
        sampling: How answers are sampled.
        seed: Seed of the answers.
        batch: Most answers at once.
        judges: Judge of each trait, by its name.
        tasks: Capability tasks to measure.
        folder: Folder where finished work is kept; ``None`` keeps it in memory.
        allow_other_model: Allow vectors whose model is not the base, but of its shape.
        contexts: Contexts under which the same questions are asked as well.
        extract_again: Whether each trait's direction is extracted again from its exemplars.
    """

    vectors: tuple[PersonaVector, ...]
    layers: tuple[int, ...]
    prompts: Mapping[str, tuple[str, ...]]
    answered: int
    rollouts: int
    sampling: SamplingParams
    seed: int
    batch: int
    judges: Mapping[str, Judge]
    tasks: tuple[CapabilityTask, ...]
    folder: Path | None
    allow_other_model: bool = False
    contexts: tuple[PromptContext, ...] = ()
    extract_again: bool = False

    def asks(self, trait: str, steering: Steering | None, context: PromptContext | None) -> list[ResponseRequest]:
        """The trait's questions, rollouts together."""
        return [
            question_request(q, context, steering=steering, seed=self.seed + r)
            for q in self.prompts[trait][: self.answered]
            for r in range(self.rollouts)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEvaluation:
    """What was measured of one model on all traits' questions, asked in one way.

    Attributes:
        projections: Projections by the trait of the questions: float32 [n, k], NaN where the model gave NaN or
            infinity.
        answers: Answers by trait, question by question, rollouts together.
        scores: Judgements of the answers, in their order.
    """

    projections: Mapping[str, torch.Tensor]
    answers: Mapping[str, tuple[Response, ...]]
    scores: Mapping[str, tuple[Judgement, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEvaluation:
    """What was measured of one model.

    Attributes:
        model: Name of the model.
        digest: 16 hex digits of its weights and chat template.
        identity: What it is known by.
        relation: What it is to the base; empty for the base. See ``poise.model.relation``.
        template: Its chat template.
        plain: Its readings, answers and scores on the questions alone.
        capability: Scores of each task, in the order of the settings; ``None`` where it was not measured.
        contexts: The same under each context, in the order of the settings; ``None`` for one that does not fit the
            model's window.
        pairs: What each trait's exemplars differ by, where directions are extracted again.
    """

    model: str
    digest: str
    identity: ModelId
    relation: str
    template: str
    plain: PromptEvaluation
    capability: tuple[CapabilityScores | None, ...]
    contexts: tuple[PromptEvaluation | None, ...] = ()
    pairs: Mapping[str, PairDifferences] = field(default_factory=dict)


def project_prompts(
    model: Model,
    prompts: Sequence[Encoded],
    vectors: Sequence[PersonaVector],
    layers: int | Sequence[int] | None = None,
) -> torch.Tensor:
    """The last prompt token's state on each unit direction (Chen et al. 2025, section 4), in one pass for all.

    n: prompts, k: vectors.

    Args:
        model: A model of the vectors' shape.
        prompts: Prompts as ``Model.encode`` gives them; answers in them are ignored.
        vectors: The k vectors.
        layers: One for all or one each; by default the layer at which each vector is read.

    Returns:
        float32 [n, k] on the CPU; NaN in the rows on which the model gives NaN or infinity.

    Raises:
        InvalidSteering: a vector has no such layer, or is zero there.
    """
    each = list(layers) if isinstance(layers, Sequence) else [layers] * len(vectors)
    own = [vector.without_detector() for vector in vectors]  # a shift is along the vector, whatever reads its trait
    probes = [vector.at("read", layer).probe for vector, layer in zip(own, each, strict=True)]
    ends = [p.last_prompt + 1 for p in prompts]
    bare = [Encoded(p.ids[:end], end, end) for p, end in zip(prompts, ends, strict=True)]
    nothing = torch.full((len(vectors),), float("nan"))
    rows = [nothing if values is None else values[-1] for values in project_each(model, bare, probes)]
    return torch.stack(rows) if rows else torch.empty((0, len(vectors)))


def evaluate_model(
    model: Model,
    settings: EvaluationSettings,
    *,
    base: ModelEvaluation | None = None,
    steering: Steering | None = None,
) -> ModelEvaluation:
    """Measure a loaded model: readings, judged answers and capability.

    Args:
        model: Base or tuned.
        settings: What it is measured on.
        base: The base's evaluation, if this is not the base.
        steering: Steering that is in force while it answers and while perplexity is measured, after training (section
            5.1).
    """
    digest, identity = model_digest(model), ModelId.of(model)
    run = ResponseStore(settings.folder / f"model-{digest}" if settings.folder else None)
    plain = _evaluate_prompts(model, settings, run, steering, _encode_questions(model, settings, None), None)
    contexts = tuple(_evaluate_context(model, settings, run, steering, context) for context in settings.contexts)
    journal = Journal(settings.folder / f"model-{digest}" / "abilities.jsonl" if settings.folder else None)
    capability = tuple(evaluate_capability(task, model, journal, steering=steering) for task in settings.tasks)
    return ModelEvaluation(
        model=model.name,
        digest=digest,
        identity=identity,
        relation="" if base is None else base.identity.relation(identity).kind,
        template=template_text(model.tokenizer),
        plain=plain,
        capability=capability,
        contexts=contexts,
        pairs=pair_differences(model, settings.vectors, settings.layers) if settings.extract_again else {},
    )


def question_request(
    question: str, context: PromptContext | None, *, steering: Steering | None = None, seed: int = 0
) -> ResponseRequest:
    """A question as it is asked under a context, or without one."""
    if context is None:
        return ResponseRequest(question=question, steering=steering, seed=seed)
    return context.request(question, steering=steering, seed=seed)


def _encode_questions(
    model: Model, settings: EvaluationSettings, context: PromptContext | None
) -> dict[str, list[Encoded]]:
    return {
        trait: [model.encode(question_request(q, context).messages()) for q in questions]
        for trait, questions in settings.prompts.items()
    }


def _evaluate_context(
    model: Model, settings: EvaluationSettings, run: ResponseStore, steering: Steering | None, context: PromptContext
) -> PromptEvaluation | None:
    """The same questions under a context; ``None`` where the longest prompt and its answer exceed the window."""
    encoded = _encode_questions(model, settings, context)
    longest = max(len(prompt.ids) for prompts in encoded.values() for prompt in prompts)
    if longest + settings.sampling.max_new_tokens > min(model.window, model.generation_window(longest)):
        return None
    return _evaluate_prompts(model, settings, run, steering, encoded, context)


def _evaluate_prompts(
    model: Model,
    settings: EvaluationSettings,
    run: ResponseStore,
    steering: Steering | None,
    encoded: Mapping[str, Sequence[Encoded]],
    context: PromptContext | None,
) -> PromptEvaluation:
    projections = {
        trait: project_prompts(model, prompts, settings.vectors, settings.layers) for trait, prompts in encoded.items()
    }
    answers = _answer_questions(model, settings, run, steering, context)
    hashes = {v.name: v.header.trait_hash for v in settings.vectors}
    scores = {
        trait: tuple(run.judge(settings.judges[trait], replies, scope=hashes[trait], what=f"Judging {trait}"))
        for trait, replies in answers.items()
    }
    return PromptEvaluation(projections=projections, answers=answers, scores=scores)


def _answer_questions(
    model: Model,
    settings: EvaluationSettings,
    run: ResponseStore,
    steering: Steering | None,
    context: PromptContext | None,
) -> dict[str, tuple[Response, ...]]:
    """Answers to all traits' questions, in shared batches; a context has batches of its own.

    They are answers to the bare question, which is what a judge reads them beside.
    """
    asks = {trait: settings.asks(trait, steering, context) for trait in settings.judges}
    flat = [request for requests in asks.values() for request in requests]
    if not flat:
        return {}
    engine = LocalEngine(model, batch=settings.batch, allow_other_model=True)
    what = f"Answering: {model.name}" + (f", {context.label}" if context else "")
    answers = iter(run.answer(engine, model, flat, settings.sampling, what=what))
    out: dict[str, tuple[Response, ...]] = {}
    for trait, requests in asks.items():
        questions = [q for q in settings.prompts[trait][: settings.answered] for _ in range(settings.rollouts)]
        out[trait] = tuple(
            replace(next(answers), question=question) for question, _ in zip(questions, requests, strict=True)
        )
    return out


def load_tuned_model(source: str, base: str, load_model: ModelLoader = load_model) -> Model:
    """Load a tuned model: a whole one, or a PEFT adapter folder on its base.

    Args:
        source: A folder, a hub id, or a PEFT adapter's folder.
        base: Name of the model that an adapter was trained on.
        load_model: Loads a model by name.

    Raises:
        MissingExtra: an adapter, and peft is not installed.
        BrokenModelFile: an adapter that does not fit the base, or holds nothing for it.
        ModelNotFound: there is no such model.
    """
    check_type("source", source, (str, Path), "a folder or a hub id")
    folder = str(Path(source).expanduser())
    if not (Path(folder) / ADAPTER_FILE).is_file():
        return load_model(source)
    remark_on_base(folder, base, HUB_IDS.get(base, base))
    model = load_model(base)
    return wrap(load_adapter(model.lm, folder, base=base), model.tokenizer, name=source)


def check_tuned_source(source: str) -> None:
    """Check, before the base is paid for, that a tuned model is an adapter folder or a model that can be found.

    Raises:
        ModelNotFound: nothing there.
    """
    check_type("source", source, (str, Path), "a folder or a hub id")
    if not (Path(source).expanduser() / ADAPTER_FILE).is_file():
        locate(source)


def model_digest(model: Model) -> str:
    """16 hex digits of all weights and the chat template; answers are kept by this, as a fingerprint only samples."""
    digest = hashlib.blake2b(template_text(model.tokenizer).encode(), digest_size=8)
    tensors = sorted(model.lm.state_dict().items())
    with track(f"Hashing {model.name}", total=len(tensors)) as advance:
        for name, tensor in tensors:
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            advance(1)
    return digest.hexdigest()


def free_memory() -> None:
    """Release the memory of models that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
