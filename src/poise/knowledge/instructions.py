"""Text in a document that reads as an instruction to a model: it is marked and stays data."""

from __future__ import annotations

import re
from unicodedata import category, normalize

__all__ = ["instruction_marks", "without_markup"]

_PATTERNS = {
    "override": r"\b(ignore|disregard|forget|override)\b.{0,40}\b(instructions?|prompts?|rules|above|previous|prior)\b",
    "role": r"\byou are (now|no longer)\b|\b(act|behave|respond) as (if you|an? (unrestricted|different|new))\b",
    "prompt": r"\b(reveal|print|repeat|output) (your|the) (system )?(prompt|instructions)\b",
    "concealment": r"\b(do not|don't|never) (tell|inform|(mention|show) (this|it) to) the (user|reader|human)\b",
    "addressed": r"\b(dear|attention|note to|instructions? (for|to))\b.{0,15}"
    r"\b(AI|assistant|chatbot|language model|LLM)s?\b",
    "markup": r"<\|[a-z_]+\|>|^#{2,} ?(system|instruction)s?:|"
    r"\[/?INST\]|<</?SYS>>|</?(system|assistant|passages?)\b[^>]*>",
}
_COMPILED = {name: re.compile(pattern, re.IGNORECASE | re.MULTILINE) for name, pattern in _PATTERNS.items()}
_MARKUP = re.compile(r"<(?=\||/?(?:passages?|question|system|assistant|user|im_|s>|<))|\[(?=/?INST\])", re.IGNORECASE)


def instruction_marks(text: str) -> tuple[str, ...]:
    """Kinds of instructions that a text seems to hold; a hint for readers, and no proof that there are no others."""
    seen = _as_read(text)
    return tuple(name for name, pattern in _COMPILED.items() if pattern.search(seen))


def _as_read(text: str) -> str:
    """Wide and stylised letters as plain ones, and without signs that do not show."""
    if text.isascii():
        return text
    return "".join(sign for sign in normalize("NFKC", text) if category(sign) != "Cf")


def without_markup(text: str) -> str:
    """The text with signs of chat templates and of our own prompt made harmless, so that it cannot leave its place."""
    return _MARKUP.sub(lambda match: "‹" if match[0] == "<" else "⟦", text)
