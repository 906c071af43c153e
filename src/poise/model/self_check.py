"""What a model does in fact, tried on a short text: whether cached steps equal an uncached pass, and padding nothing.

Architectures differ in what they keep between steps and in what padding does to them, and one that swallows an argument
says nothing. These checks need no list of architectures, which is what makes an unknown one safe.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from poise.errors import UnsuitableModel
from poise.model.language_model import Model

__all__ = ["SelfCheck", "cache_argument", "check_model", "require_cache", "require_padding"]

CACHE_ARGUMENTS = ("past_key_values", "cache_params")
TEXT = "The harbour master counts the boats twice before the tide turns."
CHECK_TOKENS = 9
CHECK_STEPS = 2  # cached one after another
PADDING = 3
TOLERANCE = {torch.float32: 5e-3, torch.float64: 5e-3}  # mean |difference| of logits in their standard deviation
HALF_TOLERANCE = 0.1

_checks: WeakKeyDictionary[Model, SelfCheck] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """What was found. Differences are mean |Δ logit| over the logits' standard deviation; NaN where a pass failed.

    Attributes:
        cache: Argument that takes the cache; empty where there is none.
        cached: Difference of cached steps to one uncached pass.
        padded: Difference of the same steps behind padding on the left.
        tolerance: Largest difference that counts as equal in the model's dtype.
        cache_fault: Why it cannot be generated with; empty where it can.
        padding_fault: Why rows of different lengths cannot share a left-padded batch; empty where they can.
    """

    cache: str
    cached: float
    padded: float
    tolerance: float
    cache_fault: str = ""
    padding_fault: str = ""


def cache_argument(lm: Any) -> str:
    """The argument under which a model takes what it keeps between steps; empty where it has none."""
    inner = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    return _cache_argument(inner.__class__)


@functools.cache
def _cache_argument(kind: Any) -> str:
    parameters = inspect.signature(kind.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in parameters), "")


def check_model(model: Model) -> SelfCheck:
    """Try the cache and left padding on a short text, once for each model; call it while nothing is hooked."""
    if model not in _checks:
        _checks[model] = _check(model)
    return _checks[model]


def require_cache(model: Model) -> SelfCheck:
    """The check, or an error where cached steps do not give what the whole text gives.

    Raises:
        UnsuitableModel: says what was tried and what still works.
    """
    check = check_model(model)
    if check.cache_fault:
        raise UnsuitableModel(
            f"{model.name} cannot generate here: {check.cache_fault}. Its texts can still be read; use another model "
            "to generate."
        )
    return check


def require_padding(model: Model) -> SelfCheck:
    """The check, or an error where padding on the left changes what a row gives.

    Raises:
        UnsuitableModel: says by how much.
    """
    check = check_model(model)
    if check.padding_fault:
        raise UnsuitableModel(
            f"{model.name} cannot be read behind padding on the left: {check.padding_fault}. Read it with "
            "`padding`='right', which is exact."
        )
    return check


@torch.inference_mode()
def _check(model: Model) -> SelfCheck:
    tolerance = TOLERANCE.get(model.lm.dtype, HALF_TOLERANCE)
    ids = _text_ids(model)
    argument = cache_argument(model.lm)
    logits = model.lm(input_ids=ids, use_cache=False).logits.float()
    if not argument:
        fault = f"it takes no cache under {' or '.join(CACHE_ARGUMENTS)}"
        return SelfCheck(
            cache=argument,
            cached=float("nan"),
            padded=float("nan"),
            tolerance=tolerance,
            cache_fault=fault,
            padding_fault=fault,
        )
    expected = logits[:, -CHECK_STEPS - 1 :]
    if not torch.isfinite(expected).all():  # whoever generates names the token where it went wrong
        return SelfCheck(cache=argument, cached=float("nan"), padded=float("nan"), tolerance=tolerance)
    cached, fault = _difference(lambda: _cached_logits(model, ids, argument), expected)
    if not fault and not cached <= tolerance:
        fault = f"cached steps differ from one uncached pass by {cached:.2g} of the logits' spread"
    padded, padding_fault = _difference(lambda: _cached_logits(model, ids, argument, PADDING), expected)
    if not padding_fault and not padded <= tolerance:
        padding_fault = f"padding on the left changes a row by {padded:.2g} of the logits' spread"
    return SelfCheck(
        cache=argument,
        cached=cached,
        padded=padded,
        tolerance=tolerance,
        cache_fault=fault,
        padding_fault=padding_fault,
    )


def _text_ids(model: Model) -> torch.Tensor:
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:CHECK_TOKENS]
    return torch.tensor([ids], device=model.device)


def _cached_logits(model: Model, ids: torch.Tensor, argument: str, padding: int = 0) -> torch.Tensor:
    """Logits of the last ``STEPS + 1`` positions, all but the first from cached steps, behind padding on the left."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.lm.config)
    row = torch.cat([ids[:, :1].expand(1, padding), ids], dim=1)
    mask = torch.ones_like(row)
    mask[:, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    takes_positions = "position_ids" in inspect.signature(type(model.backbone).forward).parameters
    first = row.shape[1] - CHECK_STEPS
    logits = []
    for begin, end in [(0, first), *((at, at + 1) for at in range(first, row.shape[1]))]:
        extra: dict[str, Any] = {argument: cache}
        if padding:
            extra["attention_mask"] = mask[:, :end]
        if takes_positions:
            extra["position_ids"] = positions[:, begin:end]
        out = model.lm(input_ids=row[:, begin:end], use_cache=True, **extra)
        logits.append(out.logits[:, -1:].float())
    return torch.cat(logits, dim=1)


def _difference(run: Callable[[], torch.Tensor], expected: torch.Tensor) -> tuple[float, str]:
    try:
        got = run()
    except Exception as error:  # every architecture raises its own kind
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return float("nan"), f"transformers' cache does not fit it ({type(error).__name__}: {first[:120]})"
    spread = float(expected.std()) or 1.0
    return float((got - expected).abs().mean()) / spread, ""
