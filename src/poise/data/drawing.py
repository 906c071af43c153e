"""A few conversations of a data set, at random, in memory that does not grow with the data."""

from __future__ import annotations

import random

from poise.data.dataset import DataSet
from poise.data.messages import Conversation
from poise.data.rejected import Rejections
from poise.progress import track

__all__ = ["draw_conversations"]


def draw_conversations(data: DataSet, limit: int, *, seed: int = 0, rejections: Rejections) -> list[Conversation]:
    """At most ``limit`` conversations, drawn at random from the whole data set, in its order."""
    draw = random.Random(seed)
    drawn: list[Conversation] = []
    with track("Choosing conversations") as advance:
        for n, conversation in enumerate(rejections.sift(data)):
            advance(1)
            if n < limit:
                drawn.append(conversation)
            elif (place := draw.randrange(n + 1)) < limit:
                drawn[place] = conversation
    return sorted(drawn, key=lambda c: c.index)
