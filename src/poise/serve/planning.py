"""An API request to requests of the engine: messages to tokens, expressions to steering, names to probes."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from poise.data.tool_calls import parse_call
from poise.engine import GenerationRequest, SamplingParams
from poise.engine.prompt_scores import PromptScoring
from poise.errors import InvalidArgument, InvalidSteering, RequestError, UserError
from poise.model import Encoded, Message, Model
from poise.model.chat_template import render_prompt
from poise.model.parts import TokenPart
from poise.monitor.steering_offset import steering_offset
from poise.serve.answer_form import AnswerForm, answer_form, check_tool_history, check_tools_shown, template_call_id
from poise.serve.echo import EchoedPrompt, echoed_prompt
from poise.serve.policy import Policy
from poise.serve.prompt_length import check_text_length, too_long
from poise.serve.requests import ChatCompletionRequest, CompletionRequest, OpenAIRequest
from poise.serve.vector_registry import VectorRegistry, WatchedVector
from poise.steer import Steering, SteeringExpression, cautions
from poise.steer.hold import hold_forced

__all__ = ["RequestPlan", "SteeringPush", "plan_request", "request_messages"]

MOST_SCORED = 131_072  # tokens of prompts whose log-probabilities one request may have


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringPush:
    """What a steering by itself adds to one vector's readings.

    Attributes:
        prompt: Of the last prompt token.
        tokens: Of an answer's token, by its part.
    """

    prompt: float
    tokens: Mapping[TokenPart, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPlan:
    """What a client's request comes to.

    Attributes:
        requests: Requests to the engine, one for each choice, in order.
        requested: What the client's steering does.
        forced: What the policy steers.
        watched: Vectors that read every answer, in the order of the requests' probes.
        shown: Watched vectors whose readings the client asked to see.
        steer: The client's steering as an expression.
        cautions: Cautions of the certificates about all steering, forced steering included.
        policy: Rules in force for the client's key.
        pushes: What the steering by itself adds to the readings of each watched vector; ``None`` where it is not known.
        prompt_tokens: Number of tokens of all prompts, each counted once.
        most_new_tokens: Tokens of all answers together, at most; 0 where only prompts are scored.
        echoes: The prompts, where answers begin with them.
        scoring: What scores the prompts, where their log-probabilities are asked for.
        form: What every answer may be.
    """

    requests: tuple[GenerationRequest, ...]
    requested: Steering
    forced: Steering
    watched: tuple[WatchedVector, ...]
    shown: tuple[WatchedVector, ...]
    steer: str | None
    cautions: tuple[str, ...]
    policy: Policy
    pushes: tuple[SteeringPush | None, ...]
    prompt_tokens: int
    most_new_tokens: int
    form: AnswerForm
    echoes: tuple[EchoedPrompt, ...] = ()
    scoring: PromptScoring | None = None


def plan_request(
    body: OpenAIRequest, model: Model, name: str, registry: VectorRegistry, policy: Policy, key: str | None = None
) -> RequestPlan:
    """Check a request against what there is, and say what is to be generated.

    Raises:
        RequestError: names the field and the fault.
    """
    if body.model != name:
        raise RequestError(
            404, f"There is no model {body.model[:100]!r} here; it is {name!r}.", code="model_not_found", param="model"
        )
    entries = registry.of(key)
    watched = tuple(entries.values())
    shown = _shown_vectors(body, watched, registry, key)
    spec, requested, forced = _steering(body, entries, policy)
    held = hold_forced(requested, forced)
    steering = held.steering if held.steering.terms else None
    form = _answer_form(body, model)
    prompts = _encode_prompts(body, model, form)
    max_new_tokens = _max_new_tokens(body, prompts, model, policy)
    seed = secrets.randbits(63) if body.seed is None else body.seed
    requests = [
        GenerationRequest(
            prompt=prompt,
            sampling=SamplingParams(max(max_new_tokens, 1), body.temperature, body.top_p),
            seed=(seed + choice) % 2**64,
            steering=steering,
            probes=tuple(w.probe for w in watched),
            stop=body.stops,
            top_logprobs=body.logprobs_count,
            client=key,
            grammar=form.grammar,
            may_think=isinstance(body, ChatCompletionRequest) and bool(body.thinking),
            shown=form.shown,
        )
        for prompt in prompts
        for choice in range(body.n)
    ]
    return RequestPlan(
        requests=tuple(requests),
        requested=requested,
        forced=forced,
        watched=watched,
        shown=shown,
        steer=str(spec) if spec and spec.terms else None,
        cautions=(*cautions(requested + forced), *held.notes),
        policy=policy,
        pushes=tuple(_steering_push(steering, w) for w in watched),
        prompt_tokens=sum(len(p.ids) for p in prompts),
        most_new_tokens=max_new_tokens * len(requests),
        **_echo(body, prompts, steering, model),
        form=form,
    )


def _echo(body: OpenAIRequest, prompts: Sequence[Encoded], steering: Steering | None, model: Model) -> dict[str, Any]:
    """What is given back of the prompts, and how they are scored."""
    if not isinstance(body, CompletionRequest) or not body.echo:
        return {}
    sent: list[str] | list[list[int]] = body.prompts
    echoes = tuple(echoed_prompt(sent[place], ids, model) for place, ids in enumerate(prompts))
    if body.logprobs is None:
        return {"echoes": echoes}
    if (total := sum(len(p.ids) for p in prompts)) > MOST_SCORED:
        text = f"The prompts have {total} tokens, and at most {MOST_SCORED} are scored in one request; send several."
        raise RequestError(400, text, code="too_many_tokens", param="prompt")
    try:
        scoring = PromptScoring(model, [p.ids for p in prompts], steering=steering, top=body.logprobs)
    except InvalidSteering as error:
        raise RequestError(400, str(error), code="invalid_steering", param="poise.steer") from error
    except InvalidArgument as error:
        raise RequestError(400, str(error), code="invalid_prompt", param="prompt") from error
    return {"echoes": echoes, "scoring": scoring}


def _steering_push(steering: Steering | None, watched: WatchedVector) -> SteeringPush | None:
    prompt = steering_offset(steering, watched.probe, "prompt")
    tokens: dict[TokenPart, float] = {}
    for part in get_args(TokenPart):
        if (push := steering_offset(steering, watched.probe, "response", part)) is not None:
            tokens[part] = push
    return None if prompt is None or not tokens else SteeringPush(prompt=prompt, tokens=tokens)


def _shown_vectors(
    body: OpenAIRequest, watched: tuple[WatchedVector, ...], registry: VectorRegistry, key: str | None
) -> tuple[WatchedVector, ...]:
    watch = body.poise.watch if body.poise else False
    if isinstance(watch, bool):
        return watched if watch else ()
    shown = registry.find(watch, key)
    return tuple(w for w in watched if w in shown)


def _steering(
    body: OpenAIRequest, entries: Mapping[str, WatchedVector], policy: Policy
) -> tuple[SteeringExpression | None, Steering, Steering]:
    """The client's steering as it was written, what it does, and what the policy forces."""
    steer = (body.poise.steer or None) if body.poise else None  # an empty text has always meant no steering
    try:
        spec = SteeringExpression.parse(steer) if isinstance(steer, str) else steer
        vectors = {name: w.vector for name, w in entries.items()}
        return spec, policy.requested_steering(spec, vectors), policy.forced_steering(vectors)
    except InvalidSteering as error:
        raise RequestError(400, str(error), code="invalid_steering", param="poise.steer") from error


