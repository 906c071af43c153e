"""``poise agent``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from poise.cli.agent_options import (
    AgentGoal,
    AgentModelName,
    ApproveOption,
    EndpointURL,
    LongestAnswer,
    MemoryOption,
    PersonaText,
    RunAnswer,
    RunFolder,
    RunOut,
    SpendBudget,
    StepBudget,
    TimeBudget,
    TokenBudget,
    TokenPrice,
    ToolsOption,
    WatchOption,
)
from poise.cli.default_command import AgentGroup
from poise.cli.options import Device, Dtype, Json
from poise.cli.work import load_model, note, working
from poise.errors import InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from poise.agent import AgentModel, AgentResult, PendingCall
    from poise.report.agent_run import AgentPage

__all__ = ["app"]

app = typer.Typer(cls=AgentGroup, no_args_is_help=True, help="Reach a goal with a model and tools.")


@app.callback()
def agent() -> None:
    """Reach a goal with a model and tools, with every step on record."""


@app.command("run")
def agent_run_command(
    goal: AgentGoal,
    out: RunOut,
    model: AgentModelName = None,
    endpoint: EndpointURL = None,
    tools: ToolsOption = None,
    memory: MemoryOption = None,
    watch: WatchOption = None,
    approve: ApproveOption = "write,shell",
    answer: RunAnswer = None,
    persona: PersonaText = "",
    budget: StepBudget = 40,
    max_tokens: TokenBudget = None,
    max_seconds: TimeBudget = None,
    max_spend: SpendBudget = None,
    price: TokenPrice = None,
    max_new_tokens: LongestAnswer = 1024,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Reach a goal: plan, act, observe, adapt, retry.

    Exit code 0: done; 1: not done, which the report explains.
    """
    limits = _agent_limits(budget, max_tokens, max_seconds, max_spend, price, max_new_tokens)
    if (model or endpoint) is None:
        raise InvalidArgument("There is no model; name one with `model`, or its server with `endpoint`.")
    with contextlib.ExitStack() as opened:
        with working():  # its progress would be drawn over what a person is asked
            from poise.agent import AgentSettings, FolderMemory, ToolsFile, open_tools, run_agent, write_run_page
            from poise.storage.output import check_output_folder

            if (out / "run.html").exists() and not (out / "steps.jsonl").exists():
                raise InvalidArgument(f"`out` {out} holds a run.html that no agent's run wrote; choose another folder.")
            check_output_folder(out, [], job="agent", run_folder=out)
            settings = AgentSettings(limits=limits, approve=_approval_kinds(approve), persona=persona)
            toolbox = opened.enter_context(open_tools(tools or ToolsFile()))
            chosen = opened.enter_context(_agent_model(model, endpoint, watch or [], out, dtype, device))
            remembering = FolderMemory(memory) if memory else None
        opened.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            result = run_agent(
                goal,
                chosen,
                toolbox,
                out,
                settings,
                person=TerminalPerson(answer),
                memory=remembering,
                listen=_show_record,
            )
        finally:
            if (out / "steps.jsonl").exists():
                write_run_page(out)
    _show_result(result, out, as_json=as_json)
    if result.outcome not in ("done", "answered"):
        raise typer.Exit(1)


def _agent_limits(
    budget: int, tokens: int | None, seconds: float | None, spend: float | None, price: str | None, answer_tokens: int
) -> Any:
    from poise.agent.limits import AgentLimits

    prompt_price = answer_price = 0.0
    if price is not None:
        try:
            prompt_price, answer_price = (float(part) for part in price.split(","))
        except ValueError as error:
            raise InvalidArgument(f"`price` is {price!r}; write two numbers, such as 0.5,1.5.") from error
    if (spend is None) != (price is None):
        raise InvalidArgument("`max_spend` and `price` go together; give both.")
    return AgentLimits(
        steps=budget,
        tokens=tokens,
        seconds=seconds,
        spend=spend,
        prompt_price=prompt_price,
        answer_price=answer_price,
        answer_tokens=answer_tokens,
    )


def _approval_kinds(text: str) -> frozenset[str]:
    kinds = frozenset(part.strip() for part in text.split(",") if part.strip())
    return frozenset() if kinds == {"none"} else kinds


