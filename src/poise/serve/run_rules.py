"""Rules for runs that cannot be kept, found before the server listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from poise.errors import UserError
from poise.serve.policy import Policy
from poise.serve.run_following import drift_chart, hold_of
from poise.serve.vector_registry import WatchedVector
from poise.settings.other_names import Place
from poise.steer import Steering

__all__ = ["plan_faults", "run_rule_faults"]

MAKE_CHART = "give it a `chart`, as `poise.monitor.fit_run_chart` makes it of ordinary runs"


def run_rule_faults(watched: WatchedVector, rules: Policy) -> Iterator[tuple[str, str]]:
    """Of the rule about one vector: the field, and what is wrong with it."""
    if rules.runs is None:
        return
    rule, part = rules.runs.traits[watched.name], rules.part_of(watched.name)
    if drift_chart(watched, rule, part) is None:
        has = "" if rule.side == "below" else ", and its file has none for what is read here (see `poise calibrate`)"
        yield "chart", f"is not given{has}; {MAKE_CHART}"
    elif rule.on_drift in ("cap", "floor") and hold_of(watched, rule, part) is None:
        yield "level", f"is not given, and {watched.name} is read with a detector, which no {rule.on_drift} works along"


def plan_faults(
    rules: Policy, entries: Mapping[str, WatchedVector], check_steering: Callable[[Steering], None]
) -> Iterator[tuple[Place, str]]:
    """Of the plan: the field, and why its steering cannot be done."""
    vectors = {name: watched.vector for name, watched in entries.items()}
    for number, stage in enumerate(rules.runs.plan if rules.runs else ()):
        steer = "; ".join(text for text in (rules.steer, stage.steer) if text)
        try:
            check_steering(rules.model_copy(update={"steer": steer}).steering(None, vectors).steering)
        except UserError as error:
            yield ("runs", "plan", number, "steer"), f"is {stage.steer!r}: {str(error).removesuffix('.')}"
