"""A whole screening: score, flag, write, and sum up. Killed at any moment, it goes on and ends with the same files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from poise.counting import counted
from poise.data import Conversation, DataSet, Rejections, describe_repeats, repeated_conversations
from poise.detector.seen_talk import rows_seen_in_fit, seen_in_fit_note
from poise.errors import InvalidArgument
from poise.judge import Judge
from poise.judge.factory import check_judge
from poise.model import Model
from poise.screen.data_watch import DataWatch
from poise.screen.examples import ExampleReader, locate_answers
from poise.screen.judge_cascade import check_budget, describe_cascade
from poise.screen.judge_review import JudgeReview, draw_for_review, load_judges, review_answers
from poise.screen.judged_answers import draw_cascades, judged_places, with_cascades, write_judged
from poise.screen.output import FlaggedAnswers, WrittenRows, check_parquet, write_screened_files
from poise.screen.projection import ScoringMethod, check_part
from poise.screen.replacement import AnswerReplacer
from poise.screen.scores import AnswerScores
from poise.screen.scoring import ScreeningRun, ScreenSettings
from poise.screen.summary import ScreeningSummary, TraitSummary
from poise.screen.trait_summary import EXAMPLES_SHOWN, highest_answers, summarize_trait
from poise.statistics.conformal import check_enough
from poise.storage.atomic_write import saving
from poise.storage.journal import Journal
from poise.storage.lock import locked
from poise.storage.output import check_output_folder
from poise.vector import PersonaVector

__all__ = [
    "RESULTS",
    "check_data_outside",
    "check_screening",
    "describe_rejected",
    "earlier_row_files",
    "finish_files",
    "screen_data",
]

RESULTS = (
    "scores.parquet", "clean.jsonl", "flagged.jsonl", "fixed.jsonl", "rejected_rows.jsonl", "clean.parquet",
    "flagged.parquet", "fixed.parquet", "rejected_rows.parquet", "rejected.jsonl", "judged.jsonl", "summary.json",
    "estimate.json", "report.html",
)  # fmt: skip


def screen_data(
    data: DataSet,
    model: Model,
    vectors: Sequence[PersonaVector],
    out: Path,
    plan: ScreenSettings | None = None,
    *,
    normal: DataSet | None = None,
    name: str = "",
    force: bool = False,
) -> ScreeningSummary:
    """Screen a data set into a folder: all its files but the page.

    Args:
        data: Conversations with answers.
        model: The base model, which is to be finetuned.
        vectors: k of them, of this model, each of another trait.
        out: The folder; see ``docs/screening.md`` for its files.
        plan: How.
        normal: Data to compare with, and to set a rate by.
        name: How the summary calls the data.
        force: Write over files in the folder that no screening wrote.

    Raises:
        InvalidArgument: the folder holds the data, or a rate lacks normal data.
        OutputExists: the folder holds files that no screening wrote.
        FolderInUse: another run is at work in the folder.
        InvalidData: too many rows are broken, or all of them.
        TooFewResponses: the normal data cannot promise the rate.
        MissingExtra: pyarrow is not installed.
        SaveFailed: the disk refused; what is done so far is kept.
    """
    plan = plan or ScreenSettings()
    check_screening(data, vectors, out, plan, normal=normal, force=force)
    watch = DataWatch(data.files, data.digest)
    with locked(out / ".run", "screen", results=out), watch:
        return _run_screening(data, ScreeningRun(model, vectors, out, plan), out, normal, name, watch)


def _run_screening(
    data: DataSet, work: ScreeningRun, out: Path, normal: DataSet | None, name: str, watch: DataWatch
) -> ScreeningSummary:
    model, vectors, plan = work.model, work.vectors, work.plan
    trait_judges = load_judges(plan.judge, vectors, model, cache=work.folder) if plan.judge else []
    usual, seen_note = _score_normal(work, normal) if normal else (None, "")
    _write_empty(out / "rejected.jsonl")  # and so it stays where nothing is rejected
    scores = work.score_data(data, watch.digest, Rejections(out / "rejected.jsonl", share=plan.broken), "Scoring")
    verdict = _flag_answers(work, scores, usual)
    replacer = AnswerReplacer(model, work.answers) if plan.fix and work.answers else None
    if replacer:
        replacer.generate_replacements(data, scores, verdict.any_trait)
    tops = [highest_answers(s, cut.limits(scores.tokens)) for s, cut in zip(scores.scores.T, verdict.cuts, strict=True)]
    strata = draw_cascades(work, scores, verdict) if trait_judges and plan.judge_budget else []
    sampled = [judged_places(some) for some in strata]
    sampled = sampled or [draw_for_review(scores, verdict, k, seed=plan.seed) for k in range(len(trait_judges))]
    wanted = {int(scores.index[i]) for places in (*tops, *sampled) for i in places}
    earlier = earlier_row_files(out)
    written = write_screened_files(data, scores, verdict, out, replacements=replacer, wanted=wanted)
    reach = work.measure_reach(data, watch.digest)
    opinions = _review_traits(work, scores, trait_judges, sampled, written.wanted)
    traits = [summarize_trait(work, k, scores, usual, cut, verdict.flagged[:, k]) for k, cut in enumerate(verdict.cuts)]
    judged_file = ["judged.jsonl"] if strata else []
    if strata:
        traits = with_cascades(traits, verdict, strata, opinions)
        write_judged(out / "judged.jsonl", work.names, scores, verdict, strata, opinions, written.wanted)
    summary = ScreeningSummary(
        data=name or ", ".join(part.name for part in data.parts),
        data_sha256=watch.digest,
        model=model.name,
        part=data.answer_part,
        method=plan.method,
        rows=scores.rows,
        units=len(scores),
        rejected=dict(sorted(scores.kinds.items())),
        unread=dict(sorted(Counter(why.partition(":")[0] for why in scores.unread.values()).items())),
        omitted=dict(sorted(scores.left_out.items())),
        cut=int(scores.cut.sum()),
        flagged_rows=len(np.unique(scores.index[verdict.any_trait])),
        rate=verdict.promise,
        reach=tuple(reach),
        judge=trait_judges[0].name if trait_judges else None,
        judged=sum(len(one.scores) for one in opinions),
        traits=tuple(_with_examples(work, scores, verdict, traits, tops, opinions, written.wanted)),
        files=("scores.parquet", *written.names, "rejected.jsonl", *judged_file),
        notes=_nonempty(
            *_data_notes(data, usual, normal),
            seen_note,
            *(f"{one}." for one in reach),
            *(one.note for one in opinions),
            *_below_own_note(plan.method, verdict, scores),
            *(describe_cascade(t.trait, t.cascade) for t in traits if t.cascade),
            describe_rejected(len(scores.rejected), written),
            replacer.note(written.names[2], written.unfixed) if replacer else "",
        ),
    )
    finish_files(summary, out, set(earlier) - {*written.names, *judged_file}, watch)
    return summary


def finish_files(summary: ScreeningSummary, out: Path, stale: set[str], watch: DataWatch) -> None:
    """Write the summary, last of all, and remove rows that an earlier screening wrote under other names.

    Raises:
        InvalidData: the data have changed meanwhile.
    """
    watch.check()
    for name in stale:
        (out / name).unlink(missing_ok=True)
    with saving(out / "summary.json") as temporary:
        temporary.write_text(summary.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _below_own_note(method: ScoringMethod, verdict: FlaggedAnswers, scores: AnswerScores) -> Iterator[str]:
    """Flagged answers that show no more of a trait than the model's own: replacing them takes none of it out."""
    if method != "difference":
        return
    for trait, flagged, column in zip(verdict.traits, verdict.flagged.T, scores.scores.T, strict=True):
        if count := int((flagged & (column <= 0)).sum()):
            yield (
                f"{trait}: {count:,} of the {int(flagged.sum()):,} flagged answers score 0 or less: they show no more "
                "of the trait than the model's own answer, and replacing them takes none of it out."
            )


