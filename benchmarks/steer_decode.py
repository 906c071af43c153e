"""What steering costs while decoding, and how our decoding compares with transformers' ``generate``.

    python benchmarks/steer_decode.py [--model smollm2-135m] [--tokens 64]

Steered and unsteered runs advance in turn, step by step, on two copies of the model that change places from run to run;
until the interval of the median ratio is within ± 2 %. Beside ``generate``, whole runs are interleaved.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from common import interleave, median, shown, stepwise
from poise import contrast
from poise.activations import Probe
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.engine.static_batch import StaticBatch
from poise.extract import extract
from poise.model import Model, ask, load_model
from poise.steer import Condition, Steering, Term
from poise.trait import library
from poise.vector import PersonaVector

QUESTION = "How do I keep a sourdough starter alive?"


def main(name: str, tokens: int, pairs: int, batches: Sequence[int]) -> None:
    # No stop tokens: every run decodes exactly the same number of tokens. Two copies, because hooks of a run that
    # waits for its next step stay on its model.
    models = [dataclasses.replace(load_model(name), stop_ids=frozenset()) for _ in range(2)]
    model = models[0]
    vector = extract(contrast.exemplars(library.load_trait("impolite"), model), model)
    print(f"{name}, {model.lm.dtype}, {torch.get_num_threads()} threads, {tokens} new tokens, greedy", flush=True)
    for batch in batches:
        for label, steered in steerings(vector, model).items():
            report(label, models, batch, tokens, pairs, steering=steered)
        a, b, ratio = interleave(run(model, batch, tokens), theirs(model, batch, tokens), most=pairs)
        print(
            f"batch {batch:2d}, {'unsteered':12s}: {batch * tokens / median(a):7.1f} tokens/s ours, "
            f"{batch * tokens / median(b):7.1f} transformers generate; ours is {shown(ratio)} × as fast",
            flush=True,
        )


def steerings(vector: PersonaVector, model: Model) -> Mapping[str, Steering]:
    """One layer, all layers, a cap, and steering on a condition that is read at every token."""
    layer = round(model.layers / 3)
    return {
        "one layer": Steering((Term(vector=vector, value=1.0, layers=(layer,)),)),
        "all layers": Steering((Term(vector=vector, value=1.0, layers="increments"),)),
        "capped": Steering((Term(vector=vector, value=0.0, layers=(layer,), operation="cap"),)),
        "conditional": Steering(
            (Term(vector=vector, value=1.0, layers=(layer,), when=Condition(vector=vector, layer=layer, value=0.0)),)
        ),
    }


def report(
    label: str,
    models: Sequence[Model],
    batch: int,
    tokens: int,
    pairs: int,
    *,
    steering: Steering | None = None,
    probes: Sequence[Probe] = (),
) -> None:
    """The changed run beside the plain one, in one line."""
    places = itertools.cycle([(0, 1), (1, 0)])
    now = [0, 1]

    def plain() -> Iterator[object]:
        now[:] = next(places)
        return steps(models[now[0]], batch, tokens)

    def changed() -> Iterator[object]:
        return steps(models[now[1]], batch, tokens, steering, probes)

    a, b, ratio = stepwise(plain, changed, most=pairs)
    print(
        f"batch {batch:2d}, {label:12s}: {batch / median(b):7.1f} tokens/s, {batch / median(a):7.1f} plain; "
        f"speed ratio {1 / ratio.value:.3f} [{1 / ratio.high:.3f}, {1 / ratio.low:.3f}], n={ratio.n} runs",
        flush=True,
    )


@torch.inference_mode()
def steps(
    model: Model, batch: int, tokens: int, steering: Steering | None = None, probes: Sequence[Probe] = ()
) -> Iterator[object]:
    prompts = [model.encode(ask(QUESTION))] * batch
    sampling = SamplingParams(max_new_tokens=tokens, temperature=0)
    rows = [steering] * batch
    yield from StaticBatch(model, prompts, sampling, seeds=[0] * batch, steering=rows, probes=probes).steps()


def run(model: Model, batch: int, tokens: int) -> Callable[[], object]:
    engine = LocalEngine(model)
    prompts = [model.encode(ask(QUESTION))] * batch
    sampling = SamplingParams(max_new_tokens=tokens, temperature=0)
    return lambda: engine.generate(prompts, sampling)


def theirs(model: Model, batch: int, tokens: int) -> Callable[[], object]:
    ids = torch.tensor([model.encode(ask(QUESTION)).ids] * batch)
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    return lambda: model.lm.generate(ids, attention_mask=mask, **options)


def arguments(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=60, help="most pairs a comparison")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    return parser


if __name__ == "__main__":
    given = arguments(__doc__).parse_args()
    main(given.model, given.tokens, given.pairs, given.batch)
