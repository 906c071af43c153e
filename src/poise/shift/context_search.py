"""Training data to the contexts that recur in them: system prompts, what turns begin and end with, worked examples.

What is taken for a context is a rule, not a guess: it is shared by a stated share of the rows, and every context says
by how many. Nothing is measured here.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from pydantic import Field

from poise.arguments import check_number
from poise.counting import counted
from poise.data import Conversation, DataSet, PreferenceData, RejectedRow, Rejections, open_data, open_preferences
from poise.data.dataset import InputRow, data_from_rows
from poise.errors import InvalidData
from poise.progress import track
from poise.settings import FrozenModel
from poise.shift.contexts import ContextTurn, PromptContext, one_line
from poise.shift.recurring_text import NEARLY_ALL, RecurringText, recurring_ends, recurring_starts

__all__ = ["ContextSearch", "find_contexts", "open_prompts"]

MOST_ROWS = 20_000  # rows that are looked at, drawn at random from more
WORKED_EXAMPLES = 2  # exchanges of the context of worked examples
EXAMPLE_LENGTH = 600  # characters of the longest side of one
NAMED_CANDIDATES = 8  # contexts that are not measured, in a note
CONTEXT_KINDS = {"system": "system prompts", "prefix": "beginnings of users' turns", "suffix": "ends of them"}
NAME_LENGTH = 40  # characters of a text that a name shows


class ContextSearch(FrozenModel):
    """What was found in training data.

    Attributes:
        contexts: Those to measure, the most frequent of each kind in turn.
        notes: What was looked at, found and left out, in sentences.
    """

    contexts: tuple[PromptContext, ...]
    notes: tuple[str, ...] = Field(description="What was looked at, found and left out, in sentences.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPrompt:
    """What a model sees of one row.

    Attributes:
        system: Its system prompt; empty for none.
        users: Turns of the user.
        exchange: Its first question with the answer, where they are short enough for an example.
    """

    system: str
    users: tuple[str, ...]
    exchange: ContextTurn | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A context with the rows that have it."""

    kind: str
    rows: frozenset[int]
    system: str = ""
    prefix: str = ""
    suffix: str = ""

    @property
    def parts(self) -> tuple[str, str, str]:
        """What is put around a question."""
        return self.system, self.prefix, self.suffix

    def without_system(self) -> Candidate:
        """The same beginning and end under no system prompt."""
        return replace(self, kind="prefix" if self.prefix else "suffix", system="")


def find_contexts(
    data: str | Path | Sequence[str | Path] | DataSet | PreferenceData | Sequence[InputRow],
    *,
    share: float = 0.02,
    least_rows: int = 5,
    most: int = 6,
    seed: int = 0,
) -> ContextSearch:
    """The contexts that recur in training data.

    A system prompt, a beginning or an end of users' turns is one if at least ``share`` of the rows, and ``least_rows``
    of them, have it; ``poise.shift.recurring_text`` says which beginnings and ends are more than how people talk. Each
    takes along what nine in ten of its rows share besides. Where all system prompts are rarer one of them is drawn at
    random, and two short exchanges are drawn as worked examples that stand before the question.

    Args:
        data: A name, as ``open_data`` and ``open_preferences`` take it, an opened data set, or rows in memory.
        share: Least share of the rows.
        least_rows: Fewest rows.
        most: Most contexts beside the drawn ones; the most frequent of each kind in turn.
        seed: Seed of what is drawn.

    Raises:
        InvalidData: the data cannot be read, or no row has a turn of a user.
        InvalidArgument: a share, number of rows or of contexts out of range.
    """
    check_number("share", share, least=0, most=1)
    check_number("least_rows", least_rows, least=2, most=2**31)
    check_number("most", most, least=1, most=1000)
    draw = random.Random(seed)
    rejections = Rejections()
    rows = _draw_prompts(rejections.sift(_conversations(data)), draw)
    if not rows:
        raise InvalidData("No row of the data has a turn of a user; name the data that the model was trained on.")
    least = max(least_rows, math.ceil(share * len(rows)))
    candidates = _candidates(rows, least)
    frequent = _most_frequent(candidates, most)
    drawn = [*_drawn_system(rows, candidates, draw), *_worked_examples(rows, draw)]
    contexts = _named([_context(candidate, rows) for candidate in frequent])
    return ContextSearch(
        contexts=(*contexts, *drawn), notes=tuple(_search_notes(rows, rejections, candidates, frequent, least, drawn))
    )


