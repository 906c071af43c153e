"""One text read by a fitted guardrail for instructions hidden in it, as a tool's result is: before it, and with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from poise.errors import InvalidArgument
from poise.guardrail.readings import tool_turns
from poise.model import Encoded, ask

if TYPE_CHECKING:
    from poise.guardrail.guard_file import FittedGuard, GuardDetector
    from poise.model import Model
    from poise.model.probe import Probe

__all__ = ["InjectionReader", "InjectionReading", "result_detector"]


def result_detector(fitted: FittedGuard | None) -> tuple[GuardDetector, Probe] | None:
    """What reads tools' results, if a guardrail has it."""
    if fitted is None:
        return None
    pairs = zip(fitted.activation_detectors, fitted.probes, strict=True)
    return next((pair for pair in pairs if pair[0].reads == "tool result"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectionReading:
    """What a text read.

    Attributes:
        score: Reading with the text, less that before it or the middle of ordinary ones.
        threshold: Score above which it seems to hold instructions.
        rate: Share of ordinary texts above the threshold that is promised.
        reads: Whether that is the change by the text, or the plain reading.
    """

    score: float
    threshold: float
    rate: float
    reads: Literal["change", "plain"]

    @property
    def flagged(self) -> bool:
        """Whether it seems to hold instructions."""
        return self.score > self.threshold

    @property
    def facts(self) -> dict[str, Any]:
        """As plain values."""
        names = ("score", "threshold", "rate", "reads", "flagged")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        return f"{self.score:+.2f}, above {self.threshold:+.2f}, which {self.rate:.1%} of ordinary ones are"


class InjectionReader:
    """Reads texts with a guardrail's detector of hidden instructions.

    Args:
        fitted: A guardrail with INDIRECT_ATTACK, fitted on the model.
        model: The model.
        between: Runs work on the model while nothing else uses it.

    Raises:
        InvalidArgument: nothing in the guardrail reads tools' results.
        OtherModel: it was fitted on another model.
    """

    def __init__(
        self, fitted: FittedGuard, model: Model, *, between: Callable[[Callable[[], Any]], Any] = lambda work: work()
    ) -> None:
        fitted.check_model(model)
        pair = result_detector(fitted)
        if pair is None:
            raise InvalidArgument(
                f"The guardrail {fitted.guardrail.name} has nothing that reads tools' results; add INDIRECT_ATTACK to "
                "its `content`, and fit it with `poise guardrail fit`."
            )
        self.name = fitted.guardrail.name
        self._detector, self._probe = pair
        self._model, self._between = model, between

    def __call__(self, question: str, text: str) -> InjectionReading:
        """What a text reads that came for a question.

        Raises:
            UserError: the model's window does not hold it.
        """
        detector = self._detector
        after = self._reading(tool_turns(question, text))
        if detector.change is None:
            point, score, reads = detector.point, after - detector.centre, "plain"
        else:
            point, score, reads = detector.change, after - self._reading(ask(question)), "change"
        return InjectionReading(
            score=round(score, 4),
            threshold=round(point.value, 4),
            rate=point.rate,
            reads="plain" if reads == "plain" else "change",
        )

    def _reading(self, messages: Any) -> float:
        encoded = self._model.encode(messages)
        if len(encoded.ids) > self._model.window:
            raise InvalidArgument(
                f"A text takes {len(encoded.ids):,} tokens with its question, and the window of {self._model.name} is "
                f"{self._model.window:,}; use a model with a larger one."
            )
        last = Encoded(encoded.ids, encoded.last_prompt, encoded.last_prompt + 1)
        return float(self._between(lambda: self._read(last)))

    def _read(self, text: Encoded) -> float:
        from poise.activations import project

        [values] = project(self._model, [text], [self._probe])
        return float(values[text.last_prompt, 0])
