"""A model that vLLM runs for Poise's server, in the server's process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from poise.errors import InvalidArgument, MissingExtra, UnsuitableModel, UserError, first_line
from poise.model import Model
from poise.model.loading import locate
from poise.model.wrapping import best_device, best_dtype, map_model
from poise.vllm.answer_rows import answer_row_processor
from poise.vllm.engine import check_installed, machine_options
from poise.vllm.step_engine import VllmStepEngine

__all__ = ["start_step_engine"]

OURS = ("model", "tokenizer", "dtype", "max_num_seqs", "logits_processors", "disable_log_stats", "max_logprobs")
"""Arguments of ``vllm.LLM`` that follow from the server's own options."""


def start_step_engine(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    batch: int = 32,
    settings: Mapping[str, Any] | None = None,
    allow_other_model: bool = False,
) -> VllmStepEngine:
    """Load a model into vLLM in this process, ready for requests that come and go.

    Args:
        name: Model by the name that ``load_model`` takes.
        dtype: What it computes in; default as for ``load_model``.
        batch: Most answers at once.
        settings: Further arguments of ``vllm.LLM``, such as ``gpu_memory_utilization`` or ``max_model_len``; by default
            as for ``VllmEngine``.
        allow_other_model: Let vectors of another model of the same shape steer and read.

    Raises:
        MissingExtra: vLLM is not installed.
        InvalidArgument: a setting that vLLM does not take, or that follows from another argument.
        UnsuitableModel: a model that the plugin cannot steer, or that reads long texts otherwise than short ones.
    """
    settings = dict(settings or {})
    if taken := [key for key in settings if key in OURS]:
        raise InvalidArgument(
            f"`engine_option` sets {taken[0]}, which follows from the server's own arguments; leave it out."
        )
    check_installed()
    model = map_model(name)
    settings = {"max_model_len": -1, "use_tqdm_on_load": False, **machine_options(), **settings}
    _check_rotary(model, settings["max_model_len"])
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        from vllm import LLM
    except ImportError as error:
        raise MissingExtra.of(f"The engine needs vllm ({error})", "vllm") from error
    from poise.vllm.plugin import register_for_engine

    register_for_engine()
    kind = str(dtype or best_dtype(best_device())).removeprefix("torch.")
    try:
        llm = LLM(
            model=locate(name),
            dtype=kind,
            max_num_seqs=batch,
            disable_log_stats=True,
            logits_processors=[answer_row_processor()],
            **settings,
        )
    except UserError:
        raise
    except (TypeError, ValueError) as error:  # what vLLM says of its arguments
        raise InvalidArgument(f"vLLM does not start with these settings: {first_line(error)}") from error
    longest = int(llm.llm_engine.vllm_config.model_config.max_model_len)
    served = replace(
        model, most_tokens=min(model.window, longest - 1)
    )  # for the reading of an answer's last token one more is generated
    return VllmStepEngine(served, llm, batch=batch, allow_other_model=allow_other_model)


def _check_rotary(model: Model, longest: Any) -> None:
    """vLLM reads all texts by one set of frequencies, and vectors belong to those of short ones.

    Raises:
        UnsuitableModel: texts may be longer than that set is for.
    """
    limit = longest if isinstance(longest, int) and longest > 0 else model.window
    if model.rotary_switch.is_long(limit):
        raise UnsuitableModel(
            f"The rotary embeddings of {model.name} change beyond {model.rotary_switch.tokens} tokens, and vLLM would "
            f"use those for long texts in short ones too; set max_model_len={model.rotary_switch.tokens}."
        )
