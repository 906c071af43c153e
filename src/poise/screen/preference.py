"""A whole screening of preference pairs: score, flag, write and sum up; killed at any moment, it goes on.

What a pair's score is: the mean projection of the preferred answer less that of the other one, each after their shared
prompt, which is not counted. Their mean over a data set is what preference tuning on it should push: DPO raises the
likelihood of the one and lowers that of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np

from poise.arguments import check_choice
from poise.data import Rejections
from poise.data.preference_data import PreferenceData
from poise.errors import InvalidArgument
from poise.model import Model
from poise.screen.data_watch import DataWatch
from poise.screen.flagging import FlaggingRule
from poise.screen.output import FlaggedAnswers, WrittenRows, check_parquet
from poise.screen.pair_examples import read_pair_examples
from poise.screen.pair_files import PairFix, write_pair_files
from poise.screen.pair_scores import PairScores, PairSurvey, collect_pair_scores, survey_pairs
from poise.screen.pipeline import (
    RESULTS,
    check_data_outside,
    describe_own_normal,
    describe_rejected,
    earlier_row_files,
    finish_files,
)
from poise.screen.prediction import describe_preference
from poise.screen.scores import AnswerScores, mean_score
from poise.screen.scoring import ScreeningEngine, ScreeningRun, ScreenSettings, check_ray_address
from poise.screen.summary import ScreeningSummary, TraitSummary
from poise.screen.trait_summary import highest_answers, summarize_trait
from poise.statistics.conformal import check_enough
from poise.storage.atomic_write import saving
from poise.storage.lock import locked
from poise.storage.output import check_output_folder
from poise.vector import PersonaVector

__all__ = ["PreferenceSettings", "check_preferences", "screen_preference_data"]

NO_PREFERENCE = 0.0  # a pair with this score or less does not prefer the trait, and is never flagged


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings:
    """How to screen preference pairs.

    Attributes:
        rule: What is flagged.
        layer: Layer that all vectors are read at; default, each one's own.
        fix: What becomes of flagged pairs in the file of fixed ones; none is written by default.
        seed: Seed of what is random.
        broken: Largest share of rows that may be unusable.
        engine: Engine that the scoring runs on, ``local`` or ``ray``.
        ray_address: Address of a running Ray cluster that the engine ray joins; see ``ScreenSettings``.
    """

    rule: FlaggingRule = field(default_factory=FlaggingRule)
    layer: int | None = None
    fix: PairFix = ""
    seed: int = 0
    broken: float = 0.2
    engine: ScreeningEngine = "local"
    ray_address: str = ""

    def __post_init__(self) -> None:
        check_choice("fix", self.fix, get_args(PairFix))
        check_ray_address(self.engine, self.ray_address)
        if self.engine == "vllm":
            raise InvalidArgument("`engine` is vllm, and pairs are read, not generated; use local or ray as `engine`.")
        if self.rule.above is not None and self.rule.above < NO_PREFERENCE:
            raise InvalidArgument(
                f"`threshold` is {self.rule.above:g}; a pair that scores {NO_PREFERENCE:g} or less does not prefer the "
                f"trait and is not flagged, so that it must be at least {NO_PREFERENCE:g}."
            )

    @property
    def scoring(self) -> ScreenSettings:
        """How each of the two answers is scored: as it is."""
        return ScreenSettings(
            method="raw",
            rule=self.rule,
            layer=self.layer,
            seed=self.seed,
            broken=self.broken,
            engine=self.engine,
            ray_address=self.ray_address,
        )


def check_preferences(
    data: PreferenceData,
    out: Path,
    plan: PreferenceSettings,
    *,
    normal: PreferenceData | None = None,
    inputs: Sequence[Path] = (),
    force: bool = False,
) -> None:
    """Check all that can be checked without a model; for the arguments and errors see ``screen_preference_data``.

    ``inputs`` are files that are read besides the data.
    """
    check_parquet()
    if normal is not None and normal.answer_part != data.answer_part:
        raise InvalidArgument(
            f"`part` is {data.answer_part}, and the normal data were opened for the {normal.answer_part}; open both "
            "for one part."
        )
    check_data_outside(out, data.source, normal.source if normal else None)
    check_output_folder(
        out, RESULTS, job="screen", run_folder=out / ".run", marks=(".run",), inputs=inputs, force=force
    )
    if plan.rule.rate is not None and normal is None:
        raise InvalidArgument(
            f"`rate` is {plan.rule.rate:g} and needs normal preference pairs to be set by; give some as `normal`."
        )


def screen_preference_data(
    data: PreferenceData,
    model: Model,
    vectors: Sequence[PersonaVector],
    out: Path,
    plan: PreferenceSettings | None = None,
    *,
    normal: PreferenceData | None = None,
    name: str = "",
    force: bool = False,
) -> ScreeningSummary:
    """Screen preference pairs into a folder: all its files but the page.

    Args:
        data: The pairs.
        model: The model that is to be tuned.
        vectors: k of them, of this model, each of another trait.
        out: The folder; see ``docs/preferences.md`` for its files.
        plan: How.
        normal: Pairs to compare with, and to set a rate by.
        name: How the summary calls the data.
        force: Write over files in the folder that no screening wrote.

    Raises:
        InvalidArgument: the folder holds the data, or a rate lacks normal pairs.
        OutputExists: the folder holds files that no screening wrote.
        FolderInUse: another run is at work in the folder.
        InvalidData: too many rows are no pairs, or all of them.
        TooFewResponses: the normal pairs cannot promise the rate.
        MissingExtra: pyarrow is not installed.
        SaveFailed: the disk refused; what is done so far is kept.
    """
    plan = plan or PreferenceSettings()
    check_preferences(data, out, plan, normal=normal, force=force)
    watch = DataWatch(data.files, data.source.digest)
    with locked(out / ".run", "screen", results=out), watch:
        return _run_preferences(data, ScreeningRun(model, vectors, out, plan.scoring), out, plan, normal, name, watch)


def _run_preferences(
    data: PreferenceData,
    work: ScreeningRun,
    out: Path,
    plan: PreferenceSettings,
    normal: PreferenceData | None,
    name: str,
    watch: DataWatch,
) -> ScreeningSummary:
    usual = _score_pairs(work, normal, normal.source.digest(), "Scoring normal pairs")[0] if normal else None
    normal_scores = _by_prompt(usual) if usual else None
    if normal_scores and plan.rule.rate is not None:
        check_enough(len(np.unique(normal_scores.index)), plan.rule.rate, unit="prompts")
    pairs, survey = _score_pairs(work, data, watch.digest, "Scoring both answers", out / "rejected.jsonl")
    scores = pairs.scores
    verdict, spared = _flag_pairs(work.names, plan.rule, scores, normal_scores)
    columns = zip(scores.scores.T, verdict.cuts, strict=True)
    tops = [highest_answers(column, cut.limits(scores.tokens)) for column, cut in columns]
    wanted = {int(scores.index[at]) for places in tops for at in places}
    earlier = earlier_row_files(out)
    reach = work.measure_reach(data.conversations(), watch.digest)
    written, rows = write_pair_files(data, pairs, verdict, out, fix=plan.fix, wanted=wanted)
    places = [[(at, bool(verdict.flagged[at, k])) for at in some] for k, some in enumerate(tops)]
    shown = read_pair_examples(work.model, pairs, work.probes, places, rows)
    traits = [_summarize(work, k, pairs, usual, verdict) for k in range(len(verdict.cuts))]
    summary = ScreeningSummary(
        data=name or ", ".join(part.name for part in data.source.parts),
        data_sha256=watch.digest,
        model=work.model.name,
        part=data.answer_part,
        method="preference",
        rows=scores.rows,
        units=len(scores),
        rejected=dict(sorted(scores.kinds.items())),
        unread={},
        omitted=dict(sorted(scores.left_out.items())),
        cut=int(scores.cut.sum()),
        flagged_rows=int(verdict.any_trait.sum()),
        rate=verdict.promise,
        reach=tuple(reach),
        traits=tuple(t.model_copy(update={"top": some}) for t, some in zip(traits, shown, strict=True)),
        files=("scores.parquet", *written.names, "rejected.jsonl"),
        notes=(
            *(f"{one}." for one in reach),
            *filter(
                None,
                [
                    describe_own_normal(data.source, normal.source if normal else None),
                    *spared,
                    *_pair_notes(plan, survey, verdict, written),
                ],
            ),
        ),
    )
    finish_files(summary, out, set(earlier) - set(written.names), watch)
    return summary


def _by_prompt(pairs: PairScores) -> AnswerScores:
    """The pairs' scores with those of one prompt as one row: they are alike, and a rate counts what is independent."""
    return replace(pairs.scores, index=np.unique(pairs.prompts, return_inverse=True)[1])


