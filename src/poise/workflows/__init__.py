"""Whole jobs in one call: what a command runs, for those who would rather call it from Python.

Each recipe strings rooms together and holds no logic of its own.
"""

from poise.workflows.vectors import (
    Budget,
    Finetuned,
    Validated,
    calibrate_vectors,
    estimate_screening,
    extract_vector,
    finetune,
    generate,
    import_vector,
    read_data,
    screen_files,
    steer_by,
    validate_vector,
)

__all__ = [
    "Budget",
    "Finetuned",
    "Validated",
    "calibrate_vectors",
    "estimate_screening",
    "extract_vector",
    "finetune",
    "generate",
    "import_vector",
    "read_data",
    "screen_files",
    "steer_by",
    "validate_vector",
]
