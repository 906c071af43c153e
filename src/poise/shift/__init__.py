"""Say what fine-tuning did, and hold it against limits.

evaluation   one model, base or tuned: its readings, judged answers and capability
capability   perplexity, local question sets, lm-eval's tasks
comparison   two evaluations to one comparison
measure      tuned models beside their base
report       the comparison as a value
limits       limits on it, and whether it keeps them
model_card   a model card of it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise._lazy import lazy_names

if TYPE_CHECKING:
    from poise.shift.capability import CapabilityTask, parse_capability
    from poise.shift.evaluation import load_tuned_model
    from poise.shift.limits import GateResult, LimitCheck, ShiftLimits, TraitLimits, gate, gate_predictions, read_limits
    from poise.shift.measure import ShiftSettings, TunedModel, finetuning_shift, read_predictions, shift
    from poise.shift.model_card import ModelCardFacts, write_card
    from poise.shift.report import ShiftReport, load_report, save_report

__all__ = [
    "CapabilityTask",
    "GateResult",
    "LimitCheck",
    "ModelCardFacts",
    "ShiftLimits",
    "ShiftReport",
    "ShiftSettings",
    "TraitLimits",
    "TunedModel",
    "finetuning_shift",
    "gate",
    "gate_predictions",
    "load_report",
    "load_tuned_model",
    "parse_capability",
    "read_limits",
    "read_predictions",
    "save_report",
    "shift",
    "write_card",
]

__getattr__, __dir__ = lazy_names(
    "poise.shift",
    {
        "CapabilityTask": "shift.capability",
        "GateResult": "shift.limits",
        "LimitCheck": "shift.limits",
        "ModelCardFacts": "shift.model_card",
        "ShiftLimits": "shift.limits",
        "ShiftReport": "shift.report",
        "ShiftSettings": "shift.measure",
        "TraitLimits": "shift.limits",
        "TunedModel": "shift.measure",
        "finetuning_shift": "shift.measure",
        "gate": "shift.limits",
        "gate_predictions": "shift.limits",
        "load_report": "shift.report",
        "load_tuned_model": "shift.evaluation",
        "parse_capability": "shift.capability",
        "read_limits": "shift.limits",
        "read_predictions": "shift.measure",
        "save_report": "shift.report",
        "shift": "shift.measure",
        "write_card": "shift.model_card",
    },
)
