"""What a screening found, as values: ``summary.json`` is this, and the report is drawn from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from poise.data import AnswerPart
from poise.detector.reach import DetectorReach
from poise.settings import FrozenModel
from poise.statistics.estimates import Estimate

__all__ = ["AnswerExample", "LengthBand", "LengthDecile", "PromisedRate", "ScreeningSummary", "TraitSummary"]


class AnswerExample(FrozenModel):
    """One answer as a report shows it."""

    file: str
    row: int
    index: int
    turn: int
    score: float
    percentile: float = Field(description="Share of the data's answers with a lower score, 0–100.")
    prompt: str = Field(description="The end of what came before the answer.")
    flagged: bool = Field(description="For this trait.")
    pieces: tuple[tuple[str, float], ...] = Field(
        description="The answer's tokens as text with each one's projection; of a long answer 400 around the "
        "brightest, with … where it goes on."
    )
    own: str | None = Field(None, description="The model's own answer y′, where the method made one.")
    judged: float | None = Field(None, description="The judge's trait score, 0–100, where it was asked.")
    rejected: tuple[tuple[str, float], ...] = Field(
        (),
        exclude_if=lambda pieces: not pieces,
        description="The other answer's tokens, where this is one of a preference pair.",
    )
    readings: tuple[float, float] | None = Field(
        None,
        exclude_if=lambda pair: pair is None,
        description="Readings of both answers, where this is one of a preference pair.",
    )


class LengthDecile(FrozenModel):
    """How many answers of like length are flagged: a length that explains flags would show here."""

    shortest: int = Field(description="Tokens.")
    longest: int
    units: int
    flagged: int


class LengthBand(FrozenModel):
    """Answers of like length, the threshold that normal ones of that length set, and what it flags."""

    shortest: int = Field(description="Tokens; the first band also holds what is shorter.")
    longest: int = Field(description="Tokens; the last band also holds what is longer.")
    threshold: float = Field(description="Scores above it are flagged.")
    low: float = Field(description="95 % interval of the rate at which normal answers of the band pass it.")
    high: float
    answers: int = Field(description="Normal ones that it was set on.")
    conversations: int = Field(description="Conversations that these answers came from.")
    units: int = Field(description="The data's answers in the band.")
    flagged: int


class JudgedStratum(FrozenModel):
    """Answers of like standing in the ranking, and what the judge says of those that it saw."""

    name: Literal["top", "flagged", "unflagged"] = Field(
        description="top: the highest answers, all seen. flagged, unflagged: the others, of which some are drawn."
    )
    answers: int
    asked: int = Field(description="Answers that the judge was asked about.")
    scored: int = Field(description="Those of them that it could score.")
    present: int = Field(description="Those of them in which it finds the trait: a score of 50 or more.")


class JudgedCascade(FrozenModel):
    """What a flagged set finds and misses, estimated from the answers that a judge saw; intervals are 95 %."""

    strata: tuple[JudgedStratum, ...]
    asked: int = Field(description="Answers that the judge was asked about.")
    present: Estimate = Field(description="Answers of the data in which the judge would find the trait.")
    flagged: int = Field(description="Answers that the projection flags.")
    flagged_precision: Estimate = Field(description="Share of them in which the judge would find the trait.")
    flagged_recall: Estimate = Field(description="Share of all such answers that the projection flags.")
    union: int = Field(description="Flagged answers, and those besides in which the judge found the trait.")
    union_precision: Estimate
    union_recall: Estimate
    method: str = Field(description="How it was estimated.")


class TraitSummary(FrozenModel):
    """One trait over the whole data."""

    trait: str
    layer: int
    layers: int
    norm: float = Field(description="‖v‖ there, or the detector's own: a score of this size is one mean difference.")
    detector: str = Field(
        "", exclude_if=lambda kind: not kind, description="Kind of the detector that scored; empty for the projection."
    )
    units: int = Field(description="Answers with a score.")
    mean: Estimate = Field(description="Mean of the data; for ΔP, what predicts the finetuning shift (section 6).")
    normal: Estimate | None = Field(description="The same of the normal data, where it was given.")
    predicts: str = Field("", description="What the mean says of finetuning on the data, in words.")
    edges: tuple[float, ...] = Field(description="Edges of the histograms.")
    counts: tuple[int, ...]
    normal_counts: tuple[int, ...] | None
    flagged_counts: tuple[int, ...] = Field(description="Those of the counts that are flagged.")
    threshold: float | None = Field(
        description="Scores above it are flagged; None where nothing is, or where the bands have one each."
    )
    bands: tuple[LengthBand, ...] = Field((), description="Thresholds by length, where a rate was asked for.")
    outside: int = Field(0, description="Answers shorter or longer than any normal one; no rate is promised for them.")
    rule: str = Field(description="How it was set, in words.")
    flagged: int
    by_length: tuple[LengthDecile, ...]
    top: tuple[AnswerExample, ...] = Field(description="The highest above their threshold.")
    passed_by_judge: tuple[AnswerExample, ...] = Field((), description="Flagged by projection, low for the judge.")
    seen_by_judge_only: tuple[AnswerExample, ...] = Field((), description="High for the judge, not flagged.")
    cascade: JudgedCascade | None = Field(
        None, exclude_if=lambda cascade: cascade is None, description="Estimates, where the judge had a budget."
    )


class PromisedRate(FrozenModel):
    """What is promised of the false alarms, where a rate was asked for."""

    rate: float = Field(description="The rate that was asked for.")
    per: Literal["row", "answer"] = Field(
        description="row: a share of normal rows, over all answers and traits. answer: a share of normal answers, for "
        "each trait alone; more rows are flagged then."
    )
    unit: Literal["row", "prompt"] = Field(
        "row",
        exclude_if=lambda unit: unit == "row",
        description="What counts as a row: pairs of one prompt are one, which is flagged if any of them is.",
    )
    expected: float | None = Field(description="Share of normal rows flagged on average; None for a rate per answer.")
    low: float = Field(description="95 % interval of the true rate; per answer, over all bands and traits.")
    high: float
    normal_rows: int = Field(description="Normal rows that the thresholds were set on, each text once.")
    normal_rows_reaching: int = Field(description="Those of them that reach a threshold, or pass it.")
    normal_rows_repeated: int = Field(
        0,
        exclude_if=lambda repeats: not repeats,
        description="Further normal rows that say again what others say, and were left out.",
    )


class ScreeningSummary(FrozenModel):
    """A whole screening."""

    format: Literal[1] = 1
    data: str
    data_sha256: str
    model: str
    part: AnswerPart = Field(
        "reply", exclude_if=lambda part: part == "reply", description="Which part of the answers was scored."
    )
    method: Literal["difference", "prompt", "raw", "preference"]
    rows: int = Field(description="Rows of the data, good and bad.")
    units: int
    rejected: dict[str, int] = Field(description="Rows left out, by reason.")
    unread: dict[str, int] = Field(description="Answers without a score, by reason.")
    omitted: dict[str, int] = Field(
        default={},
        description="What the rows with scores leave out, by kind: images, turns not to be learnt, thoughts.",
    )
    cut: int = Field(description="Answers whose history was cut to fit the model's window.")
    flagged_rows: int = Field(description="Rows with a flagged answer for any trait.")
    rate: PromisedRate | None = Field(None, description="The rate of false alarms, where one was asked for.")
    reach: tuple[DetectorReach, ...] = Field(
        (),
        exclude_if=lambda reach: not reach,
        description="How far the data lie from what each detector was fitted on.",
    )
    judge: str | None = None
    judged: int = Field(0, description="Answers that the judge was asked about.")
    traits: tuple[TraitSummary, ...]
    files: tuple[str, ...] = Field((), description="Files of rows and of scores beside the summary.")
    notes: tuple[str, ...] = ()

    @property
    def lost(self) -> float:
        """The share of the data without a score: rows that cannot be used, and answers that cannot be read."""
        usable = 1 - sum(self.rejected.values()) / self.rows if self.rows else 0.0
        read = min(trait.units for trait in self.traits) / self.units if self.units else 0.0
        return 1 - usable * read
