"""The picture of docs/basics.md: two weights found by gradient descent, by the very code of the page.

python benchmarks/basics_figure.py            # writes docs/images/basics.png
python benchmarks/basics_figure.py --out F
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np

PAGE = Path(__file__).parents[1] / "docs" / "basics.md"


def page_names(page: Path = PAGE) -> dict[str, Any]:
    """What the page's Python leaves behind, with the course of the weights under ``course``."""
    names: dict[str, Any] = {"course": []}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), flags=re.M | re.S):
        watched = block.replace("    guesses =", "    course.append(weights / scale)\n    guesses =")
        exec(compile(watched, str(page), "exec"), names)
    return names


def draw(out: Path) -> None:
    """The error and the two weights over the steps."""
    from matplotlib.figure import Figure

    names = page_names()
    course = np.array(names["course"])
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    error, weights = figure.subplots(1, 2)
    error.semilogy(names["errors"], color="#0b6e75")
    error.set(title="Mean squared error", xlabel="step")
    for column, (label, truth, colour) in enumerate(
        [("a square foot", 150, "#0b6e75"), ("a bedroom", 20_000, "#b5541c")]
    ):
        weights.plot(course[:, column] / truth, label=f"{label} ({truth:,})", color=colour)
    weights.axhline(1, color="#888", linewidth=0.8, linestyle=":")
    weights.set(title="Weights, as a share of the true ones", xlabel="step")
    weights.legend(frameon=False)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PAGE.parent / "images" / "basics.png")
    draw(parser.parse_args().out)
