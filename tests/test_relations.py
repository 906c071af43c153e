"""What one model is to another: adapters of every kind, merged ones, fine-tunes, copies, strangers."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import torch
from datasets import Dataset
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator
from typer.testing import CliRunner

import tiny
from poise import vector as vectors
from poise.cli import app
from poise.errors import OtherModel, UnsuitableModel
from poise.model import Model, load_model, wrap
from poise.model.adapter_effect import adapter_effect
from poise.model.adapter_structure import base_modules, base_name
from poise.model.fingerprint import fingerprint
from poise.model.forward_settings import ForwardSettings, forward_settings
from poise.model.relation import SAME_MODEL, ModelRelation
from poise.monitor.calibrate import CalibrationSettings, calibrate_alarms
from poise.progress import remarks_by
from poise.steer import Steering, apply_steering
from poise.train import PersonaMonitorCallback, VaccineCallback
from poise.validate import validate
from poise.vector import ModelId

KINDS = {str(getattr(kind, "value", kind)): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_layers": 2, "adapter_len": 4, "target_modules": None},
    "C3A": {"block_size": 8},
    "DELORA": {"delora_lambda": 1},  # as strong as on a model of usual width, here and with FourierFT
    "FOURIERFT": {"n_frequency": 10, "scaling": 10.0},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 2},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1, 2]},
    "VBLORA": {"vector_length": 4, "num_vectors": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 10},
}
LEARNT_TOKENS = {"CARTRIDGE", "CPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"}
NEEDS_MORE_THAN_TEXT = {"POLY", "XLORA"}  # task ids; trained adapters on the disk
ADAPTERS = sorted(set(KINDS) - LEARNT_TOKENS - NEEDS_MORE_THAN_TEXT)


def adapted(kind: str, lm: Any) -> Any:
    """The model under an adapter of any kind, as PEFT builds it."""
    options: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if "target_modules" in inspect.signature(KINDS[kind]).parameters:
        options["target_modules"] = ["q_proj", "v_proj"]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        return peft.get_peft_model(lm, KINDS[kind](**(options | OPTIONS.get(kind, {}))))


def disturbed(lm: Any, scale: float) -> Any:
    """Whatever can be trained, moved at random."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))
    return lm


