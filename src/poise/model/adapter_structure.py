"""Which tensors of a wrapped model are its base's: told by how adapters wrap modules, not by their kinds' names."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["adapters_in_force", "base_modules", "base_name", "has_adapter_layers", "unwrapped"]

# Children that hold what a wrapper stands for. PEFT's layers of every kind keep it as one of these.
WRAPPED_CHILDREN = (
    "base_layer",
    "original_module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
)
PEFT_CHILDREN = ("token_adapter", "base_model", "lora_model", "model")  # only in classes of PEFT: elsewhere plain names


def base_name(lm: nn.Module, name: str) -> str | None:
    """The name that a tensor of ``lm.state_dict()`` has in the bare base model; ``None`` if an adapter brought it."""
    module: nn.Module | None = lm
    plain: list[str] = []
    for part in name.split("."):
        child = None if module is None else module._modules.get(part)
        wrapped = None if module is None else _wrapped_child(module)
        if wrapped is None and (module is None or not _is_peft(module)):
            plain.append(part)
        elif part != wrapped:
            return None
        module = child
    return ".".join(plain)


def adapters_in_force(lm: nn.Module) -> str:
    """Which of a model's adapters work, where not all that are loaded do; empty where all of them do, or none is."""
    layer = next((module for module in lm.modules() if hasattr(module, "_disable_adapters")), None)
    if layer is None:
        return ""
    loaded = sorted(getattr(lm, "peft_config", {}))
    active = [] if layer._disable_adapters else sorted(getattr(layer, "active_adapters", loaded))
    return "" if active == loaded else f"{[loaded.index(name) for name in active if name in loaded]} of {len(loaded)}"


def has_adapter_layers(lm: nn.Module) -> bool:
    """Whether layers of PEFT are in a model now, as after an adapter was added to it."""
    return any("_disable_adapters" in vars(module) for module in lm.modules())


def base_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module of the bare base model with its name there, in order."""
    module = unwrapped(module)
    yield name, module
    for key, child in module._modules.items():
        if child is not None:
            yield from base_modules(child, f"{name}.{key}" if name else key)


def unwrapped(module: nn.Module) -> nn.Module:
    """What is left of a module when all wrappers around it are gone."""
    while (key := _wrapped_child(module)) is not None:
        child = module._modules[key]
        assert child is not None
        module = child
    return module


def _wrapped_child(module: nn.Module) -> str | None:
    keys = (*WRAPPED_CHILDREN, *PEFT_CHILDREN) if _is_peft(module) else WRAPPED_CHILDREN
    return next((key for key in keys if module._modules.get(key) is not None), None)


def _is_peft(module: nn.Module) -> bool:
    return any(kind.__module__.partition(".")[0] == "peft" for kind in type(module).__mro__)
