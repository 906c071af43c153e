"""``POST /v1/embeddings``: texts as the bundled sentence encoder has them, beside the model and never in its thread."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticKnownError

from poise.errors import MissingExtra, RequestError
from poise.judge.exemplars import LONGEST_SENTENCE, sentence_embeddings, sentence_tokens
from poise.steer.request_field import RequestName, RequestText, StrictRequest

__all__ = ["ENCODER", "EmbeddingRequest", "Embeddings", "SentenceEncoder", "embedding_body"]

ENCODER = "all-MiniLM-L6-v2"
WIDTH = 384
MOST_EMBEDDED = 65_536  # of one request
MOST_TEXTS = 2048
SLICE = 32  # texts that are read between two looks at whether anybody waits


def _check_number_of_texts(value: str | list[Any]) -> str | list[Any]:
    """There is something to embed, and not too much of it; how long one text may be is counted in tokens."""
    if value == "":
        raise PydanticKnownError("string_too_short", {"min_length": 1})
    if not value or (isinstance(value, list) and len(value) > MOST_TEXTS):
        kind: Literal["too_short", "too_long"] = "too_long" if value else "too_short"
        limit = {"max_length": MOST_TEXTS} if value else {"min_length": 1}
        raise PydanticKnownError(kind, {"field_type": "List", "actual_length": len(value), **limit})
    return value


class EmbeddingRequest(StrictRequest):
    """``POST /v1/embeddings``."""

    model: RequestName
    input: Annotated[
        RequestText | list[RequestText] | list[int] | list[list[int]], AfterValidator(_check_number_of_texts)
    ] = Field(description="A text, or 1 to 2048; token ids are refused.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Not supported; may only be 384.")
    user: RequestText | None = Field(None, max_length=1000, description="Accepted without effect, and not kept.")

    @property
    def texts(self) -> list[str]:
        """All of them.

        Raises:
            RequestError: they are not texts that can be embedded.
        """
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not all(isinstance(text, str) for text in texts):
            text = (
                "input has token ids, which are another tokenizer's; send texts (of LangChain's OpenAIEmbeddings: "
                "check_embedding_ctx_length=False)."
            )
            raise RequestError(400, text, code="unsupported", param="input")
        listed = [text for text in texts if isinstance(text, str)]
        if "" in listed:
            raise RequestError(400, "input has an empty text; leave it out.", code="invalid_value", param="input")
        return listed

    def check(self) -> None:
        """Refuse what the encoder has not.

        Raises:
            RequestError: names the field.
        """
        if self.model != ENCODER:
            text = f"There is no embedding model {self.model!r} here; it is {ENCODER!r}."
            raise RequestError(404, text, code="model_not_found", param="model")
        if self.dimensions not in (None, WIDTH):
            text = f"dimensions is {self.dimensions}; {ENCODER} has {WIDTH} and cannot be shortened. Leave it out."
            raise RequestError(400, text, code="unsupported", param="dimensions")


class Embedding(BaseModel):
    """One text's: numbers, or the bytes of little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    """Those of all texts of a request, in order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class SentenceEncoder:
    """A thread that embeds texts, a few at a time and requests in turn.

    Args:
        most: Most requests that are embedded or wait for it.
    """

    def __init__(self, *, most: int = 32) -> None:
        self.most, self._open = most, 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="poise-sentences")

    @staticmethod
    def count(texts: Sequence[str]) -> int:
        """Number of tokens of all texts; a worker's, since that takes a while and keeps nobody from the encoder.

        Raises:
            RequestError: 404 where the encoder is not installed; 400 for texts that are too long, naming the first.
        """
        try:
            counts = sentence_tokens(texts)
        except MissingExtra as error:
            text = f"There are no embeddings here. {error}"
            raise RequestError(404, text, code="embeddings_unavailable") from error
        for place, tokens in enumerate(counts):
            if tokens > LONGEST_SENTENCE:
                text = (
                    f"This model's maximum context length is {LONGEST_SENTENCE} tokens, but input {place} has "
                    f"{tokens}; split it."
                )
                raise RequestError(400, text, code="context_length_exceeded", param="input")
        if sum(counts) > MOST_EMBEDDED:
            text = f"input has {sum(counts)} tokens in all; at most {MOST_EMBEDDED} are taken. Send several requests."
            raise RequestError(400, text, code="too_many_tokens", param="input")
        return sum(counts)

    async def embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Embeddings [n, 384]; cancelling it ends it after the few texts that are being read.

        Raises:
            RequestError: 429 where too many requests are there.
        """
        if self._open >= self.most:
            are = "request for embeddings is" if self._open == 1 else "requests for embeddings are"
            text = f"{self._open} {are} waiting already; try again in 2 s."
            raise RequestError(429, text, code="queue_full", headers={"Retry-After": "2"})
        self._open += 1
        try:
            loop, order = asyncio.get_running_loop(), sorted(range(len(texts)), key=lambda n: len(texts[n]))
            out = np.empty((len(texts), WIDTH), dtype=np.float32)
            for first in range(0, len(order), SLICE):
                places = order[first : first + SLICE]
                part = [texts[n] for n in places]
                out[places] = await loop.run_in_executor(self._pool, sentence_embeddings, part)
            return out
        finally:
            self._open -= 1


def embedding_body(
    vectors: np.ndarray[Any, np.dtype[np.float32]], tokens: int, encoding: Literal["float", "base64"]
) -> dict[str, Any]:
    """The answer, each vector as numbers or as the bytes of little-endian float32."""

    def written(row: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
        return row.tolist() if encoding == "float" else base64.b64encode(row.astype("<f4").tobytes()).decode()

    data = [{"object": "embedding", "index": n, "embedding": written(row)} for n, row in enumerate(vectors)]
    return {
        "object": "list",
        "data": data,
        "model": ENCODER,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
