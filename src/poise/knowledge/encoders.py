"""Texts to unit vectors: the bundled sentence encoder, a static model, or any endpoint with ``/v1/embeddings``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np

from poise.endpoint_address import endpoint_address
from poise.errors import EncoderUnavailable, InvalidArgument, MissingExtra, first_line
from poise.knowledge.store import VectorArray

__all__ = ["BUNDLED_ENCODER", "BundledEncoder", "EndpointEncoder", "StaticEncoder", "TextEncoder", "text_encoder"]

BUNDLED_ENCODER = "all-MiniLM-L6-v2"
_BUNDLED_WIDTH = 384
_SENT_AT_ONCE = 64
_HASHED = re.compile(r"@[0-9a-f]{8}\Z")


class TextEncoder(Protocol):
    """Texts to vectors of unit length.

    Attributes:
        name: What its vectors are known by; those of two names do not compare.
        width: Numbers of a vector.
    """

    @property
    def name(self) -> str:
        """What its vectors are known by."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""

    def __call__(self, texts: Sequence[str]) -> VectorArray:
        """Unit vectors float32 [n, width]."""


class BundledEncoder:
    """all-MiniLM-L6-v2, which ``poise serve`` embeds with, too; it reads the first 256 tokens of a text."""

    name = BUNDLED_ENCODER
    width = _BUNDLED_WIDTH

    def __call__(self, texts: Sequence[str]) -> VectorArray:
        """Unit vectors float32 [n, 384].

        Raises:
            MissingExtra: its package is not installed.
        """
        if not texts:
            return np.empty((0, self.width), dtype=np.float32)
        from poise.judge.exemplars import sentence_embeddings

        return _unit(sentence_embeddings(texts))


class EndpointEncoder:
    """A model behind an OpenAI-compatible server.

    Args:
        model: Name that the server knows it by.
        base_url: URL of the server, usually ending in ``/v1``; else ``OPENAI_BASE_URL``, else OpenAI's own.
        api_key: Else ``OPENAI_API_KEY``; local servers need none.
        width: Width of its vectors, where known; else one text is embedded to learn it.
        retries: How often a request is repeated after its first failure.
        timeout: Seconds that one request may take.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        width: int | None = None,
        retries: int = 3,
        timeout: float = 60.0,
    ) -> None:
        self.model = model
        self._base_url, self._api_key = endpoint_address(base_url, api_key)
        self._width, self._retries, self._timeout = width, retries, timeout

    @property
    def name(self) -> str:
        """``endpoint:`` and the model's name."""
        return f"endpoint:{self.model}"

    @property
    def width(self) -> int:
        """Numbers of a vector; asks the server, the first time."""
        if self._width is None:
            self(["width"])
        return self._width or 0

    def __call__(self, texts: Sequence[str]) -> VectorArray:
        """Unit vectors float32 [n, width].

        Raises:
            EncoderUnavailable: the server cannot be reached, or answers something else.
        """
        from openai import OpenAI, OpenAIError

        parts = []
        with OpenAI(
            base_url=self._base_url, api_key=self._api_key, max_retries=self._retries, timeout=self._timeout
        ) as client:
            for first in range(0, len(texts), _SENT_AT_ONCE):
                part = list(texts[first : first + _SENT_AT_ONCE])
                try:
                    answer = client.embeddings.create(model=self.model, input=part, encoding_format="float")
                    parts.append(np.asarray([row.embedding for row in answer.data], dtype=np.float64))
                except OpenAIError as error:
                    cause = str(error.__cause__ or error)[:200]
                    raise EncoderUnavailable(
                        f"The embedding model {self.model!r} at {client.base_url} does not answer ({cause}); start the "
                        "server or set OPENAI_BASE_URL to where it runs, then run the same command again: finished "
                        "batches are kept."
                    ) from error
                except (ValueError, TypeError, AttributeError) as error:
                    raise EncoderUnavailable(f"{client.base_url} does not answer with embeddings ({error}).") from error
                if parts[-1].ndim != 2 or len(parts[-1]) != len(part) or parts[-1].shape[1] != parts[0].shape[1]:
                    raise EncoderUnavailable(
                        f"{client.base_url} answered {len(part)} texts with embeddings of shape {parts[-1].shape}."
                    )
        if not parts:
            return np.empty((0, self.width), dtype=np.float32)
        vectors = _unit(np.concatenate(parts))
        if self._width not in (None, vectors.shape[1]):
            raise EncoderUnavailable(
                f"The embedding model {self.model!r} gives {vectors.shape[1]} numbers a text now, and {self._width} "
                "before; it is another one. Name the one that the knowledge base was built with."
            )
        self._width = int(vectors.shape[1])
        return vectors


class StaticEncoder:
    """A model of model2vec: a vector of each token, averaged; hundreds of times as fast as a transformer.

    Its name ends in a hash of its vectors, so that those of another model are not compared with these.

    Args:
        source: Its folder, or its name on the hub; with ``@`` and the hash, it must be that very model.

    Raises:
        MissingExtra: its package is not installed.
        InvalidArgument: there is no such model, or it is another one than the hash says.
    """

    def __init__(self, source: str) -> None:
        try:
            from model2vec import StaticModel
        except ImportError as error:
            raise MissingExtra.of("Embedding by a static model needs model2vec", "model2vec") from error
        path, _, wanted = source.rpartition("@") if _HASHED.search(source) else (source, "", "")
        place = str(Path(path).resolve()) if Path(path).is_dir() else path
        try:
            self._model = StaticModel.from_pretrained(place, force_download=False)
        except Exception as error:  # the package's own faults are many, and the folder is what matters
            raise InvalidArgument(
                f"`encoder` is 'model2vec:{path}', and there is no such model ({first_line(error)[:160]}); name the "
                "folder that model2vec saved it in."
            ) from error
        vectors = np.ascontiguousarray(self._model.embedding, dtype=np.float32)
        fingerprint = sha256(vectors.tobytes()).hexdigest()[:8]
        if wanted not in ("", fingerprint):
            raise InvalidArgument(
                f"`encoder` is 'model2vec:{path}', which is another model now ({fingerprint}) than the one that the "
                f"vectors are of ({wanted}); put that one back, or build anew elsewhere."
            )
        self.name = f"model2vec:{place}@{fingerprint}"
        self.width = int(vectors.shape[1])

    def __call__(self, texts: Sequence[str]) -> VectorArray:
        """Unit vectors float32 [n, width]; zeros of a text without a word that the model knows."""
        if not texts:
            return np.empty((0, self.width), dtype=np.float32)
        return _unit(np.asarray(self._model.encode(list(texts), use_multiprocessing=False), dtype=np.float64))


def text_encoder(name: str, *, width: int | None = None) -> TextEncoder:
    """The encoder of a name: ``all-MiniLM-L6-v2``, ``model2vec:FOLDER``, or ``endpoint:NAME`` at ``OPENAI_BASE_URL``.

    Raises:
        InvalidArgument: another name.
        MissingExtra: it needs a package that is not installed.
    """
    if name == BUNDLED_ENCODER:
        return BundledEncoder()
    kind, _, model = name.partition(":")
    if kind == "endpoint" and model:
        return EndpointEncoder(model, width=width)
    if kind == "model2vec" and model:
        return StaticEncoder(model)
    raise InvalidArgument(
        f"`encoder` is {name!r}; it must be {BUNDLED_ENCODER}, model2vec:FOLDER or endpoint:NAME (OPENAI_BASE_URL)."
    )


def _unit(vectors: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> VectorArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
