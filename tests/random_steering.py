"""Steering and probes drawn at random: every operator, layers, phases, schedules and conditions."""

from __future__ import annotations

import random
from typing import Any

import tiny
from poise.activations import Probe
from poise.model import Model
from poise.steer import Condition, Steering, Term
from poise.steer.operators import OPERATORS


def random_term(draw: random.Random, model: Model) -> Term:
    operation: Any = draw.choice(list(OPERATORS))
    increments = operation == "add" and draw.random() < 0.2
    layers: Any = "increments" if increments else tuple(sorted(draw.sample(range(model.layers), draw.randint(1, 2))))
    phase: Any = draw.choice(["response", "response", "prompt", "all"])
    when = None
    if draw.random() < 0.4:
        reading: Any = draw.choice(["token", "prompt"]) if phase == "response" else "token"
        first = 0 if increments else layers[0]
        layer = draw.randrange(model.layers) if reading == "prompt" else draw.randint(0, first)
        probe = tiny.vector(model, seed=draw.randint(10, 13))
        when = Condition(
            vector=probe, layer=layer, value=draw.uniform(-2, 2), above=draw.random() < 0.5, reading=reading
        )
    scheduled = phase == "response" and draw.random() < 0.3
    return Term(
        vector=tiny.vector(model, seed=draw.randint(0, 3)),
        value={"add": draw.uniform(-1.5, 1.5), "project_out": 1.0}.get(operation, draw.uniform(-1, 1)),
        layers=layers,
        operation=operation,
        phase=phase,
        tokens=draw.choice([(0, 3), (2, None), (1, 4)]) if scheduled else (0, None),
        when=when,
    )


def random_steering(seed: int, model: Model) -> Steering | None:
    draw = random.Random(seed)
    if draw.random() < 0.1:
        return None
    terms = tuple(random_term(draw, model) for _ in range(draw.randint(1, 3)))
    return Steering(terms, orthogonal=draw.random() < 0.3)


def random_probes(seed: int, model: Model) -> list[Probe]:
    draw = random.Random(1000 + seed)
    return [
        tiny.vector(model, seed=20 + n).at("read", draw.randrange(model.layers)).probe
        for n in range(draw.randint(1, 3))
    ]
