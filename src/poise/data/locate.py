"""What a name of data stands for: files, folders, globs, archives, addresses, standard input, data sets of the library.

Each file is listed once, by whichever links it is reached, and what is no data is left out and said.
"""

from __future__ import annotations

import glob
import json
import os
import re
import reprlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from poise.data import hub
from poise.data.addresses import is_address, locate_address
from poise.data.formats import KNOWN, check_text, is_known, is_table, row_reader
from poise.data.input_files import InputFile, open_stored
from poise.data.row_values import RowReader
from poise.data.stdin import STDIN, spool_stdin
from poise.data.tables import table_schema
from poise.errors import InvalidArgument, InvalidData

__all__ = ["DataSource", "Located", "locate_source", "locate_sources"]

NAMED_ALONE = 5  # files of one ending that are named one by one
LIBRARY_NOTES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSource:
    """One file of rows, or one set of the Hugging Face library.

    Attributes:
        name: The path, the address, or the name on the hub.
        paths: What is on disk of it.
        read: Its rows.
        file: The file; ``None`` for a set of the library.
        schema: The Arrow schema of its rows, where that is known without opening it.
    """

    name: str
    paths: tuple[Path, ...]
    read: RowReader
    file: InputFile | None = None
    schema: Any = None

    @property
    def place(self) -> tuple[str, ...]:
        """What is the same for every name of one file."""
        if self.file is None or self.file.path is None:
            return (self.name,)
        return (os.path.realpath(self.file.path), self.file.member)

    def open_schema(self) -> Any:
        """The Arrow schema of its rows; ``None`` where they are not a table.

        Raises:
            InvalidData: the file cannot be read, or its text is not UTF-8.
        """
        if self.file is None:
            return self.schema
        check_text(self.file)
        return table_schema(self.file) if is_table(self.file) else None


@dataclass(slots=True)
class Located:
    """What names stand for.

    Attributes:
        sources: In order.
        left_out: Files among them that are no data, each with the reason.
    """

    sources: list[DataSource] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def locate_sources(source: str | Path | Sequence[str | Path]) -> tuple[list[DataSource], tuple[str, ...]]:
    """What names of data stand for, each file once; and files among it that are no data, each with the reason.

    Raises:
        InvalidData: something is not there.
        InvalidArgument: these are no names.
    """
    sources = [source] if isinstance(source, str | Path) else source
    if not isinstance(sources, Sequence) or not all(isinstance(one, str | Path) for one in sources):
        raise InvalidArgument(
            f"source is {reprlib.repr(source)}; give a file, a folder, an address, or a list of these. Rows in memory "
            "need no opening: give them as they are."
        )
    if not sources or not all(map(str, sources)):
        raise InvalidArgument(f"source is {source!r}; name a file, a folder, an address, or several of these.")
    located = [locate_source(str(one)) for one in sources]
    once: dict[tuple[str, ...], DataSource] = {}  # each file once
    for one in located:
        for located_source in one.sources:
            once.setdefault(located_source.place, located_source)
    return list(once.values()), tuple(dict.fromkeys(name for one in located for name in one.left_out))


def locate_source(source: str) -> Located:
    """What a name stands for: itself on disk first, then a glob, then a split, then the hub.

    Raises:
        InvalidData: there is nothing of that name, or nothing in it that can be read.
        MissingExtra: what reads it is not installed.
    """
    if source.startswith(("file:///", "local:///")):
        source = source.partition("://")[2]
    path, (name, _, split) = Path(source), source.rpartition(":")
    if source == STDIN:
        return _listed_files([spool_stdin()], "standard input holds no file")
    if is_address(source):
        return _listed_files(locate_address(source, is_known), f"{source} holds no file")
    if path.is_dir() and hub.is_saved(path):
        return Located([_saved(source, path, None)])
    if path.is_dir():
        paths = sorted(path / inner for inner in _walk(path, (os.path.realpath(path),)))
        return _listed_files(map(_on_disk, paths), f"{source} and the folders in it hold no file", root=source)
    if path.exists():
        file = _on_disk(path)
        if is_known(file) or file.endings[1] != ".zip":
            return Located([_from_file(file)])
        return _listed_files([file], f"{source} holds no file", root=source)
    if glob.has_magic(source):
        names = sorted(glob.glob(source, recursive=True))  # noqa: PTH207  # a pattern may be absolute
        return _listed_files([_on_disk(Path(name)) for name in names], f"{source} matches no file", matched=True)
    if name and hub.is_saved(Path(name)):
        return Located([_saved(source, Path(name), split)])
    if not is_known(_on_disk(path)) and _HUB_NAME.fullmatch(name or source):
        rows = hub.open_streamed(name or source, split if name else None)
        return Located([DataSource(name=source, paths=(), read=rows)])
    raise InvalidData(f"There is no file or folder {source}; give a file that ends in {KNOWN}.")


def _on_disk(path: Path) -> InputFile:
    return InputFile(str(path), path)


def _from_file(file: InputFile) -> DataSource:
    paths = (file.path,) if file.path else ()
    return DataSource(name=file.name, paths=paths, read=row_reader(file), file=file)


def _saved(source: str, folder: Path, split: str | None) -> DataSource:
    paths, read, schema = hub.open_saved(folder, split)
    return DataSource(name=source, paths=paths, read=read, schema=schema)


