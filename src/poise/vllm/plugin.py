"""The entry point ``vllm.general_plugins: poise``, which vLLM calls in each of its processes."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.vllm.programs import RequestProgram
    from poise.vllm.vector_folder import VectorFolder

__all__ = ["register", "register_for_engine"]

FOLDER = "POISE_VECTORS"
_patched: set[str] = set()


def register() -> None:
    """Patch this process, once.

    Without a folder of vectors only requests that ask for steering or readings are refused, and nothing else changes.

    Raises:
        UnsuitableModel: this vLLM lacks a private name that the plugin relies on.
        InvalidVector: the folder cannot be used.
    """
    _patch_front()
    if os.environ.get(FOLDER):
        _folder()  # what is wrong with it is said at the start
        _patch_engine()


def register_for_engine() -> None:
    """Patch this process for programs that are handed over inside of it, with a folder of vectors or without."""
    _patch_front()
    _patch_engine()


def _patch_front() -> None:
    from poise.errors import UnsuitableModel
    from poise.vllm.front import install_front
    from poise.vllm.http import install_http
    from poise.vllm.private_names import TESTED_VERSIONS, missing_names

    if "front" in _patched:
        return
    if missing := missing_names():
        raise UnsuitableModel(
            f"Poise's plugin does not fit this vLLM: {missing[0]}. It is tested with vllm "
            f"{', '.join(TESTED_VERSIONS)}; install that, or leave the plugin out with VLLM_PLUGINS."
        )
    install_front(_check_field, _watched_layers)
    install_http()
    _patched.add("front")


def _patch_engine() -> None:
    from poise.vllm.configuration import install_configuration
    from poise.vllm.runner import install_runner
    from poise.vllm.scheduling import install_scheduling

    if "engine" in _patched:
        return
    install_configuration()
    install_scheduling(_phase_keys)
    install_runner(_program, _check_served_model)
    _patched.add("engine")


def _folder() -> VectorFolder:
    return _folder_at(os.environ[FOLDER])


@functools.cache
def _folder_at(path: str) -> VectorFolder:
    from poise.vllm.vector_folder import VectorFolder

    return VectorFolder.read(Path(path).expanduser())


def _check_field(value: Any, processor: Any) -> Any:
    from poise.errors import InvalidSteering
    from poise.vllm.programs import RequestProgram
    from poise.vllm.request import canonical_text, read_field
    from poise.vllm.tokens import thoughts_of

    if isinstance(value, RequestProgram):
        return value
    if not os.environ.get(FOLDER):
        raise InvalidSteering(
            f"This server was started without vectors; start it with {FOLDER} naming the folder that holds them."
        )
    read_field(value, _folder(), thoughts=thoughts_of(processor.tokenizer))
    return canonical_text(value)


def _watched_layers(field: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    program = _program(field)
    return program.names, tuple(probe.layer for probe in program.probes)


def _program(field: Any) -> RequestProgram:
    from poise.vllm.programs import RequestProgram

    return field if isinstance(field, RequestProgram) else _program_of_text(field, os.environ[FOLDER])


@functools.lru_cache(maxsize=1024)
def _program_of_text(text: str, path: str) -> RequestProgram:
    from poise.vllm.programs import compile_program
    from poise.vllm.request import read_field

    folder = _folder_at(path)
    request = read_field(text, folder, thoughts="marked")  # what cannot be done has been refused where it came in
    return compile_program(request, folder)


def _phase_keys(field: Any) -> tuple[str, str]:
    from poise.vllm.programs import RequestProgram
    from poise.vllm.request import phase_keys

    return field.phase_keys() if isinstance(field, RequestProgram) else phase_keys(field, _folder().digest)


def _check_served_model(model: Any, blocks: Any) -> None:
    from poise.vllm.model_check import check_served_model

    if os.environ.get(FOLDER):
        check_served_model(_folder(), model, blocks)
