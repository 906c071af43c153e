"""What servers, tools and tools files do that they should not: each is a sentence, or goes on as well as it can."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent_server import ScriptedModel, finish
from poise.agent import (
    AgentResult,
    AgentSettings,
    EndpointModel,
    FolderMemory,
    ToolContext,
    ToolsFile,
    open_tools,
    read_tools_file,
    run_agent,
)
from poise.agent.function_tools import function_tool
from poise.agent.records import read_records, records_of
from poise.cli import app
from poise.errors import EndpointUnavailable, InvalidArgument, InvalidSettings
from poise.settings import check_settings
from test_memory import opened

FINISH = {"name": "finish", "arguments": json.dumps({"outcome": "done", "report": "Found it."})}
COUNTED = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'
CONTEXT = ToolContext(key="k", seconds=30.0)


class OddServer(ThreadingHTTPServer):
    """Gives the same bytes to every question."""

    daemon_threads = True

    def __init__(self, answer: bytes, models: bytes = MODELS, kind: str = "application/json") -> None:
        super().__init__(("127.0.0.1", 0), _OddHandler)
        self.answer, self.models, self.kind, self.asked = answer, models, kind, 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _OddHandler(BaseHTTPRequestHandler):
    server: OddServer

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.give(self.server.models)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked += 1
        self.give(self.server.answer)

    def give(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", self.server.kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise.agent.loop.FIRST_PAUSE_SECONDS", 0.0)


@pytest.fixture
def odd() -> Iterator[Callable[..., OddServer]]:
    servers: list[OddServer] = []

    def start(*arguments: Any, **more: Any) -> OddServer:
        servers.append(OddServer(*arguments, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def scripted() -> Iterator[ScriptedModel]:
    server = ScriptedModel([finish()])
    yield server
    server.stop()


def completion(message: dict[str, Any], usage: Any = COUNTED) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": "stop"}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(body).encode()


def call_of(function: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"id": "a", "function": function, **more}]}


def reach(url: str, folder: Path, goal: str = "a goal", **more: Any) -> AgentResult:
    model = EndpointModel(url)
    tools = {tool.name: tool for tool in more.pop("tools", ())}
    try:
        return run_agent(goal, model, tools, folder, AgentSettings(approve=frozenset()), **more)
    finally:
        model.close()


class TestServers:
    @pytest.mark.parametrize(
        "models",
        [b'{"data": null}', b'{"error": {"message": "no key"}}', b"[1, 2]", b"null", b'{"data": ["m"]}'],
    )
    def test_that_list_nonsense_are_a_sentence(self, odd: Callable[..., OddServer], models: bytes) -> None:
        with pytest.raises(EndpointUnavailable, match="cannot be asked which models"):
            EndpointModel(odd(b"", models).url)

    @pytest.mark.parametrize("window", ['"32k"', "-5", "[1]", "Infinity", "true", "null"])
    def test_whose_window_is_no_number_have_the_usual_one(self, odd: Callable[..., OddServer], window: str) -> None:
        models = f'{{"data": [{{"id": "m", "context_window": {window}, "max_model_len": 4096}}]}}'.encode()
        assert EndpointModel(odd(b"", models).url).window == 4096
        assert EndpointModel(odd(b"", models.replace(b"max_model_len", b"x")).url).window == 8192

    def test_whose_success_is_an_error_are_quoted(self, odd: Callable[..., OddServer], tmp_path: Path) -> None:
        server = odd(b'{"error": {"message": "You are out of credit.", "code": 402}}')
        with pytest.raises(EndpointUnavailable, match=r"out of credit\."):
            reach(server.url, tmp_path / "run")

    @pytest.mark.parametrize("data", [b'{"choices": [{"mess', b""])
    def test_whose_answer_is_cut_are_asked_again(
        self, odd: Callable[..., OddServer], tmp_path: Path, data: bytes
    ) -> None:
        server = odd(data)
        with pytest.raises(EndpointUnavailable, match="cut or no JSON"):
            reach(server.url, tmp_path / "run")
        assert server.asked == 3

    @pytest.mark.parametrize(
        "usage",
        [
            {"prompt_tokens": -100, "completion_tokens": -5},
            {"prompt_tokens": "many", "completion_tokens": None},
            {"prompt_tokens": float("nan"), "completion_tokens": 1e300},
            {"prompt_tokens": True, "completion_tokens": [1]},
            None,
        ],
    )
    def test_that_cannot_count_are_counted_for(self, odd: Callable[..., OddServer], tmp_path: Path, usage: Any) -> None:
        server = odd(completion(call_of(FINISH, type="function"), usage))
        result = reach(server.url, tmp_path / "run")
        assert result.outcome == "done"
        assert 100 < result.use.prompt_tokens < 10_000
        assert 2 <= result.use.answer_tokens < 200

    @pytest.mark.parametrize(
        "message",
        [
            call_of(FINISH),
            call_of({"name": "finish", "arguments": json.loads(FINISH["arguments"])}, type="function"),
        ],
        ids=["no type", "arguments as an object"],
    )
    def test_whose_calls_are_nearly_as_they_should_be_are_understood(
        self, odd: Callable[..., OddServer], tmp_path: Path, message: dict[str, Any]
    ) -> None:
        result = reach(odd(completion(message)).url, tmp_path / "run")
        assert (result.outcome, result.report) == ("done", "Found it.")

    @pytest.mark.parametrize(
        "message", [{"content": [{"type": "text", "text": "It is "}, {"text": "12."}]}, {"refusal": "It is 12."}]
    )
    def test_whose_words_come_in_parts_or_as_a_refusal_are_read(
        self, odd: Callable[..., OddServer], tmp_path: Path, message: dict[str, Any]
    ) -> None:
        result = reach(odd(completion(message)).url, tmp_path / "run")
        assert (result.outcome, result.report) == ("answered", "It is 12.")


class TestHalvesOfCharacters:
    def test_of_goal_model_and_tool_do_not_end_a_run(self, scripted: ScriptedModel, tmp_path: Path) -> None:
        def odd_text() -> str:
            """Give half a character."""
            return "half \ud83d here"

        scripted.script = ["words \ud83d", ("odd_text", {}), ("no \udc00 tool", {}), finish("Done \ud83d\0.")]
        tool = function_tool(odd_text, touches=[], repeatable=True)
        memory = FolderMemory.__new__(FolderMemory)
        memory.folder, memory._memory = tmp_path / "memory", opened(tmp_path / "memory")
        goal = "find \udcff it"
        for _ in range(2):  # from the model, and from the records
            assert reach(scripted.url, tmp_path / "run", goal, tools=[tool], memory=memory).outcome == "done"
        sent = json.dumps(scripted.requests[-1]["messages"], ensure_ascii=False)
        assert "half \ufffd here" in sent
        assert "find \ufffd it" in sent
        [episode] = memory._memory.entries()
        assert "find \ufffd it" in episode.text
        assert "Done \ufffd\ufffd." in episode.text


class TestFunctions:
    def test_that_are_coroutines_are_awaited(self) -> None:
        async def later(word: str) -> str:
            return word.upper()

        assert function_tool(later, touches=[], repeatable=True).call({"word": "yes"}, CONTEXT) == "YES"

    def test_that_would_do_nothing_are_refused(self) -> None:
        def each(word: str) -> Iterator[str]:
            yield word

        with pytest.raises(InvalidArgument, match="one after another"):
            function_tool(each, touches=[], repeatable=True)

    def test_whose_parameter_no_call_can_use_are_refused(self) -> None:
        def odd(model_config: str) -> str:
            return model_config

        with pytest.raises(InvalidArgument, match="a parameter called model_config"):
            function_tool(odd, touches=[], repeatable=True)

    def test_may_call_a_parameter_prepared(self) -> None:
        def ship(prepared: bool) -> str:
            return f"prepared: {prepared}"

        tool = function_tool(ship, touches=[], repeatable=True)
        assert tool.call(tool.check({"prepared": True}), CONTEXT) == "prepared: True"

    def test_may_change_the_folder_of_the_process(
        self, scripted: ScriptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wander(place: str) -> str:
            """Go somewhere else."""
            os.chdir(place)
            return str(Path.cwd())

        monkeypatch.chdir(tmp_path)
        scripted.script = [("wander", {"place": "/"}), finish()]
        tool = function_tool(wander, touches=(), repeatable=True)
        assert reach(scripted.url, Path("run"), tools=[tool]).outcome == "done"
        assert Path.cwd() == tmp_path
        [result] = [row for row in read_records(Path("run")) if row["kind"] == "result"]
        assert result["output"] == "/"

    def test_whose_error_cannot_be_said_fail_at_once(self, scripted: ScriptedModel, tmp_path: Path) -> None:
        class Unsayable(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no words")

        def fail() -> str:
            """Fail."""
            raise Unsayable

        scripted.script = [("fail", {}), finish()]
        reach(scripted.url, tmp_path / "run", tools=[function_tool(fail, touches=[], repeatable=False)])
        [result] = records_of(read_records(tmp_path / "run"), "result")
        assert (result["ok"], result["output"]) == (False, "Unsayable: Unsayable")
        assert result["seconds"] < 5


class TestToolsFiles:
    def read(self, folder: Path, text: str) -> Path:
        path = folder / "tools.yaml"
        path.write_text(text)
        return path

    @pytest.mark.parametrize("place", [".", "..", "work/.."])
    def test_cannot_be_written_by_their_own_tools(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "work").mkdir()
        path = self.read(tmp_path, f"calculator: true\nfiles: {{folder: {place}, write: true}}\n")
        with pytest.raises(InvalidSettings, match=r"line 2: files\.folder holds this file itself"), open_tools(path):
            pass
        with open_tools(self.read(tmp_path, f"files: {{folder: {place}}}\n")) as tools:
            assert "read_file" in tools

    def test_whose_module_ends_the_program_are_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "ends_at_import.py").write_text("import sys\nsys.exit(0)\n")
        path = self.read(tmp_path, "functions: [{function: 'ends_at_import:go', touches: []}]\n")
        with pytest.raises(InvalidSettings, match="cannot be imported"), open_tools(path):
            pass

    @pytest.mark.parametrize(
        "text",
        [
            "files: &a {folder: *a}",
            "x: &a [*a]",
            "b0: &b0 [1]\n" + "".join(f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 12)),
            'files: {folder: "a\\0b"}',
        ],
        ids=["field in itself", "list in itself", "ten to the eleventh", "NUL"],
    )
    def test_that_cannot_be_are_a_sentence(self, tmp_path: Path, text: str) -> None:
        path = self.read(tmp_path, text)
        with pytest.raises((InvalidSettings, InvalidArgument)), open_tools(read_tools_file(path), tmp_path):
            pass

    def test_whose_functions_print_leave_the_output_to_the_command(
        self, scripted: ScriptedModel, tmp_path: Path
    ) -> None:
        (tmp_path / "prints_all_day.py").write_text(
            "print('imported')\n\n\ndef say(word: str) -> str:\n    print('called')\n    return word\n"
        )
        path = self.read(tmp_path, "functions: [{function: 'prints_all_day:say', touches: []}]\n")
        scripted.script = [("say", {"word": "yes"}), finish()]
        fixed = str(tmp_path / "fixed.yaml")
        run = ["agent", "g", "--endpoint", scripted.url, "--tools", str(path), "--out", str(tmp_path / "run"), "--json"]
        save = ["automation", "save", str(tmp_path / "run"), "--tools", str(path), "--out", fixed, "--json"]
        for arguments in (run, save, ["automation", "run", fixed, "--json"]):
            sys.modules.pop("prints_all_day", None)
            done = CliRunner().invoke(app, arguments)
            assert done.exit_code == 0, done.output
            json.loads(done.stdout)


ODD_MCP = """
import json, sys

