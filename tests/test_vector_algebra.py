"""Vectors are values: they cannot be changed, and sums of them say what they are sums of."""

from __future__ import annotations

import copy
import math
import pickle
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import tiny
from poise import vector as vectors
from poise.errors import InvalidArgument, InvalidSteering, InvalidVector, OtherModel
from poise.model import Model
from poise.steer import Steering
from poise.vector import PersonaVector
from poise.vector.notebook import dose_curve_svg
from serving import alarm


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def a(model: Model) -> PersonaVector:
    certified = tiny.vector(model, seed=1).with_certificate({"layer": 2, "verdict": "induced"})
    return certified.with_alarms([alarm(layer=1)])


@pytest.fixture(scope="module")
def b(model: Model) -> PersonaVector:
    return tiny.vector(model, seed=2)


class TestAlgebra:
    def test_is_that_of_the_directions(self, a: PersonaVector, b: PersonaVector) -> None:
        v, w = a.directions, b.directions
        for computed, expected in (
            (a + b, v + w),
            (a - b, v - w),
            (2 * a, 2 * v),
            (a * 0.5, 0.5 * v),
            (a / 4, v / 4),
            (-a, -v),
            (PersonaVector.mean([a, b]), (v + w) / 2),
            (a.normalized(), torch.nn.functional.normalize(v, dim=-1)),
        ):
            torch.testing.assert_close(computed.directions, expected)

    def test_takes_the_mean_of_the_reference_norms(self, a: PersonaVector, b: PersonaVector) -> None:
        torch.testing.assert_close((a + b).reference_norm, (a.reference_norm + b.reference_norm) / 2)
        assert torch.equal((3 * a).reference_norm, a.reference_norm)

    def test_drops_certificate_and_alarms_and_says_the_formula(self, a: PersonaVector, b: PersonaVector) -> None:
        total = 0.5 * (a - 2 * b)
        assert (total.header.certificate, total.header.alarms, total.header.drift) == (None, (), None)
        assert re.fullmatch(
            r"computed: 0\.5·\(grumpy#[0-9a-f]{8} - \(2·grumpy#[0-9a-f]{8}\)\)", total.header.provenance
        )
        assert (total.header.contrast, total.header.kept) == ("combined", {})
        assert ((2 * a).header.contrast, (2 * a).header.kept) == ("exemplars", a.header.kept)
        assert a.normalized().header.provenance.startswith("computed: normalized grumpy#")

    def test_leaves_zero_layers_zero_when_normalized(self, a: PersonaVector) -> None:
        units = tiny.without_layer(a, 2).normalized()
        assert units.norms.tolist() == pytest.approx([1, 1, 0, 1])

    def test_results_are_saved_and_loaded(self, a: PersonaVector, b: PersonaVector, tmp_path: Path) -> None:
        vectors.save_vector(a + b, tmp_path / "v.safetensors")
        again = vectors.load_vector(tmp_path / "v.safetensors")
        assert torch.equal(again.directions, (a + b).directions)
        assert again.header == (a + b).header

    def test_of_two_models_is_refused_with_both_names(self, a: PersonaVector) -> None:
        other = tiny.vector(tiny.model(seed=7))
        for combine in (lambda: a + other, lambda: a - other, lambda: PersonaVector.mean([a, a, other])):
            with pytest.raises(OtherModel, match="combine vectors of one model"):
                combine()

    def test_of_what_is_no_vector_or_number_is_an_error(self, a: PersonaVector) -> None:
        for combine in (lambda: a + 1, lambda: a * "2", lambda: a * True, lambda: a * a):  # type: ignore[operator]
            with pytest.raises(TypeError):
                combine()
        for combine in (lambda: a * math.nan, lambda: math.inf * a, lambda: a / 0, lambda: PersonaVector.mean([])):
            with pytest.raises(InvalidVector):
                combine()


class TestItCannotBeChanged:
    def test_in_its_attributes(self, a: PersonaVector) -> None:
        for name in ("directions", "reference_norm", "header", "name", "anything"):
            with pytest.raises(AttributeError, match="cannot be changed"):
                setattr(a, name, None)
        with pytest.raises(AttributeError, match="cannot be changed"):
            del a.header

    def test_through_its_tensors(self, model: Model) -> None:
        source = torch.ones((tiny.L, tiny.D))
        vector = PersonaVector(source, torch.ones(tiny.L), tiny.vector(model).header)
        before = vector.directions
        for tensor in (source, vector.directions, vector.reference_norm, vector.at("steer").direction, vector.unit(1)):
            tensor.zero_()
        assert torch.equal(vector.directions, before)
        assert vector.reference_norm.tolist() == [1.0] * tiny.L

    @pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
    def test_and_can_be_copied(self, a: PersonaVector, again: Any) -> None:
        other = again(a)
        assert torch.equal(other.directions, a.directions)
        assert other.header == a.header


