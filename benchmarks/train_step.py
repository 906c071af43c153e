"""What a vaccine and a monitor cost a training step: LoRA steps of TRL's trainer, with both and with neither, in turn.

    python benchmarks/train_step.py [--model smollm2-135m] [--rows 4] [--tokens 96] [--pairs 40]

Two trainers on two copies of the model take turns, a step each, forward, backward and optimiser. One has the vaccine
as increments at all layers and the monitor; the monitor reads the prompts every ``--every`` steps, which is timed by
itself and counted as its share of a step. Peak memory is that of whole steps, a fresh process each.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from common import interleave, median, seconds, shown
from poise import contrast
from poise.extract import extract
from poise.model import load_model
from poise.steer import Steering, Term
from poise.train.monitor_callback import PersonaMonitorCallback
from poise.train.vaccine_callback import VaccineCallback
from poise.trait import library


class Stepper:
    """A trainer whose steps are taken one by one."""

    def __init__(self, given: argparse.Namespace, *, treated: bool, every: int = 10**9) -> None:
        model = load_model(given.model)
        callbacks: list[Any] = []
        if treated:
            vector = extract(contrast.exemplars(library.load_trait("evil"), model, most=8), model)
            steering = Steering((Term(vector=vector, value=1.0, layers="increments"),))
            self.monitor = PersonaMonitorCallback([vector], every=every)
            callbacks = [VaccineCallback(steering), self.monitor]
        ids = torch.arange(given.rows * given.tokens).reshape(given.rows, given.tokens) % 40000
        rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in ids]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.trainer = SFTTrainer(
                model=model.lm,
                args=SFTConfig(
                    output_dir=tempfile.mkdtemp(),
                    per_device_train_batch_size=given.rows,
                    max_steps=10**6,
                    report_to="none",
                    use_cpu=model.device.type == "cpu",
                    bf16=False,
                    gradient_checkpointing=False,
                    disable_tqdm=True,
                ),
                train_dataset=Dataset.from_list(rows),
                processing_class=model.tokenizer,
                peft_config=LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear"),
                callbacks=callbacks,
            )
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.create_optimizer_and_scheduler(10**6)
        self.trainer.state.max_steps = 10**6
        self.trainer.current_gradient_accumulation_steps = 1
        self.batch = next(iter(self.trainer.get_train_dataloader()))
        self._event("on_train_begin")

    def _event(self, name: str) -> None:
        t = self.trainer
        t.control = getattr(t.callback_handler, name)(t.args, t.state, t.control)

    def step(self) -> None:
        """Forward, backward, optimiser, with the callbacks' events around."""
        self._event("on_step_begin")
        self.trainer.training_step(self.trainer.model, dict(self.batch))
        self._event("on_pre_optimizer_step")
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        self.trainer.state.global_step += 1
        self._event("on_step_end")


def peak(given: argparse.Namespace) -> None:
    """Three steps; prints the peak of this process in MiB."""
    stepper = Stepper(given, treated=given.peak == "treated", every=1)
    for _ in range(3):
        stepper.step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10)


def main(given: argparse.Namespace) -> None:
    plain, treated = Stepper(given, treated=False), Stepper(given, treated=True)
    a, _b, ratio = interleave(plain.step, treated.step, most=given.pairs)
    reads = median([seconds(treated.monitor._read) for _ in range(3)])
    share = reads / given.every / median(a)
    print(
        f"{given.model}, {given.rows} × {given.tokens} tokens, {torch.get_num_threads()} threads: a step "
        f"{1000 * median(a):.0f} ms; with vaccine and monitor {shown(ratio)} of it, and reading "
        f"{len(treated.monitor.prompts)} prompts every {given.every} steps {share:.3f} more (goal 1.03)",
        flush=True,
    )
    for which in ("plain", "treated"):
        command = [sys.executable, __file__, "--peak", which, "--model", given.model]
        more = ["--rows", str(given.rows), "--tokens", str(given.tokens)]
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        print(f"peak memory, {which}: {done.stdout.split()[-1]} MiB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--peak", choices=["plain", "treated"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options)
    else:
        with contextlib.suppress(KeyboardInterrupt):
            main(options)
