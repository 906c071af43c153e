"""How legible solutions are: how often a small verifier tells the right ones of a stronger model from the wrong ones.

After prover–verifier games (Kirchner et al. 2024, arXiv:2407.13692): a model that only grows more accurate may become
harder to check. Measured here, not trained: before and after steering, an adapter or documents.

solutions   problems and solutions, read or written by a prover
verifying   what a verifier says to them
figures     accuracy, AUC and length, with intervals
"""

from poise.legibility.figures import Legibility, LegibilityFigures, SolutionLengths, summarise_legibility
from poise.legibility.solutions import (
    Problem,
    ProverCondition,
    Solution,
    read_problems,
    read_solutions,
    write_solutions,
)
from poise.legibility.verifying import verify_solutions

__all__ = [
    "Legibility",
    "LegibilityFigures",
    "Problem",
    "ProverCondition",
    "Solution",
    "SolutionLengths",
    "read_problems",
    "read_solutions",
    "summarise_legibility",
    "verify_solutions",
    "write_solutions",
]