def _score_pairs(
    work: ScreeningRun, data: PreferenceData, digest: str, what: str, rejected: Path | None = None
) -> tuple[PairScores, PairSurvey]:
    """The scores of all pairs, and what the data are; rows without a score are listed in the file ``rejected``."""
    survey = survey_pairs(data, work.plan.broken)
    shards = work.read_shards(data.conversations(), digest, what)
    pairs = collect_pair_scores(shards, survey, len(work.probes))
    if rejected:
        with saving(rejected):
            pass  # empty where nothing is rejected
    survey.write_rejected(Rejections(rejected, share=work.plan.broken))
    return pairs, survey


def _summarize(
    work: ScreeningRun, k: int, pairs: PairScores, usual: PairScores | None, verdict: FlaggedAnswers
) -> TraitSummary:
    """One trait over all pairs; means have their intervals over prompts, as pairs of one prompt are alike."""
    trait = summarize_trait(
        work, k, pairs.scores, usual.scores if usual else None, verdict.cuts[k], verdict.flagged[:, k]
    )
    mean = mean_score(pairs.scores.scores[:, k], pairs.prompts)
    return trait.model_copy(
        update={
            "mean": mean,
            "normal": mean_score(usual.scores.scores[:, k], usual.prompts) if usual else None,
            "predicts": describe_preference(trait.trait, mean, trait.norm, by_detector=bool(trait.detector)),
        }
    )