def open_prompts(source: str | Path | Sequence[str | Path]) -> DataSet | PreferenceData:
    """Training data of any kind: conversations or prompts alone, else preference pairs.

    Raises:
        InvalidData: they are none of these; says why they are not the first.
    """
    try:
        return open_data(source, need="user")
    except InvalidData as fault:
        try:
            return open_preferences(source)
        except InvalidData:
            raise fault from None


def _conversations(
    data: str | Path | Sequence[str | Path] | DataSet | PreferenceData | Sequence[InputRow],
) -> Iterator[Conversation | RejectedRow]:
    """Rows in order; of a preference pair the prompt with its chosen answer."""
    names = [data] if isinstance(data, (str, Path)) else data
    if isinstance(names, (list, tuple)) and names and all(isinstance(name, (str, Path)) for name in names):
        opened = open_prompts([*names])
    else:
        opened = names if isinstance(names, (DataSet, PreferenceData)) else data_from_rows(names, need="user")  # type: ignore[arg-type]
    for row in opened:
        yield row if isinstance(row, (Conversation, RejectedRow)) else row.conversation("chosen")


def _draw_prompts(conversations: Iterable[Conversation], draw: random.Random) -> list[RowPrompt]:
    """At most ``MOST_ROWS`` prompts with a turn of a user, at random."""
    out: list[RowPrompt] = []
    seen = 0
    with track("Looking for contexts") as advance:
        for conversation in conversations:
            advance(1)
            if not any(m["role"] == "user" and m["content"].strip() for m in conversation.messages):
                continue
            seen += 1
            if len(out) < MOST_ROWS:
                out.append(_row_prompt(conversation))
            elif (place := draw.randrange(seen)) < MOST_ROWS:
                out[place] = _row_prompt(conversation)
    return out


def _row_prompt(conversation: Conversation) -> RowPrompt:
    messages = conversation.messages
    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    system = "\n\n".join(m["content"] for m in messages[:first] if m["role"] == "system")
    pair = messages[first : first + 2]
    exchange = None
    if [m["role"] for m in pair] == ["user", "assistant"] and all(m["content"].strip() for m in pair):
        question, answer = (m["content"] for m in pair)
        if max(len(question), len(answer)) <= EXAMPLE_LENGTH:
            exchange = ContextTurn(user=question, assistant=answer)
    users = tuple(m["content"] for m in messages if m["role"] == "user" and m["content"].strip())
    return RowPrompt(system=system if system.strip() else "", users=users, exchange=exchange)


def _candidates(rows: Sequence[RowPrompt], least: int) -> list[Candidate]:
    """Every context that at least so many rows have, with what nearly all of its rows share besides."""
    texts = [text for row in rows for text in row.users]
    owners = [number for number, row in enumerate(rows) for _ in row.users]
    out: dict[tuple[str, str, str], Candidate] = {}

    def add(kind: str, places: Sequence[int], *, system: str = "", prefix: str = "", suffix: str = "") -> None:
        inside, whose = [texts[i] for i in places], [owners[i] for i in places]
        holders = frozenset(whose)
        nearly = max(2, math.ceil(NEARLY_ALL * len(holders)))
        prefix = prefix or _longest(recurring_starts(inside, whose, nearly))
        suffix = suffix or _longest(recurring_ends(inside, whose, nearly))
        most_common, n = Counter(rows[number].system for number in holders).most_common(1)[0]
        system = system or (most_common if n >= NEARLY_ALL * len(holders) else "")
        candidate = Candidate(kind=kind, rows=holders, system=system, prefix=prefix, suffix=suffix)
        if candidate.parts not in out or len(out[candidate.parts].rows) < len(holders):
            out[candidate.parts] = candidate

    firsts = {owner: i for i, owner in reversed([*enumerate(owners)])}
    systems: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if row.system:
            systems.setdefault(row.system, []).append(firsts[number])
    for system, places in systems.items():
        if len(places) >= least:
            add("system", places, system=system)
    for start in recurring_starts(texts, owners, least):
        add("prefix", start.places, prefix=start.text)
    for end in recurring_ends(texts, owners, least):
        add("suffix", end.places, suffix=end.text)
    return sorted(out.values(), key=lambda c: (-len(c.rows), c.parts))


