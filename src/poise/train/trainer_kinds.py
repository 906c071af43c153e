"""What a vaccine means in each trainer: which passes of a training step are steered, and what is not supported.

One rule throughout: what the policy's log-probabilities are compared with (a reference model's, or the policy's own
earlier ones) is steered as the policy is, so that before the first step every ratio is 1 and every divergence 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from poise.errors import InvalidArgument

__all__ = ["TRAINERS", "SteeredTrainer", "check_arguments", "check_parallelism", "reference_model", "steered_trainer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeredTrainer:
    """A kind of trainer under a vaccine.

    Attributes:
        steered: Which passes of a training step are steered, in words.
        generates: Whether its training steps generate answers.
        refused: Why a vaccine has no meaning in it; empty where it has one.
    """

    steered: str
    generates: bool = False
    refused: str = ""


_PREFERENCES = "the policy's passes and the reference's"
_ROLLOUTS = "the policy's passes, old and reference log-probabilities; rollouts only with steer_rollouts=True"
TRAINERS: dict[str, SteeredTrainer] = {
    "Trainer": SteeredTrainer(steered="every pass of a training step"),
    "SFTTrainer": SteeredTrainer(steered="every pass of a training step"),
    "DPOTrainer": SteeredTrainer(steered=_PREFERENCES),
    "KTOTrainer": SteeredTrainer(steered=f"{_PREFERENCES}, also those that its KL term is estimated from"),
    "ORPOTrainer": SteeredTrainer(steered="the policy's passes; there is no reference"),
    "CPOTrainer": SteeredTrainer(steered="the policy's passes; there is no reference"),
    "GRPOTrainer": SteeredTrainer(steered=_ROLLOUTS, generates=True),
    "RLOOTrainer": SteeredTrainer(steered=_ROLLOUTS, generates=True),
    "RewardTrainer": SteeredTrainer(
        steered="none",
        refused="a reward model writes no answers, so that there is no character of its own to protect; vaccinate the "
        "policy that is trained with it",
    ),
}


def steered_trainer(trainer: Any, *, untested: bool = False) -> SteeredTrainer:
    """What the vaccine does in this trainer, by the nearest class that is known; subclasses of users' own count too.

    Raises:
        InvalidArgument: a vaccine has no meaning there, or nobody has tried it.
    """
    for kind in type(trainer).__mro__:
        name = kind.__name__.lstrip("_").removeprefix("Unsloth")
        if rule := TRAINERS.get(name):
            if rule.refused:
                raise InvalidArgument(f"{name} cannot be trained under a vaccine: {rule.refused}.")
            return rule
        if kind.__module__.split(".")[0] == "trl" and name != "BaseTrainer" and not untested:
            names = ", ".join(known for known, rule in TRAINERS.items() if not rule.refused)
            raise InvalidArgument(
                f"A vaccine has not been tried in {name}: which of its passes are to be steered is not known. Use one "
                f"of {names}, or say untested=True to steer every pass of its training steps but generation."
            )
    return TRAINERS["Trainer"]


def check_parallelism(trainer: Any, *, untested: bool = False) -> None:
    """Refuse the ways of spreading a training that a vaccine cannot work in, or was not tried in.

    Raises:
        InvalidArgument: names the way and what to do.
    """
    args = trainer.args
    if args.n_gpu > 1 and str(args.parallel_mode).endswith("NOT_DISTRIBUTED"):
        raise InvalidArgument(
            f"This run would spread each batch over {args.n_gpu} GPUs in threads (DataParallel), which share one set "
            "of hooks; use one GPU (CUDA_VISIBLE_DEVICES=0), or one process for each (accelerate launch, torchrun)."
        )
    if getattr(trainer, "is_fsdp_enabled", False):
        raise InvalidArgument(
            "This run shards its model (FSDP), whose weights cannot be recognised any more when training begins; use "
            "DDP, or a loop of your own with FSDP2: wrap the model, shard it with fully_shard, and train inside "
            "poise.steer.steer_training (docs/training.md)."
        )
    ways = {
        "DeepSpeed": getattr(trainer, "is_deepspeed_enabled", False),
        "tensor parallelism": getattr(trainer, "is_tp_enabled", False),
    }
    if not untested and (active := [name for name, used in ways.items() if used]):
        raise InvalidArgument(
            f"A vaccine has not been tried under {' and '.join(active)}; use DDP or one process, or say untested=True."
        )


def check_arguments(trainer: Any, rule: SteeredTrainer, *, steer_rollouts: bool, plain: bool, constant: bool) -> None:
    """Refuse settings of a trainer under which its ratios and divergences would measure the vaccine.

    Args:
        trainer: Has its arguments.
        rule: What is steered in it.
        steer_rollouts: Whether rollouts are to be steered.
        plain: Whether all positions of all rows are steered.
        constant: Whether the strength is the same at all steps.

    Raises:
        InvalidArgument: names the setting, its value and what to set it to.
    """
    args, name = trainer.args, type(trainer).__name__
    if getattr(args, "precompute_ref_log_probs", False):
        raise InvalidArgument(
            f"precompute_ref_log_probs=True has {name} read the reference before training, unsteered, and compare it "
            "with the steered policy; set precompute_ref_log_probs=False."
        )
    if not rule.generates:
        if steer_rollouts:
            raise InvalidArgument(f"steer_rollouts=True is for trainers that generate, which {name} is not; omit it.")
        return
    if not plain:
        raise InvalidArgument(
            f"{name} hands neither labels nor marks to the model; use positions='all' and marked=False."
        )
    vllm = getattr(args, "use_vllm", False)
    if vllm and getattr(args, "vllm_importance_sampling_correction", True):
        raise InvalidArgument(
            f"use_vllm=True has {name} correct for the difference between vLLM's unsteered log-probabilities and the "
            "steered policy's; set vllm_importance_sampling_correction=False, or use_vllm=False."
        )
    batching = ("use_transformers_paged", "use_transformers_continuous_batching")
    if steer_rollouts and (vllm or any(getattr(args, option, False) for option in batching)):
        raise InvalidArgument(
            "steer_rollouts=True needs rollouts by the model's own generate; set use_vllm=False and "
            "use_transformers_continuous_batching=False."
        )
    steps = getattr(args, "num_iterations", 1) * (getattr(args, "steps_per_generation", None) or 1)
    if not constant and steps > args.gradient_accumulation_steps:
        raise InvalidArgument(
            f"{name} compares log-probabilities of {steps} training steps, over which warmup or decay would change the "
            "strength; set warmup=0 and decay=0."
        )


def reference_model(trainer: Any) -> nn.Module | None:
    """The model that a trainer compares its policy with, where that is not the policy without its adapter."""
    reference = getattr(trainer, "ref_model", None)
    if not isinstance(reference, nn.Module):
        return None
    unwrapped: nn.Module = trainer.accelerator.unwrap_model(reference)
    return None if unwrapped is trainer.accelerator.unwrap_model(trainer.model) else unwrapped
