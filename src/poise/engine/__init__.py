"""Engines turn prompts into answers, steered and watched row by row.

``Engine`` is the protocol for whole answers and ``StepEngine`` the one for requests that arrive and leave while others
are generated, as a server needs; ``static`` and ``continuous`` are the references on transformers.
An engine knows nothing of traits or judges.
"""

from poise.engine.types import (
    Engine,
    EngineOutput,
    GeneratedToken,
    Generation,
    GenerationRequest,
    Probe,
    SamplingParams,
    StepEngine,
    TextChunk,
)

__all__ = [
    "Engine",
    "EngineOutput",
    "GeneratedToken",
    "Generation",
    "GenerationRequest",
    "Probe",
    "SamplingParams",
    "StepEngine",
    "TextChunk",
]
