"""A gate passes what is shown to be within its limits, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from scipy import stats
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.errors import InvalidArgument, InvalidSettings
from poise.model import load_model
from poise.progress import remarks_by
from poise.shift.limits import (
    GateResult,
    LimitCheck,
    ShiftLimits,
    check_limits_are_measured,
    gate,
    gate_predictions,
    junit_xml,
    markdown_summary,
    read_limits,
)
from poise.shift.report import (
    CapabilityChange,
    JudgedChange,
    ModelShift,
    ShiftCell,
    ShiftReport,
    TraitDirection,
    TraitQuestions,
    estimate_change,
    estimate_mean,
    save_report,
)
from poise.statistics.estimates import Estimate
from poise.vector import save_vector

NONE = Estimate(value=None, low=None, high=None, n=0)
TALK = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "It is so."}]
AROUND_TWO = [1.5 + 0.1 * i for i in range(11)]


def cell(changes: Sequence[float | None], trait: str = "evil") -> ShiftCell:
    return ShiftCell(
        asked=trait, direction=trait, before=NONE, after=NONE, shift=estimate_mean(changes), changes=tuple(changes)
    )


def judged(changes: Sequence[float | None], trait: str = "evil", **changed: Any) -> JudgedChange:
    values: dict[str, Any] = {
        "trait": trait,
        "judge": "exemplars",
        "why_unusable": "",
        "answers": len(changes),
        "before": NONE,
        "after": NONE,
        "change": estimate_mean(changes),
        "changes": tuple(changes),
        "missing_before": 0,
        "missing_after": 0,
        "reasons": {},
        "coherence": "",
        "coherence_before": NONE,
        "coherence_after": NONE,
    }
    return JudgedChange(**(values | changed))


def ability(
    name: str, kind: Any, before: Sequence[float], after: Sequence[float], *, chance: float | None = None
) -> CapabilityChange:
    weights = (1.0,) * len(before)
    return CapabilityChange(
        name=name,
        kind=kind,
        metric="acc",
        source="x.jsonl",
        chance=chance,
        before=estimate_mean(before),
        after=NONE,
        change=estimate_change(kind, before, after, weights),
        units_before=tuple(before),
        units_after=tuple(after),
        weights=weights,
    )


def report(**tuned: Any) -> ShiftReport:
    values: dict[str, Any] = {
        "name": "runs/ad",
        "digest": "0",
        "relation": "adapter",
        "matrix": (cell(AROUND_TWO),),
        "judged": (judged(AROUND_TWO),),
        "capability": (),
        "predicted": {},
        "samples": (),
    }
    return ShiftReport(
        base="base",
        base_digest="1",
        directions=(TraitDirection(trait="evil", layer=1, layers=4, norm=5.0),),
        asked=(TraitQuestions(trait="evil", questions=("Why?",), judged=1),),
        rollouts=1,
        max_new_tokens=8,
        temperature=0.7,
        seed=0,
        tuned=(ModelShift(**(values | tuned)),),
    )


def limits(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "limits.yaml"
    path.write_text(text, encoding="utf-8")
    return read_limits(path)


def held(tmp_path: Path, text: str, **tuned: Any) -> GateResult:
    return gate(report(**tuned), limits(tmp_path, text))


def only(gated: GateResult) -> LimitCheck:
    (check,) = gated.checks
    return check


GUESSING = ability("mmlu", "accuracy", [1.0, 0.0, 0.0] * 9, [1.0, 0.0, 0.0] * 9, chance=0.25)


class TestALimit:
    def test_is_kept_when_the_whole_interval_lies_within_it(self, tmp_path: Path) -> None:
        check = only(held(tmp_path, "traits: {evil: {shift: 2.5}}"))
        assert (check.outcome, check.passed) == ("kept", True)

    def test_is_broken_when_the_whole_interval_lies_beyond_it(self, tmp_path: Path) -> None:
        gated = held(tmp_path, "traits: {evil: {shift: 1.5}}")
        check = only(gated)
        assert (check.outcome, gated.passed) == ("broken", False)
        assert "beyond the limit by 0.5 [" in check.explanation
        assert "95 %" in check.explanation
        assert "n = 11" in check.explanation

    def test_leaves_unsure_what_its_interval_includes_and_then_fails(self, tmp_path: Path) -> None:
        gated = held(tmp_path, "traits: {evil: {shift: 2.05}}")
        assert (only(gated).outcome, gated.passed) == ("unsure", False)

    def test_passes_what_is_unsure_only_where_the_file_says_so(self, tmp_path: Path) -> None:
        gated = held(tmp_path, "unsure: pass\ntraits: {evil: {shift: 2.05}}")
        assert (only(gated).outcome, gated.passed) == ("unsure", True)

    def test_is_held_against_an_interval_of_the_confidence_asked_for(self, tmp_path: Path) -> None:
        def width(confidence: float) -> float:
            found = only(held(tmp_path, f"confidence: {confidence}\ntraits: {{evil: {{shift: 9}}}}")).measured
            assert found is not None
            assert found.low is not None
            assert found.high is not None
            return found.high - found.low

        spread = float(np.std(AROUND_TWO, ddof=1)) / np.sqrt(len(AROUND_TWO))
        assert width(0.99) == pytest.approx(2 * stats.t.ppf(0.995, 10) * spread, rel=0.01)
        assert width(0.5) == pytest.approx(2 * stats.t.ppf(0.75, 10) * spread, rel=0.01)

    def test_on_one_question_has_no_interval_and_is_only_indicative(self, tmp_path: Path) -> None:
        gated = held(tmp_path, "unsure: pass\ntraits: {evil: {shift: 9}}", matrix=(cell([0.0]),))
        assert (only(gated).outcome, gated.passed) == ("indicative", False)
        assert "gives no interval" in only(gated).explanation

    def test_on_a_judged_score_is_in_points(self, tmp_path: Path) -> None:
        some = (judged(AROUND_TWO, before=estimate_mean([20.0] * 11)),)
        gated = held(tmp_path, "traits: {evil: {judged: 30}}", judged=some)
        assert (only(gated).limit_of, gated.passed) == ("evil: judged score", True)

    def test_on_a_judged_score_is_not_shown_kept_by_a_few_that_hardly_changed(self, tmp_path: Path) -> None:
        few, many = (judged([0.5, -0.5] * n, before=estimate_mean([5.0] * 2 * n)) for n in (10, 20))
        assert only(held(tmp_path, "traits: {evil: {judged: 10}}", judged=(few,))).outcome == "unsure"
        assert only(held(tmp_path, "traits: {evil: {judged: 10}}", judged=(many,))).outcome == "kept"

    def test_on_perplexity_is_a_ratio(self, tmp_path: Path) -> None:
        nats = ability("perplexity", "perplexity", [2.0] * 30, [2.0 + np.log(1.2)] * 30)
        assert only(held(tmp_path, "capability: {perplexity: 1.1}", capability=(nats,))).outcome == "broken"
        assert only(held(tmp_path, "capability: {perplexity: 1.3}", capability=(nats,))).outcome == "kept"

    def test_on_accuracy_is_what_may_be_lost(self, tmp_path: Path) -> None:
        lost = ability("mmlu", "accuracy", [1.0] * 400, [0.0] * 100 + [1.0] * 300)
        assert only(held(tmp_path, "capability: {mmlu: 0.1}", capability=(lost,))).outcome == "broken"
        assert only(held(tmp_path, "capability: {mmlu: 0.4}", capability=(lost,))).outcome == "kept"

    def test_on_accuracy_is_not_shown_kept_by_a_handful_of_equal_answers(self, tmp_path: Path) -> None:
        same = ability("mmlu", "accuracy", [1.0] * 10, [1.0] * 10)
        assert only(held(tmp_path, "capability: {mmlu: 0.02}", capability=(same,))).outcome == "unsure"


class TestBothWays:
    FALLEN = (cell([-60.0 + 0.1 * i for i in range(20)]),)

    @pytest.mark.parametrize(
        ("limit", "outcome", "words"),
        [
            ("2", "broken", "below the limit by -57 ["),
            ("{most: 2}", "kept", "lies within"),
            ("{least: -70, most: 2}", "kept", "lies within"),
            ("{least: -59}", "unsure", "beyond the limit, which the 95 % interval includes: off by -0.05 ["),
            ("{least: -59.1, most: 2}", "unsure", "within the lower limit, which"),
            ("70", "kept", "lies within"),
            ("-50", "kept", "lies within"),
            ("-65", "broken", "beyond the limit by 5.95 ["),
            ("0", "kept", "lies within"),
        ],
    )
    def test_a_fall_is_held_against_the_limit_too(self, tmp_path: Path, limit: str, outcome: str, words: str) -> None:
        check = only(held(tmp_path, f"traits: {{evil: {{shift: {limit}}}}}", matrix=self.FALLEN))
        assert (check.outcome, words in check.explanation) == (outcome, True), check.explanation

    def test_a_judged_fall_and_a_predicted_one_do_not_pass(self, tmp_path: Path) -> None:
        fallen = (judged([-90.0, -88.0] * 10, before=estimate_mean([95.0] * 20)),)
        assert only(held(tmp_path, "traits: {evil: {judged: 10}}", judged=fallen)).outcome == "broken"
        said = {"evil": Estimate(value=-9.0, low=-9.5, high=-8.5, n=400)}
        assert only(held(tmp_path, "traits: {evil: {predicted: 6}}", predicted=said)).outcome == "broken"
        assert only(held(tmp_path, "traits: {evil: {predicted: {most: 6}}}", predicted=said)).outcome == "kept"

    def test_better_abilities_are_no_fault(self, tmp_path: Path) -> None:
        learnt = ability("mmlu", "accuracy", [0.0] * 100, [1.0] * 100)
        assert only(held(tmp_path, "capability: {mmlu: 0.1}", capability=(learnt,))).outcome == "kept"

    def test_reads_as_words(self, tmp_path: Path) -> None:
        text = "traits: {evil: {shift: 2, judged: {least: -5}, predicted: {most: 3}}}"
        assert [str(c.limit) for c in held(tmp_path, text).checks] == ["from -2 to 2", "at least -5", "at most 3"]


class TestTheLeastN:
    FEW = (cell([0.0, 0.1, 0.2]),)

    def test_leaves_a_verdict_on_fewer_indicative_which_fails_whatever_it_is(self, tmp_path: Path) -> None:
        for limit, beneath in ((9, "kept"), (0.05, "unsure"), (-5, "broken")):
            gated = held(tmp_path, f"unsure: pass\ntraits: {{evil: {{shift: {limit}}}}}", matrix=self.FEW)
            assert (only(gated).outcome, gated.passed) == ("indicative", False)
            assert only(gated).explanation.startswith(f"{beneath} on fewer than the 10 of `min_n`: ")

    def test_is_what_the_file_says(self, tmp_path: Path) -> None:
        text = "min_n: {n}\ntraits: {{evil: {{shift: 9}}}}"
        assert only(held(tmp_path, text.format(n=3), matrix=self.FEW)).outcome == "kept"
        assert only(held(tmp_path, text.format(n=12))).outcome == "indicative"
        with pytest.raises(InvalidSettings, match="line 1: min_n is 1; it must be at least 2"):
            limits(tmp_path, text.format(n=1))

    def test_counts_the_rows_of_a_prediction_and_the_questions_of_an_ability(self, tmp_path: Path) -> None:
        said = {"evil": Estimate(value=3.0, low=2.5, high=3.5, n=9)}
        assert only(held(tmp_path, "traits: {evil: {predicted: 9}}", predicted=said)).outcome == "indicative"
        nats = ability("perplexity", "perplexity", [2.0] * 9, [2.0] * 9)
        assert only(held(tmp_path, "capability: {perplexity: 1.1}", capability=(nats,))).outcome == "indicative"

    def test_is_a_failure_for_machines_that_read(self, tmp_path: Path) -> None:
        gated = held(tmp_path, "traits: {evil: {shift: 9}}", matrix=self.FEW)
        suite = ElementTree.fromstring(junit_xml(gated))
        assert suite.attrib["failures"] == "1"
        assert suite.find(".//failure").attrib["type"] == "indicative"
        assert "**indicative**" in markdown_summary(gated)


class TestAPrediction:
    SAID = Estimate(value=3.0, low=2.5, high=3.5, n=400)

    def test_stands_beside_what_came_of_it(self, tmp_path: Path) -> None:
        text = "traits: {evil: {shift: 9, predicted: 1}}"
        done = held(tmp_path, text, predicted={"evil": self.SAID})
        assert [(c.limit_of, c.outcome) for c in done.checks] == [
            ("evil: shift", "kept"),
            ("evil: predicted", "broken"),
        ]

    def test_is_held_against_its_own_interval_whatever_the_confidence(self, tmp_path: Path) -> None:
        text = "confidence: 0.5\ntraits: {evil: {predicted: 3.4}}"
        check = only(held(tmp_path, text, predicted={"evil": self.SAID}))
        assert (check.outcome, "95 %" in check.explanation) == ("unsure", True)

    def test_that_was_not_made_does_not_pass(self, tmp_path: Path) -> None:
        check = only(held(tmp_path, "traits: {evil: {predicted: 9}}"))
        assert (check.outcome, "not screened" in check.explanation) == ("missing", True)

    def test_can_be_held_before_there_is_a_tuned_model(self, tmp_path: Path) -> None:
        wanted = limits(tmp_path, "traits: {evil: {predicted: 4}}")
        check = only(gate_predictions("rows.jsonl", {"evil": self.SAID}, wanted))
        assert (check.tuned, check.outcome, check.measured) == ("rows.jsonl", "kept", self.SAID)

    def test_stands_for_nothing_else(self, tmp_path: Path) -> None:
        wanted = limits(tmp_path, "traits: {evil: {predicted: 4, judged: 9}}\ncapability: {mmlu: 0.1}")
        done = gate_predictions("rows.jsonl", {"evil": self.SAID}, wanted)
        assert [c.outcome for c in done.checks] == ["missing", "kept", "missing"]
        assert not done.passed
        with pytest.raises(InvalidArgument, match=r"not measured: `tuned`;"):
            check_limits_are_measured(wanted, ["evil"], ["mmlu"], judged=True, tuned=False, screened=True)
        with pytest.raises(InvalidArgument, match=r"not measured: `data`;"):
            check_limits_are_measured(wanted, ["evil"], ["mmlu"], judged=True)


class TestALimitThatNothingCouldBreakOrKeep:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("capability:\n  perplexity: 1.1\n  mmlu: 5", "line 3: capability.mmlu is 5, which can never be broken"),
            ("capability: {arc-cloze: -1}", "line 1: capability.arc-cloze is -1, which can never be kept"),
            ("capability: {perplexity: 0}", "capability.perplexity is 0, which can never be kept"),
            (
                "traits:\n  evil:\n    judged: 101",
                "line 3: traits.evil.judged is from -101 to 101, which no",
            ),
            ("traits: {evil: {judged: {most: 150}}}", "traits.evil.judged is at most 150, which no change can reach"),
            ("traits: {evil: {judged: {least: -150, most: 5}}}", "judged is from -150 to 5, which no change can reach"),
            ("traits: {evil: {judged: -100}}", "judged is at most -100, which can never be kept"),
            ("traits: {evil: {judged: {least: 100}}}", "judged is at least 100, which can never be kept"),
            ("traits: {evil: {worst_context: {judged: 120}}}", "worst_context.judged is from -120 to 120"),
        ],
    )
    def test_is_refused_with_its_line_and_why(self, tmp_path: Path, text: str, words: str) -> None:
        with pytest.raises(InvalidSettings) as refusal:
            limits(tmp_path, text)
        assert words in str(refusal.value)

    def test_is_refused_from_python_too(self) -> None:
        with pytest.raises(InvalidSettings, match=r"capability.mmlu is 5, which can never be broken"):
            ShiftLimits(capability={"mmlu": 5})

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("capability: {mmlu: 1}", "The limit capability.mmlu allows every change"),
            ("traits: {evil: {judged: 100}}", "The limit traits.evil.judged allows every change"),
            ("traits: {evil: {judged: {most: 100}}}", "The limit traits.evil.judged allows every change"),
            ("traits: {evil: {worst_context: {judged: 100}}}", "The limit traits.evil.worst_context.judged allows"),
            ("capability: {perplexity: 12}", "12 times the perplexity of the base: it limits after / before"),
            ("capability: {mmlu: 0.99, perplexity: 1.5}", ""),
            ("traits: {evil: {judged: {least: -100, most: 99}, shift: 500, predicted: 500}}", ""),
        ],
    )
    def test_is_remarked_on_at_the_end_of_its_scale(self, tmp_path: Path, text: str, words: str) -> None:
        heard: list[str] = []
        with remarks_by(heard.append):
            limits(tmp_path, text)
        assert [words in line for line in heard] == [True] * bool(words)


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        ("text", "tuned", "why"),
        [
            ("traits: {kind: {shift: 1}}", {}, "no vector"),
            ("traits: {evil: {judged: 1}}", {"judged": ()}, "no answer was judged"),
            ("traits: {evil: {judged: 9}}", {"judged": (judged(AROUND_TWO, why_unusable="AUC 0.5"),)}, "AUC 0.5"),
            ("traits: {evil: {judged: 9}}", {"judged": (judged(AROUND_TWO, missing_after=2),)}, "2 of 11 answers"),
            ("traits: {evil: {shift: 9}}", {"matrix": (cell([0.0, 0.1, None]),)}, "1 of 3 prompts"),
            ("missing: 0.9\ntraits: {evil: {judged: 9}}", {"judged": (judged([None]),)}, "nothing has a value"),
            ("capability: {mmlu: 0.9}", {}, "not measured"),
            ("capability: {mmlu: 0.9}", {"capability": (GUESSING,)}, "better than chance"),
        ],
    )
    def test_never_passes_and_says_why(self, tmp_path: Path, text: str, tuned: dict[str, Any], why: str) -> None:
        gated = held(tmp_path, "unsure: pass\n" + text, **tuned)
        assert (only(gated).outcome, gated.passed) == ("missing", False)
        assert why in only(gated).explanation

    def test_may_be_a_stated_share(self, tmp_path: Path) -> None:
        some = (judged(AROUND_TWO, missing_after=2),)
        assert held(tmp_path, "missing: 0.2\ntraits: {evil: {judged: 40}}", judged=some).passed

    def test_is_refused_before_it_costs_anything(self, tmp_path: Path) -> None:
        wanted = limits(tmp_path, "traits: {evil: {judged: 1}, kind: {shift: 1}}\ncapability: {mmlu: 0.1}")
        with pytest.raises(InvalidArgument, match="`vector` of kind, `capability` mmlu, `judge`"):
            check_limits_are_measured(wanted, ["evil"], ["perplexity"], judged=False)
        check_limits_are_measured(wanted, ["evil", "kind"], ["mmlu"], judged=True)

    def test_is_nothing_checked_at_all(self) -> None:
        assert not GateResult(()).passed


class TestALimitsFile:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("traits:\n  evil:\n    shfit: 1\n", "line 3: traits.evil.shfit"),
            ("traits:\n  evil: {shift: one}\n", "line 2: traits.evil.shift"),
            ("traits:\n  evil: {shift: true}\n", "line 2: traits.evil.shift"),
            ("traits:\n  evil: {shift: .nan}\n", "line 2: traits.evil.shift"),
            ("traits:\n  evil: {shift: {}}\n", "line 2: traits.evil.shift needs least or most"),
            ("traits:\n  evil: {shift: {most: a}}\n", "line 2: traits.evil.shift.most is 'a'"),
            ("traits:\n  evil: {shift: {mots: 1}}\n", "line 2: traits.evil.shift.mots"),
            ("traits:\n  evil: {shift: {least: 3, most: 1}}\n", "least must be below most"),
            ("traits:\n  evil: {shift: one}\n", "is 'one'; it must be a finite number, or a mapping of least and most"),
            ("traits:\n  evil: {}\n", "needs shift, judged, predicted or worst_context"),
            ("confidence: 95\ntraits: {evil: {shift: 1}}\n", "line 1: confidence"),
            ("unsure: maybe\ntraits: {evil: {shift: 1}}\n", "line 1: unsure"),
            ("confidence: 0.9\n", "limits nothing"),
            ("traits: {evil: {shift: 1}}\ntraits: {kind: {shift: 1}}\n", "line 2: traits"),
            ("traits: [\n", "line 2"),
            ("", "no settings"),
        ],
    )
    def test_with_a_fault_names_line_and_field(self, tmp_path: Path, text: str, said: str) -> None:
        with pytest.raises(InvalidSettings, match=said.replace(".", r"\.")):
            limits(tmp_path, text)

    def test_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSettings, match="Cannot read"):
            read_limits(tmp_path / "none.yaml")


class TestTheSummaries:
    def test_of_markdown_has_a_row_a_limit_and_holds_hostile_names(self, tmp_path: Path) -> None:
        text = markdown_summary(held(tmp_path, "traits: {evil: {shift: 1, judged: 40}}", name="a|b\n<img src=x>"))
        rows = [line for line in text.splitlines() if line.startswith("| a")]
        assert text.startswith("### Poise gate: failed: 1 of 2 limits")
        assert len(rows) == 2
        assert r"a\|b \<img src=x\>" in rows[0]
        assert "**broken**" in rows[0]

    def test_of_junit_count_what_fails_and_what_is_missing(self, tmp_path: Path) -> None:
        text = "traits: {evil: {shift: 1, judged: 40}, kind: {shift: 1}}"
        suite = ElementTree.fromstring(junit_xml(held(tmp_path, text, name="a\x00<b>")))
        assert {k: suite.attrib[k] for k in ("tests", "failures", "errors")} == {
            "tests": "3",
            "failures": "1",
            "errors": "1",
        }
        cases = {case.attrib["name"]: [part.tag for part in case] for case in suite.iter("testcase")}
        assert cases == {"evil: shift": ["failure"], "evil: judged score": [], "kind: shift": ["error"]}
        assert {case.attrib["classname"] for case in suite.iter("testcase")} == {"a<b>"}

    def test_of_junit_hold_value_and_limit_in_every_message(self, tmp_path: Path) -> None:
        text = "traits: {evil: {shift: 1, judged: 40}, kind: {shift: 1}}"
        suite = ElementTree.fromstring(junit_xml(held(tmp_path, text)))
        failure, error = suite.find(".//failure"), suite.find(".//error")
        assert failure is not None
        assert error is not None
        assert re.fullmatch(
            r"2 \[1\.\d+, 2\.\d+\], n = 11; limit from -1 to 1: beyond the limit.*", failure.attrib["message"]
        )
        assert error.attrib["message"].startswith("limit from -1 to 1: not measured: no vector")
        lines = (suite.findtext("system-out") or "").splitlines()
        assert [re.split(r": (kept|broken|missing), ", line)[1] for line in lines] == ["broken", "kept", "missing"]
        assert "limit from -40 to 40: the whole 95 % interval lies within" in lines[1]

    def test_of_junit_fit_the_schemas_of_ant_and_of_jenkins(self, tmp_path: Path) -> None:
        """The rules of Ant's JUnit.xsd, which is the stricter, and what Jenkins's junit-10.xsd allows beyond names."""
        text = "traits: {evil: {shift: 1, judged: 40}, kind: {shift: 1}}"
        suite = ElementTree.fromstring(junit_xml(held(tmp_path, text)))
        assert list(suite.attrib) == ["name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert [part.tag for part in suite] == ["properties", *["testcase"] * 3, "system-out", "system-err"]
        for case in suite.iter("testcase"):
            assert sorted(case.attrib) == ["classname", "name", "time"]
            assert len(case) <= 1
            assert all(part.tag in ("failure", "error") and sorted(part.attrib) == ["message", "type"] for part in case)
        for timed in (suite, *suite.iter("testcase")):
            assert re.fullmatch(r"\d+(\.\d+)?", timed.attrib["time"])


class TestTheCommand:
    def run(self, tmp_path: Path, text: str, *more: str) -> Any:
        (tmp_path / "limits.yaml").write_text(text, encoding="utf-8")
        save_report(report(), tmp_path / "shift.json")
        arguments = ["gate", str(tmp_path / "limits.yaml"), "--measured", str(tmp_path / "shift.json"), *more]
        return CliRunner().invoke(app, arguments)

    def test_ends_with_0_where_all_is_kept(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "traits: {evil: {shift: 9}}")
        assert done.exit_code == 0
        assert "gate passed" in done.stdout

    def test_ends_with_1_where_a_limit_breaks_and_names_it(self, tmp_path: Path) -> None:
        done = self.run(tmp_path, "traits: {evil: {shift: 1}}")
        assert done.exit_code == 1
        assert "broken" in done.stdout
        assert "evil: shift 2.000" in done.stdout

    def test_ends_with_2_where_the_limits_cannot_be_read(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, "trait: 1").exit_code == 2

    def test_ends_with_2_where_the_measurement_is_no_shift_json(self, tmp_path: Path) -> None:
        (tmp_path / "l.yaml").write_text("traits: {evil: {shift: 9}}", encoding="utf-8")
        for text in ("{}", "no json", '{"format": 2}'):
            (tmp_path / "m.json").write_text(text, encoding="utf-8")
            done = CliRunner().invoke(app, ["gate", str(tmp_path / "l.yaml"), "--measured", str(tmp_path / "m.json")])
            assert (done.exit_code, "m.json" in done.stderr) == (2, True)

    def test_without_anything_measured_or_to_measure_says_what_to_give(self, tmp_path: Path) -> None:
        (tmp_path / "l.yaml").write_text("traits: {evil: {shift: 9}}", encoding="utf-8")
        for more in ([], ["--base", "m"], ["--measured", "x.json", "--base", "m"]):
            done = CliRunner().invoke(app, ["gate", str(tmp_path / "l.yaml"), *more])
            assert (done.exit_code, "--measured" in done.stderr) == (2, True)

    def run_on_data(self, tmp_path: Path, rows: list[Any], most: int, *more: str) -> Any:
        tiny.lm().save_pretrained(tmp_path / "base")
        tiny.chatml().save_pretrained(tmp_path / "base")
        base = load_model(str(tmp_path / "base"), dtype=torch.float32, device="cpu")
        save_vector(tiny.vector(base), tmp_path / "v.safetensors")
        lines = [json.dumps({"messages": messages}) for messages in rows]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "l.yaml").write_text(f"traits: {{grumpy: {{predicted: {most}}}}}", encoding="utf-8")
        arguments = ["gate", str(tmp_path / "l.yaml"), "--base", str(tmp_path / "base"), "--dtype", "float32"]
        arguments += ["--vector", str(tmp_path / "v.safetensors"), "--data", str(tmp_path / "rows.jsonl")]
        arguments += ["--out", str(tmp_path / "out"), "--device", "cpu"]
        return CliRunner().invoke(app, [*arguments, *more])

    def test_holds_data_against_its_limits_before_any_training(self, tmp_path: Path) -> None:
        done = self.run_on_data(tmp_path, [TALK] * 30, -1000, "--max-new-tokens", "4", "--json")
        (check,) = json.loads(done.stdout)["checks"]
        assert (done.exit_code, check["outcome"], check["measured"]["n"]) == (1, "broken", 30), done.stderr
        assert (tmp_path / "out" / "screened" / "summary.json").is_file()
        assert (tmp_path / "out" / "gate.md").is_file()

    def test_does_not_hold_data_that_could_not_be_read(self, tmp_path: Path) -> None:
        done = self.run_on_data(tmp_path, [TALK] * 20 + [TALK[:1]] * 10, 1000, "--method", "prompt")
        assert (done.exit_code, "33% of" in done.stderr) == (2, True), done.stderr

    def test_prints_one_object_and_writes_both_files_and_github_s_page(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        page = tmp_path / "page.md"
        page.write_text("before\n", encoding="utf-8")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
        files = ("--summary", str(tmp_path / "gate.md"), "--junit", str(tmp_path / "gate.xml"))
        done = self.run(tmp_path, "traits: {evil: {shift: 1}}", "--json", *files)
        said = json.loads(done.stdout)
        assert (said["passed"], said["checks"][0]["outcome"]) == (False, "broken")
        assert said["checks"][0]["measured"]["n"] == 11
        assert page.read_text("utf-8") == "before\n" + (tmp_path / "gate.md").read_text("utf-8")
        assert ElementTree.parse(tmp_path / "gate.xml").getroot().tag == "testsuite"
