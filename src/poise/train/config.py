"""The settings of ``poise train``: one YAML file, with the paper's values where it says nothing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from poise.data.messages import AnswerPart
from poise.settings import ListOfTexts, Settings, placed_fault
from poise.train.setting_names import OTHER_NAMES, REFUSED_NAMES

__all__ = ["LoraSettings", "MeasurementSettings", "MonitorSettings", "TrainConfig", "VaccineSettings"]

ModuleName = Annotated[str, Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop", "adagrad", "adamw_8bit", "adamw_bnb_8bit",
    "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit",
]  # fmt: skip
BITSANDBYTES_OPTIMIZERS = frozenset(
    ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "lion_32bit")
)
ALL_LINEAR = "all-linear"


def _module_names(value: Any) -> Any:
    """One module's name as a list of one; what is close to `all-linear` is left for the check of that word."""
    word = isinstance(value, str) and bool(difflib.get_close_matches(value, [ALL_LINEAR], cutoff=0.8))
    return (value,) if isinstance(value, str) and not word else value


def _paths(value: Any) -> Any:
    """One name as a list of one; Axolotl writes mappings with a `path`."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        if extra := {str(key) for item in value if isinstance(item, dict) for key in item if key != "path"}:
            raise ValueError(f"has entries with {', '.join(sorted(extra))}; give paths alone")
        return [item.get("path") if isinstance(item, dict) else item for item in value]
    return value


def _layer_numbers(value: Any) -> Any:
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


class LoraSettings(Settings):
    """The adapter: rank-stabilised LoRA on all projections, as in Chen et al. 2025, App. D."""

    r: int = Field(default=32, ge=1, description="Rank.")
    alpha: int = Field(default=64, ge=1, description="Scale: α/√r with rank stabilisation, α/r without.")
    dropout: Fraction = Field(default=0.0, description="Dropout on the adapter's input.")
    rslora: bool = Field(default=True, description="Rank stabilisation (arXiv:2312.03732).")
    dora: bool = Field(default=False, description="Magnitude and direction apart: DoRA (arXiv:2402.09353).")
    targets: Annotated[
        Literal["all-linear"] | Annotated[tuple[ModuleName, ...], Field(min_length=1)], BeforeValidator(_module_names)
    ] = Field(default="all-linear", description="Modules by name; all-linear is every projection of every block.")
    modules_to_save: ListOfTexts = Field(
        default=(), description="Modules that are trained whole and saved with the adapter, e.g. lm_head."
    )
    trainable_tokens: tuple[Annotated[int, Field(ge=0, strict=True)] | str, ...] = Field(
        default=(), description="Tokens, by number or as the tokenizer has them, whose embeddings are trained too."
    )
    start: str | None = Field(
        default=None, description="An adapter folder to go on from; its rank, scale and targets are kept."
    )

    @field_validator("trainable_tokens")
    @classmethod
    def _no_empty_token(cls, tokens: tuple[int | str, ...]) -> tuple[int | str, ...]:
        if "" in tokens:
            raise placed_fault("is empty; name a token as the tokenizer has it, or its number", tokens.index(""))
        return tokens


LayerIndex = Annotated[int, Field(ge=0, strict=True)]


class VaccineSettings(Settings):
    """What is done to the model while it learns, and is gone afterwards."""

    steer: ListOfTexts = Field(
        default=(), description="Steering expressions, e.g. evil.safetensors=2 or evil.safetensors=out (CAFT)."
    )
    layers: Annotated[
        Literal["increments"] | Annotated[tuple[LayerIndex, ...], Field(min_length=1)] | None,
        BeforeValidator(_layer_numbers),
    ] = Field(default=None, description="Layers for expressions that name none; by default each vector's own layer.")
    positions: Literal["all", "response"] = Field(default="all", description="Which tokens are steered.")
    warmup: Fraction = Field(default=0.0, description="Share of the steps over which the strength rises.")
    decay: Fraction = Field(default=0.0, description="Share of the steps over which it falls at the end.")
    only: ListOfTexts = Field(
        default=(),
        description="The files of `data` that are trained on under it, e.g. what `poise screen` flagged; by default "
        "all.",
    )
    inoculation: str | None = Field(
        default=None, description="A system prompt that asks for the trait, in training only (arXiv:2510.04340)."
    )

    @field_validator("inoculation")
    @classmethod
    def _says_something(cls, prompt: str | None) -> str | None:
        if prompt is not None and not prompt.strip():
            raise ValueError(f"is {prompt!r}, a prompt without words; write one, or leave it out")
        return prompt

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

    vectors: ListOfTexts = Field(default=(), description="Vector files.")
    every: int = Field(default=50, ge=1, description="Steps between readings.")
    batch: bool = Field(default=False, description="Read the batches too.")
    stop: bool = Field(default=False, description="End the training when a trait passes its calibrated alarm.")


class MeasurementSettings(Settings):
    """What is measured when the training is done, base beside tuned; see docs/shift.md."""

    vectors: ListOfTexts | None = Field(
        default=None, description="Vector files; by default those of the vaccine and the watch."
    )
    judge: str | None = Field(default="exemplars", description="exemplars, model:NAME, endpoint:NAME, or none.")
    questions: int = Field(default=20, ge=1, description="How many of each trait's evaluation questions are answered.")
    rollouts: int = Field(default=1, ge=1, description="Answers a question.")
    max_new_tokens: int = Field(default=96, ge=1, description="Longest answer.")
    capability: ListOfTexts = Field(
        default=(), description="Capability sets, as `poise shift --capability` takes them."
    )
    capability_limit: int | None = Field(default=None, ge=1, description="Most rows of each.")

    @field_validator("judge")
    @classmethod
    def _none_is_no_judge(cls, judge: str | None) -> str | None:
        """`judge: none` in YAML is the text `none`, which the commands take for no judge."""
        return None if judge == "none" else judge


class TrainConfig(Settings):
    """One fine-tune: model, data, output folder, vaccine, monitor, measurements and the usual training settings.

    Names of Axolotl and of TRL's command line are taken too; see ``train/setting_names.py``.
    """

    other_names: ClassVar[Mapping[str, str]] = OTHER_NAMES
    refused_names: ClassVar[Mapping[str, str]] = REFUSED_NAMES

    model: str = Field(min_length=1, description="Bundled name, folder, GGUF file or hub id.")
    data: Annotated[ListOfTexts, BeforeValidator(_paths), Field(min_length=1)] = Field(
        description="Files, folders, globs or hub names; several add up."
    )
    out: str = Field(min_length=1, description="The folder for the adapter, checkpoints and log.")
    method: Literal["sft", "dpo"] = Field(default="sft", description="Learn answers, or preferences between two.")
    beta: float = Field(default=0.1, gt=0, description="How closely the model stays to its base, by DPO.")
    shape: str = Field(default="auto", description="What the columns are; see docs/data.md.")
    part: AnswerPart = Field(default="reply", description="What of an answer is learnt: reply, thought, or both.")
    held_out: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of the conversations held out, whose loss is measured before and after."
    )
    eval_data: Annotated[ListOfTexts, BeforeValidator(_paths)] = Field(
        default=(), description="Files of held-out rows, in place of a share of `data`."
    )
    eval_steps: int | None = Field(default=None, ge=1, description="Steps between evaluations on what is held out.")
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="End after so many evaluations without a lower loss."
    )
    early_stopping_threshold: float = Field(default=0.0, ge=0, description="What counts as lower, in nats a token.")
    load_best_model_at_end: bool = Field(default=False, description="Keep the weights of the best evaluation.")
    vaccine: VaccineSettings = VaccineSettings()
    watch: MonitorSettings = MonitorSettings()
    measure: MeasurementSettings = MeasurementSettings()
    adapter: Annotated[Literal["lora", "qlora", "none"], BeforeValidator(lambda v: "none" if v is None else v)] = Field(
        default="lora", description="LoRA; QLoRA, on a base in 4 bits; or none: all weights are trained."
    )
    load_in_4bit: bool = Field(default=False, description="Base in 4 bits by bitsandbytes (arXiv:2305.14314).")
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(default=1e-5, gt=0)
    optim: Optimizer = Field(default="adamw_torch_fused", description="Optimiser, as transformers names it.")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Longer gradients are shortened to it; 0 for never.")
    batch: int = Field(default=2, ge=1, description="Texts in a forward pass.")
    accumulate: int = Field(default=8, ge=1, description="Forward passes in a step.")
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="End earlier or go on longer than the epochs.")
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = Field(default=5, ge=0, description="Steps over which the learning rate rises.")
    weight_decay: float = Field(default=0.01, ge=0)
    longest: int = Field(default=2048, ge=8, description="Most tokens of a text; the rest is cut off.")
    assistant_only_loss: bool = Field(default=True, description="Only answers are learnt; there is no other way.")
    train_on_inputs: bool = Field(default=False, description="The same as Axolotl says it.")
    packing: bool = Field(default=False, description="Several texts in one row of `longest` tokens, kept apart.")
    padding_free: bool = Field(default=False, description="A batch as one row without padding.")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for a third more time.")
    save_every: int = Field(default=100, ge=1, description="Steps between checkpoints; the last two are kept.")
    log_every: int = Field(default=10, ge=1, description="Steps between lines of the log.")
    seed: int = Field(default=0, ge=0, lt=2**32)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    bf16: bool = Field(default=False, description="Mixed precision in bfloat16.")
    fp16: bool = Field(default=False, description="Mixed precision in float16, on a GPU.")
    device: str = "auto"
    report_to: ListOfTexts = Field(default=(), description="Other logs, e.g. tensorboard or wandb.")
    allow_other_model: bool = Field(default=False, description="Use vectors of another model of the same shape.")

    @field_validator("report_to")
    @classmethod
    def _none_is_no_report(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        """TRL's command line says `report_to: none`."""
        return () if names == ("none",) else names

    @field_validator("assistant_only_loss", "train_on_inputs")
    @classmethod
    def _only_answers(cls, value: bool, info: ValidationInfo) -> bool:
        if value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(
                f"is {str(value).lower()}; only answers are learnt here, never what users write: leave it out"
            )
        return value

    @property
    def measures_traits(self) -> bool:
        """Whether base and result are compared, by the vectors that are named for it or those of vaccine and watch."""
        if self.measure.vectors is not None:
            return bool(self.measure.vectors)
        return bool(self.vaccine.steer or self.watch.vectors)

    @property
    def four_bits(self) -> bool:
        """Whether the base is loaded in 4 bits."""
        return self.load_in_4bit or self.adapter == "qlora"

    @model_validator(mode="after")
    def _settings_agree(self) -> TrainConfig:
        if conflict := next((text for wrong, text in self._conflicts() if wrong), None):
            name, _, text = conflict.partition(" ")
            raise placed_fault(text, *name.split("."))
        return self

    def _conflicts(self) -> list[tuple[bool, str]]:
        """Settings that do not go together: whether it is so here, and what to do, after the name of one of them."""
        vaccine, rows_mixed = self.vaccine, self.packing or self.padding_free
        evaluates = bool(self.held_out or self.eval_data)
        return [
            (bool(vaccine.only and not vaccine.active), "vaccine.only needs vaccine.steer or vaccine.inoculation"),
            (
                vaccine.warmup + vaccine.decay > 1,
                "vaccine.warmup and vaccine.decay are shares of the steps and add up to more than 1",
            ),
            (self.watch.stop and not self.watch.vectors, "watch.stop needs watch.vectors"),
            (
                vaccine.marks_rows and rows_mixed,
                "vaccine.only steers some rows, and packing or padding_free joins rows into one; leave those out",
            ),
            (bool(self.held_out and self.eval_data), "held_out and eval_data both name what is held out; keep one"),
            (
                bool(self.eval_steps and not evaluates),
                "eval_steps needs something to evaluate on: held_out, or eval_data",
            ),
            (
                bool(self.early_stopping_patience and not self.eval_steps),
                "early_stopping_patience counts evaluations; set eval_steps",
            ),
            (
                self.early_stopping_threshold > 0 and not self.early_stopping_patience,
                "early_stopping_threshold needs early_stopping_patience",
            ),
            (
                self.load_best_model_at_end and not self.eval_steps,
                "load_best_model_at_end compares evaluations; set eval_steps",
            ),
            (
                bool(self.load_best_model_at_end and self.eval_steps and self.save_every != self.eval_steps),
                ("" if "save_every" in self.model_fields_set else "load_best_model_at_end keeps a saved step, and ")
                + f"save_every is {self.save_every}; with load_best_model_at_end it must be eval_steps "
                f"({self.eval_steps}), so that the best step has a checkpoint",
            ),
            (self.bf16 and self.fp16, "bf16 and fp16 are two kinds of mixed precision; keep one"),
            *self._conflicts_of_adapters(),
            (self.method == "sft" and self.beta != 0.1, "beta is a setting of method: dpo"),
            (
                bool(self.measure.capability) and not self.measures_traits,
                "measure.capability is measured beside traits, and no vector is named; name one in measure.vectors, or "
                "leave it out and use lm-eval or `poise shift` afterwards",
            ),
            *self._conflicts_of_preferences(),
        ]

    def _conflicts_of_adapters(self) -> list[tuple[bool, str]]:
        lora_is_set = self.lora != LoraSettings()
        return [
            (
                self.adapter == "none" and lora_is_set,
                "lora is set, and adapter: none trains all weights, without LoRA; leave the lora settings out",
            ),
            (
                self.adapter == "none" and self.load_in_4bit,
                "load_in_4bit freezes the base, and adapter: none trains it; leave one out",
            ),
            (
                self.adapter == "none" and self.dtype == "float16",
                "dtype is float16, which loses small updates of weights where all are trained (adapter: none); use "
                "float32 with bf16: true or fp16: true",
            ),
            (
                self.lora.start is not None and self.lora != LoraSettings(start=self.lora.start),
                "lora.start keeps the rank, scale, dropout and targets of that adapter; leave the other lora "
                "settings out",
            ),
        ]

    def _conflicts_of_preferences(self) -> list[tuple[bool, str]]:
        preferences, vaccine = self.method == "dpo", self.vaccine
        return [
            (
                preferences and vaccine.positions == "response" and bool(vaccine.steer),
                "vaccine.positions is response, which needs labels, and method: dpo does not hand them to the model; "
                "use all",
            ),
            (
                preferences and bool(vaccine.only),
                "vaccine.only marks rows, and method: dpo learns from pairs of them; leave it out",
            ),
            (
                preferences and (self.packing or self.padding_free),
                f"{'packing and padding_free' if self.packing else 'padding_free and packing'} are settings of method: "
                "sft",
            ),
            (
                preferences and self.watch.batch,
                "watch.batch reads tokens that are learnt, which method: dpo does not mark; leave it out",
            ),
        ]
