"""llama.cpp steers as we do: the same GGUF file, the exported vector, the same token ids.

The binding ``xllamacpp`` wraps llama.cpp's server and not its control vectors, so llama.cpp is called by its C symbols
in that wheel. Run with ``-s`` to see the figures.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from poise.contrast import exemplars
from poise.extract import extract
from poise.model import Model, ask
from poise.model import loading as source
from poise.steer import Steering, apply_steering
from poise.trait import library
from poise.vector import PersonaVector
from poise.vector.export import export_vector

pytestmark = pytest.mark.real

LAYER, DOSE = 10, 0.3
LOADER = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"
OLD_STRINGS = "_Z14common_get_envRKSs"  # a symbol's name tells which std::string a build has


class Opaque(c.Structure):
    """A struct of llama.cpp that is only handed on. It is larger than any, which is harmless by value: it is copied."""

    _fields_ = [("words", c.c_uint64 * 64)]


class String(c.Structure):
    """libstdc++'s std::string since GCC 5; wheels for older systems have a bare pointer instead."""

    _fields_ = [("text", c.c_char_p), ("length", c.c_size_t), ("inside", c.c_char * 16)]


class LoadInfo(c.Structure):
    """common_control_vector_load_info."""

    _fields_ = [("strength", c.c_float), ("path", String)]


class OldLoadInfo(c.Structure):
    """The same in a wheel for older systems."""

    _fields_ = [("strength", c.c_float), ("path", c.c_char_p)]


class Vector(c.Structure):
    """libstdc++'s std::vector."""

    _fields_ = [("first", c.c_void_p), ("last", c.c_void_p), ("end", c.c_void_p)]


class Loaded(c.Structure):
    """common_control_vector_data: n_embd is −1 where the file was refused."""

    _fields_ = [("width", c.c_int), ("values", Vector)]


SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [c.c_void_p, c.c_void_p]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (Opaque, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, Opaque]),
    "llama_model_free": (None, [c.c_void_p]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_vocab_n_tokens": (c.c_int32, [c.c_void_p]),
    "llama_model_n_layer": (c.c_int32, [c.c_void_p]),
    "llama_context_default_params": (Opaque, []),
    "llama_init_from_model": (c.c_void_p, [c.c_void_p, Opaque]),
    "llama_free": (None, [c.c_void_p]),
    "llama_set_n_threads": (None, [c.c_void_p, c.c_int32, c.c_int32]),
    "llama_get_memory": (c.c_void_p, [c.c_void_p]),
    "llama_memory_clear": (None, [c.c_void_p, c.c_bool]),
    "llama_batch_get_one": (Opaque, [c.c_void_p, c.c_int32]),
    "llama_decode": (c.c_int32, [c.c_void_p, Opaque]),
    "llama_get_logits_ith": (c.c_void_p, [c.c_void_p, c.c_int32]),
    "llama_set_adapter_cvec": (c.c_int32, [c.c_void_p, c.c_void_p, c.c_size_t, c.c_int32, c.c_int32, c.c_int32]),
    LOADER: (Loaded, [c.POINTER(Vector)]),
}
QUIET = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(lambda *said: None)


