"""``PersonaVector``, the value: a direction a layer, with everything needed to use it rightly.

Layer i is the output of decoder block i, counted from 0. Directions are un-normalised differences of
means in residual-stream units: ``α = 1`` adds one mean difference. Projections use unit directions.
Files of other tools are written in ``export`` and read in ``importing``.
"""

from poise.vector.calibration import Alarm, Drift
from poise.vector.detector import Detector, DetectorFacts
from poise.vector.header import Header, ModelId
from poise.vector.persona_vector import PersonaVector
from poise.vector.placement import LayerDirection, Purpose
from poise.vector.vector_file import load_vector, save_vector

__all__ = [
    "Alarm",
    "Detector",
    "DetectorFacts",
    "Drift",
    "Header",
    "LayerDirection",
    "ModelId",
    "PersonaVector",
    "Purpose",
    "load_vector",
    "save_vector",
]
