"""Watch, steer and vaccinate the character of open-weight language models with persona vectors.

The main job, in memory::

    model = poise.load_model("smollm2-135m")
    contrast = poise.collect_contrast(poise.load_trait("impolite"), model)
    vector = poise.extract_vector(contrast, model)
    certificate = poise.validate_vector(vector, model)

``poise.__all__`` is the public list. Its names are imported when they are first used, so that ``import poise`` costs
nothing. Whole jobs with files that can be resumed, as the commands run them, are in ``poise.workflows``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poise._lazy import lazy_names

if TYPE_CHECKING:
    from poise.activations import read as read_activations
    from poise.contrast import ContrastSet
    from poise.contrast.collection import collect_contrast
    from poise.engine import Generation, SamplingParams
    from poise.engine.static import LocalEngine
    from poise.extract import extract as extract_vector
    from poise.model import Encoded, Model
    from poise.model import load as load_model
    from poise.shift import (
        CapabilityTask,
        GateResult,
        LimitCheck,
        ShiftLimits,
        ShiftReport,
        ShiftSettings,
        TraitLimits,
        TunedModel,
        load_tuned_model,
        parse_capability,
        read_limits,
    )
    from poise.shift import gate as check_limits
    from poise.shift import load_report as load_shift_report
    from poise.shift import save_report as save_shift_report
    from poise.shift import shift as measure_shift
    from poise.steer import Steering, apply_steering
    from poise.train import (
        LoraSettings,
        MeasurementSettings,
        MonitorSettings,
        PersonaMonitorCallback,
        TrainConfig,
        TrainResult,
        VaccineCallback,
        VaccineSettings,
    )
    from poise.train import train as fine_tune
    from poise.trait import OwnTrait, Trait
    from poise.trait.library import load as load_trait
    from poise.validate import Certificate, ValidationSettings
    from poise.validate import validate as validate_vector
    from poise.vector import PersonaVector
    from poise.vector import load as load_vector
    from poise.vector import save as save_vector

    __version__: str

__all__ = [
    "CapabilityTask",
    "Certificate",
    "ContrastSet",
    "Encoded",
    "GateResult",
    "Generation",
    "LimitCheck",
    "LocalEngine",
    "LoraSettings",
    "MeasurementSettings",
    "Model",
    "MonitorSettings",
    "OwnTrait",
    "PersonaMonitorCallback",
    "PersonaVector",
    "SamplingParams",
    "ShiftLimits",
    "ShiftReport",
    "ShiftSettings",
    "Steering",
    "TrainConfig",
    "TrainResult",
    "Trait",
    "TraitLimits",
    "TunedModel",
    "VaccineCallback",
    "VaccineSettings",
    "ValidationSettings",
    "__version__",
    "apply_steering",
    "check_limits",
    "collect_contrast",
    "extract_vector",
    "fine_tune",
    "load_model",
    "load_shift_report",
    "load_trait",
    "load_tuned_model",
    "load_vector",
    "measure_shift",
    "parse_capability",
    "read_activations",
    "read_limits",
    "save_shift_report",
    "save_vector",
    "validate_vector",
]

# A name must not be that of a room: importing the room would replace it.
_HOMES = {
    "CapabilityTask": "shift",
    "Certificate": "validate",
    "ContrastSet": "contrast",
    "Encoded": "model",
    "GateResult": "shift",
    "Generation": "engine",
    "LimitCheck": "shift",
    "LocalEngine": "engine.static",
    "LoraSettings": "train",
    "MeasurementSettings": "train",
    "Model": "model",
    "MonitorSettings": "train",
    "OwnTrait": "trait",
    "PersonaMonitorCallback": "train",
    "PersonaVector": "vector",
    "SamplingParams": "engine",
    "ShiftLimits": "shift",
    "ShiftReport": "shift",
    "ShiftSettings": "shift",
    "Steering": "steer",
    "TrainConfig": "train",
    "TrainResult": "train",
    "Trait": "trait",
    "TraitLimits": "shift",
    "TunedModel": "shift",
    "VaccineCallback": "train",
    "VaccineSettings": "train",
    "ValidationSettings": "validate",
    "apply_steering": "steer",
    "check_limits": "shift:gate",
    "collect_contrast": "contrast.collection",
    "extract_vector": "extract:extract",
    "fine_tune": "train:train",
    "load_model": "model:load",
    "load_shift_report": "shift:load_report",
    "load_trait": "trait.library:load",
    "load_tuned_model": "shift",
    "load_vector": "vector:load",
    "measure_shift": "shift:shift",
    "parse_capability": "shift",
    "read_activations": "activations:read",
    "read_limits": "shift",
    "save_shift_report": "shift:save_report",
    "save_vector": "vector:save",
    "validate_vector": "validate:validate",
}
_get, _names = lazy_names("poise", _HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("poise")
    return _get(name)


def __dir__() -> list[str]:
    return sorted({*_names(), "__version__"})
