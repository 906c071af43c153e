"""How much a key may ask for, and keys that come and go while a server runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import serving
import tiny
from poise.errors import InvalidSettings, RequestError
from poise.model import Model
from poise.serve import auth
from poise.serve.auth import ApiKeys
from poise.serve.policy import read_policies
from poise.serve.rate_limits import RateLimit, RateLimiter, go_duration

ANA, BEN = "0123456789abcdef-ana", "0123456789abcdef-ben"
BODY: dict[str, Any] = {
    "model": "tiny-llama",
    "messages": [{"role": "user", "content": "Where do the boats go?"}],
    "max_tokens": 4,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text(f"ana {ANA}\nben {BEN}\n")
    return tmp_path / "keys"


def rules(folder: Path, *limits: dict[str, Any]) -> Path:
    (folder / "rules.yaml").write_text(yaml.safe_dump({"default": {"limits": list(limits)}}))
    return folder / "rules.yaml"


def chat(address: str, key: str = ANA, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{address}/v1/chat/completions", json={**BODY, **more}, headers=headers, timeout=30)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestALimit:
    @pytest.mark.parametrize(
        ("seconds", "written"),
        [
            (0, "0ms"),
            (0.0204, "21ms"),
            (1, "1s"),
            (59.2, "1m0s"),
            (360, "6m0s"),
            (86_399, "23h59m59s"),
            (3600, "1h0m0s"),
        ],
    )
    def test_is_told_as_openai_tells_it(self, seconds: float, written: str) -> None:
        assert go_duration(seconds) == written

    def test_of_requests_opens_again_when_the_first_is_a_period_old(self) -> None:
        clock, limits = Clock(), [RateLimit(requests=2, seconds=60)]
        limiter = RateLimiter(clock)
        limiter.take_request("ana", limits)
        clock.now += 20
        limiter.take_request("ana", limits)
        limiter.take_request("ben", limits)
        with pytest.raises(RequestError) as refusal:
            limiter.take_request("ana", limits)
        assert (refusal.value.status, refusal.value.code) == (429, "rate_limit_exceeded")
        assert str(refusal.value) == (
            "This is more than 2 requests in 60 s, which is the limit here; try again in 41 s."
        )
        assert refusal.value.headers == {
            "Retry-After": "41",
            "retry-after-ms": "40500",
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1m1s",
        }
        clock.now += 40.5
        limiter.take_request("ana", limits)

    @settings(max_examples=40, deadline=None)
    @given(steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40)), max_size=60))
    def test_holds_in_any_stretch_of_its_length(self, steps: list[tuple[float, int]]) -> None:
        clock, limits = Clock(), [RateLimit(tokens=100, seconds=60)]
        limiter, taken = RateLimiter(clock), list[tuple[float, int]]()
        for pause, tokens in steps:
            clock.now += pause
            try:
                limiter.reserve("ana", limits, tokens)
            except RequestError as refusal:
                wait = int(refusal.headers["retry-after-ms"]) / 1000
                clock.now += wait
                limiter.reserve("ana", limits, tokens)
            taken.append((clock.now, tokens))
            assert sum(n for at, n in taken if at > clock.now - 60) <= 100

    def test_of_tokens_gives_back_what_was_not_used(self) -> None:
        clock, limits = Clock(), [RateLimit(tokens=100, days=1), RateLimit(tokens=90, seconds=10)]
        limiter = RateLimiter(clock)
        reservation = limiter.reserve(None, limits, 80)
        assert limiter.headers(None, limits)["x-ratelimit-remaining-tokens"] == "10"
        for _ in range(2):
            limiter.settle(reservation, 15)
        assert limiter.headers(None, limits) == {
            "x-ratelimit-limit-tokens": "90",
            "x-ratelimit-remaining-tokens": "75",
            "x-ratelimit-reset-tokens": "11s",
        }
        with pytest.raises(
            RequestError, match="91 tokens, prompt and longest answer together, and the limit here is 90"
        ):
            limiter.reserve(None, limits, 91)
        limiter.reserve(None, limits, 75)
        with pytest.raises(RequestError, match="more than 90 tokens in 10 s"):
            limiter.reserve(None, limits, 5)
        clock.now += 11
        with pytest.raises(RequestError, match="more than 100 tokens in 1 day,"):
            limiter.reserve(None, limits, 20)
        limiter.reserve(None, limits, 10)

    @pytest.mark.parametrize(
        "limit", [{}, {"requests": 1}, {"requests": 1, "tokens": 1, "days": 1}, {"tokens": 0, "days": 1}, {"days": 1}]
    )
    def test_that_says_too_little_or_too_much_is_refused(self, tmp_path: Path, limit: dict[str, Any]) -> None:
        with pytest.raises(InvalidSettings, match=r"default\.limits"):
            read_policies(rules(tmp_path, limit))


class TestAServer:
    def test_counts_the_requests_of_each_key(self, model: Model, keys: Path, tmp_path: Path) -> None:
        policy = rules(tmp_path, {"requests": 2, "days": 1})
        with serving.running(model, keys=keys, policy=policy) as (address, _):
            answers = [chat(address) for _ in range(3)]
            assert [a.status_code for a in answers] == [200, 200, 429]
            assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["1", "0", "0"]
            assert [a.headers["x-ratelimit-limit-requests"] for a in answers] == ["2"] * 3
            assert answers[2].json()["error"]["type"] == "rate_limit_error"
            assert 86_000 < int(answers[2].headers["retry-after"]) <= 86_400 + 720
            assert chat(address, BEN).status_code == 200
            refused = chat(address, BEN, temperature=-1)
            assert (refused.status_code, chat(address, BEN).status_code) == (400, 429), "what is refused counts too"

    @pytest.mark.parametrize("stream", [False, True])
    def test_counts_the_tokens_that_were_used(self, model: Model, keys: Path, tmp_path: Path, stream: bool) -> None:
        policy = rules(tmp_path, {"tokens": 300, "days": 1})
        with serving.running(model, keys=keys, policy=policy) as (address, server):
            prompt = len(model.encode(BODY["messages"]).ids)
            first = chat(address, max_tokens=100, stop=["e", "a", " "], stream=stream)
            assert first.status_code == 200
            assert first.headers["x-ratelimit-remaining-tokens"] == str(300 - prompt - 100)
            metrics = httpx.get(f"{address}/metrics", headers={"authorization": f"Bearer {ANA}"}).text
            [line] = [x for x in metrics.splitlines() if x.startswith('poise_tokens_total{kind="completion"}')]
            used = prompt + int(float(line.split()[1]))
            left = server.service.rates.headers("ana", server.service.policies.default.limits)
            assert left["x-ratelimit-remaining-tokens"] == str(300 - used)
            assert used < prompt + 100
            many = chat(address, max_tokens=140, n=3)
            assert (many.status_code, many.json()["error"]["param"]) == (400, "max_tokens")

    def test_gives_back_what_a_request_reserved_that_never_began(
        self, model: Model, keys: Path, tmp_path: Path
    ) -> None:
        policy = rules(tmp_path, {"tokens": 300, "days": 1})
        with serving.running(model, keys=keys, policy=policy, queue=1) as (address, server):
            assert chat(address, n=2).status_code == 400
            left = server.service.rates.headers("ana", server.service.policies.default.limits)
            assert left["x-ratelimit-remaining-tokens"] == "300"

    def test_is_waited_for_by_openais_client(self, model: Model, keys: Path, tmp_path: Path) -> None:
        policy = rules(tmp_path, {"requests": 1, "seconds": 1})
        with serving.running(model, keys=keys, policy=policy) as (address, _):
            with openai.OpenAI(base_url=f"{address}/v1", api_key=ANA, max_retries=3) as client:
                for _ in range(2):
                    raw = client.chat.completions.with_raw_response.create(**BODY)
                    assert raw.headers["x-ratelimit-limit-requests"] == "1"
            with (
                openai.OpenAI(base_url=f"{address}/v1", api_key=ANA, max_retries=0) as client,
                pytest.raises(openai.RateLimitError, match="more than 1 request in 1 s,"),
            ):
                client.chat.completions.create(**BODY)

    def test_without_limits_says_nothing_of_them(self, model: Model) -> None:
        with serving.running(model) as (address, _):
            assert not [name for name in chat(address).headers if "ratelimit" in name]


class TestKeysThatChange:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "SECONDS_BETWEEN_LOOKS", 0.0)

    def test_are_taken_without_a_restart(self, model: Model, keys: Path) -> None:
        with serving.running(model, keys=keys) as (address, _):
            assert [chat(address, key).status_code for key in (ANA, BEN)] == [200, 200]
            keys.write_text(f"ben {BEN}\ncleo 0123456789abcdef-cleo\n")
            statuses = [chat(address, key).status_code for key in (ANA, BEN, "0123456789abcdef-cleo")]
            assert statuses == [401, 200, 200]

    @pytest.mark.parametrize("text", ["", "short\n", "# none\n", None])
    def test_to_what_makes_no_sense_stay_as_they_were(
        self, keys: Path, text: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        known = ApiKeys.read(keys)
        if text is None:
            keys.unlink()
        else:
            keys.write_text(text)
        for _ in range(3):
            assert known.find(f"Bearer {ANA}") == "ana"
        assert bool(known)
        [record] = caplog.records
        assert "The keys are those from before." in record.getMessage()
        assert ANA not in record.getMessage()
        keys.write_text(f"new {BEN}\n")
        assert (known.find(f"Bearer {ANA}"), known.find(f"Bearer {BEN}")) == (None, "new")

    def test_are_looked_at_once_a_second_at_most(self, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "SECONDS_BETWEEN_LOOKS", 3600.0)
        known = ApiKeys.read(keys)
        keys.write_text("# nothing\n")
        began = time.monotonic()
        assert known.find(f"Bearer {ANA}") == "ana"
        assert time.monotonic() >= began
