"""Trait and model to a vector file, and vectors of other tools to ours: ``poise extract`` and ``poise import``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from poise import contrast as contrasts
from poise import vector as vectors
from poise.activations import reference_norm
from poise.contrast import ResponseStore
from poise.contrast.collection import collect_contrast
from poise.errors import InvalidArgument
from poise.extract import NORM_TEXTS, extract, software_versions
from poise.judge.factory import check_judge
from poise.storage.lock import check_free, locked
from poise.storage.output import check_output
from poise.trait import OwnTrait, Trait
from poise.vector import ModelId, PersonaVector
from poise.vector.importing import ForeignVector, Numbering, adopt_vector
from poise.vector.vector_file import vector_loss
from poise.vllm.choice import GeneratorName, check_generator, choose_engine
from poise.workflows.budget import GenerationBudget
from poise.workflows.sources import ModelSource, load_now

__all__ = ["extract_vector", "import_vector"]


def extract_vector(
    trait: Trait | OwnTrait,
    model: ModelSource,
    out: Path,
    *,
    contrast: Literal["prompted", "exemplars"] = "exemplars",
    judge: str = "exemplars",
    budget: GenerationBudget | None = None,
    batch: int = 32,
    inputs: Sequence[Path] = (),
    force: bool = False,
    engine: GeneratorName = "local",
) -> PersonaVector:
    """Trait and model → a vector file at ``out``. Run again after a kill, it continues in ``out`` + ``.run``.

    Args:
        trait: What to extract.
        model: On which model.
        out: The file; an earlier vector of this trait and model is replaced if it has no certificate and no alarms.
        contrast: Origin of the two sides.
        judge: Who filters prompted answers.
        budget: How much is generated for prompted contrast.
        batch: Most answers generated at once.
        inputs: Files that trait and pairs were read from, which ``out`` must not be.
        force: Write over an existing file whatever it holds.
        engine: What generates, for prompted contrast: ``local`` or ``vllm``.

    Raises:
        InvalidArgument: another engine than ``local`` where nothing is generated.
        OutputExists: the file holds something that would be lost; before the model is loaded where that is known then.
        FolderInUse: another run is at work on this file.
    """
    if engine != "local" and contrast == "exemplars":
        raise InvalidArgument(
            f"`engine` is {engine}, and exemplars are read, not generated; leave `engine` out, or use prompted as "
            "`contrast`."
        )
    check_generator(engine)
    check_output(out, inputs=inputs, loss=lambda existing: vector_loss(existing, trait.name), force=force)
    if contrast == "prompted":
        contrasts.check_prompted(trait)
        check_judge(judge, trait)
        check_free(out.with_name(out.name + ".run"))
    loaded = load_now(model)
    identity = ModelId.of(loaded)
    check_output(out, loss=lambda existing: vector_loss(existing, trait.name, model=identity), force=force)
    if contrast == "exemplars":
        pairs = contrasts.exemplars(trait, loaded)
    else:
        amount, folder = budget or GenerationBudget(), out.with_name(out.name + ".run")
        with locked(folder, "extract"):
            pairs = collect_contrast(
                trait,
                loaded,
                contrast,
                judge=judge,
                questions=amount.questions,
                rollouts=amount.rollouts,
                sampling=amount.sampling,
                seed=amount.seed,
                batch=batch,
                run=ResponseStore(folder),
                engine=choose_engine(engine, loaded, batch=batch),
            )
    vector = extract(pairs, loaded)
    vectors.save_vector(vector, out, force=force)
    return vector


def import_vector(
    foreign: ForeignVector,
    model: ModelSource,
    trait: Trait | OwnTrait,
    out: Path,
    *,
    layers_are: Numbering | None = None,
    inputs: Sequence[Path] = (),
    force: bool = False,
) -> PersonaVector:
    """Another tool's vector, as ``poise.vector.importing.read_foreign_vector`` gave it → a vector file at ``out``.

    The unit of a dose is measured on the trait's answers without it, as in extraction. ``inputs`` and ``force`` as in
    ``extract_vector``.
    """
    inputs = (foreign.path, *inputs)
    check_output(out, inputs=inputs, loss=lambda existing: vector_loss(existing, trait.name), force=force)
    loaded = load_now(model)
    ordinary = contrasts.exemplars(trait, loaded, most=NORM_TEXTS).negative
    norm = reference_norm(loaded, [answer.encoded for answer in ordinary])
    vector = adopt_vector(foreign, loaded, trait, norm, numbering=layers_are, software=software_versions())
    vectors.save_vector(vector, out, force=force)
    return vector
