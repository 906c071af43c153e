"""Screening, reading and calibrating rows in memory, against the same rows in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

import poise
import tiny
from poise.data import Conversation, data_from_rows, open_data, turns
from poise.errors import InvalidData, OtherModel
from poise.model import Model
from poise.monitor.calibrate import CalibrationSettings
from poise.monitor.table import write_readings_table
from poise.monitor.token_readings import TokenReadings, read_answer_tokens
from poise.trait import library
from poise.vector import PersonaVector


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def vector(model: Model) -> PersonaVector:
    return tiny.vector(model)


def talk(n: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Tell me {i}."},
                {"role": "assistant", "content": f"It is {i} <b>."},
            ]
        }
        for i in range(n)
    ]


FORMS = {
    "dicts": lambda rows: rows,
    "messages": lambda rows: [row["messages"] for row in rows],
    "conversations": lambda rows: list(data_from_rows(rows)),
    "an iterator": iter,
    "a data set of the library": datasets.Dataset.from_list,
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_in_every_form_read_as_their_file(model: Model, vector: PersonaVector, tmp_path: Path, form: str) -> None:
    rows = talk(12)
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_readings_table(open_data(tmp_path / "talk.jsonl"), model, [vector], tmp_path / "t.jsonl")
    table = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    read = list(poise.read_rows(FORMS[form](rows), [vector], model))
    assert [f"{turn.readings.mean[0]:.6g}" for turn in read if turn.readings] == [f"{row['mean']:.6g}" for row in table]
    scores = [row.scores[vector.name] for row in poise.screen_rows(FORMS[form](rows), [vector], model)]
    assert scores == pytest.approx([turn.readings.mean[0] for turn in read if turn.readings], rel=1e-5)


def test_alarms_are_set_as_on_the_file(model: Model, vector: PersonaVector, tmp_path: Path) -> None:
    rows, settings = talk(60), CalibrationSettings(rates=(0.1,), read_given_answers=True)
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from_file = poise.calibrate_alarms(open_data(tmp_path / "talk.jsonl"), model, [vector], settings).vectors[0]
    in_memory = poise.calibrate_alarms(rows, model, [vector], settings).vectors[0]
    assert [a.threshold for a in in_memory.header.alarms] == [a.threshold for a in from_file.header.alarms]
    assert not vector.header.alarms


def test_what_is_no_row_is_said() -> None:
    with pytest.raises(InvalidData, match="it is empty"):
        data_from_rows([])
    with pytest.raises(InvalidData, match="not a row"):
        data_from_rows(["just text"])  # type: ignore[list-item]


def test_tokens_are_tinted_and_escaped(model: Model, vector: PersonaVector) -> None:
    [read] = read_answer_tokens(talk(1), [vector], model)
    [conversation] = data_from_rows(talk(1))
    assert isinstance(conversation, Conversation)
    assert "".join(read.tokens) == turns(conversation)[0].answer
    assert read.values.shape == (len(read.tokens), 1)
    [turn] = poise.read_rows(talk(1), [vector], model)
    assert turn.readings
    assert float(read.values.mean()) == pytest.approx(turn.readings.mean[0], rel=1e-5)
    html = TokenReadings(index=0, turn=0, traits=("<x>",), tokens=("<b>", "a"), values=torch.tensor([[1.0], [2.0]]))
    shown = html._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "&lt;x&gt;" in shown
    assert "<b>a" not in shown
    assert shown.count("<span") == 2


class TestAnotherModel:
    """Vectors and contrasts know the model that they came from."""

    def test_has_no_alarms_set(self, vector: PersonaVector) -> None:
        plan = CalibrationSettings(rates=(0.2,), read_given_answers=True)
        for other in (tiny.model(seed=5), tiny.model(hidden_size=64)):
            with pytest.raises(OtherModel):
                poise.calibrate_alarms(talk(40), other, [vector], plan)
        poise.calibrate_alarms(talk(40), tiny.model(seed=5), [vector], plan, allow_other_model=True)

    def test_has_no_vector_of_these_responses(self, model: Model) -> None:
        responses = poise.collect_contrast(library.load_trait("impolite"), model)
        for other in (tiny.model(seed=5), tiny.model(tokenizer=tiny.llama3())):
            with pytest.raises(OtherModel, match="collected on another model"):
                poise.extract_vector(responses, other)
