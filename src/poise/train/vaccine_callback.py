"""``VaccineCallback``: preventative steering for the trainers that people already use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import Trainer, TrainerCallback

from poise import vector as vectors
from poise.arguments import check_choice, check_number, is_whole
from poise.errors import HookDidNotFire, InvalidArgument, InvalidSteering
from poise.model import Model, wrap
from poise.model.packed_weights import unpacked_weights
from poise.steer import Steering, SteeringExpression, Term
from poise.steer.training import Positions, TrainingSteering, check_bases
from poise.train.trainer_kinds import check_arguments, check_parallelism, reference_model, steered_trainer
from poise.train.training_steps import find_trainer, release_training_steps, surround_training_steps

__all__ = ["VaccineCallback", "vaccine_steering", "wrap_trainer_model"]


class VaccineCallback(TrainerCallback):
    """Preventative steering (Chen et al. 2025, section 5.2): a trait is added while the model learns, then is gone.

    Data that would push the model towards the trait find it pushed already, and have less to teach. For transformers'
    ``Trainer`` and TRL's trainers, with PEFT or without::

        trainer.add_callback(VaccineCallback("evil.safetensors=1.0", layers="increments"))

    It steers what the model runs inside the trainer's training steps, whatever checkpointing does with gradients: the
    policy, and what it is compared with (a reference model, earlier log-probabilities), but not rollouts. Outside of
    them, and so in evaluation, in generation and after an exception, nothing is steered. The weights never hold it, so
    that nothing has to be removed before a save. Training does not start if a block to be steered is not run, and stops
    with an error at the first step in which one was not. Added twice, it works once.

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
        steer_rollouts: Steer also what the model generates in a training step, as GRPO and RLOO do.
        trainer: The trainer that runs the callback; by default it is looked up.
        untested: Train also in ways that nobody has tried with a vaccine, such as under DeepSpeed.
        allow_other_model: Use vectors that were computed on another model of the same shape.

    Raises:
        InvalidArgument: ``warmup`` or ``decay`` is out of range, or ``layers`` is given with a ``Steering``, which has
            its own. When training begins: the trainer or its settings are not supported, or another vaccine adds the
            same vector at the same layer.
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
        steer_rollouts: bool = False,
        trainer: Trainer | None = None,
        untested: bool = False,
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
        self.marked, self.steer_rollouts = marked, steer_rollouts
        self.untested, self.allow_other_model = untested, allow_other_model
        self._given_trainer = trainer
        self._trainer: Trainer | None = None  # while it trains
        self._learning: TrainingSteering | None = None
        self._references: list[TrainingSteering] = []
        self._run: Any = None  # the trainer's state, which tells one run from the next
        self._repeats = False  # whether another callback of this run does the same
        self._surrounded_steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Arm the trainer's training steps, and check that the hooks fire."""
        if self._run is state and self._trainer is not None:
            return  # the trainer has this callback twice
        self.remove()
        trainer = find_trainer(state, self._given_trainer)
        rule = steered_trainer(trainer, untested=self.untested)
        check_parallelism(trainer, untested=self.untested)
        check_arguments(
            trainer,
            rule,
            steer_rollouts=self.steer_rollouts,
            plain=self.positions == "all" and not self.marked,
            constant=not (self.warmup or self.decay),
        )
        others = [c for c in trainer.callback_handler.callbacks if isinstance(c, VaccineCallback) and c._run is state]
        self._run, self._trainer, self._repeats = state, trainer, any(map(self._does_the_same, others))
        if self._repeats:
            return
        # A full fine-tune that is resumed differs from its base already; its shape still has to fit.
        allow_other = self.allow_other_model or state.global_step > 0
        try:
            self._learning = self._steering_of(kwargs["model"], kwargs["processing_class"], allow_other)
            if (reference := reference_model(trainer)) is not None:
                self._references = [self._steering_of(reference, kwargs["processing_class"], True)]
        except BaseException:
            self.remove()
            raise
        if args.torch_compile:
            for learning in (self._learning, *self._references):
                learning.compiled = True
        surround_training_steps(trainer, self, self._training_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the strength of this step."""
        self._surrounded_steps = 0
        for learning in self._in_force():
            learning.set(self.strength(state.global_step, state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the step was steered."""
        if self._in_force() and not self._surrounded_steps:
            raise HookDidNotFire(
                f"This step did not go through training_step of {type(self._trainer).__name__}, so training would go "
                "on without the vaccine; train with a trainer that calls it, or inside poise.steer.steer_training."
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the trainer as it was."""
        self.remove()

    def remove(self) -> None:
        """Leave the trainer as it was; does nothing where it does not train."""
        if self._trainer is not None:
            release_training_steps(self._trainer, self)
        self._trainer = self._learning = self._run = None
        self._references, self._repeats = [], False

    def strength(self, step: int, steps: int) -> float:
        """The share of the full strength at a step, counted from 0, of ``steps``."""
        up = (step + 1) / (self.warmup * steps) if self.warmup else 1.0
        down = (steps - step) / (self.decay * steps) if self.decay else 1.0
        return min(1.0, up, down)

    def _steering_of(self, lm: Any, tokenizer: Any, allow_other_model: bool) -> TrainingSteering:
        """What is done to one of the trainer's models, tried with a short pass."""
        model = wrap_trainer_model(lm, tokenizer)
        check_bases(model, self.steering, allow_other_model=allow_other_model)
        learning = TrainingSteering(model, self.steering, self.positions, marked=self.marked)
        with unpacked_weights(lm):
            learning.rehearse()
        return learning

    @contextlib.contextmanager
    def _training_step(self) -> Iterator[None]:
        """Around a training step: the policy is steered, and what it is compared with."""
        (learning, *references) = self._in_force()
        with contextlib.ExitStack() as steered:
            steered.enter_context(learning.step(rollouts=self.steer_rollouts))
            for reference in references:
                steered.enter_context(reference.step())
            yield
        learning.check()
        self._surrounded_steps += 1

    def _in_force(self) -> list[TrainingSteering]:
        """The steering of the policy, then of what it is compared with; none where another callback does the same."""
        if self._learning is None and not self._repeats:
            raise HookDidNotFire("The vaccine was removed while the model trains, so this step would go unsteered.")
        return [] if self._learning is None else [self._learning, *self._references]

    def _does_the_same(self, other: VaccineCallback) -> bool:
        """Whether another callback of this run does what this one does.

        Raises:
            InvalidArgument: it adds the same vector at the same layer, and not in the same way.
        """
        if self._settings() == other._settings() and same_terms(self.steering, other.steering):
            return True
        if twice := shared_layers(self.steering, other.steering):
            name, layer = twice
            raise InvalidArgument(
                f"Two vaccines of this trainer work along {name} at layer {layer}, which would add up; remove one with "
                "trainer.remove_callback(VaccineCallback), or give one callback both."
            )
        return False

    def _settings(self) -> tuple[Any, ...]:
        return (self.positions, self.warmup, self.decay, self.marked, self.steer_rollouts)


def same_terms(a: Steering, b: Steering) -> bool:
    """Whether two steerings do the same, with equal vectors."""
    return (
        a.orthogonal == b.orthogonal
        and len(a.terms) == len(b.terms)
        and all(
            _same_vector(one, other)
            and (one.operation, one.value, one.touched) == (other.operation, other.value, other.touched)
            and (one.layers == "increments") == (other.layers == "increments")
            for one, other in zip(a.terms, b.terms, strict=True)
        )
    )


def shared_layers(a: Steering, b: Steering) -> tuple[str, int] | None:
    """A vector and the first layer at which both steerings do the same with it."""
    for one in a.terms:
        for other in b.terms:
            layers = sorted({*one.touched} & {*other.touched})
            if layers and one.operation == other.operation and _same_vector(one, other):
                return one.vector.name, layers[0]
    return None


def _same_vector(one: Term, other: Term) -> bool:
    a, b = one.vector.directions, other.vector.directions
    return a.shape == b.shape and torch.equal(a, b)


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
        if at == "increments" and (doses := [str(t) for t in terms if t.layers is None and t.dose is not None]):
            raise InvalidSteering(
                f"layers='increments' take coefficients, and {doses[0]} is a dose; give NAME=1 in its place, or name "
                "layers by their numbers."
            )
        terms = [t if t.layers is not None else type(t).model_validate(t.model_dump() | {"layers": at}) for t in terms]
    joined = SteeringExpression(terms=tuple(terms), orthogonal=any(spec.orthogonal for spec in parsed))
    return joined.steering({name: vectors.load_vector(Path(name)) for name in joined.names})


def _check_layers(layers: object) -> None:
    numbers = layers if isinstance(layers, (list, tuple)) else [layers]
    if layers != "increments" and (not numbers or not all(is_whole(n) and n >= 0 for n in numbers)):
        raise InvalidArgument(
            f"layers is {layers!r}; give increments, a layer counted from 0, or a list of at least one."
        )


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
