"""Tools of MCP servers, by the official SDK, whose client lives in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from poise.agent.function_tools import output_text
from poise.agent.tool import AgentTool, ToolContext
from poise.agent.tools_file import MCPEntry
from poise.errors import InvalidArgument, MissingExtra, ToolFailed, first_line
from poise.storage.content_hash import content_key

__all__ = ["server_tools"]

CONNECT_SECONDS = 60.0
MOST_TOOLS = 128
MOST_PAGES = 200  # of a server's list
LONGEST_TOOL_NAME = 64
_NAME_SIGN = re.compile(r"[^A-Za-z0-9_-]")

ToolResult = TypeVar("ToolResult")


class _ServerThread:
    """An event loop in a thread, and one client of a server in it from beginning to end."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._closing = asyncio.Event()
        self._error: BaseException | None = None
        self.client: Any = None
        self._thread = threading.Thread(target=self._run, name="poise-mcp", daemon=True)
        self._thread.start()
        self._ready.wait(CONNECT_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:  # told to whoever opened it
            self._error = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _live(self) -> None:
        from mcp import Client

        async with Client(self._server) as client:
            self.client = client
            self._ready.set()
            await self._closing.wait()

    @property
    def fault(self) -> str:
        """Why there is no connection; empty where there is one."""
        if self.client is not None and self._error is None:
            return ""
        return _innermost(self._error) if self._error else "it does not answer"

    def do(self, work: Coroutine[Any, Any, ToolResult], seconds: float) -> ToolResult:
        """The result of work in the loop; a ``TimeoutError`` where it takes longer."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(10)


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return first_line(error)


@contextlib.contextmanager
def server_tools(entry: MCPEntry, base: Path) -> Iterator[list[AgentTool]]:
    """The tools of a server, while it is connected.

    Args:
        entry: What the tools file says of it.
        base: Folder that a command is started in.

    Raises:
        MissingExtra: the SDK is not installed.
        InvalidArgument: the server cannot be started or reached, or lacks a tool that was named.
    """
    try:
        from mcp import StdioServerParameters
    except ImportError as error:
        raise MissingExtra.of("Tools of MCP servers need the package mcp, which is not installed", "agent") from error
    server: Any = entry.url
    if entry.command:
        server = StdioServerParameters(command=entry.command[0], args=list(entry.command[1:]), cwd=str(base.resolve()))
    thread = _ServerThread(server)
    try:
        if thread.fault:
            raise InvalidArgument(
                f"The MCP server {entry.name} cannot be used ({thread.fault}); check its command or url."
            )
        yield _offered_tools(thread, entry)
    finally:
        thread.close()


def _offered_tools(thread: _ServerThread, entry: MCPEntry) -> list[AgentTool]:
    try:
        listed = thread.do(_all_tools(thread.client), CONNECT_SECONDS)
    except Exception as error:
        raise InvalidArgument(f"The MCP server {entry.name} lists no tools ({first_line(error)}).") from error
    names = {tool.name for tool in listed}
    if missing := sorted({*(entry.only or ()), *entry.repeatable} - names):
        raise InvalidArgument(
            f"The MCP server {entry.name} has no tool {', '.join(missing)}; it has {', '.join(sorted(names))}."
        )
    offered = [tool for tool in listed if entry.only is None or tool.name in entry.only]
    if len(offered) > MOST_TOOLS:
        raise InvalidArgument(f"The MCP server {entry.name} has {len(offered)} tools; name some in `only`.")
    return [_mcp_tool(thread, entry, tool) for tool in offered]


async def _all_tools(client: Any) -> list[Any]:
    """A server's tools from all of its pages, or more than may be offered."""
    tools: list[Any] = []
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor:
            return tools
    raise ToolFailed(f"its list has more than {MOST_PAGES} pages")


def _offered_name(server: str, name: str) -> str:
    """A tool's name as requests may have it, of two tools never the same."""
    plain = f"{server}_{_NAME_SIGN.sub('_', name)}"
    if len(plain) <= LONGEST_TOOL_NAME and plain == f"{server}_{name}":
        return plain
    return f"{plain[: LONGEST_TOOL_NAME - 9]}_{content_key(tool=name)[:8]}"


def _mcp_tool(thread: _ServerThread, entry: MCPEntry, listed: Any) -> AgentTool:
    name: str = listed.name

    def call(arguments: dict[str, Any], context: ToolContext) -> str:
        work = thread.client.call_tool(name, arguments, meta={"poise/idempotency-key": context.key})
        try:
            result = thread.do(work, context.seconds)
        except TimeoutError as error:
            raise ToolFailed(f"{name} did not answer within {context.seconds:.0f} s.", kind="passing") from error
        except Exception as error:
            raise ToolFailed(f"{name} failed: {_innermost(error)}.") from error
        text = "\n".join(getattr(part, "text", None) or f"({part.type})" for part in result.content)
        if getattr(result, "is_error", False):
            raise ToolFailed(text or f"{name} failed and said nothing.")
        return text or output_text(getattr(result, "structured_content", None) or "")

    return AgentTool(
        name=_offered_name(entry.name, name),
        description=(listed.description or name)[:2000],
        parameters=getattr(listed, "input_schema", None) or {"type": "object"},
        touches=frozenset(entry.touches),
        repeatable=name in entry.repeatable or not set(entry.touches) & {"write", "shell", "network"},
        check=lambda arguments: arguments,
        call=call,
    )
