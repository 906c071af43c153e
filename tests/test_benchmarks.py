"""The benchmarks measure what they say."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

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


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can start the peak again")
class TestMemory:
    def test_counts_what_work_needs_at_its_peak_though_it_is_given_back(self, reading: ModuleType) -> None:
        assert 100 <= mib(reading.peak_above(lambda: len(bytearray(b"x") * (100 << 20)))) <= 120

    def test_forgets_the_peaks_from_before(self, reading: ModuleType) -> None:
        assert len(bytearray(b"x") * (200 << 20))
        assert mib(reading.peak_above(lambda: None)) <= 20


class TestWithoutProc:
    def test_says_that_it_is_not_measured(self, reading: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(*_: object) -> None:
            raise FileNotFoundError

        monkeypatch.setattr(Path, "write_text", absent)
        assert reading.peak_above(lambda: None) == "not measured here"
