"""Fine-tune without picking a trait up, and watch it while it trains.

config             the settings of ``poise train``
examples           conversations to token ids, with labels on the answers only
vaccine_callback   adds a trait while a model learns
monitor_callback   reads traits while it does
checkpoints        complete or ignored; non-finite steps are not taken
run_folder         what a run began with, and disk errors
lora               LoRA fine-tuning under all of these
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise._lazy import lazy_names

if TYPE_CHECKING:
    from poise.train.config import LoraSettings, MeasurementSettings, MonitorSettings, TrainConfig, VaccineSettings
    from poise.train.lora import TrainResult, train
    from poise.train.monitor_callback import PersonaMonitorCallback
    from poise.train.vaccine_callback import VaccineCallback

__all__ = [
    "LoraSettings",
    "MeasurementSettings",
    "MonitorSettings",
    "PersonaMonitorCallback",
    "TrainConfig",
    "TrainResult",
    "VaccineCallback",
    "VaccineSettings",
    "train",
]

__getattr__, __dir__ = lazy_names(
    "poise.train",
    {
        "LoraSettings": "train.config",
        "MeasurementSettings": "train.config",
        "MonitorSettings": "train.config",
        "PersonaMonitorCallback": "train.monitor_callback",
        "TrainConfig": "train.config",
        "TrainResult": "train.lora",
        "VaccineCallback": "train.vaccine_callback",
        "VaccineSettings": "train.config",
        "train": "train.lora",
    },
)
