"""A vaccine over the kinds of adapters and the ways of laying texts out: the same steps by hand, the same positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

import tiny
from poise.steer import Steering
from poise.train.vaccine_callback import VaccineCallback
from poise.vector import PersonaVector
from steered_passes import LORA, TEXTS, no_warnings, plain_model, policy, trl_trainer
from test_vaccine import IGNORED, adding, collate, rows, same, trainer

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # what 4-bit kernels take


def adapted(lm: Any, **settings: Any) -> Any:
    with torch.random.fork_rng(), no_warnings():
        torch.manual_seed(1)
        out = get_peft_model(lm, LoraConfig(**(LORA | settings)))
    for name, weight in out.named_parameters():
        if "lora_B" in name:  # so that it makes a difference from the first step on
            with torch.random.fork_rng():
                torch.manual_seed(len(name))
                weight.data.normal_(std=0.02)
    return out


def continued(folder: Path) -> Any:
    from peft import PeftModel

    with no_warnings():
        adapted(tiny.lm("llama")).save_pretrained(folder / "adapter")
        return PeftModel.from_pretrained(tiny.lm("llama"), str(folder / "adapter"), is_trainable=True)


KINDS: dict[str, Callable[[Path], Any]] = {
    "LoRA": lambda folder: adapted(tiny.lm("llama")),
    "DoRA": lambda folder: adapted(tiny.lm("llama"), use_dora=True),
    "trainable tokens": lambda folder: adapted(tiny.lm("llama"), trainable_token_indices={"embed_tokens": [3, 4]}),
    "modules to save": lambda folder: adapted(tiny.lm("llama"), modules_to_save=["lm_head"]),
    "an adapter that is continued": continued,
}


def learnt(lm: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in lm.named_parameters() if p.requires_grad}


def train_by_hand(lm: Any, model: Any, work: Any) -> dict[str, torch.Tensor]:
    """Two SGD steps with wrapped block forwards, of whatever the adapter learns."""
    for layer, block in enumerate(plain_model(lm).model.layers):

        def forward(h: Any, *args: Any, layer: int = layer, plain: Any = block.forward, **more: Any) -> Any:
            return work(layer, plain(h, *args, **more), None)

        block.forward = forward
    lm.train()
    for step in range(2):
        lm.zero_grad()
        lm(**collate("right")([rows(model)[(step * 4 + i) % 8] for i in range(4)]), use_cache=False).loss.backward()
        with torch.no_grad():
            for p in lm.parameters():
                if p.grad is not None:
                    p -= 0.05 * p.grad
    return learnt(lm)


class TestAdapters:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_every_kind_take_the_steps_taken_by_hand(self, tmp_path: Path, kind: str) -> None:
        base = tiny.model("llama")
        vector = tiny.vector(base, scale=0.5)
        build = KINDS[kind]
        wanted = train_by_hand(build(tmp_path), base, adding(vector, 1.5, [2]))
        plain = train_by_hand(build(tmp_path), base, lambda layer, h, mask: h)
        lm = build(tmp_path)
        trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)), lm=lm).train()
        assert same(learnt(lm), wanted)
        assert not same(learnt(lm), plain)

    @pytest.mark.wide
    def test_on_a_base_in_four_bits(self, tmp_path: Path) -> None:
        """QLoRA: NF4 with double quantisation, on the CPU."""
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
        from transformers import BitsAndBytesConfig

        base = tiny.model("llama", **SHAPE)
        vector = tiny.vector(base, scale=0.5)
        with no_warnings():
            base.lm.save_pretrained(tmp_path / "base")

        def build() -> Any:
            four_bits = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
            )
            with no_warnings():
                lm = AutoModelForCausalLM.from_pretrained(
                    tmp_path / "base", quantization_config=four_bits, dtype=torch.float32, device_map="cpu"
                )
            return adapted(lm)

        wanted = train_by_hand(build(), base, adding(vector, 1.5, [2]))
        plain = train_by_hand(build(), base, lambda layer, h, mask: h)
        lm = build()
        with no_warnings():
            trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)), lm=lm).train()
        assert same(learnt(lm), wanted)
        assert not same(learnt(lm), plain)


GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATS = [
    {"messages": [{"role": "user", "content": f"Tell of {i}"}, {"role": "assistant", "content": "yes, my friend" * i}]}
    for i in range(1, 5)
]


class TestLayouts:
    @pytest.mark.parametrize(
        "settings",
        [
            {"completion_only_loss": True},
            {"completion_only_loss": False},
            {"packing": True, "max_length": 64},
            {"padding_free": True, "max_length": None},
            {"assistant_only_loss": True},
        ],
        ids=lambda settings: next(iter(settings.items()))[0] + "=" + str(next(iter(settings.values()))),
    )
    def test_response_positions_are_those_with_a_label(
        self, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = policy()
        if "assistant_only_loss" in settings:
            import copy
            from dataclasses import replace

            tokenizer = copy.deepcopy(model.tokenizer)
            tokenizer.chat_template = GENERATION
            model = replace(model, tokenizer=tokenizer)
            monkeypatch.setattr("steered_passes.TEXTS", CHATS)
        vector: PersonaVector = tiny.vector(tiny.model("llama"), scale=0.5)
        callback = VaccineCallback(
            Steering.add(vector, coef=1.5, layer=2), positions="response", allow_other_model=True
        )
        with no_warnings():
            run: SFTTrainer = trl_trainer("SFTTrainer", model, tmp_path, callback, **settings)
        steered: list[list[bool]] = []
        labelled: list[list[bool]] = []
        block, lm = plain_model(run.model).model.layers[2], plain_model(run.model)
        forward, call, whole = block.forward, block._call_impl, lm.forward
        before: list[torch.Tensor] = []

        def see_forward(*args: Any, **more: Any) -> Any:
            before.append(forward(*args, **more))
            return before[-1]

        def see_call(*args: Any, **more: Any) -> Any:
            output = call(*args, **more)
            steered.append(((output - before.pop()).norm(dim=-1) > 1).flatten().tolist())
            return output

        def see_whole(*args: Any, **more: Any) -> Any:
            if more.get("labels") is not None:
                steered.clear()
            output = whole(*args, **more)
            if more.get("labels") is not None:
                labelled.append((more["labels"] != IGNORED).flatten().tolist())
                assert steered == [labelled[-1]]
            return output

        block.forward, block._call_impl, lm.forward = see_forward, see_call, see_whole
        with no_warnings():
            run.train()
        assert len(labelled) == 2
        assert all(any(marks) for marks in labelled)
        partly = not all(map(all, labelled))
        assert partly == settings.get("completion_only_loss", True)


def test_the_texts_have_prompts_and_answers() -> None:
    assert all({"prompt", "completion"} == set(row) for row in TEXTS)
