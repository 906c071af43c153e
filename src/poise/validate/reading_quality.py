"""What readings are worth: projections of prompts and answers, kept as they come, and how they go with scores.

R: rungs, q: questions, k: probes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from poise.activations import Probe, project
from poise.model import Encoded, Model, ask
from poise.progress import track
from poise.statistics.estimates import Estimate, StatisticArray, auc, auc_estimate, bootstrap, bootstrap_all
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal
from poise.trait import ExemplarPair
from poise.vector import PersonaVector

__all__ = [
    "ExemplarReadings",
    "Reader",
    "chance",
    "correlation_estimates",
    "correlations",
    "every_layer",
    "random_probes",
]

READ_AT_ONCE = 16


class Reader:
    """Reads texts once and keeps what it read.

    Args:
        model: The model whose activations are read.
        folder: ``None`` keeps readings in memory; else ``readings.jsonl`` in it.
    """

    def __init__(self, model: Model, folder: Path | None) -> None:
        self.model = model
        self._journal = Journal(folder / "readings.jsonl" if folder else None)

    def prompts(self, texts: Sequence[Encoded], probes: Sequence[Probe]) -> StatisticArray:
        """Each text's last prompt token on each probe: [n, k]."""
        return self._read("last prompt token", texts, probes, lambda text, read: read[text.last_prompt].tolist())

    def answers(self, texts: Sequence[Encoded], probes: Sequence[Probe]) -> tuple[StatisticArray, StatisticArray]:
        """Mean and peak of each text's response tokens on each probe: [n, k] each."""

        def pooled(text: Encoded, read: torch.Tensor) -> list[float]:
            inside = read[text.start : text.end]
            return [*inside.mean(dim=0).tolist(), *inside.amax(dim=0).tolist()]

        both = self._read("response tokens, mean and peak", texts, probes, pooled)
        return both[:, : len(probes)], both[:, len(probes) :]

    def _read(
        self,
        pooling: str,
        texts: Sequence[Encoded],
        probes: Sequence[Probe],
        pooled: Callable[[Encoded, torch.Tensor], list[float]],
    ) -> StatisticArray:
        """Always in the same batches, done or not: a model's last digit may depend on them."""
        watched = {"model": asdict(self.model.fingerprint), "probes": _identity(probes), "pooling": pooling}
        keys = [content_key(ids=list(t.ids), start=t.start, **watched) for t in texts]
        with track(f"Reading: {pooling}", total=len(texts)) as advance:
            for at in range(0, len(texts), READ_AT_ONCE):
                part = range(at, min(at + READ_AT_ONCE, len(texts)))
                if not all(keys[i] in self._journal for i in part):
                    read = project(self.model, [texts[i] for i in part], probes)
                    new = {keys[i]: pooled(texts[i], tokens) for i, tokens in zip(part, read, strict=True)}
                    self._journal.append(row for row in new.items() if row[0] not in self._journal)
                advance(len(part))
        return np.array([self._journal[key] for key in keys], dtype=float).reshape(len(texts), -1)


def every_layer(vector: PersonaVector) -> list[Probe]:
    """The vector's own direction at each layer, in order: one pass reads them all."""
    return [Probe(layer, vector.unit(layer)) for layer in range(vector.layers)]


def random_probes(width: int, layer: int, draws: int, *, seed: int) -> list[Probe]:
    """Random unit directions at a layer: what any direction sees of a ladder."""
    drawn = torch.randn((draws, width), generator=torch.Generator().manual_seed(seed))
    return [Probe(layer, direction) for direction in torch.nn.functional.normalize(drawn, dim=-1)]


def correlations(readings: StatisticArray, scores: StatisticArray, *, within: bool) -> StatisticArray:
    """Pearson's r of each probe's readings [R, q, k] with scores [R, q], over cells that have a score: [k].

    Within: every rung's readings and scores less their own means first, so that what tells rungs apart counts for
    nothing. This pools the rungs' correlations, each by its spread; a rung in which nothing varies has no say. NaN
    where nothing varies at all.
    """
    r: StatisticArray = _correlations_of(readings, scores, np.arange(scores.shape[1])[None], within=within)[0]
    return r


