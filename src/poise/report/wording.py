"""Numbers and sentences of a report: every figure with its interval and n, and what is missing in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poise.screen.summary import ScreeningSummary
    from poise.statistics.estimates import Estimate
    from poise.validate.certificate import Certificate, CombinedSteering, JudgeFacts, Monitoring, Point, RandomSearch
    from poise.vector import Header

__all__ = [
    "beside",
    "chosen",
    "dose",
    "figure",
    "headline",
    "interval",
    "limits",
    "meaning",
    "mirrored",
    "monitored",
    "moved",
    "number",
    "plain",
    "promised_rate",
    "told",
    "unusable",
]

MISSING = "–"


def number(value: float | None, digits: int = 1, *, signed: bool = False) -> str:
    """A number with a true minus sign; ``–`` where there is none."""
    if value is None:
        return MISSING
    rounded = round(value, digits) + 0.0  # + 0.0: no minus before a zero
    return f"{rounded:{'+' if signed and rounded else ''}.{digits}f}".replace("-", "−")


def dose(value: float, *, signed: bool = False) -> str:
    """A dose as per cent of the mean activation norm, as ``--steer`` takes it: ``30%``."""
    return f"{number(100 * value, 0, signed=signed)}%"


def interval(figure: Estimate, digits: int = 1, *, signed: bool = False) -> str:
    """``[low, high]``, or the words for its absence."""
    if figure.value is None:
        return "not measured"
    if figure.low is None or figure.high is None:
        return "no interval"
    return f"[{number(figure.low, digits, signed=signed)}, {number(figure.high, digits, signed=signed)}]"


def figure(figure: Estimate, digits: int = 1, *, signed: bool = False) -> str:
    """``31.2 [24.1, 38.0]``; an absent part is said in brackets."""
    span = interval(figure, digits, signed=signed)
    return f"{number(figure.value, digits, signed=signed)} {span if span.startswith('[') else f'({span})'}"


def headline(certificate: Certificate) -> str:
    """The verdict in one or two plain sentences: how far the score rises beside random directions, or what failed."""
    if certificate.verdict == "induced":
        return f"induced: {moved(certificate)}"
    sentence, verdict = moved(certificate), certificate.verdict.replace("-", " ")
    return f"{verdict}: {'; '.join(certificate.reasons)}. {sentence[0].upper()}{sentence[1:]}"


def moved(certificate: Certificate) -> str:
    """What steering did at the chosen dose, beside what random directions did."""
    where = f"at layer {certificate.layer} of {certificate.layers} and dose {dose(certificate.dose)}"
    rise = certificate.rise
    if rise.value is None:
        return f"{where} no change of the trait score could be measured (n = {rise.n} questions)."
    random = certificate.random.rise
    beside = "random directions were not measured" if random.value is None else f"random directions by {figure(random)}"
    return f"{where} the trait score {_change(rise)} points (n = {rise.n} questions); {beside}."


def _change(rise: Estimate) -> str:
    """``rises by …`` or, where it does not, ``changes by …``."""
    return f"{'rises' if (rise.value or 0) > 0 else 'changes'} by {figure(rise)}"


def searched(search: RandomSearch) -> str:
    """What random directions did that chose layer and dose for themselves."""
    highest = "none with coherent text" if search.highest is None else f"the highest rose by {number(search.highest)}"
    return (
        f"{len(search.rises)} random directions; {highest}, {search.as_high} as far as the vector (p = {search.p:.3f})"
    )


def chosen(certificate: Certificate) -> Point | None:
    """The point of the curve at the chosen dose."""
    return _at(certificate.curve, certificate.dose)


def mirrored(certificate: Certificate) -> Point | None:
    """The point of the curve at minus the chosen dose."""
    return _at(certificate.curve, -certificate.dose)


def plain(certificate: Certificate) -> Point | None:
    """The unsteered point of the curve."""
    return _at(certificate.curve, 0.0)


def _at(points: Sequence[Point], wanted: float) -> Point | None:
    return next((p for p in points if abs(p.dose - wanted) < 5e-4), None)


def unusable(judge: JudgeFacts) -> str:
    """Why no score of an unusable judge counts; old certificates do not say."""
    return judge.why_unusable or f"the judge “{judge.name}” did not show that it can tell the two sides apart"


def meaning(header: Header, certificate: Certificate) -> tuple[str, str]:
    """What the verdict means, and what it does not, each a paragraph for somebody new to the subject."""
    trait, model, judge = header.trait.adjective, header.model.name, certificate.judge.name
    if certificate.verdict == "induced":
        return (
            f"Adding this direction to the activations of {model} while it writes makes its answers more {trait}, as "
            f"the judge “{judge}” scores them. The score rises with the dose and rises more than along random "
            "directions of the same length, and coherence stays above the floor. This was measured on "
            f"{len(certificate.questions)} questions that neither extraction nor the choice of layer and dose had "
            "seen.",
            f"It does not mean that the model is {trait} when left alone, that the direction holds this trait and "
            "nothing else, or that the effect carries over to other models, other languages or long conversations.",
        )
    if certificate.verdict == "indicative":
        return (
            f"Nothing that was measured speaks against it: steering {model} along this direction raised the score of "
            f"“{judge}”. The evidence is too thin for a verdict, for the reasons given above.",
            f"It does not mean that the direction is “{trait}”: so few questions or random directions can look so by "
            "luck. Validate with more before you rely on it.",
        )
    means = (
        f"Steering {model} along this direction did not pass every check, for the reasons given above. Until it does, "
        f"the direction is not shown to be “{trait}”: do not rely on it to steer or to watch that trait."
    )
    if not certificate.judge.usable:
        why = unusable(certificate.judge)
        means += f" {why[0].upper()}{why[1:]}, so the trait scores on this page say nothing, for or against."
    return (
        means,
        f"It does not mean that {model} cannot be {trait}, or that the direction is noise. Another source of contrast, "
        "more exemplars or questions, or another judge may still show it. The figures below help to see what is wrong.",
    )


def monitored(of: Monitoring) -> str:
    """How a prompt's reading goes with the answers, beside random directions; or that it is not shown to."""
    chosen = of.of_prompts
    if of.ladder == "system-prompts":
        ladder = f"{len(of.rungs)} system prompts"
    else:
        ladder = f"{len(of.rungs)} lengths of history"
    if of.obeys is not None and of.ladder != "system-prompts":
        ladder += f" (system prompts are ignored: Spearman of prompt and score {figure(of.obeys, 2)})"
    if chosen.overall.value is None:
        return f"No correlation of prompt readings and trait scores could be had over {ladder}."
    shown = "goes with" if (chosen.overall.low or 0) > 0 else "is not shown to go with"
    if chosen.overall.too_few:
        shown = f"is only indicative ({chosen.overall.too_few}) of"
    return (
        f"At layer {of.layer} the reading of the prompt's last token {shown} the trait score of the answers: "
        f"r = {figure(chosen.overall, 2)} over {ladder} and n = {chosen.overall.n} questions, "
        f"{figure(chosen.within, 2)} within one rung. Random directions reach |r| {figure(of.random_overall, 2)} and "
        f"{figure(of.random_within, 2)}."
    )


