"""``poise guardrail reason``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise.cli.options import Device, Dtype
from poise.cli.work import load_model, note, working
from poise.errors import InvalidArgument, InvalidStatement

if TYPE_CHECKING:
    from poise.reasoning import FactWriter, PolicyReasoner, ReasoningFinding

__all__ = ["reason_command"]


def reason_command(
    policy: Annotated[Path, typer.Argument(metavar="POLICY.yaml", dir_okay=False, help="Typed variables and rules.")],
    claim: Annotated[
        list[str] | None, typer.Option("--claim", metavar="EXPR", help="What an answer claims; may be repeated.")
    ] = None,
    premise: Annotated[
        list[str] | None, typer.Option("--premise", metavar="EXPR", help="What it takes for given; may be repeated.")
    ] = None,
    question: Annotated[str, typer.Option("--question", metavar="TEXT", help="What was asked, for --answer.")] = "",
    answer: Annotated[
        str, typer.Option("--answer", metavar="TEXT", help="An answer, which --translator turns into claims.")
    ] = "",
    translator: Annotated[
        str, typer.Option("--translator", metavar="M", help="A model, or endpoint:NAME (OPENAI_BASE_URL).")
    ] = "",
    translations: Annotated[
        int, typer.Option("--translations", metavar="N", min=1, max=10, help="How often it translates.")
    ] = 2,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Say what a policy's rules say of an answer, as JSON; without one, what is wrong with the policy."""
    from poise.cli import facts

    if answer and (claim or premise):
        raise InvalidArgument("`answer` is translated, and `claim` and `premise` are translations; give one of these.")
    if bool(answer) != bool(translator):
        raise InvalidArgument("`answer` needs a `translator`, and a `translator` needs an `answer`; give both.")
    if premise and not claim:
        raise InvalidArgument("`premise` is what a `claim` follows from; give a claim too.")
    finding: ReasoningFinding | None = None
    with working():
        from poise.reasoning import PolicyReasoner, check_answer, lint_policy, load_policy

        read = load_policy(policy)
        remarks = lint_policy(read)
        reasoner = PolicyReasoner(read)
        for sentence in remarks:
            note(sentence)
        if answer:
            write = _writer(translator, dtype, device)
            finding = check_answer(reasoner, question, answer, write, translations=translations)
        elif claim:
            finding = _of_claims(reasoner, premise or [], claim)
    result: dict[str, Any] = (
        asdict(finding) if finding else {"rules": len(read.rules), "variables": len(read.variables)}
    )
    facts.print_json({"policy": read.name, **result, "remarks": remarks})


def _of_claims(reasoner: PolicyReasoner, premises: list[str], claims: list[str]) -> ReasoningFinding:
    from poise.reasoning import Translation

    try:
        return reasoner.check(Translation(premises=tuple(premises), claims=tuple(claims)))
    except InvalidStatement as fault:
        raise InvalidArgument(f"A statement {fault}.") from fault


def _writer(translator: str, dtype: Any, device: str) -> FactWriter:
    from poise.reasoning import EndpointFactWriter, LocalFactWriter

    kind, _, name = translator.partition(":")
    if kind == "endpoint":
        if not name:
            raise InvalidArgument("`translator` is 'endpoint:' without a name; write endpoint:NAME.")
        return EndpointFactWriter(name)
    return LocalFactWriter(load_model(translator, dtype, device))
