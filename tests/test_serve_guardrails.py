"""Several guardrails in one server: which of them acts, what is read again, and what is counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny
from poise.errors import InvalidArgument
from poise.guardrail.versions import publish_guardrail
from poise.serve.server import RunningServer, ServerOptions, make_server

KEYS = {"ana": "0123456789abcdef-ana", "ben": "0123456789abcdef-ben", "cay": "0123456789abcdef-cay"}


def write(path: Path, name: str, word: str, version: str = "DRAFT") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"name: {name}\nversion: {version}\nmessages: {{input: No {word} by {name}.}}\nwords: {{custom: [{word}]}}\n"
    )
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A guardrail against fog, and a folder with two numbers of one against rain and snow."""
    first = write(tmp_path / "fog.yaml", "fog", "fog")
    for word in ("rain", "snow"):
        publish_guardrail(write(tmp_path / "sky.yaml", "sky", word), tmp_path / "kept")
    return [first, tmp_path / "kept"]


def options(tmp_path: Path, files: list[Path], rules: dict[str, Any]) -> dict[str, Any]:
    keys, policy = tmp_path / "keys", tmp_path / "policy.yaml"
    keys.write_text("".join(f"{name} {key}\n" for name, key in KEYS.items()))
    keys.chmod(0o600)
    policy.write_text(json.dumps(rules))
    return {"guardrail": files, "keys": keys, "policy": policy}


