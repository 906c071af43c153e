"""The command line: each command parses, makes one library call and renders what comes back.

Results go to stdout, everything else to stderr. Nothing heavy is imported before a command runs, so that ``--help``
answers at once.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from poise.cli import (
    agent,
    ask,
    automation,
    bias,
    card,
    chat,
    choose,
    compare,
    dashboard,
    demo,
    detector,
    doctor,
    exchange,
    gate,
    guardrail,
    hub,
    inspection,
    judge,
    knowledge,
    legibility,
    memory,
    merge,
    monitor,
    project,
    reasoning,
    registry,
    screen,
    serve,
    shift,
    talk,
    train,
    traits,
    vectors,
)
from poise.cli.preview import ShowableCommand
from poise.cli.work import with_options
from poise.errors import NonFiniteActivation, UserError
from poise.progress import remarks_by

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """Turns what the user can fix into one sentence; bugs keep their traceback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _hide_idle_types(self, typer.Context(self, **self.context_settings))

    def get_params(self, ctx: Any) -> list[Any]:
        """Its options, those for completion too, which are added last; flags take no value and show no type."""
        params = super().get_params(ctx)
        for parameter in params:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return params

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of use."""
        return [
            "demo",
            "traits",
            "extract",
            "validate",
            "generate",
            "chat",
            "serve",
            "guardrail",
            "knowledge",
            "ask",
            "agent",
            "automation",
            "memory",
            "detector",
            "calibrate",
            "read",
            "screen",
            "train",
            "merge",
            "shift",
            "gate",
            "compare",
            "legibility",
            "judge",
            "inspect",
            "project",
            "registry",
            "hub",
            "choose",
            "bias",
            "card",
            "dashboard",
            "doctor",
            "show",
            "export",
            "import",
        ]

    def invoke(self, ctx: Any) -> Any:
        try:
            with remarks_by(lambda sentence: typer.echo(f"note: {sentence}", err=True)):
                return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _plain_words(error)
            raise
        except (UserError, NonFiniteActivation) as error:  # a model that breaks is no fault of ours to trace
            typer.echo(f"error: {with_options(str(error), ctx)}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo(" ".join(["Interrupted.", *map(str, error.args), RUN_AGAIN]), err=True)
            raise typer.Exit(130) from error


RUN_AGAIN = "Run the same command again to continue."


def _hide_idle_types(command: Any, ctx: Any) -> None:
    """Let help show no type for what takes no value, nor for arguments, whose names say what they are; also below."""
    for parameter in (*command.params, command.get_help_option(ctx)):
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None
        elif getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for name, subcommand in getattr(command, "commands", {}).items():
        _hide_idle_types(subcommand, typer.Context(subcommand, info_name=name, parent=ctx))


def _plain_words(error: typer.BadParameter) -> str:
    """What is wrong with an option's value, where pydantic has said it in its own words."""
    cause = error.__cause__
    faults = cause.errors() if cause is not None and hasattr(cause, "errors") else []
    if not faults:
        return str(error.message)
    from poise.settings import describe_value

    return f"it {describe_value(faults[0])}.".replace("it '", "'")


app = typer.Typer(
    cls=_Commands,
    name="poise",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"poise {version('poise')}")
        raise typer.Exit


@app.callback()
def poise(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Persona vectors: compute one, prove it, steer with it."""


app.command("demo")(demo.demo_command)
app.add_typer(traits.app, name="traits")
app.command("extract")(vectors.extract_command)
app.command("validate")(vectors.validate_command)
app.command("generate")(talk.generate_command)
app.command("chat")(chat.chat)
app.command("serve", cls=ShowableCommand)(serve.serve)
app.add_typer(guardrail.app, name="guardrail")
guardrail.app.command("reason")(reasoning.reason_command)
app.add_typer(knowledge.app, name="knowledge")
app.command("ask")(ask.ask_command)
app.add_typer(agent.app, name="agent")
app.add_typer(automation.app, name="automation")
app.add_typer(memory.app, name="memory")
app.add_typer(detector.app, name="detector")
app.command("calibrate", cls=ShowableCommand)(monitor.calibrate_command)
app.command("read", cls=ShowableCommand)(monitor.read_command)
app.command("screen", cls=ShowableCommand)(screen.screen_command)
app.command("train", cls=ShowableCommand)(train.train_command)
app.command("merge")(merge.merge_command)
app.command("shift", cls=ShowableCommand)(shift.shift_command)
app.command("gate", cls=ShowableCommand)(gate.gate_command)
app.command("compare")(compare.compare_command)
app.command("legibility")(legibility.legibility_command)
app.add_typer(judge.app, name="judge")
app.command("inspect")(inspection.inspect_command)
app.add_typer(project.app, name="project")
app.add_typer(registry.app, name="registry")
app.add_typer(hub.app, name="hub")
app.command("card")(card.card_command)
app.command("choose")(choose.choose_command)
app.command("bias")(bias.bias_command)
app.command("dashboard")(dashboard.dashboard_command)
app.command("doctor")(doctor.doctor)
app.command("show")(vectors.show_command)
app.command("export")(exchange.export)
app.command("import")(exchange.import_)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app()
