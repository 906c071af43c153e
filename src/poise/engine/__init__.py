"""Engines turn prompts into answers, steered and watched row by row.

``Engine`` is the protocol for whole answers and ``Stepwise`` the one for answers that come and go while others are
generated, as a server needs; ``static`` and ``continuous`` are the references on transformers.
An engine knows nothing of traits or judges.
"""

from poise.engine.types import Engine, Generation, Job, Piece, Probe, Said, SamplingParams, Stepwise, Token

__all__ = ["Engine", "Generation", "Job", "Piece", "Probe", "Said", "SamplingParams", "Stepwise", "Token"]
