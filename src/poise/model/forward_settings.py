"""``ForwardSettings``: what a model's forward pass depends on besides its weights.

The same weights compute something else under another ``rope_theta``, activation, epsilon, window, multiplier or soft
cap, and no hash of weights shows it. Two ways lead there: to keep what the model makes of a fixed text, or to keep its
configuration. A text's outputs are equal whatever the spelling, but only to within the rounding of dtype, device and
kernels, which hides small changes (an epsilon, a variant of GELU), and a text short enough to run at every check never
reaches what works at length (sliding windows, dynamic rotary embeddings) or at large values (soft caps). So it is the
configuration, read the safe way round: every key that the model's class knows counts, but for a list of harmless ones,
so that settings of architectures to come count too. The spelling is transformers', which rewrites old configurations
when it loads them. A key that only one side's version of transformers knows is not compared, and numbers are equal to
four digits, as files of other formats round them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from typing import Annotated, Any

from pydantic import Field

from poise.model.adapter_effect import adapter_effect
from poise.model.architecture import WINDOWS, text_config
from poise.settings import Frozen, FrozenModel

__all__ = ["ForwardSettings", "forward_settings"]

Setting = bool | int | float | str | None
LONGEST_LIST = 40  # characters of a list's JSON that is kept as it is
LARGEST_RELATIVE_ERROR = 1e-4  # of a number that two files round in two ways

# What no forward pass in evaluation mode depends on, or what shows in the weights themselves.
HARMLESS = {
    "architectures",
    "auto_map",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "gradient_checkpointing",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "router_z_loss_coef",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
HARMLESS_PARTS = ("_token_id", "dropout", "pdrop", "initializer_", "summary_")
NEUTRAL = (None, False, 0, 1, "default")  # inside a setting, where one side writes what the other leaves out


class ForwardSettings(FrozenModel):
    """What a forward pass depends on besides the base's weights."""

    config: Annotated[dict[str, Setting], Frozen] = Field(
        description="The configuration without what is harmless; keys of nested parts are joined by dots."
    )
    adapter: str = Field(default="", description="Hash of what the adapters in force add; empty without one.")

    def differences(self, other: ForwardSettings) -> list[str]:
        """Settings of the other that are not this one's, e.g. ``rope_theta 100.0, not 10000.0``."""
        keys = [key for key in sorted({*self.config, *other.config}) if self._known(key) and other._known(key)]
        pairs = [(key, self.config.get(key), other.config.get(key)) for key in keys]
        return [
            f"{key.removeprefix('rope_parameters.')} {_shown(after)}, not {_shown(before)}"
            for key, before, after in pairs
            if not _equal(before, after) and not (_nested_neutral(key, before) and _nested_neutral(key, after))
        ]

    def _known(self, key: str) -> bool:
        head = key.partition(".")[0]
        return any(name.partition(".")[0] == head for name in self.config)


def forward_settings(lm: Any, *, adapted: bool = True) -> ForwardSettings:
    """A loaded model's settings as they are now, and what its adapters add; ``adapted``: there may be some."""
    config = text_config(getattr(lm, "config", None))
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    flat: dict[str, Setting] = {}
    for key in sorted(_known_keys(type(config)) & set(values)):
        if key not in HARMLESS and not any(part in key for part in HARMLESS_PARTS):
            flat |= _flattened(key, values[key])
    if not any(key.endswith("rope_type") and value != "default" for key, value in flat.items()):
        flat = {key: value for key, value in flat.items() if key not in WINDOWS}  # then only a limit on lengths
    return ForwardSettings(config=flat, adapter=adapter_effect(lm) if adapted else "")


def _known_keys(kind: type) -> set[str]:
    """Settings that a configuration's class declares; what else a file holds is nothing that its model reads."""
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return fields | set(inspect.signature(kind).parameters)


def _flattened(key: str, value: Any) -> dict[str, Setting]:
    if isinstance(value, dict) and value:
        return {
            name: entry
            for part in sorted(value, key=str)
            for name, entry in _flattened(f"{key}.{part}", value[part]).items()
        }
    if isinstance(value, float) and not math.isfinite(value):
        return {key: str(value)}  # which JSON has no number for
    if value is None or isinstance(value, bool | int | float | str):
        return {key: value}
    text = json.dumps(value, sort_keys=True, default=str)
    short = len(text) <= LONGEST_LIST
    return {key: text if short else f"{text[:16]}… (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"}


def _equal(first: Setting, second: Setting) -> bool:
    if isinstance(first, bool) or isinstance(second, bool):
        return first == second
    if isinstance(first, int | float) and isinstance(second, int | float):
        return math.isclose(first, second, rel_tol=LARGEST_RELATIVE_ERROR)
    return first == second


def _nested_neutral(key: str, value: Setting) -> bool:
    return "." in key and value in NEUTRAL


def _shown(value: Setting) -> str:
    return "none" if value is None else str(value)
