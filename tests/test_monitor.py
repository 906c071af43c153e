"""Watching: what is read, when an alarm is raised and how often wrongly, drift, and tables that survive a kill."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats as reference
from transformers.utils import logging
from typer.testing import CliRunner, Result

import tiny
from poise import vector as vectors
from poise.activations import project
from poise.cli import app
from poise.data import Rejections, draw_conversations, open_data, turns
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument, InvalidData, InvalidSteering, MissingExtra, TooFewResponses
from poise.model import Encoded, Model, ask, load_model
from poise.monitor import AlarmWatcher, AnswerReadings, alarms_in_force, raised_alarms, summarize_projections
from poise.monitor import reference_readings as normals
from poise.monitor.calibrate import (
    AlarmSource,
    CalibrationSettings,
    calibrate_alarms,
    fit_drift_chart,
    set_alarms,
    set_drift_chart,
)
from poise.monitor.readings import summarize_response
from poise.monitor.table import TableWriter, write_readings_table
from poise.statistics.cusum import average_run_length, cusum_step, fit_cusum
from poise.storage.journal import Journal
from poise.vector import Alarm, Drift, PersonaVector

FACTS = AlarmSource(answers="own", max_new_tokens=8, temperature=1.0, data="normal.jsonl", data_sha256="0" * 64, seed=0)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def two(model: Model) -> list[PersonaVector]:
    return [tiny.vector(model, seed=seed) for seed in (1, 2)]


def alarm(reading: str = "mean", threshold: float = 0.0, rate: float = 0.01, **changes: Any) -> Alarm:
    facts: dict[str, Any] = {
        "reading": reading,
        "layer": 1,
        "threshold": threshold,
        "rate": rate,
        "low": 0.0,
        "high": 0.02,
        "n_answers": 200,
        "n_conversations": 200,
        "answers": "own",
        "max_new_tokens": 8,
        "temperature": 1.0,
        "data": "normal.jsonl",
        "data_sha256": "0" * 64,
        "seed": 0,
    }
    return Alarm(**(facts | changes))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


LONG_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello there, how are you?"},
    {"role": "assistant", "content": "Fine. And you? "},
    {"role": "user", "content": "Tell me a story."},
    {"role": "assistant", "content": "Once upon a time\nthere was a fox."},
    {"role": "user", "content": "And so it goes  on."},
    {"role": "assistant", "content": "Nobody asked why..."},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def talk(n: int, *, exchanges: int = 1) -> list[dict[str, Any]]:
    """Conversations of different lengths, from two sources."""
    words = " ".join(tiny.SENTENCES).split()
    return [
        {
            "source": "sea" if i % 2 else "land",
            "messages": [
                {
                    "role": role,
                    "content": " ".join([*words[(i + 7 * e) % 40 :][: 3 + (i + e) % 5], str(i)]),
                }
                for e in range(exchanges)
                for role in ("user", "assistant")
            ],
        }
        for i in range(n)
    ]


def normal_law(shift: float = 0.0) -> Any:
    return lambda z: reference.norm.cdf(z - shift)


class TestDrift:
    # One-sided, from S = 0. Brook & Evans 1972, section 4.3; Waldmann 1986, tables 1, 3, 5; Vance 1986, table 1; Lucas
    # & Crosier 1982, table 1, whose 168 of the two-sided chart is half of the one-sided run.
    @pytest.mark.parametrize(
        ("k", "h", "shift", "published", "within"),
        [
            (0.5, 3, 0, 117.59, 1e-3),
            (0.5, 3, -0.5, 1963, 1e-3),
            (0.5, 3, 0.5, 17.35, 1e-3),
            (0, 10, 0, 124.66, 1e-3),
            (0, 10, -0.125, 400.28, 1e-3),
            (0, 10, 1, 10.75, 1e-3),
            (0.5, 4, 0, 2 * 168, 5e-3),
            (0.5, 5, 0, 2 * 465, 5e-3),
        ],
    )
    def test_has_the_published_average_run_lengths(
        self, k: float, h: float, shift: float, published: float, within: float
    ) -> None:
        assert average_run_length(normal_law(shift), k, h) == pytest.approx(published, rel=within)

    def test_has_the_run_length_that_a_simulation_of_skewed_readings_has(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.exponential(size=400)
        made = fit_cusum(x, arl=200)
        assert made is not None
        assert made.arl > 200
        stated = average_run_length(lambda z: reference.expon.cdf(made.mean + made.sd * z), made.k, made.h)
        assert made.low < stated < made.high
        runs, s, n = [], 0.0, 0
        for value in rng.exponential(size=400_000).tolist():
            s, raised = cusum_step(s, value, mean=made.mean, sd=made.sd, k=made.k, h=made.h)
            n += 1
            if raised:
                runs.append(n)
                s, n = 0.0, 0
        assert np.mean(runs) == pytest.approx(stated, abs=4 * np.std(runs) / len(runs) ** 0.5)

    @pytest.mark.slow
    @pytest.mark.parametrize(("shape", "likeness"), [("one", 0.0), ("five", 0.4), ("giant", 0.4)])
    @pytest.mark.parametrize(
        "law", [reference.norm(), reference.lognorm(1), reference.t(3)], ids=["normal", "log", "t"]
    )
    def test_runs_as_long_as_it_says_whatever_the_tail_and_the_conversations(
        self, law: Any, shape: str, likeness: float
    ) -> None:
        """The true run length of each chart is computed from the distribution that the answers were drawn from."""
        rng, talks = np.random.default_rng(4), 300
        talk = np.repeat(np.arange(talks), {"one": [1] * 300, "five": [5] * 300, "giant": [900, *[1] * 299]}[shape])
        covered, true, times = [], [], 30
        for _ in range(times):
            common = rng.normal(size=talks)[talk]
            z = likeness**0.5 * common + (1 - likeness) ** 0.5 * rng.normal(size=len(talk))
            try:
                made = fit_cusum(law.ppf(reference.norm.cdf(z)), conversations=talk.tolist())
            except TooFewResponses:
                continue
            assert made is not None
            mean, sd = made.mean, made.sd
            true.append(average_run_length(lambda z, m=mean, s=sd: law.cdf(m + s * z), made.k, made.h))
            covered.append(made.low <= true[-1] <= made.high)
        assert len(true) >= 0.6 * times, "refused where the tail is heavy"
        assert np.mean(covered) >= 0.87, "of 30, where .95 are to be"
        heavy = law.dist.name == "t"  # the tail of some samples looks light; docs/monitoring.md says how far that goes
        assert np.mean(np.array(true) < 1000) <= (0.45 if heavy else 0.3), "more run shorter than is asked"
        assert np.mean(np.array(true) < 400) <= 0.1

    def test_is_refused_with_the_number_needed_where_the_answers_say_nothing_about_so_rare_an_event(self) -> None:
        rng = np.random.default_rng(0)
        with pytest.raises(TooFewResponses, match="needs normal answers from 100 conversations, and there are 60"):
            fit_cusum(rng.normal(size=300), conversations=[i // 5 for i in range(300)])
        with pytest.raises(
            TooFewResponses, match=r"every 1,000 answers needs about \d+ conversations .* there are 100"
        ):
            fit_cusum(np.random.default_rng(1).standard_t(1.2, size=100))
        with pytest.raises(TooFewResponses, match="one of 100 conversations alone makes 67% of it"):
            fit_cusum(np.random.default_rng(0).standard_t(1.2, size=100))

    def test_does_not_follow_one_conversation_of_most_answers(self) -> None:
        rng = np.random.default_rng(5)
        small = rng.normal(size=200)
        alone = fit_cusum(small)
        joined = fit_cusum([*small, *(2 + rng.normal(size=2000))], conversations=[*range(200), *[200] * 2000])
        assert alone is not None
        assert joined is not None
        assert joined.mean == pytest.approx(alone.mean, abs=0.02)  # 2 / 201 of it; pooled it would be 1.8

    def test_finds_a_shift_of_one_spread_within_a_score_of_answers(self) -> None:
        rng = np.random.default_rng(1)
        made = fit_cusum(rng.normal(3, 2, size=1000))
        assert made is not None
        s, raised, n = 0.0, False, 0
        while not raised:
            s, raised = cusum_step(s, rng.normal(5, 2), mean=made.mean, sd=made.sd, k=made.k, h=made.h)
            n += 1
        assert n < 30

    def test_states_an_interval_that_more_answers_narrow(self) -> None:
        rng = np.random.default_rng(2)
        few, many = fit_cusum(rng.normal(size=150)), fit_cusum(rng.normal(size=3000))
        assert few is not None
        assert many is not None
        assert few.low < few.arl < few.high
        assert few.low < 1000 < few.high
        assert many.low < 1000 < many.high
        assert many.high / many.low < few.high / few.low

    def test_has_no_chart_where_nothing_varies(self) -> None:
        assert fit_cusum([2.0] * 200) is fit_cusum([0.1] * 7) is fit_cusum([2.0]) is fit_cusum([]) is None


class TestReadings:
    def test_are_prompt_mean_and_the_highest_window_of_eight(self) -> None:
        answer = [0.0] * 10 + [8.0] + [1.0] * 8 + [0.0] * 5  # one odd token and a stretch
        found = summarize_projections(torch.tensor([[7.0, -1.0], *([a, -a] for a in answer)]))
        assert (found.prompt, found.tokens) == ((7.0, -1.0), 24)
        assert found.mean == pytest.approx((16 / 24, -16 / 24))
        best = max(sum(answer[i : i + 8]) / 8 for i in range(17))
        assert found.peak == pytest.approx((best, 0.0))

    def test_of_a_short_answer_have_its_mean_as_peak(self) -> None:
        found = summarize_projections(torch.tensor([[0.0], [1.0], [3.0]]))
        assert found.mean == found.peak == (2.0,)

    def test_of_an_empty_answer_are_missing_and_raise_nothing(self) -> None:
        found = summarize_projections(torch.tensor([[5.0]]))
        assert found.prompt == (5.0,)
        assert math.isnan(found.mean[0])
        assert math.isnan(found.peak[0])
        raised = raised_alarms(found, [[alarm("prompt", 4.0), alarm("mean", -1e9), alarm("peak", -1e9)]])
        assert [r.alarm.reading for r in raised] == ["prompt"]

    def test_while_generating_are_those_of_the_finished_text(self, model: Model, two: list[PersonaVector]) -> None:
        prompts, probes = [model.encode(ask(s)) for s in tiny.SENTENCES[:3]], tiny.probes(two, 2)
        generated = LocalEngine(model).generate(prompts, SamplingParams(12), probes=probes)
        for prompt, answer in zip(prompts, generated, strict=True):
            assert answer.readings is not None
            live = summarize_projections(answer.readings)
            whole = Encoded((*prompt.ids, *answer.ids), len(prompt.ids), len(prompt.ids) + len(answer.ids))
            later = project(model, [whole], probes)[0][whole.start - 1 : whole.end]
            assert live.prompt == pytest.approx(later[0].tolist(), abs=1e-4)
            assert live.mean == pytest.approx(later[1:].mean(0).tolist(), abs=1e-4)
            assert live.peak == pytest.approx(summarize_projections(later).peak, abs=1e-4)


class TestProbes:
    def test_lie_at_the_alarms_layer_before_the_certificates_before_the_default(self, model: Model) -> None:
        plain = tiny.vector(model)
        certified = plain.with_certificate({"layer": 2})
        tested = plain.with_certificate({"layer": 2, "monitoring": {"layer": 3, "answer_layer": None}})
        answers = plain.with_certificate({"layer": 2, "monitoring": {"layer": 3, "answer_layer": 0}})
        set_on = tested.with_alarms([alarm(layer=1)])
        given = [plain, certified, tested, answers, set_on]
        assert [p.layer for p in tiny.probes(given)] == [1, 2, 3, 0, 1]
        assert {p.layer for p in tiny.probes(given, 3)} == {3}

    def test_are_unit_directions(self, two: list[PersonaVector]) -> None:
        probe = tiny.probes(two, 3)[1]
        assert probe.direction.norm() == pytest.approx(1, abs=1e-6)
        assert torch.equal(probe.direction, two[1].unit(3))

    def test_of_no_such_layer_or_of_nothing_are_refused(self, model: Model, two: list[PersonaVector]) -> None:
        with pytest.raises(InvalidSteering, match="Layer 9 is out of range"):
            tiny.probes(two, 9)
        nothing = tiny.vector(model, scale=0.0)
        with pytest.raises(InvalidSteering, match="is zero at layer"):
            tiny.probes([nothing])


class TestAlarms:
    @pytest.mark.parametrize("threshold", [0.0, 1e-7, 3.25, -3.25, 4096.5])
    def test_are_not_raised_by_the_rounding_of_the_answer_that_set_them(self, threshold: float) -> None:
        single = np.float32(threshold)
        for value in (single, np.nextafter(single, np.float32(np.inf)), single + np.spacing(single) * 8):
            assert not alarm(threshold=threshold).passed_by(float(value))
        assert alarm(threshold=threshold).passed_by(threshold + 2e-5 * max(1.0, abs(threshold)))
        assert not alarm(threshold=threshold).passed_by(math.nan)

    def test_are_the_same_whichever_vectors_are_read_along(self, model: Model, two: list[PersonaVector]) -> None:
        rows = [{"question": f"What is {n}?", "answer": f"That makes {n * n} of it."} for n in range(300)]
        plan = CalibrationSettings(rates=(0.05,), read_given_answers=True)
        [calibrated_beside, _] = calibrate_alarms(rows, model, two, plan).vectors
        place = calibrated_beside.at("read")
        texts = [model.encode(ask(row["question"]), row["answer"]) for row in rows]
        raised = []
        for probes in ([place.probe], [place.probe, two[1].at("read").probe]):
            alarms = [place.alarms, *([] for _ in probes[1:])]
            values = project(model, texts, probes)
            readings = [summarize_response(v, text) for v, text in zip(values, texts, strict=True)]
            raised.append([[r.alarm.reading for r in raised_alarms(reading, alarms)] for reading in readings])
        assert raised[0] == raised[1]
        assert max(sum(name in one for one in raised[0]) for name in ("prompt", "mean", "peak")) <= 15

    def test_in_force_are_the_topics_own_and_else_those_of_all(self) -> None:
        everywhere, other_rate = alarm(), alarm(rate=0.05)
        sea, prompt = alarm(topic="sea", threshold=1.0), alarm("prompt", topic="land")
        set_on = [everywhere, sea, other_rate, prompt]
        assert alarms_in_force(set_on) == [everywhere, other_rate]
        assert alarms_in_force(set_on, "sea") == [sea, other_rate]
        assert alarms_in_force(set_on, "land") == [everywhere, other_rate, prompt]
        assert alarms_in_force(reversed(set_on), "sea") == [other_rate, sea]

    def test_are_raised_by_what_passes_them_in_its_own_column(self) -> None:
        readings = AnswerReadings(prompt=(1.0, 5.0), mean=(2.0, 5.0), peak=(3.0, 5.0), tokens=9)
        own = [[alarm("prompt", 1.5), alarm("mean", 1.5)], [alarm("peak", 4.9), alarm("peak", 5.1, rate=0.001)]]
        raised = raised_alarms(readings, own)
        assert [(r.column, r.alarm.reading, r.value, r.token) for r in raised] == [
            (0, "mean", 2.0, 9),
            (1, "peak", 5.0, 9),
        ]

    def test_are_not_raised_by_what_equals_them(self) -> None:
        assert (
            raised_alarms(AnswerReadings(prompt=(1.0,), mean=(1.0,), peak=(1.0,), tokens=5), [[alarm(threshold=1.0)]])
            == []
        )

    @pytest.mark.parametrize("seed", range(20))
    def test_of_an_answer_that_is_coming_are_those_of_the_finished_one(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        values = torch.randn((1 + seed * 2, 2), generator=rng)
        own = [[alarm(r, t) for r, t in (("prompt", 0.0), ("mean", 0.1), ("peak", 0.5))]] * 2
        watcher = AlarmWatcher(own)
        raised = [r for row in values.split(3) for r in watcher.see(row)]
        early = {(r.column, r.alarm.reading) for r in raised}
        late = watcher.end()
        assert "mean" not in {reading for _, reading in early}
        assert len({(r.column, r.alarm) for r in [*raised, *late]}) == len([*raised, *late])
        wanted = {(r.column, r.alarm.reading) for r in raised_alarms(summarize_projections(values), own)}
        assert early | {(r.column, r.alarm.reading) for r in late} == wanted

    def test_of_a_peak_are_raised_at_the_token_that_completes_the_window(self) -> None:
        watcher = AlarmWatcher([[alarm("prompt", 0.5), alarm("peak", 0.9)]])
        assert [r.alarm.reading for r in watcher.see(torch.ones(1, 1))] == ["prompt"]
        assert watcher.see(torch.ones(7, 1)) == []
        assert [(r.alarm.reading, r.token) for r in watcher.see(torch.ones(3, 1))] == [("peak", 8)]
        assert watcher.end() == []
        assert AlarmWatcher([[alarm()]]).end() == []

    def test_are_kept_in_the_vector_file_and_missing_from_old_ones(self, model: Model, tmp_path: Path) -> None:
        made = Drift(
            reading="mean",
            layer=1,
            mean=0,
            sd=1,
            k=0.5,
            h=5,
            arl=1000,
            low=500,
            high=None,
            n_answers=9,
            n_conversations=9,
        )
        with_alarms = tiny.vector(model).with_alarms([alarm(topic="sea"), alarm("peak")], made)
        vectors.save_vector(with_alarms, tmp_path / "v.safetensors")
        again = vectors.load_vector(tmp_path / "v.safetensors")
        assert again.header == with_alarms.header
        assert again.with_certificate({"layer": 1}).header.alarms == with_alarms.header.alarms
        old = tiny.vector(model).header.model_dump(mode="json", by_alias=True, exclude={"alarms", "drift"})
        assert vectors.Header.model_validate(old).alarms == ()
        assert vectors.Header.model_validate(old).drift is None


def calibrated(
    model: Model, own: list[PersonaVector], path: Path, plan: CalibrationSettings, folder: Path | None = None
) -> Any:
    data = open_data(path, need="assistant" if plan.read_given_answers else "user")
    return calibrate_alarms(data, model, own, plan, folder)


class TestCalibration:
    def test_sets_thresholds_by_the_readings_of_the_models_own_answers(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        path = write(tmp_path / "normal.jsonl", talk(60))
        done = calibrated(model, two, path, CalibrationSettings(rates=(0.1, 0.2), sampling=SamplingParams(10), seed=3))
        assert len(done.reference.readings) == 60
        for column, vector in enumerate(done.vectors):
            assert len(vector.header.alarms) == 6
            for a in vector.header.alarms:
                values = np.array([r.of(a.reading)[column] for r in done.reference.readings])
                assert np.sum(values > a.threshold) == math.floor(61 * a.rate) - 1
                assert (a.n_answers, a.n_conversations, a.answers, a.max_new_tokens) == (60, 60, "own", 10)
                assert (a.temperature, a.data, a.seed, a.layer) == (1.0, "normal.jsonl", 3, vector.at("read").layer)
                assert a.low < a.rate < a.high
                assert len(a.data_sha256) == 64

    def test_of_given_answers_reads_every_turn_and_counts_conversations(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        path = write(tmp_path / "normal.jsonl", talk(40, exchanges=3))
        done = calibrated(model, two, path, CalibrationSettings(rates=(0.1,), read_given_answers=True))
        a = done.vectors[0].header.alarms[0]
        assert (a.n_answers, a.n_conversations, a.answers, a.temperature) == (120, 40, "given", None)
        assert a.max_new_tokens == max(r.tokens for r in done.reference.readings)
        one = next(iter(open_data(path)))
        answer = turns(one)[1]  # type: ignore[arg-type]
        text = model.encode(answer.history, answer.answer)
        alone = project(model, [text], tiny.probes(two))[0][text.start - 1 : text.end]
        assert done.reference.readings[1].mean == pytest.approx(alone[1:].mean(0).tolist(), abs=1e-4)

    def test_by_topic_adds_a_topics_own_thresholds_where_it_can_bear_them(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        rows = [row for row in talk(60) if row["source"] == "sea"] + [{**talk(1)[0], "source": "rare"}]
        path = write(tmp_path / "normal.jsonl", rows)
        done = calibrated(model, two[:1], path, CalibrationSettings(rates=(0.1,), read_given_answers=True, by="source"))
        topics = {a.topic for a in done.vectors[0].header.alarms}
        assert topics == {None, "sea"}
        assert list(done.topics_without_alarms) == ["rare"]
        assert "there are 1" in done.topics_without_alarms["rare"]
        with pytest.raises(InvalidArgument, match=r"No row has a field 'subject' .* fields: source"):
            calibrated(model, two[:1], path, CalibrationSettings(rates=(0.1,), read_given_answers=True, by="subject"))

    def test_refuses_a_rate_before_anything_is_generated(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        path = write(tmp_path / "normal.jsonl", talk(30))
        with pytest.raises(TooFewResponses, match=r"needs 122 normal answers .* there are 30"):
            calibrated(model, two, path, CalibrationSettings(rates=(0.1, 0.01)), tmp_path / "run")
        assert not (tmp_path / "run" / "readings.jsonl").exists()
        with pytest.raises(InvalidArgument, match="limit is 0"):
            CalibrationSettings(limit=0)

    def test_asks_each_prompt_once_and_leaves_out_what_has_no_room(self, model: Model, tmp_path: Path) -> None:
        long = {"messages": [{"role": "user", "content": "why " * 300}]}
        path = write(tmp_path / "normal.jsonl", [*talk(5), *talk(5), long])
        data = open_data(path, need="user")
        chosen = draw_conversations(data, 100, rejections=Rejections())
        probes = tiny.probes([tiny.vector(model)])
        found = normals.read_generated_answers(
            chosen, LocalEngine(model), model, probes, SamplingParams(4), journal=Journal(None)
        )
        assert len(found.readings) == 5
        assert found.left_out == {"asked already": 5, "longer than the model's window": 1}
        with pytest.raises(InvalidArgument, match="leave no room for a prompt in the window"):
            normals.read_generated_answers(
                chosen, LocalEngine(model), model, probes, SamplingParams(256), journal=Journal(None)
            )

    def test_draws_at_most_so_many_from_all_over_the_data(self, tmp_path: Path) -> None:
        data = open_data(write(tmp_path / "normal.jsonl", talk(200)))
        one, again, other = (
            [c.index for c in draw_conversations(data, 50, seed=s, rejections=Rejections())] for s in (0, 0, 1)
        )
        assert one == again == sorted(set(one))
        assert len(one) == 50
        assert one != other
        assert min(one) < 50
        assert max(one) > 150

    def test_resumed_computes_only_what_is_missing_and_ends_the_same(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, plan = (
            write(tmp_path / "normal.jsonl", talk(40)),
            CalibrationSettings(rates=(0.1,), sampling=SamplingParams(6), batch=8),
        )
        unbroken = calibrated(model, two, path, plan, tmp_path / "a")
        calibrated(model, two, path, plan, tmp_path / "b")
        journal = tmp_path / "b" / "readings.jsonl"
        whole = journal.read_bytes()
        journal.write_bytes(whole[: len(whole) * 2 // 3])
        batches: list[int] = []
        generate = LocalEngine.generate

        def counted(self: LocalEngine, prompts: Any, *args: Any, **options: Any) -> Any:
            batches.append(len(prompts))
            return generate(self, prompts, *args, **options)

        monkeypatch.setattr(LocalEngine, "generate", counted)
        resumed = calibrated(model, two, path, plan, tmp_path / "b")
        assert 0 < len(batches) < 5
        assert [v.header for v in resumed.vectors] == [v.header for v in unbroken.vectors]

    def test_answers_the_same_whatever_watches(self, model: Model, two: list[PersonaVector]) -> None:
        prompts = [model.encode(ask(s)) for s in tiny.SENTENCES]
        alone, both = (
            normals.generate_and_read(
                LocalEngine(model), model, prompts, SamplingParams(8), tiny.probes(v), journal=Journal(None)
            )
            for v in (two[:1], two)
        )
        assert [r.mean[0] for r in alone] == pytest.approx([r.mean[0] for r in both], abs=1e-5)

    def test_sets_a_drift_chart_on_a_hundred_conversations_and_none_on_fewer(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.normal(2, 3, size=120)
        readings = tuple(AnswerReadings(prompt=(0.0,), mean=(v,), peak=(v,), tokens=5) for v in values.tolist())
        made = set_drift_chart(
            normals.ReferenceReadings(readings=readings, conversations=tuple(range(120)), topics=(None,) * 120), 0, 7
        )
        assert made is not None
        assert (made.mean, made.sd) == pytest.approx((values.mean(), values.std(ddof=1)))
        assert (made.layer, made.reading, made.n_answers) == (7, "mean", 120)
        assert made.low < 1000 < made.arl < (made.high or math.inf)
        half = normals.ReferenceReadings(
            readings=readings, conversations=tuple(i // 2 for i in range(120)), topics=(None,) * 120
        )
        assert set_drift_chart(half, 0, 7) is None
        assert fit_drift_chart(half, 0, 7) == (
            "A chart for drift needs normal answers from 100 conversations, and there are 60; bring more rows."
        )

    def test_leaves_missing_readings_out_of_the_count(self) -> None:
        nothing = AnswerReadings(prompt=(0.0,), mean=(math.nan,), peak=(math.nan,), tokens=0)
        some = tuple(
            AnswerReadings(prompt=(float(i),), mean=(float(i),), peak=(float(i),), tokens=5) for i in range(30)
        )
        talked = normals.ReferenceReadings(
            readings=(*some, nothing, nothing), conversations=tuple(range(32)), topics=(None,) * 32
        )
        found, _ = set_alarms(talked, 0, 1, [0.1], FACTS)
        assert {a.reading: a.n_answers for a in found} == {"prompt": 32, "mean": 30, "peak": 30}


MENDABLE = [
    '{"messages": [{"role": "user", "content": "cut sh',
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "narrator", "content": "He laughs."}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  "}]},
    {"messages": [{"role": "user", "content": "Hi"}]},
    {"messages": "none"},
    {"messages": [{"role": "user", "content": "why " * 300}, {"role": "assistant", "content": "So."}]},
    "[1, 2]",
    '{"messages": null}',
]


def scored(model: Model, own: list[PersonaVector], data: Path, out: Path, **options: Any) -> Any:
    return write_readings_table(open_data(data), model, own, out, **options)


class TestATable:
    def test_has_a_row_for_every_answer_and_trait(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        data = write(tmp_path / "log.jsonl", talk(5, exchanges=2))
        named = [tiny.vector(model, seed=1), tiny.vector(model, seed=2, trait=tiny.trait("sunny"))]
        done = scored(model, named, data, tmp_path / "t.jsonl")
        rows = lines(tmp_path / "t.jsonl")
        assert [(r["index"], r["turn"], r["trait"]) for r in rows] == [
            (i, t, name) for i in range(5) for t in range(2) for name in ("grumpy", "sunny")
        ]
        assert {r["file"] for r in rows} == {str(data)}
        assert [r["row"] for r in rows] == [r["index"] for r in rows]
        probes = tiny.probes(named)
        for number, one in enumerate(open_data(data)):
            for turn in turns(one):  # type: ignore[arg-type]
                text = model.encode(turn.history, turn.answer)
                wanted = summarize_projections(project(model, [text], probes)[0][text.start - 1 : text.end])
                for column in range(2):
                    row = rows[number * 4 + turn.number * 2 + column]
                    for reading in ("prompt", "mean", "peak"):
                        assert row[reading] == pytest.approx(wanted.of(reading)[column], abs=1e-4)
                    assert (row["tokens"], row["layer"]) == (wanted.tokens, probes[column].layer)
                    assert (row["cut"], row["alarms"], row["drift"], row["unread"]) == (False, [], None, None)
        assert (done.counts.turns, len(done.rejections)) == (10, 0)
        assert not (tmp_path / "t.jsonl.rejected.jsonl").exists()
        assert not (tmp_path / "t.jsonl.run").exists()

    def test_leaves_broken_rows_out_and_lists_them(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        good = talk(600)
        mixed = [*good[:300], *MENDABLE, *good[300:]]
        done = scored(model, two, write(tmp_path / "log.jsonl", mixed), tmp_path / "t.jsonl")
        rows, listed = lines(tmp_path / "t.jsonl"), lines(done.rejections.path)
        assert len(rows) == 1200
        assert [r["index"] for r in listed] == list(range(300, 308))
        assert [r["reason"].partition(":")[0] for r in listed] == [
            "broken JSON",
            "unknown role",
            "empty turn",
            "no assistant turn",
            "no list of turns",
            "longer than the model's window",
            "not a row",
            "no list of turns",
        ]
        assert {r["index"] for r in rows} == set(range(608)) - set(range(300, 308))

    def test_of_nothing_but_broken_rows_is_refused(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        data = write(tmp_path / "log.jsonl", [*talk(1), *(MENDABLE * 40)])
        with pytest.raises(InvalidData, match="more than the 20% that"):
            scored(model, two, data, tmp_path / "t.jsonl")

    def test_says_what_it_could_not_read_of_a_conversation(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        messages = [*LONG_TALK, {"role": "user", "content": "why " * 300}, LONG_TALK[-1]]
        data = write(tmp_path / "log.jsonl", [{"messages": messages}, *talk(2)])
        done = scored(model, two[:1], data, tmp_path / "t.jsonl")
        row = lines(tmp_path / "t.jsonl")[3]
        assert (row["turn"], row["mean"], row["tokens"]) == (3, None, None)
        assert row["unread"].startswith("longer than the model's window")
        assert done.counts.unread == {"longer than the model's window": 1}

    def test_goes_on_where_the_model_breaks_on_a_text(self, two: list[PersonaVector], tmp_path: Path) -> None:
        broken = tiny.model("llama")
        token = broken.tokenizer("§", add_special_tokens=False)["input_ids"][-1]
        with torch.no_grad():
            broken.lm.model.embed_tokens.weight[token] = float("nan")
        rows = talk(6)
        rows[2]["messages"][1]["content"] = "What § is this?"
        done = scored(broken, two[:1], write(tmp_path / "log.jsonl", rows), tmp_path / "t.jsonl")
        table = lines(tmp_path / "t.jsonl")
        assert [r["unread"] for r in table] == [None, None, "the model gave NaN or infinity", None, None, None]
        assert [r["mean"] is None for r in table] == [False, False, True, False, False, False]
        assert done.counts.turns == 6

    def test_says_which_alarms_are_raised_by_the_rows_own_topic(self, model: Model, tmp_path: Path) -> None:
        data = write(tmp_path / "log.jsonl", talk(4))
        own = tiny.vector(model).with_alarms(
            [
                alarm("mean", 1e9),
                alarm("mean", -1e9, topic="sea"),
                alarm("prompt", -1e9, rate=0.05),
                alarm("peak", -1e9, layer=3),
            ]
        )
        plain = scored(model, [own], data, tmp_path / "a.jsonl")
        assert [r["alarms"] for r in lines(tmp_path / "a.jsonl")] == [["prompt@0.05"]] * 4
        assert plain.counts.alarms == {"grumpy": {"mean@0.01": 0, "prompt@0.05": 4}}
        scored(model, [own], data, tmp_path / "b.jsonl", by="source")
        found = [(r["topic"], r["alarms"]) for r in lines(tmp_path / "b.jsonl")]
        assert found == [("land", ["prompt@0.05"]), ("sea", ["mean@0.01", "prompt@0.05"])] * 2

    def test_carries_drift_from_row_to_row_and_begins_anew_after_an_alarm(self, model: Model, tmp_path: Path) -> None:
        data = write(tmp_path / "log.jsonl", talk(12))
        plain = tiny.vector(model)
        scored(model, [plain], data, tmp_path / "a.jsonl", layer=1)
        means = [r["mean"] for r in lines(tmp_path / "a.jsonl")]
        made = {"mean": float(np.mean(means)) - 1, "sd": 1.0, "k": 0.5, "h": 2.0}
        set_on = Drift(reading="mean", layer=1, arl=9, low=1, high=None, n_answers=9, n_conversations=9, **made)
        done = scored(model, [plain.with_alarms([alarm()], set_on)], data, tmp_path / "b.jsonl")
        s, wanted = 0.0, []
        for mean in means:
            s = max(0.0, s + mean - made["mean"] - 0.5)
            wanted.append(s)
            s = 0.0 if s > 2 else s
        rows = lines(tmp_path / "b.jsonl")
        assert [r["drift"] for r in rows] == pytest.approx(wanted, abs=1e-3)
        assert [r["drift_alarm"] for r in rows] == [w > 2 for w in wanted]
        assert done.counts.alarms["grumpy"]["drift"] == sum(w > 2 for w in wanted) > 0

    def test_as_parquet_holds_what_the_lines_hold(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        data = write(tmp_path / "log.jsonl", [*talk(5, exchanges=2), MENDABLE[1]])
        own = two[0].with_alarms([alarm("mean", 0.0)])
        scored(model, [own], data, tmp_path / "t.jsonl")
        scored(model, [own], data, tmp_path / "t.parquet")
        assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == lines(tmp_path / "t.jsonl")
        assert list(parquet.read_schema(tmp_path / "t.parquet").names) == list(lines(tmp_path / "t.jsonl")[0])

    def test_of_another_format_is_refused_before_any_work(
        self, model: Model, two: list[PersonaVector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = write(tmp_path / "log.jsonl", talk(2))
        with pytest.raises(InvalidArgument, match=r"ends in neither \.jsonl nor \.parquet"):
            scored(model, two, data, tmp_path / "t.csv")
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(
            MissingExtra,
            match=r"needs pyarrow; in a checkout of Poise run pip install -e '\.\[data\]', or install the wheel",
        ):
            scored(model, two, data, tmp_path / "t.parquet")
        assert not list(tmp_path.glob("t.*"))


class TestATableThatWasCutOff:
    def rows(self) -> list[Any]:
        good = talk(700, exchanges=2)
        return [*good[:200], MENDABLE[1], *good[200:511], *MENDABLE[:3], *good[511:]]

    def test_goes_on_after_the_last_whole_window_and_ends_with_the_same_bytes(
        self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = write(tmp_path / "log.jsonl", self.rows())
        made = Drift(
            reading="mean", layer=1, mean=0, sd=1, k=0.1, h=3, arl=9, low=1, high=None, n_answers=9, n_conversations=9
        )
        own = [tiny.vector(model).with_alarms([alarm("mean", 0.5)], made)]
        whole = scored(model, own, data, tmp_path / "a.jsonl")
        append, windows = TableWriter.append, 0

        def killed(self: TableWriter, *args: Any) -> None:
            nonlocal windows
            windows += 1
            if windows == 2:
                self._file.write(b'{"half of a ro')
                self._file.flush()
                raise KeyboardInterrupt
            append(self, *args)

        for _ in range(2):  # killed in the same window twice
            monkeypatch.setattr(TableWriter, "append", killed)
            windows = 0 if not (tmp_path / "b.jsonl.run").exists() else 1
            with pytest.raises(KeyboardInterrupt):
                scored(model, own, data, tmp_path / "b.jsonl")
            assert not (tmp_path / "b.jsonl").exists()
        monkeypatch.setattr(TableWriter, "append", append)
        resumed = scored(model, own, data, tmp_path / "b.jsonl")
        assert resumed.began_at > 0
        assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
        assert resumed.rejections.path.read_bytes() == whole.rejections.path.read_bytes()
        assert resumed.counts == whole.counts
        assert str(resumed.rejections) == str(whole.rejections)

    def test_begins_anew_for_other_vectors_or_other_data(
        self, model: Model, two: list[PersonaVector], tmp_path: Path
    ) -> None:
        out = tmp_path / "t.jsonl"
        table = TableWriter(out, "another job")
        table.append([{"of": "another job"}], 7)
        table.close()
        table = TableWriter(out, "another job")
        assert table.start == 7
        table.close()
        done = scored(model, two, write(tmp_path / "log.jsonl", talk(3)), out)
        assert done.began_at == 0
        assert len(lines(out)) == 6

    @pytest.mark.slow
    @pytest.mark.timeout(300)
    def test_by_kill_9_ends_with_the_same_bytes(self, tmp_path: Path) -> None:
        data = write(tmp_path / "log.jsonl", self.rows())
        program = (
            "import sys, tiny; from pathlib import Path\n"
            "from poise.data import open_data; from poise.monitor.table import write_readings_table\n"
            "model = tiny.model('llama'); data, out = map(Path, sys.argv[1:])\n"
            "write_readings_table(open_data(data), model, [tiny.vector(model)], out)\n"
        )

        out = tmp_path / "t.jsonl"
        process = subprocess.Popen([sys.executable, "-c", program, data, out], cwd=Path(__file__).parent)
        while process.poll() is None and not (out.with_name("t.jsonl.run") / "state.json").exists():
            time.sleep(0.01)
        process.kill()
        assert process.wait() != 0
        assert not out.exists()
        tiny_model = tiny.model("llama")
        resumed, _ = (
            scored(tiny_model, [tiny.vector(tiny_model)], data, tmp_path / name) for name in ("t.jsonl", "whole.jsonl")
        )
        assert resumed.began_at > 0
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def poise(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A tiny model on disk and two vectors of it."""
    logging.disable_progress_bar()
    where = tmp_path_factory.mktemp("files")
    tiny.lm().save_pretrained(where / "model")
    tiny.chatml().save_pretrained(where / "model")
    loaded = load_model(str(where / "model"))
    for seed, name in enumerate(("grumpy", "sunny")):
        vectors.save_vector(tiny.vector(loaded, seed=seed, trait=tiny.trait(name)), where / f"{name}.safetensors")
    yield where / "model", where
    logging.enable_progress_bar()


