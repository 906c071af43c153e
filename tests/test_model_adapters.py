"""Adapters that are more than weights: what is read is what PEFT's own forward pass gives, or they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import tiny
from poise.activations import read
from poise.errors import UnsuitableModel
from poise.model import ask, load_model, wrap

pytestmark = pytest.mark.filterwarnings("ignore")


def adapted(config: Any) -> Any:
    """A tiny model under an adapter whose weights are random, so that it makes a difference."""
    lm = tiny.lm()
    base = {id(parameter) for parameter in lm.parameters()}
    torch.manual_seed(1)
    lm = peft.get_peft_model(lm, config)
    for parameter in lm.parameters():
        if id(parameter) not in base and parameter.is_floating_point():
            parameter.data = torch.randn_like(parameter) * 0.3
    return lm.eval()


def activated_lora() -> Any:
    ids = tiny.chatml()("<|im_start|>assistant", add_special_tokens=False)["input_ids"]
    return peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=ids)


REFUSED = {
    "activated LoRA": (activated_lora, r"carries an activated LoRA \(`alora_invocation_tokens`\).* base model's"),
    "Poly": (
        lambda: peft.PolyConfig(
            r=2, n_tasks=3, n_skills=2, n_splits=1, target_modules=["q_proj"], task_type="CAUSAL_LM"
        ),
        "carries a poly adapter, which needs a task id with every pass",
    ),
    "Shadow": (
        lambda: peft.ShadowConfig(task_type="CAUSAL_LM"),
        "carries a shadow adapter, inside whose own forward pass blocks give something else",
    ),
    "prompt tuning": (
        lambda: peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "carries a prompt tuning adapter, whose learnt tokens are not part of the text",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_that_works_through_the_forward_pass_of_peft_is_refused(kind: str) -> None:
    config, words = REFUSED[kind]
    with pytest.raises(UnsuitableModel, match=f"tiny {words}"):
        wrap(adapted(config()), tiny.chatml(), name="tiny")


def test_an_activated_lora_beside_its_base_is_refused(tmp_path: Path) -> None:
    """Transformers loads such a folder with the adapter built in, and never switches it on."""
    tiny.lm().save_pretrained(tmp_path)
    tiny.chatml().save_pretrained(tmp_path)
    adapted(activated_lora()).save_pretrained(tmp_path)
    with pytest.raises(UnsuitableModel, match="carries an activated LoRA"):
        load_model(str(tmp_path), dtype=torch.float32)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=2, target_modules="all-linear"),
        peft.AdaLoraConfig(target_modules=["q_proj", "v_proj"], total_step=10),
        peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"),
    ],
    ids=lambda config: str(config.peft_type),
)
def test_an_adapter_of_modules_is_read_as_the_model_gives_it(config: Any) -> None:
    lm = adapted(config)
    model = wrap(lm, tiny.chatml(), name="tiny")
    text = model.encode(ask("What do you think of my plan?"), "Honestly, I would not do it.")
    with torch.inference_mode():
        states = lm(input_ids=torch.tensor([text.ids]), use_cache=False, output_hidden_states=True).hidden_states
    expected = torch.stack([h[0, text.start : text.end].float().mean(0) for h in states[1:-1]])
    assert torch.allclose(read(model, [text])[0, :-1], expected, rtol=1e-4, atol=1e-4)
    bare = tiny.model()
    assert not torch.allclose(read(model, [text])[0], read(bare, [text])[0], rtol=1e-2)


def test_an_adalora_alone_in_its_folder_is_loaded_on_its_base(tmp_path: Path) -> None:
    """Its rank is no weight of the file: PEFT takes it from the configuration, transformers leaves it unset."""
    tiny.lm().save_pretrained(tmp_path / "base")
    tiny.chatml().save_pretrained(tmp_path / "base")
    lm = peft.get_peft_model(tiny.lm(), peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10)).eval()
    torch.manual_seed(1)
    for name, parameter in lm.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    lm.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    lm.save_pretrained(tmp_path / "adapter")
    model = load_model(str(tmp_path / "adapter"), dtype=torch.float32)
    ids = torch.arange(5, 20)[None]
    with torch.inference_mode():
        assert torch.allclose(model.lm(input_ids=ids).logits, lm(input_ids=ids).logits, atol=1e-4)
        assert not torch.allclose(model.lm(input_ids=ids).logits, tiny.lm()(input_ids=ids).logits, atol=1e-2)