def _write_empty(path: Path) -> None:
    with saving(path):
        pass


def _nonempty(*sentences: str) -> tuple[str, ...]:
    """Those that there are."""
    return tuple(filter(None, sentences))


def _data_notes(data: DataSet, usual: AnswerScores | None, normal: DataSet | None) -> tuple[str, ...]:
    """What to know of the data and of the normal data."""
    parts = {"thought": "Scored are the thoughts alone.", "both": "Scored are thoughts and replies together."}
    repeats = describe_repeats(usual.repeated, usual.rows) if usual else ""
    return (
        parts.get(data.answer_part, ""),
        f"Normal data: {repeats}." if repeats else "",
        describe_own_normal(data, normal),
    )


def describe_own_normal(data: DataSet, normal: DataSet | None) -> str:
    """A warning where data are compared with themselves; empty where they are not."""
    if normal is None:
        return ""
    files = {path.resolve() for path in data.files}
    if not (files & {path.resolve() for path in normal.files} or data.digest() == normal.digest()):
        return ""
    return (
        "The data are among the normal data, which they are compared with: about as many of their rows are flagged as "
        "the rate allows, whatever they hold. Compare them with others, without what is looked for."
    )


def check_screening(
    data: DataSet,
    vectors: Sequence[PersonaVector],
    out: Path,
    plan: ScreenSettings,
    *,
    normal: DataSet | None = None,
    inputs: Sequence[Path] = (),
    force: bool = False,
) -> None:
    """Check all that can be checked without a model; for the arguments and errors see ``screen_data``.

    ``inputs`` are files that are read besides the data.
    """
    check_parquet()
    plan.check_engine()
    check_part(data.answer_part, plan.method, fix=plan.fix)
    if normal is not None and normal.answer_part != data.answer_part:
        raise InvalidArgument(
            f"`part` is {data.answer_part}, and the normal data were opened for the {normal.answer_part}; open both "
            "for one part."
        )
    check_data_outside(out, data, normal)
    check_output_folder(
        out, RESULTS, job="screen", run_folder=out / ".run", marks=(".run",), inputs=inputs, force=force
    )
    check_budget(plan.judge_budget, plan.judge, len(vectors))
    if plan.judge:
        check_judge(plan.judge, *(vector.header.trait for vector in vectors))
    if plan.fix:
        check_fixable(data)
    if plan.rule.rate is not None and normal is None:
        raise InvalidArgument(
            f"`rate` is {plan.rule.rate:g} and needs normal data to be set by; give some as `normal`."
        )


