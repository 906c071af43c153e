"""What was found in a model and what works with it: the facts that a bug report needs, each tried and not assumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field

from poise.errors import PoiseError
from poise.model.architecture import text_config
from poise.model.chat_template import Encoded, ask, encode
from poise.model.hooks import observe
from poise.model.language_model import Model
from poise.model.rendering import FINAL_CHANNEL, least_effort, render_prompt
from poise.model.self_check import TEXT, SelfCheck, check_model
from poise.settings import FrozenModel

__all__ = ["Finding", "ModelDiagnosis", "diagnose"]

ThinkingFinding = Literal["none", "switched off", "opened block closed", "final channel taken"]
SWITCHES = ("enable_thinking", "thinking", "reasoning_effort")


class Finding(FrozenModel):
    """One thing that was tried.

    Attributes:
        name: What.
        works: Whether it did; ``None`` where it could not be tried.
        detail: The measured figure, or why it does not work.
    """

    name: str
    works: bool | None
    detail: str


class ModelDiagnosis(FrozenModel):
    """Everything that was found in one model."""

    model: str
    model_type: str
    model_class: str
    layers: int = Field(description="Decoder blocks, L.")
    width: int = Field(description="Residual stream, d.")
    parameters: int
    dtype: str
    device: str
    window: int = Field(description="Most tokens at once.")
    memory_mib: float = Field(description="Weights and buffers.")
    block_class: str
    template: Literal["the model's own", "none: turns are named in plain words"]
    thinking: ThinkingFinding
    reasoning_effort: str = Field(
        "", description="What stands for no thinking; empty where the template has no levels."
    )
    stop_tokens: tuple[str, ...] = Field((), description="Tokens that end an answer.")
    fingerprint: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def works(self) -> bool:
        """Whether everything that was tried works."""
        return all(finding.works is not False for finding in self.findings)


def diagnose(model: Model) -> ModelDiagnosis:
    """Try reading, generating, padding and the chat template on short texts.

    Args:
        model: Loaded, in evaluation mode, not hooked.
    """
    lm, print_ = model.lm, model.fingerprint
    check = check_model(model)
    tensors = [*lm.parameters(), *lm.buffers()]
    return ModelDiagnosis(
        model=model.name,
        model_type=str(getattr(text_config(lm.config), "model_type", "")),
        model_class=type(lm).__name__,
        layers=model.layers,
        width=model.width,
        parameters=sum(parameter.numel() for parameter in lm.parameters()),
        dtype=str(lm.dtype).removeprefix("torch."),
        device=str(model.device),
        window=model.window,
        memory_mib=round(sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20, 1),
        block_class=type(model.blocks[0]).__name__,
        template="the model's own" if model.tokenizer.chat_template else "none: turns are named in plain words",
        thinking=_thinking(model),
        reasoning_effort=_effort(model),
        stop_tokens=tuple(model.tokenizer.convert_ids_to_tokens(sorted(model.stop_ids))),
        fingerprint={
            "architecture": print_.architecture,
            "weights": print_.weights,
            "adapter": print_.adapter,
            "template": print_.template,
        },
        findings=(
            _tried("reading: blocks give one residual stream [B, T, d]", lambda: _streams(model)),
            _tried("reading equals transformers' hidden_states", lambda: _hidden_states(model)),
            _rotary_finding(model),
            _cache_finding(check),
            _padding_finding(check),
            _tried("template: keeps every turn's words", lambda: _keeps_words(model)),
            _tried("template: takes a system prompt", lambda: _takes_system(model)),
            _tried("tokenizer: an answer's span decodes to the answer", lambda: _decodes_span(model)),
        ),
    )


def _tried(name: str, run: Callable[[], tuple[bool | None, str]]) -> Finding:
    try:
        works, detail = run()
    except PoiseError as error:
        works, detail = False, str(error)
    return Finding(name=name, works=works, detail=detail)


def _ids(model: Model) -> torch.Tensor:
    return torch.tensor([model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]], device=model.device)


@torch.inference_mode()
def _streams(model: Model) -> tuple[bool, str]:
    shapes: set[tuple[int, ...]] = set()
    ids = _ids(model)
    with observe(model, lambda layer, h: shapes.add(tuple(h.shape))):
        model.backbone(input_ids=ids, use_cache=False)
    return shapes == {(1, ids.shape[1], model.width)}, f"{model.layers} blocks of {type(model.blocks[0]).__name__}"


@torch.inference_mode()
def _hidden_states(model: Model) -> tuple[bool | None, str]:
    """Each block's output against transformers' entry for it; the last entry is after the final norm and left out.

    Most models give the embeddings first, so that block i is entry i + 1; state-space models do not.
    """
    outputs: dict[int, torch.Tensor] = {}
    with observe(model, lambda layer, h: outputs.update({layer: h})):
        out: Any = model.backbone(input_ids=_ids(model), use_cache=False, output_hidden_states=True)
    states = getattr(out, "hidden_states", None)
    if states is None or len(states) != model.layers + 1:
        return None, f"the model gives {len(states) if states else 'no'} hidden states for {model.layers} blocks"
    differences = {
        shift: max(float((outputs[i] - states[i + shift]).abs().max()) for i in range(model.layers - 1))
        for shift in (1, 0)
    }
    shift = min(differences, key=lambda shift: differences[shift])
    entry = "i + 1" if shift else "i"
    detail = (
        f"block i is entry {entry}, largest difference {differences[shift]:.2g} over layers 0 to {model.layers - 2}"
    )
    return differences[shift] == 0, detail


def _rotary_finding(model: Model) -> Finding:
    switch = model.rotary_switch
    detail = "its rotary embeddings, if any, are the same at every length"
    if switch.kind == "longrope":
        detail = (
            f"LongRoPE: other frequencies from {switch.tokens + 1} tokens; texts on one side of it are read together, "
            f"and an answer to a shorter prompt ends at {switch.tokens}"
        )
    elif switch.kind:
        detail = (
            f"dynamic NTK: other frequencies for each length beyond {switch.tokens} tokens; longer texts are refused"
        )
    return Finding(name="reading: a batch's longest text changes no other", works=True, detail=detail)


def _cache_finding(check: SelfCheck) -> Finding:
    detail = check.cache_fault or f"difference {check.cached:.2g} of the logits' spread, under {check.cache}"
    return Finding(name="generating: cached steps equal one uncached pass", works=not check.cache_fault, detail=detail)


def _padding_finding(check: SelfCheck) -> Finding:
    detail = f"difference {check.padded:.2g} of the logits' spread"
    if check.padding_fault:
        detail = f"{check.padding_fault}; only prompts of one length share a batch"
    return Finding(
        name="generating: rows of different lengths share a batch", works=not check.padding_fault, detail=detail
    )


def _keeps_words(model: Model) -> tuple[bool, str]:
    turns = [*ask("What is new?"), {"role": "assistant", "content": "Little."}, *ask("And else?")]
    render_prompt(model.tokenizer, turns)  # type: ignore[arg-type]
    return True, "a conversation of three turns"


def _takes_system(model: Model) -> tuple[bool, str]:
    text = render_prompt(model.tokenizer, ask("What is new?", "Be brief."))
    alone = "system" in text.lower() and "Be brief.\n\nWhat is new?" not in text
    return True, "as a turn of its own" if alone else "at the head of the first user turn"


def _decodes_span(model: Model) -> tuple[bool, str]:
    text: Encoded = encode(model.tokenizer, ask("What is new?"), "Little, and that is well.")
    span = model.tokenizer.decode(text.ids[text.start : text.end])
    return span.strip() == "Little, and that is well.", repr(span)


def _thinking(model: Model) -> ThinkingFinding:
    template = str(model.tokenizer.chat_template or "")
    try:
        prompt = render_prompt(model.tokenizer, ask("What is new?"))
    except PoiseError:
        return "none"
    if prompt.endswith(FINAL_CHANNEL):
        return "final channel taken"
    if prompt.rstrip().endswith(("</think>", "[/THINK]", "</thinking>", "</thought>", "</reasoning>")):
        return "opened block closed"
    return "switched off" if any(switch in template for switch in SWITCHES) else "none"


def _effort(model: Model) -> str:
    if "reasoning_effort" not in str(model.tokenizer.chat_template or ""):
        return ""
    return least_effort(model.tokenizer) or "left out"
