"""Whether what is read of a model with adapters is what the model gives: its own forward pass against ours.

Poise runs the base that an adapter is built into. That is the adapted model where an adapter changes weights or
modules, and the bare base where PEFT's own forward pass adds what it does: learnt tokens, offsets, a second model.
"""

from __future__ import annotations

from typing import Any

import torch

from poise.errors import UnsuitableModel, first_line
from poise.model.hooks import observe
from poise.model.language_model import Model
from poise.model.self_check import TEXT

__all__ = ["check_adapter_config", "check_adapter_configs", "check_adapter_effect"]

ADAPTER_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # mean |difference| over mean |value|
HALF_ADAPTER_TOLERANCE = 0.03
REMEDY = "use an adapter of the weights, such as LoRA, or the base model"


def check_adapter_configs(lm: Any, name: str) -> None:
    """Refuse adapters whose kind says that they work through PEFT's own forward pass alone.

    Raises:
        UnsuitableModel: names the kind.
    """
    for config in _configs(lm):
        check_adapter_config(config, name, alone=not hasattr(lm, "get_base_model"))


def check_adapter_config(config: Any, name: str, *, alone: bool) -> None:
    """As ``check_adapter_configs``, of one adapter; ``alone``: it is loaded without PEFT's own model around it.

    Raises:
        UnsuitableModel: names the kind.
    """
    kind = _kind(config)
    if getattr(config, "is_prompt_learning", False):
        raise UnsuitableModel(
            f"{name} carries a {kind} adapter, whose learnt tokens are not part of the text that is read; {REMEDY}."
        )
    if getattr(config, "alora_invocation_tokens", None) is not None:
        raise UnsuitableModel(
            f"{name} carries an activated LoRA (`alora_invocation_tokens`), which PEFT's own forward pass switches "
            "on from certain tokens of a text, so that readings and answers would be the base model's; use an "
            "ordinary LoRA, or the base model."
        )
    if getattr(config, "n_tasks", None) is not None:
        raise UnsuitableModel(
            f"{name} carries a {kind} adapter, which needs a task id with every pass and has none here; {REMEDY}."
        )
    if alone and not _is_built_in(config):
        raise UnsuitableModel(
            f"{name} carries a {kind} adapter, which works through PEFT's own forward pass alone, and was loaded "
            f"without it; {REMEDY}."
        )


@torch.inference_mode()
def check_adapter_effect(model: Model) -> None:
    """Compare what blocks and head give inside PEFT's own forward pass with what they give in ours, on a short text.

    Kinds whose forward pass is the model's own, such as LoRA, are taken at their word: they cost no pass.

    Raises:
        UnsuitableModel: they differ, or the model does not run on text alone.
    """
    lm = model.lm
    if not hasattr(lm, "get_base_model") or (_configs(lm) and all(map(_is_built_in, _configs(lm)))):
        return
    kinds = " and ".join(sorted({_kind(config) for config in _configs(lm)})) or "PEFT"
    ids = torch.tensor([model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]], device=model.device)
    read: dict[int, torch.Tensor] = {}
    inside: dict[int, torch.Tensor] = {}
    try:
        with _plain_precision(model), observe(model, lambda layer, h: read.update({layer: h.clone()})):
            base_logits = lm.get_base_model()(input_ids=ids, use_cache=False).logits
        with _plain_precision(model), observe(model, lambda layer, h: inside.update({layer: h.clone()})):
            out = lm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=True)
    except torch.OutOfMemoryError:
        raise
    except UnsuitableModel as error:
        raise UnsuitableModel(
            f"{model.name} carries a {kinds} adapter, inside whose own forward pass blocks give something else "
            f"({first_line(error).rstrip('.')}); {REMEDY}."
        ) from error
    except Exception as error:  # every kind raises its own
        raise UnsuitableModel(
            f"{model.name} carries a {kinds} adapter and does not run on text alone ({type(error).__name__}: "
            f"{first_line(error)[:160]}); {REMEDY}."
        ) from error
    pairs = [(out.logits, base_logits), *((inside[layer], h) for layer, h in read.items())]
    states = getattr(out, "hidden_states", None) or ()
    if len(states) == model.layers + 1:
        shift = min((1, 0), key=lambda shift: _relative_difference(states[shift], read[0]))
        pairs += [(states[layer + shift], read[layer]) for layer in range(model.layers - 1)]
    difference = max(_relative_difference(*pair) for pair in pairs)
    if difference > ADAPTER_TOLERANCE.get(lm.dtype, HALF_ADAPTER_TOLERANCE):
        raise UnsuitableModel(
            f"{model.name} carries a {kinds} adapter that works through PEFT's own forward pass: what that gives "
            f"differs by {difference:.2g} from what would be read; {REMEDY}."
        )


def _plain_precision(model: Model) -> torch.autocast:
    """The model's own precision, inside a trainer's autocast too."""
    return torch.autocast(model.device.type, enabled=False)


def _configs(lm: Any) -> list[Any]:
    configs = getattr(lm, "peft_config", {})
    return list(configs.values()) if isinstance(configs, dict) else []


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type)).lower().replace("_", " ")


def _is_built_in(config: Any) -> bool:
    """Whether all that an adapter does is in the modules that it changes: its kind brings no forward pass."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.lora import LoraModel
    from peft.tuners.tuners_utils import BaseTuner

    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    if tuner is None:
        return False
    return issubclass(tuner, LoraModel) or getattr(tuner, "forward", None) is BaseTuner.forward  # AdaLoRA adds a loss


def _relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean |a − b| over mean |b|; 0 where it is not finite, which whoever reads names."""
    difference = float((a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp(min=1e-9))
    return difference if difference == difference else 0.0
