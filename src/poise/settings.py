"""Settings files: YAML checked against a pydantic model, with every mistake named by file, line and field."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from poise.errors import BrokenYAML, InvalidArgument, InvalidSettings, UserError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = [
    "Frozen",
    "FrozenModel",
    "ReadOnlyDict",
    "Settings",
    "YAMLDocument",
    "check_settings",
    "describe_fault",
    "describe_value",
    "first_fault",
    "line_at",
    "parse_yaml",
    "read_settings",
]

S = TypeVar("S", bound="Settings")


class ReadOnlyDict(dict[Any, Any]):
    """A dictionary that cannot be changed, for values that are shared; the dictionaries in it are likewise."""

    def __init__(self, values: Mapping[Any, Any]) -> None:
        super().__init__({key: ReadOnlyDict(v) if isinstance(v, dict) else v for key, v in values.items()})

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("These values cannot be changed; make a new object with others.")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (ReadOnlyDict, (dict(self),))

    def __deepcopy__(self, memo: Any) -> ReadOnlyDict:
        return self


Frozen = AfterValidator(lambda values: None if values is None else ReadOnlyDict(values))
"""In an annotation: the field's dictionary cannot be changed."""


class _PlainErrors(ModelMetaclass):
    """Construction from Python fails in plain words; files are validated by ``model_validate``, which adds lines."""

    def __call__(self, *args: Any, **values: Any) -> Any:
        kind: Any = self
        if args:
            raise InvalidArgument(f"{kind.__name__} takes its fields by name, as {_example(kind)}.")
        try:
            return super().__call__(**values)
        except ValidationError as error:
            raise plain_error(error, kind) from None


class FrozenModel(BaseModel, metaclass=_PlainErrors):
    """Base of every value that is written to a file: immutable, unknown fields not allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)
    user_error: ClassVar[type[UserError]] = InvalidArgument

    def __setattr__(self, name: str, value: Any) -> None:
        raise FrozenInstanceError(f"A {type(self).__name__} cannot be changed ({name}); make a new one.")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"A {type(self).__name__} cannot be changed ({name}); make a new one.")


class Settings(FrozenModel):
    """Base of what a settings file may say; numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)
    user_error: ClassVar[type[UserError]] = InvalidSettings


@dataclass(frozen=True, slots=True)
class YAMLDocument:
    """A YAML document, with the places of its parts.

    Attributes:
        values: Dicts, lists and scalars.
        root: The composed document, for ``line_at``; ``None`` where the text is empty.
        repeated: Keys that their mapping has already.
    """

    values: Any
    root: yaml.Node | None
    repeated: tuple[yaml.ScalarNode, ...]


def parse_yaml(text: str, *, scalars: Literal["typed", "text"] = "typed") -> YAMLDocument:
    """The one reader of YAML in Poise.

    Args:
        text: One document.
        scalars: ``typed`` as YAML's core types; ``text`` as written, but for null.

    Raises:
        BrokenYAML: it does not parse, holds a control character, has a key that is no scalar, or refers to itself.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        repeated = tuple(_repeated(root))
        values = yaml.safe_load(text) if scalars == "typed" else _text_values(root, {})
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise BrokenYAML(f"holds the control character {error.character:#04x}", line) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "context", None) or "it cannot be read"
        raise BrokenYAML(f"broken YAML, {what}", mark.line + 1 if mark else None) from error
    except RecursionError as error:
        raise BrokenYAML("nested too deeply or refers to itself; leave anchors out", None) from error
    return YAMLDocument(values, root, repeated)


def read_settings(path: str | Path, kind: type[S]) -> S:
    """The settings in a YAML file.

    Raises:
        InvalidSettings: no such file, no YAML, a field twice, or one that ``kind`` does not take; names file, line and
            field.
    """
    where = Path(path)
    try:
        text = where.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidSettings(f"Cannot read the settings {where}: {reason}; give the path of a YAML file.") from error
    try:
        document = parse_yaml(text)
    except BrokenYAML as error:
        line = f", line {error.line}" if error.line else ""
        raise InvalidSettings(f"{where}{line}: {error}; fix it and try again.") from error
    data, root = document.values, document.root
    if not isinstance(data, dict):
        raise InvalidSettings(
            f"{where} holds no settings; it should have lines like `{next(iter(kind.model_fields))}: …`."
        )
    # YAML itself would let the last of two win.
    faults = [(key.start_mark.line + 1, f"{key.value} is there twice; keep one") for key in document.repeated]
    unnamed = list(_keys_that_are_no_text(root))
    faults += [(key.start_mark.line + 1, f"{key.value} is not a name; put it in quotes") for key in unnamed]
    settings = None
    try:
        settings = kind.model_validate(data)
    except ValidationError as error:
        faults += [
            (line_at(root, fault["loc"]), describe_fault(fault, kind))
            for fault in merged_faults(error)
            if not (unnamed and _is_of_a_key(fault))
        ]
    if settings is not None and not faults:
        return settings
    lines = [f"line {line}: {fault}" for line, fault in sorted(faults, key=lambda fault: fault[0])]
    if len(lines) == 1:
        raise InvalidSettings(f"{where}, {lines[0]}; fix it and try again.")
    listed = "".join(f"\n  {line}" for line in lines)
    raise InvalidSettings(f"{where} has {len(lines)} mistakes; fix them and try again:{listed}")


def check_settings(values: Mapping[str, Any], kind: type[S]) -> S:
    """Settings from keyword arguments.

    Raises:
        InvalidSettings: names every unknown, missing or impossible setting.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise plain_error(error, kind) from error


