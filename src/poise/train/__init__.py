"""Fine-tune without picking a trait up, and watch it while it trains.

config             the settings of ``poise train``
examples           conversations to token ids, with labels on the answers only
vaccine_callback   adds a trait while a model learns
monitor_callback   reads traits while it does
checkpoints        complete or ignored; non-finite steps are not taken
run_folder         what a run began with, and disk errors
setting_names      what Axolotl and TRL call the settings
setting_checks     what is wrong with settings on this machine, and what is odd
inputs             the data of a run, opened, read and held out
pairs              preference pairs to token ids
trainers           the trainers of TRL that the settings ask for
lora               fine-tuning under all of these
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
