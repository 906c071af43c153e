"""What a job would read or learn, shown before it: no weights are loaded and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from poise.data import Conversation, DataSet
from poise.data.preference_data import PreferenceData, open_preferences
from poise.errors import UserError
from poise.model.pair_preview import PairPreviews, preview_preference_pairs
from poise.model.preview import DataPreview, RowUse, show_rows
from poise.model.tokenizing import ModelTokenizer, load_tokenizer
from poise.train import TrainConfig
from poise.train.examples import open_training_data, with_system_prompt

__all__ = ["preview_data", "preview_pairs", "preview_training"]


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
    texts, notes = _open_tokenizer(model)
    if texts is not None and use == "answer":
        room = max_new_tokens(texts.window) if callable(max_new_tokens) else max_new_tokens
        longest = texts.window - room
    preview = show_rows(data, texts, n, use=use, longest=longest, prepare=prepare)
    return replace(preview, notes=(*notes, *preview.notes))


def preview_pairs(data: PreferenceData, model: str | None, n: int) -> PairPreviews:
    """The first preference pairs as a screening would score them; ``model`` as in ``preview_data``."""
    texts, notes = _open_tokenizer(model)
    return replace(preview_preference_pairs(data, texts, n), notes=notes)


def _open_tokenizer(model: str | None) -> tuple[ModelTokenizer | None, tuple[str, ...]]:
    """A model's tokenizer where it is at hand, and a word where it is not."""
    if model is None:
        return None, ("The texts are shown without a chat template, as no model was named.",)
    try:
        return load_tokenizer(model), ()
    except UserError as error:
        return None, (f"The texts are shown without a chat template and tokens: {error}",)


def preview_training(config: TrainConfig, n: int) -> DataPreview | PairPreviews:
    """The first answers or pairs that a fine-tune would learn, with its inoculation prompt where answers are."""
    if config.method == "dpo":
        pairs = open_preferences(list(config.data), shape=config.shape, part=config.part)
        return preview_pairs(pairs, config.model, n)
    data, only = open_training_data(config)
    inoculation = config.vaccine.inoculation

    def prepare(conversation: Conversation) -> Conversation:
        vaccinated = only is None or conversation.file in only
        return with_system_prompt(conversation, inoculation) if inoculation and vaccinated else conversation

    return preview_data(data, config.model, n, use="learn", longest=config.longest, prepare=prepare)
