"""Steering is data (``terms``, ``spec``), done by small functions (``operators``), in one place (``apply``).

Add (Chen et al. 2025, section 3.2): h ← h + α·v, at one layer, at several, or as increments v_ℓ − v_{ℓ−1} at all of
them (section 5.2). Project out, clamp and cap work along the unit direction. Each may be limited to a phase, to some
tokens, or to what a probe says, and every row of a batch may be steered differently.
"""

from poise.steer.apply import AppliedSteering, apply_steering
from poise.steer.expression import SteeringExpression
from poise.steer.limits import cautions
from poise.steer.operators import Operation
from poise.steer.steering import Condition, Phase, Steering, Term
from poise.steer.total_dose import TotalDose, total_dose
from poise.steer.training import steer_training

__all__ = [
    "AppliedSteering",
    "Condition",
    "Operation",
    "Phase",
    "Steering",
    "SteeringExpression",
    "Term",
    "TotalDose",
    "apply_steering",
    "cautions",
    "steer_training",
    "total_dose",
]