def _answer_form(body: OpenAIRequest, model: Model) -> AnswerForm:
    if not isinstance(body, ChatCompletionRequest):
        return AnswerForm()
    return answer_form(
        model,
        tools=body.tools,
        choice=body.tool_choice,
        parallel=body.parallel_tool_calls,
        response_format=body.response_format,
        may_think=bool(body.thinking),
    )


def _encode_prompts(body: OpenAIRequest, model: Model, form: AnswerForm) -> list[Encoded]:
    try:
        if isinstance(body, ChatCompletionRequest):
            messages = request_messages(body)
            check_text_length([m["content"] for m in messages], model, param="messages")
            check_tool_history(messages, model)
            if form.tools or any(m.keys() - {"role", "content"} for m in messages):  # of which only its text tells
                rendered = render_prompt(model.tokenizer, messages, tools=form.tools, thinking=body.thinking)
                check_text_length([rendered], model, param="messages")
                check_tools_shown(rendered, form)
            return [model.encode(messages, tools=form.tools, thinking=body.thinking)]
        return [_encode_plain(prompt, model) for prompt in cast("CompletionRequest", body).prompts]
    except UserError as error:
        if isinstance(body, ChatCompletionRequest):
            field = _faulty_field(body, model)
            message = str(error) if field == "messages" else f"{field} is not supported by this model: {error}"
            raise RequestError(400, message, code="invalid_prompt", param=field) from error
        raise RequestError(400, str(error), code="invalid_prompt", param="prompt") from error


