"""What is tried of a model's blocks at load, each with a model that fails it, and what rows leave behind in a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import test_model_checks
import tiny
from poise.activations import read
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import UnsuitableModel
from poise.model import wrap

BERT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.15,
}
XLNET: dict[str, Any] = {"vocab_size": 512, "d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 48}


def from_config(kind: str, values: dict[str, Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).eval()


def test_attention_to_later_tokens_is_refused() -> None:
    with pytest.raises(UnsuitableModel, match="encoder is not causal: what block 0 gives for a token changes by"):
        wrap(from_config("bert", BERT), tiny.chatml(), name="encoder")


def test_the_same_blocks_as_a_decoder_are_read() -> None:
    decoder = wrap(from_config("bert", BERT | {"is_decoder": True}), tiny.chatml(), name="decoder")
    assert torch.isfinite(read(decoder, tiny.texts(decoder, 3))).all()


def test_tokens_before_rows_are_refused() -> None:
    with pytest.raises(UnsuitableModel, match=r"Block 0 of xlnet gives \[9, 2, 32\] for 2 rows of 9 tokens"):
        wrap(from_config("xlnet", XLNET), tiny.chatml(), name="xlnet")


class Changed(torch.nn.Module):
    """A block whose way of working is changed from outside."""

    def __init__(self, block: torch.nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.block, self.run = block, run

    def forward(self, h: torch.Tensor, **kwargs: Any) -> Any:
        return self.run(self.block, h, **kwargs)


def changed(run: Callable[..., Any], layer: int = 2) -> Any:
    lm = tiny.lm()
    lm.model.layers[layer] = Changed(lm.model.layers[layer], run)
    return lm


def test_a_later_block_that_forgets_the_stream_is_refused() -> None:
    lm = changed(lambda block, h, **kwargs: block(torch.ones_like(h), **kwargs))
    with pytest.raises(UnsuitableModel, match="Changing what block 0 of forgetful gives changes nothing at block 2"):
        wrap(lm, tiny.chatml(), name="forgetful")


def test_rows_that_mix_are_refused() -> None:
    lm = changed(lambda block, h, **kwargs: block(h + h.mean(0, keepdim=True), **kwargs))
    with pytest.raises(UnsuitableModel, match=r"mixing is not causal|one row at block 0 of mixing changes another row"):
        wrap(lm, tiny.chatml(), name="mixing")


def test_a_block_that_runs_twice_is_refused() -> None:
    lm = tiny.lm()
    lm.model.layers[3] = lm.model.layers[1]
    with pytest.raises(UnsuitableModel, match="twice runs block 1 2 times in one pass"):
        wrap(lm, tiny.chatml(), name="twice")


def test_blocks_that_do_not_run_are_refused() -> None:
    lm = tiny.lm()
    lm.model.config.num_hidden_layers = 4
    forward = lm.model.forward
    lm.model.layers[2].forward = lambda h, **kwargs: h  # runs, and is read
    wrap(lm, tiny.chatml(), name="identity")
    spare = torch.nn.ModuleList([*lm.model.layers])
    lm.model.layers = torch.nn.ModuleList([*spare[:3], Skipped(spare[3])])
    lm.model.forward = forward
    with pytest.raises(UnsuitableModel, match=r"skipping answers without running its blocks \[3\]"):
        wrap(lm, tiny.chatml(), name="skipping")


class Skipped(torch.nn.Module):
    """Its work is done past its hooks."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.block(*args, **kwargs)


def test_a_model_that_does_not_run_on_text_alone_is_refused() -> None:
    def fail(block: torch.nn.Module, h: torch.Tensor, **kwargs: Any) -> Any:
        raise KeyError("pixel_values")

    with pytest.raises(UnsuitableModel, match=r"seeing does not run on text alone .KeyError: 'pixel_values'"):
        wrap(changed(fail), tiny.chatml(), name="seeing")


def test_the_check_costs_nothing_of_the_model() -> None:
    lm = tiny.lm()
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    wrapped = wrap(lm, tiny.chatml(), name="same")
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.state_dict().items())
    assert not any(block._forward_hooks for block in wrapped.blocks)


def test_padding_on_the_left_is_refused_where_it_changes_a_row() -> None:
    recurrent = test_model_checks.model("recurrent_gemma")
    with pytest.raises(UnsuitableModel, match=r"cannot be read behind padding on the left: .* `padding`='right'"):
        read(recurrent, tiny.texts(recurrent, 3), padding="left")


@pytest.mark.parametrize("kind", ["mamba2", "bamba"])
def test_rows_leave_a_cache_that_holds_a_state(kind: str) -> None:
    """Answers end at different tokens, so that rows are dropped from the batch while others go on."""
    recurrent = test_model_checks.model(kind)
    prompts = [*tiny.prompts(recurrent, 4), *tiny.prompts(recurrent, 2)]
    full = [test_model_checks.greedy(recurrent, prompt, 6) for prompt in prompts]
    stopping = replace(recurrent, stop_ids=recurrent.stop_ids | {full[0][1], full[1][2]})
    expected = [test_model_checks.greedy(stopping, prompt, 6) for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 1
    answers = LocalEngine(stopping).generate(prompts, SamplingParams(max_new_tokens=6, temperature=0))
    assert [answer.ids for answer in answers] == expected


@pytest.mark.parametrize(
    ("changes", "window"),
    [({}, 256), ({"index_topk": 64}, 64), ({"max_position_embeddings": 128, "keep_window_size": 200}, 128)],
)
def test_the_window_ends_where_attention_becomes_sparse(changes: dict[str, Any], window: int) -> None:
    model = tiny.model()
    for key, value in changes.items():
        setattr(model.lm.config, key, value)
    assert model.window == window
