"""The command line: what scripts may rely on, what people see, and one sentence for each mistake."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import logging
from typer.testing import CliRunner, Result

import tiny
from poise import vector as vectors
from poise import workflows
from poise.cli import app
from poise.cli.progress import showing
from poise.engine import Generation
from poise.errors import InternalError
from poise.judge import Judgement
from poise.judge.exemplars import ExemplarJudge
from poise.model import load_model
from poise.progress import track
from poise.statistics.estimates import Estimate
from poise.trait import draft, library
from poise.validate.certificate import Certificate, JudgeFacts, Point, Prompting, RandomControl, Sample, Spread
from poise.workflows import demo

PAIRS = [
    {"question": f"What of the {i}th day?", "positive": f"Bad, all {i} of it.", "negative": f"Good, all {i} of it."}
    for i in range(8)
]


def poise(*args: object, given: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "80"}, input=given)


def the_object(result: Result) -> Any:
    """The one JSON object that stdout must be."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(autouse=True, scope="module")
def _as_in_a_fresh_process() -> Iterator[None]:
    """transformers reads on import that it shall be quiet, and here it is imported before any command runs."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model on disk."""
    where = tmp_path_factory.mktemp("models") / "tiny"
    tiny.lm().save_pretrained(where)
    tiny.chatml().save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


