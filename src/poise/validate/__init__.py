"""Prove that a vector is the trait: layer sweep, dose curve, controls and baselines → ``Certificate``.

Layer and dose are chosen on one half of the evaluation questions; everything reported is measured on
the other half (PAPER's trap: thresholds and layers picked on the data they are reported on).
"""

from poise.validate.dose_curve import Certificate, ValidationRun, ValidationSettings
from poise.validate.validation import validate

__all__ = ["Certificate", "ValidationRun", "ValidationSettings", "validate"]