def _listed_files(files: Iterable[InputFile], nothing: str, root: str = "", *, matched: bool = False) -> Located:
    """Those of ``files`` that can be read.

    Args:
        files: In order.
        nothing: Beginning of the sentence that says that there are none.
        root: The folder or archive that they are listed from; empty where the user named them. Text beside other data
            and the library's notes are no data there.
        matched: Whether they are what a pattern matches.

    Raises:
        InvalidData: there are none.
    """
    members = [member for file in files for member in (_zip_members(file) if _is_zip(file) else [file])]
    known = [file for file in _once(members) if is_known(file) and (file.member or _is_there(file))]
    listed = Located()
    inside = {file for file in known if root or file.member}
    only_text = all(file.endings[1] == ".txt" for file in known)
    for file in known:
        if file in inside and _is_library_note(file):
            listed.left_out.append(f"{file.name}: it describes a saved data set")
        elif file in inside and file.endings[1] == ".txt" and not only_text:
            listed.left_out.append(f"{file.name}: plain text beside other data; name it to have it read")
        elif not _is_stray_arrow(file):
            listed.sources.append(_from_file(file))
    others = [file for file in _once(members) if not is_known(file) and _is_there(file)]
    listed.left_out += _unknown_files(others if root or matched or any(file.member for file in others) else [])
    if not listed.sources:
        raise InvalidData(f"{nothing} that ends in {KNOWN}.")
    return listed


def _unknown_files(files: Sequence[InputFile]) -> list[str]:
    """What is said of files whose names end like no format that is read; many of one ending are said together."""
    by_ending: dict[str, list[InputFile]] = {}
    for file in files:
        by_ending.setdefault(file.endings[1], []).append(file)
    notes: list[str] = []
    for ending, alike in by_ending.items():
        if len(alike) <= NAMED_ALONE:
            notes += [f"{file.name}: its name does not say what is in it" for file in alike]
        else:
            notes.append(f"{len(alike):,} files like {alike[0].name}: names in {ending or 'nothing'} say no format")
    return notes


def _is_zip(file: InputFile) -> bool:
    return file.endings == ("", ".zip") and _is_there(file)


def _is_there(file: InputFile) -> bool:
    return file.path is None or file.path.is_file()


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Files in a folder and below, relative to it, nothing hidden; links are followed, but not in circles."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name[0] in "._":
            continue
        if not entry.is_dir():
            yield Path(entry.name)
        elif (real := os.path.realpath(entry.path)) not in above:
            yield from (Path(entry.name) / inner for inner in _walk(Path(entry.path), (*above, real)))


def _once(files: Sequence[InputFile]) -> list[InputFile]:
    """Each file once: under its own name, rather than that of a link to it, where both are listed."""
    chosen: dict[tuple[str, str], InputFile] = {}
    for file in files:
        place = (os.path.realpath(file.path) if file.path else file.name, file.member)
        if place not in chosen or (file.path and not file.member and str(file.path.absolute()) == place[0]):
            chosen[place] = file
    names = {(file.name, file.member) for file in chosen.values()}
    return [file for file in dict.fromkeys(files) if (file.name, file.member) in names]


def _zip_members(file: InputFile) -> list[InputFile]:
    """The members of an archive, sorted, nothing hidden.

    Raises:
        InvalidData: it cannot be read, or is encrypted.
    """
    if file.path is None:
        raise InvalidData(
            f"{file.name}: an archive at an address cannot be read; fetch it, or name a file in it as in "
            f"zip://rows.jsonl::{file.name}."
        )
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InvalidData(f"{file.name}: cannot be read as a zip archive, {error}.") from error
    shown = [entry for entry in entries if not any(part[0] in "._" for part in PurePosixPath(entry.filename).parts)]
    members = [InputFile(f"{file.name}/{entry.filename}", file.path, entry.filename) for entry in shown]
    known = [(entry, member) for entry, member in zip(shown, members, strict=True) if is_known(member)]
    if locked := [entry.filename for entry, _ in known if entry.flag_bits & 1]:
        raise InvalidData(f"{file.name}: {locked[0]} in it is encrypted; unpack it first.")
    names = [entry.filename for entry, _ in known]
    if repeated := next((name for name in names if names.count(name) > 1), ""):
        raise InvalidData(
            f"{file.name} holds {names.count(repeated)} files named {repeated}; pack them again, each "
            "under a name of its own."
        )
    if not known:
        raise InvalidData(f"{file.name} holds no file that ends in {KNOWN}.")
    return sorted(members, key=lambda member: member.member)


def _is_library_note(file: InputFile) -> bool:
    """Whether a JSON file beside data is what ``datasets`` writes there, by its name and its keys."""
    if PurePosixPath(file.member or file.name).name not in LIBRARY_NOTES:
        return False
    try:
        with open_stored(file) as stream:
            document = json.loads(stream.read(2**24))
    except (OSError, ValueError):
        return False
    inner = document.values() if isinstance(document, dict) else ()
    documents = [one for one in (document, *inner) if isinstance(one, dict)]
    return any({"features", "splits", "builder_name", *hub.STATE_KEYS} & set(one) for one in documents)


def _is_stray_arrow(file: InputFile) -> bool:
    """Whether an Arrow file in a saved data set's folder is none of its own, but a cache of earlier work."""
    if file.path is None or file.member or file.endings[1] != ".arrow":
        return False
    names = hub.saved_files(file.path.parent)
    return bool(names) and file.path.name not in names
