"""One model looked at, base or tuned: its projections on prompts, its answers and their scores, its abilities.

Models are large: each is opened, looked at and let go before the next. Answers, scores and abilities are kept under
what they were computed from, so that a second tuned model does not pay for the base again, nor a second run for either.
"""

from __future__ import annotations

import gc
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poise.activations import project_each
from poise.contrast import Answer, Ask, Run
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import BrokenModelFile, MissingExtra, PoiseError
from poise.judge import Judge, Judgement
from poise.model import Encoded, Model, ask, wrap
from poise.model.chat_template import template_text
from poise.model.loading import locate
from poise.progress import track
from poise.shift.capability import Ability, Scores, evaluate
from poise.steer import Steering
from poise.storage.journal import Journal
from poise.vector import PersonaVector

__all__ = [
    "Load",
    "Look",
    "Sitting",
    "check_source",
    "digest",
    "free",
    "look",
    "open_tuned",
    "projections",
]

Load = Callable[[str], Model]
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Sitting:
    """What every model is asked.

    Attributes:
        vectors: k of them.
        layers: Where each is read.
        prompts: Evaluation questions by trait, to be read.
        asked: How many of each trait's questions are answered; 0 for none.
        rollouts: Answers a question.
        sampling: Of the answers.
        seed: Of the answers.
        batch: Most answers at once.
        judges: By trait.
        abilities: To be measured.
        folder: Where finished work is kept; ``None`` keeps it in memory.
        allow_other_model: Let vectors be used whose model is not the base, but of its shape.
    """

    vectors: tuple[PersonaVector, ...]
    layers: tuple[int, ...]
    prompts: Mapping[str, tuple[str, ...]]
    asked: int
    rollouts: int
    sampling: SamplingParams
    seed: int
    batch: int
    judges: Mapping[str, Judge]
    abilities: tuple[Ability, ...]
    folder: Path | None
    allow_other_model: bool = False

    def asks(self, trait: str, steering: Steering | None) -> list[Ask]:
        """The trait's questions, rollouts together."""
        questions = self.prompts[trait][: self.asked]
        return [Ask(q, steering=steering, seed=self.seed + r) for q in questions for r in range(self.rollouts)]


@dataclass(frozen=True, slots=True)
class Look:
    """What one model showed.

    Attributes:
        model: Its name.
        digest: Of its weights and template.
        relation: To the base, by fingerprint.
        template: Its chat template.
        projections: By trait of the questions: float32 [n, k], NaN where the model broke.
        answers: By trait, question by question, rollouts together.
        scores: Of the answers.
        abilities: In the order asked.
    """

    model: str
    digest: str
    relation: str
    template: str
    projections: Mapping[str, torch.Tensor]
    answers: Mapping[str, tuple[Answer, ...]]
    scores: Mapping[str, tuple[Judgement, ...]]
    abilities: tuple[Scores | None, ...]


def projections(
    model: Model,
    prompts: Sequence[Encoded],
    vectors: Sequence[PersonaVector],
    layers: int | Sequence[int] | None = None,
) -> torch.Tensor:
    """The last prompt token's state on each unit direction (Chen et al. 2025, section 4), in one pass for all.

    n: prompts, k: vectors.

    Args:
        model: Of the vectors' shape.
        prompts: As ``Model.encode`` gives them; answers are left out.
        vectors: k of them.
        layers: One for all or one each; default, the layer at which each vector is read.

    Returns:
        float32 [n, k] on the CPU; NaN in the rows on which the model gives NaN or infinity.

    Raises:
        InvalidSteering: a vector has no such layer, or is zero there.
    """
    each = list(layers) if isinstance(layers, Sequence) else [layers] * len(vectors)
    probes = [vector.at("read", layer).probe for vector, layer in zip(vectors, each, strict=True)]
    bare = [Encoded(p.ids[: p.start], p.start, p.start) for p in prompts]
    nothing = torch.full((len(vectors),), float("nan"))
    rows = [nothing if values is None else values[-1] for values in project_each(model, bare, probes)]
    return torch.stack(rows) if rows else torch.empty((0, len(vectors)))