TOOLS = [["a.b/c d", "x" * 80 + "1"], ["x" * 80 + "2", "plain"]]


def send(message, result):
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)


for line in sys.stdin:
    message = json.loads(line)
    if message.get("method") == "initialize":
        version = message["params"]["protocolVersion"]
        info = {"name": "odd", "version": "1"}
        send(message, {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info})
    elif message.get("method") == "tools/list":
        page = int((message.get("params") or {}).get("cursor") or 0)
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS[page % 2]]
        endless = sys.argv[1] == "endless"
        send(message, {"tools": tools, **({"nextCursor": str(page + 1)} if endless or page == 0 else {})})
    elif message.get("method") == "tools/call":
        send(message, {"content": [], "structuredContent": {"name": message["params"]["name"][-3:]}})
    elif "id" in message:
        error = {"code": -32601, "message": "no"}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}), flush=True)
"""


class TestServersOfTools:
    def settings(self, folder: Path, mode: str) -> ToolsFile:
        (folder / "odd_mcp.py").write_text(ODD_MCP)
        entry = {"name": "m", "command": [sys.executable, "odd_mcp.py", mode], "touches": []}
        return check_settings({"calculator": False, "mcp": [entry]}, ToolsFile)

    def test_have_all_pages_offered_by_names_that_requests_may_have(self, tmp_path: Path) -> None:
        pytest.importorskip("mcp")
        with open_tools(self.settings(tmp_path, "two"), tmp_path) as tools:
            assert len(tools) == 4
            assert "m_plain" in tools
            assert all(len(name) <= 64 and name.replace("_", "").isalnum() for name in tools)
            said = {tool.call({}, CONTEXT) for tool in tools.values()}
        assert said == {'{"name": "ain"}', '{"name": "xx1"}', '{"name": "xx2"}', '{"name": "c d"}'}

    def test_without_an_end_are_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("mcp")
        with (
            pytest.raises(InvalidArgument, match="more than 200 pages"),
            open_tools(self.settings(tmp_path, "endless"), tmp_path),
        ):
            pass


def test_an_argument_cannot_look_like_another_where_it_is_approved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from poise.agent import PendingCall
    from poise.cli import agent as command

    monkeypatch.setattr(command, "_is_interactive", lambda: True)
    monkeypatch.setattr(command, "_typed_line", lambda: "n\n")
    call = PendingCall(tool="shell", arguments={"why": "tidy\n  command: ls", "command": "rm -r ."}, touches=("shell",))
    assert command.TerminalPerson(None).approves(call) is False
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("  command:")] == ["  command: rm -r ."]
