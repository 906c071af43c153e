"""Steering as people write it: a short expression or JSON, the same meaning everywhere.

evil=30%                     add, at a dose of 30 %, at the certificate's layer
evil@12=-1.5                 add −1.5 mean differences at layer 12
evil@8,12=1                  at two layers;  evil@increments=1  at all, as increments
evil=out                     project out
evil=cap:3.2                 keep the projection at 3.2 or below;  cap:alarm  at the calibrated threshold and its layer
evil=clamp:0                 hold the projection at 0
kind=floor:1.5               keep the projection at 1.5 or above
kind=30% on prompt           on prompt or all tokens instead of the response
kind=30% in thought          in the thought instead of the reply;  in both
kind=30% first 20            on the first 20 tokens of the reply;  after 20;  tokens 5-20
kind=30% if rude@10>2.5      while a token's projection on rude at layer 10 is above 2.5 (or < 2.5); without @10, at
                             the layer that rude is read at;  >alarm  above the calibrated threshold
kind=30% if prompt rude>2.5  for the whole answer, if the last prompt token's is
evil=-1; rude=-1; orthogonal several together, made orthogonal in this order
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from poise.arguments import check_type
from poise.errors import InvalidSteering
from poise.model.parts import Part
from poise.settings import FrozenModel, first_fault
from poise.steer.operators import LEVELED, Operation
from poise.steer.steering import Condition, Phase, Steering, Term
from poise.vector import PersonaVector, Purpose

__all__ = ["ConditionExpression", "SteeringExpression", "TermExpression"]

Level = Annotated[float, Field(allow_inf_nan=False)] | Literal["alarm"]
Number = Annotated[float, Field(allow_inf_nan=False)]
LayerNumber = Annotated[int, Field(ge=0)]

NUMBER_PATTERN = r"[-+−]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
TERM_PATTERN = re.compile(
    rf"(?P<vector>.+?)(?:@(?P<layers>\d+(?:,\d+)*|increments))?="
    rf"(?:(?P<number>{NUMBER_PATTERN})\s*(?P<percent>%)?|(?P<out>out)|(?P<operation>{'|'.join(LEVELED)}):(?P<level>{NUMBER_PATTERN}|alarm))"
    r"(?P<rest>(?:\s+(?:on|in|first|after|tokens|if)\b.*)?)"
)
PHASE_PATTERN = re.compile(r"on (?P<phase>response|prompt|all)(?!\S)")
PART_PATTERN = re.compile(r"in (?P<part>reply|thought|both)(?!\S)")
TOKENS_PATTERN = re.compile(r"(?:first (?P<first>\d+)|after (?P<after>\d+)|tokens (?P<from>\d+)-(?P<to>\d+))(?!\S)")
CONDITION_PATTERN = re.compile(
    r"if (?P<prompt>prompt )?(?P<vector>\S.*?)(?:@(?P<layer>\d+))?\s*(?P<sign>[<>])\s*"
    rf"(?P<value>{NUMBER_PATTERN}|alarm)(?!\S)"
)
UNKNOWN_WORDS = re.compile(
    rf"[^=]+=(?:{NUMBER_PATTERN}\s*%?|out|\w+:(?:{NUMBER_PATTERN}|alarm))\s+(?P<words>[^\W\d].*)"
)
FORMS = (
    "after the strength come, in this order, `on prompt|all`, `in thought|both`, `first N`, `after N` or `tokens A-B`, "
    "and `if [prompt] NAME>VALUE`"
)
SHAPE = "write NAME=1.5, NAME=30%, NAME@LAYER=1.5, NAME=out, NAME=cap:3 or NAME=clamp:0 (docs/steering.md has it all)"


class ConditionExpression(FrozenModel):
    """When to steer: ``alarm`` is the threshold that calibration stored in the vector."""

    vector: str
    layer: LayerNumber | None = None
    value: Level
    above: bool = True
    reading: Literal["token", "prompt"] = "token"

    def __str__(self) -> str:
        at = "" if self.layer is None else f"@{self.layer}"
        prompt = "prompt " if self.reading == "prompt" else ""
        return f"if {prompt}{self.vector}{at}{'>' if self.above else '<'}{_shortest_decimal(self.value)}"


class TermExpression(FrozenModel):
    """One vector's work: ``coef`` or ``dose`` to add, ``level`` to cap, floor or clamp, none to project out."""

    vector: str = Field(min_length=1)
    operation: Operation = "add"
    coef: Number | None = None
    dose: Number | None = None
    level: Level | None = None
    layers: tuple[LayerNumber, ...] | Literal["increments"] | None = None
    phase: Phase = "response"
    part: Part = "reply"
    tokens: tuple[LayerNumber, LayerNumber | None] = (0, None)
    when: ConditionExpression | None = None

    @field_validator("layers")
    @classmethod
    def _some(cls, layers: Any) -> Any:
        if layers == ():
            raise ValueError("name at least one layer")
        return layers

    @model_validator(mode="after")
    def _one_strength(self) -> TermExpression:
        strengths = [name for name in ("coef", "dose", "level") if getattr(self, name) is not None]
        wanted = ["coef", "dose"] if self.operation == "add" else ["level"] if self.operation in LEVELED else []
        if not (strengths == [] if not wanted else len(strengths) == 1 and strengths[0] in wanted):
            raise ValueError(
                f"{self.operation} takes {' or '.join(wanted) or 'no strength'}, not {strengths or 'none'}"
            )
        if self.dose is not None and self.layers == "increments":
            raise ValueError("increments have no dose; give coef")
        return self

    def __str__(self) -> str:
        if self.layers is None:
            at = ""
        else:
            at = "@" + (self.layers if isinstance(self.layers, str) else ",".join(map(str, self.layers)))
        if self.coef is not None:
            strength = _shortest_decimal(self.coef)
        elif self.dose is not None:
            strength = f"{_shortest_decimal(self.dose, percent=True)}%"
        else:
            strength = "out" if self.level is None else f"{self.operation}:{_shortest_decimal(self.level)}"
        conditions = [f"on {self.phase}"] if self.phase != "response" else []
        conditions += [f"in {self.part}"] if self.part != "reply" else []
        first, last = self.tokens
        if self.tokens != (0, None):
            conditions.append(
                f"after {first}" if last is None else f"tokens {first}-{last}" if first else f"first {last}"
            )
        conditions += [str(self.when)] if self.when else []
        return " ".join([f"{self.vector}{at}={strength}", *conditions])


