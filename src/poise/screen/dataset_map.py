"""Screening from Python: rows of any iterable in, scores out; and the same as columns for ``datasets``."""

from __future__ import annotations

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch

from poise.arguments import check_choice, check_type
from poise.data import AnswerPart, Conversation, InputRow
from poise.data.dataset import check_rows, check_same_part, row_columns
from poise.data.readers import RowContent, read_row
from poise.data.shapes import DataShape, detect_shape, parse_shape_request
from poise.errors import InvalidData, InvalidRow, OtherModel
from poise.model import Model, load_model
from poise.screen import shards as parts
from poise.screen.base_answers import BaseAnswers
from poise.screen.projection import SCORING_METHODS, ScoredAnswer, ScoringMethod, check_part, score_answers
from poise.vector import PersonaVector
from poise.vector.algebra import check_distinct
from poise.vector.persona_vector import as_vectors

__all__ = ["ColumnScorer", "ScoredRow", "screen_rows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRow:
    """One row.

    Attributes:
        index: Its place among the rows, from 0.
        scores: Highest score of the row's answers by trait; NaN where none has a score.
        units: Its answers.
        unread: Why there is none; empty where there is.
    """

    index: int
    scores: dict[str, float]
    units: tuple[ScoredAnswer, ...]
    unread: str = ""


def screen_rows(
    rows: Iterable[InputRow],
    vectors: PersonaVector | Sequence[PersonaVector],
    model: Model,
    method: ScoringMethod = "raw",
    **options: Any,
) -> Iterator[ScoredRow]:
    """Score rows, in order, in memory that does not grow.

    Args:
        rows: Columns by name, in any of the shapes that files may have, lists of messages, or conversations;
            ``datasets.Dataset`` too.
        vectors: One, or k of them, of this model.
        model: The base model.
        method: What a score is: ``raw``, ``prompt`` or ``difference``.
        options: ``shape`` of the rows, ``part`` of the answers that is scored, ``layer`` for all vectors, ``answers``,
            a folder for the model's own answers, ``max_new_tokens``, the longest of these, and ``allow_other_model``.

    Raises:
        InvalidArgument: no such method, or text in the place of rows.
        InvalidData: no known shape finds an answer in the rows.
        OtherModel: a vector was computed on another model.
    """
    check_rows(rows)
    scorer = ColumnScorer(vectors, model, method, **options)
    return _score_windows(iter(rows), scorer)


def _score_windows(rows: Iterator[InputRow], scorer: ColumnScorer) -> Iterator[ScoredRow]:
    first = 0
    while window := list(islice(rows, parts.ROWS_PER_SHARD)):
        yield from scorer.rows(window, first)
        first += len(window)


class ColumnScorer:
    """Scores a batch of columns: ``data.map(ColumnScorer([evil], model), batched=True)`` adds ``evil_score``.

    Args:
        vectors: k of them, of this model.
        model: The base model. Where the scorer is sent to another process, it is loaded there again by its name.
        method: What a score is.
        shape: Shape of the rows, as in ``open_data``; found in the first rows unless it is said.
        part: Which part of an answer is scored; by ``difference`` the reply alone.
        layer: For all vectors; default, each one's own.
        answers: Folder for the model's own answers, which ``difference`` needs; default, kept while the scorer lives.
        max_new_tokens: Longest answer of the model's own.
        allow_other_model: Let vectors of another model of the same shape be used.

    Raises:
        OtherModel: a vector was computed on another model.
    """

    def __init__(
        self,
        vectors: PersonaVector | Sequence[PersonaVector],
        model: Model,
        method: ScoringMethod = "raw",
        *,
        shape: str = "auto",
        part: AnswerPart = "reply",
        layer: int | None = None,
        answers: str | Path | None = None,
        max_new_tokens: int = 256,
        allow_other_model: bool = False,
    ) -> None:
        vectors = as_vectors(vectors)
        check_distinct(vectors)
        check_choice("method", method, SCORING_METHODS)
        check_part(part, method)
        check_type("model", model, Model, "a Model, as load_model(name) gives")
        for vector in vectors:
            vector.check_model(model, allow_other_model=allow_other_model)
        self.vectors, self.model, self.method, self.part = tuple(vectors), model, method, part
        self.options: dict[str, Any] = {
            "shape": shape,
            "part": part,
            "layer": layer,
            "answers": answers,
            "max_new_tokens": max_new_tokens,
            "allow_other_model": allow_other_model,
        }
        self.probes = [vector.at("read", layer).probe for vector in vectors]
        self.shape_request = parse_shape_request(shape, "assistant")
        self.shape: DataShape | None = None
        self.answers: BaseAnswers | None = None
        if method == "difference":
            folder = Path(answers or tempfile.mkdtemp(prefix="poise-"))
            if answers is None:
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.answers = BaseAnswers(model, folder, max_new_tokens=max_new_tokens)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[float | None]]:
        """A column ``TRAIT_score`` for each trait: of each row the highest of its answers, ``None`` without one."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        scored = self.rows(rows)
        return {
            f"{v.name}_score": [None if math.isnan(x := one.scores[v.name]) else x for one in scored]
            for v in self.vectors
        }

    def rows(self, rows: Sequence[InputRow], first: int = 0) -> list[ScoredRow]:
        """The rows of one window, of which the first is numbered ``first``."""
        good: list[Conversation] = []
        bad: dict[int, str] = {}
        for index, row in enumerate(rows, start=first):
            check_same_part(row, self.part)
            try:
                content = row if isinstance(row, Conversation) else self._read(row_columns(row), rows)
                good.append(
                    Conversation(
                        messages=content.messages,
                        file="",
                        row=index,
                        index=index,
                        raw={},
                        tools=content.tools,
                        answer_part=self.part,
                    )
                )
            except InvalidRow as error:
                bad[index] = str(error)
        units = score_answers(self.model, good, self.probes, self.answers)
        answers_by_row = {
            index: tuple(row_answers) for index, row_answers in groupby(units, key=lambda unit: unit.index)
        }
        numbers = range(first, first + len(rows))
        return [self._scored(index, answers_by_row.get(index, ()), bad.get(index, "")) for index in numbers]

    def _scored(self, index: int, units: tuple[ScoredAnswer, ...], reason: str) -> ScoredRow:
        by_unit = [unit.score(self.method) for unit in units]
        known = [values for values in by_unit if all(math.isfinite(x) for x in values)]
        columns = zip(*known, strict=True) if known else [(math.nan,)] * len(self.vectors)
        scores = {vector.name: max(values) for vector, values in zip(self.vectors, columns, strict=True)}
        why = reason or next((unit.unread for unit in units if unit.unread), "no answer of the model's own")
        return ScoredRow(index=index, scores=scores, units=units, unread="" if known else why)

    def _read(self, row: Mapping[str, Any], rows: Sequence[InputRow]) -> RowContent:
        if self.shape is None:
            columns = [
                dict(row_columns(other)) for other in rows[:100] if not isinstance(other, Conversation | str | bytes)
            ]
            self.shape = detect_shape(columns, self.shape_request, "assistant")
        if self.shape is None:
            raise InvalidData(
                f"No known shape finds an answer in the columns {', '.join(map(str, row))}; say where it is with a "
                "shape like pairs:question,best_answer."
            )
        return read_row(self.shape, row, "assistant", self.part)

    def __reduce__(self) -> tuple[Any, ...]:
        """By the model's name, not its weights: ``datasets`` hashes a function by its pickle."""
        model = self.model
        where = (model.name, asdict(model.fingerprint), model.lm.dtype, model.device.type)
        return _load_scorer, (self.vectors, where, self.method, self.options)


def _load_scorer(
    vectors: Sequence[PersonaVector],
    where: tuple[str, dict[str, str], torch.dtype, str],
    method: ScoringMethod,
    options: dict[str, Any],
) -> ColumnScorer:
    name, fingerprint, dtype, device = where
    model = load_model(name, dtype=dtype, device=device)
    if asdict(model.fingerprint) != fingerprint:
        raise OtherModel(f"{name} is another model in this process than it was; load it from a folder by its path.")
    return ColumnScorer(vectors, model, method, **options)
