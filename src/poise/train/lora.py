"""LoRA fine-tuning under a vaccine and a monitor, on TRL and PEFT; killed at any moment, it can be resumed."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poise.data import DataSet, Rejections
from poise.data.row_files import write_rejected_rows
from poise.errors import InvalidArgument, InvalidData, MissingExtra
from poise.model import Encoded, Model, load_model
from poise.model.loading import HUB_IDS
from poise.model.logprobs import token_logprobs
from poise.progress import track
from poise.settings import check_settings
from poise.statistics.estimates import Estimate, ratio_estimate
from poise.storage.atomic_write import saving
from poise.storage.lock import locked
from poise.train.checkpoints import (
    CheckpointMarker,
    FiniteGradients,
    StepProgress,
    last_complete_checkpoint,
    remove_incomplete_checkpoints,
    sync_folder,
)
from poise.train.config import TrainConfig
from poise.train.examples import (
    IGNORED,
    TrainingExample,
    TrainingExamples,
    build_examples,
    marking_collator,
    open_training_data,
)
from poise.train.run_folder import (
    ADAPTER_FOLDER,
    CHECKPOINTS_FOLDER,
    FACTS_FILE,
    begin_run,
    check_inputs,
    explain_disk_errors,
)

__all__ = ["TrainResult", "held_out_loss", "load_base_model", "train", "train_in_folder"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished fine-tune.

    Attributes:
        folder: The run's folder, which holds the adapter, ``train.json`` and ``log.jsonl``.
        adapter: The adapter's folder, as PEFT loads it.
        facts: The content of ``train.json``: base, data, vaccine, steps, losses, versions.
    """

    folder: Path
    adapter: Path
    facts: dict[str, Any]


def train(config: TrainConfig | None = None, **settings: Any) -> TrainResult:
    """Fine-tune a LoRA adapter, under a vaccine and watched if so configured.

    A run that was killed continues from its last good checkpoint; a finished one is only read. Chen et al. 2025,
    App. D, for the defaults; section 5.2 for the vaccine::

        train(model="smollm2-135m", data=["chats.jsonl"], out="run", vaccine={"steer": ["evil.safetensors=2"]})

    Args:
        config: All settings; or give them by name.
        **settings: The fields of ``TrainConfig``, in place of ``config``; ``model``, ``data`` and ``out`` are required.

    Returns:
        Where the adapter is, and what is known of its training.

    Raises:
        InvalidSettings: a setting is unknown, missing or out of range.
        InvalidArgument: the folder holds another run, or one that began on other data or another base; or another
            process is training in it.
        InvalidData: there is nothing to learn from, or nothing but what is held out.
        TrainingFailed: gradients are NaN or infinite; names the step and the last good checkpoint.
        SaveFailed: the disk refused.
        MissingExtra: trl or peft is not installed.
    """
    if config is None:
        config = check_settings(settings, TrainConfig)
    elif not isinstance(config, TrainConfig):
        raise InvalidArgument(
            f"config is {type(config).__name__}; give a TrainConfig, or its fields by name (`poise train` reads files)."
        )
    elif settings:
        raise InvalidArgument(f"train got a config and {', '.join(settings)} beside it; put them into the config.")
    with locked(Path(config.out) / ".run", "train", results=Path(config.out)):
        return train_in_folder(config)