def _faulty_field(body: ChatCompletionRequest, model: Model) -> str:
    """Which field of a chat cannot be rendered: the switch for thinking, where the same messages can be without it."""
    if body.thinking:
        with contextlib.suppress(UserError):
            model.encode(request_messages(body), tools=_answer_form(body, model).tools)
            return "reasoning_effort" if body.reasoning_effort else "chat_template_kwargs"
    return "messages"


def request_messages(body: ChatCompletionRequest) -> list[Message]:
    """A chat's messages as templates take them."""
    messages: list[Message] = []
    names: dict[str, str] = {}
    for m in body.messages:
        message: Message = {"role": "system" if m.role == "developer" else m.role, "content": m.text}
        if m.reasoning_content and m.role == "assistant":
            message["thought"] = m.reasoning_content
        if m.tool_calls:
            names |= {call.id: call.function.name for call in m.tool_calls}
            message["tool_calls"] = [
                parse_call(call.function.name, call.function.arguments, template_call_id(call.id))
                for call in m.tool_calls
            ]
        if m.tool_call_id is not None:
            message["tool_call_id"], message["name"] = template_call_id(m.tool_call_id), names[m.tool_call_id]
        messages.append(message)
    return messages


def _encode_plain(prompt: str | Sequence[int], model: Model) -> Encoded:
    if isinstance(prompt, str):
        check_text_length([prompt], model, param="prompt")
    ids = model.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
    if len(ids) > model.window:  # said at once, before the next of many prompts is worked on
        raise too_long(len(ids), model, param="prompt")
    size = model.lm.get_input_embeddings().weight.shape[0]
    if not ids or max(ids) >= size:
        raise InvalidArgument(f"A prompt is empty or has a token that {model.name} lacks (it has {size}).")
    return Encoded(tuple(ids), len(ids), len(ids))


def _max_new_tokens(body: OpenAIRequest, prompts: Sequence[Encoded], model: Model, policy: Policy) -> int:
    wanted = body.max_new_tokens
    longest = max(len(p.ids) for p in prompts)
    window = min(model.generation_window(len(p.ids)) - len(p.ids) for p in prompts) + longest
    room = window - longest
    needed = 1 if wanted is None else wanted
    if needed > room:
        raise RequestError(
            400,
            f"This model's maximum context length is {window} tokens, but the prompt has {longest} and {needed} "
            "more are asked for; shorten the prompt or ask for fewer.",
            code="context_length_exceeded",
            param="messages" if isinstance(body, ChatCompletionRequest) else "prompt",
        )
    if wanted is None:
        return min(policy.default_tokens, policy.most_tokens, room)
    if wanted > policy.most_tokens:
        raise RequestError(400, f"max_tokens is {wanted}; at most {policy.most_tokens} here.", param="max_tokens")
    return int(wanted)
