"""Around every piece of work: errors in one sentence, progress on stderr, other libraries quiet, a model loaded."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from poise.cli.options import DtypeName
from poise.errors import InvalidArgument

if TYPE_CHECKING:
    import torch

    from poise.model import Model

__all__ = ["load_model", "note", "torch_dtype", "with_options", "working"]

ALIASES = {"keys": "api_key_file", "vectors": "vector", "above": "threshold", "abilities": "capability"}
"""What the library calls an argument, and the parameter of a command that it comes from."""


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Show progress on stderr; keep stdout for the result, whatever a library prints."""
    from rich.console import Console

    from poise.cli.progress import showing

    _hush()
    with contextlib.redirect_stdout(sys.stderr), showing(Console(stderr=True)):
        yield


def _hush() -> None:
    """Our progress stands for that of transformers, the hub's client and vLLM, and nobody is told that we are used.

    The libraries read this when they are imported.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="vllm")


def note(text: str) -> None:
    """A word to the user that is not a result."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


def load_model(name: str, dtype: DtypeName, device: str) -> Model:
    """The model that a command's options name."""
    from poise.progress import track

    with track(f"Loading {name}"):
        from poise.model import load_model

        return load_model(name, dtype=torch_dtype(dtype), device=None if device == "auto" else _device(device))


def torch_dtype(name: DtypeName) -> torch.dtype | None:
    """The dtype of an option; ``None`` for whatever suits the device."""
    import torch

    kinds = {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32}
    return kinds[name]


def _device(text: str) -> torch.device:
    import torch

    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InvalidArgument(
            f"There is no device {text!r} here ({str(error).splitlines()[0]}); use cpu, cuda, cuda:1, mps or auto."
        ) from error
    return device


def with_options(text: str, ctx: Any) -> str:
    """A message of the library, whose `argument` names are the running command's --options."""
    options: dict[str, str] = {}
    commands = [ctx.command.commands.get(ctx.invoked_subcommand)]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        for parameter in getattr(command, "params", ()):
            options |= dict.fromkeys([parameter.name], next((o for o in parameter.opts if o.startswith("--")), ""))
    options |= {alias: options[name] for alias, name in ALIASES.items() if name in options}
    return re.sub(r"`(\w+)`", lambda match: options.get(match[1]) or match[0], text)
