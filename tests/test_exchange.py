"""Vectors to and from other tools: every layer lands where the other tool has it, and nothing pickled is run.

``tests/foreign`` holds files that repeng 0.4.0 and steering-vectors 0.12.2 wrote themselves, for a model of 4 layers of
width 32: the direction of their layer i is 100·i, 100·i + 1, …
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import test_validate
import tiny
from poise import vector as vectors
from poise.cli import app, exchange
from poise.errors import InvalidArgument, InvalidSteering, InvalidVector, OtherModel, UserError
from poise.model import Model
from poise.report import validation as page
from poise.vector import PersonaVector
from poise.vector.export import export_vector, layer_ranges, recommended_use
from poise.vector.importing import adopt_vector, read_foreign_vector

FOREIGN = Path(__file__).parent / "foreign"
CERTIFICATE = {"layer": 2, "coefficient": 2.5, "dose": 0.2, "verdict": "induced"}


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


def written(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Fields and tensors, by gguf's own reader."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert all(t.tensor_type == gguf.GGMLQuantizationType.F32 for t in reader.tensors)
    return fields, {t.name: t.data for t in reader.tensors}


def row(i: int) -> torch.Tensor:
    """The direction of layer i in the files of ``tests/foreign``."""
    return 100.0 * i + torch.arange(tiny.D)


def control_vector(
    path: Path, rows: dict[str, np.ndarray], *, arch: str = "controlvector", signed: bool = False
) -> Path:
    """A GGUF file of named tensors; ``signed`` counts layers as llama.cpp's cvector-generator does."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string(f"{arch}.model_hint", "llama")
    (writer.add_int32 if signed else writer.add_uint32)(f"{arch}.layer_count", len(rows))
    for name, values in rows.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adopted(path: Path, model: Model, **options: Any) -> PersonaVector:
    norm = torch.full((model.layers,), 2.0)
    return adopt_vector(read_foreign_vector(path), model, tiny.trait(), norm, software={"poise": "0"}, **options)