class SteeringExpression(FrozenModel):
    """A steering before its vectors are loaded."""

    terms: tuple[TermExpression, ...] = Field(min_length=1)
    orthogonal: bool = False

    def __str__(self) -> str:
        """The expression; ``parse`` reads it back."""
        return "; ".join([*map(str, self.terms), *(["orthogonal"] if self.orthogonal else [])])

    @classmethod
    def parse(cls, text: str) -> SteeringExpression:
        """Read an expression, or JSON where the text starts with a brace.

        Raises:
            InvalidSteering: neither; names the part and the shapes there are.
        """
        check_type("The steering", text, str, "text, such as 'evil=30%'")
        if text.lstrip().startswith("{"):
            return cls.from_json(text)
        parts = [part.strip() for part in text.split(";") if part.strip()]
        terms = tuple(_parse_term(part) for part in parts if part != "orthogonal")
        if not terms:
            raise InvalidSteering(f"The steering {text!r} names no vector; {SHAPE}.")
        return cls(terms=terms, orthogonal="orthogonal" in parts)

    @classmethod
    def from_json(cls, document: str | Mapping[str, Any]) -> SteeringExpression:
        """Read ``{"terms": [{"vector": …, "coef": …}], "orthogonal": false}``.

        Raises:
            InvalidSteering: not of that schema; names the field.
        """
        try:
            return cls.model_validate_json(document) if isinstance(document, str) else cls.model_validate(document)
        except ValidationError as error:
            raise InvalidSteering(f"Cannot read the steering: {first_fault(error, cls)}.") from error

    @property
    def names(self) -> list[str]:
        """Every vector that is named, once, in order."""
        named = [n for t in self.terms for n in (t.vector, *([t.when.vector] if t.when else []))]
        return list(dict.fromkeys(named))

    def steering(self, vectors: Mapping[str, PersonaVector] | Callable[[str], PersonaVector]) -> Steering:
        """The steering itself.

        Args:
            vectors: Vectors by name, or a function that loads one by its name.

        Raises:
            InvalidSteering: a name, layer or strength that there is not; says what there is.
        """
        loaded = {name: _vector_named(name, vectors) for name in self.names}
        return Steering(tuple(t for term in self.terms for t in _resolve_term(term, loaded)), self.orthogonal)


