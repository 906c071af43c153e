"""Answers held to a grammar: at each step the tokens that may come next, by llguidance.

llguidance rather than xgrammar: 3 MB without dependencies (xgrammar brings tvm-ffi and triton), an MIT licence, one
wheel for every Python from 3.10, limits that are counted in work instead of time, and keywords of JSON Schema that it
does not know are an error instead of being skipped.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from poise.engine.schema_faults import schema_fault
from poise.errors import InvalidArgument, MissingExtra
from poise.model import Model
from poise.model.parts import PartTracker

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = [
    "AnswerConstraint",
    "Grammar",
    "GrammarCompiler",
    "check_schema",
    "constrain",
    "grammar_compiler",
    "json_options",
    "too_complex",
]

MOST_SCHEMA = 65_536  # characters of a schema
MOST_JOINED = 8  # sixteen would take minutes
ANNOTATIONS = ("$defs", "definitions", "$schema", "$id", "title", "description", "default", "examples", "deprecated")
KEPT = 64  # compiled grammars
GRAMMAR_LIMITS: dict[str, Any] = {  # llguidance's units of work; the first is some ten milliseconds
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
}
WHITESPACE = r"\n?[ ]{0,16}"  # between the parts of JSON: indented or not, and never without an end
JSON_OPTIONS = {"whitespace_pattern": WHITESPACE}


class Grammar:
    """What an answer may be.

    Args:
        matcher: A matcher at its beginning.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def matcher(self) -> LLMatcher:
        """A matcher for one answer, at its beginning."""
        return self._matcher.deep_copy()


class GrammarCompiler:
    """Makes grammars for the tokens of one model; any thread may.

    Attributes:
        special: Tokens by their texts that no text is made of: in grammars they stand by their numbers.

    Raises:
        MissingExtra: llguidance is not installed.
        InvalidArgument: the tokenizer is of a kind that llguidance does not know.
    """

    def __init__(self, model: Model) -> None:
        try:
            import llguidance.hf
        except ImportError as error:
            raise MissingExtra.of("Holding answers to a schema needs llguidance", "serve") from error
        size = model.lm.get_input_embeddings().weight.shape[0]
        try:
            self.tokenizer = llguidance.hf.from_tokenizer(model.tokenizer, size, sorted(model.stop_ids))
        except ValueError as error:
            raise InvalidArgument(
                f"Answers of {model.name} cannot be held to a schema: its tokenizer is of a kind that llguidance does "
                f"not know ({error})."
            ) from error
        added = model.tokenizer.added_tokens_decoder.items()
        # Its own view: it takes Qwen's <tool_call> for special, which the tokenizer does not.
        self.special = {str(token): number for number, token in added if self.tokenizer.is_special_token(number)}
        self._matchers: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def json_schema(self, schema: Mapping[str, Any], *, blank: bool = False) -> Grammar:
        """JSON that fits a schema.

        Args:
            schema: A JSON Schema; keywords that cannot be kept to are refused.
            blank: Whether blanks may come before it, as after a thought.

        Raises:
            InvalidArgument: names the keyword, or the size.
        """
        check_schema(schema)
        start = r"/[ \n]{0,4}/ body" if blank else "body"
        try:
            return self.lark(f"start: {start}\nbody: %json {json_options(schema)}")
        except InvalidArgument as error:
            raise InvalidArgument(schema_fault(schema, str(error))) from error

    def lark(self, text: str) -> Grammar:
        """A grammar in llguidance's dialect of Lark.

        Raises:
            InvalidArgument: it is not one, or too large.
        """
        import llguidance

        with self._lock:
            matcher = self._matchers.get(text)
            if matcher is not None:
                self._matchers.move_to_end(text)
                return Grammar(matcher)
        limits = llguidance.LLParserLimits(**GRAMMAR_LIMITS, verbose_errors=False)
        matcher = llguidance.LLMatcher(
            self.tokenizer, llguidance.LLMatcher.grammar_from_lark(text), log_level=0, limits=limits
        )
        if matcher.is_error():
            raise InvalidArgument(matcher.get_error().strip())
        with self._lock:
            self._matchers[text] = matcher
            while len(self._matchers) > KEPT:
                self._matchers.popitem(last=False)
        return Grammar(matcher)


