"""Hooks: set all or none, off whatever happens, checked, and seen to have run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from poise.errors import HookDidNotFire, InvalidArgument, UnsuitableModel
from poise.model import Model
from poise.model.hooks import before_pass, observe, rewrite

IDS = torch.tensor([[1, 2, 3]])


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def hooked(model: Model) -> int:
    return sum(len(block._forward_hooks) for block in model.blocks)


def run(model: Model) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.lm(IDS, use_cache=False).logits
    return logits


class Returns(nn.Module):
    """A block that gives whatever it is told to."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, h: torch.Tensor) -> Any:
        return self.output


def of(*outputs: Any) -> Model:
    """A model of the tiny one's width whose blocks give these outputs."""
    return dataclasses.replace(tiny.model(), blocks=tuple(Returns(output) for output in outputs))


class TestObserve:
    def test_visits_each_layer_once_even_where_it_is_named_twice(self, model: Model) -> None:
        seen: list[int] = []
        with observe(model, lambda layer, h: seen.append(layer), [2, 0, 2]):
            run(model)
        assert seen == [0, 2]

    def test_stops_the_pass_after_the_deepest_layer(self, model: Model) -> None:
        seen: list[int] = []
        with observe(model, lambda layer, h: seen.append(layer), [1, 0], stop=True):
            run(model)
            raise AssertionError("the pass went on")
        assert seen == [0, 1]

    def test_stopped_by_another_says_which_layers_were_not_reached(self, model: Model) -> None:
        with (
            pytest.raises(HookDidNotFire, match=r"Layers \[2, 3\]"),
            observe(model, lambda layer, h: None),
            observe(model, lambda layer, h: None, [1], stop=True),
        ):
            run(model)

    def test_reads_the_first_of_a_tuple(self) -> None:
        h, other = torch.ones((1, 2, tiny.D)), torch.zeros(3)
        seen: list[torch.Tensor] = []
        model = of((h, other))
        with observe(model, lambda layer, states: seen.append(states)):
            model.blocks[0](h)
        assert seen == [h]


class TestRewrite:
    def test_replaces_the_first_of_a_tuple_and_leaves_the_others(self) -> None:
        h, other = torch.ones((1, 2, tiny.D)), torch.zeros(3)
        model = of((h, other), h)
        with rewrite(model, lambda layer, states: states + 1):
            first, second = (block(h) for block in model.blocks)
        assert torch.equal(first[0], h + 1)
        assert first[1] is other
        assert torch.equal(second, h + 1)
        assert torch.equal(h, torch.ones_like(h))  # nothing is written in place

    def test_an_observer_inside_sees_the_rewritten_states(self, model: Model) -> None:
        seen: list[torch.Tensor] = []
        with (
            rewrite(model, lambda layer, h: torch.zeros_like(h), [1]),
            observe(model, lambda _, h: seen.append(h), [1]),
        ):
            run(model)
        assert not seen[0].any()

    def test_need_not_run_where_the_caller_checks_by_itself(self, model: Model) -> None:
        with rewrite(model, lambda layer, h: h, [0, 1], must_run=False):
            pass


@pytest.mark.parametrize("kind", ["observe", "rewrite"])
class TestBoth:
    def block(self, kind: str, model: Model, layers: Any = None, error: type[BaseException] | None = None) -> Any:
        def work(layer: int, h: torch.Tensor) -> torch.Tensor:
            if error:
                raise error
            return h

        return observe(model, work, layers) if kind == "observe" else rewrite(model, work, layers)  # type: ignore[arg-type]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
    def test_come_off_after_any_exception_in_a_hook_or_in_the_block(
        self, kind: str, model: Model, error: type[BaseException]
    ) -> None:
        plain = run(model)
        with pytest.raises(error), self.block(kind, model, error=error):
            run(model)
        with pytest.raises(error), self.block(kind, model):
            raise error
        assert not hooked(model)
        assert torch.equal(run(model), plain)

    def test_are_set_all_or_none(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny.model()

        def refuse(*args: Any, **options: Any) -> Any:
            raise RuntimeError("no more hooks")

        monkeypatch.setattr(model.blocks[2], "register_forward_hook", refuse)
        with pytest.raises(RuntimeError, match="no more hooks"), self.block(kind, model):
            raise AssertionError("the block was entered")
        assert not hooked(model)

    def test_a_layer_that_never_ran_is_an_error_that_names_it(self, kind: str, model: Model) -> None:
        never = r"Layers \[1, 2\] of tiny-llama were never run"
        with pytest.raises(HookDidNotFire, match=never), self.block(kind, model, [2, 1]):
            pass

    @pytest.mark.parametrize("layer", [-1, 99, True, 1.0, "1"])
    def test_a_layer_that_there_is_not_is_one_sentence(self, kind: str, model: Model, layer: Any) -> None:
        unknown = re.escape(f"has no layer {layer!r}; its layers are 0 to 3")
        with pytest.raises(InvalidArgument, match=unknown), self.block(kind, model, [0, layer]):
            raise AssertionError("the block was entered")
        assert not hooked(model)

    @pytest.mark.parametrize(
        ("output", "shape"),
        [
            (torch.zeros((2, tiny.D)), f"[2, {tiny.D}] of float32"),
            (torch.zeros((1, 2, tiny.D + 1)), f"[1, 2, {tiny.D + 1}] of float32"),
            (torch.zeros((1, 2, tiny.D), dtype=torch.long), f"[1, 2, {tiny.D}] of int64"),
            ((), "tuple"),
            ([torch.zeros((1, 2, tiny.D))], "list"),
            (None, "NoneType"),
        ],
    )
    def test_what_is_not_a_residual_stream_is_named_by_its_shape(self, kind: str, output: Any, shape: str) -> None:
        model = of(output)
        gives = re.escape(f"Block 0 of tiny-llama gives {shape}; ")
        with pytest.raises(UnsuitableModel, match=gives), self.block(kind, model):
            model.blocks[0](torch.zeros((1, 2, tiny.D)))
        assert not hooked(model)


class TestBeforePass:
    def test_what_is_taken_out_the_model_does_not_see(self, model: Model) -> None:
        seen: list[Any] = []
        with torch.no_grad(), before_pass(model, lambda arguments: seen.append(arguments.pop("marks"))):
            model.lm(input_ids=IDS, marks=[1])
        assert seen == [[1]]
        assert not model.lm._forward_pre_hooks


def test_no_other_file_sets_hooks() -> None:
    source = Path(__file__).parents[1] / "src" / "poise"
    sets = re.compile(r"register_\w*hook")
    files = [str(path.relative_to(source)) for path in source.rglob("*.py") if sets.search(path.read_text())]
    assert files == ["model/hooks.py"]
