"""Agent frameworks, each unchanged but for its base URL: a run of four steps, which the server follows by its history.

A random model is held to a script, so that the calls are parsed and the readings are those of real passes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = pytest.mark.clients

TASK = "How many boats went out?"
LAST = "Three boats went out."
STEPS = 4


def get(url: str, **headers: str) -> Any:
    import httpx

    return httpx.get(url, headers=headers, timeout=60).json()


def newest(address: str) -> Any:
    """The run that was touched last, with its steps."""
    [run, *_] = get(f"{address}/v1/poise/sessions")["data"]
    return get(f"{address}/v1/poise/sessions/{run['id']}")


def check_run(address: str, *, named: str | None = None) -> None:
    """All steps are those of one run, and each result was read before and after."""
    run = newest(address)
    assert (run["id"] == named) if named else not run["named"]
    assert [step["number"] for step in run["data"]] == [1, 2, 3, 4]
    assert [len(step["tool_results"]) for step in run["data"]] == [0, 1, 1, 1]
    assert all(set(step["traits"]) == {"up", "down"} for step in run["data"])
    results = [result for step in run["data"] for result in step["tool_results"]]
    assert all(result["flagged"] and result["action"] == "note" for result in results), "its threshold is below all"
    assert all(result["before"] is not None for result in results)


class TestPydanticAI:
    @pytest.mark.parametrize("session", [None, "pydantic 1"])
    def test_is_followed(self, scripted: str, session: str | None) -> None:
        pydantic_ai = pytest.importorskip("pydantic_ai")
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        model = OpenAIChatModel("poise-test", provider=OpenAIProvider(base_url=f"{scripted}/v1", api_key="none"))
        headers = {"X-Poise-Session": session} if session else {}
        agent = pydantic_ai.Agent(model, instructions="Look it up.", model_settings={"extra_headers": headers})
        topics: list[str] = []

        @agent.tool_plain
        def look_up(topic: str) -> str:
            """What the harbour master says of a topic."""
            topics.append(topic)
            return f"{len(topics)} boats."

        assert agent.run_sync(TASK).output == LAST
        assert topics == ["boats"] * 3
        check_run(scripted, named=session)


class TestOpenAIAgents:
    @pytest.mark.parametrize("kind", ["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
    @pytest.mark.parametrize("session", [None, "agents 1"])
    def test_is_followed(self, scripted: str, kind: str, session: str | None) -> None:
        agents = pytest.importorskip("agents")
        import openai

        agents.set_tracing_disabled(True)
        client = openai.AsyncOpenAI(base_url=f"{scripted}/v1", api_key="none", max_retries=0)
        model = getattr(agents, kind)(model="poise-test", openai_client=client)
        topics: list[str] = []

        @agents.function_tool
        def look_up(topic: str) -> str:
            """What the harbour master says of a topic.

            Args:
                topic: What is asked about.
            """
            topics.append(topic)
            return f"{len(topics)} boats."

        name = session and f"{session} {kind}"
        settings = agents.ModelSettings(extra_headers={"X-Poise-Session": name} if name else None)
        agent = agents.Agent(
            name="Ana", instructions="Look it up.", model=model, tools=[look_up], model_settings=settings
        )
        assert asyncio.run(agents.Runner.run(agent, TASK)).final_output == LAST
        assert topics == ["boats"] * 3
        check_run(scripted, named=name)


class TestLangGraph:
    @pytest.mark.parametrize("session", [None, "graph 1"])
    @pytest.mark.filterwarnings("ignore")
    def test_is_followed(self, scripted: str, session: str | None) -> None:
        prebuilt = pytest.importorskip("langgraph.prebuilt")
        from langchain_openai import ChatOpenAI

        headers = {"X-Poise-Session": session} if session else None
        model = ChatOpenAI(
            model="poise-test", base_url=f"{scripted}/v1", api_key="none", max_retries=0, default_headers=headers
        )
        topics: list[str] = []

        def look_up(topic: str) -> str:
            """What the harbour master says of a topic."""
            topics.append(topic)
            return f"{len(topics)} boats."

        agent = prebuilt.create_react_agent(model, [look_up], prompt="Look it up.")
        done = agent.invoke({"messages": [("user", TASK)]})
        assert done["messages"][-1].content == LAST
        assert topics == ["boats"] * 3
        check_run(scripted, named=session)


class TestSmolagents:
    @pytest.mark.parametrize("session", [None, "smol 1"])
    def test_is_followed(self, scripted: str, session: str | None) -> None:
        smolagents = pytest.importorskip("smolagents")
        topics: list[str] = []

        @smolagents.tool
        def look_up(topic: str) -> str:
            """What the harbour master says of a topic.

            Args:
                topic: What is asked about.
            """
            topics.append(topic)
            return f"{len(topics)} boats."

        more = {"default_headers": {"X-Poise-Session": session}} if session else {}
        model = smolagents.OpenAIServerModel(
            "poise-test", api_base=f"{scripted}/v1", api_key="none", client_kwargs={"max_retries": 0, **more}
        )
        agent = smolagents.ToolCallingAgent(tools=[look_up], model=model, verbosity_level=0)
        assert agent.run(TASK) == LAST
        assert topics == ["boats"] * 3
        check_run(scripted, named=session)


class TestWithQwen:
    """A real model: its calls are parsed, whatever it makes of their results."""

    def test_calls_a_tool_and_is_followed(self, qwen: str) -> None:
        agents = pytest.importorskip("agents")
        import openai

        agents.set_tracing_disabled(True)
        client = openai.AsyncOpenAI(base_url=f"{qwen}/v1", api_key="none", max_retries=0)
        cities: list[str] = []

        @agents.function_tool
        def get_weather(city: str) -> str:
            """The weather in a city.

            Args:
                city: Name of the city.
            """
            cities.append(city)
            return "Rain, 12 degrees."

        settings = agents.ModelSettings(
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            max_tokens=80,
            extra_headers={"X-Poise-Session": "weather"},
        )
        agent = agents.Agent(
            name="Ana",
            model=agents.OpenAIChatCompletionsModel(model="poise-test", openai_client=client),
            tools=[get_weather],
            model_settings=settings,
        )
        done = asyncio.run(agents.Runner.run(agent, "What is the weather in Rome?"))
        assert cities == ["Rome"]
        assert done.final_output
        assert get(f"{qwen}/v1/poise/sessions/weather")["steps"] == 2
