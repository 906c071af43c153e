"""The logits of each answer in a batch of vLLM's: held to a grammar, and looked at for NaN and infinity.

By vLLM's own interface for logits processors, in the process that runs the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from poise.engine.grammar import constrain
from poise.engine.sequence import Sequence

__all__ = ["ANSWER_FIELD", "AnswerRow", "answer_row_processor"]

ANSWER_FIELD = "poise_answer"
"""The key of ``SamplingParams.extra_args`` that holds the ``AnswerRow``."""


@dataclass(eq=False)
class AnswerRow:
    """An answer on its way through vLLM.

    Attributes:
        sequence: The answer's own state.
        sharpened: What its logits are multiplied by, for a temperature that vLLM would raise.
        broken: Whether its logits were NaN or infinite.
    """

    sequence: Sequence
    sharpened: float = 1.0
    broken: bool = False

    def __deepcopy__(self, memo: object) -> AnswerRow:
        """Itself: vLLM copies what a request asks for, and this is where its state is."""
        return self


def answer_row_processor() -> type[Any]:
    """The class that vLLM makes one of for its model runner."""
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    return type("AnswerRowProcessor", (LogitsProcessor,), _methods(process_dict_updates))


def _methods(update_rows: Callable[..., Any]) -> dict[str, Any]:
    def initialise(self: Any, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows = {}

    def is_argmax_invariant(self: Any) -> bool:
        return False

    def update_state(self: Any, batch_update: Any) -> None:
        update_rows(self.rows, batch_update, lambda params, prompt, output: (params.extra_args or {}).get(ANSWER_FIELD))

    def apply(self: Any, logits: torch.Tensor) -> torch.Tensor:
        return hold_rows(self.rows, logits)

    return {
        "__init__": initialise,
        "is_argmax_invariant": is_argmax_invariant,
        "update_state": update_state,
        "apply": apply,
    }


def hold_rows(rows: dict[int, AnswerRow], logits: torch.Tensor) -> torch.Tensor:
    """Logits [B, vocabulary] without what answers may not choose; rows that are broken are marked."""
    if not rows:
        return logits
    finite = torch.isfinite(logits.amax(dim=-1)).tolist()
    constraints, trackers = [], []
    for number in range(len(logits)):
        row = rows.get(number)
        if row is not None and not finite[number]:
            row.broken = True
        if row is not None and row.sharpened != 1:
            logits[number] *= row.sharpened
        constraints.append(row.sequence.constraint if row else None)
        trackers.append(row.sequence.tracker if row else None)
    return constrain(logits, constraints, trackers)  # type: ignore[arg-type] # a row without one has no constraint
