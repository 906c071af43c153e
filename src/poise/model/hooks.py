"""Hooks on decoder blocks: the one place where a forward pass is listened to or changed.

``observe`` hands out what blocks give, ``rewrite`` replaces it, ``before_pass`` sees a pass's keyword arguments first,
``around_pass`` is called when a pass begins and when it ends, and ``around_generation`` enters a context for the length
of a generation. Each is a context manager: all hooks are set or none, and all come off whatever happens inside. Hooks
run in the order in which they were set, so that an observer inside a ``rewrite`` block sees the rewritten states.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

import torch

from poise.errors import HookDidNotFire, InvalidArgument, UnsuitableModel
from poise.model.language_model import Model

__all__ = [
    "ChangeStates",
    "VisitStates",
    "around_generation",
    "around_pass",
    "before_pass",
    "checked_layers",
    "observe",
    "rewrite",
]

GENERATING = ("generate", "generate_batch")  # transformers' methods that answer prompts

VisitStates = Callable[[int, torch.Tensor], None]
ChangeStates = Callable[[int, torch.Tensor], torch.Tensor]


@contextlib.contextmanager
def observe(
    model: Model, visit: VisitStates, layers: Sequence[int] | None = None, *, stop: bool = False
) -> Iterator[None]:
    """Call ``visit(layer, hidden)`` with the output [B, T, d] of each block in every forward pass inside the block.

    Layer i is Hugging Face's ``hidden_states[i + 1]``, before the final norm. B: rows, T: tokens, d: model width.

    Args:
        model: Its blocks are hooked.
        visit: Must not change the tensor.
        layers: Counted from 0, each once; default all.
        stop: End the pass and the block once the deepest of these layers has been visited; later blocks are not run.

    Raises:
        InvalidArgument: a layer that the model does not have.
        UnsuitableModel: a block's output is not a residual stream [B, T, d]; names its shape.
        HookDidNotFire: the block ended normally and some layer was never visited; names the layers.
    """
    watched = checked_layers(model, layers)
    deepest = max(watched, default=-1) if stop else -1
    silent = set(watched)

    def hook_of(layer: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            silent.discard(layer)
            visit(layer, _residual(output, layer, model))
            if layer == deepest:
                raise _DeepestLayerDone

        return hook

    with _hooked(model, watched, hook_of), contextlib.suppress(_DeepestLayerDone):
        yield
    if silent:
        raise HookDidNotFire(f"Layers {sorted(silent)} of {model.name} were never run, so nothing was read there.")


@contextlib.contextmanager
def rewrite(
    model: Model, change: ChangeStates, layers: Sequence[int] | None = None, *, must_run: bool = True
) -> Iterator[None]:
    """Replace the output [B, T, d] of each block by ``change(layer, hidden)`` in every forward pass inside the block.

    Args:
        model: Its blocks are hooked.
        change: Returns a tensor of the same shape: the one it was given, or a new one.
        layers: Counted from 0, each once; default all.
        must_run: Whether every layer has to run before the block ends; false for a caller that checks by itself.

    Raises:
        InvalidArgument: a layer that the model does not have.
        UnsuitableModel: a block's output is not a residual stream [B, T, d]; names its shape.
        HookDidNotFire: the block ended normally and some layer was never run; names the layers.
    """
    changed_layers = checked_layers(model, layers)
    silent = set(changed_layers) if must_run else set()

    def hook_of(layer: int) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            if must_run:
                silent.discard(layer)
            h = change(layer, _residual(output, layer, model))
            return (h, *output[1:]) if isinstance(output, tuple) else h

        return hook

    with _hooked(model, changed_layers, hook_of):
        yield
    if silent:
        raise HookDidNotFire(f"Layers {sorted(silent)} of {model.name} were never run, so nothing was steered there.")


@contextlib.contextmanager
def before_pass(model: Model, look: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call ``look(arguments)`` before every pass of the whole model; what it takes out, the model does not see."""

    def hook(module: Any, args: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        look(arguments)
        return args, arguments

    handle = model.lm.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def around_pass(model: Model, begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    """Call ``begin()`` before every pass through the model's blocks, and ``end()`` after it unless the pass failed.

    A block that runs between the two is in its first run of the pass. Checkpointing runs it once more, in the backward
    pass and so outside of them.

    Raises:
        UnsuitableModel: the pass is one of ``DataParallel``, whose replicas run at once in threads.
    """

    def before(module: Any, args: Any) -> None:
        if getattr(module, "_is_replica", False):
            raise UnsuitableModel(
                f"{model.name} runs as several replicas in threads (DataParallel), which share one set of hooks; use "
                "one GPU (CUDA_VISIBLE_DEVICES=0), or one process for each (accelerate launch, torchrun)."
            )
        begin()

    def after(module: Any, args: Any, output: Any) -> None:
        end()

    backbone = model.backbone
    with contextlib.ExitStack() as hooks:
        hooks.callback(backbone.register_forward_pre_hook(before).remove)
        hooks.callback(backbone.register_forward_hook(after).remove)
        yield


@contextlib.contextmanager
def around_generation(model: Model, surround: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """Enter ``surround()`` whenever the model generates inside the block."""
    lm = model.lm.get_base_model() if hasattr(model.lm, "get_base_model") else model.lm
    before = {name: lm.__dict__.get(name) for name in GENERATING if hasattr(lm, name)}

    def surrounded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def generate(*args: Any, **arguments: Any) -> Any:
            with surround():
                return method(*args, **arguments)

        return generate

    try:
        for name in before:
            lm.__dict__[name] = surrounded(getattr(lm, name))
        yield
    finally:
        for name, method in before.items():
            if method is None:
                lm.__dict__.pop(name, None)
            else:
                lm.__dict__[name] = method


def checked_layers(model: Model, layers: Sequence[int] | None) -> list[int]:
    """The layers, each once and in the order given; all of the model's for ``None``.

    Raises:
        InvalidArgument: a layer that the model does not have.
    """
    if layers is None:
        return list(range(model.layers))
    unknown = [i for i in layers if isinstance(i, bool) or not isinstance(i, Integral) or not 0 <= i < model.layers]
    if unknown:
        raise InvalidArgument(f"{model.name} has no layer {unknown[0]!r}; its layers are 0 to {model.layers - 1}.")
    return list(dict.fromkeys(layers))


@contextlib.contextmanager
def _hooked(model: Model, layers: Sequence[int], hook_of: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(model.blocks[layer].register_forward_hook(hook_of(layer)).remove)
        yield


def _residual(output: Any, layer: int, model: Model) -> torch.Tensor:
    """The residual stream [B, T, d] in a block's output, which is a tensor or a tuple that starts with one."""
    named = hasattr(output, "_fields")  # a named tuple holds several streams
    stream = output[0] if isinstance(output, tuple) and output and not named else output
    if not isinstance(stream, torch.Tensor):
        shape = type(stream).__name__
    elif stream.ndim != 3 or stream.shape[2] != model.width or not stream.is_floating_point():
        shape = f"{list(stream.shape)} of {str(stream.dtype).removeprefix('torch.')}"
    else:
        return stream
    raise UnsuitableModel(
        f"Block {layer} of {model.name} gives {shape}; a residual stream of floating-point numbers "
        f"[rows, tokens, {model.width}] is needed to read or steer it."
    )


class _DeepestLayerDone(BaseException):
    """The deepest observed layer has run."""
