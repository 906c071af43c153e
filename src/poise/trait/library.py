"""Traits and exemplar pairs in files: the seven that ship with Poise, and the user's own.

A trait file is YAML, pairs are JSONL. All mistakes of a file come in one error, each with its line.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
import textwrap
from collections.abc import Sequence, Sized
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from poise.arguments import check_type
from poise.errors import BrokenYAML, InvalidExemplars, InvalidTrait, PoiseError, UnknownTrait
from poise.settings import LineFinder, parse_yaml
from poise.trait.schema import (
    LEAST_PAIRS,
    ExemplarPair,
    Exemplars,
    InstructionPair,
    OwnTrait,
    Questions,
    Trait,
    TraitName,
    field_path,
    same_question,
)

__all__ = [
    "complaints",
    "dump",
    "evaluation_questions",
    "general_questions",
    "load_trait",
    "names",
    "own_trait",
    "read_pairs",
    "trait_name",
]

FieldPlace = tuple[str | int, ...]

_SHOWN = 10
_WIDTH = 120
_NOT_TEXT = {"null", "true", "false", "yes", "no", "on", "off"}  # what YAML reads them as without quotes
_ALLOWED = "up to 64 of a-z, 0-9, - and _, beginning with a letter or a digit"


def names() -> list[str]:
    """Names of the traits that ship with Poise, in alphabetical order."""
    return sorted(file.name.removesuffix(".yaml") for file in _traits_folder().iterdir() if file.name.endswith(".yaml"))


def load_trait(name_or_path: str | Path) -> Trait:
    """Read a trait of the library, or a trait file.

    Args:
        name_or_path: A name from ``names()``, which wins over a file of that name, or the path of a YAML file.

    Raises:
        UnknownTrait: neither; lists the library and suggests the closest name.
        InvalidTrait: the file is no YAML or breaks the schema; each mistake with its line and field.
    """
    check_type("name_or_path", name_or_path, (str, Path), f"one of {', '.join(names())}, or the path of a trait file")
    if name_or_path in names():
        return _parse((_traits_folder() / f"{name_or_path}.yaml").read_bytes(), f"{name_or_path}.yaml")
    name_or_path = str(name_or_path)
    try:
        raw = Path(name_or_path).read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise UnknownTrait(_unknown(name_or_path)) from error
    except OSError as error:
        raise UnknownTrait(
            f"The trait file {name_or_path} cannot be read ({error.strerror or error}); give the path of a YAML file, "
            f"or a trait of the library: {', '.join(names())}."
        ) from error
    return _parse(raw, name_or_path)


def dump(trait: Trait) -> str:
    """The trait as YAML, laid out like the library's files; loads to an equal trait."""
    return "\n".join(_yaml_lines(trait.model_dump(by_alias=True), top=True)) + "\n"


