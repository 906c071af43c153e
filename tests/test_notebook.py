"""The notebook of the documentation: its cells run in order, and what it shows beside them is what such a run gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[1] / "docs" / "notebook.ipynb"

pytestmark = pytest.mark.real


def shown(notebook: Any) -> list[list[str]]:
    """What each code cell shows, as plain text, without complaints of other packages."""
    return [
        [
            output.get("text") or output["data"]["text/plain"]
            for output in cell.outputs
            if output.get("name") != "stderr"
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    kept = nbformat.read(PATH, 4)
    again = nbformat.read(PATH, 4)
    NotebookClient(again, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    plain, *steered = "".join(shown(again)[2]).split("dose ")[1:]
    (steered_text,) = steered
    assert plain.partition(":")[2] != steered_text.partition(":")[2]
    assert [len(outputs) > 0 for outputs in shown(kept)] == [len(outputs) > 0 for outputs in shown(again)]
    assert "text/html" in again.cells[-2].outputs[-1].data  # tokens, tinted


def test_the_notebook_holds_no_complaints_and_no_paths() -> None:
    text = PATH.read_text("utf-8")
    assert [word for word in ('"stderr"', "/site-packages/") if word in text] == []
