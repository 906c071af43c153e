"""A tool that a request offers, and what is known of each of its parameters where they are written one at a time."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from poise.engine.grammar import ANNOTATIONS, json_options
from poise.errors import InvalidArgument
from poise.model.tool_parameters import ParameterFormat

__all__ = ["OfferedTool", "ToolParameter"]

JSON_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
OTHER_TYPES = tuple(name for name in JSON_TYPES if name != "object")
OBJECT_KEYWORDS = {"type", "properties", "required", "additionalProperties", *ANNOTATIONS}
TEXT_KEYWORDS = {"type", "enum", "const", *ANNOTATIONS}
UNIONS = ("anyOf", "oneOf")
MOST_SCHEMA_STEPS = 250  # through the schema of a parameter, some of which may be nested in each other


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolParameter:
    """One parameter of a tool.

    Attributes:
        name: Name that calls use.
        schema: JSON Schema of its value, with the definitions that it refers to.
        required: Whether every call has it.
        types: Types of JSON that its value may have.
        choices: All values that it may have; ``None`` where they are not listed.
    """

    name: str
    schema: Mapping[str, Any]
    required: bool
    types: frozenset[str]
    choices: tuple[Any, ...] | None

    @property
    def is_text(self) -> bool:
        """Whether its value is a text and nothing else."""
        return self.types == {"string"} and self.choices is None

    def written_choices(self, form: ParameterFormat) -> dict[str, str]:
        """The values that it may have as JSON, each by how it is written."""
        written = {}
        for value in self.choices or ():
            word = json.dumps(value, ensure_ascii=False)
            raw = value if isinstance(value, str) and form.stop else form.literals.get(word, word)
            written[raw] = word
        return written

    def json_value(self, written: str, form: ParameterFormat) -> str:
        """A value as JSON, which is a text where it may be one and is nothing else that it may be."""
        if self.choices is not None:
            return self.written_choices(form).get(written, json.dumps(written, ensure_ascii=False))
        word = next((word for word, literal in form.literals.items() if literal == written), written)
        try:
            kind = json_type(json.loads(word))
        except (ValueError, RecursionError):
            kind = "string" if form.stop else ""
        fits = kind in self.types or (kind == "integer" and "number" in self.types)
        if form.stop and "string" in self.types and (kind == "string" or not fits):
            return json.dumps(written, ensure_ascii=False)
        return word


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedTool:
    """A function that the model may call.

    Attributes:
        name: Name that calls use.
        parameters: JSON Schema of its arguments, which are an object whatever else it allows.
        strict: Whether a schema that cannot be kept to is refused; else what of it cannot be kept to is skipped.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False

    @property
    def arguments_options(self) -> str:
        """What its arguments are held to, as text.

        Raises:
            InvalidArgument: the type that the parameters have is none of an object's.
        """
        schema, types = self.parameters, self.parameters.get("type", "object")
        types = [types] if isinstance(types, str) else types
        if isinstance(types, list) and "object" in types:
            schema = {**schema, "type": "object"}
        elif isinstance(types, list) and all(isinstance(name, str) and name in OTHER_TYPES for name in types):
            raise InvalidArgument(self.excludes_objects("type"))
        return json_options(schema, lenient=not self.strict)

    def excludes_objects(self, keyword: str | None) -> str:
        """What is wrong with parameters that no object fits, because of this keyword where one is to blame."""
        reason = f" because of their keyword {keyword}" if keyword else ""
        return (
            f"The tool {self.name}: no JSON object fits its parameters{reason}, and arguments are always one; write "
            "what the function takes as properties of an object."
        )

    def listed_parameters(self, form: ParameterFormat) -> list[ToolParameter]:
        """Its parameters for a format that writes them one at a time, in their order.

        Raises:
            InvalidArgument: they are not listed, or a strict tool has a keyword that such a format cannot be held to;
                names it.
        """
        definitions = {
            key: value for key in ("$defs", "definitions") if isinstance(value := self.parameters.get(key), Mapping)
        }
        schema = SchemaView(definitions).followed(self.parameters)
        properties, required = schema.get("properties"), schema.get("required")
        properties = properties if isinstance(properties, Mapping) else {}
        required = required if isinstance(required, list) else []
        unkept = sorted(schema.keys() - OBJECT_KEYWORDS)
        if unkept and (self.strict or not properties):
            raise InvalidArgument(self._not_kept(unkept[0]))
        if missing := [name for name in required if name not in properties]:
            raise InvalidArgument(
                f"The tool {self.name}: its required parameter {missing[0]!r} is not among its properties, and this "
                "model's calls have a place only for those; describe it there."
            )
        parameters = []
        for name, value in properties.items():
            view = SchemaView(definitions)
            inner = view.followed(value)
            parameter = ToolParameter(
                name=name,
                schema={**definitions, **inner} if "$ref" in json.dumps(inner) else inner,
                required=name in required,
                types=view.types(inner),
                choices=view.choices(inner),
            )
            unkept = sorted(inner.keys() - TEXT_KEYWORDS) if parameter.is_text and form.stop else []
            if unkept and self.strict:
                raise InvalidArgument(self._not_kept(f"{unkept[0]} at properties.{name}"))
            if not name or form.assign in name:
                raise InvalidArgument(f"The tool {self.name}: a call of this model cannot name a parameter {name!r}.")
            parameters.append(parameter)
        return parameters

    def _not_kept(self, keyword: str) -> str:
        return (
            f"The tool {self.name}: this model writes arguments one at a time, and cannot be held to its keyword "
            f"{keyword}; leave it out."
        )