def _longest(recurring: Sequence[RecurringText]) -> str:
    return recurring[0].text if recurring else ""


def _most_frequent(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """The most frequent of each kind in turn, so that no kind is crowded out.

    Beginnings and ends that come under one system prompt are asked without it as well, where there is room.
    """
    kinds = [[c for c in candidates if c.kind == kind] for kind in CONTEXT_KINDS]
    in_turn = [c for rank in zip_longest(*kinds) for c in rank if c is not None]
    chosen = in_turn[:most]
    alone = [c.without_system() for c in chosen if c.system and (c.prefix or c.suffix)]
    parts = {candidate.parts for candidate in candidates}
    return (chosen + [c for c in alone if c.parts not in parts])[:most]


def _context(candidate: Candidate, rows: Sequence[RowPrompt]) -> PromptContext:
    parts = {"system": candidate.system, "prefix": candidate.prefix, "suffix": candidate.suffix}
    kinds = " + ".join(kind for kind, text in parts.items() if text)
    return PromptContext(
        name=f"{kinds}: {one_line(parts[candidate.kind], NAME_LENGTH)}",
        system=candidate.system or None,
        prefix=candidate.prefix,
        suffix=candidate.suffix,
        rows=len(candidate.rows),
        all_rows=len(rows),
    )


def _named(contexts: Sequence[PromptContext]) -> list[PromptContext]:
    """The contexts, those that begin alike told apart by a number."""
    names: Counter[str] = Counter()
    out = []
    for context in contexts:
        names[context.name] += 1
        n = names[context.name]
        out.append(context if n == 1 else context.model_copy(update={"name": f"{context.name} ({n})"}))
    return out


def _drawn_system(
    rows: Sequence[RowPrompt], candidates: Sequence[Candidate], draw: random.Random
) -> list[PromptContext]:
    """One of the rare system prompts, where there are only such."""
    systems = sorted({row.system for row in rows if row.system})
    if not systems or any(candidate.system for candidate in candidates):
        return []
    system = draw.choice(systems)
    n = sum(row.system == system for row in rows)
    return [
        PromptContext(name=f"drawn system: {one_line(system, NAME_LENGTH)}", system=system, rows=n, all_rows=len(rows))
    ]


def _worked_examples(rows: Sequence[RowPrompt], draw: random.Random) -> list[PromptContext]:
    """Short exchanges of the data before the question, where there are enough."""
    exchanges = sorted({row.exchange for row in rows if row.exchange}, key=lambda turn: (turn.user, turn.assistant))
    if len(exchanges) < WORKED_EXAMPLES:
        return []
    turns = tuple(draw.sample(exchanges, WORKED_EXAMPLES))
    return [
        PromptContext(
            name=f"drawn: {WORKED_EXAMPLES} rows before", turns=turns, rows=WORKED_EXAMPLES, all_rows=len(rows)
        )
    ]


def _search_notes(
    rows: Sequence[RowPrompt],
    rejections: Rejections,
    candidates: Sequence[Candidate],
    frequent: Sequence[Candidate],
    least: int,
    drawn: Sequence[PromptContext],
) -> Iterator[str]:
    looked_at = f"{len(rows):,} rows are looked at for contexts"
    unread = rejections.rows - len(rejections) - len(rows)
    yield f"{looked_at}; {rejections}."
    if unread:
        yield f"{unread:,} more rows are left out: more than {MOST_ROWS:,}, or without a turn of a user."
    systems = Counter(row.system for row in rows if row.system)
    yield f"{systems.total():,} rows have a system prompt, {len(systems):,} different."
    counts = [f"{sum(c.kind == kind for c in candidates)} {words}" for kind, words in CONTEXT_KINDS.items()]
    yield f"Shared by at least {least:,} rows: {', '.join(counts)}."
    if drawn:
        yield f"Drawn at random: {'; '.join(context.label for context in drawn)}."
    if others := [candidate for candidate in candidates if candidate not in frequent]:
        names = [one_line(getattr(c, c.kind), NAME_LENGTH) for c in others[:NAMED_CANDIDATES]]
        parts = [f"{c.kind} {name!r} ({counted(len(c.rows), 'row')})" for c, name in zip(others, names, strict=False)]
        more = f" and {len(others) - NAMED_CANDIDATES} more" if len(others) > NAMED_CANDIDATES else ""
        yield f"Not among the {len(frequent)} that are measured: {', '.join(parts)}{more}."
