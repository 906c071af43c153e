"""Texts to what a fitted guardrail's detectors find in activations, where no server reads them anyway."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from poise.activations import project
from poise.errors import InvalidArgument
from poise.guardrail.findings import GuardFinding
from poise.guardrail.fit_texts import ANY_RESULT_QUESTION
from poise.guardrail.guard_file import FittedGuard, GuardDetector
from poise.guardrail.readings import ReadPlace, highest_window, tool_turns
from poise.guardrail.schema import Source
from poise.model import Encoded, Model, ask
from poise.monitor.baseline import ReadsText

__all__ = ["ActivationReader"]

ANY_QUESTION = "Go on."


class ActivationReader:
    """Reads texts by themselves: a prompt as the only turn, a tool's result after a question, answers after ``Go on.``

    Args:
        fitted: The guardrail.
        model: Model that it was fitted on.
        read_text: Reads a text, where another engine than transformers runs the model.

    Raises:
        OtherModel: the guardrail was fitted on another model.

    Attributes:
        fitted: The guardrail.
        model: The model that it was fitted on.
        read_text: What reads a text in its place, if anything does.
    """

    def __init__(self, fitted: FittedGuard, model: Model, read_text: ReadsText | None = None) -> None:
        fitted.check_model(model)
        self.fitted, self.model, self.read_text = fitted, model, read_text
        self._read = functools.lru_cache(maxsize=64)(self._readings)

    def __call__(self, text: str, source: Source) -> list[GuardFinding]:
        """Findings of all detectors of prompts, or of answers.

        Raises:
            InvalidArgument: the text does not fit the model's window.
        """
        return self._findings(text, "prompt" if source == "INPUT" else "answer", ANY_QUESTION)

    def tool_result(self, text: str, question: str = ANY_RESULT_QUESTION) -> list[GuardFinding]:
        """Findings of the detectors of tools' results.

        Args:
            text: What the tool gave, or a document.
            question: What the user asked before.

        Raises:
            InvalidArgument: the text does not fit the model's window.
        """
        return self._findings(text, "tool result", question)

    def _findings(self, text: str, place: ReadPlace, question: str) -> list[GuardFinding]:
        projections = self._projections(text, place, question)
        single = [(detector, value) for detector, value in projections if detector.read_by == "activations"]
        findings = [detector.finding(value, len(text)) for detector, value in single]
        return [finding for finding in findings if finding]

    def projections(self, text: str, source: Source) -> list[tuple[GuardDetector, float]]:
        """Each detector of this way with what it reads.

        Raises:
            InvalidArgument: the text does not fit the model's window.
        """
        return self._projections(text, "prompt" if source == "INPUT" else "answer", ANY_QUESTION)

    def _projections(self, text: str, place: ReadPlace, question: str) -> list[tuple[GuardDetector, float]]:
        detectors = self.fitted.activation_detectors
        if not any(detector.reads == place for detector in detectors):
            return []
        pairs = zip(detectors, self._read(text, place, question), strict=True)
        return [(detector, float(value)) for detector, value in pairs if detector.reads == place]

    def _readings(self, text: str, place: ReadPlace, question: str) -> NDArray[np.float64]:
        if place == "answer":
            encoded = self.model.encode(ask(question), text)
        else:
            encoded = self.model.encode(ask(text) if place == "prompt" else tool_turns(question, text))
        if len(encoded.ids) > self.model.window:
            raise InvalidArgument(
                f"The text has {len(encoded.ids):,} tokens, and the window of {self.model.name} is "
                f"{self.model.window:,}; check it in parts."
            )
        readings = self._projected(encoded)
        if place != "answer" or encoded.start >= encoded.end:
            return np.asarray(readings[encoded.last_prompt])
        return highest_window(readings[encoded.start : encoded.end])

    def _projected(self, encoded: Encoded) -> NDArray[np.float64]:
        """What each probe reads at each token, [T, k]."""
        probes = self.fitted.probes
        if self.read_text:
            columns = [self.read_text(encoded, probe) for probe in probes]
            return np.stack([column.double().cpu().numpy() for column in columns], axis=1)
        [values] = project(self.model, [encoded], probes)
        return np.asarray(values.double().numpy())
