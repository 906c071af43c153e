"""How far vLLM under the plugin and our engine agree on a real model: greedy tokens, near-ties, readings.

    python benchmarks/vllm_parity.py --model NAME [--requests 200] [--tokens 12] [--dtype float32]

Run in the environment of `make test-vllm`. Requests are random: operators, layers, phases, schedules and conditions of
`tests/test_vllm_engine.py`, along random directions of a fifth of the activations' length, in shared batches, on
questions of the library's traits. Where the two choose different tokens, the gap is what vLLM's own log-probabilities
have between them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
DOSE = 0.2


def random_vectors(model: Any) -> dict[str, Any]:
    """Directions of a fifth of the activations' length at each layer."""
    import tiny
    from poise.activations import reference_norm
    from poise.model import ask
    from poise.vector import PersonaVector
    from test_vllm_engine import NAMES

    norm = reference_norm(model, [model.encode(ask("How are you today?"), "I am very well, thank you for asking.")])
    vectors = {}
    for seed, name in enumerate(NAMES):
        vector = tiny.vector(model, seed=seed)
        directions = DOSE * norm[:, None] * torch.nn.functional.normalize(vector.directions, dim=-1)
        vectors[name] = PersonaVector(directions, norm, vector.header)
    return vectors


def questions(n: int) -> list[str]:
    from poise.trait.library import load_trait, names

    traits = [load_trait(name).questions for name in names()]
    texts = [q for trait in traits for q in [*trait.evaluation, *trait.extraction]]
    return random.Random(0).sample(texts, n)


def compare(options: argparse.Namespace) -> dict[str, Any]:
    from poise.engine import SamplingParams
    from poise.engine.static import LocalEngine
    from poise.model import ask, load_model
    from poise.steer import SteeringExpression
    from poise.vllm.engine import VllmEngine
    from test_vllm_engine import fields

    model = load_model(options.model, dtype=getattr(torch, options.dtype), device="cpu")
    vectors = random_vectors(model)
    requests = fields(options.requests, model, seed=3)
    steering = [SteeringExpression.parse(f["steer"]).steering(vectors) if f["steer"] else None for f in requests]
    probes = [[vectors[name].at("read").probe for name in f["watch"]] for f in requests]
    prompts = [model.encode(ask(question)) for question in questions(options.requests)]
    sampling = SamplingParams(max_new_tokens=options.tokens, temperature=0)
    engine = VllmEngine(options.model, dtype=options.dtype, max_model_len=2048)
    programs = [engine._program(s, p, keep_means=False) for s, p in zip(steering, probes, strict=True)]
    parameters = [engine._parameters(sampling, 0, program) for program in programs]
    for one in parameters:
        one.logprobs = 20
    inputs = [{"prompt_token_ids": list(prompt.ids)} for prompt in prompts]
    engine._llm.generate(inputs[:1], parameters[:1], use_tqdm=False)
    began = time.perf_counter()
    outputs = engine._llm.generate(inputs, parameters, use_tqdm=False)
    by_vllm = time.perf_counter() - began
    answers = LocalEngine(model).generate(prompts, sampling, steering=steering, probes=probes)
    local = time.perf_counter() - began - by_vllm
    gaps, worst, largest = [], 0.0, 0.0
    for output, program, prompt, answer in zip(outputs, programs, prompts, answers, strict=True):
        [completion] = output.outputs
        ids = engine._generation(completion, program, sampling, prompt).ids
        pairs = list(zip(ids, answer.ids, strict=False))
        first = next((n for n, (token, ours) in enumerate(pairs) if token != ours), None)
        if first is not None:
            likely = {token: entry.logprob for token, entry in completion.logprobs[first].items()}
            gaps.append(round(likely[ids[first]] - likely.get(answer.ids[first], float("-inf")), 5))
        if answer.readings is not None:
            values = torch.from_numpy(completion.poise.values)[: 1 + (len(pairs) if first is None else first)]
            expected = answer.readings[: len(values)]
            worst = max(worst, float((values - expected).abs().max()))
            largest = max(largest, float(expected.abs().max()))
    return {
        "model": options.model,
        "dtype": options.dtype,
        "requests": len(requests),
        "equal": len(requests) - len(gaps),
        "gaps": sorted(gaps),
        "largest difference of readings": worst,
        "largest reading": largest,
        "seconds": {"vllm": round(by_vllm, 1), "local": round(local, 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    print(json.dumps(compare(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
