"""The base model's own answers y′ (Chen et al. 2025, section 6): greedy, batched, kept on disk under what they answer.

One SQLite file a model and length serves every vector and every other answer to the same prompts, and several
processes at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np

from poise.data import Turn
from poise.engine import Engine, SamplingParams
from poise.engine.answer_parts import answer_parts
from poise.engine.static import LocalEngine
from poise.engine.types import engine_key
from poise.errors import InvalidArgument, UnsuitableModel
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, fit, turn_begin
from poise.storage.content_hash import content_key
from poise.storage.sqlite_file import connected

__all__ = ["AnswerFile", "AnswerStore", "BaseAnswers"]


class AnswerStore(Protocol):
    """A store of answers: tokens by the digest of their prompt."""

    def load(self, keys: Collection[bytes]) -> dict[bytes, tuple[int, ...]]:
        """The answers that there are."""

    def save(self, answers: Mapping[bytes, tuple[int, ...]]) -> None:
        """Keep answers; those that are kept already stay."""


class AnswerFile:
    """Answers in one SQLite file.

    Raises:
        SaveFailed: the disk refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with connected(self.path, "kept answers") as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE IF NOT EXISTS answers (prompt BLOB PRIMARY KEY, ids BLOB NOT NULL)")

    def load(self, keys: Collection[bytes]) -> dict[bytes, tuple[int, ...]]:
        """See ``AnswerStore.load``."""
        with connected(self.path, "kept answers") as db:
            stored = ((key, db.execute("SELECT ids FROM answers WHERE prompt = ?", (key,)).fetchone()) for key in keys)
            return {key: tuple(np.frombuffer(row[0], dtype="<i4").tolist()) for key, row in stored if row}

    def save(self, answers: Mapping[bytes, tuple[int, ...]]) -> None:
        """See ``AnswerStore.save``."""
        rows = [(key, np.array(ids, dtype="<i4").tobytes()) for key, ids in answers.items()]
        with connected(self.path, "kept answers") as db:
            db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)


class BaseAnswers:
    """Answers to prompts, generated where they are not kept yet.

    Args:
        model: The base model.
        place: Folder that holds their file, or another store of answers.
        max_new_tokens: Longest answer.
        batch: Most rows generated at once.
        engine: What generates; default, an engine on ``model``.

    Raises:
        InvalidArgument: such an answer leaves no room for a prompt in the model's window.
        SaveFailed: the disk refused.
    """

    def __init__(
        self,
        model: Model,
        place: Path | AnswerStore,
        *,
        max_new_tokens: int,
        batch: int = 32,
        engine: Engine | None = None,
    ) -> None:
        if max_new_tokens >= model.generation_window():
            raise InvalidArgument(
                f"{max_new_tokens} new tokens leave no room for a prompt in the window of {model.name} "
                f"({model.generation_window()}); ask for fewer with `max_new_tokens`."
            )
        self.model, self.batch = model, batch
        self.engine = engine or LocalEngine(model, batch=batch)
        self.sampling = SamplingParams(max_new_tokens=max_new_tokens, temperature=0)
        job = content_key(
            model=asdict(model.fingerprint), dtype=str(model.lm.dtype), tokens=max_new_tokens, **engine_key(self.engine)
        )
        self.store = AnswerFile(place / f"answers-{job[:16]}.sqlite") if isinstance(place, Path) else place

    def prompt_for(self, turn: Turn, place: AnswerSpan) -> Encoded | None:
        """What the model is asked in order to answer in a turn's place.

        Where the text before the turn leaves no room for an answer, earlier turns are left out; ``None`` where not even
        the last user turn has room.
        """
        model, text = self.model, place.text
        room = model.generation_window() - self.sampling.max_new_tokens
        if text.start <= room:
            return Encoded(text.ids[: text.start], text.start, text.start)
        try:
            fitted = fit(model, turn.history, None, room, tools=turn.tools, begin=turn_begin(turn, place))
        except UnsuitableModel:
            return None
        return fitted[0] if fitted else None

    def count_missing(self, prompts: Sequence[Encoded]) -> int:
        """How many different prompts have no answer yet."""
        keys = {_prompt_digest(prompt) for prompt in prompts}
        return len(keys) - len(self.store.load(keys))

    def generate(self, prompts: Sequence[Encoded]) -> list[Encoded]:
        """Each prompt with the model's own reply as its response, in order; equal prompts get one answer.

        What the model thinks before it replies stands in the text, and is no part of the response.

        Batches are written as they are finished; what is left after a kill is planned into the same batches.

        Raises:
            SaveFailed: the disk refused; earlier batches are safe.
        """
        keys = [_prompt_digest(p) for p in prompts]
        known = self.store.load(set(keys))
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        missing = [i for key, i in first.items() if key not in known]
        missing.sort()
        missing_prompts = [
            Encoded(prompts[i].ids[: prompts[i].start], prompts[i].start, prompts[i].start) for i in missing
        ]
        for rows in self.engine.plan(missing_prompts, self.sampling):
            generations = self.engine.generate([missing_prompts[r] for r in rows], self.sampling)
            new = {keys[missing[r]]: g.ids for r, g in zip(rows, generations, strict=True)}
            self.store.save(new)
            known |= self.store.load(set(new))  # another process may have been first
        return [self._with_answer(p, known[key]) for p, key in zip(prompts, keys, strict=True)]

    def decode(self, answered: Encoded) -> str:
        """The reply's text."""
        prompt_end = answered.last_prompt + 1
        return answer_parts(self.model, answered.ids[:prompt_end], answered.ids[prompt_end:]).reply

    def is_cut(self, answered: Encoded) -> bool:
        """Whether the answer is as long as answers may be, and probably unfinished."""
        return len(answered.ids) - answered.last_prompt > self.sampling.max_new_tokens

    def _with_answer(self, prompt: Encoded, ids: tuple[int, ...]) -> Encoded:
        before = prompt.ids[: prompt.start]
        start, end = answer_parts(self.model, before, ids).reply_span
        return Encoded((*before, *ids), len(before) + start, len(before) + end, len(before))


def _prompt_digest(prompt: Encoded) -> bytes:
    return hashlib.sha256(np.array(prompt.ids[: prompt.start], dtype="<i4").tobytes()).digest()
