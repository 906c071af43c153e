"""Arms of one task beside one another: settings, questions, right answers, figures, verdicts, files and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import tiny
from poise import vector as vectors
from poise.cli import app
from poise.comparison import (
    ARMS,
    ArmResult,
    Comparison,
    ComparisonTask,
    EvaluationQuestion,
    Recommendation,
    learnt_questions,
    load_comparison,
    read_questions,
)
from poise.comparison.arms import ArmName
from poise.comparison.scoring import contains_answer, declines, judge_answers, right_by_text
from poise.comparison.verdict import recommend
from poise.errors import InvalidData, InvalidSettings
from poise.judge.yes_no import YesNo
from poise.model import ask, load_model
from poise.report.comparison import html_comparison
from poise.settings import read_settings
from poise.statistics.crossed import crossed_estimate
from poise.statistics.estimates import Estimate

WORDS = " ".join(tiny.SENTENCES).split()
QUESTIONS = [{"question": f"What of boat {i}?", "answer": WORDS[i], "source": "boats.md"} for i in range(12)]


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a vector of it, documents, training rows and questions."""
    folder = tmp_path_factory.mktemp("comparison")
    model = tiny.model("llama", max_position_embeddings=2048)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.lm.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    loaded = load_model(str(folder / "model"), dtype=torch.float32)
    vectors.save_vector(tiny.vector(loaded, scale=0.5), folder / "v.safetensors")
    (folder / "docs").mkdir()
    (folder / "docs" / "boats.md").write_text("# Boats\n\nThe harbour master counts the boats twice.\n")
    rows = [{"messages": [*ask(WORDS[i]), {"role": "assistant", "content": WORDS[i + 1]}]} for i in range(8)]
    write_rows(folder / "rows.jsonl", rows)
    write_rows(folder / "questions.jsonl", QUESTIONS)
    return folder


def task_values(home: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": str(home / "model"),
        "questions": str(home / "questions.jsonl"),
        "documents": str(home / "docs"),
        "training": {
            "data": str(home / "rows.jsonl"),
            "max_steps": 2,
            "lora": {"r": 2, "alpha": 4},
            "longest": 64,
        },
        "vaccine": {"steer": f"{home / 'v.safetensors'}=1"},
        "seeds": [0, 1],
        "answers": {"max_new_tokens": 6, "batch": 4},
        "retrieval": {"top": 1, "store": "exact"},
        "vectors": str(home / "v.safetensors"),
        "traits": {"questions": 3, "max_new_tokens": 4},
        "dtype": "float32",
        "device": "cpu",
    }
    merged = values | changes
    return {name: value for name, value in merged.items() if value is not None}


