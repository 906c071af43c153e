"""boto3 against the route of guardrails: botocore holds requests and answers to Bedrock's shapes."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError
from botocore.validate import ParamValidator

from conftest import ROOT

pytestmark = pytest.mark.clients
KEY = "Bearer 0123456789abcdef-ben"
NAMED: dict[str, Any] = {"guardrailIdentifier": "bank", "guardrailVersion": "2"}


def connect(address: str, **more: Any) -> Any:
    keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
    config = Config(retries={"max_attempts": 1}, **more)
    return boto3.client("bedrock-runtime", region_name="eu-west-1", endpoint_url=address, config=config, **keys)


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return connect(address)


def apply(client: Any, *texts: str | dict[str, Any], source: str = "INPUT", **more: Any) -> dict[str, Any]:
    content = [{"text": text if isinstance(text, dict) else {"text": text}} for text in texts]
    answer = client.apply_guardrail(**{**NAMED, "source": source, "content": content, **more})
    shape = client.meta.service_model.operation_model("ApplyGuardrail").output_shape
    raw = {name: value for name, value in answer.items() if name != "ResponseMetadata"}
    report = ParamValidator().validate(raw, shape)
    assert not report.has_errors(), report.generate_report()
    check_choices(raw, shape)
    return answer


def check_choices(value: Any, shape: Any) -> None:
    """botocore does not look at enumerations."""
    if shape.type_name == "structure":
        for name, item in value.items():
            assert name in shape.members, name
            check_choices(item, shape.members[name])
    elif shape.type_name == "list":
        for item in value:
            check_choices(item, shape.member)
    elif getattr(shape, "enum", None):
        assert value in shape.enum


def test_passes_what_is_fine(client: Any) -> None:
    answer = apply(client, "Where is my card?")
    assert (answer["action"], answer["outputs"]) == ("NONE", [])
    assert answer["guardrailCoverage"]["textCharacters"] == {"guarded": 17, "total": 17}
    assert answer["usage"]["wordPolicyUnits"] == 1


@pytest.mark.parametrize(("source", "message"), [("INPUT", "Ask something else."), ("OUTPUT", "Not that.")])
def test_blocks_words_with_the_message_of_their_way(client: Any, source: str, message: str) -> None:
    answer = apply(client, "Go to a RIVAL bank", source=source)
    assert (answer["action"], answer["outputs"]) == ("GUARDRAIL_INTERVENED", [{"text": message}])
    [word] = answer["assessments"][0]["wordPolicy"]["customWords"]
    assert word == {"match": "rival bank", "action": "BLOCKED", "detected": True}


def test_masks_several_texts(client: Any) -> None:
    answer = apply(client, "mail a@mail.example", "about TCK-123456", source="OUTPUT")
    assert answer["outputs"] == [{"text": "mail {EMAIL}"}, {"text": "about {ticket}"}]
    policy = answer["assessments"][0]["sensitiveInformationPolicy"]
    [entity], [regex] = policy["piiEntities"], policy["regexes"]
    assert (entity["type"], entity["match"], entity["action"]) == ("EMAIL", "a@mail.example", "ANONYMIZED")
    assert (regex["name"], regex["match"], regex["regex"]) == ("ticket", "TCK-123456", "TCK-[0-9]{6,12}")


def test_only_reports_what_is_to_be_reported(client: Any) -> None:
    answer = apply(client, "grey fog, and bullshit")
    assert answer["action"] == "NONE"
    policy = answer["assessments"][0]["wordPolicy"]
    assert [word["action"] for word in policy["customWords"] + policy["managedWordLists"]] == ["NONE", "NONE"]
    assert policy["managedWordLists"][0]["type"] == "PROFANITY"


def test_checks_what_is_qualified(client: Any) -> None:
    bad = "a rival bank"
    source = {"text": bad, "qualifiers": ["grounding_source"]}
    assert apply(client, source, "fine")["action"] == "NONE"
    assert apply(client, {"text": bad, "qualifiers": ["query", "guard_content"]})["action"] == "GUARDRAIL_INTERVENED"


def test_answers_in_full(client: Any) -> None:
    assert apply(client, "fine", outputScope="FULL")["assessments"][0]["invocationMetrics"]


def test_has_answers_reasoned_about(client: Any) -> None:
    """By what a random model writes down, so that any finding may come."""
    query = {"text": "May I?", "qualifiers": ["query"]}
    content = {"text": "You may.", "qualifiers": ["guard_content"]}
    more = {"guardrailIdentifier": "hr", "guardrailVersion": "DRAFT"}
    answer = apply(client, query, content, source="OUTPUT", **more)
    [finding] = answer["assessments"][0]["automatedReasoningPolicy"]["findings"]
    kinds = {"valid", "invalid", "satisfiable", "impossible", "tooComplex", "noTranslations"}
    assert len(finding) == 1
    assert finding.keys() <= kinds
    assert answer["usage"]["automatedReasoningPolicies"] == 1


def test_takes_the_guardrails_arn(client: Any) -> None:
    arn = "arn:aws:bedrock:eu-west-1:123456789012:guardrail/bank"
    content = [{"text": {"text": "fine"}}]
    answer = client.apply_guardrail(guardrailIdentifier=arn, guardrailVersion="2", source="INPUT", content=content)
    assert answer["action"] == "NONE"


def test_scores_an_answer_over_its_source(client: Any) -> None:
    source = {"text": "A ticket is 12 euros.", "qualifiers": ["grounding_source"]}
    query = {"text": "How much is it?", "qualifiers": ["query"]}
    named = {"guardrailIdentifier": "sources", "guardrailVersion": "DRAFT"}
    answer = apply(client, source, query, "It is 55 euros.", source="OUTPUT", **named)
    grounding, relevance = answer["assessments"][0]["contextualGroundingPolicy"]["filters"]
    assert (grounding["type"], grounding["threshold"], grounding["action"]) == ("GROUNDING", 0.99, "BLOCKED")
    assert (relevance["type"], relevance["action"], relevance["detected"]) == ("RELEVANCE", "NONE", True)
    assert 0 <= grounding["score"] < 0.99
    assert answer["action"] == "GUARDRAIL_INTERVENED"
    assert answer["usage"]["contextualGroundingPolicyUnits"] == 1
    assert answer["guardrailCoverage"]["textCharacters"] == {"guarded": 15, "total": 51}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"guardrailVersion": "DRAFT"}, "ResourceNotFoundException", "version '2'"),
        ({"guardrailIdentifier": "shop"}, "ResourceNotFoundException", "there is 'bank'"),
        ({"content": []}, "ValidationException", "content"),
        ({"source": "BOTH"}, "ValidationException", "source"),
        ({"content": [{"image": {"format": "png", "source": {"bytes": b"x"}}}]}, "ValidationException", "image"),
        ({"content": [{"text": {"text": "a" * 10**7}}]}, "ValidationException", "bytes"),
    ],
)
def test_is_told_what_is_wrong(client: Any, change: dict[str, Any], code: str, message: str) -> None:
    request = {**NAMED, "source": "INPUT", "content": [{"text": {"text": "a"}}], **change}
    with pytest.raises(ClientError) as caught:
        client.apply_guardrail(**request)
    assert caught.value.response["Error"]["Code"] == code
    assert message in caught.value.response["Error"]["Message"]


def test_comes_with_a_key(limited: str) -> None:
    """botocore sends AWS_BEARER_TOKEN_BEDROCK over HTTPS alone; this is what it sends then."""
    content = [{"text": {"text": "a"}}]
    with pytest.raises(ClientError) as caught:
        connect(limited).apply_guardrail(**NAMED, source="INPUT", content=content)
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    client = connect(limited, signature_version=UNSIGNED)
    add_key = "before-send.bedrock-runtime.ApplyGuardrail"
    client.meta.events.register(add_key, lambda request, **_: request.headers.__setitem__("Authorization", KEY))
    assert client.apply_guardrail(**NAMED, source="INPUT", content=content)["action"] == "NONE"


def test_has_bedrocks_types(client: Any) -> None:
    with pytest.raises(ParamValidationError):
        client.apply_guardrail(**NAMED, source="INPUT", content="text")
    shape = client.meta.service_model.shape_for("GuardrailPiiEntityType")
    types = (ROOT / "src" / "poise" / "guardrail" / "pii_types.py").read_text("utf-8")
    assert len(shape.enum) == 31
    assert [name for name in shape.enum if f'    "{name}",\n' not in types] == []


def invoke_checks(client: Any, text: str, checks: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": [{"text": text}]}]
    answer: dict[str, Any] = client.invoke_guardrail_checks(messages=messages, checks=checks)
    shape = client.meta.service_model.operation_model("InvokeGuardrailChecks").output_shape
    raw = {name: value for name, value in answer.items() if name != "ResponseMetadata"}
    report = ParamValidator().validate(raw, shape)
    assert not report.has_errors(), report.generate_report()
    check_choices(raw, shape)
    return raw


def test_checks_what_a_request_names(client: Any) -> None:
    entities = {"sensitiveInformation": {"entities": [{"type": "EMAIL"}, {"type": "PHONE"}]}}
    answer = invoke_checks(client, "Mail a@mail.example now.", entities)
    [entity] = answer["results"]["sensitiveInformation"]["results"]
    assert (entity["type"], entity["beginOffset"], entity["endOffset"]) == ("EMAIL", 5, 19)
    with pytest.raises(ClientError, match=r"ValidationException.*No guardrail here reads HATE"):
        invoke_checks(client, "Hello", {"contentFilter": {"categories": [{"category": "HATE"}]}})
