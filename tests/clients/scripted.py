"""A server whose random model is held to a script, for agent frameworks: ``scripted.py FOLDER``.

The model looks up a topic three times and then answers, with ``final_answer`` where a framework wants that. Passes,
readings and parsed calls are real; only which tokens are drawn is said. Its guardrail flags every tool's result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import serving
import tiny
import tool_templates
from poise.engine import GenerationRequest
from poise.engine.grammar import grammar_compiler
from poise.guardrail.fitting import GuardFitSettings, fit_guard
from poise.guardrail.guard_file import FittedGuard
from poise.model import Model
from poise.serve.server import RunningServer, ServerOptions, make_server
from test_guardrail_fit import TALK
from test_guardrail_tools import GUARDRAIL
from test_serve_tool_results import flagging

LOOKS = 3
LAST = "Three boats went out."


def scripted_text(prompt: str) -> str:
    """What the model says next, by how many results it has seen."""
    results = max(prompt.count("<tool_response>"), prompt.split("New task:")[-1].count("Observation:"))
    if results < LOOKS:
        call: dict[str, Any] = {"name": "look_up", "arguments": {"topic": "boats"}}
    elif '"final_answer"' in prompt:
        call = {"name": "final_answer", "arguments": {"answer": LAST}}
    else:
        return LAST
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def follow_script(server: RunningServer, model: Model) -> None:
    """Hold each answer to what the script says."""
    engine, compiler = server.service.scheduler.engine, grammar_compiler(model)
    real = engine.add

    def add(key: Hashable, request: GenerationRequest) -> None:
        text = scripted_text(model.tokenizer.decode(request.prompt.ids))
        real(key, replace(request, grammar=compiler.lark(f"start: {json.dumps(text)}")))

    engine.add = add  # type: ignore[method-assign]


def main() -> None:
    folder = Path(sys.argv[1])
    model = tiny.model(tokenizer=tool_templates.tokenizer("hermes"), max_position_embeddings=65_536)
    guard: FittedGuard = flagging(fit_guard(GUARDRAIL, model, TALK, GuardFitSettings(rate=0.05, layer=1)), -1e9)
    guard.save(folder / "tools.guard")
    (folder / "policy.yaml").write_text(json.dumps({"default": {"runs": {}}}))
    options = ServerOptions(port=0, name="poise-test", guardrail=folder / "tools.guard", policy=folder / "policy.yaml")
    server = make_server(model, serving.vectors(model), options)
    follow_script(server, model)
    print(json.dumps([server.start()]), flush=True)
    sys.stdin.read()
    server.stop()


main()