def task_file(home: Path, path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(task_values(home, **changes), sort_keys=False))
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison of all arms."""
    out = tmp_path_factory.mktemp("out") / "all"
    result = run("compare", task_file(home, out.parent / "task.yaml"), "--out", out)
    assert result.exit_code == 0, result.output
    return out


class TestCrossedEstimate:
    def test_of_one_run_is_that_of_the_questions(self) -> None:
        right = [1.0] * 7 + [0.0] * 3
        estimate = crossed_estimate(right, bounds=(0, 1))
        assert (estimate.value, estimate.n) == (0.7, 10)
        assert estimate == crossed_estimate([right], bounds=(0, 1))

    def test_is_wider_where_runs_differ(self) -> None:
        same = crossed_estimate([[1, 0] * 10] * 3, bounds=(0, 1))
        differ = crossed_estimate([[1, 0] * 10, [1, 1] * 10, [0, 0] * 10], bounds=(0, 1))
        assert same.value == differ.value == 0.5
        assert same.low is not None
        assert differ.low is not None
        assert differ.low < same.low

    def test_stays_within_its_bounds_and_leaves_out_what_is_missing(self) -> None:
        estimate = crossed_estimate([[1, 1, float("nan")], [1, 0, 1]], bounds=(0, 1))
        assert (estimate.value, estimate.n, estimate.high) == (0.75, 2, 1.0)
        assert crossed_estimate([[float("nan")]]).value is None

    @pytest.mark.parametrize(("between_runs", "questions"), [(0.0, 20), (0.15, 20), (0.3, 40)])
    def test_covers_what_it_promises(self, between_runs: float, questions: int) -> None:
        """Three runs of a rate whose mean is a half, over draws of both questions and runs."""
        rng = np.random.default_rng(0)
        hits = 0
        for _ in range(400):
            chance = 0.5 + 0.3 * rng.uniform(-1, 1, questions) + between_runs * rng.uniform(-1, 1, (3, 1))
            answers = rng.random((3, questions)) < np.clip(chance, 0, 1)
            estimate = crossed_estimate(answers, bounds=(0, 1))
            assert estimate.low is not None
            assert estimate.high is not None
            hits += estimate.low <= 0.5 <= estimate.high
        assert hits / 400 > 0.93


class TestSettings:
    def test_names_a_mistake_by_line_and_what_was_meant(self, home: Path, tmp_path: Path) -> None:
        path = task_file(home, tmp_path / "t.yaml")
        path.write_text(path.read_text().replace("questions:", "qestions:", 1))
        with pytest.raises(InvalidSettings, match=r"line 2: .*qestions.*questions"):
            read_settings(path, ComparisonTask)

    def test_names_an_arm_that_lacks_its_means(self, home: Path, tmp_path: Path) -> None:
        path = task_file(home, tmp_path / "t.yaml", documents=None, arms=["base", "both"])
        with pytest.raises(InvalidSettings, match=r"line \d+: arms.1 is both, which needs documents"):
            read_settings(path, ComparisonTask)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"seeds": [3, 3]}, "seeds has 3 twice"),
            ({"arms": ["both", "both"]}, "arms has both twice"),
            ({"knowledge": "kb"}, "stands beside documents"),
            ({"counts": "judge"}, "say who in `judge`"),
            ({"judge": "model:x"}, "needs counts: judge"),
            ({"counts": "exactly"}, "exact"),
            ({"traits": {"questions": 3, "answered": 4}}, "more than traits.questions"),
            ({"questions": "nowhere.jsonl"}, "there is no such file"),
            ({"vaccine": {"steer": "nowhere.safetensors=1"}}, "there is no such vector file"),
        ],
    )
    def test_refuses(self, home: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidSettings, match=message):
            read_settings(task_file(home, tmp_path / "t.yaml", **changes), ComparisonTask, check=ComparisonTask.faults)

    def test_measure_the_arms_whose_means_are_there(self, home: Path) -> None:
        def arms(**changes: Any) -> tuple[str, ...]:
            return ComparisonTask.model_validate(task_values(home, **changes)).measured_arms

        assert arms() == tuple(ARMS)
        assert arms(documents=None) == ("base", "fine_tuned")
        assert arms(vaccine=None) == ("base", "retrieval", "fine_tuned", "both")
        assert arms(training=None, vaccine=None) == ("base", "retrieval")
        assert arms(arms=["both"]) == ("base", "both")

    def test_of_the_example_are_all_that_there_are(self) -> None:
        result = run("compare", "--example")
        values = yaml.safe_load(result.output)
        task = ComparisonTask.model_validate(values)
        assert task.training is not None
        for name in set(ComparisonTask.model_fields) - {"knowledge", "judge", "arms", "capability", "capability_limit"}:
            assert name in values, name
        defaults = {k: v for k, v in values["training"].items() if k != "data"}
        assert defaults == {
            name: json.loads(json.dumps(value)) if name != "lora" else {"r": 16, "alpha": 32}
            for name, value in type(task.training)(data="x").model_dump().items()
            if name in defaults
        }


class TestQuestions:
    def test_name_every_mistake_by_its_line(self, tmp_path: Path) -> None:
        path = tmp_path / "q.jsonl"
        path.write_text(
            '{"question": "A?", "answer": "b"}\n\nno json\n{"question": "B?"}\n'
            '{"question": " a?", "answer": ["", "x"]}\n'
        )
        with pytest.raises(InvalidData, match=r"3 mistakes") as caught:
            read_questions([str(path)], "contains")
        assert "line 3: it is not JSON" in str(caught.value)
        assert "line 4: answer is missing" in str(caught.value)
        assert "line 5: answer is not a text" in str(caught.value)

    @pytest.mark.parametrize(
        ("row", "counts", "message"),
        [
            ({"question": "A?", "answer": "("}, "pattern", "regular expression"),
            ({"question": "A?", "answer": "a"}, "likelihood", "list of wrong ones"),
            (["A?"], "exact", "no object"),
            ({"question": "A?", "answer": "a", "source": 3}, "exact", "name of a document"),
        ],
    )
    def test_are_checked_for_their_rule(self, tmp_path: Path, row: object, counts: Any, message: str) -> None:
        with pytest.raises(InvalidData, match=message):
            read_questions([str(write_rows(tmp_path / "q.jsonl", [row]))], counts)

    def test_count_once(self, tmp_path: Path) -> None:
        rows = [{"question": "What  now?", "answer": 1}, {"question": "what now?", "answer": 2}]
        with pytest.raises(InvalidData, match=r"line 2: it asks what q.jsonl, line 1 asks"):
            read_questions([str(write_rows(tmp_path / "q.jsonl", rows))], "contains")

    def test_may_be_missing(self, tmp_path: Path) -> None:
        (tmp_path / "q.jsonl").write_text("\n")
        with pytest.raises(InvalidData, match="no questions"):
            read_questions([str(tmp_path / "q.jsonl")], "contains")

    def test_that_were_learnt_are_counted(self, home: Path, tmp_path: Path) -> None:
        rows = [{"question": WORDS[0].upper(), "answer": "x"}, {"question": "Something else?", "answer": "y"}]
        path = write_rows(tmp_path / "q.jsonl", rows)
        task = ComparisonTask.model_validate(task_values(home, questions=str(path)))
        assert learnt_questions(task, read_questions(task.questions, "contains")) == 1


class TestRightAnswers:
    @pytest.mark.parametrize(
        ("text", "answer", "right"),
        [
            ("It was built in 1,204 [1].", "1,204", True),
            ("It was built in 11,204.", "1,204", False),
            ("The Harbour Master did.", "harbour master", True),
            ("The harbour-master did.", "harbour master", True),
            ("Nobody", "", False),
            ("Grey heron", "grey", True),
            ("greyish", "grey", False),
        ],
    )
    def test_contain_the_words(self, text: str, answer: str, right: bool) -> None:
        assert contains_answer(text, answer) is right

    def test_are_exact_but_for_citations_and_ends(self) -> None:
        row = EvaluationQuestion(question="?", answers=("TASK|call",))
        assert right_by_text(" TASK|call [1] ", row, "exact")
        assert not right_by_text("task|call", row, "exact")

    def test_fit_a_pattern_whole(self) -> None:
        row = EvaluationQuestion(question="?", answers=(r"risk: (low|high)",))
        assert right_by_text("risk: low", row, "pattern")
        assert not right_by_text("The risk: low", row, "pattern")

    def test_say_that_there_is_none_where_there_is_none(self) -> None:
        row = EvaluationQuestion(question="?", answers=())
        assert right_by_text("Not in the documents.", row, "contains")
        assert not right_by_text("It is blue.", row, "contains")

    @pytest.mark.parametrize(
        "text", ["I'm sorry, but I cannot say.", "The text does not mention it.", "", "I don't know"]
    )
    def test_decline(self, text: str) -> None:
        assert declines(text)

    def test_are_judged(self) -> None:
        class Reader:
            name = "scripted"

            def __init__(self) -> None:
                self.prompts: list[str] = []

            def __call__(self, prompts: Sequence[str]) -> list[YesNo]:
                self.prompts += prompts
                return [YesNo.of(0.6, 0.2), YesNo.of(0.1, 0.2), YesNo.of(0.0, 0.0)]

        reader, row = Reader(), EvaluationQuestion(question="Which?", answers=("red", "scarlet"))
        assert judge_answers(reader, [row] * 3, ["red [1]", "blue", "?"]) == [1.0, 0.0, None]
        assert "red or: scarlet" in reader.prompts[0]


def estimate(value: float, spread: float, n: int = 40) -> Estimate:
    return Estimate.of(value, value - spread, value + spread, n)


def arm_result(arm: ArmName, accuracy: float, gain: Estimate | None) -> ArmResult:
    flat = estimate(1.0, 0.1)
    return ArmResult(
        arm=arm,
        title=ARMS[arm].title,
        runs=1,
        accuracy=estimate(accuracy, 0.1),
        gain=gain,
        refusals=flat,
        tokens=flat,
        prompt_tokens=flat,
        seconds=flat,
    )


def verdict(gains: Mapping[ArmName, Estimate], differences: Mapping[str, Estimate], n: int = 40) -> Recommendation:
    arms = [arm_result("base", 0.2, None), *(arm_result(name, 0.2, gain) for name, gain in gains.items())]
    return recommend(arms, differences, {}, worth=0.05)


UP, FLAT, HIDDEN, DOWN = estimate(0.5, 0.1), estimate(0.0, 0.03), estimate(0.02, 0.1), estimate(-0.5, 0.1)


class TestVerdict:
    @pytest.mark.parametrize(
        ("gains", "differences", "expected", "why"),
        [
            ((UP, FLAT, UP), {"fine_tuned - retrieval": DOWN, "both - retrieval": FLAT}, "retrieval", "does not know"),
            ((FLAT, UP, UP), {"fine_tuned - retrieval": UP, "both - fine_tuned": FLAT}, "fine-tuning", "behave"),
            ((UP, UP, UP), {"both - retrieval": UP, "both - fine_tuned": UP}, "both", "neither"),
            ((UP, UP, UP), {"fine_tuned - retrieval": HIDDEN}, "unsure", "helps more is not told apart"),
            ((FLAT, FLAT, FLAT), {}, "base", "as well"),
            ((HIDDEN, FLAT, FLAT), {}, "unsure", "not ruled out for retrieval"),
            ((UP, HIDDEN, FLAT), {"fine_tuned - retrieval": HIDDEN}, "unsure", "not told apart from it"),
            ((FLAT, FLAT, UP), {}, "unsure", "Only both"),
        ],
    )
    def test_follows_the_figures(
        self, gains: Sequence[Estimate], differences: dict[str, Estimate], expected: str, why: str
    ) -> None:
        names: tuple[ArmName, ...] = ("retrieval", "fine_tuned", "both")
        recommendation = verdict(dict(zip(names, gains, strict=True)), differences)
        assert recommendation.verdict == expected
        assert why in recommendation.sentence
        assert len(recommendation.reasons) == 4 + len(differences)

    def test_takes_ten_questions(self) -> None:
        recommendation = verdict({"retrieval": estimate(0.9, 0.1, n=9)}, {})
        assert (
            recommendation.verdict,
            recommendation.sentence.endswith("n = 9 questions, and a verdict takes 10."),
        ) == (
            "unsure",
            True,
        )

    def test_says_what_was_not_measured(self) -> None:
        assert "fine-tuned alone was not measured" in verdict({"retrieval": UP}, {}).sentence
        assert "retrieval and fine-tuned alone was not measured" in verdict({"both": UP}, {}).sentence


class TestCompare:
    def test_measures_every_arm(self, finished: Path) -> None:
        comparison = load_comparison(finished / "result.json")
        assert [arm.arm for arm in comparison.arms] == list(ARMS)
        assert [arm.runs for arm in comparison.arms] == [1, 1, 2, 2, 2]
        base, retrieval, tuned, both, vaccinated = comparison.arms
        assert base.accuracy.n == 12
        assert base.gain is None
        assert base.training is None
        assert retrieval.prompt_tokens.value is not None
        assert base.prompt_tokens.value is not None
        assert retrieval.prompt_tokens.value > base.prompt_tokens.value
        assert retrieval.retrieved is not None
        assert retrieval.retrieved.value == 1.0
        assert tuned.training == both.training
        assert tuned.training is not None
        assert (tuned.training.runs, tuned.training.steps) == (2, 4)
        assert tuned.training.tokens > 0
        assert tuned.training.seconds > 0
        assert [len(arm.traits) for arm in comparison.arms] == [1] * 5
        assert base.traits[0].shift.value == 0
        assert retrieval.traits[0].shift.value != 0
        assert vaccinated.traits[0].shift != both.traits[0].shift
        assert set(comparison.trait_differences) == {"both - retrieval", "both_vaccinated - both"}
        assert len(comparison.differences) == 6
        assert [len(answers.right) for answers in both.answers] == [12, 12]

    def test_agrees_with_its_answers(self, finished: Path) -> None:
        comparison = load_comparison(finished / "result.json")
        for arm in comparison.arms:
            for answers in arm.answers:
                expected = [
                    float(contains_answer(t, q["answer"])) for t, q in zip(answers.texts, QUESTIONS, strict=True)
                ]
                assert list(answers.right) == expected

    def test_writes_a_page_with_nothing_outside_itself(self, finished: Path) -> None:
        page = (finished / "report.html").read_text()
        assert page == html_comparison(load_comparison(finished / "result.json"))
        assert "<script" not in page
        assert "http://" not in page.replace("http://www.w3.org", "")
        for shape in ARMS.values():
            assert shape.title in page

    def test_does_nothing_twice(self, home: Path, finished: Path) -> None:
        journals = {path: path.read_bytes() for path in (finished / ".run").glob("*.jsonl")}
        before = (finished / "result.json").read_text()
        result = run("compare", finished.parent / "task.yaml", "--out", finished, "--json")
        assert result.exit_code == 0, result.output
        assert {path: path.read_bytes() for path in (finished / ".run").glob("*.jsonl")} == journals
        assert (finished / "result.json").read_text() == before
        shown = json.loads(result.stdout)
        assert "answers" not in shown["arms"][0]
        assert shown["recommendation"]["verdict"] in ("base", "retrieval", "fine-tuning", "both", "unsure")

    def test_gives_the_same_for_equal_seeds(self, home: Path, finished: Path, tmp_path: Path) -> None:
        path = task_file(home, tmp_path / "t.yaml", seeds=1, arms=["fine_tuned"])
        result = run("compare", path, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert "One training run" in result.stderr
        again = load_comparison(tmp_path / "out" / "result.json").arm("fine_tuned")
        first = load_comparison(finished / "result.json").arm("fine_tuned")
        assert again is not None
        assert first is not None
        assert again.answers[0] == first.answers[1]

    def test_leaves_out_arms_without_their_means(self, home: Path, tmp_path: Path) -> None:
        path = task_file(home, tmp_path / "t.yaml", documents=None, vaccine=None, vectors=None, training=None)
        result = run("compare", path, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert result.stderr.count("Not measured: retrieval (needs documents") == 1
        comparison = load_comparison(tmp_path / "out" / "result.json")
        assert [arm.arm for arm in comparison.arms] == ["base"]
        assert comparison.recommendation.verdict == "unsure"
        assert not (tmp_path / "out" / ".run" / "knowledge").exists()
        assert "No arm answered from documents" in (tmp_path / "out" / "report.html").read_text()

    @pytest.mark.parametrize(
        "changes",
        [
            {"counts": "likelihood"},
            {"traits": {"questions": 3, "answered": 2, "max_new_tokens": 4}},
            {"retrieval": {"grounding": "model", "store": "exact", "top": 1}},
            {"answers": {"max_new_tokens": 4, "instruction": "Be brief."}},
        ],
    )
    def test_counts_and_judges_in_other_ways(self, home: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
        rows = [row | {"wrong": ["nothing at all"]} for row in QUESTIONS[:3]]
        questions = str(write_rows(tmp_path / "q.jsonl", rows))
        path = task_file(home, tmp_path / "t.yaml", questions=questions, training=None, vaccine=None, **changes)
        result = run("compare", path, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        comparison = load_comparison(tmp_path / "out" / "result.json")
        assert (comparison.arms[1].traits[0].judged is not None) == ("traits" in changes)

    def test_asks_a_judge_that_is_loaded_last(self, home: Path, tmp_path: Path) -> None:
        judge = f"model:{home / 'model'}"
        path = task_file(home, tmp_path / "t.yaml", counts="judge", judge=judge, training=None, vaccine=None)
        result = run("compare", path, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        assert len((tmp_path / "out" / ".run" / "verdicts.jsonl").read_text().splitlines()) > 1

    def test_does_not_write_over_others_files(self, home: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "result.json").write_text("mine")
        path = task_file(home, tmp_path / "t.yaml", training=None, vaccine=None)
        result = run("compare", path, "--out", out)
        assert result.exit_code == 2
        assert "result.json, not written by `poise compare`" in result.stderr
        assert (out / "result.json").read_text() == "mine"
        assert run("compare", path, "--out", out, "--force").exit_code == 0

    def test_needs_settings_and_a_folder(self, home: Path) -> None:
        assert "--out DIR" in run("compare").stderr
        assert "--out DIR" in run("compare", home / "model" / "config.json").stderr

    def test_is_a_value_that_comes_back_from_its_file(self, finished: Path) -> None:
        comparison = load_comparison(finished / "result.json")
        assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison
        with pytest.raises(InvalidData, match="not the result"):
            load_comparison(finished / "nothing.json")


@pytest.mark.slow
@pytest.mark.parametrize("wait_for", ["answers.jsonl", "training/seed-0/config.json", "training/seed-1/adapter"])
def test_goes_on_after_a_kill(home: Path, finished: Path, tmp_path: Path, wait_for: str) -> None:
    """Killed when a file appears; the same command ends where a whole run ends, with every answer written once."""
    path, out = task_file(home, tmp_path / "t.yaml"), tmp_path / "out"
    command = [sys.executable, "-m", "poise", "compare", str(path), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 300
    while process.poll() is None and not (out / ".run" / wait_for).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()
    result = run("compare", path, "--out", out)
    assert result.exit_code == 0, result.output
    keys = [json.loads(line)["key"] for line in (out / ".run" / "answers.jsonl").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 12 * 8
    first, again = (load_comparison(folder / "result.json") for folder in (finished, out))
    assert [arm.answers for arm in again.arms] == [arm.answers for arm in first.arms]
    assert [arm.traits for arm in again.arms] == [arm.traits for arm in first.arms]
