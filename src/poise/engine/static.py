"""The reference engine: transformers models, batched, left-padded, length-sorted, steered and watched row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from numbers import Integral

import torch

from poise.arguments import check_type
from poise.engine.grammar import Grammar
from poise.engine.kv_cache import cache_budget, check_room
from poise.engine.static_batch import StaticBatch
from poise.engine.types import Generation, Probe, SamplingParams, TextChunk, check_count
from poise.errors import InvalidArgument
from poise.model import Encoded, Model
from poise.model.rotary import plan_rows
from poise.model.self_check import require_cache
from poise.progress import track
from poise.steer import Steering

__all__ = ["LocalEngine", "probes_per_row", "seeds_per_row", "steering_per_row"]


class LocalEngine:
    """Generates with a model in this process.

    Args:
        model: Model in evaluation mode.
        batch: Most rows at once.
        allow_other_model: Let vectors of another model steer.

    Raises:
        InvalidArgument: ``batch`` is below 1.
        UnsuitableModel: Cached steps of this model do not give what the whole text gives.
    """

    def __init__(self, model: Model, *, batch: int = 32, allow_other_model: bool = False) -> None:
        check_type("model", model, Model, "a Model, as load_model(name) gives")
        check_count("batch", batch)
        self.model = model
        self.pads_left = not require_cache(model).padding_fault
        self.batch = batch
        self.allow_other_model = allow_other_model

    def plan(self, prompts: Sequence[Encoded], sampling: SamplingParams) -> list[list[int]]:
        """The batches that ``generate`` will run: like lengths together, longest first."""
        lengths = [len(p.ids) + sampling.max_new_tokens for p in prompts]
        budget, most = cache_budget(self.model), self.batch
        batches = plan_rows(self.model.rotary_switch, lengths, budget=budget, most=most, name=self.model.name)
        if self.pads_left:
            return batches
        # What this model keeps between steps would be changed by padding: only prompts of one length share a batch.
        return [list(group) for rows in batches for _, group in groupby(rows, key=lambda row: lengths[row])]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Encoded],
        sampling: SamplingParams,
        *,
        seeds: Sequence[int] | None = None,
        steering: Steering | Sequence[Steering | None] | None = None,
        probes: Sequence[Probe] | Sequence[Sequence[Probe]] = (),
        keep_means: bool = False,
        grammar: Grammar | None = None,
        may_think: bool = False,
    ) -> list[Generation]:
        """Answer each prompt, in order; see ``poise.engine.Engine``.

        With a grammar every reply is held to it; a thought before it is not, where the answer may begin with one.
        """
        self._check_prompts(prompts, sampling)
        steering_rows = steering_per_row(steering, len(prompts))
        probe_rows = probes_per_row(probes, len(prompts))
        seed_rows = seeds_per_row(seeds, len(prompts))
        out: dict[int, Generation] = {}
        with track("Generating", total=len(prompts)) as advance:
            for batch in self.plan(prompts, sampling):
                batch_probes = list({id(p): p for i in batch for p in probe_rows[i]}.values())
                static_batch = StaticBatch(
                    self.model,
                    [prompts[i] for i in batch],
                    sampling,
                    seeds=[seed_rows[i] for i in batch],
                    steering=[steering_rows[i] for i in batch],
                    probes=batch_probes,
                    keep_means=keep_means,
                    allow_other_model=self.allow_other_model,
                    grammar=grammar,
                    may_think=may_think,
                )
                for finished in static_batch.steps():
                    advance(len(finished))
                for i, generation in zip(batch, static_batch.generations(), strict=True):
                    out[i] = _with_own_readings(generation, batch_probes, probe_rows[i])
        return [out[i] for i in range(len(prompts))]

    def _check_prompts(self, prompts: Sequence[Encoded], sampling: SamplingParams) -> None:
        check_type("sampling", sampling, SamplingParams, "SamplingParams(…)")
        encoded = isinstance(prompts, Sequence) and not isinstance(prompts, Encoded)
        if not encoded or not all(isinstance(prompt, Encoded) for prompt in prompts):
            raise InvalidArgument("prompts are not encoded; give a list of what model.encode(messages) gives.")
        if empty := [i for i, prompt in enumerate(prompts) if not prompt.ids]:
            raise InvalidArgument(f"Prompt {empty[0]} (counted from 0) has no tokens; give at least one.")
        for length in sorted({len(p.ids) for p in prompts}, reverse=True):
            check_room(self.model, length, sampling.max_new_tokens)

    @torch.inference_mode()  # of the generator: in force while it runs, not while its reader does
    def stream(
        self,
        prompt: Encoded,
        sampling: SamplingParams,
        *,
        seed: int = 0,
        steering: Steering | None = None,
        probes: Sequence[Probe] = (),
    ) -> Iterator[TextChunk]:
        """The answer to one prompt, piece by piece as it is generated; the texts joined are the whole answer.

        With probes the first piece is the prompt's reading, and each token comes with its own: a token is read by the
        pass that takes it in, so that watched text is one token behind what has been chosen.
        """
        self._check_prompts([prompt], sampling)
        static_batch = StaticBatch(
            self.model,
            [prompt],
            sampling,
            seeds=[seed],
            steering=[steering],
            probes=probes,
            allow_other_model=self.allow_other_model,
        )
        with contextlib.closing(static_batch.steps()) as steps:
            yield from _text_chunks(static_batch, steps, watched=bool(probes))


def _text_chunks(static_batch: StaticBatch, steps: Iterator[list[int]], *, watched: bool) -> Iterator[TextChunk]:
    """The only row of the batch, step by step."""
    answer, passes, first = static_batch.answers[0], 0, 0
    for _ in steps:
        if watched and not passes:
            yield TextChunk("", static_batch.passes[0][1].cpu())
            passes = 1
        finish = static_batch.finish[0]
        if finish is None:
            answer.catch_up()
        else:
            answer.complete()
        tracker = answer.tracker
        ready = len(static_batch.passes) - 1 if watched else len(answer.tokens)
        until = min(ready, tracker.settled)
        if finish is not None and first == until:
            yield TextChunk("", torch.empty(0), finish)
        for n in range(first, until):
            ends = finish is not None and n + 1 == until
            if not (ends or tracker.texts[n] or tracker.part_of(n) == "mark"):
                continue  # part of a character is still to come
            new = [values for _, values in static_batch.passes[first + 1 : n + 2]] if watched else []
            readings = torch.cat(new).cpu() if new else torch.empty(0)
            text = "".join(tracker.texts[first : n + 1])
            yield TextChunk(text, readings, finish if ends else None, tracker.part_of(n))
            first = n + 1


def seeds_per_row(seeds: Sequence[int] | None, n: int) -> list[int]:
    """A seed for each of n prompts."""
    if seeds is None:
        return list(range(n))
    if len(seeds) != n:
        raise InvalidArgument(f"There are {len(seeds)} seeds for {n} prompts; give one for each, or none.")
    for seed in seeds:
        if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= seed < 2**128:
            raise InvalidArgument(f"The seed {seed!r} is not a whole number from 0 to 2**128 - 1; give one that is.")
    return list(seeds)


def steering_per_row(steering: Steering | Sequence[Steering | None] | None, n: int) -> list[Steering | None]:
    """A steering or none for each of n prompts."""
    if steering is None or isinstance(steering, Steering):
        return [steering] * n
    check_type("steering", steering, Sequence, "a Steering, or a list with one or None for each prompt")
    rows = list(steering)
    if len(rows) != n:
        raise InvalidArgument(f"There are {len(rows)} steerings for {n} prompts; give one, or one for each.")
    for row in rows:
        if row is not None and not isinstance(row, Steering):
            raise InvalidArgument(f"A steering is a {type(row).__name__}; give a Steering or None for each prompt.")
    return rows


def probes_per_row(probes: Sequence[Probe] | Sequence[Sequence[Probe]], n: int) -> list[list[Probe]]:
    """The probes of each of n prompts."""
    shared = [p for p in probes if isinstance(p, Probe)]
    if len(shared) == len(probes):
        return [shared] * n
    if shared or len(probes) != n:
        raise InvalidArgument(
            f"There are {len(probes)} lists of probes for {n} prompts; give probes for all rows, or a list for each."
        )
    rows = [list(row) if isinstance(row, Sequence) else [row] for row in probes]
    if wrong := [p for row in rows for p in row if not isinstance(p, Probe)]:
        raise InvalidArgument(f"A probe is a {type(wrong[0]).__name__}; give poise.Probe objects.")
    return [[p for p in row if isinstance(p, Probe)] for row in rows]


def _with_own_readings(generation: Generation, batch_probes: list[Probe], row_probes: list[Probe]) -> Generation:
    """The generation with the readings of its own probes, of all that its batch was read by."""
    if generation.readings is None or not row_probes:
        return replace(generation, readings=None, pieces=())
    column = {id(p): k for k, p in enumerate(batch_probes)}
    return replace(generation, readings=generation.readings[:, [column[id(p)] for p in row_probes]])