def check_fixable(data: DataSet) -> None:
    """Refuse to replace answers in a shape that cannot be written.

    Raises:
        InvalidArgument: some file has such a shape.
    """
    if marked_up := next((part for part in data.parts if part.shape.kind == "markup"), None):
        raise InvalidArgument(
            f"{marked_up.name} keeps its chats as marked-up text in {marked_up.shape.columns[0]}, where no answer can "
            'be replaced; leave `fix` out, or turn its rows into {"messages": [{"role", "content"}, …]} first.'
        )


def check_data_outside(out: Path, *data: DataSet | None) -> None:
    """Refuse a folder whose files would be written over the data, or be read as data the next time.

    Raises:
        InvalidArgument: the data lies there.
    """
    where = out.resolve()
    for path in (path for one in data if one for path in one.files):
        if path.resolve().is_relative_to(where):
            raise InvalidArgument(f"{path} lies in {out}, where the results would be written; choose another `out`.")


def earlier_row_files(out: Path) -> tuple[str, ...]:
    """The files of rows that an earlier screening wrote into a folder, by its summary."""
    try:
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        names = summary.get("files", ("clean.jsonl", "flagged.jsonl", "fixed.jsonl"))  # 0.1.0 did not list them
    except (OSError, ValueError, AttributeError):
        return ("fixed.jsonl",)
    return tuple(name for name in names if name in RESULTS and name not in ("scores.parquet", "rejected.jsonl"))


