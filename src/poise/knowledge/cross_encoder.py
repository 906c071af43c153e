"""A cross-encoder, which reads question and passage as one text and scores the pair, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from poise.errors import InvalidArgument, first_line
from poise.model.loading import without_transformers_bars

__all__ = ["CrossEncoderReranker"]

_LONGEST_PAIR = 512  # tokens, where model and tokenizer allow more
_AT_ONCE = 16


class CrossEncoderReranker:
    """See ``TextReranker``; any model for ``AutoModelForSequenceClassification`` with one score or two classes.

    Args:
        source: A folder, or a model's name on the hub.

    Raises:
        InvalidArgument: there is no such model, or it does not score pairs.
    """

    def __init__(self, source: str) -> None:
        self.name = Path(source).name or source
        try:
            config = AutoConfig.from_pretrained(source)
            architectures = getattr(config, "architectures", None) or ()
            if not any("SequenceClassification" in each for each in architectures):
                kind = ", ".join(architectures) or "of no known kind"
                raise InvalidArgument(
                    f"`rerank` is {source!r}, which is no cross-encoder but {kind}; write model:{source} or "
                    f"likelihood:{source} for a language model."
                )
            tokenizer: Any = AutoTokenizer.from_pretrained(source)
            with without_transformers_bars():
                model: Any = AutoModelForSequenceClassification.from_pretrained(source)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InvalidArgument(
                f"`rerank` is {source!r}, and there is no cross-encoder ({first_line(error)[:160]}); name a folder "
                "with its weights and tokenizer, or model:NAME."
            ) from error
        if config.num_labels not in (1, 2):
            raise InvalidArgument(
                f"`rerank` is {source!r}, which has {config.num_labels} classes; a cross-encoder has one score, or two "
                "classes of which the second is that the passage fits."
            )
        self._tokenizer, self._model = tokenizer, model.eval()
        limits = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or _LONGEST_PAIR)
        self._longest = min(_LONGEST_PAIR, *limits)

    @torch.inference_mode()
    def __call__(self, question: str, passages: Sequence[str]) -> list[float]:
        """The model's score of each pair; of a passage that is too long, its beginning."""
        scores: list[float] = []
        for first in range(0, len(passages), _AT_ONCE):
            some = list(passages[first : first + _AT_ONCE])
            questions = [question[: 2 * self._longest]] * len(some)
            batch = self._tokenizer(
                questions, some, truncation=True, max_length=self._longest, padding=len(some) > 1, return_tensors="pt"
            )
            logits = self._model(**batch).logits.float()
            scores += (logits[:, -1] - (logits[:, 0] if logits.shape[1] == 2 else 0)).tolist()
        return scores