def _parse_term(text: str) -> TermExpression:
    match = TERM_PATTERN.fullmatch(text)
    if match is None:
        if unknown := UNKNOWN_WORDS.fullmatch(text):
            raise InvalidSteering(f"Cannot read {unknown['words']!r} in the steering {text!r}; {FORMS}.")
        raise InvalidSteering(f"Cannot read the steering {text!r}; {SHAPE}.")
    remaining, fields = match["rest"].strip(), {}
    for name, pattern in (
        ("phase", PHASE_PATTERN),
        ("part", PART_PATTERN),
        ("tokens", TOKENS_PATTERN),
        ("when", CONDITION_PATTERN),
    ):
        if matched := pattern.match(remaining):
            fields[name], remaining = matched, remaining[matched.end() :].strip()
    if remaining:
        raise InvalidSteering(f"Cannot read {remaining!r} in the steering {text!r}; {FORMS}.")
    layers = match["layers"]
    number = match["number"]
    try:
        fields_by_name = {
            "vector": match["vector"].strip(),
            "operation": "project_out" if match["out"] else match["operation"] or "add",
            "coef": _parse_number(number) if number and not match["percent"] else None,
            "dose": _parse_number(number, percent=True) if number and match["percent"] else None,
            "level": _parse_number(match["level"]) if match["level"] else None,
            "layers": tuple(map(int, layers.split(","))) if layers and layers != "increments" else layers,
            "phase": fields["phase"]["phase"] if "phase" in fields else "response",
            "part": fields["part"]["part"] if "part" in fields else "reply",
            "tokens": _parse_tokens(fields.get("tokens")),
            "when": _parse_condition(fields["when"]) if "when" in fields else None,
        }
        return TermExpression.model_validate(fields_by_name)
    except ValidationError as error:
        raise InvalidSteering(f"Cannot read the steering {text!r}: {first_fault(error, TermExpression)}.") from error


def _parse_tokens(match: re.Match[str] | None) -> tuple[int, int | None]:
    if match is None:
        return (0, None)
    if match["first"]:
        return (0, int(match["first"]))
    return (int(match["after"]), None) if match["after"] else (int(match["from"]), int(match["to"]))


def _parse_condition(match: re.Match[str]) -> dict[str, Any]:
    return {
        "vector": match["vector"],
        "layer": int(match["layer"]) if match["layer"] else None,
        "value": _parse_number(match["value"]),
        "above": match["sign"] == ">",
        "reading": "prompt" if match["prompt"] else "token",
    }


def _parse_number(text: str, *, percent: bool = False) -> Any:
    if text == "alarm":
        return text
    exact = Decimal(text.replace("−", "-"))  # as a decimal, so that 30% is 0.3 to the last bit
    return float(exact.scaleb(-2) if percent else exact)


def _shortest_decimal(value: float | str, *, percent: bool = False) -> str:
    """The shortest decimal that reads back as the same number."""
    if isinstance(value, str):
        return value
    exact = Decimal(repr(value))
    plain = f"{exact.scaleb(2) if percent else exact:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _vector_named(name: str, vectors: Mapping[str, PersonaVector] | Callable[[str], PersonaVector]) -> PersonaVector:
    if callable(vectors):
        return vectors(name)
    check_type("vectors", vectors, Mapping, "a dictionary of vectors by name, or a function that loads one")
    if name not in vectors:
        raise InvalidSteering(f"There is no vector {name!r}; there are: {', '.join(sorted(vectors)) or 'none'}.")
    check_type(f"The vector {name}", vectors[name], PersonaVector, "a PersonaVector, as load_vector(path) gives")
    return vectors[name]


def _resolve_term(spec: TermExpression, vectors: Mapping[str, PersonaVector]) -> list[Term]:
    """One term, or one a layer where the strength differs from layer to layer."""
    vector = vectors[spec.vector]
    # A threshold holds where it was calibrated, and for the direction along which the hidden state is capped.
    direct = vector.without_detector() if spec.level == "alarm" else vector
    purpose: Purpose = "read" if spec.level == "alarm" else "steer"
    layers = (direct.at(purpose).layer,) if spec.layers is None else spec.layers
    when = _resolve_condition(spec.when, vectors[spec.when.vector]) if spec.when else None

    def term(value: float, at: tuple[int, ...] | Literal["increments"]) -> Term:
        return Term(
            vector=vector,
            value=value,
            layers=at,
            operation=spec.operation,
            phase=spec.phase,
            part=spec.part,
            tokens=spec.tokens,
            when=when,
        )

    if isinstance(layers, str) or (spec.dose is None and spec.level is None):
        return [term(1.0 if spec.coef is None else spec.coef, layers)]
    if spec.dose is not None:
        return [term(vector.coef(spec.dose, layer), (layer,)) for layer in layers]
    return [term(_level(spec.level, direct, layer, "mean"), (layer,)) for layer in layers]


def _resolve_condition(when: ConditionExpression, vector: PersonaVector) -> Condition:
    vector = vector.without_detector()  # it is read where it steers, so along its own direction
    layer = vector.at("read", when.layer).layer
    value = _level(when.value, vector, layer, "prompt" if when.reading == "prompt" else "mean")
    return Condition(vector=vector, layer=layer, value=value, above=when.above, reading=when.reading)


def _level(level: float | str | None, vector: PersonaVector, layer: int, reading: str) -> float:
    """A number, or the calibrated threshold of that reading at that layer."""
    if not isinstance(level, str):
        return level or 0.0
    place = vector.at("read", layer)
    if (alarm := place.alarm(reading)) is None:
        raise InvalidSteering(f"{place.missing_alarm(reading)}, or give a number.")
    return alarm.threshold
