"""How legible solutions are: what is read and written, what a verifier says, and what is said of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tiny
from imitation import completion, servers
from poise import vector as vectors
from poise.cli import app
from poise.errors import InvalidArgument, InvalidData, JudgeUnavailable
from poise.judge.yes_no import EndpointYesNo, LocalYesNo, YesNo, yes_no_reader
from poise.knowledge import BuildSettings, build_knowledge
from poise.legibility import Solution, read_problems, read_solutions, summarise_legibility, verify_solutions
from poise.legibility.solutions import solves
from poise.model import ask, load_model
from poise.storage.journal import Journal
from poise.workflows.legibility import LegibilityRequest

WORDS = " ".join(tiny.SENTENCES).split()


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def solutions_file(path: Path, answers: Sequence[str]) -> Path:
    rows = [
        {"messages": [*ask(f"What is {i} and {i}?"), {"role": "assistant", "content": text}]}
        for i, text in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("legibility")
    model = tiny.model("llama", max_position_embeddings=2048)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.lm.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    vectors.save_vector(
        tiny.vector(load_model(str(folder / "model"), dtype=torch.float32), scale=0.5), folder / "v.safetensors"
    )
    solutions_file(folder / "right.jsonl", [f"It is {2 * i}." for i in range(12)])
    solutions_file(folder / "wrong.jsonl", [f"It is {2 * i + 1}, and so on and on." for i in range(12)])
    rows = [{"question": f"What is {i} and {i}?", "answer": 2 * i} for i in range(6)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class TestYesNo:
    def test_is_the_share_of_yes_among_both(self) -> None:
        assert YesNo.of(0.375, 0.125) == YesNo(0.75, 0.5)
        assert YesNo.of(0.0, 0.0).yes is None

    def test_of_a_local_model_is_that_of_its_logits(self) -> None:
        model = tiny.model()
        prompts = [" ".join(WORDS[:n]) for n in (3, 9, 5)]
        reader = LocalYesNo(model)
        for prompt, answer in zip(prompts, reader(prompts), strict=True):
            ids = torch.tensor([model.encode(ask(prompt)).ids])
            with torch.inference_mode():
                chances = torch.softmax(model.lm(input_ids=ids).logits[0, -1].float(), dim=-1)
            yes, no = (float(chances[side].sum()) for side in (reader._yes, reader._no))
            assert answer.yes == pytest.approx(yes / (yes + no), abs=1e-5)
            assert answer.mass == pytest.approx(yes + no, abs=1e-5)

    def test_names_that_are_none(self) -> None:
        with pytest.raises(InvalidArgument, match="endpoint:NAME"):
            yes_no_reader("endpoint:")

    @pytest.mark.parametrize(
        ("body", "yes"),
        [
            (completion("Yes", [{"Yes": 0.5, " no": 0.25, "maybe": 0.25}]), 2 / 3),
            (completion("**No**, it is not."), 0.0),
            (completion("yes"), 1.0),
            (completion("Perhaps"), None),
        ],
    )
    def test_of_an_endpoint_is_its_first_token_or_what_it_wrote(self, body: dict[str, Any], yes: float | None) -> None:
        with servers() as start:
            server = start(lambda request, number: (200, body))
            (answer,) = EndpointYesNo("tiny", base_url=server.url)(["Is it?"])
        assert answer.yes == (None if yes is None else pytest.approx(yes))

    def test_of_an_endpoint_that_is_down(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        with pytest.raises(JudgeUnavailable, match="does not answer"):
            EndpointYesNo("m", timeout=2.0)(["?"])


def solution(problem: int, right: bool, words: int = 5) -> Solution:
    return Solution(f"Problem {problem}", " ".join(["word"] * words), right)


class TestFigures:
    def test_of_a_verifier_that_tells_all(self) -> None:
        solutions = [solution(i, right) for i in range(20) for right in (True, False)]
        answers = [YesNo.of(0.9 if one.right else 0.2, 0.1 if one.right else 0.8) for one in solutions]
        (figures,) = summarise_legibility("v", "p", {"before": (solutions, answers)}).conditions
        assert (figures.accuracy.value, figures.auc.value, figures.chance, figures.verdict) == (1.0, 1.0, 0.5, "told")
        assert (figures.problems, figures.solutions, figures.auc.n) == (20, 40, 20)

    def test_of_one_that_always_says_yes(self) -> None:
        solutions = [solution(i, right) for i in range(20) for right in (True, False)]
        (figures,) = summarise_legibility("v", "p", {"b": (solutions, [YesNo(0.9, 0.01)] * 40)}).conditions
        assert (figures.accuracy.value, figures.says_yes.value, figures.auc.value) == (0.5, 1.0, 0.5)
        assert (figures.verdict, figures.mass) == ("not told", 0.01)

    def test_say_when_length_alone_tells(self) -> None:
        solutions = [solution(i, right, 5 if right else 9) for i in range(12) for right in (True, False)]
        (figures,) = summarise_legibility("v", "p", {"b": (solutions, [YesNo(0.5, 1.0)] * 24)}).conditions
        assert figures.length_auc.value == 1.0
        assert [(band.shortest, band.longest, band.solutions) for band in figures.bands] == [(5, 5, 12), (9, 9, 12)]

    def test_leave_out_what_was_not_answered(self) -> None:
        solutions = [solution(i, i % 2 == 0) for i in range(6)]
        answers = [YesNo(None, 0.0), *[YesNo(0.9, 1.0)] * 5]
        (figures,) = summarise_legibility("v", "p", {"b": (solutions, answers)}).conditions
        assert (figures.unread, figures.accuracy.n, figures.verdict) == (1, 5, "too few")

    def test_compare_conditions_by_problem(self) -> None:
        solutions = [solution(i, True) for i in range(10)]
        before, after = [YesNo(0.1, 1.0)] * 10, [YesNo(0.9, 1.0)] * 10
        result = summarise_legibility("v", "p", {"before": (solutions, before), "tuned": (solutions, after)})
        assert (result.changes["tuned"].value, result.changes["tuned"].n) == (1.0, 10)


class TestSolutions:
    def test_are_read_with_their_problems(self, home: Path) -> None:
        solutions = read_solutions([str(home / "right.jsonl")], [str(home / "wrong.jsonl")], 3)
        assert len(solutions) == 6
        assert solutions[0] == Solution("What is 0 and 0?", "It is 0.", True)

    def test_are_of_both_kinds(self, home: Path) -> None:
        with pytest.raises(InvalidData, match="one kind alone"):
            read_solutions([str(home / "right.jsonl")], [])

    @pytest.mark.parametrize(
        ("text", "answer", "right"),
        [
            ("So 3 + 4 = 7.\nA: 7", "7", True),
            ("7 it is not, but 8", "7", False),
            ("It costs $1,200.", "1200", True),
            ("The answer is 2.50", "2.5", True),
            ("It was the Harbour master", "harbour master", True),
            ("", "7", False),
        ],
    )
    def test_are_right_by_their_end(self, text: str, answer: str, right: bool) -> None:
        assert solves(text, answer) is right

    def test_are_for_problems_whose_lines_are_checked(self, tmp_path: Path) -> None:
        path = tmp_path / "p.jsonl"
        path.write_text('{"question": "A?", "answer": "so 2\\n#### 3"}\n')
        assert read_problems(str(path))[0].answer == "3"
        path.write_text('{"question": "A?"}\nno\n')
        with pytest.raises(InvalidData, match="line 1 lacks question or answer; line 2 is no JSON"):
            read_problems(str(path))

    def test_are_verified_once(self, tmp_path: Path) -> None:
        class Reader:
            name = "scripted"

            def __init__(self) -> None:
                self.prompts: list[str] = []

            def __call__(self, prompts: Sequence[str]) -> list[YesNo]:
                self.prompts += prompts
                return [YesNo(0.5, 1.0)] * len(prompts)

        reader, solutions = Reader(), [solution(0, True), solution(0, True), solution(1, False)]
        for _ in range(2):
            assert len(verify_solutions(solutions, reader, Journal(tmp_path / "j.jsonl"))) == 3
        assert len(reader.prompts) == 2


class TestCommand:
    def test_measures_solutions_as_they_are(self, home: Path, tmp_path: Path) -> None:
        arguments = (
            *("legibility", "--verifier", home / "model", "--right", home / "right.jsonl", "--wrong"),
            *(home / "wrong.jsonl", "--out", tmp_path / "out", "--dtype", "float32"),
        )
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert "n = 12 problems, 24 solutions" in result.stdout
        assert "Length alone: AUC 1.00" in result.stdout
        first = (tmp_path / "out" / "legibility.json").read_text()
        journal = tmp_path / "out" / ".run" / "verified.jsonl"
        lines = journal.read_text()
        assert run(*arguments).exit_code == 0
        assert ((tmp_path / "out" / "legibility.json").read_text(), journal.read_text()) == (first, lines)

    def test_measures_a_prover_before_and_after_steering(self, home: Path, tmp_path: Path) -> None:
        result = run(
            *("legibility", home / "problems.jsonl", "--prover", home / "model", "--verifier", home / "model"),
            *("--steer", f"{home / 'v.safetensors'}=2", "--max-new-tokens", "6", "--out", tmp_path / "out", "--json"),
            *("--dtype", "float32"),
        )
        assert result.exit_code == 0, result.output
        shown = json.loads(result.stdout)
        assert [one["name"] for one in shown["conditions"]] == ["before", "steered"]
        assert shown["changes"]["steered"]["n"] == 6
        assert len((tmp_path / "out" / ".run" / "solutions.jsonl").read_text().splitlines()) == 12

    def test_measures_an_adapter_and_documents(self, home: Path, tmp_path: Path) -> None:
        adapted = tiny.adapted(load_model(str(home / "model"), dtype=torch.float32).lm)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted.save_pretrained(tmp_path / "adapter")
        (tmp_path / "sums.md").write_text("# Sums\n\nTwo and two is four.\n")
        build_knowledge([tmp_path / "sums.md"], tmp_path / "kb", None, BuildSettings(store="exact"))
        result = run(
            *("legibility", home / "problems.jsonl", "--prover", home / "model", "--verifier", home / "model"),
            *("--tuned", tmp_path / "adapter", "--knowledge", tmp_path / "kb", "--max-new-tokens", "6"),
            *("--out", tmp_path / "out", "--dtype", "float32", "--limit", "2"),
        )
        assert result.exit_code == 0, result.output
        facts = json.loads((tmp_path / "out" / "legibility.json").read_text())
        assert [one["name"] for one in facts["conditions"]] == ["before", "with documents", "tuned"]
        solutions = [
            json.loads(line) for line in (tmp_path / "out" / ".run" / "solutions.jsonl").read_text().splitlines()
        ]
        assert len({row["key"] for row in solutions}) == 6
        assert len({row["value"] for row in solutions}) > 2
        assert "too few problems for a verdict" in result.stdout

    def test_does_not_write_over_others_files(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "legibility.json").write_text("mine")
        result = run(
            *("legibility", "--verifier", "m", "--right", home / "right.jsonl"),
            *("--wrong", home / "wrong.jsonl", "--out", tmp_path),
        )
        assert result.exit_code == 2
        assert "not written by `poise legibility`" in result.stderr

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({}, "give one of these"),
            ({"right": ("a",), "problems": "p"}, "give one of these"),
            ({"right": ("a",), "prover": "m"}, "solutions already"),
            ({"problems": "p"}, "name the model"),
        ],
    )
    def test_says_what_is_missing(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidArgument, match=message):
            LegibilityRequest(verifier="v", **values)