def json_type(value: Any) -> str:
    """The type that JSON Schema has for a value."""
    kinds: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
        (dict, "object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


class SchemaView:
    """What one schema allows, as far as a number of steps tells: references may make a short one endless.

    Args:
        definitions: Schemas that are referred to, under ``$defs`` and ``definitions``.
    """

    def __init__(self, definitions: Mapping[str, Mapping[str, Any]]) -> None:
        self.definitions = definitions
        self._steps = iter(range(MOST_SCHEMA_STEPS))

    def followed(self, schema: Any) -> Mapping[str, Any]:
        """A schema, or the one that it refers to, with what stands beside the reference; empty where it allows all."""
        while isinstance(schema, Mapping) and next(self._steps, None) is not None:
            path = str(schema.get("$ref", "")).split("/")
            if len(path) != 3 or path[0] != "#" or path[1] not in self.definitions:
                return schema
            target = self.definitions[path[1]].get(path[2], {})
            beside = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**target, **beside} if isinstance(target, Mapping) else {}
        return {}

    def types(self, schema: Any) -> frozenset[str]:
        """Types that a value may have; all where the schema does not say."""
        if (choices := self.choices(schema)) is not None:
            return frozenset(map(json_type, choices))
        schema, every = self.followed(schema), frozenset(JSON_TYPES)
        types = schema.get("type")
        if isinstance(types, str | list):
            return every.intersection([types] if isinstance(types, str) else map(str, types))
        for key in UNIONS:
            if isinstance(members := schema.get(key), list):
                return frozenset().union(*map(self.types, members))
        members = schema["allOf"] if isinstance(schema.get("allOf"), list) else []
        return functools.reduce(frozenset.intersection, map(self.types, members), every)

    def choices(self, schema: Any) -> tuple[Any, ...] | None:
        """All values that fit a schema, where it lists them."""
        schema = self.followed(schema)
        if "const" in schema:
            return (schema["const"],)
        if isinstance(values := schema.get("enum"), list):
            return tuple(values)
        if schema.get("type") in ("null", "boolean"):
            return (None,) if schema["type"] == "null" else (True, False)
        for key in UNIONS:
            if isinstance(members := schema.get(key), list) and members:
                lists = [self.choices(member) for member in members]
                return None if None in lists else tuple(value for values in lists for value in values or ())
        return None
