"""Python on the pages runs as it stands, from the top of a page to its end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import tiny
from poise import contrast
from poise import vector as vectors
from poise.extract import extract
from poise.model import load_model
from poise.trait import library

pytestmark = pytest.mark.slow
PAGES = ("steering", "vectors", "monitoring", "screening", "detectors", "preferences")
BUNDLED = "smollm2-135m"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the place of the bundled one, and the vectors that the pages load."""
    folder = tmp_path_factory.mktemp("docs")
    tiny.lm(max_position_embeddings=4096).save_pretrained(folder / "tiny")
    tiny.chatml().save_pretrained(folder / "tiny")
    model = load_model(str(folder / "tiny"))
    for name in ("evil", "impolite"):
        vector = extract(contrast.exemplars(library.load_trait(name), model), model)
        vectors.save_vector(vector, folder / f"{name}.safetensors")
    talk = [{"user": f"What is {i}?", "assistant": f"It is {i}, or so they say."} for i in range(30)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turn.items()]} for turn in talk]
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(page: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert blocks
    monkeypatch.chdir(home)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.replace(BUNDLED, str(home / "tiny")), f"docs/{page}.md", "exec"), names)
