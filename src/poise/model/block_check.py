"""Whether a model's blocks can be read and steered, tried at load: one short pass of two rows that begin alike.

What is read at a token must depend on that token and those before it, once for each block, in a stream that the next
block goes on from. None of this follows from an architecture's name, and none of it shows in a model's answers.
"""

from __future__ import annotations

import torch

from poise.errors import HookDidNotFire, UnsuitableModel, first_line
from poise.model.hooks import observe, rewrite
from poise.model.language_model import Model
from poise.model.self_check import TEXT

__all__ = ["check_blocks"]

ROW_TOKENS = 9
SAME_VALUES = 5  # tokens that both rows begin with
LARGEST_DIFFERENCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # mean |difference| over mean |value|
LARGEST_HALF_DIFFERENCE = 0.03


@torch.inference_mode()
def check_blocks(model: Model) -> None:
    """Refuse a model whose blocks cannot be read or steered; call it while nothing is hooked.

    Raises:
        UnsuitableModel: it does not run on text alone, a block runs more than once or gives no residual stream
            [B, T, d], what it gives at a token depends on later ones, or changing it changes nothing after it.
    """
    ids = _rows_that_begin_alike(model)
    states = _block_outputs(model, ids)
    tolerance = LARGEST_DIFFERENCE.get(model.lm.dtype, LARGEST_HALF_DIFFERENCE)
    for layer, h in enumerate(states):
        if tuple(h.shape[:2]) != tuple(ids.shape):
            raise UnsuitableModel(
                f"Block {layer} of {model.name} gives {list(h.shape)} for {ids.shape[0]} rows of {ids.shape[1]} "
                f"tokens; a residual stream [rows, tokens, {model.width}] is needed to read or steer it."
            )
        difference = _difference(h[0, :SAME_VALUES], h[1, :SAME_VALUES])
        if difference > tolerance:
            raise UnsuitableModel(
                f"{model.name} is not causal: what block {layer} gives for a token changes by {difference:.2g} with "
                "the tokens after it, so that a reading would depend on what follows; use a decoder-only language "
                "model."
            )
    _check_effect(model, ids, states, tolerance)


def _block_outputs(model: Model, ids: torch.Tensor) -> list[torch.Tensor]:
    """The output of every block in one pass; each must run exactly once."""
    outputs: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(model.layers)}
    try:
        with observe(model, lambda layer, h: outputs[layer].append(h.clone())):
            _run(model, ids)
    except HookDidNotFire as error:
        silent = [layer for layer, calls in outputs.items() if not calls]
        raise UnsuitableModel(
            f"{model.name} answers without running its blocks {silent}, so that nothing can be read or steered there; "
            "use another model."
        ) from error
    if repeated := {layer: len(calls) for layer, calls in outputs.items() if len(calls) > 1}:
        layer, count = next(iter(repeated.items()))
        raise UnsuitableModel(
            f"{model.name} runs block {layer} {count} times in one pass, so that a layer has several readings; use a "
            "model that runs each of its blocks once."
        )
    return [calls[0] for calls in outputs.values()]


def _run(model: Model, ids: torch.Tensor) -> None:
    try:
        model.backbone(input_ids=ids, use_cache=False)
    except (UnsuitableModel, torch.OutOfMemoryError):
        raise
    except Exception as error:  # every architecture raises its own kind
        raise UnsuitableModel(
            f"{model.name} does not run on text alone ({type(error).__name__}: {first_line(error)[:160]}); use a "
            "decoder-only language model."
        ) from error


def _check_effect(model: Model, ids: torch.Tensor, states: list[torch.Tensor], tolerance: float) -> None:
    """Change the second row at the first block: every later block must see it there, and not in the first row."""

    def change(layer: int, h: torch.Tensor) -> torch.Tensor:
        if layer:
            outputs[layer] = h.clone()
            return h
        changed = h.clone()
        changed[1] *= 2
        return changed

    outputs: dict[int, torch.Tensor] = {}
    with rewrite(model, change):
        _run(model, ids)
    for layer, h in outputs.items():
        if not torch.isfinite(h).all():
            return  # whoever reads names layer and text
        if torch.equal(h[1], states[layer][1]):
            raise UnsuitableModel(
                f"Changing what block 0 of {model.name} gives changes nothing at block {layer}, so that it cannot be "
                "steered; use another model."
            )
        difference = _difference(h[0], states[layer][0])
        if difference > tolerance:
            raise UnsuitableModel(
                f"Changing one row at block 0 of {model.name} changes another row by {difference:.2g} at block "
                f"{layer}, so that rows cannot share a batch; use another model."
            )


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean |a − b| over mean |b|; NaN where either is not finite."""
    return float((a.float() - b.float()).abs().mean() / b.float().abs().mean().clamp(min=1e-9))


def _rows_that_begin_alike(model: Model) -> torch.Tensor:
    """int64 [2, T]: a text, and its first tokens followed by its others in reverse."""
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:ROW_TOKENS]
    return torch.tensor([ids, ids[:SAME_VALUES] + ids[SAME_VALUES:][::-1]], device=model.device)
