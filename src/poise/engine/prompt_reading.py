"""A long prompt that is read a part at a step, so that the answers that run go on between its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from poise.engine.kv_cache import joinable, roomy_cache
from poise.engine.running_batch import RunningBatch, SteeredGroup
from poise.engine.sequence import Sequence
from poise.model import Encoded, Model
from poise.model.batching import pad
from poise.steer import AppliedSteering

__all__ = ["PromptPart", "PromptReading", "can_read_in_parts"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PromptPart:
    """What a pass takes in: ids and positions int64 [1, T], and the mask where something is cached already."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None


def can_read_in_parts(sequence: Sequence, model: Model) -> bool:
    """Whether the parts of a prompt give what the prompt in one piece gives.

    Not where the frequencies of positions depend on the prompt's length, nor where tokens of the prompt are steered by
    what its last token shows.
    """
    if model.rotary_switch.is_long(len(sequence.request.prompt.ids)) or not joinable(roomy_cache(model.lm.config)):
        return False
    terms = sequence.request.steering.terms if sequence.request.steering else ()
    return not any(t.when and t.when.reading == "prompt" and t.phase in ("prompt", "all") for t in terms)


class PromptReading:
    """One prompt on its way into a cache of its own.

    Args:
        sequence: Sequence whose prompt it is.
        model: Model that reads.
    """

    def __init__(self, sequence: Sequence, model: Model) -> None:
        self.sequence, self._device = sequence, model.device
        self._ids = torch.tensor(sequence.request.prompt.ids, device=model.device)
        empty = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        self.batch = RunningBatch(
            slots=[sequence],
            cache=roomy_cache(model.lm.config),
            mask=empty[:, :0],
            position=empty,
            next_tokens=empty[:, 0],
        )
        if sequence.request.steering:
            applied = AppliedSteering(model, [sequence.request.steering])
            self.batch.groups = [SteeredGroup(applied, [sequence])]

    @property
    def done(self) -> bool:
        """Whether all of it has been read."""
        return self.batch.width == len(self._ids)

    def advance(self, tokens: int) -> PromptPart:
        """The next part, of at most that many tokens; the batch is then as it will be after the pass."""
        first = self.batch.width
        ids = self._ids[first : first + tokens].unsqueeze(0)
        last = first + ids.shape[1]
        for group in self.batch.groups:
            # Each part is announced as a prompt that ends with it: what a condition reads there is read again in the
            # last part, which is the one that counts.
            part = Encoded(tuple(ids[0].tolist()), ids.shape[1], ids.shape[1])
            group.applied.announce(pad([part], side="left", device=self._device))
        positions = torch.arange(first, last, device=self._device).unsqueeze(0)
        self.batch.mask = torch.ones((1, last), dtype=torch.long, device=self._device)
        self.batch.position = positions[:, -1:]
        return PromptPart(ids=ids, positions=positions, mask=self.batch.mask if first else None)