def library_of_llama_cpp() -> c.CDLL:
    binding = pytest.importorskip("xllamacpp.xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    found = c.CDLL(binding.__file__)
    for name, (result, arguments) in SIGNATURES.items():
        if not hasattr(found, name):
            pytest.skip(f"this build of xllamacpp does not show {name}")
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    found.llama_log_set(QUIET, None)
    found.llama_backend_init()
    return found


class LlamaCpp:
    """A model in llama.cpp, with a control vector or without."""

    def __init__(self, path: Path) -> None:
        self.c = library_of_llama_cpp()
        self.model = self.c.llama_model_load_from_file(str(path).encode(), self.c.llama_model_default_params())
        self.context = None
        self.tokens = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(self.model))
        self.layers = self.c.llama_model_n_layer(self.model)
        self.plain()

    def close(self) -> None:
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)

    def plain(self) -> None:
        """A fresh context: a control vector that ends early leaves the deeper layers of the one before in place."""
        if self.context:
            self.c.llama_free(self.context)
        self.context = self.c.llama_init_from_model(self.model, self.c.llama_context_default_params())
        self.c.llama_set_n_threads(self.context, torch.get_num_threads(), torch.get_num_threads())

    def load(self, path: Path, strength: float) -> Loaded:
        """``--control-vector-scaled PATH:STRENGTH``, by llama.cpp's own loader."""
        name = str(path).encode()
        old = hasattr(self.c, OLD_STRINGS)
        info = OldLoadInfo(strength, name) if old else LoadInfo(strength, String(name, len(name), b""))
        first = c.addressof(info)
        return getattr(self.c, LOADER)(c.byref(Vector(first, first + c.sizeof(info), first + c.sizeof(info))))

    def steer(self, loaded: Loaded, first: int, last: int) -> None:
        """``--control-vector-layer-range FIRST LAST``."""
        self.plain()
        values = loaded.values
        n = (values.last - values.first) // 4
        assert self.c.llama_set_adapter_cvec(self.context, values.first, n, loaded.width, first, last) == 0

    def __call__(self, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities of the next token, float32 [vocabulary]."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        given = (c.c_int32 * len(ids))(*ids)
        assert self.c.llama_decode(self.context, self.c.llama_batch_get_one(given, len(ids))) == 0
        logits = (c.c_float * self.tokens).from_address(self.c.llama_get_logits_ith(self.context, -1))
        return torch.tensor(np.ctypeslib.as_array(logits)).log_softmax(-1)


def in_float32(path: Path, to: Path) -> Path:
    """The same file with its weights in float32, rounded to bfloat16 as our copy of them is."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(to, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            listed = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if listed else None)
    for tensor in reader.tensors:
        weights = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).to(torch.bfloat16).float()
        writer.add_tensor(tensor.name, weights.reshape(tensor.shape.tolist()[::-1]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


@dataclass(frozen=True)
class Limits:
    """Mean |difference| of log-probabilities, and how far the movements may differ."""

    apart: float
    correlation: float
    ratio: float


# llama.cpp rounds activations to 8 bits where weights are quantised, and not where they are float32.
KINDS = {"as distributed (Q4_1)": Limits(0.4, 0.98, 0.1), "in float32": Limits(0.01, 0.9999, 0.01)}


@pytest.fixture(scope="module", params=KINDS)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, LlamaCpp]]:
    library_of_llama_cpp()
    path = source._fetch("smollm2-135m")
    if request.param == "in float32":
        path = in_float32(path, tmp_path_factory.mktemp("float32") / "model.gguf")
    running = LlamaCpp(path)
    yield request.param, running
    running.close()
    if request.param == "in float32":
        path.unlink()  # half a gigabyte


@pytest.fixture(scope="module")
def vector(smollm: Model) -> PersonaVector:
    return extract(exemplars(library.load_trait("impolite"), smollm, most=6), smollm)


@pytest.fixture(scope="module")
def asked(smollm: Model) -> list[tuple[int, ...]]:
    questions = library.load_trait("impolite").questions.evaluation[:8]
    return [smollm.encode(ask(question)).ids for question in questions]


def ours(model: Model, asked: list[tuple[int, ...]], vector: PersonaVector, coef: float, layer: int) -> torch.Tensor:
    """Log-probabilities of the next tokens [n, vocabulary], steered at every position; unsteered at strength 0."""
    out = []
    for ids in asked:
        with torch.inference_mode(), apply_steering(model, Steering.add(vector, coef=coef, layer=layer, phase="all")):
            out.append(model.lm(torch.tensor([ids])).logits[0, -1].log_softmax(-1))
    return torch.stack(out)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().mean())


def test_steering_moves_llama_cpp_as_it_moves_us(
    runtime: tuple[str, LlamaCpp], smollm: Model, vector: PersonaVector, asked: list[tuple[int, ...]], tmp_path: Path
) -> None:
    kind, llama = runtime
    coef = vector.coef(DOSE, LAYER)
    export_vector(vector, tmp_path / "v.gguf")
    llama.plain()
    theirs = [torch.stack([llama(ids) for ids in asked])]
    llama.steer(llama.load(tmp_path / "v.gguf", coef), LAYER, LAYER)
    theirs += [torch.stack([llama(ids) for ids in asked])]
    mine = [ours(smollm, asked, vector, strength, LAYER) for strength in (0.0, coef)]
    unsteered, steered = (apart(a, b) for a, b in zip(theirs, mine, strict=True))
    movement, moved = theirs[1] - theirs[0], mine[1] - mine[0]
    ratio, r = float(moved.abs().mean() / movement.abs().mean()), correlation(movement, moved)
    # The same direction one block off, as an error of one in the numbering would add it.
    rolled = PersonaVector(vector.directions.roll(1, 0), vector.reference_norm, vector.header)
    off = apart(theirs[1], ours(smollm, asked, rolled, coef, LAYER + 1))
    print(
        f"\n{kind}, n = {len(asked)} prompts × {theirs[0].shape[1]} tokens: mean |Δ log p| unsteered {unsteered:.4f}, "
        f"steered {steered:.4f} (one layer off: {off:.4f}); movement {movement.abs().mean():.3f}, ours ÷ llama.cpp's "
        f"{ratio:.4f}, r = {r:.5f}"
    )
    limits = KINDS[kind]
    assert unsteered < limits.apart
    assert steered < 1.5 * unsteered
    assert r > limits.correlation
    assert ratio == pytest.approx(1, abs=limits.ratio)
    assert off > 2 * steered


def test_the_chosen_layer_alone_needs_no_range(
    runtime: tuple[str, LlamaCpp], vector: PersonaVector, asked: list[tuple[int, ...]], tmp_path: Path
) -> None:
    _, llama = runtime
    done = export_vector(vector, tmp_path / "one.gguf", only_chosen=True)
    export_vector(vector, tmp_path / "all.gguf")
    llama.steer(llama.load(tmp_path / "one.gguf", done.use.coefficient), 1, llama.layers)
    alone = llama(asked[0])
    llama.steer(llama.load(tmp_path / "all.gguf", done.use.coefficient), done.use.layer, done.use.layer)
    assert torch.equal(alone, llama(asked[0]))
    llama.plain()
    assert not torch.equal(alone, llama(asked[0]))


def test_llama_cpp_itself_refuses_a_direction_0(
    runtime: tuple[str, LlamaCpp], vector: PersonaVector, tmp_path: Path
) -> None:
    _, llama = runtime
    export_vector(vector, tmp_path / "gguf")
    export_vector(vector, tmp_path / "repeng", to="repeng")
    assert llama.load(tmp_path / "gguf", 1.0).width == vector.width
    assert llama.load(tmp_path / "repeng", 1.0).width == -1
