"""Tools from a tools file: opened together, closed together."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from poise.agent.calculator import calculator_tool
from poise.agent.folder_files import FolderFiles, file_tools
from poise.agent.function_tools import function_tool
from poise.agent.tool import AgentTool
from poise.agent.tools_file import FunctionEntry, KnowledgeTool, ToolsFile, read_tools_file
from poise.agent.web_fetch import WebFetch, fetch_tool
from poise.errors import InvalidArgument, InvalidSettings, ToolFailed, UserError, first_line
from poise.settings import located_faults
from poise.storage.output import lies_in

__all__ = ["Toolbox", "open_tools"]


class Toolbox(dict[str, AgentTool]):
    """Tools by name.

    Attributes:
        folder: Folder that the file tools work in, if any.
    """

    folder: Path | None = None


@contextlib.contextmanager
def open_tools(settings: ToolsFile | Path, base: Path | None = None) -> Iterator[Toolbox]:
    """The tools that a file names, until the block ends.

    Args:
        settings: The tools file, or what it says.
        base: Folder that paths in it are from; the file's own, or the current one.

    Raises:
        UserError: a tool cannot be had; says which, and where it is named.
    """
    path = settings if isinstance(settings, Path) else None
    read = read_tools_file(settings) if isinstance(settings, Path) else settings
    base = base or (path.parent if path else Path())
    with contextlib.ExitStack() as opened:
        with located_faults(path, ToolsFile) if path else contextlib.nullcontext():
            if path:
                _check_tools_out_of_reach(read, path)
            tools = Toolbox((tool.name, tool) for tool in _built_in(read, base, opened))
            tools.folder = base / read.files.folder if read.files else None
            for place, entry in enumerate(read.functions):
                _add_tool(tools, _python_tool(entry, base, place))
            for server in read.mcp:
                from poise.agent.mcp_tools import server_tools

                for tool in opened.enter_context(server_tools(server, base)):
                    _add_tool(tools, tool)
        yield tools


def _check_tools_out_of_reach(read: ToolsFile, path: Path) -> None:
    """Check that what an agent writes cannot become its own tools: their file, and the code beside it."""
    if read.files and read.files.write and lies_in(path, path.parent / read.files.folder):
        text = "holds this file itself, and the agent could write tools of its own; name a folder beside it"
        error = InvalidSettings(f"files.folder {text}.")
        error.faults = ((("files", "folder"), text),)
        raise error


def _built_in(read: ToolsFile, base: Path, opened: contextlib.ExitStack) -> Iterator[AgentTool]:
    if read.files:
        files = FolderFiles(base / read.files.folder, may_write=read.files.write)
        opened.callback(files.close)
        yield from file_tools(files)
    if read.calculator:
        yield calculator_tool()
    if read.knowledge:
        yield _knowledge_tool(read.knowledge, base)
    if read.fetch:
        yield fetch_tool(WebFetch(read.fetch.addresses, private=read.fetch.private))


def _add_tool(tools: Toolbox, tool: AgentTool) -> None:
    if tool.name in tools or tool.name == "finish":
        raise InvalidSettings(f"Two tools are called {tool.name}; give one of them another `name`.")
    tools[tool.name] = tool


def _python_tool(entry: FunctionEntry, base: Path, place: int) -> AgentTool:
    module, _, name = entry.function.partition(":")
    with _importing_from(base):
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what it prints is no result of the command
                function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
            raise _placed_error(f"cannot be imported: {first_line(error)}", place, "function") from error
    if not callable(function):
        raise _placed_error("is not a function", place, "function")
    try:
        return function_tool(
            function,
            touches=entry.touches,
            repeatable=entry.repeatable,
            name=entry.name or name,
            description=entry.description,
        )
    except InvalidArgument as error:
        raise _placed_error(f"cannot be used: {error}".rstrip("."), place, "function") from error


def _placed_error(text: str, place: int, field: str) -> UserError:
    error = InvalidSettings(f"functions.{place}.{field} {text}; fix it and try again.")
    error.faults = ((("functions", place, field), text),)
    return error


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Modules beside the tools file can be imported, too."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def _knowledge_tool(entry: KnowledgeTool, base: Path) -> AgentTool:
    from poise.knowledge import ChunkFilter, Knowledge

    opened = Knowledge(base / entry.folder)
    limits = ChunkFilter(labels=None if entry.labels is None else frozenset(entry.labels))

    def search_knowledge(question: Annotated[str, Field(description="What is looked for.", max_length=2000)]) -> str:
        """Search the documents for passages that answer a question."""
        try:
            passages = opened.search(question, entry.top, "hybrid", limits)
        except UserError as error:
            raise ToolFailed(str(error)) from error
        return "\n\n".join(f"[{passage.place}]\n{passage.text}" for passage in passages) or "Nothing fits."

    return function_tool(search_knowledge, touches=["read"], repeatable=True)
