"""What ``poise train`` is told: one YAML file, with the paper's settings where it says nothing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from poise.settings import Settings

__all__ = ["Config", "Lora", "Measure", "Vaccine", "Watch"]

Share = Annotated[float, Field(ge=0, le=1)]


class Lora(Settings):
    """The adapter: rank-stabilised LoRA on all projections, as in Chen et al. 2025, App. D."""

    r: int = Field(default=32, ge=1, description="Rank.")
    alpha: int = Field(default=64, ge=1, description="Scale: α/√r with rank stabilisation, α/r without.")
    dropout: Share = Field(default=0.0, description="Of the adapter's input.")
    rslora: bool = Field(default=True, description="Rank stabilisation (arXiv:2312.03732).")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="Modules by name; all-linear is every projection of every block."
    )


class Vaccine(Settings):
    """What is done to the model while it learns, and is gone afterwards."""

    steer: tuple[str, ...] = Field(
        default=(), description="Steering expressions, e.g. evil.safetensors=2 or evil.safetensors=out (CAFT)."
    )
    layers: Literal["increments"] | tuple[int, ...] | None = Field(
        default=None, description="For expressions that name none; otherwise each vector's own layer."
    )
    positions: Literal["all", "response"] = Field(default="all", description="Which tokens are steered.")
    warmup: Share = Field(default=0.0, description="Share of the steps over which the strength rises.")
    decay: Share = Field(default=0.0, description="Share of the steps over which it falls at the end.")
    only: tuple[str, ...] = Field(
        default=(),
        description="The files of `data` that are learnt under it, e.g. what `poise screen` flagged; or all.",
    )
    inoculation: str | None = Field(
        default=None, description="A system prompt that asks for the trait, in training only (arXiv:2510.04340)."
    )

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return bool(self.steer or self.inoculation)

    @property
    def marked(self) -> bool:
        """Whether batches have to tell which of their rows are steered."""
        return bool(self.steer and self.only)


class Watch(Settings):
    """What is read while the model trains."""

    vectors: tuple[str, ...] = Field(default=(), description="Vector files.")
    every: int = Field(default=50, ge=1, description="Steps between readings.")
    batch: bool = Field(default=False, description="Read the batches too.")
    stop: bool = Field(default=False, description="End the training when a trait passes its calibrated alarm.")


class Measure(Settings):
    """What is measured when the training is done, base beside tuned; see docs/shift.md."""

    vectors: tuple[str, ...] | None = Field(
        default=None, description="Vector files; otherwise those of the vaccine and the watch."
    )
    judge: str | None = Field(default="exemplars", description="exemplars, model:NAME, endpoint:NAME, or null.")
    questions: int = Field(default=20, ge=1, description="Of each trait's evaluation questions.")
    rollouts: int = Field(default=1, ge=1, description="Answers a question.")
    max_new_tokens: int = Field(default=96, ge=1)
    capability: tuple[str, ...] = Field(default=(), description="As `poise shift --capability` takes them.")
    capability_limit: int | None = Field(default=None, ge=1, description="Most rows of each.")


class Config(Settings):
    """One fine-tune."""

    model: str = Field(description="Bundled name, folder, GGUF file or hub id.")
    data: tuple[str, ...] = Field(min_length=1, description="Files, folders, globs or hub names; several add up.")
    out: str = Field(description="The folder for the adapter, checkpoints and log.")
    shape: str = Field(default="auto", description="What the columns are; see docs/data.md.")
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of the conversations kept back, whose loss is measured before and after."
    )
    vaccine: Vaccine = Vaccine()
    watch: Watch = Watch()
    measure: Measure = Measure()
    lora: Lora = Lora()
    learning_rate: float = Field(default=1e-5, gt=0)
    batch: int = Field(default=2, ge=1, description="Texts a forward pass.")
    accumulate: int = Field(default=8, ge=1, description="Forward passes a step.")
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="End earlier or go on longer than the epochs.")
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = Field(default=5, ge=0, description="Over which the learning rate rises.")
    weight_decay: float = Field(default=0.01, ge=0)
    longest: int = Field(default=2048, ge=8, description="Most tokens of a text; the rest is cut off.")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for a third more time.")
    save_every: int = Field(default=100, ge=1, description="Steps between checkpoints; the last two are kept.")
    log_every: int = Field(default=10, ge=1, description="Steps between lines of the log.")
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    report_to: tuple[str, ...] = Field(default=(), description="Other logs, e.g. tensorboard or wandb.")
    allow_other_model: bool = Field(default=False, description="Use vectors of another model of the same shape.")

    @model_validator(mode="after")
    def _some_work(self) -> Config:
        if self.vaccine.only and not self.vaccine.given:
            raise ValueError("vaccine.only needs vaccine.steer or vaccine.inoculation")
        if self.watch.stop and not self.watch.vectors:
            raise ValueError("watch.stop needs watch.vectors")
        return self
