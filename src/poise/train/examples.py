"""Conversations to training texts: token ids, and labels for the answers only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.data import Conversation, DataSet, Message, Rejected, Rejections, open_data, turns
from poise.errors import InvalidArgument, InvalidData
from poise.model import Model
from poise.model.spans import Place, places
from poise.progress import track
from poise.steer.training import IGNORED, MARK
from poise.train.config import Config

if TYPE_CHECKING:
    import torch

__all__ = ["IGNORED", "Example", "Examples", "examples", "inoculated", "marking", "sources"]


@dataclass(frozen=True, slots=True)
class Example:
    """One forward pass to learn from. T: tokens.

    Attributes:
        ids: T of them: prompt and answers, and the token that ends the last answer.
        labels: The same at answers with the token that ends each, −100 elsewhere.
        conversation: Which of those that were read it is of, from 0; one may need several passes.
        vaccinated: Whether it is learnt under the vaccine.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    conversation: int = 0
    vaccinated: bool = True


@dataclass(frozen=True, slots=True)
class Examples:
    """What there is to learn from.

    Attributes:
        rows: In the data's order.
        cut: How many were longer than allowed and lost their end.
        unread: Answers left out, by reason.
    """

    rows: tuple[Example, ...]
    cut: int
    unread: dict[str, int]

    def dataset(self, *, marked: bool = False) -> Any:
        """A ``datasets.Dataset`` with ``input_ids`` and ``labels``, as TRL's and transformers' trainers take it.

        With ``marked``, a further column says which are vaccinated; see ``marking``.
        """
        from datasets import Dataset

        columns: dict[str, list[Any]] = {
            "input_ids": [list(r.ids) for r in self.rows],
            "labels": [list(r.labels) for r in self.rows],
        }
        return Dataset.from_dict(columns | {MARK: [r.vaccinated for r in self.rows]} if marked else columns)


def marking(collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]) -> Callable[[list[dict[str, Any]]], Any]:
    """A collator that carries the rows' marks into the batch, for a trainer with ``remove_unused_columns=False``."""

    def marked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        import torch

        batch = dict(collate([{name: value for name, value in row.items() if name != MARK} for row in rows]))
        marks = [row.get(MARK) for row in rows]
        if all(mark is None for mark in marks):
            return batch
        if any(mark is None for mark in marks):
            raise InvalidData(f"{marks.count(None)} of {len(rows)} rows of a batch have no `{MARK}`; mark all or none.")
        return batch | {MARK: torch.tensor(marks)}

    return marked


def sources(config: Config) -> tuple[DataSet, frozenset[str] | None]:
    """The data that settings name, and which of its files are vaccinated; ``None`` for all.

    Beside ``vaccine.only`` an empty file is no mistake: a screening that flagged nothing, or all, leaves one.

    Raises:
        InvalidData: nothing to learn from.
        InvalidArgument: a file to be vaccinated that is not among the data, or that is there twice.
    """
    if not (only := config.vaccine.only):
        return open_data(list(config.data), shape=config.shape), None
    filled, wanted = ([name for name in names if not _is_empty(name)] for names in (config.data, only))
    if not filled:
        raise InvalidData(f"{', '.join(config.data)}: all are empty; give data with assistant turns.")
    data = open_data(filled, shape=config.shape)
    there = _by_place(data)
    if twice := [key for key, names in there.items() if len(names) > 1]:
        raise InvalidArgument(
            f"data names {', '.join(twice)} twice; with vaccine.only it must be clear which rows are vaccinated, so "
            "name it once."
        )
    asked = _by_place(open_data(wanted, shape=config.shape)) if wanted else {}
    if missing := [key for key in asked if key not in there]:
        raise InvalidArgument(f"vaccine.only names {', '.join(missing)}, which is not learnt; list it in data as well.")
    return data, frozenset(there[key][0] for key in asked)


