"""What a request to a server says about steering and watching: one schema, whoever serves the model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from poise.steer.expression import SteeringExpression

__all__ = ["VECTOR_NAME", "PoiseField", "RequestName", "RequestText", "StrictRequest", "check_characters"]

VECTOR_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
"""What a vector may be called by, so that steering expressions and addresses can name it."""


def check_characters(text: str) -> str:
    """The text, unless it has halves of characters, which JSON can write and no tokenizer takes.

    Raises:
        ValueError: it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a character (a lone surrogate)") from error
    return text


RequestText = Annotated[str, AfterValidator(check_characters)]
RequestName = Annotated[RequestText, Field(min_length=1, max_length=200)]


class StrictRequest(BaseModel):
    """Base of what a request says. A field that is null counts as not given."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class PoiseField(StrictRequest):
    """What Poise adds to OpenAI's requests (the client's ``extra_body``)."""

    steer: Annotated[RequestText, Field(max_length=4000)] | SteeringExpression | None = Field(
        None, description="A steering expression such as `evil=30%; kind=-1`, or its JSON form."
    )
    watch: bool | Annotated[list[RequestName], Field(max_length=64)] = Field(
        False, description="Give the readings of these vectors, or of all (true)."
    )
