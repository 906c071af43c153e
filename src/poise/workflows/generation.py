"""Steering from what the user wrote, and answers under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poise import vector as vectors
from poise.engine import Generation, SamplingParams
from poise.engine.grammar import grammar_compiler
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument
from poise.model import Model, ask
from poise.model.rendering import Thinking
from poise.steer import Steering, SteeringExpression
from poise.vllm.choice import GeneratorName, choose_engine

__all__ = ["check_steering", "generate", "read_steering", "steer_by"]


def read_steering(specs: Sequence[str]) -> Steering | None:
    """Steering from expressions whose names are files, in that order; ``None`` for none. No model is needed.

    Raises:
        InvalidSteering: an expression cannot be read, or names a layer or strength that its vector does not have.
        InvalidVector: a file is missing or no vector.
    """
    if not specs:
        return None
    parsed = [SteeringExpression.parse(text) for text in specs]
    joined = SteeringExpression(
        terms=tuple(t for p in parsed for t in p.terms), orthogonal=any(p.orthogonal for p in parsed)
    )
    return joined.steering({name: vectors.load_vector(name) for name in joined.names})


def steer_by(specs: Sequence[str], model: Model, *, allow_other_model: bool = False) -> Steering | None:
    """``read_steering``, whose vectors are also checked to be the model's.

    Raises:
        OtherModel: a vector was computed on another model.
    """
    steering = read_steering(specs)
    check_steering(steering, model, allow_other_model=allow_other_model)
    return steering


def check_steering(steering: Steering | None, model: Model, *, allow_other_model: bool = False) -> None:
    """Refuse steering by vectors that were computed on another model.

    Raises:
        OtherModel: names the vector and both models.
    """
    for term in steering.terms if steering else ():
        for vector in (term.vector, *([term.when.vector] if term.when else ())):
            vector.check_model(model, allow_other_model=allow_other_model)


def generate(
    prompts: list[str],
    model: Model,
    *,
    system: str | None = None,
    steering: Steering | None = None,
    sampling: SamplingParams,
    seed: int = 0,
    batch: int = 32,
    thinking: Thinking = False,
    engine: GeneratorName = "local",
    schema: Mapping[str, Any] | None = None,
) -> list[Generation]:
    """Answer prompts, steered or not, by the engine ``local`` or ``vllm``.

    ``system`` is a system prompt before each; ``thinking`` lets the model think before it replies, where it has a
    switch; with a JSON ``schema`` every reply is JSON that fits it.

    Raises:
        InvalidArgument: the schema cannot be kept to, which names the keyword; or the engine holds to none.
        MissingExtra: there is a schema, and llguidance is not installed.
    """
    seeds = [seed + i for i in range(len(prompts))]
    if schema is None:
        generator = choose_engine(engine, model, batch=batch, allow_other_model=True)
        encoded = [model.encode(ask(p, system), thinking=thinking) for p in prompts]
        return generator.generate(encoded, sampling, seeds=seeds, steering=steering)
    if engine != "local":
        raise InvalidArgument(f"The engine {engine} holds answers to no schema; take the engine local.")
    may_think = bool(thinking)
    grammar = grammar_compiler(model).json_schema(schema, blank=may_think)
    encoded = [model.encode(ask(p, system), thinking=thinking) for p in prompts]
    return LocalEngine(model, batch=batch, allow_other_model=True).generate(
        encoded, sampling, seeds=seeds, steering=steering, grammar=grammar, may_think=may_think
    )
