"""Which of a trainer's passes are steered: under every kind of checkpointing, after exceptions, and added twice."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import tiny
from poise.errors import HookDidNotFire, InvalidArgument, InvalidSteering, UnsuitableModel
from poise.model import Model
from poise.steer import Steering, Term, steer_training
from poise.train.monitor_callback import PersonaMonitorCallback
from poise.train.training_steps import find_trainer
from poise.train.vaccine_callback import VaccineCallback
from poise.vector import PersonaVector
from steered_passes import CHECKPOINTING, checkpoint_blocks, record_runs
from test_vaccine import adding, by_hand, collate, rows, same, trainer

BLOCK_CHECKPOINTING = [kind for kind in CHECKPOINTING if kind != "none"]


def learnable() -> Model:
    model = tiny.model("llama")
    model.lm.requires_grad_(True)
    return model


@pytest.fixture
def base() -> Model:
    return learnable()


@pytest.fixture
def vector(base: Model) -> PersonaVector:
    return tiny.vector(base, scale=0.5)


def train_by_loop(lm: Any, model: Model) -> None:
    """Two plain SGD steps."""
    lm.train()
    for step in range(2):
        inputs = collate("right")([rows(model)[(step * 4 + i) % 8] for i in range(4)])
        lm.zero_grad()
        lm(**inputs).loss.backward()
        with torch.no_grad():
            for p in lm.parameters():
                p -= 0.05 * p.grad


class TestCheckpointing:
    @pytest.mark.parametrize("kind", BLOCK_CHECKPOINTING)
    @pytest.mark.parametrize("positions", ["all", "response"])
    def test_whose_hooks_run_again_takes_the_steps_taken_by_hand(
        self, base: Model, vector: PersonaVector, tmp_path: Path, kind: str, positions: Any
    ) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]), positions=positions)
        plain = by_hand(base, lambda layer, h, mask: h)
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=2), positions=positions)
        checkpoint_blocks(base.lm, kind)
        trainer(base, tmp_path, callback).train()
        assert same(base.lm.state_dict(), wanted)
        assert not same(base.lm.state_dict(), plain)

    @pytest.mark.parametrize("kind", BLOCK_CHECKPOINTING)
    def test_in_a_loop_of_ones_own_too(self, base: Model, vector: PersonaVector, kind: str) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        checkpoint_blocks(base.lm, kind)
        with steer_training(base, Steering.add(vector, coef=1.5, layer=2)):
            train_by_loop(base.lm, base)
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.parametrize("kind", ["reentrant", "offloaded"])
    def test_without_gradients_at_first_steers_both_runs_of_a_block(
        self, base: Model, vector: PersonaVector, tmp_path: Path, kind: str
    ) -> None:
        record = record_runs(base.lm, 2)
        checkpoint_blocks(base.lm, kind)
        run = trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)), max_steps=1)
        run.train()
        length = 1.5 * float(vector.norms[2])
        assert record.added(again=True) == pytest.approx([length], rel=1e-5)
        first = [r.added for r in record.runs if not r.again and r.added > 0]
        assert first == pytest.approx([length], rel=1e-5)

    def test_a_block_that_only_the_backward_pass_runs_is_no_proof(
        self, base: Model, vector: PersonaVector, tmp_path: Path
    ) -> None:
        """The recomputation fires; the pass that the loss comes from did not."""

        class LoseHooks(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                hooks: dict[int, Any] = {}

                def lose(module: Any, args: Any) -> None:
                    hooks.update(base.blocks[2]._forward_hooks)
                    base.blocks[2]._forward_hooks.clear()

                base.lm.model.register_forward_pre_hook(lose)
                base.lm.model.norm.register_forward_pre_hook(
                    lambda module, args: base.blocks[2]._forward_hooks.update(hooks)
                )

        callback = VaccineCallback(Steering.add(vector, coef=1.0, layer=2))
        checkpoint_blocks(base.lm, "reentrant")
        with pytest.raises(HookDidNotFire, match=r"Layers \[2\] .* were not steered in this pass"):
            trainer(base, tmp_path, callback, LoseHooks()).train()

    def test_response_positions_of_two_passes_before_one_backward_pass(
        self, base: Model, vector: PersonaVector
    ) -> None:
        checkpoint_blocks(base.lm, "reentrant")
        base.lm.train()
        one, other = collate("right")(rows(base)[:4]), collate("right")(rows(base)[:4])
        other["labels"][:, :4] = other["input_ids"][:, :4]
        with steer_training(base, Steering.add(vector, coef=1.0, layer=2), positions="response"):
            loss = base.lm(**one).loss + base.lm(**other).loss
            with pytest.raises(InvalidSteering, match="switch gradient checkpointing off"):
                loss.backward()


class Break(TrainerCallback):
    """Ends the training at an event, or from within a pass of its second step."""

    def __init__(self, model: Model, where: str) -> None:
        self.model, self.where = model, where

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.where == "forward":
            self.handle = self.model.blocks[3].register_forward_hook(self.stop)
        if self.where == "backward":
            self.handle = self.model.blocks[1].register_full_backward_hook(self.stop)

    def stop(self, *given: Any) -> None:
        self.handle.remove()
        raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.where == "step end":
            raise RuntimeError("power cut")


class TestAfterAnException:
    @pytest.mark.parametrize(
        ("where", "how"),
        [
            ("forward", "another trainer"),
            ("backward", "another trainer"),
            ("step end", "another trainer"),
            ("backward", "the same trainer"),
            ("forward", "a loop"),
            ("step end", "a loop"),
        ],
    )
    def test_the_next_plain_training_is_a_plain_training(
        self, vector: PersonaVector, tmp_path: Path, where: str, how: str
    ) -> None:
        broken, untouched = learnable(), learnable()
        monitor = PersonaMonitorCallback(vector, every=1, prompts=["Hm?"], batch=True)
        callbacks = [VaccineCallback(Steering.add(vector, coef=30.0, layer=2)), monitor, Break(broken, where)]
        run = trainer(broken, tmp_path, *callbacks, learning_rate=0.0 if where == "step end" else 0.05)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            run.train()
        assert not any(block._forward_hooks for block in broken.blocks)
        assert not broken.lm._forward_pre_hooks
        broken.lm.zero_grad()
        read = len(monitor._batch_projections[0])
        if how == "a loop":
            train_by_loop(broken.lm, broken)
            train_by_loop(untouched.lm, untouched)
        else:
            if how == "the same trainer":
                for callback in callbacks:
                    run.remove_callback(callback)
                run.train()
            else:
                trainer(broken, tmp_path).train()
            trainer(untouched, tmp_path).train()
        assert len(monitor._batch_projections[0]) == read
        ends, wanted = broken.lm.state_dict(), untouched.lm.state_dict()
        assert all(torch.equal(ends[name], wanted[name]) for name in wanted)

    def test_the_same_trainer_goes_on_under_the_vaccine(
        self, base: Model, vector: PersonaVector, tmp_path: Path
    ) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        stop = Break(base, "forward")
        run = trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)), stop)
        with pytest.raises(KeyboardInterrupt):
            run.train()
        run.remove_callback(stop)
        run.train()
        assert same(base.lm.state_dict(), wanted)
        assert "training_step" not in vars(run)

    def test_a_trainers_own_training_step_comes_back(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        run = trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)))
        steps: list[int] = []
        plain = run.training_step

        def counted(*args: Any, **arguments: Any) -> Any:
            steps.append(1)
            return plain(*args, **arguments)

        run.training_step = counted  # type: ignore[method-assign]
        run.train()
        assert len(steps) == 2
        assert vars(run)["training_step"] is counted


class TestAddedTwice:
    def once(self, vector: PersonaVector, **options: Any) -> VaccineCallback:
        return VaccineCallback(Steering.add(vector, coef=1.5, layer=2), **options)

    def test_the_same_one_works_once(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        callback = self.once(vector)
        trainer(base, tmp_path, callback, callback).train()
        assert same(base.lm.state_dict(), wanted)

    def test_an_equal_one_works_once(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        wanted = by_hand(base, adding(vector, 1.5, [2]))
        again = tiny.vector(base, scale=0.5)  # as where a notebook's cell is run once more
        trainer(base, tmp_path, self.once(vector), self.once(again)).train()
        assert same(base.lm.state_dict(), wanted)

    @pytest.mark.parametrize(
        "other",
        [
            lambda vector: VaccineCallback(Steering.add(vector, coef=1.0, layer=2)),
            lambda vector: VaccineCallback(Steering.add(vector, coef=1.5, layer=2), warmup=0.5),
            lambda vector: VaccineCallback(Steering((Term(vector=vector, value=1.0, layers="increments"),))),
        ],
    )
    def test_another_one_along_the_same_vector_is_refused(
        self, base: Model, vector: PersonaVector, tmp_path: Path, other: Any
    ) -> None:
        with pytest.raises(InvalidArgument, match="work along grumpy at layer 2, which would add up"):
            trainer(base, tmp_path, self.once(vector), other(vector)).train()


class TestTheTrainerIsFound:
    def test_among_several(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        trainers = [trainer(base, tmp_path) for _ in range(3)]
        assert [find_trainer(t.state) for t in trainers] == trainers

    def test_or_given_and_must_be_the_one_that_runs(self, base: Model, vector: PersonaVector, tmp_path: Path) -> None:
        other = trainer(base, tmp_path)
        callback = VaccineCallback(Steering.add(vector, coef=1.5, layer=2), trainer=other)
        with pytest.raises(InvalidArgument, match="other than the one that runs"):
            trainer(base, tmp_path, callback).train()

    def test_or_asked_for(self) -> None:
        with pytest.raises(InvalidArgument, match="give trainer="):
            find_trainer(object())

    def test_one_whose_steps_do_not_go_through_training_step_is_refused(
        self, base: Model, vector: PersonaVector, tmp_path: Path
    ) -> None:
        run = trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.5, layer=2)))
        inner = type(run).training_step

        class Around(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                run.training_step = inner.__get__(run)  # type: ignore[method-assign]

        run.add_callback(Around())
        with pytest.raises(HookDidNotFire, match="did not go through training_step of Trainer"):
            run.train()


class TestSeveralDevices:
    def test_replicas_in_threads_are_refused(self, base: Model, vector: PersonaVector) -> None:
        base.lm.train()
        base.lm.model._is_replica = True  # as DataParallel marks them
        with (
            steer_training(base, Steering.add(vector, coef=1.0, layer=2)),
            pytest.raises(UnsuitableModel, match="DataParallel"),
        ):
            base.lm(torch.tensor([[4, 5]]))

    def test_data_parallel_is_refused_before_the_first_step(
        self, base: Model, vector: PersonaVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = trainer(base, tmp_path, VaccineCallback(Steering.add(vector, coef=1.0, layer=2)))
        monkeypatch.setattr(type(run.args), "n_gpu", 2)
        monkeypatch.setattr(type(run), "_wrap_model", lambda self, model, *args, **given: model)
        with pytest.raises(InvalidArgument, match="over 2 GPUs in threads"):
            run.train()

    def test_a_blocks_vector_goes_where_the_block_is(self, base: Model, vector: PersonaVector) -> None:
        """A device of this machine that is not the model's: the one without data."""
        elsewhere = copy.deepcopy(base.blocks[2]).to("meta")
        with steer_training(base, Steering.add(vector, coef=1.0, layer=2)) as learning:
            learning._in_pass = learning._steered_pass = True
            h = torch.zeros(2, 3, base.width, device="meta", dtype=torch.bfloat16)
            out = learning.change(2, h)
        assert (out.device, out.dtype) == (next(elsewhere.parameters()).device, torch.bfloat16)


@pytest.mark.slow
def test_a_compiled_model_is_plain_again_after_its_vaccine(vector: PersonaVector, tmp_path: Path) -> None:
    """What was compiled with hooks must not run on without them."""
    ends = []
    for callbacks in ([VaccineCallback(Steering.add(vector, coef=30.0, layer=2))], []):
        base = learnable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compiler.reset()
            base.lm.compile(backend="eager")
            trainer(base, tmp_path, *callbacks, learning_rate=0.0).train()
            trainer(base, tmp_path).train()
        ends.append(base.lm.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
