"""``PersonaMonitorCallback``: where a model's character goes while it trains, in the trainer's own log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from poise import vector as vectors
from poise.activations import Probe, project
from poise.errors import HookDidNotFire, InvalidArgument
from poise.model import ask
from poise.model.hooks import before_pass, observe
from poise.progress import quiet
from poise.steer.training import IGNORED, check_base
from poise.train.vaccine_callback import adopt
from poise.trait.library import evaluation_questions
from poise.vector import PersonaVector

__all__ = ["PersonaMonitorCallback"]


class PersonaMonitorCallback(TrainerCallback):
    """Logs each trait's projection while a model trains, through the trainer, so that its own reports show it.

    For each vector ``persona/NAME``: the mean projection of the last prompt token over evaluation prompts (Chen et al.
    2025, section 6), less what it was before the first step: the finetuning shift so far, in residual-stream units.
    What it was is logged once, as ``persona/NAME/start``; a run that is resumed takes it from there.
    With ``batch=True`` also ``persona/NAME/batch``: the mean over the tokens learnt from in that step's batches, as
    the block gives them out, steered where a vaccine steers at its layer or below.

        trainer.add_callback(PersonaMonitorCallback(["evil.safetensors", "sycophantic.safetensors"], every=50))

    Args:
        watched: Vectors, or files of them; one or several.
        every: Steps between readings; there is one before the first step and one after the last too.
        prompts: Evaluation prompts as text; default, the evaluation questions of each vector's trait for all.
        layer: For all vectors; default, each one's own.
        batch: Read the batches too.
        stop: End the training when a trait's mean over the prompts passes the alarm that calibration set for prompts
            (the one of the lowest rate).
        allow_other_model: Use vectors that were computed on another model of the same shape.

    Raises:
        InvalidArgument: nothing to watch, two vectors of one trait, or ``stop`` with a vector that has no such alarm.
    """

    def __init__(
        self,
        watched: str | Path | PersonaVector | Sequence[str | Path | PersonaVector],
        *,
        every: int = 50,
        prompts: Sequence[str] | None = None,
        layer: int | None = None,
        batch: bool = False,
        stop: bool = False,
        allow_other_model: bool = False,
    ) -> None:
        several = [watched] if isinstance(watched, (str, Path, PersonaVector)) else list(watched)
        if not several or every < 1:
            raise InvalidArgument(
                f"{len(several)} vectors are to be read every {every} steps; give one vector and step."
            )
        self.vectors = [v if isinstance(v, PersonaVector) else vectors.load(v) for v in several]
        self.layers = [v.default_layer if layer is None else v.check_layer(layer) for v in self.vectors]
        self.every, self.batch, self.allow_other_model = every, batch, allow_other_model
        asked = [q for v in self.vectors for q in evaluation_questions(v.header.trait)] if prompts is None else prompts
        self.prompts = list(dict.fromkeys(asked))
        if not self.prompts:
            raise InvalidArgument(
                "There are 0 prompts to read; give one, or leave prompts away for the traits' questions."
            )
        if twice := sorted({v.name for v in self.vectors if [w.name for w in self.vectors].count(v.name) > 1}):
            raise InvalidArgument(
                f"Two vectors of {', '.join(twice)} would share a line of the log; watch one of each."
            )
        self.alarms = [_alarm(v, at) for v, at in zip(self.vectors, self.layers, strict=True)] if stop else []
        self.history: list[tuple[int, tuple[float, ...]]] = []
        self._seen: dict[int, list[torch.Tensor]] = {}
        self._reading = contextlib.ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Read the model as it is."""
        self._model = adopt(given["model"], given["processing_class"])
        known = self.allow_other_model or state.global_step > 0
        for vector in self.vectors:
            check_base(vector, self._model, allow_other_model=known)
        self._probes = [Probe(at, v.unit(at)) for v, at in zip(self.vectors, self.layers, strict=True)]
        self._encoded = [self._model.encode(ask(prompt)) for prompt in self.prompts]
        self._trainer = _trainer()
        with contextlib.suppress(HookDidNotFire):
            self._reading.close()  # of a run that broke off in a step
        now = self._read()
        self.history = [(state.global_step, now)]
        told = {key: value for line in state.log_history for key, value in line.items()}
        self._start = tuple(told.get(f"persona/{v.name}/start", x) for v, x in zip(self.vectors, now, strict=True))
        if state.global_step == 0:
            self._log({f"persona/{v.name}/start": x for v, x in zip(self.vectors, now, strict=True)}, control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Listen to this step's batches where they are to be read."""
        if self.batch and self._due(state.global_step + 1, state.max_steps):
            self._seen = {column: [] for column in range(len(self._probes))}
            self._reading.enter_context(observe(self._model, self._visit, sorted({p.layer for p in self._probes})))
            self._reading.enter_context(before_pass(self._model, self._mark))

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
        """Read the prompts, log, and say whether it is enough."""
        self._reading.close()
        if not self._due(state.global_step, state.max_steps):
            return control
        now = self._read()
        self.history.append((state.global_step, now))
        logs = {f"persona/{v.name}": now[k] - self._start[k] for k, v in enumerate(self.vectors)}
        if self.batch:
            means = {k: torch.cat(seen) for k, seen in self._seen.items() if seen}
            logs |= {f"persona/{self.vectors[k].name}/batch": float(seen.mean()) for k, seen in means.items()}
        self._log(logs, control)
        if any(value > alarm for value, alarm in zip(now, self.alarms, strict=False)):
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"
        return control

    def _log(self, logs: dict[str, float], control: Any) -> None:
        if self._trainer is not None:
            due = control.should_log
            Trainer.log(self._trainer, logs)  # not a subclass's own, which may empty its averages
            control.should_log = due  # whoever logs takes the trainer's own line of this step for written

    def _due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 or step == steps

    def _read(self) -> tuple[float, ...]:
        """Mean projection of the last prompt token over the prompts, [k]."""
        lm = self._model.lm
        training = lm.training
        lm.eval()
        try:
            with quiet():
                values = project(self._model, self._encoded, self._probes)
        finally:
            lm.train(training)
        return tuple(torch.stack([v[-1] for v in values]).mean(0).tolist())

    def _mark(self, arguments: dict[str, Any]) -> None:
        labels = arguments.get("labels")
        self._learnt = None if labels is None else labels != IGNORED

    def _visit(self, layer: int, h: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        learnt = h.detach().flatten(0, 1) if self._learnt is None else h.detach()[self._learnt]
        for column, probe in enumerate(self._probes):
            if probe.layer == layer:
                self._seen[column].append(learnt.float() @ probe.direction.to(h.device))


def _alarm(vector: PersonaVector, layer: int) -> float:
    found = [a for a in vector.header.alarms if (a.reading, a.layer, a.topic) == ("prompt", layer, None)]
    if not found:
        raise InvalidArgument(
            f"{vector.name} has no alarm for prompts at layer {layer} to stop at; run `poise calibrate` on it first."
        )
    return min(found, key=lambda alarm: alarm.rate).threshold


def _trainer() -> Any:
    """The trainer that calls: callbacks are not told, and its log is the one way to all of its reports."""
    frame = sys._getframe(1)
    while frame is not None and not isinstance(frame.f_locals.get("self"), Trainer):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else frame.f_locals["self"]
