"""Load a model, or wrap one that is in memory: its blocks found and tried, its identity hashed."""

from __future__ import annotations

from typing import Any

import torch

from poise.arguments import check_type
from poise.errors import InvalidArgument, UnsuitableModel
from poise.model.adapter_check import check_adapter_configs, check_adapter_effect
from poise.model.architecture import decoder_blocks, model_width
from poise.model.block_check import check_blocks
from poise.model.chat_template import stop_ids, template_text
from poise.model.checkpoint import check_decoder_only
from poise.model.fingerprint import fingerprint
from poise.model.language_model import Model
from poise.model.loading import adapter_base, locate, read_weights
from poise.model.packed_weights import unpacked_weights
from poise.model.tokenizing import check_offsets

__all__ = ["best_device", "load_model", "map_model", "wrap"]


def load_model(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    four_bits: bool = False,
) -> Model:
    """Load a model by bundled name, folder, GGUF file or hub id, frozen and in evaluation mode.

    Args:
        name: What the user calls it; it is also what artefacts record.
        dtype: Default bfloat16 on a GPU and on CPUs with bfloat16 matrix units, else float32.
        device: Default ``cuda``, then ``mps``, then ``cpu``, whichever is there first.
        four_bits: Pack the weights into 4 bits while they are loaded (bitsandbytes: NF4, double quantisation), to
            train an adapter on them (QLoRA, arXiv:2305.14314).

    Raises:
        ModelNotFound: nothing there.
        BrokenModelFile: there, and unreadable.
        UnsuitableModel: no decoder blocks, blocks that cannot be read or steered, or a tokenizer without character
            offsets.
    """
    check_type("name", name, str, "a bundled name, a folder, a GGUF file or a hub id")
    check_type("dtype", dtype, (torch.dtype, type(None)), "a dtype of torch, such as torch.float32")
    try:
        where = torch.device(device) if device is not None else best_device()
    except (RuntimeError, TypeError) as error:
        raise InvalidArgument(f"device is {device!r}; give cpu, cuda, cuda:1 or mps.") from error
    lm, tokenizer = read_weights(locate(name), dtype or best_dtype(where), where, four_bits=four_bits)
    return wrap(lm.requires_grad_(False), tokenizer, name=name)


def wrap(lm: Any, tokenizer: Any, *, name: str) -> Model:
    """A ``Model`` around a model and tokenizer that are already in memory, PEFT-wrapped ones included.

    The model is put in evaluation mode; its parameters are left as they are.

    Args:
        lm: A causal language model of transformers.
        tokenizer: Its fast tokenizer.
        name: What artefacts record and messages call it.

    Raises:
        UnsuitableModel: no decoder blocks, blocks that cannot be read or steered, a tokenizer without character
            offsets, or weights that are spread over processes.
    """
    check_offsets(tokenizer, name)
    check_decoder_only(lm.config, name)
    check_adapter_configs(lm, name)
    _check_in_one_piece(lm, name)
    model = Model(
        name=name,
        lm=lm.eval(),
        tokenizer=tokenizer,
        blocks=decoder_blocks(lm),
        width=model_width(lm, name),
        fingerprint=fingerprint(lm, template_text(tokenizer)),
        stop_ids=stop_ids(lm, tokenizer),
    )
    with unpacked_weights(lm):
        check_adapter_effect(model)
        check_blocks(model)
    return model


def map_model(name: str, *, most_tokens: int | None = None) -> Model:
    """A model that another engine runs: its tokenizer, its shape, and its weights to recognise it by.

    The weights are mapped from their files in the files' own dtype, so that of those only what is looked at is read.

    Args:
        name: What the user calls it.
        most_tokens: Longest text that the engine takes.

    Raises:
        UnsuitableModel: an adapter, or a model that ``load_model`` refuses for its tokenizer or blocks.
    """
    source = locate(name)
    if adapter_base(source, name) is not None:
        raise UnsuitableModel(f"{name} is an adapter; merge it into its base with `poise merge`, and serve the result.")
    lm, tokenizer = read_weights(source, "auto", torch.device("cpu"))
    check_offsets(tokenizer, name)
    return Model(
        name=name,
        lm=lm.eval().requires_grad_(False),
        tokenizer=tokenizer,
        blocks=decoder_blocks(lm),
        width=model_width(lm, name),
        fingerprint=fingerprint(lm, template_text(tokenizer)),
        stop_ids=stop_ids(lm, tokenizer),
        most_tokens=most_tokens,
    )


def _check_in_one_piece(lm: Any, name: str) -> None:
    """Refuse a model whose weights are spread over processes: it is recognised by them, and tried block by block.

    Raises:
        UnsuitableModel: names what spread it.
    """
    shards = {
        "FSDP2": any(hasattr(weight, "full_tensor") for weight in lm.parameters()),
        "FSDP": any(type(module).__name__ == "FullyShardedDataParallel" for module in lm.modules()),
        "DeepSpeed ZeRO-3": any(hasattr(weight, "ds_id") and not weight.numel() for weight in lm.parameters()),
    }
    if way := next((way for way, spread in shards.items() if spread), None):
        raise UnsuitableModel(
            f"{name} is spread over processes ({way}), so that its weights are not all here to recognise it by; wrap "
            "it before it is sharded, as docs/training.md shows for FSDP2, or use one copy a process."
        )


def best_device() -> torch.device:
    """The device that models run on where none is named."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def best_dtype(device: torch.device) -> torch.dtype:
    if device.type != "cpu":
        return torch.bfloat16
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if flags.get("amx_bf16") or flags.get("avx512_bf16") else torch.float32
