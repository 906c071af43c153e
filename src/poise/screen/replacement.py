"""Flagged answers replaced by the model's own y′."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from poise.counting import counted
from poise.data import Conversation, DataSet, turns
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, answer_spans
from poise.progress import track
from poise.screen.base_answers import BaseAnswers
from poise.screen.output import iterate_flagged_rows
from poise.screen.scores import AnswerScores

__all__ = ["AnswerReplacer"]

PROMPTS_AT_ONCE = 512


class AnswerReplacer:
    """Gives the model's own answers to flagged turns, each to the history that the data has.

    Args:
        model: The base model.
        answers: Store of the model's answers.

    Attributes:
        replaced: Answers given so far.
        cut: How many of these are as long as answers may be, and probably unfinished.
        without: Rows for which there is no answer: no room for one, or the model says nothing.
    """

    def __init__(self, model: Model, answers: BaseAnswers) -> None:
        self.model, self.answers = model, answers
        self.replaced = self.cut = self.without = 0

    def generate_replacements(self, data: DataSet, scores: AnswerScores, flagged: NDArray[np.bool_]) -> None:
        """Have the model answer wherever something is flagged, many prompts together.

        Args:
            data: The data set that was scored.
            scores: The scores of its answers.
            flagged: Bool [m].
        """
        waiting: list[Encoded] = []
        with track("Answering flagged prompts", total=int(flagged.sum())) as advance:

            def answer() -> None:
                self.answers.generate(waiting)
                advance(len(waiting))
                waiting.clear()

            for row, first, last in iterate_flagged_rows(data, scores, flagged):
                wanted = [int(scores.turn[i]) for i in range(first, last) if flagged[i]]
                waiting += [prompt for prompt in self._prompts(row, wanted) if prompt]
                if len(waiting) >= PROMPTS_AT_ONCE:
                    answer()
            answer()

    def __call__(self, row: Conversation, wanted: Sequence[int]) -> dict[int, str] | None:
        """Texts by turn; ``None`` where a turn has none."""
        prompts = [prompt for prompt in self._prompts(row, wanted) if prompt]
        generated = self.answers.generate(prompts)
        texts = [self.answers.decode(one) for one in generated]
        if len(prompts) < len(wanted) or not all(text.strip() for text in texts):
            self.without += 1
            return None
        self.replaced += len(texts)
        self.cut += sum(self.answers.is_cut(one) for one in generated)
        return dict(zip(wanted, texts, strict=True))

    def note(self, name: str, unfixed: int) -> str:
        """What became of the rows, in a sentence.

        Args:
            name: Name of the file of fixed rows.
            unfixed: Rows that could not be written with an answer that there is.
        """
        sentence = f"{name}: {counted(self.replaced, 'flagged answer')} {'is' if self.replaced == 1 else 'are'} "
        sentence += "the model's own"
        sentence += f", {self.cut:,} of them cut at {self.answers.sampling.max_new_tokens} tokens" if self.cut else ""
        sentence += f"; {_left_out(self.without)}, having none" if self.without else ""
        return sentence + (f"; {_left_out(unfixed)}, unable to hold a new answer" if unfixed else "")

    def _prompts(self, row: Conversation, wanted: Sequence[int]) -> list[Encoded | None]:
        if not wanted:
            return []
        answers = turns(row)
        located = {a.number: (a, place) for a, place in zip(answers, answer_spans(self.model, answers), strict=True)}
        chosen = [located[number] for number in wanted]
        return [self.answers.prompt_for(turn, place) for turn, place in chosen if isinstance(place, AnswerSpan)]


def _left_out(rows: int) -> str:
    return f"{counted(rows, 'row')} {'is' if rows == 1 else 'are'} left out"
