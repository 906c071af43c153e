"""Guardrails in a folder, each with its versions: ``NAME/DRAFT.yaml``, ``NAME/1.yaml``, ``NAME/2.guard``.

A draft is replaced as often as one likes. A number is written once, and never again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from poise.errors import InvalidSettings, SaveFailed
from poise.guardrail.guard_file import FittedGuard, is_guard_file, load_guard
from poise.guardrail.schema import Guardrail, load_guardrail
from poise.storage.atomic_write import creating
from poise.storage.lock import one_at_a_time

__all__ = ["GuardrailSource", "guardrail_files", "guardrail_sources", "publish_guardrail", "read_guardrail"]

ENDINGS = (".yaml", ".yml", ".guard")
VERSION_FILE = re.compile(r"DRAFT|[1-9]\d{0,8}")


@dataclass(frozen=True, slots=True)
class GuardrailSource:
    """A guardrail as a file has it.

    Attributes:
        path: The file.
        guardrail: What its YAML says.
        fitted: The guardrail with its detectors, where it was fitted.
    """

    path: Path
    guardrail: Guardrail
    fitted: FittedGuard | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.guardrail.name, str(self.guardrail.version)

    def says_the_same(self, other: GuardrailSource) -> bool:
        """Whether only their numbers differ."""
        mine, theirs = (each.guardrail.model_copy(update={"version": "DRAFT"}) for each in (self, other))
        if mine != theirs or (self.fitted is None) != (other.fitted is None):
            return False
        return self.fitted is None or (other.fitted is not None and self.fitted.same_detectors(other.fitted))


def read_guardrail(path: Path) -> GuardrailSource:
    """The guardrail in a YAML file, or in one that was fitted.

    Raises:
        InvalidSettings: no guardrail; names line and field.
        MissingExtra: it needs packages that are not installed.
    """
    if is_guard_file(path):
        fitted = load_guard(path)
        return GuardrailSource(path, fitted.guardrail, fitted)
    return GuardrailSource(path, load_guardrail(path))


def guardrail_files(path: Path) -> list[Path]:
    """The file itself, or all versions in a folder of ``NAME/VERSION``, drafts before numbers.

    Raises:
        InvalidSettings: a folder without any.
    """
    if not path.is_dir():
        return [path]
    files = [file for folder in sorted(path.iterdir()) if folder.is_dir() for file in _versions_in(folder)]
    if not files:
        raise InvalidSettings(
            f"{path} holds no guardrails; they lie there as NAME/DRAFT.yaml and NAME/1.yaml, which "
            "`poise guardrail publish` writes."
        )
    return files


def guardrail_sources(paths: Sequence[Path]) -> list[GuardrailSource]:
    """All guardrails in these files and folders, in their order.

    Raises:
        InvalidSettings: one cannot be read, is not what its file's name says, or is there twice.
    """
    sources: dict[tuple[str, str], GuardrailSource] = {}
    for path in paths:
        for file in guardrail_files(path):
            source = read_guardrail(file)
            if path.is_dir():
                _check_place(source)
            if before := sources.get(source.key):
                raise InvalidSettings(
                    f"{file} and {before.path} are both {'/'.join(source.key)}; leave one of them out."
                )
            sources[source.key] = source
    return list(sources.values())


def publish_guardrail(path: Path, folder: Path) -> tuple[Path, bool]:
    """Write a guardrail as its next number, which nothing writes over; and whether there was anything new.

    Args:
        path: The guardrail's YAML, or what was fitted from it.
        folder: Folder of ``NAME/VERSION``.

    Returns:
        The file of the version: a new one, or the last where that says the same.

    Raises:
        InvalidSettings: no guardrail, or the last version cannot be read.
        FolderInUse: somebody else publishes there all the time.
        SaveFailed: the disk refused.
    """
    source = read_guardrail(path)
    home = folder / source.guardrail.name
    with one_at_a_time(home):
        numbered = [file for file in _versions_in(home) if file.stem != "DRAFT"]
        if numbered and source.says_the_same(read_guardrail(numbered[-1])):
            return numbered[-1], False
        number = int(numbered[-1].stem) + 1 if numbered else 1
        target = home / f"{number}{'.guard' if source.fitted else '.yaml'}"
        try:
            with creating(target) as temporary:
                temporary.write_bytes(_numbered(source, number))
        except FileExistsError as error:
            raise SaveFailed(f"Cannot publish as {target}: something else is there; try again.") from error
        return target, True


def _versions_in(folder: Path) -> list[Path]:
    files = (
        [f for f in folder.iterdir() if f.suffix in ENDINGS and VERSION_FILE.fullmatch(f.stem)]
        if folder.is_dir()
        else []
    )
    return sorted(files, key=lambda f: (0 if f.stem == "DRAFT" else int(f.stem), f.suffix))


def _check_place(source: GuardrailSource) -> None:
    place = (source.path.parent.name, source.path.stem)
    if place != source.key:
        raise InvalidSettings(
            f"{source.path} holds {'/'.join(source.key)}, and its place says {'/'.join(place)}; set `name` and "
            "`version` in it accordingly, or move it."
        )


def _numbered(source: GuardrailSource, number: int) -> bytes:
    """The file with that number for its version, its comments as they were."""
    guardrail = source.guardrail.model_copy(update={"version": number})
    if source.fitted:
        header = source.fitted.header.model_copy(update={"guardrail": guardrail})
        return replace(source.fitted, header=header).serialised()
    text = source.path.read_text("utf-8-sig")
    for candidate in _with_version(text, number):
        if _is(candidate, guardrail):
            return candidate.encode()
    plain = guardrail.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()


def _with_version(text: str, number: int) -> Iterator[str]:
    line = f"version: {number}"
    yield re.sub(r"(?m)^version:[^\n#]*?(?=\s*(?:#|$))", line, text, count=1)
    yield re.sub(r"(?m)^name:.*$", lambda name: f"{name.group()}\n{line}", text, count=1)


def _is(text: str, guardrail: Guardrail) -> bool:
    try:
        return Guardrail.model_validate(yaml.safe_load(text)) == guardrail
    except (yaml.YAMLError, ValueError):
        return False
