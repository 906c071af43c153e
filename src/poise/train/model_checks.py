"""What can be wrong with settings once the base is loaded, found before any data is read: vectors and modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from poise.errors import InvalidArgument, OtherModel, first_line
from poise.model import Model
from poise.settings import SettingFault, faults_error
from poise.settings.other_names import Place
from poise.train.config import TrainConfig
from poise.train.setting_checks import named_vectors
from poise.vector import PersonaVector, load_vector

__all__ = ["ModelFaults", "check_with_model", "token_numbers", "vector_faults"]

ModelFaults = Callable[[Model], Iterable[SettingFault]]


def check_with_model(config: TrainConfig, model: Model, more: ModelFaults | None = None) -> None:
    """Refuse settings that do not go with the base.

    Args:
        config: The settings.
        model: The base.
        more: Finds what else is wrong with vectors.

    Raises:
        OtherModel: a vector was computed on another model.
        InvalidArgument: the base has no such module or token.
    """
    vectors = [(place, name, load_vector(name)) for place, name in named_vectors(config)]
    of_vectors = [*vector_faults(vectors, model, allow_other_model=config.allow_other_model)]
    of_vectors += more(model) if more else ()
    faults = [*of_vectors, *_module_faults(config, model)]
    if faults:
        raise faults_error(faults, OtherModel if of_vectors else InvalidArgument)


def vector_faults(
    vectors: Iterable[tuple[Place, str, PersonaVector]],
    model: Model,
    *,
    allow_other_model: bool = False,
    record: str = "",
) -> Iterator[SettingFault]:
    """Which vectors may not be used on a model; the arguments but for the places are those of ``check_model``."""
    for place, name, vector in vectors:
        try:
            vector.check_model(model, allow_other_model=allow_other_model, record=record)
        except OtherModel as error:
            yield place, f"names {name}: {first_line(error).rstrip('.')}"


def _module_faults(config: TrainConfig, model: Model) -> Iterator[SettingFault]:
    """Modules to be adapted that are not there, which PEFT ignores, or that an adapter cannot change; and tokens."""
    if config.adapter == "none" or config.lora.start is not None:
        return
    lora, modules = config.lora, dict(model.lm.named_modules())
    block = {name.rpartition(".")[2]: module for name, module in model.blocks[0].named_modules() if name}
    outside = {name.rpartition(".")[2] for name in modules} & {"lm_head", "embed_tokens"}
    usable = {name for name, module in block.items() if _is_matrix(module)}
    with_weights = {name for name, module in block.items() if getattr(module, "weight", None) is not None}
    targets = () if isinstance(lora.targets, str) else lora.targets
    for setting, wanted, present in (
        ("targets", targets, usable),
        ("modules_to_save", lora.modules_to_save, with_weights | outside),
    ):
        listed = f"{model.name}; its blocks have {', '.join(sorted(present))}"
        matches = {t: [m for name, m in modules.items() if name == t or name.endswith(f".{t}")] for t in wanted}
        if missing := [t for t, matched in matches.items() if not matched]:
            yield ("lora", setting), f"names {', '.join(missing)}, not in {listed}"
        unfit = [t for t, matched in matches.items() if not all(map(_is_matrix, matched))]
        if setting == "targets" and unfit:
            kinds = ", ".join(f"{t} ({type(matches[t][0]).__name__})" for t in unfit)
            yield ("lora", setting), f"names {kinds}, which LoRA cannot adapt: it changes matrices, which in {listed}"
    size = model.lm.get_input_embeddings().num_embeddings
    numbers = zip(lora.trainable_tokens, token_numbers(config, model), strict=True)
    if unknown := [str(token) for token, number in numbers if not 0 <= number < size]:
        yield (
            ("lora", "trainable_tokens"),
            f"names {', '.join(unknown)}, not in the vocabulary of {model.name} ({size} tokens); name tokens as its "
            "tokenizer has them, such as a special token, or their numbers",
        )


def token_numbers(config: TrainConfig, model: Model) -> list[int]:
    """The numbers of the tokens whose embeddings are trained; −1 for one that the tokenizer does not have."""
    vocabulary = model.tokenizer.get_vocab()
    return [vocabulary.get(token, -1) if isinstance(token, str) else token for token in config.lora.trainable_tokens]


def _is_matrix(module: Any) -> bool:
    """Whether a module is one matrix, as linear layers and embeddings are; the gains of a norm are a vector."""
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() > 1
