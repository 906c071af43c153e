"""What the settings beside a model's weights say: architecture, shape, vocabulary, template, licence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.errors import BrokenModelFile, first_line
from poise.lifecycle.weight_headers import GGUFHeader, TensorHeader, part_of
from poise.settings import FrozenModel

__all__ = [
    "Vocabulary",
    "architecture_words",
    "json_object",
    "licence_title",
    "read_vocabulary",
    "shape_facts",
    "stored_template",
]


class Vocabulary(FrozenModel):
    """How many tokens there are.

    Attributes:
        tokens: Entries of the tokenizer; ``None`` where it does not say without being loaded.
        special: Special ones among them.
        kind: Kind of tokenizer, as its file writes it.
        rows: Rows of the embedding, which may be more; ``None`` where there is none.
    """

    tokens: int | None
    special: int | None
    kind: str
    rows: int | None


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is no such file.

    Raises:
        BrokenModelFile: it is there, and no JSON object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BrokenModelFile(f"{path} cannot be read ({first_line(error)}); fetch or save it again.") from error
    if not isinstance(value, dict):
        raise BrokenModelFile(f"{path} holds no JSON object; fetch or save it again.")
    return value


def architecture_words(config: Mapping[str, Any], gguf: GGUFHeader | None) -> str:
    """Kind of model, as its configuration or GGUF file writes it."""
    if gguf:
        return str(gguf.facts.get("general.architecture", ""))
    architectures = config.get("architectures") or ()
    kind = str(config.get("model_type", ""))
    return f"{', '.join(map(str, architectures))} ({kind})" if architectures else kind


_SHAPE_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "num_local_experts", "num_experts", "vocab_size", "max_position_embeddings", "dtype", "torch_dtype",
    "n_embd", "n_layer", "n_head", "n_positions",
)  # fmt: skip
_GGUF_KEYS = (
    "embedding_length", "block_count", "attention.head_count", "attention.head_count_kv", "feed_forward_length",
    "expert_count", "context_length",
)  # fmt: skip


def shape_facts(config: Mapping[str, Any], gguf: GGUFHeader | None) -> dict[str, int | float | str | bool]:
    """Width, depth, heads and the like, by the names that its files use."""
    if gguf:
        kind = gguf.facts.get("general.architecture", "")
        return {key: gguf.facts[f"{kind}.{key}"] for key in _GGUF_KEYS if f"{kind}.{key}" in gguf.facts}
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, dict) else config
    return {key: values[key] for key in _SHAPE_KEYS if isinstance(values.get(key), int | float | str | bool)}


def stored_template(root: Path) -> str:
    """The chat template, from its own file or the tokenizer's settings."""
    try:
        return (root / "chat_template.jinja").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    template = json_object(root / "chat_template.json").get("chat_template")
    template = template or json_object(root / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default") or next(iter(named.values()), "")
    return template if isinstance(template, str) else ""


def read_vocabulary(root: Path, place: Path, tensors: Sequence[TensorHeader], gguf: GGUFHeader | None) -> Vocabulary:
    """How many tokens there are, as far as files say so."""
    embeddings = [one for one in tensors if part_of(one.name) == "embeddings" and len(one.shape) == 2]
    rows = max((one.shape[0] for one in embeddings), default=None)
    if gguf:
        tokens = gguf.facts.get("tokenizer.ggml.tokens")
        kind = str(gguf.facts.get("tokenizer.ggml.model", ""))
        return Vocabulary(tokens=tokens if isinstance(tokens, int) else None, special=None, kind=kind, rows=rows)
    tokenizer = {} if place.is_file() else json_object(root / "tokenizer.json")
    inner, added = tokenizer.get("model") or {}, tokenizer.get("added_tokens") or ()
    entries = inner.get("vocab") or ()
    names = set(entries) if isinstance(entries, dict) else {entry[0] for entry in entries}
    names |= {token["content"] for token in added}
    return Vocabulary(
        tokens=len(names) or None,
        special=sum(bool(token.get("special")) for token in added) if tokenizer else None,
        kind=str(inner.get("type") or ""),
        rows=rows,
    )


def licence_title(root: Path, place: Path) -> str:
    """The first line of the licence's text, where a folder has one."""
    if place.is_file():
        return ""
    for path in sorted(root.iterdir()):
        if path.name.casefold().startswith(("licence", "license", "copying")):
            try:
                lines = path.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError):
                continue
            return next((line.strip() for line in lines if line.strip()), "")
    return ""
