"""Marks of what is not to be learnt, as files spell them: ``weight: 0``, ``train: false``, loss masks and their kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["LEARN_KEYS", "MASK_KEYS", "is_learnt", "is_one", "is_zero"]

LEARN_KEYS = (
    "weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_mask", "loss_weight", "loss_multiplier",
    "learn", "is_train", "do_train", "trained",
)  # fmt: skip
IGNORED_INDEX = -100  # what PyTorch's losses skip, and so what data sets write
MASK_KEYS = ("mask", "masked", "no_loss", "ignore")


def is_learnt(turn: Mapping[str, Any]) -> bool:
    """Whether the file lets this turn be trained on: ``weight: 0``, ``train: false``, a loss mask and their kin."""
    off = any(key in turn and turn[key] is not None and is_zero(turn[key]) for key in LEARN_KEYS)
    return not off and not any(is_one(turn.get(key)) for key in MASK_KEYS)


def is_zero(value: Any) -> bool:
    """Whether a mark says no: zero, false or the index that losses ignore, as such or as text."""
    if isinstance(value, str):
        if value.strip().lower() in ("false", "no", "off", "n", "never"):
            return True
        try:
            value = float(value)
        except ValueError:
            return False
    return isinstance(value, bool | int | float) and (not value or value == IGNORED_INDEX)


def is_one(value: Any) -> bool:
    """Whether a mark says yes: one or true, as such or as text."""
    if isinstance(value, str):
        return value.strip().lower() in ("1", "1.0", "true", "yes", "on", "y")
    return isinstance(value, bool | int | float) and value == 1