class TestBadInput:
    @pytest.mark.parametrize(
        ("directions", "norms", "fault"),
        [
            ([[1.0]], torch.ones(1), "directions are list"),
            (torch.ones((2, 3)), [1.0, 1.0], "reference norms are list"),
            (torch.ones((2, 3), dtype=torch.complex64), torch.ones(2), "real numbers"),
            (torch.ones(3), torch.ones(3), r"expected \[L, d\] and \[L\]"),
            (torch.ones((2, 3)), torch.ones(3), r"expected \[L, d\] and \[L\]"),
            (torch.ones((0, 3)), torch.ones(0), r"expected \[L, d\] and \[L\]"),
            (torch.full((2, 3), math.nan), torch.ones(2), "NaN or infinity"),
        ],
    )
    def test_to_make_one(self, model: Model, directions: Any, norms: Any, fault: str) -> None:
        with pytest.raises(InvalidVector, match=fault):
            PersonaVector(directions, norms, tiny.vector(model).header)

    def test_to_compare_vectors_of_different_shapes(self, a: PersonaVector) -> None:
        wide = PersonaVector(torch.ones((tiny.L, tiny.D + 1)), torch.ones(tiny.L), a.header)
        with pytest.raises(OtherModel, match=r"d=32.*d=33.*compare vectors of one model"):
            a.cosine(wide)

    @pytest.mark.parametrize("layer", [True, 1.0, "1", -1, 4])
    def test_as_a_layer(self, a: PersonaVector, layer: Any) -> None:
        for use in (a.unit, lambda i: a.at("read", i), lambda i: a.coef(0.1, i), lambda i: a.dose(1.0, i)):
            with pytest.raises(InvalidSteering, match=r"[Ll]ayer"):
                use(layer)

    def test_as_activations_or_a_dose(self, a: PersonaVector) -> None:
        with pytest.raises(InvalidArgument, match="last dimension must be 32"):
            a.project(torch.ones((3, 5)), 1)
        with pytest.raises(InvalidSteering, match="dose of grumpy is nan"):
            a.coef(math.nan, 1)


class TestInANotebook:
    def estimate(self, value: float | None) -> dict[str, Any]:
        return {"value": value, "low": value, "high": value, "n": 3}

    def certificate(self) -> dict[str, Any]:
        doses = (-0.2, 0.0, 0.2)
        return {
            "layer": 2,
            "verdict": "induced",
            "dose": 0.2,
            "curve": [
                {"dose": d, "trait": self.estimate(50 + 200 * d), "coherence": self.estimate(90.0)} for d in doses
            ],
        }

    def test_is_well_formed_and_shows_the_certificate_with_its_curve(self, a: PersonaVector) -> None:
        page = ElementTree.fromstring(a.with_certificate(self.certificate())._repr_html_())
        text = " ".join(page.itertext())
        for part in ("grumpy", "tiny-llama, 4 layers of width 32", "induced at layer 2 and a dose of 20%", "-20%"):
            assert part in text
        lines = [line.attrib["points"].split() for line in page.iter("polyline")]
        assert [len(points) for points in lines] == [3, 3]
        heights = [float(point.split(",")[1]) for point in lines[0]]
        assert heights[0] > heights[1] > heights[2]  # the trait rises with the dose

    def test_says_that_there_is_no_certificate(self, b: PersonaVector) -> None:
        page = b._repr_html_()
        assert "poise validate" in page
        assert "<svg" not in page

    def test_escapes_every_text(self, model: Model) -> None:
        name = "<img src=x onerror=alert(1)>"
        header = tiny.vector(model).header
        bad = header.model_copy(update={"provenance": name, "model": header.model.model_copy(update={"name": name})})
        vector = PersonaVector(torch.ones((tiny.L, tiny.D)), torch.ones(tiny.L), bad)
        page = vector.with_certificate({"layer": 1, "verdict": name})._repr_html_()
        assert "<img" not in page
        assert page.count("&lt;img") == 3

    @pytest.mark.parametrize("curve", [None, [], [{}], ["x", 1], [{"dose": 0.1, "trait": {"value": None}}]])
    def test_draws_nothing_where_there_is_nothing_to_draw(self, curve: Any) -> None:
        assert dose_curve_svg({"curve": curve}) == ""

    def test_is_shown_for_a_vector_that_is_zero(self, model: Model) -> None:
        assert "grumpy" in tiny.vector(model, scale=0.0)._repr_html_()


