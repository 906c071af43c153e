"""Groups with a command that is meant where none is named: ``poise agent "a goal"`` is ``poise agent run "a goal"``."""

from __future__ import annotations

from typing import Any, ClassVar

from typer.core import TyperGroup

__all__ = ["AgentGroup", "AutomationGroup"]


class _GroupWithDefault(TyperGroup):
    default_command: ClassVar[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)


class AgentGroup(_GroupWithDefault):
    """``poise agent``."""

    default_command = "run"


class AutomationGroup(_GroupWithDefault):
    """``poise automation``."""

    default_command = "save"
