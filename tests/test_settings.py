"""Settings files: what YAML reads is taken as it says or refused with its line, never turned into something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from poise.errors import InvalidSettings
from poise.guardrail import Guardrail
from poise.serve.policy import Policies
from poise.settings import LineFinder, Settings, check_settings, first_fault, parse_yaml, read_settings
from poise.shift.contexts import ContextFile
from poise.shift.limits_file import ShiftLimits
from poise.steer.request_field import PoiseField
from poise.train.config import TrainConfig

RUN = "model: m\ndata: d\nout: o\n"
HUGE = "1" + "0" * 400
SHOWN = "100000000000000000...0000000000000000000"
NUMBER = "it must be a number (a whole one where things are counted)"
SIZE = "it must be a number of 64 bits, at most 9.2e18"


def mistakes(kind: type[Settings], text: str, folder: Path) -> list[str]:
    """What reading a file says of its lines."""
    path = folder / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSettings) as error:
        read_settings(path, kind)
    words = str(error.value).removesuffix("; fix it and try again.").removeprefix(f"{path}, ")
    return [line.strip() for line in words.splitlines() if line.strip().startswith("line ")]


class TestANumber:
    @pytest.mark.parametrize("field", ["batch", "max_steps", "epochs", "seed", "learning_rate", "eval_steps"])
    @pytest.mark.parametrize(
        ("value", "shown"), [("true", "True"), ("yes", "True"), ("'4'", "'4'"), ('"1e-3"', "'1e-3'")]
    )
    def test_is_no_true_and_no_quoted_text(self, field: str, value: str, shown: str, tmp_path: Path) -> None:
        assert mistakes(TrainConfig, f"{RUN}{field}: {value}\n", tmp_path) == [f"line 4: {field} is {shown}; {NUMBER}"]

    def test_is_none_in_any_part_of_any_file(self, tmp_path: Path) -> None:
        text = f"{RUN}lora: {{r: no}}\nwatch:\n  every: '5'\nmeasure:\n  questions: on\n"
        assert mistakes(TrainConfig, text, tmp_path) == [
            f"line 4: lora.r is False; {NUMBER}",
            f"line 6: watch.every is '5'; {NUMBER}",
            f"line 8: measure.questions is True; {NUMBER}",
        ]
        text = "default:\n  most_tokens: yes\n  limits: [{requests: '5', seconds: 1}]\n"
        assert mistakes(Policies, text, tmp_path) == [
            f"line 2: default.most_tokens is True; {NUMBER}",
            f"line 3: default.limits.0.requests is '5'; {NUMBER}",
        ]
        assert mistakes(ContextFile, "contexts:\n- system: Hi\n  rows: true\n", tmp_path) == [
            f"line 3: contexts.0.rows is True; {NUMBER}"
        ]
        assert mistakes(ShiftLimits, "min_n: true\ntraits: {evil: {shift: {most: '2'}}}\n", tmp_path) == [
            f"line 1: min_n is True; {NUMBER}",
            f"line 2: traits.evil.shift.most is '2'; {NUMBER}",
        ]

    def test_may_be_written_as_yaml_1_2_does(self, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_text(
            f"{RUN}learning_rate: 1e-4\nmax_steps: 2E+2\nweight_decay: 5.e-1\nepochs: .5e1\n"
        )
        run = read_settings(tmp_path / "run.yaml", TrainConfig)
        assert (run.learning_rate, run.max_steps, run.weight_decay, run.epochs) == (1e-4, 200, 0.5, 5.0)
        (tmp_path / "limits.yaml").write_text("traits: {evil: {shift: 1e-1}}\n")
        limit = read_settings(tmp_path / "limits.yaml", ShiftLimits).traits["evil"].shift
        assert limit is not None
        assert (limit.least, limit.most) == (-0.1, 0.1)

    @pytest.mark.parametrize(
        ("written", "words"),
        [
            ("010", "010 is read as one number by some programs and as another by others"),
            ("1:30", "1:30 is read as one number by some programs and as another by others"),
            ("1:30.5", "1:30.5 is read as one number by some programs and as another by others"),
            ("2024-13-45", "2024-13-45 is no date; put it in quotes"),
            ("1" + "0" * 5000, "10000000000000000000… (5,001 characters) is no number that can be read"),
        ],
    )
    def test_that_programs_read_otherwise_or_not_at_all_is_told(self, written: str, words: str, tmp_path: Path) -> None:
        (line,) = mistakes(TrainConfig, f"{RUN}seed: {written}\n", tmp_path)
        assert line.startswith(f"line 4: broken YAML, {words}")

    def test_of_more_than_64_bits_is_told_with_its_line(self, tmp_path: Path) -> None:
        text = f"{RUN}seed: {HUGE}\nbatch: {HUGE}\nlearning_rate: {HUGE}\nwatch: {{every: -{HUGE}}}\n"
        assert mistakes(TrainConfig, text, tmp_path) == [
            f"line 4: seed is {SHOWN}; {SIZE}",
            f"line 5: batch is {SHOWN}; {SIZE}",
            f"line 6: learning_rate is {SHOWN}; {SIZE}",
            f"line 7: watch.every is -{SHOWN[:-1].replace('100000000000000000', '10000000000000000')}0; {SIZE}",
        ]
        text = f"traits:\n  evil:\n    shift: {HUGE}\n    judged: {{most: {HUGE}}}\ncapability:\n  mmlu: {HUGE}\n"
        assert mistakes(ShiftLimits, text, tmp_path) == [
            f"line 3: traits.evil.shift is {SHOWN}; it must be a finite number, or a mapping of least and most",
            f"line 4: traits.evil.judged.most is {SHOWN}; {SIZE}",
            f"line 6: capability.mmlu is {SHOWN}; {SIZE}",
        ]

    def test_from_python_is_held_to_the_same(self) -> None:
        named = {"model": "m", "data": "d", "out": "o"}
        for value, words in ((True, f"batch is True; {NUMBER}"), ("4", f"batch is '4'; {NUMBER}")):
            with pytest.raises(InvalidSettings) as error:
                check_settings({**named, "batch": value}, TrainConfig)
            assert str(error.value) == f"TrainConfig: {words}; fix it and try again."
        with pytest.raises(
            InvalidSettings, match=r"seed is a number of more than 4,300 digits; it must be a number of 64"
        ):
            TrainConfig(model="m", data="d", out="o", seed=10**5000)


class TestTrueOrFalse:
    @pytest.mark.parametrize(("value", "shown"), [("1", "1"), ("0", "0"), ("'yes'", "'yes'"), ("1.0", "1.0")])
    def test_is_no_number_and_no_quoted_text(self, value: str, shown: str, tmp_path: Path) -> None:
        assert mistakes(TrainConfig, f"{RUN}packing: {value}\n", tmp_path) == [
            f"line 4: packing is {shown}; it must be true or false"
        ]
        assert mistakes(Policies, f"default:\n  may_steer: {value}\n", tmp_path) == [
            f"line 2: default.may_steer is {shown}; it must be true or false"
        ]


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"watch": "evil"}, "watch is 'evil'; it must be true or false, or a list"),
        ({"watch": ["evil"] * 65}, "watch has 65 entries; at most 64 are taken"),
        ({"watch": ["evil", 3]}, "watch.1 is 3; it must be text; put it in quotes"),
        ({"watch": [""]}, "watch.0 is empty"),
        ({"steer": 5}, "steer is 5; it must be text, or a mapping of settings"),
        ({"steer": "e" * 5000}, "steer has 5000 characters; at most 4000 are taken"),
        ({"steer": "\ud800=1"}, "steer: half of a character (a lone surrogate)"),
        ({"steer": {"terms": [{"vector": 3}]}}, "steer.terms.0.vector is 3; it must be text; put it in quotes"),
    ],
)
def test_of_a_choice_of_shapes_the_one_that_was_meant_is_judged(field: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PoiseField.model_validate(field)
    assert first_fault(caught.value, PoiseField) == words


def test_thousands_of_mistakes_are_placed_once_each_and_the_first_are_told(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text("".join(f"key{n}: 1\n" for n in range(3000)))
    root = parse_yaml(path.read_text()).root
    assert isinstance(root, yaml.MappingNode)
    passes = []

    class Fields(list[Any]):
        def __reversed__(self) -> Any:
            passes.append(1)
            return super().__reversed__()

    root.value = Fields(root.value)
    line_of = LineFinder(root)
    assert [line_of((f"key{n}",)) for n in range(3000)] == list(range(1, 3001))
    assert line_of(("none",)) == 1
    assert len(passes) == 1
    with pytest.raises(InvalidSettings) as caught:
        read_settings(path, Guardrail)
    told = str(caught.value).splitlines()
    assert told[0].endswith("has 3,001 mistakes; fix them and try again:")
    assert told[-1] == "  and 2,901 more"
    assert len(told) == 102
