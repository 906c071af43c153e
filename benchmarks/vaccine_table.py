"""Which passes a vaccine steers, measured: trainer × checkpointing × precision on a tiny model; see docs/training.md.

    python benchmarks/vaccine_table.py [--trainers SFTTrainer ...]

Two training steps at learning rate 0 each. What a block adds to its output is measured inside of it, without Poise's
hooks (``tests/steered_passes.py``), over the length that the vaccine should have. Checkpointing wraps the block with
its hooks, as transformers before 5.23 and Unsloth do. Each row spans the precisions of the base. Prints a table in
Markdown, and the versions that it holds for.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import datasets
import torch

import tiny
from poise.steer import Steering
from poise.train.vaccine_callback import VaccineCallback
from steered_passes import (
    CHECKPOINTING,
    PRECISIONS,
    BlockRun,
    checkpoint_blocks,
    no_warnings,
    policy,
    record_runs,
    record_steps,
    trainer_classes,
    trl_trainer,
)

ALPHA, LAYER = 1.5, 2
INVARIANTS = {
    "DPOTrainer": (("loss", 0.693147), ("rewards/chosen", 0.0)),
    "KTOTrainer": (("loss", 0.5), ("kl", 0.0)),
    "GRPOTrainer": (("kl", 0.0), ("clip_ratio/region_mean", 0.0)),
    "RLOOTrainer": (("kl", 0.0), ("clip_ratio/region_mean", 0.0)),
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One training: its block's runs in training steps, one in evaluation mode afterwards, and the first log line."""

    inside: list[BlockRun]
    after: list[BlockRun]
    first: dict[str, float]
    length: float


def measure(name: str, checkpointing: str, precision: str) -> Measured:
    """Train two steps under a vaccine, at learning rate 0."""
    model = policy(precision)
    vector = tiny.vector(tiny.model("llama"), scale=0.5)
    vaccine = VaccineCallback(Steering.add(vector, coef=ALPHA, layer=LAYER), allow_other_model=True)
    with no_warnings(), tempfile.TemporaryDirectory() as folder:
        run = trl_trainer(name, model, Path(folder), vaccine, precision=precision)
        record = record_runs(run.model, LAYER)
        checkpoint_blocks(run.model, checkpointing)
        inside = record_steps(run, record)
        run.train()
        before = len(record.runs)
        run.model.eval()
        run.model(torch.tensor([[4, 5, 6]]))
    log = next(line for line in run.state.log_history if "loss" in line)
    return Measured(inside=inside, after=record.runs[before:], first=log, length=ALPHA * float(vector.norms[LAYER]))


def row(name: str, checkpointing: str) -> list[str]:
    """A row of the table, over all precisions."""
    trainings = [measure(name, checkpointing, precision) for precision in PRECISIONS]

    def shares(pick: Callable[[BlockRun], bool], *, after: bool = False) -> str:
        runs = [
            run.added / t.length for t in trainings for run in (t.after if after else t.inside) if after or pick(run)
        ]
        if not runs:
            return "–"
        low, high = f"{min(runs):.3f}", f"{max(runs):.3f}"
        return low if low == high else f"{low} to {high}"

    def logged(key: str, wanted: float) -> str:
        furthest = max((t.first.get(key, wanted) for t in trainings), key=lambda value: abs(value - wanted))
        return f"{key.split('/')[0]} {furthest:.4f}"

    return [
        name,
        checkpointing,
        shares(lambda run: not run.generating and not run.again),
        shares(lambda run: run.again),
        shares(lambda run: run.generating),
        shares(lambda run: True, after=True),
        ", ".join(logged(key, wanted) for key, wanted in INVARIANTS.get(name, ())) or "–",
    ]


def main(options: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    names = [name for name in trainer_classes() if not options.trainers or name in options.trainers]
    columns = ("trainer", "checkpointing", "passes", "run again", "rollouts", "after training", "untouched policy")
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for name in names:
        for checkpointing in CHECKPOINTING:
            print("| " + " | ".join(row(name, checkpointing)) + " |", flush=True)
    print(
        "\nPrecisions:",
        ", ".join(PRECISIONS) + ";",
        ", ".join(f"{name} {version(name)}" for name in ("transformers", "trl", "peft", "torch")),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="*", default=[])
    main(parser.parse_args())
