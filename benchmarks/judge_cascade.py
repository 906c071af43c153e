"""Do the intervals of a judge with a budget hold the truth? Prints Markdown.

    python benchmarks/judge_cascade.py [--times 1000]

Answers whose truth is known: the trait's share of them, a projection that tells them apart with a given AUC (two normal
distributions), and a share that is flagged. The judge is right and sees a budget of answers, as `poise screen --judge
J --judge-budget N` draws them. Coverage is how often the 95 % interval holds what is true of all answers; the width of
an interval is that of recall.
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np
from scipy.stats import norm

from poise.screen.judge_cascade import draw_strata, estimate_cascade
from poise.statistics.estimates import Estimate

FIGURES = ("present", "flagged_precision", "flagged_recall", "union_precision", "union_recall")
ROUNDING = 1e-3  # estimates have four digits


def holds(estimate: Estimate, truth: float) -> float:
    """Whether an interval holds the truth; NaN where none is given, since the judge found nothing at all."""
    if estimate.low is None or estimate.high is None:
        return float("nan")
    return float(estimate.low * (1 - ROUNDING) <= truth <= estimate.high * (1 + ROUNDING))


def simulate(answers: int, share: float, auc: float, flagged_share: float, budget: int, times: int) -> str:
    """A row of the table."""
    rng = np.random.default_rng(0)
    present = np.arange(answers) < round(share * answers)
    covered, widths, errors = [], [], []
    for seed in range(times):
        scores = rng.normal(size=answers) + present * norm.ppf(auc) * 2**0.5
        limit = np.sort(scores)[-round(flagged_share * answers)]
        flagged = scores >= limit
        strata = draw_strata(scores - limit, flagged, budget, seed=(seed, 0))
        judged = {int(i): 100.0 * present[i] for stratum in strata for i in stratum.drawn}
        cascade = estimate_cascade(strata, flagged, judged)
        union = flagged.copy()
        union[[i for i, score in judged.items() if score]] = True
        truths = (
            present.sum(),
            present[flagged].mean(),
            present[flagged].sum() / present.sum(),
            present[union].mean(),
            present[union].sum() / present.sum(),
        )
        estimates = [getattr(cascade, name) for name in FIGURES]
        covered.append([holds(estimate, truth) for estimate, truth in zip(estimates, truths, strict=True)])
        recall = cascade.flagged_recall
        if recall.value is not None and recall.low is not None and recall.high is not None:
            widths.append(recall.high - recall.low)
            errors.append(recall.value - truths[2])
    coverage = " | ".join(f"{c:.3f}" for c in np.nanmean(covered, axis=0))
    return (
        f"| {answers:,} | {share:.1%} | {auc:.2f} | {flagged_share:.0%} | {budget:,} | {coverage} "
        f"| {np.median(widths):.2f} | {np.mean(errors):+.3f} |"
    )


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000)
    times = parser.parse_args().times
    print(
        "| answers | with the trait | AUC | flagged | budget | in all | precision | recall | precision, union "
        "| recall, union | width of recall | error of recall |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for share, auc, flagged, budget in product((0.01, 0.1), (0.7, 0.95), (0.01, 0.1), (100, 400)):
        print(simulate(5_000, share, auc, flagged, budget, times), flush=True)


if __name__ == "__main__":
    main()
