"""Folders that hold an adapter: of which base it is, whether its kind can be read, and the base under it."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from poise.errors import BrokenModelFile, MissingExtra, first_line
from poise.model.adapter_check import check_adapter_config
from poise.progress import remark
from poise.storage.output import same_file

__all__ = ["ADAPTER_FILE", "adapter_config", "load_adapter", "named_base", "remark_on_base"]

ADAPTER_FILE = "adapter_config.json"


def adapter_config(source: str, name: str) -> Any | None:
    """The settings of the adapter that a folder holds, alone or beside its base; ``None`` where it holds none.

    Raises:
        BrokenModelFile: they cannot be read.
        UnsuitableModel: an adapter of a kind that cannot be read.
        MissingExtra: peft is not installed.
    """
    if not (Path(source) / ADAPTER_FILE).is_file():
        return None
    peft = _import_peft(source)
    try:
        config = peft.PeftConfig.from_pretrained(source)
    except Exception as error:  # PEFT and the parsers below it share no base class
        raise BrokenModelFile(
            f"The adapter in {source} cannot be read ({first_line(error)}); fetch or save it again."
        ) from error
    check_adapter_config(config, name, alone=(Path(source) / "config.json").is_file())
    return config


def named_base(source: str) -> str | None:
    """The base that the adapter in a folder says it is of; ``None`` where there is no adapter, or it does not say."""
    config = adapter_config(source, source)
    return (config.base_model_name_or_path or None) if config else None


def remark_on_base(source: str, base: str, hub_id: str) -> None:
    """Say where an adapter is put on another base than the one that it says it is of.

    Args:
        source: The adapter's folder.
        base: The base that it is put on, as it was named.
        hub_id: What the same base is called on a hub.
    """
    trained_on = named_base(source)
    if trained_on and not any(_may_be_one_model(trained_on, name) for name in (base, hub_id)):
        remark(
            f"The adapter in {source} says that it is of {trained_on}, and it is put on {base}. If these are not the "
            "same weights, it does something else here than what it was trained for."
        )


def _may_be_one_model(first: str, second: str) -> bool:
    """Whether two names may be of one model: two folders that are both here are what they are, else names decide."""
    paths = [Path(name).expanduser() for name in (first, second)]
    if first == second or same_file(*paths):
        return True
    return not all(path.exists() for path in paths) and _last_name(first) == _last_name(second)


def _last_name(name: str) -> str:
    """A model's own name, without its owner or the folders above it; of a hub's cache, the model's on the hub."""
    cached = re.search(r"models--(?:[^/\\]+--)?([^/\\]+)", name)
    return (cached[1] if cached else re.split(r"[/\\]", name.rstrip("/\\"))[-1]).casefold()


def _import_peft(source: str) -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise MissingExtra.of(f"{source} is a PEFT adapter, which needs peft", "train") from error
    return peft


def load_adapter(lm: Any, source: str, *, base: str = "") -> Any:
    """A base model under the adapter of a folder: the only loader of adapters.

    Args:
        lm: The base.
        source: The adapter's folder.
        base: Name of the base, where it is not the one that the adapter names.

    Raises:
        BrokenModelFile: the adapter does not fit the base, lacks some of its weights, or has some for modules that the
            base does not have.
        MissingExtra: peft is not installed.
    """
    peft = _import_peft(source)
    place = "" if base else f" as `base_model_name_or_path` in its {ADAPTER_FILE}"
    remedy = f"name the base that it was trained on{place}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' about one another; missing weights are checked below
            adapted = peft.PeftModel.from_pretrained(lm, source)
            result = adapted.load_adapter(source, adapter_name="default")
    except Exception as error:  # PEFT, torch and safetensors share no base class
        raise BrokenModelFile(
            f"The adapter in {source} does not fit {base or 'its base'} ({first_line(error)[:200]}); {remedy}."
        ) from error
    missing = [key for key in getattr(result, "missing_keys", ()) if ".default." in key and ".ranknum." not in key]
    extra = list(getattr(result, "unexpected_keys", ()))
    if faults := [*missing, *extra]:
        raise BrokenModelFile(
            f"The adapter in {source} {'lacks' if missing else 'holds'} {faults[0]} (and {len(faults) - 1} more), "
            f"unlike its configuration and {base or 'base'}; {remedy}, or fetch or save it again."
        )
    return adapted
