"""What steering costs while decoding, and how our decoding compares with transformers' ``generate``.

    python benchmarks/steer_decode.py [--model smollm2-135m] [--tokens 64]

Pairs of runs are interleaved until the interval of their median ratio is within ± 2 %.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

import torch

from common import interleave, median, shown
from poise import contrast
from poise.engine import Sampling
from poise.engine.local import LocalEngine
from poise.extract import extract
from poise.model import Model, ask, load
from poise.steer import Steering, Term
from poise.trait import library


def main(name: str, tokens: int, pairs: int) -> None:
    # No stop tokens: every run decodes exactly the same number of tokens.
    model = dataclasses.replace(load(name), stop_ids=frozenset())
    vector = extract(contrast.exemplars(library.load("impolite"), model), model)
    layer = round(model.layers / 3)
    one = Steering((Term(vector, 1.0, (layer,)),))
    everywhere = Steering((Term(vector, 1.0, "increments"),))
    print(f"{name}, {model.lm.dtype}, {torch.get_num_threads()} threads, {tokens} new tokens, greedy")
    for batch in (1, 16):
        plain = run(model, batch, tokens, None)
        for label, steered in (("one layer", one), ("all layers", everywhere)):
            a, b, ratio = interleave(plain, run(model, batch, tokens, steered), most=pairs)
            print(
                f"batch {batch:2d}, {label:10s}: {batch * tokens / median(b):7.1f} tokens/s steered, "
                f"{batch * tokens / median(a):7.1f} unsteered; speed ratio {1 / ratio.value:.3f} "
                f"[{1 / ratio.high:.3f}, {1 / ratio.low:.3f}], n={ratio.n}"
            )
        a, b, ratio = interleave(plain, theirs(model, batch, tokens), most=pairs)
        print(
            f"batch {batch:2d}, unsteered : {batch * tokens / median(a):7.1f} tokens/s ours, "
            f"{batch * tokens / median(b):7.1f} transformers generate; ours is {shown(ratio)} × as fast"
        )


def run(model: Model, batch: int, tokens: int, steered: Steering | None) -> Callable[[], object]:
    engine = LocalEngine(model)
    prompts = [model.encode(ask("How do I keep a sourdough starter alive?"))] * batch
    sampling = Sampling(max_new_tokens=tokens, temperature=0)
    return lambda: engine.generate(prompts, sampling, steering=steered)


def theirs(model: Model, batch: int, tokens: int) -> Callable[[], object]:
    ids = torch.tensor([model.encode(ask("How do I keep a sourdough starter alive?")).ids] * batch)
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    return lambda: model.lm.generate(ids, attention_mask=mask, **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=60, help="most pairs a comparison")
    given = parser.parse_args()
    main(given.model, given.tokens, given.pairs)
