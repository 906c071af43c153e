"""LangChain, litellm, instructor, llm and curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from asked import MESSAGES, QUESTION, TOO_LONG, TOOL

pytestmark = pytest.mark.clients
KEY = "0123456789abcdef-ana"


class Boat(pydantic.BaseModel):
    """A boat. Nothing may be added to it, as a random model would without an end."""

    model_config = pydantic.ConfigDict(extra="forbid")

    kind: Literal["sail", "steam"]
    masts: Literal[1, 2, 3]


class TestLangChain:
    @pytest.fixture(scope="class")
    def chat(self, address: str) -> Any:
        langchain = pytest.importorskip("langchain_openai")
        return langchain.ChatOpenAI(
            model="poise-test", base_url=f"{address}/v1", api_key="none", max_tokens=400, seed=1, max_retries=0
        )

    def test_answers_plain_and_streamed(self, chat: Any) -> None:
        plain = chat.invoke(QUESTION).content
        assert plain
        assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == plain

    def test_calls_tools(self, chat: Any) -> None:
        bound = chat.bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
        [call] = bound.invoke(QUESTION).tool_calls
        assert call["name"] == "get_weather"
        assert call["args"]["city"] in ("Rome", "Oslo")
        streamed = None
        for chunk in bound.stream(QUESTION):
            streamed = chunk if streamed is None else streamed + chunk
        assert streamed.tool_calls[0]["args"] == call["args"]

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_gives_what_fits_a_schema(self, chat: Any, method: str) -> None:
        assert isinstance(chat.with_structured_output(Boat, method=method).invoke(QUESTION), Boat)


class TestLitellm:
    @pytest.fixture(scope="class")
    def litellm(self) -> Any:
        return pytest.importorskip("litellm")

    def ask(self, litellm: Any, address: str, **more: Any) -> Any:
        fields = {"messages": MESSAGES, "max_tokens": 120, "api_key": "none", "num_retries": 0, "seed": 1} | more
        return litellm.completion(model="openai/poise-test", api_base=f"{address}/v1", **fields)

    def test_answers_plain_and_streamed(self, litellm: Any, address: str) -> None:
        plain = self.ask(litellm, address).choices[0].message.content
        chunks = self.ask(litellm, address, stream=True)
        assert plain
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain

    def test_calls_tools(self, litellm: Any, address: str) -> None:
        choice = self.ask(litellm, address, tools=[TOOL], tool_choice="required", parallel_tool_calls=False).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert json.loads(choice.message.tool_calls[0].function.arguments)["days"] in (1, 2)

    def test_gives_what_fits_a_schema(self, litellm: Any, address: str) -> None:
        content = self.ask(litellm, address, response_format=Boat).choices[0].message.content
        assert Boat.model_validate_json(content)

    def test_tells_faults_apart(self, litellm: Any, address: str, limited: str) -> None:
        with pytest.raises(litellm.ContextWindowExceededError):
            self.ask(litellm, address, messages=TOO_LONG)
        with pytest.raises(litellm.AuthenticationError):
            self.ask(litellm, limited, api_key="wrong")
        for _ in range(2):
            self.ask(litellm, limited, api_key=KEY, max_tokens=1)
        with pytest.raises(litellm.RateLimitError):
            self.ask(litellm, limited, api_key=KEY, max_tokens=1)

    def test_steers(self, litellm: Any, address: str) -> None:
        poise = {"steer": "up=0.4", "watch": ["up"]}
        assert self.ask(litellm, address, extra_body={"poise": poise}).choices[0].message.content


class TestInstructor:
    @pytest.mark.parametrize("mode", ["TOOLS", "JSON", "JSON_SCHEMA"])
    def test_gives_an_object(self, address: str, mode: str) -> None:
        instructor = pytest.importorskip("instructor")
        import openai

        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        wrapped = instructor.from_openai(client, mode=getattr(instructor.Mode, mode))
        fields: dict[str, Any] = {"model": "poise-test", "messages": MESSAGES, "max_tokens": 400, "seed": 1}
        if mode == "JSON":  # any object, so that a random model need not fit
            with pytest.raises(Exception, match=r"Boat|validation|retr|max_tokens|incomplete"):
                wrapped.chat.completions.create(**fields, response_model=Boat, max_retries=0)
        else:
            assert isinstance(wrapped.chat.completions.create(**fields, response_model=Boat, max_retries=1), Boat)


class TestLLM:
    @pytest.fixture
    def environment(self, address: str, tmp_path: Path) -> dict[str, str]:
        entry = f"- model_id: poise\n  model_name: poise-test\n  api_base: {address}/v1\n"
        entry += "  supports_schema: true\n  supports_tools: true\n"
        (tmp_path / "extra-openai-models.yaml").write_text(entry)
        return {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def run(self, environment: dict[str, str], *words: str) -> str:
        command = [str(Path(sys.executable).with_name("llm")), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_answers(self, environment: dict[str, str]) -> None:
        pytest.importorskip("llm")
        assert self.run(environment, "-m", "poise", "--no-stream", "-o", "max_tokens", "20", QUESTION).strip()
        assert self.run(environment, "-m", "poise", "-o", "max_tokens", "20", QUESTION).strip()

    def test_gives_what_fits_a_schema(self, environment: dict[str, str]) -> None:
        schema = json.dumps(Boat.model_json_schema())
        written = self.run(environment, "-m", "poise", "--no-stream", "--schema", schema, QUESTION)
        assert Boat.model_validate_json(written)


class TestCurl:
    def test_streams(self, address: str) -> None:
        if not shutil.which("curl"):
            pytest.skip("curl is not installed")
        body = json.dumps({"model": "poise-test", "messages": MESSAGES, "max_tokens": 5, "stream": True})
        command = ["curl", "-sS", "-N", f"{address}/v1/chat/completions", "-H", "content-type: application/json"]
        done = subprocess.run([*command, "-d", body], capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout.rstrip().endswith("data: [DONE]")


class TestABrowser:
    def test_may_ask_from_a_page_that_is_named(self, address: str) -> None:
        import httpx

        names = (
            "authorization, content-type, x-stainless-arch, x-stainless-lang, x-stainless-os, x-stainless-retry-count"
        )
        flight = httpx.options(
            f"{address}/v1/chat/completions",
            headers={
                "origin": "https://app.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": names,
            },
        )
        allowed = {name.strip() for name in flight.headers["access-control-allow-headers"].split(",")}
        assert {name.strip() for name in names.split(",")} <= allowed
