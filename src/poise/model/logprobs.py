"""How likely a model finds a response, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from poise.model.batching import pad
from poise.model.chat_template import Encoded
from poise.model.language_model import Model
from poise.model.rotary import plan_rows

__all__ = ["token_logprobs"]

LOGPROB_BUDGET = 1024  # padded tokens a batch: each takes a whole vocabulary of logits


@torch.inference_mode()
def token_logprobs(model: Model, texts: Sequence[Encoded]) -> list[torch.Tensor]:
    """Log-probability of each response token given all before it: float32 [T] a text, in order.

    T: tokens of that text's response; an empty response gives an empty tensor.
    """
    out = [torch.empty(0)] * len(texts)
    for rows in plan_rows(
        model.rotary_switch, [len(t.ids) for t in texts], budget=LOGPROB_BUDGET, most=64, name=model.name
    ):
        batch = pad([texts[i] for i in rows], side="right", device=model.device)
        first = min(start for start, _ in batch.spans) - 1
        # As indices, not a count: a slice is not contiguous, and the head would copy its weights once a row.
        wanted = torch.arange(first, batch.ids.shape[1], device=model.device)
        logits = model.lm(input_ids=batch.ids, use_cache=False, logits_to_keep=wanted).logits
        for row, (start, end) in enumerate(batch.spans):
            states = logits[row, start - 1 - first : end - 1 - first].float()
            chosen = batch.ids[row, start:end]
            out[rows[row]] = (states.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - states.logsumexp(-1)).cpu()
    return out
