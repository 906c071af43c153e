"""Fine-tuning under a vaccine and a monitor, on TRL and PEFT; killed at any moment, it can be resumed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poise.errors import InvalidArgument
from poise.model import Encoded, Model, load_model
from poise.model.loading import HUB_IDS
from poise.model.logprobs import token_logprobs
from poise.model.packed_weights import unpacked_weights
from poise.progress import track
from poise.settings import check_settings
from poise.statistics.estimates import Estimate, ratio_estimate
from poise.storage.atomic_write import saving
from poise.storage.lock import locked
from poise.train.checkpoints import (
    StepProgress,
    last_complete_checkpoint,
    remove_incomplete_checkpoints,
    sync_folder,
)
from poise.train.config import TrainConfig
from poise.train.examples import IGNORED, TrainingExample, TrainingExamples
from poise.train.inputs import RunRows, open_run_data, read_run_rows
from poise.train.model_checks import ModelFaults, check_with_model
from poise.train.pairs import TrainingPairs
from poise.train.run_folder import (
    ADAPTER_FOLDER,
    CHECKPOINTS_FOLDER,
    FACTS_FILE,
    MODEL_FOLDER,
    begin_run,
    check_inputs,
    explain_disk_errors,
)
from poise.train.setting_checks import check_config, remark_on_steps, remark_on_values, require_training_extra
from poise.train.trainers import build_trainer, starting_model

__all__ = ["TrainResult", "held_out_loss", "load_base_model", "train", "train_in_folder"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished fine-tune.

    Attributes:
        folder: The run's folder, which holds the adapter, ``train.json`` and ``log.jsonl``.
        adapter: The adapter's folder, as PEFT loads it; the model's where all weights were trained.
        facts: The content of ``train.json``: base, data, vaccine, steps, losses, versions.
    """

    folder: Path
    adapter: Path
    facts: dict[str, Any]


