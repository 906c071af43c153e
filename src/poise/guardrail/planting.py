"""A sentence planted in a text, as somebody who hides an instruction in a document would."""

from __future__ import annotations

import re

from poise.storage.content_hash import content_key

__all__ = ["plant_sentence", "sentences_of"]


def sentences_of(text: str) -> list[str]:
    """Sentences, or lines of what has none."""
    return [part for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def plant_sentence(text: str, sentence: str) -> str:
    """The text with a sentence between two of its own or at its end, always at the same place."""
    parts = sentences_of(text)
    place = 1 + int(content_key(text=text, sentence=sentence), 16) % max(len(parts), 1)
    return " ".join([*parts[:place], sentence, *parts[place:]])
