"""Whole jobs with their files: what each command runs, resumable, for those who would rather call it from Python.

Each adds files, checks before a model is loaded, and locks to a job that the rooms below do in memory.
"""

from poise.workflows.budget import GenerationBudget
from poise.workflows.comparing import compare_arms
from poise.workflows.detectors import fit_vector_detectors
from poise.workflows.extraction import extract_vector, import_vector
from poise.workflows.fine_tuning import FineTuneResult, train_and_measure
from poise.workflows.generation import check_steering, generate, read_steering, steer_by
from poise.workflows.guardrails import fit_guard_file
from poise.workflows.legibility import LegibilityRequest, measure_legibility
from poise.workflows.monitoring import calibrate_vectors, read_data
from poise.workflows.previews import preview_data, preview_training
from poise.workflows.relations import VectorRelation, relate_vectors
from poise.workflows.screening import estimate_screening, screen_files, screen_preference_files
from poise.workflows.shift_measurement import measure_shift_files
from poise.workflows.sources import ModelSource
from poise.workflows.validation import ValidatedVector, validate_vector

__all__ = [
    "FineTuneResult",
    "GenerationBudget",
    "LegibilityRequest",
    "ModelSource",
    "ValidatedVector",
    "VectorRelation",
    "calibrate_vectors",
    "check_steering",
    "compare_arms",
    "estimate_screening",
    "extract_vector",
    "fit_guard_file",
    "fit_vector_detectors",
    "generate",
    "import_vector",
    "measure_legibility",
    "measure_shift_files",
    "preview_data",
    "preview_training",
    "read_data",
    "read_steering",
    "relate_vectors",
    "screen_files",
    "screen_preference_files",
    "steer_by",
    "train_and_measure",
    "validate_vector",
]
