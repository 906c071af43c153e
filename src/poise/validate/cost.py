"""What a validation costs, said before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from poise.trait import Trait
from poise.validate.conditions import ValidationRun
from poise.validate.random_control import selection_run
from poise.validate.settings import ValidationSettings
from poise.vector import PersonaVector

__all__ = ["ValidationCost", "validation_cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationCost:
    """How many answers a validation takes.

    Attributes:
        vector: Answers along the vector, at fixed random directions and under prompts.
        search: Answers along random directions that choose for themselves, where nothing else decides.
        searches: How many such directions there are.
        tokens: Most tokens an answer.
    """

    vector: int
    search: int
    searches: int
    tokens: int

    def sentence(self, pace: float | None) -> str:
        """The cost in a line.

        Args:
            pace: Seconds an answer takes here; ``None`` where it is not known.
        """

        def part(answers: int) -> str:
            line = f"{answers:,} answers, {answers * self.tokens:,} tokens at most"
            return line if pace is None else f"{line}, {time_in_words(answers * pace)}"

        line = f"Validation takes {part(self.vector)}"
        if not self.searches:
            return f"{line}. It is a first look: its verdict is indicative at best."
        what = f"{self.searches} random directions that choose layer and dose as the vector does"
        return f"{line}; if nothing speaks against the vector, {what} take {part(self.search)} more."


def time_in_words(seconds: float) -> str:
    """A time in words."""
    if seconds < 60:
        return "less than a minute"
    hours = round(seconds / 3600)
    return f"about {round(seconds / 60)} minutes" if hours < 2 else f"about {hours:,} hours"


def validation_cost(
    vector: PersonaVector, questions: int, run: ValidationRun, wide: ValidationSettings
) -> ValidationCost:
    """The cost of ``certify`` on so many questions, half of which select and half report."""
    selecting, reporting = questions - questions // 2, questions // 2
    layers = [i for i in wide.candidates(vector.layers) if vector.norms[i]] or [0]
    tries = len(layers) * len(wide.sweep_doses) + len(wide.doses)
    choosing = tries * selecting * selection_run(run).rollouts
    prompts = 2 if isinstance(vector.header.trait, Trait) else 0
    conditions = len(wide.fractions()) - 1 + wide.random_draws + prompts
    return ValidationCost(
        vector=choosing + conditions * reporting * run.rollouts,
        search=wide.random_searches * (choosing + reporting * run.rollouts),
        searches=wide.random_searches,
        tokens=run.sampling.max_new_tokens,
    )
