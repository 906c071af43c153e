"""A client that openapi-python-client generates from the server's own description."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asked import MESSAGES, PARAMETERS, TOO_LONG, TOOL

pytestmark = pytest.mark.clients
KEY = "0123456789abcdef-ana"
PACKAGE = "poise_api"


@pytest.fixture(scope="module")
def api(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The generated package. What of a description its generator has to leave out is a failure here."""
    pytest.importorskip("openapi_python_client")
    folder = tmp_path_factory.mktemp("generated")
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    generator = shutil.which("openapi-python-client", path=tools)
    command = [str(generator), "generate", "--url", f"{address}/openapi.json", "--meta", "none"]
    command += ["--output-path", str(folder / PACKAGE), "--fail-on-warning"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"PATH": tools})
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    return importlib.import_module(PACKAGE)


def route(name: str) -> Any:
    """The module of the route whose function on the server is called so."""
    folder = Path(str(importlib.import_module(f"{PACKAGE}.api.default").__file__)).parent
    [module] = [path.stem for path in folder.glob(f"{name}_*.py")]
    return importlib.import_module(f"{PACKAGE}.api.default.{module}")


def models() -> Any:
    return importlib.import_module(f"{PACKAGE}.models")


def chat(**more: Any) -> Any:
    fields = {"model": "poise-test", "messages": MESSAGES, "max_tokens": 30, "seed": 3} | more
    return models().ChatCompletionRequest.from_dict(fields)


class TestAGeneratedClient:
    def test_gets_an_answer_with_readings(self, api: Any, address: str) -> None:
        body = chat(poise={"steer": "up=0.3", "watch": ["up"]}, n=2)
        answer = route("chat").sync(client=api.Client(base_url=address), body=body)
        assert isinstance(answer, models().ChatCompletion)
        assert [choice.index for choice in answer.choices] == [0, 1]
        assert all(choice.message.content for choice in answer.choices)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert answer.choices[0].to_dict()["poise"]["readings"]["up"]

    def test_gets_the_same_as_a_stream(self, api: Any, address: str) -> None:
        client = api.Client(base_url=address)
        whole = route("chat").sync(client=client, body=chat()).choices[0].message.content
        request = route("chat")._get_kwargs(body=chat(stream=True))
        text, last = "", ""
        with client.get_httpx_client().stream(**request) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            for line in response.iter_lines():
                last = line.removeprefix("data: ") or last
                if line.startswith("data: {"):
                    text += "".join(c["delta"].get("content") or "" for c in json.loads(last)["choices"])
        assert (text, last) == (whole, "[DONE]")

    def test_calls_tools_and_gets_what_fits_a_schema(self, api: Any, address: str) -> None:
        client = api.Client(base_url=address)
        body = chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
        [call] = route("chat").sync(client=client, body=body).choices[0].message.tool_calls
        assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
        shape = {"type": "json_schema", "json_schema": {"name": "weather", "schema": PARAMETERS}}
        [choice] = route("chat").sync(client=client, body=chat(response_format=shape, max_tokens=200)).choices
        assert json.loads(choice.message.content)["days"] in (1, 2)

    def test_knows_the_other_routes(self, api: Any, address: str) -> None:
        client = api.Client(base_url=address)
        [model] = route("models").sync(client=client).data
        assert model.id == "poise-test"
        plain = models().CompletionRequest.from_dict({"model": "poise-test", "prompt": "The sea", "max_tokens": 4})
        assert route("complete").sync(client=client, body=plain).choices[0].finish_reason
        reply = models().CreateResponse.from_dict({"model": "poise-test", "input": "Hello?", "max_output_tokens": 16})
        assert route("respond").sync(client=client, body=reply).output
        assert {each.name for each in route("vectors").sync(client=client).data} == {"up", "down"}

    def test_gets_errors_as_the_description_has_them(self, api: Any, address: str, limited: str) -> None:
        client, error = api.Client(base_url=address), models().ErrorReply
        refused = route("chat").sync_detailed(client=client, body=chat(messages=TOO_LONG))
        assert isinstance(refused.parsed, error)
        assert (refused.status_code, refused.parsed.error.code) == (400, "context_length_exceeded")
        missing = route("chat").sync_detailed(client=client, body=chat(model="another"))
        assert (missing.status_code, type(missing.parsed)) == (404, error)
        without = route("models").sync_detailed(client=api.Client(base_url=limited))
        assert (without.status_code, type(without.parsed)) == (401, error)
        with_key = api.AuthenticatedClient(base_url=limited, token=KEY)
        assert route("models").sync(client=with_key).data