def test_what_float32_cannot_hold_is_refused(model: Model) -> None:
    vector = tiny.vector(model)
    for compute in (lambda: vector * 1e39, lambda: vector * 10**400, lambda: vector / 10**400, lambda: vector / 1e-39):
        with pytest.raises(InvalidVector):
            compute()
    with pytest.raises(InvalidVector, match="in float32"):
        PersonaVector(torch.full((4, 32), 1e39, dtype=torch.float64), torch.ones(4), vector.header)


@pytest.mark.parametrize("vectors", [[1], ["a", "b"], (), [None]], ids=str)
def test_a_mean_of_what_is_no_vector_is_refused(vectors: Any) -> None:
    with pytest.raises(InvalidVector, match="persona vectors"):
        PersonaVector.mean(vectors)


@pytest.mark.parametrize("value", ["v.safetensors", None, 3])
def test_a_steering_takes_vectors_only(value: Any) -> None:
    for make in (Steering.add, Steering.cap, Steering.clamp, Steering.project_out):
        strength = {"coef": 1} if make == Steering.add else {} if make == Steering.project_out else {"level": 1}
        with pytest.raises(InvalidSteering, match="takes a PersonaVector"):
            make(value, **strength)
    with pytest.raises(InvalidSteering):
        Steering(value)


def test_a_strength_too_large_for_a_number_is_refused(model: Model) -> None:
    for strength in ({"coef": 10**400}, {"dose": 10**400}, {"coef": float("inf")}):
        with pytest.raises(InvalidSteering, match="finite number"):
            Steering.add(tiny.vector(model), **strength)


class TestWrongTypes:
    """Each is one sentence of the tree, whatever is put in."""

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda v: v.cosine(3),
            lambda v: v.coef(True, 1),
            lambda v: v.coef("a", 1),
            lambda v: v.coef(math.inf, 1),
            lambda v: v.dose("a", 1),
            lambda v: v.dose(math.nan, 1),
            lambda v: v.dose(1.0, True),
            lambda v: v.project([1.0], 1),
            lambda v: v.project(None, 1),
            lambda v: v.with_certificate(None),
            lambda v: v.with_certificate(3),
            lambda v: v.with_alarms([3]),
            lambda v: v.with_alarms("evil"),
            lambda v: v.with_alarms([], drift=3),
            lambda v: PersonaVector(v.directions, -v.reference_norm, v.header),
        ],
    )
    def test_are_refused(self, a: PersonaVector, wrong: Any) -> None:
        with pytest.raises((InvalidArgument, InvalidSteering, InvalidVector), match=r"^[A-Z].*[.]$"):
            wrong(a)

    def test_a_sum_is_a_sum(self, a: PersonaVector, b: PersonaVector) -> None:
        torch.testing.assert_close(sum([a, b]).directions, a.directions + b.directions)  # type: ignore[union-attr]


class TestTheHeader:
    def test_cannot_be_changed_nor_what_it_holds(self, a: PersonaVector) -> None:
        certified = a.with_certificate({"layer": 2, "doses": {"best": 0.3}})
        header = certified.header
        assert header.certificate is not None
        for values, key in (
            (header.kept, "positive"),
            (header.dropped, "x"),
            (header.software, "poise"),
            (header.certificate, "layer"),
            (header.certificate["doses"], "best"),
        ):
            before = dict(values)
            with pytest.raises(TypeError, match="cannot be changed"):
                values[key] = 5
            with pytest.raises(TypeError, match="cannot be changed"):
                values.update(x=1)
            assert values == before
        again = pickle.loads(pickle.dumps(certified))  # as Ray does
        assert again.header == header
        assert copy.deepcopy(certified).header == header
        with pytest.raises(InvalidVector, match="a Header is expected"):
            PersonaVector(a.directions, a.reference_norm, {})  # type: ignore[arg-type]
