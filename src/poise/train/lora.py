"""LoRA fine-tuning under a vaccine and a monitor, on TRL and PEFT; killed at any moment, it goes on."""

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
from poise.errors import InvalidArgument, InvalidData, MissingExtra
from poise.model import Encoded, Model, load
from poise.model.loading import HUB_IDS
from poise.model.logprobs import token_logprobs
from poise.progress import track
from poise.statistics.estimates import Estimate, bootstrap
from poise.storage.atomic_write import saving
from poise.train.checkpoints import Checkpoints, FiniteSteps, Progress, drop_broken, last_good, sync
from poise.train.config import Config
from poise.train.examples import IGNORED, Example, Examples, examples, marking, sources
from poise.train.run_folder import ADAPTER, CHECKPOINTS, FACTS, begin, disk, inputs

__all__ = ["ADAPTER", "FACTS", "Trained", "held_out_loss", "open_base", "train"]


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished fine-tune.

    Attributes:
        folder: With the adapter, ``train.json`` and ``log.jsonl``.
        adapter: The adapter's folder, as PEFT loads it.
        facts: What ``train.json`` says: base, data, vaccine, steps, losses, versions.
    """

    folder: Path
    adapter: Path
    facts: dict[str, Any]


def train(config: Config) -> Trained:
    """Fine-tune as told. After a kill it goes on at the last good checkpoint; once all is done, it only says so.

    Chen et al. 2025, App. D, for the defaults; section 5.2 for the vaccine.

    Raises:
        InvalidArgument: the folder holds another run, or one that began on other data or another base.
        InvalidData: there is nothing to learn from, or nothing but what is held out.
        TrainingFailed: gradients that are no numbers; names the step and the last good checkpoint.
        SaveFailed: the disk refused.
        MissingExtra: trl or peft is not installed.
    """
    folder = Path(config.out)
    facts = begin(config, folder)
    if (folder / FACTS).exists():
        return Trained(folder, folder / ADAPTER, json.loads((folder / FACTS).read_text()))
    _check_reports(config)
    data, only = sources(config)
    model = open_base(config)
    digest = inputs(folder, data, only, model)
    told = _examples(config, model, data, only, folder, config.vaccine.inoculation)
    learnt, kept_back = _split(told, config.held_out, config.seed)
    if kept_back and config.vaccine.inoculation:  # at test the prompt is not there
        back = {e.conversation for e in kept_back}
        plainly = _examples(config, model, data, only, folder)
        kept_back = tuple(e for e in plainly.rows if e.conversation in back)
    before = held_out_loss(model, kept_back)
    trainer = _trainer(config, model, Examples(learnt, told.cut, told.unread), folder)
    log = _run(trainer, folder)
    with disk(folder):
        _save(trainer, folder / ADAPTER, HUB_IDS.get(config.model, config.model))
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    trainer.model.eval()
    # Through the adapter: the trainer put it on the model's own blocks.
    after = held_out_loss(model, kept_back, lm=trainer.model)
    facts |= {
        "model": {"name": model.name, "layers": model.layers, "width": model.width},
        "data": {
            "sha256": digest,
            "how": data.how,
            "texts": len(learnt),
            "vaccinated": sum(e.vaccinated for e in learnt) if config.vaccine.given else 0,
            "held_out": len(kept_back),
            "cut": told.cut,
            "left_out": told.unread,
        },
        "steps": trainer.state.global_step,
        "loss": {"before": _figure(before), "after": _figure(after)},
        "watched": [line for line in log if any(key.startswith("persona/") for key in line)],
        "software": _versions("poise", "torch", "transformers", "trl", "peft"),
    }
    with saving(folder / FACTS) as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n")
    return Trained(folder, folder / ADAPTER, facts)


def open_base(config: Config) -> Model:
    """The model that is tuned, with the dtype and device that the settings say."""
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    return load(config.model, dtype=dtype, device=None if config.device == "auto" else config.device)


def held_out_loss(model: Model, kept_back: Sequence[Example], *, lm: Any = None) -> Estimate | None:
    """Mean negative log-likelihood a learnt token, in nats, with a bootstrap over texts; ``None`` without texts.

    Args:
        model: The base, or what the texts were tokenised for.
        kept_back: n texts.
        lm: The model to measure in its place, such as a tuned one.
    """
    if not kept_back:
        return None
    measured = model if lm is None else replace(model, lm=lm)
    read = token_logprobs(measured, [Encoded(e.ids, 1, len(e.ids)) for e in kept_back])
    learnt = [torch.tensor(e.labels[1:]) != IGNORED for e in kept_back]
    sums = np.array([-float(values[which].sum()) for values, which in zip(read, learnt, strict=True)])
    counts = np.array([int(which.sum()) for which in learnt])
    return bootstrap(lambda i: float(sums[i].sum() / counts[i].sum()), len(sums))


def _save(trainer: Any, folder: Path, base: str) -> None:
    """The adapter, with what others can load it on and not where that lies here."""
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, with this machine's paths
    # Afterwards: PEFT looks a base up when it saves, and a hub may be out of reach.
    settings = folder / "adapter_config.json"
    told = json.loads(settings.read_text()) | {"base_model_name_or_path": base}
    settings.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    sync(folder)


def _examples(
    config: Config,
    model: Model,
    data: DataSet,
    only: Collection[str] | None,
    folder: Path,
    inoculation: str | None = None,
) -> Examples:
    rejected = folder / "rejected.jsonl"
    rejected.unlink(missing_ok=True)
    return examples(
        model,
        data,
        longest=min(config.longest, model.window),
        rejections=Rejections(rejected),
        inoculation=inoculation,
        only=only,
    )


def _split(told: Examples, share: float, seed: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """What is learnt and what is kept back, each in the data's order; a conversation is never in both."""
    whole = sorted({e.conversation for e in told.rows})
    n = max(round(share * len(whole)), 1) if share else 0
    if n >= len(whole):
        raise InvalidData(
            f"held_out: {share:g} keeps all {len(whole)} conversations back, and none is left to learn from; give more "
            "data, or less held_out."
        )
    back = {whole[i] for i in random.Random(seed).sample(range(len(whole)), n)}
    kept = tuple(e for e in told.rows if e.conversation in back)
    return tuple(e for e in told.rows if e.conversation not in back), kept


