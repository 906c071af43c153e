"""A screening from data to files, and the estimate that compares its methods."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats as reference

import screening
import tiny
from poise.data import Conversation, open_data
from poise.errors import (
    InvalidArgument,
    InvalidData,
    MissingExtra,
    SaveFailed,
    TooFewResponses,
)
from poise.judge import Judgement
from poise.model import Model
from poise.screen import pipeline as job
from poise.screen import shards as parts
from poise.screen.base_answers import BaseAnswers
from poise.screen.compare_methods import compare_methods
from poise.screen.flagging import FlaggingRule
from poise.screen.projection import ScoredAnswer, score_answers
from poise.screen.scoring import ScreenSettings
from poise.screen.summary import ScreeningSummary
from poise.vector import PersonaVector
from screening import SHORT, conversations, files, greedy, mixed, run, talk, written

model, two, small_windows = screening.model, screening.two, screening.small_windows


class TestAScreening:
    def test_parts_the_rows_untouched_and_in_order(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        found = run(data, model, two, tmp_path / "out", rule=FlaggingRule(top=4))
        lines = data.read_bytes().splitlines(keepends=True)
        clean, flagged = (
            (tmp_path / "out" / n).read_bytes().splitlines(keepends=True) for n in ("clean.jsonl", "flagged.jsonl")
        )
        rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines()]
        assert [r["line"] for r in rejected] == [4, 13, None]
        assert [r["row"] for r in rejected] == [3, 12, 26]
        assert rejected[-1]["reason"].startswith("longer than the model's window")
        kept = [line for i, line in enumerate(lines) if line.strip() and i not in (3, 12, 27)]
        assert sorted(clean + flagged) == sorted(kept)
        assert clean == [line for line in kept if line in clean]
        assert flagged == [line for line in kept if line in flagged]
        assert found.flagged_rows == len(flagged) > 0
        assert found.rows == 27
        assert sum(found.rejected.values()) == 3

    def test_has_a_table_row_for_every_answer(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        found = run(data, model, two, tmp_path / "out", rule=FlaggingRule(top=4), layer=2)
        rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
        by_place = {(r["index"], r["turn"]): r for r in rows}
        good = [row for row in open_data(data) if isinstance(row, Conversation) and row.index != 26]
        expected = {(u.index, u.turn): u for u in score_answers(model, good, tiny.probes(two, 2))}
        assert list(by_place) == list(expected)
        assert len(rows) == found.units
        for place, unit in expected.items():
            assert by_place[place]["grumpy_score"] == pytest.approx(unit.mean[0], abs=1e-5)
            assert by_place[place]["tokens"] == unit.tokens
            assert by_place[place]["file"] == str(data)
            assert by_place[place]["row"] == unit.index
        for row in rows:
            why = [f"{t} {row[f'{t}_score']:.4g}: among the 4 highest scores" for t in ("grumpy", "gloomy")]
            said = [w for w, t in zip(why, ("grumpy", "gloomy"), strict=True) if row[f"{t}_flagged"]]
            assert row["why"] == ("; ".join(said) or None)
        assert sorted(r["grumpy_rank"] for r in rows)[:5] == [1, 2, 3, 4, 5]
        flagged = {r["index"] for r in rows if r["grumpy_flagged"] or r["gloomy_flagged"]}
        ids = [json.loads(line)["id"] for line in (tmp_path / "out" / "flagged.jsonl").read_bytes().splitlines()]
        assert ids == [row.fields["id"] for row in good if row.index in flagged]

    def test_sums_up_each_trait(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        found = run(mixed(tmp_path / "rows.jsonl"), model, two, tmp_path / "out", rule=FlaggingRule(top=4))
        assert ScreeningSummary.model_validate_json((tmp_path / "out" / "summary.json").read_text()) == found
        for trait in found.traits:
            assert trait.flagged == 4
            assert trait.units == found.units == sum(trait.counts) == sum(t.units for t in trait.by_length)
            assert [s.score for s in trait.top] == sorted((s.score for s in trait.top), reverse=True)
            first = trait.top[0]
            assert np.mean([value for _, value in first.pieces]) == pytest.approx(first.score, abs=0.5)
            assert trait.mean.low is not None
            assert trait.mean.value is not None
            assert trait.mean.low < trait.mean.value

    def test_of_another_format_writes_its_columns(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        (tmp_path / "rows.csv").write_text("n,question,answer\n1,Who?,The harbour master.\n2,What?,The tide.\n")
        run(tmp_path / "rows.csv", model, two, tmp_path / "out", rule=FlaggingRule(above=1e9))
        lines = (tmp_path / "out" / "clean.jsonl").read_text().splitlines()
        assert [json.loads(line)["answer"] for line in lines] == ["The harbour master.", "The tide."]
        assert json.loads(lines[0])["n"] == "1"
        assert (tmp_path / "out" / "flagged.jsonl").read_bytes() == b""

    def test_under_another_rule_scores_nothing_again(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        run(data, model, two, tmp_path / "out", method="difference")
        raw = run(data, model, two, tmp_path / "fresh", method="raw", rule=FlaggingRule(top=2))
        monkeypatch.setattr(parts, "score_shard", None)
        for method in ("difference", "prompt", "raw"):
            more = {} if method == "difference" else {"max_new_tokens": 9}
            done = run(data, model, two, tmp_path / "out", method=method, rule=FlaggingRule(top=2), **more)
        assert done.traits[0].mean == raw.traits[0].mean
        assert files(tmp_path / "out") == files(tmp_path / "fresh")

    def test_by_rate_sets_its_thresholds_on_normal_data_of_like_length(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data, normal = mixed(tmp_path / "rows.jsonl"), written(tmp_path / "normal.jsonl", talk(120, first=100))
        rule = FlaggingRule(rate=0.1, rate_per="answer")
        found = run(data, model, two, tmp_path / "out", rule=rule, normal=normal)
        usual = run(normal, model, two, tmp_path / "usual")
        table = pq.read_table(tmp_path / "usual" / "scores.parquet")
        scores, tokens = table["grumpy_score"].to_numpy(), table["tokens"].to_numpy()
        grumpy = found.traits[0]
        assert len(grumpy.bands) > 1
        assert grumpy.threshold is None
        assert sum(band.answers for band in grumpy.bands) == 120
        for band in grumpy.bands:
            own = np.sort(scores[(tokens >= band.shortest) & (tokens <= band.longest)])
            assert band.answers == len(own)
            assert band.threshold == pytest.approx(own[-int((len(own) + 1) * 0.1)], rel=1e-6)
        assert sum(band.units for band in grumpy.bands) == grumpy.units
        assert sum(band.flagged for band in grumpy.bands) == grumpy.flagged == sum(grumpy.flagged_counts)
        rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
        lengths = [r["tokens"] for r in rows]
        assert grumpy.outside == sum(not tokens.min() <= n <= tokens.max() for n in lengths)
        ends = [band.longest for band in grumpy.bands[:-1]]
        for row in rows:
            limit = grumpy.bands[sum(row["tokens"] > end for end in ends)].threshold
            assert row["grumpy_flagged"] == (row["grumpy_score"] > limit)
            assert not row["grumpy_flagged"] or f"above {limit:.4g}, which normal answers of" in row["why"]
        assert [s.flagged for s in grumpy.top] == sorted((s.flagged for s in grumpy.top), reverse=True)
        assert grumpy.normal == usual.traits[0].mean
        assert grumpy.normal_counts is not None
        assert sum(grumpy.normal_counts) == 120
        with pytest.raises(TooFewResponses, match="needs 122 normal answers"):
            run(data, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.01), normal=normal)

    def test_by_rate_flags_no_more_normal_rows_than_that(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        """The data are the normal data themselves, so that the blocks can be counted."""
        normal = written(tmp_path / "normal.jsonl", talk(120, turns=3))
        done = run(normal, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.1), normal=normal)
        assert done.rate is not None
        assert (done.rate.per, done.rate.rate, done.rate.normal_rows) == ("row", 0.1, 120)
        assert done.rate.expected == pytest.approx(12 / 121, rel=1e-3)
        assert done.rate.low < 0.1 < done.rate.high
        assert done.rate.normal_rows_reaching == 12  # a row a block
        assert done.flagged_rows < 12  # a row on an edge is not above it
        assert len((tmp_path / "out" / "flagged.jsonl").read_text().splitlines()) == done.flagged_rows
        assert len({trait.rule for trait in done.traits}) == 1
        assert "normal rows are flagged by any of 2 traits at a rate of 0.1" in done.traits[0].rule
        rule = FlaggingRule(rate=0.1, rate_per="answer")
        by_answer = run(normal, model, two, tmp_path / "out", rule=rule, normal=normal)
        assert by_answer.rate is not None
        assert (by_answer.rate.per, by_answer.rate.expected) == ("answer", None)
        assert by_answer.rate.normal_rows_reaching > 24
        with pytest.raises(TooFewResponses, match="needs 122 normal"):
            run(normal, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.01), normal=normal)

    def test_mends_flagged_answers_in_their_place(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        found = run(data, model, two, tmp_path / "out", rule=FlaggingRule(top=3), fix=True)
        table = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
        flagged = {(r["index"], r["turn"]) for r in table if r["why"]}
        fixed = (tmp_path / "out" / "fixed.jsonl").read_bytes().splitlines(keepends=True)
        rows = [r for r in open_data(data) if isinstance(r, Conversation) and r.index != 26]
        replaced = 0
        for row, line in zip(rows, fixed, strict=True):
            new = json.loads(line)["messages"]
            turns = [i for i, m in enumerate(row.messages) if m["role"] == "assistant"]
            for number, at in enumerate(turns):
                if (row.index, number) not in flagged:
                    assert new[at]["content"] == row.messages[at]["content"]
                    continue
                prompt = model.encode(row.messages[:at])
                own = model.tokenizer.decode(greedy(model, prompt.ids, SHORT), skip_special_tokens=True)
                assert new[at]["content"] == own
                replaced += 1
            if not any((row.index, n) in flagged for n in range(len(turns))):
                assert line == row.raw + b"\n"  # type: ignore[operator]
        assert replaced == len(flagged)
        assert f"{replaced} flagged answers" in found.notes[-1]
        run(data, model, two, tmp_path / "out", rule=FlaggingRule(top=3))
        assert not (tmp_path / "out" / "fixed.jsonl").exists()

    def test_asks_a_judge_about_what_is_flagged_and_as_many_others(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []

        class Fake:
            name = "fake"

            def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
                asked.append(len(answers))
                return [Judgement(100.0 if len(a) % 2 else 0.0) for a in answers]

        monkeypatch.setattr(job, "load_judges", lambda spec, vectors, model, cache: [Fake()] * len(vectors))
        found = run(
            mixed(tmp_path / "rows.jsonl"), model, two, tmp_path / "out", rule=FlaggingRule(top=5), judge="exemplars"
        )
        assert asked == [10, 10]
        assert (found.judge, found.judged) == ("fake", 20)
        for trait in found.traits:
            assert trait.threshold is not None
            assert all(s.judged == 0 and s.score > trait.threshold - 0.01 for s in trait.passed_by_judge)
            assert all(s.judged == 100 and s.score < trait.threshold + 0.01 for s in trait.seen_by_judge_only)
            assert trait.passed_by_judge or trait.seen_by_judge_only

    def test_stops_when_too_many_rows_are_broken_and_keeps_what_is_done(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows: list[Any] = [*talk(90), *(["{broken"] * 40), *talk(40)]
        data = written(tmp_path / "rows.jsonl", rows)
        with pytest.raises(InvalidData, match=r"more than the 20% that is allowed"):
            run(data, model, two, tmp_path / "out")
        assert len((tmp_path / "out" / "rejected.jsonl").read_bytes().splitlines()) == 23
        assert len(list((tmp_path / "out" / ".run").glob("*/part-*"))) == 15
        assert not (tmp_path / "out" / "clean.jsonl").exists()
        run(data, model, two, tmp_path / "out", broken=0.5)
        run(data, model, two, tmp_path / "fresh", broken=0.5)
        assert files(tmp_path / "out") == files(tmp_path / "fresh")

    def test_refuses_before_any_work(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = mixed(tmp_path / "rows.jsonl")
        monkeypatch.setattr(parts, "score_shard", None)
        with pytest.raises(InvalidArgument, match="where the results would be written"):
            run(data, model, two, tmp_path)
        with pytest.raises(InvalidArgument, match="needs normal data"):
            run(data, model, two, tmp_path / "out", rule=FlaggingRule(rate=0.1))
        with pytest.raises(InvalidArgument, match="Two vectors are named grumpy"):
            run(data, model, [two[0], two[0]], tmp_path / "out")
        with pytest.raises(InvalidArgument, match="no judge"):
            run(data, model, two, tmp_path / "out", judge="nobody")
        with pytest.raises(SaveFailed, match="it is not a folder"):
            run(data, model, two, written(tmp_path / "a file", []))
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(MissingExtra, match=r"needs pyarrow; .*-e '\.\[data\]'"):
            run(data, model, two, tmp_path / "out")


class TestAnEstimate:
    def test_compares_the_cheap_methods_with_the_full_one(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data = open_data(written(tmp_path / "rows.jsonl", talk(40, turns=2)))
        found = compare_methods(data, model, two, tmp_path / "out", ScreenSettings(max_new_tokens=SHORT), sample=60)
        assert (found.answers, found.sampled) == (80, 60)
        assert all(seconds is not None and seconds > 0 for seconds in found.seconds.values())
        assert [(a.trait, a.method) for a in found.agreement] == [
            (t, m) for t in ("grumpy", "gloomy") for m in ("difference", "prompt", "raw")
        ]
        raw = found.agreement[2]
        assert raw.spearman is not None
        assert raw.spearman.low is not None
        assert raw.spearman.low <= raw.spearman.value <= raw.spearman.high  # type: ignore[operator]
        again = compare_methods(data, model, two, tmp_path / "out", ScreenSettings(max_new_tokens=SHORT), sample=60)
        assert again.seconds["difference"] is None
        assert again.agreement == found.agreement
        assert {p.name for p in (tmp_path / "out").iterdir()} == {".run", "estimate.json"}

    def test_of_all_answers_has_the_reference_figures(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows = talk(30)
        data = open_data(written(tmp_path / "rows.jsonl", rows))
        found = compare_methods(data, model, two, tmp_path / "out", ScreenSettings(max_new_tokens=SHORT), sample=30)
        units: list[ScoredAnswer] = list(
            score_answers(
                model, conversations(rows), tiny.probes(two), BaseAnswers(model, tmp_path, max_new_tokens=SHORT)
            )
        )
        full, raw = ([u.score(m)[1] for u in units] for m in ("difference", "raw"))  # type: ignore[arg-type]
        one = next(a for a in found.agreement if (a.trait, a.method) == ("gloomy", "raw"))
        assert one.spearman is not None
        assert one.spearman.value == pytest.approx(reference.spearmanr(full, raw).statistic, abs=1e-5)
        assert one.top_tenth is not None
        same = set(np.argsort(full)[-3:]) & set(np.argsort(raw)[-3:])
        assert one.top_tenth.value == pytest.approx(len(same) / 3, abs=1e-5)
        assert one.top_hundredth is None
        assert one.mean.value == pytest.approx(np.mean(raw), abs=1e-5)

    def test_of_too_few_is_refused(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        data = open_data(written(tmp_path / "rows.jsonl", talk(30)))
        with pytest.raises(InvalidArgument, match="at least 20"):
            compare_methods(data, model, two, tmp_path / "out", ScreenSettings(), sample=5)
