"""``VaccineCallback``: preventative steering for the trainers that people already use."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from transformers import TrainerCallback

from poise import vector as vectors
from poise.errors import InvalidArgument
from poise.model import Model, wrap
from poise.steer import Spec, Steering, learning
from poise.steer.training import Learning, Positions

__all__ = ["VaccineCallback", "adopt", "vaccine"]

# Which first blocks are steered in training, and by whom: a run that broke off is found by the next one, also when the
# model was wrapped in a new adapter in between.
_under: WeakKeyDictionary[Any, list[VaccineCallback]] = WeakKeyDictionary()


class VaccineCallback(TrainerCallback):
    """Preventative steering (Chen et al. 2025, section 5.2): a trait is added while the model learns, then is gone.

    Data that would push the model towards the trait find it pushed already, and have less to teach. For transformers'
    ``Trainer`` and TRL's ``SFTTrainer`` and ``DPOTrainer``, with PEFT or without::

        trainer.add_callback(VaccineCallback("evil.safetensors=1.0", layers="increments"))

    It steers passes that gradients flow through: neither evaluation nor generation nor a reference model's. The weights
    never hold it, so that nothing has to be taken off before a save. Training does not start if a block to be steered
    is not run, and stops with an error at the first step in which one was not.

    Args:
        what: A steering expression (``docs/steering.md``; names are files), several, or a ``Steering``. ``=out``
            projects the direction out instead, in training only (CAFT).
        layers: For terms that name no layers: their numbers, ``increments`` at all of them, or by default the vector's
            own layer.
        positions: ``all`` tokens as in the paper, or only those of the ``response`` (with a label).
        warmup: Share of the steps over which the strength rises from 0.
        decay: Share of the steps over which it falls to 0 at the end.
        marked: Steer only the rows that a batch marks, bool [B] under ``vaccinated``; see
            ``poise.train.examples.marking``.
        allow_other_model: Use vectors that were computed on another model of the same shape.

    Raises:
        InvalidArgument: a share out of range, or layers for a ``Steering``, which has its own.
        InvalidSteering: the expression cannot be read, or is no plain steering.
    """

    def __init__(
        self,
        what: str | Sequence[str] | Steering,
        *,
        layers: Literal["increments"] | int | Sequence[int] | None = None,
        positions: Positions = "all",
        warmup: float = 0.0,
        decay: float = 0.0,
        marked: bool = False,
        allow_other_model: bool = False,
    ) -> None:
        for name, share in (("warmup", warmup), ("decay", decay)):
            if not 0 <= share <= 1:
                raise InvalidArgument(f"{name} is {share}; it is a share of the steps, from 0 to 1.")
        if warmup + decay > 1:
            raise InvalidArgument(f"warmup and decay take {warmup + decay:g} of the steps; together at most 1.")
        if isinstance(what, Steering) and layers is not None:
            raise InvalidArgument(f"layers={layers!r} goes with an expression; a Steering names its own.")
        self.steering = what if isinstance(what, Steering) else vaccine(what, layers)
        self.positions, self.warmup, self.decay = positions, warmup, decay
        self.marked, self.allow_other_model = marked, allow_other_model
        self._learning: Learning | None = None
        self._run: Any = None
        self._hooks = contextlib.ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Set the hooks, and see that they fire."""
        lm = given["model"]
        model = adopt(lm, given["processing_class"])
        beside = _under.setdefault(model.blocks[0], [])
        for other in [one for one in beside if one._run is not state]:
            other.remove()  # its run broke off with an error
        # A full fine-tune that is resumed has left its base behind; its shape still has to fit.
        known = self.allow_other_model or state.global_step > 0
        self._learning = self._hooks.enter_context(
            learning(model, self.steering, positions=self.positions, marked=self.marked, allow_other_model=known)
        )
        self._run = state
        beside.append(self)
        self._hooks.callback(beside.remove, self)
        try:
            self._learning.rehearse()
        except BaseException:
            self.remove()
            raise
        self._compiled = bool(args.torch_compile) or any(_is_compiled(module) for module in (lm, *model.blocks))

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The strength of this step."""
        assert self._learning is not None
        self._learning.begin()
        self._learning.set(self.strength(state.global_step, state.max_steps))

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """No step goes by unsteered."""
        assert self._learning is not None
        if not self._compiled:  # a compiled pass keeps no books
            self._learning.check()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Take the hooks off."""
        self.remove()

    def remove(self) -> None:
        """Take the hooks off, say after training broke off with an error; nothing where there are none."""
        self._hooks.close()
        self._learning = self._run = None

    def strength(self, step: int, steps: int) -> float:
        """The share of the full strength at a step, from 0, of so many."""
        up = (step + 1) / (self.warmup * steps) if self.warmup else 1.0
        down = (steps - step) / (self.decay * steps) if self.decay else 1.0
        return min(1.0, up, down)


def vaccine(what: str | Sequence[str], layers: Literal["increments"] | int | Sequence[int] | None = None) -> Steering:
    """A steering from expressions whose names are files; ``layers`` for those terms that name none.

    Raises:
        InvalidSteering: cannot be read; says what can.
        InvalidVector: a file is no vector.
    """
    parsed = [Spec.parse(text) for text in ([what] if isinstance(what, str) else what)]
    chosen = layers if layers is None or layers == "increments" else (layers,) if isinstance(layers, int) else layers
    terms = [t for spec in parsed for t in spec.terms]
    if chosen is not None:
        at = chosen if isinstance(chosen, str) else tuple(chosen)
        terms = [t if t.layers is not None else type(t).model_validate(t.model_dump() | {"layers": at}) for t in terms]
    whole = Spec(terms=tuple(terms), orthogonal=any(spec.orthogonal for spec in parsed))
    return whole.steering({name: vectors.load(Path(name)) for name in whole.names})


def _is_compiled(module: Any) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def adopt(lm: Any, tokenizer: Any) -> Model:
    """A trainer's model as Poise knows models, in the mode (training or evaluation) that it was in."""
    if tokenizer is None:
        raise InvalidArgument("The trainer has no tokenizer to know its model by; give it processing_class=tokenizer.")
    training = lm.training
    name = str(getattr(lm.config, "_name_or_path", "") or type(lm).__name__)
    model = wrap(lm, getattr(tokenizer, "tokenizer", tokenizer), name=name)
    lm.train(training)
    return model
