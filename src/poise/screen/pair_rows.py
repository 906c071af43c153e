"""Preference pairs from Python: rows of any iterable in, scores out, without files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

from poise.activations import Probe
from poise.arguments import check_type
from poise.data import AnswerPart, RejectedRow
from poise.data.dataset import check_rows, row_columns
from poise.data.preference_data import PreferenceData
from poise.data.preference_rows import (
    SIDES,
    PreferencePair,
    PreferenceShape,
    detect_preference_shape,
    parse_preference_request,
    read_pair,
)
from poise.errors import InvalidArgument, InvalidRow
from poise.model import Model
from poise.screen import shards as parts
from poise.screen.projection import ScoredAnswer, check_part, score_answers
from poise.vector import PersonaVector
from poise.vector.algebra import check_distinct
from poise.vector.persona_vector import as_vectors

__all__ = ["ScoredPair", "screen_preferences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPair:
    """One preference pair.

    Attributes:
        index: Its place among the rows, from 0.
        scores: Reading of the chosen answer less that of the rejected one, by trait; NaN where there is none.
        chosen: Readings of the chosen answer by trait.
        rejected: Readings of the rejected answer by trait.
        unread: Why there is no score; empty where there is one.
    """

    index: int
    scores: dict[str, float]
    chosen: dict[str, float]
    rejected: dict[str, float]
    unread: str = ""


def screen_preferences(
    rows: PreferenceData | Iterable[Mapping[str, Any]],
    vectors: PersonaVector | Sequence[PersonaVector],
    model: Model,
    *,
    shape: str = "auto",
    part: AnswerPart = "reply",
    layer: int | None = None,
    allow_other_model: bool = False,
) -> Iterator[ScoredPair]:
    """Score preference pairs, in order, in memory that does not grow.

    Args:
        rows: Columns by name, ``datasets.Dataset`` too, or what ``poise.data.preference_data.open_preferences`` opened.
        vectors: One, or k of them, of this model.
        model: The model that is to be tuned.
        shape: ``auto``, or the columns, as in ``open_preferences``; opened data have their own.
        part: Which part of the answers is scored; opened data have their own.
        layer: Layer that all vectors are read at; default, each one's own.
        allow_other_model: Let vectors of another model of the same shape be used.

    Raises:
        InvalidArgument: text in the place of rows, or no such shape.
        InvalidData: the rows hold no two answers to one prompt.
        OtherModel: a vector was computed on another model.
    """
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    vectors = as_vectors(vectors)
    check_distinct(vectors)
    check_part(part, "raw")
    for vector in vectors:
        vector.check_model(model, allow_other_model=allow_other_model)
    if not isinstance(rows, PreferenceData):
        check_rows(rows)
    elif shape != "auto" or part not in ("reply", rows.answer_part):
        raise InvalidArgument("`shape` and `part` are those that the data were opened with; leave them out.")
    probes = [vector.at("read", layer).probe for vector in vectors]
    pairs = iter(rows) if isinstance(rows, PreferenceData) else _read_rows(iter(rows), shape, part)
    return _score_pair_windows(pairs, [vector.name for vector in vectors], model, probes)


def _read_rows(
    rows: Iterator[Mapping[str, Any]], request: str, part: AnswerPart
) -> Iterator[PreferencePair | RejectedRow]:
    columns, shape = parse_preference_request(request), None
    first = 0
    while window := list(islice(rows, parts.ROWS_PER_SHARD)):
        shape = shape or detect_preference_shape([row_columns(row) for row in window], columns)
        yield from (_read_row(row, shape, part, index) for index, row in enumerate(window, start=first))
        first += len(window)


def _read_row(
    row: Mapping[str, Any], shape: PreferenceShape, part: AnswerPart, index: int
) -> PreferencePair | RejectedRow:
    try:
        content = read_pair(shape, row_columns(row), part)
    except InvalidRow as error:
        return RejectedRow(file="", row=index, index=index, line=None, reason=str(error))
    return PreferencePair(content=content, file="", row=index, index=index, raw={}, answer_part=part)


def _score_pair_windows(
    pairs: Iterator[PreferencePair | RejectedRow], names: Sequence[str], model: Model, probes: Sequence[Probe]
) -> Iterator[ScoredPair]:
    while window := list(islice(pairs, max(parts.ROWS_PER_SHARD // len(SIDES), 1))):
        good = [pair for pair in window if isinstance(pair, PreferencePair)]
        units = score_answers(model, [pair.conversation(side) for pair in good for side in SIDES], probes)
        by_side = {place: list(answers) for place, answers in groupby(units, key=lambda unit: unit.index)}
        for pair in window:
            reason = pair.reason if isinstance(pair, RejectedRow) else ""
            sides = [by_side.get(2 * pair.index + number, []) for number in range(len(SIDES))]
            scored = _scored_pair(pair.index, names, sides, reason)
            if isinstance(pair, PreferencePair) and pair.content.same and not scored.unread:
                scored = replace(scored, scores=dict.fromkeys(names, 0.0))
            yield scored


def _scored_pair(index: int, names: Sequence[str], sides: Sequence[Sequence[ScoredAnswer]], reason: str) -> ScoredPair:
    named_sides = zip(SIDES, sides, strict=True)
    unread = (f"{unit.unread} ({side})" for side, units in named_sides for unit in units if unit.unread)
    reason = next(unread, reason)
    chosen, rejected = (_reading(names, units if not reason else []) for units in sides)
    scores = {name: chosen[name] - rejected[name] for name in names}
    return ScoredPair(index=index, scores=scores, chosen=chosen, rejected=rejected, unread=reason)


def _reading(names: Sequence[str], units: Sequence[ScoredAnswer]) -> dict[str, float]:
    """The mean over the tokens of all turns of an answer, by trait."""
    total = sum(unit.tokens for unit in units)
    if not total:
        return dict.fromkeys(names, float("nan"))
    return {name: sum(unit.mean[k] * unit.tokens for unit in units) / total for k, name in enumerate(names)}
