"""One pass of a running batch: steered, read and sampled, row by row."""

from __future__ import annotations

import contextlib

import torch

from poise.activations import Probe, by_layer
from poise.engine.grammar import constrain
from poise.engine.prompt_reading import PromptPart
from poise.engine.running_batch import RunningBatch
from poise.engine.sampler import sample_tokens
from poise.engine.sequence import Sequence, TokenScores
from poise.engine.types import EngineOutput
from poise.model import Model
from poise.model.cached_pass import newest_logits
from poise.model.hooks import observe
from poise.steer.joined_rows import apply_joined_steering

__all__ = ["ModelPass", "postprocess", "sample_next"]

ProbesByLayer = dict[int, tuple[list[int], torch.Tensor]]


class ModelPass:
    """Runs batches through a model.

    Args:
        model: Model in evaluation mode.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._last_probes: tuple[list[Probe], ProbesByLayer] = ([], {})

    def run(self, batch: RunningBatch, part: PromptPart) -> tuple[torch.Tensor, dict[Sequence, tuple[float, ...]]]:
        """Logits float32 [S, vocabulary], and every sequence's projections on its own probes at the newest token."""
        probes: dict[Probe, int] = {}
        for sequence in batch.sequences:
            for probe in sequence.request.probes:
                probes.setdefault(probe, len(probes))
        if list(probes) != self._last_probes[0]:
            self._last_probes = (list(probes), by_layer(list(probes), self.model))
        probes_by_layer = self._last_probes[1]
        values = torch.empty((len(part.ids), len(probes)), device=self.model.device)

        def visit(layer: int, h: torch.Tensor) -> None:
            columns, directions = probes_by_layer[layer]
            values[:, columns] = h[:, -1].float() @ directions

        with contextlib.ExitStack() as hooks:
            hooks.enter_context(apply_joined_steering(self.model, batch.steered_rows()))
            if probes:
                hooks.enter_context(observe(self.model, visit, sorted(probes_by_layer)))
            logits = newest_logits(self.model, batch.cache, part.ids, part.mask, part.positions)
        rows = values.tolist()
        return logits, {
            sequence: tuple(rows[slot][probes[p]] for p in sequence.request.probes)
            for slot, sequence in enumerate(batch.slots)
            if sequence is not None
        }


def sample_next(batch: RunningBatch, logits: torch.Tensor) -> list[int]:
    """The next token of every sequence, in the order of their slots; the batch takes them in at its next pass."""
    slots = torch.tensor([n for n, s in enumerate(batch.slots) if s is not None], device=logits.device)
    sequences = batch.sequences
    live_logits = logits if len(sequences) == len(batch.slots) else logits[slots]
    held = constrain(live_logits, [s.constraint for s in sequences], [s.tracker for s in sequences])
    tokens = sample_tokens(held, [s.request.sampling for s in sequences], [s.draw() for s in sequences])
    batch.next_tokens = batch.next_tokens.new_zeros(len(batch.slots)).index_copy(0, slots, tokens)
    return tokens.tolist()


def postprocess(
    batch: RunningBatch,
    logits: torch.Tensor,
    tokens: list[int],
    readings: dict[Sequence, tuple[float, ...]],
) -> list[EngineOutput]:
    """Give every sequence its token and readings; what each can release."""
    finite = torch.isfinite(logits.amax(dim=-1)).tolist()
    outputs = []
    live = [(slot, sequence) for slot, sequence in enumerate(batch.slots) if sequence is not None]
    for (slot, sequence), token in zip(live, tokens, strict=True):
        if not finite[slot]:
            outputs.append(sequence.break_off())
        elif output := sequence.append(token, _logit_scores(logits[slot]), readings[sequence]):
            outputs.append(output)
    return outputs


def _logit_scores(logits: torch.Tensor) -> TokenScores:
    """Log-probabilities by logits [vocabulary], worked out where they are asked for."""

    def scores(token: int, most: int) -> tuple[float, list[tuple[int, float]]]:
        logprobs = torch.log_softmax(logits, dim=-1)
        best = torch.topk(logprobs, most)
        return float(logprobs[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    return scores
