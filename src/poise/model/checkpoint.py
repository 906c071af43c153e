"""What a checkpoint is, by its configuration, and whether its file and the model that it was loaded into agree."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from poise.errors import BrokenModelFile, UnsuitableModel

__all__ = ["check_complete", "check_decoder_only", "check_writes_text", "language_model_class"]

KEYS_SHOWN = 3  # names of weights that an error repeats

# Heads that a text is scored with; the language model under them was changed for that.
SCORING_HEADS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForRewardModel",
    "RewardModel",
)
# What a model that is no language model is, by the mappings of transformers that it is in.
OTHER_KINDS = (
    ("MODEL_FOR_TEXT_TO_WAVEFORM", "a speech model"),
    ("MODEL_FOR_SPEECH_SEQ_2_SEQ", "a speech model"),
    ("MODEL_FOR_CTC", "a speech model"),
    ("MODEL_FOR_AUDIO_CLASSIFICATION", "a speech model"),
    ("MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION", "an image model"),
    ("MODEL_FOR_IMAGE_CLASSIFICATION", "an image model"),
    ("MODEL_FOR_OBJECT_DETECTION", "an image model"),
    ("MODEL_FOR_MASKED_LM", "an encoder"),
    ("MODEL_FOR_TEXT_ENCODING", "an encoder"),
)
# Buffers that a model computes itself, and what quantisation leaves beside weights.
COMPUTED_TENSORS = re.compile(
    r"(inv_freq|cos_cached|sin_cached|position_ids|masked_bias|\.(attn|attention|self_attention)\.bias"
    r"|scales?|scale_inv|zeros|zero_point|absmax|quant_map|nested_\w+|SCB|g_idx|weight_format|_amax)$|\.quant_state"
    r"|rotary_emb|rotary_pos_emb|rope_freqs|rope_factors"
)
# Modules beside the language model: other senses, drafts of later tokens, values of training.
OTHER_MODULES = re.compile(
    r"vision|visual|image|img|audio|speech|video|projector|multi_modal|mm_|embed_vision|embed_audio|talker|token2wav"
    r"|code2wav|codec|mtp|nextn|medusa|eagle|draft|v_head|value_head|adapter"
)


def check_decoder_only(config: Any, name: str) -> None:
    """Refuse encoder-decoders, which would run as their decoder alone and answer to nothing.

    Raises:
        UnsuitableModel: says what the model is.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UnsuitableModel(
            f"{name} is an encoder-decoder ({config.model_type}); Poise reads and steers decoder-only language models, "
            "so give one of those."
        )


def check_writes_text(config: Any, name: str) -> None:
    """Refuse classifiers and reward models: a language model under one has no head, or one that training left behind.

    Raises:
        UnsuitableModel: says what the checkpoint is.
    """
    heads = getattr(config, "architectures", None) or ()
    if head := next((head for head in heads if str(head).endswith(SCORING_HEADS)), None):
        raise UnsuitableModel(
            f"{name} is a classifier or reward model ({head}), which scores texts and writes none; give the language "
            "model that it was made from."
        )


def language_model_class(config: Any, name: str) -> Any:
    """The class that runs a checkpoint on text: of one with more senses the whole, whose text side is used.

    Raises:
        UnsuitableModel: it has no language model; says what it is.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    def has(mapping: str) -> bool:
        return type(config) in getattr(modeling_auto, f"{mapping}_MAPPING", ())

    if has("MODEL_FOR_CAUSAL_LM"):
        return transformers.AutoModelForCausalLM
    if not has("MODEL_FOR_TEXT_TO_WAVEFORM"):
        for mapping, kind in (
            ("MODEL_FOR_IMAGE_TEXT_TO_TEXT", "AutoModelForImageTextToText"),
            ("MODEL_FOR_MULTIMODAL_LM", "AutoModelForMultimodalLM"),
            ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM", "AutoModelForSeq2SeqLM"),
        ):
            if has(mapping) and hasattr(transformers, kind):
                return getattr(transformers, kind)
    known = type(config) in getattr(modeling_auto, "MODEL_MAPPING", ())
    what = next((words for mapping, words in OTHER_KINDS if has(mapping)), "no language model" if known else "")
    if what:
        raise UnsuitableModel(
            f"{name} is {what} ({config.model_type}); Poise reads and steers decoder-only language models, so give one "
            "of those."
        )
    return transformers.AutoModelForCausalLM  # whose error says what it makes of it


def check_complete(lm: Any, info: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint without some of its weights, and one with more than the model takes.

    The former would be random numbers, the latter would be dropped. Tied weights and buffers that are computed at load
    are no weights of the file, and neither are those of modules beside the language model.

    Raises:
        BrokenModelFile: names the weights that are missing, have another shape or have no place.
    """
    expected = {key for key in lm.state_dict() if not COMPUTED_TENSORS.search(key)}
    expected |= {key for key, _ in lm.named_parameters(remove_duplicate=False)}
    missing = sorted(key for key in info.get("missing_keys", ()) if key in expected)
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ()))
    if faults := [*missing, *mismatched]:
        what = "lacks" if missing else "has in another shape"
        raise BrokenModelFile(
            f"The checkpoint {name} {what} {_first_keys(faults)}, which would be random numbers; fetch or save it "
            "again."
        )
    if dropped := _without_place(lm, info.get("unexpected_keys", ())):
        raise BrokenModelFile(
            f"The checkpoint {name} holds {_first_keys(dropped)}, which the model of its config.json does not take and "
            "which would be left out; fetch or save it again with the configuration of these weights."
        )


def _first_keys(keys: list[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return f"{', '.join(keys[:KEYS_SHOWN])}{more}"


def _without_place(lm: Any, keys: Iterable[str]) -> list[str]:
    """Weights of the file that belong to the language model and have no place in it."""
    modules = dict(lm.named_modules())
    patterns = [str(pattern) for pattern in getattr(lm, "_keys_to_ignore_on_load_unexpected", None) or ()]
    later = _later_layers(lm.config)
    dropped = []
    for key in sorted(map(str, keys)):
        words = key.split(".")
        depth = next((n for n in range(len(words) - 1, 0, -1) if ".".join(words[:n]) in modules), 0)
        outside = OTHER_MODULES.search(".".join(words[: depth + 1])) is not None
        ignored = any(re.search(pattern, key) for pattern in patterns)
        if not (outside or ignored or COMPUTED_TENSORS.search(key) or any(f".{layer}." in key for layer in later)):
            dropped.append(key)
    return dropped


def _later_layers(config: Any) -> range:
    """Numbers of layers after the last that guess later tokens, as DeepSeek and GLM files hold them."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    layers, more = getattr(text, "num_hidden_layers", 0), getattr(text, "num_nextn_predict_layers", 0)
    return range(layers, layers + more) if isinstance(layers, int) and isinstance(more, int) else range(0)
