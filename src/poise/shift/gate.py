"""Limits on what fine-tuning may do, and whether it keeps them: for a person, for CI, for GitHub's page.

What is held against them is a shift report, or, before any training, what screening says of the data.

A limit is kept when the whole interval lies within it, broken when the whole interval lies beyond, and else unsure.
What was not measured never passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree

from pydantic import Field, model_validator

from poise.errors import InvalidArgument
from poise.settings import Settings, read_settings
from poise.shift.report import Shift, ShiftReport, change_of, mean_of
from poise.statistics.estimates import Estimate

__all__ = [
    "Check",
    "Gated",
    "Limits",
    "TraitLimits",
    "check_plan",
    "gate",
    "gate_data",
    "junit",
    "markdown",
    "read_limits",
]

Outcome = Literal["kept", "broken", "unsure", "missing"]
GUESSED = "the base is not shown to answer better than chance, so that nothing could be lost"
Number = Annotated[float, Field(strict=True)]


class TraitLimits(Settings):
    """What one trait may do."""

    shift: Number | None = Field(None, description="Most finetuning shift of its own questions along its direction.")
    judged: Number | None = Field(None, description="Most rise of the judge's score, in points of 100.")
    predicted: Number | None = Field(None, description="Most mean projection difference of the training data.")

    @model_validator(mode="after")
    def _says_something(self) -> TraitLimits:
        if self.shift is self.judged is self.predicted is None:
            raise ValueError("needs shift, judged or predicted")
        return self


class Limits(Settings):
    """A limits file."""

    confidence: Annotated[float, Field(strict=True, ge=0.5, lt=1)] = Field(
        0.95, description="Of the intervals, but for those of predictions, which always have 0.95."
    )
    unsure: Literal["fail", "pass"] = Field("fail", description="What a limit inside the interval does.")
    missing: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        0.1, description="Largest share of a measurement that may be without a value; above it, it counts as missing."
    )
    traits: dict[str, TraitLimits] = Field(default_factory=dict)
    capability: dict[str, Number] = Field(
        default_factory=dict, description="perplexity: most after / before. Others: most accuracy lost."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Limits:
        if not self.traits and not self.capability:
            raise ValueError("limits nothing; name a trait or a capability")
        return self


@dataclass(frozen=True, slots=True)
class Check:
    """One limit against what was measured.

    Attributes:
        tuned: Which model, or which data before any training.
        what: ``evil: shift``, ``evil: judged score``, ``evil: predicted``, ``mmlu: accuracy lost``.
        limit: The most.
        found: Measured, with its interval at the limits' confidence (0.95 for predictions); ``None`` where it is
            missing.
        outcome: See the module.
        passed: Whether the gate lets it through.
        words: All of it in a sentence.
    """

    tuned: str
    what: str
    limit: float
    found: Estimate | None
    outcome: Outcome
    passed: bool
    words: str


@dataclass(frozen=True, slots=True)
class Gated:
    """Every limit on every tuned model."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all were let through."""
        return bool(self.checks) and all(c.passed for c in self.checks)


def read_limits(path: Path) -> Limits:
    """Read a limits file.

    Raises:
        InvalidSettings: not there, no YAML, or against the schema; every fault with its line and field.
    """
    return read_settings(path, Limits)


def check_plan(
    limits: Limits,
    traits: Sequence[str],
    abilities: Sequence[str],
    *,
    judged: bool,
    tuned: bool = True,
    screened: bool = False,
) -> None:
    """Refuse, before hours of work, to measure less than is limited.

    Raises:
        InvalidArgument: names all limits that nothing would measure.
    """
    own = limits.traits.values()
    lacking = [f"--vector of {name}" for name in limits.traits if name not in traits]
    lacking += [f"--capability {name}" for name in limits.capability if name not in abilities]
    if not tuned and (limits.capability or any((limit.shift, limit.judged) != (None, None) for limit in own)):
        lacking.append("--tuned")
    elif not judged and any(limit.judged is not None for limit in own):
        lacking.append("--judge")
    if not screened and any(limit.predicted is not None for limit in own):
        lacking.append("--data")
    if lacking:
        raise InvalidArgument(
            f"The limits need what is not measured: {', '.join(lacking)}; give it, or drop the limit."
        )


def gate(report: ShiftReport, limits: Limits) -> Gated:
    """Hold every tuned model of a report against the limits."""
    return Gated(tuple(check for tuned in report.tuned for check in _checks(tuned, limits)))


def gate_data(name: str, predicted: Mapping[str, Estimate], limits: Limits) -> Gated:
    """Hold what screening says of training data against the limits on predictions, before there is a tuned model.

    Args:
        name: Of the data.
        predicted: By trait, as ``poise.shift.measure.read_screened`` reads it.
        limits: Those on anything else count as missing.
    """
    unseen = Shift(
        name=name, digest="", relation="", matrix=(), judged=(), capability=(), predicted=dict(predicted), samples=()
    )
    return Gated(tuple(_checks(unseen, limits)))


