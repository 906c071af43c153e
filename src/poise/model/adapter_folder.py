"""Folders that hold an adapter: of which base it is, whether its kind can be read, and the base under it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from poise.errors import BrokenModelFile, first_line
from poise.model.adapter_check import check_adapter_config

__all__ = ["ADAPTER_FILE", "adapter_config", "load_adapter"]

ADAPTER_FILE = "adapter_config.json"


def adapter_config(source: str, name: str) -> Any | None:
    """The settings of the adapter that a folder holds, alone or beside its base; ``None`` where it holds none.

    Raises:
        BrokenModelFile: they cannot be read.
        UnsuitableModel: an adapter of a kind that cannot be read.
    """
    if not (Path(source) / ADAPTER_FILE).is_file():
        return None
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(source)
    except Exception as error:  # PEFT and the parsers below it share no base class
        raise BrokenModelFile(
            f"The adapter in {source} cannot be read ({first_line(error)}); fetch or save it again."
        ) from error
    check_adapter_config(config, name, alone=(Path(source) / "config.json").is_file())
    return config


def load_adapter(lm: Any, source: str) -> Any:
    """A base model under the adapter of a folder.

    Raises:
        BrokenModelFile: the adapter does not fit the base, or lacks some of its weights.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' about one another; missing weights are checked below
            adapted = PeftModel.from_pretrained(lm, source)
            result = adapted.load_adapter(source, adapter_name="default")
    except Exception as error:  # PEFT, torch and safetensors share no base class
        raise BrokenModelFile(
            f"The adapter in {source} does not fit its base ({first_line(error)}); name the base that it was trained "
            f"on as `base_model_name_or_path` in its {ADAPTER_FILE}."
        ) from error
    missing = [key for key in getattr(result, "missing_keys", ()) if ".default." in key and ".ranknum." not in key]
    extra = list(getattr(result, "unexpected_keys", ()))
    if faults := [*missing, *extra]:
        raise BrokenModelFile(
            f"The adapter in {source} {'lacks' if missing else 'holds'} {faults[0]} (and {len(faults) - 1} more), "
            "unlike its configuration and base; fetch or save it again."
        )
    return adapted