@contextlib.contextmanager
def _agent_model(
    model: str | None, endpoint: str | None, watch: list[str], out: Path, dtype: Any, device: str
) -> Iterator[AgentModel]:
    from poise.agent import EndpointModel, ServedModel

    if endpoint is not None:
        chosen = EndpointModel(endpoint, model, watch=watch, session=f"agent:{out.resolve()}"[-200:])
    else:
        try:
            from poise.serve import server  # noqa: F401
        except ImportError as error:
            raise MissingExtra.of(
                f"Serving a model here needs {error.name}, which is not installed", "serve"
            ) from error
        chosen = ServedModel(load_model(str(model), dtype, device), _watched_files(watch))
    try:
        yield chosen
    finally:
        chosen.close()


def _watched_files(arguments: list[str]) -> dict[str, Path]:
    named = (text.partition("=") if "=" in text else (Path(text).name.split(".")[0], "=", text) for text in arguments)
    return {name: Path(path) for name, _, path in named}


class TerminalPerson:
    """Whoever sits at the terminal; nobody where there is none.

    Args:
        reply: What they say to the next question, given beforehand.
    """

    def __init__(self, reply: str | None) -> None:
        self._reply = reply

    def approves(self, call: PendingCall) -> bool | None:
        """Ask whether a call may be made; anything but a yes is a no."""
        if not _is_interactive():
            return None
        note(f"\n{call.tool} touches {', '.join(call.touches)}. It would be called with:")
        for name, value in call.arguments.items():
            note(_safe_text(f"  {name}: {value}").replace("\n", "\n    | "))  # no value looks like another argument
        note("Allow this call? [y/N]")
        return _typed_line().strip().lower() in ("y", "yes")

    def answer(self, question: str) -> str | None:
        """Ask a question; an empty line stops the run."""
        reply, self._reply = self._reply, None
        if reply is not None or not _is_interactive():
            return reply
        note(_safe_text(f"\n{question}"))
        note("Your answer (an empty line stops the run):")
        return _typed_line().strip() or None


def _typed_line() -> str:
    """A line from the terminal; empty at its end."""
    return sys.stdin.readline()


def _is_interactive() -> bool:
    with contextlib.suppress(OSError, ValueError):
        return os.isatty(sys.stdin.fileno()) and os.isatty(sys.stderr.fileno())
    return False


def _safe_text(text: str) -> str:
    from poise.cli.render import plain_text

    return plain_text(text)


def _show_record(row: Mapping[str, Any]) -> None:
    from poise.agent.run_page import run_lines

    for line in run_lines(row):
        note(_safe_text(line))


def _show_result(result: AgentResult, out: Path, *, as_json: bool) -> None:
    from dataclasses import asdict

    from poise.cli import facts

    if as_json:
        facts.print_json({"out": str(out), **asdict(result)})
        return
    typer.echo(_safe_text(f"{result.outcome}: {result.report}"))
    use = result.use
    note(
        f"{use.answers} answers, {use.calls} calls, {use.prompt_tokens + use.answer_tokens:,} tokens, "
        f"{use.seconds:.1f} s; changes of the plan: {result.revisions}."
    )
    if result.outcome == "asks":
        note("Go on: the same command with --answer TEXT.")
    if result.outcome == "limit":
        note("Go on: the same command with more to use, such as a larger --budget.")
    note(f"Page: {out / 'run.html'}")


@app.command("replay")
def agent_replay_command(run: RunFolder, as_json: Json = False) -> None:
    """Show a run from its records, without a model, and write its page anew."""
    from dataclasses import asdict

    from poise.cli import facts

    with working():
        from poise.agent import replay_run, write_run_page

        page = replay_run(run)
        path = write_run_page(run)
    if as_json:
        facts.print_json({"page": str(path), **asdict(page)})
        return
    _show_replay(page)
    note(f"Page: {path}")


def _show_replay(page: AgentPage) -> None:
    typer.echo(_safe_text(f"{page.goal}\n"))
    for step in page.steps:
        mark = {"ok": "✓ ", "bad": "✕ "}.get(step.state, "")
        typer.echo(_safe_text(f"{step.number:4} {step.kind:9} {mark}{step.title}"))
        if step.note:
            typer.echo(_safe_text(f"{'':15}{step.note.partition(chr(10))[0][:200]}"))
    for gauge in page.gauges:
        typer.echo(f"{gauge.trait}: {gauge.low:.2f} to {gauge.high:.2f} over {len(gauge.points)} answers")
    typer.echo(_safe_text(f"\n{page.verdict}: {page.report}"))
