"""The sampling of one token for each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from poise.engine.types import SamplingParams

__all__ = ["sample_tokens"]

COLDEST = 1e-20  # below, logits divided by the temperature may overflow, and nothing but the likeliest is drawn
HOTTEST = 1e30  # beyond, all tokens are as good as equally likely, and those that are ruled out have to stay so


def sample_tokens(logits: torch.Tensor, samplings: Sequence[SamplingParams], draws: Sequence[float]) -> torch.Tensor:
    """The next token of each row, int64 [B]: greedy, or where its own draw in [0, 1) falls.

    What a row gets does not depend on how the others are sampled.
    """
    kinds = [_sampling_kind(s) for s in samplings]
    out = logits.argmax(dim=-1)
    for kind in sorted(set(kinds) - {"greedy"}):
        rows = [row for row, other in enumerate(kinds) if other == kind]
        chosen_logits = logits if len(rows) == len(kinds) else logits[rows]
        out[rows] = _sampled(
            chosen_logits, [samplings[row] for row in rows], [draws[row] for row in rows], top=kind == "top_p"
        )
    return out


def _sampling_kind(sampling: SamplingParams) -> str:
    if sampling.temperature < COLDEST:
        return "greedy"
    return "top_p" if sampling.top_p < 1 else "plain"


def _sampled(
    logits: torch.Tensor, samplings: Sequence[SamplingParams], draws: Sequence[float], *, top: bool
) -> torch.Tensor:
    def column(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device).unsqueeze(1)

    p = torch.softmax(logits / column([min(s.temperature, HOTTEST) for s in samplings], logits.dtype), dim=-1)
    order: torch.Tensor | None = None
    if top:
        p, order = p.sort(dim=-1, descending=True)
        likely = p.cumsum(-1) - p < column([s.top_p for s in samplings], p.dtype)
        likely[:, 0] = True  # also where top_p is too small for its type
        p = p * likely
    cumulative = p.double().cumsum(-1)
    u = column(list(draws), torch.float64)
    picked = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True).clamp(max=p.shape[-1] - 1)
    return (picked if order is None else order.gather(1, picked)).squeeze(1)