def train(config: TrainConfig | None = None, **settings: Any) -> TrainResult:
    """Fine-tune an adapter or all weights, under a vaccine and watched if so configured.

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


def train_in_folder(config: TrainConfig, *, more: ModelFaults | None = None) -> TrainResult:
    """Train as ``train`` does, for a caller that holds the lock of ``config.out`` already.

    ``more`` finds what else is wrong with the vectors, once the base is loaded and before anything is read.
    """
    folder = Path(config.out)
    results = folder / (MODEL_FOLDER if config.adapter == "none" else ADAPTER_FOLDER)
    finished = (folder / FACTS_FILE).exists()
    if not finished:
        require_training_extra()
        check_config(config)
        remark_on_values(config)
    facts = begin_run(config, folder)
    if finished:
        return TrainResult(folder, results, json.loads((folder / FACTS_FILE).read_text()))
    data = open_run_data(config)
    model = load_base_model(config)
    check_with_model(config, model, more)
    digest = check_inputs(folder, data.digests, model)
    rows = read_run_rows(config, model, data, folder)
    remark_on_steps(config, len(rows.training.rows))
    lm = starting_model(config, model)
    held_out = _measured_examples(rows)
    with unpacked_weights(lm):
        before = held_out_loss(model, held_out, lm=lm)
        trainer = build_trainer(config, model, lm, rows, folder)
        log = _run_training(trainer, folder)
    with explain_disk_errors(folder):
        _save_results(config, trainer, model, results)
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    trainer.model.eval()
    facts |= {
        "model": {"name": model.name, "layers": model.layers, "width": model.width},
        "data": _data_facts(config, rows, digest, data.source.how),
        "steps": trainer.state.global_step,
        # Through the adapter: the trainer put it on the model's own blocks.
        "loss": _loss_facts(before, held_out_loss(model, held_out, lm=trainer.model)),
        **_evaluation_facts(config, trainer, rows, log),
        "watched": [line for line in log if any(key.startswith("persona/") for key in line)],
        "software": _software_versions("poise", "torch", "transformers", "trl", "peft"),
    }
    with saving(folder / FACTS_FILE) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
    return TrainResult(folder, results, facts)


def load_base_model(config: TrainConfig, name: str | None = None) -> Model:
    """The model that is fine-tuned, or another one, with the dtype, device and precision of the settings."""
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    device = None if config.device == "auto" else config.device
    return load_model(name or config.model, dtype=dtype, device=device, four_bits=config.four_bits)


def _measured_examples(rows: RunRows) -> Sequence[TrainingExample]:
    """Held-out answers; of pairs the trainer itself measures the loss."""
    return rows.held_out.rows if isinstance(rows.held_out, TrainingExamples) else ()


def _loss_facts(before: Estimate | None, after: Estimate | None) -> dict[str, Any]:
    return {"before": before and before.model_dump(), "after": after and after.model_dump()}


def _data_facts(config: TrainConfig, rows: RunRows, digest: str, how: str) -> dict[str, Any]:
    training = rows.training
    marks = [getattr(row, "vaccinated", True) for row in training.rows]
    return {
        "sha256": digest,
        "how": how,
        "texts": len(training.rows),
        "vaccinated": sum(marks) if config.vaccine.active else 0,
        "held_out": len(rows.held_out.rows) if rows.held_out else 0,
        **({"held_out_learnt_too": rows.learnt_too} if rows.learnt_too else {}),
        "cut": training.cut,
        "left_out": training.unread,
        "omitted": training.omitted,
        **rows.rejected,
    }


def _evaluation_facts(config: TrainConfig, trainer: Any, rows: RunRows, log: list[dict[str, Any]]) -> dict[str, Any]:
    """What was evaluated on the way, which step was best, and of pairs how many are told apart at the end."""
    facts: dict[str, Any] = {}
    if config.eval_steps:
        facts["evaluated"] = [{"step": x["step"], "loss": x["eval_loss"]} for x in log if "eval_loss" in x]
    if config.load_best_model_at_end and trainer.state.best_global_step:  # a loss that is NaN is never the best
        facts["best"] = {"step": trainer.state.best_global_step, "loss": trainer.state.best_metric}
    if isinstance(rows.held_out, TrainingPairs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' warnings about one another
            trainer.evaluate()
        metrics = trainer.state.log_history[-1]  # what it returns lacks the accuracy before TRL 1
        names = {"loss": "eval_loss", "accuracy": "eval_rewards/accuracies", "margin": "eval_rewards/margins"}
        facts["preferences"] = {"n": len(rows.held_out.rows)} | {key: metrics[name] for key, name in names.items()}
    return facts


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


def _save_results(config: TrainConfig, trainer: Any, model: Model, folder: Path) -> None:
    """Save the adapter, with a name of its base that others can load and no path of this machine; or all weights."""
    if config.adapter == "none":
        trainer.save_model(str(folder))
        model.tokenizer.save_pretrained(str(folder))
    else:
        # An adapter that training compares with, as DPO has where it goes on from one, is not a result.
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(str(folder), selected_adapters=["default"])
        model.tokenizer.save_pretrained(str(folder))
        # Afterwards, because PEFT looks up the base when it saves, and a hub may be out of reach.
        path = folder / "adapter_config.json"
        base = {"base_model_name_or_path": HUB_IDS.get(config.model, config.model)}
        path.write_text(json.dumps(json.loads(path.read_text()) | base, indent=2, sort_keys=True) + "\n")
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, with this machine's paths
    sync_folder(folder)


def _run_training(trainer: Any, folder: Path) -> list[dict[str, Any]]:
    """Train, from the last good checkpoint if there is one, and return the log.

    Raises:
        KeyboardInterrupt: names what is there of the run.
    """
    checkpoint = last_complete_checkpoint(folder / CHECKPOINTS_FOLDER)
    remove_incomplete_checkpoints(folder / CHECKPOINTS_FOLDER)
    if checkpoint and _is_last_step(checkpoint):
        return _restore_finished(trainer, checkpoint)
    with track("Training", total=None) as advance, explain_disk_errors(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.add_callback(StepProgress(advance))
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt as error:
            saved = last_complete_checkpoint(folder / CHECKPOINTS_FOLDER)
            there = f"{folder} keeps {saved.name}" if saved else f"{folder} has no checkpoint yet"
            raise KeyboardInterrupt(f"{there}; {trainer.state.global_step} steps were taken.") from error
    return list(trainer.state.log_history)


def _is_last_step(checkpoint: Path) -> bool:
    """Whether training ended at a checkpoint: the trainer would take one more step when it resumes from it."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    control = state["stateful_callbacks"]["TrainerControl"]["args"]
    return bool(state["global_step"] >= state["max_steps"] or control["should_training_stop"])


def _restore_finished(trainer: Any, checkpoint: Path) -> list[dict[str, Any]]:
    """Load the last checkpoint's weights and log, or the best one's, for a run that was killed after its last step."""
    from transformers import TrainerState

    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if trainer.args.load_best_model_at_end and trainer.state.best_global_step:
        checkpoint = checkpoint.parent / f"checkpoint-{trainer.state.best_global_step}"
    if hasattr(trainer.model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        weights = load_peft_weights(str(checkpoint), device=str(trainer.model.device))
        set_peft_model_state_dict(trainer.model, weights)
    else:
        trainer._load_from_checkpoint(str(checkpoint))
    return list(trainer.state.log_history)


def _software_versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}