def _flag_pairs(
    names: tuple[str, ...], rule: FlaggingRule, scores: AnswerScores, normal: AnswerScores | None
) -> tuple[FlaggedAnswers, list[str]]:
    """The pairs that pass the thresholds and prefer the trait, and how many more the rule would have reached."""
    thresholds = rule.thresholds_for(scores, normal, unit="prompt")
    verdict = FlaggedAnswers.by(names, thresholds.raised_to(NO_PREFERENCE, normal), scores)
    spared = FlaggedAnswers.by(names, thresholds, scores).flagged & ~verdict.flagged
    counts = [(trait, int(column.sum())) for trait, column in zip(names, spared.T, strict=True)]
    return verdict, [
        f"{trait}: {count:,} of the pairs that the rule reaches {'score' if count > 1 else 'scores'} 0 or less, which "
        f"is no preference for the trait; {'they are' if count > 1 else 'it is'} not flagged."
        for trait, count in counts
        if count
    ]


def _pair_notes(
    plan: PreferenceSettings, survey: PairSurvey, verdict: FlaggedAnswers, written: WrittenRows
) -> list[str]:
    count, flagged = len(survey.rejected), int(verdict.any_trait.sum())
    notes = [describe_rejected(count, written)]
    if survey.same:
        verb = "pair has" if len(survey.same) == 1 else "pairs have"
        notes.append(f"{len(survey.same):,} {verb} the same answer twice, which scores 0.")
    if plan.fix == "drop":
        notes.append(f"{written.names[2]}: without the {flagged:,} flagged pairs")
    if plan.fix == "swap":
        notes.append(
            f"{written.names[2]}: {flagged - written.unfixed:,} flagged pairs have their answers swapped"
            + (f"; {written.unfixed:,} could not be swapped in their shape and are left out" if written.unfixed else "")
        )
    return notes
