"""How many cached positions a server may hold in the memory there is, and how many a pass is worth.

Both rest on bytes: what a position's keys and values take, and what the weights take that every pass reads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from poise.engine.kv_cache import CACHE_BUDGET_CPU, CACHE_BUDGET_GPU, RoomyLayer, roomy_cache
from poise.model import Model

__all__ = ["pass_positions", "position_bytes", "serving_positions"]

MEMORY_SHARE_CPU = 0.1  # of the machine's; rooms of the cache take up to half as much again
MEMORY_SHARE_GPU = 0.5  # of what the weights have left free
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def position_bytes(model: Model) -> int:
    """Bytes of one position's keys and values, over all layers that keep them for the whole text; at least 1."""
    config = model.lm.config.get_text_config()
    kinds = [type(layer) for layer in roomy_cache(model.lm.config).layers]
    layers = kinds.count(RoomyLayer) if kinds else _config_number(config, "num_hidden_layers")
    heads, hidden = _config_number(config, "num_attention_heads"), _config_number(config, "hidden_size")
    width = _config_number(config, "head_dim") or (hidden // heads if heads else 0)
    head_states = (_config_number(config, "num_key_value_heads") or heads) * width
    return max(
        1, 2 * layers * (head_states or hidden) * int(model.lm.dtype.itemsize)
    )  # without heads, as wide as the model


def _config_number(config: Any, name: str) -> int:
    """A number of a config; the largest where it has one for each layer, 0 where it has none."""
    value = getattr(config, name, None)
    return max((int(each) for each in value), default=0) if isinstance(value, list | tuple) else int(value or 0)


def pass_positions(model: Model) -> int:
    """What one more pass costs: the cached positions whose keys and values are as many bytes as the weights."""
    weights = sum(int(weight.numel() * weight.element_size()) for weight in model.lm.parameters())
    return weights // position_bytes(model)


def serving_positions(model: Model, batch: int) -> int:
    """Positions that a server holds where it is told no number.

    On a CPU those that a tenth of the machine's memory holds (of a container's, where it is limited), at least 16,384;
    on a GPU those that half of its free memory holds. Never more than 262,144 or than so many full windows.

    Args:
        model: Model in evaluation mode, loaded.
        batch: Most answers at once.
    """
    most = min(CACHE_BUDGET_GPU, batch * model.window)
    if model.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(model.device)
        return max(1, min(most, int(MEMORY_SHARE_GPU * free) // position_bytes(model)))
    if model.device.type != "cpu":
        return most
    fitting = int(MEMORY_SHARE_CPU * machine_memory()) // position_bytes(model)
    return max(CACHE_BUDGET_CPU, min(most, fitting))


def machine_memory() -> int:
    """Bytes of memory that this process may come to use; 0 where that is unknown."""
    try:
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return 0
    for name in CGROUP_LIMITS:
        try:
            limits.append(int(Path(name).read_text("utf-8")))
        except (OSError, ValueError):  # no container, or no limit: "max"
            continue
    return min(limits)
