"""What a detector is fitted on: exemplar pairs and ordinary talk, read once, in which equal texts count once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from poise.activations import read, read_layers
from poise.data import DataSet, InputRow, Rejections, conversation_key, data_from_rows, draw_conversations, turns
from poise.errors import NonFiniteActivation, TooFewResponses
from poise.model import Encoded, Model, ask
from poise.model.spans import AnswerSpan, answer_spans
from poise.storage.content_hash import content_key
from poise.trait import ExemplarPair

__all__ = ["DetectorData", "ReadTalk", "read_detector_data", "read_talk"]

FEWEST_FIT_PAIRS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorData:
    """What a detector is fitted on, read once at all layers. n: pairs, m: talk, L: decoder blocks, d: model width.

    Attributes:
        positive: Response means with the trait, float32 [n, L, d].
        negative: Response means without it, pair by pair, float32 [n, L, d].
        talk: Response means of ordinary talk, float32 [m, L, d].
        pairs_left_out: Number of pairs that the model's window has no room for, or whose answer has no token.
        talk_groups: Number of the conversation that each of them came from.
        pairs_sha256: SHA-256 of the pairs.
        normal: Number of answers used, by name of the data.
        normal_left_out: Number of rows and answers of the talk that could not be read.
        normal_sha256: SHA-256 of the talk that was read; empty where there is none.
        normal_keys: Key of each of its conversations.
        pair_groups: Number of the group of each pair: pairs that share an answer are in one; default, one a pair.
        positive_texts: Answers with the trait, so that equal ones count once.
        negative_texts: Answers without it.
        repeated: Number of pairs and answers of talk that were there before and are left away.
    """

    positive: torch.Tensor
    negative: torch.Tensor
    talk: torch.Tensor
    talk_groups: tuple[int, ...]
    pairs_left_out: int
    pairs_sha256: str
    normal: Mapping[str, int]
    normal_left_out: int
    normal_sha256: str
    normal_keys: tuple[str, ...]
    pair_groups: tuple[int, ...] = ()
    positive_texts: tuple[str, ...] = ()
    negative_texts: tuple[str, ...] = ()
    repeated: int = 0


def read_detector_data(
    pairs: Sequence[ExemplarPair],
    model: Model,
    normal: DataSet | Iterable[InputRow] | ReadTalk | None,
    *,
    limit: int = 500,
    seed: int = 0,
) -> DetectorData:
    """Read pairs and talk at all layers in one pass each.

    Raises:
        TooFewResponses: fewer than 12 pairs that fit the model's window.
        InvalidData: too many rows of the talk are rejected.
    """
    different = list({(p.positive, p.negative): p for p in reversed(pairs)}.values())[::-1]
    sides = [(_encode(model, p.question, p.positive), _encode(model, p.question, p.negative)) for p in different]
    usable = [i for i, side in enumerate(sides) if all(text and len(text.ids) <= model.window for text in side)]
    _check_enough_pairs([different[i] for i in usable], len(different) - len(usable))
    talked = normal if isinstance(normal, ReadTalk) else read_talk(model, normal, limit=limit, seed=seed)
    both = read_readable(model, [text for column in (0, 1) for i in usable if (text := sides[i][column])])
    both = both.reshape(2, len(usable), model.layers, model.width)
    readable = both.isfinite().all(-1).all(-1).all(0)
    used = [different[i] for i, one in zip(usable, readable.tolist(), strict=True) if one]
    _check_enough_pairs(used, len(different) - len(used))
    answers = {answer for p in used for answer in (p.positive, p.negative)}
    kept_talk = [i for i, text in enumerate(talked.answers) if text not in answers]
    return DetectorData(
        positive=both[0, readable],
        negative=both[1, readable],
        talk=talked.means[kept_talk],
        talk_groups=tuple(talked.conversations[i] for i in kept_talk),
        pairs_left_out=len(different) - len(used),
        pairs_sha256=content_key(pairs=[[p.question, p.positive, p.negative] for p in pairs]),
        normal=dict(Counter(talked.names[i] for i in kept_talk)),
        normal_left_out=talked.left_out,
        normal_sha256=talked.sha256,
        normal_keys=tuple(talked.keys),
        pair_groups=_linked_pairs(used),
        positive_texts=tuple(p.positive for p in used),
        negative_texts=tuple(p.negative for p in used),
        repeated=len(pairs) - len(different) + talked.repeated + len(talked.answers) - len(kept_talk),
    )


def _check_enough_pairs(pairs: Sequence[ExemplarPair], left_out: int) -> None:
    """Refuse too few pairs; those that share an answer count as one, since none can be held out without the others.

    Raises:
        TooFewResponses: fewer than 12.
    """
    different = len(set(_linked_pairs(pairs)))
    if different < FEWEST_FIT_PAIRS:
        shared = " (pairs that share an answer count as one)" if different < len(pairs) else ""
        raise TooFewResponses(
            f"There are {different} different exemplar pairs to fit a detector on ({left_out} more are too long for "
            f"the model's window or cannot be read){shared}, and it needs {FEWEST_FIT_PAIRS}; give more pairs."
        )


def _linked_pairs(pairs: Sequence[ExemplarPair]) -> tuple[int, ...]:
    """For each pair the number of its group: pairs that share an answer, on whichever side, are in one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[str, int] = {}
    ends = [[numbers.setdefault(text, len(numbers)) for text in (p.positive, p.negative)] for p in pairs]
    if not ends:
        return ()
    first, second = np.array(ends).T
    links = coo_array((np.ones(len(ends)), (first, second)), shape=(len(numbers), len(numbers)))
    return tuple(int(n) for n in connected_components(links, directed=False)[1][first])


