"""Find a model's decoder blocks: by structure first, by name second, never by guessing in silence."""

from __future__ import annotations

from typing import Any

from torch import nn

from poise.errors import UnsuitableModel

__all__ = ["config_value", "decoder_blocks", "model_width", "model_window", "text_config"]

# Where transformers keeps decoder blocks; only asked when structure alone is ambiguous or silent.
KNOWN_NAMES = (
    "language_model.layers",
    "decoder.layers",
    "model.layers",
    "gpt_neox.layers",
    "transformer.h",
    "layers",
    "h",
)
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WINDOWS = ("max_position_embeddings", "n_positions", "max_seq_len")
SPARSE_WINDOWS = ("index_topk", "keep_window_size")  # beyond it, what is attended to depends on padding too
WIDTHS = ("hidden_size", "n_embd", "d_model")


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model, also in multimodal ones."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def config_value(config: Any, name: str) -> Any:
    """A configuration's value; ``None`` where it has none, or another for each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers' own kinds, for what differs between layers
        return None


def model_window(config: Any) -> int:
    """Most tokens that a model of this configuration takes at once."""
    sizes = [config_value(text_config(config), key) for key in (*WINDOWS, *SPARSE_WINDOWS)]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=1 << 30)


def model_width(lm: nn.Module, name: str) -> int:
    """d, the width of the residual stream.

    Raises:
        UnsuitableModel: the configuration does not say it.
    """
    config = text_config(getattr(lm, "config", None))
    sizes = [size for key in WIDTHS if isinstance(size := config_value(config, key), int)]
    if not sizes:
        raise UnsuitableModel(
            f"The configuration of {name} has none of {', '.join(WIDTHS)}, so that the width of its residual stream is "
            "not known; use a decoder-only language model."
        )
    return sizes[0]


def decoder_blocks(lm: nn.Module) -> tuple[nn.Module, ...]:
    """The decoder blocks in order, also through a PEFT wrapper.

    By structure: the module lists that have as many entries as the configuration has layers and lie inside no
    other list (so that experts of a mixture are never taken for blocks). If several or none remain, by name.

    Raises:
        UnsuitableModel: no such list, or several that no known name decides between; names what was looked for.
    """
    config = text_config(getattr(lm, "config", None))
    count = next((n for k in LAYER_COUNTS if isinstance(n := config_value(config, k), int)), None)
    lists = _outermost_lists(lm)
    candidates = {name: blocks for name, blocks in lists.items() if len(blocks) == count}
    if len(candidates) != 1:
        pool = candidates or lists
        candidates = (
            {name: blocks for name, blocks in pool.items() if _has_known_name(name)}
            if count is None or candidates
            else {}
        )
    if len(candidates) != 1:
        seen = ", ".join(f"{name} ({len(blocks)})" for name, blocks in lists.items()) or "none"
        raise UnsuitableModel(
            f"Cannot find the decoder blocks of {type(lm).__name__}: looked for one list of {count} modules, "
            "outside any "
            f"other list, or one named like {', '.join(KNOWN_NAMES)}; module lists seen: {seen}. Pass a decoder-only "
            "transformer, or report the architecture."
        )
    return tuple(next(iter(candidates.values())))


def _outermost_lists(lm: nn.Module) -> dict[str, nn.ModuleList]:
    lists = {name: m for name, m in lm.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0}
    return {name: m for name, m in lists.items() if not any(name.startswith(other + ".") for other in lists)}


def _has_known_name(name: str) -> bool:
    return "vision" not in name and any(name == k or name.endswith("." + k) for k in KNOWN_NAMES)
