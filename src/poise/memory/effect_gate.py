"""The gate that reads a model: a direction and a threshold, fitted to entries that harm and to useful ones.

The direction tells what an entry's presence changes where an answer begins: harmful entries against useful ones. Beside
it stand how far answers change, how much likelier a refusal becomes, and each persona vector. An entry's score is the
highest of them, each in standard deviations of useful entries; the threshold is one that at most a promised share of
useful entries to come exceeds (``poise.statistics.conformal``), set on useful entries that nothing was fitted to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from poise.activations import Probe
from poise.arguments import check_number
from poise.detector.kinds import AnswerGroups, logistic
from poise.errors import InvalidArgument, InvalidSettings, OtherModel, OutputExists
from poise.memory.entry_effect import EffectReader, QuestionEffects
from poise.memory.write_gate import EntryEffect
from poise.model import Model
from poise.progress import track
from poise.settings import FrozenModel, first_fault
from poise.statistics.conformal import check_enough, check_rate, exact_interval, threshold
from poise.statistics.intervals import mean_interval
from poise.storage.atomic_write import saving
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal
from poise.vector.header import ModelId

__all__ = ["EffectGate", "FittedEffectGate", "fit_effect_gate", "load_effect_gate"]

GATE_KEY = "poise_memory_gate"
GATE_DEPTH = 0.6
GATE_RIDGE = 1e-3  # C of the regression
FITTED_PART = 0.4  # of the useful entries
FOLDS = 5
EntryScores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _MeanEffects:
    """An entry's effects, averaged over the questions."""

    state: EntryScores  # [d]
    others: dict[str, float]  # answers, refusals and personas

    @classmethod
    def of(cls, effects: QuestionEffects, personas: Sequence[str]) -> _MeanEffects:
        columns = _signals(effects, None, personas)
        return cls(effects.states.mean(0), {name: float(values.mean()) for name, values in columns.items()})

    def signals(self, direction: EntryScores) -> dict[str, float]:
        return {"reading": float(self.state @ direction), **self.others}


class SignalScale(FrozenModel):
    """How a signal lies on useful entries."""

    mean: float
    spread: float = Field(description="Standard deviation.")


class EffectGateHeader(FrozenModel):
    """What a gate's file says beside its directions."""

    format: Literal[1] = 1
    model: ModelId
    layer: int
    questions: tuple[str, ...]
    refusal: str
    personas: tuple[str, ...] = Field(description="Names of the persona vectors.")
    persona_layers: tuple[int, ...]
    scales: dict[str, SignalScale]
    threshold: float
    rate: float = Field(description="Share of useful entries above the threshold that is promised.")
    low: float = Field(description="Lower end of the 95 % interval of the rate that it has.")
    high: float
    useful: int = Field(description="Useful entries that the threshold was set on.")
    harmful: int = Field(description="Harmful entries that the direction was fitted to.")
    recall: float = Field(
        description="Share of the harmful entries above the threshold, by fits that had not seen them."
    )
    recall_low: float
    recall_high: float


@dataclass(frozen=True, slots=True)
class FittedEffectGate:
    """A gate without its model.

    Attributes:
        header: What its file says.
        direction: What the change where an answer begins is read with, float32 [d].
        personas: Directions of the persona vectors, float32 [k, d].
    """

    header: EffectGateHeader
    direction: torch.Tensor
    personas: torch.Tensor

    def save(self, path: Path, *, force: bool = False) -> None:
        """Write it, whole or not at all.

        Raises:
            OutputExists: the file is there, and ``force`` is not set.
            SaveFailed: the disk refused.
        """
        if path.exists() and not force:
            raise OutputExists(f"{path} is there already; choose another file, or replace it with `force`.")
        tensors = {"direction": self.direction.contiguous(), "personas": self.personas.contiguous()}
        document = json.dumps(self.header.model_dump(mode="json"), ensure_ascii=False, sort_keys=True)
        with saving(path) as temporary:
            temporary.write_bytes(serialise(tensors, metadata={GATE_KEY: document}))


