"""What the clients that people have send and read, as plain HTTP: harmless fields, headers, addresses."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving
import tiny
from poise.serve import page_files

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {
    "model": "tiny-llama",
    "messages": [{"role": "user", "content": "Where do the boats go?"}],
    "max_tokens": 3,
    "temperature": 0,
}
TEXT: dict[str, Any] = {"model": "tiny-llama", "prompt": "The boats", "max_tokens": 3, "temperature": 0}
FRIEND = "https://friend.example"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with (
        serving.running(tiny.model(), cors=(FRIEND,)) as (address, _),
        httpx.Client(base_url=address, timeout=30) as client,
    ):
        yield client


HARMLESS: list[dict[str, Any]] = [
    {"user": "u-1"},
    {"safety_identifier": "u-1"},
    {"prompt_cache_key": "k"},
    {"metadata": {"run": "7"}},
    {"store": False},
    {"service_tier": "auto"},
    {"response_format": {"type": "text"}},
    {"tools": []},
    {"tools": None, "functions": []},
    {"tool_choice": "none"},
    {"parallel_tool_calls": True},
    {"function_call": "none"},
    {"logit_bias": {}},
    {"modalities": ["text"]},
    {"frequency_penalty": 0.0, "presence_penalty": 0},
    {"stream_options": {"include_obfuscation": False}, "stream": True},
    {"messages": [{"role": "user", "name": "ana", "content": "Where do the boats go?"}]},
]


class TestHarmlessFields:
    @pytest.mark.parametrize("fields", HARMLESS, ids=lambda fields: next(iter(fields)))
    def test_change_nothing(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        plain = http.post(CHAT, json={**ASK, "stream": "stream" in fields})
        answer = http.post(CHAT, json={**ASK, **fields})
        assert answer.status_code == 200, answer.text
        ids = r'"(id|created)": ?("[^"]*"|\d+)'
        assert re.sub(ids, "", answer.text) == re.sub(ids, "", plain.text)

    def test_of_an_earlier_answer_may_come_back(self, http: httpx.Client) -> None:
        said = http.post(CHAT, json=ASK).json()["choices"][0]["message"]
        turns = [*ASK["messages"], {**said, "annotations": [], "tool_calls": [], "audio": None}, *ASK["messages"]]
        again = http.post(CHAT, json={**ASK, "messages": turns})
        assert again.status_code == 200, again.text

    @pytest.mark.parametrize(
        "fields", [{"best_of": 1}, {"suffix": ""}, {"echo": False}, {"user": "u"}, {"store": False}]
    )
    def test_of_plain_completions_too(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        assert http.post(PLAIN, json={**TEXT, **fields}).status_code == 200


class TestUnsupportedFields:
    def test_are_named_all_at_once(self, http: httpx.Client) -> None:
        asked = {
            "functions": [{"name": "f"}],
            "logit_bias": {"5": 1},
            "temperature": 9,
            "frequency_penalty": 1,
            "top_k": 5,
        }
        error = http.post(CHAT, json={**ASK, **asked}).json()["error"]
        named = set(
            error["message"].removesuffix(" are not supported here; leave them out.").replace(" and ", ", ").split(", ")
        )
        assert named == {"functions", "logit_bias", "frequency_penalty", "top_k"}
        assert (error["code"], error["param"] in named) == ("unsupported", True)

    @pytest.mark.parametrize(
        "fields",
        [
            {"store": True},
            {"logit_bias": {"5": 1}},
            {"modalities": ["audio"]},
            {"modalities": ["text", "audio"]},
            {"presence_penalty": 1},
            {"audio": {"voice": "x"}},
            {"n_best": 3},
        ],
        ids=lambda fields: str(fields)[:40],
    )
    def test_are_named_one_by_one(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        [name] = fields
        error = http.post(CHAT, json={**ASK, **fields}).json()["error"]
        assert error == {
            "message": f"{name} is not supported here; leave it out.",
            "type": "invalid_request_error",
            "param": name,
            "code": "unsupported",
        }

    @pytest.mark.parametrize("fields", [{"best_of": 2}, {"suffix": "x"}])
    def test_of_plain_completions_too(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        error = http.post(PLAIN, json={**TEXT, **fields}).json()["error"]
        assert (error["code"], error["param"]) == ("unsupported", next(iter(fields)))


class TestAPromptThatIsTooLong:
    @pytest.mark.parametrize(
        ("path", "body", "param"),
        [
            (CHAT, {**ASK, "max_tokens": 5000}, "messages"),
            (CHAT, {**ASK, "messages": [{"role": "user", "content": "boats " * 300}]}, "messages"),
            (CHAT, {**ASK, "messages": [{"role": "user", "content": "boats " * 30_000}]}, "messages"),
            (PLAIN, {**TEXT, "prompt": "boats " * 300}, "prompt"),
            (PLAIN, {**TEXT, "prompt": [5] * 300}, "prompt"),
        ],
    )
    def test_is_told_in_the_words_that_clients_look_for(
        self, http: httpx.Client, path: str, body: dict[str, Any], param: str
    ) -> None:
        answer = http.post(path, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)
        assert error["message"].startswith("This model's maximum context length is 256 tokens, but the prompt has ")


class TestARequestsId:
    @pytest.mark.parametrize(
        ("method", "path"), [("GET", "/"), ("GET", "/healthz"), ("GET", "/none"), ("POST", CHAT), ("OPTIONS", CHAT)]
    )
    def test_is_in_every_answer_and_new_in_each(self, http: httpx.Client, method: str, path: str) -> None:
        ids = [http.request(method, path).headers["x-request-id"] for _ in range(2)]
        assert ids[0] != ids[1]
        assert all(re.fullmatch("req_[0-9a-f]{32}", each) for each in ids)

    @pytest.mark.parametrize(
        ("given", "taken"), [("abc-123.X:_", True), ("a b", False), ("x" * 129, False), ("ü", False)]
    )
    def test_is_the_clients_where_it_can_stand_in_a_log(self, http: httpx.Client, given: str, taken: bool) -> None:
        answer = http.post(CHAT, json=ASK, headers=[(b"x-request-id", given.encode("utf-8"))])
        assert (answer.headers["x-request-id"] == given) == taken

    def test_is_in_a_stream_too(self, http: httpx.Client) -> None:
        answer = http.post(CHAT, json={**ASK, "stream": True}, headers={"x-request-id": "mine"})
        assert answer.headers["x-request-id"] == "mine"


PAGE = Path(page_files.__file__).parent / "page"
FILES = sorted(f.relative_to(PAGE).as_posix() for f in PAGE.rglob("*.*") if f.suffix in page_files.MEDIA_TYPES)


class TestThePagesFiles:
    @pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
    def test_are_sent_once(self, http: httpx.Client, path: str) -> None:
        whole = http.get(path, headers={"accept-encoding": "identity"})
        assert (whole.status_code, whole.headers["cache-control"]) == (200, "no-cache")
        assert "content-encoding" not in whole.headers
        packed = http.get(path, headers={"accept-encoding": "br, gzip;q=0.5"})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.content == whole.content
        assert int(packed.headers["content-length"]) == len(gzip.compress(whole.content, mtime=0))
        assert packed.headers["etag"] != whole.headers["etag"]
        for answer, encoding in ((whole, "identity"), (packed, "gzip")):
            known = {"accept-encoding": encoding, "if-none-match": f'"other", W/{answer.headers["etag"]}'}
            again = http.get(path, headers=known)
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == answer.headers["etag"]
            assert "content-security-policy" in again.headers
        assert http.get(path, headers={"if-none-match": '"other"'}).status_code == 200

    @pytest.mark.parametrize("path", ["/", "/page/main.js"])
    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    def test_have_heads(self, http: httpx.Client, path: str, encoding: str) -> None:
        headers = {"accept-encoding": encoding}
        head, whole = http.head(path, headers=headers), http.get(path, headers=headers)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-length", "content-type", "etag", "cache-control", "vary"):
            assert head.headers[name] == whole.headers[name], name
        assert head.headers.get("content-encoding") == whole.headers.get("content-encoding")

    @pytest.mark.parametrize(
        ("header", "packed"),
        [
            ("", False),
            ("gzip", True),
            ("*", True),
            ("gzip;q=0", False),
            ("*;q=0", False),
            ("gzip;q=x", False),
            ("br", False),
        ],
    )
    def test_are_packed_for_those_who_take_it(self, http: httpx.Client, header: str, packed: bool) -> None:
        answer = http.get("/", headers={"accept-encoding": header})
        assert ("content-encoding" in answer.headers) == packed

    def test_are_told_where_there_is_none_of_a_name(self, http: httpx.Client) -> None:
        answer = http.get("/page/none.js")
        assert answer.status_code == 404
        message = answer.json()["error"]["message"]
        assert message.startswith("The page has no part of that name: it is at /, and its parts are alarms.js, ")


STAINLESS = [
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-retry-count",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
]


class TestAPageOfAnotherOrigin:
    def test_may_send_the_headers_of_openais_client(self, http: httpx.Client) -> None:
        asked = ", ".join(["Authorization", "Content-Type", "User-Agent", *STAINLESS])
        flight = http.options(
            CHAT,
            headers={
                "origin": FRIEND,
                "access-control-request-method": "POST",
                "access-control-request-headers": asked,
            },
        )
        assert flight.status_code == 204
        allowed = flight.headers["access-control-allow-headers"].split(", ")
        assert allowed == ["authorization", "content-type", "user-agent", *STAINLESS]
        assert flight.headers["access-control-allow-methods"] == "GET, HEAD, POST, DELETE"
        assert flight.headers["access-control-allow-origin"] == FRIEND
        assert flight.headers["vary"] == "origin, access-control-request-headers"

    def test_may_send_no_others(self, http: httpx.Client) -> None:
        asked = "cookie, x-forwarded-for, x-stainless-1, host, x-poise-admin"
        headers = {"origin": FRIEND, "access-control-request-method": "POST"}
        flight = http.options(CHAT, headers={**headers, "access-control-request-headers": asked})
        assert flight.headers["access-control-allow-headers"] == "authorization, content-type"

    def test_may_read_what_the_client_reads(self, http: httpx.Client) -> None:
        answer = http.post(CHAT, json=ASK, headers={"origin": FRIEND, **dict.fromkeys(STAINLESS, "1")})
        assert answer.status_code == 200
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= set(exposed)

    def test_that_is_not_named_gets_nothing(self, http: httpx.Client) -> None:
        headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        flight = http.options(CHAT, headers={**headers, "access-control-request-headers": STAINLESS[0]})
        assert flight.status_code == 403
        assert not [name for name in flight.headers if name.startswith("access-control")]


class TestWhatIsNotThere:
    @pytest.mark.parametrize(
        ("path", "meant"),
        [
            ("/chat/completions", "/v1/chat/completions"),
            ("/v1/chat/completion", "/v1/chat/completions"),
            ("/models", "/v1/models"),
            ("/v1/v1/models", "/v1/models"),
            ("/v1/metrics", "/metrics"),
            ("/v1/poise/vector", "/v1/poise/vectors"),
        ],
    )
    def test_is_answered_by_what_may_be_meant(self, http: httpx.Client, path: str, meant: str) -> None:
        answer = http.post(path, json={})
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["message"].startswith(
            f"There is nothing at {path}. Do you mean {meant}? There are: GET /v1/models, "
        )
        assert error["code"] == "http_error"

    @pytest.mark.parametrize("path", ["/v1/images", "/none", "/v1/" + "x" * 5000])
    def test_is_answered_by_what_there_is(self, http: httpx.Client, path: str) -> None:
        message = http.get(path).json()["error"]["message"]
        assert message.startswith(f"There is nothing at {path[:100]}; there are: GET /v1/models, ")
        for route in (
            "POST /v1/chat/completions",
            "GET /v1/poise/readings",
            "DELETE /v1/poise/vectors/{name}",
            "GET /openapi.json",
            "GET /,",
        ):
            assert route in message

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("GET", CHAT, "POST"),
            ("PUT", "/v1/models", "GET, HEAD"),
            ("PATCH", "/v1/poise/vectors", "GET, HEAD, POST"),
            ("POST", "/", "GET, HEAD"),
        ],
    )
    def test_with_that_method_says_which_there_is(
        self, http: httpx.Client, method: str, path: str, allowed: str
    ) -> None:
        answer = http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert (
            answer.json()["error"]["message"]
            == f"{path} does not take {method}; it takes {allowed.replace(',', ' and')}."
        )

    def test_by_name_says_which_there_are(self, http: httpx.Client) -> None:
        model = http.get("/v1/models/gpt-5")
        assert model.json()["error"]["message"] == "There is no model 'gpt-5' here; it is 'tiny-llama'."
        vector = http.post(CHAT, json={**ASK, "poise": {"watch": ["none"]}})
        assert vector.json()["error"]["message"] == "There is no vector 'none'; there are: up, down."
        assert [model.status_code, vector.status_code] == [404, 404]
