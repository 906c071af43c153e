"""What a run learns from and is measured on: its data opened, read as examples or pairs, and what is held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poise.data import DataSet, Rejections, open_data
from poise.data.preference_data import PreferenceData, open_preferences
from poise.data.row_files import write_rejected_rows
from poise.errors import InvalidData
from poise.model import Model
from poise.progress import remark
from poise.train.config import TrainConfig
from poise.train.examples import TrainingExample, TrainingExamples, build_examples, open_training_data
from poise.train.pairs import TrainingPair, TrainingPairs, build_pairs

__all__ = ["RunData", "RunRows", "open_run_data", "read_run_rows", "split_held_out"]

AnyRows = TrainingExamples | TrainingPairs
AnyRow = TrainingExample | TrainingPair


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The data of a run, opened and not yet read.

    Attributes:
        source: Conversations, or the files of preference pairs with their rows as they are.
        pairs: The same as preference pairs; ``None`` where answers are learnt.
        only: Names of the files whose rows are vaccinated; ``None`` for all.
        held_out: Rows that are measured on, in place of a share of the data.
    """

    source: DataSet
    pairs: PreferenceData | None = None
    only: frozenset[str] | None = None
    held_out: DataSet | PreferenceData | None = None

    @property
    def digests(self) -> dict[str, str]:
        """Hashes of the data by the name of their setting."""
        hashes = {"data": self.source.digest()}
        if self.only is not None:
            parts = tuple(part for part in self.source.parts if part.name in self.only)
            hashes["vaccine.only"] = replace(self.source, parts=parts).digest()
        if self.held_out is not None:
            source = self.held_out.source if isinstance(self.held_out, PreferenceData) else self.held_out
            hashes["eval_data"] = source.digest()
        return hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRows:
    """The rows of a run as the model reads them.

    Attributes:
        training: What is learnt.
        held_out: What is measured on, without an inoculation prompt.
        rejected: How many rows could not be used, by kind, and the file that keeps them.
        learnt_too: How many of the rows that are measured on are learnt as well.
    """

    training: AnyRows
    held_out: AnyRows | None
    rejected: dict[str, Any]
    learnt_too: int = 0


def open_run_data(config: TrainConfig) -> RunData:
    """Find the data that the settings name.

    Raises:
        InvalidData: there is nothing to train or to measure on.
        InvalidArgument: a file to be vaccinated is not among the data, or is there twice.
    """
    names = list(config.eval_data)
    if config.method == "dpo":
        pairs = open_preferences(list(config.data), shape=config.shape, part=config.part)
        held_out_pairs = open_preferences(names, shape=config.shape, part=config.part) if names else None
        return RunData(source=pairs.source, pairs=pairs, held_out=held_out_pairs)
    data, only = open_training_data(config)
    held_out = open_data(names, shape=config.shape, part=config.part) if names else None
    return RunData(source=data, only=only, held_out=held_out)


def read_run_rows(config: TrainConfig, model: Model, data: RunData, folder: Path) -> RunRows:
    """Read the data as the model does; rows that cannot be used are listed and kept in the run's folder."""
    inoculation = config.vaccine.inoculation
    for name in ("rejected.jsonl", "rejected_eval.jsonl"):
        (folder / name).unlink(missing_ok=True)
    rejections = Rejections(folder / "rejected.jsonl")
    rows = _build(config, model, data.pairs or data.source, rejections, data.only, inoculation)
    kept_rows = write_rejected_rows(data.source, rejections, folder / "rejected_rows", rows=data.pairs or data.source)
    rejected = {"rejected": dict(rejections.kinds), "rejected_rows": kept_rows.path.name} if kept_rows else {}
    if data.held_out is not None:
        unusable = Rejections(folder / "rejected_eval.jsonl")
        measured = _build(config, model, data.held_out, unusable)
        rejected |= {"rejected_eval": dict(unusable.kinds)} if unusable.kinds else {}
        # An inoculation prompt stands before what is learnt, and not before what is measured on.
        plain = _build(config, model, data.pairs or data.source, Rejections(), data.only) if inoculation else rows
        learnt_too = _count_learnt(plain.rows, measured.rows, "eval_data")
        return RunRows(training=rows, held_out=measured, rejected=rejected, learnt_too=learnt_too)
    training, held_out = split_held_out(rows, config.held_out, config.seed)
    plain_training = training
    if held_out and inoculation:  # at test the prompt is not there
        conversations = {row.conversation for row in held_out}
        plain = _build(config, model, data.pairs or data.source, Rejections(), data.only)
        held_out = tuple(row for row in plain.rows if row.conversation in conversations)
        plain_training = tuple(row for row in plain.rows if row.conversation not in conversations)
    return RunRows(
        training=_replace_rows(rows, training),
        held_out=_replace_rows(rows, held_out) if held_out else None,
        rejected=rejected,
        learnt_too=_count_learnt(plain_training, held_out, "held_out"),
    )


def _count_learnt(training: Sequence[AnyRow], held_out: Sequence[AnyRow], setting: str) -> int:
    """How many held-out rows are among those that are learnt, by content, with a remark where there are any.

    Raises:
        InvalidData: all of ``eval_data``, so that nothing is held out.
    """
    learnt = {_content(row) for row in training}
    count = sum(_content(row) in learnt for row in held_out)
    if count and count == len(held_out) and setting == "eval_data":  # of a share, by chance, a row may be a repeat
        raise InvalidData(
            f"{setting}: all {count:,} texts that are held out are among those that are learnt, so that nothing is "
            "held out; name rows that are not in `data`."
        )
    if count:
        remark(
            f"{setting}: {count:,} of {len(held_out):,} texts that are held out are among those that are learnt as "
            "well; their loss falls because they are, so leave them out of one of both."
        )
    return count


def _content(row: AnyRow) -> tuple[tuple[int, ...], ...]:
    """The tokens of a row, which tell it from others whatever file it is in."""
    if isinstance(row, TrainingExample):
        return row.ids, row.labels
    return row.prompt_ids, row.chosen_ids, row.rejected_ids


def _build(
    config: TrainConfig,
    model: Model,
    data: DataSet | PreferenceData,
    rejections: Rejections,
    only: frozenset[str] | None = None,
    inoculation: str | None = None,
) -> AnyRows:
    longest = min(config.longest, model.window)
    if isinstance(data, PreferenceData):
        return build_pairs(model, data, longest=longest, rejections=rejections, inoculation=inoculation)
    return build_examples(model, data, longest=longest, rejections=rejections, inoculation=inoculation, only=only)


def _replace_rows(rows: Any, chosen: Sequence[Any]) -> Any:
    return replace(rows, rows=tuple(chosen))


def split_held_out(rows: AnyRows, share: float, seed: int) -> tuple[tuple[AnyRow, ...], tuple[AnyRow, ...]]:
    """Rows to train on and held-out ones, each in the data's order; a conversation is never in both.

    Raises:
        InvalidData: all of them would be held out.
    """
    conversations = sorted({row.conversation for row in rows.rows})
    n = max(round(share * len(conversations)), 1) if share else 0
    if n >= len(conversations):
        raise InvalidData(
            f"held_out: {share:g} holds out all {len(conversations)} conversations, and none is left to learn from; "
            "give more data, or less held_out."
        )
    held_out = {conversations[i] for i in random.Random(seed).sample(range(len(conversations)), n)}
    training = tuple(row for row in rows.rows if row.conversation not in held_out)
    return training, tuple(row for row in rows.rows if row.conversation in held_out)