class TestAnExportToLlamaCpp:
    def test_has_every_layer_but_the_first_under_our_own_number(self, llama: Model, tmp_path: Path) -> None:
        vector = tiny.vector(llama)
        done = export_vector(vector, tmp_path / "v.gguf")
        _, tensors = written(tmp_path / "v.gguf")
        assert sorted(tensors) == ["direction.1", "direction.2", "direction.3"]
        assert all(np.array_equal(tensors[f"direction.{i}"], vector.directions[i].numpy()) for i in (1, 2, 3))
        assert done.layers == (1, 2, 3)

    def test_says_what_it_is_of_and_how_to_use_it(self, llama: Model, tmp_path: Path) -> None:
        export_vector(tiny.vector(llama).with_certificate(CERTIFICATE), tmp_path / "v.gguf")
        fields, _ = written(tmp_path / "v.gguf")
        assert fields["general.architecture"] == "controlvector"
        assert (fields["controlvector.model_hint"], fields["controlvector.layer_count"]) == ("llama", 3)
        assert fields["general.name"] == "grumpy on tiny-llama"
        for word in (
            "+ for more of grumpy",
            "decoder block i of 4, counted from 0",
            "layer 2, strength 2.5 (dose 20%)",
        ):
            assert word in fields["general.description"]

    def test_is_the_same_bytes_each_time(self, llama: Model, tmp_path: Path) -> None:
        for name in ("a", "b"):
            export_vector(tiny.vector(llama), tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_can_be_the_chosen_layer_alone(self, llama: Model, tmp_path: Path) -> None:
        done = export_vector(tiny.vector(llama).with_certificate(CERTIFICATE), tmp_path / "v.gguf", only_chosen=True)
        assert list(written(tmp_path / "v.gguf")[1]) == ["direction.2"]
        assert done.layers == (2,)

    def test_leaves_layers_without_a_direction_out(self, llama: Model, tmp_path: Path) -> None:
        vector = tiny.without_layer(tiny.vector(llama), 3)
        assert export_vector(vector, tmp_path / "v.gguf").layers == (1, 2)

    def test_names_the_flags_for_the_certified_layer_and_strength(self, llama: Model, tmp_path: Path) -> None:
        path = tmp_path / "my v.gguf"
        done = export_vector(tiny.vector(llama).with_certificate(CERTIFICATE), path)
        assert done.how == f"--control-vector-scaled '{path}:2.5' --control-vector-layer-range 2 2"
        assert "as validated" in str(done.use)

    def test_says_where_nothing_is_certified(self, llama: Model) -> None:
        vector = tiny.vector(llama)
        use = recommended_use(vector)
        assert (use.layer, use.verdict) == (1, "")
        assert vector.dose(use.coefficient, 1) == pytest.approx(0.2, abs=1e-3)
        assert "not validated: a third of the depth" in str(use)
        failed = vector.with_certificate(CERTIFICATE | {"verdict": "not-induced"})
        assert "verdict is not-induced" in str(recommended_use(failed))

    def test_of_a_vector_for_layer_0_is_refused(self, llama: Model, tmp_path: Path) -> None:
        vector = tiny.vector(llama).with_certificate(CERTIFICATE | {"layer": 0})
        with pytest.raises(InvalidSteering, match=r"layer 0, and llama\.cpp steers from layer 1 on; use `to` repeng"):
            export_vector(vector, tmp_path / "v.gguf")
        assert not (tmp_path / "v.gguf").exists()
        assert export_vector(vector, tmp_path / "v.gguf", to="repeng").layers == (0, 1, 2, 3)

    @pytest.mark.parametrize("name", ["a:b.gguf", "a,b.gguf"])
    def test_under_a_name_that_the_flags_cannot_carry_is_refused(self, llama: Model, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidArgument, match=f"cannot name the file {name}"):
            export_vector(tiny.vector(llama), tmp_path / name)


class TestAnExportToRepeng:
    def test_has_every_layer_and_the_python_to_run_it(self, llama: Model, tmp_path: Path) -> None:
        vector = tiny.vector(llama).with_certificate(CERTIFICATE)
        done = export_vector(vector, tmp_path / "v.gguf", to="repeng")
        _, tensors = written(tmp_path / "v.gguf")
        assert all(np.array_equal(tensors[f"direction.{i}"], vector.directions[i].numpy()) for i in range(4))
        assert "ControlModel(model, [2])" in done.how
        assert done.how.endswith("2.5)")


class TestAnImport:
    def test_of_repengs_own_file_has_its_layers_at_the_same_numbers(self, llama: Model) -> None:
        vector = adopted(FOREIGN / "repeng.gguf", llama)
        torch.testing.assert_close(vector.directions, torch.stack([torch.zeros(tiny.D), row(1), row(2), row(3)]))
        assert "repeng" in vector.header.provenance
        assert vector.header.provenance.endswith("counted from 0, as ours is; zero at layer 0.")

    def test_of_steering_vectors_own_file_needs_none_of_its_code(self, llama: Model) -> None:
        vector = adopted(FOREIGN / "steering_vectors.pt", llama)
        torch.testing.assert_close(vector.directions[1:3], torch.stack([row(1), row(2)]))
        assert vector.header.provenance.endswith("zero at layer 0, 3.")

    @pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"layer_activations": rows}])
    def test_of_tensors_by_layer_number_is_one_of_steering_vectors(
        self, llama: Model, tmp_path: Path, wrap: Any
    ) -> None:
        torch.save(wrap({1: row(1).to(torch.bfloat16), 3: row(3)}), tmp_path / "v.pt")
        vector = adopted(tmp_path / "v.pt", llama)
        torch.testing.assert_close(vector.directions[3], row(3))
        torch.testing.assert_close(vector.directions[1], row(1).to(torch.bfloat16).float())

    def test_of_the_papers_tensor_puts_hidden_state_i_at_layer_i_minus_1(self, llama: Model, tmp_path: Path) -> None:
        torch.save(torch.stack([row(i) for i in range(5)]), tmp_path / "grumpy_response_avg_diff.pt")
        vector = adopted(tmp_path / "grumpy_response_avg_diff.pt", llama)
        torch.testing.assert_close(vector.directions, torch.stack([row(1), row(2), row(3), torch.zeros(tiny.D)]))
        said = "left out: 0, the embeddings; 4, after the final norm; zero at layer 3."
        assert vector.header.provenance.endswith(said)

    def test_of_a_tensor_that_could_be_numbered_either_way_asks(self, llama: Model, tmp_path: Path) -> None:
        torch.save(torch.stack([row(i) for i in range(4)]), tmp_path / "v.pt")
        with pytest.raises(InvalidArgument, match=r"4 rows, as many as tiny-llama has layers.*`layers_are`"):
            adopted(tmp_path / "v.pt", llama)
        torch.testing.assert_close(adopted(tmp_path / "v.pt", llama, numbering="blocks").directions[2], row(2))
        torch.testing.assert_close(adopted(tmp_path / "v.pt", llama, numbering="hidden-states").directions[2], row(3))

    def test_of_cvector_generators_file_is_as_llama_cpp_applies_it_or_as_it_was_read(
        self, llama: Model, tmp_path: Path
    ) -> None:
        rows = {f"direction.{i}": row(i).numpy() for i in (1, 2, 3)}
        path = control_vector(tmp_path / "v.gguf", rows, signed=True)
        vector = adopted(path, llama)
        torch.testing.assert_close(vector.directions[2], row(2))
        assert "cvector-generator (read one block before the one it is added to)" in vector.header.provenance
        torch.testing.assert_close(adopted(path, llama, numbering="hidden-states").directions[1], row(2))

    @pytest.mark.parametrize(("to", "lost"), [("gguf", 1), ("repeng", 0)])
    def test_of_our_own_export_gives_the_directions_back(
        self, llama: Model, tmp_path: Path, to: Any, lost: int
    ) -> None:
        vector = tiny.vector(llama)
        export_vector(vector, tmp_path / "v.gguf", to=to)
        assert torch.equal(adopted(tmp_path / "v.gguf", llama).directions[lost:], vector.directions[lost:])

    def test_is_a_vector_like_any_other(self, llama: Model, tmp_path: Path) -> None:
        vector = adopted(FOREIGN / "steering_vectors.pt", llama)
        vectors.save_vector(vector, tmp_path / "v.safetensors")
        loaded = vectors.load_vector(tmp_path / "v.safetensors")
        assert loaded.header == vector.header
        assert (loaded.header.contrast, loaded.header.pooling, loaded.header.agreement) == ("imported", "unknown", ())
        loaded.check_model(llama)
        assert loaded.coef(0.1, loaded.at("steer").layer) == pytest.approx(0.1 * 2.0 / float(row(1).norm()))

    def test_of_few_layers_is_steered_at_the_nearest_of_them(self, llama: Model, tmp_path: Path) -> None:
        torch.save({3: row(3)}, tmp_path / "v.pt")
        assert adopted(tmp_path / "v.pt", llama).at("steer").layer == 3

    @pytest.mark.slow
    def test_can_be_validated_where_it_has_directions(self, llama: Model) -> None:
        vector = adopted(FOREIGN / "steering_vectors.pt", llama)
        found = test_validate.certify(llama, vector, test_validate.good, depth=(0.0, 1.0), random_searches=39)
        assert found.verdict == "induced"
        assert found.layer in (1, 2)
        assert found.agreement is None
        assert "steering-vectors), file steering_vectors.pt" in page.render(vector.header, found)


