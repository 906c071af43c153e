"""The vector: a value that is itself again after saving, and a file that is whole or not there."""

from __future__ import annotations

import errno
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import tiny
from poise.errors import InvalidVector, OtherModel, SaveFailed
from poise.model import Model, wrap
from poise.progress import remarks_by
from poise.vector import PersonaVector, load_vector, save_vector


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "grumpy.safetensors"


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["poise"]))


def rewrite(path: Path, change: Any = None, **tensors: torch.Tensor) -> None:
    """The same file with a changed header or other tensors."""
    with safe_open(path, framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    document = header_of(path)
    if change:
        change(document)
    save_file(kept | tensors, path, metadata={"poise": json.dumps(document)})


class TestSaving:
    def test_and_loading_gives_the_same_vector_and_the_same_bytes(
        self, llama: Model, path: Path, tmp_path: Path
    ) -> None:
        vector = tiny.vector(llama, agreement=(0.25, 0.5, 1.0, -0.125), dropped={"positive empty": 2})
        save_vector(vector.with_certificate({"layer": 2, "note": "naïve — 30 %"}), path)
        loaded = load_vector(path)
        assert torch.equal(loaded.directions, vector.directions)
        assert torch.equal(loaded.reference_norm, vector.reference_norm)
        assert loaded.header == vector.with_certificate({"layer": 2, "note": "naïve — 30 %"}).header
        save_vector(loaded, path.with_name("again.safetensors"))
        assert path.with_name("again.safetensors").read_bytes() == path.read_bytes()

    def test_makes_one_file_of_two_tensors_and_one_document(self, llama: Model, path: Path) -> None:
        save_vector(tiny.vector(llama), path)
        assert [p.name for p in path.parent.iterdir()] == [path.name]
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_tensor(name).shape) for name in ("directions", "reference_norm")}
        assert shapes == {"directions": (tiny.L, tiny.D), "reference_norm": (tiny.L,)}
        document = header_of(path)
        assert document["format"] == 1
        assert (
            document["layers_are"] == "layer i is the output of decoder block i, counted from 0, before the final norm"
        )
        assert document["trait"]["name"] == "grumpy"
        assert document["trait_hash"] == tiny.trait().hash
        assert document["model"]["name"] == "tiny-llama"

    def test_makes_the_folder_that_it_is_to_be_in(self, llama: Model, tmp_path: Path) -> None:
        save_vector(tiny.vector(llama), tmp_path / "new" / "folder" / "v.safetensors")
        assert load_vector(tmp_path / "new" / "folder" / "v.safetensors").name == "grumpy"

    @pytest.mark.parametrize("at", ["write_bytes", "replace"])
    def test_on_a_full_disk_says_so_and_leaves_the_old_file_alone(
        self, llama: Model, path: Path, monkeypatch: pytest.MonkeyPatch, at: str
    ) -> None:
        save_vector(tiny.vector(llama), path)
        before = path.read_bytes()
        real = Path.write_bytes

        def full(self: Path, data: Any) -> int:
            if at == "write_bytes":
                real(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, at, full)
        with pytest.raises(SaveFailed, match=rf"Cannot save .*{path.name}: No space left on device") as caught:
            save_vector(tiny.vector(llama, seed=1), path)
        assert "Nothing was changed" in str(caught.value)
        assert path.read_bytes() == before
        assert [p.name for p in path.parent.iterdir()] == [path.name], "no half file is left"

    def test_where_no_file_can_be_says_so(self, llama: Model, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(SaveFailed, match="Cannot save"):
            save_vector(tiny.vector(llama), tmp_path / "file" / "v.safetensors")


class TestLoading:
    def test_of_no_file_says_how_to_make_one(self, path: Path) -> None:
        with pytest.raises(InvalidVector, match=r"no vector file at .*grumpy\.safetensors; make one with .poise"):
            load_vector(path)

    @pytest.mark.parametrize("left", [0, 4, 100, -1, -200])
    def test_of_a_file_that_is_cut_short_says_so(self, llama: Model, path: Path, left: int) -> None:
        save_vector(tiny.vector(llama), path)
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(InvalidVector, match=r"grumpy\.safetensors is cut short"):
            load_vector(path)

    @given(junk=st.binary(max_size=200))
    def test_of_anything_else_is_refused(self, junk: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = tmp_path_factory.getbasetemp() / "junk.safetensors"
        path.write_bytes(junk)
        with pytest.raises(InvalidVector, match=r"junk\.safetensors"):
            load_vector(path)

    @pytest.mark.parametrize("name", ["directions", "reference_norm"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_of_what_is_not_finite_is_refused(self, llama: Model, path: Path, name: str, value: float) -> None:
        save_vector(tiny.vector(llama), path)
        broken = getattr(tiny.vector(llama), name)
        broken[..., -1] = value
        rewrite(path, **{name: broken})
        with pytest.raises(InvalidVector, match=r"grumpy\.safetensors: The vector holds NaN or infinity"):
            load_vector(path)

    def test_of_another_kind_of_file_names_what_it_holds(self, path: Path) -> None:
        save_file({"weight": torch.zeros(2)}, path)
        with pytest.raises(InvalidVector, match=r"not a Poise vector \(it holds weight\)"):
            load_vector(path)
        save_file({"directions": torch.zeros(2, 2), "reference_norm": torch.zeros(2)}, path)
        with pytest.raises(InvalidVector, match="not a Poise vector"):
            load_vector(path)

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            (lambda d: d.update(format=2), "format"),
            (lambda d: d.pop("model"), "model is missing; update Poise if"),
            (
                lambda d: d.update(surprise=1),
                "surprise is an unknown setting; update Poise if a newer one wrote it, or ext",
            ),
            (lambda d: d["model"].pop("weights"), "model.weights is missing"),
            (lambda d: d.update(contrast="guessed"), "contrast"),
        ],
    )
    def test_of_another_schema_names_the_field(self, llama: Model, path: Path, change: Any, complaint: str) -> None:
        save_vector(tiny.vector(llama), path)
        rewrite(path, change)
        with pytest.raises(InvalidVector, match=rf"grumpy\.safetensors has a header .*{complaint}"):
            load_vector(path)

    @pytest.mark.parametrize("document", ["", "no json", "[]", "3", "null"])
    def test_of_a_header_that_is_no_document_is_refused(self, llama: Model, path: Path, document: str) -> None:
        vector = tiny.vector(llama)
        tensors = {"directions": vector.directions, "reference_norm": vector.reference_norm}
        save_file(tensors, path, metadata={"poise": document})
        with pytest.raises(InvalidVector, match=r"grumpy\.safetensors has a header that this version cannot read"):
            load_vector(path)

    def test_of_shapes_that_do_not_fit_is_refused(self, llama: Model, path: Path) -> None:
        save_vector(tiny.vector(llama), path)
        rewrite(path, reference_norm=torch.ones(tiny.L + 1))
        with pytest.raises(InvalidVector, match=r"grumpy\.safetensors: Directions \(4, 32\) .* do not fit"):
            load_vector(path)


class TestTheValue:
    def test_does_not_change_with_the_tensor_that_it_was_made_from(self, llama: Model) -> None:
        made = tiny.vector(llama)
        directions, norms = torch.ones(tiny.L, tiny.D), torch.ones(tiny.L)
        vector = PersonaVector(directions, norms, made.header)
        directions.zero_()
        norms.zero_()
        assert torch.equal(vector.directions, torch.ones(tiny.L, tiny.D))
        assert torch.equal(vector.reference_norm, torch.ones(tiny.L))

    def test_projects_on_the_unit_direction(self, llama: Model) -> None:
        vector = tiny.vector(llama)
        h = torch.randn(3, 5, tiny.D, generator=torch.Generator().manual_seed(3))
        v = vector.directions[2]
        expected = [[sum(float(a * b) for a, b in zip(x, v, strict=True)) / float(v.norm()) for x in row] for row in h]
        torch.testing.assert_close(vector.project(h, 2), torch.tensor(expected))
        torch.testing.assert_close(vector.project(v, 2), vector.norms[2])
        torch.testing.assert_close(vector.project(h.to(torch.bfloat16), 2), vector.project(h, 2), rtol=0.05, atol=0.05)

    def test_has_its_cosine_with_another_at_each_layer(self, llama: Model) -> None:
        one, two = tiny.vector(llama), tiny.vector(llama, seed=1)
        pairs = list(zip(one.directions.tolist(), two.directions.tolist(), strict=True))
        expected = [sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) for a, b in pairs]
        torch.testing.assert_close(one.cosine(two), torch.tensor(expected))
        torch.testing.assert_close(one.cosine(one), torch.ones(tiny.L))

    def test_has_a_default_layer_a_third_of_the_way_or_certified(self, llama: Model) -> None:
        vector = tiny.vector(llama)
        assert vector.at("steer").layer == 1
        assert vector.with_certificate({"layer": 0}).at("steer").layer == 0
        assert vector.header.certificate is None, "the first value is as it was"

    def test_shows_what_it_is(self, llama: Model) -> None:
        assert repr(tiny.vector(llama)) == "PersonaVector('grumpy', 'tiny-llama', L=4, d=32)"

    def test_has_a_short_representation_that_tells_computed_vectors_apart(self, llama: Model) -> None:
        vector = tiny.vector(llama)
        beginning = "PersonaVector('grumpy', 'tiny-llama', L=4, d=32, computed: "
        for computed, formula in (
            (vector + vector, r"grumpy#\w{8} \+ grumpy#\w{8}\)"),
            (-2 * vector, r"-2·grumpy#\w{8}\)"),
            (vector.normalized(), r"normalized grumpy#\w{8}\)"),
        ):
            assert re.fullmatch(re.escape(beginning) + formula, repr(computed))

    def test_shows_itself_at_a_layer_in_one_line_without_tensors(self, llama: Model) -> None:
        place = tiny.vector(llama).at("read", 2)
        assert repr(place) == "LayerDirection('grumpy', layer=2, L=4, d=32, reply, alarms=0)"
        assert repr(place.probe) == "Probe(layer=2, d=32)"


class TestTheModelThatItBelongsTo:
    @pytest.mark.parametrize(
        ("other", "how"),
        [
            (lambda: tiny.model("gpt2"), "is another model"),
            (lambda: tiny.model(seed=1), "same architecture with other weights"),
            (lambda: tiny.model(tokenizer=tiny.llama3()), "same weights with another chat template"),
        ],
    )
    def test_and_its_relatives_are_the_only_ones_unless_the_caller_says_otherwise(
        self, llama: Model, other: Any, how: str
    ) -> None:
        model = other()
        with pytest.raises(OtherModel, match=rf"tiny-llama.*{model.name}.*{how}.*`allow_other_model`"):
            tiny.vector(llama).check_model(model)
        tiny.vector(llama).check_model(model, allow_other_model=True)

    def test_takes_an_adapter_with_a_remark_and_keeps_no_certificate_measured_there(self, llama: Model) -> None:
        tuned = wrap(tiny.adapted(tiny.lm()), tiny.chatml(), name="tuned")
        vector, remarks = tiny.vector(llama), list[str]()
        with remarks_by(remarks.append):
            assert [vector.check_model(tuned).kind for _ in range(2)] == ["adapter", "adapter"]
        assert remarks == ["grumpy was computed on tiny-llama, and tuned has the same base weights under an adapter."]
        with pytest.raises(OtherModel) as error:
            vector.check_model(tuned, record="a certificate measured there would pass for its own model's")
        assert str(error.value) == (
            "grumpy was computed on tiny-llama, and tuned has the same base weights under an adapter; a certificate "
            "measured there would pass for its own model's, so extract it on that model, or pass `allow_other_model` "
            "to go on all the same."
        )

    @pytest.mark.parametrize("shape", [{"num_hidden_layers": 5}, {"hidden_size": 64}])
    def test_has_its_shape_whatever_the_caller_says(self, llama: Model, shape: dict[str, int]) -> None:
        with pytest.raises(OtherModel, match=r"L=4, d=32\) and cannot be used on tiny-llama \(L="):
            tiny.vector(llama).check_model(tiny.model(**shape), allow_other_model=True)

    def test_accepts_it(self, llama: Model, path: Path) -> None:
        save_vector(tiny.vector(llama), path)
        load_vector(path).check_model(llama)
