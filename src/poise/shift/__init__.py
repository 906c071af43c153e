"""Say what fine-tuning did, and hold it against limits.

evaluation   one model, base or tuned: its readings, judged answers and capability
capability   perplexity, local question sets, lm-eval's tasks
contexts     what may stand around a question
context_search, recurring_text   training data to the contexts that recur in them
comparison   two evaluations to one comparison
worst_context   the worst context beside the mean of all
extracted_again   directions extracted again on the tuned model
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
    from poise.shift.context_search import ContextSearch, find_contexts
    from poise.shift.contexts import ContextTurn, PromptContext, parse_contexts
    from poise.shift.evaluation import load_tuned_model
    from poise.shift.limits import (
        ContextLimits,
        GateResult,
        LimitCheck,
        ShiftLimits,
        TraitLimits,
        gate,
        gate_predictions,
        read_limits,
    )
    from poise.shift.measure import ShiftSettings, TunedModel, finetuning_shift, read_predictions, shift
    from poise.shift.model_card import ModelCardFacts, write_card
    from poise.shift.report import ShiftReport, load_report, save_report

__all__ = [
    "CapabilityTask",
    "ContextLimits",
    "ContextSearch",
    "ContextTurn",
    "GateResult",
    "LimitCheck",
    "ModelCardFacts",
    "PromptContext",
    "ShiftLimits",
    "ShiftReport",
    "ShiftSettings",
    "TraitLimits",
    "TunedModel",
    "find_contexts",
    "finetuning_shift",
    "gate",
    "gate_predictions",
    "load_report",
    "load_tuned_model",
    "parse_capability",
    "parse_contexts",
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
        "ContextLimits": "shift.limits",
        "ContextSearch": "shift.context_search",
        "ContextTurn": "shift.contexts",
        "GateResult": "shift.limits",
        "LimitCheck": "shift.limits",
        "ModelCardFacts": "shift.model_card",
        "PromptContext": "shift.contexts",
        "ShiftLimits": "shift.limits",
        "ShiftReport": "shift.report",
        "ShiftSettings": "shift.measure",
        "TraitLimits": "shift.limits",
        "TunedModel": "shift.measure",
        "find_contexts": "shift.context_search",
        "finetuning_shift": "shift.measure",
        "gate": "shift.limits",
        "gate_predictions": "shift.limits",
        "load_report": "shift.report",
        "load_tuned_model": "shift.evaluation",
        "parse_capability": "shift.capability",
        "parse_contexts": "shift.contexts",
        "read_limits": "shift.limits",
        "read_predictions": "shift.measure",
        "save_report": "shift.report",
        "shift": "shift.measure",
        "write_card": "shift.model_card",
    },
)
