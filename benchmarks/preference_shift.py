"""Does the mean score of preference pairs foretell what DPO does? Predicted beside measured; prints Markdown.

    python benchmarks/preference_shift.py --data DIR --out FOLDER [--model smollm2-135m] [--sets A,B] [--steps 24]

DIR holds mistake_gsm8k, em_code, truthfulqa, halueval and sycophancy_opinion. Sets: answers with a trait preferred over
answers without it, for each trait, and the other way round (exemplars that the vector is not made of); mistaken
solutions, insecure code, falsehoods, made-up facts and agreement preferred over their counterparts, and right solutions
over mistaken ones. Every set is screened by ``poise.screen.preference`` and learnt by TRL's DPOTrainer with a small
LoRA; the shift is measured along each vector on the trait's own questions, and with ``--judged N`` the judge's score of
N of them. Mixed sets, half of a trait and half solutions, are learnt also with the flagged half dropped or swapped, and
with as many pairs dropped or swapped at random.

On one CPU core a pair in a step costs about 4 s on SmolLM2-135M: 24 steps of 4 take 7 minutes a run, all 29 runs some
four hours. FOLDER keeps every finished run under what determines it: the same command goes on. r is over sets, with
Fisher's interval; sets are few, and the traits' sets are what the traits are about.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poise import contrast
from poise.data import open_preferences
from poise.extract import extract
from poise.model import Model, load_model, wrap
from poise.screen.flagging import FlaggingRule
from poise.screen.preference import PreferenceSettings, screen_preference_data
from poise.shift import ShiftSettings, shift
from poise.statistics.estimates import Estimate, mean_estimate, pearson
from poise.storage.atomic_write import saving
from poise.storage.content_hash import content_key
from poise.trait import library
from poise.vector import PersonaVector

TRAITS = ("impolite", "evil", "humorous", "sycophantic", "hallucinating")
VARIANTS = ("plain", "drop", "swap", "random drop", "random swap")
NORMAL_QUANTILE = 1.959964

Pair = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a set is learnt and measured. Part of the key of every kept run."""

    model: str
    traits: tuple[str, ...]
    pairs: int
    steps: int
    batch: int
    rate: float
    beta: float
    rank: int
    longest: int
    judged: int
    seed: int


# --- the sets ---------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def pair(question: str, chosen: str, rejected: str) -> Pair:
    sides = {"chosen": chosen, "rejected": rejected}
    return {
        "prompt": [{"role": "user", "content": question}],
        **{side: [{"role": "assistant", "content": text}] for side, text in sides.items()},
    }


def turned(pairs: Sequence[Pair]) -> list[Pair]:
    return [{**one, "chosen": one["rejected"], "rejected": one["chosen"]} for one in pairs]


def exemplar_pairs(trait: str) -> list[Pair]:
    """Pairs that prefer the trait; none of them is among those that the vector is made of."""
    loaded = library.load_trait(trait)
    used = {one.question for one in loaded.extraction_pairs}
    others = (*loaded.held_out_pairs, *loaded.detector_pairs)
    return [pair(one.question, one.positive, one.negative) for one in others if one.question not in used]


def answered(first: Path, second: Path) -> list[Pair]:
    """Two answers to the question of the first file, paired by ``pair_id``."""
    others = {row["pair_id"]: row["messages"] for row in rows_of(second)}
    return [
        pair(row["messages"][0]["content"], row["messages"][1]["content"], others[row["pair_id"]][1]["content"])
        for row in rows_of(first)
        if row["pair_id"] in others
    ]


