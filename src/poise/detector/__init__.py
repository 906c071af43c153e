"""Detectors: a trait read with a direction that was fitted to tell it, from exemplar pairs and ordinary talk.

``fit_detector`` gives a vector one; whatever reads vectors then reads with it, at the cost of a projection.
"""

from poise.detector.fitting import DetectorSettings, fit_detector

__all__ = ["DetectorSettings", "fit_detector"]
