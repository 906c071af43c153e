"""The operation ``poise::block_work`` that vLLM's graphs hold at each block, and the pass that it works for.

It is opaque to compilers: a compiled graph calls it where an eager model does, and what it does is looked up when it
runs. A worker process runs one model, and a model one pass at a time.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from poise.errors import UnsuitableModel
from poise.vllm.block_work import work_at_layer
from poise.vllm.passes import PassPlan

__all__ = ["CURRENT", "define_block_op", "work_after"]

SPLIT_STREAM = {
    *("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "Gemma2DecoderLayer"),
    *("Gemma3DecoderLayer", "MixtralDecoderLayer", "Qwen3MoeDecoderLayer"),
}
"""Blocks that return what they add and the stream before that, whose sum is the stream."""
WHOLE_STREAM = {"GPT2Block", "GPTNeoXLayer", "Olmo2DecoderLayer"}
"""Blocks that return the stream."""


@dataclass(eq=False)
class CurrentPass:
    """The pass that runs in this process, if it steers or reads anything."""

    plan: PassPlan | None = None


CURRENT = CurrentPass()
_library: Any = None


def define_block_op() -> None:
    """Register the operation, once a process."""
    global _library
    if _library is not None:
        return
    library: Any = torch.library.Library
    _library = library("poise", "FRAGMENT")
    _library.define("block_work(Tensor(a!) hidden, Tensor? residual, int layer) -> ()")
    _library.impl("block_work", _block_work, "CompositeExplicitAutograd")
    torch.library.register_fake("poise::block_work", lambda hidden, residual, layer: None, lib=_library)


def _block_work(hidden: torch.Tensor, residual: torch.Tensor | None, layer: int) -> None:
    if CURRENT.plan is not None:
        work_at_layer(CURRENT.plan, layer, hidden, residual)


def work_after(block: torch.nn.Module, layer: int) -> None:
    """Have a decoder block call the operation on its output.

    Raises:
        UnsuitableModel: a block of which nobody knows how it returns the residual stream.
    """
    kind: Any = type(block)
    if kind.__name__ not in SPLIT_STREAM | WHOLE_STREAM:
        known = ", ".join(sorted(SPLIT_STREAM | WHOLE_STREAM))
        raise UnsuitableModel(
            f"The plugin does not know how vLLM's {kind.__name__} returns the residual stream; it knows {known}. Serve "
            "one of these architectures, or use `poise serve`."
        )
    block.poise_layer = layer  # type: ignore[assignment]
    if not getattr(kind, "calls_poise", False):
        kind.calls_poise = True
        kind.forward = _with_work(kind.forward, split=kind.__name__ in SPLIT_STREAM)


def _with_work(forward: Any, *, split: bool) -> Any:
    @functools.wraps(forward)
    def work_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        layer = getattr(self, "poise_layer", None)
        if layer is None:  # a block of another model in this process
            return output
        if split:
            hidden, residual = output
            torch.ops.poise.block_work(hidden, residual, layer)
        else:
            torch.ops.poise.block_work(output, None, layer)
        return output

    return work_forward
