"""A vaccine in each trainer of TRL: which passes are steered, and that an untouched policy has ratio 1 and KL 0."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

import tiny
from poise.errors import InvalidArgument
from poise.model import Model
from poise.steer import Steering
from poise.train.trainer_kinds import TRAINERS, steered_trainer
from poise.train.vaccine_callback import VaccineCallback
from poise.vector import PersonaVector
from steered_passes import (
    CHECKPOINTING,
    BlockRecord,
    checkpoint_blocks,
    no_warnings,
    plain_model,
    policy,
    record_runs,
    record_steps,
    trainer_classes,
    trl_trainer,
)

pytestmark = pytest.mark.trainers

NAMES = ("SFTTrainer", "DPOTrainer", "KTOTrainer", "ORPOTrainer", "CPOTrainer", "GRPOTrainer", "RLOOTrainer")
COMPARING = ("DPOTrainer", "KTOTrainer", "GRPOTrainer", "RLOOTrainer")
ALPHA = 1.5
KINDS = [
    kind if kind in ("none", "offloaded") else pytest.param(kind, marks=pytest.mark.slow) for kind in CHECKPOINTING
]


@pytest.fixture(scope="module")
def vector() -> PersonaVector:
    return tiny.vector(tiny.model("llama"), scale=0.5)


def vaccine(vector: PersonaVector, **options: Any) -> VaccineCallback:
    return VaccineCallback(Steering.add(vector, coef=ALPHA, layer=2), **options)


def trained(
    name: str,
    vector: PersonaVector,
    folder: Path,
    *callbacks: Any,
    checkpointing: str = "none",
    model: Model | None = None,
    **options: Any,
) -> tuple[Any, BlockRecord]:
    """Two steps at learning rate 0, and what the second-last block added in each of its runs inside them."""
    model = model or policy()
    with no_warnings():
        run = trl_trainer(name, model, folder, *callbacks, **options)
        record = record_runs(run.model, 2)
        checkpoint_blocks(run.model, checkpointing)
        inside = record_steps(run, record)
        run.train()
    return run, BlockRecord(inside)


def test_all_of_them_are_here() -> None:
    assert set(trainer_classes()) == set(NAMES)
    assert set(TRAINERS) == {*NAMES, "Trainer", "RewardTrainer"}


class TestPasses:
    @pytest.mark.parametrize("checkpointing", KINDS)
    @pytest.mark.parametrize("name", NAMES)
    def test_all_of_a_training_step_are_steered_but_rollouts(
        self, vector: PersonaVector, tmp_path: Path, name: str, checkpointing: str
    ) -> None:
        _, record = trained(name, vector, tmp_path, vaccine(vector), checkpointing=checkpointing)
        length = ALPHA * float(vector.norms[2])
        compared = record.added(generating=False)
        assert compared == pytest.approx([length] * len(compared), rel=1e-5)
        learnt = record.added(generating=False, gradients=True)
        assert len(learnt) >= 2  # in each of two steps
        if checkpointing in ("reentrant", "offloaded"):
            assert len(record.added(again=True)) == len(learnt)
        rollouts = record.added(generating=True)
        assert bool(rollouts) == TRAINERS[name].generates
        assert set(rollouts) <= {0.0}

    @pytest.mark.parametrize("precision", ["bf16 autocast", "bfloat16 base"])
    def test_in_bfloat16_too(self, vector: PersonaVector, tmp_path: Path, precision: str) -> None:
        run, record = trained(
            "DPOTrainer",
            vector,
            tmp_path,
            vaccine(vector, allow_other_model=True),
            checkpointing="offloaded",
            model=policy(precision),
            precision=precision,
        )
        length = ALPHA * float(vector.norms[2])
        assert record.added() == pytest.approx([length] * len(record.runs), rel=0.01)
        assert_untouched("DPOTrainer", run.state.log_history, within=2e-3)  # older ones log log 2 as bfloat16 has it

    @pytest.mark.parametrize("name", NAMES)
    def test_none_is_without_a_vaccine(self, vector: PersonaVector, tmp_path: Path, name: str) -> None:
        _, record = trained(name, vector, tmp_path)
        assert record.runs
        assert set(record.added()) == {0.0}

    @pytest.mark.parametrize("name", ["GRPOTrainer", "RLOOTrainer"])
    def test_rollouts_are_steered_on_request(self, vector: PersonaVector, tmp_path: Path, name: str) -> None:
        _, record = trained(name, vector, tmp_path, vaccine(vector, steer_rollouts=True))
        rollouts = record.added(generating=True)
        assert rollouts == pytest.approx([ALPHA * float(vector.norms[2])] * len(rollouts), rel=1e-5)
        assert rollouts

    @pytest.mark.parametrize("name", ["DPOTrainer", "KTOTrainer", "GRPOTrainer"])
    def test_a_reference_of_its_own_is_steered_as_the_policy_is(
        self, vector: PersonaVector, tmp_path: Path, name: str
    ) -> None:
        model = tiny.model("llama")
        model.lm.requires_grad_(True)
        with no_warnings():
            model.lm.save_pretrained(tmp_path / "base")
        model.lm.config._name_or_path = model.lm.name_or_path = str(tmp_path / "base")
        run = trl_trainer(name, model, tmp_path, vaccine(vector))
        reference = record_runs(run.ref_model, 2)
        with no_warnings():
            run.train()
        length = ALPHA * float(vector.norms[2])
        added = [x for x in reference.added() if x]  # the trial passes before the first step are plain
        assert added == pytest.approx([length] * len(added), rel=1e-5)
        assert len(added) >= 2 - (name == "GRPOTrainer")  # one generation serves both steps
        assert_untouched(name, run.state.log_history)
        assert not plain_model(run.ref_model).model.layers[2]._forward_hooks

    def test_evaluation_in_the_middle_is_not_steered(self, vector: PersonaVector, tmp_path: Path) -> None:
        losses = []
        for callbacks in ([], [vaccine(vector)]):
            model = policy()
            with no_warnings():
                options = {"eval_strategy": "steps", "eval_steps": 1}
                run = trl_trainer("DPOTrainer", model, tmp_path, *callbacks, evaluated=True, **options)
                record = record_runs(run.model, 2)
                run.train()
            losses.append([line["eval_logps/chosen"] for line in run.state.log_history if "eval_logps/chosen" in line])
            assert record.added(gradients=False).count(0.0) >= 4
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert losses[0]


def assert_untouched(name: str, log: list[dict[str, float]], within: float = 1e-5) -> None:
    """Ratio 1 and divergence 0 in every line: the policy has not moved, at learning rate 0."""
    steps = [line for line in log if "loss" in line]
    assert len(steps) == 2
    if name == "DPOTrainer":
        assert [line["loss"] for line in steps] == pytest.approx([math.log(2)] * 2, abs=within)
        assert [line["rewards/chosen"] for line in steps] == pytest.approx([0, 0], abs=1e-5)
        assert [line["rewards/margins"] for line in steps] == pytest.approx([0, 0], abs=1e-5)
    elif name == "KTOTrainer":
        assert [line["loss"] for line in steps] == pytest.approx([0.5, 0.5], abs=1e-5)
        assert [line["rewards/chosen"] for line in steps] == pytest.approx([0, 0], abs=1e-5)
        assert [line.get("kl", 0.0) for line in steps] == pytest.approx([0, 0], abs=1e-5)
    else:
        assert [line["kl"] for line in steps if "kl" in line] == pytest.approx([0] * len(steps), abs=1e-6) or (
            name == "RLOOTrainer"
        )
        assert [line["clip_ratio/region_mean"] for line in steps] == [0, 0]


class TestBeforeTheFirstStep:
    @pytest.mark.parametrize("checkpointing", ["none", "offloaded"])
    @pytest.mark.parametrize("name", COMPARING)
    def test_ratios_are_one_and_divergences_zero(
        self, vector: PersonaVector, tmp_path: Path, name: str, checkpointing: str
    ) -> None:
        run, _ = trained(name, vector, tmp_path, vaccine(vector), checkpointing=checkpointing)
        assert_untouched(name, run.state.log_history)

    def test_also_where_an_adapter_is_trained_on(self, vector: PersonaVector, tmp_path: Path) -> None:
        """TRL keeps the adapter's first state as a second one, which is the reference."""
        model = policy()
        for parameter_name, weight in model.lm.named_parameters():
            if "lora_B" in parameter_name:
                weight.data.normal_(std=0.05)
        run, record = trained("DPOTrainer", vector, tmp_path, vaccine(vector), model=model)
        if "ref" not in run.model.peft_config:
            pytest.skip("this version of TRL compares with the base without any adapter")
        assert_untouched("DPOTrainer", run.state.log_history)
        assert len(record.added(gradients=False)) == len(record.added(gradients=True)) == 2

    @pytest.mark.parametrize("name", ["DPOTrainer", "GRPOTrainer"])
    def test_that_is_because_both_are_steered(
        self, vector: PersonaVector, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Steered in passes with gradients alone, as up to version 0.1.0, the policy seems to have moved."""
        import torch

        from poise.steer.training import TrainingSteering

        change = TrainingSteering.change
        monkeypatch.setattr(
            TrainingSteering,
            "change",
            lambda self, layer, h: change(self, layer, h) if self._rehearsing or torch.is_grad_enabled() else h,
        )
        monkeypatch.setattr(TrainingSteering, "_check_fired", lambda self: None)
        run, _ = trained(name, vector, tmp_path, vaccine(vector))
        with pytest.raises(AssertionError):
            assert_untouched(name, run.state.log_history)


class Named:
    """A trainer by its class alone."""

    @staticmethod
    def of(name: str, module: str, *bases: type) -> Any:
        return type(name, bases or (object,), {"__module__": module})()


class TestWhatHasNoMeaningIsRefused:
    def test_a_reward_model(self, vector: PersonaVector, tmp_path: Path) -> None:
        from trl import RewardConfig, RewardTrainer

        config = tiny.lm("llama").config
        config.num_labels, config.pad_token_id = 1, 0
        pairs = [{"chosen": f"Tell of {i}: yes", "rejected": f"Tell of {i}: no"} for i in range(4)]
        with no_warnings():
            run = RewardTrainer(
                model=AutoModelForSequenceClassification.from_config(config),
                args=RewardConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to="none"),
                train_dataset=Dataset.from_list(pairs),
                processing_class=tiny.chatml(),
                callbacks=[vaccine(vector)],
            )
            with pytest.raises(
                InvalidArgument, match="RewardTrainer cannot be trained under a vaccine: a reward model"
            ):
                run.train()

    def test_a_trainer_that_nobody_tried(self) -> None:
        grpo = type("GRPOTrainer", (), {"__module__": "trl.trainer.grpo_trainer"})
        other = Named.of("GMPOTrainer", "trl.experimental.gmpo.gmpo_trainer", grpo)
        with pytest.raises(InvalidArgument, match=r"has not been tried in GMPOTrainer.*untested=True"):
            steered_trainer(other)
        assert steered_trainer(other, untested=True) is TRAINERS["GRPOTrainer"]

    @pytest.mark.parametrize(
        ("name", "known"),
        [("MyTrainer", "DPOTrainer"), ("UnslothKTOTrainer", "KTOTrainer"), ("_UnslothSFTTrainer", "SFTTrainer")],
    )
    def test_users_subclasses_are_what_they_derive_from(self, name: str, known: str) -> None:
        parent = type(known, (), {"__module__": "trl"})
        assert steered_trainer(Named.of(name, "their.module", parent)) is TRAINERS[known]

    @pytest.mark.parametrize("name", ["DPOTrainer", "KTOTrainer"])
    def test_a_reference_read_before_training(self, vector: PersonaVector, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidArgument, match="set precompute_ref_log_probs=False"):
            trained(name, vector, tmp_path, vaccine(vector), precompute_ref_log_probs=True)

    @pytest.mark.parametrize(
        ("name", "options", "sentence"),
        [
            ("SFTTrainer", {"steer_rollouts": True}, "for trainers that generate, which SFTTrainer is not"),
            ("GRPOTrainer", {"positions": "response"}, "use positions='all' and marked=False"),
            ("GRPOTrainer", {"marked": True}, "use positions='all' and marked=False"),
            ("GRPOTrainer", {"warmup": 0.5}, "set warmup=0 and decay=0"),
        ],
    )
    def test_options_that_would_bend_the_comparison(
        self, vector: PersonaVector, tmp_path: Path, name: str, options: dict[str, Any], sentence: str
    ) -> None:
        with pytest.raises(InvalidArgument, match=sentence):
            trained(name, vector, tmp_path, vaccine(vector, **options))

    @pytest.mark.parametrize(
        ("setting", "sentence"),
        [
            ({"is_fsdp_enabled": True}, "poise.steer.steer_training"),
            ({"is_deepspeed_enabled": True}, "has not been tried under DeepSpeed"),
            ({"is_tp_enabled": True}, "has not been tried under tensor parallelism"),
        ],
    )
    def test_ways_of_spreading_that_nobody_tried(
        self, vector: PersonaVector, tmp_path: Path, setting: dict[str, bool], sentence: str
    ) -> None:
        run = trl_trainer("SFTTrainer", policy(), tmp_path)
        callback = vaccine(vector)
        for name, value in setting.items():
            setattr(run, name, value)
        with pytest.raises(InvalidArgument, match=sentence):
            callback.on_train_begin(
                run.args, run.state, run.control, model=run.model, processing_class=run.processing_class
            )

    @pytest.mark.parametrize(
        ("options", "settings", "sentence"),
        [
            ({}, {"use_vllm": True}, "set vllm_importance_sampling_correction=False"),
            (
                {"steer_rollouts": True},
                {"use_vllm": True, "vllm_importance_sampling_correction": False},
                "rollouts by the model's own generate",
            ),
            ({"steer_rollouts": True}, {"use_transformers_continuous_batching": True}, "own generate"),
        ],
    )
    def test_rollouts_of_engines_that_cannot_be_steered(
        self,
        vector: PersonaVector,
        tmp_path: Path,
        options: dict[str, bool],
        settings: dict[str, bool],
        sentence: str,
    ) -> None:
        run = trl_trainer("GRPOTrainer", policy(), tmp_path)
        for name, value in settings.items():
            setattr(run.args, name, value)
        with pytest.raises(InvalidArgument, match=sentence):
            vaccine(vector, **options).on_train_begin(
                run.args, run.state, run.control, model=run.model, processing_class=run.processing_class
            )
