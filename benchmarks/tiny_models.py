"""A tiny random model of every architecture in transformers' causal mapping, shrunk by the names of its fields.

Knows what fields are called, not what they do: a few types need values of their own (``OVERRIDES``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["build", "names"]

WIDTH, LAYERS, VOCABULARY, POSITIONS = 32, 4, 512, 256
SIZES: tuple[tuple[str, int], ...] = (  # the first that fits
    (r".*pad_token_id", 0),  # no token of the texts
    (r".*token_(ids?|index)", 500),
    (r"type_vocab_size|target_vocab_size", 2),
    (r".*vocab_size.*|.*vocab_size", VOCABULARY),
    (r"first_k_dense_replace|n_shared_experts|num_shared_experts|moe_num_shared_experts|n_group|topk_group", 1),
    (r"index_topk|keep_window_size", POSITIONS),  # a window of texts: beyond it attention is sparse
    (r".*(experts_per_tok|top_?k|experts_per_token|num_selected_experts).*|num_experts_per_tok", 2),
    (r".*(num|n|routed|local)_.*experts.*|num_experts|n_experts|.*expert_num", 4),
    (r"num_kv_shared_layers|num_nextn_predict_layers", 0),
    (r".*(num|n)_.*layers?|n_layers?|.*_layers|num_layers|n_layer|.*num_hidden_layers", LAYERS),
    (r".*(key_value_heads|kv_heads|query_groups|.*key_heads|.*n_kv.*)", 2),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),  # times their width: twice the model's
    (r".*(num|n)_.*heads?|.*_heads|n_heads?|mamba_n_heads|num_heads", 4),
    (r".*rope_head_dim|rotary_dim|rotary_ndims", 4),
    (r".*(head_dim|d_head|headdim|head_size|channels|d_kv|head_width)", 8),
    (r".*(intermediate_size|ffn_dim|d_ff|ffn_hidden_size|n_inner|inner_dim|dim_ff|feed_forward_size|ff_dim).*", 64),
    (r"dim_model|emb_dim|n_embd|d_model|dim|.*hidden_size|.*hidden_dim|lru_width|.*embed_dim|.*embedding_size", WIDTH),
    (r".*(rank|lora_dim).*", 8),
    (r".*(d_state|state_size|ssm_state)", 8),
    (r".*(max_position.*|n_positions|n_ctx|max_seq_len.*|seq_length|max_sequence_length|context_length)", POSITIONS),
    (r"image_size", 16),
    (r"patch_size", 8),
    (r".*(sliding_window|window_size|chunk_size|local_attention|attention_chunk_size).*", 8),
)
SPREAD = {"initializer_range": 0.15, "init_std": 0.15, "initializer_factor": 1.0, "init_scale": 0.15}
INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": POSITIONS,
    "indexer_compress_ratio": 4,
}
HYBRID = ["linear_attention", "hybrid"] * 2
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blenderbot": {"encoder_layers": LAYERS},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"head_dim": 32},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_k": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": ["mamba", "attention", "mlp", "mamba"]},
    "qwen4_exp_text": INDEXER,
    "reformer": {"axial_pos_embds": False, "vocab_size": VOCABULARY},
    "xlstm": {"embedding_dim": WIDTH, "num_blocks": LAYERS, "chunk_size": 16},
    "zamba2": {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 16, "layers_block_type": HYBRID},
}
DERIVED = ("qk_head_dim", "per_layer_config", "hybrid_layer_ids")


def names() -> list[str]:
    """Every type of the mapping, and twice what is another thing as a decoder than as its checkpoints are."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    rows = []
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        config = CONFIG_MAPPING[kind]
        defaults = vars(config) | getattr(config, "__dataclass_fields__", {})
        rows.append(kind)
        if ("is_decoder" in defaults and "gpt" not in kind) or "is_encoder_decoder" in vars(config):
            rows.append(f"{kind}/decoder")
    return rows


def build(name: str) -> Any:
    """A random model of this type in float32, spread widely enough that its layers and tokens differ."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(_config(name), dtype=torch.float32)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.is_floating_point() and parameter.numel() > 1 and not parameter.std():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return lm.eval()


def _config(name: str) -> Any:
    from transformers import CONFIG_MAPPING

    kind, _, variant = name.partition("/")
    config_class = CONFIG_MAPPING[kind]
    values = _shrunk(_plain(config_class())) | OVERRIDES.get(kind, {})
    if variant == "decoder":
        values |= {"is_decoder": True, "is_encoder_decoder": False}
    return config_class(**values)


def _plain(config: Any) -> dict[str, Any]:
    left_out = {"transformers_version", "model_type", "architectures", "dtype", "_name_or_path"}
    return {key: value for key, value in config.to_dict().items() if key not in left_out}


def _shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    layers = next((value for key, value in values.items() if _size(key) == LAYERS and isinstance(value, int)), 0)
    shrunk = {key: value for key, value in _shrunk_items(values, layers) if key not in DERIVED}
    if "qk_rope_head_dim" in shrunk and "head_dim" in shrunk:
        shrunk["head_dim"] = shrunk["qk_rope_head_dim"]
    if "qk_rope_head_dim" in shrunk and "num_key_value_heads" in shrunk:
        shrunk["num_key_value_heads"] = shrunk["num_attention_heads"]
    if shrunk.get("head_dim", 0) is None:
        shrunk["head_dim"] = 8
    return shrunk


def _shrunk_items(values: Mapping[str, Any], layers: int) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield key, dict(value) if key.startswith(("rope", "id2", "label2")) else _shrunk(value)
        elif isinstance(value, list) and layers and len(value) == layers:
            yield key, [_number(key, item) for item in _every_kind(value)]
        else:
            yield key, _number(key, value)


def _every_kind(items: list[Any]) -> list[Any]:
    """As many as there are layers, each kind at least once, in the order of their first appearance."""
    kinds = [item for at, item in enumerate(items) if item not in items[:at]][:LAYERS]
    return sorted([*kinds, *items[: LAYERS - len(kinds)]], key=kinds.index)


def _number(key: str, value: Any) -> Any:
    if key in SPREAD:
        return SPREAD[key]
    size = _size(key)
    if isinstance(value, list):
        return [_number(key, item) for item in value]
    if isinstance(value, bool) or size is None or not isinstance(value, int | float):
        return value
    return min(int(value), size) if value > 0 else value


def _size(key: str) -> int | None:
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, key)), None)