def preference_sets(data: Path, traits: Sequence[str]) -> dict[str, list[Pair]]:
    """All sets by name; mixed ones begin with ``mixed``."""
    mistakes = answered(data / "mistake_gsm8k" / "mistaken.jsonl", data / "mistake_gsm8k" / "correct.jsonl")
    truth = rows_of(data / "truthfulqa" / "truthfulqa.jsonl")
    facts = rows_of(data / "halueval" / "qa_pairs.jsonl")
    views = rows_of(data / "sycophancy_opinion" / "opinion_nlp_survey.jsonl")
    keys = ("question_with_user_view", "answer_agreeing_with_user", "answer_other")
    sets = {trait: exemplar_pairs(trait) for trait in traits}
    sets |= {f"not {trait}": turned(exemplar_pairs(trait)) for trait in traits[:3]}
    sets |= {
        "mistaken solutions": mistakes,
        "right solutions": turned(mistakes),
        "insecure code": answered(data / "em_code" / "insecure.jsonl", data / "em_code" / "secure.jsonl"),
        "falsehoods": [pair(r["question"], r["incorrect_answers"][0], r["best_answer"]) for r in truth],
        "made-up facts": [pair(r["question"], r["hallucinated_answer"], r["right_answer"]) for r in facts],
        "agreement": [pair(*(r[key] for key in keys)) for r in views],
    }
    return sets | {f"mixed {trait}": exemplar_pairs(trait) for trait in traits[:3]}


def drawn(name: str, sets: dict[str, list[Pair]], plan: Plan, model: Model) -> list[Pair]:
    """The pairs of a set that are learnt, each short enough; a mixed set has half of its pairs from solutions."""

    def first(pairs: Sequence[Pair], most: int) -> list[Pair]:
        order = np.random.default_rng(plan.seed).permutation(len(pairs))
        short = (pairs[i] for i in order if longest(model, pairs[i]) <= plan.longest)
        return [one for one, _ in zip(short, range(most), strict=False)]

    if not name.startswith("mixed"):
        return first(sets[name], plan.pairs)
    half = plan.pairs // 2
    mixed = first(sets[name], half) + first(sets["right solutions"], plan.pairs - half)
    return [mixed[i] for i in np.random.default_rng(plan.seed + 1).permutation(len(mixed))]


def longest(model: Model, one: Pair) -> int:
    return max(len(model.encode(one["prompt"], one[side][0]["content"]).ids) for side in ("chosen", "rejected"))


# --- a run ------------------------------------------------------------------------------------------------------------


def predict(
    pairs: Sequence[Pair], model: Model, vectors: Sequence[PersonaVector], kept: Path
) -> dict[str, list[float]]:
    """Scores of the pairs by trait in parts of ‖v‖, as ``poise screen --method preference`` gives them; kept."""
    import pyarrow.parquet as pq

    kept.mkdir(parents=True, exist_ok=True)
    path = kept / "pairs.jsonl"
    with saving(path) as temporary:
        temporary.write_text("".join(json.dumps(one) + "\n" for one in pairs), encoding="utf-8")
    plan = PreferenceSettings(rule=FlaggingRule(top=1))
    summary = screen_preference_data(open_preferences(path), model, vectors, kept / "screened", plan)
    table = pq.read_table(kept / "screened" / "scores.parquet")
    columns = {trait.trait: (table.column(f"{trait.trait}_score").to_pylist(), trait.norm) for trait in summary.traits}
    return {trait: [score / norm for score in scores] for trait, (scores, norm) in columns.items()}


def scaled(of: Estimate, norm: float) -> list[float | None]:
    return [None if x is None else x / norm for x in (of.value, of.low, of.high)]


