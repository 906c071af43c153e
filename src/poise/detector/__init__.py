"""Detectors: a trait read with a direction that was fitted to tell it, from exemplar pairs and ordinary talk.

``fit_detector`` gives a vector one; whatever reads vectors then reads with it, at the cost of a projection.
``measure_reach`` tells whether data lie where the answers lay that it was fitted on.
"""

from poise.detector.fitting import DetectorSettings, fit_detector
from poise.detector.reach import DetectorReach, measure_reach

__all__ = ["DetectorReach", "DetectorSettings", "fit_detector", "measure_reach"]
