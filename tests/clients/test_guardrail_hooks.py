"""The hooks for LangChain and the Agents SDK of docs/guardrails.md, as they stand there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conftest import ROOT

pytestmark = pytest.mark.clients


def hook(marker: str, address: str) -> dict[str, Any]:
    """What the example that imports this defines, at this server."""
    page = (ROOT / "docs" / "guardrails.md").read_text("utf-8")
    [code] = [block for block in page.split("```text\n")[1:] if marker in block.split("```")[0]]
    names: dict[str, Any] = {}
    exec(code.split("```")[0].replace("http://127.0.0.1:8000", address), names)  # of our own page
    return names


class TestLangChain:
    def test_passes_masks_and_blocks(self, address: str) -> None:
        pytest.importorskip("langchain_core")
        from langchain_core.messages import AIMessage
        from langchain_core.runnables import RunnableLambda

        guard = hook("langchain_core", address)["guard"]
        asked: list[str] = []

        def model(text: str) -> AIMessage:
            asked.append(text)
            return AIMessage("Go to a rival bank." if "better" in text else f"You said: {text}")

        chain = guard("INPUT") | RunnableLambda(model) | guard("OUTPUT")
        assert chain.invoke("Where is my card?") == "You said: Where is my card?"
        assert chain.invoke("Mail a@mail.example about it") == "You said: Mail {EMAIL} about it"
        with pytest.raises(ValueError, match="Ask something else"):
            chain.invoke("Is a rival bank fine?")
        with pytest.raises(ValueError, match="Not that"):
            chain.invoke("What is better?")
        assert asked == ["Where is my card?", "Mail {EMAIL} about it", "What is better?"]

    def test_guards_a_served_model(self, address: str) -> None:
        langchain_openai = pytest.importorskip("langchain_openai")
        guard = hook("langchain_core", address)["guard"]
        model = langchain_openai.ChatOpenAI(
            base_url=f"{address}/v1", api_key="none", model="poise-test", max_tokens=8, max_retries=0
        )
        assert isinstance((guard("INPUT") | model | guard("OUTPUT")).invoke("Where is my card?"), str)


class TestTheAgentsSDK:
    def test_ends_runs_whose_prompt_or_answer_is_blocked(self, address: str) -> None:
        agents = pytest.importorskip("agents")
        import openai

        agents.set_tracing_disabled(True)
        names = hook("from agents import", address)
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        agent = agents.Agent(
            name="Ana",
            model=agents.OpenAIChatCompletionsModel(model="poise-test", openai_client=client),
            model_settings=agents.ModelSettings(max_tokens=8),
            input_guardrails=[names["bank_in"]],
            output_guardrails=[names["bank_out"]],
        )

        async def runs() -> None:
            assert (await agents.Runner.run(agent, "Where is my card?")).final_output is not None
            with pytest.raises(agents.InputGuardrailTripwireTriggered) as caught:
                await agents.Runner.run(agent, "Is a rival bank better?")
            [found] = caught.value.guardrail_result.output.output_info
            assert found["wordPolicy"]["customWords"][0]["match"] == "rival bank"
            history: Any = [{"role": "user", "content": "Is a rival bank better?"}]
            with pytest.raises(agents.InputGuardrailTripwireTriggered):
                await agents.Runner.run(agent, history)
            result = await names["bank_out"].run(agents.RunContextWrapper(None), agent, "Go to a rival bank.")
            assert result.output.tripwire_triggered

        asyncio.run(runs())
