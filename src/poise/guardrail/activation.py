"""Texts to what a fitted guardrail's detectors find in them, where no server reads them anyway."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from poise.activations import project
from poise.errors import InvalidArgument
from poise.guardrail.findings import GuardFinding
from poise.guardrail.guard_file import FittedGuard
from poise.guardrail.readings import highest_window
from poise.guardrail.schema import Source
from poise.model import Encoded, Model, ask
from poise.monitor.baseline import ReadsText

__all__ = ["ActivationReader"]

ANY_QUESTION = "Go on."


class ActivationReader:
    """Reads texts by themselves: a prompt as the only turn, an answer behind ``Go on.``

    Args:
        fitted: The guardrail.
        model: Model that it was fitted on.
        read_text: Reads a text, where another engine than transformers runs the model.

    Raises:
        OtherModel: the guardrail was fitted on another model.
    """

    def __init__(self, fitted: FittedGuard, model: Model, read_text: ReadsText | None = None) -> None:
        fitted.check_model(model)
        self._fitted, self._model, self._read_text = fitted, model, read_text
        self._read = functools.lru_cache(maxsize=64)(self._readings)

    def __call__(self, text: str, source: Source) -> list[GuardFinding]:
        """Findings of all detectors of this way.

        Raises:
            InvalidArgument: the text does not fit the model's window.
        """
        readings = self._read(text, source)
        pairs = zip(self._fitted.header.detectors, readings, strict=True)
        findings = [d.finding(float(value), len(text)) for d, value in pairs if d.source == source]
        return [finding for finding in findings if finding]

    def _readings(self, text: str, source: Source) -> NDArray[np.float64]:
        if source == "INPUT":
            encoded = self._model.encode(ask(text))
        else:
            encoded = self._model.encode(ask(ANY_QUESTION), text)
        if len(encoded.ids) > self._model.window:
            raise InvalidArgument(
                f"The text has {len(encoded.ids):,} tokens, and the window of {self._model.name} is "
                f"{self._model.window:,}; check it in parts."
            )
        readings = self._projected(encoded)
        if source == "INPUT" or encoded.start >= encoded.end:
            return np.asarray(readings[encoded.last_prompt])
        return highest_window(readings[encoded.start : encoded.end])

    def _projected(self, encoded: Encoded) -> NDArray[np.float64]:
        """What each probe reads at each token, [T, k]."""
        probes = self._fitted.probes
        if self._read_text:
            columns = [self._read_text(encoded, probe) for probe in probes]
            return np.stack([column.double().cpu().numpy() for column in columns], axis=1)
        [values] = project(self._model, [encoded], probes)
        return np.asarray(values.double().numpy())
