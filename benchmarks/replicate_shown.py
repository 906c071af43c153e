"""Tables and figures of the fine-tuning experiments: see ``replicate.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poise.shift.report import ModelShift
from poise.statistics.estimates import bootstrap, mean_estimate, pearson, spearman

TRAITS = ("impolite", "evil", "humorous", "sycophantic", "apathetic")

Row = dict[str, Any]


def result(arm: str, seed: int, done: ModelShift) -> Row:
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
        kept_out = bootstrap(lambda i, rises=rises, base=base: 1 - rises[i].mean(-1) / base[i].mean(-1), len(rises))
        shown: Row = {"arm": arm, "seeds": len(own), "rise": mean_estimate(rises), "kept out": kept_out}
        shown["beside plain"] = mean_estimate(rises - base)
        moved, moved_plainly = (np.mean([r["shifts"] for r in some], axis=0) for some in (own, beside))
        shown["shift"] = mean_estimate(moved)
        shown["shift beside plain"] = mean_estimate(moved - moved_plainly)
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


def benign_table(rows: Sequence[Row]) -> str:
    """What is left of a vaccine where there was nothing to vaccinate against."""
    lines = [
        "| in training | seeds | change of the score | beside plain | shift beside plain | coherence | loss (learnt) |",
        "|---|---|---|---|---|---|---|",
    ]
    own = next(iter(rows[0]["loss"]))
    for r in over_seeds(rows):
        figures = [
            f"{e.value:+.{n}f} [{e.low:+.{n}f}, {e.high:+.{n}f}]"
            for e, n in ((r["rise"], 1), (r["beside plain"], 1), (r["shift beside plain"], 2))
        ]
        learnt = f"{r[own]:.3f} ({r[f'{own} learnt']:.0%})"
        lines.append(f"| {r['arm']} | {r['seeds']} | {' | '.join(figures)} | {r['coherence']:.0f} | {learnt} |")
    return "\n".join(lines)


def predict_table(rows: Sequence[Row]) -> str:
    lines = [
        "| trait | n sets | ΔP–shift r | ρ | shift–judged r | ρ | ΔP–judged r | detector–shift r | detector–judged r |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for trait in (*TRAITS, "all"):
        own = [r for r in rows if trait in (r["trait"], "all")]
        cells = []
        pairs = [("predicted", "shift"), ("shift", "judged"), ("predicted", "judged")]
        for x, y in (*pairs, ("detector", "shift"), ("detector", "judged")):
            a, b = (np.array([r[k] for r in own], dtype=float) for k in (x, y))
            names = [pearson, spearman] if (x, y) in pairs[:2] else [pearson]
            cells += [str(bootstrap(lambda i, f=f, a=a, b=b: f(a[i], b[i]), len(a))).rpartition(",")[0] for f in names]
        lines.append(f"| {trait} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(rows: Sequence[Row], path: Path) -> None:
    """Trait kept out against what should be learnt, α along each curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    marks = iter("osD^vPX*")
    shown, learnt = over_seeds(rows), next(iter(rows[0]["loss"]))
    for how in dict.fromkeys(r["arm"].partition(" α")[0] for r in shown):
        own = [r for r in shown if r["arm"].partition(" α")[0] == how]
        x, y = [100 * r[f"{learnt} learnt"] for r in own], [100 * r["kept out"].value for r in own]
        one = own[0]["arm"] if len(own) == 1 else how
        axes.plot(x, y, marker=next(marks), label=one, markersize=8)
        for a, b, r in zip(x, y, own, strict=True):
            if len(own) > 1:
                axes.annotate(
                    r["arm"].partition("α=")[2], (a, b), xytext=(5, 5), textcoords="offset points", fontsize=8
                )
    axes.axhline(100, color="grey", linewidth=0.8)
    axes.text(0, 100, "  as the base", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
    axes.axhline(80, color="grey", linewidth=0.8, linestyle="--")
    axes.axvline(95, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("learnt, % of plain fine-tuning's fall in held-out loss")
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
