"""Texts to activations, all layers in one pass.

Each block's output is reduced inside its hook, so that no more than one layer's hidden states of one
batch are ever held. Knows nothing of traits.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch

from poise.arguments import check_type
from poise.errors import InvalidArgument, NonFiniteActivation
from poise.model import Encoded, Model
from poise.model.batching import PaddedBatch, Side, pad
from poise.model.hooks import checked_layers, observe
from poise.model.probe import Probe
from poise.model.rotary import plan_rows
from poise.model.self_check import require_padding
from poise.progress import track

__all__ = [
    "Pool",
    "Probe",
    "by_layer",
    "project",
    "project_each",
    "read",
    "read_layers",
    "read_tokens",
    "reference_norm",
]

Pool = Literal["response_mean", "prompt_mean", "prompt_last"]

READ_BUDGET = 2048  # padded tokens a batch on a CPU; measured in benchmarks/read_activations.py
READ_BUDGET_GPU = 16384
READ_MOST_ROWS = 256
COLUMNS_TOGETHER = 8  # directions of one matrix product


def read(
    model: Model,
    texts: Sequence[Encoded],
    *,
    pool: Pool = "response_mean",
    padding: Side = "right",
    budget: int | None = None,
) -> torch.Tensor:
    """Pooled activations of texts at every layer.

    n: texts, L: decoder blocks, d: model width. Batches are length-sorted under a token budget; blocks run in the
    model's dtype, means are taken in float32 on the device; padding never enters a mean.

    Args:
        model: Runs without its language-model head.
        texts: Encoded texts, as ``Model.encode`` gives them, already within the model's window.
        pool: ``response_mean`` (Chen et al. 2025, App. A.3), ``prompt_mean`` or ``prompt_last``.
        padding: ``right`` needs no attention mask and is faster; ``left`` gives the same numbers, or is refused.
        budget: Padded tokens a batch; default by device.

    Returns:
        float32 [n, L, d] on the CPU. A text whose span is empty has NaN: missing is never zero.

    Raises:
        InvalidArgument: an unknown pool or padding, or a budget below 1.
        UnsuitableModel: padding on the left changes what this model gives.
        NonFiniteActivation: NaN or infinity came out of the model; names layer and text.
    """
    check_type("model", model, Model, "a Model, as load_model(name) gives")
    check_type("texts", texts, (list, tuple), "a list of texts, each as model.encode(messages, answer) gives")
    for text in texts:
        check_type("A text", text, Encoded, "what model.encode(messages, answer) gives")
    check_reading(pool=pool, padding=padding, budget=budget)
    if padding == "left":
        require_padding(model)
    out = torch.full((len(texts), model.layers, model.width), float("nan"))
    spans = [_pool_span(text, pool) for text in texts]
    cut = [Encoded(t.ids[: max(last, 1)], first, last) for t, (first, last) in zip(texts, spans, strict=True)]
    usable = [i for i, (first, last) in enumerate(spans) if last > first]
    lengths = [len(cut[i].ids) for i in usable]
    batches = _plan(model, lengths, budget)
    with track("Reading activations", total=len(usable)) as advance:
        for batch in batches:
            rows = [usable[j] for j in batch]
            out[rows] = _span_means(model, pad([cut[i] for i in rows], side=padding, device=model.device)).cpu()
            advance(len(rows))
    _check_finite(out, usable, model)
    return out


def _span_means(model: Model, batch: PaddedBatch) -> torch.Tensor:
    """Mean over each row's span, at every layer: float32 [B, L, d]."""
    out = torch.empty((len(batch.spans), model.layers, model.width), dtype=torch.float32, device=model.device)

    def visit(layer: int, states: torch.Tensor) -> None:
        for row, (first, last) in enumerate(batch.spans):
            torch.sum(states[row, first:last], dim=0, dtype=torch.float32, out=out[row, layer])

    with observe(model, visit):
        forward(model, batch)
    counts = torch.tensor([last - first for first, last in batch.spans], device=model.device)
    return out / counts[:, None, None]


