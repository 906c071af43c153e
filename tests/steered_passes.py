"""What a block adds in each of its runs, seen without Poise's hooks; checkpointing and trainers as users bring them."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import PrinterCallback, ProgressCallback

import tiny
from poise.model import Model


@dataclass(frozen=True, kw_only=True)
class BlockRun:
    """One run of a block: the mean length of what was added to its output, and in which circumstances."""

    added: float
    gradients: bool
    generating: bool
    again: bool  # in the backward pass, outside of the model's own pass


@dataclass
class BlockRecord:
    """The runs of one block, of a model and of its reference alike."""

    runs: list[BlockRun] = field(default_factory=list)

    def added(self, **where: bool) -> list[float]:
        """What was added in the runs that fit."""
        return [run.added for run in self.runs if all(getattr(run, name) == value for name, value in where.items())]


def plain_model(lm: Any) -> Any:
    """The transformers model inside a PEFT wrapper."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def record_runs(lm: Any, layer: int, record: BlockRecord | None = None) -> BlockRecord:
    """Watch a block of Llama from within: its ``forward`` gives what hooks see, its ``_call_impl`` what they leave."""
    record = record or BlockRecord()
    model = plain_model(lm)
    block = model.model.layers[layer]
    forward, call = block.forward, block._call_impl
    before: list[torch.Tensor] = []
    state = {"generating": False, "in pass": False}

    def first(output: Any) -> torch.Tensor:
        return output[0] if isinstance(output, tuple) else output

    def see_forward(*args: Any, **arguments: Any) -> Any:
        output = forward(*args, **arguments)
        before.append(first(output).detach())
        return output

    def see_call(*args: Any, **arguments: Any) -> Any:
        output = call(*args, **arguments)
        delta = (first(output).detach().float() - before.pop().float()).norm(dim=-1).mean()
        record.runs.append(
            BlockRun(
                added=float(delta),
                gradients=torch.is_grad_enabled(),
                generating=state["generating"],
                again=not state["in pass"],
            )
        )
        return output

    def during(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def inside(*args: Any, **arguments: Any) -> Any:
            outer, state[name] = state[name], True
            try:
                return method(*args, **arguments)
            finally:
                state[name] = outer

        return inside

    block.forward, block._call_impl = see_forward, see_call
    model.model.forward = during("in pass", model.model.forward)
    model.generate = during("generating", model.generate)
    return record


def record_steps(run: Any, record: BlockRecord) -> list[BlockRun]:
    """The runs of a block that a trainer makes inside its training steps, filled while it trains."""
    inside: list[BlockRun] = []
    step = run.training_step

    def watched(*args: Any, **arguments: Any) -> Any:
        first = len(record.runs)
        try:
            return step(*args, **arguments)
        finally:
            inside.extend(record.runs[first:])

    run.training_step = watched
    return inside


class OffloadedRun(torch.autograd.Function):
    """Checkpointing as Unsloth has it: forward without gradients, and once more with them in the backward pass."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], hidden: torch.Tensor, *args: Any) -> torch.Tensor:
        with torch.no_grad():
            output = run(hidden, *args)
        ctx.save_for_backward(hidden.to("cpu"))
        ctx.run, ctx.args = run, args
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (saved,) = ctx.saved_tensors
        hidden = saved.detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.run(hidden, *ctx.args)
        torch.autograd.backward(output, grad)
        return (None, hidden.grad, *([None] * len(ctx.args)))


CHECKPOINTING: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "non-reentrant": functools.partial(checkpoint, use_reentrant=False),
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
    "offloaded": lambda run, *args: OffloadedRun.apply(run, *args),
}


def checkpoint_blocks(lm: Any, kind: str) -> None:
    """Have every block, hooks included, run under a kind of checkpointing, past what a trainer would choose.

    So do transformers before 5.23 and Unsloth; later ones leave the hooks outside, where they run once.
    """
    function = CHECKPOINTING[kind]
    if function is None:
        return
    model = plain_model(lm)
    model.enable_input_require_grads()
    model.config.use_cache = False  # a block that runs again would append to it
    for block in model.model.layers:

        def run(*args: Any, block: Any = block, call: Any = block._call_impl, **arguments: Any) -> Any:
            if not block.training:
                return call(*args, **arguments)
            return function(functools.partial(call, **arguments), *args)

        block._call_impl = run


PRECISIONS = ("float32", "bf16 autocast", "bfloat16 base")
LORA = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def policy(precision: str = "float32") -> Model:
    """A tiny model with a fresh adapter; ``Model.lm`` is the wrapper."""
    base = tiny.model("llama")
    if precision == "bfloat16 base":
        base.lm.to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            lm = get_peft_model(base.lm, LoraConfig(**LORA))
    for name, weight in lm.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    lm.config.use_cache = False
    return replace(base, lm=lm)


# Answers begin with a space, so that a prompt's tokens are the same before each of them.
PAIRS = [{"prompt": f"Tell of {i}:", "chosen": " yes indeed, friend", "rejected": " no, never"} for i in range(4)]
JUDGED = [
    {"prompt": f"Tell of {i}:", "completion": " yes indeed" if i % 2 else " no, never", "label": bool(i % 2)}
    for i in range(4)
]
TEXTS = [{"prompt": f"Tell of {i}:", "completion": " yes indeed, my friend"} for i in range(4)]
PROMPTS = [{"prompt": f"Tell of {i}:"} for i in range(4)]


def lengths(completions: list[str], **columns: Any) -> list[float]:
    """A reward that differs between answers."""
    return [float(len(completion)) for completion in completions]


def trainer_classes() -> dict[str, tuple[Any, Any, list[dict[str, Any]], dict[str, Any]]]:
    """Name: trainer, its configuration, data and further settings; those that the installed TRL has."""
    from importlib import import_module

    rl = {"max_completion_length": 6, "num_generations": 2, "num_iterations": 2, "beta": 0.1, "temperature": 1.0}
    wanted = {
        "SFTTrainer": (("trl", "trl"), "SFTConfig", TEXTS, {}),
        "DPOTrainer": (("trl", "trl"), "DPOConfig", PAIRS, {}),
        "KTOTrainer": (("trl", "trl.experimental.kto"), "KTOConfig", JUDGED, {}),
        "ORPOTrainer": (("trl.experimental.orpo", "trl"), "ORPOConfig", PAIRS, {}),
        "CPOTrainer": (("trl.experimental.cpo", "trl"), "CPOConfig", PAIRS, {}),
        "GRPOTrainer": (("trl", "trl"), "GRPOConfig", PROMPTS, rl),
        "RLOOTrainer": (("trl", "trl"), "RLOOConfig", PROMPTS, rl),
    }
    out = {}
    for name, (modules, config, data, more) in wanted.items():
        for module in modules:
            with contextlib.suppress(ImportError, AttributeError), no_warnings():
                here = import_module(module)
                out[name] = (getattr(here, name), getattr(here, config), data, more)
                break
    return out


def trl_trainer(
    name: str,
    model: Model,
    folder: Path,
    *callbacks: Any,
    precision: str = "float32",
    evaluated: bool = False,
    **options: Any,
) -> Any:
    """A trainer of TRL on a tiny model, quiet, on the CPU and without saves; it evaluates on what it learns."""
    kind, config, data, more = trainer_classes()[name]
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 2,
        "learning_rate": 0.0,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": precision == "bf16 autocast",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "seed": 0,
        **more,
    }
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    arguments: dict[str, Any] = {"reward_funcs": lengths} if "num_generations" in more else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = kind(
            model=model.lm,
            args=config(**(settings | options)),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            eval_dataset=Dataset.from_list(data) if evaluated else None,
            **arguments,
        )
    made.remove_callback(PrinterCallback)
    made.remove_callback(ProgressCallback)
    return made


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """The libraries' warnings about one another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
