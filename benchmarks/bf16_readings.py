"""What rounding does to a finetuning shift: bfloat16 beside float32, in batches and alone. Prints Markdown.

    python benchmarks/bf16_readings.py --base smollm2-135m --tuned DIR --vector evil.safetensors [--layers 10 20]

Every prompt's shift is read with both models in the same batches, with both alone, and with the tuned model in other
batches than the base. The error is the difference to float32 alone: its standard deviation over questions is what the
interval over questions holds already, its mean is what it does not.
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np
import torch

from poise import load_model
from poise.activations import Probe, project_each
from poise.model import Encoded, Model, ask
from poise.shift.evaluation import load_tuned_model
from poise.trait.library import evaluation_questions
from poise.vector import PersonaVector, load_vector

WAYS = {"both in the same batches": ("batched", "batched"), "both alone": ("alone", "alone"),
        "in different batches": ("batched", "halves"), "batched and alone": ("batched", "alone")}  # fmt: skip


def readings(model: Model, vector: PersonaVector, layers: list[int]) -> dict[str, np.ndarray]:
    """Last prompt tokens [questions, layers], read in three ways."""
    prompts = [model.encode(ask(question)) for question in evaluation_questions(vector.header.trait)]
    ends = [p.last_prompt + 1 for p in prompts]
    texts = [Encoded(p.ids[:end], end, end) for p, end in zip(prompts, ends, strict=True)]
    probes = [Probe(layer, vector.unit(layer)) for layer in layers]

    def last(some: list[Encoded]) -> np.ndarray:
        rows = [row for row in project_each(model, some, probes) if row is not None]
        return torch.stack([row[-1] for row in rows]).double().numpy()

    halves = np.empty((len(texts), len(layers)))
    for part in np.array_split(np.random.default_rng(0).permutation(len(texts)), 2):
        halves[part] = last([texts[i] for i in part])
    return {"batched": last(texts), "alone": np.concatenate([last([text]) for text in texts]), "halves": halves}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--tuned", required=True)
    parser.add_argument("--vector", required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 20])
    arguments = parser.parse_args()
    vector = load_vector(arguments.vector)
    read = {}
    for dtype in (torch.float32, torch.bfloat16):
        load = partial(load_model, dtype=dtype)
        before = readings(load(arguments.base), vector, arguments.layers)
        tuned = load_tuned_model(arguments.tuned, arguments.base, load)
        read[dtype] = before, readings(tuned, vector, arguments.layers)
    exact = read[torch.float32]
    truth = exact[1]["alone"] - exact[0]["alone"]
    head = "| precision | read | layer | shift | its SD over questions | error, SD a question | error, mean |"
    print(head + "\n|---|---|---:|---:|---:|---:|---:|")
    for dtype, (before, after) in read.items():
        for name, (one, other) in WAYS.items():
            shift = after[other] - before[one]
            error = shift - truth
            for k, layer in enumerate(arguments.layers):
                cells = (shift[:, k].mean(), shift[:, k].std(ddof=1), error[:, k].std(ddof=1), error[:, k].mean())
                print(f"| {str(dtype)[6:]} | {name} | {layer} |" + "".join(f" {cell:.2f} |" for cell in cells))


if __name__ == "__main__":
    main()