def read_layers(model: Model, texts: Sequence[Encoded], layers: Sequence[int]) -> torch.Tensor:
    """Response means of texts at some layers, in a pass that stops after the deepest: float32 [n, len(layers), d].

    Nothing is refused: a text that the model breaks on has NaN or infinity, and so has one whose response is empty.

    Raises:
        InvalidArgument: no layers, or one that the model does not have.
    """
    if not layers:
        raise InvalidArgument("There are no layers to read; give at least one.")
    checked_layers(model, layers)
    out = torch.full((len(texts), len(layers), model.width), float("nan"))
    for rows in _plan(model, [len(t.ids) for t in texts]):

        def visit(layer: int, states: torch.Tensor, rows: list[int] = rows) -> None:
            for row, i in enumerate(rows):
                mean = states[row, texts[i].start : texts[i].end].float().mean(dim=0).cpu()
                out[i, [k for k, other in enumerate(layers) if other == layer]] = mean

        with observe(model, visit, layers, stop=True):
            forward(model, pad([texts[i] for i in rows], side="right", device=model.device))
    return out


def read_tokens(model: Model, texts: Sequence[Encoded], layers: Sequence[int]) -> list[torch.Tensor]:
    """Activations of every token of each text: float32 [T, len(layers), d] a text, on the CPU.

    Nothing is pooled, so this is for a few layers and a few texts at a time.

    Raises:
        InvalidArgument: no layers, or one that the model does not have.
    """
    if not layers:
        raise InvalidArgument("There are no layers to read; give at least one.")
    checked_layers(model, layers)
    out = [torch.empty((len(t.ids), len(layers), model.width)) for t in texts]
    columns = {layer: [k for k, other in enumerate(layers) if other == layer] for layer in layers}
    for rows in _plan(model, [len(t.ids) for t in texts]):

        def visit(layer: int, states: torch.Tensor, rows: list[int] = rows) -> None:
            for row, i in enumerate(rows):
                out[i][:, columns[layer]] = states[row, : len(texts[i].ids)].float().cpu().unsqueeze(1)

        with observe(model, visit, layers):
            forward(model, pad([texts[i] for i in rows], side="right", device=model.device))
    return out


def project(model: Model, texts: Sequence[Encoded], probes: Sequence[Probe]) -> list[torch.Tensor]:
    """Projections of every token of each text on each probe, in one forward pass a text.

    One [T, d] × [d, k] product a watched layer, in float32; the pass stops after the deepest of them. The mean of
    a span's projections is the projection of its mean.

    Args:
        model: Runs without its language-model head.
        texts: Within the model's window.
        probes: k of them, at any layers.

    Returns:
        float32 [T, k] a text, on the CPU.

    Raises:
        InvalidArgument: no probes, or one that does not fit the model.
        NonFiniteActivation: NaN or infinity came out of the model.
    """
    check_probes(probes, model)
    out = [torch.empty(0)] * len(texts)
    with track("Reading", total=len(texts)) as advance:
        for rows in _plan(model, [len(t.ids) for t in texts]):
            batch = pad([texts[i] for i in rows], side="right", device=model.device)
            read_by = project_batch(model, batch, probes).cpu()
            for row, i in enumerate(rows):
                out[i] = read_by[row, : len(texts[i].ids)].clone()
            advance(len(rows))
    bad = [i for i, values in enumerate(out) if not torch.isfinite(values).all()]
    if bad:
        raise NonFiniteActivation(
            f"{model.name} gave NaN or infinity for text {bad[0]} ({len(bad)} of {len(texts)} texts); load it with "
            "dtype=torch.float32."
        )
    return out


def project_each(model: Model, texts: Sequence[Encoded], probes: Sequence[Probe]) -> list[torch.Tensor | None]:
    """As ``project``, with ``None`` for a text that the model breaks on; the others are read all the same."""
    if not texts:
        return []
    try:
        return list(project(model, texts, probes))
    except NonFiniteActivation:
        if len(texts) == 1:
            return [None]
        return [one for text in texts for one in project_each(model, [text], probes)]


def project_batch(model: Model, batch: PaddedBatch, probes: Sequence[Probe]) -> torch.Tensor:
    """Projections of every position of a padded batch, float32 [B, T, k] on the model's device; padding is noise."""
    grouped = by_layer(probes, model)
    out = torch.empty((*batch.ids.shape, len(probes)), device=model.device)

    def visit(layer: int, states: torch.Tensor) -> None:
        columns, directions = grouped[layer]
        out[:, :, columns] = _project_states(states.float(), directions)

    with observe(model, visit, sorted(grouped), stop=True):
        forward(model, batch)
    return out


