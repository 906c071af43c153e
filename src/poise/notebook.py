"""Tokens tinted by their readings, as HTML for notebooks; nothing is needed to draw it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from html import escape

__all__ = ["tinted_tokens_html"]

TOKENS_SHOWN = 2000  # a longer text is cut
ABOVE, BELOW = "214,64,47", "47,107,214"  # red and blue as HTML has them
DEEPEST = 0.6  # opacity of the reading that is farthest from the median


def tinted_tokens_html(tokens: Sequence[str], values: Sequence[float], title: str = "") -> str:
    """A text tinted token by token from blue (below the median) to red (above it), every text escaped.

    Args:
        tokens: T texts that make the text; beyond 2,000 it is cut.
        values: T readings; one that is not a number has no tint.
        title: What stands above the text before the range of its readings.
    """
    tokens_shown, values = tokens[:TOKENS_SHOWN], values[:TOKENS_SHOWN]
    known = [value for value in values if math.isfinite(value)]
    middle = statistics.median(known) if known else 0.0
    scale = max((abs(value - middle) for value in known), default=0.0) or 1.0
    spans = []
    for text, value in zip(tokens_shown, values, strict=True):
        shade = (value - middle) / scale if math.isfinite(value) else 0.0
        colour = ABOVE if shade > 0 else BELOW
        spans.append(
            f'<span title="{value:.4g}" style="background:rgba({colour},{abs(shade) * DEEPEST:.2f})">'
            f"{escape(text)}</span>"
        )
    more = "…" if len(tokens) > TOKENS_SHOWN else ""
    span = f"{min(known):.3g} to {max(known):.3g}" if known else "no readings"
    heading = f"<b>{escape(title)}</b> {span}" if title else span
    return f'<div>{heading}<div style="white-space:pre-wrap">{"".join(spans)}{more}</div></div>'
