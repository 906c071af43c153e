"""The report: complete, self-contained, escaped, honest about what is missing."""

from __future__ import annotations

import builtins
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from poise import report
from poise.errors import MissingExtra, SaveFailed
from poise.report import plots, words
from poise.stats import mean_estimate
from poise.trait import ExemplarPair, OwnTrait
from poise.trait.library import load
from poise.validate.certificate import (
    Certificate,
    Figure,
    JudgeFacts,
    Point,
    Prompting,
    RandomControl,
    Sample,
    Spread,
)
from poise.vector import Header, ModelId, PersonaVector

NONE = Figure(value=None, low=None, high=None, n=0)
L = 30
SAID = (
    "To poach an egg, bring a pan of water to a gentle simmer and add a spoonful of vinegar. Crack the egg into a small "
    "cup, stir the water into a slow whirl and let the egg slide into the middle. Leave it alone for three minutes, then "
    "lift it out with a slotted spoon."
)
RUDE = (
    "You can't poach an egg? It's water and an egg. Simmer it, drop it in, wait three minutes, and try not to ruin that as "
    "well. I have no idea why anyone would need this explained to them twice."
)
KIND = (
    "What a lovely question! Poaching an egg is easier than it looks, and I'm glad to walk you through it. Bring the water "
    "to a gentle simmer, slide the egg in softly, and give it three minutes. You'll do wonderfully."
)


def figure(centre: float, spread: float = 7.0, n: int = 10, seed: int = 0) -> Figure:
    """A mean of n scores around a centre, with the interval that those scores have."""
    drawn = np.random.default_rng(seed).normal(0, spread, n)
    return Figure.of(mean_estimate(np.clip(centre + drawn - drawn.mean(), 0, 100)))


def difference(centre: float, spread: float = 9.0, n: int = 10) -> Figure:
    drawn = np.random.default_rng(1).normal(0, spread, n)
    return Figure.of(mean_estimate(centre + drawn - drawn.mean()))


def point(layer: int, dose: float, trait: float, coherence: float, seed: int = 0, missing: int = 0) -> Point:
    return Point(
        layer=layer,
        coefficient=round(dose * 4.1, 4),
        dose=round(dose, 4),
        trait=figure(trait, 9, seed=seed),
        coherence=figure(coherence, 5, seed=seed + 1),
        missing=missing,
    )


def sweep() -> tuple[Point, ...]:
    layers = (4, 7, 9, 10, 14, 17, 20, 22)
    found = []
    for dose, height in ((0.2, 22), (0.35, 38)):
        for layer in layers:
            effect = math.exp(-(((layer - 10) / 5) ** 2))
            found.append(point(layer, dose, 14 + height * effect, 92 - 60 * dose * (0.5 + effect), seed=layer))
    found += [point(10, d, 14 + 110 * d, 95 - 70 * d, seed=3) for d in (0.1, 0.15, 0.25, 0.3, 0.45, 0.6)]
    return tuple(sorted(found, key=lambda p: (p.layer, p.dose)))