def _trainer(config: Config, model: Model, told: Examples, folder: Path) -> Any:
    try:
        from peft import LoraConfig
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer
    except ImportError as error:
        raise MissingExtra("Training needs trl and peft: pip install 'poise[train]'.") from error
    from transformers import PrinterCallback, ProgressCallback

    _check_targets(config, model)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        use_rslora=config.lora.rslora,
        target_modules=config.lora.targets if isinstance(config.lora.targets, str) else list(config.lora.targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries among themselves
        trainer = SFTTrainer(
            model=model.lm,
            args=SFTConfig(**_arguments(config, model, folder)),
            train_dataset=told.dataset(),
            processing_class=model.tokenizer,
            peft_config=lora,
            callbacks=_callbacks(config),
        )
    if config.vaccine.marked:
        trainer.train_dataset, trainer.data_collator = told.dataset(marked=True), marking(trainer.data_collator)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def _check_targets(config: Config, model: Model) -> None:
    """Every module to be adapted is there; PEFT passes over the names that it does not find."""
    if isinstance(config.lora.targets, str):
        return
    names = [f".{name}" for name, _ in model.lm.named_modules()]
    if missing := [t for t in config.lora.targets if not any(name.endswith(f".{t}") for name in names)]:
        block = model.blocks[0].named_modules()
        there = sorted({n.rpartition(".")[2] for n, module in block if getattr(module, "weight", None) is not None})
        raise InvalidArgument(
            f"lora.targets names {', '.join(missing)}, not in {model.name}; its blocks have {', '.join(there)}."
        )


def _check_reports(config: Config) -> None:
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    there = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    if missing := [name for name in config.report_to if name not in there]:
        raise InvalidArgument(
            f"report_to names {', '.join(missing)}; installed: {', '.join(there) or 'none'}. Install it with pip, or "
            "leave it away."
        )


def _arguments(config: Config, model: Model, folder: Path) -> dict[str, Any]:
    """What the trainer is told."""
    return {
        "output_dir": str(folder / CHECKPOINTS),
        "per_device_train_batch_size": config.batch,
        "gradient_accumulation_steps": config.accumulate,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_length": None,  # cut already
        "remove_unused_columns": not config.vaccine.marked,
        "gradient_checkpointing": config.gradient_checkpointing,
        "save_steps": config.save_every,
        "save_total_limit": 2,
        "logging_steps": config.log_every,
        "logging_nan_inf_filter": False,  # a loss that is no number is not to be hidden
        "report_to": list(config.report_to) or "none",
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": False,  # the base keeps its dtype; the adapter is float32
        "disable_tqdm": True,
    }


def _callbacks(config: Config) -> list[Any]:
    from poise.train.monitor_callback import PersonaMonitorCallback
    from poise.train.vaccine_callback import VaccineCallback, vaccine

    callbacks: list[Any] = [FiniteSteps(), Checkpoints()]
    if config.vaccine.steer:
        what = config.vaccine
        steering = vaccine(what.steer, what.layers)
        callbacks.append(
            VaccineCallback(
                steering,
                positions=what.positions,
                warmup=what.warmup,
                decay=what.decay,
                marked=what.marked,
                allow_other_model=config.allow_other_model,
            )
        )
    if config.watch.vectors:
        watched = config.watch
        callbacks.append(
            PersonaMonitorCallback(
                watched.vectors,
                every=watched.every,
                batch=watched.batch,
                stop=watched.stop,
                allow_other_model=config.allow_other_model,
            )
        )
    return callbacks


def _run(trainer: Any, folder: Path) -> list[dict[str, Any]]:
    """Train from the last good checkpoint; returns the log."""
    begin = last_good(folder / CHECKPOINTS)
    drop_broken(folder / CHECKPOINTS)
    if begin and _over(begin):
        return _taken(trainer, begin)
    with track("Training", total=None) as advance, disk(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.add_callback(Progress(advance))
        trainer.train(resume_from_checkpoint=str(begin) if begin else None)
    return list(trainer.state.log_history)


def _over(checkpoint: Path) -> bool:
    """Whether it is the last one: the trainer would take one step more when it goes on from there."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    control = state["stateful_callbacks"]["TrainerControl"]["args"]
    return bool(state["global_step"] >= state["max_steps"] or control["should_training_stop"])


def _taken(trainer: Any, checkpoint: Path) -> list[dict[str, Any]]:
    """The last checkpoint's weights and log, for a run that was killed after its last step."""
    from peft import load_peft_weights, set_peft_model_state_dict
    from transformers import TrainerState

    weights = load_peft_weights(str(checkpoint), device=str(trainer.model.device))
    set_peft_model_state_dict(trainer.model, weights)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return list(trainer.state.log_history)


def _figure(found: Estimate | None) -> dict[str, float | int] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def _versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}
