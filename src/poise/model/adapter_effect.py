"""What the adapters that work add to a model: a hash of their tensors, their strength and their settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from typing import Any

from torch import nn

from poise.model.adapter_structure import base_name
from poise.model.fingerprint import sample_values

__all__ = ["adapter_effect"]

# Settings of adapters that no forward pass depends on, or that show in tensors, their places and their strengths.
TRAINING_KEYS = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "alpha",
    "alpha_pattern",
    "modules_to_save",
    "peft_version",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_rslora",
}
TRAINING_PARTS = ("dropout", "init", "loftq", "eva_", "corda_", "megatron", "orth_reg", "tinit", "tfinal", "total_step")


def adapter_effect(lm: nn.Module) -> str:
    """16 hex digits of what adapters change in a forward pass as they are now; empty where none changes anything.

    Adapters that are switched off, not active, or merged into the weights count for nothing, and neither do names. Two
    adapters with equal tensors differ where their strength does (PEFT's ``scaling`` of each layer, whatever alpha, rank
    and later changes gave it), or any setting that is not its kind's default and not known to be harmless.
    """
    configs = getattr(lm, "peft_config", {})
    configs = configs if isinstance(configs, dict) else {}
    parts: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    layers = {name: module for name, module in lm.named_modules() if hasattr(module, "_disable_adapters")}
    for name, tensor in lm.state_dict().items():
        if base_name(lm, name) is not None:
            continue
        place = _owner(name, layers)
        words = name[len(place) :].strip(".").split(".")
        adapter = next((word for word in words if word in configs), "")
        if place and adapter not in ("", *_in_force(layers[place])):
            continue
        line = f"{'.'.join(word for word in words if word != adapter)}{tuple(tensor.shape)}".encode()
        parts[place, adapter].append(line + sample_values(tensor))
    lines = [_layer_line(lm, layers.get(place), place, adapter, tensors) for (place, adapter), tensors in parts.items()]
    lines += [_chosen_settings(configs[adapter]) for adapter in {adapter for _, adapter in parts} & set(configs)]
    return hashlib.sha256(b"\n".join(sorted(lines))).hexdigest()[:16] if lines else ""


def _owner(name: str, layers: dict[str, nn.Module]) -> str:
    """The innermost adapter layer that a tensor lies in; empty where it lies in none."""
    words = name.split(".")
    places = (".".join(words[:n]) for n in range(len(words) - 1, 0, -1))
    return next((place for place in places if place in layers), "")


def _in_force(layer: Any) -> list[str]:
    """The adapters of a layer that its forward pass adds."""
    if layer._disable_adapters or getattr(layer, "merged", False):
        return []
    return list(getattr(layer, "active_adapters", []))


def _layer_line(lm: nn.Module, layer: nn.Module | None, place: str, adapter: str, tensors: list[bytes]) -> bytes:
    """One adapter of one layer: where, how strong, and its tensors."""
    strengths = {
        key: round(float(values[adapter]), 6)
        for key, values in sorted(vars(layer).items() if layer is not None else ())
        if "scaling" in key and isinstance(values, dict) and isinstance(values.get(adapter), int | float)
    }
    where = base_name(lm, f"{place}.weight") if place else ""
    return hashlib.sha256(b"".join([f"{where}{strengths}".encode(), *sorted(tensors)])).digest()


def _chosen_settings(config: Any) -> bytes:
    """An adapter's settings that are not its kind's defaults and may matter."""
    chosen: dict[str, str | list[str]] = {"kind": str(getattr(config.peft_type, "value", config.peft_type))}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name, None)
        default = field.default_factory() if callable(field.default_factory) else field.default
        harmless = field.name in TRAINING_KEYS or any(part in field.name for part in TRAINING_PARTS)
        if not harmless and field.name != "peft_type" and value not in (default, None, False):
            chosen[field.name] = sorted(map(str, value)) if isinstance(value, set | list | tuple) else str(value)
    return json.dumps(chosen, sort_keys=True, default=str).encode()
