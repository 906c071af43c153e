"""docs/basics.md: its code finds the weights that prices were made of, and its figures are those that it says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

import basics_figure

PAGE = basics_figure.PAGE.read_text("utf-8")


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    return basics_figure.page_names()


def test_gradient_descent_finds_the_weights(names: dict[str, object]) -> None:
    assert names["learnt"] == pytest.approx([150, 20_000], rel=1e-3)
    errors = np.array(names["errors"])
    assert (np.diff(errors) <= 0).all()
    assert errors[-1] < errors[0] * 1e-6


def test_the_loop_is_ten_lines() -> None:
    block = re.search(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    assert block
    lines = block[1].partition("scale =")[2].splitlines()
    assert len(lines) <= 10


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_steps_that_are_too_long_or_too_short_do_not(names: dict[str, object]) -> None:
    for step, fails in ((0.2, "grows"), (0.0005, "is far")):
        code = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)[0].replace("0.05 *", f"{step} *")
        assert f"{step} *" in code
        left: dict[str, object] = {}
        exec(code, left)
        errors = np.array(left["errors"])
        if fails == "grows":
            assert not errors[-1] < errors[0]
        else:
            assert abs(np.array(left["learnt"])[1] / 20_000 - 1) > 0.05


def test_the_direction_reads_and_steers_as_the_page_says(names: dict[str, object]) -> None:
    prices, readings = np.array(names["prices"]), np.array(names["readings"])
    said = re.search(r"rank correlation ([\d.]+)\), and .* priced at ([\d,]+) instead of\n([\d,]+)", PAGE)
    assert said
    assert f"{spearmanr(prices, readings).statistic:.2f}" == said[1]
    price = float(np.array(names["steered"]) * np.array([1000, 1]) @ np.array([150, 20_000]))
    assert f"{price:,.0f}" == said[2]
    assert f"{prices[0]:,.0f}" == said[3]


def test_the_picture_is_made_by_the_script(tmp_path: Path) -> None:
    basics_figure.draw(tmp_path / "basics.png")
    assert (tmp_path / "basics.png").read_bytes()[:4] == (
        basics_figure.PAGE.parent / "images" / "basics.png"
    ).read_bytes()[:4]