def chat(address: str, text: str, key: str = "ana", **poise: Any) -> httpx.Response:
    body = {"model": "tiny-llama", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    headers = {"Authorization": f"Bearer {KEYS[key]}"}
    return httpx.post(
        f"{address}/v1/chat/completions", json=body | ({"poise": poise} if poise else {}), headers=headers
    )


def blocked_by(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    return str(choice["message"]["content"]) if choice["finish_reason"] == "content_filter" else ""


RULES = {
    "default": {"may_choose_guardrail": True},
    "keys": {"ben": {"guardrail": "sky/1"}, "cay": {"guardrail": False}},
}


class TestWhichGuardrailActs:
    @pytest.fixture
    def server(self, tmp_path: Path, files: list[Path]) -> Iterator[tuple[str, RunningServer]]:
        with serving.running(given={}, **options(tmp_path, files, RULES)) as running:
            yield running

    def test_is_the_first_unless_the_keys_rules_name_another(self, server: tuple[str, RunningServer]) -> None:
        address, _ = server
        said = {key: [blocked_by(chat(address, word, key)) for word in ("fog", "rain", "snow")] for key in KEYS}
        assert said["ana"] == ["No fog by fog.", "", ""]
        assert said["ben"] == ["", "No rain by sky.", ""]
        assert said["cay"] == ["", "", ""]

    def test_is_what_a_request_names_where_it_may(self, server: tuple[str, RunningServer]) -> None:
        address, _ = server
        assert blocked_by(chat(address, "snow", guardrail="sky")) == "No snow by sky."
        assert blocked_by(chat(address, "snow", guardrail="sky/1")) == ""
        assert blocked_by(chat(address, "rain", "ben", guardrail="sky/1")) == "No rain by sky."
        for key, name, status, words in [
            ("ben", "fog", 403, "may_choose_guardrail"),
            ("cay", "fog", 403, "may_choose_guardrail"),
            ("ana", "sky/9", 404, "there is: fog/DRAFT, sky/1, sky/2"),
        ]:
            answer = chat(address, "snow", key, guardrail=name)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (status, "poise.guardrail")
            assert words in error["message"]

    def test_of_bedrocks_route_is_the_one_that_it_names(self, server: tuple[str, RunningServer]) -> None:
        address, _ = server
        body = {"source": "INPUT", "content": [{"text": {"text": "rain or snow"}}]}
        headers = {"Authorization": f"Bearer {KEYS['ben']}"}
        for version, word in (("1", "rain"), ("2", "snow")):
            answer = httpx.post(f"{address}/guardrail/sky/version/{version}/apply", json=body, headers=headers)
            [match] = answer.json()["assessments"][0]["wordPolicy"]["customWords"]
            assert match["match"] == word
        answer = httpx.post(f"{address}/guardrail/sky/version/DRAFT/apply", json=body, headers=headers)
        assert (answer.status_code, "version '2'" in answer.json()["message"]) == (404, True)

    def test_is_refused_where_it_is_not_there_or_nobody_has_said(self, tmp_path: Path, files: list[Path]) -> None:
        given = options(tmp_path, files, {"default": {"guardrail": "sea"}})
        with pytest.raises(InvalidArgument, match=r"line 1: default.guardrail is 'sea', which is not here"):
            make_server(tiny.model(), {}, ServerOptions(port=0, **given))
        publish_guardrail(files[0], files[1])
        given = options(tmp_path, files[1:], {"default": {}, "keys": {"ana": {"guardrail": False}}})
        with pytest.raises(InvalidArgument, match=r"names no `guardrail`, and the folder has several \(fog, sky\)"):
            make_server(tiny.model(), {}, ServerOptions(port=0, **given))


class TestAReload:
    def test_takes_drafts_and_new_numbers(self, tmp_path: Path, files: list[Path]) -> None:
        with serving.running(given={}, **options(tmp_path, files, RULES)) as (address, server):
            guards = server.service.guardrails
            write(files[0], "fog", "mist")
            publish_guardrail(write(tmp_path / "sky.yaml", "sky", "hail"), files[1])
            assert server.reloader.reload()
            assert blocked_by(chat(address, "mist and fog")) == "No mist by fog."
            assert blocked_by(chat(address, "hail", guardrail="sky")) == "No hail by sky."
            assert server.service.guardrails.guards["sky", "1"] is guards.guards["sky", "1"]

    def test_takes_a_policy_that_a_draft_names(self, tmp_path: Path) -> None:
        policy, draft = tmp_path / "leave.yaml", tmp_path / "hr.yaml"
        policy.write_text((Path(__file__).parent / "policies" / "leave.yaml").read_text("utf-8"))
        draft.write_text("name: hr\nreasoning: {file: leave.yaml}\n")
        with serving.running(given={}, guardrail=[draft]) as (_, server):
            before = server.service.guardrails
            assert server.reloader.reload()
            assert server.service.guardrails.guards == before.guards
            policy.write_text(policy.read_text("utf-8").replace("name: parental-leave", "name: leave-of-2027"))
            assert server.reloader.reload()
            reasoner = server.service.guardrails.guards["hr", "DRAFT"].reasoner
            assert reasoner
            assert reasoner.rule.policy
            assert reasoner.rule.policy.name == "leave-of-2027"
            policy.unlink()
            assert not server.reloader.reload()
            assert server.service.guardrails.guards["hr", "DRAFT"].reasoner is reasoner

    def test_keeps_all_as_it_was_where_a_number_changed_or_a_rule_lost_its_guardrail(
        self, tmp_path: Path, files: list[Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        with serving.running(given={}, **options(tmp_path, files, RULES)) as (address, server):
            number = files[1] / "sky" / "1.yaml"
            number.chmod(0o600)
            text = number.read_text()
            write(number, "sky", "hail", "1")
            assert not server.reloader.reload()
            assert "sky/1 is a number, which stays what it was" in caplog.text
            number.unlink()
            assert not server.reloader.reload()
            assert "keys.ben.guardrail is 'sky/1', which is not here" in caplog.text
            assert blocked_by(chat(address, "rain", "ben")) == "No rain by sky."
            number.write_text(text)
            assert server.reloader.reload()


def test_interventions_are_counted_by_rule_and_checks_are_timed(tmp_path: Path, files: list[Path]) -> None:
    with serving.running(given={}, **options(tmp_path, files, RULES)) as (address, server):
        for _ in range(3):
            chat(address, "fog")
        body = {"source": "OUTPUT", "content": [{"text": {"text": "snow"}}]}
        headers = {"Authorization": f"Bearer {KEYS['ben']}"}
        httpx.post(f"{address}/guardrail/sky/version/2/apply", json=body, headers=headers)
        lines = server.service.metrics.text().decode().splitlines()
    counts = [line for line in lines if line.startswith("poise_guardrail_interventions_total")]
    labels = 'action="BLOCK",guardrail="{}",policy="words",rule="{}",source="{}"'
    name = "poise_guardrail_interventions_total"
    assert sorted(counts) == [
        f"{name}{{{labels.format('fog/DRAFT', 'fog', 'INPUT')}}} 3.0",
        f"{name}{{{labels.format('sky/2', 'snow', 'OUTPUT')}}} 1.0",
    ]
    assert 'poise_guardrail_seconds_count{check="prompt",guardrail="fog/DRAFT"} 3.0' in lines
    assert 'poise_guardrail_seconds_count{check="apply",guardrail="sky/2"} 1.0' in lines
