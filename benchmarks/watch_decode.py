"""What watching eight traits costs while decoding: readings of every token, taken inside the generation.

    python benchmarks/watch_decode.py [--model smollm2-135m] [--tokens 64]

Eight probes at one layer, and at eight layers, as when each trait is read where it is read best.
Measured like ``steer_decode.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from poise.activations import Probe
from poise.model import load_model
from steer_decode import arguments, report

TRAITS = 8


def main(name: str, tokens: int, pairs: int, batches: Sequence[int]) -> None:
    models = [dataclasses.replace(load_model(name), stop_ids=frozenset()) for _ in range(2)]
    layers, width = models[0].layers, models[0].width
    directions = torch.randn(TRAITS, width, generator=torch.Generator().manual_seed(0))
    spread = [round((k + 1) * (layers - 1) / TRAITS) for k in range(TRAITS)]
    print(f"{name}, {models[0].lm.dtype}, {torch.get_num_threads()} threads, {tokens} new tokens, {TRAITS} traits")
    for batch in batches:
        for label, where in (("one layer", [layers // 2] * TRAITS), ("eight layers", spread)):
            probes = [Probe(layer, direction) for layer, direction in zip(where, directions, strict=True)]
            report(label, models, batch, tokens, pairs, probes=probes)


if __name__ == "__main__":
    given = arguments(__doc__).parse_args()
    main(given.model, given.tokens, given.pairs, given.batch)