class TestTheCommands:
    def test_set_alarms_and_then_read_by_them(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        model, where = files
        own = [where / "grumpy.safetensors", where / "sunny.safetensors"]
        normal = write(tmp_path / "normal.jsonl", [*talk(60), MENDABLE[1]])
        options = ("--rate", 0.1, "--rate", 0.2, "--max-new-tokens", 6, "--by", "source", "--json")
        result = poise("calibrate", *own, "--model", model, "--normal", normal, *options)
        assert result.exit_code == 0, result.stderr
        said = json.loads(result.stdout)
        assert (said["answers"], said["rows"], said["rejected"]) == (60, 61, {"unknown role": 1})
        assert [v["trait"] for v in said["vectors"]] == ["grumpy", "sunny"]
        kept = [vectors.load_vector(path).header.alarms for path in own]
        for written, vector in zip(kept, said["vectors"], strict=True):
            assert [a.model_dump(mode="json") for a in written] == vector["alarms"]
        assert {(a.reading, a.rate, a.topic) for a in kept[0]} == {
            (reading, rate, topic)
            for reading in ("prompt", "mean", "peak")
            for rate in (0.1, 0.2)
            for topic in (None, "sea", "land")
        }
        assert "18 at layer" in poise("show", own[0]).stdout

        log = write(tmp_path / "log.jsonl", [*talk(9, exchanges=2), *MENDABLE[:2]])
        given = ("read", log, "--vector", own[0], "--vector", own[1], "--model", model, "--by", "source")
        result = poise(*given, "--out", tmp_path / "t.jsonl", "--json")
        assert result.exit_code == 0, result.stderr
        said = json.loads(result.stdout)
        rows = lines(tmp_path / "t.jsonl")
        assert (said["answers"], said["rows"], len(rows)) == (18, 11, 36)
        assert said["rejected"] == {"broken JSON": 1, "unknown role": 1}
        assert len(lines(Path(said["rejected_list"]))) == 2
        counted = sum(name == "mean@0.1" for r in rows if r["trait"] == "sunny" for name in r["alarms"])
        assert said["alarms"]["sunny"]["mean@0.1"] == counted
        result = poise(*given, "--out", tmp_path / "t.parquet")
        assert result.stdout.strip() == str(tmp_path / "t.parquet")
        assert "18 answers; 2 of 11 rows rejected" in result.stderr
        assert "sunny: mean@0.1" in result.stderr

    def test_show_what_was_set_in_80_columns(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        model, where = files
        normal = write(tmp_path / "normal.jsonl", talk(40))
        out = tmp_path / "new.safetensors"
        before = (where / "grumpy.safetensors").read_bytes()
        options = ("--model", model, "--normal", normal, "--rate", 0.1, "--given", "--out", out)
        result = poise("calibrate", where / "grumpy.safetensors", *options)
        assert result.exit_code == 0, result.stderr
        assert max(map(len, result.stdout.splitlines())) <= 80
        for word in ("grumpy, layer", "peak", "Each rate is of one reading alone", "no chart", "all 40 rows read"):
            assert word in result.stdout
        assert len(vectors.load_vector(out).header.alarms) == 3
        assert (where / "grumpy.safetensors").read_bytes() == before

    @pytest.mark.parametrize(
        ("args", "said"),
        [
            (("calibrate", "{v}", "--normal", "{few}"), "rate of 0.01 needs 122 normal answers"),
            (("calibrate", "{v}", "--normal", "{few}", "--rate", "2"), "rate is 2.0; it must be above 0"),
            (("calibrate", "{v}", "--normal", "nowhere.jsonl"), "There is no file or folder nowhere.jsonl"),
            (("calibrate", "{v}", "{v}", "--normal", "{few}", "--out", "x"), "x cannot take 2 vectors"),
            (("calibrate", "{v}", "--normal", "{few}", "--rate", "0.2", "--layer", "9"), "Layer 9 is out of range"),
            (("calibrate", "nothing.safetensors", "--normal", "{few}"), "There is no vector file at nothing"),
            (("read", "{few}", "--vector", "{v}", "--out", "t.csv"), "ends in neither .jsonl nor .parquet"),
            (("read", "{broken}", "--vector", "{v}", "--out", "{tmp}/t.jsonl"), "can be read"),
            (("read", "{few}", "--vector", "{v}", "--out", "{tmp}/t.jsonl", "--shape", "odd"), "There is no shape"),
        ],
    )
    def test_answer_a_mistake_in_one_sentence(
        self, args: tuple[str, ...], said: str, files: tuple[Path, Path], tmp_path: Path
    ) -> None:
        few, broken = write(tmp_path / "few.jsonl", talk(20)), write(tmp_path / "broken.jsonl", MENDABLE[:1] * 3)
        names = {"v": files[1] / "sunny.safetensors", "few": few, "broken": broken, "tmp": tmp_path}
        result = poise(*(a.format(**names) for a in args), "--model", files[0])
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert "Traceback" not in result.stderr
