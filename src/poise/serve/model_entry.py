"""The model as the API lists it, with what its users reckon with: its window, and the server's rules for their key."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from poise.serve.service import Service

__all__ = ["ModelEntry", "Models", "model_entry"]

UNKNOWN_WINDOW = 1 << 30  # tokens, of a model whose configuration says none


class PolicyOfKey(BaseModel):
    """What the server's rules do to the answers of the key that asks: ``steer`` is forced on every one. And whether it
    may upload vectors, or see and delete everybody's."""

    steer: str | None
    may_steer: bool
    most_dose: float
    most_tokens: int
    may_change_vectors: bool
    admin: bool


class ModelEntry(BaseModel):
    """A model that answers; ``thinking`` says whether requests may switch that on, ``context_window`` how many tokens
    prompt and answer may have together, ``documents`` whether chats may be answered from the server's,
    ``memories`` which they may have."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    thinking: bool
    context_window: int | None
    documents: bool
    memories: list[str]
    policy: PolicyOfKey


class Models(BaseModel):
    """All of them, which is one."""

    object: Literal["list"]
    data: list[ModelEntry]


def model_entry(service: Service, key: str | None) -> dict[str, Any]:
    """The entry for the key of that name."""
    window, policy = service.model.generation_window(), service.policies.of(key)
    return {
        "id": service.name,
        "object": "model",
        "created": service.began,
        "owned_by": "poise",
        "thinking": service.thinks,
        "context_window": window if window < UNKNOWN_WINDOW else None,
        "documents": service.knowledge is not None,
        "memories": list(service.memories.by_name) if service.memories else [],
        "policy": policy.model_dump(include=set(PolicyOfKey.model_fields)),
    }
