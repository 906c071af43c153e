"""How texts begin and end alike: what recurs before or after texts that otherwise differ.

A text is words, spaces and single marks. Numbers count as equal, so that ``[SYS-7]`` and ``[SYS-8]`` begin alike.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["NEARLY_ALL", "RecurringText", "recurring_ends", "recurring_starts"]

PIECE = re.compile(r"\w+(?:['’]\w+)*|\s|[^\w\s]")
NEARLY_ALL = 0.9  # share of texts that counts as all of them
MOST_PIECES = 400  # tokens of a recurring text
LEAST_VARIETY = 3  # different texts beside it, or it is one text that is repeated
VARIETY_TOKENS = 12  # tokens that tell these apart
STARTERS = re.compile(
    "Are|Can|Could|Create|Describe|Do|Does|Explain|Find|Generate|Give|Given|Help|How|If|Is|List|Make|Name|Please|Should|"
    "Summarize|Tell|Translate|What|When|Where|Which|Who|Why|Will|Would|Write"
)  # words that a request begins with
INSIDE = re.compile("I|I['’].*")  # words that look like a beginning anywhere
INNER_MARKS = frozenset("'’-_/&(@$%")  # a beginning that ends in one of these goes on
SENTENCE_ENDS = frozenset(".?!…")
CLOSING_MARKS = frozenset("\"'”’`)]}>|:;")
CONTENT = re.compile(r"[\w{}\[\]<>|#*=\\`]")  # something beyond punctuation

Tokens = Sequence[str]
Boundary = Callable[[str, Sequence[int], int], bool]  # the text, whose texts they are, its length in tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurringText:
    """A beginning or an end that texts share.

    Attributes:
        text: The text as most of them have it, spaces included.
        places: Places of the texts that have it.
    """

    text: str
    places: tuple[int, ...]


def recurring_starts(texts: Sequence[str], owners: Sequence[int], least: int) -> list[RecurringText]:
    """Beginnings that at least ``least`` rows share, different texts follow, and that look put before a request.

    They end in a mark or a line, or are followed by words with which other requests begin: ``What is`` is none, as few
    requests begin with what follows it.

    Args:
        texts: Turns of users.
        owners: Row of each.
        least: Fewest rows.
    """
    tokens = [PIECE.findall(text.lstrip()[: 8 * MOST_PIECES])[:MOST_PIECES] for text in texts]
    firsts = Counter(words[0] for words in tokens if words)

    def stands_before(start: str, places: Sequence[int], length: int) -> bool:
        bare = start.rstrip()
        if "\n" in start[len(bare) :] or (bare and not bare[-1].isalnum() and bare[-1] not in INNER_MARKS):
            return True
        among = Counter(tokens[i][0] for i in places)
        following = [tokens[i][length] for i in places if len(tokens[i]) > length]
        begins = sum(
            bool(STARTERS.fullmatch(word)) or (firsts[word] > among[word] and not INSIDE.fullmatch(word))
            for word in following
        )
        return start != bare and begins >= NEARLY_ALL * len(places)

    return _recurring(tokens, owners, least, "".join, stands_before)


def recurring_ends(texts: Sequence[str], owners: Sequence[int], least: int) -> list[RecurringText]:
    """Ends that at least ``least`` rows share, after different texts, and that look put after a request.

    They begin with a mark or on a line of their own, or follow the end of a sentence, which is not part of them.
    ``texts``, ``owners`` and ``least`` as in ``recurring_starts``.
    """
    tokens = [PIECE.findall(text.rstrip()[-8 * MOST_PIECES :])[::-1][:MOST_PIECES] for text in texts]

    def join(words: Tokens) -> str:
        return "".join(reversed(words)).lstrip("".join(SENTENCE_ENDS))

    def stands_after(end: str, places: Sequence[int], length: int) -> bool:
        inner = end.lstrip()
        if not inner or inner[0] in "'’,":
            return False
        if "\n" in end[: len(end) - len(inner)] or (
            not inner[0].isalnum() and (end != inner or inner[0] in CLOSING_MARKS)
        ):
            return True
        if end == inner:
            return False
        if tokens[places[0]][length - 1] in SENTENCE_ENDS:
            return True
        before = [next((t for t in tokens[i][length:] if not t.isspace()), "") for i in places]
        return sum(t in SENTENCE_ENDS or t in CLOSING_MARKS for t in before) >= NEARLY_ALL * len(places)

    return _recurring(tokens, owners, least, join, stands_after)


def _recurring(
    tokens: Sequence[Tokens], owners: Sequence[int], least: int, join: Callable[[Tokens], str], boundary: Boundary
) -> list[RecurringText]:
    """Shared runs of first tokens at a boundary, each unless a longer one has nearly all of its texts."""
    out: list[RecurringText] = []
    for length, places in _branches(tokens, owners, least):
        beside = {
            tuple(map(_number_class, tokens[i][length : length + VARIETY_TOKENS]))
            for i in places
            if len(tokens[i]) > length
        }
        if len(beside) < LEAST_VARIETY:
            continue
        text = Counter(join(tokens[i][:length]) for i in places).most_common(1)[0][0]
        if len(text.strip()) < 2 or not CONTENT.search(text) or not boundary(text, places, length):
            continue
        out.append(RecurringText(text=text, places=places))
    longest_first = sorted(out, key=lambda r: -len(r.text))
    chosen: list[tuple[RecurringText, frozenset[int]]] = []
    for recurring in longest_first:
        texts = frozenset(recurring.places)
        if not any(len(texts & longer) >= NEARLY_ALL * len(texts) for _, longer in chosen):
            chosen.append((recurring, texts))
    return [recurring for recurring, _ in chosen]


def _branches(tokens: Sequence[Tokens], owners: Sequence[int], least: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Every run of first tokens that at least ``least`` owners share: its length and its texts."""
    stack = [(0, tuple(range(len(tokens))))]
    while stack:
        length, places = stack.pop()
        if length:
            yield length, places
        groups: dict[str, list[int]] = defaultdict(list)
        for i in places:
            if len(tokens[i]) > length:
                groups[_number_class(tokens[i][length])].append(i)
        stack += [(length + 1, tuple(g)) for g in groups.values() if len({owners[i] for i in g}) >= least]


def _number_class(token: str) -> str:
    """The token, all numbers as one."""
    return "0" if token.isdigit() else token
