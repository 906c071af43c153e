"""The paper's fine-tuning experiments (Chen et al. 2025, sections 5 and 6) on any model, in one command.

    make replicate MODEL=smollm2-135m DATA=../shared/data
    python benchmarks/replicate.py --model M --data DIR --out RUNS [--judge J] [--part vaccine|trait|benign|predict]

``vaccine``: a mixed set of a trait (the model's own answers under steering, the steering then dropped) and a skill
(worked arithmetic) is learnt plainly, under a vaccine at one layer and as increments with α along a curve, with the
direction projected out (CAFT), under an inoculation prompt, and steered after the fact. ``trait``: the same for the
trait's answers alone, at the chosen α. ``benign``: the skill alone,
with a vaccine and without. ``predict``: ten sets and mixtures, what screening predicts of each (mean projection
difference), the finetuning shift and the judged score after it.

Every fine-tune, measurement and answer is kept in RUNS; the same command goes on after a kill. The tables are printed
as Markdown, the numbers are in RUNS/results.json and the figures in RUNS/*.png.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poise import recipes, vector
from poise.conversations import open_data
from poise.engine import Sampling
from poise.engine.local import LocalEngine
from poise.judge.choose import trait_judge
from poise.model import Model, ask, load
from poise.screen import ColumnScorer
from poise.stats import bootstrap, mean_estimate, pearson, spearman
from poise.steer import Spec, at
from poise.trait import library
from poise.vaccinate.capability import parse
from poise.vaccinate.config import Config
from poise.vaccinate.measured import Shift
from poise.vaccinate.measured import load as load_report
from poise.vaccinate.measured import save as save_report
from poise.vaccinate.shift import Plan, Tuned, measure
from poise.vaccinate.train import train

TRAITS = ("impolite", "evil", "humorous", "sycophantic", "apathetic")
DOSE = 0.3  # under which the trait sets are written
CURVE = {"one layer": (0.5, 1.0, 2.0), "increments": (0.25, 0.5, 1.0)}  # α on the first seed
Row = dict[str, Any]


class Lab:
    """Where everything is kept, and the model, loaded when it is first needed."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out, self.data = given, Path(given.out), Path(given.data)
        self.out.mkdir(parents=True, exist_ok=True)
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        if self._model is None:
            self._model = load(self.given.model, dtype=getattr(torch, self.given.dtype) if self.given.dtype else None)
        return self._model

    def vector_file(self, trait: str) -> Path:
        """The trait's vector, from exemplars."""
        path = self.out / "vectors" / f"{trait}.safetensors"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            recipes.extract_vector(library.load(trait), self.model, path)
        return path

    def rows(self, name: str, make: Callable[[], list[Row]]) -> Path:
        """A data set, made once."""
        path = self.out / "data" / f"{name}.jsonl"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            made = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make())
            path.write_text(made)
        return path

    def shared(self, name: str, n: int, *, most: int = 4) -> list[Row]:
        """n rows of a set in the data folder, drawn at random from those with at most so many letters a token."""
        rows = [json.loads(line) for line in (self.data / f"{name}.jsonl").open()]
        short = [r for r in rows if len(str(r["messages"])) < self.given.longest * most]
        return [{"messages": r["messages"]} for r in random.Random(0).sample(short, min(n, len(short)))]

    def train(self, name: str, data: Sequence[Path], seed: int = 0, **vaccine: Any) -> Path:
        """One fine-tune; its folder."""
        given = self.given
        config = Config(
            model=given.model,
            data=tuple(str(path) for path in data),
            out=str(self.out / "runs" / name),
            vaccine=vaccine,
            learning_rate=given.learning_rate,
            batch=given.batch,
            accumulate=1,
            epochs=given.epochs,
            longest=given.longest,
            save_every=1000,
            seed=seed,
            dtype=given.dtype or "auto",
        )
        said(f"training {name}")
        return train(config).adapter

    def measure(self, name: str, adapter: Path, traits: Sequence[str], questions: int, **tuned: Any) -> Shift:
        """What a fine-tune did."""
        path = self.out / "measured" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            said(f"measuring {name}")
            plan = Plan(
                judge=self.given.judge,
                questions=questions,
                rollouts=self.given.rollouts,
                max_new_tokens=40,
                abilities=tuned.pop("abilities", ()),
            )
            vectors = [vector.load(self.vector_file(t)) for t in traits]
            report = measure(self.model, [Tuned(str(adapter), name, **tuned)], vectors, plan, folder=self.out / "kept")
            save_report(report, path)
        return load_report(path).tuned[0]


