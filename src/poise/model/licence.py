"""Under which licence a model was published, as far as its own files or its page on the hub say."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from poise.errors import BrokenYAML
from poise.model.bundled import BUNDLED, HUB_TIMEOUT, bundled_file
from poise.settings import parse_yaml

__all__ = ["model_licence"]


def model_licence(name: str) -> str:
    """The licence as the hub writes it, e.g. ``apache-2.0``; empty where nothing says so.

    Args:
        name: A bundled name, a folder, a GGUF file or a hub id; the hub is asked once, unless the
            card was fetched too.
    """
    path = bundled_file(name) if name in BUNDLED else Path(name).expanduser()
    if path.is_file():
        return _licence_of_gguf(path)
    if path.is_dir():
        return _licence_of_folder(path)
    return _licence_on_hub(name)


def _licence_of_gguf(path: Path) -> str:
    from gguf import GGUFReader

    with contextlib.suppress(Exception):  # numpy and the reader raise on whatever comes first
        field = GGUFReader(path).fields.get("general.license")
        return bytes(field.parts[field.data[0]]).decode() if field else ""
    return ""


def _licence_of_folder(folder: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError, BrokenYAML):
        if licence := _licence_of_card((folder / "README.md").read_text("utf-8")):
            return licence
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        return _licence_text(config.get("license")) if isinstance(config, dict) else ""
    return ""


def _licence_of_card(text: str) -> str:
    """The licence in the metadata that a model card begins with."""
    if not text.startswith("---\n"):
        return ""
    metadata = parse_yaml(text.split("---\n", 2)[1]).values
    return _licence_text(metadata.get("license")) if isinstance(metadata, dict) else ""


def _licence_on_hub(name: str) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache

    with contextlib.suppress(Exception):  # the hub's client and its transport share no base class
        cached = try_to_load_from_cache(name, "README.md")
        if isinstance(cached, str):
            return _licence_of_card(Path(cached).read_text("utf-8"))
        card = HfApi().model_info(name, timeout=HUB_TIMEOUT).card_data
        return _licence_text(card.get("license")) if card else ""
    return ""


def _licence_text(licence: Any) -> str:
    return licence if isinstance(licence, str) else ""
