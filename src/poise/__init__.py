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
    from poise.data import Conversation, DataSet, PreferenceData, open_data, open_preferences
    from poise.detector import DetectorSettings, fit_detector
    from poise.engine import Engine, Generation, SamplingParams
    from poise.engine.static import LocalEngine
    from poise.extract import extract as extract_vector
    from poise.model import Encoded, Message, Model, ask, load_model
    from poise.model import wrap as wrap_model
    from poise.model.preview import AnswerPreview, DataPreview, show_rows
    from poise.monitor import AnswerReadings
    from poise.monitor.calibrate import Calibration, CalibrationSettings, calibrate_alarms
    from poise.monitor.scoring import ScoredTurn, read_rows
    from poise.monitor.token_readings import TokenReadings, read_answer_tokens
    from poise.screen import ScoredAnswer, ScoredPair, ScoredRow, screen_preferences, screen_rows
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
    from poise.steer import Steering, SteeringExpression, apply_steering
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
    from poise.trait import ExemplarPair, OwnTrait, Trait
    from poise.trait.library import load_trait
    from poise.validate import Certificate, ValidationSettings
    from poise.validate import validate as validate_vector
    from poise.vector import Detector, PersonaVector, load_vector, save_vector

    __version__: str

__all__ = [
    "AnswerPreview",
    "AnswerReadings",
    "Calibration",
    "CalibrationSettings",
    "CapabilityTask",
    "Certificate",
    "ContrastSet",
    "Conversation",
    "DataPreview",
    "DataSet",
    "Detector",
    "DetectorSettings",
    "Encoded",
    "Engine",
    "ExemplarPair",
    "GateResult",
    "Generation",
    "LimitCheck",
    "LocalEngine",
    "LoraSettings",
    "MeasurementSettings",
    "Message",
    "Model",
    "MonitorSettings",
    "OwnTrait",
    "PersonaMonitorCallback",
    "PersonaVector",
    "PreferenceData",
    "SamplingParams",
    "ScoredAnswer",
    "ScoredPair",
    "ScoredRow",
    "ScoredTurn",
    "ShiftLimits",
    "ShiftReport",
    "ShiftSettings",
    "Steering",
    "SteeringExpression",
    "TokenReadings",
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
    "ask",
    "calibrate_alarms",
    "check_limits",
    "collect_contrast",
    "extract_vector",
    "fine_tune",
    "fit_detector",
    "load_model",
    "load_shift_report",
    "load_trait",
    "load_tuned_model",
    "load_vector",
    "measure_shift",
    "open_data",
    "open_preferences",
    "parse_capability",
    "read_activations",
    "read_answer_tokens",
    "read_limits",
    "read_rows",
    "save_shift_report",
    "save_vector",
    "screen_preferences",
    "screen_rows",
    "show_rows",
    "validate_vector",
    "wrap_model",
]

# A name must not be that of a room: importing the room would replace it.
_HOMES = {
    "AnswerPreview": "model.preview",
    "AnswerReadings": "monitor",
    "Calibration": "monitor.calibrate",
    "CalibrationSettings": "monitor.calibrate",
    "CapabilityTask": "shift",
    "Certificate": "validate",
    "ContrastSet": "contrast",
    "Conversation": "data",
    "DataPreview": "model.preview",
    "DataSet": "data",
    "Detector": "vector",
    "DetectorSettings": "detector",
    "Encoded": "model",
    "Engine": "engine",
    "ExemplarPair": "trait",
    "GateResult": "shift",
    "Generation": "engine",
    "LimitCheck": "shift",
    "LocalEngine": "engine.static",
    "LoraSettings": "train",
    "MeasurementSettings": "train",
    "Message": "model",
    "Model": "model",
    "MonitorSettings": "train",
    "OwnTrait": "trait",
    "PersonaMonitorCallback": "train",
    "PersonaVector": "vector",
    "PreferenceData": "data",
    "SamplingParams": "engine",
    "ScoredAnswer": "screen",
    "ScoredPair": "screen",
    "ScoredRow": "screen",
    "ScoredTurn": "monitor.scoring",
    "ShiftLimits": "shift",
    "ShiftReport": "shift",
    "ShiftSettings": "shift",
    "Steering": "steer",
    "SteeringExpression": "steer",
    "TokenReadings": "monitor.token_readings",
    "TrainConfig": "train",
    "TrainResult": "train",
    "Trait": "trait",
    "TraitLimits": "shift",
    "TunedModel": "shift",
    "VaccineCallback": "train",
    "VaccineSettings": "train",
    "ValidationSettings": "validate",
    "apply_steering": "steer",
    "ask": "model",
    "calibrate_alarms": "monitor.calibrate",
    "check_limits": "shift:gate",
    "collect_contrast": "contrast.collection",
    "extract_vector": "extract:extract",
    "fit_detector": "detector",
    "fine_tune": "train:train",
    "load_model": "model",
    "load_shift_report": "shift:load_report",
    "load_trait": "trait.library",
    "load_tuned_model": "shift",
    "load_vector": "vector",
    "measure_shift": "shift:shift",
    "open_data": "data",
    "open_preferences": "data",
    "parse_capability": "shift",
    "read_activations": "activations:read",
    "read_limits": "shift",
    "read_rows": "monitor.scoring",
    "read_answer_tokens": "monitor.token_readings",
    "save_shift_report": "shift:save_report",
    "save_vector": "vector",
    "screen_preferences": "screen",
    "screen_rows": "screen",
    "show_rows": "model.preview",
    "validate_vector": "validate:validate",
    "wrap_model": "model:wrap",
}
_get, _names = lazy_names("poise", _HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("poise")
    return _get(name)


def __dir__() -> list[str]:
    return sorted({*_names(), "__version__"})