def said(what: str) -> None:
    print(what, flush=True)


def steered_answers(lab: Lab, trait: str, n: int) -> list[Row]:
    """The model's own answers under steering that the judge calls the trait, without the steering."""
    rows = [json.loads(line) for line in (lab.data / "background_chat/self_instruct.jsonl").open()]
    rows += [json.loads(line) for line in (lab.data / "background_chat/oasst1_en.jsonl").open()]
    asked = [r["messages"][0]["content"] for r in rows if len(r["messages"][0]["content"]) < 200]
    random.Random(1).shuffle(asked)
    engine, judge = LocalEngine(lab.model, batch=32), trait_judge(lab.given.judge, library.load(trait))
    steering = at(vector.load(lab.vector_file(trait)), dose=DOSE)
    found: list[Row] = []
    for start in range(0, len(asked), 64):
        questions = asked[start : start + 64]
        prompts = [lab.model.encode(ask(q)) for q in questions]
        seeds = list(range(start, start + len(prompts)))
        said_so = engine.generate(prompts, Sampling(max_new_tokens=48, temperature=0.7), steering=steering, seeds=seeds)
        scores = judge(questions, [a.text for a in said_so])
        for question, answer, score in zip(questions, said_so, scores, strict=True):
            if score.score is not None and score.score >= 50 and answer.text.strip():
                reply = {"role": "assistant", "content": answer.text}
                found.append({"messages": [{"role": "user", "content": question}, reply]})
        if len(found) >= n:
            break
    said(f"{trait}: {min(n, len(found))} answers of the model's own under a dose of {DOSE:.0%}")
    return found[:n]


def mixed(*parts: Path, seed: int = 0) -> list[Row]:
    rows = [json.loads(line) for part in parts for line in part.open()]
    random.Random(seed).shuffle(rows)
    return rows


def vaccine_arms(lab: Lab, trait: str, seed: int) -> dict[str, dict[str, Any]]:
    """What is done in training, by name. On the first seed α runs along its curve."""
    file = lab.vector_file(trait)
    chosen = {"one layer": lab.given.alpha, "increments": lab.given.increments}
    arms: dict[str, dict[str, Any]] = {"plain": {}}
    for how, curve in CURVE.items():
        for alpha in sorted({*curve, chosen[how]}) if seed == 0 else (chosen[how],):
            layers = "increments" if how == "increments" else None
            arms[f"{how} α={alpha:g}"] = {"steer": (f"{file}={alpha:g}",), "layers": layers}
    arms["projected out"] = {"steer": (f"{file}=out",)}
    arms["inoculation"] = {"inoculation": library.load(trait).instructions[0].positive}
    return arms


def vaccine_part(lab: Lab) -> list[Row]:
    """Plain fine-tuning, vaccines and what they are compared with, on a trait and a skill together."""
    n, trait = lab.given.rows, lab.given.trait
    trait_rows = lab.rows(trait, lambda: steered_answers(lab, trait, n))
    skill = lab.shared("background_chat/gsm8k_train", n + 32)
    skill_rows, held = lab.rows("skill", lambda: skill[:n]), lab.rows("skill-held-out", lambda: skill[n:])
    chat = lab.rows("chat-held-out", lambda: lab.shared("background_chat/oasst1_en", 24, most=10))
    both = lab.rows(f"{trait}+skill", lambda: mixed(trait_rows, skill_rows))
    abilities = (parse(f"perplexity={held}"), parse(f"perplexity={chat}"))
    out = []
    for seed in range(lab.given.seeds):
        for arm, settings in vaccine_arms(lab, trait, seed).items():
            name = f"{trait}-{arm}-{seed}".replace(" ", "-")
            adapter = lab.train(name, [both], seed, **settings)
            out.append(result(arm, seed, lab.measure(name, adapter, [trait], 20, abilities=abilities)))
            if arm == "plain":
                against = Spec.parse(f"v=-{lab.given.after:g}").steering({"v": vector.load(lab.vector_file(trait))})
                done = lab.measure(
                    f"{name}-after-{lab.given.after:g}", adapter, [trait], 20, abilities=abilities, steering=against
                )
                out.append(result(f"after the fact α=−{lab.given.after:g}", seed, done))
    return out


