"""``Model``: a language model with its blocks, its tokenizer and its fingerprint; made by ``poise.model.wrapping``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from poise.model.adapter_structure import has_adapter_layers
from poise.model.architecture import model_window
from poise.model.chat_template import Encoded, Message, Part, encode
from poise.model.fingerprint import Fingerprint
from poise.model.forward_settings import ForwardSettings, forward_settings
from poise.model.parts import ThoughtMarks
from poise.model.rendering import Thinking
from poise.model.rotary import RotarySwitch, rotary_switch
from poise.model.sketch import WeightSketch, sketch_weights

__all__ = ["Model"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Model:
    """A loaded causal language model. L: decoder blocks, d: model width.

    ``blocks[i]`` is decoder block i, counted from 0; its output is layer i. ``most_tokens`` is the longest text that an
    engine elsewhere takes, where that is less than the model's own window.
    """

    name: str
    lm: Any
    tokenizer: Any
    blocks: tuple[nn.Module, ...]
    width: int
    fingerprint: Fingerprint
    stop_ids: frozenset[int]
    most_tokens: int | None = None

    def __repr__(self) -> str:
        kind, dtype = type(self.lm).__name__, str(self.lm.dtype).removeprefix("torch.")
        return f"Model({self.name!r}, {kind}, L={self.layers}, d={self.width}, {dtype} on {self.device})"

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

    @cached_property
    def sketch(self) -> WeightSketch:
        """What its weights are compared by with those of other models, as they are when it is first asked for."""
        return sketch_weights(self.lm)

    @property
    def forward_settings(self) -> ForwardSettings:
        """What its forward pass depends on besides the base's weights, as it is now."""
        return forward_settings(self.lm, adapted=bool(self.fingerprint.adapter) or has_adapter_layers(self.lm))

    @property
    def window(self) -> int:
        """Most tokens the model takes at once."""
        window = model_window(self.lm.config)
        return window if self.most_tokens is None else min(window, self.most_tokens)

    @cached_property
    def rotary_switch(self) -> RotarySwitch:
        """From which length its rotary embeddings are others."""
        return rotary_switch(self.lm)

    def generation_window(self, prompt: int = 0) -> int:
        """Most tokens of prompt and answer together: an answer cannot go past the switch of the rotary embeddings.

        What is kept between steps was computed with the frequencies of the prompt's length.
        """
        switch = self.rotary_switch
        return self.window if switch.is_long(prompt) else min(self.window, switch.tokens)

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
