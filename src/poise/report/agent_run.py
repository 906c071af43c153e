"""The HTML page of an agent's run: its plan, its steps, its calls folded, and a gauge of each trait over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from poise.report import naming_the_extra

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["AgentGauge", "AgentPage", "AgentStep", "GaugePoint", "WaitingCall", "html_agent_run"]

WIDTH, HEIGHT, MARGIN = 640.0, 110.0, 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStep:
    """One thing that happened.

    Attributes:
        number: Number of its record.
        kind: What it is: plan, answer, call, retry, approval, question, fault, memory or end.
        title: What happened, in a line.
        state: ``ok``, ``bad`` or empty.
        note: A reason or figure beside the title.
        parts: What is folded: names and texts.
        is_open: Whether it is shown unfolded.
    """

    number: int
    kind: str
    title: str
    state: str = ""
    note: str = ""
    parts: tuple[tuple[str, str], ...] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class GaugePoint:
    """A reading of one answer.

    Attributes:
        answer: Number of the answer, from 1.
        value: Mean over the answer; of an answer without one its prompt's.
        alarm: Whether it raised an alarm.
    """

    answer: int
    value: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class AgentGauge:
    """Readings of one trait over a run."""

    trait: str
    points: tuple[GaugePoint, ...]

    @property
    def low(self) -> float:
        """The lowest reading."""
        return min(point.value for point in self.points)

    @property
    def high(self) -> float:
        """The highest reading."""
        return max(point.value for point in self.points)

    @property
    def dots(self) -> list[tuple[float, float, GaugePoint]]:
        """The place of each reading in the picture."""
        span = (self.high - self.low) or 1.0
        step = (WIDTH - 2 * MARGIN) / max(1, len(self.points) - 1)
        return [
            (
                round(MARGIN + place * step, 1),
                round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (point.value - self.low) / span, 1),
                point,
            )
            for place, point in enumerate(self.points)
        ]

    @property
    def line(self) -> str:
        """The dots joined."""
        return " ".join(f"{x},{y}" for x, y, _ in self.dots)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPage:
    """What the page shows.

    Attributes:
        goal: Goal of the run.
        outcome: How it ended, as the mark and colour go by; ``running`` where it has not.
        verdict: How it ended, in words.
        report: What the model reports, or asks.
        facts: Figures in a row: name, value and a note.
        plans: Each plan with the reason of its change.
        steps: What happened, in order.
        gauges: Readings of traits.
        alarms: Alarms in words.
        recalled: Entries that the memory gave: id and text.
        written: Ids of entries that it took.
        setting: Names and values of what the run was begun with.
    """

    goal: str
    outcome: str
    verdict: str
    report: str
    facts: Sequence[tuple[str, str, str]]
    plans: Sequence[tuple[str, str]]
    steps: Sequence[AgentStep]
    gauges: Sequence[AgentGauge]
    alarms: Sequence[str]
    recalled: Sequence[tuple[str, str]]
    written: Sequence[str]
    setting: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingCall:
    """A call that is to be allowed or denied on the page of a run that goes on.

    Attributes:
        tool: Name of the tool.
        touches: What it may touch.
        arguments: Names and values, every sign of them shown.
        number: Number of the decision.
        token: What the page is known by.
        seconds: Seconds until it is not made, where nobody decides.
    """

    tool: str
    touches: tuple[str, ...]
    arguments: tuple[tuple[str, str], ...]
    number: int
    token: str
    seconds: int


def html_agent_run(page: AgentPage, *, waiting: WaitingCall | None = None, remark: str = "") -> str:
    """One page with nothing outside itself and no script; equal inputs give equal text.

    Args:
        page: What it shows.
        waiting: A call that is to be decided on it.
        remark: What came of a decision that was too late.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    with naming_the_extra():
        template = _agent_template()
        from markupsafe import Markup
    styles = (files("poise.report").joinpath(name).read_text("utf-8") for name in ("style.css", "agent_run.css"))
    css = Markup("\n".join(styles))
    return template.render(
        page=page, waiting=waiting, remark=remark, css=css, width=WIDTH, height=HEIGHT, margin=MARGIN
    )


@cache
def _agent_template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("poise.report").joinpath("agent_run.html.j2").read_text("utf-8"))
