"""Texts to what a guardrail's rules find in them that are read by the sentence encoder, which needs no model.

The encoder is all-MiniLM-L6-v2, as for the offline judge. Of a text it reads parts (``text_units``), and a rule's
reading is that of the highest; parts of more tokens than it takes at once are halved. It reads one long part or a few
short ones at a time, in turns (``poise.judge.encoder_turns``): a long text lets short ones in between. n: texts,
k: rules.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poise.errors import InvalidArgument
from poise.guardrail.findings import GuardFinding
from poise.guardrail.guard_file import ENCODER_WIDTH, FittedGuard, GuardDetector
from poise.guardrail.readings import ReadPlace
from poise.guardrail.schema import Guardrail
from poise.guardrail.text_units import UNIT_LENGTHS, UnitSplitter, text_units
from poise.judge.encoder_turns import ENCODER_TURNS
from poise.judge.exemplars import LONGEST_SENTENCE, check_sentence_encoder, sentence_embeddings, sentence_tokens

__all__ = [
    "MOST_ENCODED",
    "AnswerEncoding",
    "EncoderReader",
    "UnitEmbeddings",
    "embedded",
    "encoder_user",
    "unit_embeddings",
]

MOST_ENCODED = 400_000
"""Characters of a text that the encoder reads, some ten seconds of one core."""
UNITS_AT_ONCE, CHARACTERS_AT_ONCE = 32, 1000  # of long parts, many at once take as long a part as one by itself
EncoderReadings = NDArray[np.float64]


def encoder_user(guardrail: Guardrail) -> str:
    """Who needs the encoder, for the error where it is not installed."""
    return f"{guardrail.name} has rules that are `read_by: encoder`, which"


class EncoderReader:
    """Reads texts with those of a guardrail's detectors that the encoder reads.

    Args:
        fitted: The guardrail.

    Raises:
        MissingExtra: the encoder is not installed.
    """

    def __init__(self, fitted: FittedGuard) -> None:
        check_sentence_encoder(encoder_user(fitted.guardrail))
        self._detectors = fitted.encoder_detectors
        self._directions = fitted.encoder_directions.double().numpy().T

    def warm_up(self) -> None:
        """Load the encoder, so that no text waits for that."""
        embedded(["Hello."])

    def reads(self, place: ReadPlace) -> bool:
        """Whether any rule reads texts in this place."""
        return any(detector.reads == place for detector in self._detectors)

    def projections(self, text: str, place: ReadPlace) -> list[tuple[GuardDetector, float]]:
        """Each rule of this place with its reading of the text, of rules that both read its part; none of a blank text.

        Raises:
            InvalidArgument: the text is longer than the encoder reads.
        """
        if not self.reads(place):
            return []
        if len(text) > MOST_ENCODED:
            raise InvalidArgument(
                f"The text has {len(text):,} characters, and the sentence encoder reads at most {MOST_ENCODED:,}; "
                "check it in parts."
            )
        return self.of_units(text_units(text, place), place)

    def highest_of_both(self, prompts: Sequence[str]) -> list[tuple[GuardDetector, float]]:
        """Each rule that both read with the encoder's highest part of its reading in these prompts.

        Raises:
            InvalidArgument: a prompt is longer than the encoder reads.
        """
        highest: dict[str, tuple[GuardDetector, float]] = {}
        for prompt in prompts if any(detector.read_by == "both" for detector in self._detectors) else ():
            for detector, value in self.projections(prompt, "prompt"):
                before = highest.get(detector.rule, (detector, value))[1]
                highest[detector.rule] = (detector, max(before, value))
        return [(detector, value) for detector, value in highest.values() if detector.read_by == "both"]

    def of_units(self, units: Sequence[str], place: ReadPlace) -> list[tuple[GuardDetector, float]]:
        """The same of a text that has been cut."""
        if not units:
            return []
        [values] = _of_parts([units]).highest(self._directions)
        pairs = zip(self._detectors, values, strict=True)
        return [(detector, float(value)) for detector, value in pairs if detector.reads == place]

    def findings(self, text: str, place: ReadPlace) -> list[GuardFinding]:
        """What is above its threshold, without a judge.

        Raises:
            InvalidArgument: the text is longer than the encoder reads.
        """
        alone = [
            (detector, value) for detector, value in self.projections(text, place) if detector.read_by == "encoder"
        ]
        findings = [detector.finding(value, len(text)) for detector, value in alone]
        return [finding for finding in findings if finding]


class AnswerEncoding:
    """One answer that is still being written, read unit by unit.

    Args:
        reader: Reads it.
    """

    def __init__(self, reader: EncoderReader) -> None:
        self._reader, self._splitter = reader, UnitSplitter(UNIT_LENGTHS["answer"])
        self._texts: deque[str] = deque()  # not yet looked at; one thread may write while another looks
        self._reported: set[str] = set()
        self._uncertain: dict[str, tuple[GuardDetector, float]] = {}

    @property
    def uncertain(self) -> list[tuple[GuardDetector, float]]:
        """Rules whose highest reading so far a judge is to be asked about."""
        return [pair for rule, pair in list(self._uncertain.items()) if rule not in self._reported]

    def add(self, text: str) -> None:
        """Take in what has been written."""
        self._texts.append(text)

    def look(self, *, last: bool = False) -> list[GuardFinding]:
        """What the units that are complete by now come to for the first time, each rule once.

        Args:
            last: Whether the answer ends here.
        """
        text = "".join(self._texts.popleft() for _ in range(len(self._texts)))
        units = self._splitter.add(text) + (self._splitter.end() if last else [])
        findings = []
        for detector, value in self._reader.of_units(units, "answer"):
            decision, rule = detector.decision(value), detector.rule
            if decision == "ask" and value > self._uncertain.get(rule, (detector, -np.inf))[1]:
                self._uncertain[rule] = (detector, value)
            if decision == "act" and rule not in self._reported:
                self._reported.add(rule)
                findings.append(detector.certain(value, 0))
        return findings


@dataclass(frozen=True, slots=True)
class UnitEmbeddings:
    """Embeddings of the parts of n texts.

    Attributes:
        values: Embeddings of all parts [m, 384].
        starts: Row of each text's first part [n].
    """

    values: EncoderReadings
    starts: NDArray[np.intp]

    def highest(self, directions: EncoderReadings) -> EncoderReadings:
        """What directions [384, k] read of each text: its highest part's [n, k]."""
        if not len(self.starts):
            return np.zeros((0, directions.shape[1]))
        return np.asarray(np.maximum.reduceat(self.values @ directions, self.starts))


