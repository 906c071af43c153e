"""Answers of ``poise generate`` that are held to a JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

import tiny
from poise import workflows
from poise.cli import app
from poise.engine import SamplingParams
from poise.errors import InvalidArgument
from poise.model import Model
from poise.steer import Steering

BOAT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "masts": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["name", "masts"],
    "additionalProperties": False,
}
ROOM = SamplingParams(max_new_tokens=120, temperature=1.3)
OVERLAPPING = {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 5}]}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model(tokenizer=tiny.chatml())


class TestAnswers:
    def test_fit_the_schema_each_as_it_would_alone(self, model: Model) -> None:
        prompts = ["A boat?", "Another, please, and a larger one?", "And?"]
        answers = workflows.generate(prompts, model, sampling=ROOM, seed=5, schema=BOAT)
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            jsonschema.validate(json.loads(answer.text), BOAT)
            [alone] = workflows.generate([prompt], model, sampling=ROOM, seed=5 + number, schema=BOAT)
            assert (alone.text, answer.finish) == (answer.text, "stop")

    def test_fit_it_under_steering(self, model: Model) -> None:
        steering = Steering.add(tiny.vector(model), coef=40.0, layer=2)
        [answer] = workflows.generate(["A boat?"], model, sampling=ROOM, steering=steering, schema=BOAT)
        jsonschema.validate(json.loads(answer.text), BOAT)

    def test_are_not_held_by_an_engine_that_cannot(self, model: Model) -> None:
        with pytest.raises(InvalidArgument, match="engine vllm holds answers to no schema; take the engine local"):
            workflows.generate(["?"], model, sampling=ROOM, engine="vllm", schema=BOAT)

    def test_of_a_schema_that_two_parts_of_a_union_fit_are_refused_with_what_to_write(self, model: Model) -> None:
        with pytest.raises(InvalidArgument, match=r"keyword oneOf.* two of its parts. Write anyOf, or have the parts"):
            workflows.generate(["?"], model, sampling=ROOM, schema={"type": "object", "properties": {"a": OVERLAPPING}})


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("model")
    model.lm.save_pretrained(where)
    model.tokenizer.save_pretrained(where)
    return where


class TestTheCommand:
    def run(self, folder: Path, *arguments: str, given: str = "") -> Any:
        options = ["generate", "A boat?", "--model", str(folder), "--max-new-tokens", "120", *arguments]
        return CliRunner().invoke(app, options, input=given)

    @pytest.mark.parametrize("written", ["{file}", "@{file}", "-"])
    def test_takes_a_file_or_standard_input(self, folder: Path, tmp_path: Path, written: str) -> None:
        file = tmp_path / "boat.json"
        file.write_text(json.dumps(BOAT))
        given = json.dumps(BOAT) if written == "-" else ""
        done = self.run(folder, "--json-schema", written.format(file=file), "--json", given=given)
        assert done.exit_code == 0, done.output
        [answer] = json.loads(done.stdout)["answers"]
        jsonschema.validate(json.loads(answer["text"]), BOAT)

    def test_cannot_read_standard_input_twice(self, folder: Path) -> None:
        done = self.run(folder, "-", "--json-schema", "-", given="{}")
        assert (done.exit_code, "Standard input can be read once" in done.output) == (2, True), done.output

    def test_says_which_answers_are_cut(self, folder: Path, tmp_path: Path) -> None:
        file = tmp_path / "boat.json"
        file.write_text(json.dumps(BOAT))
        done = self.run(folder, "--json-schema", str(file), "--max-new-tokens", "2")
        assert "1 of 1 answers are incomplete JSON, cut by --max-new-tokens 2" in " ".join(done.stderr.split())

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('{"type": "object",\n "properties": }', "boat.json is not JSON (line 2: "),
            ("[1]", "boat.json is no JSON Schema: it holds no object"),
            ('{"type": "array", "uniqueItems": true}', "because of its keyword uniqueItems"),
            ("[" * 100_000, "boat.json is nested too deeply"),
            (None, "Cannot read boat.json: No such file or directory. Give the path"),
        ],
        ids=["json", "list", "keyword", "deep", "missing"],
    )
    def test_refuses_what_is_no_schema(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, says: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if text is not None:
            Path("boat.json").write_text(text)
        done = self.run(folder, "--json-schema", "boat.json")
        assert (done.exit_code, says in " ".join(done.output.split())) == (2, True), done.output
