"""Inside vLLM's scheduler: cached tokens are told apart by how they were steered, and readings pass through."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from poise.vllm.runner import FIELD

__all__ = ["ReadingsConnector", "install_scheduling", "steering_keys"]

PhaseKeys = Callable[[Any], tuple[str, str]]


class ReadingsConnector:
    """What vLLM's scheduler asks for auxiliary outputs: hands on a request's readings with its tokens."""

    def build_connector_meta(self, *arguments: Any) -> None:
        """Nothing is to be told to the workers."""

    def take_output(self, request: Any, output: Any) -> Any:
        """The readings of a request in this step, if there are any."""
        rows = (output or {}).get(request.request_id)
        return None if rows is None else rows.rows

    def request_finished(self, request: Any) -> None:
        """Nothing is kept here."""

    def reset(self) -> None:
        """Nothing is kept here."""


def steering_keys(request: Any, first: int, last: int, phase_keys: PhaseKeys) -> list[tuple[str, str]]:
    """What tells a cached block of tokens from ``first`` up to ``last`` apart by its steering.

    A block holds the prompt's key where it has prompt tokens, and the response's where it has others, with the place
    where the response begins, from which its tokens are counted.
    """
    extra = getattr(request.sampling_params, "extra_args", None) or {}
    if extra.get(FIELD) is None:
        return []
    prompt, response = phase_keys(extra[FIELD])
    keys = []
    if prompt and first < request.num_prompt_tokens:
        keys.append(
            (
                FIELD,
                f"prompt {prompt}" + (f" to {request.num_prompt_tokens}" if last > request.num_prompt_tokens else ""),
            )
        )
    if response and last > request.num_prompt_tokens:
        keys.append((FIELD, f"response {response} from {request.num_prompt_tokens}"))
    return keys


def install_scheduling(phase_keys: PhaseKeys) -> None:
    """Patch the scheduler of this process."""
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.core.sched.scheduler import Scheduler

    embeds, initialise = kv_cache_utils._gen_prompt_embeds_extra_hash_keys, Scheduler.__init__

    @functools.wraps(embeds)
    def with_steering(request: Any, start_token_idx: int, end_token_idx: int) -> Any:
        keys = embeds(request, start_token_idx, end_token_idx)
        return keys + steering_keys(request, start_token_idx, end_token_idx, phase_keys)

    @functools.wraps(initialise)
    def with_readings(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.aux_output_connector = ReadingsConnector()

    kv_cache_utils._gen_prompt_embeds_extra_hash_keys = with_steering
    Scheduler.__init__ = with_readings
