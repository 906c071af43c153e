"""Contextual grounding as a policy of a guardrail, in the shapes of Bedrock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

import serving
import tiny
from poise.cli import app
from poise.errors import InvalidArgument
from poise.grounding import Grounding, SentenceGrounding
from poise.grounding.facts import MissingFacts
from poise.guardrail import GuardedText, Guardrail, apply_guardrail, checker_of
from poise.guardrail.apply import Qualifier
from poise.guardrail.findings import GuardFinding
from poise.guardrail.grounding_policy import grounding_reader

RULES = {
    "name": "sources",
    "messages": {"output": "I do not know."},
    "grounding": [{"type": "GROUNDING", "threshold": 0.7}, {"type": "RELEVANCE", "threshold": 0.5, "action": "NONE"}],
}
SOURCE, QUERY = "A ticket is 12 euros.", "How much is it?"


class Reader:
    """Scores that a test makes up, and what they were asked for."""

    def __init__(self, score: float, relevance: float) -> None:
        self.score, self.relevance = score, relevance
        self.calls: list[tuple[list[str], str, str]] = []

    def __call__(self, sources: Sequence[str], query: str, answer: str) -> Grounding:
        self.calls.append((list(sources), query, answer))
        sentence = SentenceGrounding(
            start=0,
            end=len(answer),
            text=answer,
            score=self.score,
            passage=0,
            missing=MissingFacts(numbers=("55",)),
            features={},
        )
        relevance = self.relevance if query else None
        return Grounding(sentences=(sentence,), passages=tuple(sources), relevance=relevance, unread=(), tokens=3)


def applied(reader: Reader, *texts: tuple[str, Qualifier | None], way: Any = "OUTPUT", **more: Any) -> dict[str, Any]:
    guarded = [GuardedText(text, (qualifier,) if qualifier else ()) for text, qualifier in texts]
    return apply_guardrail(checker_of(Guardrail.model_validate(RULES)), guarded, way, ground=reader, **more)


class TestAnAnswer:
    def test_below_a_threshold_is_blocked_or_reported(self) -> None:
        reader, findings = Reader(0.2, 0.3), list[GuardFinding]()
        texts = ((SOURCE, "grounding_source"), (QUERY, "query"), ("It is 55.", None))
        answer = applied(reader, *texts, tell=findings.extend)
        assert reader.calls == [([SOURCE], QUERY, "It is 55.")]
        assert answer["outputs"] == [{"text": "I do not know."}]
        facts = {"threshold": 0.7, "score": 0.2, "action": "BLOCKED", "detected": True}
        beside = {"threshold": 0.5, "score": 0.3, "action": "NONE", "detected": True}
        assert answer["assessments"][0]["contextualGroundingPolicy"] == {
            "filters": [{"type": "GROUNDING", **facts}, {"type": "RELEVANCE", **beside}]
        }
        assert answer["usage"]["contextualGroundingPolicyUnits"] == 1
        assert [(f.policy, f.rule, f.score, f.threshold) for f in findings] == [
            ("grounding", "GROUNDING", 0.2, 0.7),
            ("grounding", "RELEVANCE", 0.3, 0.5),
        ]
        [sentence] = answer["poise"]["grounding"]
        assert (sentence["passage"], sentence["missing"]["numbers"]) == (0, ["55"])

    def test_that_reaches_them_passes_with_its_scores(self) -> None:
        answer = applied(Reader(0.7, 0.9), (SOURCE, "grounding_source"), (QUERY, "query"), ("It is 12.", None))
        filters = answer["assessments"][0]["contextualGroundingPolicy"]["filters"]
        assert [(f["detected"], f["action"]) for f in filters] == [(False, "NONE"), (False, "NONE")]
        assert (answer["action"], answer["outputs"]) == ("NONE", [])

    def test_without_a_query_has_no_relevance(self) -> None:
        answer = applied(Reader(0.9, 0.1), (SOURCE, "grounding_source"), ("It is 12.", None))
        assert [f["type"] for f in answer["assessments"][0]["contextualGroundingPolicy"]["filters"]] == ["GROUNDING"]

    def test_over_several_sources_is_read_once_as_a_whole(self) -> None:
        reader = Reader(0.9, 0.9)
        texts = (("One.", "grounding_source"), ("Two.", "grounding_source"), ("A.", "guard_content"), ("B.", None))
        applied(reader, *texts)
        assert reader.calls == [(["One.", "Two."], "", "A.")]

    @pytest.mark.parametrize("texts", [[("It is 12.", None)], [(SOURCE, "grounding_source"), (" ", None)]])
    def test_without_a_source_or_words_is_not_scored(self, texts: list[tuple[str, Qualifier | None]]) -> None:
        reader = Reader(0.1, 0.1)
        answer = applied(reader, *texts)
        assert reader.calls == []
        assert "contextualGroundingPolicy" not in answer["assessments"][0]
        assert answer["usage"]["contextualGroundingPolicyUnits"] == 0

    def test_is_what_is_scored_and_no_prompt(self) -> None:
        reader = Reader(0.1, 0.1)
        assert applied(reader, (SOURCE, "grounding_source"), ("Hello?", None), way="INPUT")["action"] == "NONE"
        assert reader.calls == []

    @pytest.mark.parametrize(("on_failure", "action"), [("BLOCK", "GUARDRAIL_INTERVENED"), ("PASS", "NONE")])
    def test_that_cannot_be_scored_closes_or_opens_as_the_rule_says(self, on_failure: str, action: str) -> None:
        def fails(sources: Any, query: str, answer: str) -> Any:
            raise InvalidArgument("Query and answer have 9,000 tokens.")

        rule = {"type": "GROUNDING", "threshold": 0.5, "on_failure": on_failure}
        checker = checker_of(Guardrail.model_validate({"name": "a", "grounding": [rule]}))
        texts = [GuardedText(SOURCE, ("grounding_source",)), GuardedText("It is 12.")]
        answer = apply_guardrail(checker, texts, "OUTPUT", ground=fails)
        assert answer["action"] == action
        assert "(Query and answer have 9,000 tokens)" in answer["actionReason"]
        assert "contextualGroundingPolicy" not in answer["assessments"][0]

    def test_is_not_repeated_in_what_is_logged(self) -> None:
        texts = ((SOURCE, "grounding_source"), ("It is 55.", None))
        answer = applied(Reader(0.1, 0.1), *texts, show_matches=False)
        assert answer["poise"]["grounding"][0]["missing"] == {"numbers": 1, "names": 0, "quotes": 0}


class TestTheFile:
    @pytest.mark.parametrize(
        ("rules", "fault"),
        [
            ([{"type": "GROUNDING", "threshold": 1.0}], "less than or equal to 0.99"),
            ([{"type": "GROUNDED", "threshold": 0.5}], "GROUNDING"),
            ([{"type": "GROUNDING"}], "Field required"),
            ([{"type": "GROUNDING", "threshold": 0.5}] * 2, "grounding.0 is too; keep one"),
        ],
    )
    def test_is_checked(self, rules: list[dict[str, Any]], fault: str) -> None:
        with pytest.raises(ValidationError) as raised:
            Guardrail.model_validate({"name": "a", "grounding": rules})
        assert fault in str(raised.value)


class TestWithAModel:
    def test_scores_by_it_where_it_is_told_to(self) -> None:
        ran: list[int] = []

        def between(work: Any) -> Any:
            ran.append(1)
            return work()

        grounding = grounding_reader(tiny.model(), between)([SOURCE, "Second."], QUERY, "It is 55 euros.")
        assert ran == [1]
        assert grounding.passages == (SOURCE, "Second.")
        assert grounding.sentences[0].missing.numbers == ("55",)

    def test_is_served(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(json.dumps(RULES))
        content = [
            {"text": {"text": SOURCE, "qualifiers": ["grounding_source"]}},
            {"text": {"text": QUERY, "qualifiers": ["query"]}},
            {"text": {"text": "It is 55 euros."}},
        ]
        with serving.running(given={}, guardrail=tmp_path / "a.yaml") as (address, _):
            route = f"{address}/guardrail/sources/version/DRAFT/apply"
            answer = httpx.post(route, json={"source": "OUTPUT", "content": content}).json()
            long = [{"text": {"text": "word " * 9000}}, *content[:2]]
            unread = httpx.post(route, json={"source": "OUTPUT", "content": long}).json()
        filters = answer["assessments"][0]["contextualGroundingPolicy"]["filters"]
        assert [f["type"] for f in filters] == ["GROUNDING", "RELEVANCE"]
        assert all(0 <= f["score"] <= 1 for f in filters)
        assert (unread["action"], unread["outputs"]) == ("GUARDRAIL_INTERVENED", [{"text": "I do not know."}])
        assert "window" in unread["actionReason"]
        assert "blocks, as its `on_failure` says" in unread["actionReason"]

    def test_is_needed(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(json.dumps(RULES))
        arguments = ["guardrail", "check", str(tmp_path / "a.yaml"), "It is 55.", "--source", "output"]
        done = CliRunner().invoke(app, [*arguments, "--grounding-source", SOURCE])
        assert json.loads(done.stdout)["action"] == "NONE"
        assert "give --model" in done.stderr

    @pytest.mark.parametrize(
        ("rules", "options", "fault"),
        [
            (RULES, ["--question", "How much?"], "--question would do nothing for prompts"),
            (RULES, ["--grounding-source", SOURCE], "--grounding-source would do nothing for prompts"),
            ("words", ["--source", "output", "--grounding-source", SOURCE], "has no `grounding`"),
            ("words", ["--source", "output", "--question", "How much?"], "has neither `grounding` nor `reasoning`"),
        ],
    )
    def test_options_that_would_do_nothing_are_refused(
        self, rules: object, options: list[str], fault: str, tmp_path: Path
    ) -> None:
        words = {"name": "words", "words": {"custom": ["grey fog"]}}
        (tmp_path / "a.yaml").write_text(json.dumps(words if rules == "words" else rules))
        done = CliRunner().invoke(app, ["guardrail", "check", str(tmp_path / "a.yaml"), "It is 55.", *options])
        assert done.exit_code == 2
        assert fault in " ".join(done.stderr.replace("│", " ").split())
