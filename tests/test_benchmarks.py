"""The benchmarks measure what they say."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import read_activations

    return read_activations


def mib(said: str) -> float:
    found = re.fullmatch(r"peak (\d+) MiB above the \d+ MiB resident after loading", said)
    assert found, said
    return float(found[1])


def touch(size: int) -> None:
    """Fresh pages of so many MiB, written to and given back: a heap may reuse what it has instead."""
    with mmap.mmap(-1, size << 20) as pages:
        for start in range(0, size << 20, mmap.PAGESIZE):
            pages[start] = 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can start the peak again")
class TestMemory:
    def test_counts_what_work_needs_at_its_peak_though_it_is_given_back(self, reading: ModuleType) -> None:
        assert 100 <= mib(reading.peak_above(lambda: touch(100))) <= 120

    def test_forgets_the_peaks_from_before(self, reading: ModuleType) -> None:
        touch(200)
        assert mib(reading.peak_above(lambda: None)) <= 20


class TestWithoutProc:
    def test_says_that_it_is_not_measured(self, reading: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(*_: object) -> None:
            raise FileNotFoundError

        monkeypatch.setattr(Path, "write_text", absent)
        assert reading.peak_above(lambda: None) == "not measured here"


class TestFineTunesOverSeeds:
    @pytest.fixture
    def shown(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(str(FOLDER))
        import replicate_shown

        return replicate_shown

    def row(self, arm: str, seed: int, rises: list[float], loss: float) -> dict[str, Any]:
        return {
            "arm": arm,
            "seed": seed,
            "rises": rises,
            "shifts": [seed + 1.0] * len(rises),
            "coherence": 80.0,
            "trait before": 20.0,
            "loss": {"skill": loss},
            "loss before": {"skill": 2.0},
        }

    def test_are_held_against_plain_ones_of_the_same_seeds(self, shown: ModuleType) -> None:
        rows = [
            self.row("plain", 0, [10.0, 30.0], 1.0),
            self.row("plain", 1, [30.0, 50.0], 1.5),
            self.row("one layer α=1", 0, [0.0, 8.0], 1.2),
        ]
        plain, vaccine = shown.over_seeds(rows)
        assert (plain["seeds"], plain["rise"].value, plain["kept out"].value) == (2, 30.0, 0.0)
        assert vaccine["kept out"].value == pytest.approx(1 - 4 / 20)
        assert vaccine["beside plain"].value == pytest.approx(4 - 20)
        assert vaccine["skill learnt"] == pytest.approx(0.8 / 1.0)

    def test_stand_in_tables_of_a_line_each(self, shown: ModuleType) -> None:
        rows = [self.row("plain", 0, [10.0, 30.0], 1.0), self.row("one layer α=1", 0, [0.0, 8.0], 1.2)]
        assert "| one layer α=1 | 1 | +4.0 [" in shown.vaccine_table(rows)
        assert "| -16.0 [" in shown.benign_table(rows)


class TestPreferenceShift:
    @pytest.fixture
    def shifts(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(str(FOLDER))
        import preference_shift

        return preference_shift

    def test_flagged_pairs_are_dropped_or_swapped_and_as_many_at_random(self, shifts: ModuleType) -> None:
        pairs = [shifts.pair(f"Q{i}", f"C{i}", f"R{i}") for i in range(8)]
        scores = [0.0, 3.0, -1.0, 0.5, 2.0, -2.0, 1.0, 0.9]  # 1, 4, 6 and 7 are the higher half

        def learnt(variant: str) -> list[dict[str, Any]]:
            pairs_left: list[dict[str, Any]] = shifts.varied(pairs, shifts.signs(scores, variant, 0))
            return pairs_left

        assert learnt("plain") == pairs
        assert learnt("drop") == [pairs[i] for i in (0, 2, 3, 5)]
        swapped = [new["chosen"] == old["rejected"] for new, old in zip(learnt("swap"), pairs, strict=True)]
        assert swapped == [i in (1, 4, 6, 7) for i in range(8)]
        assert len(learnt("random drop")) == 4
        assert sum(new != old for new, old in zip(learnt("random swap"), pairs, strict=True)) == 4

    def test_correlations_have_fishers_interval(self, shifts: ModuleType) -> None:
        assert shifts.correlation([1, 2, 3, 4, 5], [1, 3, 2, 5, 4]) == "0.80 [-0.28, 0.99], n = 5"
        assert shifts.correlation([1, 2], [1, 2]) == "– (n = 2)"

    def test_pairs_of_a_trait_are_none_that_its_vector_is_made_of(self, shifts: ModuleType) -> None:
        from poise.trait import library

        pairs = shifts.exemplar_pairs("impolite")
        seen = {one.question for one in library.load_trait("impolite").extraction_pairs}
        assert len(pairs) > 40
        assert not {one["prompt"][0]["content"] for one in pairs} & seen
