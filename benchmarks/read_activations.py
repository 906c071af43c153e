"""How fast activations are read, beside a bare forward pass and beside the loop that everyone writes first.

    python benchmarks/read_activations.py [--model smollm2-135m] [--texts 200]

(ours) all layers, response means; (a) the same blocks in the same length-sorted batches without any hook;
(b) one text at a time, float32, autograd on, all hidden states kept. Each reader also runs in a process of its
own for its memory: the peak above what is resident once model and texts are loaded. Last, per trait, the effect
of the direction: the rise of log p(with) − log p(without) per token on held-out exemplars at one norm, response
mean beside last token.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from common import interleave, median, seconds, shown, texts
from poise import activations, contrast
from poise.extract import extract
from poise.model import Encoded, Model, ask, load_model
from poise.model.batching import pad, plan_batches
from poise.model.logprobs import token_logprobs
from poise.steer import Steering, Term, apply_steering
from poise.trait import ExemplarPair, library
from poise.vector import PersonaVector


def ours(model: Model, corpus: list[Encoded]) -> torch.Tensor:
    return activations.read(model, corpus)


@torch.inference_mode()
def bare(model: Model, corpus: list[Encoded]) -> None:
    for rows in plan_batches(
        [len(t.ids) for t in corpus], budget=activations.READ_BUDGET, most=activations.READ_MOST_ROWS
    ):
        batch = pad([corpus[i] for i in rows], side="right", device=model.device)
        model.backbone(input_ids=batch.ids, use_cache=False)


def naive(model: Model, corpus: list[Encoded]) -> torch.Tensor:
    """PAPER.md's trap 9, as scripts do it: every text alone, everything kept."""
    means = []
    for text in corpus:
        out = model.lm(input_ids=torch.tensor([text.ids]), output_hidden_states=True)
        means.append(torch.stack([h[0, text.start : text.end].mean(0).detach() for h in out.hidden_states[1:]]))
    return torch.stack(means)


def speed(name: str, n: int, pairs: int) -> None:
    model = load_model(name)
    corpus = texts(model, n)
    tokens = sum(len(t.ids) for t in corpus)
    print(f"{name}, {len(corpus)} texts, {tokens} tokens, {model.lm.dtype}, {torch.get_num_threads()} threads")
    plain, read, ratio = interleave(lambda: bare(model, corpus), lambda: ours(model, corpus), most=pairs)
    print(f"ours          {len(corpus) / median(read):8.2f} texts/s")
    print(
        f"(a) bare      {len(corpus) / median(plain):8.2f} texts/s; ours takes {shown(ratio)} of its time; speed "
        f"{1 / ratio.value:.3f}"
    )
    full = load_model(name, dtype=torch.float32)
    part = corpus[:: max(1, n // 50)]
    share = sum(len(t.ids) for t in part) / tokens
    loops, again = [], []
    for _ in range(3):
        loops.append(seconds(lambda: naive(full, part)) / share)
        again.append(seconds(lambda: ours(model, corpus)))
    print(
        f"(b) naive     {len(corpus) / median(loops):8.2f} texts/s; ours is {median(loops) / median(again):.2f} × "
        "as fast (n=3)"
    )


def memory(name: str, n: int) -> None:
    for which in ("none", "bare", "ours", "naive"):
        done = subprocess.run(
            [sys.executable, __file__, "--model", name, "--texts", str(n), "--alone", which],
            capture_output=True,
            text=True,
        )
        print(f"memory, {which:6s} {done.stdout.strip() or done.stderr[-300:]}")


def alone(name: str, n: int, which: str) -> None:
    model = load_model(name, dtype=torch.float32 if which == "naive" else None)
    corpus = texts(model, n)
    work = {"none": lambda *_: None, "bare": bare, "ours": ours, "naive": naive}[which]
    print(peak_above(lambda: work(model, corpus)))


def peak_above(work: Callable[[], object]) -> str:
    """How far resident memory rises, at its peak, above where it stands when ``work`` begins; Linux alone tells."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak, VmHWM, starts again from here
    except OSError:
        return "not measured here"
    before = _status_mib("VmRSS")
    work()
    return f"peak {_status_mib('VmHWM') - before:.0f} MiB above the {before:.0f} MiB resident after loading"


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def effect(name: str) -> None:
    """Rise of log p(with) − log p(without) per token, held-out pairs, dose 0.3 at a third of the depth."""
    model = load_model(name)
    layer = round(model.layers / 3)
    print(f"effect at layer {layer} of {model.layers}, dose 0.3, held-out pairs:   response mean   last token")
    for trait_name in library.names():
        trait = library.load_trait(trait_name)
        mean = extract(contrast.exemplars(trait, model), model)
        last = PersonaVector(_last_token(model, trait.exemplars.extraction), mean.reference_norm, mean.header)
        rises = [_rise(model, v, layer, trait.exemplars.held_out) for v in (mean, last)]
        print(f"  {trait_name:14s} {rises[0]:+.3f}   {rises[1]:+.3f}")


def _last_token(model: Model, pairs: tuple[ExemplarPair, ...]) -> torch.Tensor:
    def states(side: str) -> torch.Tensor:
        encoded = [model.encode(ask(p.question), getattr(p, side)) for p in pairs]
        return activations.read(model, [Encoded(e.ids, e.end - 1, e.end) for e in encoded])

    return (states("positive") - states("negative")).mean(0)


def _rise(model: Model, vector: PersonaVector, layer: int, pairs: tuple[ExemplarPair, ...]) -> float:
    steered = Steering((Term(vector=vector, value=vector.coef(0.3, layer), layers=(layer,), phase="all"),))

    def gap() -> float:
        sides = [
            token_logprobs(model, [model.encode(ask(p.question), getattr(p, side)) for p in pairs])
            for side in ("positive", "negative")
        ]
        return float(sum(a.mean() - b.mean() for a, b in zip(*sides, strict=True)) / len(pairs))

    before = gap()
    with apply_steering(model, steered):
        return gap() - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=60, help="most pairs a comparison")
    parser.add_argument("--alone", choices=["none", "bare", "ours", "naive"])
    given = parser.parse_args()
    if given.alone:
        alone(given.model, given.texts, given.alone)
    else:
        speed(given.model, given.texts, given.pairs)
        memory(given.model, given.texts)
        effect(given.model)