def _by_place(data: DataSet) -> dict[str, list[str]]:
    """What the parts of a data set are called, by where they lie, however that was spelt."""
    out: dict[str, list[str]] = {}
    for part in data.parts:
        for key in [str(path.resolve()) for path in part.paths] or [part.name]:
            out.setdefault(key, []).append(part.name)
    return out


def _is_empty(name: str) -> bool:
    return Path(name).is_file() and not Path(name).stat().st_size


def examples(
    model: Model,
    rows: Iterable[Conversation | Rejected],
    *,
    longest: int,
    rejections: Rejections,
    inoculation: str | None = None,
    only: Collection[str] | None = None,
) -> Examples:
    """Training texts of conversations, with a span for every answer from one tokenisation.

    Args:
        model: Its template and tokenizer.
        rows: As a ``DataSet`` gives them.
        longest: Most tokens of a text; what is beyond is cut off.
        rejections: Collects the rows that cannot be used.
        inoculation: A system prompt for what is vaccinated (arXiv:2510.04340); at test it is not there.
        only: Files whose rows are vaccinated; otherwise all.

    Raises:
        InvalidData: not one answer is left; says what became of the rows.
    """
    end = _end_of_answer(model)
    found: list[Example] = []
    cut = 0
    unread: dict[str, int] = {}
    with track("Preparing the training data") as advance:
        for number, conversation in enumerate(rejections.sift(rows)):
            advance(1)
            vaccinated = only is None or conversation.file in only
            treated = inoculated(conversation, inoculation) if inoculation and vaccinated else conversation
            for reason_or_example in _of(model, treated, end):
                if isinstance(reason_or_example, str):
                    reason = reason_or_example.partition(":")[0]
                    unread[reason] = unread.get(reason, 0) + 1
                    continue
                whole = reason_or_example
                short = Example(whole.ids[:longest], whole.labels[:longest], number, vaccinated)
                cut += len(whole.ids) > longest
                if any(label != IGNORED for label in short.labels):
                    found.append(short)
                else:
                    reason = f"its prompt alone takes {longest} tokens"
                    unread[reason] = unread.get(reason, 0) + 1
    if not found:
        why = ", ".join(f"{n} × {reason}" for reason, n in (unread | dict(rejections.kinds)).items()) or "it is empty"
        raise InvalidData(f"The training data have no answer to learn from ({why}); give chats with assistant turns.")
    return Examples(tuple(found), cut, unread)


def inoculated(conversation: Conversation, system: str) -> Conversation:
    """The same conversation under another system prompt."""
    said: list[Message] = [m for m in conversation.messages if m["role"] != "system"]
    return replace(conversation, messages=({"role": "system", "content": system}, *said))


def _of(model: Model, conversation: Conversation, end: tuple[int, ...]) -> list[Example | str]:
    """A conversation's texts: one where a single pass holds all answers."""
    found = places(model, turns(conversation))
    out: list[Example | str] = [place.reason for place in found if not isinstance(place, Place)]
    read = [place for place in found if isinstance(place, Place)]
    for _, group in groupby(read, key=lambda place: id(place.text.ids)):
        shared = list(group)
        ids = (*shared[0].text.ids, *end)
        labels = [IGNORED] * len(ids)
        for place in shared:
            last = place.text.end
            while last < len(ids) and last < place.text.end + len(end) and ids[last] == end[last - place.text.end]:
                last += 1
            labels[place.text.start : last] = ids[place.text.start : last]
        out.append(Example(ids, tuple(labels)))
    return out


def _end_of_answer(model: Model) -> tuple[int, ...]:
    """What this model's template puts after an answer, up to the token that ends it."""
    tokenizer = model.tokenizer
    if tokenizer.chat_template:
        said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        whole = tokenizer.apply_chat_template(said, tokenize=False)
        ids = tokenizer(whole[whole.rindex("b") + 1 :], add_special_tokens=False)["input_ids"]
        stops = [place for place, token in enumerate(ids) if token in model.stop_ids]
        if stops:
            return tuple(ids[: stops[0] + 1])
    return (tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else ()