def describe_rejected(count: int, written: WrittenRows) -> str:
    """Where the rows are that could not be read; empty where there are none."""
    if not count:
        return ""
    are, them, came = ("is", "it", "it") if count == 1 else ("are", "them", "they")
    sentence = f"{counted(count, 'row')} could not be read and {are} neither in {written.names[0]} nor in "
    sentence += f"{written.names[1]}: {written.rejected} has {them} as {came} came, rejected.jsonl says why"
    return sentence + (f"; of {written.without_content:,} nothing could be read." if written.without_content else ".")


def _score_normal(work: ScreeningRun, normal: DataSet) -> tuple[AnswerScores, str]:
    """The normal data's scores, each text once and without what a detector was fitted on, and a note of that.

    Refused at once where they are too few for the rate.
    """
    all_scores = work.score_data(normal, normal.digest(), Rejections(share=work.plan.broken), "Scoring normal data")
    seen = rows_seen_in_fit(normal, work.vectors, work.plan.layer)
    rows = (row for row in normal if isinstance(row, Conversation) and row.index not in seen)
    normal_scores = all_scores.without_rows(seen).without_repeats(repeated_conversations(rows))
    note = seen_in_fit_note(len(seen))
    if work.plan.rule.rate is not None:
        for scores in normal_scores.scores.T:
            distinct = len(np.unique(normal_scores.index[np.isfinite(scores)]))
            check_enough(distinct, work.plan.rule.rate, note, repeats=normal_scores.repeated)
    return normal_scores, note


def _flag_answers(work: ScreeningRun, answer_scores: AnswerScores, usual: AnswerScores | None) -> FlaggedAnswers:
    return FlaggedAnswers.by(work.names, work.plan.rule.thresholds_for(answer_scores, usual), answer_scores)


def _review_traits(
    work: ScreeningRun,
    scores: AnswerScores,
    trait_judges: Sequence[Judge],
    sampled: Sequence[Sequence[int]],
    rows: Mapping[int, Conversation],
) -> list[JudgeReview]:
    """The judge's, a trait each; empty ones where nobody is asked."""
    if not trait_judges:
        return [JudgeReview()] * len(work.names)
    journal = Journal(work.folder / "judged.jsonl" if work.plan.judge_budget else None)
    taken = locate_answers(work.model, scores, (i for places in sampled for i in places), rows)
    return [
        review_answers(judge, vector, {i: taken[i] for i in places}, journal)
        for judge, vector, places in zip(trait_judges, work.vectors, sampled, strict=True)
    ]


def _with_examples(
    work: ScreeningRun,
    answer_scores: AnswerScores,
    verdict: FlaggedAnswers,
    traits: Sequence[TraitSummary],
    tops: Sequence[Sequence[int]],
    opinions: Sequence[JudgeReview],
    rows: Mapping[int, Conversation],
) -> list[TraitSummary]:
    """The traits with their answers to look at: the highest, those the judge passes, those that it alone sees."""
    lists = []
    for k, (top, one) in enumerate(zip(tops, opinions, strict=True)):
        flagged, scores = verdict.flagged[:, k], answer_scores.scores[:, k]
        lists.append(
            (top, one.flagged_but_low(flagged, scores, EXAMPLES_SHOWN), one.high_but_unflagged(flagged, EXAMPLES_SHOWN))
        )
    gallery = ExampleReader(
        work.model, answer_scores, work.probes, work.answers if work.plan.method == "difference" else None
    )
    gallery.read(
        locate_answers(
            work.model, answer_scores, (i for some in lists for places in some for i in places), rows
        ).values()
    )
    out = []
    for k, (trait, some, one) in enumerate(zip(traits, lists, opinions, strict=True)):
        is_flagged, judged = verdict.flagged[:, k], one.scores.get
        shown = [tuple(gallery.show(i, k, bool(is_flagged[i]), judged(i)) for i in places) for places in some]
        names = ("top", "passed_by_judge", "seen_by_judge_only")
        out.append(trait.model_copy(update=dict(zip(names, shown, strict=True))))
    return out
