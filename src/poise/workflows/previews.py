"""What a job would read or learn, shown before it: no weights are loaded and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from poise.data import Conversation, DataSet
from poise.errors import UserError
from poise.model.preview import DataPreview, RowUse, show_rows
from poise.model.tokenizing import ModelTokenizer, load_tokenizer
from poise.train import TrainConfig
from poise.train.examples import open_training_data, with_system_prompt

__all__ = ["preview_data", "preview_training"]


def preview_data(
    data: DataSet,
    model: str | None,
    n: int,
    *,
    use: RowUse = "score",
    longest: int | None = None,
    max_new_tokens: int | Callable[[int], int] = 0,
    prepare: Callable[[Conversation], Conversation] | None = None,
) -> DataPreview:
    """The first answers of a data set as a job would use them, in the model's template where its tokenizer is at hand.

    Args:
        data: The data.
        model: Name of the model; ``None`` for no template.
        n: Most answers.
        use: What the job does with them.
        longest: Most tokens of a text that is learnt.
        max_new_tokens: Room that a prompt must leave for the model's own answer, or what that is in a given window.
        prepare: What is done to conversations before they are learnt.
    """
    texts: ModelTokenizer | None = None
    notes: tuple[str, ...] = ("The texts are shown without a chat template, as no model was named.",)
    if model is not None:
        try:
            texts = load_tokenizer(model)
            notes = ()
        except UserError as error:
            notes = (f"The texts are shown without a chat template and tokens: {error}",)
    if texts is not None and use == "answer":
        room = max_new_tokens(texts.window) if callable(max_new_tokens) else max_new_tokens
        longest = texts.window - room
    preview = show_rows(data, texts, n, use=use, longest=longest, prepare=prepare)
    return replace(preview, notes=(*notes, *preview.notes))


def preview_training(config: TrainConfig, n: int) -> DataPreview:
    """The first answers that a fine-tune would learn, with its inoculation prompt where that is used."""
    data, only = open_training_data(config)
    inoculation = config.vaccine.inoculation

    def prepare(conversation: Conversation) -> Conversation:
        vaccinated = only is None or conversation.file in only
        return with_system_prompt(conversation, inoculation) if inoculation and vaccinated else conversation

    return preview_data(data, config.model, n, use="learn", longest=config.longest, prepare=prepare)