def train_in_folder(config: TrainConfig) -> TrainResult:
    """Train as ``train`` does, for a caller that holds the lock of ``config.out`` already."""
    folder = Path(config.out)
    facts = begin_run(config, folder)
    if (folder / FACTS_FILE).exists():
        return TrainResult(folder, folder / ADAPTER_FOLDER, json.loads((folder / FACTS_FILE).read_text()))
    _check_report_to(config)
    data, only = open_training_data(config)
    model = load_base_model(config)
    digest = check_inputs(folder, data, only, model)
    examples, rejected = _read_examples(config, model, data, only, folder, config.vaccine.inoculation)
    training, held_out = _split_held_out(examples, config.held_out, config.seed)
    if held_out and config.vaccine.inoculation:  # at test the prompt is not there
        held_out_conversations = {e.conversation for e in held_out}
        plain, _ = _read_examples(config, model, data, only, folder)
        held_out = tuple(e for e in plain.rows if e.conversation in held_out_conversations)
    before = held_out_loss(model, held_out)
    trainer = _sft_trainer(config, model, replace(examples, rows=training), folder)
    log = _run_training(trainer, folder)
    with explain_disk_errors(folder):
        _save_adapter(trainer, folder / ADAPTER_FOLDER, HUB_IDS.get(config.model, config.model))
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    trainer.model.eval()
    # Through the adapter: the trainer put it on the model's own blocks.
    after = held_out_loss(model, held_out, lm=trainer.model)
    facts |= {
        "model": {"name": model.name, "layers": model.layers, "width": model.width},
        "data": {
            "sha256": digest,
            "how": data.how,
            "texts": len(training),
            "vaccinated": sum(e.vaccinated for e in training) if config.vaccine.active else 0,
            "held_out": len(held_out),
            "cut": examples.cut,
            "left_out": examples.unread,
            "omitted": examples.omitted,
            **rejected,
        },
        "steps": trainer.state.global_step,
        "loss": {"before": before and before.model_dump(), "after": after and after.model_dump()},
        "watched": [line for line in log if any(key.startswith("persona/") for key in line)],
        "software": _software_versions("poise", "torch", "transformers", "trl", "peft"),
    }
    with saving(folder / FACTS_FILE) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
    return TrainResult(folder, folder / ADAPTER_FOLDER, facts)


def load_base_model(config: TrainConfig) -> Model:
    """The model that is fine-tuned, with the dtype and device of the settings."""
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    return load_model(config.model, dtype=dtype, device=None if config.device == "auto" else config.device)


def held_out_loss(model: Model, held_out: Sequence[TrainingExample], *, lm: Any = None) -> Estimate | None:
    """Mean negative log-likelihood of a labelled token, in nats, with its interval over texts; ``None`` without texts.

    Args:
        model: The base, for which the texts were tokenised.
        held_out: n texts.
        lm: The model to measure in its place, such as the fine-tuned one.
    """
    if not held_out:
        return None
    measured_model = model if lm is None else replace(model, lm=lm)
    logprobs = token_logprobs(measured_model, [Encoded(e.ids, 1, len(e.ids)) for e in held_out])
    labelled = [torch.tensor(e.labels[1:]) != IGNORED for e in held_out]
    sums = np.array([-float(values[mask].sum()) for values, mask in zip(logprobs, labelled, strict=True)])
    counts = np.array([int(mask.sum()) for mask in labelled])
    return ratio_estimate(sums, counts)


def _save_adapter(trainer: Any, folder: Path, base: str) -> None:
    """Save the adapter, with a name of its base that others can load and no path of this machine."""
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, with this machine's paths
    # Afterwards, because PEFT looks up the base when it saves, and a hub may be out of reach.
    path = folder / "adapter_config.json"
    adapter_config = json.loads(path.read_text()) | {"base_model_name_or_path": base}
    path.write_text(json.dumps(adapter_config, indent=2, sort_keys=True) + "\n")
    sync_folder(folder)


def _read_examples(
    config: TrainConfig,
    model: Model,
    data: DataSet,
    only: Collection[str] | None,
    folder: Path,
    inoculation: str | None = None,
) -> tuple[TrainingExamples, dict[str, Any]]:
    """The examples, and what of the data is rejected: how many rows by kind, and the file that keeps them."""
    (folder / "rejected.jsonl").unlink(missing_ok=True)
    rejections = Rejections(folder / "rejected.jsonl")
    examples = build_examples(
        model,
        data,
        longest=min(config.longest, model.window),
        rejections=rejections,
        inoculation=inoculation,
        only=only,
    )
    kept_rows = write_rejected_rows(data, rejections, folder / "rejected_rows")
    facts = {"rejected": dict(rejections.kinds), "rejected_rows": kept_rows.path.name} if kept_rows else {}
    return examples, facts


def _split_held_out(
    examples: TrainingExamples, share: float, seed: int
) -> tuple[tuple[TrainingExample, ...], tuple[TrainingExample, ...]]:
    """Examples to train on and held-out ones, each in the data's order; a conversation is never in both."""
    conversations = sorted({e.conversation for e in examples.rows})
    n = max(round(share * len(conversations)), 1) if share else 0
    if n >= len(conversations):
        raise InvalidData(
            f"held_out: {share:g} holds out all {len(conversations)} conversations, and none is left to learn from; "
            "give more data, or less held_out."
        )
    held_out = {conversations[i] for i in random.Random(seed).sample(range(len(conversations)), n)}
    training = tuple(e for e in examples.rows if e.conversation not in held_out)
    return training, tuple(e for e in examples.rows if e.conversation in held_out)