def plain_error(error: ValidationError, kind: type[BaseModel]) -> UserError:
    """What pydantic found, as the error that ``kind`` names, in one sentence."""
    faults = dict.fromkeys(describe_fault(fault, kind) for fault in merged_faults(error))
    error_type: type[UserError] = getattr(kind, "user_error", InvalidArgument)
    return error_type(f"{kind.__name__}: {'; '.join(faults)}; fix it and try again.")


def _example(kind: type[BaseModel]) -> str:
    return f"{kind.__name__}({', '.join(f'{name}=…' for name in list(kind.model_fields)[:2])})"


def _repeated(node: yaml.Node | None, seen: set[int] | None = None) -> Iterator[yaml.ScalarNode]:
    """Keys that their mapping has already; an alias, which is its anchor's node, is looked at once."""
    visited = set() if seen is None else seen
    if node is None or id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, visited)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a field without a name", problem_mark=key.start_mark)
            if key.value in keys:
                yield key
            keys.add(key.value)
            yield from _repeated(value, visited)


def _keys_that_are_no_text(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    """Keys that YAML reads as numbers, dates, true, false or null."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys_that_are_no_text(item)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                yield key
            yield from _keys_that_are_no_text(value)


def _is_of_a_key(fault: Mapping[str, Any]) -> bool:
    last = fault["loc"][-1] if fault["loc"] else ""
    unknown = fault["type"] in ("extra_forbidden", "string_type") and not isinstance(last, str)
    return unknown or fault["type"] == "invalid_key"


def _text_values(node: yaml.Node | None, built: dict[int, Any]) -> Any:
    """Dicts, lists and texts: `yes` and `1984` make good answers.

    Args:
        node: Node of the composed document.
        built: Values by node, so that an alias is built once.
    """
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return None
    if id(node) in built:
        return built[id(node)]
    if isinstance(node, yaml.MappingNode):
        fields: dict[str, Any] = {}
        built[id(node)] = fields
        fields.update((key.value, _text_values(value, built)) for key, value in node.value)
        return fields
    if isinstance(node, yaml.SequenceNode):
        items: list[Any] = []
        built[id(node)] = items
        items.extend(_text_values(item, built) for item in node.value)
        return items
    return node.value


def merged_faults(error: ValidationError) -> list[dict[str, Any]]:
    """The faults that pydantic found, one for each mistake: of a choice of shapes, only what was meant is judged."""
    merged: list[dict[str, Any]] = []
    choices: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for details in error.errors():
        fault: dict[str, Any] = dict(details)
        if fault["type"] == "too_short" and len(fault["input"]) >= fault["ctx"]["min_length"]:
            continue  # pydantic leaves out the entries that are wrong themselves
        place: tuple[int | str, ...] = fault["loc"]
        at = next((i for i, part in enumerate(place) if isinstance(part, str) and UNION_MEMBER.match(part)), None)
        fault["loc"] = tuple(part for part in place if not (isinstance(part, str) and UNION_MEMBER.match(part)))
        if at is None:
            merged.append(fault)
        else:
            choices.setdefault(place[:at], []).append(fault)
    for faults in choices.values():
        words = [fault for fault in faults if fault["type"] == "literal_error"]
        others = [fault for fault in faults if fault["type"] != "literal_error"]
        text = all(isinstance(fault["input"], str) for fault in words)
        merged += (words if words and text else others or words)[:1]
    return merged


def describe_fault(fault: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """One fault that pydantic found, in plain words: the field, its value and the limit, or the name that was meant."""
    place, kind_of_fault, context = fault["loc"], fault["type"], fault.get("ctx", {})
    field = ".".join(map(str, place)) or "the settings"
    if kind_of_fault == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), _fields_at(kind, place[:-1]), n=1)
        return f"{field} is an unknown setting" + (f", did you mean {near[0]}?" if near else "")
    if kind_of_fault == "value_error":
        return f"{field if place else ''} {context.get('error', fault['msg'])!s}".strip()
    if kind_of_fault == "repeated_question":
        return str(fault["msg"])
    return f"{field} {describe_value(fault)}"


def first_fault(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first fault that pydantic found, in plain words."""
    fault = merged_faults(error)[0]
    if fault["type"] == "json_invalid":
        return f"it is not JSON ({fault['ctx']['error']})"
    if fault["type"] == "value_error" and fault["loc"]:
        return f"{'.'.join(map(str, fault['loc']))}: {describe_value(fault)}"
    return describe_fault(fault, kind)


def describe_value(fault: Mapping[str, Any]) -> str:
    """What pydantic found wrong with one value, in plain words that follow its name."""
    kind_of_fault, context = fault["type"], fault.get("ctx", {})
    if kind_of_fault in ("value_error", "assertion_error"):
        return str(context.get("error", fault["msg"])).removesuffix(".")
    value = reprlib.repr(fault["input"])
    if kind_of_fault == "literal_error" and isinstance(fault["input"], str):
        near = difflib.get_close_matches(fault["input"], re.findall(r"'([^']*)'", context["expected"]), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        return f"is {value}; it must be {context['expected']}{hint}"
    for name, words in LIMITS.items():
        if kind_of_fault in LIMIT_FAULTS[name]:
            return f"is {value}; it must be {words.format(**context)}"
    return FAULTS.get(kind_of_fault, "is {value}, which cannot be used").format(value=value)


FAULTS = {
    "missing": "is missing",
    "string_too_short": "is empty",
    "string_pattern_mismatch": "is {value}; use up to 64 lower-case letters, digits, hyphens and underscores",
}
UNION_MEMBER = re.compile(r"(literal|tuple|list|dict|function-\w+|constrained-\w+|nullable)\[|\[key\]$")
LIMIT_FAULTS = {
    "number": ("int_parsing", "int_type", "int_from_float", "float_parsing", "float_type"),
    "finite": ("finite_number",),
    "text": ("string_type",),
    "flag": ("bool_parsing", "bool_type"),
    "list": ("tuple_type", "list_type", "set_type"),
    "mapping": ("model_type", "dict_type", "model_attributes_type"),
    "choice": ("literal_error",),
    "least": ("greater_than_equal",),
    "more": ("greater_than",),
    "most": ("less_than_equal",),
    "less": ("less_than",),
    "entries": ("too_short",),
    "none": ("none_required",),
}
LIMITS = {
    "number": "a number (a whole one where things are counted)",
    "finite": "a finite number",
    "text": "text; put it in quotes",
    "flag": "true or false",
    "list": "a list",
    "mapping": "a mapping of settings",
    "choice": "{expected}",
    "least": "at least {ge}",
    "more": "more than {gt}",
    "most": "at most {le}",
    "less": "less than {lt}",
    "entries": "a list of at least {min_length}",
    "none": "null",
}


def _fields_at(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Names of the settings in the part of a schema that ``place`` leads to."""
    current: Any = kind
    for part in place:
        annotation = current.model_fields[part].annotation if part in getattr(current, "model_fields", {}) else None
        models = (annotation, *get_args(annotation))
        current = next((m for m in models if isinstance(m, type) and issubclass(m, BaseModel)), current)
    return list(getattr(current, "model_fields", {}))


def line_at(root: yaml.Node | None, place: tuple[int | str, ...]) -> int:
    """Line, from 1, of the field at ``place``, or of the nearest one above it that is there."""
    node, mark = root, root.start_mark if root else None
    for part in place:
        if isinstance(node, yaml.MappingNode):
            key, node = next(((k, v) for k, v in node.value if k.value == part), (None, None))
            mark = key.start_mark if key else mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    return mark.line + 1 if mark else 1
