"""Which keyword of a JSON Schema is the one that an answer cannot be held to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["schema_fault"]

COMPILING = re.compile(r"\A\s*at \d+\(\d+\): failed to compile JSON schema: ")
MOST_TRIALS = 300  # parts of a schema that are tried by themselves
SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")  # whose values are schemas by name
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalProperties", "not")
KEYWORD_REMEDIES = {
    "oneOf": "a value could fit two of its parts. Write anyOf, or have the parts differ in their type or in a property "
    "that is a required constant.",
}
SchemaPlace = tuple[str, ...]


def schema_fault(schema: Mapping[str, Any], reason: str) -> str:
    """What names the keyword at fault and where it stands, and says what to write instead where that is known.

    Args:
        schema: One that has been refused.
        reason: What was said of all of it.
    """
    trials = iter(range(MOST_TRIALS))
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    place: SchemaPlace = ()
    part: Mapping[str, Any] = schema
    while inner := next((each for each in _schema_parts(part) if _reason(each[1], definitions, trials)), None):
        place, part = (*place, *inner[0]), inner[1]
        reason = _reason(part, definitions, trials) or reason
    named_first = sorted(part, key=lambda key: key not in _plain_reason(reason))
    keyword = next((key for key in named_first if _sound_without(part, key, definitions, trials)), None)
    where = f" at {'.'.join(place)}" if place else ""
    what = f" because of its keyword {keyword}{where}" if keyword else f" because of its part{where}" if place else ""
    return f"The schema cannot be kept to{what}: {KEYWORD_REMEDIES.get(keyword or '') or _plain_reason(reason)}"


def _schema_parts(schema: Mapping[str, Any]) -> Iterator[tuple[SchemaPlace, Mapping[str, Any]]]:
    """The schemas within a schema, each with where it stands."""
    for key in SCHEMAS:
        if isinstance(schema.get(key), Mapping):
            yield from (((key, name), each) for name, each in schema[key].items() if isinstance(each, Mapping))
    for key in LISTS:
        if isinstance(schema.get(key), list):
            yield from (((key, str(n)), each) for n, each in enumerate(schema[key]) if isinstance(each, Mapping))
    for key in SINGLE:
        if isinstance(schema.get(key), Mapping):
            yield (key,), schema[key]


def _sound_without(part: Mapping[str, Any], key: str, definitions: Mapping[str, Any], trials: Iterator[int]) -> bool:
    fewer = {name: value for name, value in part.items() if name != key}
    return not _reason(fewer, {} if key in definitions else definitions, trials)


def _reason(part: Mapping[str, Any], definitions: Mapping[str, Any], trials: Iterator[int]) -> str:
    """What is wrong with a part by itself; empty where nothing is, or too many parts have been tried."""
    from llguidance import LLMatcher

    if next(trials, None) is None:
        return ""
    grammar = LLMatcher.grammar_from_json_schema(json.dumps({**definitions, **part}))
    fault, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return messages[0] if fault else ""


def _plain_reason(reason: str) -> str:
    """Its first line that says something."""
    lines = [COMPILING.sub("", line).strip() for line in reason.splitlines() if line.strip(" ^\t")]
    last = next((line for line in lines if line.startswith("error:")), lines[0] if lines else "no reason is known")
    return last.removeprefix("error:").strip()[:300].rstrip(".") + "."
