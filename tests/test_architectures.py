"""The core of the table of architectures: what is read, generated and steered is what is there, or it is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "benchmarks"
REFUSED = {
    "gemma3n_text": r"Block 0 of tiny-gemma3n_text gives \[4, 2, 9, 32\]",
    "xlnet": r"Block 0 of tiny-xlnet gives \[9, 2, 32\]",
    "bert": "tiny-bert is not causal",
    "reformer/decoder": "Block 0 of tiny-reformer/decoder gives ReformerOutput",
    "minimax": "tiny-minimax cannot generate here: .* Its texts can still be read",
}
EXACT = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "phi3",
    "gpt2",
    "gpt_neox",
    "olmo2",
    "granite",
    "mamba",
    "mamba2",
    "jamba",
    "falcon_h1",
    "recurrent_gemma",
    "lfm2",
    "qwen3_next",
    "olmo_hybrid",
    "qwen3_moe",
    "gpt_oss",
    "deepseek_v3",
)


@pytest.fixture
def architectures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import architectures

    return architectures


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXACT)
def test_is_exact(name: str, architectures: ModuleType) -> None:
    row = architectures.in_a_process(name)
    assert row.verdict == "exact", (row.detail, row.reasons)
    assert {row.outcomes[check] for check in architectures.CHECKS} == {"exact"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_a_sentence(name: str, architectures: ModuleType) -> None:
    row = architectures.in_a_process(name)
    assert row.verdict == "refused", (row.detail, row.reasons)
    assert any(re.search(REFUSED[name], reason) for reason in row.reasons.values()), row.reasons


def test_the_mapping_has_an_entry_for_everything_that_is_named_here(architectures: ModuleType) -> None:
    assert {*EXACT, *REFUSED} <= set(architectures.tiny_models.names())
    assert {*architectures.CORE} == {*EXACT, *REFUSED}
