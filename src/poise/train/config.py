"""The settings of ``poise train``: one YAML file, with the paper's values where it says nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from poise.data.messages import AnswerPart
from poise.settings import Settings

__all__ = ["LoraSettings", "MeasurementSettings", "MonitorSettings", "TrainConfig", "VaccineSettings"]

Fraction = Annotated[float, Field(ge=0, le=1)]


class LoraSettings(Settings):
    """The adapter: rank-stabilised LoRA on all projections, as in Chen et al. 2025, App. D."""

    r: int = Field(default=32, ge=1, description="Rank.")
    alpha: int = Field(default=64, ge=1, description="Scale: α/√r with rank stabilisation, α/r without.")
    dropout: Fraction = Field(default=0.0, description="Dropout on the adapter's input.")
    rslora: bool = Field(default=True, description="Rank stabilisation (arXiv:2312.03732).")
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default="all-linear", description="Modules by name; all-linear is every projection of every block."
    )


LayerIndex = Annotated[int, Field(ge=0, strict=True)]


class VaccineSettings(Settings):
    """What is done to the model while it learns, and is gone afterwards."""

    steer: tuple[str, ...] = Field(
        default=(), description="Steering expressions, e.g. evil.safetensors=2 or evil.safetensors=out (CAFT)."
    )
    layers: Literal["increments"] | Annotated[tuple[LayerIndex, ...], Field(min_length=1)] | None = Field(
        default=None, description="Layers for expressions that name none; by default each vector's own layer."
    )
    positions: Literal["all", "response"] = Field(default="all", description="Which tokens are steered.")
    warmup: Fraction = Field(default=0.0, description="Share of the steps over which the strength rises.")
    decay: Fraction = Field(default=0.0, description="Share of the steps over which it falls at the end.")
    only: tuple[str, ...] = Field(
        default=(),
        description="The files of `data` that are trained on under it, e.g. what `poise screen` flagged; by default "
        "all.",
    )
    inoculation: str | None = Field(
        default=None, description="A system prompt that asks for the trait, in training only (arXiv:2510.04340)."
    )

    @property
    def active(self) -> bool:
        """Whether anything is done to the model while it learns."""
        return bool(self.steer or self.inoculation)

    @property
    def marks_rows(self) -> bool:
        """Whether batches have to say which of their rows are steered."""
        return bool(self.steer and self.only)


class MonitorSettings(Settings):
    """What is read while the model trains."""

    vectors: tuple[str, ...] = Field(default=(), description="Vector files.")
    every: int = Field(default=50, ge=1, description="Steps between readings.")
    batch: bool = Field(default=False, description="Read the batches too.")
    stop: bool = Field(default=False, description="End the training when a trait passes its calibrated alarm.")


class MeasurementSettings(Settings):
    """What is measured when the training is done, base beside tuned; see docs/shift.md."""

    vectors: tuple[str, ...] | None = Field(
        default=None, description="Vector files; by default those of the vaccine and the watch."
    )
    judge: str | None = Field(default="exemplars", description="exemplars, model:NAME, endpoint:NAME, or none.")
    questions: int = Field(default=20, ge=1, description="How many of each trait's evaluation questions are answered.")
    rollouts: int = Field(default=1, ge=1, description="Answers a question.")
    max_new_tokens: int = Field(default=96, ge=1, description="Longest answer.")
    capability: tuple[str, ...] = Field(
        default=(), description="Capability sets, as `poise shift --capability` takes them."
    )
    capability_limit: int | None = Field(default=None, ge=1, description="Most rows of each.")

    @field_validator("judge")
    @classmethod
    def _none_is_no_judge(cls, judge: str | None) -> str | None:
        """`judge: none` in YAML is the text `none`, which the commands take for no judge."""
        return None if judge == "none" else judge


class TrainConfig(Settings):
    """One fine-tune: model, data, output folder, vaccine, monitor, measurements and the usual training settings."""

    model: str = Field(description="Bundled name, folder, GGUF file or hub id.")
    data: tuple[str, ...] = Field(min_length=1, description="Files, folders, globs or hub names; several add up.")
    out: str = Field(description="The folder for the adapter, checkpoints and log.")
    shape: str = Field(default="auto", description="What the columns are; see docs/data.md.")
    part: AnswerPart = Field(default="reply", description="What of an answer is learnt: reply, thought, or both.")
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of the conversations held out, whose loss is measured before and after."
    )
    vaccine: VaccineSettings = VaccineSettings()
    watch: MonitorSettings = MonitorSettings()
    measure: MeasurementSettings = MeasurementSettings()
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(default=1e-5, gt=0)
    batch: int = Field(default=2, ge=1, description="Texts in a forward pass.")
    accumulate: int = Field(default=8, ge=1, description="Forward passes in a step.")
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="End earlier or go on longer than the epochs.")
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = Field(default=5, ge=0, description="Steps over which the learning rate rises.")
    weight_decay: float = Field(default=0.01, ge=0)
    longest: int = Field(default=2048, ge=8, description="Most tokens of a text; the rest is cut off.")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for a third more time.")
    save_every: int = Field(default=100, ge=1, description="Steps between checkpoints; the last two are kept.")
    log_every: int = Field(default=10, ge=1, description="Steps between lines of the log.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    report_to: tuple[str, ...] = Field(default=(), description="Other logs, e.g. tensorboard or wandb.")
    allow_other_model: bool = Field(default=False, description="Use vectors of another model of the same shape.")

    @model_validator(mode="after")
    def _some_work(self) -> TrainConfig:
        if self.vaccine.only and not self.vaccine.active:
            raise ValueError("vaccine.only needs vaccine.steer or vaccine.inoculation")
        if self.vaccine.warmup + self.vaccine.decay > 1:
            raise ValueError("vaccine.warmup and vaccine.decay are shares of the steps and add up to more than 1")
        if self.watch.stop and not self.watch.vectors:
            raise ValueError("watch.stop needs watch.vectors")
        return self
