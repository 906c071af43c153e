"""Single answers as a report shows them: each token with its projection, the model's own answer, the judge's score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from poise.activations import Probe, project
from poise.data import Conversation, Turn, turns
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, answer_spans
from poise.progress import track
from poise.screen.base_answers import BaseAnswers
from poise.screen.scores import AnswerScores, ascending_scores, score_percentiles
from poise.screen.summary import AnswerExample

__all__ = ["ExampleReader", "LocatedAnswer", "locate_answers", "token_pieces"]

LONGEST_EXAMPLE = 400  # tokens of an answer
BRIGHTEST_TOKENS = 8  # the brightest tokens are shown together
LONGEST_PROMPT = 500  # characters
EXAMPLES_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedAnswer:
    """One answer taken out of the data: its place in it, its row, its turn and its forward pass."""

    at: int
    row: Conversation
    turn: Turn
    place: AnswerSpan

    @property
    def question(self) -> str:
        """What was said last before the answer."""
        return self.turn.history[-1]["content"] if self.turn.history else ""


def locate_answers(
    model: Model, scores: AnswerScores, at: Iterable[int], rows: Mapping[int, Conversation]
) -> dict[int, LocatedAnswer]:
    """Those answers, by place."""
    out = {}
    for i in sorted(set(at)):
        row, number = rows[int(scores.index[i])], int(scores.turn[i])
        answers = turns(row)
        turn, place = next(
            (turn, place)
            for turn, place in zip(answers, answer_spans(model, answers), strict=True)
            if turn.number == number
        )
        assert isinstance(place, AnswerSpan)  # it has a score
        out[i] = LocatedAnswer(at=i, row=row, turn=turn, place=place)
    return out


class ExampleReader:
    """Answers read once more, token by token.

    Args:
        model: The model whose tokens the answers are read in.
        scores: The scores of the answers.
        probes: k of them.
        answers: Gives y′, where the method had them made.
    """

    def __init__(
        self, model: Model, scores: AnswerScores, probes: Sequence[Probe], answers: BaseAnswers | None
    ) -> None:
        self.model, self.scores, self.probes, self.answers = model, scores, probes, answers
        self.ascending = [ascending_scores(column) for column in scores.scores.T]
        self._cases: dict[int, LocatedAnswer] = {}
        self._read: dict[int, torch.Tensor] = {}

    def read(self, shown: Iterable[LocatedAnswer]) -> None:
        """Keep the projections of these answers' tokens, float32 [T, k] each."""
        new = [case for case in shown if case.at not in self._read]
        with track("Reading what is shown", total=len(new)) as advance:
            for first in range(0, len(new), EXAMPLES_AT_ONCE):
                some = new[first : first + EXAMPLES_AT_ONCE]
                texts = [Encoded(case.place.text.ids[: case.place.text.end], 0, case.place.text.end) for case in some]
                for case, values in zip(some, project(self.model, texts, self.probes), strict=True):
                    self._read[case.at] = values[case.place.text.start :]
                    self._cases[case.at] = case
                advance(len(some))

    def show(self, at: int, trait: int, flagged: bool, judged: float | None = None) -> AnswerExample:
        """An answer that was read, by one trait."""
        case = self._cases[at]
        text = case.place.text
        return AnswerExample(
            file=case.row.file,
            row=case.row.row,
            index=case.row.index,
            turn=case.turn.number,
            score=_round_projection(float(self.scores.scores[at, trait])),
            percentile=_round_projection(
                float(score_percentiles(self.scores.scores[at : at + 1, trait], self.ascending[trait])[0])
            ),
            flagged=flagged,
            prompt=case.question if len(case.question) <= LONGEST_PROMPT else "…" + case.question[1 - LONGEST_PROMPT :],
            pieces=token_pieces(self.model, text.ids[text.start : text.end], self._read[at][:, trait].tolist()),
            own=self._own(case),
            judged=judged,
        )

    def _own(self, case: LocatedAnswer) -> str | None:
        prompt = self.answers.prompt_for(case.turn, case.place) if self.answers else None
        return self.answers.decode(self.answers.generate([prompt])[0]) if self.answers and prompt else None


def token_pieces(model: Model, ids: Sequence[int], values: Sequence[float]) -> tuple[tuple[str, float], ...]:
    """Tokens as text with their projections, a long answer cut to the tokens around its brightest eight.

    A character that several tokens make belongs to the last of them, which takes the highest of their projections.
    """
    size = min(BRIGHTEST_TOKENS, len(values))
    brightest = int(np.argmax(np.convolve(values, np.ones(size) / size, mode="valid")))
    first = min(max(0, brightest + size // 2 - LONGEST_EXAMPLE // 2), max(0, len(ids) - LONGEST_EXAMPLE))
    last = min(len(ids), first + LONGEST_EXAMPLE)
    out: list[tuple[str, float]] = []
    shown_text, highest = "", -np.inf
    for i in range(first, last):
        text = str(model.tokenizer.decode(ids[first : i + 1], skip_special_tokens=False))
        highest = max(highest, values[i])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and i + 1 < last:
            continue
        out.append((text[len(shown_text) :], _round_projection(highest)))
        shown_text, highest = text, -np.inf
    if first:
        out[0] = ("…" + out[0][0], out[0][1])
    if last < len(ids):
        out[-1] = (out[-1][0] + "…", out[-1][1])
    return tuple(out)


def _round_projection(value: float) -> float:
    return float(f"{value:.5g}")
