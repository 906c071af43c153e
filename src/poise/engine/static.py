"""The reference engine: transformers models, batched, left-padded, length-sorted, steered and watched row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import torch

from poise.engine.static_batch import Run
from poise.engine.types import Generation, Piece, Probe, SamplingParams
from poise.errors import InvalidArgument
from poise.model import Encoded, Model
from poise.model.batching import plan_batches
from poise.model.self_check import require_cache
from poise.progress import track
from poise.steer import Steering

__all__ = ["LocalEngine"]

BUDGET = 16384  # cached tokens a batch on a CPU
BUDGET_GPU = 262144


class LocalEngine:
    """Generates with a model in this process.

    Args:
        model: Loaded, in evaluation mode.
        batch: Most rows at once.
        allow_other_model: Let vectors of another model steer.

    Raises:
        UnsuitableModel: cached steps of this model do not give what the whole text gives.
    """

    def __init__(self, model: Model, *, batch: int = 32, allow_other_model: bool = False) -> None:
        self.model = model
        self.pads_left = not require_cache(model).padding_fault
        self.batch = batch
        self.allow_other_model = allow_other_model

    def plan(self, prompts: Sequence[Encoded], sampling: SamplingParams) -> list[list[int]]:
        """The batches that ``generate`` will run: like lengths together, longest first."""
        budget = BUDGET if self.model.device.type == "cpu" else BUDGET_GPU
        sizes = [len(p.ids) + sampling.max_new_tokens for p in prompts]
        batches = plan_batches(sizes, budget=budget, most=self.batch)
        if self.pads_left:
            return batches
        # What this model keeps between steps would be changed by padding: only prompts of one length share a batch.
        return [list(group) for rows in batches for _, group in groupby(rows, key=lambda row: sizes[row])]

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
    ) -> list[Generation]:
        """Answer each prompt, in order; see ``poise.engine.Engine``."""
        self._check_window(prompts, sampling)
        rows = _per_row(steering, len(prompts))
        watched = _probes_per_row(probes, len(prompts))
        drawn = list(range(len(prompts))) if seeds is None else list(seeds)
        out: dict[int, Generation] = {}
        with track("Generating", total=len(prompts)) as advance:
            for batch in self.plan(prompts, sampling):
                every = list({id(p): p for i in batch for p in watched[i]}.values())
                run = Run(
                    self.model,
                    [prompts[i] for i in batch],
                    sampling,
                    seeds=[drawn[i] for i in batch],
                    steering=[rows[i] for i in batch],
                    probes=every,
                    keep_means=keep_means,
                    allow_other_model=self.allow_other_model,
                )
                for finished in run.steps():
                    advance(len(finished))
                for i, generation in zip(batch, run.generations(), strict=True):
                    out[i] = _only(generation, every, watched[i])
        return [out[i] for i in range(len(prompts))]

    def _check_window(self, prompts: Sequence[Encoded], sampling: SamplingParams) -> None:
        longest = max((len(p.ids) for p in prompts), default=0)
        if longest + sampling.max_new_tokens > self.model.window:
            raise InvalidArgument(
                f"The longest prompt ({longest} tokens) and {sampling.max_new_tokens} new tokens exceed the window of "
                f"{self.model.name} ({self.model.window}); shorten the prompt or ask for fewer new tokens."
            )

    @torch.inference_mode()  # of the generator: in force while it runs, not while its reader does
    def stream(
        self,
        prompt: Encoded,
        sampling: SamplingParams,
        *,
        seed: int = 0,
        steering: Steering | None = None,
        probes: Sequence[Probe] = (),
    ) -> Iterator[Piece]:
        """The answer to one prompt, piece by piece as it is generated; the texts joined are the whole answer.

        With probes the first piece is the prompt's reading, and each token comes with its own: a token is read by the
        pass that takes it in, so that watched text is one token behind what has been chosen.
        """
        self._check_window([prompt], sampling)
        run = Run(
            self.model,
            [prompt],
            sampling,
            seeds=[seed],
            steering=[steering],
            probes=probes,
            allow_other_model=self.allow_other_model,
        )
        with contextlib.closing(run.steps()) as steps:
            yield from _pieces(run, steps, watched=bool(probes))


def _pieces(run: Run, steps: Iterator[list[int]], *, watched: bool) -> Iterator[Piece]:
    said, taken = "", 0
    for _ in steps:
        if watched and not taken:
            yield Piece("", run.seen[0][1].cpu())
            taken = 1
        ready = len(run.seen) - 1 if watched else len(run.tokens[0])
        text, ended = run.text(0, ready), run.finish[0]
        if ended is None and (text == said or text.endswith("\N{REPLACEMENT CHARACTER}")):
            continue  # nothing to show yet, or the rest of a character is still to come
        new = [values for _, values in run.seen[taken : ready + 1]] if watched else []
        yield Piece(text[len(said) :], torch.cat(new).cpu() if new else torch.empty(0), ended)
        said, taken = text, taken + len(new)


def _per_row(steering: Steering | Sequence[Steering | None] | None, n: int) -> list[Steering | None]:
    if steering is None or isinstance(steering, Steering):
        return [steering] * n
    rows = list(steering)
    if len(rows) != n:
        raise ValueError(f"{len(rows)} steerings for {n} prompts; give one, or one for each")
    return rows


def _probes_per_row(probes: Sequence[Probe] | Sequence[Sequence[Probe]], n: int) -> list[list[Probe]]:
    shared = [p for p in probes if isinstance(p, Probe)]
    if len(shared) == len(probes):
        return [shared] * n
    if shared or len(probes) != n:
        raise ValueError(f"{len(probes)} lists of probes for {n} prompts; give probes for all rows, or a list for each")
    return [[p for p in row if isinstance(p, Probe)] for row in probes if not isinstance(row, Probe)]


def _only(generation: Generation, every: list[Probe], own: list[Probe]) -> Generation:
    """The generation with the readings of its own probes, of all that its batch was read by."""
    if generation.readings is None or not own:
        return replace(generation, readings=None)
    place = {id(p): k for k, p in enumerate(every)}
    return replace(generation, readings=generation.readings[:, [place[id(p)] for p in own]])