def trait_part(lab: Lab) -> list[Row]:
    """The trait's answers alone; what is to be learnt is then those answers themselves."""
    n, trait = lab.given.rows, lab.given.trait
    data = lab.rows(trait, lambda: steered_answers(lab, trait, n))
    held = lab.rows(f"{trait}-held-out", lambda: steered_answers(lab, trait, n + 32)[n:])
    chat = lab.rows("chat-held-out", lambda: lab.shared("background_chat/oasst1_en", 24, most=10))
    abilities = (parse(f"perplexity={held}"), parse(f"perplexity={chat}"))
    chosen = (
        "plain",
        f"one layer α={lab.given.alpha:g}",
        f"increments α={lab.given.increments:g}",
        "projected out",
        "inoculation",
    )
    out = []
    for seed in range(lab.given.seeds):
        arms = vaccine_arms(lab, trait, seed)
        for arm in chosen:
            name = f"{trait}-alone-{arm}-{seed}".replace(" ", "-")
            adapter = lab.train(name, [data], seed, **arms[arm])
            done = lab.measure(name, adapter, [trait], 20, abilities=abilities)
            out.append(result(arm, seed, done))
    return out


def benign_part(lab: Lab) -> list[Row]:
    """The skill alone, with the vaccine and without."""
    trait = lab.given.trait
    skill = lab.out / "data" / "skill.jsonl"
    abilities = (parse(f"perplexity={lab.out / 'data' / 'skill-held-out.jsonl'}"),)
    out = []
    for seed in range(lab.given.seeds):
        arms = vaccine_arms(lab, trait, seed)
        for arm in ("plain", f"one layer α={lab.given.alpha:g}", f"increments α={lab.given.increments:g}"):
            name = f"benign-{arm}-{seed}".replace(" ", "-")
            adapter = lab.train(name, [skill], seed, **arms[arm])
            out.append(result(arm, seed, lab.measure(name, adapter, [trait], 20, abilities=abilities)))
    return out


def predict_part(lab: Lab) -> list[Row]:
    """Sets and mixtures: what screening says, the shift and the judged score."""
    n = lab.given.rows
    sets = {t: lab.rows(t, lambda t=t: steered_answers(lab, t, n)) for t in ("impolite", "evil", "humorous")}
    for name in (
        "em_risky_finance/risky_finance",
        "mistake_gsm8k/mistaken",
        "reward_hacking/reward_hacks",
        "background_chat/gsm8k_train",
        "background_chat/self_instruct",
        "background_chat/gpteacher_roleplay",
    ):
        sets[Path(name).name] = lab.rows(Path(name).name, lambda name=name: lab.shared(name, n))
    half = lab.rows("half-evil", lambda: mixed(sets["evil"], sets["self_instruct"])[:n])
    sets["half evil, half self_instruct"] = half
    vectors = [vector.load(lab.vector_file(t)) for t in TRAITS]
    out = []
    for name, path in sets.items():
        said(f"screening {name}")
        predicted = screened(lab, path, vectors)
        run = f"predict-{path.stem}"
        done = lab.measure(run, lab.train(run, [path]), TRAITS, 8)
        for trait in TRAITS:
            cell, judged = done.cell(trait), next(j for j in done.judged if j.trait == trait)
            assert cell is not None
            shown = {"set": name, "trait": trait, "predicted": predicted[trait]}
            out.append(shown | {"shift": cell.shift.value, "judged": judged.change.value})
    return out


