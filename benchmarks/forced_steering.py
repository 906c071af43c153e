"""Whether a policy's forced cap holds against what requests ask for.

    python benchmarks/forced_steering.py VECTOR [--model smollm2-135m] [--requests 500] [--level L] [--dtype float32]

Random requests, within ``most_dose``, over at least 50 prompts: one to four terms of every operator, on any layers and
tokens, with conditions. Each answer is read along the cap's direction at the cap's layer and in the last block, once
with the cap as the server joins it to the request, and once with both simply together, as a server without this would.
The cap's level is by default the 25th percentile of what unsteered answers read, so that it is at work all the time.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from poise.activations import Probe
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import RequestError
from poise.model import Encoded, Model, ask, load_model
from poise.serve.policy import Policy
from poise.steer import Steering, SteeringExpression
from poise.trait import library
from poise.vector import PersonaVector, load_vector

BATCH, PROMPTS = 16, 60


@dataclass(frozen=True, kw_only=True)
class CapResult:
    """Readings of all answers above the cap's level.

    Attributes:
        requests: Requests answered.
        tokens: Tokens read.
        above: Requests with a token above the level by more than the margin, at the cap's layer and in the last block.
        excess: Highest reading less the level, at the two.
    """

    requests: int
    tokens: int
    above: tuple[int, int]
    excess: tuple[float, float]

    def __str__(self) -> str:
        """In a line."""
        above, excess = self.above, self.excess
        return (
            f"{self.requests} requests, {self.tokens} tokens: above the level at the cap's layer {above[0]}, in the "
            f"last block {above[1]}; highest reading less the level {excess[0]:.4f} and {excess[1]:.4f}"
        )


def random_request(draw: random.Random, names: Sequence[str], layers: int, scale: float) -> str:
    """One to four terms; ``scale`` is mean ‖h‖, in which levels are drawn."""
    return "; ".join(_random_term(draw, names, layers, scale) for _ in range(draw.randint(1, 4)))


def _random_term(draw: random.Random, names: Sequence[str], layers: int, scale: float) -> str:
    at = ",".join(map(str, sorted(draw.sample(range(layers), draw.randint(1, min(3, layers))))))
    level = draw.uniform(-0.5, 0.5) * scale
    strength = draw.choice(
        [f"{draw.uniform(-120, 120):.3f}%"] * 3
        + ["out", f"clamp:{level:.3f}", f"floor:{level:.3f}", f"cap:{level:.3f}"]
    )
    name, where = draw.choice(names), draw.choice(["", "", "", " on prompt", " on all", " in both"])
    if not where:
        where = draw.choice(["", "", f" first {draw.randint(1, 9)}", f" after {draw.randint(1, 9)}"])
    condition = draw.choice(["", "", "", f" if prompt {names[0]}@0>{draw.uniform(-1, 1) * scale:.3f}"])
    return f"{name}@{at}={strength}{where}{condition}"


def requests_within(
    policy: Policy, vectors: dict[str, PersonaVector], number: int, seed: int
) -> list[SteeringExpression]:
    """Random requests that the policy takes."""
    draw, out = random.Random(seed), list[SteeringExpression]()
    [first, *_] = vectors.values()
    scale = float(first.reference_norm.median())
    while len(out) < number:
        request = SteeringExpression.parse(random_request(draw, list(vectors), first.layers, scale))
        try:
            policy.requested_steering(request, vectors)
        except RequestError:
            continue
        out.append(request)
    return out


def measure(
    model: Model,
    prompts: Sequence[Encoded],
    steerings: Sequence[Steering],
    probes: Sequence[Probe],
    level: float,
    *,
    tokens: int,
    margin: float,
) -> CapResult:
    """Answer each steering's request and read it; prompts are taken in turn."""
    engine = LocalEngine(model, batch=BATCH)
    answers = engine.generate(
        [prompts[i % len(prompts)] for i in range(len(steerings))],
        SamplingParams(max_new_tokens=tokens, temperature=1.0),
        steering=list(steerings),
        probes=list(probes),
    )
    readings = [answer.readings[1:] - level for answer in answers if answer.readings is not None]
    highest = torch.stack([r.amax(dim=0) if len(r) else torch.full((len(probes),), -math.inf) for r in readings])
    return CapResult(
        requests=len(answers),
        tokens=sum(map(len, readings)),
        above=tuple(int(n) for n in (highest > margin).sum(dim=0)),  # type: ignore[arg-type]
        excess=tuple(float(x) for x in highest.amax(dim=0)),  # type: ignore[arg-type]
    )


def compare(
    model: Model,
    vectors: dict[str, PersonaVector],
    prompts: Sequence[Encoded],
    *,
    number: int,
    tokens: int = 16,
    level: float | None = None,
    margin: float = 1e-2,
    seed: int = 0,
) -> tuple[CapResult, CapResult]:
    """The first vector capped where it is read: as the server does it, and with request and cap simply together."""
    name, vector = next(iter(vectors.items()))
    layer = vector.at("read").layer
    unit = vector.unit(layer)
    probes = [Probe(layer, unit), Probe(vector.layers - 1, unit)]
    if level is None:
        plain = LocalEngine(model, batch=BATCH).generate(prompts, SamplingParams(tokens), probes=probes)
        level = round(float(torch.cat([p.readings[1:, 0] for p in plain if p.readings is not None]).quantile(0.25)), 3)
    policy = Policy(steer=f"{name}@{layer}=cap:{level}")
    requests = requests_within(policy, vectors, number, seed)
    print(f"{number} requests such as {str(requests[0])!r}; {policy.steer}", flush=True)
    held = [policy.steering(request, vectors).steering for request in requests]
    forced = policy.forced_steering(vectors)
    joined = [request.steering(vectors) + forced for request in requests]
    first, second = (
        measure(model, prompts, rows, probes, level, tokens=tokens, margin=margin) for rows in (held, joined)
    )
    return first, second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vector", nargs="+", help="vector files; the first is capped, all may be asked for")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--level", type=float)
    parser.add_argument("--margin", type=float, default=1e-2, help="above the level by less is rounding")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    model = load_model(options.model, dtype=getattr(torch, options.dtype))
    vectors = {f"v{n}": load_vector(path) for n, path in enumerate(options.vector)}
    questions = [q for name in library.names() for q in library.evaluation_questions(library.load_trait(name))]
    prompts = [model.encode(ask(question)) for question in list(dict.fromkeys(questions))[:PROMPTS]]
    held, joined = compare(
        model,
        vectors,
        prompts,
        number=options.requests,
        tokens=options.tokens,
        level=options.level,
        margin=options.margin,
    )
    print(f"held:     {held}\ntogether: {joined}")


if __name__ == "__main__":
    main()
