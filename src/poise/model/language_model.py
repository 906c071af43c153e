"""A language model ready to be read and steered: its blocks found, its template known, its identity hashed.

The only room that knows architectures. It does not know what a trait is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from poise.errors import UnsuitableModel
from poise.model.architecture import WIDTHS, decoder_blocks, text_config
from poise.model.chat_template import Encoded, Message, Part, ask, encode, render_prompt, stop_ids, template_text
from poise.model.fingerprint import Fingerprint, fingerprint
from poise.model.loading import BUNDLED, cache_dir, check_decoder_only, locate, read_weights
from poise.model.parts import ThoughtMarks
from poise.model.rendering import Thinking
from poise.model.tokenizing import check_offsets

__all__ = [
    "BUNDLED",
    "Encoded",
    "Fingerprint",
    "Message",
    "Model",
    "ask",
    "cache_dir",
    "load_model",
    "render_prompt",
    "wrap",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """A loaded causal language model. L: decoder blocks, d: model width.

    ``blocks[i]`` is decoder block i, counted from 0; its output is layer i.
    """

    name: str
    lm: Any
    tokenizer: Any
    blocks: tuple[nn.Module, ...]
    width: int
    fingerprint: Fingerprint
    stop_ids: frozenset[int]

    @property
    def layers(self) -> int:
        """L, the number of decoder blocks."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        device = self.lm.device
        assert isinstance(device, torch.device)
        return device

    @property
    def backbone(self) -> Any:
        """The model without its language-model head: what a reading run needs."""
        lm = self.lm.get_base_model() if hasattr(self.lm, "get_base_model") else self.lm
        return lm.base_model

    @cached_property
    def thought_marks(self) -> ThoughtMarks:
        """How the model marks its thoughts."""
        return ThoughtMarks.of(self.tokenizer)

    @property
    def window(self) -> int:
        """Most tokens the model takes at once."""
        return int(getattr(text_config(self.lm.config), "max_position_embeddings", 1 << 30))

    def encode(
        self,
        messages: Sequence[Message],
        answer: str | None = None,
        *,
        part: Part = "reply",
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: Thinking = False,
    ) -> Encoded:
        """Token ids of a conversation and the span of its answer; see ``poise.model.chat_template.encode``."""
        return encode(self.tokenizer, messages, answer, part=part, tools=tools, thinking=thinking)


def load_model(name: str, *, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> Model:
    """Load a model by bundled name, folder, GGUF file or hub id, frozen and in evaluation mode.

    Args:
        name: What the user calls it; it is also what artefacts record.
        dtype: Default bfloat16 on a GPU and on CPUs with bfloat16 matrix units, else float32.
        device: Default ``cuda``, then ``mps``, then ``cpu``, whichever is there first.

    Raises:
        ModelNotFound: nothing there.
        BrokenModelFile: there, and unreadable.
        UnsuitableModel: no decoder blocks, or a tokenizer without character offsets.
    """
    where = torch.device(device) if device is not None else _best_device()
    lm, tokenizer = read_weights(locate(name), dtype or _best_dtype(where), where)
    return wrap(lm.requires_grad_(False), tokenizer, name=name)


def wrap(lm: Any, tokenizer: Any, *, name: str) -> Model:
    """A ``Model`` around a model and tokenizer that are already in memory, PEFT-wrapped ones included.

    The model is put in evaluation mode; its parameters are left as they are.

    Raises:
        UnsuitableModel: no decoder blocks, or a tokenizer without character offsets.
    """
    check_offsets(tokenizer, name)
    check_decoder_only(lm.config, name)
    _check_adapter(lm, name)
    config = text_config(lm.config)
    return Model(
        name=name,
        lm=lm.eval(),
        tokenizer=tokenizer,
        blocks=decoder_blocks(lm),
        width=next(int(getattr(config, k)) for k in WIDTHS if hasattr(config, k)),
        fingerprint=fingerprint(lm, template_text(tokenizer)),
        stop_ids=stop_ids(lm, tokenizer),
    )


def _check_adapter(lm: Any, name: str) -> None:
    """Refuse adapters that put learnt tokens before the prompt: readings and steering would look past them.

    Raises:
        UnsuitableModel: names the kind.
    """
    for config in getattr(lm, "peft_config", {}).values() if isinstance(getattr(lm, "peft_config", {}), dict) else ():
        if getattr(config, "is_prompt_learning", False):
            kind = str(getattr(config.peft_type, "value", config.peft_type)).lower().replace("_", " ")
            raise UnsuitableModel(
                f"{name} carries a {kind} adapter, whose learnt tokens are no part of the text that is read; use an "
                "adapter of the weights, such as LoRA, or the base model."
            )


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _best_dtype(device: torch.device) -> torch.dtype:
    if device.type != "cpu":
        return torch.bfloat16
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if flags.get("amx_bf16") or flags.get("avx512_bf16") else torch.float32
