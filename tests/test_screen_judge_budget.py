"""A judge with a budget: who is drawn, what is estimated, and a screening that goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom

from poise.data import open_data
from poise.errors import InvalidArgument
from poise.judge import Judgement
from poise.model import Model
from poise.report.screening import html_screening
from poise.screen import pipeline as job
from poise.screen.flagging import FlaggingRule
from poise.screen.judge_cascade import check_budget, draw_strata, estimate_cascade, shared_budget
from poise.screen.scoring import ScreenSettings
from poise.statistics.finite_population import count_interval
from poise.vector import PersonaVector
from screening import folder, model, small_windows, talk, two, written  # noqa: F401  (fixtures)


class TestTheIntervalOfACount:
    @pytest.mark.parametrize(("present", "sampled", "total"), [(0, 10, 50), (3, 10, 50), (10, 10, 50), (1, 40, 41)])
    def test_holds_every_count_that_the_sample_does_not_rule_out(self, present: int, sampled: int, total: int) -> None:
        low, high = count_interval(present, sampled, total)
        possible = [
            count
            for count in range(present, total - sampled + present + 1)
            if hypergeom.sf(present - 1, total, count, sampled) > 0.025
            and hypergeom.cdf(present, total, count, sampled) > 0.025
        ]
        assert (low, high) == (possible[0], possible[-1])

    def test_of_a_census_is_a_number_and_of_no_sample_everything(self) -> None:
        assert count_interval(7, 30, 30) == (7, 7)
        assert count_interval(0, 0, 30) == (0, 30)

    def test_of_millions_takes_no_time(self) -> None:
        low, high = count_interval(2, 500, 2_000_000)
        assert 900 < low < 1100
        assert 28_000 < high < 29_500


class TestWhoIsDrawn:
    def test_are_the_highest_and_others_at_random(self) -> None:
        above = np.arange(1000.0)[::-1] - 978.5  # the first 21 are flagged
        flagged = above > 0
        top, unflagged = draw_strata(above, flagged, 100, seed=(0, 0))
        assert (top.name, unflagged.name) == ("top", "unflagged")
        assert top.drawn.tolist() == top.places.tolist() == list(range(50))
        assert unflagged.places.tolist() == list(range(50, 1000))
        assert len(unflagged.drawn) == 50
        again, other = (draw_strata(above, flagged, 100, seed=(s, 0))[1].drawn.tolist() for s in (0, 1))
        assert again == unflagged.drawn.tolist() != other

    def test_leave_half_of_the_control_to_flagged_ones_that_are_left_over(self) -> None:
        above = np.arange(1000.0)[::-1] - 799.5
        strata = draw_strata(above, above > 0, 100, seed=(0, 0))
        assert [(s.name, len(s.places), len(s.drawn)) for s in strata] == [
            ("top", 50, 50), ("flagged", 150, 25), ("unflagged", 800, 25),
        ]  # fmt: skip

    def test_are_all_where_the_budget_is_enough(self) -> None:
        [top] = draw_strata(np.array([3.0, np.nan, -1.0, 2.0]), np.array([True, False, False, True]), 20, seed=(0, 0))
        assert top.drawn.tolist() == [0, 2, 3]

    @pytest.mark.parametrize("flagged_count", [0, 10, 400, 980, 1000])
    def test_use_the_budget_up(self, flagged_count: int) -> None:
        above = np.arange(1000.0)[::-1] - (999.5 - flagged_count)
        strata = draw_strata(above, above > 0, 100, seed=(0, 0))
        assert sum(len(s.drawn) for s in strata) == 100
        assert sorted(i for s in strata for i in s.places) == list(range(1000))

    def test_share_a_budget(self) -> None:
        assert shared_budget(100, 3) == [34, 33, 33]
        with pytest.raises(InvalidArgument, match="nobody is asked"):
            check_budget(100, None, 1)
        with pytest.raises(InvalidArgument, match="at least 20 a trait, 40 here"):
            check_budget(30, "exemplars", 2)


class TestWhatIsEstimated:
    def test_of_a_census_is_what_is(self) -> None:
        above, flagged = np.array([3.0, 2.0, 1.0, -1.0, -2.0]), np.array([True, True, True, False, False])
        strata = draw_strata(above, flagged, 20, seed=(0, 0))
        cascade = estimate_cascade(strata, flagged, {0: 90.0, 1: 10.0, 2: 80.0, 3: 70.0, 4: 0.0})
        assert (cascade.flagged, cascade.union, cascade.present.value) == (3, 4, 3.0)
        assert (cascade.flagged_precision.value, cascade.flagged_recall.value) == (0.6667, 0.6667)
        assert (cascade.union_precision.value, cascade.union_recall.value) == (0.75, 1.0)
        assert (cascade.flagged_recall.low, cascade.flagged_recall.high) == (0.6667, 0.6667)

    def test_scales_a_sample_up_to_its_stratum(self) -> None:
        above = np.arange(1000.0)[::-1] - 969.5
        flagged = above > 0
        strata = draw_strata(above, flagged, 100, seed=(0, 0))
        control = strata[1].drawn
        judged = {int(i): 100.0 for i in range(24)} | {int(i): 0.0 for i in range(24, 50)}
        judged |= {int(i): 100.0 if k < 2 else 0.0 for k, i in enumerate(control)}
        cascade = estimate_cascade(strata, flagged, judged)
        assert cascade.flagged_precision.value == 0.8
        assert cascade.present.value == 24 + 2 * 950 / 50
        assert cascade.flagged_recall.value == pytest.approx(24 / 62, abs=1e-4)
        assert cascade.union == 32
        assert cascade.union_precision.value == pytest.approx(26 / 32, abs=1e-4)
        assert cascade.union_recall.value == pytest.approx(26 / 62, abs=1e-4)
        fewest, most = count_interval(2, 50, 950)
        assert cascade.flagged_recall.low == pytest.approx(24 / (24 + most), abs=1e-4)
        assert cascade.flagged_recall.high == pytest.approx(24 / (24 + fewest), abs=1e-4)

    def test_where_the_judge_scores_nothing_is_not_known(self) -> None:
        above = np.arange(100.0)[::-1] - 89.5
        cascade = estimate_cascade(draw_strata(above, above > 0, 20, seed=(0, 0)), above > 0, {})
        assert cascade.flagged_recall.value is None
        assert cascade.present.value is None

    @pytest.mark.parametrize(("flagged_count", "rate_above", "rate_below"), [(40, 0.6, 0.02), (300, 0.3, 0.1)])
    def test_covers_the_truth_as_often_as_promised(
        self, flagged_count: int, rate_above: float, rate_below: float
    ) -> None:
        draw = np.random.default_rng(0)
        above = np.arange(2000.0)[::-1] - (1999.5 - flagged_count)
        flagged, covered = above > 0, []
        for seed in range(150):
            present = draw.random(2000) < np.where(flagged, rate_above, rate_below)
            strata = draw_strata(above, flagged, 200, seed=(seed, 0))
            judged = {int(i): 100.0 * present[i] for s in strata for i in s.drawn}
            cascade = estimate_cascade(strata, flagged, judged)
            finds = [i for i, score in judged.items() if score and not flagged[i]]
            truths = {
                "present": present.sum(),
                "flagged_precision": present[flagged].mean(),
                "flagged_recall": present[flagged].sum() / present.sum(),
                "union_precision": (present[flagged].sum() + len(finds)) / (flagged.sum() + len(finds)),
                "union_recall": (present[flagged].sum() + len(finds)) / present.sum(),
            }
            ends = {name: getattr(cascade, name) for name in truths}
            covered.append([ends[name].low - 1e-3 <= truths[name] <= ends[name].high + 1e-3 for name in truths])
        assert np.mean(covered, axis=0).min() >= 0.93


class OddOnes:
    """Finds the trait in answers of an odd length, and counts what it is asked."""

    name = "odd ones"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        self.asked.append(len(answers))
        return [Judgement(100.0 if len(a) % 2 else 0.0) for a in answers]


class TestAScreening:
    def screen(self, rows: Path, model: Model, vectors: Sequence[PersonaVector], out: Path, **plan: Any) -> Any:  # noqa: F811
        settings = ScreenSettings(method="raw", rule=FlaggingRule(top=5), judge="exemplars", **plan)
        return job.screen_data(open_data(rows), model, vectors, out, settings)

    def test_estimates_within_the_budget_and_goes_on_with_what_was_judged(
        self,
        model: Model,  # noqa: F811
        two: list[PersonaVector],  # noqa: F811
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        judge = OddOnes()
        monkeypatch.setattr(job, "load_judges", lambda spec, vectors, model, cache: [judge] * len(vectors))
        rows = written(tmp_path / "rows.jsonl", talk(100))
        out = tmp_path / "out"
        summary = self.screen(rows, model, two, out, judge_budget=60)
        assert judge.asked == [30, 30]
        assert summary.judged == 60
        lines = [json.loads(line) for line in (out / "judged.jsonl").read_text().splitlines()]
        assert len(lines) == 60
        assert {line["stratum"] for line in lines} == {"top", "unflagged"}
        assert "judged.jsonl" in summary.files
        answers = [row["messages"][1]["content"] for row in talk(100)]
        for trait in summary.traits:
            assert trait.cascade
            assert [s.asked for s in trait.cascade.strata] == [15, 15]
            flagged = [line for line in lines if line["trait"] == trait.trait and line["flagged"]]
            assert len(flagged) == trait.cascade.flagged == 5
            assert trait.cascade.flagged_precision.value == np.mean([len(answers[x["row"]]) % 2 for x in flagged])
            truth = sum(len(answer) % 2 for answer in answers)
            assert trait.cascade.present.low <= truth <= trait.cascade.present.high
            assert sum(note.startswith(f"{trait.trait}: the judge saw the 15 highest") for note in summary.notes) == 1
        assert "the judge saw the 15 highest answers" in html_screening(summary)
        written_files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        assert self.screen(rows, model, two, out, judge_budget=60) == summary
        assert judge.asked == [30, 30]  # nothing is asked twice
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == written_files
        self.screen(rows, model, two, out)
        assert not (out / "judged.jsonl").exists()

    def test_without_a_budget_has_no_estimate(
        self,
        model: Model,  # noqa: F811
        two: list[PersonaVector],  # noqa: F811
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(job, "load_judges", lambda spec, vectors, model, cache: [OddOnes()] * len(vectors))
        self.screen(written(tmp_path / "rows.jsonl", talk(30)), model, two, tmp_path / "out")
        assert all("cascade" not in t for t in json.loads((tmp_path / "out/summary.json").read_text())["traits"])

    def test_refuses_a_budget_before_any_work(
        self,
        model: Model,  # noqa: F811
        two: list[PersonaVector],  # noqa: F811
        tmp_path: Path,
    ) -> None:
        with pytest.raises(InvalidArgument, match="at least 20 a trait"):
            self.screen(written(tmp_path / "rows.jsonl", talk(30)), model, two, tmp_path / "out", judge_budget=10)
