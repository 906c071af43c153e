"""A policy that answers are reasoned about with: typed variables, and rules over them, as a YAML file says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from poise.errors import InvalidStatement
from poise.reasoning.expressions import Expression, VariableKind, parse_expression, single_comparison
from poise.settings import FilledText, Settings, placed_fault, read_settings

__all__ = ["PolicyExample", "PolicyRule", "PolicyVariable", "ReasoningPolicy", "load_policy"]

VARIABLE_NAME = r"^[a-z][a-z0-9_]{0,63}$"
RESERVED_WORDS = ("true", "false", "and", "or", "not", "in", "is", "if", "else", "for", "lambda", "none")
RULE_FORMS = "write when and then, exactly_when and then, or always"


class PolicyVariable(Settings):
    """Something that a text may say.

    ``choice`` is one of its ``values``; the others are true or false, whole numbers, and numbers.
    """

    type: Literal["boolean", "integer", "number", "choice"]
    description: FilledText = Field(max_length=500, description="What it is, for who translates a text.")
    values: tuple[FilledText, ...] = Field((), max_length=100, description="Values of a choice.")
    least: float | None = Field(None, description="The least that a number can be.")
    most: float | None = Field(None, description="The most that a number can be.")

    @property
    def kind(self) -> VariableKind:
        """Kind, with the values of a choice."""
        return self.values if self.type == "choice" else self.type

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        if self.type == "choice" and len(set(self.values)) < max(2, len(self.values)):
            raise placed_fault(f"is {list(self.values)}; a choice needs two values at least, each once", "values")
        if self.type != "choice" and self.values:
            raise placed_fault(f"is for a choice, and the type is {self.type}; take it out", "values")
        for name in ("least", "most"):
            if getattr(self, name) is not None and self.type not in ("integer", "number"):
                raise placed_fault(f"is for numbers, and the type is {self.type}; take it out", name)
        if self.least is not None and self.most is not None and self.least > self.most:
            raise placed_fault(f"is {self.least:g}, which is above most, {self.most:g}", "least")
        return self


class PolicyRule(Settings):
    """What holds: ``always``, or ``then`` whenever ``when`` does, or whenever ``exactly_when`` does and never else."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    text: FilledText = Field(max_length=1000, description="The rule in words, as findings show it.")
    when: FilledText | None = Field(None, description="When it applies.")
    exactly_when: FilledText | None = Field(None, description="When it applies, and never else.")
    then: FilledText | None = Field(None, description="What then holds.")
    always: FilledText | None = Field(None, description="What holds under all circumstances.")

    @property
    def condition(self) -> Literal["when", "exactly_when"] | None:
        """The field that says when; ``None`` for a rule that always holds."""
        return "when" if self.when is not None else "exactly_when" if self.exactly_when is not None else None

    @property
    def texts(self) -> dict[str, str]:
        """Its expressions by field, as they are written."""
        fields = {name: getattr(self, name) for name in ("when", "exactly_when", "then", "always")}
        return {name: text for name, text in fields.items() if text is not None}

    @model_validator(mode="after")
    def _of_one_form(self) -> Self:
        given = tuple(self.texts)
        if given not in (("when", "then"), ("exactly_when", "then"), ("always",)):
            raise ValueError(f"it has {' and '.join(given) or 'no expression'}; {RULE_FORMS}")
        return self


class PolicyExample(Settings):
    """A conversation and what it says, each statement one comparison; shown to the model that translates."""

    question: FilledText = Field(max_length=2000)
    answer: FilledText = Field(max_length=2000)
    premises: tuple[FilledText, ...] = Field((), max_length=12)
    claims: tuple[FilledText, ...] = Field(min_length=1, max_length=12)


class ReasoningPolicy(Settings):
    """Typed variables and rules over them. What they do not settle is neither right nor wrong."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    description: str = Field("", max_length=1000)
    variables: dict[Annotated[str, Field(pattern=VARIABLE_NAME)], PolicyVariable] = Field(min_length=1, max_length=200)
    rules: tuple[PolicyRule, ...] = Field(min_length=1, max_length=500)
    examples: tuple[PolicyExample, ...] = Field((), max_length=20, description="Translations to learn from.")

    @model_validator(mode="after")
    def _is_readable(self) -> Self:
        for name in self.variables:
            if name in RESERVED_WORDS:
                raise placed_fault("is a word of the rules' own; take another name", "variables", name)
        names = [rule.name for rule in self.rules]
        for place, name in enumerate(names):
            if (first := names.index(name)) != place:
                raise placed_fault(f"is {name!r}, which rules.{first} is too; keep one", "rules", place, "name")
        for place, rule in enumerate(self.rules):
            for part, text in rule.texts.items():
                try:
                    parse_expression(text, self.kinds)
                except InvalidStatement as fault:
                    raise placed_fault(str(fault), "rules", place, part) from None
        for place, example in enumerate(self.examples):
            for part in ("premises", "claims"):
                for number, text in enumerate(getattr(example, part)):
                    try:
                        single_comparison(text, self.kinds)
                    except InvalidStatement as fault:
                        raise placed_fault(str(fault), "examples", place, part, number) from None
        return self

    @property
    def kinds(self) -> Mapping[str, VariableKind]:
        """Kind of each variable."""
        return {name: variable.kind for name, variable in self.variables.items()}

    def parts_of(self, rule: PolicyRule) -> Mapping[str, Expression]:
        """The expressions of a rule, by field."""
        return {part: parse_expression(text, self.kinds) for part, text in rule.texts.items()}

    def expressions(self, texts: Sequence[str]) -> tuple[Expression, ...]:
        """Statements over the policy's variables.

        Raises:
            InvalidStatement: one that cannot be read.
        """
        return tuple(parse_expression(text, self.kinds) for text in texts)


def load_policy(path: str | Path) -> ReasoningPolicy:
    """The policy in a YAML file.

    Raises:
        InvalidSettings: not there or not of this schema; each mistake with its line and field.
    """
    return read_settings(path, ReasoningPolicy)
