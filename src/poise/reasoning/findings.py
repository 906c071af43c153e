"""What reasoning finds of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FindingKind", "ReasoningFinding", "Translation"]

FindingKind = Literal[
    "VALID", "INVALID", "SATISFIABLE", "IMPOSSIBLE", "TRANSLATION_AMBIGUOUS", "TOO_COMPLEX", "NO_TRANSLATION"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """A question and its answer as statements over a policy's variables.

    Attributes:
        premises: What the question and the answer take for given.
        claims: What the answer says that follows.
    """

    premises: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFinding:
    """What a policy says of one answer.

    VALID: the claims follow from the premises. INVALID: they contradict them. SATISFIABLE: they may be true or not.
    IMPOSSIBLE: the premises contradict each other, or the rules. TRANSLATION_AMBIGUOUS: two translations say different
    things. TOO_COMPLEX: the solver gave up. NO_TRANSLATION: nothing that the policy speaks of is claimed.

    Attributes:
        kind: What was found.
        translations: What was reasoned about; more than one where they differ.
        rules: Names of the rules that the finding rests on: those that support a valid claim, or contradict.
        correction: What the policy says in the place of an invalid claim.
        assumptions: What would have to be so for a satisfiable claim to follow, and is not said.
        claims_true: Values of the variables for which the claims hold.
        claims_false: Values for which they do not.
        reason: Why there is no other finding, in words.
    """

    kind: FindingKind
    translations: tuple[Translation, ...] = ()
    rules: tuple[str, ...] = ()
    correction: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    claims_true: tuple[str, ...] = ()
    claims_false: tuple[str, ...] = ()
    reason: str = ""
