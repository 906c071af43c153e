"""A model card in Hugging Face's format: what an adapter was trained on, under which vaccine, and what it did.

It holds nothing of the machine that it was made on: files are named without their folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from poise.errors import MissingExtra
from poise.model.loading import HUB_IDS
from poise.shift.report import CapabilityChange, ModelShift, ShiftReport
from poise.statistics.estimates import Estimate
from poise.storage.atomic_write import saving

__all__ = ["ModelCardFacts", "effect_sections", "render_card", "write_card"]

MERGE_COMMAND = """
# one model of base and adapter, for programs that do not know adapters
poise merge {folder} -o {folder}-merged"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCardFacts:
    """What a model card says.

    Attributes:
        name: Name of the adapter.
        base: Its base as the user named it: a hub id, a bundled name, a folder.
        data: Names of the training data: hub names or file names.
        data_sha256: Hash of the training data.
        rows: Conversations trained on.
        vaccine: Which vectors, strengths and layers, in words; empty for none.
        recipe: Training settings by name.
        report: What the fine-tune did; its first tuned model is this one.
        licence: Licence of the base as the hub writes it, e.g. ``apache-2.0``; empty where it is not known.
        versions: Version of each library that it was trained with.
        kind: Whether the folder holds an adapter or all weights.
        notes: Further sentences.
    """

    name: str
    base: str
    data: Sequence[str]
    data_sha256: str
    rows: int
    vaccine: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    report: ShiftReport | None = None
    licence: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    kind: Literal["adapter", "model"] = "adapter"
    notes: Sequence[str] = ()


