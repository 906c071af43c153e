"""No request holds up another: what takes a time that grows with a request is done beside the event loop."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import serving
import tiny
from poise.errors import RequestError
from poise.model import Model
from poise.serve import api_description, app, exchange, service
from poise.serve.prompt_length import CERTAIN, CHARACTERS_A_TOKEN, PIECE_CHARACTERS, check_text_length
from poise.serve.request_body import PIECE_ITEMS as ITEMS
from poise.serve.request_body import BodyLimits, check_body, json_pieces, read_request
from poise.serve.requests import CompletionRequest

LOOP = "poise-serve"  # the thread that runs the event loop
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def chat(*texts: str, **more: Any) -> bytes:
    messages = [{"role": "user", "content": text} for text in texts]
    return json.dumps({"model": "tiny-llama", "messages": messages, "max_tokens": 2, **more}).encode()


def prompt(inside: str, times: int) -> bytes:
    return b'{"model": "tiny-llama", "max_tokens": 2, "prompt": [' + ",".join([inside] * times).encode() + b"]}"


WORST: dict[str, tuple[str, bytes, str]] = {
    "800,000 words": (CHAT, chat("word " * 800_000), "context_length_exceeded"),
    "one word of 4 MB": (CHAT, chat("a" * 4_100_000), "context_length_exceeded"),
    "a thousand long messages": (CHAT, chat(*["word " * 800] * 1000), "context_length_exceeded"),
    "1.3 million brackets": (PLAIN, prompt("[]", 1_390_000), "too_many_parts"),
    "1.3 million strings": (PLAIN, prompt('""', 1_390_000), "too_many_parts"),
    "2 million numbers": (PLAIN, prompt("1", 2_090_000), "too_many_parts"),
    "as many numbers as are taken": (PLAIN, prompt("1", 299_000), "context_length_exceeded"),
    "as many wrong items as are taken": (PLAIN, prompt("1.5", 299_000), "invalid_value"),
    "as many lists as are taken": (PLAIN, prompt("[1]", 19_000), "invalid_value"),
    "as many unknown fields as are taken": (
        PLAIN,
        b'{"model": "tiny-llama", "prompt": "a", ' + b",".join(b'"a%d": 1' % i for i in range(19_000)) + b"}",
        "unsupported",
    ),
    "64 prompts of 60,000 characters": (PLAIN, prompt(json.dumps("word " * 12_000), 64), "context_length_exceeded"),
}


class Recorder:
    """The threads in which functions run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.threads = monkeypatch, dict[str, set[str]]()

    def watch(self, owner: Any, name: str, also: Callable[[], None] = lambda: None) -> None:
        real, label = getattr(owner, name), f"{getattr(owner, '__name__', owner)}.{name}"

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.threads.setdefault(label, set()).add(threading.current_thread().name)
            also()
            return real(*args, **kwargs)

        self.monkeypatch.setattr(owner, name, watched)


