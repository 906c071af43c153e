"""Limits on what fine-tuning may do, and the gate that checks them: for people, for CI, for GitHub's job page.

The gate checks a shift report or, before any training, what screening predicts from the data.

A limit is kept when the whole interval lies within it, broken when the whole interval lies beyond it, and otherwise
unsure. On fewer units than ``min_n`` it is only indicative. What is indicative or was not measured never passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from xml.etree import ElementTree

from poise.arguments import check_type
from poise.errors import InvalidArgument
from poise.shift.limit_range import LimitOutcome, LimitRange
from poise.shift.limits_file import ContextLimits, ShiftLimits, TraitLimits, read_limits
from poise.shift.report import ContextMeasure, ModelShift, ShiftReport, estimate_change
from poise.shift.worst_context import (
    ContextChange,
    context_changes,
    judged_change,
    shift_change,
    simultaneous_level,
)
from poise.statistics.estimates import Estimate

__all__ = [
    "ContextLimits",
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
SEVERITY = ("broken", "missing", "indicative", "unsure", "kept")  # the outcomes, worst first
BASE_IS_GUESSING = "the base is not shown to answer better than chance, so nothing could be lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitCheck:
    """One limit beside what was measured.

    Attributes:
        tuned: Name of the tuned model, or of the data before any training.
        limit_of: What is limited: ``evil: shift``, ``evil: judged score``, ``evil: worst context, shift``,
            ``evil: predicted``, ``mmlu: accuracy lost``.
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


def check_limits_are_measured(
    limits: ShiftLimits,
    traits: Sequence[str],
    abilities: Sequence[str],
    *,
    judged: bool,
    tuned: bool = True,
    screened: bool = False,
    contexts: bool = False,
) -> None:
    """Check, before hours of work, that everything that is limited will be measured.

    Args:
        limits: The limits.
        traits: Traits whose vectors are measured.
        abilities: Names of the capability tasks.
        judged: Whether answers are judged.
        tuned: Whether there is a tuned model.
        screened: Whether training data are screened.
        contexts: Whether there are contexts under which the questions are asked too.

    Raises:
        InvalidArgument: names all limits that nothing would measure.
    """
    trait_limits = limits.traits.values()
    lacking = [f"`vector` of {name}" for name in limits.traits if name not in traits]
    lacking += [f"`capability` {name}" for name in limits.capability if name not in abilities]
    if not tuned and (limits.capability or any(limit.limits_shift for limit in trait_limits)):
        lacking.append("`tuned`")
    elif not judged and any(limit.limits_judged for limit in trait_limits):
        lacking.append("`judge`")
    if not screened and any(limit.predicted is not None for limit in trait_limits):
        lacking.append("`data`")
    if tuned and not contexts and any(limit.worst_context is not None for limit in trait_limits):
        lacking.append("`contexts`")
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
    interval = f"{100 * limits.confidence:g} %"
    for trait, limit in limits.traits.items():
        if limit.shift is not None:
            change = shift_change("", tuned.cell(trait), limits.missing)
            yield _check_change(tuned, f"{trait}: shift", limit.shift, change, limits, limits.confidence, interval)
        if limit.judged is not None:
            scores = next((j for j in tuned.judged if j.trait == trait), None)
            change = judged_change("", scores, limits.missing)
            yield _check_change(
                tuned, f"{trait}: judged score", limit.judged, change, limits, limits.confidence, interval
            )
        if limit.worst_context is not None:
            yield from _check_contexts(tuned, trait, limit.worst_context, limits)
        if limit.predicted is not None:
            predicted = tuned.predicted.get(trait)
            why = "the training data were not screened for this trait"
            yield _check_limit(tuned, f"{trait}: predicted", limit.predicted, predicted, why, limits, "95 %")
    for name, most in limits.capability.items():
        change_of = next((c for c in tuned.capability if c.name == name), None)
        if change_of is None or change_of.guessed:
            why = "it was not measured" if change_of is None else BASE_IS_GUESSING
            yield _check_limit(tuned, name, LimitRange(most=most), None, why, limits, interval)
            continue
        measured = estimate_change(
            change_of.kind, change_of.units_before, change_of.units_after, change_of.weights, level=limits.confidence
        )
        limit_of = f"{name}: after / before" if change_of.kind == "perplexity" else f"{name}: accuracy lost"
        yield _check_limit(tuned, limit_of, LimitRange(most=most), measured, "", limits, interval)


def _check_contexts(
    tuned: ModelShift, trait: str, context_limits: ContextLimits, limits: ShiftLimits
) -> Iterator[LimitCheck]:
    """The context that keeps each limit least, with intervals that hold for all of them at once."""
    measures: tuple[tuple[ContextMeasure, str, LimitRange | None], ...] = (
        ("shift", "worst context, shift", context_limits.shift),
        ("judged", "worst context, judged score", context_limits.judged),
    )
    n = len(tuned.contexts)
    level, interval = simultaneous_level(limits.confidence, n), f"simultaneous {100 * limits.confidence:g} %"
    for measure, words, limit in measures:
        if limit is None:
            continue
        limit_of = f"{trait}: {words}"
        changes = context_changes(tuned.contexts, trait, measure, missing=limits.missing)
        if not changes:
            why = "no question was asked under a context"
            yield _check_limit(tuned, limit_of, limit, None, why, limits, interval)
            continue
        checks = [(c, _check_change(tuned, limit_of, limit, c, limits, level, interval)) for c in changes]
        worst, check = min(checks, key=lambda pair: (SEVERITY.index(pair[1].outcome), -_excess(pair[1])))
        kept = sum(check.outcome == "kept" for _, check in checks)
        text = f"under {worst.context} ({kept} of {n} contexts keep it): {check.explanation}"
        yield replace(check, explanation=text)


def _excess(check: LimitCheck) -> float:
    """How far the interval reaches beyond the nearer end of the limit; below 0 where it lies within."""
    measured, limit = check.measured, check.limit
    if measured is None or measured.low is None or measured.high is None:
        return 0.0
    above = measured.high - limit.most if limit.most is not None else -math.inf
    below = limit.least - measured.low if limit.least is not None else -math.inf
    return max(above, below)


def _check_change(
    tuned: ModelShift,
    limit_of: str,
    limit: LimitRange,
    change: ContextChange,
    limits: ShiftLimits,
    level: float,
    interval: str,
) -> LimitCheck:
    measured = None if change.why_missing else change.estimate(level)
    return _check_limit(tuned, limit_of, limit, measured, change.why_missing, limits, interval)


def _check_limit(
    tuned: ModelShift,
    limit_of: str,
    limit: LimitRange,
    measured: Estimate | None,
    why_missing: str,
    limits: ShiftLimits,
    interval: str,
) -> LimitCheck:
    if measured is None or measured.value is None:
        outcome: LimitOutcome = "missing"
        text = f"not measured: {why_missing or 'nothing has a value'}; what is missing does not pass"
        measured = None
    else:
        outcome, text = limit.hold(measured, interval)
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
    return f"{estimate:.3g}, n = {estimate.n}"


def _escape(text: str) -> str:
    return re.sub(r"([|<>\\`*_\[\]])", r"\\\1", " ".join(text.split()))


def _xml_text(text: str) -> str:
    """The text without characters that XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