def told(of: Monitoring) -> str:
    """How far readings of finished answers tell exemplars apart, beside their lengths."""
    chosen = of.of_answers
    if chosen is None or chosen.auc_mean is None or chosen.auc_peak is None or of.auc_length is None:
        return "– Readings of answers were not tested: there are no exemplars that the extraction did not see."
    return (
        f"At layer {of.answer_layer} an answer's mean reading tells held-out exemplars with the trait from those "
        f"without it: AUC {figure(chosen.auc_mean, 2)} (n = {chosen.auc_mean.n} pairs); its highest token, "
        f"{figure(chosen.auc_peak, 2)}; length alone, {figure(of.auc_length, 2)}."
    )


def beside(of: CombinedSteering, trait: str) -> str:
    """What each of two traits, and the text, loses in the other's company."""
    said = []
    alone = [figure(row.coherence) for row in of.conditions if row.first_lost is None]
    for row in of.conditions:
        if row.first_lost is not None and row.second_lost is not None:
            name = {"plain sum": "as a plain sum", "orthogonal": "made orthogonal"}[row.name]
            losses = f"{trait} {_lost(row.first_lost)} and {of.other} {_lost(row.second_lost)}"
            said.append(f"{name}, {losses}, at coherence {figure(row.coherence)}")
    return f"Steering by both, against each alone: {'; '.join(said)}. Alone, coherence is {' and '.join(alone)}."


