"""Data sets of the Hugging Face library: a folder that it saved, or a name on the hub, streamed.

Both need the ``data`` extra.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

from poise.data.input_files import import_extra
from poise.data.row_values import RowItem, RowReader
from poise.data.tables import batch_rows, plain_schema, plain_table, table_rows
from poise.errors import InvalidData

__all__ = ["STATE_KEYS", "is_saved", "open_saved", "open_streamed", "saved_files"]

STATE_KEYS = ("_data_files", "_fingerprint")
"""Keys of the ``state.json`` that ``save_to_disk`` writes."""


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or _saved_state(folder) is not None


def saved_files(folder: Path) -> tuple[str, ...]:
    """Names of the files that make up a saved data set; none where the folder is no such set."""
    files = (_saved_state(folder) or {}).get("_data_files") or ()
    return tuple(str(file.get("filename")) for file in files if isinstance(file, dict))


def _saved_state(folder: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and set(STATE_KEYS) & set(state) else None


def open_saved(folder: Path, split: str | None) -> tuple[tuple[Path, ...], RowReader, Any]:
    """The files, the reader and the Arrow schema of a folder that ``save_to_disk`` wrote.

    Raises:
        InvalidData: it cannot be loaded, or which of its splits is not said.
        MissingExtra: the library is not installed.
    """
    library = import_extra("datasets", f"Reading {folder}")
    try:
        loaded = library.load_from_disk(str(folder))
    except Exception as error:
        raise InvalidData(f"{folder} cannot be read as a saved data set: {_error_summary(error)}") from error
    data = _split(loaded, str(folder), split)
    paths = tuple(Path(file["filename"]) for file in data.cache_files)
    return paths, partial(_saved_rows, data), plain_schema(data.features.arrow_schema)


def open_streamed(name: str, split: str | None) -> RowReader:
    """The reader of a data set on the hub, ``org/name`` or ``org/name/configuration``; nothing is kept on disk.

    Raises:
        InvalidData: the hub cannot be reached or has no such set, or which of its splits is not said.
        MissingExtra: the library is not installed.
    """
    library = import_extra("datasets", f"There is no file or folder {name}, and reading it from the hub")
    organisation, title, *configuration = name.split("/")
    try:
        loaded = library.load_dataset(f"{organisation}/{title}", *configuration, streaming=True)
    except Exception as error:
        raise InvalidData(
            f"There is no file or folder {name}, and the hub gives no data set of that name: {_error_summary(error)}"
        ) from error
    return partial(_streamed_rows, _split(loaded, name, split), name)


def _split(loaded: Any, name: str, split: str | None) -> Any:
    """One split: the one that is asked for, or the only one."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise InvalidData(f"{name} has no splits; leave :{split} out.")
        return loaded
    names = sorted(loaded)
    if split is None and len(names) == 1:
        return loaded[names[0]]
    if split not in loaded:
        missing = f"{name} has no split {split}" if split else f"{name} has {len(names)} splits"
        raise InvalidData(f"{missing}; say which, as in {name}:{names[0]}, of {', '.join(names)}.")
    return loaded[split]


def _saved_rows(data: Any, skip: int) -> Generator[RowItem, None, int]:
    size = batch_rows(data.data.nbytes, len(data))
    yield from table_rows(map(plain_table, data.with_format("arrow").iter(batch_size=size)), 0, skip)
    return len(data)


def _streamed_rows(data: Any, name: str, skip: int) -> Generator[RowItem, None, int]:
    """Rows as they arrive; a connection that fails is not a broken row, it ends the run."""
    count, rows = 0, iter(data)
    while True:
        try:
            value = next(rows, None)
        except Exception as error:
            raise InvalidData(
                f"{name} broke off after row {count - 1}: {_error_summary(error)} Run the same command again."
            ) from error
        if value is None:
            return count
        if count >= skip:
            yield count, None, value
        count += 1


def _error_summary(error: Exception) -> str:
    """The first line of what the library says."""
    line = (str(error) or type(error).__name__).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."
