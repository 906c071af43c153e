"""The entry point ``vllm.general_plugins: poise``, which vLLM calls in each of its processes."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.vllm.programs import RequestProgram
    from poise.vllm.vector_folder import VectorFolder

__all__ = ["register"]

FOLDER = "POISE_VECTORS"
_registered = False


def register() -> None:
    """Patch this process, once.

    Without a folder of vectors only requests that ask for steering or readings are refused, and nothing else changes.

    Raises:
        UnsuitableModel: this vLLM lacks a private name that the plugin relies on.
        InvalidVector: the folder cannot be used.
    """
    global _registered
    if _registered:
        return
    from poise.errors import UnsuitableModel
    from poise.vllm.configuration import install_configuration
    from poise.vllm.front import install_front
    from poise.vllm.http import install_http
    from poise.vllm.private_names import TESTED_VERSIONS, missing_names
    from poise.vllm.runner import install_runner
    from poise.vllm.scheduling import install_scheduling

    if missing := missing_names():
        raise UnsuitableModel(
            f"Poise's plugin does not fit this vLLM: {missing[0]}. It is tested with vllm "
            f"{', '.join(TESTED_VERSIONS)}; install that, or leave the plugin out with VLLM_PLUGINS."
        )
    install_front(_check_field, _watched_layers)
    install_http()
    if os.environ.get(FOLDER):
        digest = _folder().digest
        install_configuration(lambda: digest)
        install_scheduling(_phase_keys)
        install_runner(_program, _check_served_model)
    _registered = True


@functools.cache
def _folder() -> VectorFolder:
    from poise.vllm.vector_folder import VectorFolder

    return VectorFolder.read(Path(os.environ[FOLDER]).expanduser())


def _check_field(value: Any, processor: Any) -> str:
    from poise.errors import InvalidSteering
    from poise.vllm.request import canonical_text, read_field
    from poise.vllm.tokens import marks_thoughts

    if not os.environ.get(FOLDER):
        raise InvalidSteering(
            f"This server was started without vectors; start it with {FOLDER} naming the folder that holds them."
        )
    read_field(value, _folder(), thinks=marks_thoughts(processor.tokenizer))
    return canonical_text(value)


def _watched_layers(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    program = _program(text)
    return program.names, tuple(probe.layer for probe in program.probes)


@functools.lru_cache(maxsize=1024)
def _program(text: str) -> RequestProgram:
    from poise.vllm.programs import compile_program
    from poise.vllm.request import read_field

    return compile_program(read_field(text, _folder()), _folder())


def _phase_keys(text: str) -> tuple[str, str]:
    from poise.vllm.request import phase_keys

    return phase_keys(text, _folder().digest)


def _check_served_model(model: Any, blocks: Any) -> None:
    from poise.vllm.model_check import check_served_model

    check_served_model(_folder(), model, blocks)
