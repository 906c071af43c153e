"""Servers for the clients' tests, run by the environment that Poise is in: ``server.py FOLDER [MODEL]``.

Writes the addresses as one line of JSON, and serves until its standard input is closed. The first server is open; the
second wants a key, and lets it ask twice an hour.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import serving
import tiny
import tool_templates
from poise.model import Model, load_model
from poise.serve.server import ServerOptions, make_server

KEY, OTHER_KEY = "0123456789abcdef-ana", "0123456789abcdef-ben"
GUARDRAIL = """\
name: bank
version: 2
messages: {input: Ask something else., output: Not that.}
words: {custom: [rival bank, {text: grey fog, action: NONE}], profanity: {action: NONE}}
sensitive:
  types: [EMAIL]
  regexes: [{name: ticket, pattern: "TCK-[0-9]{6,12}", action: ANONYMIZE}]
"""
GROUNDED = """\
name: sources
grounding: [{type: GROUNDING, threshold: 0.99}, {type: RELEVANCE, threshold: 0.99, action: NONE}]
"""


def tiny_with_tools() -> Model:
    return tiny.model(tokenizer=tool_templates.tokenizer("hermes"), max_position_embeddings=2048)


def main() -> None:
    folder = Path(sys.argv[1])
    model = load_model(sys.argv[2]) if sys.argv[2:] else tiny_with_tools()
    vectors = {} if sys.argv[2:] else serving.vectors(model)
    keys, policy = folder / "keys", folder / "policy.yaml"
    keys.write_text(f"ana {KEY}\nben {OTHER_KEY}\n")
    keys.chmod(0o600)
    policy.write_text(json.dumps({"default": {"limits": [{"requests": 2, "seconds": 3600}]}}))
    (folder / "bank.yaml").write_text(GUARDRAIL)
    leave = (Path(__file__).parents[1] / "policies" / "leave.yaml").read_text("utf-8")
    (folder / "leave.yaml").write_text(leave)
    (folder / "hr.yaml").write_text("name: hr\nreasoning: {file: leave.yaml, translations: 1}\n")
    (folder / "sources.yaml").write_text(GROUNDED)
    files = [folder / "bank.yaml", folder / "hr.yaml", folder / "sources.yaml"]
    guarded = {"port": 0, "name": "poise-test", "guardrail": files}
    options = [
        ServerOptions(**guarded, cors=("https://app.example",)),
        ServerOptions(**guarded, keys=keys, policy=policy),
    ]
    servers = [make_server(model, vectors, each) for each in (options[:1] if sys.argv[2:] else options)]
    print(json.dumps([server.start() for server in servers]), flush=True)
    sys.stdin.read()
    for server in servers:
        server.stop()


main()
