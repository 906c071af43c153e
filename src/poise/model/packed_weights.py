"""Weights in 4 bits, which bitsandbytes packs for inference on some CPUs, and which gradients go wrong through then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["unpacked_weights"]


@contextlib.contextmanager
def unpacked_weights(lm: Any) -> Iterator[None]:
    """Keep passes in evaluation mode inside the block from changing how a model learns afterwards.

    On CPUs with AVX512-BF16 bitsandbytes packs 4-bit weights anew in the first such pass, and gradients through packed
    weights are wrong (seen in 0.50.2: an adapter moved a tenth as far).
    """
    switch = "support_avx512bf16_for_cpu"
    before = {module: vars(module)[switch] for module in lm.modules() if vars(module).get(switch)}
    try:
        for module in before:
            setattr(module, switch, False)
        yield
    finally:
        for module, value in before.items():
            setattr(module, switch, value)
