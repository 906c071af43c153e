"""The judge of the uncertain band: who is asked about what, and what is done where nobody answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import tiny
from imitation import Behaviour, Server, completion, error, servers
from poise.cli import app
from poise.errors import TooFewResponses
from poise.guardrail import GuardedText, Guardrail, apply_guardrail, checker_of
from poise.guardrail.activation import ActivationReader
from poise.guardrail.fitting import fit_guard
from poise.guardrail.guard_file import FittedGuard, load_guard
from poise.guardrail.judging import JudgedReader, judged_reader, rule_prompt
from poise.guardrail.schema import load_guardrail
from poise.model import Model
from poise.serve.intervention import intervention_facts
from test_guardrail_fit import BOATS, RULES, SETTINGS, TALK

BAND = (0.02, 0.3)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def rules(**judge: Any) -> Guardrail:
    settings = {"by": "endpoint:judge", "band": BAND, **judge}
    return Guardrail.model_validate({**RULES, "judge": settings})


@pytest.fixture(scope="module")
def fitted(model: Model) -> FittedGuard:
    return fit_guard(rules(), model, TALK, SETTINGS)


@pytest.fixture(scope="module")
def uncertain(fitted: FittedGuard, model: Model) -> list[str]:
    """Prompts of ordinary talk that a judge is asked about."""
    reader, [detector, _] = ActivationReader(fitted, model), fitted.header.detectors
    prompts = [str(row["messages"][0]["content"]) for row in TALK]  # type: ignore[index]
    return [p for p in prompts if detector.decision(reader.projections(p, "INPUT")[0][1]) == "ask"]


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Server]]:
    with servers() as start:
        yield start


def with_judge(fitted: FittedGuard, **judge: Any) -> FittedGuard:
    header = fitted.header.model_copy(update={"guardrail": rules(**judge)})
    return FittedGuard(header, fitted.directions)


def sure(score: str) -> Behaviour:
    return lambda body, before: (200, completion(score, [{score: 1.0}]))


class TestTheFit:
    def test_states_the_share_that_is_judged(self, fitted: FittedGuard) -> None:
        for detector in fitted.header.detectors:
            band = detector.band
            assert band is not None
            assert band.acts.value > detector.point.value > band.asks.value
            assert (band.acts.rate, band.asks.rate) == BAND
            assert band.judged == pytest.approx(BAND[1] - BAND[0], abs=0.02)
            assert band.judged_low < band.judged < band.judged_high
            assert 0 <= band.judged_examples <= len(BOATS)

    def test_needs_enough_talk_for_both_rates(self, model: Model) -> None:
        with pytest.raises(TooFewResponses):
            fit_guard(rules(band=(0.0001, 0.3)), model, TALK, SETTINGS)

    def test_multiplies_the_band_by_the_strength(self) -> None:
        judge = rules(band=(0.01, 0.2)).judge
        assert judge is not None
        assert judge.band_at(0.2) == pytest.approx((0.002, 0.04))
        assert judge.band_at(5.0) == pytest.approx((0.05, 0.49))

    def test_without_a_judge_has_one_threshold(self, model: Model) -> None:
        [detector, _] = fit_guard(Guardrail.model_validate(RULES), model, TALK, SETTINGS).header.detectors
        assert detector.band is None
        readings = np.linspace(-9, 9, 50) + detector.centre
        assert {detector.decision(r) for r in readings} == {"pass", "act"}
        assert all((detector.decision(r) == "act") == (detector.finding(r, 1) is not None) for r in readings)


class TestTheJudge:
    def test_is_asked_about_uncertain_texts_alone(
        self, fitted: FittedGuard, model: Model, uncertain: list[str], serve: Callable[[Behaviour], Server]
    ) -> None:
        server = serve(sure("90"))
        reader = judged_reader(with_judge(fitted, url=server.url), model)
        assert isinstance(reader, JudgedReader)
        for row in TALK:
            reader(str(row["messages"][0]["content"]), "INPUT")  # type: ignore[index]
        assert reader.judge.asked == len(server.requests) == len(uncertain)
        band = fitted.header.detectors[0].band
        assert band is not None
        assert len(uncertain) / len(TALK) == pytest.approx(band.judged, abs=0.1)
        asked = server.requests[0]["messages"][0]["content"]
        assert all(text in asked for text in (RULES["topics"][0]["definition"], BOATS[0], "what somebody said"))

    @pytest.mark.parametrize(("score", "findings"), [("90", 1), ("50", 1), ("10", 0)])
    def test_decides(
        self,
        fitted: FittedGuard,
        model: Model,
        uncertain: list[str],
        serve: Callable[[Behaviour], Server],
        score: str,
        findings: int,
    ) -> None:
        reader = judged_reader(with_judge(fitted, url=serve(sure(score)).url), model)
        found = reader(uncertain[0], "INPUT")
        assert len(found) == findings
        if found:
            [fact] = intervention_facts("harbour/DRAFT", found, "INPUT")
            assert (fact["action"], fact["judge"]) == ("BLOCK", float(score))
            assert f"the judge gives {score} of 100" in fact["note"]

    @pytest.mark.parametrize(("on_failure", "action"), [("BLOCK", "GUARDRAIL_INTERVENED"), ("PASS", "NONE")])
    @pytest.mark.parametrize("reply", [(500, error("down")), (200, completion("I cannot say.")), (404, error("no"))])
    def test_that_fails_is_said_and_closes_or_opens(
        self,
        fitted: FittedGuard,
        model: Model,
        uncertain: list[str],
        serve: Callable[[Behaviour], Server],
        on_failure: str,
        action: str,
        reply: Any,
    ) -> None:
        guard = with_judge(fitted, url=serve(lambda body, before: reply).url, on_failure=on_failure)
        reader = judged_reader(guard, model)
        answer = apply_guardrail(checker_of(guard.guardrail), [GuardedText(uncertain[0])], "INPUT", activations=reader)
        assert answer["action"] == action
        assert "The judge did not answer" in answer["actionReason"]
        assert "`on_failure`" in answer["actionReason"]
        assert isinstance(reader, JudgedReader)
        assert reader.judge.failed == 1
        [topic] = answer["assessments"][0]["topicPolicy"]["topics"]
        assert topic["detected"] is True
        assert uncertain[0] not in answer["actionReason"]

    def test_may_be_the_served_model(self, fitted: FittedGuard, model: Model, uncertain: list[str]) -> None:
        reader = judged_reader(with_judge(fitted, by="served"), model)
        reader(uncertain[0], "INPUT")
        assert isinstance(reader, JudgedReader)
        assert reader.judge.asked == 1

    def test_is_told_what_content_is_about(self) -> None:
        guardrail = Guardrail.model_validate({"name": "a", "content": [{"type": "HATE"}]})
        prompt = rule_prompt(guardrail, "HATE", "OUTPUT")("", "Some {text}.")
        assert "HATE. Demeans or attacks people" in prompt
        assert "an AI assistant's answer" in prompt
        assert "Some {text}." in prompt


class TestTheFile:
    @pytest.mark.parametrize(
        ("judge", "fault"),
        [
            ("{by: gpt}", "judge.by is 'gpt'"),
            ("{by: served, band: [0.05, 0.002]}", "judge.band is 0.05 to 0.002; both are rates"),
            ("{by: served, url: 'http://a/v1'}", "judge.url is not used where the served model judges"),
            ("{by: served, on_failure: STOP}", "it must be 'BLOCK' or 'PASS'"),
            ("{by: served, bands: [0.1, 0.2]}", "did you mean band?"),
        ],
    )
    def test_says_what_is_wrong(self, tmp_path: Path, judge: str, fault: str) -> None:
        (tmp_path / "a.yaml").write_text(f"name: a\ncontent: [{{type: HATE}}]\njudge: {judge}\n")
        with pytest.raises(Exception, match=r"mistake|fix it") as raised:
            load_guardrail(tmp_path / "a.yaml")
        assert fault in str(raised.value)

    def test_refuses_a_judge_of_nothing(self) -> None:
        with pytest.raises(ValidationError, match="there are none; take it out"):
            Guardrail.model_validate({"name": "a", "words": {"custom": ["b"]}, "judge": {"by": "served"}})

    def test_keeps_the_band(self, fitted: FittedGuard, tmp_path: Path) -> None:
        fitted.save(tmp_path / "a.guard")
        assert load_guard(tmp_path / "a.guard").header == fitted.header

    def test_without_a_model_is_checked_by_words_alone(self, fitted: FittedGuard, tmp_path: Path) -> None:
        fitted.save(tmp_path / "a.guard")
        done = CliRunner().invoke(app, ["guardrail", "check", str(tmp_path / "a.guard"), "anchor"])
        assert json.loads(done.stdout)["action"] == "GUARDRAIL_INTERVENED"