def merged(kind: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return disturbed(adapted(kind, tiny.lm()), 0.02).merge_and_unload()


def tuned(seed: int = 0, steps: int = 10, lm: Any = None) -> Any:
    """Full fine-tuning: every weight moves."""
    lm = (lm or tiny.lm()).train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids = torch.randint(0, 500, (4, 24))
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        lm(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return lm.eval()


def resized(rows: int, lm: Any = None) -> Any:
    lm = lm or tiny.lm()
    lm.resize_token_embeddings(rows, mean_resizing=False)
    return lm


def rounded(bits: int, dtype: torch.dtype = torch.float32, lm: Any = None) -> Any:
    """Unpacked again into floats, as GGUF files are: each 16 weights with a scale of their own."""
    lm = lm or tiny.lm()
    with torch.no_grad():
        for parameter in lm.model.layers.parameters():
            if parameter.dim() > 1:
                flat = parameter.reshape(-1, 16)
                step = flat.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
                parameter.copy_(((flat / step).round() * step).reshape(parameter.shape))
    return lm.to(dtype)


class Packed(nn.Module):
    """A linear layer whose weights are two of 4 bits in a byte: readable by applying it alone."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        step = linear.weight.abs().amax(-1, keepdim=True) / 7
        codes = ((linear.weight / step).round() + 8).to(torch.uint8)
        self.register_buffer("scale", step)
        self.register_buffer("weight", codes[:, ::2] * 16 + codes[:, 1::2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = torch.stack([self.weight // 16, self.weight % 16], -1).flatten(1)
        return x @ ((codes.float() - 8) * self.scale).t()


def packed() -> Any:
    lm = tiny.lm()
    for block in lm.model.layers:
        for parent in (block.self_attn, block.mlp):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Packed(child))
    return lm


def identity(lm: Any, tokenizer: Any = None) -> ModelId:
    return ModelId.of(model(lm, tokenizer))


def model(lm: Any, tokenizer: Any = None) -> Model:
    return wrap(lm, tokenizer or tiny.chatml(), name="other")


@pytest.fixture(scope="module")
def base() -> ModelId:
    return ModelId.of(tiny.model())


class TestAnAdapter:
    @pytest.mark.parametrize("kind", ADAPTERS)
    def test_of_every_kind_of_peft_is_known(self, kind: str, base: ModelId) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of sparse tensors
            lm = adapted(kind, tiny.lm())
            if kind == "SHADOW":  # whose pass is PEFT's own: known by its weights, and refused
                with pytest.raises(UnsuitableModel, match="carries a shadow adapter"):
                    model(lm)
                known = fingerprint(lm, "")
                assert (known.architecture, known.weights) == (base.architecture, base.weights)
                return
            under = model(lm)
        assert (under.fingerprint.architecture, under.fingerprint.weights) == (base.architecture, base.weights)
        assert base.relation(under) == ModelRelation(
            kind="adapter", sentence="has the same base weights under an adapter"
        )
        assert under.sketch == base.sketch, "an adapter does not count"

    @pytest.mark.parametrize("kind", ["LORA", "LOHA", "IA3", "LN_TUNING", "TRAINABLE_TOKENS", "VERA"])
    def test_that_was_saved_is_known_when_it_is_loaded(self, kind: str, base: ModelId, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            disturbed(adapted(kind, tiny.lm()), 0.1).save_pretrained(tmp_path)
            loaded = model(peft.PeftModel.from_pretrained(tiny.lm(), str(tmp_path)))
        assert base.relation(loaded).kind == "adapter"

    @pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "mixtral"])
    def test_of_other_architectures_is_known(self, architecture: str) -> None:
        own = ModelId.of(tiny.model(architecture))
        assert own.relation(model(tiny.adapted(tiny.lm(architecture)))).kind == "adapter"

    def test_that_transformers_put_in_is_known(self, base: ModelId) -> None:
        lm = tiny.lm()
        lm.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        assert base.relation(model(lm)).kind == "adapter"

    def test_that_nobody_knows_is_known_by_what_it_wraps(self, base: ModelId) -> None:
        class Scaled(nn.Module):
            def __init__(self, base_layer: nn.Module) -> None:
                super().__init__()
                self.base_layer, self.factor = base_layer, nn.Parameter(torch.tensor(1.1))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.base_layer(x) * self.factor

        lm = tiny.lm()
        lm.model.layers[1].mlp.down_proj = Scaled(lm.model.layers[1].mlp.down_proj)
        assert base.relation(model(lm)).kind == "adapter"

    def test_beside_another_is_told_from_it_and_from_none(self, base: ModelId) -> None:
        one, two = (identity(tiny.adapted(tiny.lm(), r=r)) for r in (2, 3))
        assert one.relation(two).sentence == "has the same base weights under another adapter"
        assert one.relation(base).sentence == "has the same base weights without the adapter"

    def test_on_changed_base_weights_is_an_adapter_still(self, base: ModelId) -> None:
        pissa = model(tiny.adapted(tiny.lm(), init_lora_weights="pissa", target_modules=["q_proj", "v_proj"]))
        relation = base.relation(pissa)
        assert relation.kind == "adapter"
        assert relation.sentence.startswith("has base weights that its adapter changed in part, under an adapter")

    @pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"])
    def test_of_learnt_tokens_is_refused_before(self, kind: str) -> None:
        config = KINDS[kind](task_type="CAUSAL_LM", num_virtual_tokens=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lm = peft.get_peft_model(tiny.lm(), config)
        with pytest.raises(UnsuitableModel, match="learnt tokens"):
            model(lm)


def two_adapters() -> Any:
    """Two LoRA adapters with random weights, of which the first is active."""
    config = peft.LoraConfig(r=2, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        lm = peft.get_peft_model(tiny.lm(), config, adapter_name="one")
        lm.add_adapter("two", config)
    return lm


STRENGTH = "has the same base weights under the same adapter with another strength or setting"


class TestWhatAnAdapterAdds:
    @pytest.mark.parametrize("kind", ADAPTERS)
    def test_is_the_same_once_it_is_saved_and_loaded(self, kind: str, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lm = disturbed(adapted(kind, tiny.lm()), 0.1)
            lm.save_pretrained(tmp_path)
            loaded = peft.PeftModel.from_pretrained(tiny.lm(), str(tmp_path))
            assert adapter_effect(lm) == adapter_effect(loaded) != ""
            assert adapter_effect(lm) != adapter_effect(disturbed(loaded.requires_grad_(True), 0.1))

    @pytest.mark.parametrize("changes", [{"lora_alpha": 1}, {"use_rslora": True}, {"fan_in_fan_out": True}])
    def test_depends_on_its_strength_and_settings(self, changes: dict[str, Any]) -> None:
        own = tiny.vector(model(tiny.adapted(tiny.lm(), lora_alpha=64)))
        lm = tiny.adapted(tiny.lm(), lora_alpha=64)
        if "fan_in_fan_out" in changes:
            lm.peft_config["default"].fan_in_fan_out = True
        else:
            lm = tiny.adapted(tiny.lm(), **({"lora_alpha": 64} | changes))
        relation = own.check_model(model(lm))
        assert (relation.kind, relation.sentence) == ("adapter", STRENGTH)
        with pytest.raises(OtherModel, match=r"another strength or setting; only it will do, so extract it on that"):
            own.check_model(model(lm), record="only it will do")

    def test_depends_on_a_strength_that_is_set_later(self) -> None:
        lm = tiny.adapted(tiny.lm())
        under = model(lm)
        own = ModelId.of(under)
        for layer in lm.modules():
            if hasattr(layer, "scale_layer"):
                layer.scale_layer(2.0)
        assert own.relation(under).sentence == STRENGTH, "also in a model that was wrapped before"

    def test_is_that_of_the_active_one(self) -> None:
        lm = two_adapters()
        own = identity(lm)
        lm.set_adapter("two")
        assert own.relation(model(lm)).sentence == "has the same base weights under another adapter"
        lm.base_model.set_adapter(["two", "one"])
        both = identity(lm)
        assert own.relation(both).sentence == "has the same base weights under another adapter"
        lm.base_model.set_adapter(["one", "two"])
        assert both.relation(model(lm)).kind == "same", "their sum has no order"

    def test_is_nothing_once_it_is_switched_off(self, base: ModelId) -> None:
        lm = two_adapters()
        own = identity(lm)
        lm.base_model.disable_adapter_layers()
        assert own.relation(model(lm)).sentence == "has the same base weights without the adapter"
        assert base.relation(model(lm)) == SAME_MODEL

    def test_has_no_name(self) -> None:
        lms = []
        for name in ("one", "other"):
            with torch.random.fork_rng(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.manual_seed(1)
                config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
                lms.append(peft.get_peft_model(tiny.lm(), config, adapter_name=name))
        assert identity(lms[0]).relation(model(lms[1])).kind == "same"

    def test_is_in_the_weights_once_it_is_merged(self, base: ModelId) -> None:
        lm = tiny.adapted(tiny.lm())
        own = identity(lm)
        lm.merge_adapter()
        assert own.relation(model(lm)).sentence.startswith("has changed matrices and no adapter, as once the adapter")
        assert base.relation(model(lm)).kind == "merged"

    def test_is_not_compared_with_files_that_do_not_say_it(self) -> None:
        old = identity(tiny.adapted(tiny.lm(), lora_alpha=64)).model_copy(update={"forward_settings": None})
        assert old.relation(model(tiny.adapted(tiny.lm(), lora_alpha=64))) == SAME_MODEL
        assert old.relation(model(tiny.adapted(tiny.lm(), lora_alpha=1))) == SAME_MODEL


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"rope_theta": 100.0}, "rope_theta 100.0, not 10000.0"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act gelu, not silu"),
    ("llama", {"rms_norm_eps": 1e-5}, "rms_norm_eps 1e-05, not 1e-06"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}},
        "factor 8.0, not none; rope_type linear, not default",
    ),
    ("llama", {"rope_parameters": YARN}, "rope_type yarn, not default"),
    ("mistral", {"sliding_window": None}, "sliding_window none, not 8"),
    ("mistral", {"sliding_window": 7}, "sliding_window 7, not 8"),
    ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping none, not 50.0"),
    ("gemma2", {"final_logit_softcapping": 1.0}, "final_logit_softcapping 1.0, not 30.0"),
    ("gemma2", {"query_pre_attn_scalar": 8}, "query_pre_attn_scalar 8, not 256"),
    ("gemma2", {"layer_types": ["full_attention"] * 4}, "layer_types"),
    ("gpt2", {"activation_function": "relu"}, "activation_function relu, not gelu_new"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True, not False"),
    ("gpt_neox", {"use_parallel_residual": False}, "use_parallel_residual False, not True"),
    ("mixtral", {"num_experts_per_tok": 1}, "num_experts_per_tok 1, not 2"),
    ("qwen3_moe", {"norm_topk_prob": True}, "norm_topk_prob True, not False"),
    ("granite", {"residual_multiplier": 0.5}, "residual_multiplier 0.5, not 1.0"),
    ("granite", {"attention_multiplier": 0.5}, "attention_multiplier 0.5, not 1.0"),
    ("cohere", {"logit_scale": 0.5}, "logit_scale 0.5, not 0.0625"),
]
HARMLESS: list[dict[str, Any]] = [
    {"use_cache": False},
    {"attention_dropout": 0.5},
    {"pad_token_id": 3},
    {"initializer_range": 0.15, "pretraining_tp": 2},
    {"max_position_embeddings": 300},
    {"architectures": ["Other"], "unsloth_version": "2026.1"},
    {"rms_norm_eps": 9.99999997475e-07},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000, "factor": 1.0}},
]


class TestOtherSettings:
    @pytest.fixture(autouse=True)
    def architectures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for architecture in ("granite", "cohere"):
            monkeypatch.setitem(tiny.ARCHITECTURES, architecture, tiny.ARCHITECTURES["llama"])

    @pytest.mark.parametrize(("architecture", "changes", "words"), SETTINGS)
    def test_of_the_same_weights_are_said(self, architecture: str, changes: dict[str, Any], words: str) -> None:
        own, other = tiny.vector(tiny.model(architecture)), model(tiny.lm(architecture, **changes))
        remarks: list[str] = []
        with remarks_by(remarks.append):
            relation = own.check_model(other)
        assert relation.kind == "settings"
        assert words in relation.sentence.removeprefix("has the same weights under other settings: ")
        assert remarks == [f"grumpy was computed on tiny-{architecture}, and other {relation.sentence}."]
        with pytest.raises(OtherModel, match="; only it will do, so extract it on that model, or pass"):
            own.check_model(other, record="only it will do")

    @pytest.mark.parametrize("changes", HARMLESS)
    def test_that_change_nothing_are_none(self, changes: dict[str, Any], base: ModelId) -> None:
        assert base.relation(model(tiny.lm(**changes))) == SAME_MODEL

    def test_beside_another_relation_are_said_with_it(self, base: ModelId) -> None:
        lm = tiny.adapted(tiny.lm(rope_theta=100.0))
        assert base.relation(model(lm)) == ModelRelation(
            kind="adapter",
            sentence="has the same base weights under an adapter, under other settings: rope_theta 100.0, not 10000.0",
        )

    def test_are_not_compared_with_files_that_do_not_say_them(self, base: ModelId) -> None:
        old = base.model_copy(update={"forward_settings": None})
        assert old.relation(model(tiny.lm(rope_theta=100.0))) == SAME_MODEL

    def test_that_another_version_does_not_know_are_not_compared(self, base: ModelId) -> None:
        assert base.forward_settings is not None
        config = {key: value for key, value in base.forward_settings.config.items() if key != "head_dim"}
        old = base.model_copy(update={"forward_settings": ForwardSettings(config=config | {"gone": 1})})
        assert old.relation(tiny.model()) == SAME_MODEL

    @pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
    def test_are_none_once_a_model_is_saved_and_loaded(self, architecture: str, tmp_path: Path) -> None:
        lm = tiny.lm(architecture)
        lm.save_pretrained(tmp_path)
        settings = forward_settings(AutoModelForCausalLM.from_pretrained(tmp_path))
        assert forward_settings(lm).differences(settings) == []
        assert len(settings.model_dump_json()) < 800

    def test_are_what_no_certificate_passes_over(self) -> None:
        with pytest.raises(OtherModel, match=r"settings: rope_theta 100\.0, not 10000\.0; a certificate measured"):
            validate(tiny.vector(tiny.model()), model(tiny.lm(rope_theta=100.0)))


class TestNames:
    def test_of_base_tensors_are_those_of_the_bare_model(self) -> None:
        bare, under = tiny.lm(), tiny.adapted(tiny.lm(), modules_to_save=["lm_head"])
        names = [base_name(under, name) for name in under.state_dict()]
        assert {name for name in names if name} == set(bare.state_dict())
        assert None in names
        assert [name for name, _ in base_modules(under)] == [name for name, _ in base_modules(bare)]


MERGED = ["LORA", "LOHA", "LOKR", "HRA", "OFT", "BOFT", "IA3", "VERA", "FOURIERFT", "ADALORA", "DELORA"]
OTHERS: dict[str, tuple[str, Callable[[], Any], str]] = {
    "bfloat16": ("same", lambda: tiny.lm().to(torch.bfloat16), "is that model"),
    "float16": ("same", lambda: tiny.lm().to(torch.float16), "is that model in another precision"),
    "fine-tuned": ("fine-tune", tuned, "has changed weights, as a fine-tune has"),
    "fine-tuned in one step": ("merged", lambda: tuned(steps=1), "or a fine-tune of some layers has"),  # norms hold
    "fine-tuned under an adapter": (
        "fine-tune",
        lambda: tiny.adapted(tuned()),
        "has changed weights, as a fine-tune has under an adapter",
    ),
    "one layer trained": (
        "merged",
        lambda: disturbed(tiny.lm().requires_grad_(False), 0) and _one_layer(),
        "has changed matrices, as a merged adapter or a fine-tune of some layers has",
    ),
    "resized": (
        "resized",
        lambda: resized(520),
        "has the same weights with a resized vocabulary, 520 token",
    ),
    "made smaller": ("resized", lambda: resized(400), "has the same weights with a resized vocabulary, 400 token"),
    "resized and trained": ("fine-tune", lambda: tuned(lm=resized(520)), "and 520 token embeddings, not 512"),
    "resized under an adapter": ("resized", lambda: tiny.adapted(resized(520)), "not 512 under an adapter"),
    "8 bits": ("quantised", lambda: rounded(8), "has its weights in 8 bits, as a quantised copy has"),
    "4 bits": ("quantised", lambda: rounded(4), "has its weights in 4 bits, as a quantised copy has"),
    "3 bits": ("quantised", lambda: rounded(3), "has its weights in 4 bits, as a quantised copy has"),
    "4 bits in bfloat16": ("quantised", lambda: rounded(4, torch.bfloat16), "in 4 bits, as"),
    "8 bits in bfloat16": (
        "merged",
        lambda: rounded(8, torch.bfloat16),
        "or a fine-tune of some layers has",
    ),  # no grid
    "packed": ("quantised", packed, "has its weights in uint8, as a quantised copy has"),
    "packed under an adapter": ("quantised", lambda: tiny.adapted(packed(), target_modules=["lm_head"]), "an adapter"),
    "another start": ("other", lambda: tiny.lm(seed=1), "same architecture with other weights, unrelated to it"),
    "another start, trained": ("other", lambda: tuned(lm=tiny.lm(seed=1)), "unrelated to it"),
    "another architecture": ("other", lambda: tiny.lm("qwen2"), "is another model"),
    "another width inside": ("other", lambda: tiny.lm(intermediate_size=64), "is another model"),
    "one block a stranger's": (
        "other",
        lambda: _spoilt("model.layers.2.", _stranger),
        "has related weights with parts from elsewhere or turned over (correlation 0.",
    ),
    "outputs negated": ("other", lambda: _spoilt(("o_proj", "down_proj"), _negated), "of the worst part -1.00)"),
    "outputs of one block negated": ("other", lambda: _spoilt("layers.1.mlp.down_proj", _negated), "the worst part"),
    "mean with a stranger": ("other", lambda: _spoilt("", _mean), "has related weights with parts from elsewhere"),
    "other embeddings": ("other", lambda: _other_embeddings(), "related blocks under other token embeddings"),
}


def _one_layer() -> Any:
    lm = tiny.lm()
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name)
    return disturbed(lm, 0.01)


def _spoilt(names: str | tuple[str, ...], change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    """The base, of which the matrices with these names are changed by those of a stranger."""
    lm, stranger = tiny.lm(), dict(tiny.lm(seed=9).named_parameters())
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if parameter.dim() > 1 and any(part in name for part in ([names] if isinstance(names, str) else names)):
                parameter.copy_(change(parameter, stranger[name]))
    return lm


def _stranger(weight: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return other


def _negated(weight: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return -weight


def _mean(weight: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (weight + other) / 2


def _other_embeddings() -> Any:
    lm = tiny.lm()
    torch.nn.init.normal_(lm.get_input_embeddings().weight)
    return lm


class TestARelation:
    @pytest.mark.parametrize("name", OTHERS)
    def test_is_told(self, name: str, base: ModelId) -> None:
        kind, make, sentence = OTHERS[name]
        relation = base.relation(model(make()))
        assert (relation.kind, sentence in relation.sentence) == (kind, True), relation
        assert relation.related == (kind != "other")

    @pytest.mark.parametrize("kind", MERGED)
    def test_of_a_merged_adapter_is_told(self, kind: str, base: ModelId) -> None:
        assert base.relation(model(merged(kind))).kind == "merged"

    def test_of_an_adapter_that_outweighs_the_weights_is_a_strangers(self, base: ModelId) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strong = tiny.adapted(tiny.lm(), lora_alpha=256, target_modules=["down_proj"]).merge_and_unload()
        relation = base.relation(model(strong))
        assert (relation.kind, relation.related) == ("other", False), relation

    def test_of_merged_norms_is_a_fine_tunes(self, base: ModelId) -> None:
        assert base.relation(model(merged("LN_TUNING"))).kind == "fine-tune"

    @pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "mixtral", "gpt_neox"])
    def test_is_told_in_other_architectures(self, architecture: str) -> None:
        own = ModelId.of(tiny.model(architecture))
        lm = disturbed(tiny.lm(architecture), 0.005)
        assert own.relation(model(lm)).kind == "fine-tune"
        assert own.relation(model(tiny.lm(architecture, seed=1))).kind == "other"
        assert own.relation(model(tiny.lm(architecture).to(torch.float16))).kind == "same"

    def test_of_models_without_norms_goes_by_their_embeddings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(tiny.ARCHITECTURES, "olmo", tiny.ARCHITECTURES["llama"])
        own = ModelId.of(tiny.model("olmo"))
        assert own.sketch is not None
        assert own.sketch.vectors == ""
        assert own.relation(model(disturbed(tiny.lm("olmo"), 0.005))).kind == "fine-tune"
        assert own.relation(model(tiny.adapted(tiny.lm("olmo")).merge_and_unload())).kind == "merged"

    def test_of_a_model_of_which_any_block_is_a_strangers_is_a_strangers(self) -> None:
        own, others = ModelId.of(tiny.model(num_hidden_layers=24)), tiny.lm(seed=9, num_hidden_layers=24).model.layers
        for layer in (0, 7, 14, 23):
            lm = tiny.lm(num_hidden_layers=24)
            lm.model.layers[layer].load_state_dict(others[layer].state_dict())
            assert own.relation(model(lm)).kind == "other", layer

    def test_to_a_file_without_the_blocks_goes_by_some_matrices(self) -> None:
        identity = ModelId.of(tiny.model())
        assert identity.sketch is not None
        old = identity.model_copy(update={"sketch": identity.sketch.model_copy(update={"block_outputs": ""})})
        assert old.relation(model(tuned())).kind == "fine-tune"
        assert old.relation(model(_spoilt(("o_proj", "down_proj"), _negated))).kind == "other"
        assert old.relation(model(tiny.lm().half())).kind == "same"

    def test_of_two_fine_tunes_of_one_base_is_a_fine_tunes(self) -> None:
        assert identity(tuned(seed=1)).relation(model(tuned(seed=2))).kind == "fine-tune"

    def test_goes_both_ways(self, base: ModelId) -> None:
        assert (
            identity(rounded(4)).relation(tiny.model()).sentence.startswith("has its weights unrounded, not in 4 bits")
        )
        assert identity(tiny.lm().to(torch.float16)).relation(tiny.model()).kind == "same"
        assert identity(resized(520)).relation(tiny.model()).kind == "resized"

    def test_of_a_fine_tune_of_rounded_weights_is_a_fine_tunes(self) -> None:
        own = identity(rounded(4))
        assert own.relation(model(disturbed(rounded(4), 0.001))).kind == "fine-tune"
        adapter = tiny.adapted(rounded(4), init_lora_weights=True)
        assert own.relation(model(disturbed(adapter, 0.01).merge_and_unload())).kind == "merged"

    def test_of_rounded_weights_with_a_resized_vocabulary_is_a_resized_ones(self) -> None:
        assert identity(rounded(4)).relation(model(resized(520, rounded(4)))).kind == "resized"

    def test_of_another_template_is_a_matter_of_its_own(self, base: ModelId) -> None:
        relation = base.relation(model(tiny.lm(), tiny.llama3()))
        assert (relation.kind, relation.related) == ("template", False)


class TestAVector:
    @pytest.mark.parametrize("name", [name for name, (kind, *_) in OTHERS.items() if kind not in ("same", "other")])
    def test_of_the_base_steers_a_relative_with_a_remark(self, name: str) -> None:
        vector, other, remarks = tiny.vector(tiny.model()), model(OTHERS[name][1]()), list[str]()
        with remarks_by(remarks.append), apply_steering(other, Steering.add(vector, coef=1.0, layer=1, phase="all")):
            other.lm(input_ids=torch.tensor([[1, 2, 3]]))
        assert len(remarks) == 1
        assert OTHERS[name][2] in remarks[0]

    @pytest.mark.parametrize("name", [name for name, (kind, *_) in OTHERS.items() if kind == "other"])
    def test_of_a_stranger_is_refused_with_the_remedy(self, name: str) -> None:
        with pytest.raises(OtherModel, match="extract it on that model, or pass `allow_other_model` if you know"):
            tiny.vector(tiny.model()).check_model(model(OTHERS[name][1]()))

    def test_under_another_template_is_refused_with_its_own_remedy(self) -> None:
        with pytest.raises(OtherModel, match="load it with the template that the vector was computed under"):
            tiny.vector(tiny.model()).check_model(model(tiny.lm(), tiny.llama3()))

    def test_without_a_sketch_knows_adapters_alone(self) -> None:
        plain = tiny.model()
        old = tiny.vector(plain, model=ModelId.of(plain).model_copy(update={"sketch": None}))
        assert old.check_model(model(adapted("LOHA", tiny.lm()))).kind == "adapter"
        with pytest.raises(OtherModel, match=r"of a fine-tune or of a stranger; the vector's file is older than the"):
            old.check_model(model(tuned()))
        with pytest.raises(OtherModel, match="other is another model; extract it"):
            old.check_model(model(tiny.lm(intermediate_size=64)))

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mixtral"])
    def test_without_a_sketch_knows_a_resized_vocabulary(self, architecture: str) -> None:
        plain = tiny.model(architecture)
        old = tiny.vector(plain, model=ModelId.of(plain).model_copy(update={"sketch": None, "forward_settings": None}))
        under = tiny.adapted(resized(520, tiny.lm(architecture)))
        assert old.check_model(model(resized(520, tiny.lm(architecture)))) == ModelRelation(
            kind="resized", sentence="has the same weights with a resized vocabulary, 520 token embeddings, not 512"
        )
        assert old.check_model(model(under)).sentence.endswith("520 token embeddings, not 512 under an adapter")
        for lm, weights in (
            (resized(400, tiny.lm(architecture)), "may have other weights"),
            (disturbed(resized(520, tiny.lm(architecture)), 0.05), "has other weights"),
        ):
            rows = lm.get_input_embeddings().weight.shape[0]
            with pytest.raises(OtherModel) as refused:
                old.check_model(model(lm))
            assert str(refused.value) == (
                f"grumpy was computed on tiny-{architecture}, and other has the same architecture with {rows} token "
                f"embeddings, not 512, and {weights}, of a fine-tune or a stranger; the vector's file is older than "
                "the figures that tell these apart, so extract it again, or pass `allow_other_model` if you know that "
                "the direction carries over."
            )

    def test_keeps_its_sketch_in_its_file(self, tmp_path: Path) -> None:
        vector = tiny.vector(tiny.model())
        vectors.save_vector(vector, tmp_path / "v.safetensors")
        loaded = vectors.load_vector(tmp_path / "v.safetensors")
        assert loaded.header == vector.header
        assert loaded.header.model.sketch is not None
        assert len(loaded.header.model.sketch.model_dump_json()) < 1000


class TestTraining:
    """A model that is trained again is still the one that its vectors belong to."""

    def run(self, base: Model, folder: Path, callback: Any, **options: Any) -> Trainer:
        ids = [list(range(i, i + 12)) for i in range(8)]
        settings = TrainingArguments(
            output_dir=str(folder),
            **({"max_steps": 2, "learning_rate": 0.5, "optim": "sgd", "use_cpu": True} | options),
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
        )
        return Trainer(
            model=base.lm,
            args=settings,
            train_dataset=Dataset.from_list([{"input_ids": row, "labels": row} for row in ids]),
            processing_class=base.tokenizer,
            data_collator=default_data_collator,
            callbacks=[callback],
        )

    @pytest.mark.parametrize("sketched", [True, False])
    def test_of_all_weights_goes_on_the_second_time(self, sketched: bool, tmp_path: Path) -> None:
        base = tiny.model()
        identity = ModelId.of(base)
        vector = tiny.vector(base, model=identity if sketched else identity.model_copy(update={"sketch": None}))
        watch = PersonaMonitorCallback([vector], prompts=["Hm?"])
        vaccine = VaccineCallback(Steering.add(vector, coef=1.0, layer=1))
        for callback in (watch, vaccine):
            run = self.run(base, tmp_path, callback)
            for _ in range(2):
                run.train()
        assert identity.relation(model(base.lm)).kind != "same", "the training changed nothing"
        self.run(base, tmp_path, PersonaMonitorCallback([vector], prompts=["Hm?"])).train()

    def test_of_a_fine_tune_of_the_base_is_watched_from_the_start(self, tmp_path: Path) -> None:
        vector = tiny.vector(tiny.model())
        watch = PersonaMonitorCallback([vector], prompts=["Hm?"])
        self.run(model(tuned()), tmp_path, watch).train()
        assert [step for step, _ in watch.history] == [0, 2]

    def test_of_a_stranger_is_refused(self, tmp_path: Path) -> None:
        watch = PersonaMonitorCallback([tiny.vector(tiny.model(seed=3))], prompts=["Hm?"])
        with pytest.raises(OtherModel, match="unrelated to it"):
            self.run(tiny.model(), tmp_path, watch).train()


class TestWhatIsMeasuredOnARelative:
    PLAN = CalibrationSettings(rates=(0.2,), read_given_answers=True)
    TALK: ClassVar[list[Any]] = [
        {"prompt": f"What of {i}?", "completion": " ".join(tiny.SENTENCES[i % 6].split()[: 4 + i % 5])}
        for i in range(40)
    ]

    def test_is_kept_with_its_models_name_only_where_the_caller_wants_it(self) -> None:
        vector, other = tiny.vector(tiny.model()), model(tuned())
        with pytest.raises(OtherModel, match="alarms set there would pass for those of the vector's own model, so ex"):
            calibrate_alarms(self.TALK, other, [vector], self.PLAN)
        done = calibrate_alarms(self.TALK, other, [vector], self.PLAN, allow_other_model=True)
        (calibrated,) = done.vectors
        assert {alarm.model for alarm in calibrated.header.alarms} == {"other"}
        remarks: list[str] = []
        with remarks_by(remarks.append):
            calibrated.check_model(other)
            calibrated.check_model(wrap(tiny.adapted(tiny.lm()), tiny.chatml(), name="third"))
        assert "Its alarms" not in remarks[0]
        assert remarks[1].endswith("under an adapter. Its alarms were set on other.")

    def test_is_said_in_the_certificate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Certified(Exception):
            """Ends the validation where the certificate's notes are settled."""

        def certify(*args: Any, notes: list[str], **options: Any) -> None:
            raise Certified(notes)

        monkeypatch.setattr("poise.validate.validation.certify", certify)
        vector = tiny.vector(tiny.model())
        with pytest.raises(OtherModel, match="a certificate measured there would pass for one of the vector's own mod"):
            validate(vector, model(tuned()))
        with pytest.raises(Certified) as reached:
            validate(vector, model(tiny.adapted(tiny.lm())), allow_other_model=True)
        assert reached.value.args[0][0] == (
            "Measured on other, not on tiny-llama, on which the vector was computed: other has the same base weights "
            "under an adapter."
        )
        with pytest.raises(Certified) as reached:
            validate(vector, tiny.model())
        assert not any("Measured on" in note for note in reached.value.args[0])

    def test_on_the_very_model_names_none(self) -> None:
        base = tiny.model()
        (calibrated,) = calibrate_alarms(self.TALK, base, [tiny.vector(base)], self.PLAN).vectors
        assert {alarm.model for alarm in calibrated.header.alarms} == {""}
        assert "model" not in calibrated.header.alarms[0].model_dump()


class TestTheCommandDoctor:
    def run(self, folder: Path, *options: str) -> Any:
        return CliRunner().invoke(
            app, ["doctor", str(folder), "--dtype", "float32", "--device", "cpu", *map(str, options)]
        )

    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        folder, file = tmp_path / "tuned", tmp_path / "v.safetensors"
        tuned().save_pretrained(folder)
        tiny.chatml().save_pretrained(folder)
        vectors.save_vector(tiny.vector(tiny.model()), file)
        return folder, file

    def test_says_whether_a_vector_may_be_used(self, files: tuple[Path, Path]) -> None:
        folder, file = files
        done = self.run(folder, "--vector", str(file))
        assert done.exit_code == 0, done.output
        assert f"usable    grumpy ({file}), fine-tune: computed on tiny-llama" in " ".join(done.stdout.split("\n"))

    def test_refuses_a_stranger_with_the_remedy_and_exit_code_1(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        folder, file = files
        vectors.save_vector(tiny.vector(tiny.model(seed=9)), tmp_path / "stranger.safetensors")
        done = self.run(folder, "--vector", str(file), "--vector", str(tmp_path / "stranger.safetensors"), "--json")
        facts = json.loads(done.stdout)
        assert done.exit_code == 1
        assert facts["works"] is False
        assert [(v["relation"], v["usable"]) for v in facts["vectors"]] == [("fine-tune", True), ("other", False)]
        assert "extract it on that model" in facts["vectors"][1]["detail"]


def test_a_model_that_is_loaded_in_half_precision_is_the_same(tmp_path: Path) -> None:
    tiny.lm().save_pretrained(tmp_path)
    tiny.chatml().save_pretrained(tmp_path)
    own = ModelId.of(load_model(str(tmp_path), dtype=torch.float32, device="cpu"))
    for dtype in (torch.float16, torch.bfloat16):
        assert own.relation(load_model(str(tmp_path), dtype=dtype, device="cpu")).kind == "same"


def test_which_adapter_works_tells_models_apart() -> None:
    def adapted(name: str) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            lm = tiny.adapted(tiny.lm(), init_lora_weights=False)
            lm.add_adapter("second", lm.peft_config["default"])
        lm.set_adapter(name)
        return lm

    first, second = (wrap(adapted(name), tiny.chatml(), name=name) for name in ("default", "second"))
    off = wrap(adapted("default"), tiny.chatml(), name="off")
    assert first.fingerprint == wrap(adapted("default"), tiny.chatml(), name="again").fingerprint
    off.lm.base_model.disable_adapter_layers()
    disabled = wrap(off.lm, tiny.chatml(), name="off")
    assert len({m.fingerprint.adapter for m in (first, second, disabled)}) == 3
