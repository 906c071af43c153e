"""What steering and watching cost inside vLLM: tokens a second, steered and watched, over plain.

    python benchmarks/vllm_steer.py --model FOLDER [--traits 8] [--batch 1 16 64] [--tokens 64] [--compiled]

Run in the environment of `make test-vllm`. The vectors are random directions of the model's shape, read at layers
spread over its depth; each request adds one of them. All kinds run in turn in each round, in an order that turns round;
a figure is the median over rounds of the ratio to plain in the same round, with its bootstrapped 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import median_ratio

KINDS = ("plain", "steered", "watched", "steered and watched")


def write_vectors(folder: Path, model: str, traits: int) -> list[str]:
    """Random vectors of the model's shape."""
    from transformers import AutoConfig

    from poise.model.architecture import text_config
    from poise.trait import OwnTrait
    from poise.vector import Header, ModelId, PersonaVector, save_vector

    config = text_config(AutoConfig.from_pretrained(model))
    layers, width = config.num_hidden_layers, config.hidden_size
    pairs = [{"question": f"What of {i}?", "with": f"Bad, {i}.", "without": f"Good, {i}."} for i in range(8)]
    names = [f"trait-{n}" for n in range(traits)]
    for number, name in enumerate(names):
        trait = OwnTrait.model_validate({"name": name, "pairs": pairs})
        facts: Any = {
            "trait": trait,
            "trait_hash": trait.hash,
            "model": ModelId(name=model, architecture="", weights="", adapter="", template=""),
            "contrast": "imported",
            "kept": {},
            "dropped": {},
            "agreement": (),
            "judge": "",
            "seed": number,
            "software": {},
        }
        directions = torch.randn((layers, width), generator=torch.Generator().manual_seed(number)) * width**-0.5
        directions[: round(number * (layers - 1) / max(1, traits))] = 0  # so that they are read at different layers
        vector = PersonaVector(directions, torch.ones(layers), Header(**facts))
        save_vector(vector, folder / f"{name}.safetensors", force=True)
    return names


def fields(kind: str, batch: int, names: list[str]) -> list[dict[str, Any] | None]:
    if kind == "plain":
        return [None] * batch
    steer = kind != "watched"
    watch = names if "watched" in kind else []
    return [{"steer": f"{names[i % len(names)]}=0.1" if steer else None, "watch": watch} for i in range(batch)]


def tokens_a_second(llm: Any, kind: str, batch: int, names: list[str], tokens: int) -> float:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [5 + (7 * i + j) % 900 for j in range(32)]} for i in range(batch)]
    parameters = [
        SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, extra_args={"poise": field} if field else None
        )
        for field in fields(kind, batch, names)
    ]
    llm.reset_prefix_cache()
    begin = time.perf_counter()
    llm.generate(prompts, parameters, use_tqdm=False)
    return batch * tokens / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--traits", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--memory", type=float, default=0.3, help="share of the memory that vLLM takes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        names = write_vectors(Path(folder), arguments.model, arguments.traits)
        os.environ |= {"POISE_VECTORS": folder, "POISE_ALLOW_OTHER_MODEL": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        from vllm import LLM

        llm = LLM(
            model=arguments.model,
            dtype=arguments.dtype,
            enforce_eager=not arguments.compiled,
            max_model_len=32 + arguments.tokens + 16,
            max_num_seqs=max(arguments.batch),
            gpu_memory_utilization=arguments.memory,
        )
        print(f"{arguments.model}, {'compiled' if arguments.compiled else 'eager'}, {arguments.traits} vectors")
        print("| batch | plain, tokens/s | " + " | ".join(KINDS[1:]) + " |\n|---|---|" + "---|" * (len(KINDS) - 1))
        for batch in arguments.batch:
            tokens_a_second(llm, KINDS[-1], batch, names, min(8, arguments.tokens))  # warm
            rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for number in range(arguments.rounds):
                for kind in KINDS if number % 2 else reversed(KINDS):
                    rates[kind].append(tokens_a_second(llm, kind, batch, names, arguments.tokens))
            ratios = [median_ratio(rates["plain"], rates[kind]) for kind in KINDS[1:]]
            shares = [f"{r.value:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in ratios]
            print(f"| {batch} | {statistics.median(rates['plain']):.1f} | {' | '.join(shares)} |", flush=True)
            print(json.dumps({"batch": batch, "rates": rates}), flush=True)


if __name__ == "__main__":
    main()