def general_questions() -> tuple[str, ...]:
    """Open questions on all sorts of subjects, on which a trait given by pairs alone is evaluated."""
    lines = (_traits_folder() / "questions.txt").read_text("utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def evaluation_questions(trait: Trait | OwnTrait) -> tuple[str, ...]:
    """Questions that the vector is validated on, none of which it was computed from.

    A trait of the user's own has none, and gets the general ones that its pairs do not ask.
    """
    if isinstance(trait, Trait):
        return trait.questions.evaluation
    in_pairs = {same_question(pair.question) for pair in trait.pairs}
    return tuple(question for question in general_questions() if same_question(question) not in in_pairs)


def read_pairs(path: str | Path) -> tuple[ExemplarPair, ...]:
    """Read the user's own pairs: JSONL with ``question``, ``positive`` and ``negative`` (or ``with`` and ``without``).

    Raises:
        InvalidExemplars: the file cannot be read, a line is no JSON object with these three texts, the two sides of
            a pair are the same, or there are fewer than ``LEAST_PAIRS`` pairs; each bad line with its number.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidExemplars(
            f"The exemplars file {path} cannot be read ({reason}); give the path of a JSONL file."
        ) from error
    pairs: list[ExemplarPair] = []
    mistakes: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            pair, wrong = _read_pair(line)
            pairs += [pair] if pair else []
            mistakes += [f"line {number}: {what}" for what in wrong]
    if mistakes:
        raise _error(InvalidExemplars, str(path), mistakes)
    _check_count(str(path), pairs)
    return tuple(pairs)


def own_trait(name: str, pairs: Sequence[ExemplarPair]) -> OwnTrait:
    """A trait that is only a name and pairs.

    Args:
        name: Any; written in lower case, with hyphens for spaces.
        pairs: At least ``LEAST_PAIRS``.

    Raises:
        InvalidTrait: the name holds other signs than a name may.
        InvalidExemplars: too few pairs.
    """
    name = trait_name(name)
    _check_count(name, pairs)
    return OwnTrait(name=name, pairs=tuple(pairs))


def trait_name(text: str) -> str:
    """``text`` as the name of a trait, in lower case, with hyphens for spaces.

    Raises:
        InvalidTrait: it holds other signs than a name may.
    """
    try:
        return TypeAdapter[str](TraitName).validate_python(re.sub(r"\s+", "-", text.strip().lower()))
    except ValidationError as error:
        raise InvalidTrait(f"{_short(text)} cannot be the name of a trait; use {_ALLOWED}.") from error


def complaints(error: ValidationError) -> list[tuple[FieldPlace, str]]:
    """What a validation error says, in plain words, each with the place it is about."""
    placed: list[tuple[FieldPlace, str]] = []
    for detail in error.errors(include_url=False):
        kind, place, value, ctx = detail["type"], detail["loc"], detail["input"], detail.get("ctx", {})
        if kind == "repeated_question":
            placed += ctx["repeats"]
            continue
        if kind == "too_short" and len(value) >= ctx["min_length"]:
            continue  # pydantic leaves out the entries that are wrong themselves
        wording = {
            "missing": "is missing",
            "extra_forbidden": _unknown_field(place),
            "string_too_short": "is empty",
            "string_type": "is empty" if value is None else "should be text; put it in quotes",
            "string_pattern_mismatch": f"is {_short(value)}; use {_ALLOWED}",
            "too_short": f"has {_entry_count(value)}, and needs {ctx.get('min_length')} or more",
            "tuple_type": "should be a list",
            "model_type": "should be a mapping of fields",
            "literal_error": f"is {_short(value)}, and this version of Poise reads {ctx.get('expected')}",
        }
        placed.append((place, wording.get(kind, detail["msg"])))
    return placed


def _unknown_field(place: FieldPlace) -> str:
    kinds = (Trait, InstructionPair, ExemplarPair, Questions, Exemplars)
    names_known = {field.alias or name for kind in kinds for name, field in kind.model_fields.items()}
    near = difflib.get_close_matches(str(place[-1]) if place else "", sorted(names_known), n=1)
    return "is not a known field" + (f"; did you mean {near[0]}?" if near else "")


def _traits_folder() -> Traversable:
    return files("poise") / "traits"


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return (
        f"There is no trait {_short(name)} in the library and no such file{hint} The library has {', '.join(names())}; "
        "for another trait give the path of its YAML file."
    )


def _parse(raw: bytes, where: str) -> Trait:
    """The trait in a YAML document, or all that is wrong with it."""
    try:
        document = parse_yaml(raw.decode("utf-8-sig"), scalars="text")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _error(InvalidTrait, where, [f"line {line}: is not UTF-8 text"]) from error
    except BrokenYAML as error:
        raise _error(InvalidTrait, where, [f"line {error.line or 1}: {error}"]) from error
    data = {} if document.root is None else document.values
    if isinstance(data, dict) and data.get("schema") == "1":
        data["schema"] = 1
    placed = [(key.start_mark.line + 1, f"{key.value} is there twice; keep one") for key in document.repeated]
    trait = None
    try:
        trait = Trait.model_validate(data)
    except ValidationError as error:
        line_of = LineFinder(document.root)
        placed += [(line_of(place), f"{field_path(place) or 'the file'} {what}") for place, what in complaints(error)]
    if trait is not None and not placed:
        return trait
    placed.sort(key=lambda mistake: mistake[0])
    raise _error(InvalidTrait, where, [f"line {line}: {what}" for line, what in placed])


def _read_pair(line: bytes) -> tuple[ExemplarPair | None, list[str]]:
    """The pair in a line, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
        pair = ExemplarPair.model_validate(row)
    except ValidationError as error:
        called = {"with": "positive", "without": "negative"}
        fields = row if isinstance(row, dict) else {}
        places = [(str(place[0]) if place else "the line", what) for place, what in complaints(error)]
        return None, [f"{p if p in fields else called.get(p, p)} {what}" for p, what in places]
    except UnicodeDecodeError:
        return None, ["is not UTF-8 text"]
    except (ValueError, RecursionError) as error:
        return None, [f"is not JSON ({getattr(error, 'msg', error)})"]
    if pair.positive == pair.negative:
        return None, ["both sides are the same"]
    return pair, []


def _check_count(where: str, pairs: Sequence[ExemplarPair]) -> None:
    if len(pairs) < LEAST_PAIRS:
        raise InvalidExemplars(
            f"{where} has {len(pairs)} exemplar pairs, and a trait needs at least {LEAST_PAIRS}; add more "
            "(a few dozen on varied questions work well)."
        )


def _error(kind: type[PoiseError], where: str, mistakes: list[str]) -> PoiseError:
    """One mistake in a line of its own, several below each other, the first ten in full."""
    if len(mistakes) == 1:
        return kind(f"{where}, {mistakes[0]}; fix it and try again.")
    more = [f"and {len(mistakes) - _SHOWN} more"] if len(mistakes) > _SHOWN else []
    lines = "".join(f"\n  {mistake}" for mistake in [*mistakes[:_SHOWN], *more])
    return kind(f"{where} has {len(mistakes)} mistakes; fix them and try again:{lines}")


def _entry_count(entries: object) -> str:
    n = len(entries) if isinstance(entries, Sized) else 0
    return "1 entry" if n == 1 else f"{n} entries"


def _short(value: object) -> str:
    cut = reprlib.Repr()  # never writes out all that aliases can stand for
    cut.maxlevel, cut.maxstring = 1, 80
    return cut.repr(value)


def _yaml_lines(value: Any, *, top: bool = False) -> list[str]:
    """A value as lines of YAML without indentation of its own."""
    if isinstance(value, dict):
        return [line for key, item in value.items() for line in _entry(f"{key}:", item, fold=top)]
    return [line for item in value for line in _item(item)]


def _entry(key: str, value: Any, *, fold: bool) -> list[str]:
    if isinstance(value, dict | list | tuple):
        return [key, *(f"  {line}" for line in _yaml_lines(value))]
    plain = isinstance(value, str) and value.isprintable() and " ".join(value.split()) == value
    if fold and plain and len(value) > _WIDTH - 20:
        wrapped = textwrap.wrap(value, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
        return [f"{key} >-", *(f"  {line}" for line in wrapped)]
    return [f"{key} {_scalar(value)}"]


def _item(value: Any) -> list[str]:
    first, *further = _yaml_lines(value) if isinstance(value, dict) else [_scalar(value)]
    return [f"- {first}", *(f"  {line}" for line in further)]


def _scalar(value: str | int) -> str:
    """On one line: words as they are, other text in double quotes."""
    if isinstance(value, int) or (re.fullmatch("[a-z][a-z -]*[a-z]", value) and value not in _NOT_TEXT):
        return str(value)
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")
