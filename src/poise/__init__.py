"""Watch, steer and vaccinate the character of open-weight language models with persona vectors.

The names below are imported when they are first used, so that ``import poise`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poise.contrast import ContrastSet
    from poise.engine import SamplingParams
    from poise.engine.static import LocalEngine
    from poise.model import Model
    from poise.model import load as load_model
    from poise.steer import Steering, apply_steering
    from poise.train.monitor_callback import PersonaMonitorCallback
    from poise.train.vaccine_callback import VaccineCallback
    from poise.trait import Trait
    from poise.trait.library import load as load_trait
    from poise.validate import Certificate
    from poise.vector import PersonaVector
    from poise.vector import load as load_vector
    from poise.vector import save as save_vector
    from poise.workflows import Budget, extract_vector, validate_vector

    __version__: str

__all__ = [
    "Budget",
    "Certificate",
    "ContrastSet",
    "LocalEngine",
    "Model",
    "PersonaMonitorCallback",
    "PersonaVector",
    "SamplingParams",
    "Steering",
    "Trait",
    "VaccineCallback",
    "__version__",
    "apply_steering",
    "extract_vector",
    "load_model",
    "load_trait",
    "load_vector",
    "save_vector",
    "validate_vector",
]

# A name must not be that of a room: importing the room would replace it.
_HOMES = {
    "Budget": "workflows",
    "Certificate": "validate",
    "ContrastSet": "contrast",
    "LocalEngine": "engine.static",
    "Model": "model",
    "PersonaMonitorCallback": "train.monitor_callback",
    "PersonaVector": "vector",
    "SamplingParams": "engine",
    "Steering": "steer",
    "Trait": "trait",
    "VaccineCallback": "train.vaccine_callback",
    "apply_steering": "steer",
    "extract_vector": "workflows",
    "load_model": "model:load",
    "load_trait": "trait.library:load",
    "load_vector": "vector:load",
    "save_vector": "vector:save",
    "validate_vector": "workflows",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("poise")
    if name not in _HOMES:
        raise AttributeError(f"module 'poise' has no attribute {name!r}")
    room, _, called = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"poise.{room}"), called or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
