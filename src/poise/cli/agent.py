"""``poise agent``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from poise.cli.agent_options import (
    AgentGoal,
    AgentModelName,
    ApprovalSeconds,
    ApproveOption,
    EndpointURL,
    InjectionActionOption,
    LongestAnswer,
    MemoryOption,
    PersonaText,
    ResultGuardrail,
    RunAnswer,
    RunFolder,
    RunOut,
    RunPagePort,
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
from poise.counting import counted
from poise.errors import InvalidArgument, MissingExtra

if TYPE_CHECKING:
    from poise.agent import AgentResult, AgentSettings, AgentTool, LiveRunPage, PendingCall
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
    guardrail: ResultGuardrail = None,
    on_injection: InjectionActionOption = "drop",
    approve: ApproveOption = "write,shell",
    page: RunPagePort = None,
    approval_seconds: ApprovalSeconds = 600,
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
    _check_model_choice(model, endpoint, guardrail)
    with contextlib.ExitStack() as opened:
        with working():  # its progress would be drawn over what a person is asked
            from poise.agent import AgentSettings, FolderMemory, ToolsFile, open_tools

            _check_run_folder(out)
            kinds = _approval_kinds(approve)
            settings = AgentSettings(limits=limits, approve=kinds, persona=persona, on_injection=on_injection)
            toolbox = opened.enter_context(open_tools(tools or ToolsFile()))
            chosen = opened.enter_context(_agent_model(model, endpoint, watch or [], out, dtype, device))
            reader = chosen.injection_reader(guardrail) if guardrail else None
            remembering = FolderMemory(memory, reader) if memory else None
        live = opened.enter_context(_live_page(out, page, approval_seconds))
        opened.enter_context(contextlib.redirect_stdout(sys.stderr))
        person, listen = TerminalPerson(answer, live), _listener(live)
        more = {"person": person, "memory": remembering, "reader": reader, "listen": listen}
        result = _run_with_page(goal, chosen, toolbox, out, settings, **more)
    _show_result(result, out, as_json=as_json)
    if result.outcome not in ("done", "answered"):
        raise typer.Exit(1)


def _check_model_choice(model: str | None, endpoint: str | None, guardrail: Path | None) -> None:
    if (model or endpoint) is None:
        raise InvalidArgument("There is no model; name one with `model`, or its server with `endpoint`.")
    if guardrail and endpoint:
        raise InvalidArgument(
            "`guardrail` reads the model's activations, which an `endpoint` does not give; a Poise server reads tools' "
            "results itself, by a guardrail and rules of its own. Name a `model` alone, or leave `guardrail` out."
        )


def _check_run_folder(out: Path) -> None:
    from poise.storage.output import check_output_folder

    if (out / "run.html").exists() and not (out / "steps.jsonl").exists():
        raise InvalidArgument(f"`out` {out} holds a run.html that no agent's run wrote; choose another folder.")
    check_output_folder(out, [], job="agent", run_folder=out)


def _run_with_page(
    goal: str, model: Any, tools: Mapping[str, AgentTool], out: Path, settings: AgentSettings, **more: Any
) -> AgentResult:
    """Run it, and write its page however it ends."""
    from poise.agent import run_agent, write_run_page

    try:
        return run_agent(goal, model, tools, out, settings, **more)
    finally:
        if (out / "steps.jsonl").exists():
            write_run_page(out)


@contextlib.contextmanager
def _live_page(out: Path, port: int | None, seconds: float) -> Iterator[LiveRunPage | None]:
    """The run's page while it goes, where one is asked for."""
    if port is None:
        yield None
        return
    from poise.agent import LiveRunPage

    page = LiveRunPage(out, port=port, seconds=seconds)
    note(f"The run, and what waits for approval: {page.address}")
    try:
        yield page
    finally:
        page.close()


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
) -> Iterator[Any]:
    from poise.agent import EndpointModel, ServedModel

    if endpoint is not None:
        chosen: EndpointModel = EndpointModel(endpoint, model, watch=watch, session=f"agent:{out.resolve()}"[-200:])
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


def _listener(live: LiveRunPage | None) -> Callable[[Mapping[str, Any]], None]:
    """What shows each record, at the terminal and on the page."""

    def listen(row: Mapping[str, Any]) -> None:
        if live:
            live.take(row)
        _show_record(row)

    return listen


class TerminalPerson:
    """Whoever sits at the terminal, or has the run's page open; nobody where there is neither.

    Args:
        reply: What they say to the next question, given beforehand.
        page: The page where calls are decided too; the first word counts.
    """

    def __init__(self, reply: str | None, page: LiveRunPage | None = None) -> None:
        self._reply, self._page = reply, page

    def approves(self, call: PendingCall) -> bool | None:
        """Ask whether a call may be made; anything but a yes is a no."""
        if not _is_interactive():
            if self._page:
                note(f"{call.tool} waits for approval on the page.")
            return self._page.approves(call) if self._page else None
        note(f"\n{call.tool} touches {', '.join(call.touches)}. It would be called with:")
        for name, value in call.arguments.items():
            note(_safe_text(f"  {name}: {value}").replace("\n", "\n    | "))  # no value looks like another argument
        note("Allow this call? [y/N]" + (" Or decide on the page." if self._page else ""))
        if self._page is None:
            return _is_yes(_typed_line())
        decision = self._page.ask(call)
        while not decision.wait(0.2):
            if _has_typed():
                decision.settle(_is_yes(_typed_line()), "the terminal")
        if decision.by != "the terminal":
            words = {True: "Allowed on the page.", False: "Denied on the page.", None: "Nobody decided it in time."}
            note(words[decision.approved])
        return decision.approved

    def answer(self, question: str) -> str | None:
        """Ask a question; an empty line stops the run."""
        reply, self._reply = self._reply, None
        if reply is not None or not _is_interactive():
            return reply
        note(_safe_text(f"\n{question}"))
        note("Your answer (an empty line stops the run):")
        return _typed_line().strip() or None


def _is_yes(line: str) -> bool:
    return line.strip().lower() in ("y", "yes")


def _has_typed() -> bool:
    """Whether a line waits at the terminal; where that cannot be told (Windows), the page decides alone."""
    import select

    with contextlib.suppress(OSError, ValueError):
        return bool(select.select([sys.stdin], [], [], 0)[0])
    return False


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
    used = [(use.answers, "answer"), (use.calls, "call"), (use.prompt_tokens + use.answer_tokens, "token")]
    numbers = ", ".join(counted(number, noun) for number, noun in used)
    note(f"{numbers}, {use.seconds:.1f} s; changes of the plan: {result.revisions}.")
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
    if not as_json:
        _show_replay(page)  # also where the page cannot be written
    with working():
        path = write_run_page(run)
    if as_json:
        facts.print_json({"page": str(path), **asdict(page)})
        return
    note(f"Page: {path}")


def _show_replay(page: AgentPage) -> None:
    typer.echo(_safe_text(f"{page.goal}\n"))
    for step in page.steps:
        mark = {"ok": "✓ ", "bad": "✕ "}.get(step.state, "")
        typer.echo(_safe_text(f"{step.number:4} {step.kind:9} {mark}{step.title}"))
        if step.note:
            typer.echo(_safe_text(f"{'':15}{step.note.partition(chr(10))[0][:200]}"))
    for gauge in page.gauges:
        answers = counted(len(gauge.points), "answer")
        typer.echo(f"{gauge.trait}: {gauge.low:.2f} to {gauge.high:.2f} over {answers}")
    typer.echo(_safe_text(f"\n{page.verdict}: {page.report}"))