@pytest.fixture(scope="module")
def file(folder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector of the tiny model, by the command itself."""
    out = tmp_path_factory.mktemp("vectors") / "grumpy.safetensors"
    assert poise("extract", "grumpy", "--exemplars", pairs, "--model", folder, "--out", out).exit_code == 0
    return out


def certificate(**changes: Any) -> Certificate:
    def figure(value: float | None) -> Estimate:
        return Estimate(value=value, low=value, high=value, n=2)

    def point(dose: float, trait: float | None) -> Point:
        return Point(layer=2, coefficient=4 * dose, dose=dose, trait=figure(trait), coherence=figure(80.0), missing=0)

    facts: dict[str, Any] = {
        "verdict": "induced",
        "reasons": ("the trait score rises",),
        "layer": 2,
        "layers": tiny.L,
        "coefficient": 1.2,
        "dose": 0.3,
        "usable_doses": (-0.3, 0.3),
        "coherence_floor": 50.0,
        "rise": figure(30.0),
        "monotone": figure(1.0),
        "sweep": (point(0.3, 40.0),),
        "curve": (point(-0.3, None), point(0.0, 10.0), point(0.3, 40.0)),
        "random": RandomControl(
            draws=3, dose=0.3, trait=figure(11.0), coherence=figure(79.0), rise=figure(1.0), margin=figure(29.0)
        ),
        "prompting": Prompting(
            positive=figure(20.0), negative=figure(5.0), coherence=figure(90.0), negative_coherence=figure(92.0)
        ),
        "spread": Spread(changes=(30.0, 30.0), wrong_way=0.0),
        "agreement": 0.5,
        "judge": JudgeFacts(name="exemplars", auc=None, held_out_auc=None, usable=True, coherence="somehow"),
        "samples": (Sample(question="Why?", negative="No [b]idea[/b].", plain="Hm.", positive="Be\x1b[2Jcause."),) * 3,
        "selected_on": ("a?", "b?"),
        "asked": ("c?", "d?"),
        "rollouts": 1,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "seed": 0,
    }
    return Certificate(**(facts | changes))


class TestAnOptionThatIsWrong:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["gate", "x", "--base", "y", "--questions", "0"], "--questions': it is '0'; it must be at least 1."),
            (["gate", "x", "--base", "y", "--method", "rwa"], "--method': 'rwa' is not one of 'difference', 'prompt'."),
            (["generate", " ", "--model", "y"], "A prompt is empty"),
            (["dashboard", "--server", "till=127.0.0.1:9"], "till=127.0.0.1:9 names no server"),
            (["generate", "x", "--model", "y", "--batch", "zz"], "--batch': it is 'zz'; it must be a number"),
        ],
    )
    def test_is_said_in_plain_words(self, arguments: list[str], words: str) -> None:
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
        assert result.exit_code == 2
        printed = " ".join(result.stderr.replace("│", " ").split())
        assert words in printed
        assert "Value error" not in printed
        assert "Input should" not in printed


class TestExtract:
    def test_json_is_one_object_with_the_counts(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        out = tmp_path / "v.safetensors"
        said = the_object(poise("extract", "grumpy", "--exemplars", pairs, "--model", folder, "--out", out, "--json"))
        assert said == {
            "vector": str(out),
            "trait": "grumpy",
            "model": str(folder),
            "layers": tiny.L,
            "width": tiny.D,
            "contrast": "exemplars",
            "kept": {"positive": 8, "negative": 8},
            "dropped": {},
        }

    def test_the_file_is_what_the_library_gives(self, folder: Path, pairs: Path, file: Path, tmp_path: Path) -> None:
        own = library.own_trait("grumpy", library.read_pairs(pairs))
        workflows.extract_vector(own, load_model(str(folder)), tmp_path / "v.safetensors")
        assert (tmp_path / "v.safetensors").read_bytes() == file.read_bytes()

    def test_words_go_to_stdout_and_progress_to_stderr(self, folder: Path, pairs: Path, tmp_path: Path) -> None:
        out = tmp_path / "v.safetensors"
        result = poise("extract", "grumpy", "--exemplars", pairs, "--model", folder, "--out", out, "--dtype", "float32")
        assert f"layer 1 of {tiny.L}" in result.stdout
        assert "kept 8 a side" in result.stdout
        assert f"Loading {folder}" in result.stderr
        assert "poise validate" in result.stderr

    def test_options_reach_the_library(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: dict[str, Any] = {}

        def fake(trait: Any, model: Any, out: Path, **options: Any) -> Any:
            seen.update(options, trait=trait.name)
            return tiny.vector(model())

        monkeypatch.setattr(workflows, "extract_vector", fake)
        options = ["--contrast", "prompted", "--judge", "endpoint:m", "--questions", 2, "--rollouts", 4]
        options += ["--max-new-tokens", 5, "--seed", 6, "--batch", 7]
        poise("extract", "impolite", "--model", folder, "--out", tmp_path / "v", *options)
        assert seen == {
            "trait": "impolite",
            "contrast": "prompted",
            "judge": "endpoint:m",
            "budget": workflows.GenerationBudget(questions=2, rollouts=4, max_new_tokens=5, temperature=1.0, seed=6),
            "batch": 7,
            "engine": "local",
            "inputs": [Path("impolite")],
            "force": False,
        }


class TestValidate:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def fake(path: Path, model: Any, out: Path, **options: Any) -> workflows.ValidatedVector:
            seen.update(options, path=path, out=out)
            return workflows.ValidatedVector(vectors.load_vector(path), certificate(), out / "report.html")

        monkeypatch.setattr(workflows, "validate_vector", fake)
        return seen

    def test_json_has_the_verdict_the_curve_and_the_controls(
        self, folder: Path, file: Path, asked: dict[str, Any]
    ) -> None:
        said = the_object(poise("validate", file, "--model", folder, "--json"))
        wanted = {"verdict", "reasons", "layer", "layers", "curve", "random", "prompting", "report"}
        assert wanted <= said.keys()
        assert said["verdict"] == "induced"
        assert (said["layer"], said["layers"]) == (2, tiny.L)
        shared = ("coefficient", "dose", "trait", "coherence")
        assert [[point[k] for k in shared] for point in said["curve"]] == [
            [-1.2, -0.3, None, 80.0],
            [0.0, 0.0, 10.0, 80.0],
            [1.2, 0.3, 40.0, 80.0],
        ]
        assert said["random"]["trait"] == 11.0
        assert said["random"]["margin"] == {"value": 29.0, "low": 29.0, "high": 29.0, "n": 2}
        assert said["prompting"] == {"positive": 20.0, "negative": 5.0, "coherence": 90.0}
        assert said["report"] == str(file.with_name("grumpy-report") / "report.html")

    def test_prompting_is_null_where_it_was_not_measured(
        self, folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = workflows.ValidatedVector(vectors.load_vector(file), certificate(prompting=None), Path("report.html"))
        monkeypatch.setattr(workflows, "validate_vector", lambda *a, **k: done)
        assert the_object(poise("validate", file, "--model", folder, "--json"))["prompting"] is None
        assert "not measured" in poise("validate", file, "--model", folder).stdout

    def test_words_say_verdict_layer_and_where_the_report_is(
        self, folder: Path, file: Path, asked: dict[str, Any]
    ) -> None:
        result = poise("validate", file, "--model", folder, "--out", "here", "--allow-other-model", "--questions", 6)
        assert f"layer 2 of {tiny.L}" in result.stdout
        assert "induced: " in result.stdout
        assert f"Report: {Path('here/report.html')}" in result.stdout
        assert asked["allow_other_model"]
        assert asked["budget"].questions == 6
        assert max(map(len, result.stdout.splitlines()[1:-1])) <= 80


class TestGenerate:
    def test_json_has_an_answer_for_each_prompt(self, folder: Path) -> None:
        said = the_object(poise("generate", "Hello?", "And?", "--model", folder, "--max-new-tokens", 4, "--json"))
        assert [(a["prompt"], a["coefficient"]) for a in said["answers"]] == [("Hello?", 0.0), ("And?", 0.0)]
        assert all(isinstance(a["text"], str) and a["tokens"] <= 4 for a in said["answers"])
        assert said["steering"] == []

    def test_prompts_come_from_files_and_standard_input_too(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "p.txt").write_bytes("\ufeffWhere do\nthe boats go?\n".encode())
        options = ["--model", folder, "--max-new-tokens", 2, "--json"]
        said = the_object(poise("generate", f"@{tmp_path / 'p.txt'}", "-", "@@anna?", *options, given="And?\n"))
        assert [a["prompt"] for a in said["answers"]] == ["Where do\nthe boats go?", "And?", "@anna?"]
        assert said["system"] is None

    def test_a_system_prompt_stands_before_each(self, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
        (tmp_path / "s.txt").write_text("Be brief.\n")
        asked: list[Any] = []
        real = workflows.generate
        monkeypatch.setattr(workflows, "generate", lambda *a, **o: asked.append(o["system"]) or real(*a, **o))
        options = ["Hello?", "--model", folder, "--max-new-tokens", 8, "--temperature", 0, "--json"]
        plain = the_object(poise("generate", *options))
        said = the_object(poise("generate", *options, "--system", f"@{tmp_path / 's.txt'}"))
        assert (asked, said["system"]) == ([None, "Be brief."], "Be brief.")
        assert said["answers"][0]["text"] != plain["answers"][0]["text"]

    @pytest.mark.parametrize(
        ("prompts", "given", "says"),
        [
            (
                ["@no.txt"],
                "",
                "Cannot read no.txt: No such file or directory. A text that begins with @ itself is written",
            ),
            (["-", "-"], "A", "- is given twice"),
            (["-"], " \n", "Standard input is empty"),
            (["@cut.txt"], "", "cut.txt is not UTF-8 text (byte 2"),
            (["@."], "", "Is a directory"),
        ],
    )
    def test_a_text_that_cannot_be_read_is_said(
        self, prompts: list[str], given: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("cut.txt").write_bytes(b"Gr\xc3")
        done = poise("generate", *prompts, "--model", "none", given=given)
        assert (done.exit_code, says in " ".join(done.output.split())) == (2, True), done.output

    def test_a_seed_makes_it_repeatable(self, folder: Path) -> None:
        def run(seed: int) -> str:
            return poise("generate", "Hello?", "--model", folder, "--max-new-tokens", 12, "--seed", seed).stdout

        assert run(1) == run(1) != run(2)

    def test_a_vector_steers_by_coefficient_at_a_layer(self, folder: Path, file: Path) -> None:
        options = ["Hello?", "--model", folder, "--max-new-tokens", 12, "--temperature", 0, "--json"]
        plain = the_object(poise("generate", *options))
        steered = the_object(poise("generate", *options, "--steer", f"{file}@2=40"))
        assert steered["answers"][0]["coefficient"] == 40.0
        assert (steered["steering"][0]["layer"], steered["steering"][0]["trait"]) == (2, "grumpy")
        assert steered["answers"][0]["text"] != plain["answers"][0]["text"]

    def test_a_vector_steers_by_dose(self, folder: Path, file: Path) -> None:
        options = ["Hello?", "--model", folder, "--max-new-tokens", 2]
        said = the_object(poise("generate", *options, "--steer", f"{file}=30%", "--json"))
        assert said["steering"][0]["dose"] == pytest.approx(0.3, abs=1e-3)
        assert said["answers"][0]["coefficient"] == said["steering"][0]["coefficient"]
        assert f"grumpy: layer 1 of {tiny.L}" in poise("generate", *options, "--steer", f"{file}=30%").stderr

    def test_several_vectors_have_no_single_coefficient(self, folder: Path, file: Path) -> None:
        twice = ["--steer", f"{file}=1", "--steer", f"{file}@2=-1"]
        said = the_object(poise("generate", "Hi?", "--model", folder, "--max-new-tokens", 2, "--json", *twice))
        assert said["answers"][0]["coefficient"] is None
        assert [t["coefficient"] for t in said["steering"]] == [1.0, -1.0]

    def test_one_answer_is_all_of_stdout_and_several_stand_under_their_prompts(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fake(prompts: list[str], *args: object, **options: object) -> list[Generation]:
            return [Generation(ids=(), text=f"[b]{p}\x1b[2J {'x' * 90}", finish="stop") for p in prompts]

        monkeypatch.setattr(workflows, "generate", fake)
        assert poise("generate", "A", "--model", folder).stdout == f"[b]A[2J {'x' * 90}\n"
        both = poise("generate", "A", "B", "--model", folder).stdout
        assert both == f"> A\n[b]A[2J {'x' * 90}\n\n> B\n[b]B[2J {'x' * 90}\n"

    def test_what_a_library_prints_does_not_reach_stdout(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def chatty(*args: object, **options: object) -> list[Generation]:
            print("chatter")
            return [Generation(ids=(), text="Hm.", finish="stop")]

        monkeypatch.setattr(workflows, "generate", chatty)
        result = poise("generate", "A", "--model", folder, "--json")
        assert json.loads(result.stdout)["answers"][0]["text"] == "Hm."
        assert "chatter" in result.stderr


class TestShow:
    def test_says_what_the_file_holds_and_that_it_has_no_certificate(self, file: Path, folder: Path) -> None:
        said = poise("show", file).stdout
        assert "given by exemplars alone" in said
        assert f"layer 1 of {tiny.L}" in said
        assert f"No certificate yet: poise validate {file} --model {folder}" in said

    def test_says_the_certificate(self, file: Path, tmp_path: Path) -> None:
        certified = vectors.load_vector(file).with_certificate(certificate().model_dump(mode="json"))
        vectors.save_vector(certified, tmp_path / "v.safetensors")
        said = poise("show", tmp_path / "v.safetensors").stdout
        assert f"layer 2 of {tiny.L} (the certificate's)" in said
        assert "induced: " in said
        whole = the_object(poise("show", tmp_path / "v.safetensors", "--json"))
        assert whole["certificate"]["verdict"] == "induced"

    def test_json_has_the_norms_of_every_layer(self, file: Path) -> None:
        said = the_object(poise("show", file, "--json"))
        assert len(said["norms"]) == len(said["reference_norms"]) == tiny.L
        assert said["certificate"] is None
        assert said["kept"] == {"positive": 8, "negative": 8}

    def test_a_certificate_of_another_version_is_a_sentence(self, file: Path, tmp_path: Path) -> None:
        vectors.save_vector(vectors.load_vector(file).with_certificate({"format": 99}), tmp_path / "v.safetensors")
        result = poise("show", tmp_path / "v.safetensors")
        assert result.exit_code == 2
        assert "validate it again" in result.stderr


class TestTraits:
    def test_list_has_the_whole_library(self) -> None:
        said = poise("traits", "list").stdout
        assert [name for name in library.names() if name not in said] == []

    def test_show_prints_a_file_that_loads_to_the_same_trait(self, tmp_path: Path) -> None:
        (tmp_path / "evil.yaml").write_text(poise("traits", "show", "evil").stdout)
        assert library.load_trait(str(tmp_path / "evil.yaml")) == library.load_trait("evil")

    def test_lint_counts_and_measures(self) -> None:
        assert "AUC" in poise("traits", "lint", "evil").stdout
        said = the_object(poise("traits", "lint", "evil", "impolite", "--json"))
        assert [t["trait"] for t in said["traits"]] == ["evil", "impolite"]
        assert {"value", "low", "high", "n"} == said["traits"][0]["words"].keys()

    def test_lint_ends_with_1_where_a_trait_has_an_error(self, tmp_path: Path) -> None:
        bad = yaml.safe_load(library.dump(library.load_trait("evil")))
        bad["exemplars"]["judge"][0]["with"] = "Short."
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump(bad))
        result = poise("traits", "lint", tmp_path / "bad.yaml")
        assert result.exit_code == 1
        assert "error exemplars.judge[0]" in result.stdout

    def test_draft_writes_what_the_library_drafts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, Any] = {}

        def fake(sentence: str, **options: Any) -> Any:
            asked.update(options, sentence=sentence)
            return library.load_trait("evil")

        monkeypatch.setattr(draft, "draft", fake)
        result = poise("traits", "draft", "It is mean.", "-o", tmp_path / "mean.yaml", "--model", "m", "--name", "mean")
        assert result.stdout == f"{tmp_path / 'mean.yaml'}\n"
        assert asked == {"sentence": "It is mean.", "model": "m", "name": "mean"}
        assert library.load_trait(str(tmp_path / "mean.yaml")) == library.load_trait("evil")


class Shouting:
    """A judge that finds the trait in capitals, and nothing to score in an empty answer."""

    name = "shouting"
    cv_auc = Estimate.of(0.9, 0.8, float("nan"), 32)

    def __call__(self, questions: list[str], answers: list[str]) -> list[Judgement]:
        return [Judgement(100.0 * a.isupper()) if a else Judgement(None, "empty answer") for a in answers]


class TestJudgeCheck:
    @pytest.fixture(autouse=True)
    def _judge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ExemplarJudge, "fit", lambda pairs: Shouting())

    def labels(self, tmp_path: Path, *rows: object) -> Path:
        (tmp_path / "labels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tmp_path / "labels.jsonl"

    def row(self, answer: str, label: object) -> dict[str, object]:
        return {"question": f"On {answer}?", "answer": answer, "label": label}

    def test_agreement_with_labels(self, tmp_path: Path) -> None:
        said = [("NO", True), ("OUT", True), ("yes", False), ("well", False), ("", True)]
        path = self.labels(tmp_path, *(self.row(*pair) for pair in said))
        found = the_object(poise("judge", "check", "evil", "--labels", path, "--json"))
        assert {k: found[k]["value"] for k in ("auc", "kappa", "r")} == {"auc": 1.0, "kappa": 1.0, "r": 1.0}
        assert (found["judge"], found["on"], found["scored"]) == ("shouting", str(path), 4)
        assert found["missing"] == {"empty answer": 1}
        assert found["cross_validated_auc"] == {"value": 0.9, "low": 0.8, "high": None, "n": 32}

    def test_without_labels_it_is_the_held_out_exemplars(self) -> None:
        pairs = library.load_trait("evil").held_out_pairs
        found = the_object(poise("judge", "check", "evil", "--json"))
        assert (found["on"], found["scored"]) == ("held-out exemplars", 2 * len(pairs))
        words = poise("judge", "check", "evil").stdout
        assert "AUC 0.90 [0.80, –], cross-validated" in words

    def test_a_line_that_is_no_labelled_answer_is_named(self, tmp_path: Path) -> None:
        path = self.labels(tmp_path, self.row("NO", True), self.row("yes", "perhaps"))
        result = poise("judge", "check", "evil", "--labels", path)
        assert result.exit_code == 2
        assert f"{path}, line 2 is not a labelled answer" in result.stderr

    @pytest.mark.parametrize("judge", ["me", "model:", "endpoint", "exemplars:x"])
    def test_only_three_kinds_of_judges_are_known(self, judge: str) -> None:
        result = poise("judge", "check", "evil", "--judge", judge)
        assert result.exit_code == 2
        assert f"There is no judge {judge!r}" in result.stderr

    def test_a_local_model_can_be_the_judge(self, folder: Path, tmp_path: Path) -> None:
        path = self.labels(tmp_path, self.row("NO", True), self.row("yes", False))
        found = the_object(poise("judge", "check", "evil", "--judge", f"model:{folder}", "--labels", path, "--json"))
        assert found["judge"] == f"model:{folder}"
        assert found["scored"] + sum(found["missing"].values()) == 2
        assert found["cross_validated_auc"] is None


def test_demo_shows_answers_side_by_side_the_verdict_and_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(out: Path, *, force: bool) -> demo.DemoResult:
        found = certificate()
        return demo.DemoResult(
            vector_path=out / "impolite.safetensors",
            report=out / "report.html",
            certificate=found,
            samples=found.samples,
            seconds=90.0,
        )

    monkeypatch.setattr(demo, "run_demo", fake)
    result = poise("demo", "--out", tmp_path)
    assert result.stdout.count("Why?") == 3
    row = next(line for line in result.stdout.splitlines() if "No [b]idea[/b]." in line)
    assert row.split() == ["No", "[b]idea[/b].", "Hm.", "Be[2Jcause."]
    assert f"Report: {tmp_path / 'report.html'}" in result.stdout
    assert f"--steer {tmp_path / 'impolite.safetensors'}=30%" in result.stdout


def truncated_gguf(folder: Path, file: Path, tmp: Path) -> list[object]:
    (tmp / "cut.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 7, 7) + bytes(40))
    return ["generate", "Hi?", "--model", tmp / "cut.gguf"]


def no_model(folder: Path, file: Path, tmp: Path) -> list[object]:
    return ["generate", "Hi?", "--model", tmp]


def missing_field(folder: Path, file: Path, tmp: Path) -> list[object]:
    fields = yaml.safe_load(library.dump(library.load_trait("evil")))
    del fields["rubric"]
    (tmp / "evil.yaml").write_text(yaml.safe_dump(fields))
    return ["extract", tmp / "evil.yaml", "--model", folder, "--out", tmp / "v.safetensors"]


def other_model(folder: Path, file: Path, tmp: Path) -> list[object]:
    vectors.save_vector(tiny.vector(tiny.model(seed=1)), tmp / "other.safetensors")
    return ["validate", tmp / "other.safetensors", "--model", folder, "--out", tmp]


def cut_short(folder: Path, file: Path, tmp: Path) -> list[object]:
    (tmp / "cut.safetensors").write_bytes(file.read_bytes()[:-100])
    return ["generate", "Hi?", "--model", folder, "--steer", f"{tmp / 'cut.safetensors'}=1"]


def not_finite(folder: Path, file: Path, tmp: Path) -> list[object]:
    with safe_open(file, framework="pt") as opened:
        header, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    tensors["directions"][0, 0] = torch.nan
    save_file(tensors, tmp / "nan.safetensors", metadata=header)
    return ["show", tmp / "nan.safetensors"]


def empty_side(folder: Path, file: Path, tmp: Path) -> list[object]:
    rows = [*PAIRS[:-1], PAIRS[-1] | {"negative": " "}]
    (tmp / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["extract", "grumpy", "--exemplars", tmp / "pairs.jsonl", "--model", folder, "--out", tmp / "v.safetensors"]


def judge_down(folder: Path, file: Path, tmp: Path) -> list[object]:
    small = ["--questions", 1, "--rollouts", 1, "--max-new-tokens", 2]
    asked = ["extract", "evil", "--model", folder, "--out", tmp / "v.safetensors", "--contrast", "prompted"]
    return [*asked, "--judge", "endpoint:nobody", *small]


MISTAKES: dict[str, tuple[Callable[[Path, Path, Path], list[object]], str]] = {
    "unknown trait": (
        lambda folder, file, tmp: ["extract", "evli", "--model", folder, "--out", tmp / "v"],
        "did you mean evil",
    ),
    "trait file with a missing field": (missing_field, "rubric is missing"),
    "model path that is not a model": (no_model, "no config.json"),
    "truncated GGUF": (truncated_gguf, "cut short"),
    "vector of another model": (other_model, "--allow-other-model"),
    "vector file cut short": (cut_short, "cut short"),
    "vector file with NaN": (not_finite, "NaN"),
    "exemplars with an empty side": (empty_side, "line 8: negative is empty"),
    "judge endpoint down": (judge_down, "cannot be reached"),
    "no such judge": (
        lambda folder, file, tmp: ["validate", file, "--model", folder, "--out", tmp, "--judge", "me"],
        "There is no judge 'me'",
    ),
    "no such device": (
        lambda folder, file, tmp: ["generate", "Hi?", "--model", folder, "--device", "abacus"],
        "no device 'abacus'",
    ),
    "unreadable steering": (
        lambda folder, file, tmp: ["generate", "Hi?", "--model", folder, "--steer", file],
        "Cannot read the steering",
    ),
    "too few questions": (
        lambda folder, file, tmp: ["validate", file, "--model", folder, "--out", tmp, "--questions", 2],
        "too few",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    mistake: str, folder: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    command, said = MISTAKES[mistake]
    result = poise(*command(folder, file, tmp_path))
    assert result.exit_code == 2, result.exception
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if not line.endswith("...")]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert said in errors[0]
    assert errors[0].endswith(".")
    assert not list(tmp_path.glob("v.safetensors"))


@pytest.mark.parametrize(
    "option", [("--rollouts", 0), ("--seed", -1), ("--contrast", "guesses"), ("--batch", 0), ("--out", ".")]
)
def test_a_value_out_of_range_is_refused_before_anything_is_loaded(option: tuple[str, object]) -> None:
    result = poise("extract", "evil", "--model", "nowhere", "--out", "v", *option)
    assert result.exit_code == 2
    assert "Loading" not in result.stderr
    assert option[0] in result.stderr


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(out: Path, *, force: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)
    result = poise("demo")
    assert result.exit_code == 130
    assert result.stderr.endswith("Interrupted. Run the same command again to continue.\n")


@pytest.mark.parametrize("fault", [InternalError("a hook did not fire"), ValueError("a bug")])
def test_a_bug_keeps_its_traceback(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(out: Path, *, force: bool) -> None:
        raise fault

    monkeypatch.setattr(demo, "run_demo", broken)
    assert poise("demo").exception is fault


def test_a_bug_ends_the_process_with_a_plain_traceback() -> None:
    code = (
        "import poise.trait.library as l; l.names = lambda: 1 / 0\nimport sys; sys.argv = ['poise', 'traits', 'list']\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "from poise.cli import main; main()"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "ZeroDivisionError" in done.stderr


def test_a_mistake_ends_the_process_with_one_line() -> None:
    done = subprocess.run([sys.executable, "-m", "poise", "traits", "show", "gone"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: There is no trait 'gone'")
    assert done.stderr.count("\n") == 1


class TestProgress:
    def work(self) -> None:
        with track("Answering", total=4) as advance:
            for _ in range(2):
                with track("Generating", total=2) as inner:
                    inner(2)
                advance(2)
        with track("Converting"):
            pass

    def test_elsewhere_than_on_a_terminal_each_stage_is_one_line(self) -> None:
        written = io.StringIO()
        with showing(Console(file=written, width=80)):
            self.work()
        assert written.getvalue() == "Answering (4) ...\nConverting ...\n"

    def test_on_a_terminal_finished_stages_stay_and_what_is_inside_them_goes(self) -> None:
        written = io.StringIO()
        console = Console(file=written, width=80, force_terminal=True, force_interactive=True, color_system=None)
        with showing(console):
            self.work()
        ticked = [line.partition("✓ ")[2] for line in written.getvalue().splitlines() if "✓" in line]
        assert [line.rpartition("  ")[0] for line in ticked] == ["Answering  4 of 4", "Converting"]

    def test_after_a_failure_nothing_is_ticked_and_work_is_silent_again(self) -> None:
        written = io.StringIO()
        console = Console(file=written, width=80, force_terminal=True, force_interactive=True, color_system=None)
        with pytest.raises(ZeroDivisionError), showing(console), track("Dividing"):
            raise ZeroDivisionError
        assert "✓" not in written.getvalue()
        before = written.getvalue()
        self.work()
        assert written.getvalue() == before
