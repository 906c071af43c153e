"""A fine-tune from its settings to its model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from poise import vector as vectors
from poise.errors import InvalidArgument
from poise.report.shift import write_shift
from poise.shift import model_card as card
from poise.shift import report as measured
from poise.shift.capability import Ability, parse
from poise.shift.measure import Plan, Tuned, measure
from poise.shift.report import ShiftReport
from poise.steer import Spec
from poise.storage.lock import alone
from poise.train.config import TrainConfig
from poise.train.lora import TrainResult, load_base_model, train_in_folder
from poise.train.run_folder import vector_files
from poise.vector import PersonaVector

__all__ = ["Finetuned", "finetune"]


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A fine-tune, and what it did.

    Attributes:
        trained: The adapter and the facts of its training.
        shift: Base beside tuned; ``None`` where no vector was named.
        card: The adapter's model card.
    """

    trained: TrainResult
    shift: ShiftReport | None
    card: Path


def finetune(config: TrainConfig) -> Finetuned:
    """Fine-tune as told, measure what it did, and write ``shift.json``, ``report.html`` and the adapter's model card.

    Run again after a kill, it continues; what is done is not done again.
    """
    named = list(config.measure.vectors if config.measure.vectors is not None else vector_files(config))
    loaded = [vectors.load(path) for path in named]
    if len({v.name for v in loaded}) < len(loaded):  # before hours of training, not after
        raise InvalidArgument(
            f"{', '.join(named)} hold two vectors of one trait, and a shift takes one; name those to measure in "
            "measure.vectors."
        )
    wanted = config.measure
    abilities = tuple(parse(text, limit=wanted.capability_limit, seed=config.seed) for text in wanted.capability)
    with alone(Path(config.out)):
        return _finetune(config, loaded, abilities)


def _finetune(config: TrainConfig, loaded: Sequence[PersonaVector], abilities: tuple[Ability, ...]) -> Finetuned:
    trained, wanted = train_in_folder(config), config.measure
    done: ShiftReport | None = None
    if loaded:
        plan = Plan(
            wanted.judge,
            wanted.questions,
            wanted.rollouts,
            wanted.max_new_tokens,
            seed=config.seed,
            abilities=abilities,
            allow_other_model=config.allow_other_model,
        )
        one = Tuned(str(trained.adapter), Path(config.out).name)
        kept = trained.folder / ".shift"
        done = measure(
            load_base_model(config), [one], loaded, plan, folder=kept, load=lambda _: load_base_model(config)
        )
        measured.save(done, trained.folder / "shift.json")
        write_shift(done, trained.folder / "report.html")
    return Finetuned(trained, done, card.write(trained.adapter, _card_facts(config, trained, done)))


def _short(expression: str) -> str:
    """A steering expression whose files are named without their folders."""
    for name in sorted(Spec.parse(expression).names, key=len, reverse=True):
        expression = expression.replace(name, Path(name).name)
    return expression


def _card_facts(config: TrainConfig, trained: TrainResult, done: ShiftReport | None) -> card.Facts:
    what, facts = config.vaccine, trained.facts
    steered = "; ".join(map(_short, what.steer))
    layers = what.layers if isinstance(what.layers, str) else ", ".join(map(str, what.layers or ()))
    at = f", layers {layers}" if layers else ""
    at += f", rising over {what.warmup:.0%} of the steps" if what.warmup else ""
    at += f", falling over the last {what.decay:.0%}" if what.decay else ""
    parts = [f"{steered}{at}, {what.positions} positions"] if what.steer else []
    parts += [f"the inoculation prompt {what.inoculation!r}"] if what.inoculation else []
    if what.only:
        parts.append(f"on the {facts['data']['vaccinated']} texts of {', '.join(Path(f).name for f in what.only)} only")
    loss = facts["loss"]["after"]
    notes = []
    if loss:
        before = facts["loss"]["before"]
        notes.append(
            f"Loss on {loss['n']} texts kept back: {before['value']:.3f} [{before['low']:.3f}, {before['high']:.3f}] "
            f"before, {loss['value']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}] after (nats a token)."
        )
    return card.Facts(
        name=Path(config.out).name,
        base=config.model,
        data=[Path(name).name if Path(name).exists() else name for name in config.data],
        data_sha256=facts["data"]["sha256"],
        rows=facts["data"]["texts"],
        vaccine=f"{'; '.join(parts)}." if parts else "",
        recipe={
            "steps": facts["steps"],
            "learning rate": config.learning_rate,
            "batch": config.batch * config.accumulate,
            "LoRA rank": config.lora.r,
            "LoRA alpha": config.lora.alpha,
            "seed": config.seed,
        },
        report=done,
        notes=notes,
    )
