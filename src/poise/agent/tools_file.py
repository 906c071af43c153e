"""The YAML that says which tools an agent has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from poise.agent.tool import Touch
from poise.settings import FilledText, Settings, placed_fault, read_settings

__all__ = ["FetchTool", "FilesTool", "FunctionEntry", "KnowledgeTool", "MCPEntry", "ToolsFile", "read_tools_file"]

TOOL_NAME = r"^[A-Za-z][A-Za-z0-9_-]{0,63}$"
BUILT_IN = ("read_file", "list_files", "write_file", "append_file", "calculate", "search_knowledge", "fetch", "finish")


class FilesTool(Settings):
    """Reading, and where ``write`` says so writing, inside one folder."""

    folder: FilledText = Field(description="Folder, from the tools file's own; nothing outside it is touched.")
    write: bool = Field(False, description="Whether files may be written there.")


class KnowledgeTool(Settings):
    """Searching a knowledge base."""

    folder: FilledText = Field(description="Folder of a knowledge base, from the tools file's own.")
    top: int = Field(4, ge=1, le=20, description="Passages that a search gives.")
    labels: tuple[FilledText, ...] | None = Field(None, description="See only what those with these labels may see.")


class FetchTool(Settings):
    """Reading the web, at named addresses."""

    addresses: tuple[FilledText, ...] = Field(min_length=1, max_length=100)
    private: bool = Field(False, description="Whether a host that was named may have a private number.")


class FunctionEntry(Settings):
    """A Python function."""

    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="The function, as module:function.")
    touches: tuple[Touch, ...] = Field(description="What it may touch; [] for nothing.")
    name: Annotated[str, Field(pattern=TOOL_NAME)] | None = Field(None, description="Name that calls use.")
    description: FilledText | None = Field(None, max_length=2000, description="What the model is told.")
    repeatable: bool = Field(False, description="Whether the same call made twice has the effect of one.")


class MCPEntry(Settings):
    """The tools of an MCP server: a ``command`` that is started, or the ``url`` of one that runs."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,31}$", description="Begins the names of its tools.")
    command: tuple[FilledText, ...] | None = Field(None, min_length=1, description="Program and arguments.")
    url: FilledText | None = Field(None, pattern=r"^https?://", description="Address of a server.")
    touches: tuple[Touch, ...] = Field(description="What its tools may touch; [] for nothing.")
    only: tuple[FilledText, ...] | None = Field(None, description="Names of the tools to offer; all by default.")
    repeatable: tuple[FilledText, ...] = Field((), description="Tools whose same call twice has the effect of one.")

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("it needs a command or a url, and not both")
        return self


class ToolsFile(Settings):
    """Tools of an agent; what is not named here is not there."""

    files: FilesTool | None = Field(None, description="Reading and writing inside one folder.")
    calculator: bool = Field(True, description="Whether there is a calculator.")
    knowledge: KnowledgeTool | None = Field(None, description="Searching a knowledge base.")
    fetch: FetchTool | None = Field(None, description="Reading the web, at named addresses.")
    functions: tuple[FunctionEntry, ...] = Field((), max_length=64)
    mcp: tuple[MCPEntry, ...] = Field((), max_length=16)

    @model_validator(mode="after")
    def _names_are_apart(self) -> Self:
        names = [entry.name or entry.function.partition(":")[2] for entry in self.functions]
        for place, name in enumerate(names):
            if name in BUILT_IN or name in names[:place]:
                raise placed_fault(
                    f"is {name!r}, which another tool is called; give it another `name`", "functions", place
                )
        servers = [entry.name for entry in self.mcp]
        for place, name in enumerate(servers):
            if name in servers[:place]:
                raise placed_fault(f"is {name!r}, which another server is called", "mcp", place, "name")
        return self


def read_tools_file(path: Path) -> ToolsFile:
    """The tools that a YAML file names.

    Raises:
        InvalidSettings: it cannot be read, or says what makes no sense; names file, line and field.
    """
    return read_settings(path, ToolsFile)