def unit_embeddings(texts: Sequence[str], place: ReadPlace) -> UnitEmbeddings:
    """Embeddings of all parts of texts, none of which is blank."""
    return _of_parts([text_units(text, place) for text in texts])


def _of_parts(texts: Sequence[Sequence[str]]) -> UnitEmbeddings:
    parts = [[part for unit in units for part in _within_reach(unit)] for units in texts]
    starts = np.cumsum([0, *(len(each) for each in parts)])[:-1]
    return UnitEmbeddings(embedded(list(itertools.chain.from_iterable(parts))), starts)


def embedded(texts: Sequence[str]) -> EncoderReadings:
    """Embeddings [n, 384] of the first 256 tokens of each text, a few at a time; equal texts are read once."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    out = np.empty((len(distinct), ENCODER_WIDTH))
    left = sum(map(len, distinct))
    for first, end in _at_once(distinct):
        with ENCODER_TURNS.turn(left):
            out[first:end] = sentence_embeddings(distinct[first:end])
        left -= sum(map(len, distinct[first:end]))
    place = {text: n for n, text in enumerate(distinct)}
    return out[[place[text] for text in texts]] if texts else out


def _at_once(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First of the texts that are read together, and the one after their last."""
    first = characters = 0
    for n, text in enumerate(texts):
        if n > first and (n - first == UNITS_AT_ONCE or characters + len(text) > CHARACTERS_AT_ONCE):
            yield first, n
            first, characters = n, 0
        characters += len(text)
    if texts:
        yield first, len(texts)


def _within_reach(unit: str) -> Iterator[str]:
    """The unit, halved until the encoder reads all of it."""
    if len(unit) < LONGEST_SENTENCE // 4 or sentence_tokens([unit])[0] <= LONGEST_SENTENCE:
        yield unit
        return
    middle = len(unit) // 2
    space = unit.find(" ", middle, middle + len(unit) // 4)
    cut = space if space >= 0 else middle
    for half in (unit[:cut].strip(), unit[cut:].strip()):
        if half:
            yield from _within_reach(half)
