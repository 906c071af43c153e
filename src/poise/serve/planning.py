"""A request to jobs: messages to tokens, expressions to steering, names to probes."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from poise.engine import Job, SamplingParams
from poise.errors import InvalidArgument, InvalidSteering, RequestError, UserError
from poise.model import Encoded, Model
from poise.model import Message as Turn
from poise.monitor.steering_offset import steering_offset
from poise.serve.policy import Policy
from poise.serve.requests import Asked, ChatRequest, CompletionRequest
from poise.serve.vector_registry import Shelf, Watched
from poise.steer import Steering, SteeringExpression, cautions

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request comes to.

    Attributes:
        jobs: One a choice, in order.
        watched: Vectors that read every answer, in the order of the jobs' probes.
        shown: Which of them the request asked to see.
        steer: The request's steering as an expression.
        cautions: What certificates have to say about all steering.
        policy: In force.
        pushes: What the steering by itself adds to the readings of each watched vector, on the prompt and on tokens.
        prompt_tokens: Of all prompts, each counted once.
    """

    jobs: tuple[Job, ...]
    watched: tuple[Watched, ...]
    shown: tuple[Watched, ...]
    steer: str | None
    cautions: tuple[str, ...]
    policy: Policy
    pushes: tuple[tuple[float, float] | None, ...]
    prompt_tokens: int


def plan(asked: Asked, model: Model, name: str, shelf: Shelf, policy: Policy) -> Plan:
    """Check a request against what there is, and say what is to be generated.

    Raises:
        RequestError: names the field and the fault.
    """
    if asked.model != name:
        raise RequestError(
            404, f"There is no model {asked.model!r} here; it is {name!r}.", code="model_not_found", param="model"
        )
    watched = tuple(shelf.all.values())
    shown = _shown(asked, watched, shelf)
    spec, steering = _steering(asked, shelf, policy)
    prompts = _prompts(asked, model)
    most = _most(asked, prompts, model, policy)
    seed = secrets.randbits(63) if asked.seed is None else asked.seed
    jobs = [
        Job(
            prompt,
            SamplingParams(most, asked.temperature, asked.top_p),
            seed=(seed + choice) % 2**64,
            steering=steering,
            probes=tuple(w.probe for w in watched),
            stop=asked.stops,
            top=asked.top,
        )
        for prompt in prompts
        for choice in range(asked.n)
    ]
    return Plan(
        jobs=tuple(jobs),
        watched=watched,
        shown=shown,
        steer=str(spec) if spec and spec.terms else None,
        cautions=tuple(cautions(steering)),
        policy=policy,
        pushes=tuple(_push(steering, w) for w in watched),
        prompt_tokens=sum(len(p.ids) for p in prompts),
    )


def _push(steering: Steering | None, watched: Watched) -> tuple[float, float] | None:
    prompt, response = (steering_offset(steering, watched.probe, phase) for phase in ("prompt", "response"))
    return None if prompt is None or response is None else (prompt, response)


def _shown(asked: Asked, watched: tuple[Watched, ...], shelf: Shelf) -> tuple[Watched, ...]:
    wanted = asked.poise.watch if asked.poise else False
    if isinstance(wanted, bool):
        return watched if wanted else ()
    found = shelf.find(wanted)
    return tuple(w for w in watched if w in found)


def _steering(asked: Asked, shelf: Shelf, policy: Policy) -> tuple[SteeringExpression | None, Steering | None]:
    given = asked.poise.steer if asked.poise else None
    try:
        spec = SteeringExpression.parse(given) if isinstance(given, str) and given.strip() else given or None
        assert not isinstance(spec, str)
        vectors = {name: w.vector for name, w in shelf.all.items()}
        return spec, policy.steering(spec, vectors)
    except InvalidSteering as error:
        raise RequestError(400, str(error), code="invalid_steering", param="poise.steer") from error


def _prompts(asked: Asked, model: Model) -> list[Encoded]:
    try:
        if isinstance(asked, ChatRequest):
            return [model.encode(_turns(asked))]
        assert isinstance(asked, CompletionRequest)
        return [_plain(prompt, model) for prompt in asked.prompts]
    except UserError as error:
        param = "messages" if isinstance(asked, ChatRequest) else "prompt"
        raise RequestError(400, str(error), code="invalid_prompt", param=param) from error


def _turns(asked: ChatRequest) -> list[Turn]:
    return [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in asked.messages]


def _plain(prompt: str | Sequence[int], model: Model) -> Encoded:
    ids = model.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
    size = model.lm.get_input_embeddings().weight.shape[0]
    if not ids or max(ids) >= size:
        raise InvalidArgument(f"A prompt is empty or has a token that {model.name} lacks (it has {size}).")
    return Encoded(tuple(ids), len(ids), len(ids))


def _most(asked: Asked, prompts: Sequence[Encoded], model: Model, policy: Policy) -> int:
    most = asked.most
    longest = max(len(p.ids) for p in prompts)
    room = model.window - longest
    if room < 1 or (most or 0) > room:
        raise RequestError(
            400,
            f"The prompt has {longest} tokens and {most or 1} more are asked for, but the window is {model.window}; "
            "shorten the prompt or ask for fewer.",
            code="context_length_exceeded",
            param="messages" if isinstance(asked, ChatRequest) else "prompt",
        )
    if most is None:
        return min(policy.default_tokens, policy.most_tokens, room)
    if most > policy.most_tokens:
        raise RequestError(400, f"max_tokens is {most}; at most {policy.most_tokens} here.", param="max_tokens")
    return int(most)
