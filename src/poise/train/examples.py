"""Conversations to training texts: token ids, and labels for the answers only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.data import Conversation, DataSet, Message, RejectedRow, Rejections, open_data, turns
from poise.data.input_files import import_extra
from poise.errors import InvalidArgument, InvalidData
from poise.model import Model
from poise.model.chat_template import end_of_answer_ids
from poise.model.spans import AnswerSpan, answer_spans, learnt_end
from poise.progress import track
from poise.steer.training import IGNORED, MARK
from poise.train.config import TrainConfig

if TYPE_CHECKING:
    import torch

__all__ = [
    "IGNORED",
    "TrainingExample",
    "TrainingExamples",
    "build_examples",
    "marking_collator",
    "open_training_data",
    "with_system_prompt",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExample:
    """The text of one training forward pass. T: tokens.

    Attributes:
        ids: T token ids: prompt and answers, and the token that ends the last answer.
        labels: The same ids at answers and the token that ends each, −100 elsewhere.
        conversation: Number of the conversation it comes from, counted from 0; one may need several passes.
        vaccinated: Whether it is trained on under the vaccine.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    conversation: int = 0
    vaccinated: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExamples:
    """The training examples of a data set.

    Attributes:
        rows: The examples, in the data's order.
        cut: Number of examples that were too long and lost their end.
        unread: Number of answers left out, by reason.
        omitted: What of the rows is not learnt, by kind: turns marked so, images, thoughts.
    """

    rows: tuple[TrainingExample, ...]
    cut: int
    unread: dict[str, int]
    omitted: dict[str, int] = field(default_factory=dict)

    def dataset(self, *, marked: bool = False) -> Any:
        """A ``datasets.Dataset`` with ``input_ids`` and ``labels``, as TRL's and transformers' trainers take it.

        With ``marked``, a further column says which are vaccinated; see ``marking_collator``.
        """
        from datasets import Dataset

        columns: dict[str, list[Any]] = {
            "input_ids": [list(r.ids) for r in self.rows],
            "labels": [list(r.labels) for r in self.rows],
        }
        return Dataset.from_dict(columns | {MARK: [r.vaccinated for r in self.rows]} if marked else columns)


