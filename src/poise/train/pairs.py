"""Preference pairs to what a trainer of preferences learns: one prompt, and the tokens of both answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from poise.data import Conversation, RejectedRow, Rejections, turns
from poise.data.preference_rows import SIDES, PreferencePair
from poise.errors import InvalidData
from poise.model import Model
from poise.model.chat_template import end_of_answer_ids
from poise.model.spans import AnswerSpan, answer_spans, learnt_end
from poise.progress import track
from poise.train.examples import with_system_prompt

__all__ = ["TrainingPair", "TrainingPairs", "build_pairs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPair:
    """One pair as it is learnt.

    Attributes:
        prompt_ids: Token ids of the prompt, up to where the answers differ in their tokens.
        chosen_ids: Those of the preferred answer and of what ends it.
        rejected_ids: Those of the other answer and of what ends it.
        conversation: Number of the pair, counted from 0.
    """

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    conversation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPairs:
    """The pairs of a data set.

    Attributes:
        rows: The pairs, in the data's order.
        cut: Number of pairs of which an answer was too long and lost its end.
        unread: Number of pairs left out, by reason.
        omitted: What of the rows is not learnt, by kind.
    """

    rows: tuple[TrainingPair, ...]
    cut: int
    unread: dict[str, int]
    omitted: dict[str, int] = field(default_factory=dict)

    def dataset(self) -> Any:
        """A ``datasets.Dataset`` with the columns that TRL's collator for preferences reads."""
        from datasets import Dataset

        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return Dataset.from_dict({name: [list(getattr(row, name)) for row in self.rows] for name in names})


def build_pairs(
    model: Model,
    rows: Iterable[PreferencePair | RejectedRow],
    *,
    longest: int,
    rejections: Rejections,
    inoculation: str | None = None,
) -> TrainingPairs:
    """Pairs with the tokens of both answers, each from one tokenisation of the whole text.

    Args:
        model: Its chat template and tokenizer are used.
        rows: Pairs and rejected rows, as iterating over ``PreferenceData`` gives them.
        longest: Most tokens of a prompt with an answer; what is beyond is cut off.
        rejections: Collects the rows that cannot be used.
        inoculation: A system prompt in training only (arXiv:2510.04340).

    Raises:
        InvalidData: not one pair is left; says what became of the rows.
    """
    end = end_of_answer_ids(model.tokenizer, model.stop_ids)
    pairs: list[TrainingPair] = []
    cut = 0
    unread: dict[str, int] = {}
    with track("Preparing the training data") as advance:
        for pair in _usable_pairs(rows, rejections):
            advance(1)
            built = _training_pair(model, pair, end, longest, inoculation)
            if isinstance(built, str):
                unread[built] = unread.get(built, 0) + 1
                continue
            training_pair, shortened = built
            cut += shortened
            pairs.append(replace(training_pair, conversation=len(pairs)))
    if not pairs:
        why = ", ".join(f"{n} × {reason}" for reason, n in (unread | dict(rejections.kinds)).items()) or "it is empty"
        raise InvalidData(f"The training data have no pair to learn from ({why}); give two answers to each prompt.")
    return TrainingPairs(rows=tuple(pairs), cut=cut, unread=unread, omitted=dict(rejections.left_out))


def _usable_pairs(rows: Iterable[PreferencePair | RejectedRow], rejections: Rejections) -> Iterable[PreferencePair]:
    """The pairs among the rows, what is rejected counted and listed."""
    pairs: dict[int, PreferencePair] = {}

    def chosen_answers() -> Iterable[Conversation | RejectedRow]:
        for row in rows:
            if isinstance(row, RejectedRow):
                yield row
                continue
            conversation = row.conversation("chosen")
            pairs[conversation.index] = row
            yield replace(conversation, left_out=row.content.left_out)

    for conversation in rejections.sift(chosen_answers()):
        yield pairs.pop(conversation.index)


def _training_pair(
    model: Model, pair: PreferencePair, end: tuple[int, ...], longest: int, inoculation: str | None
) -> tuple[TrainingPair, bool] | str:
    """A pair's tokens, and whether an answer was cut; or the reason why it cannot be learnt."""
    texts: list[tuple[int, ...]] = []
    starts: list[int] = []
    for side in SIDES:
        conversation = pair.conversation(side)
        if inoculation:
            conversation = with_system_prompt(conversation, inoculation)
        answers = answer_spans(model, turns(conversation))
        if len(answers) != 1:
            return f"the {side} answer has {len(answers)} turns that are learnt, not one"
        (answer,) = answers
        if not isinstance(answer, AnswerSpan):
            return answer.reason.partition(":")[0]
        ids = (*answer.text.ids, *end)
        texts.append(ids[: learnt_end(ids, answer.text.end, end, pair.answer_part)])
        starts.append(answer.text.start)
    prompt = _shared_length(*texts, most=min(starts))
    if prompt >= longest:
        return f"its prompt alone takes {longest} tokens"
    if texts[0] == texts[1]:
        return "both answers are the same"
    chosen, rejected = (ids[prompt:longest] for ids in texts)
    shortened = any(len(ids) > longest for ids in texts)
    if chosen == rejected:
        return f"both answers are the same in {longest} tokens"
    return TrainingPair(prompt_ids=texts[0][:prompt], chosen_ids=chosen, rejected_ids=rejected), shortened


def _shared_length(one: tuple[int, ...], other: tuple[int, ...], *, most: int) -> int:
    """How many tokens two texts begin with in common, at most ``most``."""
    return next((n for n in range(most) if one[: n + 1] != other[: n + 1]), most)
