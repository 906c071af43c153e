"""Trait to ``ContrastSet``: pairs of responses with the trait and without it.

``prompted`` (Chen et al. 2025, section 2.2): contrasting system prompts × questions × rollouts, judged
and filtered pair by pair. ``exemplars``: the pairs that the trait carries, teacher-forced, which is how
models that do not act on a system prompt get a vector. Knows nothing of activations beyond carrying
the means that an engine kept.
"""

from poise.contrast.contrast_set import (
    CoherenceFit,
    ContrastSet,
    Response,
    ResponseRequest,
    ResponseStore,
    check_prompted,
    exemplars,
    instructions,
    ordinary_scope,
    prompted,
)

__all__ = [
    "CoherenceFit",
    "ContrastSet",
    "Response",
    "ResponseRequest",
    "ResponseStore",
    "check_prompted",
    "exemplars",
    "instructions",
    "ordinary_scope",
    "prompted",
]