class TestTheEventLoop:
    @pytest.fixture
    def recorder(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> Recorder:
        found = Recorder(monkeypatch)
        found.watch(type(model.tokenizer), "__call__")
        found.watch(type(model.tokenizer), "apply_chat_template")
        found.watch(json, "loads")
        for owner, name in (
            (app, "read_request"),
            (app, "completion_body"),
            (app, "json_pieces"),
            (app, "vector_entry"),
            (app, "history"),
            (app, "describe"),
            (api_description, "get_openapi"),
            (service, "plan_request"),
            (exchange, "AlarmGuard"),
        ):
            found.watch(owner, name)
        found.watch(__import__("poise.serve.auth").serve.auth, "check_body")
        return found

    def test_never_works_on_what_a_request_holds(self, model: Model, recorder: Recorder) -> None:
        with serving.running(model) as (address, _), httpx.Client(base_url=address, timeout=60) as client:
            headers = {"content-type": "application/json"}
            for route, body, code in WORST.values():
                assert client.post(route, content=body, headers=headers).json()["error"]["code"] == code
            full = json.loads(chat("Hello", n=4, logprobs=True, top_logprobs=20, poise={"watch": True}))
            assert client.post(CHAT, json=full).status_code == 200
            for path in (
                *("/v1/models", "/v1/models/tiny-llama", "/v1/poise/vectors", "/v1/poise/readings", "/metrics"),
                *("/v1/poise/readings/summary", "/openapi.json", "/"),
            ):
                assert client.get(path).status_code == 200
        unseen = {"poise.serve.app.history", "poise.serve.app.vector_entry"} - set(recorder.threads)
        assert not unseen
        assert len(recorder.threads) == 13
        assert {name for name, threads in recorder.threads.items() if LOOP in threads} == set()

    @pytest.mark.parametrize("size", [10, 70_000])
    def test_answers_every_other_route_while_a_prompt_is_tokenised(
        self, model: Model, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, go = threading.Event(), threading.Event()

        def wait() -> None:
            begun.set()
            assert go.wait(30)

        with serving.running(model) as (address, _), ThreadPoolExecutor(1) as pool:
            Recorder(monkeypatch).watch(type(model.tokenizer), "__call__", also=wait)
            body = chat("a" * size)
            asked = pool.submit(httpx.post, address + CHAT, content=body, headers={"content-type": "application/json"})
            try:
                assert begun.wait(20)
                for path in (
                    "/healthz",
                    "/readyz",
                    "/v1/models",
                    "/v1/poise/vectors",
                    "/v1/poise/readings",
                    "/metrics",
                ):
                    assert httpx.get(address + path, timeout=20).status_code == 200
            finally:
                go.set()
            assert asked.result().status_code in (200, 400)

    def test_takes_small_requests_while_a_large_one_is_tokenised(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        begun, go = threading.Event(), threading.Event()

        def wait() -> None:
            if "large" in threading.current_thread().name:
                begun.set()
                assert go.wait(30)

        Recorder(monkeypatch).watch(type(model.tokenizer), "__call__", also=wait)
        headers = {"content-type": "application/json"}
        with serving.running(model) as (address, _), ThreadPoolExecutor(4) as pool:
            large = [
                pool.submit(httpx.post, address + CHAT, content=chat("a" * 70_000), headers=headers, timeout=60)
                for _ in range(4)
            ]
            try:
                assert begun.wait(20)
                assert httpx.post(address + CHAT, content=chat("Hello"), headers=headers, timeout=20).is_success
            finally:
                go.set()
            assert [each.result().status_code for each in large] == [400] * 4


class TestTheRubbish:
    def test_is_not_looked_for_in_the_model_and_its_libraries(self, model: Model) -> None:
        """A full collection holds every thread: half a second for what is there before the first request."""
        before = gc.get_freeze_count()
        with serving.running(model):
            assert gc.get_freeze_count() > before + 100_000
        assert gc.get_freeze_count() == 0


class TestTheLengthOfAText:
    def test_is_known_from_its_beginning(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []
        real = type(model.tokenizer).__call__

        def counted(self: Any, text: str, **options: Any) -> Any:
            seen.append(len(text))
            return real(self, text, **options)

        monkeypatch.setattr(type(model.tokenizer), "__call__", counted)
        with pytest.raises(RequestError, match=f"has {CERTAIN * model.window} or more") as caught:
            check_text_length(["word " * 800_000], model, param="messages")
        assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
        assert sum(seen) <= CERTAIN * model.window * 8 + PIECE_CHARACTERS

    def test_is_left_to_the_tokens_where_it_may_fit(self, model: Model) -> None:
        check_text_length([" " * CHARACTERS_A_TOKEN * model.window], model, param="messages")
        words = "boats " * (model.window // 4)
        assert len(model.tokenizer(words)["input_ids"]) <= CERTAIN * model.window
        check_text_length([words], model, param="messages")


class TestABody:
    def check(self, text: str, **limits: int) -> None:
        check_body(text.encode(), BodyLimits(**limits))

    @pytest.mark.parametrize(
        ("text", "limits", "says"),
        [
            ("[[1]]", {"depth": 1}, "nested more than 1 deep"),
            ('[{"a": [1]}]', {"depth": 2}, "nested more than 2 deep"),
            ("[[],[],[]]", {"parts": 3}, "4 objects and lists; at most 3"),
            ('["a","b"]', {"parts": 1}, "2 strings; at most 1"),
            ("[1,2,3]", {"items": 1}, "2 items; at most 1"),
            (r'["\\",[[1]]]', {"depth": 2}, "nested more than 2 deep"),
            (r'["\\\"[[[["]', {"depth": 0}, "nested more than 0 deep"),
        ],
    )
    def test_is_refused_for_what_is_outside_its_strings(self, text: str, limits: dict[str, int], says: str) -> None:
        with pytest.raises(RequestError, match=says):
            self.check(text, **limits)

    @pytest.mark.parametrize(
        ("text", "limits"),
        [
            ('"[[[[,,,,{{{{"', {"depth": 0, "parts": 1, "items": 0}),
            (r'["\\\"[[[["]', {"depth": 1, "parts": 1}),
            (r'["\\", "\\\\"]', {"depth": 1, "parts": 2, "items": 1}),
            (r'{"a\"[": "]\\"}', {"depth": 1, "parts": 2}),
            ("", {}),
            ("\\", {}),
            ('"', {}),
        ],
    )
    def test_counts_nothing_of_what_is_inside_them(self, text: str, limits: dict[str, int]) -> None:
        self.check(text, **limits)

    def test_names_the_first_of_many_faults(self) -> None:
        for body in (b'{"model": "m", "prompt": [1, 1.5, 2.5]}', b'{"model": "m", "prompt": ["a", 1, 2]}'):
            with pytest.raises(RequestError) as caught:
                read_request(CompletionRequest, body, "application/json; charset=utf-8")
            assert caught.value.param == "prompt.1"


class TestAnAnswerInPieces:
    def shapes(self) -> Iterator[Any]:
        yield {}
        yield []
        yield {"a": [], "b": {}, "c": None, "d": 'é"', "e": [1.5, True]}
        yield [{"x": list(range(3 * ITEMS + 1))}, [[1], {"y": [{"z": "ü"}] * (ITEMS + 1)}]]
        yield list(range(ITEMS))

    def test_is_the_same_json(self) -> None:
        for value in self.shapes():
            assert "".join(json_pieces(value)) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def test_refuses_what_is_no_number(self) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            "".join(json_pieces({"a": [float("nan")]}))
