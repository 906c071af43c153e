"""Limits on what fine-tuning may do, and the gate that checks them: for people, for CI, for GitHub's job page.

The gate checks a shift report or, before any training, what screening predicts from the data.

A limit is kept when the whole interval lies within it, broken when the whole interval lies beyond it, and otherwise
unsure. On fewer units than ``min_n`` it is only indicative. What is indicative or was not measured never passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree

from pydantic import Field, model_validator

from poise.arguments import check_type
from poise.errors import InvalidArgument
from poise.settings import Settings, read_settings
from poise.shift.limit_range import LimitOutcome, LimitRange, StrictNumber, TwoSidedLimit
from poise.shift.report import ModelShift, ShiftReport, estimate_change, estimate_mean, estimate_score_change
from poise.statistics.estimates import Estimate

__all__ = [
    "GateResult",
    "LimitCheck",
    "LimitRange",
    "ShiftLimits",
    "TraitLimits",
    "check_limits_are_measured",
    "gate",
    "gate_predictions",
    "junit_xml",
    "markdown_summary",
    "read_limits",
]

MARKDOWN_BEGINS = "### Poise gate: "
XML_HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'
SUITE = "poise gate"
JUNIT_BEGINS = f'{XML_HEAD}<testsuite name="{SUITE}"'
BASE_IS_GUESSING = "the base is not shown to answer better than chance, so nothing could be lost"


class TraitLimits(Settings):
    """Limits on one trait; at least one of them. A number above 0 limits both ways: 2 allows from −2 to 2."""

    shift: TwoSidedLimit = Field(None, description="Finetuning shift of its own questions along its direction.")
    judged: TwoSidedLimit = Field(None, description="Change of the judge's score, in points of 100.")
    predicted: TwoSidedLimit = Field(None, description="Mean projection difference of the training data.")

    @model_validator(mode="after")
    def _says_something(self) -> TraitLimits:
        if self.shift is self.judged is self.predicted is None:
            raise ValueError("needs shift, judged or predicted")
        return self


class ShiftLimits(Settings):
    """Limits on traits and capability, as a limits file holds them."""

    confidence: Annotated[float, Field(strict=True, ge=0.5, lt=1)] = Field(
        0.95, description="Confidence of the intervals; those of predictions always have 0.95."
    )
    unsure: Literal["fail", "pass"] = Field("fail", description="What a limit inside the interval does.")
    min_n: Annotated[int, Field(strict=True, ge=2)] = Field(
        10, description="Fewest questions, conversations or rows of a verdict; on fewer it is indicative and fails."
    )
    missing: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        0.1, description="Largest share of a measurement that may be without a value; above it, it counts as missing."
    )
    traits: dict[str, TraitLimits] = Field(default_factory=dict)
    capability: dict[str, StrictNumber] = Field(
        default_factory=dict, description="perplexity: most after / before. Others: most accuracy lost."
    )

    @model_validator(mode="after")
    def _says_something(self) -> ShiftLimits:
        if not self.traits and not self.capability:
            raise ValueError("limits nothing; name a trait or a capability")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitCheck:
    """One limit beside what was measured.

    Attributes:
        tuned: Name of the tuned model, or of the data before any training.
        limit_of: What is limited: ``evil: shift``, ``evil: judged score``, ``evil: predicted``, ``mmlu: accuracy
            lost``.
        limit: What keeps the limit.
        measured: The measured value, with its interval at the limits' confidence (0.95 for predictions); ``None``
            where it is missing.
        outcome: ``kept``: the whole interval lies within the limit; ``broken``: the whole interval lies beyond it;
            ``unsure``: the interval includes the limit; ``indicative``: measured on fewer units than ``min_n``;
            ``missing``: not measured.
        passed: Whether the gate lets it through.
        explanation: All of it in a sentence.
    """

    tuned: str
    limit_of: str
    limit: LimitRange
    measured: Estimate | None
    outcome: LimitOutcome
    passed: bool
    explanation: str


@dataclass(frozen=True, slots=True)
class GateResult:
    """The outcome of a gate: every limit checked on every tuned model."""

    checks: tuple[LimitCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether there is a check, and every one passed."""
        return bool(self.checks) and all(c.passed for c in self.checks)


def read_limits(path: Path) -> ShiftLimits:
    """Read a limits file.

    Raises:
        InvalidSettings: the file is not there, is not YAML, or breaks the schema; names every fault with its line and
            field.
    """
    check_type("path", path, (str, Path), "the path of a limits file, such as 'limits.yaml'")
    return read_settings(path, ShiftLimits)