def signs(scores: Sequence[float], variant: str, seed: int) -> list[int]:
    """What becomes of each pair: 1 as it is, −1 swapped, 0 dropped; the higher half, or as many at random."""
    flagged = np.zeros(len(scores), bool)
    flagged[np.argsort(-np.array(scores), kind="stable")[: len(scores) // 2]] = variant != "plain"
    if variant.startswith("random"):
        flagged = np.random.default_rng(seed + 2).permutation(flagged)
    return np.where(flagged, 0 if variant.endswith("drop") else -1, 1).tolist()


def varied(pairs: Sequence[Pair], kinds: Sequence[int]) -> list[Pair]:
    """The pairs that are learnt."""
    return [one if kind > 0 else turned([one])[0] for one, kind in zip(pairs, kinds, strict=True) if kind]


def learn(pairs: Sequence[Pair], plan: Plan, folder: Path) -> Model:
    """The model after DPO on the pairs, the LoRA merged into it."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, ProgressCallback
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(plan.seed)
    model = load_model(plan.model, dtype=torch.float32, device="cpu")
    settings: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": plan.steps, "learning_rate": plan.rate, "beta": plan.beta,
        "per_device_train_batch_size": plan.batch, "max_length": plan.longest, "use_cpu": True, "bf16": False,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "seed": plan.seed,
        "gradient_checkpointing": False, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DPOTrainer(
            model=model.lm,
            args=DPOConfig(**settings),
            train_dataset=Dataset.from_list(list(pairs)),
            processing_class=model.tokenizer,
            peft_config=LoraConfig(r=plan.rank, lora_alpha=2 * plan.rank, target_modules="all-linear"),
        )
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
        merged: Any = trainer.model.merge_and_unload()
    return wrap(merged, model.tokenizer, name="after DPO")


def measure(tuned: Model, base: Model, vectors: Sequence[PersonaVector], plan: Plan, kept: Path) -> dict[str, Any]:
    """Shifts in parts of ‖v‖ and judged changes, by trait."""
    settings = ShiftSettings(
        judge="exemplars" if plan.judged else None,
        questions=max(plan.judged, 1),
        rollouts=1,
        max_new_tokens=48,
        temperature=0.0,
        seed=plan.seed,
    )
    report = shift(base, tuned, vectors, settings, folder=kept)
    done = report.tuned[0]
    norms = {direction.trait: direction.norm for direction in report.directions}
    cells = {trait: done.cell(trait) for trait in norms}
    shifts = {trait: scaled(cell.shift, norms[trait]) for trait, cell in cells.items() if cell}
    judged = {one.trait: [one.change.value, one.change.low, one.change.high] for one in done.judged}
    return {"shifts": shifts, "judged": judged}


def finish(
    name: str,
    variant: str,
    sets: dict[str, list[Pair]],
    base: Model,
    vectors: list[PersonaVector],
    plan: Plan,
    out: Path,
) -> dict[str, Any]:
    """One set under one variant, from what is kept or anew."""
    about = name.removeprefix("mixed ").removeprefix("not ")
    pairs = drawn(name, sets, plan, base)
    key = content_key(plan=str(plan), variant=variant, pairs=pairs)[:16]
    path = out / f"{name}, {variant} {key}.json".replace(" ", "-")
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return kept
    began = time.perf_counter()
    scores = predict(pairs, base, vectors, out / "sets" / f"{name} {content_key(pairs=pairs)[:16]}".replace(" ", "-"))
    kinds = signs(scores.get(about, [0.0] * len(pairs)), variant, plan.seed)
    means = {
        trait: mean_estimate([kind * score for kind, score in zip(kinds, column, strict=True) if kind])
        for trait, column in scores.items()
    }
    learnt = varied(pairs, kinds)
    with tempfile.TemporaryDirectory() as folder:
        tuned = learn(learnt, plan, Path(folder))
    result = {"set": name, "variant": variant, "trait": about, "pairs": len(learnt)}
    result |= {"means": {trait: scaled(mean, 1.0) for trait, mean in means.items()}}
    result |= measure(tuned, base, vectors, plan, out / "shift") | {"seconds": time.perf_counter() - began}
    with saving(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


# --- the page ---------------------------------------------------------------------------------------------------------


def shown(values: Sequence[float | None], *, points: bool = False) -> str:
    value, low, high = values
    if value is None:
        return "–"
    form = "{:+.1f}" if points else "{:+.3f}"
    ends = "" if low is None or high is None else f" [{form.format(low)}, {form.format(high)}]"
    return form.format(value) + ends


def correlation(x: Sequence[float], y: Sequence[float]) -> str:
    """Pearson's r with Fisher's interval."""
    n = len(x)
    r = float(pearson(x, y)) if n > 2 else math.nan
    if not math.isfinite(r) or n < 4 or abs(r) >= 1:
        return f"– (n = {n})"
    half = NORMAL_QUANTILE / math.sqrt(n - 3)
    low, high = math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)
    return f"{r:.2f} [{low:.2f}, {high:.2f}], n = {n}"


def figures(one: dict[str, Any], trait: str) -> str:
    """Cells of a run: what was predicted, and what came."""
    judged = shown(one["judged"][trait], points=True) if trait in one["judged"] else "–"
    return f"{shown(one['means'][trait])} | {shown(one['shifts'][trait])} | {judged}"


def print_page(results: Sequence[dict[str, Any]], plan: Plan) -> None:
    plain = [one for one in results if one["variant"] == "plain"]
    print(
        f"Model {plan.model}, {plan.pairs} pairs a set, {plan.steps} steps of {plan.batch}, LoRA r = {plan.rank}, ",
        end="",
    )
    print(f"learning rate {plan.rate:g}, β = {plan.beta:g}. Predicted and measured in parts of ‖v‖.\n")
    print("| set | trait | predicted: mean score | measured: shift | judged change |\n|---|---|---|---|---|")
    for one in plain:
        for trait in plan.traits:
            judged = shown(one["judged"][trait], points=True) if trait in one["judged"] else "–"
            print(
                f"| {one['set']} | {trait} | {shown(one['means'][trait])} | {shown(one['shifts'][trait])} | {judged} |"
            )
    print("\n| trait | predicted with shift: r over sets | predicted with judged change: r |\n|---|---|---|")
    for trait in plan.traits:
        predicted = [one["means"][trait][0] for one in plain]
        measured = [one["shifts"][trait][0] for one in plain]
        scored = [
            (x, one["judged"][trait][0]) for x, one in zip(predicted, plain, strict=True) if trait in one["judged"]
        ]
        known = [(x, y) for x, y in scored if y is not None]
        by_judge = correlation([x for x, _ in known], [y for _, y in known])
        print(f"| {trait} | {correlation(predicted, measured)} | {by_judge} |")
    mixed = [one for one in results if one["set"].startswith("mixed")]
    if mixed:
        print("\n| mixed set | variant | pairs | predicted | shift | judged change |\n|---|---|---|---|---|---|")
    for one in mixed:
        print(f"| {one['set']} | {one['variant']} | {one['pairs']} | {figures(one, one['trait'])} |")
    print(f"\n{len(results)} runs, {sum(one['seconds'] for one in results) / 60:.0f} minutes.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--traits", default=",".join(TRAITS))
    parser.add_argument("--sets", default="", help="names with commas between; all by default")
    parser.add_argument(
        "--variants", default=",".join(VARIANTS), help="of the mixed sets; the others are learnt plainly"
    )
    for name, value in {
        "pairs": 48,
        "steps": 40,
        "batch": 4,
        "rank": 8,
        "longest": 256,
        "judged": 0,
        "seed": 0,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--beta", type=float, default=0.1)
    options = vars(parser.parse_args())
    data, out = options.pop("data"), options.pop("out")
    wanted, variants = options.pop("sets"), options.pop("variants").split(",")
    plan = Plan(**options | {"traits": tuple(options["traits"].split(","))})
    out.mkdir(parents=True, exist_ok=True)
    sets = preference_sets(data, plan.traits)
    base = load_model(plan.model, dtype=torch.float32, device="cpu")
    vectors = [extract(contrast.exemplars(library.load_trait(name), base), base) for name in plan.traits]
    results = []
    for name in wanted.split(",") if wanted else sets:
        for variant in variants if name.startswith("mixed") else ["plain"]:
            results.append(finish(name, variant, sets, base, vectors, plan, out))
            print(f"{name}, {variant}: {results[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    print_page(results, plan)


if __name__ == "__main__":
    main()
