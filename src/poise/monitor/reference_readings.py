"""Normal talk, read: the model's own answers to a data set's prompts, or the answers that the data gives."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.activations import Probe
from poise.data import Conversation, Rejections, count_left_out, last_user, repeated_conversations
from poise.engine import Engine, SamplingParams
from poise.engine.types import engine_key
from poise.errors import InvalidArgument, UnsuitableModel
from poise.model import Encoded, Model
from poise.model.spans import fit
from poise.monitor.readings import READING_NAMES, AnswerReadings, ReadingName, summarize_projections
from poise.monitor.scoring import score_turns, topic_of
from poise.progress import track
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal

__all__ = [
    "ReferenceReadings",
    "generate_and_read",
    "read_data_answers",
    "read_generated_answers",
]


REPEATED = "repeat another conversation or its beginning"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceReadings:
    """Readings of n normal answers by k probes.

    Attributes:
        readings: One an answer.
        conversations: Which conversation each came from.
        topics: Each one's topic; ``None`` where it has none.
        left_out: What was not read, by reason.
        omitted: What of the conversations that were read is no text, or is not to be read, by kind.
    """

    readings: tuple[AnswerReadings, ...]
    conversations: tuple[int, ...]
    topics: tuple[str | None, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    omitted: Mapping[str, int] = field(default_factory=dict)

    def column(
        self, reading: ReadingName, column: int, topic: str | None = None
    ) -> tuple[NDArray[np.float64], list[int]]:
        """One probe's readings [n] that are not missing, and their conversations; of one topic or of all."""
        values = np.array([r.of(reading)[column] for r in self.readings], dtype=float)
        wanted = [topic is None or t == topic for t in self.topics]
        present = np.flatnonzero(np.isfinite(values) & np.array(wanted, dtype=bool))
        return values[present], [self.conversations[i] for i in present]


def read_generated_answers(
    conversations: Sequence[Conversation],
    engine: Engine,
    model: Model,
    probes: Sequence[Probe],
    sampling: SamplingParams,
    *,
    by: str | None = None,
    seed: int = 0,
    journal: Journal,
) -> ReferenceReadings:
    """Let the model answer the conversations' prompts, each different one once, and read it while it does.

    Args:
        conversations: Each up to its last user turn before the first reply makes a prompt.
        engine: Answers.
        model: Tokenises for the engine.
        probes: k of them.
        sampling: Sampling as the model will be used: readings depend on it.
        by: Field that tells topics apart.
        seed: Every prompt has its own stream made from this.
        journal: Finished batches go there.

    Raises:
        InvalidArgument: no room for an answer in the model's window; or no row has the field ``by``.
    """
    room = model.generation_window() - sampling.max_new_tokens
    if room < 1:
        raise InvalidArgument(
            f"Answers of {sampling.max_new_tokens} tokens leave no room for a prompt in the window of {model.name} "
            f"({model.generation_window()}); ask for fewer with `max_new_tokens`."
        )
    prompts: dict[tuple[int, ...], tuple[Encoded, Conversation]] = {}
    left_out = Counter[str]()
    for conversation in conversations:
        try:
            fitted = fit(model, last_user(conversation), None, room, tools=conversation.tools)
        except UnsuitableModel:
            left_out["refused by the chat template"] += 1
            continue
        if fitted is None:
            left_out["longer than the model's window"] += 1
        elif fitted[0].ids in prompts:
            left_out["asked already"] += 1
        else:
            prompts[fitted[0].ids] = (fitted[0], conversation)
    answered = [conversation for _, conversation in prompts.values()]
    topics = _topics(answered, by)
    read = generate_and_read(
        engine, model, [p for p, _ in prompts.values()], sampling, probes, seed=seed, journal=journal
    )
    return ReferenceReadings(
        readings=tuple(read),
        conversations=tuple(c.index for c in answered),
        topics=topics,
        left_out=left_out,
        omitted=count_left_out(answered),
    )