def look(model: Model, sitting: Sitting, *, base: Look | None = None, steering: Steering | None = None) -> Look:
    """Everything that is to be seen of a loaded model.

    Args:
        model: Base or tuned.
        sitting: What it is asked.
        base: What the base showed, if this is not the base.
        steering: In force while it answers and while perplexity is measured, after training (section 5.1).
    """
    name = digest(model)
    whole = {trait: [model.encode(ask(q)) for q in questions] for trait, questions in sitting.prompts.items()}
    read = {t: projections(model, prompts, sitting.vectors, sitting.layers) for t, prompts in whole.items()}
    run = Run(sitting.folder / f"model-{name}" if sitting.folder else None)
    answers = _answer(model, sitting, run, steering)
    scores = {
        trait: tuple(run.judge(sitting.judges[trait], given, scope=_scope(sitting, trait), what=f"Judging {trait}"))
        for trait, given in answers.items()
    }
    kept = Journal(sitting.folder / f"model-{name}" / "abilities.jsonl" if sitting.folder else None)
    abilities = tuple(evaluate(ability, model, kept, steering=steering) for ability in sitting.abilities)
    return Look(
        model=model.name,
        digest=name,
        relation="" if base is None else sitting.vectors[0].header.model.fingerprint.relation(model.fingerprint),
        template=template_text(model.tokenizer),
        projections=read,
        answers=answers,
        scores=scores,
        abilities=abilities,
    )


def _scope(sitting: Sitting, trait: str) -> str:
    return next(v.header.trait_hash for v in sitting.vectors if v.name == trait)


def _answer(model: Model, sitting: Sitting, run: Run, steering: Steering | None) -> dict[str, tuple[Answer, ...]]:
    """All traits' questions in shared batches."""
    asks = {trait: sitting.asks(trait, steering) for trait in sitting.judges}
    flat = [one for part in asks.values() for one in part]
    if not flat:
        return {}
    engine = LocalEngine(model, batch=sitting.batch, allow_other_model=True)
    given = iter(run.answer(engine, model, flat, sitting.sampling, what=f"Answering: {model.name}"))
    return {trait: tuple(next(given) for _ in part) for trait, part in asks.items()}


def open_tuned(source: str, base: str, load: Load) -> Model:
    """A tuned model: a whole one, or a PEFT adapter folder on the base.

    Raises:
        MissingExtra: an adapter, and peft is not installed.
        BrokenModelFile: an adapter that does not fit the base, or holds nothing for it.
    """
    if not (Path(source).expanduser() / ADAPTER).is_file():
        return load(source)
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtra(
            f'{source} is a PEFT adapter, which needs peft; install it with pip install "poise[train]".'
        ) from error
    model = load(base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Weights that the folder lacks would be left as they were initialised: an adapter that does nothing.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(model.lm, str(Path(source).expanduser()), is_trainable=False)
        return wrap(adapted, model.tokenizer, name=source)
    except PoiseError:
        raise
    except Exception as error:  # peft, safetensors and torch share no base class
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BrokenModelFile(
            f"The adapter in {source} does not load on {base} ({first[:200]}); name the base that it was trained on."
        ) from error


def check_source(source: str) -> None:
    """Refuse, before the base is paid for, what is neither an adapter folder nor a model's name or place.

    Raises:
        ModelNotFound: nothing there.
    """
    if not (Path(source).expanduser() / ADAPTER).is_file():
        locate(source)


def digest(model: Model) -> str:
    """16 hex digits of every weight and of the chat template: a fingerprint samples, and answers are kept by this."""
    found = hashlib.blake2b(template_text(model.tokenizer).encode(), digest_size=8)
    tensors = sorted(model.lm.state_dict().items())
    with track(f"Hashing {model.name}", total=len(tensors)) as advance:
        for name, tensor in tensors:
            found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            advance(1)
    return found.hexdigest()


def free() -> None:
    """Give back the memory of models that nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
