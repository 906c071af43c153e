"""Checkpoints that are whole or not at all, and steps that are numbers or not taken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from poise.errors import TrainingFailed

__all__ = ["Checkpoints", "FiniteSteps", "Progress", "drop_broken", "last_good", "sync"]

WHOLE = "whole"  # a file in a checkpoint that was written to its end


class Checkpoints(TrainerCallback):
    """Marks each checkpoint once all of it is on the disk, so that one that a kill cut short is not taken for good."""

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """After a save: sync the files, then mark the folder."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not folder.is_dir():
            return
        sync(folder)
        (folder / WHOLE).touch()
        sync(folder)


class FiniteSteps(TrainerCallback):
    """Stops before a step whose gradients are no numbers, so that the weights stay good."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Check the gradients that are about to be used."""
        gradients = [p.grad for p in given["model"].parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else torch.zeros(1)
        if not torch.isfinite(norms).all():
            good = last_good(Path(args.output_dir))
            kept = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
            raise TrainingFailed(
                f"The loss of step {state.global_step + 1} is NaN or infinite and the step was not taken; {kept}. "
                "Use a lower learning_rate, less vaccine, or dtype: float32."
            )


class Progress(TrainerCallback):
    """Tells somebody of every step."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """One more."""
        self.advance(1)


def last_good(folder: Path) -> Path | None:
    """The latest checkpoint that is whole."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def drop_broken(folder: Path) -> None:
    """Remove the checkpoints that a kill or a full disk cut short."""
    for path in folder.glob("checkpoint-*"):
        if not (path / WHOLE).exists():
            shutil.rmtree(path)


def sync(folder: Path) -> None:
    """Have every file in a folder, and the folder itself, on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
