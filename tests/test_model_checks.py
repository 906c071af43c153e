"""What a model is in fact: a state between steps, residual streams, whole weights; or a sentence that refuses it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
)

import tiny
from poise.activations import read
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import BrokenModelFile, UnsuitableModel
from poise.model import Encoded, Model, load_model, wrap
from poise.model.self_check import check_model, require_cache

CPU = {"dtype": torch.float32, "device": "cpu"}
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "vocab_size": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HEADS = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8, "intermediate_size": 64},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "falcon_mamba": {"state_size": 8, "intermediate_size": 64},
    "bamba": HEADS | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
    "recurrent_gemma": HEADS | {"lru_width": 32, "attention_window_size": 16},
    "rwkv": {"attention_hidden_size": 32},
    "xlstm": {"num_heads": 4},
    "minimax": HEADS | {"head_dim": 8, "num_local_experts": 2},
}


def model(kind: str) -> Model:
    config = AutoConfig.for_model(kind, **(SHAPE | RECURRENT[kind]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return wrap(AutoModelForCausalLM.from_config(config).eval(), tiny.chatml(), name=f"tiny-{kind}")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_transformer_s_cached_steps_are_its_uncached_pass_and_padding_is_nothing(architecture: str) -> None:
    check = check_model(tiny.model(architecture))
    assert (check.cache, check.cache_fault, check.padding_fault) == ("past_key_values", "", "")
    assert check.cached < 1e-5
    assert check.padded < 1e-5


@pytest.mark.parametrize(
    ("kind", "argument"),
    [("mamba", "cache_params"), ("mamba2", "cache_params"), ("falcon_mamba", "cache_params"), ("bamba", "past_key_v")],
)
def test_a_state_space_model_s_cache_is_found(kind: str, argument: str) -> None:
    check = require_cache(model(kind))
    assert check.cache.startswith(argument)
    assert check.cached < 1e-5


@pytest.mark.parametrize("kind", ["rwkv", "xlstm", "minimax"])
def test_a_model_whose_state_cannot_be_kept_is_refused_in_a_sentence(kind: str) -> None:
    with pytest.raises(UnsuitableModel, match=f"tiny-{kind} cannot generate here: .* can still be read"):
        require_cache(model(kind))


def test_a_model_that_padding_changes_is_known_to_be_one() -> None:
    check = check_model(model("recurrent_gemma"))
    assert check.cache_fault == ""
    assert "padding on the left changes a row" in check.padding_fault


def test_several_residual_streams_are_refused_wherever_they_stand() -> None:
    class Streams(torch.nn.Module):
        def __init__(self, block: torch.nn.Module, at: int) -> None:
            super().__init__()
            self.block, self.at = block, at

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = self.block(*args, **kwargs)
            h = out[0] if isinstance(out, tuple) else out
            return torch.stack([h] * 4, dim=self.at)

    for at in (0, 2):
        broken = tiny.model()
        broken.lm.model.layers[-1] = Streams(broken.lm.model.layers[-1], at)
        broken.lm.model.norm = torch.nn.Identity()
        with pytest.raises(UnsuitableModel, match="residual stream"):
            wrap(broken.lm, broken.tokenizer, name="streams")
        with pytest.raises(UnsuitableModel, match="residual stream"):
            read(replace(broken, blocks=tuple(broken.lm.model.layers)), tiny.texts(broken, 5))


class TestACheckpoint:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        tiny.lm(tie_word_embeddings=False).save_pretrained(tmp_path / "m")
        tiny.chatml().save_pretrained(tmp_path / "m")
        return tmp_path / "m"

    @pytest.mark.parametrize("part", ["model.layers.2.mlp.", "lm_head", "model.norm", "model.embed_tokens"])
    def test_without_some_of_its_weights_is_refused_by_their_names(self, part: str, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        left = {name: tensor for name, tensor in tensors.items() if part not in name}
        assert len(left) < len(tensors)
        save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BrokenModelFile, match=f"lacks .*{part}"):
            load_model(str(folder), **CPU)

    def test_with_a_weight_of_another_shape_is_refused(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = torch.ones(7)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BrokenModelFile, match=r"model\.norm"):
            load_model(str(folder), **CPU)

    def test_with_a_tied_head_is_whole(self, tmp_path: Path) -> None:
        tiny.lm(tie_word_embeddings=True).save_pretrained(tmp_path)
        tiny.chatml().save_pretrained(tmp_path)
        assert load_model(str(tmp_path), **CPU).layers == tiny.L

    @pytest.mark.parametrize("kind", ["bart", "t5"])
    def test_of_an_encoder_decoder_is_refused_as_one(self, kind: str, tmp_path: Path) -> None:
        small = {"vocab_size": 512, "d_model": 32}
        if kind == "bart":
            config: Any = BartConfig(
                encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, **small
            )
            BartForConditionalGeneration(config).save_pretrained(tmp_path)
        else:
            T5Config(num_layers=2, d_kv=8, num_heads=4, **small).save_pretrained(tmp_path)
        tiny.chatml().save_pretrained(tmp_path)
        with pytest.raises(UnsuitableModel, match=rf"is an encoder-decoder \({kind}\)"):
            load_model(str(tmp_path), **CPU)

    def test_of_a_vision_language_model_is_loaded_for_its_text(self, tmp_path: Path) -> None:
        text = {"model_type": "llama", **tiny._SHAPE, "vocab_size": 512}
        vision = {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
        }
        config = AutoConfig.for_model("llava", text_config=text, vision_config=vision, image_token_index=500)
        whole = AutoModelForImageTextToText.from_config(config).eval()
        whole.save_pretrained(tmp_path)
        tiny.chatml().save_pretrained(tmp_path)
        loaded = load_model(str(tmp_path), **CPU)
        ids = torch.tensor([tiny.texts(loaded, 1)[0].ids])
        assert loaded.layers == tiny.L
        with torch.inference_mode():
            assert torch.equal(loaded.lm(input_ids=ids).logits, whole(input_ids=ids).logits)
        assert torch.isfinite(read(loaded, tiny.texts(loaded, 3))).all()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_an_adapter_of_learnt_tokens_is_refused(config: Any) -> None:
    with pytest.raises(UnsuitableModel, match="learnt tokens are not part of the text"):
        wrap(get_peft_model(tiny.lm(), config), tiny.chatml(), name="tuned")


def greedy(model: Model, prompt: Encoded, n: int) -> tuple[int, ...]:
    """The whole text read again for every token."""
    ids = list(prompt.ids)
    for _ in range(n):
        with torch.inference_mode():
            token = int(model.lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in model.stop_ids:
            break
        ids.append(token)
    return tuple(ids[len(prompt.ids) :])


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "falcon_mamba", "bamba", "recurrent_gemma"])
def test_a_recurrent_model_answers_with_its_memory_alone_and_in_any_batch(kind: str) -> None:
    recurrent = model(kind)
    prompts = [*tiny.prompts(recurrent, 4), *tiny.prompts(recurrent, 2)]
    sampling = SamplingParams(max_new_tokens=6, temperature=0)
    expected = [greedy(recurrent, prompt, 6) for prompt in prompts]
    engine = LocalEngine(recurrent)
    assert [answer.ids for answer in engine.generate(prompts, sampling)] == expected
    assert [engine.generate([prompt], sampling)[0].ids for prompt in prompts] == expected


@pytest.mark.parametrize("kind", ["xlstm", "minimax", "rwkv"])
def test_no_engine_begins_on_a_model_that_it_cannot_run(kind: str) -> None:
    with pytest.raises(UnsuitableModel, match="cannot generate here"):
        LocalEngine(model(kind))
