"""Single answers as a report shows them: each token with its projection, the model's own answer, the judge's score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from poise.activations import Probe, project
from poise.data import Conversation, Turn, turns
from poise.model import Encoded, Model
from poise.model.spans import Place, places
from poise.progress import track
from poise.screen.base_answers import Answers
from poise.screen.scores import Found, percentiles
from poise.screen.summary import Shown

__all__ = ["Case", "Gallery", "cases", "pieces"]

LONGEST = 400  # tokens of an answer
WINDOW = 8  # the brightest tokens are shown together
PROMPT = 500  # characters
ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Case:
    """One answer taken out of the data: its place in it, its row, its turn and its forward pass."""

    at: int
    row: Conversation
    turn: Turn
    place: Place

    @property
    def question(self) -> str:
        """What was said last before the answer."""
        return self.turn.history[-1]["content"] if self.turn.history else ""


def cases(model: Model, found: Found, at: Iterable[int], rows: Mapping[int, Conversation]) -> dict[int, Case]:
    """Those answers, by place."""
    out = {}
    for i in sorted(set(at)):
        row, number = rows[int(found.index[i])], int(found.turn[i])
        answers = turns(row)
        turn, place = next(
            (turn, place) for turn, place in zip(answers, places(model, answers), strict=True) if turn.number == number
        )
        assert isinstance(place, Place)  # it has a score
        out[i] = Case(i, row, turn, place)
    return out


class Gallery:
    """Answers read once more, token by token.

    Args:
        model: Whose tokens.
        found: The scores.
        probes: k of them.
        answers: Gives y′, where the method had them made.
    """

    def __init__(self, model: Model, found: Found, probes: Sequence[Probe], answers: Answers | None) -> None:
        self.model, self.found, self.probes, self.answers = model, found, probes, answers
        self.percentiles = [percentiles(scores) for scores in found.scores.T]
        self._cases: dict[int, Case] = {}
        self._read: dict[int, torch.Tensor] = {}

    def read(self, shown: Iterable[Case]) -> None:
        """Keep the projections of these answers' tokens, float32 [T, k] each."""
        new = [case for case in shown if case.at not in self._read]
        with track("Reading what is shown", total=len(new)) as advance:
            for first in range(0, len(new), ROWS_AT_ONCE):
                some = new[first : first + ROWS_AT_ONCE]
                texts = [Encoded(case.place.text.ids[: case.place.text.end], 0, case.place.text.end) for case in some]
                for case, values in zip(some, project(self.model, texts, self.probes), strict=True):
                    self._read[case.at] = values[case.place.text.start :]
                    self._cases[case.at] = case
                advance(len(some))

    def show(self, at: int, trait: int, flagged: bool, judged: float | None = None) -> Shown:
        """An answer that was read, by one trait."""
        case = self._cases[at]
        text = case.place.text
        return Shown(
            file=case.row.file,
            row=case.row.row,
            index=case.row.index,
            turn=case.turn.number,
            score=_short(float(self.found.scores[at, trait])),
            percentile=_short(float(self.percentiles[trait][at])),
            flagged=flagged,
            prompt=case.question if len(case.question) <= PROMPT else "…" + case.question[1 - PROMPT :],
            pieces=pieces(self.model, text.ids[text.start : text.end], self._read[at][:, trait].tolist()),
            own=self._own(case),
            judged=judged,
        )

    def _own(self, case: Case) -> str | None:
        prompt = self.answers.prompt(case.turn, case.place) if self.answers else None
        return self.answers.text(self.answers.to([prompt])[0]) if self.answers and prompt else None


def pieces(model: Model, ids: Sequence[int], values: Sequence[float]) -> tuple[tuple[str, float], ...]:
    """Tokens as text with their projections, a long answer cut to the tokens around its brightest eight.

    A character that several tokens make belongs to the last of them, which takes the highest of their projections.
    """
    size = min(WINDOW, len(values))
    brightest = int(np.argmax(np.convolve(values, np.ones(size) / size, mode="valid")))
    first = min(max(0, brightest + size // 2 - LONGEST // 2), max(0, len(ids) - LONGEST))
    last = min(len(ids), first + LONGEST)
    out: list[tuple[str, float]] = []
    said, highest = "", -np.inf
    for i in range(first, last):
        text = str(model.tokenizer.decode(ids[first : i + 1], skip_special_tokens=False))
        highest = max(highest, values[i])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and i + 1 < last:
            continue
        out.append((text[len(said) :], _short(highest)))
        said, highest = text, -np.inf
    if first:
        out[0] = ("…" + out[0][0], out[0][1])
    if last < len(ids):
        out[-1] = (out[-1][0] + "…", out[-1][1])
    return tuple(out)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
