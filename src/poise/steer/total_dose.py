"""How strongly a steering acts on one token in all: every term, layer and operator together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from poise.model.parts import Part, TokenPart
from poise.steer.steering import Steering, Term

__all__ = ["DoseShare", "TotalDose", "total_dose"]

TokenKind = Literal["prompt"] | TokenPart
SHARES_SHOWN = 4  # shares of a sum that are written out


@dataclass(frozen=True, slots=True, kw_only=True)
class DoseShare:
    """What one term puts into the residual stream at one layer, as a share of mean ‖h‖ there.

    Attributes:
        term: Term that does it.
        layer: Layer at which it does; of increments the one where their sum is largest.
        dose: Share of mean ‖h‖; 0 where something is only taken away.
    """

    term: Term
    layer: int
    dose: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalDose:
    """The most that a steering can do to one token.

    Attributes:
        added: Sum of what is put into the residual stream at all layers, in doses.
        removed: What may be taken out of it: 1 where any term takes something out, all of mean ‖h‖; else 0.
        shares: Shares that the sum is made of.
    """

    added: float
    removed: float
    shares: tuple[DoseShare, ...]

    @property
    def dose(self) -> float:
        """Both together."""
        return self.added + self.removed

    @property
    def sum_of_added(self) -> str:
        """The sum of what is put in, written out."""
        parts = [f"{s.dose:.0%} of {s.term.vector.name} at layer {s.layer}" for s in self.shares[:SHARES_SHOWN]]
        return " + ".join(parts + ([f"{more} more"] if (more := len(self.shares) - SHARES_SHOWN) > 0 else []))

    def __str__(self) -> str:
        """The whole sum, written out."""
        removed = ["100% for what is taken away"] if self.removed else []
        return " + ".join([*([self.sum_of_added] if self.shares else []), *removed])


def total_dose(steering: Steering | None) -> TotalDose:
    """The most that a steering can do to one token, all terms, layers and operators together.

    Doses of all terms at all layers are added up, whatever their sign, and conditions count as met. ``add`` puts in
    α‖v‖, ``clamp`` at most its level, a ``floor`` above 0 and a ``cap`` below 0 at most their level too; each is
    divided by mean ‖h‖ at its layer. Increments count once, by the largest of their sums. What the other operators
    than ``add`` take away was the model's own, and is 1 at most for all of them together. Terms that never meet on a
    token (prompt and reply, ``first 20`` and ``after 20``) are not added up.
    """
    terms = steering.terms if steering else ()
    totals = [_of_tokens(terms, kind) for kind in ("prompt", *get_args(TokenPart))]
    return max(totals, key=lambda total: math.inf if math.isnan(total.dose) else total.dose)


def _of_tokens(terms: Sequence[Term], kind: TokenKind) -> TotalDose:
    """The most that one token of this kind gets."""
    if kind == "prompt":
        acting = [term for term in terms if term.phase in ("prompt", "all")]
    else:
        acting = [term for term in terms if term.phase in ("response", "all") and term.part in (kind, "both")]
    together: list[Term] = []
    for part in get_args(Part):  # each counts its tokens by itself
        together += _most_at_once([term for term in acting if term.part == part])
    shares = tuple(share for term in together for share in _shares(term))
    return TotalDose(
        added=math.fsum(share.dose for share in shares),
        removed=float(any(_takes_away(term) for term in together)),
        shares=tuple(share for share in shares if share.dose),
    )


def _most_at_once(terms: Sequence[Term]) -> list[Term]:
    """Those of the terms that act on one token, where they do most."""
    firsts = sorted({term.tokens[0] for term in terms})
    choices = [[t for t in terms if t.tokens[0] <= token and token < (t.tokens[1] or math.inf)] for token in firsts]

    def strength(acting: Iterable[Term]) -> float:
        dose = sum(share.dose for term in acting for share in _shares(term)) + any(map(_takes_away, acting))
        return math.inf if math.isnan(dose) else dose

    return max(choices, key=strength, default=[])


def _shares(term: Term) -> list[DoseShare]:
    vector, value = term.vector, term.value
    if term.layers == "increments":
        doses = {layer: abs(vector.dose(value, layer)) for layer in term.touched}
        layer = max(doses, key=lambda at: doses[at])
        return [DoseShare(term=term, layer=layer, dose=doses[layer])]
    if term.operation == "add":
        return [DoseShare(term=term, layer=i, dose=abs(vector.dose(value, i))) for i in term.touched]
    level = {"clamp": abs(value), "floor": max(value, 0.0), "cap": max(-value, 0.0)}.get(term.operation, 0.0)
    norms = vector.reference_norm.tolist()
    return [DoseShare(term=term, layer=i, dose=_share_of(level, norms[i])) for i in term.touched]


def _share_of(level: float, norm: float) -> float:
    return level / norm if norm else math.inf if level else 0.0


def _takes_away(term: Term) -> bool:
    """Whether a term can take out what the model itself put in."""
    return term.operation != "add"
