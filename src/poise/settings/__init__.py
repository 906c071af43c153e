"""Settings files: YAML checked against a pydantic model, with every mistake named by file, line and field.

yaml_document   YAML with line numbers
scalar_types    which scalars a field takes
faults          what pydantic finds wrong, in plain words
other_names     names that other programs have for a setting
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from poise.errors import BrokenYAML, InvalidArgument, InvalidSettings, UserError
from poise.progress import remark
from poise.settings.faults import (
    describe_fault,
    describe_value,
    first_fault,
    is_of_a_key,
    merged_faults,
    placed_fault,
    plain_error,
    shown_value,
)
from poise.settings.other_names import Place, place_as_written, translate_names
from poise.settings.scalar_types import FilledText, check_scalar
from poise.settings.yaml_document import LineFinder, YAMLDocument, keys_that_are_no_text, parse_yaml

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = [
    "FilledText",
    "Frozen",
    "FrozenModel",
    "LineFinder",
    "ListOfTexts",
    "ReadOnlyDict",
    "SettingFault",
    "Settings",
    "YAMLDocument",
    "check_settings",
    "describe_fault",
    "describe_value",
    "faults_error",
    "first_fault",
    "located_faults",
    "parse_yaml",
    "placed_fault",
    "read_settings",
    "shown_value",
]

S = TypeVar("S", bound="Settings")
MOST_MISTAKES = 100  # mistakes of a file
SettingFault = tuple[Place, str]
"""A setting's place, and what is wrong with it in words that follow its name."""


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

ListOfTexts = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
"""In an annotation: several texts, none of them empty, or one as it is."""


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
    """Base of what a settings file may say; numbers are finite, and nothing is turned into another type.

    Attributes:
        other_names: The setting that each other name stands for; ``lora.r`` is a setting of a part.
        refused_names: Settings of other programs that there are none for here, and what to do instead.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    user_error: ClassVar[type[UserError]] = InvalidSettings
    other_names: ClassVar[Mapping[str, str]] = {}
    refused_names: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _under_our_names(cls, values: Any) -> Any:
        return translate_names(values, cls.other_names)[0]

    @field_validator("*", mode="before")
    @classmethod
    def _as_it_says(cls, value: Any, info: ValidationInfo) -> Any:
        return check_scalar(value, cls.model_fields[str(info.field_name)].annotation)


def read_settings(path: str | Path, kind: type[S], *, check: Callable[[S], Iterable[SettingFault]] | None = None) -> S:
    """The settings in a YAML file.

    Args:
        path: The file.
        kind: The schema.
        check: Finds what is wrong with settings that fit the schema, such as a file that is not there.

    Raises:
        InvalidSettings: no such file, no YAML, a field twice, or one that ``kind`` does not take; names file, line and
            field.
    """
    where = Path(path)
    document = _read_document(where, kind)
    root = document.root
    # YAML itself would let the last of two win.
    faults = [(key.start_mark.line + 1, f"{key.value} is there twice; keep one") for key in document.repeated]
    unnamed = list(keys_that_are_no_text(root))
    faults += [(key.start_mark.line + 1, f"{key.value} is not a name; put it in quotes") for key in unnamed]
    data, written = translate_names(document.values, kind.other_names)
    line_of = LineFinder(root)
    settings = None
    try:
        settings = kind.model_validate(data)
    except ValidationError as error:
        for fault in merged_faults(error):
            if not (unnamed and is_of_a_key(fault)):
                fault["loc"] = place_as_written(fault["loc"], written)
                faults.append((line_of(fault["loc"]), describe_fault(fault, kind)))
    else:
        faults += _faults_with_lines(document, check(settings), written) if check else []
    if settings is None or faults:
        raise InvalidSettings(_faults_by_line(where, faults))
    if written:
        remark(f"{', '.join(written.values())}: read as {', '.join(written)}.")
    return settings


def faults_error(faults: Iterable[SettingFault], kind: type[UserError] = InvalidArgument) -> UserError:
    """Faults in settings that are found once work has begun, as one error; see ``located_faults``."""
    listed = tuple(faults)
    error = kind("; ".join(f"{'.'.join(map(str, place))} {text}" for place, text in listed) + ".")
    error.faults = listed
    return error


@contextlib.contextmanager
def located_faults(path: str | Path, kind: type[Settings]) -> Iterator[None]:
    """Tell faults in settings that are found once work has begun with the file and its lines, as reading tells them.

    Args:
        path: The file that the settings were read from.
        kind: The schema.
    """
    try:
        yield
    except UserError as error:
        if not error.faults:
            raise
        try:
            document = _read_document(Path(path), kind)
        except InvalidSettings:  # the file is gone; the fault is there all the same
            raise error from None
        written = translate_names(document.values, kind.other_names)[1]
        raise type(error)(_faults_by_line(Path(path), _faults_with_lines(document, error.faults, written))) from error


def _faults_with_lines(
    document: YAMLDocument, faults: Iterable[SettingFault], written: Mapping[str, str]
) -> list[tuple[int, str]]:
    places = [(place_as_written(place, written), text) for place, text in faults]
    line_of = LineFinder(document.root)
    return [(line_of(place), f"{'.'.join(map(str, place))} {text}") for place, text in places]


def _read_document(where: Path, kind: type[Settings]) -> YAMLDocument:
    """The file as a YAML mapping."""
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
    if not isinstance(document.values, dict):
        raise InvalidSettings(
            f"{where} holds no settings; it should have lines like `{next(iter(kind.model_fields))}: …`."
        )
    return document


def _faults_by_line(where: Path, faults: list[tuple[int, str]]) -> str:
    lines = [f"line {line}: {fault}" for line, fault in sorted(faults, key=lambda fault: fault[0])]
    if len(lines) == 1:
        return f"{where}, {lines[0]}; fix it and try again."
    shown = (
        lines if len(lines) <= MOST_MISTAKES else [*lines[:MOST_MISTAKES], f"and {len(lines) - MOST_MISTAKES:,} more"]
    )
    listed = "".join(f"\n  {line}" for line in shown)
    return f"{where} has {len(lines):,} mistakes; fix them and try again:{listed}"


def check_settings(values: Mapping[str, Any], kind: type[S]) -> S:
    """Settings from keyword arguments.

    Raises:
        InvalidSettings: names every unknown, missing or impossible setting.
    """
    data, written = translate_names(dict(values), kind.other_names)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise plain_error(error, kind, written) from error


def _example(kind: type[BaseModel]) -> str:
    return f"{kind.__name__}({', '.join(f'{name}=…' for name in list(kind.model_fields)[:2])})"