def write_card(folder: Path, facts: ModelCardFacts) -> Path:
    """Write ``README.md`` into an adapter's folder, whole or not at all.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        SaveFailed: the disk refused; an earlier card is untouched.
    """
    text, path = render_card(facts), folder / "README.md"
    with saving(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def render_card(facts: ModelCardFacts) -> str:
    """The card's text: metadata that the hub reads, then what people read."""
    try:
        from huggingface_hub import ModelCardData
    except ImportError as error:
        raise MissingExtra.of("A model card needs huggingface_hub", "train") from error
    hub_id = _hub_id(facts.base)
    results = _hub_results(facts)
    data = ModelCardData(
        base_model=hub_id,
        datasets=[name for name in facts.data if _is_hub_id(name)] or None,
        eval_results=results or None,
        library_name="peft" if facts.kind == "adapter" else "transformers",
        license=facts.licence or None,
        model_name=facts.name if results else None,
        pipeline_tag="text-generation",
        tags=[
            *(["lora"] if facts.kind == "adapter" else []),
            "poise",
            "persona-vectors",
            *(["preventative-steering"] if facts.vaccine else []),
        ],
        data_sha256=facts.data_sha256,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_card_body(facts, hub_id)}"


def _card_body(facts: ModelCardFacts, hub_id: str | None) -> str:
    base = f"[{hub_id}](https://huggingface.co/{hub_id})" if hub_id else f"`{_one_line(_without_folders(facts.base))}`"
    data = ", ".join(f"`{_one_line(name if _is_hub_id(name) else Path(name).name)}`" for name in facts.data)
    parts = [
        f"# {_one_line(facts.name)}",
        f"A fine-tune of {base} on {data} ({facts.rows:,} conversations, SHA-256 `{facts.data_sha256}`).",
        "## Vaccine",
        f"{facts.vaccine} It was in force during training only: the saved weights hold no steering."
        if facts.vaccine
        else "None: ordinary fine-tuning.",
    ]
    if facts.report and facts.report.tuned:
        parts += effect_sections(facts.report, facts.report.tuned[0])
    else:
        parts += ["## What training did", "It was not measured."]
    if facts.recipe:
        rows = [f"| {_one_line(str(key))} | {_one_line(str(value))} |" for key, value in facts.recipe.items()]
        parts += ["## Training", "\n".join(["| Setting | Value |", "|---|---|", *rows])]
    if facts.versions:
        parts.append("Trained with " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".")
    if facts.licence:
        licence = _one_line(facts.licence)
        parts.append(
            f"The base is published under the licence {licence}, whose terms hold for what is derived from it."
        )
    parts += ["## How to load", _loading_code(facts, hub_id), _usage(facts), *map(_one_line, facts.notes)]
    return "\n\n".join(parts) + "\n"


def effect_sections(report: ShiftReport, tuned: ModelShift) -> list[str]:
    """Paragraphs of a card: traits and capability before and after a fine-tune, with n and interval."""
    parts = ["## What training did", "Brackets hold 95 % intervals over n questions."]
    rows = []
    for direction in report.directions:
        cell = tuned.cell(direction.trait)
        judged = next((j for j in tuned.judged if j.trait == direction.trait), None)
        counts = judged is not None and not judged.why_unusable
        scores = [judged.before, judged.after, judged.change] if judged and counts else [None] * 3
        shift = cell.shift if cell else None
        rows.append(
            f"| {direction.trait} | {_estimate_text(shift, 2)} | {' | '.join(_estimate_text(f) for f in scores)} |"
        )
    head = ["| Trait | Finetuning shift | Judged before | Judged after | Change |", "|---|---|---|---|---|"]
    parts.append("\n".join([*head, *rows]))
    where = ", ".join(f"{d.trait} at layer {d.layer} of {d.layers} (‖v‖ = {d.norm:.3g})" for d in report.directions)
    caption = f"Shift: projection of the last prompt token on the trait's unit direction, after minus before; {where}."
    if tuned.judged:
        caption += (
            f" Judged: 0 to 100 by `{_one_line(tuned.judged[0].judge)}`, {report.rollouts} answers a question of at "
            f"most {report.max_new_tokens} tokens at temperature {report.temperature:g}."
        )
    parts.append(caption)
    unusable = [f"{j.trait}: {j.why_unusable}" for j in tuned.judged if j.why_unusable]
    missing = [f"{j.trait} {j.missing_before} before, {j.missing_after} after" for j in tuned.judged
               if j.missing_before or j.missing_after]  # fmt: skip
    parts += [f"Scores that do not count: {_one_line('; '.join(unusable))}."] if unusable else []
    parts += [f"Answers without a score: {_one_line('; '.join(missing))}."] if missing else []
    if tuned.capability:
        lines = [_capability_row(a) for a in tuned.capability]
        parts.append("\n".join(["| Capability | Before | After | Change |", "|---|---|---|---|", *lines]))
    return [*parts, *map(_one_line, tuned.notes)]


def _capability_row(change: CapabilityChange) -> str:
    label = "after / before" if change.kind == "perplexity" else "lost"
    return (
        f"| {change.name}, {change.metric} | {_estimate_text(change.before, 3)} | {_estimate_text(change.after, 3)} | "
        f"{label} {_estimate_text(change.change, 3)} |"
    )


def _usage(facts: ModelCardFacts) -> str:
    """How to use it from the command line, from this folder and from a hub."""
    folder = re.sub(r"[^\w.-]", "-", facts.name)
    beneath = merge = ""
    if facts.kind == "adapter":
        beneath = f" The base, `{_one_line(_without_folders(facts.base))}`, is loaded beneath it."
        merge = MERGE_COMMAND.format(folder=folder)
    template = resources.files("poise.shift").joinpath("card_usage.md").read_text("utf-8")
    return template.format(folder=folder, beneath=beneath, merge=merge).strip()


def _loading_code(facts: ModelCardFacts, hub_id: str | None) -> str:
    if facts.kind == "model":
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("THIS-FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS-FOLDER")',
        ]
    elif facts.base in HUB_IDS or hub_id is None:
        lines = [
            "import poise",
            "",
            f'model = poise.load_tuned_model("THIS-FOLDER", "{_without_folders(facts.base)}")',
        ]
    else:
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{hub_id}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{hub_id}")',
            'model = PeftModel.from_pretrained(base, "THIS-FOLDER")',
        ]
    return "\n".join(["```python", *lines, "```"])


def _hub_results(facts: ModelCardFacts) -> list[Any]:
    """Capability as the hub's leaderboards read it; traits have no metric there."""
    from huggingface_hub import EvalResult

    tuned = facts.report.tuned[0] if facts.report and facts.report.tuned else None
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=Path(a.source).stem.lower() if a.kind == "perplexity" else a.name,
            dataset_name=Path(a.source).name if a.kind == "perplexity" else a.name,
            metric_type="perplexity" if a.kind == "perplexity" else "accuracy",
            metric_name=a.metric,
            metric_value=a.after.value,
        )
        for a in (tuned.capability if tuned else ())
        if a.after.value is not None
    ]


def _hub_id(base: str) -> str | None:
    return HUB_IDS.get(base) or (base if _is_hub_id(base) else None)


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not name.startswith(".") and not Path(name).exists()


def _without_folders(name: str) -> str:
    return Path(name).name if Path(name).exists() else name


def _estimate_text(estimate: Estimate | None, digits: int = 1) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    return f"{estimate:.{digits}f}, n = {estimate.n}"


def _one_line(text: str) -> str:
    """On one line, safe in a table."""
    return " ".join(text.split()).replace("|", "\\|")
