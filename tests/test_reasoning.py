"""Policies of typed variables and rules, and what follows from them for an answer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.errors import InvalidSettings, InvalidStatement
from poise.reasoning import (
    LocalFactWriter,
    PolicyReasoner,
    ReasoningPolicy,
    Translation,
    check_answer,
    lint_policy,
    load_policy,
)
from poise.reasoning.translation import facts_schema, messages_for

POLICIES = Path(__file__).parent / "policies"
FULL, PART = 'employment == "full-time"', 'employment == "part-time"'
CONTRACTOR = 'employment == "contractor"'


@pytest.fixture(scope="module")
def reasoners() -> dict[str, PolicyReasoner]:
    return {name: PolicyReasoner(load_policy(POLICIES / f"{name}.yaml")) for name in ("leave", "refund", "dose")}


def said(premises: str, claims: str) -> Translation:
    """Statements, of which each list is separated by semicolons."""
    first, second = ([part.strip() for part in text.split(";") if part.strip()] for text in (premises, claims))
    return Translation(premises=tuple(first), claims=tuple(second))


CASES = [
    ("leave", f"{FULL}; months_employed == 14", "eligible", "VALID"),
    ("leave", f"{FULL}; months_employed == 12", "eligible", "VALID"),
    ("leave", f"{FULL}; months_employed >= 12", "weeks == 16; eligible", "VALID"),
    ("leave", f"{PART}; months_employed > 20", "weeks < 16", "VALID"),
    ("leave", CONTRACTOR, "not eligible", "VALID"),
    ("leave", CONTRACTOR, "weeks == 0", "VALID"),
    ("leave", "months_employed < 12", "not eligible", "VALID"),
    ("leave", "eligible; notice_given", "paid_share == 1", "VALID"),
    ("leave", "eligible; not notice_given", "paid_share == 0.5", "VALID"),
    ("leave", "weeks == 16", "eligible", "VALID"),
    ("leave", "weeks > 0", "months_employed >= 12", "VALID"),
    ("leave", "", "months_employed >= 0", "VALID"),
    ("leave", f"{FULL}; months_employed == 11", "eligible", "INVALID"),
    ("leave", f"{FULL}; months_employed == 14", "weeks == 8", "INVALID"),
    ("leave", f"{PART}; months_employed == 14", "weeks == 16", "INVALID"),
    ("leave", CONTRACTOR, "weeks > 0", "INVALID"),
    ("leave", f"{CONTRACTOR}; months_employed == 40", "eligible", "INVALID"),
    ("leave", "eligible; notice_given", "paid_share == 0.5", "INVALID"),
    ("leave", "eligible", "paid_share < 0.4", "INVALID"),
    ("leave", "", "weeks > 16", "INVALID"),
    ("leave", "months_employed == 14", "eligible", "SATISFIABLE"),
    ("leave", "eligible", "paid_share == 1", "SATISFIABLE"),
    ("leave", "eligible", "weeks == 16", "SATISFIABLE"),
    ("leave", FULL, "eligible", "SATISFIABLE"),
    ("leave", "not eligible", "paid_share == 0", "SATISFIABLE"),
    ("leave", "months_employed == 14; months_employed < 3", "eligible", "IMPOSSIBLE"),
    ("leave", f"{CONTRACTOR}; eligible", "weeks > 0", "IMPOSSIBLE"),
    ("leave", "weeks == 60", "eligible", "IMPOSSIBLE"),
    ("leave", "months_employed == -1", "eligible", "IMPOSSIBLE"),
    ("refund", "days_since_purchase == 10; not opened; refundable; price == 40", "refund == 40", "VALID"),
    ("refund", "days_since_purchase == 31; not defective", "not refundable", "VALID"),
    ("refund", "days_since_purchase == 31; not defective; price == 9.99", "refund == 0", "VALID"),
    ("refund", "defective; days_since_purchase == 700", "refundable", "VALID"),
    ("refund", 'opened; category == "software"; not defective', "not refundable", "VALID"),
    ("refund", "refundable; opened; not defective; price == 50", "refund == 40", "VALID"),
    ("refund", "refundable; opened; not defective; price == 0.1", "refund == 0.08", "VALID"),
    ("refund", "refundable; price > 0", "refund > 0", "VALID"),
    ("refund", "defective; days_since_purchase == 731", "refundable", "INVALID"),
    ("refund", "days_since_purchase == 31; not defective; price == 20", "refund == 20", "INVALID"),
    ("refund", "refundable; opened; not defective; price == 50", "refund == 50", "INVALID"),
    ("refund", 'opened; category in ("food", "software"); not defective', "refundable", "INVALID"),
    ("refund", "price == 30", "refund > 30", "INVALID"),
    ("refund", "days_since_purchase == 10", "refundable", "SATISFIABLE"),
    ("refund", 'opened; category == "software"', "refundable", "SATISFIABLE"),
    ("refund", "price == 30", "refund == 30", "SATISFIABLE"),
    ("refund", "not opened; days_since_purchase == 3", "refundable", "SATISFIABLE"),
    ("refund", 'opened; category == "food"; not defective; refundable', "refund > 0", "IMPOSSIBLE"),
    ("refund", "price == -5", "refund == 0", "IMPOSSIBLE"),
    ("dose", "tablets == 6", "milligrams == 3000", "VALID"),
    ("dose", "weight == 45; tablets == 5", "not safe", "VALID"),
    ("dose", "weight == 70; not liver_disease; tablets == 8", "safe", "VALID"),
    ("dose", "liver_disease; tablets == 4", "safe", "VALID"),
    ("dose", "tablets <= 4", "safe", "VALID"),
    ("dose", "tablets == 9", "not safe", "VALID"),
    ("dose", "weight == 45; tablets == 5", "safe", "INVALID"),
    ("dose", "tablets == 6", "milligrams == 600", "INVALID"),
    ("dose", "liver_disease", "limit == 4000", "INVALID"),
    ("dose", "", "milligrams == 750", "INVALID"),
    ("dose", "tablets == 6", "safe", "SATISFIABLE"),
    ("dose", "weight == 80", "limit == 4000", "SATISFIABLE"),
    ("dose", "weight == 80; tablets == 5", "safe", "SATISFIABLE"),
    ("dose", "weight == 10", "safe", "IMPOSSIBLE"),
    ("dose", "tablets == 3; milligrams == 1000", "safe", "IMPOSSIBLE"),
    ("dose", "liver_disease; limit == 4000", "safe", "IMPOSSIBLE"),
]


class TestFindings:
    @pytest.mark.parametrize(("name", "premises", "claims", "kind"), CASES)
    def test_are_of_the_right_kind(
        self, reasoners: dict[str, PolicyReasoner], name: str, premises: str, claims: str, kind: str
    ) -> None:
        assert reasoners[name].check(said(premises, claims)).kind == kind

    def test_agree_with_every_case_tried_by_hand(self, reasoners: dict[str, PolicyReasoner]) -> None:
        """The solver against plain Python over all cases of a policy of few values."""
        for tablets, light, ill, safe in itertools.product(range(12), (False, True), (False, True), (False, True)):
            limit = 2000 if light or ill else 4000
            premises = f"tablets == {tablets}; weight == {45 if light else 80}; {'' if ill else 'not '}liver_disease"
            finding = reasoners["dose"].check(said(premises, f"{'' if safe else 'not '}safe"))
            assert finding.kind == ("VALID" if (500 * tablets <= limit) == safe else "INVALID")

    def test_that_are_invalid_name_the_rules_and_what_is_right(self, reasoners: dict[str, PolicyReasoner]) -> None:
        finding = reasoners["leave"].check(said(f"{FULL}; months_employed == 14; eligible", "weeks == 8"))
        assert finding.rules == ("how-long",)
        assert finding.correction == ("weeks == 16",)
        assert reasoners["refund"].check(said("price == 30", "refund > 30")).correction == ()

    def test_that_are_valid_name_the_rules_that_they_rest_on(self, reasoners: dict[str, PolicyReasoner]) -> None:
        assert reasoners["leave"].check(said(f"{FULL}; months_employed == 14", "eligible")).rules == ("who-may",)
        assert reasoners["leave"].check(said("", "months_employed >= 0")).rules == ()

    def test_that_may_be_name_what_is_not_said(self, reasoners: dict[str, PolicyReasoner]) -> None:
        finding = reasoners["leave"].check(said("months_employed == 14", "weeks == 16"))
        assert finding.assumptions == (FULL.replace('"', "'"),)
        assert "weeks == 16" in finding.claims_true
        assert not any(value == "weeks == 16" for value in finding.claims_false)
        check = reasoners["leave"].check(said("months_employed == 14; " + finding.assumptions[0], "weeks == 16"))
        assert check.kind == "VALID"

    def test_that_are_impossible_tell_the_premises_from_the_rules(self, reasoners: dict[str, PolicyReasoner]) -> None:
        against_rules = reasoners["leave"].check(said(f"{CONTRACTOR}; eligible", "weeks > 0"))
        assert (against_rules.rules, against_rules.reason) == (("who-may",), "the premises contradict these rules")
        among_themselves = reasoners["leave"].check(said("weeks == 1; weeks == 2", "eligible"))
        assert (among_themselves.rules, among_themselves.reason) == ((), "the premises contradict each other")

    def test_of_two_translations_depend_on_what_they_say(self, reasoners: dict[str, PolicyReasoner]) -> None:
        check = reasoners["leave"].check
        differing = check(said("", "eligible"), said("", "weeks > 16"))
        assert differing.kind == "TRANSLATION_AMBIGUOUS"
        assert [each.claims for each in differing.translations] == [("eligible",), ("weeks > 16",)]
        alike = check(said(CONTRACTOR, "not eligible"), said(CONTRACTOR, "not (eligible)"))
        assert alike.kind == "VALID"
        by_the_rules = check(said("eligible", "paid_share == 1"), said("eligible", "paid_share > 0.5"))
        assert by_the_rules.kind == "TRANSLATION_AMBIGUOUS", "the premises are no part of what a claim means"
        assert check(said("weeks > 4", "eligible"), said("weeks >= 5", "eligible")).kind == "VALID"

    def test_without_a_claim_are_none(self, reasoners: dict[str, PolicyReasoner]) -> None:
        assert reasoners["leave"].check(said("eligible", "")).kind == "NO_TRANSLATION"
        assert reasoners["leave"].check().kind == "NO_TRANSLATION"

    def test_of_too_much_work_say_so_and_end(self) -> None:
        hard = {
            "name": "hard",
            "variables": {n: {"type": "integer", "least": 1, "description": n} for n in ("x", "y", "z", "u")},
            "rules": [{"name": "fermat", "text": "-", "always": "x*x*x*x + y*y*y*y + z*z*z*z == u*u*u*u"}],
        }
        policy = ReasoningPolicy.model_validate(hard)
        finding = PolicyReasoner(policy, most_work=20_000).check(said("", "u > 3"))
        assert finding.kind == "TOO_COMPLEX"
        assert "z3 gave up" in finding.reason


EXPRESSION_FAULTS = [
    ("week == 8", "names week, which is no variable; did you mean weeks?"),
    ("weeks = 8", "which cannot be read: write == for is, and != for is not"),
    ("eligible && notice_given", "write and, or and not"),
    ("weeks", "is a whole number and neither true nor false; compare it"),
    ("weeks and eligible", "has weeks where something true or false is needed"),
    ("eligible == 3", "compares eligible, which is true or false, with 3, which is a whole number"),
    ("employment == 'intern'", "has the value 'intern', and there are: 'full-time', 'part-time', 'contractor'"),
    ("employment < 'part-time'", "reckons with employment, which is one of"),
    ("'full-time' == 'full-time'", "and both are texts"),
    ("weeks in 8", "write a list of values"),
    ("weeks in ()", "write a list of values"),
    ("weeks / months_employed > 1", "divide by a number that is not 0"),
    ("weeks / 0 > 1", "divide by a number that is not 0"),
    ("eligible is true", "compares by a word that is not known here"),
    ("eligible if notice_given else false", "which is not known here"),
    ("__import__('os').system('true')", "which is not known here"),
    ("weeks == 1e999", "no number"),
    ("weeks == None", "no number"),
    ("(" * 300 + "weeks" + ")" * 300 + " == 1", "cannot be read"),
    ("eligible or " * 300 + "eligible", "at most 2000 are read"),
    ("", "cannot be read"),
]


class TestAPolicy:
    @pytest.mark.parametrize("name", ["leave", "refund", "dose"])
    def test_that_is_sound_has_no_remarks(self, name: str) -> None:
        assert lint_policy(load_policy(POLICIES / f"{name}.yaml")) == []

    @pytest.mark.parametrize(("text", "says"), EXPRESSION_FAULTS)
    def test_refuses_what_is_no_statement(self, text: str, says: str) -> None:
        with pytest.raises(InvalidStatement) as refusal:
            load_policy(POLICIES / "leave.yaml").expressions([text])
        assert says in str(refusal.value)

    @pytest.mark.parametrize(
        ("before", "after", "says"),
        [
            ("then: weeks == 16", "then: week == 16", "line 18: rules.1.then names week, which is no variable"),
            ("    then: weeks == 16\n", "", "line 15: rules.1 it has when; write when and then"),
            ("type: integer, least: 0, most: 52", "type: integer, least: 60, most: 52", "which is above most, 52"),
            ("values: [full-time, part-time, contractor]", "values: [full-time]", "a choice needs two values at least"),
            ("type: boolean, description: Whether it", "type: boolean, most: 2, description: Whether it", "is for num"),
            ("  eligible:", "  not:", "variables.not is a word of the rules' own"),
            ("name: how-long", "name: who-may", "is 'who-may', which rules.0 is too"),
            ("name: how-long", "naem: how-long", "did you mean name?"),
        ],
    )
    def test_says_where_it_is_wrong(self, tmp_path: Path, before: str, after: str, says: str) -> None:
        text = (POLICIES / "leave.yaml").read_text()
        assert before in text
        path = tmp_path / "policy.yaml"
        path.write_text(text.replace(before, after, 1))
        with pytest.raises(InvalidSettings) as refusal:
            load_policy(path)
        assert says in str(refusal.value)

    def rules(self, *texts: str) -> ReasoningPolicy:
        named = [{"name": f"r{n}", "text": "-", "always": text} for n, text in enumerate(texts)]
        variables = {name: {"type": "integer", "description": name} for name in ("x", "y")}
        return ReasoningPolicy.model_validate({"name": "p", "variables": variables, "rules": named})

    def test_that_contradicts_itself_is_told(self) -> None:
        [sentence] = lint_policy(self.rules("x > 3", "y == x", "y < 2"))
        assert sentence == "The rules r0, r1, r2 contradict each other, so that nothing can be checked; change one."
        assert PolicyReasoner(self.rules("x > 3", "y == x", "y < 2")).check(said("", "x == 1")).kind == "IMPOSSIBLE"

    def test_that_repeats_itself_is_told(self) -> None:
        assert lint_policy(self.rules("x > 3 and y > 1", "x >= 4")) == [
            "The rule r1 follows from the others; take it out, or change it."
        ]
        assert lint_policy(self.rules("x > 3 and y == 0", "x == x"))[0].startswith("The rule r1 follows")

    def test_that_leaves_a_variable_out_is_told(self) -> None:
        assert lint_policy(self.rules("x > 3")) == [
            "No rule names y, so that nothing can be said of it; use it or take it out."
        ]

    def test_whose_rule_never_applies_is_told(self) -> None:
        policy = self.rules("x > 3", "y > 0").model_dump()
        policy["rules"] = [
            {"name": "low", "text": "-", "when": "x < 2", "then": "y == 1"},
            {"name": "high", "text": "-", "always": "x > 3"},
        ]
        assert lint_policy(ReasoningPolicy(**policy)) == ["The rule low never applies: what it says of when cannot be."]


class TestATranslation:
    def write(self, *texts: str) -> Any:
        return lambda messages, schema, *, seed: texts[seed % len(texts)]

    def test_is_reasoned_about(self, reasoners: dict[str, PolicyReasoner]) -> None:
        facts = {
            "premises": [
                {"variable": "employment", "comparison": "==", "value": "contractor"},
                {"variable": "notice_given", "value": False},
            ],
            "claims": [{"variable": "weeks", "comparison": ">", "value": 0}],
        }
        finding = check_answer(reasoners["leave"], "And I?", "You may.", self.write(json.dumps(facts)))
        assert finding.kind == "INVALID"
        assert finding.translations[0].premises == (CONTRACTOR, "notice_given == false")

    def test_that_differs_from_the_next_decides_nothing(self, reasoners: dict[str, PolicyReasoner]) -> None:
        texts = [json.dumps({"premises": [], "claims": [{"variable": "eligible", "value": v}]}) for v in (True, False)]
        assert check_answer(reasoners["leave"], "", "Yes.", self.write(*texts)).kind == "TRANSLATION_AMBIGUOUS"

    @pytest.mark.parametrize("text", ["", "Yes.", '{"premises": []', '{"claims": []}', '{"premises": 3, "claims": []}'])
    def test_that_cannot_be_read_is_none(self, reasoners: dict[str, PolicyReasoner], text: str) -> None:
        finding = check_answer(reasoners["leave"], "", "Yes.", self.write(text))
        assert finding.kind == "NO_TRANSLATION"

    def test_shows_the_examples_of_the_policy_as_facts(self) -> None:
        policy = load_policy(POLICIES / "leave.yaml").model_dump()
        policy["examples"] = [
            {
                "question": "I am a contractor.",
                "answer": "Then you have no leave.",
                "premises": [CONTRACTOR, "not notice_given"],
                "claims": ["not eligible", "weeks == 0"],
            }
        ]
        messages = messages_for(ReasoningPolicy(**policy), "And I?", "You may.")
        assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
        assert json.loads(messages[2]["content"]) == {
            "premises": [
                {"variable": "employment", "comparison": "==", "value": "contractor"},
                {"variable": "notice_given", "value": False},
            ],
            "claims": [
                {"variable": "eligible", "value": False},
                {"variable": "weeks", "comparison": "==", "value": 0},
            ],
        }

    @pytest.mark.parametrize("claim", ["weeks > months_employed", "eligible or notice_given", "weeks + 1 == 2"])
    def test_of_an_example_is_of_single_comparisons(self, claim: str) -> None:
        policy = load_policy(POLICIES / "leave.yaml").model_dump()
        policy["examples"] = [{"question": "a", "answer": "b", "claims": [claim]}]
        with pytest.raises(InvalidSettings, match="write one variable, compared with one value"):
            ReasoningPolicy(**policy)

    def test_by_a_model_fits_the_schema_or_is_cut(self, reasoners: dict[str, PolicyReasoner]) -> None:
        jsonschema = pytest.importorskip("jsonschema")
        model = tiny.model(max_position_embeddings=4096)
        policy = reasoners["leave"].policy
        write = LocalFactWriter(model, most_tokens=300)
        texts = [write(messages_for(policy, "And I?", "You may."), facts_schema(policy), seed=n) for n in range(4)]
        assert len(set(texts)) > 1
        for text in texts:
            assert text.startswith("{")
            if text.endswith("}]}"):
                jsonschema.validate(json.loads(text), facts_schema(policy))
        assert write(messages_for(policy, "And I?", "You may."), facts_schema(policy), seed=2) == texts[2]


class TestTheCommand:
    def run(self, *words: str) -> Any:
        return CliRunner().invoke(app, ["guardrail", "reason", str(POLICIES / "leave.yaml"), *words])

    def test_prints_a_finding(self) -> None:
        done = self.run("--premise", FULL, "--premise", "eligible", "--claim", "weeks == 8")
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert (told["kind"], told["rules"], told["correction"]) == ("INVALID", ["how-long"], ["weeks == 16"])

    def test_without_claims_prints_what_is_wrong_with_the_policy(self) -> None:
        assert json.loads(self.run().stdout) == {
            "policy": "parental-leave",
            "rules": 5,
            "variables": 6,
            "remarks": [],
        }

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--claim", "week == 8"], "A statement names week, which is no variable; did you mean weeks?"),
            (["--premise", "eligible"], "--premise is what a --claim follows from; give a claim too."),
            (["--answer", "Yes."], "--answer needs a --translator"),
            (["--answer", "Yes.", "--claim", "eligible"], "give one of these"),
            (["--answer", "Yes.", "--translator", "endpoint:"], "write endpoint:NAME"),
        ],
    )
    def test_refuses_what_does_not_go_together(self, words: list[str], says: str) -> None:
        done = self.run(*words)
        assert done.exit_code != 0
        text = " ".join((done.output + str(done.exception)).split())
        assert says.replace("--", "") in text.replace("--", "").replace("`", "")
