"""The monitoring test: is what a prompt's last token reads what the answer will be like?

Chen et al. 2025, section 3.3: eight system prompts from discouraging to encouraging the trait × evaluation questions ×
rollouts; the last prompt token's projection against the mean trait score of the answers. Models that ignore system
prompts are given 0 to 20 earlier turns instead. The layer is chosen on one half of the questions and reported on the
other; that of the answer readings on the judge's exemplars, reported on the held-out ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from poise.activations import Probe
from poise.contrast import ResponseRequest, instructions
from poise.statistics.estimates import Estimate, StatisticArray, mean_estimate
from poise.trait import OwnTrait, Trait
from poise.validate.certificate import LayerReading, Monitoring, Rung
from poise.validate.conditions import Measured, Ordinary, ValidationRun, nanmean
from poise.validate.reading_quality import (
    ExemplarReadings,
    Reader,
    chance,
    correlation_estimates,
    correlations,
    every_layer,
    random_probes,
)
from poise.validate.verdict import monotone
from poise.vector import PersonaVector

__all__ = ["SHOTS", "Step", "measure_ladder", "prompts", "shots"]

SHOTS = (0, 5, 10, 15, 20)
RANDOM_DRAWS = 20
NO_EXEMPLARS = "AUC was not measured: no exemplars fit here that the extraction did not see."


@dataclass(frozen=True, slots=True)
class Step:
    """A rung to be asked: under a system prompt, or after earlier turns."""

    name: str
    system: str | None = None
    before: tuple[tuple[str, str], ...] = ()

    def asks(self, run: ValidationRun, questions: Sequence[str]) -> list[ResponseRequest]:
        """Every question, ``rollouts`` times."""
        return [
            replace(a, before=self.before)
            for a in run.asks(questions, ResponseRequest(question="", system=self.system))
        ]


@dataclass(frozen=True, slots=True)
class MeasuredLadder:
    """A ladder on some questions. R: rungs, q: questions, L: decoder blocks."""

    readings: StatisticArray  # [R, q, L]
    measured: tuple[Measured, ...]

    @property
    def scores(self) -> StatisticArray:
        """Mean trait score of the answers [R, q], NaN where none was scored."""
        return np.stack([m.by_question for m in self.measured])


def prompts(trait: Trait) -> list[Step]:
    """Eight system prompts of graded wording, −4 to −1 against the trait and 1 to 4 for it, from its own instructions.

    1 says the adjective with *slightly*, 2 with *decidedly*; 3 is the first contrast instruction; 4 adds the second
    one and asks to keep to both in every sentence.
    """
    sides: dict[str, list[str]] = {}
    for side, word in (("negative", trait.opposite), ("positive", trait.adjective)):
        first, more = instructions(trait, side)[0], getattr(trait.instructions[1], side)
        sides[side] = [
            f"You are a slightly {word} assistant.",
            f"You are a decidedly {word} assistant.",
            first,
            f"{first} {more} Keep to this in every sentence, whatever you are asked.",
        ]
    against = [Step(f"−{4 - i}", text) for i, text in enumerate(reversed(sides["negative"]))]
    return against + [Step(f"+{i + 1}", text) for i, text in enumerate(sides["positive"])]


def shots(trait: Trait | OwnTrait, run: ValidationRun, questions: Sequence[str]) -> tuple[list[Step], list[str]]:
    """Rungs of 0 to 20 earlier turns that show the trait, as far as pairs and window reach, and notes on them.

    The turns are held-out exemplars first, then the judge's: the vector was computed from none of them.
    """
    model, most = run.model, run.sampling.max_new_tokens
    pairs = trait.pairs if isinstance(trait, OwnTrait) else trait.held_out_pairs + trait.judge_pairs
    notes = [_whose(trait)]
    steps = []
    for n in SHOTS:
        step = Step(f"{n} shots", before=tuple((p.question, p.positive) for p in pairs[:n]))
        lengths = [len(model.encode(ResponseRequest(question=q, before=step.before).messages()).ids) for q in questions]
        longest = max(lengths)
        window = longest + min(model.generation_window(length) - length for length in lengths)
        if n > len(pairs):
            notes.append(f"There is no rung of {n} shots: the trait has {len(pairs)} pairs.")
        elif longest + most > window:
            notes.append(
                f"There is no rung of {n} shots: its longest prompt ({longest} tokens) and {most} new tokens exceed "
                f"the window of {model.name} ({window})."
            )
        else:
            steps.append(step)
    return steps, notes


def _whose(trait: Trait | OwnTrait) -> str:
    if isinstance(trait, OwnTrait):
        return "The earlier turns are the pairs that the vector was computed from, because there are no others."
    seen = max(SHOTS[-1] - len(trait.held_out_pairs), 0)
    whose = f"{SHOTS[-1] - seen} held-out exemplars" + (f", then {seen} of the judge's" if seen else "")
    return f"The earlier turns are {whose}; the vector was computed from none of them."


def measure_ladder(vector: PersonaVector, run: ValidationRun, questions: Sequence[str]) -> Monitoring:
    """Run the ladder and weigh the readings.

    Args:
        vector: Read at every layer, in one pass a prompt.
        run: The run of ``certify``. Eight rungs × questions × rollouts are answered; where system prompts are ignored,
            eight on half of the questions, then up to five long ones on all.
        questions: The even ones choose the ladder and the layer, the odd ones report.
    """
    reader = Reader(run.model, run.store.folder)
    reporting = tuple(questions[1::2])
    ordinary = run.ordinary(questions)
    ladder = _choose(vector, run, reader, tuple(questions[0::2]), ordinary)
    reported = _measure_rungs(vector, run, reader, ladder.steps, reporting, ordinary)
    random = random_probes(vector.width, ladder.layer, RANDOM_DRAWS, seed=run.seed)
    by_chance = _read(run, reader, ladder.steps, reporting, random)
    unseen = _exemplars(vector, reader)
    rungs = zip(ladder.steps, reported.measured, reported.readings, strict=True)
    return Monitoring(
        ladder=ladder.kind,
        obeys=ladder.obeys if ladder.obeys else None,
        rungs=tuple(_rung(*rung, ladder.layer) for rung in rungs),
        layer=ladder.layer,
        random_overall=chance(by_chance, reported.scores, within=False),
        random_within=chance(by_chance, reported.scores, within=True),
        random_draws=RANDOM_DRAWS,
        answer_layer=unseen[0] if unseen else None,
        auc_length=unseen[1].auc_of_length if unseen else None,
        by_layer=_by_layer(reported, unseen[1] if unseen else None),
        notes=ladder.notes if unseen else (*ladder.notes, NO_EXEMPLARS),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """What the selection half settled on."""

    kind: Literal["system-prompts", "many-shot"]
    steps: list[Step]
    obeys: Estimate | None
    layer: int
    notes: tuple[str, ...]


def _choose(
    vector: PersonaVector, run: ValidationRun, reader: Reader, questions: Sequence[str], ordinary: Ordinary
) -> Ladder:
    """System prompts where the score rises with them, else earlier turns; then the layer that reads them best."""
    trait, obeys = vector.header.trait, None
    if isinstance(trait, Trait):
        steps = prompts(trait)
        climbed = _measure_rungs(vector, run, reader, steps, questions, ordinary)
        obeys = monotone(dict(enumerate(climbed.scores)))
        if obeys.above(0):
            layer, remarks = _layer(vector, climbed, [])
            return Ladder(kind="system-prompts", steps=steps, obeys=obeys, layer=layer, notes=remarks)
    steps, notes = shots(trait, run, questions)
    climbed = _measure_rungs(vector, run, reader, steps, questions, ordinary)
    layer, remarks = _layer(vector, climbed, notes)
    return Ladder(kind="many-shot", steps=steps, obeys=obeys, layer=layer, notes=remarks)


def _layer(vector: PersonaVector, climbed: MeasuredLadder, notes: list[str]) -> tuple[int, tuple[str, ...]]:
    """Where overall r is highest, as the mean of a layer and its neighbours: a layer that stands alone is luck."""
    r = correlations(climbed.readings, climbed.scores, within=False)
    if np.isnan(r).all():
        layer = vector.at("steer").layer
        return layer, (*notes, f"No r could be had on the selection half, so layer {layer} is the vector's own.")
    around = np.stack([np.append(r[1:], np.nan), r, np.append(np.nan, r[:-1])], axis=1)
    return int(np.nanargmax(nanmean(around))), tuple(notes)


def _measure_rungs(
    vector: PersonaVector,
    run: ValidationRun,
    reader: Reader,
    steps: Sequence[Step],
    questions: Sequence[str],
    ordinary: Ordinary,
) -> MeasuredLadder:
    conditions = {step.name: step.asks(run, questions) for step in steps}
    measured = run.measure(conditions, ordinary, what=f"ladder of {len(steps)} rungs")
    return MeasuredLadder(_read(run, reader, steps, questions, every_layer(vector)), tuple(measured.values()))


def _read(
    run: ValidationRun, reader: Reader, steps: Sequence[Step], questions: Sequence[str], probes: Sequence[Probe]
) -> StatisticArray:
    """Last prompt tokens [R, q, k]; they do not depend on the rollout."""
    asks = [
        ResponseRequest(question=question, system=step.system, before=step.before)
        for step in steps
        for question in questions
    ]
    texts = [run.model.encode(request.messages()) for request in asks]
    return reader.prompts(texts, probes).reshape(len(steps), len(questions), len(probes))


def _exemplars(vector: PersonaVector, reader: Reader) -> tuple[int, ExemplarReadings] | None:
    """The layer that tells the judge's exemplars apart best, and the readings of the held-out ones."""
    trait = vector.header.trait
    if isinstance(trait, OwnTrait):
        return None
    judged, held_out = (
        ExemplarReadings.read(reader, pairs, every_layer(vector)) for pairs in (trait.judge_pairs, trait.held_out_pairs)
    )
    return (judged.best, held_out) if judged.tokens.size and held_out.tokens.size else None


def _rung(step: Step, measured: Measured, readings: StatisticArray, layer: int) -> Rung:
    trait, coherence = measured.figures()
    return Rung(
        name=step.name,
        prompt=step.system or "",
        trait=trait,
        coherence=coherence,
        reading=mean_estimate(readings[:, layer]),
        readings=tuple(round(float(x), 4) for x in readings[:, layer]),
        scores=tuple(None if np.isnan(x) else round(float(x), 2) for x in measured.by_question),
        missing=measured.missing,
    )


def _by_layer(reported: MeasuredLadder, unseen: ExemplarReadings | None) -> tuple[LayerReading, ...]:
    overall, within = (
        correlation_estimates(reported.readings, reported.scores, within=within) for within in (False, True)
    )
    return tuple(
        LayerReading(
            layer=layer,
            overall=overall[layer],
            within=within[layer],
            auc_mean=unseen.auc(unseen.mean, layer) if unseen else None,
            auc_peak=unseen.auc(unseen.peak, layer) if unseen else None,
        )
        for layer in range(len(overall))
    )
