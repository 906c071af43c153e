"""``/v1/embeddings`` as the ``openai`` client sees it: the sentence encoder's own vectors, or a clear refusal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import serving
from poise.judge import exemplars
from poise.judge.exemplars import embed
from poise.serve import embeddings
from poise.serve.server import RunningServer

MODEL = "all-MiniLM-L6-v2"
TEXTS = ["The boats go out at five.", "Fog, and 日本 in the nets", "The boats go out at five."]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, RunningServer]]:
    with serving.running() as running:
        yield running


def refusal(address: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    answer = httpx.post(f"{address}/v1/embeddings", json={"model": MODEL, "input": "boats", **fields})
    return answer.status_code, answer.json()["error"]


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_are_the_encoders(server: tuple[str, RunningServer], encoding: Any) -> None:
    more = {} if encoding is None else {"encoding_format": encoding}
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model=MODEL, input=TEXTS, dimensions=384, user="u", **more)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    vectors: Any = [entry.embedding for entry in answer.data]
    if encoding == "base64":  # the client leaves what was asked for by name as it is
        import base64

        vectors = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in vectors]
    np.testing.assert_allclose(np.array(vectors), embed(TEXTS)[:, -1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 20


def test_of_one_text(server: tuple[str, RunningServer]) -> None:
    body = httpx.post(f"{server[0]}/v1/embeddings", json={"model": MODEL, "input": TEXTS[0]}).json()
    assert len(body["data"]) == 1
    assert len(body["data"][0]["embedding"]) == 384
    assert body["model"] == MODEL


@pytest.mark.parametrize(
    ("fields", "status", "code", "param", "words"),
    [
        ({"model": "tiny-llama"}, 404, "model_not_found", "model", "it is 'all-MiniLM-L6-v2'"),
        ({"input": [5, 6]}, 400, "unsupported", "input", "check_embedding_ctx_length=False"),
        ({"input": [[5, 6]]}, 400, "unsupported", "input", "another tokenizer's"),
        ({"input": ["a", ""]}, 400, "invalid_value", "input", "an empty text"),
        ({"input": []}, 400, "invalid_value", "input", "input"),
        ({"input": ["boats", "fog " * 300]}, 400, "context_length_exceeded", "input", "input 1 has 302"),
        ({"dimensions": 64}, 400, "unsupported", "dimensions", "384 and cannot be shortened"),
        ({"encoding_format": "int8"}, 400, "invalid_value", "encoding_format", "base64"),
        ({"truncate": True}, 400, "unsupported", "truncate", "not supported"),
    ],
)
def test_refuse_by_name(
    server: tuple[str, RunningServer], fields: dict[str, Any], status: int, code: str, param: str, words: str
) -> None:
    answered, error = refusal(server[0], **fields)
    assert (answered, error["code"], error["param"]) == (status, code, param)
    assert words in error["message"]


def test_without_the_extra_say_which(server: tuple[str, RunningServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exemplars, "_PACKAGE", "no_such_package_anywhere")
    exemplars._encoder.cache_clear()
    status, error = refusal(server[0])
    assert (status, error["code"]) == (404, "embeddings_unavailable")
    assert ".[offline]" in error["message"]


def test_are_bounded(server: tuple[str, RunningServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MOST_EMBEDDED", 10)
    assert refusal(server[0], input=TEXTS)[1]["code"] == "too_many_tokens"
    monkeypatch.undo()
    monkeypatch.setattr(server[1].service.sentences, "most", 0)
    assert refusal(server[0], input=TEXTS)[0] == 429