def check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse a schema that would keep llguidance busy: what has to hold at once is worked out for every combination.

    Raises:
        InvalidArgument: it is too large, or has too many parts that have to hold at once; names the limit.
    """
    if (size := len(json.dumps(schema))) > MOST_SCHEMA:
        raise InvalidArgument(f"The schema has {size} characters of JSON; at most {MOST_SCHEMA} are taken.")
    if (number := _joined_schemas(schema)) > MOST_JOINED:
        raise InvalidArgument(
            f"The schema has {number} parts that have to hold at once, in allOf or beside a $ref; at most "
            f"{MOST_JOINED} are taken. Write them as one."
        )


def _joined_schemas(value: Any) -> int:
    """Members of every allOf, and every $ref with other conditions beside it."""
    if isinstance(value, list):
        return sum(map(_joined_schemas, value))
    if not isinstance(value, dict):
        return 0
    members = len(value["allOf"]) if isinstance(value.get("allOf"), list) else 0
    joined = "$ref" in value and bool(value.keys() - {"$ref", *ANNOTATIONS})
    return members + joined + sum(map(_joined_schemas, value.values()))


def json_options(schema: Mapping[str, Any], **options: Any) -> str:
    """A schema as text, with how its JSON may be written; whatever it says of that itself does not count."""
    return json.dumps({**schema, "x-guidance": JSON_OPTIONS | options})


_COMPILERS: WeakKeyDictionary[Model, GrammarCompiler] = WeakKeyDictionary()
_COMPILERS_LOCK = threading.Lock()


def grammar_compiler(model: Model) -> GrammarCompiler:
    """A model's compiler, made once: a vocabulary of 150,000 tokens takes it a second, in which no thread runs."""
    with _COMPILERS_LOCK:
        if model not in _COMPILERS:
            _COMPILERS[model] = GrammarCompiler(model)
        return _COMPILERS[model]


class AnswerConstraint:
    """How far one answer has come in its grammar. A thought before the reply is not held to it, but has to end.

    Args:
        grammar: What the reply may be.
        model: The model that answers.
        may_think: Whether the answer may begin with a thought.
    """

    def __init__(self, grammar: Grammar, model: Model, *, may_think: bool) -> None:
        self.matcher, self.model = grammar.matcher(), model
        self._openings = sorted(model.thought_marks.openings) if may_think else []
        self._begun = self._thought = False

    def allowed(self, tracker: PartTracker, size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of so many tokens may come next: bool [vocabulary]."""
        if not self._begun and tracker.upcoming != "reply":
            self._thought = True
            allowed = np.ones(size, dtype=np.bool_)
            allowed[[token for token in self.model.stop_ids if not tracker.goes_on(token)]] = False
            return allowed
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.zeros(size, dtype=np.bool_)
        mask = np.unpackbits(bits, bitorder="little")[:size]
        allowed[: len(mask)] = mask
        if not (self._begun or self._thought):
            allowed[self._openings] = True
        return allowed

    def take(self, token: int, tracker: PartTracker) -> None:
        """Go on by a token that has been chosen; ``tracker`` has not been told of it yet."""
        if not self._begun and (tracker.upcoming != "reply" or (not self._thought and token in self._openings)):
            return
        self._begun = True
        self.matcher.consume_token(token)

    @property
    def fault(self) -> str:
        """Why the answer cannot go on; empty where it can."""
        return self.matcher.get_error().strip() if self.matcher.is_error() else ""


def too_complex(fault: str, place: int) -> InvalidArgument:
    """The error of an answer that cannot go on at this of its tokens: what may come next is too much to work out."""
    return InvalidArgument(f"The schema cannot be followed at token {place}: {fault}. Give a simpler one.")


def constrain(
    logits: torch.Tensor, constraints: Sequence[AnswerConstraint | None], trackers: Sequence[PartTracker]
) -> torch.Tensor:
    """Logits [B, vocabulary] without the tokens that rows with a constraint may not choose; the others as they were."""
    rows = [row for row, constraint in enumerate(constraints) if constraint is not None]
    if not rows:
        return logits
    size = logits.shape[-1]
    allowed = np.stack([c.allowed(trackers[row], size) for row, c in enumerate(constraints) if c is not None])
    held = logits.clone()
    held[rows] = held[rows].masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)
    return held
