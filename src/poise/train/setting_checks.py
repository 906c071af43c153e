"""What can be wrong with settings that fit their schema, found before a model is loaded, and what is odd about them."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path

from poise.errors import InvalidSettings, MissingExtra, UserError, first_line
from poise.model.adapter_folder import ADAPTER_FILE
from poise.progress import remark
from poise.settings import SettingFault
from poise.settings.other_names import Place
from poise.steer import SteeringExpression
from poise.train.config import BITSANDBYTES_OPTIMIZERS, TrainConfig

__all__ = [
    "check_config",
    "named_vectors",
    "remark_on_steps",
    "remark_on_values",
    "require_training_extra",
    "setting_faults",
]

LARGE_COEFFICIENT, LARGE_DOSE, LARGE_RATE, LARGE_DROPOUT = 20.0, 3.0, 0.01, 0.9
FEW_STEPS = 10
REPORT_KEYS = {"wandb": ("WANDB_API_KEY", "wandb login"), "comet_ml": ("COMET_API_KEY", "comet login")}
OFFLINE_MODES = ("offline", "disabled", "dryrun")


def check_config(config: TrainConfig) -> None:
    """Refuse settings that cannot work here.

    Raises:
        InvalidSettings: names every one of them.
    """
    if faults := [f"{'.'.join(map(str, place))} {text}" for place, text in setting_faults(config)]:
        raise InvalidSettings(f"TrainConfig: {'; '.join(faults)}; fix it and try again.")


def setting_faults(config: TrainConfig) -> Iterator[SettingFault]:
    """What is wrong with settings on this machine: files, devices, packages and keys that are not there."""
    yield from _device_faults(config)
    yield from _vector_faults(config)
    yield from _adapter_faults(config)
    yield from _package_faults(config)
    yield from _report_faults(config)


def _device_faults(config: TrainConfig) -> Iterator[SettingFault]:
    import torch

    from poise.model.wrapping import best_device

    device, use = best_device(), "use auto, cpu, cuda, cuda:1 or mps"
    if config.device != "auto":
        try:
            device = torch.device(config.device)
        except RuntimeError:
            yield ("device",), f"is {config.device!r}, which is no device; {use}"
            return
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            yield ("device",), f"is {config.device!r}; there is none here ({first_line(error).rstrip('.')}); {use}"
            return
    if config.fp16 and device.type == "cpu":
        yield ("fp16",), "is true; mixed precision in float16 needs a GPU; use bf16: true, or neither"


def named_vectors(config: TrainConfig) -> list[tuple[Place, str]]:
    """The vector files that steer or watch, with the places where they are named."""
    named: list[tuple[Place, str]] = []
    for number, text in enumerate(config.vaccine.steer):
        named += [(("vaccine", "steer", number), name) for name in SteeringExpression.parse(text).names]
    return named + [(("watch", "vectors", number), name) for number, name in enumerate(config.watch.vectors)]


def _vector_faults(config: TrainConfig) -> Iterator[SettingFault]:
    faults: list[SettingFault] = []
    named: list[tuple[Place, str]] = []
    for number, text in enumerate(config.vaccine.steer):
        place: Place = ("vaccine", "steer", number)
        try:
            expression = SteeringExpression.parse(text)
        except UserError as error:
            faults.append((place, f"is {text!r}; {str(error).rstrip('.')}"))
            continue
        doses = [term.vector for term in expression.terms if term.dose is not None and term.layers is None]
        if config.vaccine.layers == "increments" and doses:
            faults.append((place, f"is {text!r}, a dose; layers: increments take a coefficient, as in {doses[0]}=1"))
        named += [(place, name) for name in expression.names]
    named += [(("watch", "vectors", number), name) for number, name in enumerate(config.watch.vectors)]
    named += [(("measure", "vectors", number), name) for number, name in enumerate(config.measure.vectors or ())]
    for place, name in named:
        if not Path(name).is_file():
            faults.append((place, f"names {name}; there is no such vector file; make one with `poise extract`"))
    yield from faults or _callback_faults(config)


def _callback_faults(config: TrainConfig) -> Iterator[SettingFault]:
    """What the vaccine and the monitor find in their vectors."""
    from poise.train.monitor_callback import PersonaMonitorCallback
    from poise.train.vaccine_callback import vaccine_steering

    try:
        if config.vaccine.steer:
            vaccine_steering(config.vaccine.steer, config.vaccine.layers)
    except UserError as error:
        yield ("vaccine", "steer"), f"cannot be used: {str(error).rstrip('.')}"
    try:
        if config.watch.vectors:
            PersonaMonitorCallback(config.watch.vectors, stop=config.watch.stop)
    except UserError as error:
        field = "stop" if "cannot stop" in str(error) else "vectors"
        yield ("watch", field), f"cannot be used: {str(error).rstrip('.')}"


def _adapter_faults(config: TrainConfig) -> Iterator[SettingFault]:
    if (Path(config.model) / ADAPTER_FILE).is_file() and not (Path(config.model) / "config.json").is_file():
        yield (
            ("model",),
            f"is {config.model!r}, an adapter; name its base, and the adapter as lora.start to go on from it, or merge "
            "them first (poise merge)",
        )
    if config.lora.start is not None and not (Path(config.lora.start) / ADAPTER_FILE).is_file():
        yield ("lora", "start"), f"is {config.lora.start!r}; there is no {ADAPTER_FILE} in it; name an adapter's folder"


def _package_faults(config: TrainConfig) -> Iterator[SettingFault]:
    if importlib.util.find_spec("bitsandbytes") is None:
        remedy = "needs bitsandbytes, which is not installed; pip install bitsandbytes, or leave it out"
        if config.load_in_4bit:
            yield ("load_in_4bit",), f"is true; it {remedy}"
        if config.adapter == "qlora":
            yield ("adapter",), f"is 'qlora'; it {remedy}"
        if config.optim in BITSANDBYTES_OPTIMIZERS:
            yield ("optim",), f"is {config.optim!r}; it {remedy}"


def _report_faults(config: TrainConfig) -> Iterator[SettingFault]:
    if not config.report_to:
        return
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    installed = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for number, name in enumerate(config.report_to):
        place = ("report_to", number)
        if name not in installed:
            yield (
                place,
                f"is {name!r}; installed here: {', '.join(installed) or 'none'}; install it with pip, or leave it out",
            )
        elif name in REPORT_KEYS and not _has_key(name):
            variable, command = REPORT_KEYS[name]
            yield place, f"is {name!r} and there is no key for it; set {variable}, run `{command}`, or leave it out"


def _has_key(name: str) -> bool:
    """Whether a service that logs are sent to would let us in, or is not asked."""
    if os.environ.get(f"{name.upper()}_MODE") in OFFLINE_MODES or os.environ.get(REPORT_KEYS[name][0]):
        return True
    if name != "wandb":
        return False
    files = [Path(os.environ.get("NETRC", "~/.netrc")).expanduser(), Path("~/_netrc").expanduser()]
    return any("wandb" in file.read_text(errors="replace") for file in files if file.is_file())


def remark_on_values(config: TrainConfig) -> None:
    """Say which settings are far from what anybody uses."""
    for text in config.vaccine.steer:
        for term in SteeringExpression.parse(text).terms:
            if 0.0 in (term.coef, term.dose):
                remark(f"vaccine.steer: {text} adds nothing of {term.vector}; give a strength, or leave it out.")
            if term.coef is not None and abs(term.coef) > LARGE_COEFFICIENT:
                remark(
                    f"vaccine.steer: {text} adds {term.coef:g} mean differences; beyond {LARGE_COEFFICIENT:g} little "
                    "but the vector is left of the model's activations. 0.5 to 5 is usual."
                )
            if term.dose is not None and abs(term.dose) > LARGE_DOSE:
                remark(
                    f"vaccine.steer: {text} adds {term.dose:.0%} of the activations' own length; beyond "
                    f"{LARGE_DOSE:.0%} little of them is left. 10 % to 100 % is usual."
                )
    for name, idle in _idle_settings(config):
        remark(f"{name} does nothing without {idle}; name some there, or leave it out.")
    if config.learning_rate > LARGE_RATE and config.optim != "sgd":
        remark(
            f"learning_rate: {config.learning_rate:g} is more than {LARGE_RATE:g}, which destroys most models; 1e-5 to "
            "5e-4 is usual."
        )
    if config.lora.dropout >= LARGE_DROPOUT:
        remark(
            f"lora.dropout: {config.lora.dropout:g} drops {config.lora.dropout:.0%} of the adapter's input, so that it "
            "learns little or nothing; 0 to 0.1 is usual."
        )
    if config.adapter == "none" and config.dtype == "bfloat16":
        remark(
            "dtype: bfloat16 with adapter: none rounds away updates below 0.4 % of a weight; use dtype: float32, with "
            "bf16: true for speed."
        )


def _idle_settings(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Settings that say how something is done that is not done, and what that would need."""
    vaccine, measure = config.vaccine, config.measure
    for name in ("layers", "positions", "warmup", "decay"):
        if not vaccine.steer and getattr(vaccine, name) != type(vaccine).model_fields[name].default:
            yield f"vaccine.{name}", "vaccine.steer"
    if config.watch.batch and not config.watch.vectors:
        yield "watch.batch", "watch.vectors"
    if measure.capability_limit is not None and not measure.capability:
        yield "measure.capability_limit", "measure.capability"


def remark_on_steps(config: TrainConfig, texts: int) -> None:
    """Say where there are too few optimiser steps to learn from ``texts`` texts."""
    steps = math.ceil(max(math.ceil(math.ceil(texts / config.batch) / config.accumulate), 1) * config.epochs)
    warming = steps <= config.warmup_steps
    if config.max_steps is not None or config.packing or (steps >= FEW_STEPS and not warming):
        return
    rising = f", and the learning rate rises over {config.warmup_steps} (warmup_steps)" if warming else ""
    remark(
        f"{texts:,} texts in batches of {config.batch} × {config.accumulate} make {steps} optimiser steps{rising}. "
        "Little is learnt in so few: raise epochs, or lower accumulate."
    )


def require_training_extra() -> None:
    """Refuse to train without the packages for it, before anything is loaded.

    Raises:
        MissingExtra: trl or peft is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("trl", "peft")):
        raise MissingExtra.of("Training needs trl and peft", "train")
