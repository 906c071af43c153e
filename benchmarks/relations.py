"""Relations of models: what pairs whose relation is known are called, and how their sketches correlate.

    python benchmarks/relations.py [--model smollm2-135m]

The limit lies between the even cases of each kind; what counts are the odd ones, which this prints beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny
from poise.model import Model, load_model, wrap
from poise.model.architecture import decoder_blocks
from poise.vector import ModelId

Case = tuple[str, str, ModelId, ModelId]
OUTPUTS = ("o_proj", "down_proj", "c_proj", "attention.dense", "dense_4h_to_h")
ARCHITECTURES = ("llama", "gemma2", "gpt2", "mixtral", "qwen3", "gpt_neox")


def identity(lm: Any, tokenizer: Any) -> ModelId:
    """What a model is known by."""
    return ModelId.of(wrap(lm.eval(), tokenizer, name="model"))


def train(lm: Any, *, steps: int, rate: float, seed: int = 0) -> Any:
    """Full fine-tuning on a few texts: every weight moves."""
    torch.manual_seed(seed)
    ids = torch.randint(0, min(lm.config.get_text_config().vocab_size, 500), (4, 24))
    lm.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        lm(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return lm.eval()


def merged(lm: Any, config: Any, scale: float) -> Any:
    """An adapter with random weights, merged in."""
    adapted = get_peft_model(lm, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))
    return adapted.merge_and_unload()


def rounded(lm: Any, bits: int, *, block: int = 32, zero: bool = False) -> Any:
    """Every matrix of the blocks to so many bits, each block of a row with its own scale."""
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.dim() < 2 or not any(part.isdigit() for part in name.split(".")):
                continue
            flat = parameter.reshape(-1, block) if parameter.numel() % block == 0 else parameter.reshape(1, -1)
            low = flat.amin(-1, keepdim=True) if zero else torch.zeros_like(flat[:, :1])
            top = (flat - low).abs().amax(-1, keepdim=True).clamp(min=1e-9)
            step = top / (2**bits - 1 if zero else 2 ** (bits - 1) - 1)
            parameter.copy_((((flat - low) / step).round() * step + low).reshape(parameter.shape))
    return lm


def cases_of(make: Callable[[], Any], other: Callable[[int], Any], tokenizer: Any) -> Iterator[tuple[str, Any]]:
    """(kind, changed model) for one base."""
    for dtype in (torch.bfloat16, torch.float16):
        yield "same", make().to(dtype)
    for steps, rate in ((1, 1e-5), (3, 1e-5), (3, 1e-4), (10, 1e-4), (10, 1e-3), (30, 1e-3)):
        yield "fine-tune", train(make(), steps=steps, rate=rate, seed=steps)
    linear: dict[str, Any] = {"target_modules": "all-linear"}
    for scale in (0.003, 0.01, 0.03):
        for config in (LoraConfig(r=4, lora_alpha=8, **linear), LoHaConfig(r=4, **linear), LoKrConfig(r=4, **linear)):
            with contextlib.suppress(TypeError):  # a kind that does not know this model's layers
                yield "merged", merged(make(), config, scale)
    for bits in (8, 6, 5, 4, 3):
        for zero in (False, True):
            yield "quantised", rounded(make(), bits, zero=zero)
    for extra in (1, 8, 64):
        lm = make()
        lm.resize_token_embeddings(lm.get_input_embeddings().weight.shape[0] + extra, mean_resizing=False)
        yield "resized", lm
    for seed in (11, 12, 13, 14):
        yield "other", other(seed)
        yield from (("spoilt", lm) for lm in spoilt(make, other(seed)))


def spoilt(make: Callable[[], Any], stranger: Any) -> Iterator[Any]:
    """Models of which a part is a relative's: a block from a stranger, outputs negated, the mean with a stranger."""
    lm = make()
    blocks, others = decoder_blocks(lm), decoder_blocks(stranger)
    blocks[len(blocks) // 2].load_state_dict(others[len(blocks) // 2].state_dict())
    yield lm
    for count in (len(blocks), 1):
        lm = make()
        with torch.no_grad():
            for block in decoder_blocks(lm)[:count]:
                for name, parameter in block.named_parameters():
                    if parameter.dim() > 1 and any(part in name for part in OUTPUTS):
                        parameter.neg_()
        yield lm
    lm = make()
    with torch.no_grad():
        for parameter, other in zip(lm.parameters(), stranger.parameters(), strict=True):
            parameter.add_(other).div_(2)
    yield lm


def tiny_cases() -> Iterator[Case]:
    """All kinds, on tiny random models and on ones that were trained a little."""
    for architecture in ARCHITECTURES:

        def make(architecture: str = architecture) -> Any:
            return tiny.lm(architecture)

        def other(seed: int, architecture: str = architecture) -> Any:
            lm = tiny.lm(architecture, seed=seed)
            return train(lm, steps=30, rate=1e-3) if seed % 2 else lm

        base = identity(make(), tiny.chatml())
        for kind, lm in cases_of(make, other, tiny.chatml()):
            yield architecture, kind, base, identity(lm, tiny.chatml())
        tuned = [identity(train(make(), steps=10, rate=1e-3, seed=seed), tiny.chatml()) for seed in (1, 2)]
        yield architecture, "fine-tune", tuned[0], tuned[1]


def real_cases(name: str) -> Iterator[Case]:
    """The same on a real model."""
    model: Model = load_model(name, dtype=torch.float32, device="cpu")
    base = ModelId.of(model)

    def other(seed: int) -> Any:
        torch.manual_seed(seed)
        return type(model.lm)(model.lm.config)

    for kind, lm in cases_of(lambda: copy.deepcopy(model.lm), other, model.tokenizer):
        yield name, kind, base, identity(lm, model.tokenizer)


def main() -> None:
    """Print one line a kind and every pair that was called something else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="also a real model")
    name = parser.parse_args().model
    warnings.simplefilter("ignore")
    lines: dict[str, list[tuple[str, str, float, float]]] = defaultdict(list)
    for where, kind, before, after in [*tiny_cases(), *(real_cases(name) if name else ())]:
        relation = before.relation(after)
        assert before.sketch
        assert after.sketch
        r, worst = before.sketch.correlation(after.sketch), before.sketch.worst_correlation(after.sketch)
        lines[kind].append((where, relation.kind, r, worst))
    print(
        "| kind | half | n | called so | called related | correlation, lowest to highest | of the worst part |\n"
        "|---|---|---|---|---|---|---|"
    )
    related = {"same", "merged", "fine-tune", "quantised", "resized", "adapter"}
    for kind, rows in lines.items():
        for half, part in (("chosen on", rows[::2]), ("reported", rows[1::2])):
            r, worst = ([row[i] for row in part] for i in (2, 3))
            so = sum(called == {"spoilt": "other"}.get(kind, kind) for _, called, *_ in part)
            safe = sum(called in related for _, called, *_ in part)
            ranges = f"{min(r):.4f} to {max(r):.4f} | {min(worst):.4f} to {max(worst):.4f}"
            print(f"| {kind} | {half} | {len(part)} | {so} | {safe} | {ranges} |")
    for kind, rows in lines.items():
        for where, called, r, worst in rows:
            if called != {"spoilt": "other"}.get(kind, kind):
                print(f"{where}: {kind} called {called} ({r:.4f}, worst {worst:.4f})")


if __name__ == "__main__":
    main()