def read_data_answers(
    conversations: Sequence[Conversation],
    model: Model,
    probes: Sequence[Probe],
    *,
    by: str | None = None,
) -> ReferenceReadings:
    """Read the answers that conversations hold; those of one conversation count as one for intervals.

    A conversation that repeats another one or its beginning is left out; where the two are of different topics it is
    read for its own topic, and the two count as one.

    Raises:
        InvalidArgument: no row has the field ``by``.
    """
    topics = _topics(conversations, by)
    unreadable = Rejections()
    repeats = repeated_conversations(replace(one, index=i) for i, one in enumerate(conversations))
    copies = {i for i, other in repeats.items() if topics[i] == topics[other]}
    chosen = [i for i in range(len(conversations)) if i not in copies]
    numbered = [replace(conversations[i], index=n) for n, i in enumerate(chosen)]  # drawn from far apart, read together
    left_out, done = Counter[str]({REPEATED: len(copies)} if copies else {}), 0
    readings: list[tuple[AnswerReadings, int]] = []
    with track("Reading answers", total=len(numbered)) as advance:
        for following, scored in score_turns(numbered, model, probes, unreadable):
            readings += [(one.readings, one.conversation.index) for one in scored if one.readings]
            left_out.update(one.unread.partition(":")[0] for one in scored if not one.readings)
            advance(following - done)
            done = following
    which = tuple(chosen[n] for _, n in readings)
    return ReferenceReadings(
        readings=tuple(r for r, _ in readings),
        conversations=tuple(repeats.get(i, i) for i in which),
        topics=tuple(topics[i] for i in which),
        left_out=left_out + unreadable.kinds,
        omitted=count_left_out(conversations[i] for i in dict.fromkeys(which)),
    )


def _topics(conversations: Sequence[Conversation], by: str | None) -> tuple[str | None, ...]:
    topics = tuple(topic_of(c, by) for c in conversations)
    if by and conversations and not any(topics):
        has = ", ".join(conversations[0].fields) or "none"
        raise InvalidArgument(f"No row has a field {by!r} to tell topics apart; the first one's fields: {has}.")
    return topics


def generate_and_read(
    engine: Engine,
    model: Model,
    prompts: Sequence[Encoded],
    sampling: SamplingParams,
    probes: Sequence[Probe],
    *,
    seed: int = 0,
    journal: Journal,
) -> list[AnswerReadings]:
    """Let the model answer each prompt and read the answers as they are generated, in order.

    Batches are planned from the whole list and kept as they finish: a killed run loses one of them, and what it did
    again it does in the same batches.
    """
    keys = [_answer_key(engine, model, prompt, sampling, probes, seed) for prompt in prompts]
    with track("Answering as usual", total=len(prompts)) as advance:
        for batch in engine.plan(prompts, sampling):
            if not all(keys[i] in journal for i in batch):
                generations = engine.generate(
                    [prompts[i] for i in batch],
                    sampling,
                    seeds=[_prompt_seed(prompts[i], seed) for i in batch],
                    probes=probes,
                )
                summed = [summarize_projections(r) for g in generations if (r := g.readings_of("reply")) is not None]
                journal.append(
                    (keys[i], _journal_row(readings))
                    for i, readings in zip(batch, summed, strict=True)
                    if keys[i] not in journal
                )
            advance(len(batch))
    return [_from_journal_row(journal[key]) for key in keys]


def _answer_key(
    engine: Engine, model: Model, prompt: Encoded, sampling: SamplingParams, probes: Sequence[Probe], seed: int
) -> str:
    return content_key(
        model=asdict(model.fingerprint),
        prompt=list(prompt.ids),
        sampling=asdict(sampling),
        probes=[[p.layer, hashlib.sha256(p.direction.numpy().tobytes()).hexdigest()] for p in probes],
        seed=seed,
        **engine_key(engine),
    )


def _prompt_seed(prompt: Encoded, seed: int) -> int:
    """The random stream of a prompt's answer: the same whatever watches it."""
    return int(content_key(prompt=list(prompt.ids), seed=seed)[:16], 16)


def _journal_row(of: AnswerReadings) -> dict[str, Any]:
    """JSON-able: a missing reading is null."""
    return {name: None if math.isnan(of.of(name)[0]) else of.of(name) for name in READING_NAMES} | {"tokens": of.tokens}


def _from_journal_row(row: dict[str, Any]) -> AnswerReadings:
    missing = (math.nan,) * len(row["prompt"])
    prompt, mean, peak = (tuple(row[name]) if row[name] else missing for name in READING_NAMES)
    return AnswerReadings(prompt=prompt, mean=mean, peak=peak, tokens=row["tokens"])
