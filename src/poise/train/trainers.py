"""The trainers of TRL that a run's settings ask for, with their callbacks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poise.model import Model
from poise.model.adapter_folder import load_adapter, remark_on_base
from poise.model.loading import HUB_IDS
from poise.train.checkpoints import CheckpointMarker, FiniteGradients, LastStepEvaluation
from poise.train.config import TrainConfig
from poise.train.examples import marking_collator
from poise.train.inputs import RunRows
from poise.train.model_checks import token_numbers
from poise.train.pairs import TrainingPairs
from poise.train.run_folder import CHECKPOINTS_FOLDER

__all__ = ["build_trainer", "starting_model"]

SKIPPED_STEPS = 20  # that float16's loss scaling may skip one after another


def starting_model(config: TrainConfig, model: Model) -> Any:
    """The model that training starts from: the base, all of it to be trained, or under an adapter that goes on.

    Raises:
        BrokenModelFile: the adapter does not fit the base.
    """
    if config.adapter == "none":
        return model.lm.requires_grad_(True)
    if config.lora.start is None:
        return model.lm
    remark_on_base(config.lora.start, config.model, HUB_IDS.get(config.model, config.model))
    adapted = load_adapter(model.lm, config.lora.start, base=config.model)
    adapted.peft_config["default"].inference_mode = False
    for name, weight in adapted.named_parameters():
        weight.requires_grad_(".default." in name)
    return adapted


def build_trainer(config: TrainConfig, model: Model, lm: Any, rows: RunRows, folder: Path) -> Any:
    """The trainer of the settings' method.

    Args:
        config: The settings.
        model: The base.
        lm: What ``starting_model`` gave.
        rows: What is learnt and what is held out.
        folder: The run's folder.
    """
    from transformers import PrinterCallback, ProgressCallback, set_seed

    set_seed(config.seed)  # TRL 0.29 makes the adapter's first weights before it takes the seed itself
    options = {
        "model": lm,
        "processing_class": model.tokenizer,
        "peft_config": _lora(config, model) if config.adapter != "none" and config.lora.start is None else None,
        "callbacks": _callbacks(config),
    }
    arguments = _trainer_arguments(config, model, folder)
    with warnings.catch_warnings(), _no_bars_of_datasets():
        warnings.simplefilter("ignore")  # the libraries' warnings about one another
        if isinstance(rows.training, TrainingPairs):
            trainer = _dpo_trainer(config, arguments, options, rows)
        else:
            trainer = _sft_trainer(config, model, arguments, options, rows)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if config.watch.vectors:
        trainer.add_callback(_monitor(config, trainer))
    return trainer


@contextlib.contextmanager
def _no_bars_of_datasets() -> Iterator[None]:
    """Keep the bars of preparing data off the screen; ours say what is going on."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _sft_trainer(
    config: TrainConfig, model: Model, arguments: dict[str, Any], options: dict[str, Any], rows: RunRows
) -> Any:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    examples: Any = rows.training
    held_out = rows.held_out
    arguments |= {
        "max_length": min(config.longest, model.window) if config.packing else None,  # cut already
        "packing": config.packing,
        "eval_packing": False,
        "padding_free": config.padding_free,
    }
    trainer: Any = SFTTrainer(
        args=SFTConfig(**arguments),
        train_dataset=examples.dataset(),
        eval_dataset=held_out.dataset() if held_out and config.eval_steps else None,
        **options,
    )
    if "labels" not in trainer.train_dataset.column_names:  # TRL 0.29 packs without them, and would learn prompts
        from trl.data_utils import pack_dataset

        trainer.train_dataset = pack_dataset(examples.dataset(), arguments["max_length"])
    if config.vaccine.marks_rows:
        trainer.train_dataset = examples.dataset(marked=True)
        trainer.data_collator = marking_collator(trainer.data_collator)
    return trainer


def _dpo_trainer(config: TrainConfig, arguments: dict[str, Any], options: dict[str, Any], rows: RunRows) -> Any:
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    # The trainer would tokenise texts in its own way; it gets one, and then the pairs as they are.
    text = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    trainer = DPOTrainer(
        args=DPOConfig(**arguments, max_length=None, beta=config.beta),
        train_dataset=text,
        eval_dataset=text if rows.held_out else None,
        ref_model=_reference(config, options["model"]),
        **options,
    )
    trainer.train_dataset = rows.training.dataset()
    if rows.held_out:
        trainer.eval_dataset = rows.held_out.dataset()
    return trainer


def _reference(config: TrainConfig, lm: Any) -> Any:
    """The model as it is, where all of it is trained; else the reference is the policy without what it learns."""
    if config.adapter != "none":
        return None
    import copy

    return copy.deepcopy(lm).requires_grad_(False)


def _lora(config: TrainConfig, model: Model) -> Any:
    from peft import LoraConfig

    lora = config.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        modules_to_save=list(lora.modules_to_save) or None,
        trainable_token_indices=sorted(set(token_numbers(config, model))) or None,
        task_type="CAUSAL_LM",
    )


def _trainer_arguments(config: TrainConfig, model: Model, folder: Path) -> dict[str, Any]:
    """The settings as the trainer's own arguments."""
    return {
        "output_dir": str(folder / CHECKPOINTS_FOLDER),
        "per_device_train_batch_size": config.batch,
        "per_device_eval_batch_size": config.batch,
        "gradient_accumulation_steps": config.accumulate,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "optim": config.optim,
        "max_grad_norm": config.max_grad_norm,
        "remove_unused_columns": not config.vaccine.marks_rows,
        "gradient_checkpointing": config.gradient_checkpointing,
        "eval_strategy": "steps" if config.eval_steps else "no",
        "eval_steps": config.eval_steps,
        "load_best_model_at_end": config.load_best_model_at_end,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": config.early_stopping_patience is not None,
        "save_steps": config.save_every,
        "save_total_limit": 2,
        "logging_steps": config.log_every,
        "logging_nan_inf_filter": False,  # a loss that is NaN or infinite must show
        "report_to": list(config.report_to) or "none",
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": config.bf16,  # without it the base keeps its dtype, and the adapter is float32
        "fp16": config.fp16,
        "disable_tqdm": True,
    }


def _callbacks(config: TrainConfig) -> list[Any]:
    from transformers import EarlyStoppingCallback

    from poise.train.vaccine_callback import VaccineCallback, vaccine_steering

    callbacks: list[Any] = [FiniteGradients(skipped=SKIPPED_STEPS if config.fp16 else 0), CheckpointMarker()]
    if config.eval_steps:
        callbacks.append(LastStepEvaluation())
    if config.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(config.early_stopping_patience, config.early_stopping_threshold))
    vaccine = config.vaccine
    if vaccine.steer:
        callbacks.append(
            VaccineCallback(
                vaccine_steering(vaccine.steer, vaccine.layers),
                positions=vaccine.positions,
                warmup=vaccine.warmup,
                decay=vaccine.decay,
                marked=vaccine.marks_rows,
                allow_other_model=config.allow_other_model,
            )
        )
    return callbacks


def _monitor(config: TrainConfig, trainer: Any) -> Any:
    from poise.train.monitor_callback import PersonaMonitorCallback

    return PersonaMonitorCallback(
        config.watch.vectors,
        every=config.watch.every,
        batch=config.watch.batch,
        stop=config.watch.stop,
        trainer=trainer,
        allow_other_model=config.allow_other_model,
    )
