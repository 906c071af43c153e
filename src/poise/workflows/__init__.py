"""Whole jobs in one call: what a command runs, for those who would rather call it from Python.

Each recipe strings rooms together and holds no logic of its own.
"""

from poise.workflows.fine_tuning import FineTuneResult, train_and_measure
from poise.workflows.shift_measurement import measure_shift_files
from poise.workflows.vectors import (
    Budget,
    Validated,
    calibrate_vectors,
    estimate_screening,
    extract_vector,
    generate,
    import_vector,
    read_data,
    screen_files,
    steer_by,
    validate_vector,
)

__all__ = [
    "Budget",
    "FineTuneResult",
    "Validated",
    "calibrate_vectors",
    "estimate_screening",
    "extract_vector",
    "generate",
    "import_vector",
    "measure_shift_files",
    "read_data",
    "screen_files",
    "steer_by",
    "train_and_measure",
    "validate_vector",
]