def marking_collator(
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
) -> Callable[[list[dict[str, Any]]], Any]:
    """A collator that carries the rows' marks into the batch, for a trainer with ``remove_unused_columns=False``."""

    def collate_with_marks(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        import torch

        batch = dict(collate([{name: value for name, value in row.items() if name != MARK} for row in rows]))
        marks = [row.get(MARK) for row in rows]
        if all(mark is None for mark in marks):
            return batch
        if any(mark is None for mark in marks):
            raise InvalidData(f"{marks.count(None)} of {len(rows)} rows of a batch have no `{MARK}`; mark all or none.")
        return batch | {MARK: torch.tensor(marks)}

    return collate_with_marks


def open_training_data(config: TrainConfig) -> tuple[DataSet, frozenset[str] | None]:
    """The data that a configuration names, and which of its files are vaccinated; ``None`` for all.

    With ``vaccine.only`` an empty file is no mistake: a screening that flagged nothing, or everything, leaves one.

    Raises:
        InvalidData: there is nothing to train on.
        InvalidArgument: a file to be vaccinated is not among the data, or is there twice.
    """
    if not (only := config.vaccine.only):
        return open_data(list(config.data), shape=config.shape, part=config.part), None
    data_files, vaccinated_files = ([name for name in names if not _is_empty(name)] for names in (config.data, only))
    if not data_files:
        raise InvalidData(f"{', '.join(config.data)}: all are empty; give data with assistant turns.")
    data = open_data(data_files, shape=config.shape, part=config.part)
    names_by_path = _part_names_by_path(data)
    if twice := [path for path, names in names_by_path.items() if len(names) > 1]:
        raise InvalidArgument(
            f"data names {', '.join(twice)} twice; with vaccine.only it must be clear which rows are vaccinated, so "
            "name it once."
        )
    vaccinated = (
        _part_names_by_path(open_data(vaccinated_files, shape=config.shape, part=config.part))
        if vaccinated_files
        else {}
    )
    if missing := [path for path in vaccinated if path not in names_by_path]:
        raise InvalidArgument(
            f"vaccine.only names {', '.join(missing)}, which is not trained on; list it in data as well."
        )
    return data, frozenset(names_by_path[path][0] for path in vaccinated)


def _part_names_by_path(data: DataSet) -> dict[str, list[str]]:
    """Names of a data set's parts by their resolved path, however that was spelt."""
    names: dict[str, list[str]] = {}
    for part in data.parts:
        for path in part.paths:
            member = part.name.removeprefix(str(path)) if part.name.startswith(f"{path}/") else ""
            names.setdefault(f"{path.resolve()}{member}", []).append(part.name)
        if not part.paths:
            names.setdefault(part.name, []).append(part.name)
    return names


def _is_empty(name: str) -> bool:
    path = Path(name)
    if path.is_file() and path.suffix.lower() == ".parquet":
        parquet = import_extra("pyarrow.parquet", f"Reading {name}")
        with contextlib.suppress(OSError, ValueError):  # whoever reads it says what is wrong
            return not parquet.read_metadata(path).num_rows
    return path.is_file() and not path.stat().st_size


def build_examples(
    model: Model,
    rows: Iterable[Conversation | RejectedRow],
    *,
    longest: int,
    rejections: Rejections,
    inoculation: str | None = None,
    only: Collection[str] | None = None,
) -> TrainingExamples:
    """Training examples of conversations, with a span for every answer from one tokenisation.

    Args:
        model: Its chat template and tokenizer are used.
        rows: Conversations and rejected rows, as iterating over a ``DataSet`` gives them.
        longest: Most tokens of a text; what is beyond is cut off.
        rejections: Collects the rows that cannot be used.
        inoculation: A system prompt for vaccinated rows (arXiv:2510.04340); at test it is not there.
        only: Files whose rows are vaccinated; otherwise all.

    Raises:
        InvalidData: not one answer is left; says what became of the rows.
    """
    end = end_of_answer_ids(model.tokenizer, model.stop_ids)
    examples: list[TrainingExample] = []
    cut = 0
    unread: dict[str, int] = {}
    with track("Preparing the training data") as advance:
        for number, conversation in enumerate(rejections.sift(rows)):
            advance(1)
            vaccinated = only is None or conversation.file in only
            if inoculation and vaccinated:
                conversation = with_system_prompt(conversation, inoculation)
            for example in _conversation_examples(model, conversation, end):
                if isinstance(example, str):
                    reason = example.partition(":")[0]
                    unread[reason] = unread.get(reason, 0) + 1
                    continue
                short = TrainingExample(
                    ids=example.ids[:longest],
                    labels=example.labels[:longest],
                    conversation=number,
                    vaccinated=vaccinated,
                )
                cut += len(example.ids) > longest
                if any(label != IGNORED for label in short.labels):
                    examples.append(short)
                else:
                    reason = f"its prompt alone takes {longest} tokens"
                    unread[reason] = unread.get(reason, 0) + 1
    if not examples:
        why = ", ".join(f"{n} × {reason}" for reason, n in (unread | dict(rejections.kinds)).items()) or "it is empty"
        raise InvalidData(f"The training data have no answer to learn from ({why}); give chats with assistant turns.")
    return TrainingExamples(rows=tuple(examples), cut=cut, unread=unread, omitted=dict(rejections.left_out))


def with_system_prompt(conversation: Conversation, system: str) -> Conversation:
    """The same conversation with its system prompt replaced."""
    messages: list[Message] = [m for m in conversation.messages if m["role"] != "system"]
    return replace(conversation, messages=({"role": "system", "content": system}, *messages))


def _conversation_examples(
    model: Model, conversation: Conversation, end: tuple[int, ...]
) -> list[TrainingExample | str]:
    """A conversation's examples, one where a single pass holds all answers; the reason for each unreadable answer."""
    answers = answer_spans(model, turns(conversation))
    examples: list[TrainingExample | str] = [answer.reason for answer in answers if not isinstance(answer, AnswerSpan)]
    readable = [answer for answer in answers if isinstance(answer, AnswerSpan)]
    for _, group in groupby(readable, key=lambda place: id(place.text.ids)):
        same_pass = list(group)
        ids = (*same_pass[0].text.ids, *end)
        labels = [IGNORED] * len(ids)
        for place in same_pass:
            last = learnt_end(ids, place.text.end, end, conversation.answer_part)
            labels[place.text.start : last] = ids[place.text.start : last]
        examples.append(TrainingExample(ids=ids, labels=tuple(labels)))
    return examples
