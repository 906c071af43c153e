"""Screening rows and mapping data sets in Python."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import screening
from poise.errors import (
    InvalidData,
)
from poise.model import Model, load_model
from poise.screen import ColumnScorer, screen_rows
from poise.vector import PersonaVector
from screening import run, talk, written

model, two, folder, small_windows = screening.model, screening.two, screening.folder, screening.small_windows


class TestFromPython:
    def test_scores_rows_in_order_as_the_files_do(self, model: Model, two: list[PersonaVector], tmp_path: Path) -> None:
        rows = talk(20, turns=2)
        run(written(tmp_path / "rows.jsonl", rows), model, two, tmp_path / "out", method="prompt")
        table = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
        found = list(screen_rows(iter(rows), two, model, "prompt"))
        assert [one.index for one in found] == list(range(20))
        for one in found:
            own = [r for r in table if r["index"] == one.index]
            assert one.scores["gloomy"] == pytest.approx(max(r["gloomy_score"] for r in own), abs=1e-5)
            assert [u.turn for u in one.units] == [0, 1]

    def test_reads_a_window_at_a_time(self, model: Model, two: list[PersonaVector]) -> None:
        taken: list[int] = []

        def rows() -> Any:
            for i, row in enumerate(talk(30)):
                taken.append(i)
                yield row

        found = screen_rows(rows(), two, model)
        assert taken == []
        next(found)
        assert len(taken) == 8

    def test_says_why_a_row_has_no_score(self, model: Model, two: list[PersonaVector]) -> None:
        found = list(screen_rows([*talk(2), {"messages": []}], two, model, "difference", max_new_tokens=2))
        assert [bool(one.unread) for one in found] == [False, False, True]
        assert math.isnan(found[2].scores["grumpy"])
        with pytest.raises(InvalidData, match="no known shape"):
            list(screen_rows([{"colour": 3}], two, model))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_fits_a_data_sets_map_and_filter(self, two: list[PersonaVector], folder: Path, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        model = load_model(str(folder), dtype=torch.float32, device="cpu")
        data = datasets.Dataset.from_list([*talk(20), {"id": 99, "messages": []}])
        scored = data.map(ColumnScorer(two, model), batched=True, batch_size=8)
        clean = scored.filter(lambda row: row["grumpy_score"] is not None and row["grumpy_score"] < 0)
        expected = [one.scores["grumpy"] for one in screen_rows(talk(20), two, model)]
        assert scored["grumpy_score"][:20] == pytest.approx(expected, abs=1e-5)
        assert scored["grumpy_score"][20] is None
        assert clean["id"] == [i for i, x in enumerate(expected) if x < 0]

    def test_travels_by_the_models_name(self, two: list[PersonaVector], folder: Path) -> None:
        scorer = ColumnScorer(two, load_model(str(folder), dtype=torch.float32, device="cpu"))
        packed = pickle.dumps(scorer)
        assert packed == pickle.dumps(scorer)
        batch = {"messages": [row["messages"] for row in talk(3)]}
        assert pickle.loads(packed)(batch) == scorer(batch)
