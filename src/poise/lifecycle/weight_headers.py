"""What weight files say that they hold, read off their headers: no weight is read and no code of theirs runs."""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.errors import BrokenModelFile, first_line
from poise.settings import FrozenModel

__all__ = [
    "PART_NAMES",
    "GGUFHeader",
    "TensorHeader",
    "block_of",
    "part_of",
    "read_gguf_header",
    "read_safetensors_header",
    "safetensors_metadata",
]

LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
DTYPE_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "BF16": 16, "F16": 16, "I16": 16}
DTYPE_BITS |= {"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "C64": 64, "F4": 4}

# The first that fits names the part, so that `self_attn.q_norm` is a norm and `mlp.experts` are experts.
MODEL_PARTS = (
    ("adapter", re.compile(r"lora_|\.ia3_|adapter|prompt_encoder")),
    ("vision and audio", re.compile(r"vision|visual|audio|image_newline|^mm\.|^v\.blk")),
    ("norms", re.compile(r"norm|(^|[._])ln_?(f|\d)")),
    ("embeddings", re.compile(r"embed_tokens|word_embed|token_embd|position_embd|embed_in|embed_positions|wte|wpe")),
    ("output head", re.compile(r"(^|\.)(lm_head|embed_out|score)\b|^output\.")),
    ("experts", re.compile(r"expert|_exps|_shexp")),
    ("attention", re.compile(r"attn|attention")),
    ("feed-forward", re.compile(r"mlp|ffn|feed_forward|block_sparse_moe|fc_?[0-9]|dense")),
)
PART_NAMES = (*(name for name, _ in MODEL_PARTS), "other")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blk|blocks|layer)\.(\d+)\.")


class TensorHeader(FrozenModel):
    """One tensor as its file's header describes it.

    Attributes:
        name: Name in the file.
        file: File that holds it.
        dtype: Type of its elements, as the format writes it; of GGUF the kind of quantisation.
        shape: Elements along each axis.
        bytes: Size in the file.
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for length in self.shape:
            count *= length
        return count


class GGUFHeader(FrozenModel):
    """What a GGUF file says before its weights.

    Attributes:
        facts: Its keys and values; of lists, such as the vocabulary, their length.
        template: Its chat template; empty where it has none.
        tensors: Its tensors.
    """

    facts: dict[str, str | int | float | bool]
    template: str
    tensors: tuple[TensorHeader, ...]


def part_of(name: str) -> str:
    """Part of a model that a tensor belongs to, by its name."""
    return next((part for part, pattern in MODEL_PARTS if pattern.search(name)), "other")


def block_of(name: str) -> int | None:
    """Decoder block that a tensor belongs to, from 0; ``None`` for what stands outside of blocks."""
    matched = _BLOCK.search(name)
    return int(matched[1]) if matched else None


def read_safetensors_header(path: Path, name: str = "") -> tuple[TensorHeader, ...]:
    """Tensors of a safetensors file, whose sizes and places are checked against the file's length.

    Args:
        path: The file.
        name: What it is called in the result; otherwise its own name.

    Raises:
        BrokenModelFile: it is cut short, or its header is none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > min(LONGEST_HEADER, size - 8):
            raise BrokenModelFile(
                f"{path} is cut short or no safetensors file: its header should have {length:,} bytes and the file has "
                f"{size:,}; fetch it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends, tensors = [0], []
        for key, value in header.items():
            begin, end = value["data_offsets"]
            tensor = TensorHeader(
                name=key, file=name or path.name, dtype=value["dtype"], shape=tuple(value["shape"]), bytes=end - begin
            )
            _check_size(path, tensor)
            tensors.append(tensor)
            ends.append(end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenModelFile(f"The header of {path} cannot be read ({first_line(error)}); fetch it again.") from error
    if 8 + length + max(ends) != size:
        raise BrokenModelFile(
            f"{path} has {size:,} bytes where its header says {8 + length + max(ends):,}; it is cut short or holds "
            "something else as well. Fetch it again."
        )
    return tuple(tensors)


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Texts that a safetensors file's writer put into its header; empty where there are none or it cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, LONGEST_HEADER)))
        metadata = header.get("__metadata__") or {}
        return {str(key): str(value) for key, value in metadata.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _check_size(path: Path, tensor: TensorHeader) -> None:
    bits = DTYPE_BITS.get(tensor.dtype, 8 if tensor.dtype.startswith("F8") else 0)
    if bits and tensor.bytes * 8 != tensor.elements * bits:
        raise BrokenModelFile(
            f"{path} gives {tensor.name} {tensor.bytes:,} bytes, which is not {list(tensor.shape)} in {tensor.dtype}; "
            "fetch it again."
        )


def read_gguf_header(path: Path, name: str = "") -> GGUFHeader:
    """Keys, chat template and tensors of a GGUF file.

    Raises:
        BrokenModelFile: it is no GGUF file, or its tensors reach past its end.
    """
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BrokenModelFile(f"{path} is not a GGUF file; fetch it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader = GGUFReader(path)
        fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        facts = {key: _key_value(field) for key, field in fields.items() if key != "tokenizer.chat_template"}
        template = fields.get("tokenizer.chat_template")
        return GGUFHeader(
            facts=facts,
            template=str(template.contents()) if template else "",
            tensors=tuple(_gguf_tensors(reader.tensors, name or path.name)),
        )
    except Exception as error:  # numpy and the reader raise on whatever comes first
        raise BrokenModelFile(
            f"{path} is cut short or damaged ({path.stat().st_size:,} bytes); fetch it again."
        ) from error


def _key_value(field: Any) -> str | int | float | bool:
    """A key's value, or how many a list has."""
    if len(field.types) > 1:
        return len(field.data)
    value = field.contents()
    return value if isinstance(value, str | int | float | bool) else str(value)


def _gguf_tensors(tensors: Sequence[Any], file: str) -> list[TensorHeader]:
    return [
        TensorHeader(
            name=str(one.name),
            file=file,
            dtype=str(one.tensor_type.name),
            shape=tuple(int(length) for length in reversed(one.shape)),
            bytes=int(one.n_bytes),
        )
        for one in tensors
    ]
