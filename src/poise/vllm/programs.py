"""What one request does to a forward pass: operations with their directions, and the tokens that they work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch

from poise.activations import Probe
from poise.errors import InvalidSteering
from poise.model.parts import Part, TokenPart
from poise.steer import Condition, Operation, Phase, Steering, Term
from poise.steer.operators import LEVELED, OPERATORS
from poise.vllm.request import PluginRequest
from poise.vllm.vector_folder import VectorFolder

__all__ = ["ConditionUnit", "RequestProgram", "ResponseSum", "SteeringWork", "compile_program", "compile_steering"]

_NUMBERS = count()


@dataclass(frozen=True, eq=False, kw_only=True)
class ConditionUnit:
    """A condition with the unit direction [d] that it reads along, and the stage of a layer's work that reads it."""

    condition: Condition
    unit: torch.Tensor
    stage: int = 0

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
        part: Part of the response that is steered.
        tokens: Tokens of that part that are steered, or of the response where it is steered whatever the part.
        level: Level [1] that the operation takes.
        directions: Directions float32 [d] by layer: what is added, or the unit that is worked along.
        gate: Place of the work's condition among the program's; ``None`` where it always works.
        stage: Stage of a layer's work: what a request began with comes before what was added later.
        since: Token of the response before which nothing is done, since the work was added later.
    """

    operation: Operation
    phase: Phase
    part: Part = "reply"
    tokens: tuple[int, int | None]
    level: float
    directions: dict[int, torch.Tensor]
    gate: int | None
    stage: int = 0
    since: int = 0

    def ranges(
        self, prompt: int, first: int, last: int, parts: Sequence[tuple[TokenPart, int]] | None = None
    ) -> list[tuple[int, int]]:
        """The ranges of positions from ``first`` up to ``last`` that are steered, where the prompt has so many tokens.

        Args:
            parts: Part of each token of the response, and its place in that part; ``None`` where all are reply.
        """
        if self.part == "both" or self.phase == "prompt" or (parts is None and self.part == "reply"):
            low, high = self.positions(prompt, first, last)
            return [(low, high)] if low < high else []
        ranges = [(first, min(last, prompt))] if self.phase == "all" and first < prompt else []
        for position in range(max(first, prompt + self.since), last if parts else first):
            part, place = parts[position - prompt] if parts else ("reply", 0)
            if part != self.part or not self._has_place(place):
                continue
            if ranges and ranges[-1][1] == position:
                ranges[-1] = (ranges[-1][0], position + 1)
            else:
                ranges.append((position, position + 1))
        return ranges

    def _has_place(self, place: int) -> bool:
        first, last = self.tokens
        return place >= first and (last is None or place < last)

    def positions(self, prompt: int, first: int, last: int) -> tuple[int, int]:
        """Which of the positions from ``first`` up to ``last`` are steered, whatever the parts of the response."""
        low, high = first, last
        if self.phase == "prompt":
            high = min(last, prompt)
        elif self.phase == "response":
            low = max(first, prompt + max(self.tokens[0], self.since))
            high = last if self.tokens[1] is None else min(last, prompt + self.tokens[1])
        return low, max(low, high)


@dataclass(eq=False)
class ResponseSum:
    """The sum of a response's hidden states at all layers, which grows while it is generated.

    Attributes:
        total: float32 [L, d].
        tokens: Number of tokens that were summed: of replies, where thoughts are told apart.
        seen: Number of tokens of the response that were looked at.
    """

    total: torch.Tensor
    tokens: int = 0
    seen: int = 0

    def restart(self) -> None:
        """Leave out what was summed: it has turned out to be no reply."""
        self.total.zero_()
        self.tokens = 0


@dataclass(eq=False, kw_only=True)
class RequestProgram:
    """All that is done for a request. It grows where something is added while the request runs.

    Attributes:
        works: Operations in their working order.
        conditions: Conditions that the works hang on.
        probes: Probes whose readings the request wants.
        names: Names of the probes' vectors.
        response: Sum that the hidden states of its response are added to; ``None`` for none.
        parts: Part of each token of the response so far, with its place there; ``None`` where all are reply.
        reads_prompt: Whether all of the prompt is read, not its last token alone.
        number: Number that no other program of this process has, nor this one before something was added.
    """

    works: tuple[SteeringWork, ...] = ()
    conditions: tuple[ConditionUnit, ...] = ()
    probes: tuple[Probe, ...] = ()
    names: tuple[str, ...] = ()
    response: ResponseSum | None = None
    parts: list[tuple[TokenPart, int]] | None = None
    reads_prompt: bool = False
    number: int = field(default_factory=_NUMBERS.__next__)

    def __deepcopy__(self, memo: object) -> RequestProgram:
        """Itself: vLLM copies what a request asks for, and what is added while it runs must reach its worker."""
        return self

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do for it, as yet."""
        return not (self.works or self.probes or self.response)

    @property
    def has_parts(self) -> bool:
        """Whether it matters to what is done which part of the response a token is."""
        return bool(self.response) or any(work.part != "both" and work.phase != "prompt" for work in self.works)

    def extend(self, steering: Steering, after: int) -> None:
        """Add steering to a running request, from its token ``after`` on: after all else at each layer.

        Raises:
            InvalidSteering: a condition on the prompt, which has been read.
        """
        later = compile_steering(steering)
        if any(unit.condition.reading == "prompt" for unit in later.conditions):
            raise InvalidSteering("The prompt has been read; what is added to a running answer cannot depend on it.")
        stage = 1 + max((work.stage for work in self.works), default=0)
        self.works += tuple(
            replace(
                work,
                phase="response",
                gate=None if work.gate is None else work.gate + len(self.conditions),
                stage=stage,
                since=after,
            )
            for work in later.works
            if work.phase != "prompt"
        )
        self.conditions += tuple(replace(unit, stage=stage) for unit in later.conditions)
        self.number = next(_NUMBERS)

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
        bounds = [bound for work in self.works for bound in (*work.tokens, work.since) if bound is not None]
        return max(bounds, default=0)


def compile_program(request: PluginRequest, folder: VectorFolder) -> RequestProgram:
    """The program of a request that has been read and checked."""
    program = compile_steering(request.steering, [folder.probe(name) for name in request.watch])
    return replace(program, names=request.watch)


def compile_steering(steering: Steering | None, probes: Sequence[Probe] = ()) -> RequestProgram:
    """The program of a steering and probes, without names."""
    conditions: list[ConditionUnit] = []
    works: list[SteeringWork] = []
    shared: dict[tuple[Phase, Part], SteeringWork] = {}
    terms = zip(steering.terms, steering.directions(), strict=True) if steering else ()
    for term, directions in terms:
        if term.shared and (term.phase, term.part) in shared:
            sums = shared[term.phase, term.part].directions
            for layer, v in directions.items():
                sums[layer] = sums[layer] + v if layer in sums else v
            continue
        work = _compile_term(term, dict(directions), conditions)
        if term.shared:
            shared[term.phase, term.part] = work
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
        part=term.part,
        tokens=term.tokens,
        level=term.value if term.operation in LEVELED else 0.0,
        directions=directions,
        gate=gate,
    )