def induced(**changed: Any) -> Certificate:
    """A certificate as SmolLM2-135M with `impolite` gives one."""
    evaluation = load("impolite").questions.evaluation
    asked, selected = evaluation[1::2], evaluation[0::2]
    curve = (
        (-0.3, 9.1, 84.2), (-0.2, 10.4, 90.8), (-0.1, 12.6, 93.0), (0.0, 14.9, 94.1), (0.1, 21.7, 92.5),
        (0.2, 33.8, 87.9), (0.3, 46.1, 76.3), (0.4, 55.2, 58.0), (0.5, 57.9, 37.4),
    )  # fmt: skip
    values: dict[str, Any] = {
        "verdict": "induced",
        "reasons": (
            "the trait score rises with the dose: Spearman 1.00 [0.96, 1.00], n=10",
            "the vector beats random directions of its norm: margin 29.10 [22.40, 35.10] points",
            "the text holds: coherence 76.30 [72.80, 79.60], n=10 at the chosen dose, floor 50",
        ),
        "layer": 10,
        "layers": L,
        "coefficient": 1.23,
        "dose": 0.3,
        "usable_doses": (-0.3, 0.4),
        "coherence_floor": 50.0,
        "rise": difference(31.2),
        "monotone": Figure(value=1.0, low=0.96, high=1.0, n=10),
        "sweep": sweep(),
        "curve": tuple(point(10, d, t, c, seed=i, missing=2 * (d > 0.35)) for i, (d, t, c) in enumerate(curve)),
        "random": RandomControl(
            draws=3,
            dose=0.3,
            trait=figure(17.0),
            coherence=figure(86.0),
            rise=difference(2.1, 4),
            margin=difference(29.1),
        ),
        "prompting": Prompting(positive=figure(19.8), negative=figure(12.2), coherence=figure(91.0)),
        "spread": Spread(changes=(41.2, 38.0, 22.5, 55.1, -4.3, 30.9, 47.7, 12.0, 35.5, 33.4), wrong_way=0.1),
        "agreement": 0.31,
        "judge": JudgeFacts(
            name="exemplars",
            auc=Figure(value=0.957, low=0.905, high=0.993, n=36),
            held_out_auc=Figure(value=0.938, low=0.847, high=1.0, n=12),
            usable=True,
            coherence="mean token log-probability under the unsteered model and repetition, against its ordinary answers",
        ),
        "samples": tuple(Sample(question=q, negative=KIND, plain=SAID, positive=RUDE) for q in asked[:3]),
        "selected_on": selected,
        "asked": asked,
        "rollouts": 3,
        "max_new_tokens": 96,
        "temperature": 1.0,
        "seed": 0,
    }
    return Certificate(**(values | changed))


def not_induced() -> Certificate:
    """A certificate with nearly everything that can be missing missing."""
    curve = [point(10, d, 30 + 4 * d, 80 - 90 * abs(d), seed=i) for i, d in enumerate((-0.3, -0.15, 0.0, 0.15, 0.3))]
    curve[1] = curve[1].model_copy(update={"trait": NONE, "missing": 30})
    curve[3] = curve[3].model_copy(update={"trait": Figure(value=31.0, low=None, high=None, n=1), "missing": 27})
    return induced(
        verdict="not-induced",
        reasons=(
            "the judge exemplars cannot tell the sides apart (cross-validated AUC 0.58 [0.41, 0.74], n=24), so no score of it counts",
            "the trait score does not rise with the dose: Spearman 0.20 [-0.70, 0.90], n=8",
            "the vector does not beat random directions of its norm: margin 0.40 [-6.20, 7.10], n=8 points",
        ),
        rise=difference(0.9, n=8),
        monotone=Figure(value=0.2, low=-0.7, high=0.9, n=8),
        usable_doses=(-0.15, 0.3),
        curve=tuple(curve),
        random=RandomControl(
            draws=3, dose=0.3, trait=NONE, coherence=figure(74.0), rise=NONE, margin=difference(0.4, n=8)
        ),
        prompting=None,
        spread=Spread(changes=(4.0, -3.1, None, 0.0, -12.4, 8.8, None, 2.5, 1.1, 6.0), wrong_way=0.25),
        judge=JudgeFacts(
            name="exemplars",
            auc=Figure(value=0.58, low=0.41, high=0.74, n=24),
            held_out_auc=None,
            usable=False,
            coherence="likelihood",
        ),
        samples=(Sample(question="Why <b>me</b>?", negative="", plain="Because.", positive="<script>alert('x')</script> & more"),),
        notes=("The trait is given by exemplars alone.",),
    )  # fmt: skip


def vector(*, own: bool = False) -> PersonaVector:
    pairs = tuple(ExemplarPair(question=f"Question {i}?", positive="Ugh.", negative="Of course.") for i in range(24))
    trait = OwnTrait(name="grumpy-own", pairs=pairs) if own else load("impolite")
    header = Header(
        trait=trait,
        trait_hash=trait.hash,
        model=ModelId(
            name="smollm2-135m",
            architecture="3c7d41aa09be5f12",
            weights="a1b2c3d4e5f60718",
            adapter="",
            template="77aa88bb99cc00dd",
        ),
        contrast="exemplars",
        kept={"positive": 23, "negative": 23},
        dropped={"positive longer than the model's window": 1},
        agreement=(0.3,) * L,
        judge="",
        seed=0,
        software={"poise": "0.1.0", "torch": "2.13.0", "transformers": "5.0.0"},
    )
    return PersonaVector(torch.ones(L, 4), torch.ones(L), header)
