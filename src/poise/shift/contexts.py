"""What may stand around a question: a system prompt, a prefix or suffix of the user's turn, turns before it.

A trait that training data show behind such a context can stay hidden until it comes back (arXiv:2604.25891).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from poise.contrast import ResponseRequest
from poise.errors import InvalidArgument
from poise.settings import Settings, read_settings
from poise.steer import Steering

__all__ = ["ContextFile", "ContextTurn", "PromptContext", "check_contexts", "one_line", "parse_contexts"]

CONTEXT_FILES = (".yaml", ".yml", ".json")
CONTEXT_PARTS = ("system", "prefix", "suffix")
LABEL_LENGTH = 48  # characters of a text that a label shows

ContextText = Annotated[str, Field(min_length=1, strict=True)]


class ContextTurn(Settings):
    """A question and its answer, which stand before the question that is measured."""

    user: ContextText
    assistant: ContextText


class PromptContext(Settings):
    """What stands around an evaluation question; at least one of its parts."""

    name: str = Field("", max_length=80, description="Name in reports; by default its kind and how it begins.")
    system: ContextText | None = Field(None, description="System prompt.")
    prefix: str = Field("", strict=True, description="What the user's turn begins with, spaces included.")
    suffix: str = Field("", strict=True, description="What the user's turn ends with, spaces included.")
    turns: tuple[ContextTurn, ...] = Field((), description="Questions and answers before the question.")
    rows: int | None = Field(
        None,
        ge=0,
        exclude_if=lambda rows: rows is None,
        description="Rows of the training data that have it; None where it was not found in data.",
    )
    all_rows: int | None = Field(
        None, ge=0, exclude_if=lambda rows: rows is None, description="Rows of the training data that were looked at."
    )

    @model_validator(mode="after")
    def _holds_something(self) -> PromptContext:
        if not (self.system or self.prefix or self.suffix or self.turns):
            raise ValueError("holds nothing; give it a system prompt, a prefix, a suffix or turns")
        return self

    @property
    def label(self) -> str:
        """Its name, or its kinds and how the first of them begins."""
        if self.name:
            return self.name
        texts = {"system": self.system, "prefix": self.prefix, "suffix": self.suffix}
        kinds = {kind: text for kind, text in texts.items() if text}
        if not kinds:
            return f"{len(self.turns)} turns before"
        return f"{' + '.join(kinds)}: {one_line(next(iter(kinds.values())), LABEL_LENGTH)}"

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        if self.rows is None:
            return "given"
        return f"{self.rows:,} of {self.all_rows or 0:,} rows"

    def request(self, question: str, *, steering: Steering | None = None, seed: int = 0) -> ResponseRequest:
        """The question as it is asked under this context."""
        return ResponseRequest(
            question=f"{self.prefix}{question}{self.suffix}",
            system=self.system,
            steering=steering,
            seed=seed,
            before=tuple((turn.user, turn.assistant) for turn in self.turns),
        )


class ContextFile(Settings):
    """A file of contexts."""

    contexts: tuple[PromptContext, ...] = Field(min_length=1)


def one_line(text: str, most: int) -> str:
    """How a text begins, on one line, without characters that a terminal obeys."""
    line = "".join(character if character.isprintable() else "\ufffd" for character in " ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def parse_contexts(text: str) -> tuple[PromptContext, ...]:
    """Contexts as the command line gives them.

    Args:
        text: ``system=TEXT``, ``prefix=TEXT``, ``suffix=TEXT``, or a YAML or JSON file with a list of ``contexts``.

    Raises:
        InvalidArgument: neither of these.
        InvalidSettings: the file is not there, or breaks the schema; names every fault with its line and field.
    """
    part, separator, content = text.partition("=")
    if separator and part in CONTEXT_PARTS:
        if not content:
            raise InvalidArgument(f"The context {text!r} has no text; give one, as in {part}='…'.")
        return (PromptContext(**{part: content}),)
    if text.lower().endswith(CONTEXT_FILES):
        return read_settings(Path(text), ContextFile).contexts
    raise InvalidArgument(
        f"There is no context {text!r}; give system=TEXT, prefix=TEXT, suffix=TEXT, or a file of them ending in "
        f"{', '.join(CONTEXT_FILES)}."
    )


def check_contexts(contexts: Sequence[PromptContext | str]) -> tuple[PromptContext, ...]:
    """All contexts, those given as text parsed.

    Raises:
        InvalidArgument: two have one name.
    """
    out: list[PromptContext] = []
    for context in contexts:
        out += parse_contexts(context) if isinstance(context, str) else (context,)
    labels = [context.label for context in out]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise InvalidArgument(f"Several contexts are called {', '.join(repeated)}; give each a `name` of its own.")
    return tuple(out)