def _correlations_of(
    readings: StatisticArray, scores: StatisticArray, questions: NDArray[np.int64], *, within: bool
) -> StatisticArray:
    """``correlations`` over the questions of each draw, [draws, q]: [draws, k]."""
    usable = ~np.isnan(scores)
    weight = usable[:, questions, None].astype(float)  # [R, draws, q, 1]
    values = np.concatenate([readings, np.where(usable, scores, 0.0)[:, :, None]], axis=2)[:, questions] * weight
    over: tuple[int, ...] = (2,) if within else (0, 2)
    means = values.sum(over, keepdims=True) / np.maximum(weight.sum(over, keepdims=True), 1)
    centred = (values - means) * weight
    size = np.sqrt(np.einsum("rdqk,rdqk->dk", centred, centred))
    raw = np.sqrt(np.einsum("rdqk,rdqk->dk", values, values))
    size[size <= 1e-9 * raw] = np.nan  # what centring leaves of a constant
    products = np.einsum("rdqk,rdq->dk", centred[..., :-1], centred[..., -1])
    r: StatisticArray = products / (size[:, :-1] * size[:, -1:])
    return r


def correlation_estimates(readings: StatisticArray, scores: StatisticArray, *, within: bool) -> list[Estimate]:
    """``correlations``, each with its interval, bootstrapped by question; one resampling serves all probes."""
    rungs, n, probes = readings.shape
    return bootstrap_all(
        lambda questions: _correlations_of(readings, scores, questions, within=within), n, width=rungs * (probes + 1)
    )


def chance(readings: StatisticArray, scores: StatisticArray, *, within: bool) -> Estimate:
    """Mean |r| over probes that mean nothing, readings [R, q, k], bootstrapped by question."""
    rungs, n, probes = readings.shape
    return bootstrap(
        lambda questions: np.abs(_correlations_of(readings, scores, questions, within=within)).mean(-1),
        n,
        width=rungs * (probes + 1),
    )


@dataclass(frozen=True, slots=True)
class ExemplarReadings:
    """Readings of exemplar pairs, with the trait and without it. n: pairs, k: probes.

    ``mean`` and ``peak`` are [2, n, k], ``tokens`` [2, n].
    """

    mean: StatisticArray
    peak: StatisticArray
    tokens: StatisticArray

    @classmethod
    def read(cls, reader: Reader, pairs: Sequence[ExemplarPair], probes: Sequence[Probe]) -> ExemplarReadings:
        """Both answers of each pair whose answers the model can take."""
        model = reader.model
        encoded = [[model.encode(ask(p.question), text) for text in (p.positive, p.negative)] for p in pairs]
        usable = [both for both in encoded if all(e.start < e.end <= model.window for e in both)]
        flat = [both[side] for side in (0, 1) for both in usable]
        shape = (2, len(usable), len(probes))
        mean, peak = reader.answers(flat, probes) if flat else (np.empty(shape), np.empty(shape))
        tokens = np.array([e.end - e.start for e in flat], dtype=float)
        return cls(mean.reshape(shape), peak.reshape(shape), tokens.reshape(shape[:2]))

    @property
    def best(self) -> int:
        """The probe whose means tell the sides apart best; among equals, the one whose gap is widest for its spread."""
        positive, negative = self.mean
        labels = np.repeat([True, False], len(positive))
        gap = (positive - negative).mean(axis=0) / np.maximum((positive - negative).std(axis=0), 1e-12)
        aucs = auc(np.concatenate([positive, negative]).T, labels)
        return max(range(len(aucs)), key=lambda k: (aucs[k], gap[k]))

    def auc(self, which: StatisticArray, probe: int) -> Estimate:
        """AUC of one probe's readings, ``mean`` or ``peak``, with its interval by pair."""
        return auc_estimate(which[0, :, probe], which[1, :, probe])

    @property
    def auc_of_length(self) -> Estimate:
        """AUC of the answers' lengths alone."""
        return auc_estimate(*self.tokens)


def _identity(probes: Sequence[Probe]) -> list[list[object]]:
    return [
        [p.layer, hashlib.sha256(p.direction.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]] for p in probes
    ]
