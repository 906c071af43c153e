"""``VaccineCallback``: preventative steering for the trainers that people already use."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

from transformers import TrainerCallback

from poise import vector as vectors
from poise.arguments import check_choice, check_number, is_whole
from poise.errors import HookDidNotFire, InvalidArgument, InvalidSteering
from poise.model import Model, wrap
from poise.steer import Steering, SteeringExpression, steer_training
from poise.steer.training import Positions, TrainingSteering

__all__ = ["VaccineCallback", "vaccine_steering", "wrap_trainer_model"]

# Callbacks whose hooks are on a model, by its first block: hooks that an interrupted run left behind are removed by the
# next run, also when the model was wrapped in a new adapter in between.
_active_callbacks: WeakKeyDictionary[Any, list[VaccineCallback]] = WeakKeyDictionary()


class VaccineCallback(TrainerCallback):
    """Preventative steering (Chen et al. 2025, section 5.2): a trait is added while the model learns, then is gone.

    Data that would push the model towards the trait find it pushed already, and have less to teach. For transformers'
    ``Trainer`` and TRL's ``SFTTrainer`` and ``DPOTrainer``, with PEFT or without::

        trainer.add_callback(VaccineCallback("evil.safetensors=1.0", layers="increments"))

    It steers the passes that gradients flow through, and so neither evaluation nor generation nor a reference model.
    The weights never hold it, so that nothing has to be removed before a save. Training does not start if a block to
    be steered is not run, and stops with an error at the first step in which one was not.

    Args:
        steering: A steering expression (``docs/steering.md``; names are files), several, or a ``Steering``. ``=out``
            projects the direction out instead, in training only (CAFT).
        layers: Layers of terms that name none: their numbers, ``increments`` for all of them, or by default the
            vector's own layer.
        positions: ``all`` tokens as in the paper, or only those of the ``response`` (with a label).
        warmup: Share of the steps over which the strength rises from 0.
        decay: Share of the steps over which it falls to 0 at the end.
        marked: Steer only the rows that a batch marks, bool [B] under ``vaccinated``; see
            ``poise.train.examples.marking_collator``.
        allow_other_model: Use vectors that were computed on another model of the same shape.

    Raises:
        InvalidArgument: ``warmup`` or ``decay`` is out of range, or ``layers`` is given with a ``Steering``, which has
            its own.
        InvalidSteering: the expression cannot be read, or is no plain steering.
    """

    def __init__(
        self,
        steering: str | Sequence[str] | Steering,
        *,
        layers: Literal["increments"] | int | Sequence[int] | None = None,
        positions: Positions = "all",
        warmup: float = 0.0,
        decay: float = 0.0,
        marked: bool = False,
        allow_other_model: bool = False,
    ) -> None:
        check_number("warmup", warmup, least=0, most=1)
        check_number("decay", decay, least=0, most=1)
        check_choice("positions", positions, get_args(Positions))
        if warmup + decay > 1:
            raise InvalidArgument(f"warmup and decay take {warmup + decay:g} of the steps; together at most 1.")
        if isinstance(steering, Steering) and layers is not None:
            raise InvalidArgument(f"layers={layers!r} goes with an expression; a Steering names its own.")
        self.steering = steering if isinstance(steering, Steering) else vaccine_steering(steering, layers)
        self.positions, self.warmup, self.decay = positions, warmup, decay
        self.marked, self.allow_other_model = marked, allow_other_model
        self._learning: TrainingSteering | None = None
        self._run: Any = None  # the trainer's state, which tells one run from the next
        self._hooks = contextlib.ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Register the hooks, and check that they fire."""
        lm = kwargs["model"]
        model = wrap_trainer_model(lm, kwargs["processing_class"])
        active = _active_callbacks.setdefault(model.blocks[0], [])
        for stale in [callback for callback in active if callback._run is not state]:
            stale.remove()  # its run ended with an error
        # A full fine-tune that is resumed differs from its base already; its shape still has to fit.
        allow_other = self.allow_other_model or state.global_step > 0
        self._learning = self._hooks.enter_context(
            steer_training(
                model, self.steering, positions=self.positions, marked=self.marked, allow_other_model=allow_other
            )
        )
        self._run = state
        active.append(self)
        self._hooks.callback(active.remove, self)
        try:
            self._learning.rehearse()
        except BaseException:
            self.remove()
            raise
        self._compiled = bool(args.torch_compile) or any(_is_compiled(module) for module in (lm, *model.blocks))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the strength of this step."""
        active = self._in_force()
        active.begin()
        active.set(self.strength(state.global_step, state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the step was steered."""
        active = self._in_force()
        if not self._compiled:  # a compiled pass does not record which hooks fired
            active.check()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hooks."""
        self.remove()

    def remove(self) -> None:
        """Remove the hooks, e.g. after training ended with an error; does nothing where there are none."""
        self._hooks.close()
        self._learning = self._run = None

    def _in_force(self) -> TrainingSteering:
        if self._learning is None:
            raise HookDidNotFire("The vaccine was removed while the model trains, so this step would go unsteered.")
        return self._learning

    def strength(self, step: int, steps: int) -> float:
        """The share of the full strength at a step, counted from 0, of ``steps``."""
        up = (step + 1) / (self.warmup * steps) if self.warmup else 1.0
        down = (steps - step) / (self.decay * steps) if self.decay else 1.0
        return min(1.0, up, down)


def vaccine_steering(
    expressions: str | Sequence[str], layers: Literal["increments"] | int | Sequence[int] | None = None
) -> Steering:
    """A steering from expressions whose names are files; ``layers`` for those terms that name none.

    Raises:
        InvalidSteering: an expression cannot be read; says what can.
        InvalidVector: a file is no vector.
    """
    texts = [expressions] if isinstance(expressions, str) else expressions
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in texts):
        raise InvalidSteering(
            f"The steering is {texts!r}; give an expression such as 'evil.safetensors=1', a list of them, or a "
            "Steering."
        )
    parsed = [SteeringExpression.parse(text) for text in texts]
    terms = [t for spec in parsed for t in spec.terms]
    if layers is not None:
        _check_layers(layers)
        at = layers if isinstance(layers, str) else (layers,) if isinstance(layers, int) else tuple(layers)
        terms = [t if t.layers is not None else type(t).model_validate(t.model_dump() | {"layers": at}) for t in terms]
    joined = SteeringExpression(terms=tuple(terms), orthogonal=any(spec.orthogonal for spec in parsed))
    return joined.steering({name: vectors.load_vector(Path(name)) for name in joined.names})


def _check_layers(layers: object) -> None:
    numbers = layers if isinstance(layers, (list, tuple)) else [layers]
    if layers != "increments" and (not numbers or not all(is_whole(n) and n >= 0 for n in numbers)):
        raise InvalidArgument(
            f"layers is {layers!r}; give increments, a layer counted from 0, or a list of at least one."
        )


def _is_compiled(module: Any) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def wrap_trainer_model(lm: Any, tokenizer: Any) -> Model:
    """A trainer's model as a ``Model``, left in the mode (training or evaluation) that it was in.

    Raises:
        InvalidArgument: the trainer has no tokenizer.
    """
    if tokenizer is None:
        raise InvalidArgument(
            "The trainer has no tokenizer, by which its model is recognised; give it processing_class=tokenizer."
        )
    training = lm.training
    name = str(getattr(lm.config, "_name_or_path", "") or type(lm).__name__)
    model = wrap(lm, getattr(tokenizer, "tokenizer", tokenizer), name=name)
    lm.train(training)
    return model
