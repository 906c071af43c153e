"""How likely a model finds a response, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from poise.model.batching import pad
from poise.model.chat_template import Encoded
from poise.model.language_model import Model
from poise.model.rotary import plan_rows

__all__ = ["token_logprobs"]

LOGPROB_BUDGET = 1024  # padded tokens a batch: each takes a whole vocabulary of logits


def token_logprobs(
    model: Model, texts: Sequence[Encoded], *, between: Callable[[Callable[[], Any]], Any] = lambda work: work()
) -> list[torch.Tensor]:
    """Log-probability of each response token given all before it: float32 [T] a text, in order.

    T: tokens of that text's response; an empty response gives an empty tensor.

    Args:
        model: Any.
        texts: Texts with their responses.
        between: Runs a pass of the model; by default here and now.
    """
    out = [torch.empty(0)] * len(texts)
    for rows in plan_rows(
        model.rotary_switch, [len(t.ids) for t in texts], budget=LOGPROB_BUDGET, most=64, name=model.name
    ):
        read = partial(_pass_logprobs, model, [texts[i] for i in rows])
        for i, values in zip(rows, between(read), strict=True):
            out[i] = values
    return out


@torch.inference_mode()
def _pass_logprobs(model: Model, texts: Sequence[Encoded]) -> list[torch.Tensor]:
    batch = pad(texts, side="right", device=model.device)
    first = min(start for start, _ in batch.spans) - 1
    # As indices, not a count: a slice is not contiguous, and the head would copy its weights once a row.
    wanted = torch.arange(first, batch.ids.shape[1], device=model.device)
    logits = model.lm(input_ids=batch.ids, use_cache=False, logits_to_keep=wanted).logits
    rows = []
    for row, (start, end) in enumerate(batch.spans):
        states = logits[row, start - 1 - first : end - 1 - first].float()
        chosen = batch.ids[row, start:end]
        rows.append((states.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - states.logsumexp(-1)).cpu())
    return rows
