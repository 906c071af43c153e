"""A model's tokenizer without its weights: enough to say which text and which tokens would be read or learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from poise.errors import BrokenModelFile, ModelNotFound, UnsuitableModel, UserError, first_line
from poise.model.architecture import text_config
from poise.model.chat_template import Encoded, Message, Part, encode, stop_ids
from poise.model.checkpoint import check_decoder_only
from poise.model.loading import (
    BUNDLED,
    adapter_base,
    check_has_tokenizer,
    converted_folder,
    is_only_local,
    locate,
)
from poise.model.template_file import tokenizer_with_template

__all__ = ["ModelTokenizer", "check_offsets", "load_tokenizer", "token_texts"]

NO_LIMIT = 1 << 30  # tokens, where nobody says how much a model reads at once


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelTokenizer:
    """What of a model is needed to tokenise conversations for it.

    Attributes:
        name: What the user calls the model.
        tokenizer: Its fast tokenizer, with the chat template.
        window: Most tokens that it reads at once.
        stop_ids: Every token that ends an answer.
    """

    name: str
    tokenizer: Any
    window: int
    stop_ids: frozenset[int]

    def encode(
        self,
        messages: Sequence[Message],
        answer: str | None = None,
        *,
        part: Part = "reply",
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Encoded:
        """Token ids of a conversation and the span of its answer; see ``poise.model.chat_template.encode``."""
        return encode(self.tokenizer, messages, answer, part=part, tools=tools)

    @classmethod
    def of(cls, tokenizer: Any, *, config: Any = None, generation: Any = None, name: str = "") -> ModelTokenizer:
        """Around a tokenizer; without its model's configurations it has no window, and fewer tokens end an answer."""
        name = name or str(getattr(tokenizer, "name_or_path", "")) or "the tokenizer"
        check_offsets(tokenizer, name)
        window = getattr(text_config(config), "max_position_embeddings", NO_LIMIT) if config else NO_LIMIT
        stops = stop_ids(SimpleNamespace(generation_config=generation), tokenizer)
        return cls(name=name, tokenizer=tokenizer, window=int(window), stop_ids=stops)


def check_offsets(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that does not say which characters its tokens cover.

    Raises:
        UnsuitableModel: names the model.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UnsuitableModel(
            f"The tokenizer of {name} gives no character offsets; response spans need a fast tokenizer."
        )


def load_tokenizer(name: str) -> ModelTokenizer:
    """The tokenizer of a model, by the name that ``load_model`` takes; no weights are read and nothing is converted.

    Raises:
        ModelNotFound: nothing there, or a bundled model that was not fetched yet.
        BrokenModelFile: there, and unreadable.
        UnsuitableModel: a tokenizer without character offsets, or no model that Poise can read.
    """
    from transformers import AutoConfig, GenerationConfig

    source, gguf = _locate_light(name)
    tokens = ""
    if not gguf and (base := adapter_base(source, name)) is not None:
        tokens = source if (Path(source) / "tokenizer.json").is_file() else base
        source = base
    try:
        options: dict[str, Any] = {"gguf_file": gguf} if gguf else {"local_files_only": is_only_local(source)}
        config = AutoConfig.from_pretrained(source, **options)
        check_decoder_only(config, name)
        tokenizer = tokenizer_with_template(tokens or source, **options)
        try:
            generation = GenerationConfig.from_pretrained(source, **({} if gguf else options))
        except OSError:  # a model without a file of its own for it
            generation = GenerationConfig.from_model_config(config)
    except UserError:
        raise
    except Exception as error:  # transformers, tokenizers and the hub client share no base class
        check_has_tokenizer(source)
        raise BrokenModelFile(
            f"The tokenizer of {name} cannot be loaded ({first_line(error)}); fetch or save the model again."
        ) from error
    return ModelTokenizer.of(tokenizer, config=config, generation=generation, name=name)


def _locate_light(name: str) -> tuple[str, str | None]:
    """A folder or hub id, and of a GGUF file that was not converted yet its folder and name."""
    if (folder := converted_folder(name)) is not None:
        return str(folder), None
    if name in BUNDLED:
        raise ModelNotFound(f"{name} was not fetched yet; any command that runs it fetches it once.")
    path = Path(name).expanduser()
    return (str(path.parent), path.name) if path.is_file() else (locate(name), None)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token's own text; empty for the first tokens of a character that several make."""
    texts: list[str] = []
    context = begin = 0  # spaces depend on the token before

    def decode(first: int, last: int) -> str:
        return str(tokenizer.decode(ids[first:last], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    for end in range(1, len(ids) + 1):
        text = decode(context, end)
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(decode(context, begin)) :])
        context, begin = begin, end
    return tuple(texts)
