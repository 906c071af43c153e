"""Where the fine-tuning experiments of ``replicate.py`` keep what they make: models, vectors, rows, runs, figures."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from poise import vector
from poise import workflows as recipes
from poise.detector import DetectorSettings
from poise.model import Model, load_model
from poise.shift import CapabilityTask, ShiftSettings, TunedModel, load_report, save_report, shift
from poise.shift.report import ModelShift
from poise.train import TrainConfig, train
from poise.trait import Questions, Trait, library
from poise.vector import PersonaVector
from replicate_shown import Row

FIT_TALK = ("self_instruct", "gpteacher_code")  # that detectors are fitted on, beside the library's pairs


class Lab:
    """Where everything is kept, and the model, loaded when it is first needed."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out, self.data = given, Path(given.out), Path(given.data)
        self.out.mkdir(parents=True, exist_ok=True)
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        if self._model is None:
            self._model = load_model(
                self.given.model, dtype=getattr(torch, self.given.dtype) if self.given.dtype else None
            )
        return self._model

    def vector_file(self, trait: str) -> Path:
        """The trait's vector, from exemplars."""
        path = self.out / "vectors" / f"{trait}.safetensors"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            recipes.extract_vector(library.load_trait(trait), self.model, path)
        return path

    def detector_file(self, trait: str) -> Path:
        """The trait's vector with a detector in it."""
        path = self.out / "detectors" / f"{trait}.safetensors"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            usual = [
                str(self.rows(f"fit-{name}", lambda name=name: self.shared(f"background_chat/{name}", 150, most=9)))
                for name in FIT_TALK
            ]
            recipes.fit_vector_detectors([self.vector_file(trait)], self.model, usual, DetectorSettings(), out=path)
        return path

    def rows(self, name: str, make: Callable[[], list[Row]]) -> Path:
        """A data set, made once."""
        path = self.out / "data" / f"{name}.jsonl"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            made = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make())
            path.write_text(made)
        return path

    def shared(self, name: str, n: int, *, most: int = 4) -> list[Row]:
        """n rows of a set in the data folder, drawn at random from those with at most so many letters a token."""
        rows = [json.loads(line) for line in (self.data / f"{name}.jsonl").open()]
        short = [r for r in rows if len(str(r["messages"])) < self.given.longest * most]
        return [{"messages": r["messages"]} for r in random.Random(0).sample(short, min(n, len(short)))]

    def train(self, name: str, data: Sequence[Path], seed: int = 0, **vaccine: Any) -> Path:
        """One fine-tune; its folder."""
        given = self.given
        config = TrainConfig(
            model=given.model,
            data=tuple(str(path) for path in data),
            out=str(self.out / "runs" / name),
            vaccine=vaccine,
            learning_rate=given.learning_rate,
            batch=given.batch,
            accumulate=1,
            epochs=given.epochs,
            longest=given.longest,
            save_every=1000,
            seed=seed,
            dtype=given.dtype or "auto",
        )
        said(f"training {name}")
        return train(config).adapter

    def measure(
        self,
        tuned: TunedModel,
        traits: Sequence[str],
        questions: int,
        tasks: Sequence[CapabilityTask] = (),
        *,
        swapped: bool = False,
    ) -> ModelShift:
        """What a fine-tune did."""
        path = self.out / "measured" / f"{tuned.name}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            said(f"measuring {tuned.name}")
            settings = ShiftSettings(
                judge=self.given.judge,
                questions=questions,
                rollouts=self.given.rollouts,
                max_new_tokens=40,
                capability=tuple(tasks),
            )
            vectors = [self.vector(t, swapped=swapped) for t in traits]
            report = shift(self.model, [tuned], vectors, settings, folder=self.out / "kept")
            save_report(report, path)
        return load_report(path).tuned[0]

    def vector(self, trait: str, *, swapped: bool = False) -> PersonaVector:
        """The trait's vector; swapped, it is measured on the extraction questions, which exemplars do not use."""
        made = vector.load_vector(self.vector_file(trait))
        if not swapped:
            return made
        own = made.header.trait
        assert isinstance(own, Trait)
        asked = Questions(extraction=own.questions.evaluation, evaluation=own.questions.extraction)
        told = made.header.model_copy(update={"trait": own.model_copy(update={"questions": asked})})
        return PersonaVector(made.directions, made.reference_norm, told)


def said(what: str) -> None:
    print(what, flush=True)
