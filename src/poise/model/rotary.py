"""Rotary embeddings that are chosen by the longest row of a pass, so that a text's numbers depend on its neighbours.

LongRoPE (Phi-3, 3.5 and 4 mini) has two sets of frequencies and takes one for a whole batch; dynamic NTK computes them
anew from the longest length that it has seen. Neither shows in a model's answers, and a check on a short text never
reaches the length from which it matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from poise.errors import InvalidArgument
from poise.model.batching import plan_batches

__all__ = ["RotarySwitch", "plan_rows", "rotary_switch"]

NO_SWITCH = 1 << 30


@dataclass(frozen=True, slots=True)
class RotarySwitch:
    """Up to how many tokens a model's rotary embeddings are those of a short text, and what they are beyond.

    Attributes:
        tokens: Longest text that is read with the frequencies for short ones.
        kind: ``longrope``: another set beyond; ``dynamic``: another for each length; empty where nothing changes.
    """

    tokens: int = NO_SWITCH
    kind: str = ""

    def is_long(self, length: int) -> bool:
        """Whether a text of so many tokens is beyond the switch."""
        return length > self.tokens


def rotary_switch(lm: Any) -> RotarySwitch:
    """The lowest switch among a model's rotary embeddings, from the attributes of their modules."""
    switches = [switch for module in lm.modules() for switch in _switches(module)]
    return min(switches, key=lambda switch: switch.tokens, default=RotarySwitch())


def plan_rows(
    switch: RotarySwitch, lengths: Sequence[int], *, budget: int, most: int, name: str = "the model"
) -> list[list[int]]:
    """As ``plan_batches``, with rows of one side of the switch together.

    Raises:
        InvalidArgument: a length at which the frequencies are another for each.
    """
    longest = max(lengths, default=0)
    if switch.kind == "dynamic" and switch.is_long(longest):
        raise InvalidArgument(
            f"A text has {longest} tokens, and beyond {switch.tokens} the rotary embeddings of {name} (dynamic NTK) "
            "depend on the longest text in its batch; give shorter texts."
        )
    sides = [[i for i, n in enumerate(lengths) if switch.is_long(n) is long] for long in (True, False)]
    return [
        [side[j] for j in rows]
        for side in sides
        for rows in plan_batches([lengths[i] for i in side], budget=budget, most=most)
    ]


def _switches(module: Any) -> list[RotarySwitch]:
    kinds = getattr(module, "rope_type", None)
    if isinstance(kinds, dict):  # one for each type of layer
        return [switch for layer, kind in kinds.items() for switch in _switch(module, kind, layer)]
    if isinstance(kinds, str):
        return _switch(module, kinds, None)
    if hasattr(module, "long_factor") and hasattr(module, "short_factor"):  # as checkpoints with code of their own do
        return _switch(module, "longrope", None)
    return []


def _switch(module: Any, kind: str, layer: str | None) -> list[RotarySwitch]:
    if kind != "longrope" and "dynamic" not in kind:
        return []
    config = getattr(module, "config", None)
    parameters = getattr(config, "rope_parameters", None) or {}
    parameters = parameters.get(layer) or {} if layer else parameters
    original = "original_max_position_embeddings"
    sizes: tuple[Any, ...] = (
        (parameters.get(original), getattr(module, original, None), getattr(config, original, None))
        if kind == "longrope"
        else (getattr(module, "original_max_seq_len", None),)
    )
    sizes += (getattr(config, "max_position_embeddings", None),)
    tokens = next((int(size) for size in sizes if isinstance(size, int | float) and size > 0), NO_SWITCH)
    return [RotarySwitch(tokens, "longrope" if kind == "longrope" else "dynamic")]
