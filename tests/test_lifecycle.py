"""A use case through its stages on the bundled model, by the documented commands, in the short form."""

from __future__ import annotations

from pathlib import Path

import pytest

import lifecycle_walk
from poise.lifecycle.bias import bias_report, measure_swaps
from poise.lifecycle.bias_sets import draw_swaps, read_bias_set
from poise.lifecycle.cards import check_card

pytestmark = pytest.mark.real


def test_a_use_case_is_carried_through_its_stages(tmp_path: Path) -> None:
    shown = lifecycle_walk.walk(tmp_path / "walk", "smollm2-135m", short=True)
    assert "done  evaluate" in shown
    assert "done  deploy" in shown
    assert "-     watch" in shown
    assert "served: well" in shown
    assert "done  watch              recorded: watch" in shown
    assert "Every stage has its record." in shown
    assert "7 of them signed: all as it was written." in shown
    assert "parcels.jsonl has changed" in shown
    assert check_card((tmp_path / "walk" / "README.md").read_text()) == []
    assert "Ada Ochs" in (tmp_path / "walk" / "annex.md").read_text()


def test_steering_for_one_group_is_found_on_the_bundled_model() -> None:
    from poise.contrast import exemplars
    from poise.extract import extract
    from poise.model import load_model
    from poise.steer import Steering
    from poise.trait import library

    model = load_model("smollm2-135m")
    vector = extract(exemplars(library.load_trait("impolite"), model), model)
    cells = draw_swaps(read_bias_set(), axes=["age"])
    steering = {"sixties": Steering.add(vector, dose=0.4)}
    report = bias_report("m", cells, measure_swaps(model, cells, [vector], max_new_tokens=16, steering=steering))
    gaps = {(gap.first, gap.second) for gap in report.findings if gap.measure == "trait impolite"}
    assert gaps == {("twenties", "sixties"), ("forties", "sixties")}
