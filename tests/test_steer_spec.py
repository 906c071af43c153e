"""Steering as people write it: expression and JSON say the same, and what cannot be read is refused in a sentence."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tiny
from poise.cli import render
from poise.errors import InvalidSteering
from poise.model import Model
from poise.steer import Condition, Steering, SteeringExpression, Term, cautions
from poise.steer.expression import ConditionExpression, TermExpression
from poise.steer.operators import OPERATORS


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


names = st.from_regex(r"[\w./= -]{1,20}", fullmatch=True).map(str.strip).filter(bool)
plain_names = st.from_regex(r"[A-Za-z_][\w./-]{0,15}", fullmatch=True)
numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 4)) | st.integers(-1000, 1000)
levels = st.floats(-100, 100) | st.just("alarm")
layers = st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def terms(draw: st.DrawFn) -> TermExpression:
    operation: Any = draw(st.sampled_from(list(OPERATORS)))
    fields: dict[str, Any] = {"vector": draw(plain_names), "operation": operation, "layers": draw(layers)}
    if operation == "add":
        fields[draw(st.sampled_from(["coef", "dose"]))] = draw(st.floats(-10, 10))
        if "coef" in fields and draw(st.booleans()):
            fields["layers"] = "increments"
    elif operation != "project_out":
        fields["level"] = draw(levels)
    fields["phase"] = draw(st.sampled_from(["response", "prompt", "all"]))
    fields["part"] = draw(st.sampled_from(["reply", "thought", "both"]))
    fields["tokens"] = draw(st.sampled_from([(0, None), (0, 7), (7, None), (3, 9)]))
    if draw(st.booleans()):
        reading: Any = draw(st.sampled_from(["token", "prompt"]))
        fields["when"] = ConditionExpression(
            vector=draw(plain_names),
            layer=draw(st.none() | st.integers(0, 99)),
            value=draw(levels),
            above=draw(st.booleans()),
            reading=reading,
        )
    return TermExpression(**fields)


specs = st.builds(
    SteeringExpression, terms=st.lists(terms(), min_size=1, max_size=3).map(tuple), orthogonal=st.booleans()
)


class TestASpec:
    @given(spec=specs)
    def test_is_the_same_as_an_expression_and_as_json(self, spec: SteeringExpression) -> None:
        assert SteeringExpression.parse(str(spec)) == spec
        assert SteeringExpression.parse(spec.model_dump_json()) == spec
        assert SteeringExpression.from_json(spec.model_dump(mode="json")) == spec

    @given(file=names, layer=st.none() | st.integers(0, 999), number=numbers, percent=st.booleans())
    @example("dir/evil v2.safetensors", 12, -1.5, False)
    @example("a=1%", None, 2, True)
    @example("mail@home", 3, 2, True)
    def test_reads_what_was_written(self, file: str, layer: int | None, number: float, percent: bool) -> None:
        text = f"{file}{'' if layer is None else f'@{layer}'}={number}{'%' if percent else ''}"
        strength: dict[str, Any] = {"dose": float(Decimal(str(number)) / 100)} if percent else {"coef": number}
        expected = TermExpression(vector=file, layers=None if layer is None else (layer,), **strength)
        assert SteeringExpression.parse(text) == SteeringExpression(terms=(expected,))

    @pytest.mark.parametrize(
        ("number", "strength"), [("1.5", 1.5), ("+2", 2), ("-.5", -0.5), ("−0.5", -0.5), ("1e-2", 0.01), ("3 ", 3)]
    )
    def test_reads_numbers_as_people_write_them(self, number: str, strength: float) -> None:
        assert SteeringExpression.parse(f"evil={number}").terms == (TermExpression(vector="evil", coef=strength),)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("evil@8,12=1", {"coef": 1, "layers": (8, 12)}),
            ("evil@increments=1", {"coef": 1, "layers": "increments"}),
            ("evil=out", {"operation": "project_out"}),
            ("evil=cap:3.2", {"operation": "cap", "level": 3.2}),
            ("evil=floor:-1", {"operation": "floor", "level": -1.0}),
            ("evil=cap:alarm", {"operation": "cap", "level": "alarm"}),
            ("evil=clamp:-1 on all", {"operation": "clamp", "level": -1, "phase": "all"}),
            ("evil=30% in thought", {"dose": 0.3, "part": "thought"}),
            ("evil=out in both", {"operation": "project_out", "part": "both"}),
            (
                "evil=1 on all in thought after 3 if rude>1",
                {
                    "coef": 1,
                    "phase": "all",
                    "part": "thought",
                    "tokens": (3, None),
                    "when": {"vector": "rude", "value": 1},
                },
            ),
            ("evil=30% first 20", {"dose": 0.3, "tokens": (0, 20)}),
            ("evil=30 % after 20", {"dose": 0.3, "tokens": (20, None)}),
            ("evil=1 tokens 5-20", {"coef": 1, "tokens": (5, 20)}),
            ("evil=1 if rude@10>2.5", {"coef": 1, "when": {"vector": "rude", "layer": 10, "value": 2.5}}),
            (
                "evil=1 first 3 if prompt rude < alarm",
                {
                    "coef": 1,
                    "tokens": (0, 3),
                    "when": {"vector": "rude", "value": "alarm", "above": False, "reading": "prompt"},
                },
            ),
        ],
    )
    def test_reads_every_form_that_the_docs_show(self, text: str, expected: dict[str, Any]) -> None:
        assert SteeringExpression.parse(text).terms == (TermExpression.model_validate({"vector": "evil", **expected}),)

    def test_reads_several_and_whether_they_are_made_orthogonal(self) -> None:
        spec = SteeringExpression.parse("evil=-1; rude=-1 ; orthogonal")
        assert [t.vector for t in spec.terms] == ["evil", "rude"]
        assert spec.orthogonal
        assert spec.names == ["evil", "rude"]

    @pytest.mark.parametrize("strength", ["", "x", "1.2.3", "nan", "inf", "1%%", "%", ".", "cap", "cap:", "cap:x"])
    @pytest.mark.parametrize("file", ["evil=", "evil@3="])
    def test_that_cannot_be_read_is_refused_with_the_shape(self, file: str, strength: str) -> None:
        for text in (f"{file}{strength}", file.removesuffix("="), f"={strength}"):
            with pytest.raises(InvalidSteering, match=r"write NAME=1\.5, NAME=30%, NAME@LAYER=1\.5"):
                SteeringExpression.parse(text)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("evil=1 on", "Cannot read 'on'"),
            ("evil=1 first", "Cannot read 'first'"),
            ("evil=1 if rude", "Cannot read 'if rude'"),
            ("evil=1 if rude>2 first 3", "in this order"),
            ("evil@increments=30%", "increments have no dose"),
            ("orthogonal", "names no vector"),
            ("", "names no vector"),
            ('{"terms": [{"vector": "evil"}]}', "terms.0: add takes coef or dose, not none"),
            ('{"terms": [{"vector": "evil", "coef": 1, "dose": 1}]}', "add takes coef or dose, not"),
            ('{"terms": [{"vector": "evil", "coef": 1, "layers": []}]}', "name at least one layer"),
            (
                '{"terms": [{"vector": "evil", "coef": 1, "layers": [-1]}]}',
                r"layers\.0 is -1; it must be at least 0\.",
            ),
            ('{"terms": [{"vector": "evil", "coef": 1e999}]}', "terms.0.coef is inf; it must be a finite number"),
            ('{"terms": [{"vector": "evil", "alpha": 1}]}', "terms.0.alpha"),
            ('{"terms": []}', "at least 1"),
            ("{", "it is not JSON"),
        ],
    )
    def test_with_a_fault_is_refused_and_the_fault_is_named(self, text: str, words: str) -> None:
        with pytest.raises(InvalidSteering, match=words):
            SteeringExpression.parse(text)

    @given(text=st.text(max_size=40))
    def test_either_reads_a_text_or_refuses_it(self, text: str) -> None:
        try:
            spec = SteeringExpression.parse(text)
        except InvalidSteering:
            return
        assert spec.names


class TestTheSteeringItself:
    def test_is_what_was_written(self, llama: Model) -> None:
        v, w = tiny.vector(llama), tiny.vector(llama, seed=1)
        vectors = {"v": v, "w": w}
        assert SteeringExpression.parse("v@2=30%").steering(vectors) == Steering.add(v, dose=0.3, layer=2)
        assert SteeringExpression.parse("v=-1").steering(lambda name: vectors[name]) == Steering.add(v, coef=-1.0)
        assert SteeringExpression.parse("v@1=out").steering(vectors) == Steering.project_out(v, layer=1)
        both = SteeringExpression.parse("v@1=1 after 2; w@1,3=cap:2 on all if v@0<-1; orthogonal").steering(vectors)
        when = Condition(vector=v, layer=0, value=-1.0, above=False)
        capped = tuple(
            Term(vector=w, value=2.0, layers=(layer,), operation="cap", phase="all", when=when) for layer in (1, 3)
        )
        assert both == Steering((Term(vector=v, value=1.0, layers=(1,), tokens=(2, None)), *capped), orthogonal=True)

    def test_has_at_each_layer_the_dose_that_was_asked_for(self, llama: Model) -> None:
        v = tiny.vector(llama)
        spread = SteeringExpression.parse("v@1,2=30%").steering({"v": v})
        assert [v.dose(t.value, t.touched[0]) for t in spread.terms] == pytest.approx([0.3, 0.3])

    def test_names_what_there_is_where_a_vector_is_unknown(self, llama: Model) -> None:
        with pytest.raises(InvalidSteering, match="no vector 'evel'; there are: evil, rude"):
            SteeringExpression.parse("evel=1").steering({"rude": tiny.vector(llama), "evil": tiny.vector(llama)})

    def test_names_the_range_where_a_layer_is_out_of_it(self, llama: Model) -> None:
        with pytest.raises(InvalidSteering, match="Layer 9 is out of range: grumpy has layers 0 to 3"):
            SteeringExpression.parse("v@9=1").steering({"v": tiny.vector(llama)})

    def test_says_how_to_get_an_alarm_that_is_not_there(self, llama: Model) -> None:
        for text in ("v=cap:alarm", "v=1 if v>alarm", "v=1 if prompt v>alarm"):
            with pytest.raises(InvalidSteering, match="run `poise calibrate`"):
                SteeringExpression.parse(text).steering({"v": tiny.vector(llama)})


class TestItsWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("v@1=1.5", "grumpy: layer 1 of 4, coefficient 1.5 (dose DOSE)"),
            ("v@1=-1.5 on prompt", "grumpy: layer 1 of 4, coefficient -1.5 (dose DOSE), on the prompt"),
            ("v@1=1.5 on all", "grumpy: layer 1 of 4, coefficient 1.5 (dose DOSE), on prompt and response"),
            ("v@1=1.5 in thought", "grumpy: layer 1 of 4, coefficient 1.5 (dose DOSE), in the thought"),
            ("v@1=1.5 in both", "grumpy: layer 1 of 4, coefficient 1.5 (dose DOSE), in thought and reply"),
            ("v@increments=1", "grumpy: coefficient 1, as increments at all 4 layers"),
            ("v@1=out in thought", "grumpy: layer 1 of 4, projected out, in the thought"),
            ("v@2=cap:3.2 in both", "grumpy: layer 2 of 4, cap at 3.2, in thought and reply"),
            ("v@2=floor:-1", "grumpy: layer 2 of 4, floor at -1"),
            (
                "v@2=clamp:0 on all in thought",
                "grumpy: layer 2 of 4, clamp at 0, on prompt and response, in the thought",
            ),
            ("v@2=out first 20", "grumpy: layer 2 of 4, projected out, tokens 0 to 19"),
            (
                "v@2=out in thought after 20",
                "grumpy: layer 2 of 4, projected out, in the thought, tokens 20 to the end",
            ),
            ("v@2=out tokens 5-20", "grumpy: layer 2 of 4, projected out, tokens 5 to 19"),
            ("v@2=out if w@1>2.5", "grumpy: layer 2 of 4, projected out, while a token reads grumpy > 2.5 at layer 1"),
            (
                "v@2=out in thought if prompt w@3<-2.5",
                "grumpy: layer 2 of 4, projected out, in the thought, while the prompt reads grumpy < -2.5 at layer 3",
            ),
        ],
    )
    def test_tell_every_operator_part_and_condition_apart(self, llama: Model, text: str, words: str) -> None:
        vectors = {"v": tiny.vector(llama), "w": tiny.vector(llama, seed=1)}
        steering = SteeringExpression.parse(text).steering(vectors)
        dose = f"{vectors['v'].dose(steering.terms[0].value, steering.terms[0].touched[0]):.0%}".replace("%", "%")
        [line] = render.terms(steering)
        assert re.sub(r"\(dose [^)]*\)", "(dose DOSE)", line) == words
        assert dose.lstrip("-") in line or "dose" not in words

    def test_say_what_is_made_orthogonal(self, llama: Model) -> None:
        vectors = {"v": tiny.vector(llama), "w": tiny.vector(llama, seed=1)}
        lines = render.terms(SteeringExpression.parse("v@1=out; v@1=1; w@1=1; orthogonal").steering(vectors))
        assert [line.endswith("without what lies along those before it") for line in lines] == [False, False, True]


class TestACaution:
    induced = {"verdict": "induced", "layer": 2, "usable_doses": [-0.3, 0.4]}  # noqa: RUF012

    @pytest.mark.parametrize(("dose", "warned"), [(0.3, False), (-0.3, False), (0.45, True), (-0.35, True)])
    def test_names_the_range_that_the_certificate_saw(self, llama: Model, dose: float, warned: bool) -> None:
        certified = tiny.vector(llama).with_certificate(self.induced)
        found = cautions(Steering.add(certified, dose=dose))
        assert len(found) == warned
        assert all("lies outside -30% to 40%" in text for text in found)

    def test_is_given_for_a_vector_that_was_not_induced(self, llama: Model) -> None:
        certified = tiny.vector(llama).with_certificate({**self.induced, "verdict": "not-induced"})
        assert "certified not-induced" in cautions(Steering.add(certified, dose=0.1))[0]

    def test_is_given_for_strength_that_nobody_measured(self, llama: Model) -> None:
        v = tiny.vector(llama)
        assert cautions(Steering.add(v, dose=0.5)) == []
        assert "it has no certificate" in cautions(Steering.add(v, dose=0.7))[0]
        elsewhere = cautions(Steering.add(v.with_certificate(self.induced), dose=-0.7, layer=1))
        assert "its certificate is for layer 2" in elsewhere[0]

    def test_is_not_given_where_nothing_is_added(self, llama: Model) -> None:
        assert cautions(Steering.project_out(tiny.vector(llama))) == []
        assert cautions(None) == []
