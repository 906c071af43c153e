"""Normal answers to alarms: thresholds for every reading and rate, and a chart for drift."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from poise.arguments import check_number, check_type
from poise.data import (
    AnswerPart,
    Conversation,
    DataSet,
    InputRow,
    Rejections,
    data_from_rows,
    draw_conversations,
    last_user,
    repeated_conversations,
)
from poise.detector.reach import DetectorReach, measure_reach
from poise.detector.seen_talk import seen_in_fit_note, unseen_conversations
from poise.engine import Engine, SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument, TooFewResponses
from poise.model import Model
from poise.monitor.readings import READING_NAMES
from poise.monitor.reference_readings import (
    ReferenceReadings,
    read_data_answers,
    read_generated_answers,
)
from poise.progress import remark
from poise.statistics.conformal import check_enough, check_rate, threshold
from poise.statistics.cusum import fit_cusum
from poise.storage.journal import Journal
from poise.vector import Alarm, Drift, LayerDirection, PersonaVector
from poise.vector.persona_vector import as_vectors

__all__ = [
    "ALARMS_BELONG",
    "AlarmSource",
    "Calibration",
    "CalibrationSettings",
    "calibrate_alarms",
    "check_calibrated_part",
    "fit_drift_chart",
    "normal_answer_length",
    "set_alarms",
    "set_drift_chart",
]

SEEN_IN_FIT = "a detector was fitted on them"
ALARMS_BELONG = "alarms set there would pass for those of the vector's own model"


def normal_answer_length(window: int) -> int:
    """How long the model's own answers may be where nobody says, in a window of that many tokens."""
    return min(256, window // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmSource:
    """Where normal answers came from, as alarms record it."""

    answers: Literal["own", "given"]
    max_new_tokens: int
    temperature: float | None
    data: str
    data_sha256: str
    seed: int
    part: AnswerPart = "reply"
    model: str = ""
    detector: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """How alarms are set.

    Attributes:
        rates: False alarms a normal answer, an alarm each.
        given: Read the data's answers; default, the model answers the data's prompts itself.
        by: Field of the rows that tells topics apart, for alarms of each topic besides those of all.
        layer: For all vectors; default, the layer at which each is read.
        sampling: Sampling of the model's own answers, as it will be used.
        limit: Most conversations, drawn at random.
        batch: Most answers generated at once.
        seed: Seed of the drawing and the sampling.
    """

    rates: tuple[float, ...] = (0.01,)
    read_given_answers: bool = False
    by: str | None = None
    layer: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    limit: int = 2000
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_type("rates", self.rates, (tuple, list), "a tuple of rates, such as (0.01,)")
        if not self.rates:
            raise InvalidArgument("There are no rates, so no alarm would be set; give at least one, such as (0.01,).")
        for rate in self.rates:
            check_type("A rate", rate, (int, float), "a number above 0, such as 0.01")
            check_rate(rate)
        if repeated := [rate for rate, count in Counter(self.rates).items() if count > 1]:
            raise InvalidArgument(
                f"The rate {repeated[0]:g} is given twice, and would set each alarm twice; give it once."
            )
        for name in ("limit", "batch"):
            check_number(name, getattr(self, name), least=1, most=2**31)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Vectors with alarms, and what they were set on.

    Attributes:
        vectors: The vectors with their alarms, in the order of the argument.
        reference: Readings that the alarms were set on.
        rejections: Rows of the data that could not be used.
        topics_without_alarms: Topics without alarms of their own at some rate, and why.
        how: What was read from which columns of the data.
        without_drift_chart: Names of the vectors that got no chart for drift, and why.
        reach: How far the data lie from what the detectors were fitted on; nothing where the model answered itself.
    """

    vectors: tuple[PersonaVector, ...]
    reference: ReferenceReadings
    rejections: Rejections
    topics_without_alarms: dict[str, str]
    how: str
    without_drift_chart: dict[str, str] = field(default_factory=dict)
    reach: tuple[DetectorReach, ...] = ()


def calibrate_alarms(
    data: DataSet | Iterable[InputRow],
    model: Model,
    vectors: PersonaVector | Sequence[PersonaVector],
    plan: CalibrationSettings | None = None,
    folder: str | Path | None = None,
    *,
    allow_other_model: bool = False,
    engine: Engine | None = None,
) -> Calibration:
    """Read normal talk and set every vector's alarms and drift chart on it.

    Args:
        data: A data set or rows in memory, with prompts, or with answers where the settings read these.
        model: The model whose activations are read.
        vectors: k of them, of this model.
        plan: Rates to promise and what to set them on; default, a rate of 0.01 on the model's own answers.
        folder: Finished batches and the list of rejected rows go there; ``None`` keeps nothing.
        allow_other_model: Also take vectors of another model of this shape.
        engine: What answers; default, an engine on ``model``.

    Raises:
        OtherModel: a vector was not computed on this model.
        TooFewResponses: so few conversations cannot promise a rate; says how many can, before anything is generated.
        InvalidData: too many rows are rejected.
        InvalidArgument: thoughts are to be read where the model answers without them.
    """
    plan, vectors = plan or CalibrationSettings(), as_vectors(vectors)
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    folder = Path(folder) if folder is not None else None
    data = data_from_rows(data, need="assistant" if plan.read_given_answers else "user")
    check_calibrated_part(data, plan)
    relations = [
        vector.check_model(model, allow_other_model=allow_other_model, record=ALARMS_BELONG) for vector in vectors
    ]
    places = [place for vector in vectors for place in _read_places(vector, plan.layer)]
    probes = [place.probe for place in places]
    rejections = Rejections(folder / "rejected.jsonl" if folder else None)
    talk = draw_conversations(data, plan.limit, seed=plan.seed, rejections=rejections)
    drawn = len(talk)
    if plan.read_given_answers:
        talk = unseen_conversations(talk, vectors, plan.layer)
    _check_rates(talk, plan, seen_in_fit_note(drawn - len(talk)))
    if plan.read_given_answers:
        normal = read_data_answers(talk, model, probes, by=plan.by)
        normal = replace(normal, left_out=Counter(normal.left_out) + Counter({SEEN_IN_FIT: drawn - len(talk)}))
    else:
        engine, journal = engine or LocalEngine(model, batch=plan.batch), Journal(folder and folder / "readings.jsonl")
        normal = read_generated_answers(
            talk, engine, model, probes, plan.sampling, by=plan.by, seed=plan.seed, journal=journal
        )
    facts = AlarmSource(
        answers="given" if plan.read_given_answers else "own",
        max_new_tokens=max((r.tokens for r in normal.readings), default=0)
        if plan.read_given_answers
        else plan.sampling.max_new_tokens,
        temperature=None if plan.read_given_answers else plan.sampling.temperature,
        data=", ".join(Path(part.name).name if part.paths else part.name for part in data.parts),
        data_sha256=data.digest(),
        seed=plan.seed,
        part=data.answer_part,
    )
    done, without, without_chart = _calibrated(
        vectors, [relation.kind for relation in relations], normal, plan, facts, model.name
    )
    return Calibration(
        vectors=tuple(done),
        reference=normal,
        rejections=rejections,
        topics_without_alarms=without,
        how=data.how,
        without_drift_chart=without_chart,
        reach=tuple(measure_reach(data, vectors, model, layer=plan.layer)) if plan.read_given_answers else (),
    )


def _check_rates(talk: Sequence[Conversation], plan: CalibrationSettings, seen_note: str) -> None:
    """Refuse rates that so little talk cannot promise, before anything is read or generated; equal texts count once.

    Raises:
        TooFewResponses: says how many conversations can.
    """
    if plan.read_given_answers:
        distinct = len(talk) - len(repeated_conversations(talk))
    else:
        distinct = len({json.dumps([last_user(one), one.tools], sort_keys=True, default=str) for one in talk})
    for rate in plan.rates:
        check_enough(distinct, rate, seen_note, repeats=len(talk) - distinct)


def _read_places(vector: PersonaVector, layer: int | None) -> list[LayerDirection]:
    """Where a vector is read: with its detector, and also by its own direction, along which caps and floors work."""
    place = vector.at("read", layer)
    return [place, vector.without_detector().at("read", layer)] if place.detector else [place]


def _calibrated(
    vectors: Sequence[PersonaVector],
    kinds: Sequence[str],
    normal: ReferenceReadings,
    plan: CalibrationSettings,
    facts: AlarmSource,
    name: str,
) -> tuple[list[PersonaVector], dict[str, str], dict[str, str]]:
    """The vectors with alarms and charts, the topics without alarms, and the vectors without a chart, each with why."""
    done: list[PersonaVector] = []
    without: dict[str, str] = {}
    without_chart: dict[str, str] = {}
    columns = itertools.count()
    for vector, kind in zip(vectors, kinds, strict=True):
        alarms: list[Alarm] = []
        charts: list[Drift | str] = []
        source = replace(facts, model="" if kind == "same" else name)
        for place, column in zip(_read_places(vector, plan.layer), columns, strict=False):
            read_with = place.read_with
            set_on, lacking = set_alarms(normal, column, place.layer, plan.rates, replace(source, detector=read_with))
            alarms += set_on
            without |= lacking
            charts.append(fit_drift_chart(normal, column, place.layer, part=facts.part, detector=read_with))
        chart = charts[0]
        if isinstance(chart, str):
            without_chart[vector.name] = chart
        new = None if isinstance(chart, str) else chart
        done.append(_beside_the_detectors(vector, alarms, new, plan.layer))
    return done, without, without_chart


def _beside_the_detectors(
    vector: PersonaVector, alarms: Sequence[Alarm], chart: Drift | None, layer: int | None
) -> PersonaVector:
    """The vector with these alarms, which leave those of its detector alone where they are of its own direction."""
    detector = vector.detector
    if detector is None or vector.at("read", layer).detector:
        return vector.with_alarms(alarms, chart)
    remark(
        f"{vector.name} is read with its detector at layer {detector.layer}, and these alarms are for its own "
        f"direction at layer {layer}: they hold where it is read at that layer or by the projection, and for caps and "
        "conditions. Leave `layer` out to set alarms for the detector."
    )
    digest = detector.facts.weights_sha256
    earlier = [alarm for alarm in vector.header.alarms if alarm.detector == digest]
    drift = d if (d := vector.header.drift) and d.detector == digest else chart
    return vector.with_alarms([*alarms, *earlier], drift)


def check_calibrated_part(data: DataSet, plan: CalibrationSettings) -> None:
    """Refuse thoughts where there are none.

    Raises:
        InvalidArgument: the model answers itself, which it does with its thinking switched off.
    """
    if data.answer_part != "reply" and not plan.read_given_answers:
        raise InvalidArgument(
            f"`part` is {data.answer_part}, and the model's own answers are written with its thinking switched off; "
            "set the alarms on answers that the data have, with `given_answers`."
        )


def set_alarms(
    normal: ReferenceReadings, column: int, layer: int, rates: Sequence[float], facts: AlarmSource
) -> tuple[list[Alarm], dict[str, str]]:
    """Thresholds of one probe for every reading and rate, over all answers and for each topic that can bear them.

    Each threshold has the promised rate for itself; several together raise more.

    Returns:
        The alarms, and for each topic that got none at some rate the reason.

    Raises:
        TooFewResponses: the answers together cannot bear a rate; says how many can.
        InvalidArgument: a rate out of range.
    """
    alarms: list[Alarm] = []
    without: dict[str, str] = {}
    for topic in [None, *sorted({t for t in normal.topics if t is not None})]:
        for reading in READING_NAMES:
            values, conversations = normal.column(reading, column, topic)
            for rate in rates:
                try:
                    set_at = threshold(values, rate, conversations=conversations)
                except TooFewResponses as error:
                    if topic is None:
                        raise
                    without.setdefault(topic, str(error))
                    continue
                alarms.append(
                    Alarm(
                        reading=reading,
                        layer=layer,
                        threshold=set_at.value,
                        rate=rate,
                        low=round(set_at.low, 6),
                        high=round(set_at.high, 6),
                        n_answers=set_at.answers,
                        n_conversations=set_at.conversations,
                        topic=topic,
                        **asdict(facts),
                    )
                )
    return alarms, without


def set_drift_chart(
    normal: ReferenceReadings, column: int, layer: int, *, part: AnswerPart = "reply", detector: str = ""
) -> Drift | None:
    """A CUSUM of one probe's answer means; ``None`` where so few conversations bear none, or nothing varies."""
    chart = fit_drift_chart(normal, column, layer, part=part, detector=detector)
    return None if isinstance(chart, str) else chart


def fit_drift_chart(
    normal: ReferenceReadings, column: int, layer: int, *, part: AnswerPart = "reply", detector: str = ""
) -> Drift | str:
    """The same, with the reason where there is none."""
    values, conversations = normal.column("mean", column)
    try:
        chart = fit_cusum(values, conversations=conversations)
    except TooFewResponses as error:
        return str(error)
    if chart is None:
        return "A chart for drift needs readings that vary, and these are all the same; bring other rows."
    return Drift(
        reading="mean",
        layer=layer,
        mean=chart.mean,
        sd=chart.sd,
        k=chart.k,
        h=chart.h,
        arl=round(chart.arl, 1),
        low=round(chart.low, 1),
        high=round(chart.high, 1) if math.isfinite(chart.high) else None,
        n_answers=len(values),
        n_conversations=len(set(conversations)),
        part=part,
        detector=detector,
    )