def check_limits_are_measured(
    limits: ShiftLimits,
    traits: Sequence[str],
    abilities: Sequence[str],
    *,
    judged: bool,
    tuned: bool = True,
    screened: bool = False,
) -> None:
    """Check, before hours of work, that everything that is limited will be measured.

    Args:
        limits: The limits.
        traits: Traits whose vectors are measured.
        abilities: Names of the capability tasks.
        judged: Whether answers are judged.
        tuned: Whether there is a tuned model.
        screened: Whether training data are screened.

    Raises:
        InvalidArgument: names all limits that nothing would measure.
    """
    trait_limits = limits.traits.values()
    lacking = [f"`vector` of {name}" for name in limits.traits if name not in traits]
    lacking += [f"`capability` {name}" for name in limits.capability if name not in abilities]
    if not tuned and (limits.capability or any((limit.shift, limit.judged) != (None, None) for limit in trait_limits)):
        lacking.append("`tuned`")
    elif not judged and any(limit.judged is not None for limit in trait_limits):
        lacking.append("`judge`")
    if not screened and any(limit.predicted is not None for limit in trait_limits):
        lacking.append("`data`")
    if lacking:
        raise InvalidArgument(
            f"The limits need what is not measured: {', '.join(lacking)}; give it, or drop the limit."
        )


def gate(report: ShiftReport, limits: ShiftLimits) -> GateResult:
    """Check every tuned model of a report against limits::

        result = gate(report, ShiftLimits(traits={"evil": {"shift": 1.0}}))

    Args:
        report: What ``shift`` measured.
        limits: Changes that are allowed; see ``read_limits`` for a file of them.

    Returns:
        One check for each limit and tuned model; ``passed`` only if all of them pass. A limit on something that was
        not measured does not pass.
    """
    check_type("report", report, ShiftReport, "a ShiftReport, as measure_shift gives")
    check_type("limits", limits, ShiftLimits, "ShiftLimits, as read_limits(path) gives")
    return GateResult(tuple(check for tuned in report.tuned for check in _check_model(tuned, limits)))


def gate_predictions(name: str, predicted: Mapping[str, Estimate], limits: ShiftLimits) -> GateResult:
    """Check what screening predicts from training data against limits, before there is a tuned model.

    Args:
        name: Name of the data.
        predicted: Predictions by trait, as ``read_predictions`` gives them.
        limits: The limits; those on anything but predictions count as missing.
    """
    untrained = ModelShift(
        name=name, digest="", relation="", matrix=(), judged=(), capability=(), predicted=dict(predicted), samples=()
    )
    return GateResult(tuple(_check_model(untrained, limits)))


def markdown_summary(result: GateResult) -> str:
    """A summary for people: a sentence, then one row for each limit."""
    failed = sum(not c.passed for c in result.checks)
    head = "passed" if result.passed else f"failed: {failed} of {len(result.checks)} limits"
    rows = [
        f"| {_escape(c.tuned)} | {_escape(c.limit_of)} | {_limit_estimate_text(c.measured)} | {c.limit} | "
        f"{'' if c.passed else '**'}{c.outcome}{'' if c.passed else '**'} | {_escape(c.explanation)} |"
        for c in result.checks
    ]
    table = ["| What | Limit of | Measured | Limit | Outcome | |", "|---|---|---|---|---|---|", *rows]
    return "\n".join([f"{MARKDOWN_BEGINS}{head}", "", *table, ""])


def junit_xml(result: GateResult) -> str:
    """The same as JUnit XML: one test case for each limit; missing is an error, all else that fails a failure.

    Ant's schema and that of Jenkins hold: what was measured of limits that are kept is in the suite's output.
    """
    failures = [c for c in result.checks if not c.passed and c.outcome != "missing"]
    errors = [c for c in result.checks if c.outcome == "missing"]
    counts = {"tests": len(result.checks), "failures": len(failures), "errors": len(errors), "skipped": 0}
    place = {"time": "0", "timestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}", "hostname": "localhost"}
    suite = ElementTree.Element("testsuite", {"name": SUITE, **{k: str(n) for k, n in counts.items()}, **place})
    ElementTree.SubElement(suite, "properties")
    for check in result.checks:
        names = {"classname": _xml_text(check.tuned), "name": _xml_text(check.limit_of), "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", names)
        if not check.passed:
            kind = "error" if check.outcome == "missing" else "failure"
            ElementTree.SubElement(case, kind, {"type": check.outcome, "message": _check_message(check)})
    lines = [f"{_xml_text(c.tuned)}, {_xml_text(c.limit_of)}: {c.outcome}, {_check_message(c)}" for c in result.checks]
    ElementTree.SubElement(suite, "system-out").text = "\n".join(lines)
    ElementTree.SubElement(suite, "system-err")
    ElementTree.indent(suite)
    return XML_HEAD + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _check_message(check: LimitCheck) -> str:
    """What was measured, the limit, and how they stand to each other."""
    if check.measured is None:
        return _xml_text(f"limit {check.limit}: {check.explanation}")
    return _xml_text(f"{_limit_estimate_text(check.measured)}; limit {check.limit}: {check.explanation}")