def _lost(points: Estimate) -> str:
    """``loses 3.1 [1.0, 5.2] points``; a change of few questions or around 0 is not called a loss."""
    if (
        points.too_few
        or points.value is None
        or points.low is None
        or points.high is None
        or points.low <= 0 <= points.high
    ):
        return f"changes by {figure(_negative(points), signed=True)} points"
    return f"loses {figure(points)} points" if points.value > 0 else f"gains {figure(_negative(points))} points"


def _negative(points: Estimate) -> Estimate:
    value, low, high = (None if x is None else -x for x in (points.value, points.high, points.low))
    return points.model_copy(update={"value": value, "low": low, "high": high})


def limits(header: Header, certificate: Certificate) -> list[str]:
    """What the figures cannot say, each a sentence or two."""
    c = certificate
    return [
        f"The trait is what “{c.judge.name}” scores, which is not always what a person would say.",
        f"Intervals are 95 % ones over {len(c.questions)} questions. They cover which questions were asked, not "
        "the judge's own errors, and are not corrected for how many are shown.",
        f"Every answer is a single turn of at most {c.max_new_tokens} tokens, sampled {_times(c.rollouts)} a question "
        f"at temperature {c.temperature:g}. Longer talk was not tried.",
        f"Steering acts at one layer, found on {len(c.selected_on)} other questions. Doses outside those shown were "
        "not tried.",
        "Coherence says how well-formed the text is, not whether it is true, helpful or safe. General ability was not "
        "measured.",
        "Only this trait was scored. A direction can carry its neighbours along, and traits that overlap share "
        "directions.",
        f"The random control is {c.random.draws} directions; a rarer one could do more.",
        f"The vector belongs to {header.model.name} with the fingerprint given above; nothing here was measured on its "
        "fine-tunes, adapters and quantised copies.",
    ]


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n} times")


def promised_rate(summary: ScreeningSummary) -> str:
    """What the rate is a share of, and how sure it is."""
    rate = summary.rate
    if rate is None:
        return ""
    interval = f"95\N{NO-BREAK SPACE}%: {number(100 * rate.low)} to {number(100 * rate.high)}"
    unit = rate.unit
    itself = f"{rate.normal_rows_reaching:,} of the {rate.normal_rows:,} normal {unit}s reach a threshold themselves."
    if rate.expected is not None:
        return (
            f"Of {unit}s like the normal ones {number(100 * rate.expected)}\N{NO-BREAK SPACE}% are flagged by chance "
            f"({interval}): the rate of {number(100 * rate.rate)}\N{NO-BREAK SPACE}% is a share of {unit}s, over all "
            f"{'answers' if unit == 'row' else 'pairs'} and traits. {itself}"
        )
    return (
        f"The rate of {number(100 * rate.rate)}\N{NO-BREAK SPACE}% is a share of normal answers, for each trait and "
        f"length alone ({interval}); rows with several answers, read for several traits, are flagged more often. "
        f"{itself}"
    )