def markdown(gated: Gated) -> str:
    """A summary for people: a sentence, then a row a limit."""
    failed = sum(not c.passed for c in gated.checks)
    head = "passed" if gated.passed else f"failed: {failed} of {len(gated.checks)} limits"
    rows = [
        f"| {_cell(c.tuned)} | {_cell(c.what)} | {_figure(c.found)} | {c.limit:g} | "
        f"{'' if c.passed else '**'}{c.outcome}{'' if c.passed else '**'} | {_cell(c.words)} |"
        for c in gated.checks
    ]
    table = ["| What | Limit of | Measured | At most | Outcome | |", "|---|---|---|---|---|---|", *rows]
    return "\n".join([f"### Poise gate: {head}", "", *table, ""])


def junit(gated: Gated) -> str:
    """The same as JUnit XML: a test case a limit; what is missing is an error, what breaks or is unsure a failure."""
    failures = [c for c in gated.checks if not c.passed and c.outcome != "missing"]
    errors = [c for c in gated.checks if c.outcome == "missing"]
    counts = {"tests": len(gated.checks), "failures": len(failures), "errors": len(errors)}
    suite = ElementTree.Element("testsuite", {"name": "poise gate", **{k: str(n) for k, n in counts.items()}})
    for check in gated.checks:
        case = ElementTree.SubElement(suite, "testcase", {"classname": _xml(check.tuned), "name": _xml(check.what)})
        if not check.passed:
            kind = "error" if check.outcome == "missing" else "failure"
            ElementTree.SubElement(case, kind, {"type": check.outcome, "message": _xml(check.words)})
        else:
            ElementTree.SubElement(case, "system-out").text = _xml(check.words)
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _checks(tuned: Shift, limits: Limits) -> Iterator[Check]:
    for trait, limit in limits.traits.items():
        if limit.shift is not None:
            found, why = _shift(tuned, trait, limits)
            yield _check(tuned, f"{trait}: shift", limit.shift, found, why, limits)
        if limit.judged is not None:
            found, why = _judged(tuned, trait, limits)
            yield _check(tuned, f"{trait}: judged score", limit.judged, found, why, limits)
        if limit.predicted is not None:
            said = tuned.predicted.get(trait)
            why = "the training data were not screened for this trait"
            yield _check(tuned, f"{trait}: predicted", limit.predicted, said, why, limits, level=0.95)
    for name, most in limits.capability.items():
        ability = next((a for a in tuned.capability if a.name == name), None)
        if ability is None or ability.guessed:
            why = "it was not measured" if ability is None else GUESSED
            yield _check(tuned, name, most, None, why, limits)
            continue
        change = change_of(
            ability.kind, ability.units_before, ability.units_after, ability.weights, level=limits.confidence
        )
        what = f"{name}: after / before" if ability.kind == "perplexity" else f"{name}: accuracy lost"
        yield _check(tuned, what, most, change, "", limits)


def _shift(tuned: Shift, trait: str, limits: Limits) -> tuple[Estimate | None, str]:
    cell = tuned.cell(trait)
    if cell is None:
        return None, "no vector of this trait was measured"
    lost = sum(c is None for c in cell.changes)
    if lost > limits.missing * len(cell.changes):
        return None, f"{lost} of {len(cell.changes)} prompts have no reading"
    return mean_of(cell.changes, level=limits.confidence), ""


def _judged(tuned: Shift, trait: str, limits: Limits) -> tuple[Estimate | None, str]:
    judged = next((j for j in tuned.judged if j.trait == trait), None)
    if judged is None:
        return None, "no answer was judged"
    if judged.why_unusable:
        return None, f"its scores do not count: {judged.why_unusable}"
    lost = max(judged.missing_before, judged.missing_after)
    if lost > limits.missing * judged.answers:
        return None, f"{lost} of {judged.answers} answers have no score"
    return mean_of(judged.changes, level=limits.confidence), ""


def _check(
    tuned: Shift,
    what: str,
    limit: float,
    found: Estimate | None,
    why: str,
    limits: Limits,
    *,
    level: float | None = None,
) -> Check:
    share = f"{100 * (level or limits.confidence):g} %"
    if found is None or found.value is None:
        words = f"not measured: {why or 'nothing has a value'}; what is missing does not pass"
        return Check(tuned.name, what, limit, None, "missing", False, words)
    if found.low is None or found.high is None:
        outcome: Outcome = "unsure"
        words = f"n = {found.n} gives no interval, so nothing is sure"
    else:
        over = f"by {found.value - limit:.3g} [{found.low - limit:.3g}, {found.high - limit:.3g}]"
        if found.low > limit:
            outcome, words = "broken", f"beyond the limit {over}, the whole {share} interval, n = {found.n}"
        elif found.high <= limit:
            outcome, words = "kept", f"the whole {share} interval lies within, n = {found.n}"
        else:
            side = "beyond" if found.value > limit else "within"
            outcome = "unsure"
            words = f"{side} the limit, which the {share} interval includes: off {over}, n = {found.n}"
    passed = outcome == "kept" or (outcome == "unsure" and limits.unsure == "pass")
    return Check(tuned.name, what, limit, found, outcome, passed, words)


def _figure(found: Estimate | None) -> str:
    if found is None or found.value is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value:.3g} (no interval), n = {found.n}"
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}], n = {found.n}"


def _cell(text: str) -> str:
    return re.sub(r"([|<>\\`*_\[\]])", r"\\\1", " ".join(text.split()))


def _xml(text: str) -> str:
    """Without what XML cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
