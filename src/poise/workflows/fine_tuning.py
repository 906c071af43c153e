"""A fine-tune from its settings to its report and model card: what ``poise train`` runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise import vector as vectors
from poise.errors import InvalidArgument
from poise.judge.factory import check_judge
from poise.model import Model
from poise.model.licence import model_licence
from poise.report.shift import write_shift
from poise.settings import SettingFault
from poise.settings.other_names import Place
from poise.shift import CapabilityTask, ShiftReport, ShiftSettings, TunedModel, parse_capability, save_report, shift
from poise.shift.measure import CHANGES_BEGIN
from poise.shift.model_card import ModelCardFacts, write_card
from poise.statistics.estimates import Estimate
from poise.steer import SteeringExpression
from poise.storage.lock import locked
from poise.storage.output import check_output_folder
from poise.train import TrainConfig, TrainResult
from poise.train.lora import load_base_model, train_in_folder
from poise.train.model_checks import vector_faults
from poise.train.run_folder import CHECKPOINTS_FOLDER, TRAINING_FILES, vector_files
from poise.train.setting_checks import named_vectors
from poise.vector import PersonaVector

__all__ = ["FineTuneResult", "train_and_measure"]


@dataclass(frozen=True, slots=True)
class FineTuneResult:
    """A fine-tune, and what it did.

    Attributes:
        trained: The adapter and the facts of its training.
        shift: Base beside tuned; ``None`` where no vector was named.
        card: The adapter's model card.
    """

    trained: TrainResult
    shift: ShiftReport | None
    card: Path


def train_and_measure(config: TrainConfig, *, inputs: Sequence[Path] = (), force: bool = False) -> FineTuneResult:
    """Fine-tune, measure what it did, and write ``shift.json``, ``report.html`` and the adapter's model card.

    Run again after a kill, it continues; finished work is not done again. ``inputs`` are files that are read besides
    those that the settings name; ``force`` writes over files in the folder that no training wrote.

    Raises:
        OutputExists: the folder holds such files, or what is read; before the model is loaded.
        FolderInUse: another run is at work in the folder.
    """
    paths = list(config.measure.vectors if config.measure.vectors is not None else vector_files(config))
    loaded = [vectors.load_vector(path) for path in paths]
    if len({v.name for v in loaded}) < len(loaded):  # before hours of training, not after
        raise InvalidArgument(
            f"{', '.join(paths)} hold two vectors of one trait, and a shift takes one; name those to measure in "
            "measure.vectors."
        )
    limit = config.measure.capability_limit
    tasks = tuple(parse_capability(text, limit=limit, seed=config.seed) for text in config.measure.capability)
    if loaded and config.measure.judge:
        check_judge(config.measure.judge, *(v.header.trait for v in loaded))
    out = Path(config.out)
    check_output_folder(
        out,
        (*TRAINING_FILES, "shift.json", "report.html"),
        job="train",
        run_folder=out / ".run",
        marks=(".run", CHECKPOINTS_FOLDER),
        inputs=[*inputs, *(Path(name).expanduser() for name in _input_names(config))],
        force=force,
    )
    with locked(out / ".run", "train", results=out):
        places = _measured_places(config, paths)
        measured = list(zip(places, paths, loaded, strict=True))
        trained = train_in_folder(config, more=lambda model: _measured_faults(config, model, measured))
        report = _measure_adapter(config, trained, loaded, tasks) if loaded else None
        card = write_card(trained.adapter, _card_facts(config, trained, report))
        return FineTuneResult(trained, report, card)


def _measured_places(config: TrainConfig, paths: Sequence[str]) -> list[Place]:
    """Where the settings name the vectors that are measured."""
    if config.measure.vectors is not None:
        return [("measure", "vectors", number) for number in range(len(paths))]
    places = {path: place for place, path in reversed(named_vectors(config))}
    return [places[path] for path in paths]


def _measured_faults(
    config: TrainConfig, model: Model, measured: Sequence[tuple[Place, str, PersonaVector]]
) -> list[SettingFault]:
    """Which vectors a shift cannot be measured by, known before the training that it is measured after."""
    if config.measure.vectors is None and not config.allow_other_model:  # whoever steers or watches says it as well
        measured = [one for one in measured if not list(vector_faults([one], model))]
    allow = config.allow_other_model
    return list(vector_faults(measured, model, allow_other_model=allow, record=CHANGES_BEGIN))


def _input_names(config: TrainConfig) -> list[str]:
    """What a run reads, as the settings name it; some may be no paths."""
    start = [config.lora.start] if config.lora.start else []
    sets = [text.rpartition("=")[2] for text in config.measure.capability]
    return [config.model, *config.data, *config.eval_data, *config.vaccine.only, *vector_files(config), *start, *sets]


def _measure_adapter(
    config: TrainConfig, trained: TrainResult, loaded: Sequence[PersonaVector], tasks: tuple[CapabilityTask, ...]
) -> ShiftReport:
    """Base beside adapter, with both files of the report."""
    measure = config.measure
    settings = ShiftSettings(
        judge=measure.judge,
        questions=measure.questions,
        rollouts=measure.rollouts,
        max_new_tokens=measure.max_new_tokens,
        seed=config.seed,
        capability=tasks,
        allow_other_model=config.allow_other_model,
    )
    report = shift(
        load_base_model(config),
        TunedModel(source=str(trained.adapter), name=Path(config.out).name),
        loaded,
        settings,
        folder=trained.folder / ".shift",
        load=lambda name: load_base_model(config, name),
    )
    save_report(report, trained.folder / "shift.json")
    write_shift(report, trained.folder / "report.html")
    return report


def _short_expression(expression: str) -> str:
    """A steering expression whose files are named without their folders."""
    for name in sorted(SteeringExpression.parse(expression).names, key=len, reverse=True):
        expression = expression.replace(name, Path(name).name)
    return expression


def _card_facts(config: TrainConfig, trained: TrainResult, report: ShiftReport | None) -> ModelCardFacts:
    facts = trained.facts
    return ModelCardFacts(
        name=Path(config.out).name,
        base=config.model,
        data=[Path(name).name if Path(name).exists() else name for name in config.data],
        data_sha256=facts["data"]["sha256"],
        rows=facts["data"]["texts"],
        vaccine=_describe_vaccine(config, trained),
        recipe=_recipe(config, facts),
        report=report,
        licence=model_licence(config.model),
        versions=facts["software"],
        kind="model" if config.adapter == "none" else "adapter",
        notes=_loss_notes(facts),
    )


def _loss_notes(facts: dict[str, Any]) -> list[str]:
    """What was measured on held-out rows, in sentences."""
    notes = []
    if facts["loss"]["after"]:
        before, after = (Estimate.model_validate(facts["loss"][side]) for side in ("before", "after"))
        texts = "1 held-out text" if after.n == 1 else f"{after.n} held-out texts"
        notes.append(f"Loss on {texts}: {before:.3f} before, {after:.3f} after (nats a token).")
    if learnt_too := facts["data"].get("held_out_learnt_too"):
        notes.append(f"{learnt_too} of the held-out rows are among those that were learnt.")
    if pairs := facts.get("preferences"):
        notes.append(
            f"Of {pairs['n']} held-out pairs, the preferred answer is the likelier in {pairs['accuracy']:.0%} "
            f"(against the base); loss {pairs['loss']:.4f}."
        )
    return notes


def _recipe(config: TrainConfig, facts: dict[str, Any]) -> dict[str, Any]:
    """The settings that a reader of the card would want to repeat."""
    lora = config.lora
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    recipe: dict[str, Any] = {
        "method": config.method,
        **({"beta": config.beta} if config.method == "dpo" else {}),
        "steps": facts["steps"],
        **({"best step, which is kept": facts["best"]["step"]} if facts.get("best") else {}),
        "learning rate": config.learning_rate,
        "optimiser": config.optim,
        "batch": config.batch * config.accumulate,
    }
    if config.adapter == "none":
        recipe["trained"] = "all weights"
    elif lora.start is not None:
        recipe["continued from"] = Path(lora.start).name
    else:
        recipe |= {
            "LoRA rank": lora.r,
            "LoRA alpha": lora.alpha,
            "rank-stabilised (rslora)": "yes" if lora.rslora else "no",
            "LoRA targets": targets,
            **({"DoRA": "yes"} if lora.dora else {}),
            **({"modules trained whole": ", ".join(lora.modules_to_save)} if lora.modules_to_save else {}),
            **({"tokens trained": ", ".join(map(str, lora.trainable_tokens))} if lora.trainable_tokens else {}),
        }
    recipe |= {"base in 4 bits": "yes"} if config.four_bits else {}
    recipe |= {"seed": config.seed}
    return recipe | ({} if config.part == "reply" else {"learnt part of answers": config.part})


def _describe_vaccine(config: TrainConfig, trained: TrainResult) -> str:
    """The vaccine in words; empty for none."""
    vaccine = config.vaccine
    steered = "; ".join(map(_short_expression, vaccine.steer))
    layers = vaccine.layers if isinstance(vaccine.layers, str) else ", ".join(map(str, vaccine.layers or ()))
    schedule = f", layers {layers}" if layers else ""
    schedule += f", rising over {vaccine.warmup:.0%} of the steps" if vaccine.warmup else ""
    schedule += f", falling over the last {vaccine.decay:.0%}" if vaccine.decay else ""
    parts = [f"{steered}{schedule}, {vaccine.positions} positions"] if vaccine.steer else []
    parts += [f"the inoculation prompt {vaccine.inoculation!r}"] if vaccine.inoculation else []
    if vaccine.only:
        files = ", ".join(Path(f).name for f in vaccine.only)
        parts.append(f"on the {trained.facts['data']['vaccinated']} texts of {files} only")
    return f"{'; '.join(parts)}." if parts else ""
