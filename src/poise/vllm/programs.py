"""What one request does to a forward pass: operations with their directions, and the tokens that they work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch

from poise.activations import Probe
from poise.steer import Condition, Operation, Phase, Steering, Term
from poise.steer.operators import LEVELED, OPERATORS
from poise.vllm.request import PluginRequest
from poise.vllm.vector_folder import VectorFolder

__all__ = ["ConditionUnit", "RequestProgram", "ResponseSum", "SteeringWork", "compile_program", "compile_steering"]

_NUMBERS = count()


@dataclass(frozen=True, eq=False, kw_only=True)
class ConditionUnit:
    """A condition with the unit direction [d] that it reads along."""

    condition: Condition
    unit: torch.Tensor

    @property
    def layer(self) -> int:
        """Layer that is read."""
        return self.condition.layer


@dataclass(frozen=True, eq=False, kw_only=True)
class SteeringWork:
    """One operation of a request, at all layers where it works.

    Attributes:
        operation: What is done.
        phase: Whether prompt, response or both are steered.
        tokens: Tokens of the response that are steered.
        level: Level [1] that the operation takes.
        directions: Directions float32 [d] by layer: what is added, or the unit that is worked along.
        gate: Place of the work's condition among the program's; ``None`` where it always works.
    """

    operation: Operation
    phase: Phase
    tokens: tuple[int, int | None]
    level: float
    directions: dict[int, torch.Tensor]
    gate: int | None

    def positions(self, prompt: int, first: int, last: int) -> tuple[int, int]:
        """Which of the positions from ``first`` up to ``last`` are steered, where the prompt has so many tokens."""
        low, high = first, last
        if self.phase == "prompt":
            high = min(last, prompt)
        elif self.phase == "response":
            low = max(first, prompt + self.tokens[0])
            high = last if self.tokens[1] is None else min(last, prompt + self.tokens[1])
        return low, max(low, high)


@dataclass(eq=False)
class ResponseSum:
    """The sum of a response's hidden states at all layers, which grows while it is generated.

    Attributes:
        total: float32 [L, d].
        tokens: Number of tokens that were summed.
    """

    total: torch.Tensor
    tokens: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class RequestProgram:
    """All that is done for a request.

    Attributes:
        works: Operations in their working order.
        conditions: Conditions that the works hang on.
        probes: Probes whose readings the request wants.
        names: Names of the probes' vectors.
        response: Sum that the hidden states of its response are added to; ``None`` for none.
        number: Number that no other program of this process has.
    """

    works: tuple[SteeringWork, ...] = ()
    conditions: tuple[ConditionUnit, ...] = ()
    probes: tuple[Probe, ...] = ()
    names: tuple[str, ...] = ()
    response: ResponseSum | None = None
    number: int = field(default_factory=_NUMBERS.__next__)

    def __deepcopy__(self, memo: object) -> RequestProgram:
        """Itself: vLLM copies what a request asks for, and nothing here changes but the response's sum."""
        return self

    def phase_keys(self) -> tuple[str, str]:
        """What tells cached tokens of its prompt, and of its response, apart from all others': empty for unsteered.

        A program has no text that others could have too, so that nothing steered is shared between programs.
        """
        phases = {work.phase for work in self.works}
        prompt, response = (bool(phases & {phase, "all"}) for phase in ("prompt", "response"))
        return f"{self.number}" if prompt else "", f"{self.number}" if response else ""

    @property
    def steady_from(self) -> int:
        """Token of the response from which on all are steered alike, but for conditions."""
        bounds = [bound for work in self.works for bound in work.tokens if bound is not None]
        return max(bounds, default=0)


def compile_program(request: PluginRequest, folder: VectorFolder) -> RequestProgram:
    """The program of a request that has been read and checked."""
    program = compile_steering(request.steering, [folder.probe(name) for name in request.watch])
    return replace(program, names=request.watch)


def compile_steering(steering: Steering | None, probes: Sequence[Probe] = ()) -> RequestProgram:
    """The program of a steering and probes, without names."""
    conditions: list[ConditionUnit] = []
    works: list[SteeringWork] = []
    shared: dict[Phase, SteeringWork] = {}
    terms = zip(steering.terms, steering.directions(), strict=True) if steering else ()
    for term, directions in terms:
        if term.shared and term.phase in shared:
            sums = shared[term.phase].directions
            for layer, v in directions.items():
                sums[layer] = sums[layer] + v if layer in sums else v
            continue
        work = _compile_term(term, dict(directions), conditions)
        if term.shared:
            shared[term.phase] = work
        works.append(work)
    order = list(OPERATORS)
    works.sort(key=lambda work: order.index(work.operation))
    return RequestProgram(works=tuple(works), conditions=tuple(conditions), probes=tuple(probes))


def _compile_term(term: Term, directions: dict[int, torch.Tensor], conditions: list[ConditionUnit]) -> SteeringWork:
    gate = None
    if term.when is not None:
        gate = len(conditions)
        conditions.append(ConditionUnit(condition=term.when, unit=term.when.vector.unit(term.when.layer)))
    return SteeringWork(
        operation=term.operation,
        phase=term.phase,
        tokens=term.tokens,
        level=term.value if term.operation in LEVELED else 0.0,
        directions=directions,
        gate=gate,
    )
