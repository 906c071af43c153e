"""The settings of a comparison: one YAML file that says what is asked, what is read and what is learnt."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from poise.comparison.arms import ARMS, ArmName
from poise.knowledge.searching import SearchMode
from poise.settings import ListOfTexts, SettingFault, Settings, placed_fault
from poise.train import LoraSettings, TrainConfig, VaccineSettings
from poise.train.setting_checks import setting_faults as training_faults

__all__ = ["AnswerLimits", "ComparisonTask", "Counting", "RetrievalSettings", "TrainingPlan", "TraitQuestionCounts"]

Counting = Literal["exact", "contains", "pattern", "likelihood", "judge"]
"""When an answer counts as right."""

SeedNumber = Annotated[int, Field(ge=0, lt=2**32, strict=True)]


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


class AnswerLimits(Settings):
    """How questions are answered, greedily and in every arm alike."""

    max_new_tokens: int = Field(default=64, ge=1, description="Longest answer.")
    batch: int = Field(default=8, ge=1, description="Most answers at once; 1 measures the time of a single answer.")
    instruction: str | None = Field(default=None, description="A system prompt, the same in every arm.")


class RetrievalSettings(Settings):
    """What the arms with documents read."""

    top: int = Field(default=4, ge=1, le=50, description="Most passages.")
    mode: SearchMode = Field(default="hybrid", description="Search by meaning (dense), by words (sparse), or by both.")
    chunk: int | None = Field(default=None, ge=100, le=20_000, description="Most characters of a passage.")
    store: Literal["lance", "exact"] | None = Field(default=None, description="What keeps the passages.")
    least: float = Field(default=0.5, ge=0, le=1, description="Lowest score of a supported sentence.")
    grounding: Literal["words", "model"] = Field(
        default="words", description="What sentences are checked by: words and facts, or the model's likelihoods too."
    )


class TrainingPlan(Settings):
    """What is learnt by the arms that are fine-tuned; each setting as in `poise train`."""

    other_names: ClassVar[Mapping[str, str]] = {"rows": "data", "num_train_epochs": "epochs"}

    data: Annotated[ListOfTexts, Field(min_length=1)] = Field(description="Files of training rows; several add up.")
    shape: str = Field(default="auto", description="What the columns are; see docs/data.md.")
    learning_rate: float = Field(default=2e-4, gt=0)
    epochs: float = Field(default=3.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1, description="End earlier or go on longer than the epochs.")
    batch: int = Field(default=4, ge=1, description="Texts in a forward pass.")
    accumulate: int = Field(default=1, ge=1, description="Forward passes in a step.")
    longest: int = Field(default=512, ge=8, description="Most tokens of a text.")
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = Field(default=5, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    save_every: int = Field(default=50, ge=1, description="Steps between checkpoints, which a killed run loses.")
    lora: LoraSettings = LoraSettings(r=16, alpha=32)


class TraitQuestionCounts(Settings):
    """How character is measured in every arm, on the traits' evaluation questions."""

    questions: int = Field(default=20, ge=2, description="Most questions of a trait that are read.")
    answered: int = Field(default=0, ge=0, description="How many of them are answered and judged; 0 for none.")
    max_new_tokens: int = Field(default=64, ge=1, description="Longest of these answers.")
    judge: str = Field(default="exemplars", description="exemplars, model:NAME or endpoint:NAME.")


