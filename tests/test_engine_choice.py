"""``--engine vllm``: the choice of what generates, what is refused, and whose answers are kept under which key."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.contrast import ResponseRequest, ResponseStore
from poise.engine import Generation, SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument, UnsuitableModel
from poise.model import Encoded, Model, ask, wrap
from poise.monitor.calibrate import CalibrationSettings, calibrate_alarms
from poise.screen.base_answers import BaseAnswers
from poise.screen.preference import PreferenceSettings
from poise.screen.scoring import ScreeningRun, ScreenSettings
from poise.trait import library
from poise.vector import save_vector
from poise.vllm import engine
from poise.vllm.choice import choose_engine
from poise.workflows import calibrate_vectors, extract_vector, generate

SHORT = SamplingParams(max_new_tokens=4)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else real(name, *rest))


class OtherDraws(LocalEngine):
    """Stands for vLLM: an engine that draws other answers, and counts what it is asked."""

    key = "other"
    name = "Another 1.0"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.asked_for = 0

    def generate(self, prompts: Sequence[Encoded], sampling: SamplingParams, **options: Any) -> list[Generation]:
        self.asked_for += len(prompts)
        options["seeds"] = [1000 + place for place in range(len(prompts))]
        return super().generate(prompts, sampling, **options)


def must_not_load() -> Model:
    raise AssertionError("the model was loaded")


class TestWithoutVllm:
    """Each command says what to install, before it loads a model."""

    @pytest.fixture
    def vector(self, model: Model, tmp_path: Path) -> Path:
        save_vector(tiny.vector(model), tmp_path / "v.safetensors")
        return tmp_path / "v.safetensors"

    @pytest.mark.parametrize("command", ["extract", "validate", "calibrate", "generate", "screen"])
    @pytest.mark.usefixtures("without_vllm")
    def test_it_is_said_what_to_install(self, command: str, vector: Path, tmp_path: Path) -> None:
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 3)
        arguments: dict[str, list[object]] = {
            "extract": ["impolite", "--contrast", "prompted", "--out", tmp_path / "new.safetensors"],
            "validate": [vector],
            "calibrate": [vector, "--normal", rows],
            "generate": ["Hi"],
            "screen": [rows, "--vector", vector, "--out", tmp_path / "screened"],
        }
        line = [command, *arguments[command], "--model", tmp_path / "nothing", "--engine", "vllm"]
        done = CliRunner().invoke(app, [str(part) for part in line], env={"COLUMNS": "400"})
        assert done.exit_code == 2, done.stderr
        assert "The engine vllm needs vllm" in done.stderr
        assert "pip install -e '.[vllm]'" in done.stderr
        assert not (tmp_path / "new.safetensors.run").exists()


class TestWhatIsRefused:
    def test_exemplars_which_nobody_generates(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="`engine` is vllm, and exemplars are read, not generated; leave"):
            extract_vector(library.load_trait("impolite"), must_not_load, tmp_path / "v.safetensors", engine="vllm")

    def test_answers_that_the_data_have(self, model: Model, tmp_path: Path) -> None:
        with pytest.raises(InvalidArgument, match="`engine` is vllm, and answers that the data have are read"):
            calibrate_vectors([tmp_path / "v"], model, [], CalibrationSettings(read_given_answers=True), engine="vllm")

    def test_screening_that_generates_nothing(self) -> None:
        with pytest.raises(InvalidArgument, match="by `method` raw nothing is generated without `fix`"):
            ScreenSettings(method="raw", engine="vllm").check_engine()
        with pytest.raises(InvalidArgument, match="pairs are read, not generated; use local or ray as `engine`"):
            PreferenceSettings(engine="vllm")

    def test_adapters(self) -> None:
        plain = tiny.model()
        adapted = wrap(tiny.adapted(plain.lm), plain.tokenizer, name="a")
        with pytest.raises(UnsuitableModel, match=r"a has an adapter.*merge the two with `poise merge`"):
            choose_engine("vllm", adapted)


def test_local_is_the_engine_on_the_model_itself(model: Model) -> None:
    local = choose_engine("local", model, batch=7, allow_other_model=True)
    assert isinstance(local, LocalEngine)
    assert (local.model, local.batch, local.allow_other_model) == (model, 7, True)


def test_vllm_gets_the_weights_and_the_dtype_of_the_model_that_was_loaded(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.lm.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(engine, "check_installed", lambda: None)
    monkeypatch.setattr(engine, "installed_version", lambda: "0.32.0")
    chosen = choose_engine("vllm", dataclasses.replace(model, name=str(tmp_path)))
    assert isinstance(chosen, engine.VllmEngine)
    assert (chosen._source, chosen._options) == (str(tmp_path), {"dtype": "float32"})
    assert chosen.key == "vllm"


class TestKeptWork:
    """An engine's answers are its own: a run under another engine takes none of them, and loses none."""

    def test_of_extraction_and_validation(self, model: Model, tmp_path: Path) -> None:
        requests = [ResponseRequest(question=q, seed=1) for q in ("One?", "Two?")]
        answer: Callable[[Any], list[str]] = lambda by: [  # noqa: E731
            a.text for a in ResponseStore(tmp_path).answer(by, model, requests, SHORT, what="x", keep_means=True)
        ]
        other = OtherDraws(model)
        local, others = answer(LocalEngine(model)), answer(other)
        assert local != others
        assert other.asked_for == 2
        assert (answer(LocalEngine(model)), answer(other)) == (local, others)
        assert other.asked_for == 2

    def test_of_calibration(self, model: Model, tmp_path: Path) -> None:
        rows = [{"messages": [{"role": "user", "content": f"Question {n}?"}]} for n in range(120)]
        vector, plan = tiny.vector(model), CalibrationSettings(rates=(0.1,), sampling=SHORT)
        other = OtherDraws(model)
        first = calibrate_alarms(rows, model, vector, plan, tmp_path)
        second = calibrate_alarms(rows, model, vector, plan, tmp_path, engine=other)
        assert other.asked_for == 120
        assert first.reference.readings != second.reference.readings
        again = calibrate_alarms(rows, model, vector, plan, tmp_path, engine=other)
        assert other.asked_for == 120
        assert again.reference.readings == second.reference.readings
        assert calibrate_alarms(rows, model, vector, plan, tmp_path).reference.readings == first.reference.readings

    def test_of_screening(self, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        other = OtherDraws(model)
        monkeypatch.setattr("poise.screen.scoring.choose_engine", lambda name, model: other)
        local = ScreeningRun(model, [tiny.vector(model)], tmp_path, ScreenSettings(max_new_tokens=4))
        run = ScreeningRun(model, [tiny.vector(model)], tmp_path, ScreenSettings(max_new_tokens=4, engine="vllm"))
        assert local.answers
        assert run.answers
        assert run.answers.engine is other
        assert run.open_base_answers().engine is other
        assert local.answers.store.path != run.answers.store.path
        run.answers.generate([model.encode(ask("Hi"))])
        assert other.asked_for == 1

    def test_under_the_keys_of_the_first_version(self, model: Model, tmp_path: Path) -> None:
        [prompt] = [model.encode(ask("Hi"))]
        one, two = (BaseAnswers(model, tmp_path, max_new_tokens=3, engine=e) for e in (None, LocalEngine(model)))
        assert one.store.path == two.store.path
        one.generate([prompt])
        assert two.count_missing([prompt]) == 0


def test_commands_hand_on_the_engine(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    other = OtherDraws(model)
    asked: list[tuple[str, bool]] = []

    def choose(name: str, model: Model, *, batch: int, allow_other_model: bool = False) -> OtherDraws:
        asked.append((name, allow_other_model))
        return other

    monkeypatch.setattr("poise.workflows.generation.choose_engine", choose)
    generate(["Hi", "You"], model, sampling=SHORT, engine="vllm")
    assert (asked, other.asked_for) == ([("vllm", True)], 2)
