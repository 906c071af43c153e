"""Marks of what is not to be learnt, as files spell them: ``weight: 0``, ``train: false``, loss masks and their kin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from poise.errors import InvalidRow

__all__ = [
    "IGNORED_INDEX",
    "LEARN_KEYS",
    "MASK_KEYS",
    "is_learnt",
    "is_off",
    "is_one",
    "is_zero",
    "names_assistant",
    "refuse_unknown_mark",
]

LEARN_KEYS = (
    "weight", "weights", "train", "training", "trainable", "train_on_turn", "loss", "loss_mask", "loss_weight",
    "loss_multiplier", "is_trainable", "loss_scale", "learn", "learnable", "is_train", "do_train", "trained",
    "compute_loss", "use_loss", "supervised",
)  # fmt: skip
IGNORED_INDEX = -100  # what PyTorch's losses skip, and so what data sets write
MASK_KEYS = (
    "mask", "masked", "no_loss", "no_train", "ignore", "ignored", "ignore_loss", "skip", "skipped", "exclude",
    "excluded", "deleted", "rejected",
)  # fmt: skip
VERDICT_KEYS = ("label", "labels", "chosen")
PARTIAL_KEYS = ("train_detail",)  # Axolotl's: stretches of one turn
TURN_MARKS = frozenset({*LEARN_KEYS, *MASK_KEYS})
ABOUT_LEARNING = re.compile(r"(?:\A|_)(?:no)?(?:train|learn|loss|mask|supervis)")
ASSISTANTS = ("assistant", "gpt", "model", "bot")


def is_learnt(turn: Mapping[str, Any], place: str = "a turn") -> bool:
    """Whether the file lets this turn be trained on: ``weight: 0``, ``train: false``, a loss mask and their kin.

    Raises:
        InvalidRow: a mark is there that says neither yes nor no, or one of a part of the turn.
    """
    marks = {str(key).strip().lower(): value for key, value in turn.items() if value is not None}
    learnt = True
    for key in [key for key in marks if key in TURN_MARKS]:
        mark = marks[key]
        if isinstance(mark, list) and len(mark) == 1:
            mark = mark[0]
        if isinstance(mark, list | Mapping):
            raise InvalidRow(f"loss mask: {key} of {place} is not one mark; write 0 or 1")
        learnt &= not (is_off(key, mark) if key in LEARN_KEYS else is_one(mark) or names_assistant(mark))
    verdicts = (marks.get(key) for key in VERDICT_KEYS)
    if any(verdict is False or _is_ignored(verdict) for verdict in verdicts):
        return False
    for key in PARTIAL_KEYS:
        details = marks.get(key)
        stretches = [one for one in details if isinstance(one, Mapping)] if isinstance(details, list) else []
        if learnt and any("train" in one and is_zero(one["train"]) for one in stretches):
            raise InvalidRow(f"loss mask: {key} of {place} marks a part of it; only whole turns can be left out")
    refuse_unknown_mark(marks, place)
    return learnt


def refuse_unknown_mark(marks: Mapping[str, Any], place: str) -> None:
    """Raise where a name says that it is about learning, and is none of those that are known.

    Raises:
        InvalidRow: names it.
    """
    for key, mark in marks.items():
        known = key in TURN_MARKS or key in PARTIAL_KEYS
        against = mark is ("mask" in key or "no_" in key or "only" in key)  # what may mean: not this turn
        if not known and against and ABOUT_LEARNING.search(key):
            raise InvalidRow(f"loss mask: {key} of {place} is not known; name it train, with true for what is learnt")


def is_off(key: str, mark: Any) -> bool:
    """Whether a mark under this name says no. A loss with a decimal point was measured, and says nothing."""
    if key == "loss" and (isinstance(mark, float) or (isinstance(mark, str) and "." in mark)):
        return False
    return mark is not None and is_zero(mark)


def is_zero(value: Any) -> bool:
    """Whether a mark says no: zero or less, false or the index that losses ignore, as such or as text."""
    if isinstance(value, str):
        if value.strip().lower() in ("false", "no", "off", "n", "never"):
            return True
        try:
            value = float(value)
        except ValueError:
            return False
    return isinstance(value, bool | int | float) and value <= 0


def is_one(value: Any) -> bool:
    """Whether a mark says yes: one or true, as such or as text."""
    if isinstance(value, str):
        return value.strip().lower() in ("1", "1.0", "true", "yes", "on", "y")
    return isinstance(value, bool | int | float) and value == 1


def names_assistant(value: Any) -> bool:
    """Whether a mask names the assistant, whose turns are then left out: NeMo's ``mask: "User"`` names the others."""
    return isinstance(value, str) and value.strip().lower() in ASSISTANTS


def _is_ignored(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_ignored, value))
    return isinstance(value, int | float) and value == IGNORED_INDEX
