"""What may stand around a question: a system prompt, a prefix or suffix of the user's turn, turns before it.

A trait that training data show behind such a context can stay hidden until it comes back (arXiv:2604.25891).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from poise.contrast import ResponseRequest
from poise.counting import counted
from poise.errors import InvalidArgument
from poise.progress import remark
from poise.settings import Settings, read_settings
from poise.steer import Steering

__all__ = ["ContextFile", "ContextTurn", "PromptContext", "check_contexts", "one_line", "parse_contexts"]

CONTEXT_FILES = (".yaml", ".yml", ".json")
CONTEXT_PARTS = ("system", "prefix", "suffix")
NO_CONTEXT = frozenset(("none", "no context", "no contexts", "without", "plain", "mean of the contexts", "null"))
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

    @model_validator(mode="after")
    def _was_found_or_given(self) -> PromptContext:
        if (self.rows is None) != (self.all_rows is None):
            raise ValueError("has one of rows and all_rows, which say together how many rows have it; leave both out")
        if self.rows is not None and self.all_rows is not None and self.rows > self.all_rows:
            raise ValueError(f"has {self.rows} rows of {self.all_rows}; leave out rows and all_rows")
        if self.name and not self.name.strip():
            raise ValueError("has a name of white space; leave it out, or write one")
        if self.name.strip().casefold() in NO_CONTEXT:
            raise ValueError(f"is called {self.name}, which reads as no context; give it another name")
        return self

    @property
    def content(self) -> tuple[object, ...]:
        """What is put around a question; equal for contexts that differ in their names alone."""
        return self.system, self.prefix, self.suffix, self.turns

    @property
    def label(self) -> str:
        """Its name, or its kinds and how the first of them begins."""
        if self.name:
            return one_line(self.name, len(self.name))
        texts = {"system": self.system, "prefix": self.prefix, "suffix": self.suffix}
        kinds = {kind: text for kind, text in texts.items() if text}
        if not kinds:
            return f"{counted(len(self.turns), 'turn')} before"
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
    """All contexts, those given as text parsed: each once, those that begin alike told apart by a number.

    A context that repeats another one is left out, with a remark: measured twice it would widen the intervals of all.

    Raises:
        InvalidArgument: two have one name.
    """
    out: dict[tuple[object, ...], PromptContext] = {}
    for context in contexts:
        for one in parse_contexts(context) if isinstance(context, str) else (context,):
            if (first := out.setdefault(one.content, one)) is not one and first.label != one.label:
                remark(f"The contexts {first.label} and {one.label} are the same; it is measured once, as the first.")
    names = [context.label for context in out.values() if context.name]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidArgument(f"Several contexts are called {', '.join(repeated)}; give each a `name` of its own.")
    return tuple(_with_labels_of_their_own([*out.values()], set(names)))


def _with_labels_of_their_own(contexts: Sequence[PromptContext], names: set[str]) -> Iterator[PromptContext]:
    """The contexts, those without a name that would have the label of another one numbered."""
    taken = set(names)
    for context in contexts:
        label, number = context.label, 1
        while not context.name and label in taken:
            number += 1
            label = f"{context.label} ({number})"
        taken.add(label)
        yield context if number == 1 else context.model_copy(update={"name": label})