class ComparisonTask(Settings):
    """One task: what is asked, and how each arm may learn or look up the answers."""

    other_names: ClassVar[Mapping[str, str]] = {"train": "training", "rag": "retrieval", "eval": "questions"}

    model: str = Field(min_length=1, description="Bundled name, folder or hub id.")
    questions: Annotated[ListOfTexts, Field(min_length=1)] = Field(
        description="JSONL files of evaluation questions with answers."
    )
    counts: Counting = Field(
        default="contains",
        description="When an answer is right: exact (the same text), contains (the answer stands in it), pattern (it "
        "fits a regular expression), likelihood (the right one of the choices is the likeliest), judge.",
    )
    judge: str = Field(
        default="", description="Who says whether an answer is right, with counts: judge; model:NAME or endpoint:NAME."
    )
    documents: ListOfTexts = Field(default=(), description="Files and folders that answers are looked up in.")
    knowledge: str | None = Field(default=None, description="A knowledge base in their place.")
    training: TrainingPlan | None = None
    vaccine: VaccineSettings = VaccineSettings()
    arms: Annotated[tuple[ArmName, ...] | None, Field(min_length=1)] = Field(
        default=None, description="What is compared; by default all that the settings give the means for."
    )
    seeds: Annotated[tuple[SeedNumber, ...], BeforeValidator(_one_or_several)] = Field(
        default=(0, 1, 2), min_length=1, description="Seeds of training; each is one training run."
    )
    answers: AnswerLimits = AnswerLimits()
    retrieval: RetrievalSettings = RetrievalSettings()
    vectors: ListOfTexts = Field(default=(), description="Vector files of the traits that are measured.")
    traits: TraitQuestionCounts = TraitQuestionCounts()
    capability: ListOfTexts = Field(default=(), description="Capability sets; see docs/shift.md.")
    capability_limit: int | None = Field(default=None, ge=1, description="Most rows of each.")
    worth: float = Field(default=0.05, ge=0, lt=1, description="Smallest gain of accuracy that is worth an arm.")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"

    @model_validator(mode="after")
    def _settings_agree(self) -> ComparisonTask:
        faults = [(text, place) for wrong, text, *place in self._conflicts() if wrong]
        if faults:
            text, place = faults[0]
            raise placed_fault(text, *place)
        return self

    def _conflicts(self) -> list[tuple[Any, ...]]:
        """Settings that do not go together: whether it is so here, what to do, and the place of one of them."""
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        named = self.arms or ()
        repeated = sorted({arm for arm in named if named.count(arm) > 1})
        missing = [(number, arm, why) for number, arm in enumerate(named) if (why := self.lacks(arm))]
        number, arm, why = missing[0] if missing else (0, "base", "")
        return [
            (bool(twice), f"has {', '.join(map(str, twice))} twice, which is one run and not two; keep one", "seeds"),
            (bool(repeated), f"has {', '.join(repeated)} twice; keep one", "arms"),
            (bool(self.documents and self.knowledge), "stands beside documents; keep one of the two", "knowledge"),
            (bool(missing), f"is {arm}, which needs {why}; set that, or leave the arm out", "arms", number),
            (self.counts == "judge" and not self.judge, "is judge; say who in `judge`", "counts"),
            (bool(self.judge) and self.counts != "judge", "needs counts: judge", "judge"),
            (self.traits.answered > self.traits.questions, "is more than traits.questions", "traits", "answered"),
        ]

    def lacks(self, arm: ArmName) -> str:
        """What the settings do not give an arm; empty where it can be measured."""
        shape = ARMS[arm]
        if shape.retrieves and not (self.documents or self.knowledge):
            return "documents, or a knowledge base"
        if shape.trains and self.training is None:
            return "training rows"
        if shape.vaccinated and not self.vaccine.active:
            return "a vaccine (vaccine.steer)"
        return ""

    @property
    def measured_arms(self) -> tuple[ArmName, ...]:
        """The arms in their order; the base always, since the others are held against it."""
        wanted = set(self.arms) if self.arms else {arm for arm in ARMS if not self.lacks(arm)}
        return tuple(arm for arm in ARMS if arm in wanted or arm == "base")

    def train_config(self, seed: int, out: Path, *, vaccinated: bool) -> TrainConfig:
        """The settings of one training run."""
        if self.training is None:
            raise ValueError("a task without training rows has no training run")
        plan = {name: getattr(self.training, name) for name in TrainingPlan.model_fields}
        return TrainConfig(
            model=self.model,
            out=str(out),
            seed=seed,
            dtype=self.dtype,
            device=self.device,
            vaccine=self.vaccine if vaccinated else VaccineSettings(),
            **plan,
        )

    def faults(self) -> Iterator[SettingFault]:
        """What is wrong with settings that fit the schema: files, devices and packages that are not there."""
        for name in ("questions", "documents", "vectors"):
            for number, path in enumerate(getattr(self, name)):
                if not Path(path).expanduser().exists():
                    yield (name, number), f"names {path}; there is no such file"
        if self.knowledge and not Path(self.knowledge).is_dir():
            yield ("knowledge",), f"names {self.knowledge}; there is no such folder"
        if self.training is not None and any(ARMS[arm].trains for arm in self.measured_arms):
            yield from self._training_faults(self.training)

    def _training_faults(self, training: TrainingPlan) -> Iterator[SettingFault]:
        if missing := [name for name in ("trl", "peft") if importlib.util.find_spec(name) is None]:
            yield ("training",), f"needs {', '.join(missing)}; install Poise with the extra `train`"
        for number, path in enumerate(training.data):
            if path.endswith((".jsonl", ".json", ".csv", ".parquet")) and not Path(path).expanduser().exists():
                yield ("training", "data", number), f"names {path}; there is no such file"
        for place, text in training_faults(self.train_config(0, Path("run"), vaccinated=True)):
            if place[0] in ("vaccine", "device"):
                yield place, text
