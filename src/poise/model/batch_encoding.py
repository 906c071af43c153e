"""Many texts through the tokenizer in few calls, where what is tokenised next depends on what came out before.

Work is written as steps, generators that yield a text and get its tokens. Those of many conversations go on side by
side, so that the tokenizer gets lists, which it parts among the processor's cores with Python's lock released. Where
one conversation asks for text after text with the same turns in them, each turn is tokenised once.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, TypeVar, overload

__all__ = [
    "EncodingSteps",
    "Stopped",
    "TextTokens",
    "TokenOffsets",
    "encode_together",
    "never",
    "turn_mark",
]

JobResult = TypeVar("JobResult")
TokenOffsets = Sequence[tuple[int, int]]
TextTokens = tuple[list[int], TokenOffsets]
"""Ids of a text's tokens, and the characters that each covers."""
EncodingSteps = Generator[str, TextTokens, JobResult]
Stopped = Callable[[], bool]

TEXTS_PER_CALL = 64
CHARACTERS_PER_CALL = 1_000_000  # a call cannot be interrupted, and what it gives is held at once


def never() -> bool:
    """For work that goes on to its end."""
    return False


def encode_together(
    tokenizer: Any, jobs: Sequence[EncodingSteps[JobResult]], stopped: Stopped = never
) -> list[JobResult]:
    """Run all jobs to their ends: what each returns, in order, whatever else is tokenised along with it.

    Args:
        tokenizer: A fast tokenizer, which gives a text the same tokens alone and in a list.
        jobs: Steps of each job.
        stopped: Asked before each call of the tokenizer.

    Raises:
        CancelledError: ``stopped`` said yes.
    """
    results: dict[int, JobResult] = {}
    waiting: deque[tuple[int, str]] = deque()
    known: dict[int, KnownPieces] = {}  # of jobs that ask a second time

    def go_on(number: int, tokens: TextTokens | None) -> None:
        try:
            text = jobs[number].send(tokens) if tokens else next(jobs[number])
        except StopIteration as end:
            results[number] = end.value
            known.pop(number, None)
        else:
            waiting.append((number, text))
            if tokens and number not in known:
                known[number] = KnownPieces(turn_mark(tokenizer))

    upcoming = iter(range(len(jobs)))
    while len(results) < len(jobs):
        while len(waiting) < TEXTS_PER_CALL and (number := next(upcoming, None)) is not None:
            go_on(number, None)
        if stopped():
            raise CancelledError
        batch: list[tuple[int, list[str]]] = []
        room = CHARACTERS_PER_CALL
        while waiting and len(batch) < TEXTS_PER_CALL and (not batch or len(waiting[0][1]) <= room):
            number, text = waiting.popleft()
            batch.append((number, known[number].split(text) if number in known else [text]))
            room -= len(text)
        for (number, _), tokens in zip(batch, _encode_pieces(tokenizer, batch, known), strict=True):
            go_on(number, tokens)
    return [results[number] for number in range(len(jobs))]


class KnownPieces(dict[str, TextTokens]):
    """TextTokens of the pieces of a conversation's texts: its turns, which one text after another has in it.

    Args:
        mark: Matches the tokens at which a text falls into pieces; ``None`` for nowhere.
    """

    def __init__(self, mark: re.Pattern[str] | None) -> None:
        super().__init__()
        self.mark = mark

    def split(self, text: str) -> list[str]:
        """A text parted before each mark."""
        matches = self.mark.finditer(text) if self.mark else ()
        return [
            text[first:last] for first, last in pairwise([0, *(m.start() for m in matches if m.start()), len(text)])
        ]


def turn_mark(tokenizer: Any) -> re.Pattern[str] | None:
    """The tokens at which a text falls into pieces that are tokenised alike together and apart; ``None`` without any.

    A tokenizer takes out its special tokens before it looks at what is between them; those count whose place does not
    depend on the text before them.
    """
    if getattr(tokenizer, "split_special_tokens", False):
        return None
    added = tokenizer.added_tokens_decoder.values()
    return _mark_pattern(
        frozenset(str(t) for t in added if t.special and not (t.normalized or t.single_word or t.lstrip)),
        frozenset(map(str, added)),
    )


@lru_cache(maxsize=16)
def _mark_pattern(special: frozenset[str], added: frozenset[str]) -> re.Pattern[str] | None:
    """Matches the special tokens that no other added token holds or runs into."""
    ends = {token[i:] for token in added for i in range(1, len(token))}
    inner = {end[:length] for end in ends for length in range(1, len(end) + 1)}
    marks = [
        mark
        for mark in special
        if not any(mark[:i] in ends for i in range(1, len(mark)))
        and mark not in inner
        and not any(mark != token and token.startswith(mark) for token in added)
    ]
    return re.compile("|".join(map(re.escape, sorted(marks)))) if marks else None


def _encode_pieces(
    tokenizer: Any, batch: Sequence[tuple[int, Sequence[str]]], known: Mapping[int, KnownPieces]
) -> list[TextTokens]:
    """TextTokens of each text of a batch; its pieces are looked up in what is known of its job, and added there."""
    new = dict.fromkeys(piece for number, pieces in batch for piece in pieces if piece not in known.get(number, ()))
    fresh: dict[str, TextTokens] = {}
    if new:
        out = tokenizer(list(new), add_special_tokens=False, return_offsets_mapping=True)
        fresh = dict(zip(new, zip(out["input_ids"], out["offset_mapping"], strict=True), strict=True))
    encoded: list[TextTokens] = []
    for number, pieces in batch:
        if number not in known:
            encoded.append(fresh[pieces[0]])
            continue
        of_job = known[number]
        of_job.update((piece, fresh[piece]) for piece in pieces if piece not in of_job)
        parts = [of_job[piece] for piece in pieces]
        encoded.append(([token for ids, _ in parts for token in ids], _JoinedOffsets(pieces, parts)))
    return encoded


class _JoinedOffsets(Sequence[tuple[int, int]]):
    """TokenOffsets of pieces as those of the text that they make, shifted when they are asked for."""

    def __init__(self, pieces: Sequence[str], parts: Sequence[TextTokens]) -> None:
        self.parts = [offsets for _, offsets in parts]
        self.tokens = [0, *accumulate(map(len, self.parts))]
        self.characters = [0, *accumulate(map(len, pieces))]

    def __len__(self) -> int:
        return self.tokens[-1]

    @overload
    def __getitem__(self, place: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, place: slice) -> list[tuple[int, int]]: ...
    def __getitem__(self, place: int | slice) -> tuple[int, int] | list[tuple[int, int]]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        part = bisect_right(self.tokens, place) - 1
        first, last = self.parts[part][place - self.tokens[part]]
        return first + self.characters[part], last + self.characters[part]
