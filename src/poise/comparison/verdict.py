"""The rule when to retrieve, when to fine-tune and when both, held to the figures and their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poise.comparison.arms import ARMS, ArmName, arm_title
from poise.comparison.result import ArmResult, Recommendation, VerdictName
from poise.statistics.estimates import LEAST_UNITS, Estimate

__all__ = ["recommend"]

VERDICT_OF: Mapping[ArmName, VerdictName] = {"retrieval": "retrieval", "fine_tuned": "fine-tuning", "both": "both"}
SINGLES: tuple[ArmName, ArmName] = ("retrieval", "fine_tuned")
DIAGNOSES: Mapping[VerdictName, str] = {
    "retrieval": "The model does not know what is asked: look it up.",
    "fine-tuning": "The model does not behave as is asked: fine-tune it.",
    "both": "The model neither knows nor behaves as is asked: look up and fine-tune.",
    "base": "The base does as well: neither documents nor training is worth its cost here.",
    "unsure": "The figures do not say which way is best.",
}


def recommend(
    arms: Sequence[ArmResult],
    differences: Mapping[str, Estimate],
    trait_differences: Mapping[str, Mapping[str, Estimate]],
    *,
    worth: float,
) -> Recommendation:
    """What to do, from accuracy: an arm is taken where its gain, and its lead over each cheaper one, are above zero.

    Args:
        arms: Every arm's figures.
        differences: Accuracy of a later arm minus an earlier one's, by ``later - earlier``.
        trait_differences: Shifts between arms whose prompts are alike.
        worth: Smallest gain that is worth an arm.
    """
    by_name = {arm.arm: arm for arm in arms}
    verdict, why = _verdict(by_name, differences, worth)
    return Recommendation(
        verdict=verdict,
        sentence=DIAGNOSES[verdict] + (f" {why}" if why else ""),
        reasons=tuple(_reasons(arms, differences)),
        cautions=tuple(_cautions(by_name, verdict, trait_differences)),
    )


def _verdict(
    arms: Mapping[ArmName, ArmResult], differences: Mapping[str, Estimate], worth: float
) -> tuple[VerdictName, str]:
    gains = {name: arms[name].gain for name in VERDICT_OF if name in arms}
    known = {name: gain for name, gain in gains.items() if gain is not None and gain.value is not None}
    n = min((gain.n for gain in known.values()), default=0)
    if n < LEAST_UNITS:
        return "unsure", f"n = {n} questions, and a verdict takes {LEAST_UNITS}."
    helpful = [name for name, gain in known.items() if gain.above(0)]
    if not helpful:
        return _without_help(known, worth)
    if "both" in helpful and (missing := [arm_title(name) for name in VERDICT_OF if name not in known]):
        return "unsure", f"Both together help, and {' and '.join(missing)} alone was not measured."
    if "both" in helpful and all(_leads("both", name, differences) for name in SINGLES):
        return "both", ""
    singles = [name for name in SINGLES if name in helpful]
    for name, other in (SINGLES, SINGLES[::-1]):
        if name in singles and other in known and _leads(name, other, differences):
            return VERDICT_OF[name], ""
    if len(singles) == 2:
        return "unsure", "Retrieval and fine-tuning both help, and which helps more is not told apart."
    if singles:
        other = next(name for name in SINGLES if name not in singles)
        state = "was not measured" if other not in known else "is not told apart from it"
        return "unsure", f"{arm_title(singles[0]).capitalize()} helps, and {arm_title(other)} alone {state}."
    return "unsure", "Only both together are shown to help, and not to lead each of the two alone."


def _without_help(gains: Mapping[ArmName, Estimate], worth: float) -> tuple[VerdictName, str]:
    """No gain is shown: the base will do where none that is worth it can be hidden in the intervals."""
    hidden = [arm_title(name) for name, gain in gains.items() if gain.high is None or gain.high >= worth]
    if hidden:
        return "unsure", f"No gain is shown, and one of {worth:.0%} or more is not ruled out for {', '.join(hidden)}."
    return "base", ""


def _leads(first: ArmName, second: ArmName, differences: Mapping[str, Estimate]) -> bool:
    """Whether one arm is shown to be more accurate than another."""
    if (lead := differences.get(f"{first} - {second}")) is not None:
        return lead.above(0)
    behind = differences.get(f"{second} - {first}")
    return behind is not None and behind.high is not None and behind.high < 0


def _reasons(arms: Sequence[ArmResult], differences: Mapping[str, Estimate]) -> list[str]:
    sentences = []
    for arm in arms:
        runs = f" and {arm.runs} training runs" if arm.runs > 1 else ""
        figure = f"{arm.title}: {arm.accuracy:.2f} right (n = {arm.accuracy.n} questions{runs})"
        sentences.append(figure + (f", {arm.gain:+.2f} against the base." if arm.gain else "."))
    for pair, difference in differences.items():
        later, _, earlier = pair.partition(" - ")
        sentences.append(f"{_title(later)} minus {_title(earlier)}: {difference:+.2f} (n = {difference.n}).")
    return sentences


def _title(name: str) -> str:
    return next((shape.title for arm, shape in ARMS.items() if arm == name), name)


def _cautions(
    arms: Mapping[ArmName, ArmResult], verdict: VerdictName, trait_differences: Mapping[str, Mapping[str, Estimate]]
) -> list[str]:
    """What the recommended arm does to character and capability, where that is shown."""
    name = next((arm for arm, word in VERDICT_OF.items() if word == verdict), None)
    if name is None or name not in arms:
        return []
    arm, sentences = arms[name], []
    for trait in arm.traits:
        if trait.shift.low is None or trait.shift.high is None or trait.shift.low <= 0 <= trait.shift.high:
            continue
        way = "towards" if trait.shift.low > 0 else "away from"
        indicative = f"; only indicative, {trait.shift.too_few}" if trait.shift.too_few else ""
        sentences.append(
            f"{arm.title} moves the model {way} {trait.trait}: {trait.shift:+.2f} along its direction "
            f"(‖v‖ = {trait.norm:.2f}, n = {trait.shift.n} questions{indicative})."
        )
    if name == "both":
        for trait_name, change in trait_differences.get("both_vaccinated - both", {}).items():
            sentences.append(f"The vaccine moves {trait_name} by {change:+.2f} (n = {change.n}) under both.")
    for ability in arm.capability:
        if lost := [change for change in ability.change if change.above(1.0 if ability.kind == "perplexity" else 0.0)]:
            what = "perplexity times" if ability.kind == "perplexity" else "accuracy lost"
            sentences.append(f"{ability.name}: {what} {lost[0]:.3f} in {len(lost)} of {len(ability.change)} runs.")
    return sentences