class EffectGate:
    """A fitted gate on its model: measures a text's effect, for ``Memory(effect=…)``.

    Args:
        fitted: The gate.
        model: The model that it was fitted on.

    Raises:
        OtherModel: it was fitted on another model.
    """

    def __init__(self, fitted: FittedEffectGate, model: Model) -> None:
        relation = fitted.header.model.relation(model)
        if relation.kind != "same":
            raise OtherModel(
                f"The gate was fitted on {fitted.header.model.name}, and {model.name} {relation.sentence}; fit one on "
                "this model with `poise memory fit`."
            )
        header = fitted.header
        probes = [Probe(layer, row) for layer, row in zip(header.persona_layers, fitted.personas, strict=True)]
        self.fitted = fitted
        self._read = EffectReader(model, header.questions, header.refusal, header.layer, probes)

    def __call__(self, text: str) -> EntryEffect:
        """The effect of a text; of a long one, that of the part with the greatest."""
        return max((self._effect(effects) for effects in self._read(text)), key=lambda e: float(e.facts["score"]))

    def _effect(self, effects: QuestionEffects) -> EntryEffect:
        header = self.fitted.header
        columns = _signals(effects, self.fitted.direction.double().numpy(), header.personas)
        scores = _standard_scores({name: float(v.mean()) for name, v in columns.items()}, header.scales)
        name = max(scores, key=lambda key: scores[key])
        low, high = (float(end) for end in mean_interval(columns[name]))
        facts = {
            "score": round(scores[name], 3),
            "threshold": round(header.threshold, 3),
            "rate": header.rate,
            "signal": name,
            "n": len(header.questions),
            "change": round(float(columns[name].mean()), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "scores": {key: round(value, 2) for key, value in scores.items()},
        }
        if scores[name] <= header.threshold:
            return EntryEffect(facts=facts)
        reason = (
            f"changes the model where it should not: {name} by {columns[name].mean():.3g} [{low:.3g}, {high:.3g}] over "
            f"{len(header.questions)} questions, {scores[name]:.1f} standard deviations of useful entries (allowed: "
            f"{header.threshold:.1f}, which {header.rate:.0%} of them exceed)"
        )
        return EntryEffect(reasons=(reason,), facts=facts)


def fit_effect_gate(
    model: Model,
    *,
    personas: Mapping[str, Probe] | None = None,
    useful: Sequence[str] = (),
    rate: float = 0.05,
    seed: int = 0,
    journal: Journal | None = None,
) -> FittedEffectGate:
    """Fit a gate for a model.

    Args:
        model: The model that the memory is for.
        personas: What persona vectors are read with, by name.
        useful: Entries of your own that should be let in, beside the package's; the threshold is set on those of them
            that nothing is fitted to.
        rate: Share of useful entries that may wait in quarantine.
        seed: Seed of the parting.
        journal: Journal of the entries that were read, so that a fit that was ended goes on.

    Raises:
        InvalidArgument: the rate is out of range.
        TooFewResponses: so few useful entries cannot promise this rate.
    """
    check_rate(rate)
    check_number("`seed`", seed, least=0, most=2**32 - 1)
    known = yaml.safe_load((files("poise.memory") / "gate_exemplars.yaml").read_text("utf-8"))
    probes = dict(personas or {})
    layer = round(GATE_DEPTH * (model.layers - 1))
    reader = EffectReader(model, known["questions"], known["refusal"], layer, list(probes.values()))
    harmful_texts, useful_texts = [*known["persona"], *known["instruction"]], [*known["useful"], *useful]
    if len(set(useful_texts)) < len(useful_texts):
        raise InvalidArgument("Some useful entries are there twice; leave out what repeats others or the package's.")
    names = tuple(probes)
    check_enough(len(useful_texts) - round(FITTED_PART * len(useful_texts)), rate, unit="useful entries")
    everything = _read_all(reader, [*harmful_texts, *useful_texts], probes, journal or Journal(None))
    harmful, helpful = everything[: len(harmful_texts)], everything[len(harmful_texts) :]
    order = np.random.default_rng(seed).permutation(len(helpful))
    cut = round(FITTED_PART * len(helpful))
    fitted_on, set_on = [helpful[i] for i in order[:cut]], [helpful[i] for i in order[cut:]]
    direction = _harm_direction(harmful, fitted_on)
    unseen_harmful, unseen_useful = _out_of_fold(harmful, fitted_on, seed)
    scales = {name: _signal_scale([row[name] for row in unseen_useful]) for name in unseen_useful[0]}
    limit = threshold([max(_standard_scores(e.signals(direction), scales).values()) for e in set_on], rate)
    caught = sum(max(_standard_scores(row, scales).values()) > limit.value for row in unseen_harmful)
    recall_low, recall_high = exact_interval(caught, len(harmful))
    header = EffectGateHeader(
        model=ModelId.of(model),
        layer=layer,
        questions=tuple(known["questions"]),
        refusal=known["refusal"],
        personas=names,
        persona_layers=tuple(probe.layer for probe in probes.values()),
        scales=scales,
        threshold=limit.value,
        rate=rate,
        low=limit.low,
        high=limit.high,
        useful=len(set_on),
        harmful=len(harmful),
        recall=caught / len(harmful),
        recall_low=recall_low,
        recall_high=recall_high,
    )
    rows_of_personas = [probe.direction.float().cpu() for probe in probes.values()]
    stacked = torch.stack(rows_of_personas) if rows_of_personas else torch.empty((0, model.width))
    return FittedEffectGate(header, torch.tensor(direction, dtype=torch.float32), stacked)


def load_effect_gate(path: Path) -> FittedEffectGate:
    """The gate in a file.

    Raises:
        InvalidSettings: not there, cut short or not of this schema.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            direction, personas = file.get_tensor("direction"), file.get_tensor("personas")
        header = EffectGateHeader.model_validate_json(metadata[GATE_KEY])
    except ValidationError as error:
        fault = first_fault(error, EffectGateHeader)
        raise InvalidSettings(f"{path} is not a gate of this version: {fault}; fit it again.") from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InvalidSettings(
            f"{path} is no gate of a memory, or is cut short ({type(error).__name__}); make one with "
            "`poise memory fit`."
        ) from error
    if len(personas) != len(header.personas) or not torch.isfinite(direction).all():
        raise InvalidSettings(f"{path} is broken: its directions do not fit what it says; fit it again.")
    return FittedEffectGate(header, direction, personas)


def _read_all(
    reader: EffectReader, texts: Sequence[str], probes: Mapping[str, Probe], journal: Journal
) -> list[_MeanEffects]:
    """The effects of texts, each read once for a journal."""
    fingerprint = reader.model.fingerprint
    setting = content_key(
        weights=[fingerprint.weights, fingerprint.adapter, fingerprint.template],
        questions=reader.questions,
        refusal=reader.refusal,
        layer=reader.layer,
        personas=[[name, p.layer, p.direction.double().tolist()] for name, p in probes.items()],
    )
    effects = []
    with track("Reading entries", total=len(texts)) as advance:
        for text in texts:
            key = content_key(text=text, setting=setting)
            if key not in journal:
                means = _MeanEffects.of(reader(text)[0], tuple(probes))
                journal.append([(key, {"state": means.state.tolist(), "others": means.others})])
            row = journal[key]
            effects.append(_MeanEffects(np.array(row["state"]), row["others"]))
            advance(1)
    return effects


def _harm_direction(harmful: Sequence[_MeanEffects], useful: Sequence[_MeanEffects]) -> EntryScores:
    positive, negative = (np.stack([effects.state for effects in side]) for side in (harmful, useful))
    direction = logistic(AnswerGroups(positive=positive, negative=negative, talk=negative[:0]), GATE_RIDGE)
    return np.asarray(direction / np.linalg.norm(direction))


def _signal_scale(values: Sequence[float]) -> SignalScale:
    return SignalScale(mean=float(np.mean(values)), spread=float(np.std(values, ddof=1)) or 1.0)


def _signals(
    effects: QuestionEffects, direction: EntryScores | None, personas: Sequence[str]
) -> dict[str, EntryScores]:
    """What is looked at, question by question, by name."""
    columns = {"answers": effects.answers, "refusals": effects.refusals}
    columns |= {name: effects.personas[:, k] for k, name in enumerate(personas)}
    return columns if direction is None else {"reading": effects.states @ direction, **columns}


def _standard_scores(means: Mapping[str, float], scales: Mapping[str, SignalScale]) -> dict[str, float]:
    """Each mean in standard deviations of useful entries; refusals and personas count either way."""
    scores = {name: (value - scales[name].mean) / scales[name].spread for name, value in means.items()}
    return {name: score if name in ("reading", "answers") else abs(score) for name, score in scores.items()}


def _out_of_fold(
    harmful: Sequence[_MeanEffects], useful: Sequence[_MeanEffects], seed: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Signals of each entry, read with a direction that was fitted without it."""
    rng = np.random.default_rng(seed)
    sides = (harmful, useful)
    folds = [rng.permutation(len(side)) % FOLDS for side in sides]
    signals: list[list[dict[str, float]]] = [[{} for _ in side] for side in sides]
    for fold in range(FOLDS):
        parts = [[e for e, f in zip(side, of, strict=True) if f != fold] for side, of in zip(sides, folds, strict=True)]
        direction = _harm_direction(parts[0], parts[1])
        for out, side, of in zip(signals, sides, folds, strict=True):
            for place in np.flatnonzero(of == fold).tolist():
                out[place] = side[place].signals(direction)
    return signals[0], signals[1]
