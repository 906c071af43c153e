"""Marks of what is not to be learnt, as files spell them: ``weight: 0``, ``train: false``, loss masks and their kin."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from poise.errors import InvalidRow

__all__ = [
    "IGNORED_INDEX",
    "LAST_TURN_KEYS",
    "LEARN_KEYS",
    "MASK_KEYS",
    "VERDICT_KEYS",
    "is_learnt",
    "is_off",
    "is_one",
    "is_zero",
    "labelled_off",
    "listed_marks",
    "mark_name",
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
LAST_TURN_KEYS = (
    "train_on_last_turn", "train_on_last_turn_only", "train_last_turn_only", "train_only_last_turn",
    "train_on_last_only", "train_last_only", "last_turn_only", "only_last_turn", "loss_on_last_turn",
    "last_turn_loss", "last_turn_loss_only", "loss_last_turn_only", "mask_history",
)  # fmt: skip
VERDICT_KEYS = ("label", "labels", "chosen")
PARTIAL_KEYS = ("train_detail",)  # Axolotl's: stretches of one turn
TURN_MARKS = frozenset({*LEARN_KEYS, *MASK_KEYS})
COLUMN_MARKS = ("sample_weight", "loss_masks", "loss_weights", "turn_mask", "train_mask", "assistant_masks")
ABOUT_LEARNING = re.compile(r"(?:\A|_)(?:no)?(?:train|learn|loss|mask|supervis)")
ABOUT_PROMPTS = re.compile(
    r"_(?:inputs?|prompts?|questions?|instructions?|users?|humans?|systems?|contexts?|query)(?:_|\Z)"
)
ABOUT_ANSWERS = re.compile(
    r"(?:\A|_)(?:responses?|answers?|assistants?|completions?|outputs?|replies|targets?|models?|bots?)(?:_|\Z)"
)
MARK_NAMES = (*LEARN_KEYS, *MASK_KEYS, *LAST_TURN_KEYS, *VERDICT_KEYS, *PARTIAL_KEYS, *COLUMN_MARKS)
MARK_SPELLINGS = {name.replace("_", ""): name for name in MARK_NAMES}
CAMEL_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
WORD_LIST = re.compile(r"\A\W*(?:[01]|true|false)(?:[\s,;|/]+(?:[01]|true|false))+\W*\Z", re.I | re.A)
DIGIT_LIST = re.compile(r"\A\s*[01]{2,}\s*\Z", re.A)


@lru_cache(maxsize=4096)
def mark_name(name: str) -> str:
    """A name as marks are spelt here: ``lossMask``, ``Loss-Mask`` and ``lossmask`` are ``loss_mask``."""
    snake = re.sub(r"[\s.-]+", "_", CAMEL_HUMP.sub("_", name.strip())).lower()
    return MARK_SPELLINGS.get(snake.replace("_", ""), snake)


TRUTH_WORDS = {"true": True, "false": False}
ASSISTANTS = ("assistant", "gpt", "model", "bot")


def is_learnt(turn: Mapping[str, Any], place: str = "a turn") -> bool:
    """Whether the file lets this turn be trained on: ``weight: 0``, ``train: false``, a loss mask and their kin.

    Raises:
        InvalidRow: a mark is there that says neither yes nor no, or one of a part of the turn.
    """
    marks = [(mark_name(str(key)), value) for key, value in turn.items() if value is not None]
    learnt = True
    for key, mark in marks:
        if key not in TURN_MARKS:
            continue
        if isinstance(mark, list) and len(mark) == 1:
            mark = mark[0]
        if isinstance(mark, list | Mapping):
            raise InvalidRow(f"loss mask: {key} of {place} is not one mark; write 0 or 1")
        learnt &= not (is_off(key, mark) if key in LEARN_KEYS else is_one(mark) or names_assistant(mark))
    verdicts = [mark for key, mark in marks if key in VERDICT_KEYS]
    if any(verdict is False or _is_ignored(verdict) for verdict in verdicts):
        return False
    for key, details in marks:
        listed = details if key in PARTIAL_KEYS and isinstance(details, list) else []
        stretches = [one for one in listed if isinstance(one, Mapping)]
        if learnt and any("train" in one and is_zero(one["train"]) for one in stretches):
            raise InvalidRow(f"loss mask: {key} of {place} marks a part of it; only whole turns can be left out")
    refuse_unknown_mark(turn, place)
    return learnt


def labelled_off(turns: Sequence[Any]) -> list[bool]:
    """Which turns have ``label: 0`` where others have ``label: 1``; a label alone may be a class."""
    labels = [
        next((mark for key, mark in turn.items() if mark_name(str(key)) in ("label", "labels")), None)
        if isinstance(turn, Mapping)
        else None
        for turn in turns
    ]
    marks = [label for label in labels if label is not None]
    if not all(is_one(mark) or _is_naught(mark) for mark in marks) or not any(map(is_one, marks)):
        return [False] * len(turns)
    return [label is not None and _is_naught(label) for label in labels]


def listed_marks(value: Any, *, digits: bool = True) -> list[Any] | None:
    """The marks that a text lists: ``0,0,1``, ``0 0 1``, or, with ``digits``, ``001``; ``None`` for anything else."""
    if not isinstance(value, str):
        return None
    if WORD_LIST.match(value):
        return re.findall(r"[01]|true|false", value.lower())
    return list(value.strip()) if digits and DIGIT_LIST.match(value) else None


def refuse_unknown_mark(columns: Mapping[str, Any], place: str) -> None:
    """Raise where a name says that it is about learning, and is none of those that are known.

    What is said of the prompt (``mask_prompt: true``) leaves the answer to be learnt, and so does what is said of the
    answer alone (``train_on_responses_only: true``).

    Raises:
        InvalidRow: names it.
    """
    for name, value in columns.items():
        mark = TRUTH_WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value
        if not isinstance(mark, bool):
            continue
        key = mark_name(str(name))
        only = "only" in key
        known = key in TURN_MARKS or key in PARTIAL_KEYS or key in LAST_TURN_KEYS
        known |= bool(ABOUT_ANSWERS.search(key)) if only else bool(ABOUT_PROMPTS.search(key))
        against = mark is ("mask" in key or "no_" in key or only or "last" in key)  # what may mean: not this turn
        if not known and against and ABOUT_LEARNING.search(key):
            raise InvalidRow(f"loss mask: {name} of {place} is not known; name it train, with true for what is learnt")


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


def _is_naught(value: Any) -> bool:
    """Whether a label is 0 or false, as such or as text."""
    if isinstance(value, str):
        return value.strip().lower() in ("0", "0.0", "false")
    return isinstance(value, bool | int | float) and value == 0


def _is_ignored(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_ignored, value))
    return isinstance(value, int | float) and value == IGNORED_INDEX