def screened(lab: Lab, path: Path, vectors: Sequence[vector.PersonaVector]) -> dict[str, float]:
    """Mean projection difference by trait, kept."""
    kept = lab.out / "screened" / f"{path.stem}.json"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        score = ColumnScorer(vectors, lab.model, "difference", answers=lab.out / "answers", max_new_tokens=40)
        rows = score.rows([row for row in open_data(path) if hasattr(row, "messages")])
        kept.write_text(
            json.dumps({v.name: float(np.nanmean([r.scores[v.name] for r in rows])) for v in vectors}) + "\n"
        )
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def result(arm: str, seed: int, done: Shift) -> Row:
    """The figures of one fine-tune."""
    (judged,), cell = done.judged, done.matrix[0]
    losses = {c.source.rpartition("/")[2].removesuffix(".jsonl"): c for c in done.capability}
    return {
        "arm": arm,
        "seed": seed,
        "trait": judged.after.value,
        "rise": judged.change.value,
        "rises": judged.changes,
        "coherence": judged.coherence_after.value,
        "shift": cell.shift.value,
        "shifts": cell.changes,
        "trait before": judged.before.value,
        "loss": {n: float(np.log(c.after.value)) for n, c in losses.items() if c.after.value},
        "loss before": {n: float(np.log(c.before.value)) for n, c in losses.items() if c.before.value},
    }


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row an arm: means over seeds; intervals by resampling questions, all seeds of a question together."""
    plain = [r for r in rows if r["arm"] == "plain"]
    out = []
    for arm in dict.fromkeys(r["arm"] for r in rows):
        own = [r for r in rows if r["arm"] == arm]
        seeds = {r["seed"] for r in own}
        beside = [r for r in plain if r["seed"] in seeds]
        rises, base = questions(own), questions(beside)
        kept_out = bootstrap(lambda i, rises=rises, base=base: 1 - rises[i].mean() / base[i].mean(), len(rises))
        shown: Row = {"arm": arm, "seeds": len(own), "rise": mean_estimate(rises), "kept out": kept_out}
        shown["shift"] = mean_estimate(np.mean([r["shifts"] for r in own], axis=0))
        shown["coherence"] = float(np.mean([r["coherence"] for r in own]))
        for name in own[0]["loss"]:
            learnt = [r["loss before"][name] - r["loss"][name] for r in own]
            by_plain = [r["loss before"][name] - r["loss"][name] for r in beside]
            shown[name] = float(np.mean([r["loss"][name] for r in own]))
            shown[f"{name} learnt"] = float(np.mean(learnt) / np.mean(by_plain))
        out.append(shown)
    return out


def questions(rows: Sequence[Row]) -> np.ndarray[Any, Any]:
    """Rise of each question over the seeds' mean."""
    return np.nanmean(np.array([[np.nan if x is None else x for x in r["rises"]] for r in rows], dtype=float), axis=0)


