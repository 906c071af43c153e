"""How fast training data are screened, beside a bare forward pass and beside the loop that everyone writes first.

    python benchmarks/screen.py [--model smollm2-135m] [--texts 800] [--pairs 40]
    python benchmarks/screen.py --grow [--rows 1000 10000 100000] [--engine ray]
    python benchmarks/screen.py --random-init llama-7b [--texts 2000] [--pairs 10] [--peak-tflops 989]

The first measures units (answers) per second of ``poise.screen.projection``, rendering and tokenising included, beside

(a) the same blocks, no further ones, on texts already tokenised in the same length-sorted batches, without hooks;
(b) one row at a time through the whole model, all hidden states and all logits, in float32 with autograd on, as such
    scripts are first written, in float32 without it, and in bfloat16 without it;

and then the time of 32 traits over that of one. ``--grow`` runs the command ``poise screen --method raw`` on data
sets of these sizes, each in a process of its own: peak memory and time. Its model is random and tiny and its texts a
few words long, so that the rows count and not the blocks. ``--random-init`` takes a model of random weights with the
bundled tokenizer, of a shape by name or by a JSON file with a transformers configuration, and adds tokens per second
and their share of the card's peak.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from common import interleave, median, median_ratio, seconds, shown
from poise import activations, contrast, vector
from poise.activations import Probe
from poise.data import Conversation
from poise.extract import extract
from poise.model import Encoded, Message, Model, ask, load_model, wrap
from poise.model.batching import pad, plan_batches
from poise.screen import score_answers
from poise.trait import library
from poise.validate.reading_quality import random_probes

SHAPES = {
    "llama-7b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "tiny": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
}
PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 70}  # dense bfloat16, by NVIDIA
BUNDLED = "smollm2-135m"


def conversations(n: int) -> list[Conversation]:
    """Exemplar answers of the library's traits, both sides, in a fixed order, again from the start where n is more."""
    pairs = [p for name in library.names() for p in library.load_trait(name).exemplars.all]
    sides = [(p.question, text) for p in pairs for text in (p.positive, p.negative)]
    if n < len(sides):
        sides = sides[:: len(sides) // n]
    return [row(i, *sides[i % len(sides)]) for i in range(n)]


def row(index: int, question: str, answer: str) -> Conversation:
    said: Message = {"role": "assistant", "content": answer}
    return Conversation(messages=(*ask(question), said), file="", row=index, index=index, raw=b"")


def encoded(model: Model, rows: Sequence[Conversation]) -> list[Encoded]:
    return [model.encode(r.messages[:-1], r.messages[-1]["content"]) for r in rows]


def ours(model: Model, rows: Sequence[Conversation], probes: Sequence[Probe]) -> None:
    for _ in score_answers(model, rows, probes):
        pass
    wait(model)


@torch.inference_mode()
def bare(model: Model, corpus: Sequence[Encoded], budget: int) -> None:
    for rows in plan_batches([len(t.ids) for t in corpus], budget=budget, most=activations.READ_MOST_ROWS):
        model.backbone(input_ids=pad([corpus[i] for i in rows], side="right", device=model.device).ids, use_cache=False)
    wait(model)


def naive(model: Model, corpus: Sequence[Encoded]) -> None:
    kept = []
    for text in corpus:
        out = model.lm(input_ids=torch.tensor([text.ids], device=model.device), output_hidden_states=True)
        states = [h[0, text.start : text.end].float().mean(0).detach() for h in out.hidden_states[1:]]
        kept.append(torch.stack(states).cpu())


def wait(model: Model) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


@contextlib.contextmanager
def truncated(model: Model, layers: int) -> Iterator[None]:
    """Nothing but the first so many blocks, for as long as the block is entered."""
    where, name, blocks = next(
        (parent, name, child)
        for parent in model.lm.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and tuple(child) == model.blocks
    )
    setattr(where, name, blocks[:layers])
    try:
        yield
    finally:
        setattr(where, name, blocks)


def speed(model: Model, n: int, pairs: int, layer: int) -> float:
    """Prints (a); returns our tokens per second."""
    rows = conversations(n)
    corpus = encoded(model, rows)
    tokens = sum(len(t.ids) for t in corpus)
    probes = random_probes(model.width, layer, 1, seed=0)
    print(
        f"{model.name}, {model.lm.dtype}, {model.device}, {torch.get_num_threads()} threads; {n} units, {tokens} "
        f"tokens; read at layer {layer} of {model.layers}, so {layer + 1} blocks"
    )
    budget = activations.READ_BUDGET if model.device.type == "cpu" else activations.READ_BUDGET_GPU

    def plain() -> None:
        with truncated(model, layer + 1):
            bare(model, corpus, budget)

    base, mine, ratio = interleave(plain, lambda: ours(model, rows, probes), most=pairs)
    print(f"(a) bare, truncated  {n / median(base):9.1f} units/s")
    print(
        f"    ours             {n / median(mine):9.1f} units/s; takes {shown(ratio)} of the bare time; speed "
        f"{1 / ratio.value:.3f} [{1 / ratio.high:.3f}, {1 / ratio.low:.3f}] (goal 0.95)",
        flush=True,
    )
    return tokens / median(mine)


def loop(model: Model, n: int, pairs: int, layer: int, dtype: torch.dtype, grad: bool) -> None:
    """Prints (b): the loop on every tenth unit, by the share of tokens that these hold."""
    rows = conversations(n)
    corpus = encoded(model, rows)
    part = corpus[::10]
    share = sum(len(t.ids) for t in part) / sum(len(t.ids) for t in corpus)
    probes = random_probes(model.width, layer, 1, seed=0)
    other = load_model(model.name, dtype=dtype, device=model.device)
    other.lm.requires_grad_(grad)
    naive(other, part[:2])
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(max(3, pairs // 4)):
        times[0].append(seconds(lambda: ours(model, rows, probes)))
        times[1].append(seconds(lambda: naive(other, part)) / share)
    what = f"{str(dtype).removeprefix('torch.')}, autograd {'on' if grad else 'off'}"
    print(
        f"(b) loop, {what}: {n / median(times[1]):.1f} units/s; ours is {shown(median_ratio(*times))} × as fast "
        "(goal 8.5)",
        flush=True,
    )


def traits(model: Model, n: int, pairs: int, layer: int) -> None:
    """Prints the time of 32 traits over that of one: all at one layer, and over all layers up to it."""
    rows = conversations(n)
    one = random_probes(model.width, layer, 1, seed=0)
    together = random_probes(model.width, layer, 32, seed=0)
    spread = [Probe(layer - k % (layer + 1), p.direction) for k, p in enumerate(together)]
    for what, many in (("at that layer", together), (f"over {min(32, layer + 1)} layers", spread)):
        _, _, ratio = interleave(
            lambda: ours(model, rows, one), lambda many=many: ours(model, rows, many), within=0.01, most=pairs
        )
        print(f"(c) 32 traits {what} take {shown(ratio)} of one trait's time (goal 1.03)", flush=True)


def random_model(shape: str) -> Model:
    """Random weights, in bfloat16 on a GPU and in float32 elsewhere."""
    tokenizer = load_model(BUNDLED, device="cpu").tokenizer
    said = SHAPES.get(shape) or json.loads(Path(shape).read_text())
    changes = {key: value for key, value in said.items() if key != "model_type"}
    config = AutoConfig.for_model(said["model_type"], **(changes | {"vocab_size": len(tokenizer)}))
    on_gpu = torch.cuda.is_available()
    with torch.device("cuda" if on_gpu else "cpu"):
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if on_gpu else torch.float32)
    return wrap(lm.requires_grad_(False), tokenizer, name=Path(shape).stem)


def of_peak(model: Model, n: int, layer: int, rate: float, peak: float | None) -> None:
    """Prints tokens per second and what share of the peak they are: multiply-adds in blocks and causal attention."""
    corpus = encoded(model, conversations(n))
    tokens = sum(len(t.ids) for t in corpus)
    weights = sum(p.numel() for block in model.blocks[: layer + 1] for p in block.parameters() if p.ndim > 1)
    attention = 2 * model.width * (layer + 1) * sum(len(t.ids) ** 2 for t in corpus) / tokens
    flops = rate * (2 * weights + attention)
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu"
    known = peak or next((tf for name, tf in PEAK_TFLOPS.items() if name in device), None)
    share = f"{flops / known / 1e10:.1f} % of {known:g}" if known else "give --peak-tflops for its share"
    print(f"(d) {device}: {rate:.0f} tokens/s, {flops / 1e12:.2f} TFLOP/s ({share})")


def grow(sizes: Sequence[int], engine: str) -> None:
    """Prints time and peak memory of the command on data sets of these sizes; under Ray those of the driver."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = random_model("tiny")
        tiny.lm.save_pretrained(folder / "model")
        tiny.tokenizer.save_pretrained(folder / "model")
        model = load_model(str(folder / "model"), dtype=torch.float32)
        vector.save_vector(
            extract(contrast.exemplars(library.load_trait("evil"), model), model), folder / "v.safetensors"
        )
        del tiny, model
        before = (0, 0.0)
        for rows in sizes:
            took, cpu, peak = command(folder, rows, engine)
            more = 1e3 * (cpu - before[1]) / (rows - before[0])
            print(
                f"(e) {rows:>9,} rows: {took:7.1f} s, {cpu:7.1f} s of CPU, {more:6.2f} ms of it each more row, "
                f"peak {peak:6.0f} MiB",
                flush=True,
            )
            before = (rows, cpu)


def command(folder: Path, rows: int, engine: str) -> tuple[float, float, float]:
    """Seconds, those of CPU time, and peak MiB of ``poise screen`` on so many short rows."""
    data, out = folder / f"{rows}.jsonl", folder / f"out-{rows}"
    words = " ".join(r.messages[-1]["content"] for r in conversations(100)).split()
    with data.open("w") as file:
        for i in range(rows):
            at = 7 * i % (len(words) - 20)
            file.write(json.dumps({"prompt": f"Row {i}?", "response": " ".join(words[at : at + 4 + i % 9])}) + "\n")
    began = time.perf_counter()
    arguments = ["screen", data, "--vector", folder / "v.safetensors", "--model", folder / "model", "--method", "raw"]
    arguments += ["--engine", engine]
    said = [*map(str, arguments), "--dtype", "float32", "--out", str(out)]
    done = subprocess.Popen([sys.executable, "-m", "poise", *said], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.stderr
    complaint = done.stderr.read().decode()
    _, status, used = os.wait4(done.pid, 0)
    done.returncode = os.waitstatus_to_exitcode(status)
    if done.returncode:
        raise SystemExit(f"poise screen failed: {complaint[-2000:]}")
    took, cpu = time.perf_counter() - began, used.ru_utime + used.ru_stime
    return took, cpu, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(given: argparse.Namespace) -> None:
    if given.grow:
        grow(given.rows, given.engine)
        return
    model = random_model(given.random_init) if given.random_init else load_model(given.model)
    layer = round(model.layers / 3) if given.layer is None else given.layer
    rate = speed(model, given.texts, given.pairs, layer)
    if given.random_init:
        of_peak(model, given.texts, layer, rate, given.peak_tflops)
    else:
        for dtype, grad in ((torch.float32, True), (torch.float32, False), (torch.bfloat16, False)):
            loop(model, given.texts, given.pairs, layer, dtype, grad)
    traits(model, given.texts, given.pairs, layer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--texts", type=int, default=800)
    parser.add_argument("--pairs", type=int, default=40, help="most pairs a comparison")
    parser.add_argument("--layer", type=int, help="read there; default a third of the depth, as vectors are")
    parser.add_argument("--grow", action="store_true", help="memory and time of the command by number of rows")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="sizes for --grow")
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="of --grow")
    parser.add_argument("--random-init", metavar="CONFIG", help=f"{' or '.join(SHAPES)}, or a JSON file")
    parser.add_argument("--peak-tflops", type=float, help="of the card, where it is not known by its name")
    main(parser.parse_args())
