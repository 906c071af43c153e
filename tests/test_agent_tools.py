"""Where tools of agents come from: the tools file, functions, MCP servers; and the same calls without a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from agent_server import ScriptedModel, finish
from poise.agent import (
    AgentSettings,
    EndpointModel,
    ToolContext,
    ToolsFile,
    load_automation,
    open_tools,
    read_tools_file,
    run_agent,
    run_automation,
    save_automation,
)
from poise.agent.function_tools import function_tool
from poise.cli import app
from poise.errors import FolderInUse, InvalidArgument, InvalidRun, InvalidSettings, OutputExists, ToolFailed
from poise.settings import check_settings
from poise.storage.lock import one_at_a_time

CONTEXT = ToolContext(key="k1", seconds=30)
SERVER = '''
from mcp.server.mcpserver import MCPServer

server = MCPServer("sums")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("out of order")


server.run()
'''


@pytest.fixture
def server() -> Iterator[ScriptedModel]:
    scripted = ScriptedModel([finish()])
    yield scripted
    scripted.stop()


class TestFunctions:
    def test_have_a_schema_from_their_hints(self) -> None:
        def order(
            item: Annotated[str, Field(description="What.")], count: int = 1, speed: Literal["slow", "fast"] = "slow"
        ) -> dict[str, Any]:
            """Order something.

            Not for the model.
            """
            return {"item": item, "count": count, "speed": speed}

        tool = function_tool(order, touches=["network"], repeatable=False)
        assert tool.description == "Order something."
        assert tool.parameters == {
            "type": "object",
            "properties": {
                "item": {"type": "string", "description": "What."},
                "count": {"type": "integer", "default": 1},
                "speed": {"type": "string", "enum": ["slow", "fast"], "default": "slow"},
            },
            "required": ["item"],
            "additionalProperties": False,
        }
        assert json.loads(tool.call(tool.check({"item": "a"}), CONTEXT)) == {"item": "a", "count": 1, "speed": "slow"}

    @pytest.mark.parametrize("values", [{}, {"item": 1}, {"item": "a", "count": "many"}, {"item": "a", "more": 1}])
    def test_are_not_called_with_what_does_not_fit(self, values: dict[str, Any]) -> None:
        def order(item: str, count: int = 1) -> str:
            raise AssertionError("it was called")

        with pytest.raises(ToolFailed, match="do not fit") as error:
            function_tool(order, touches=[], repeatable=True).check(values)
        assert error.value.kind == "arguments"

    def test_are_given_the_key_of_their_call(self) -> None:
        def order(item: str, idempotency_key: str) -> str:
            return f"{item} {idempotency_key}"

        tool = function_tool(order, touches=[], repeatable=True)
        assert list(tool.parameters["properties"]) == ["item"]
        assert tool.call({"item": "a"}, CONTEXT) == "a k1"

    def test_without_hints_are_refused(self) -> None:
        def untyped(item) -> str:  # type: ignore[no-untyped-def]
            return str(item)

        def starred(*items: str) -> str:
            return "".join(items)

        for function in (untyped, starred):
            with pytest.raises(InvalidArgument):
                function_tool(function, touches=[], repeatable=True)


class TestToolsFile:
    def read(self, folder: Path, text: str) -> ToolsFile:
        (folder / "tools.yaml").write_text(text)
        return read_tools_file(folder / "tools.yaml")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("file: {folder: a}", "file"),
            ("files: {folder: a, wirte: true}", "line 1.*wirte"),
            ("functions:\n  - {function: nowhere, touches: []}", "line 2.*function"),
            ("functions:\n  - {function: 'a:b'}", "line 2.*touches"),
            ("functions:\n  - {function: 'a:b', touches: [everything]}", "line 2.*touches"),
            ("functions:\n  - {function: 'a:read_file', touches: []}", "another tool is called"),
            ("mcp:\n  - {name: a, touches: []}", "a command or a url"),
            ("mcp:\n  - {name: a, touches: [], command: [x], url: 'http://a'}", "a command or a url"),
            ("fetch: {addresses: []}", "addresses"),
        ],
    )
    def test_says_what_is_wrong_and_where(self, text: str, words: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidSettings, match=words):
            self.read(tmp_path, text)

    @pytest.mark.parametrize(
        ("function", "words"),
        [("no_such_module_here:f", "cannot be imported"), ("own_tools:none", "cannot be imported"),
         ("own_tools:NUMBER", "is not a function"), ("own_tools:untyped", "no type hint")],
    )  # fmt: skip
    def test_says_which_function_cannot_be_had(self, function: str, words: str, tmp_path: Path) -> None:
        (tmp_path / "own_tools.py").write_text("NUMBER = 1\ndef untyped(a): return a\n")
        sys.modules.pop("own_tools", None)
        (tmp_path / "tools.yaml").write_text(f"functions:\n  - {{function: '{function}', touches: []}}\n")
        with (
            pytest.raises(InvalidSettings, match=f"line 2: functions.0.function .*{words}"),
            open_tools(tmp_path / "tools.yaml"),
        ):
            pass

    def test_opens_functions_that_lie_beside_it(self, tmp_path: Path) -> None:
        (tmp_path / "beside_tools.py").write_text('def twice(n: int) -> int:\n    """Double."""\n    return 2 * n\n')
        text = "calculator: false\nfunctions:\n  - {function: 'beside_tools:twice', touches: [], name: double}\n"
        (tmp_path / "tools.yaml").write_text(text)
        with open_tools(tmp_path / "tools.yaml") as tools:
            assert list(tools) == ["double"]
            assert tools["double"].call({"n": 4}, CONTEXT) == "8"


class TestMCPServers:
    def settings(self, folder: Path, **more: Any) -> ToolsFile:
        (folder / "sums.py").write_text(SERVER)
        entry = {"name": "sums", "command": [sys.executable, "sums.py"], "touches": [], **more}
        return check_settings({"calculator": False, "mcp": [entry]}, ToolsFile)

    def test_offer_their_tools(self, tmp_path: Path) -> None:
        with open_tools(self.settings(tmp_path), tmp_path) as tools:
            assert list(tools) == ["sums_add", "sums_fail"]
            assert tools["sums_add"].parameters["required"] == ["a", "b"]
            assert tools["sums_add"].call({"a": 2, "b": 3}, CONTEXT) == "5"
            with pytest.raises(ToolFailed):
                tools["sums_fail"].call({}, CONTEXT)
            with pytest.raises(ToolFailed):
                tools["sums_add"].call({"a": "x"}, CONTEXT)

    def test_offer_only_what_was_named(self, tmp_path: Path) -> None:
        with open_tools(self.settings(tmp_path, only=["add"]), tmp_path) as tools:
            assert list(tools) == ["sums_add"]
        with (
            pytest.raises(InvalidArgument, match="has no tool minus"),
            open_tools(self.settings(tmp_path, only=["minus"]), tmp_path),
        ):
            pass

    def test_that_cannot_be_started_are_said(self, tmp_path: Path) -> None:
        with (
            pytest.raises(InvalidArgument, match="The MCP server sums cannot be used"),
            open_tools(self.settings(tmp_path, command=["/no/such/program"]), tmp_path),
        ):
            pass


class TestAutomation:
    TOOLS = "files: {folder: files, write: true}\n"

    @pytest.fixture
    def run(self, server: ScriptedModel, tmp_path: Path) -> Path:
        """The folder of a run that read a file, failed once, and wrote two."""
        (tmp_path / "tools.yaml").write_text(self.TOOLS)
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "n.txt").write_text("21")
        server.script = [
            ("read_file", {"path": "n.txt"}),
            ("read_file", {"path": "none.txt"}),
            ("calculate", {"expression": "2 * 21"}),
            ("write_file", {"path": "double.txt", "text": "42"}),
            ("append_file", {"path": "log.txt", "text": "doubled\n"}),
            finish("42"),
        ]
        with open_tools(tmp_path / "tools.yaml") as tools:
            settings = AgentSettings(approve=frozenset())
            run_agent("double it", EndpointModel(server.url), tools, tmp_path / "run", settings)
        return tmp_path / "run"

    def again(self, folder: Path, **more: Any) -> Any:
        automation = load_automation(folder / "double.yaml")
        with open_tools(folder / automation.tools) as tools:
            return run_automation(automation, tools, folder, **more)

    def test_does_what_the_run_did_without_a_model(self, run: Path, tmp_path: Path) -> None:
        saved = save_automation(run, tmp_path / "tools.yaml", tmp_path / "double.yaml")
        assert [step.tool for step in saved.steps] == ["read_file", "calculate", "write_file", "append_file"]
        (tmp_path / "files" / "double.txt").unlink()
        result = self.again(tmp_path)
        assert (result.done, result.problem) == (4, "")
        assert (tmp_path / "files" / "double.txt").read_text() == "42"
        assert (tmp_path / "files" / "log.txt").read_text() == "doubled\ndoubled\n"

    def test_stops_where_it_reads_something_else(self, run: Path, tmp_path: Path) -> None:
        save_automation(run, tmp_path / "tools.yaml", tmp_path / "double.yaml")
        (tmp_path / "files" / "n.txt").write_text("5")
        (tmp_path / "files" / "double.txt").unlink()
        result = self.again(tmp_path)
        assert (result.done, "something else than the run did" in result.problem) == (0, True)
        assert not (tmp_path / "files" / "double.txt").exists()
        assert self.again(tmp_path, changed="go").problem == ""

    def test_stops_where_a_step_fails(self, run: Path, tmp_path: Path) -> None:
        save_automation(run, tmp_path / "tools.yaml", tmp_path / "double.yaml")
        (tmp_path / "files" / "n.txt").unlink()
        assert self.again(tmp_path).problem == "Step 1, read_file: There is no file n.txt."

    def test_is_not_written_over_another_file(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "double.yaml").write_text("mine")
        with pytest.raises(OutputExists):
            save_automation(run, tmp_path / "tools.yaml", tmp_path / "double.yaml")

    def test_runs_once_at_a_time(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_automation(run, tmp_path / "tools.yaml", tmp_path / "double.yaml")
        monkeypatch.setattr("poise.storage.lock._LONGEST_WAIT", 0.0)
        with one_at_a_time(tmp_path), pytest.raises(FolderInUse):
            self.again(tmp_path)

    def test_of_a_run_that_did_not_reach_its_goal_is_refused(self, server: ScriptedModel, tmp_path: Path) -> None:
        server.script = [finish("no way", "impossible")]
        (tmp_path / "tools.yaml").write_text(self.TOOLS)
        with open_tools(tmp_path / "tools.yaml") as tools:
            run_agent("a goal", EndpointModel(server.url), tools, tmp_path / "run")
        with pytest.raises(InvalidRun, match="ended as impossible"):
            save_automation(tmp_path / "run", tmp_path / "tools.yaml", tmp_path / "a.yaml")


class TestCommands:
    def type(self, *words: str) -> Any:
        return CliRunner().invoke(app, list(words))

    def test_run_replay_and_automation(self, server: ScriptedModel, tmp_path: Path) -> None:
        (tmp_path / "tools.yaml").write_text("files: {folder: files, write: true}\n")
        server.script = [("write_file", {"path": "a.txt", "text": "x\x1b[2J"}), finish("written")]
        out, tools = str(tmp_path / "run"), str(tmp_path / "tools.yaml")
        run = ["agent", "write x", "--endpoint", server.url, "--tools", tools, "--out", out]
        done = self.type(*run, "--approve", "none", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["outcome"] == "done"
        assert (tmp_path / "run" / "run.html").is_file()
        replay = self.type("agent", "replay", out)
        assert "written" in replay.stdout
        assert "\x1b" not in replay.stdout
        file = str(tmp_path / "a.yaml")
        assert self.type("automation", out, "--tools", tools, "--out", file).exit_code == 0
        again = self.type("automation", "run", file)
        assert again.exit_code == 0
        assert "1 of 1 step done." in again.stdout

    def test_what_needs_approval_is_refused_without_a_terminal(self, server: ScriptedModel, tmp_path: Path) -> None:
        (tmp_path / "tools.yaml").write_text("files: {folder: files, write: true}\n")
        server.script = [("write_file", {"path": "a.txt", "text": "x"}), finish("not allowed", "impossible")]
        done = self.type(
            "agent", "write x", "--endpoint", server.url, "--tools", str(tmp_path / "tools.yaml"), "--out",
            str(tmp_path / "run"),
        )  # fmt: skip
        assert (done.exit_code, done.stdout) == (1, "impossible: not allowed\n")
        assert list((tmp_path / "files").iterdir()) == []

    def test_a_question_is_answered_by_the_next_command(self, server: ScriptedModel, tmp_path: Path) -> None:
        server.script = [finish("Which?", "question"), finish("The second.")]
        run = ["agent", "choose", "--endpoint", server.url, "--out", str(tmp_path / "run")]
        assert self.type(*run).stdout == "asks: Which?\n"
        assert self.type(*run, "--answer", "the second").stdout == "done: The second.\n"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--out", "RUN"], "--model"),
            (["--endpoint", "http://127.0.0.1:9/v1", "--out", "RUN"], "cannot be asked which models"),
            (["--endpoint", "URL", "--out", "RUN", "--approve", "everything"], "--approve"),
            (["--endpoint", "URL", "--out", "RUN", "--max-spend", "1"], "--price"),
            (["--endpoint", "URL", "--out", "RUN", "--price", "1", "--max-spend", "1"], "--price"),
            (["--endpoint", "URL", "--out", "RUN", "--tools", "none.yaml"], "none.yaml"),
            (["--endpoint", "URL", "--out", "RUN", "--max-tokens", "1"], "tokens"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_sentence(
        self, words: list[str], said: str, server: ScriptedModel, tmp_path: Path
    ) -> None:
        placed = [{"RUN": str(tmp_path / "run"), "URL": server.url}.get(word, word) for word in words]
        done = self.type("agent", "a goal", *placed)
        assert (done.exit_code, done.stdout) == (2, "")
        assert said in done.stderr

    def test_replay_of_no_run_is_said(self, tmp_path: Path) -> None:
        done = self.type("agent", "replay", str(tmp_path))
        assert (done.exit_code, "holds no run" in done.stderr) == (2, True)
