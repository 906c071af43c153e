"""Activations of prompts for the guardrail's benchmarks, each text read once and kept in a file.

Of each text: its last token (where the answer begins), the mean over what the user said, and means of windows of 24
tokens in steps of 8, at several layers. A file per model, so that fits can be compared without reading anything again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from poise.activations import forward
from poise.guardrail.readings import WINDOW_TOKENS
from poise.model import Encoded, Message, Model, ask
from poise.model.batching import pad, plan_batches
from poise.model.hooks import observe

Reading = Literal["last", "mean", "windows"]
Array = NDArray[np.float64]
FRACTIONS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8)
STEP = 8
SAVED_EVERY = 400


class ActivationStore:
    """Activations of conversations, by their token ids.

    Args:
        model: Read in its own dtype.
        path: File that keeps them; ``None`` keeps nothing.
    """

    def __init__(self, model: Model, path: Path | None) -> None:
        self.model, self.path = model, path
        self.layers = sorted({round(f * (model.layers - 1)) for f in FRACTIONS})
        self.states: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
        if path and path.exists():
            self.states = torch.load(path, weights_only=True)
        first, second = model.encode(ask("A")).ids, model.encode(ask("7 z")).ids
        self.begins = next(n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)

    def read(self, conversations: Sequence[Sequence[Message]]) -> None:
        """Read what was not read yet."""
        encoded = {text.ids: text for text in (self.model.encode(messages) for messages in conversations)}
        fresh = [text for ids, text in encoded.items() if ids not in self.states and len(ids) <= self.model.window]
        for first in range(0, len(fresh), SAVED_EVERY):
            self._read(fresh[first : first + SAVED_EVERY])
            if self.path:
                torch.save(self.states, self.path)

    def _read(self, texts: Sequence[Encoded]) -> None:
        for rows in plan_batches([len(text.ids) for text in texts], budget=2048, most=64):
            batch = [texts[row] for row in rows]
            by_layer: list[torch.Tensor] = []
            with observe(self.model, lambda _, hidden, b=by_layer: b.append(hidden.float()), self.layers, stop=True):
                forward(self.model, pad(batch, side="right", device=self.model.device))
            for row, text in enumerate(batch):
                hidden = torch.stack([layer[row, : len(text.ids)] for layer in by_layer], dim=1)  # [T, L, d]
                said = hidden[self.begins :]
                starts = range(0, max(len(said) - WINDOW_TOKENS, 0) + 1, STEP)
                self.states[text.ids] = {
                    "last": hidden[-1].half(),
                    "mean": said.mean(0).half(),
                    "windows": torch.stack([said[s : s + WINDOW_TOKENS].mean(0) for s in starts]).half(),
                }

    def read_anew(self, ids: Sequence[tuple[int, ...]]) -> None:
        """Read texts one by one, whether they are known or not."""
        for one in ids:
            self._read([Encoded(one, len(one), len(one))])

    def features(self, conversations: Sequence[Sequence[Message]], layer: int, reading: Reading) -> Array:
        """What a direction is fitted to [n, d]; of windows, their mean."""
        return self.of_texts([self.model.encode(messages).ids for messages in conversations], layer, reading)

    def of_texts(self, ids: Sequence[tuple[int, ...]], layer: int, reading: Reading) -> Array:
        """The same, of token ids."""
        place = self.layers.index(layer)
        key = "mean" if reading == "windows" else reading
        return np.stack([self.states[one][key][place].double().numpy() for one in ids])

    def scores(self, ids: Sequence[tuple[int, ...]], layer: int, reading: Reading, direction: Array) -> Array:
        """Readings [n]; of windows, the highest."""
        if reading != "windows":
            return np.asarray(self.of_texts(ids, layer, reading) @ direction)
        place = self.layers.index(layer)
        return np.array([(self.states[one]["windows"][:, place].double().numpy() @ direction).max() for one in ids])
