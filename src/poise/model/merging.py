"""An adapter merged into its base: one model of both, checked on a text before it takes its place."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poise.errors import ModelNotFound, OutputExists, UnsuitableModel
from poise.model.adapter_folder import ADAPTER_FILE, load_adapter, named_base, remark_on_base
from poise.model.loading import HUB_IDS, adapter_base, locate, read_weights
from poise.model.self_check import TEXT
from poise.progress import track
from poise.storage.disk_errors import save_failed
from poise.storage.output import check_writable, lies_in

__all__ = ["MERGE_TOLERANCE", "MergedModel", "merge_adapter"]

MERGE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Mean |difference| over mean |value| of the logits that rounding to a dtype may leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedModel:
    """What merging gave.

    Attributes:
        folder: The merged model.
        base: The base as the adapter names it.
        dtype: Precision of the saved weights, that of the base.
        difference: Mean |difference| over mean |value| of the logits on a short text, merged beside adapter on base.
        tolerance: Most that was allowed of it.
    """

    folder: Path
    base: str
    dtype: str
    difference: float
    tolerance: float


def merge_adapter(adapter: str | Path, out: str | Path, *, base: str | None = None, force: bool = False) -> MergedModel:
    """Merge an adapter into its base, and save one model of both with its tokenizer and chat template.

    Computed in float32 and saved in the base's own precision. The folder is written to its end and checked beside the
    one that it may replace, and takes its place then.

    Args:
        adapter: An adapter's folder.
        out: The folder for the merged model.
        base: The base, where the adapter's own name of it leads nowhere.
        force: Replace a folder that is there.

    Raises:
        ModelNotFound: no adapter, or no base.
        UnsuitableModel: the base is in 4 or 8 bits, the adapter's kind cannot be merged, or the merged model gives
            other logits.
        OutputExists: something is at ``out``; it is, holds or lies in the base or the adapter, with ``force`` too.
        SaveFailed: the disk refused; what was there is untouched.
    """
    source, target = str(Path(adapter).expanduser()), Path(out)
    if not (Path(source) / ADAPTER_FILE).is_file():
        raise ModelNotFound(f"{adapter} holds no {ADAPTER_FILE}, so it is no adapter; name the folder of one.")
    _check_output(target, list(_merged_places(source, base)), force=force)
    with track(f"Loading {adapter}"):
        lm, tokenizer, dtype = _load_both(source, base)
    ids = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"]])
    wanted = _logits(lm, ids)
    with track("Merging"):
        merged = _merged(lm, str(adapter)).to(dtype)
    base_name = base or str(named_base(source))
    if base:
        remark_on_base(source, base, HUB_IDS.get(base, base))
    with _replacing(target) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        del merged, lm
        saved, _ = read_weights(str(temporary), torch.float32, torch.device("cpu"))
        difference = float((_logits(saved, ids) - wanted).abs().mean() / wanted.abs().mean())
        tolerance = MERGE_TOLERANCE.get(dtype, max(MERGE_TOLERANCE.values()))
        if not difference <= tolerance:
            raise UnsuitableModel(
                f"The merged model gives other logits than the adapter on its base (mean difference {difference:.2g} "
                f"of their size, at most {tolerance:g} by rounding to {str(dtype).removeprefix('torch.')}), so it was "
                "not kept; use the adapter as it is."
            )
    return MergedModel(
        folder=target,
        base=base_name,
        dtype=str(dtype).removeprefix("torch."),
        difference=difference,
        tolerance=tolerance,
    )


def _load_both(source: str, base: str | None) -> tuple[Any, Any, torch.dtype]:
    """The adapter on its base in float32, the tokenizer, and the precision that the base is saved in."""
    from transformers import AutoConfig

    folder = locate(base) if base else adapter_base(source, source)
    if folder is None:
        raise ModelNotFound(f"{source} holds an adapter beside a model; move the adapter into a folder of its own.")
    config = AutoConfig.from_pretrained(folder)
    if quantization := getattr(config, "quantization_config", None):
        method = quantization.get("quant_method", "fewer bits") if isinstance(quantization, dict) else "fewer bits"
        raise UnsuitableModel(
            f"The base of {source}, {base or folder}, is quantised ({method}), and merged weights would be rounded to "
            "its few bits, which loses most of what an adapter adds; name what it was quantised from as `base`."
        )
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    lm, tokenizer = read_weights(folder, torch.float32, torch.device("cpu"))
    if (Path(source) / "tokenizer.json").is_file():
        from poise.model.template_file import tokenizer_with_template

        tokenizer = tokenizer_with_template(source, local_files_only=True)
    return load_adapter(lm, source, base=base or ""), tokenizer, dtype


def _merged(lm: Any, name: str) -> Any:
    try:
        return lm.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError, TypeError) as error:
        raise UnsuitableModel(
            f"{name} is an adapter of a kind that PEFT cannot merge ({error}); use it as it is, on its base."
        ) from error


@torch.inference_mode()
def _logits(lm: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = lm.eval()(input_ids=ids, use_cache=False).logits
    return logits.float().clone()


def _merged_places(source: str, base: str | None) -> Iterator[tuple[str, Path]]:
    """What merging reads, in words, and where it lies: the adapter, and each base below it as named and as loaded."""
    yield "the adapter", Path(source)
    named = base or named_base(source)
    folder = locate(base) if base else adapter_base(source, source)
    while named is not None and folder is not None:
        yield from (("the adapter's base", Path(place).expanduser()) for place in dict.fromkeys((named, folder)))
        named, folder = named_base(folder), adapter_base(folder, folder)


def _check_output(target: Path, read_places: Sequence[tuple[str, Path]], *, force: bool) -> None:
    check_writable(target.parent / f".{target.name}")
    if target.exists() and not target.is_dir():
        raise OutputExists(f"{target} is no folder; choose another output.")
    for what, place in read_places:
        if place.exists() and (lies_in(place, target) or lies_in(target, place)):
            how = "holds" if not lies_in(target, place) else "lies in" if not lies_in(place, target) else "is"
            which = f"{what} itself" if how == "is" else f"{what}, {place}"
            raise OutputExists(f"{target} {how} {which}; choose another output, outside of it.")
    if target.exists() and any(target.iterdir()) and not force:
        raise OutputExists(f"{target} is there and holds files; choose another output, or pass `force` to replace it.")


@contextlib.contextmanager
def _replacing(target: Path) -> Any:
    """A temporary folder that takes the place of ``target`` only when the block ends without an error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
            new, old = Path(place) / "new", Path(place) / "old"
            yield new
            if target.exists():
                target.replace(old)
            try:
                shutil.move(new, target)
            except OSError:
                if old.exists():
                    old.replace(target)
                raise
    except OSError as error:
        raise save_failed(f"Cannot save {target}", error, "then run the same command again") from error
