"""Checkpoints that are complete or ignored, and steps whose gradients are finite or not taken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from poise.errors import TrainingFailed

__all__ = [
    "CheckpointMarker",
    "FiniteGradients",
    "LastStepEvaluation",
    "StepProgress",
    "last_complete_checkpoint",
    "remove_incomplete_checkpoints",
    "sync_folder",
]

COMPLETE_MARKER = "whole"  # name of an empty file in a checkpoint that was written to its end; never change it


class CheckpointMarker(TrainerCallback):
    """Marks each checkpoint once all of it is on the disk, so that one cut short by a kill is never resumed from."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sync the files, then mark the folder."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if not state.is_world_process_zero or not folder.is_dir():
            return
        _replace_cards(folder)
        sync_folder(folder)
        (folder / COMPLETE_MARKER).touch()
        sync_folder(folder)


CARD = """# Checkpoints of a run of `poise train`

From these a run that was interrupted goes on; the same command finds them. The last two are kept, and the best where
`load_best_model_at_end` asks for it. They are no result: that is in the folder above, once `train.json` is there.
"""


def _replace_cards(checkpoint: Path) -> None:
    """Put in place of TRL's and PEFT's cards, which know neither base nor data, what these folders are."""
    (checkpoint / "README.md").unlink(missing_ok=True)
    card = checkpoint.parent / "README.md"
    if not card.exists() or card.read_text("utf-8") != CARD:
        card.write_text(CARD, encoding="utf-8")


class FiniteGradients(TrainerCallback):
    """Stops before a step whose gradients are NaN or infinite, so that the weights stay good.

    Args:
        skipped: How many such steps one after another are left to loss scaling, which skips them and scales less.
    """

    def __init__(self, *, skipped: int = 0) -> None:
        self.most_skipped, self._skipped = skipped, 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the gradients that are about to be used."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else torch.zeros(1)
        self._skipped = 0 if torch.isfinite(norms).all() else self._skipped + 1
        if self._skipped > self.most_skipped:
            checkpoint = last_complete_checkpoint(Path(args.output_dir))
            saved = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
            raise TrainingFailed(
                f"The loss of step {state.global_step + 1} is NaN or infinite and the step was not taken; {saved}. "
                "Use a lower learning_rate, less vaccine, or dtype: float32."
            )


class LastStepEvaluation(TrainerCallback):
    """Evaluates after the last step too, however many steps lie between evaluations."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for an evaluation after the last step."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


class StepProgress(TrainerCallback):
    """Reports every step to a progress bar."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance = advance

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance by one step."""
        self.advance(1)


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE_MARKER}")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_incomplete_checkpoints(folder: Path) -> None:
    """Remove the checkpoints that were cut short by a kill or a full disk."""
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE_MARKER).exists():
            shutil.rmtree(path)


def sync_folder(folder: Path) -> None:
    """Flush every file in a folder, and the folder itself, to the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync_file(path)
    _sync_file(folder)


def _sync_file(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