def _check_model(tuned: ModelShift, limits: ShiftLimits) -> Iterator[LimitCheck]:
    for trait, limit in limits.traits.items():
        if limit.shift is not None:
            measured, why = _shift_estimate(tuned, trait, limits)
            yield _check_limit(tuned, f"{trait}: shift", limit.shift, measured, why, limits)
        if limit.judged is not None:
            measured, why = _judged_estimate(tuned, trait, limits)
            yield _check_limit(tuned, f"{trait}: judged score", limit.judged, measured, why, limits)
        if limit.predicted is not None:
            predicted = tuned.predicted.get(trait)
            why = "the training data were not screened for this trait"
            yield _check_limit(tuned, f"{trait}: predicted", limit.predicted, predicted, why, limits, level=0.95)
    for name, most in limits.capability.items():
        change = next((c for c in tuned.capability if c.name == name), None)
        if change is None or change.guessed:
            why = "it was not measured" if change is None else BASE_IS_GUESSING
            yield _check_limit(tuned, name, LimitRange(most=most), None, why, limits)
            continue
        measured = estimate_change(
            change.kind, change.units_before, change.units_after, change.weights, level=limits.confidence
        )
        limit_of = f"{name}: after / before" if change.kind == "perplexity" else f"{name}: accuracy lost"
        yield _check_limit(tuned, limit_of, LimitRange(most=most), measured, "", limits)


def _shift_estimate(tuned: ModelShift, trait: str, limits: ShiftLimits) -> tuple[Estimate | None, str]:
    cell = tuned.cell(trait)
    if cell is None:
        return None, "no vector of this trait was measured"
    lost = sum(c is None for c in cell.changes)
    if lost > limits.missing * len(cell.changes):
        return None, f"{lost} of {len(cell.changes)} prompts have no reading"
    return estimate_mean(cell.changes, level=limits.confidence), ""


def _judged_estimate(tuned: ModelShift, trait: str, limits: ShiftLimits) -> tuple[Estimate | None, str]:
    judged = next((j for j in tuned.judged if j.trait == trait), None)
    if judged is None:
        return None, "no answer was judged"
    if judged.why_unusable:
        return None, f"its scores do not count: {judged.why_unusable}"
    lost = max(judged.missing_before, judged.missing_after)
    if lost > limits.missing * judged.answers:
        return None, f"{lost} of {judged.answers} answers have no score"
    return estimate_score_change(judged.changes, judged.before, level=limits.confidence), ""


def _check_limit(
    tuned: ModelShift,
    limit_of: str,
    limit: LimitRange,
    measured: Estimate | None,
    why_missing: str,
    limits: ShiftLimits,
    *,
    level: float | None = None,
) -> LimitCheck:
    if measured is None or measured.value is None:
        outcome: LimitOutcome = "missing"
        text = f"not measured: {why_missing or 'nothing has a value'}; what is missing does not pass"
        measured = None
    else:
        outcome, text = limit.hold(measured, f"{100 * (level or limits.confidence):g} %")
        if measured.n < limits.min_n:
            outcome, text = "indicative", f"{outcome} on fewer than the {limits.min_n} of `min_n`: {text}"
    return LimitCheck(
        tuned=tuned.name,
        limit_of=limit_of,
        limit=limit,
        measured=measured,
        outcome=outcome,
        passed=outcome == "kept" or (outcome == "unsure" and limits.unsure == "pass"),
        explanation=text,
    )


def _limit_estimate_text(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g} (no interval), n = {estimate.n}"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}], n = {estimate.n}"


def _escape(text: str) -> str:
    return re.sub(r"([|<>\\`*_\[\]])", r"\\\1", " ".join(text.split()))


def _xml_text(text: str) -> str:
    """The text without characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