def _sft_trainer(config: TrainConfig, model: Model, examples: TrainingExamples, folder: Path) -> Any:
    try:
        from peft import LoraConfig
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer
    except ImportError as error:
        raise MissingExtra.of("Training needs trl and peft", "train") from error
    from transformers import PrinterCallback, ProgressCallback

    _check_lora_targets(config, model)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        use_rslora=config.lora.rslora,
        target_modules=config.lora.targets if isinstance(config.lora.targets, str) else list(config.lora.targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' warnings about one another
        trainer = SFTTrainer(
            model=model.lm,
            args=SFTConfig(**_trainer_arguments(config, model, folder)),
            train_dataset=examples.dataset(),
            processing_class=model.tokenizer,
            peft_config=lora,
            callbacks=_callbacks(config),
        )
    if config.vaccine.marks_rows:
        trainer.train_dataset = examples.dataset(marked=True)
        trainer.data_collator = marking_collator(trainer.data_collator)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if config.watch.vectors:
        trainer.add_callback(_monitor(config, trainer))
    return trainer


def _check_lora_targets(config: TrainConfig, model: Model) -> None:
    """Check that every module to be adapted is there; PEFT ignores names that it does not find."""
    if isinstance(config.lora.targets, str):
        return
    names = [f".{name}" for name, _ in model.lm.named_modules()]
    if missing := [t for t in config.lora.targets if not any(name.endswith(f".{t}") for name in names)]:
        block = model.blocks[0].named_modules()
        present = sorted({n.rpartition(".")[2] for n, module in block if getattr(module, "weight", None) is not None})
        raise InvalidArgument(
            f"lora.targets names {', '.join(missing)}, not in {model.name}; its blocks have {', '.join(present)}."
        )


def _check_report_to(config: TrainConfig) -> None:
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    installed = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    if missing := [name for name in config.report_to if name not in installed]:
        raise InvalidArgument(
            f"report_to names {', '.join(missing)}; installed: {', '.join(installed) or 'none'}. Install it with pip, "
            "or omit it."
        )


def _trainer_arguments(config: TrainConfig, model: Model, folder: Path) -> dict[str, Any]:
    """The settings as the trainer's own arguments."""
    return {
        "output_dir": str(folder / CHECKPOINTS_FOLDER),
        "per_device_train_batch_size": config.batch,
        "gradient_accumulation_steps": config.accumulate,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_length": None,  # cut already
        "remove_unused_columns": not config.vaccine.marks_rows,
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_steps": config.save_every,
        "save_total_limit": 2,
        "logging_steps": config.log_every,
        "logging_nan_inf_filter": False,  # a loss that is NaN or infinite must show
        "report_to": list(config.report_to) or "none",
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": False,  # the base keeps its dtype; the adapter is float32
        "disable_tqdm": True,
    }


def _callbacks(config: TrainConfig) -> list[Any]:
    from poise.train.vaccine_callback import VaccineCallback, vaccine_steering

    callbacks: list[Any] = [FiniteGradients(), CheckpointMarker()]
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


def _run_training(trainer: Any, folder: Path) -> list[dict[str, Any]]:
    """Train, from the last good checkpoint if there is one, and return the log."""
    checkpoint = last_complete_checkpoint(folder / CHECKPOINTS_FOLDER)
    remove_incomplete_checkpoints(folder / CHECKPOINTS_FOLDER)
    if checkpoint and _is_last_step(checkpoint):
        return _restore_finished(trainer, checkpoint)
    with track("Training", total=None) as advance, explain_disk_errors(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.add_callback(StepProgress(advance))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return list(trainer.state.log_history)


def _is_last_step(checkpoint: Path) -> bool:
    """Whether training ended at a checkpoint: the trainer would take one more step when it resumes from it."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    control = state["stateful_callbacks"]["TrainerControl"]["args"]
    return bool(state["global_step"] >= state["max_steps"] or control["should_training_stop"])


def _restore_finished(trainer: Any, checkpoint: Path) -> list[dict[str, Any]]:
    """Load the last checkpoint's weights and log, for a run that was killed after its last step."""
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import TrainerState

    weights = load_peft_weights(str(checkpoint), device=str(trainer.model.device))
    set_peft_model_state_dict(trainer.model, weights)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return list(trainer.state.log_history)


def _software_versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}
