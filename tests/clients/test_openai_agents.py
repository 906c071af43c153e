"""The Agents SDK of OpenAI, by responses (its default) and by chat completions.

What a random model writes has to fit a schema, or it might not end: the SDK takes a cut answer for a fault.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from asked import QUESTION
from test_other_clients import Boat

pytestmark = pytest.mark.clients
agents = pytest.importorskip("agents")


@pytest.fixture(params=["responses", "chat completions"])
def model(request: pytest.FixtureRequest, address: str) -> Any:
    import openai

    agents.set_tracing_disabled(True)
    kind = agents.OpenAIResponsesModel if request.param == "responses" else agents.OpenAIChatCompletionsModel
    client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    return kind(model="poise-test", openai_client=client)


def settings(**more: Any) -> Any:
    return agents.ModelSettings(max_tokens=400, temperature=1.0, **more)


class TestAnAgent:
    def test_answers_plain_and_streamed(self, model: Any) -> None:
        agent = agents.Agent(
            name="Ana", instructions="Be brief.", model=model, model_settings=settings(), output_type=Boat
        )

        async def both() -> tuple[Any, list[str]]:
            whole = await agents.Runner.run(agent, QUESTION)
            run = agents.Runner.run_streamed(agent, QUESTION)
            return whole.final_output, [event.type async for event in run.stream_events()]

        boat, events = asyncio.run(both())
        assert isinstance(boat, Boat)
        assert "raw_response_event" in events

    def test_calls_a_tool_and_answers_with_what_it_gave(self, model: Any) -> None:
        called: list[str] = []

        @agents.function_tool
        def harbour_report(harbour: Literal["Rome", "Oslo"]) -> str:
            """What the harbour master says.

            Args:
                harbour: Name of the harbour.
            """
            called.append(harbour)
            return "Fog until noon."

        agent = agents.Agent(
            name="Ana",
            tools=[harbour_report],
            model=model,
            model_settings=settings(tool_choice="harbour_report", parallel_tool_calls=False),
            tool_use_behavior="stop_on_first_tool",
        )
        after = agents.Agent(name="Bo", model=model, model_settings=settings(), output_type=Boat)

        async def both() -> tuple[Any, Any]:
            first = await agents.Runner.run(agent, QUESTION)
            history = [*first.to_input_list(), {"role": "user", "content": "And tomorrow?"}]
            return first, await agents.Runner.run(after, history)

        first, second = asyncio.run(both())
        assert first.final_output == "Fog until noon."
        assert called in (["Rome"], ["Oslo"])
        assert second.final_output

    def test_steers(self, model: Any) -> None:
        more = settings(extra_body={"poise": {"steer": "up=0.4", "watch": ["up"]}})
        agent = agents.Agent(name="Ana", model=model, model_settings=more, output_type=Boat)
        assert asyncio.run(agents.Runner.run(agent, QUESTION)).final_output
