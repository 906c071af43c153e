"""Prompts on their way into a cache: several in one pass, or a long one a part at a step, answers going on in between.

Either way what an earlier text began with is taken from the prefix cache, where it holds for this prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from poise.engine.kv_cache import joinable, roomy_cache
from poise.engine.prefix_cache import PrefixCache
from poise.engine.running_batch import RunningBatch, SteeredGroup
from poise.engine.sequence import MatchedPrefix
from poise.engine.sequence import Sequence as AnswerSequence
from poise.engine.types import GenerationRequest
from poise.model import Encoded, Model
from poise.model.adapter_structure import adapters_in_force
from poise.model.batching import pad
from poise.steer import AppliedSteering, Steering

__all__ = [
    "PromptPart",
    "PromptReading",
    "can_read_in_parts",
    "keep_answers",
    "keep_prompts",
    "match_prefix",
    "prompt_scope",
    "prompts_in_one_pass",
]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PromptPart:
    """What a pass takes in: ids and positions int64 [B, T], and the mask where something is cached or padded."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None


def can_read_in_parts(request: GenerationRequest, model: Model) -> bool:
    """Whether the parts of a prompt give what the prompt in one piece gives.

    Not where the frequencies of positions depend on the prompt's length, nor where tokens of the prompt are steered by
    what its last token shows.
    """
    if model.rotary_switch.is_long(len(request.prompt.ids)) or not joinable(roomy_cache(model.lm.config)):
        return False
    terms = request.steering.terms if request.steering else ()
    return not any(t.when and t.when.reading == "prompt" and t.phase in ("prompt", "all") for t in terms)


def prompt_scope(request: GenerationRequest, model: Model) -> Hashable:
    """All that the states of a prompt's tokens depend on besides the tokens themselves, and who may reuse them.

    ``None`` where they are not to be reused at all: where parts of the prompt do not give what all of it gives.
    """
    prompt = request.prompt
    if prompt.start != len(prompt.ids) or not can_read_in_parts(request, model):
        return None
    adapters = (adapters_in_force(model.lm), tuple(getattr(model.lm, "peft_config", ())))
    return (request.client, adapters, prompt_steering_digest(request.steering))


def prompt_steering_digest(steering: Steering | None) -> bytes:
    """What a steering does to the tokens of a prompt, as a digest; empty where it does nothing there."""
    if steering is None:
        return b""
    parts: list[bytes] = []
    for term, directions in zip(steering.terms, steering.directions(), strict=True):
        if term.phase == "response":
            continue
        parts.append(repr((term.operation, term.phase, term.part, term.value, sorted(directions))).encode())
        parts += [directions[layer].numpy().tobytes() for layer in sorted(directions)]
        if when := term.when:
            parts.append(repr((when.layer, when.value, when.above, when.reading)).encode())
            parts.append(when.vector.unit(when.layer).numpy().tobytes())
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest() if parts else b""


def match_prefix(sequence: AnswerSequence, model: Model, prefixes: PrefixCache) -> None:
    """Look for what an earlier text began with, unless nothing has changed since it was last looked for."""
    matched = sequence.prefix
    if matched.version == prefixes.version or (matched.version >= 0 and matched.scope is None):
        return
    scope = matched.scope if matched.version >= 0 else prompt_scope(sequence.request, model)
    blocks = () if scope is None else tuple(prefixes.match(scope, sequence.request.prompt.ids))
    sequence.prefix = MatchedPrefix(scope=scope, blocks=blocks, version=prefixes.version)


def keep_prompts(prefixes: PrefixCache, batch: RunningBatch, logits: torch.Tensor) -> None:
    """What has been read of prompts is there for others that begin like them; call it while all end with the newest."""
    sound = torch.isfinite(logits.amax(dim=-1)).tolist()
    for row, sequence in enumerate(batch.slots):
        if sequence and sound[row] and sequence.prefix.scope is not None:
            ids = sequence.request.prompt.ids[: batch.width]
            prefixes.add(sequence.prefix.scope, ids, batch.cache, row)


def keep_answers(prefixes: PrefixCache, batch: RunningBatch) -> None:
    """Answers that have ended stay for their conversations' next turns, where nothing has steered them."""
    steered = {sequence for group in batch.groups for sequence in group.sequences}
    for row, sequence in enumerate(batch.slots):
        if sequence and sequence.finished and sequence.prefix.scope is not None and sequence not in steered:
            length = sequence.cached_tokens
            ids = (*sequence.request.prompt.ids, *sequence.detokenizer.tokens)[:length]
            prefixes.add(sequence.prefix.scope, ids, batch.cache, row, length)


def prompts_in_one_pass(
    sequences: Sequence[AnswerSequence], model: Model, prefixes: PrefixCache
) -> tuple[RunningBatch, PromptPart]:
    """Prompts whose last tokens are read together, as many of each as the longest of them needs.

    A prompt that needs fewer has some of its prefix read again, so that no row has a hole between prefix and rest.
    """
    prompts = [sequence.request.prompt.ids for sequence in sequences]
    unread = max(sequence.unread_tokens for sequence in sequences)
    firsts = [max(len(ids) - unread, 0) for ids in prompts]
    padded = pad(
        [Encoded(ids[first:], len(ids) - first, len(ids) - first) for ids, first in zip(prompts, firsts, strict=True)],
        side="left",
        device=model.device,
    )
    cache, positions = roomy_cache(model.lm.config), padded.positions
    width = max(firsts) + unread
    mask = padded.real.long()
    if any(firsts):
        prefixes.write(cache, [sequence.prefix.blocks for sequence in sequences], firsts)
        positions = positions + torch.tensor(firsts, device=model.device).unsqueeze(1)
        lengths = torch.tensor([len(ids) for ids in prompts], device=model.device).unsqueeze(1)
        mask = (torch.arange(width, device=model.device).unsqueeze(0) >= width - lengths).long()
    for sequence, first in zip(sequences, firsts, strict=True):
        sequence.reused_tokens = first
    fresh = RunningBatch(
        slots=list(sequences),
        cache=cache,
        mask=mask,
        position=positions[:, -1:],
        next_tokens=padded.ids[:, -1],
    )
    if any(sequence.request.steering for sequence in sequences):
        applied = AppliedSteering(model, [sequence.request.steering for sequence in sequences])
        applied.announce(padded)
        fresh.groups = [SteeredGroup(applied, list(sequences))]
    whole = not any(firsts) and not padded.padded
    return fresh, PromptPart(ids=padded.ids, positions=positions, mask=None if whole else mask)


class PromptReading:
    """One prompt on its way into a cache of its own.

    Args:
        sequence: Sequence whose prompt it is.
        model: Model that reads.
        prefixes: What has been read before.
    """

    def __init__(self, sequence: AnswerSequence, model: Model, prefixes: PrefixCache) -> None:
        self.sequence, self._device = sequence, model.device
        self._ids = torch.tensor(sequence.request.prompt.ids, device=model.device)
        empty = torch.zeros((1, 1), dtype=torch.long, device=model.device)
        cache, first = roomy_cache(model.lm.config), sequence.prefix.tokens
        if first:
            prefixes.write(cache, [sequence.prefix.blocks], [first])
        sequence.reused_tokens = first
        self.batch = RunningBatch(
            slots=[sequence],
            cache=cache,
            mask=torch.ones((1, first), dtype=torch.long, device=model.device),
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
