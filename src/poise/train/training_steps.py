"""What surrounds a trainer's training steps: contexts that are entered when a step begins and left however it ends.

Transformers' callbacks hear of steps that begin and end well, and not of those that fail; nor are they told which
trainer runs them. So the trainer is looked up by its state, which callbacks are given, and its ``training_step`` is
surrounded, on this one trainer and for this one run.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import Trainer, TrainerCallback

from poise.errors import InvalidArgument

__all__ = ["find_trainer", "release_training_steps", "surround_training_steps"]

StepContext = Callable[[], contextlib.AbstractContextManager[None]]
ATTRIBUTE = "training_step"


def find_trainer(state: Any, trainer: Trainer | None = None) -> Trainer:
    """The trainer whose run has this state; ``trainer``, if it is that one.

    Raises:
        InvalidArgument: no trainer has it, or ``trainer`` is another one than the one that runs.
    """
    if trainer is not None:
        if trainer.state is not state:
            raise InvalidArgument(
                f"trainer is a {type(trainer).__name__} other than the one that runs this callback; give that one, or "
                "omit trainer."
            )
        return trainer
    kinds: dict[type, bool] = {}
    for value in gc.get_objects():
        kind = type(value)
        if kind not in kinds:
            kinds[kind] = issubclass(kind, Trainer)
        if kinds[kind] and vars(value).get("state") is state:
            return value  # type: ignore[no-any-return]
    raise InvalidArgument("No trainer of transformers runs this callback; give trainer=, the one that does.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SurroundingContext:
    """A context of a callback's, around the training steps of one run."""

    callback: TrainerCallback
    run: Any  # the trainer's state, which tells one run from the next
    enter: StepContext
    inner: bool

    def in_force(self, trainer: Trainer) -> bool:
        """Whether the trainer is still in that run and has the callback."""
        return trainer.state is self.run and any(c is self.callback for c in trainer.callback_handler.callbacks)


class SurroundedStep:
    """A trainer's ``training_step`` within contexts, outer ones first."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.plain: Callable[..., Any] = trainer.training_step
        self.replaced = vars(trainer).get(ATTRIBUTE)
        self.contexts: list[SurroundingContext] = []
        functools.update_wrapper(self, self.plain)

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        """Take the step."""
        with contextlib.ExitStack() as contexts:
            for context in sorted(self.contexts, key=lambda c: c.inner):
                if context.in_force(self.trainer):
                    contexts.enter_context(context.enter())
            return self.plain(*args, **arguments)


def surround_training_steps(
    trainer: Trainer, callback: TrainerCallback, enter: StepContext, *, inner: bool = False
) -> None:
    """Enter a context around every further training step of the trainer's present run, in place of the callback's last.

    Args:
        trainer: Has the callback; once it has not, or runs again, nothing is entered.
        callback: The callback that the context belongs to.
        enter: Makes the context.
        inner: Enter it after those that are not inner.
    """
    release_training_steps(trainer, callback)
    step = vars(trainer).get(ATTRIBUTE)
    if not isinstance(step, SurroundedStep):
        step = SurroundedStep(trainer)
        vars(trainer)[ATTRIBUTE] = step
    step.contexts.append(SurroundingContext(callback=callback, run=trainer.state, enter=enter, inner=inner))


def release_training_steps(trainer: Trainer, callback: TrainerCallback) -> None:
    """Leave the trainer as it was before ``surround_training_steps``; does nothing where it was not called."""
    step = vars(trainer).get(ATTRIBUTE)
    if not isinstance(step, SurroundedStep):
        return
    step.contexts = [context for context in step.contexts if context.callback is not callback]
    if not step.contexts:
        del vars(trainer)[ATTRIBUTE]
        if step.replaced is not None:
            vars(trainer)[ATTRIBUTE] = step.replaced
