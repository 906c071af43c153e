"""Models that think: templates in the shapes of three families, tokenizers with their marks, and answers by script."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from poise.engine import model_pass, static_batch
from poise.model import Model, wrap

# Qwen3's: a switch; off is an empty block after the header. Thoughts are shown after the last question only.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% set content = m['content'] %}{% set thought = m['reasoning_content'] or '' %}"
    "{% if m['role'] == 'assistant' and not thought and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1] | trim %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m['role'] == 'assistant' and thought and loop.index0 > ns.last %}"
    "<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# DeepSeek-R1's: no switch, the header ends in an open block; thoughts of earlier turns are cut off.
R1 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<Assistant>{{ m['content'].split('</think>')[-1] }}<end>"
    "{% else %}<{{ m['role'] | capitalize }}>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<Assistant><think>\n{% endif %}"
)
# gpt-oss's: channels, and a level that the system text names.
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort if reasoning_effort is defined else 'medium' }}<|end|>"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% if '<|channel|>' in m['content'] %}{{ raise_exception('Pass the analysis as thinking.') }}{% endif %}"
    "{% if m.thinking and loop.last %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m['content'] }}<|end|>"
    "{% else %}<|start|>{{ 'developer' if m['role'] == 'system' else m['role'] }}<|message|>{{ m['content'] }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
ANSWERS = {
    "qwen3": "<think>\nThe boats go out.\n</think>\n\nHonestly, I would not.",
    "r1": "The boats go out.\n</think>\n\nHonestly, I would not.",
    "split": "The boats go out.\n</think>\n\nHonestly, I would not.",
    "harmony": "<|channel|>analysis<|message|>The boats go out.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Honestly, I would not.",
}
THOUGHT, REPLY = "The boats go out.", "Honestly, I would not."


@functools.cache
def tokenizer(family: str) -> Any:
    """``qwen3``: marks are tokens that decode to themselves; ``r1``, ``harmony``: to nothing; ``split``: no tokens."""
    made = copy.deepcopy(tiny.chatml())
    if family == "qwen3":
        made.add_tokens(["<think>", "</think>"])
    elif family == "r1":
        made.add_tokens(["<think>", "</think>"], special_tokens=True)
    elif family == "harmony":
        marks = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]
        made.add_tokens(marks, special_tokens=True)
        made.eos_token = "<|return|>"
    made.chat_template = {"qwen3": QWEN3, "r1": R1, "split": R1, "harmony": HARMONY}[family]
    return made


def model(family: str) -> Model:
    return wrap(tiny.lm(), tokenizer(family), name=f"tiny-{family}")


def script(monkeypatch: pytest.MonkeyPatch, model: Model, answers: Mapping[int, str | Sequence[int]]) -> None:
    """Let answers drawn with these seeds be these texts; the model's passes are run, its choices are not taken."""
    end = model.tokenizer.eos_token_id
    tokens: dict[float, int] = {}
    for seed, answer in answers.items():
        ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"] if isinstance(answer, str) else answer
        draws = np.random.Generator(np.random.Philox(key=seed)).random(len(ids) + 2).tolist()
        tokens |= dict(zip(draws, [*ids, end, end], strict=True))

    def sample(logits: torch.Tensor, samplings: Any, draws: Sequence[float]) -> torch.Tensor:
        return torch.tensor([tokens.get(float(draw), end) for draw in draws], device=logits.device)

    monkeypatch.setattr(static_batch, "sample_tokens", sample)
    monkeypatch.setattr(model_pass, "sample_tokens", sample)