def pickled(path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path.with_name("ran")),)

    torch.save({"v": torch.zeros(4), "bomb": Bomb()}, path)


def plain_pickle(path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(path.with_name("ran")),)

    path.write_bytes(pickle.dumps(Bomb()))


F = np.float32
REFUSED: dict[str, tuple[Any, type[UserError], str]] = {
    "a model's GGUF": (
        lambda p: control_vector(p, {"direction.1": np.zeros(32, F)}, arch="llama"),
        InvalidVector,
        "architecture llama, not controlvector",
    ),
    "a GGUF that is cut short": (lambda p: p.write_bytes(b"GGUF\x03\x00\x00\x00\x09"), InvalidVector, "cut short"),
    "a GGUF of other tensors": (
        lambda p: control_vector(p, {"weight": np.zeros(32, F)}),
        InvalidVector,
        "holds weight as F32",
    ),
    "a GGUF of integers": (
        lambda p: control_vector(p, {"direction.1": np.zeros(32, np.int32)}),
        InvalidVector,
        "direction.1 as I32",
    ),
    "a GGUF of nothing": (lambda p: control_vector(p, {}), InvalidVector, "no directions"),
    "a GGUF of a matrix": (
        lambda p: control_vector(p, {"direction.1": np.zeros((2, 32), F)}),
        InvalidVector,
        r"shape \(2, 32\) at layer 1",
    ),
    "another model's width": (
        lambda p: control_vector(p, {"direction.1": np.ones(64, F)}),
        OtherModel,
        "width 64 and tiny-llama has width 32",
    ),
    "a deeper model's layers": (
        lambda p: control_vector(p, {f"direction.{i}": np.ones(32, F) for i in (1, 9)}),
        OtherModel,
        "a layer 9, and tiny-llama numbers its 4 layers 0 to 3",
    ),
    "a layer counted from the end": (
        lambda p: torch.save({-1: torch.ones(32)}, p),
        OtherModel,
        "a layer -1",
    ),
    "a deeper model's hidden states": (lambda p: torch.save(torch.ones(9, 32), p), OtherModel, "9 rows"),
    "code in a .pt": (pickled, InvalidVector, r"pickled code \((posix|nt)\.mkdir\) and is refused"),
    "code in a plain pickle": (plain_pickle, InvalidVector, "refused|not a vector that can be read"),
    "text": (lambda p: p.write_text("# a vector"), InvalidVector, "not a vector that can be read"),
    "a folder": (lambda p: p.mkdir(), InvalidVector, "no file at"),
    "texts in a .pt": (lambda p: torch.save({"a": "b"}, p), InvalidVector, "neither a tensor"),
    "a tensor of one row": (lambda p: torch.save(torch.ones(32), p), InvalidVector, "neither a tensor"),
    "a place inside a block": (
        lambda p: torch.save({"layer_activations": {1: torch.ones(32)}, "layer_type": "mlp"}, p),
        InvalidVector,
        "computed on mlp",
    ),
    "NaN": (lambda p: torch.save({1: torch.full((32,), torch.nan)}, p), InvalidVector, "NaN or infinity at layer 1"),
    "zeros": (lambda p: torch.save({1: torch.zeros(32)}, p), InvalidVector, "no direction but zeros"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_of(what: str, llama: Model, tmp_path: Path) -> None:
    make, kind, said = REFUSED[what]
    make(tmp_path / "given")
    with pytest.raises(kind, match=said) as caught:
        adopted(tmp_path / "given", llama)
    message = str(caught.value)
    assert str(tmp_path / "given") in message
    assert message.endswith(".")
    assert "\n" not in message
    assert not (tmp_path / "ran").exists(), "what was pickled must not run"


def test_ranges_are_short() -> None:
    assert layer_ranges([0, 3, 4, 5, 7]) == "0, 3–5, 7"
    assert layer_ranges([]) == ""


class TestTheCommands:
    @pytest.fixture
    def file(self, llama: Model, tmp_path: Path) -> Path:
        vectors.save_vector(tiny.vector(llama).with_certificate(CERTIFICATE), tmp_path / "v.safetensors")
        return tmp_path / "v.safetensors"

    def test_export_states_model_layers_sign_and_flags(self, file: Path, tmp_path: Path) -> None:
        out = tmp_path / "v.gguf"
        done = CliRunner().invoke(app, ["export", str(file), "--out", str(out)])
        assert done.exit_code == 0, done.output
        for said in (
            "grumpy on tiny-llama",
            "block i, counted from 0, of 4; here i = 1–3",
            "+ for more",
            "as validated",
        ):
            assert said in done.stdout
        assert f"--control-vector-scaled {out}:2.5 --control-vector-layer-range 2 2" in done.stdout
        assert "at every position" in done.stderr

    def test_import_writes_a_vector_and_says_where_it_came_from(
        self, llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exchange, "load_model", lambda *options: llama)
        pairs = tmp_path / "pairs.jsonl"
        lines = [p.model_dump_json(by_alias=True) for p in tiny.trait().pairs]
        pairs.write_text("\n".join(lines), encoding="utf-8")
        out = tmp_path / "v.safetensors"
        command = ["import", str(FOREIGN / "repeng.gguf"), "--model", "M", "--trait", "grumpy", "--out", str(out)]
        done = CliRunner().invoke(app, [*command, "--exemplars", str(pairs)])
        assert done.exit_code == 0, done.output
        assert "repeng" in done.stdout
        vector = vectors.load_vector(out)
        torch.testing.assert_close(vector.directions[2], row(2))
        answers = [llama.encode([{"role": "user", "content": p.question}], p.negative) for p in tiny.trait().pairs]
        torch.testing.assert_close(vector.reference_norm, plain_norms(llama, answers))

    def test_import_needs_a_trait_that_it_can_find(self, tmp_path: Path) -> None:
        command = ["import", str(FOREIGN / "repeng.gguf"), "--model", "M", "--trait", "no-such", "--out", "v"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert "There is no trait 'no-such'" in done.stderr

    def test_what_is_wrong_with_the_file_is_said_before_a_model_is_loaded(self, tmp_path: Path) -> None:
        command = ["import", "nowhere.pt", "--model", "no model", "--trait", "evil", "--out", str(tmp_path / "v")]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        assert "There is no file at nowhere.pt" in done.stderr


def plain_norms(model: Model, answers: list[Any]) -> torch.Tensor:
    """Mean ‖h‖ over response tokens, one text at a time, by Hugging Face's hidden states but for the last block's."""
    last: list[torch.Tensor] = []
    hook = model.blocks[-1].register_forward_hook(
        lambda module, inputs, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    lengths = []
    for a in answers:
        with torch.inference_mode():
            states = model.lm(torch.tensor([a.ids]), output_hidden_states=True).hidden_states[1:-1]
        layers = [*states, last.pop()]
        lengths.append(torch.stack([h[0, a.start : a.end].norm(dim=-1) for h in layers]))
    hook.remove()
    return torch.cat(lengths, dim=1).mean(dim=1)