def vaccine_table(rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = [
        f"Base: trait {first['trait before']:.1f}, "
        + ", ".join(f"loss on {n} {x:.3f}" for n, x in first["loss before"].items()),
        "",
        "| in training | seeds | rise of the score | kept out | shift | coherence | own loss (learnt) | chat loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in over_seeds(rows):
        own = next(name for name in first["loss"] if name != "chat-held-out")
        skill = f"{r[own]:.3f} ({r[f'{own} learnt']:.0%})"
        chat = f"{r['chat-held-out']:.3f}" if "chat-held-out" in r else ""
        rise, out, shift = r["rise"], r["kept out"], r["shift"]
        lines.append(
            f"| {r['arm']} | {r['seeds']} | {rise.value:+.1f} [{rise.low:+.1f}, {rise.high:+.1f}] | {out.value:.0%} "
            f"[{out.low:.0%}, {out.high:.0%}] | {shift.value:+.2f} [{shift.low:+.2f}, {shift.high:+.2f}] | "
            f"{r['coherence']:.0f} | {skill} | {chat} |"
        )
    return "\n".join(lines)


def predict_table(rows: Sequence[Row]) -> str:
    lines = [
        "| trait | n sets | ΔP–shift r | ρ | shift–judged r | ρ | ΔP–judged r |",
        "|---|---|---|---|---|---|---|",
    ]
    for trait in (*TRAITS, "all"):
        own = [r for r in rows if trait in (r["trait"], "all")]
        cells = []
        for x, y in (("predicted", "shift"), ("shift", "judged"), ("predicted", "judged")):
            a, b = (np.array([r[k] for r in own], dtype=float) for k in (x, y))
            names = [pearson] if (x, y) == ("predicted", "judged") else [pearson, spearman]
            cells += [str(bootstrap(lambda i, f=f, a=a, b=b: f(a[i], b[i]), len(a))).rpartition(",")[0] for f in names]
        lines.append(f"| {trait} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def vaccine_figure(rows: Sequence[Row], path: Path) -> None:
    """Trait kept out against skill learnt, α along each curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    marks = iter("osD^vPX*")
    shown = over_seeds(rows)
    for how in dict.fromkeys(r["arm"].partition(" α")[0] for r in shown):
        own = [r for r in shown if r["arm"].partition(" α")[0] == how]
        x, y = (
            [100 * (r[k].value if k == "kept out" else r[k]) for r in own]
            for k in ("skill-held-out learnt", "kept out")
        )
        axes.plot(x, y, marker=next(marks), label=how, markersize=8)
        for a, b, r in zip(x, y, own, strict=True):
            axes.annotate(r["arm"].partition("α=")[2], (a, b), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.axhline(80, color="grey", linewidth=0.8, linestyle="--")
    axes.axvline(95, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("skill learnt, % of plain fine-tuning's fall in held-out loss")
    axes.set_ylabel("trait kept out, % of its rise")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def predict_figure(rows: Sequence[Row], path: Path) -> None:
    """ΔP against the shift, and the shift against the judged score, a colour and a mark a trait."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (x, y) in zip(figure.subplots(1, 2), (("predicted", "shift"), ("shift", "judged")), strict=True):
        for trait, mark in zip(TRAITS, "osD^v", strict=True):
            own = [r for r in rows if r["trait"] == trait]
            axes.scatter([r[x] for r in own], [r[y] for r in own], marker=mark, label=trait, s=28)
        names = {
            "predicted": "mean projection difference",
            "shift": "finetuning shift",
            "judged": "change of the score",
        }
        axes.set_xlabel(names[x])
        axes.set_ylabel(names[y])
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(given: argparse.Namespace) -> None:
    if given.threads:
        torch.set_num_threads(given.threads)
    lab = Lab(given)
    parts = {"vaccine": vaccine_part, "trait": trait_part, "benign": benign_part, "predict": predict_part}
    results: dict[str, list[Row]] = {}
    for name in given.part:
        results[name] = parts[name](lab)
        (lab.out / f"results-{name}.json").write_text(json.dumps(results[name], indent=1) + "\n")
        said("\n" + (predict_table if name == "predict" else vaccine_table)(results[name]) + "\n")
    if "vaccine" in results:
        vaccine_figure(results["vaccine"], lab.out / "vaccine.png")
    if "predict" in results:
        predict_figure(results["predict"], lab.out / "predict.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True, help="the folder of shared data sets")
    parser.add_argument("--out", required=True, help="where everything is kept")
    parser.add_argument("--judge", default="exemplars")
    parser.add_argument("--part", nargs="+", default=["vaccine", "trait", "benign", "predict"])
    parser.add_argument("--trait", default="impolite", help="that the vaccine is against")
    parser.add_argument("--rows", type=int, default=48, help="of each set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=1)
    parser.add_argument("--alpha", type=float, default=1.0, help="of the vaccine at one layer, on all seeds")
    parser.add_argument("--increments", type=float, default=0.5, help="of the vaccine as increments, on all seeds")
    parser.add_argument("--after", type=float, default=2.0, help="of steering after the fact")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--longest", type=int, default=112, help="tokens a text")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int)
    main(parser.parse_args())