def _project_states(states: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """``states @ directions``, eight at a time: to the last bit, no direction's numbers depend on the others."""
    k = directions.shape[1]
    padded = torch.nn.functional.pad(directions, (0, -k % COLUMNS_TOGETHER))
    blocks = [padded[:, first : first + COLUMNS_TOGETHER] for first in range(0, k, COLUMNS_TOGETHER)]
    return torch.cat([states @ block.contiguous() for block in blocks], dim=-1)[..., :k]


def check_reading(*, pool: str, padding: str, budget: int | None) -> None:
    """Refuse what ``read`` cannot do, before the model runs."""
    if pool not in get_args(Pool):
        raise InvalidArgument(f"The pool is {pool!r}; it must be one of {', '.join(get_args(Pool))}.")
    if padding not in get_args(Side):
        raise InvalidArgument(f"The padding is {padding!r}; it must be left or right.")
    if budget is not None and budget < 1:
        raise InvalidArgument(f"The budget is {budget} tokens a batch; it must be at least 1.")


def check_probes(probes: Sequence[Probe], model: Model) -> None:
    """Probes that can be read on a model.

    Raises:
        InvalidArgument: none at all, a layer that the model does not have, or a direction of another width.
    """
    if not probes:
        raise InvalidArgument("There are no probes to read with; give at least one.")
    checked_layers(model, [probe.layer for probe in probes])
    for number, probe in enumerate(probes):
        shape = tuple(getattr(probe.direction, "shape", ()))
        if shape != (model.width,):
            raise InvalidArgument(
                f"The direction of probe {number} has the shape {shape}; {model.name} needs ({model.width},)."
            )


def by_layer(probes: Sequence[Probe], model: Model) -> dict[int, tuple[list[int], torch.Tensor]]:
    """Probes of one layer as one matrix: layer → (columns, float32 [d, probes of that layer])."""
    layers = sorted({p.layer for p in probes})
    columns = {layer: [k for k, p in enumerate(probes) if p.layer == layer] for layer in layers}
    return {
        layer: (ks, torch.stack([probes[k].direction.float() for k in ks], dim=1).to(model.device))
        for layer, ks in columns.items()
    }


def reference_norm(model: Model, texts: Sequence[Encoded]) -> torch.Tensor:
    """Mean length of a response token's residual stream, ``mean ‖h‖``: float32 [L]. The unit of a dose.

    Raises:
        InvalidArgument: no texts, or none with a response.
    """
    total = torch.zeros(model.layers, dtype=torch.float64)
    count = sum(t.end - t.start for t in texts)
    if not count:
        raise InvalidArgument(
            f"The texts ({len(texts)}) have no response token between them; give answers to measure on."
        )
    for rows in _plan(model, [len(t.ids) for t in texts]):
        batch = pad([texts[i] for i in rows], side="right", device=model.device)
        inside = batch.inside(batch.spans)

        def visit(layer: int, states: torch.Tensor, inside: torch.Tensor = inside) -> None:
            total[layer] += states[inside].float().norm(dim=-1).sum().double().cpu()

        with observe(model, visit):
            forward(model, batch)
    return (total / count).float()


@torch.inference_mode()
def forward(model: Model, batch: PaddedBatch) -> None:
    """One pass through the blocks without head or cache. Right-padded causal rows need no attention mask."""
    backbone = model.backbone
    left = any(first for first, _ in batch.prompts)
    extra: dict[str, Any] = {"attention_mask": batch.real.long()} if left else {}
    if left and "position_ids" in inspect.signature(backbone.forward).parameters:
        extra["position_ids"] = batch.positions
    backbone(input_ids=batch.ids, use_cache=False, **extra)


def _pool_span(text: Encoded, pool: Pool) -> tuple[int, int]:
    match pool:
        case "response_mean":
            return text.start, text.end
        case "prompt_mean":
            return 0, text.last_prompt + 1
        case "prompt_last":
            last = max(text.last_prompt, 0)
            return last, last + 1


def _plan(model: Model, lengths: Sequence[int], budget: int | None = None) -> list[list[int]]:
    """Batches whose rows are read as if each were alone."""
    budget = budget or _budget(model)
    return plan_rows(model.rotary_switch, lengths, budget=budget, most=READ_MOST_ROWS, name=model.name)


def _budget(model: Model) -> int:
    return READ_BUDGET if model.device.type == "cpu" else READ_BUDGET_GPU


def _check_finite(out: torch.Tensor, rows: Sequence[int], model: Model) -> None:
    bad = (~torch.isfinite(out[list(rows)])).any(dim=-1).nonzero()
    if len(bad):
        row, layer = bad[0].tolist()
        raise NonFiniteActivation(
            f"{model.name} gave NaN or infinity at layer {layer} of {model.layers} for text {rows[row]} "
            f"({len(bad)} places in all); load it with dtype=torch.float32."
        )
