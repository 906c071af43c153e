"""``PersonaMonitorCallback``: how a model's character moves while it trains, in the trainer's own log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from poise import vector as vectors
from poise.activations import project
from poise.errors import InvalidArgument
from poise.model import ask
from poise.model.hooks import around_pass, before_pass, observe
from poise.model.packed_weights import unpacked_weights
from poise.progress import quiet
from poise.steer.training import IGNORED, check_base
from poise.train.training_steps import find_trainer, release_training_steps, surround_training_steps
from poise.train.vaccine_callback import wrap_trainer_model
from poise.trait.library import evaluation_questions
from poise.vector import Alarm, LayerDirection, PersonaVector

__all__ = ["PersonaMonitorCallback"]


class PersonaMonitorCallback(TrainerCallback):
    """Logs each trait's projection while a model trains.

    For each vector ``persona/NAME``: the mean projection of the last prompt token over evaluation prompts (Chen et al.
    2025, section 6), less its value before the first step: the finetuning shift so far, in residual-stream units.
    That first value is logged once, as ``persona/NAME/start``; a run that is resumed takes it from there.
    With ``batch=True`` also ``persona/NAME/batch``: the mean over the tokens trained on in that step's batches, as
    the block gives them out, steered where a vaccine steers at its layer or below::

        vectors = ["evil.safetensors", "sycophantic.safetensors"]
        trainer.add_callback(PersonaMonitorCallback(vectors, every=50, trainer=trainer))

    Args:
        watched: Vectors, or files of them; one or several.
        every: Steps between readings; there is also one before the first step and one after the last.
        prompts: Evaluation prompts as text; by default the evaluation questions of all the vectors' traits.
        layer: Layer at which all vectors are read; by default where each is read: the layer of its alarms, if any.
        batch: Read the batches too.
        stop: End the training when a trait's mean over the prompts passes the alarm that calibration set for prompts
            (the one of the lowest rate).
        trainer: The trainer whose reports (TensorBoard, Weights & Biases, …) show the readings; without it the readings
            are in ``state.log_history`` and in ``history`` only.
        allow_other_model: Use vectors that were computed on another model of the same shape.

    Attributes:
        history: (step, float [k]) for each reading: the mean projection on each vector's unit direction.

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
        trainer: Trainer | None = None,
        allow_other_model: bool = False,
    ) -> None:
        sources = [watched] if isinstance(watched, (str, Path, PersonaVector)) else list(watched)
        if not sources or every < 1:
            raise InvalidArgument(
                f"{len(sources)} vectors are to be read every {every} steps; give at least one vector and one step."
            )
        self.vectors = [v if isinstance(v, PersonaVector) else vectors.load_vector(v) for v in sources]
        places = [vector.at("read", layer) for vector in self.vectors]
        self.every, self.batch, self.allow_other_model = every, batch, allow_other_model
        if prompts is None:
            prompts = [q for v in self.vectors for q in evaluation_questions(v.header.trait)]
        self.prompts = list(dict.fromkeys(prompts))
        if not self.prompts:
            raise InvalidArgument("There are 0 prompts to read; give at least one, or omit prompts.")
        if twice := sorted({v.name for v in self.vectors if [w.name for w in self.vectors].count(v.name) > 1}):
            raise InvalidArgument(
                f"Two vectors of {', '.join(twice)} would share a line of the log; watch one of each."
            )
        self.alarms = [_stop_alarm(place) for place in places] if stop else []
        self._probes = [place.probe for place in places]
        self.history: list[tuple[int, tuple[float, ...]]] = []
        self._trainer = trainer
        self._batch_projections: dict[int, list[torch.Tensor]] = {}
        self._reads_batches = self._learning_pass = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the model as it is."""
        self._model = wrap_trainer_model(kwargs["model"], kwargs["processing_class"])
        # A full fine-tune that is resumed differs from its base already; its shape still has to fit.
        allow_other = self.allow_other_model or state.global_step > 0
        for vector in self.vectors:
            check_base(vector, self._model, allow_other_model=allow_other)
        self._encoded = [self._model.encode(ask(prompt)) for prompt in self.prompts]
        self._reads_batches = False
        if self.batch:
            surround_training_steps(find_trainer(state), self, self._training_step, inner=True)
        now = self._read()
        self.history = [(state.global_step, now)]
        logged = {key: value for line in state.log_history for key, value in line.items()}
        self._start = tuple(logged.get(f"persona/{v.name}/start", x) for v, x in zip(self.vectors, now, strict=True))
        if state.global_step == 0:
            self._log({f"persona/{v.name}/start": x for v, x in zip(self.vectors, now, strict=True)}, state, control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read this step's batches, if they are due."""
        self._reads_batches = self.batch and self._due(state.global_step + 1, state.max_steps)
        self._batch_projections = {column: [] for column in range(len(self._probes))}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Read the prompts, log, and stop the training where a trait passes its alarm."""
        if not self._due(state.global_step, state.max_steps):
            return control
        now = self._read()
        self.history.append((state.global_step, now))
        logs = {f"persona/{v.name}": now[k] - self._start[k] for k, v in enumerate(self.vectors)}
        if self.batch:
            read = {k: torch.cat(values) for k, values in self._batch_projections.items() if values}
            logs |= {f"persona/{self.vectors[k].name}/batch": float(values.mean()) for k, values in read.items()}
        self._log(logs, state, control)
        if any(alarm.passed_by(value) for value, alarm in zip(now, self.alarms, strict=False)):
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the trainer as it was."""
        if self.batch:
            release_training_steps(find_trainer(state), self)

    def _log(self, logs: dict[str, float], state: Any, control: Any) -> None:
        if self._trainer is None:
            state.log_history.append(logs | {"epoch": state.epoch, "step": state.global_step})
            return
        due = control.should_log
        Trainer.log(self._trainer, logs)  # not a subclass's own, which may reset its averages
        control.should_log = due  # logging would count as the trainer's own line of this step

    def _due(self, step: int, steps: int) -> bool:
        return step % self.every == 0 or step == steps

    def _read(self) -> tuple[float, ...]:
        """Mean projection of the last prompt token over the prompts, [k]."""
        lm = self._model.lm
        training = lm.training
        lm.eval()
        try:
            with quiet(), unpacked_weights(lm):
                values = project(self._model, self._encoded, self._probes)
        finally:
            lm.train(training)
        return tuple(torch.stack([v[-1] for v in values]).mean(0).tolist())

    @contextlib.contextmanager
    def _training_step(self) -> Iterator[None]:
        """Around a training step: what its passes with gradients give is read, each once however it is checkpointed."""
        if not self._reads_batches:
            yield
            return
        with (
            observe(self._model, self._visit, sorted({p.layer for p in self._probes})),
            before_pass(self._model, self._find_trained_tokens),
            around_pass(self._model, self._begin_pass, self._end_pass),
        ):
            yield

    def _begin_pass(self) -> None:
        self._learning_pass = torch.is_grad_enabled()

    def _end_pass(self) -> None:
        self._learning_pass = False

    def _find_trained_tokens(self, arguments: dict[str, Any]) -> None:
        labels = arguments.get("labels")
        self._trained_tokens = None if labels is None else labels != IGNORED

    def _visit(self, layer: int, h: torch.Tensor) -> None:
        if not self._learning_pass:
            return
        states = h.detach().flatten(0, 1) if self._trained_tokens is None else h.detach()[self._trained_tokens]
        for column, probe in enumerate(self._probes):
            if probe.layer == layer:
                self._batch_projections[column].append(states.float() @ probe.direction.to(h.device))


def _stop_alarm(place: LayerDirection) -> Alarm:
    if (alarm := place.alarm("prompt")) is None:
        raise InvalidArgument(f"Training cannot stop at an alarm: {place.missing_alarm('prompt')}.")
    return alarm
