"""A run's records as its page, without a model and without a tool."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from poise.agent.call_runner import call_text
from poise.agent.records import read_records, records_of
from poise.counting import counted
from poise.errors import InvalidRun, first_line
from poise.knowledge.instructions import instruction_marks
from poise.report.agent_run import AgentGauge, AgentPage, AgentStep, GaugePoint, html_agent_run
from poise.storage.atomic_write import saving

__all__ = ["PAGE_FILE", "page_of_records", "replay_run", "run_lines", "write_run_page"]

PAGE_FILE = "run.html"
MOST_TITLE_CALLS = 8  # of an answer in its title
MOST_PAGE_TEXT = 20_000  # characters of one output or argument on the page; the records have all of it
RUN_VERDICTS = {
    "done": "done",
    "answered": "answered in words, not reported as done",
    "impossible": "reported as impossible",
    "asks": "stopped with a question",
    "limit": "stopped at a limit",
    "running": "not at an end",
}


def replay_run(folder: Path) -> AgentPage:
    """What a run's page shows, from its records alone.

    Raises:
        InvalidRun: the folder holds no run.
    """
    return page_of_records(read_records(folder))


def page_of_records(rows: Sequence[Mapping[str, Any]]) -> AgentPage:
    """What the page of a run shows that has these records.

    Raises:
        InvalidRun: a record lacks what its kind has.
    """
    try:
        return _agent_page(rows)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidRun(
            f"A record of the run lacks what its kind has ({first_line(error)}): its file is damaged, or of another "
            "version. Put a copy of it back."
        ) from error


def _agent_page(rows: Sequence[Mapping[str, Any]]) -> AgentPage:
    begin, last = rows[0], rows[-1]
    ending = next((row for row in reversed(rows) if row["kind"] in ("end", "pause")), None)
    is_over = ending is not None and (ending["kind"] == "end" or ending is last)
    outcome = str(ending["outcome"]) if ending and is_over else "running"
    answers = list(records_of(rows, "model"))
    return AgentPage(
        goal=str(begin["goal"]),
        outcome=outcome,
        verdict=RUN_VERDICTS[outcome],
        report=str(ending["report"]) if ending and is_over else "",
        facts=_run_figures(rows, answers),
        plans=[(str(row["reason"]), str(row["text"])) for row in records_of(rows, "plan")],
        steps=list(_page_steps(rows)),
        gauges=_gauges(answers),
        alarms=[text for number, row in enumerate(answers, 1) for text in _alarm_texts(number, row["alarms"])],
        recalled=[(str(i), str(text)) for row in records_of(rows, "recall") for i, text in row["entries"]],
        written=[str(i) for row in records_of(rows, "remembered") for i in row["ids"]],
        setting=_setting(begin),
    )


def write_run_page(folder: Path) -> Path:
    """Write a run's page beside its records; its path.

    Raises:
        InvalidRun: the folder holds no run.
        SaveFailed: the disk refused.
    """
    text = html_agent_run(replay_run(folder))
    with saving(folder / PAGE_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return folder / PAGE_FILE


def _run_figures(rows: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    results = list(records_of(rows, "result"))
    failed = sum(not row["ok"] for row in results)
    tokens = sum(row["prompt_tokens"] + row["answer_tokens"] for row in answers)
    written = sum(row["answer_tokens"] for row in answers)
    seconds = sum(row["seconds"] for row in (*answers, *results))
    changes = sum(bool(row["reason"]) for row in records_of(rows, "plan"))
    return [
        ("Answers of the model", f"{len(answers):,}", f"plan changed {counted(changes, 'time')}"),
        ("Calls of tools", f"{len(results):,}", f"{failed} failed"),
        ("Tokens", f"{tokens:,}", f"{written:,} of them written"),
        ("Time", f"{seconds:.1f} s", "of work, waiting for people not counted"),
    ]


def _setting(begin: Mapping[str, Any]) -> list[tuple[str, str]]:
    limits = {name: value for name, value in begin["limits"].items() if value not in (None, 0.0)}
    tools = [f"{name} ({', '.join(touches) or 'touches nothing'})" for name, touches in begin["offered"].items()]
    return [
        ("Begun", datetime.fromtimestamp(begin["at"], UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("Model", str(begin["model"])),
        ("Tools", ", ".join(tools) or "none"),
        ("Needs approval", ", ".join(begin["approve"]) or "nothing"),
        ("Limits", ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in limits.items())),
    ]


def _gauges(answers: Sequence[Mapping[str, Any]]) -> list[AgentGauge]:
    points: dict[str, list[GaugePoint]] = {}
    for number, row in enumerate(answers, 1):
        alarmed = {str(alarm.get("trait") or alarm.get("vector") or alarm.get("name")) for alarm in row["alarms"]}
        for trait, values in row["readings"].items():
            value = values.get("mean") if values.get("mean") is not None else values.get("prompt")
            if value is not None:
                points.setdefault(trait, []).append(GaugePoint(number, float(value), trait in alarmed))
    return [AgentGauge(trait, tuple(readings)) for trait, readings in points.items()]


def _alarm_texts(number: int, alarms: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for alarm in alarms:
        words = ", ".join(f"{name} {value}" for name, value in alarm.items() if value is not None)
        yield f"answer {number}: {words}"


def _page_steps(rows: Sequence[Mapping[str, Any]]) -> Iterator[AgentStep]:
    """The steps in order; a call and its result are one."""
    for number, row in enumerate(rows, 1):
        match row["kind"]:
            case "plan":
                title = "The plan was changed" if row["reason"] else "A plan was written"
                yield AgentStep(
                    number=number, kind="plan", title=title, note=row["reason"], parts=(("Plan", row["text"]),)
                )
            case "model" if row["purpose"] == "act":
                yield _answer_step(number, row)
            case "intent":
                following = next((later for later in rows[number:] if later["kind"] in ("result", "intent")), None)
                yield _call_step(number, row, following if following and following["kind"] == "result" else None)
            case "approval":
                title = f"{call_text(row['tool'], row['arguments'])}: {row['decision']}"
                state = "ok" if row["decision"] == "approved" else "bad"
                yield AgentStep(
                    number=number,
                    kind="approval",
                    title=title,
                    state=state,
                    note=f"touches {', '.join(row['touches'])}",
                )
            case "rejected":
                yield AgentStep(
                    number=number,
                    kind="call",
                    title=row["tool"],
                    state="bad",
                    note=row["reason"],
                    parts=(("Arguments", shortened_text(row["arguments"])),),
                )
            case "left_out":
                yield AgentStep(number=number, kind="call", title=_left_out_text(row), state="bad")
            case "retry":
                yield AgentStep(number=number, kind="retry", title="Once more", note=row["reason"])
            case "fault":
                yield AgentStep(number=number, kind="fault", title="The model did not answer", note=row["reason"])
            case "answer" | "in_flight":
                yield AgentStep(number=number, kind="question", title=row["question"], note=f"Answer: {row['reply']}")
            case "reading" if row["flagged"]:
                title, note = f"{row['tool']} gave what seems to hold instructions", _reading_note(row)
                yield AgentStep(number=number, kind="guardrail", title=title, state="bad", note=note)
            case "recall":
                title = f"Recalled: {counted(len(row['entries']), 'entry', 'entries')}"
                flagged = [f"{key} seems to hold instructions ({_reading_note(facts)})" for key, facts in _flagged(row)]
                yield AgentStep(number=number, kind="memory", title=title, note="; ".join(flagged))
            case "remembered":
                yield AgentStep(
                    number=number,
                    kind="memory",
                    title=f"Written: {counted(len(row['ids']), 'entry', 'entries')}",
                )
            case "pause" | "end":
                yield AgentStep(number=number, kind="end", title=RUN_VERDICTS[row["outcome"]], note=row["report"])


def _left_out_text(row: Mapping[str, Any]) -> str:
    return f"{row['asked']:,} calls in one answer: the first {row['made']:,} are made, the others are left out"


def _flagged(row: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, Any]]]:
    return [(str(key), facts) for key, facts in row.get("flagged") or ()]


def _reading_note(row: Mapping[str, Any]) -> str:
    """What a guardrail read, and what was done."""
    done = {"note": "noted", "drop": "left out", "ask": "asked about"}[row["action"]]
    if "score" not in row:
        return f"{done}: {row.get('problem', 'it was not read')}"
    return f"{done}: {row['score']:+.2f} by the guardrail {row['guardrail']}, above {row['threshold']:+.2f}"


def _answer_step(number: int, row: Mapping[str, Any]) -> AgentStep:
    names = [str(call["name"]) for call in row["calls"]]
    more = f" and {len(names) - MOST_TITLE_CALLS:,} more" if len(names) > MOST_TITLE_CALLS else ""
    calls = ", ".join(names[:MOST_TITLE_CALLS]) + more
    title = f"The model calls {calls}" if calls else "The model answers in words"
    note = f"{row['prompt_tokens']:,} + {row['answer_tokens']:,} tokens, {row['seconds']:.1f} s"
    note += "; cut at its longest" if row["cut"] else ""
    parts = (("Words", shortened_text(row["text"])),) if row["text"].strip() else ()
    return AgentStep(number=number, kind="answer", title=title, note=note, parts=parts)


def _call_step(number: int, intent: Mapping[str, Any], result: Mapping[str, Any] | None) -> AgentStep:
    arguments = shortened_text(json.dumps(intent["arguments"], ensure_ascii=False, indent=1))
    title, parts = call_text(intent["tool"], intent["arguments"]), (("Arguments", arguments),)
    if result is None:
        return AgentStep(number=number, kind="call", title=title, note="no result is on record", parts=parts)
    marks = instruction_marks(result["output"])
    note = f"{result['seconds']:.1f} s, {len(result['output']):,} characters"
    note += f"; reads as an instruction: {', '.join(marks)}" if marks else ""
    return AgentStep(
        number=number,
        kind="call",
        title=title,
        state="ok" if result["ok"] else "bad",
        note=note,
        parts=(*parts, ("Output", shortened_text(result["output"]))),
    )


def shortened_text(text: str) -> str:
    """A text as a page shows it."""
    if len(text) <= MOST_PAGE_TEXT:
        return text
    return f"{text[:MOST_PAGE_TEXT]}\n… {len(text) - MOST_PAGE_TEXT:,} more characters are in the run's records"


def run_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """A record in a line or none, as somebody who watches a run reads it."""
    match row["kind"]:
        case "plan":
            yield f"plan{' (changed: ' + row['reason'] + ')' if row['reason'] else ''}\n{row['text']}"
        case "intent":
            yield call_text(row["tool"], row["arguments"])
        case "result":
            first = row["output"].strip().partition("\n")[0][:160]
            yield f"  {'' if row['ok'] else 'failed: '}{first}"
        case "left_out":
            yield _left_out_text(row)
        case "rejected":
            yield f"{row['tool']}: {row['reason']}"
        case "reading" if row["flagged"]:
            yield f"  guardrail: {row['tool']} gave what seems to hold instructions; {_reading_note(row)}"
        case "retry" | "fault":
            yield f"{row['kind']}: {row['reason']}"
        case "approval" if row["decision"] != "approved":
            yield f"{row['tool']}: {row['decision']} (touches {', '.join(row['touches'])})"
