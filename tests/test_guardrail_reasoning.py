"""Reasoning about answers as a part of a guardrail: its YAML, what is done, Bedrock's shape, the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import serving
import tiny
from poise.cli import app
from poise.errors import InvalidSettings, JudgeUnavailable
from poise.guardrail import GuardedText, apply_guardrail, checker_of, load_guardrail
from poise.guardrail.automated_reasoning import AnswerReasoner, ReasonedAnswer
from poise.guardrail.versions import publish_guardrail
from poise.reasoning.findings import FindingKind

POLICY = (Path(__file__).parent / "policies" / "leave.yaml").read_text("utf-8")
FULL = {"variable": "employment", "comparison": "==", "value": "full-time"}


def months(n: int) -> dict[str, Any]:
    return {"variable": "months_employed", "comparison": "==", "value": n}


def eligible(value: bool) -> dict[str, Any]:
    return {"variable": "eligible", "value": value}


Facts = dict[str, list[dict[str, Any]]]
CASES: dict[FindingKind, list[Facts]] = {
    "VALID": [{"premises": [FULL, months(14)], "claims": [eligible(True)]}],
    "INVALID": [{"premises": [FULL, months(3)], "claims": [eligible(True)]}],
    "SATISFIABLE": [{"premises": [months(14)], "claims": [eligible(True)]}],
    "IMPOSSIBLE": [{"premises": [months(3), months(14)], "claims": [eligible(True)]}],
    "TRANSLATION_AMBIGUOUS": [
        {"premises": [FULL, months(14)], "claims": [eligible(True)]},
        {"premises": [FULL, months(14)], "claims": [eligible(False)]},
    ],
    "NO_TRANSLATION": [{"premises": [months(3)], "claims": []}],
}


def written(facts: list[Facts]) -> Callable[..., str]:
    """A writer of these, a seed each."""
    return lambda messages, schema, *, seed: json.dumps(facts[min(seed, len(facts) - 1)])


def down(messages: Any, schema: Mapping[str, Any], *, seed: int) -> str:
    raise JudgeUnavailable("The server does not answer.")


def guardrail_file(folder: Path, **rule: Any) -> Path:
    (folder / "leave.yaml").write_text(POLICY)
    path = folder / "hr.yaml"
    path.write_text(json.dumps({"name": "hr", "reasoning": {"file": "leave.yaml", **rule}}))
    return path


def applied(path: Path, write: Any, *texts: GuardedText, source: Any = "OUTPUT") -> dict[str, Any]:
    guardrail = load_guardrail(path)
    assert guardrail.reasoning
    reasoner = AnswerReasoner(guardrail.reasoning)
    asked: list[tuple[str, str]] = []

    def reason(question: str, answer: str) -> ReasonedAnswer:
        asked.append((question, answer))
        return reasoner(question, answer, write)

    default = (GuardedText("May I?", ("query",)), GuardedText("You may.", ("guard_content",)))
    result = apply_guardrail(checker_of(guardrail), texts or default, source, reason=reason)
    return {**result, "asked": asked}


class TestTheFile:
    def test_names_a_policy_beside_it_or_holds_one(self, tmp_path: Path) -> None:
        named = load_guardrail(guardrail_file(tmp_path))
        assert named.reasoning
        assert named.reasoning.policy
        assert named.reasoning.policy.name == "parental-leave"
        inline = tmp_path / "inline.yaml"
        policy = named.reasoning.policy.model_dump(mode="json", exclude_unset=True)
        inline.write_text(json.dumps({"name": "hr", "reasoning": {"policy": policy}}))
        assert load_guardrail(inline) == named

    def test_is_published_with_the_policy_in_it(self, tmp_path: Path) -> None:
        path, _ = publish_guardrail(guardrail_file(tmp_path, action="BLOCK"), tmp_path / "kept")
        assert load_guardrail(path).reasoning == load_guardrail(tmp_path / "hr.yaml").reasoning

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            ({"file": "no.yaml"}, "no.yaml"),
            ({"file": None}, "needs a policy, once"),
            ({"writer": "endpoint:"}, "reasoning.writer"),
            ({"findings": ["FALSE"]}, "reasoning.findings"),
            ({"without_writer": "BLOCK"}, "so that nothing is blocked"),
            ({"action": "ANONYMIZE"}, "reasoning.action"),
        ],
    )
    def test_with_a_mistake_is_refused(self, tmp_path: Path, rule: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidSettings, match=words):
            load_guardrail(guardrail_file(tmp_path, **rule))


class TestAnAnswer:
    @pytest.mark.parametrize("kind", CASES)
    def test_is_reported_in_bedrocks_shape(self, tmp_path: Path, kind: FindingKind) -> None:
        answer = applied(guardrail_file(tmp_path), written(CASES[kind]))
        assert (answer["action"], answer["outputs"]) == ("NONE", [])
        assert answer["asked"] == [("May I?", "You may.")]
        assert answer["usage"]["automatedReasoningPolicyUnits"] == answer["usage"]["automatedReasoningPolicies"] == 1
        policy = answer["assessments"][0]["automatedReasoningPolicy"]
        assert (policy["poise"]["policy"], policy["poise"]["finding"]) == ("parental-leave", kind)
        [(name, body)] = policy["findings"][0].items()
        assert name.lower().removesuffix("s") == kind.replace("_", "").lower().removesuffix("s")
        if kind == "INVALID":
            assert body["contradictingRules"] == [{"identifier": "who-may"}]
            assert policy["poise"]["rules"]["who-may"].startswith("Employees, full-time")
            assert policy["poise"]["correction"] == ["eligible == false"]
            assert body["translation"]["premises"][1] == {
                "logic": "months_employed == 3",
                "naturalLanguage": "Whole months since the person joined: is 3",
            }
        if kind == "VALID":
            assert body["supportingRules"] == [{"identifier": "who-may"}]
        if kind == "SATISFIABLE":
            assert policy["poise"]["assumptions"]
            assert body["claimsFalseScenario"]["statements"]
        if kind == "TRANSLATION_AMBIGUOUS":
            claims = [each["translations"][0]["claims"][0]["logic"] for each in body["options"]]
            assert claims == ["eligible == true", "eligible == false"]

    @pytest.mark.parametrize("kind", CASES)
    def test_is_blocked_for_the_findings_that_the_rule_names(self, tmp_path: Path, kind: FindingKind) -> None:
        path = guardrail_file(tmp_path, action="BLOCK", findings=["INVALID", "TRANSLATION_AMBIGUOUS"])
        answer = applied(path, written(CASES[kind]))
        blocked = kind in ("INVALID", "TRANSLATION_AMBIGUOUS")
        assert answer["outputs"] == ([{"text": "Sorry, I cannot answer this."}] if blocked else [])

    @pytest.mark.parametrize(
        ("rule", "action"),
        [
            ({"action": "BLOCK"}, "GUARDRAIL_INTERVENED"),
            ({"action": "BLOCK", "without_writer": "PASS"}, "NONE"),
            ({}, "NONE"),
        ],
    )
    def test_without_its_writer_is_blocked_or_passes_as_the_rule_says(
        self, tmp_path: Path, rule: dict[str, Any], action: str
    ) -> None:
        answer = applied(guardrail_file(tmp_path, **rule), down)
        policy = answer["assessments"][0]["automatedReasoningPolicy"]
        assert (answer["action"], policy["findings"]) == (action, [{"noTranslations": {}}])
        assert policy["poise"]["finding"] == "UNAVAILABLE"
        assert policy["poise"]["reason"] == "The server does not answer."
        done = "blocks, as its `without_writer`" if action != "NONE" else "lets the answer pass, as its"
        assert "not reasoned about (The server does not answer); the guardrail " + done in answer["actionReason"]

    def test_is_not_reasoned_about_where_it_is_a_prompt_or_blocked_anyway(self, tmp_path: Path) -> None:
        path = guardrail_file(tmp_path)
        assert applied(path, down, source="INPUT")["asked"] == []
        text = json.loads(path.read_text()) | {"words": {"custom": ["rival bank"]}}
        path.write_text(json.dumps(text))
        answer = applied(path, down, GuardedText("Ask a rival bank."))
        assert (answer["asked"], answer["action"]) == ([], "GUARDRAIL_INTERVENED")


def ask(address: str, *texts: dict[str, Any]) -> dict[str, Any]:
    body = {"source": "OUTPUT", "content": [{"text": text} for text in texts]}
    answer = httpx.post(f"{address}/guardrail/hr/version/DRAFT/apply", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


class TestTheServer:
    def test_has_its_own_model_write_the_answer_down(self, tmp_path: Path) -> None:
        model = tiny.model(max_position_embeddings=4096)
        with serving.running(model, {}, guardrail=guardrail_file(tmp_path, translations=1)) as (address, server):
            [note] = [note for note in server.notes if "reasons about" in note]
            assert note == "hr/DRAFT reasons about answers, that wait for it."
            query = {"text": "May I take leave?", "qualifiers": ["query"]}
            results = [ask(address, query, {"text": "Yes.", "qualifiers": ["guard_content"]}) for _ in range(2)]
            assert server.service.scheduler.idle
        kinds = [result["assessments"][0]["automatedReasoningPolicy"]["poise"]["finding"] for result in results]
        assert kinds[0] == kinds[1] != "UNAVAILABLE"

    def test_says_where_the_model_has_no_room_for_the_policy(self, tmp_path: Path) -> None:
        with serving.running(tiny.model(), {}, guardrail=guardrail_file(tmp_path, action="BLOCK")) as (address, _):
            result = ask(address, {"text": "You may."})
        policy = result["assessments"][0]["automatedReasoningPolicy"]["poise"]
        assert (result["action"], policy["finding"]) == ("GUARDRAIL_INTERVENED", "UNAVAILABLE")
        assert "The served model does not translate" in policy["reason"]

    def test_blocks_where_the_endpoint_is_down(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        path = guardrail_file(tmp_path, action="BLOCK", writer="endpoint:some")
        with serving.running(given={}, guardrail=path) as (address, server):
            result = ask(address, {"text": "You may."})
            metrics = server.service.metrics.text().decode()
        assert result["action"] == "GUARDRAIL_INTERVENED"
        assert 'policy="reasoning",rule="parental-leave"' in metrics


def test_check_says_that_answers_were_not_reasoned_about(tmp_path: Path) -> None:
    options = ["guardrail", "check", str(guardrail_file(tmp_path)), "You may.", "--source", "output"]
    result = CliRunner().invoke(app, options)
    assert json.loads(result.stdout)["action"] == "NONE"
    assert "Answers are reasoned about with a model, and were not" in result.stderr
