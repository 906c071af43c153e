"""What lies in a folder is what runs: nothing is dropped in silence, and what is no language model says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

import tiny
from poise.errors import BrokenModelFile, ModelNotFound, UnsuitableModel
from poise.model import ask, load_model
from poise.model.tokenizing import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.arange(5, 20)[None]


def saved(folder: Path, lm: Any, **config: Any) -> str:
    lm.save_pretrained(folder)
    tiny.chatml().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return str(folder)


def edit(folder: Path, change: Any, file: str = "model.safetensors") -> None:
    save_file(change(load_file(folder / file)), folder / file, metadata={"format": "pt"})


@torch.inference_mode()
def logits(lm: Any) -> torch.Tensor:
    return lm(input_ids=IDS).logits


def load(source: str) -> Any:
    return load_model(source, dtype=torch.float32)


def test_biases_that_the_configuration_does_not_know_are_not_dropped(tmp_path: Path) -> None:
    source = saved(tmp_path, tiny.lm(attention_bias=True), attention_bias=False)
    with pytest.raises(BrokenModelFile, match=r"holds model\.layers\.0\.self_attn\.k_proj\.bias.* and 13 more"):
        load(source)


def test_layers_that_the_configuration_does_not_count_are_not_dropped(tmp_path: Path) -> None:
    with pytest.raises(BrokenModelFile, match=r"holds model\.layers\.2\.input_layernorm\.weight.* and 15 more"):
        load(saved(tmp_path, tiny.lm(), num_hidden_layers=2))


def test_what_models_compute_themselves_may_stand_in_the_file(tmp_path: Path) -> None:
    lm = tiny.lm()
    source = saved(tmp_path, lm, num_nextn_predict_layers=1)
    beside = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.k_scale": torch.ones(1),
        "model.layers.4.eh_proj.weight": torch.ones(4),
        "vision_tower.blocks.0.weight": torch.ones(4),
        "model.visual.merger.weight": torch.ones(4),
        "v_head.summary.weight": torch.ones(4),
    }
    edit(tmp_path, lambda weights: weights | beside)
    assert torch.equal(logits(load(source).lm), logits(lm))


def test_a_buffer_that_is_learnt_must_be_there(tmp_path: Path) -> None:
    sizes = {"moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2}
    sizes |= {"topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "n_shared_experts": 1}
    sizes |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "hidden_size": 32, "vocab_size": 512}
    sizes |= {"intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
    lm = transformers.AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v3", **sizes)).eval()
    source = saved(tmp_path, lm)
    assert torch.equal(logits(load(source).lm), logits(lm))
    edit(tmp_path, lambda weights: {key: w for key, w in weights.items() if "correction_bias" not in key})
    with pytest.raises(BrokenModelFile, match=r"lacks model\.layers\.1\.mlp\.gate\.e_score_correction_bias"):
        load(source)


@pytest.mark.parametrize("tied", [True, False])
def test_a_reward_model_says_what_it_is(tied: bool, tmp_path: Path) -> None:
    config = tiny.lm(tie_word_embeddings=tied).config
    config.num_labels = 1
    with pytest.raises(UnsuitableModel, match=r"is a classifier or reward model \(LlamaForSequenceClassification\)"):
        load(saved(tmp_path, AutoModelForSequenceClassification.from_config(config)))


KINDS = {
    "modernbert": "an encoder",
    "esm": "an encoder",
    "clip": "an image model",
    "vits": "a speech model",
    "qwen2_5_omni": "a speech model",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_language_model_says_what_it_is(kind: str, tmp_path: Path) -> None:
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    tiny.chatml().save_pretrained(tmp_path)
    with pytest.raises(UnsuitableModel, match=rf"is {KINDS[kind]} \({kind}\); Poise reads and steers decoder-only"):
        load(str(tmp_path))


def test_of_a_model_that_hears_the_language_model_is_used(tmp_path: Path) -> None:
    base = tiny.lm("qwen2")
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    config = AutoConfig.for_model("qwen2_audio", text_config=base.config.to_dict(), audio_config=audio)
    whole = transformers.Qwen2AudioForConditionalGeneration(config).eval()
    model = load(saved(tmp_path, whole))
    assert (model.layers, model.width) == (tiny.L, tiny.D)
    assert torch.equal(logits(model.lm), logits(whole))


@pytest.mark.parametrize("file", ["chat_template.json", "processor_config.json"])
def test_a_template_that_lies_with_the_processor_is_used(file: str, tmp_path: Path) -> None:
    tiny.lm().save_pretrained(tmp_path)
    tiny.plain().save_pretrained(tmp_path)
    (tmp_path / file).write_text(json.dumps({"chat_template": tiny.CHATML}))
    expected = "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    for reader in (load(str(tmp_path)), load_tokenizer(str(tmp_path))):
        assert reader.tokenizer.decode(reader.encode(ask("Who are you?")).ids) == expected


class TestAnAdapterAloneInItsFolder:
    @pytest.fixture
    def adapted(self, tmp_path: Path) -> tuple[Any, Path]:
        base = saved(tmp_path / "base", tiny.lm())
        lm = tiny.adapted(transformers.AutoModelForCausalLM.from_pretrained(base)).eval()
        lm.save_pretrained(tmp_path / "adapter")
        return lm, tmp_path / "adapter"

    def test_is_loaded_on_its_base(self, adapted: tuple[Any, Path]) -> None:
        lm, folder = adapted
        model = load(str(folder))
        assert torch.equal(logits(model.lm), logits(lm))
        assert model.fingerprint.adapter
        prompt = ask("Who are you?")
        assert load_tokenizer(str(folder)).encode(prompt).ids == model.encode(prompt).ids

    def test_must_hold_all_of_its_weights(self, adapted: tuple[Any, Path]) -> None:
        _, folder = adapted
        edit(folder, lambda w: {k: v for k, v in w.items() if "layers.2" not in k}, "adapter_model.safetensors")
        with pytest.raises(BrokenModelFile, match=r"The adapter in .* lacks .*layers\.2"):
            load(str(folder))

    def test_says_of_which_base_it_is_where_that_is_not_to_be_found(self, adapted: tuple[Any, Path]) -> None:
        _, folder = adapted
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"base_model_name_or_path": str(folder / "gone")}))
        with pytest.raises(ModelNotFound, match=r"holds an adapter of .*gone, its base: There is no model at .*gone"):
            load(str(folder))
        path.write_text(json.dumps(config | {"base_model_name_or_path": None}))
        with pytest.raises(ModelNotFound, match=r"holds an adapter .* that does not say of which model it is"):
            load(str(folder))


def test_an_adapter_of_learnt_tokens_beside_its_base_is_refused_with_the_reason(tmp_path: Path) -> None:
    source = saved(tmp_path, tiny.lm())
    get_peft_model(tiny.lm(), PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")).save_pretrained(source)
    with pytest.raises(UnsuitableModel, match="carries a prompt tuning adapter, whose learnt tokens"):
        load(source)


def test_an_adapter_beside_its_base_is_loaded_with_it(tmp_path: Path) -> None:
    source = saved(tmp_path, tiny.lm())
    lm = get_peft_model(tiny.lm(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    lm.save_pretrained(source)
    assert torch.allclose(logits(load(source).lm), logits(lm), atol=1e-5)
