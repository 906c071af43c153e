"""What a request says to the plugin, read and checked against the vectors that there are.

``vllm_xargs: {"poise": …}`` takes the field that Poise's own server takes as ``poise``, as JSON text or, from Python,
as a mapping.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from poise.errors import InvalidArgument, InvalidSteering
from poise.settings import first_fault
from poise.steer import Steering, SteeringExpression, Term
from poise.steer.request_field import PoiseField
from poise.storage.content_hash import content_key
from poise.vllm.vector_folder import VectorFolder

__all__ = ["PluginRequest", "canonical_text", "check_phases", "phase_keys", "read_field"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PluginRequest:
    """A request's steering, and the names of the vectors whose readings it wants, in their order."""

    steering: Steering | None
    watch: tuple[str, ...]


def canonical_text(value: Any) -> str:
    """The field as JSON text, equal for equal fields.

    Raises:
        InvalidArgument: neither JSON text nor a mapping, or not of the schema; names the field.
    """
    field = _parse_field(value)
    steer = str(_expression(field)) if field.steer else None
    return json.dumps({"steer": steer, "watch": field.watch}, separators=(",", ":"), ensure_ascii=False)


def _parse_field(value: Any) -> PoiseField:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(
                'poise is text that is not JSON; write a JSON object such as {"steer": "evil=30%", "watch": ["evil"]}.'
            ) from error
    if not isinstance(value, Mapping):
        raise InvalidArgument(
            f"poise is {type(value).__name__}; give an object with steer and watch, or its JSON text."
        )
    try:
        return PoiseField.model_validate(dict(value))
    except ValidationError as error:
        raise InvalidArgument(f"poise: {first_fault(error, PoiseField)}.") from error


def _expression(field: PoiseField) -> SteeringExpression:
    assert field.steer is not None
    return SteeringExpression.parse(field.steer) if isinstance(field.steer, str) else field.steer


def read_field(value: Any, folder: VectorFolder, *, thoughts: str = "none") -> PluginRequest:
    """A request's field, with its vectors.

    Args:
        value: What the request has as ``poise``.
        folder: The vectors that it may name.
        thoughts: Whether answers of the model have thoughts, as ``poise.vllm.tokens.thoughts_of`` has it.

    Raises:
        InvalidArgument: the field cannot be read, or it names a vector to be watched that is not there.
        InvalidSteering: the steering cannot be read, names what is not there, or cannot be done by this plugin.
    """
    field = _parse_field(value)
    steering = _expression(field).steering(folder.vectors) if field.steer else None
    terms = steering.terms if steering else ()
    check_phases(terms)
    for term in terms:
        if term.part != "both" and term.phase != "prompt" and thoughts == "unknown":
            raise InvalidSteering(
                f"{term.vector.name} is steered in the {term.part} of answers, and whether this model's answers have "
                "thoughts cannot be told by its tokenizer, which is none of transformers'; write `in both` after "
                f"{term.vector.name}'s strength."
            )
        if term.part == "thought" and thoughts == "none":
            raise InvalidSteering(f"{term.vector.name} is steered in the thought, and this model marks no thoughts.")
    return PluginRequest(steering=steering, watch=_watched_names(field, folder))


def check_phases(terms: Sequence[Term]) -> None:
    """Refuse to steer a prompt on what its last token shows.

    Raises:
        InvalidSteering: names the vector.
    """
    for term in terms:
        if term.when and term.when.reading == "prompt" and term.phase != "response":
            raise InvalidSteering(
                f"{term.vector.name} is steered on {term.phase} on a condition on the prompt, which vLLM reads in "
                "parts and partly from its cache; steer the response on that condition, or use one on the token."
            )


def _watched_names(field: PoiseField, folder: VectorFolder) -> tuple[str, ...]:
    if isinstance(field.watch, bool):
        return tuple(folder.vectors) if field.watch else ()
    for name in field.watch:
        if name not in folder.vectors:
            known = ", ".join(folder.vectors)
            raise InvalidArgument(f"poise.watch: there is no vector {name!r}; there are: {known}.")
    return tuple(dict.fromkeys(field.watch))


@functools.lru_cache(maxsize=4096)
def phase_keys(text: str, digest: str) -> tuple[str, str]:
    """What tells the cached tokens of a prompt, and of a response, apart by how they were steered; empty for not.

    Args:
        text: The field as ``canonical_text`` has it.
        digest: The vector folder's.
    """
    steer = json.loads(text)["steer"]
    if not steer:
        return "", ""
    expression = SteeringExpression.parse(steer)
    keys = []
    for phase in ("prompt", "response"):
        steered = [str(term) for term in expression.terms if term.phase in (phase, "all")]
        # What is made orthogonal depends on all terms before it, of whichever phase.
        parts = [str(expression)] if expression.orthogonal else steered
        keys.append(content_key(steer=parts, phase=phase, vectors=digest) if steered else "")
    return keys[0], keys[1]
