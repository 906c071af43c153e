"""How wide validation looks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from poise.arguments import check_number, check_type
from poise.errors import InvalidArgument

__all__ = ["ValidationSettings", "check_question_count"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSettings:
    """How many layers and doses validation tries. Doses are ``α‖v‖ / mean‖h‖``.

    Attributes:
        layers: Number of layers that are tried.
        depth: First and last of them, as shares of the model's depth.
        sweep_doses: Doses at which the layers are compared.
        doses: Further doses that are tried at the best layer.
        curve: Points of the dose curve, as shares of the chosen dose.
        random_draws: Number of random directions that are tried at the vector's own layer and dose.
        random_searches: Number of random directions that choose layer and dose as the vector does, where nothing else
            speaks against it; with fewer than 39 no verdict is more than indicative, and 0 is a first look.
        coherence_floor: Lowest coherence, from 0 to 100, at which a dose counts as usable.
        selection_margin: How far above the floor coherence must be for a dose to be chosen.
    """

    layers: int = 7
    depth: tuple[float, float] = (0.15, 0.75)
    sweep_doses: tuple[float, ...] = (0.2, 0.35)
    doses: tuple[float, ...] = (0.1, 0.15, 0.25, 0.3, 0.45)
    curve: tuple[float, ...] = (-1.0, -2 / 3, -1 / 3, 1 / 3, 2 / 3, 1.0, 4 / 3, 5 / 3)
    random_draws: int = 3
    random_searches: int = 39
    coherence_floor: float = 50.0
    selection_margin: float = 10.0

    def __post_init__(self) -> None:
        for name in ("layers", "random_draws"):
            check_number(name, getattr(self, name), least=1, most=10_000)
        check_number("random_searches", self.random_searches, least=0, most=10_000)
        for name in ("coherence_floor", "selection_margin"):
            check_number(name, getattr(self, name), least=0, most=100)
        for name, least in (("depth", 0), ("sweep_doses", 1e-6), ("doses", 1e-6), ("curve", -100)):
            values = getattr(self, name)
            check_type(name, values, (tuple, list), "a tuple of numbers")
            for value in values:
                check_number(f"A value of {name}", value, least=least, most=1 if name == "depth" else 100)
        if len(self.depth) != 2 or self.depth[0] > self.depth[1]:
            raise InvalidArgument(f"depth is {self.depth}; give the first and the last share, such as (0.15, 0.75).")
        if not self.sweep_doses or not {-1.0, 1.0} <= set(self.curve):
            raise InvalidArgument("sweep_doses needs at least one dose, and curve the points -1.0 and 1.0.")

    def candidates(self, layers: int) -> list[int]:
        """Layers to try, evenly over the stated depth."""
        first, last = (round(share * layers) for share in self.depth)
        return sorted({round(x) for x in np.linspace(first, min(last, layers - 1), self.layers)})

    def fractions(self) -> list[float]:
        """Strengths of the curve as fractions of the chosen dose, zero included, ascending."""
        return sorted({0.0, 1.0, *self.curve})


def check_question_count(n: int) -> None:
    """Refuse too few questions to select on one half and report on the other.

    Raises:
        InvalidArgument: fewer than 4.
    """
    if n < 4:
        questions = "question is" if n == 1 else "questions are"
        raise InvalidArgument(f"{n} evaluation {questions} too few to select and report on; ask for at least 4.")