def read_readable(model: Model, texts: Sequence[Encoded]) -> torch.Tensor:
    """Response means at all layers, float32 [n, L, d]; of a text that the model breaks on they are not finite."""
    try:
        return read(model, texts)
    except NonFiniteActivation:
        return read_layers(model, texts, range(model.layers))


def _encode(model: Model, question: str, answer: str) -> Encoded | None:
    text = model.encode(ask(question), answer)
    return text if text.start < text.end else None


@dataclass(slots=True)
class ReadTalk:
    """Ordinary talk, read once for any number of vectors. m: answers, L: decoder blocks, d: model width.

    Attributes:
        means: Response means, float32 [m, L, d].
        conversations: Number of the conversation that each answer came from.
        names: Name of the data of each.
        answers: Text of each; no two are equal.
        repeated: Number of answers whose text had been there before.
        left_out: Number of rows and answers that could not be read.
        sha256: SHA-256 of what was read; empty where there is none.
        keys: Key of each conversation of which an answer was read.
    """

    means: torch.Tensor
    conversations: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    repeated: int = 0
    left_out: int = 0
    sha256: str = ""
    keys: list[str] = field(default_factory=list)


def read_talk(model: Model, normal: DataSet | Iterable[InputRow] | None, *, limit: int, seed: int) -> ReadTalk:
    """The answers of conversations drawn at random, at all layers.

    Raises:
        InvalidData: too many rows are rejected.
    """
    talk = ReadTalk(torch.empty((0, model.layers, model.width)))
    drawn: list[tuple[Encoded, int, str, str]] = []
    seen: set[str] = set()
    keys: dict[str, None] = {}
    digest, rejections = hashlib.sha256(), Rejections()
    if normal is None:
        return talk
    data = data_from_rows(normal, need="assistant")
    for number, conversation in enumerate(draw_conversations(data, limit, seed=seed, rejections=rejections)):
        name = Path(conversation.file).name
        for place in answer_spans(model, turns(conversation)):
            if not isinstance(place, AnswerSpan) or place.text.end <= place.text.start:
                talk.left_out += 1
                continue
            keys[conversation_key(conversation)] = None
            digest.update(repr(tuple(place.text.ids)).encode())
            answer = model.tokenizer.decode(place.text.ids[place.text.start : place.text.end])
            if answer in seen:
                talk.repeated += 1
                continue
            seen.add(answer)
            drawn.append((place.text, number, name, answer))
    talk.left_out += len(rejections)
    talk.sha256, talk.keys = digest.hexdigest(), list(keys)
    if not drawn:
        return talk
    means = read_readable(model, [text for text, *_ in drawn])
    readable = means.isfinite().all(-1).all(-1)
    talk.means, talk.left_out = means[readable], talk.left_out + int((~readable).sum())
    for (_, number, name, answer), one in zip(drawn, readable.tolist(), strict=True):
        if one:
            talk.conversations.append(number)
            talk.names.append(name)
            talk.answers.append(answer)
    return talk
