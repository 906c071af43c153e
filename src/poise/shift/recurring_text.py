"""How texts begin and end alike: what recurs before or after texts that otherwise differ.

A text is words, spaces and single marks: emoji, signs and characters without width too. Numbers count as equal, so that
``[SYS-7]`` and ``[SYS-8]`` begin alike. Marks with which people begin and end texts anyway are no context.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["NEARLY_ALL", "RecurringText", "recurring_ends", "recurring_starts"]

ACCENTS = "".join(c for c in map(chr, range(0x300, 0x3100)) if unicodedata.category(c) in ("Mn", "Mc"))
JOINERS = "'’\u200c\u200d\u00ad"  # inside words: apostrophes, signs without width
PIECE = re.compile(rf"\w+(?:[{ACCENTS}]+\w*|[{JOINERS}]\w+)*|\s|[^\w\s]")
PLAIN_SPACE = " \t\r\n\v\f"  # of which there is some around many texts
NEARLY_ALL = 0.9  # share of texts that counts as all of them
MOST_PIECES = 400  # tokens of a recurring text
LEAST_VARIETY = 3  # different texts beside it, or it is one text that is repeated
VARIETY_TOKENS = 12  # tokens that tell these apart
SPACED_SIGNS = re.compile(r"[#$€£@/\\~+%&=|_^<>*•·–—−-]|--|\.{2,4}|…")  # usual at a word, unusual before a space
STARTERS = re.compile(
    "Are|Can|Could|Create|Describe|Do|Does|Explain|Find|Generate|Give|Given|Help|How|If|Is|List|Make|Name|Please|Should|"
    "Summarize|Tell|Translate|What|When|Where|Which|Who|Why|Will|Would|Write"
)  # words that a request begins with
INSIDE = re.compile("I|I['’].*")  # words that look like a beginning anywhere
INNER_MARKS = frozenset("'’-_/&(@$%")  # a beginning that ends in one of these goes on
SENTENCE_ENDS = frozenset(".?!…")
REPEATED_MARK = re.compile(r"^.*?((.)\2*)$", re.DOTALL)  # what a run of marks ends with
CLOSING_MARKS = frozenset("\"'”’`)]}>|:;")
CONTENT = re.compile(r"[\w{}\[\]<>|#*=\\`]")  # something beyond punctuation, from two characters on
QUOTE_MARKS = "\"'“”‘’«»„‹›`"
OPENING_MARKS = f"[{QUOTE_MARKS}¿¡]{{0,3}}[(\\[{{<（「『【《〈]?[{QUOTE_MARKS}]{{0,3}}"
USUAL_STARTS = re.compile(rf"{OPENING_MARKS}(?:[-–—−*•·]|--|\.{{2,4}}|…|[#$€£@/\\~+%&=|_^.,:;!?])?")
CLOSERS = f"[{QUOTE_MARKS}()\\]}}>）」』】》〉$*]{{0,4}}"
USUAL_ENDS = re.compile(rf"{CLOSERS}(?:[.?!…,。？！：，、؟।]|[:;](?![()\[\]])|\.{{2,4}}|[?!]{{2}}|[-–—−%])?{CLOSERS}")

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
    requests begin with what follows it. Of marks alone they are any that few texts begin with otherwise.

    Args:
        texts: Turns of users.
        owners: Row of each.
        least: Fewest rows.
    """
    tokens = [PIECE.findall(text.lstrip(PLAIN_SPACE)[: 8 * MOST_PIECES])[:MOST_PIECES] for text in texts]
    firsts = Counter(words[0] for words in tokens if words)

    def stands_before(start: str, places: Sequence[int], length: int) -> bool:
        bare = start.rstrip(PLAIN_SPACE)
        if _is_marks(start):
            if not USUAL_STARTS.fullmatch(bare) or (start != bare and SPACED_SIGNS.fullmatch(bare)):
                return True
            if len(bare) < 2 or not CONTENT.search(bare):
                return False
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

    They begin with a mark or on a line of their own, or follow the end of a sentence, which is not part of them. Of
    marks alone they are any that few texts end with otherwise. ``texts``, ``owners`` and ``least`` as in
    ``recurring_starts``.
    """
    tokens = [PIECE.findall(text.rstrip(PLAIN_SPACE)[-8 * MOST_PIECES :])[::-1][:MOST_PIECES] for text in texts]

    def join(words: Tokens) -> str:
        end = "".join(reversed(words))
        return end.lstrip("".join(SENTENCE_ENDS)) or REPEATED_MARK.sub(r"\1", end)

    def stands_after(end: str, places: Sequence[int], length: int) -> bool:
        inner = end.lstrip(PLAIN_SPACE)
        if inner and _is_marks(inner):
            if not USUAL_ENDS.fullmatch(inner) or (end != inner and SPACED_SIGNS.fullmatch(inner)):
                return True
            if len(inner) < 2 or not CONTENT.search(inner):
                return False
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
        text, count = Counter(join(tokens[i][:length]) for i in places).most_common(1)[0]
        bare = text.strip(PLAIN_SPACE)
        if not bare or (bare.isdigit() and count < NEARLY_ALL * len(places)) or not boundary(text, places, length):
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


def _is_marks(text: str) -> bool:
    """Whether it has neither letters nor digits."""
    return not any(character.isalnum() for character in text)


def _number_class(token: str) -> str:
    """The token, all numbers as one."""
    return "0" if token.isdigit() else token
