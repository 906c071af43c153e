"""Whether texts can fit a model's window at all, known before they are tokenised whole."""

from __future__ import annotations

from collections.abc import Sequence

from poise.errors import RequestError
from poise.model import Model

__all__ = ["check_text_length", "too_long"]

CHARACTERS_A_TOKEN = 8  # texts with fewer for each token of the window are tokenised at once
PIECE_CHARACTERS = 16_384  # characters that are counted together
CERTAIN = 2  # cutting a text moves a few tokens, never as many as a window


def check_text_length(texts: Sequence[str], model: Model, *, param: str) -> None:
    """Refuse texts that would together fill the window twice; what is nearer is left to the tokens' own count.

    Long texts are tokenised piece by piece until that is certain, so that the work is bounded by the window and not by
    what was sent.

    Raises:
        RequestError: names the window.
    """
    window = model.window
    if sum(len(text) for text in texts) <= CHARACTERS_A_TOKEN * window:
        return
    tokens = 0
    for text in texts:
        for first in range(0, len(text), PIECE_CHARACTERS):
            piece = text[first : first + PIECE_CHARACTERS]
            tokens += len(model.tokenizer(piece, add_special_tokens=False)["input_ids"])
            if tokens > CERTAIN * window:
                raise too_long(CERTAIN * window, model, param=param)


def too_long(tokens: int, model: Model, *, param: str) -> RequestError:
    """What a prompt of at least that many tokens is told."""
    return RequestError(
        400,
        f"This model's maximum context length is {model.window} tokens, but the prompt has {tokens} or more; "
        "shorten it.",
        code="context_length_exceeded",
        param=param,
    )
