"""Whether an answer is the same whatever shares its batch, in bfloat16 and float32, and what it costs to be certain.

    python benchmarks/same_answer.py [--model smollm2-135m] [--prompts 12] [--tokens 24]

Each prompt is answered by the server's engine alone, and all together, with the same seeds. Alone is what `--batch 1`
does, so the ratio of tokens a second is its price.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from common import seconds
from poise.engine import GenerationRequest, SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.model import Model, ask, load_model
from poise.trait import library


def answers(model: Model, requests: Sequence[GenerationRequest], batch: int) -> list[str]:
    """The text of each request's answer, so many at once."""
    engine, texts = ContinuousEngine(model, batch=batch), [""] * len(requests)
    for number, request in enumerate(requests):
        engine.add(number, request)
    while engine.waiting or engine.running:
        for output in engine.step():
            texts[int(str(output.key))] += "".join(token.text for token in output.tokens)
    return texts


def compare(model: Model, requests: Sequence[GenerationRequest]) -> tuple[int, int, float]:
    """Answers that differ together from alone, those that differ alone from alone, and the price of alone."""
    texts: dict[str, list[str]] = {}

    def run(name: str, batch: int) -> float:
        return seconds(lambda: texts.__setitem__(name, answers(model, requests, batch)))

    together, alone, again = run("together", len(requests)), run("alone", 1), run("again", 1)
    differ = sum(a != b for a, b in zip(texts["alone"], texts["together"], strict=True))
    unlike = sum(a != b for a, b in zip(texts["alone"], texts["again"], strict=True))
    return differ, unlike, together / min(alone, again)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    options = parser.parse_args()
    questions = [q for name in library.names() for q in library.evaluation_questions(library.load_trait(name))]
    for dtype in options.dtype:
        model = load_model(options.model, dtype=getattr(torch, dtype))
        for temperature in (0.0, 0.8):
            sampling = SamplingParams(max_new_tokens=options.tokens, temperature=temperature)
            requests = [
                GenerationRequest(prompt=model.encode(ask(question)), sampling=sampling, seed=number)
                for number, question in enumerate(questions[: options.prompts])
            ]
            differ, unlike, price = compare(model, requests)
            print(
                f"{dtype}, temperature {temperature}: {differ} of {len(requests)} differ together, {unlike} alone; "
                f"alone has {price:.2f} of the tokens a second",
                flush=True,
            )


if __name__ == "__main__":
    main()
