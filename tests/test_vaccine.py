"""Preventative steering in stock trainers: right to the last digit, off where nothing is learnt, never in what is saved."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments

import tiny
from poise import vector as vectors
from poise.errors import HookDidNotFire, InvalidOption, InvalidSteering, OtherModel
from poise.model import Model
from poise.steer import Steering, Term, at
from poise.vaccinate.vaccine import MARK, VaccineCallback, vaccine
from poise.vector import PersonaVector

IGNORED = -100


def rows(model: Model, n: int = 8) -> list[dict[str, list[int]]]:
    """Texts with labels on their answers."""
    out = []
    for text in tiny.texts(model, n):
        labels = [IGNORED] * text.start + list(text.ids[text.start : text.end])
        out.append({"input_ids": list(text.ids), "labels": labels})
    return out


def collate(side: str) -> Any:
    """Pads on one side, as collators differ in."""

    def together(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        out: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for row in batch:
            n = longest - len(row["input_ids"])
            for name, values, fill in (
                ("input_ids", row["input_ids"], 0),
                ("labels", row["labels"], IGNORED),
                ("attention_mask", [1] * len(row["input_ids"]), 0),
            ):
                out[name].append([fill] * n + values if side == "left" else values + [fill] * n)
        return {name: torch.tensor(values) for name, values in out.items()}

    return together


def trainer(
    model: Model, folder: Path, *callbacks: Any, side: str = "right", data: Any = None, lm: Any = None, **options: Any
) -> Trainer:
    """Plain SGD, so that a step can be taken by hand."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "train_sampling_strategy": "sequential",
        "average_tokens_across_devices": False,
    }
    return Trainer(
        model=model.lm if lm is None else lm,
        args=TrainingArguments(output_dir=str(folder), **(settings | options)),
        train_dataset=Dataset.from_list(rows(model) if data is None else data),
        processing_class=model.tokenizer,
        data_collator=collate(side),
        callbacks=list(callbacks),
    )


def by_hand(model: Model, work: Any, *, batch: int = 4, steps: int = 2, positions: str = "all") -> dict[str, Any]:
    """The same steps with wrapped block forwards instead of hooks, and nothing of Poise or of the trainer."""
    lm = copy.deepcopy(model.lm).train()
    blocks = lm.model.layers
    mask: list[torch.Tensor | None] = [None]
    for layer, block in enumerate(blocks):

        def forward(h: torch.Tensor, *args: Any, layer: int = layer, plain: Any = block.forward, **given: Any) -> Any:
            return work(layer, plain(h, *args, **given), mask[0])

        block.forward = forward
    data = rows(model)
    for step in range(steps):
        chosen = [data[(step * batch + i) % len(data)] for i in range(batch)]
        inputs = collate("right")(chosen)
        mask[0] = (inputs["labels"] != IGNORED).unsqueeze(-1) if positions == "response" else None
        logits = lm(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten(), ignore_index=IGNORED
        )
        lm.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in lm.parameters():
                if p.grad is not None:
                    p -= 0.05 * p.grad
    return dict(lm.state_dict())


def adding(vector: PersonaVector, coef: float, layers: list[int]) -> Any:
    def work(layer: int, h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if layer not in layers:
            return h
        extra = coef * vector.directions[layer].to(h.dtype)
        return h + (extra if mask is None else extra * mask)

    return work


def increments(vector: PersonaVector, coef: float) -> Any:
    steps = torch.diff(vector.directions, dim=0, prepend=torch.zeros_like(vector.directions[:1]))
    return lambda layer, h, mask: h + coef * steps[layer].to(h.dtype)


def removing(vector: PersonaVector, at_layer: int) -> Any:
    unit = vector.directions[at_layer] / vector.directions[at_layer].norm()

    def work(layer: int, h: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return h - (h.float() @ unit).unsqueeze(-1).to(h.dtype) * unit.to(h.dtype) if layer == at_layer else h

    return work


def same(a: dict[str, Any], b: dict[str, Any], *, within: float = 2e-5) -> bool:
    return all(torch.allclose(a[name], b[name], atol=within, rtol=1e-4) for name in a)


@pytest.fixture
def base() -> Model:
    model = tiny.model("llama")
    model.lm.requires_grad_(True)
    return model


@pytest.fixture
def vector(base: Model) -> PersonaVector:
    return tiny.vector(base, scale=0.5)


class TestStepsAreThoseTakenByHand:
    def test_at_one_layer(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        plain = by_hand(base, lambda layer, h, mask: h)
        trainer(base, tmp_path, VaccineCallback(at(vector, coef=1.5, layer=2))).train()
        assert same(base.lm.state_dict(), wanted)
        assert not same(base.lm.state_dict(), plain)

    def test_as_increments_at_all_layers(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, increments(vector, 0.7))
        trainer(base, tmp_path, VaccineCallback(Steering((Term(vector, 0.7, "increments"),)))).train()
        assert same(base.lm.state_dict(), wanted)

    def test_projecting_out(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, removing(vector, 1))
        trainer(base, tmp_path, VaccineCallback(at(vector, layer=1, operation="project_out"))).train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_on_response_positions_only_whatever_the_padding(
        self, base: Model, vector: PersonaVector, tmp_path: Path, side: str
    ) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [1]), positions="response")
        callback = VaccineCallback(at(vector, coef=1.5, layer=1), positions="response")
        trainer(base, tmp_path, callback, side=side).train()
        assert same(base.lm.state_dict(), wanted)

    def test_under_left_padding(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        trainer(base, tmp_path, VaccineCallback(at(vector, coef=1.5, layer=2)), side="left").train()
        assert same(base.lm.state_dict(), wanted)

    def test_under_gradient_accumulation(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        callback = VaccineCallback(at(vector, coef=1.5, layer=2))
        options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        trainer(base, tmp_path, callback, **options).train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("positions", ["all", "response"])
    def test_under_gradient_checkpointing(
        self, base: Model, vector: PersonaVector, tmp_path: Path, reentrant: bool, positions: Any
    ) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]), positions=positions)
        callback = VaccineCallback(at(vector, coef=1.5, layer=2), positions=positions)
        base.lm.enable_input_require_grads()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base.lm.gradient_checkpointing_enable({"use_reentrant": reentrant})
            trainer(base, tmp_path, callback).train()
        assert same(base.lm.state_dict(), wanted)

    def test_when_compiled(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        callback = VaccineCallback(at(vector, coef=1.5, layer=2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(base, tmp_path, callback, torch_compile=True, torch_compile_backend="aot_eager").train()
        assert same(base.lm.state_dict(), wanted)

    def test_in_bfloat16_autocast_it_is_near(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        trainer(base, tmp_path, VaccineCallback(at(vector, coef=1.5, layer=2)), bf16=True).train()
        assert same(base.lm.state_dict(), wanted, within=5e-3)
