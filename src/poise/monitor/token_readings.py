"""Answers token by token, for notebooks: texts with their projections, tinted where Jupyter shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from poise.activations import project_each
from poise.arguments import check_type
from poise.data import AnswerPart, Conversation, DataSet, InputRow, data_from_rows, turns
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, answer_spans
from poise.model.tokenizing import token_texts
from poise.notebook import tinted_tokens_html
from poise.vector import PersonaVector
from poise.vector.algebra import check_distinct
from poise.vector.persona_vector import as_vectors

__all__ = ["TokenReadings", "read_answer_tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReadings:
    """One answer read at every token by k vectors.

    Attributes:
        index: Place of the answer's row among the rows, from 0.
        turn: Number of the answer in its conversation, from 0.
        traits: Names of the k traits.
        tokens: T texts that make the answer. A character that several tokens make stands at the last of them.
        values: Projections on the unit directions in residual-stream units, float32 [T, k].
    """

    index: int
    turn: int
    traits: tuple[str, ...]
    tokens: tuple[str, ...]
    values: torch.Tensor

    def __repr__(self) -> str:
        means = ", ".join(f"{name} {mean:.3g}" for name, mean in zip(self.traits, self.values.mean(0), strict=True))
        return f"<TokenReadings of {len(self.tokens)} tokens, mean {means}>"

    def _repr_html_(self) -> str:
        """The answer once for each trait, tinted from blue (below the median) to red (above it)."""
        columns = self.values.T.tolist()
        return "".join(tinted_tokens_html(self.tokens, *column) for column in zip(columns, self.traits, strict=True))


def read_answer_tokens(
    rows: DataSet | Iterable[InputRow],
    vectors: PersonaVector | Sequence[PersonaVector],
    model: Model,
    *,
    layer: int | None = None,
    part: AnswerPart = "reply",
    allow_other_model: bool = False,
) -> Iterator[TokenReadings]:
    """Every answer of every row, token by token; what cannot be read is left out.

    Args:
        rows: Rows with answers; see ``poise.data.data_from_rows``.
        vectors: k of them, of this model.
        model: The model whose activations are read.
        layer: Layer for all vectors, counted from 0; default, the layer at which each is read.
        part: Which part of an answer is read; a data set has its own.
        allow_other_model: Let vectors of another model of the same shape be used.

    Raises:
        InvalidData: no known shape fits the rows.
        OtherModel: a vector was computed on another model.
    """
    vectors = as_vectors(vectors)
    check_distinct(vectors)
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    for vector in vectors:
        vector.check_model(model, allow_other_model=allow_other_model)
    probes = [vector.at("read", layer).probe for vector in vectors]
    names = tuple(vector.name for vector in vectors)
    for row in data_from_rows(rows, part=part):
        if not isinstance(row, Conversation):
            continue
        spans = [place for place in answer_spans(model, turns(row)) if isinstance(place, AnswerSpan)]
        texts = [Encoded(place.text.ids, 0, len(place.text.ids)) for place in spans]
        for place, values in zip(spans, project_each(model, texts, probes), strict=True):
            if values is not None:
                text = place.text
                yield TokenReadings(
                    index=row.index,
                    turn=place.turn,
                    traits=names,
                    tokens=token_texts(model.tokenizer, text.ids[text.start : text.end]),
                    values=values[text.start : text.end].cpu(),
                )
