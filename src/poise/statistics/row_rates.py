"""Thresholds that promise how many normal rows are flagged, whatever number of answers and traits a row is read for.

A row is flagged if any of its answers passes the threshold of any trait, so that thresholds which keep a rate for each
trait and answer flag many times as many rows. Here one block of normal rows after another is cut off: the highest row
left by the first trait, the highest left by the second, and so on. After m of n rows are cut, the share of normal rows
that lie in the blocks is distributed as Beta(m, n + 1 − m), m / (n + 1) on average: the statistically equivalent blocks
of Wald 1943 (doi:10.1214/aoms/1177731491) and Tukey 1947 (doi:10.1214/aoms/1177730343), which hold for any distribution
and any dependence between traits and between answers of a row. Only order counts, so that traits of different scales
count alike, and a row that is high for several traits is cut once. Numbers only; knows no models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.errors import TooFewResponses
from poise.statistics.conformal import (
    MOST_BANDS,
    Band,
    Threshold,
    check_enough,
    check_rate,
    needed,
    rank_of_threshold,
    rate_interval,
)

__all__ = ["RowThresholds", "row_thresholds"]

ReadingTable = NDArray[np.float64]
RowNumbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowThresholds:
    """Thresholds of k traits that together flag a share of normal rows.

    Attributes:
        bands: Bands of sizes of each trait; all traits have the same sizes.
        rate: The share of normal rows that was asked for.
        expected: The share that is flagged on average, at most the rate.
        low: Lower end of the 95 % interval of the share that is flagged.
        high: Upper end.
        rows: Normal rows that they were set on; half of all where the other half measured the traits' spreads.
        measuring: Normal rows that measured the traits' spreads, and set nothing.
        members: The rows that they were set on, as the argument ``rows`` numbers them.
    """

    bands: tuple[tuple[Band, ...], ...]
    rate: float
    expected: float
    low: float
    high: float
    rows: int
    measuring: int
    members: RowNumbers


def row_thresholds(readings: ArrayLike, sizes: ArrayLike, rows: ArrayLike, rate: float) -> RowThresholds:
    """Thresholds such that at most a share ``rate`` of normal rows has any answer above its threshold for any trait.

    Every trait and every band of sizes gets a like part of the share: as many bands as there are blocks for, ten at
    most. With fewer blocks than traits no order tells how to share them; then one threshold in units of each trait's
    spread (from its median to its upper decile) serves all of them, set on half of the rows, while the other half
    measures the spreads: what is measured on the rows that a threshold is cut on would break its promise.

    Args:
        readings: [a, k] of the normal rows' answers, NaN where there is none.
        sizes: [a] whole numbers, e.g. tokens.
        rows: [a], which row each answer is in.
        rate: Share of normal rows that may be flagged.

    Raises:
        InvalidArgument: ``rate`` is not between 0 and 0.5.
        TooFewResponses: so few rows cannot promise this rate; says how many can.
    """
    check_rate(rate)
    table, size = np.asarray(readings, dtype=float), np.asarray(sizes)
    known = np.isfinite(table).any(axis=1)
    table, size = table[known], size[known]
    members, row = np.unique(np.asarray(rows)[known], return_inverse=True)
    count = n = len(members)
    check_enough(n, rate)
    blocks = rank_of_threshold(n, rate)
    if together := blocks < table.shape[1]:
        n = _cut_half(n, table.shape[1], rate)
        blocks = rank_of_threshold(n, rate)
        members = members[::2]
    low, high = rate_interval(blocks, n)
    return RowThresholds(
        bands=_cut_together(table, size, row, rate, blocks)
        if together
        else _cut_by_trait(table, size, row, rate, blocks),
        rate=rate,
        expected=blocks / (n + 1),
        low=low,
        high=high,
        rows=n,
        measuring=count - n,
        members=members,
    )


def _cut_by_trait(
    table: ReadingTable, size: RowNumbers, row: RowNumbers, rate: float, blocks: int
) -> tuple[tuple[Band, ...], ...]:
    """A threshold for each trait and band of sizes."""
    traits = table.shape[1]
    largest, share = _bands_with_blocks(size, traits, blocks)
    band_of = np.searchsorted(largest, size)
    cells = [(band, trait) for band in range(len(largest)) for trait in range(traits)]
    members = [_highest_first(table[:, trait], np.flatnonzero(band_of == band)) for band, trait in cells]
    cut = _cut_blocks([row[order] for order in members], share)
    bands: list[list[Band]] = [[] for _ in range(traits)]
    smallest = int(size.min())
    for (band, trait), order, last in zip(cells, members, cut, strict=True):
        value = float(table[order[last], trait]) if last is not None else float("inf")
        begin = smallest if band == 0 else int(largest[band - 1]) + 1
        bands[trait].append(
            Band(begin, int(largest[band]), _cell_threshold(value, table[order, trait], row[order], rate))
        )
    return tuple(tuple(some) for some in bands)


def _bands_with_blocks(size: RowNumbers, traits: int, blocks: int) -> tuple[RowNumbers, list[int]]:
    """Largest size of each band, and how many blocks each trait gets in each, band by band.

    Sizes that are equal lie in one band; blocks go by the answers in a band, and each trait gets one at least.
    """
    for count in range(min(MOST_BANDS, blocks // traits), 0, -1):
        ends = np.quantile(size, np.arange(1, count + 1) / count, method="inverted_cdf")
        largest: RowNumbers = np.unique(ends).astype(np.int64)
        answers = np.bincount(np.searchsorted(largest, size), minlength=len(largest))
        sums = np.round(blocks * np.cumsum(np.repeat(answers / len(size) / traits, traits)) + 1e-9).astype(int)
        share: list[int] = np.diff(sums, prepend=0).tolist()
        if min(share) > 0:
            break
    return largest, share


def _cut_blocks(rows: list[RowNumbers], share: list[int]) -> list[int | None]:
    """The place of each cell's last cut row among its answers, highest first; cells take turns.

    ``None`` where other cells cut off all rows of one.
    """
    gone: set[int] = set()
    remaining = [_uncut(ids.tolist(), gone) for ids in rows]
    last: list[int | None] = [None] * len(rows)
    for turn in range(max(share)):
        for cell, places in enumerate(remaining):
            if turn >= share[cell]:
                continue
            place = next(places, None)
            if place is not None:
                last[cell] = place
                gone.add(int(rows[cell][place]))
    return last


def _uncut(ids: list[int], gone: set[int]) -> Iterator[int]:
    """Places of rows that are not cut off when their turn comes."""
    return (place for place, one in enumerate(ids) if one not in gone)


def _cut_half(n: int, traits: int, rate: float) -> int:
    """Every other one of n rows; the rest measure the traits' spreads.

    Raises:
        TooFewResponses: half of them cannot promise the rate; says how many can.
    """
    half = (n + 1) // 2
    if half < needed(rate):
        raise TooFewResponses(
            f"There are {n} normal rows for {traits} traits at a rate of {rate:g}: half of them measure the traits' "
            f"spreads, and the other half must have {needed(rate)} rows. Bring {2 * needed(rate) - 1} rows, or screen "
            "fewer traits at once."
        )
    return half


def _cut_together(
    table: ReadingTable, size: RowNumbers, row: RowNumbers, rate: float, blocks: int
) -> tuple[tuple[Band, ...], ...]:
    """One threshold for all traits and sizes, in units of each trait's spread among the answers of every other row."""
    measured = table[row % 2 == 1]
    measured = np.where(np.isfinite(measured).any(axis=0), measured, 0.0)  # a trait without readings raises nothing
    middle, upper = np.nanquantile(measured, [0.5, 0.9], axis=0)
    table, size, row = table[row % 2 == 0], size[row % 2 == 0], row[row % 2 == 0]
    spread = np.where(upper > middle, upper - middle, 1.0)
    standing = np.where(np.isfinite(table), (table - middle) / spread, -np.inf)
    highest = standing.max(axis=1)
    order = _highest_first(highest, np.arange(len(row)))
    (last,) = _cut_blocks([row[order]], [blocks])
    place = order[last or 0]
    values = middle + spread * highest[place]
    trait = int(standing[place].argmax())
    values[trait] = table[place, trait]  # as it is, not as rounding has it
    return tuple(
        (Band(int(size.min()), int(size.max()), _cell_threshold(float(value), column, row, rate)),)
        for value, column in zip(values, table.T, strict=True)
    )


def _highest_first(values: ReadingTable, members: RowNumbers) -> RowNumbers:
    members = members[np.isfinite(values[members])]
    return members[np.argsort(-values[members], kind="stable")]


def _cell_threshold(value: float, readings: ReadingTable, row: RowNumbers, rate: float) -> Threshold:
    """The threshold with the interval of the share of the cell's rows that pass it."""
    n = len(np.unique(row))
    above = len(np.unique(row[readings > value]))
    low, high = rate_interval(above + 1, n) if above < n else (0.0, 1.0)
    return Threshold(value=value, rate=rate, low=low, high=high, answers=len(readings), conversations=n)
