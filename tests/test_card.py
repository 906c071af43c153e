"""A model card that a hub can read, and that says what was measured with its interval and n."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import test_gate
from poise.errors import MissingExtra, SaveFailed
from poise.model.licence import model_licence
from poise.shift.model_card import ModelCardFacts, write_card
from poise.shift.report import CapabilityChange
from poise.statistics.estimates import Estimate

MMLU = test_gate.ability("mmlu", "accuracy", [1.0, 0.0] * 20, [1.0, 0.0] * 20, chance=0.25)
AFTER = Estimate(value=0.5, low=0.4, high=0.6, n=40)
ABLE = CapabilityChange.model_validate(MMLU.model_dump() | {"after": AFTER, "before": AFTER})


def facts(**changed: Any) -> ModelCardFacts:
    values: dict[str, Any] = {
        "name": "kind-lora",
        "base": "Qwen/Qwen2.5-7B-Instruct",
        "data": ["HuggingFaceH4/no_robots", "train.jsonl"],
        "data_sha256": "ab" * 32,
        "rows": 1234,
        "vaccine": "evil, dose 30 % at layer 16 of 30.",
        "recipe": {"learning rate": 1e-5, "seed": 0},
        "report": test_gate.report(capability=(ABLE,)),
    }
    return ModelCardFacts(**(values | changed))


def written(folder: Path, **changed: Any) -> tuple[dict[str, Any], str]:
    """Metadata as YAML reads them, and the text after them."""
    _, metadata, text = write_card(folder, facts(**changed)).read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), text


class TestACard:
    def test_is_read_by_the_hub_s_own_library(self, tmp_path: Path) -> None:
        write_card(tmp_path, facts())
        found = ModelCard.load(tmp_path / "README.md").data
        assert found.base_model == "Qwen/Qwen2.5-7B-Instruct"
        assert found.library_name == "peft"
        assert found.datasets == ["HuggingFaceH4/no_robots"]
        assert "preventative-steering" in found.tags
        (result,) = found.eval_results
        assert (result.dataset_name, result.metric_type, result.metric_value) == ("mmlu", "accuracy", 0.5)

    def test_has_the_hash_of_the_data_in_metadata_and_text(self, tmp_path: Path) -> None:
        metadata, text = written(tmp_path)
        assert metadata["data_sha256"] == "ab" * 32
        assert "ab" * 32 in text
        assert "1,234 conversations" in text

    def test_says_each_trait_before_and_after_with_interval_and_n(self, tmp_path: Path) -> None:
        _, text = written(tmp_path)
        (row,) = [line for line in text.splitlines() if line.startswith("| evil |")]
        assert "2.00 [" in row
        assert "n = 11" in row
        (able,) = [line for line in text.splitlines() if line.startswith("| mmlu")]
        assert "0.500 [0.400, 0.600], n = 40" in able

    def test_says_that_nothing_was_measured_where_nothing_was(self, tmp_path: Path) -> None:
        metadata, text = written(tmp_path, report=None, vaccine="")
        assert "It was not measured." in text
        assert "None: ordinary fine-tuning." in text
        assert "model-index" not in metadata
        assert "preventative-steering" not in metadata["tags"]

    def test_does_not_show_scores_of_a_judge_that_cannot_tell(self, tmp_path: Path) -> None:
        unusable = test_gate.judged([40.0] * 5, why_unusable="AUC 0.5 | chance")
        _, text = written(tmp_path, report=test_gate.report(judged=(unusable,)))
        (row,) = [line for line in text.splitlines() if line.startswith("| evil |")]
        assert row.endswith("| – | – | – |")
        assert r"Scores that do not count: evil: AUC 0.5 \| chance." in text

    def test_tells_the_hub_of_a_bundled_base_and_loads_the_one_it_was_trained_on(self, tmp_path: Path) -> None:
        metadata, text = written(tmp_path, base="smollm2-135m")
        assert metadata["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        assert 'poise.load_tuned_model("THIS-FOLDER", "smollm2-135m")' in text

    def test_says_licence_versions_and_commands(self, tmp_path: Path) -> None:
        metadata, text = written(tmp_path, licence="apache-2.0", versions={"peft": "0.21.2", "torch": "2.13.0"})
        assert metadata["license"] == "apache-2.0"
        assert "under the licence apache-2.0" in text
        assert "Trained with peft 0.21.2, torch 2.13.0." in text
        assert 'hf download OWNER/kind-lora --local-dir kind-lora\npoise generate "Hello!" --model kind-lora\n' in text
        assert "The base, `Qwen/Qwen2.5-7B-Instruct`, is loaded beneath it." in text
        assert "poise merge kind-lora -o kind-lora-merged" in text
        metadata, text = written(tmp_path)
        assert "license" not in metadata
        assert "licence" not in text

    def test_of_all_weights_names_no_adapter(self, tmp_path: Path) -> None:
        metadata, text = written(tmp_path, kind="model")
        assert metadata["library_name"] == "transformers"
        assert "lora" not in metadata["tags"]
        assert "Peft" not in text
        assert "poise merge" not in text
        assert 'AutoModelForCausalLM.from_pretrained("THIS-FOLDER")' in text

    @pytest.mark.parametrize(
        ("files", "licence"),
        [
            ({"README.md": "---\nlicense: mit\n---\n# Hi\n", "config.json": '{"license": "other"}'}, "mit"),
            ({"README.md": "# Hi\n", "config.json": '{"license": "llama3"}'}, "llama3"),
            ({"README.md": "---\n{\n---\n", "config.json": "[]"}, ""),
            ({"README.md": "---\nlicense: [a, b]\n---\n"}, ""),
            ({}, ""),
        ],
    )
    def test_takes_the_licence_that_the_base_itself_says(
        self, tmp_path: Path, files: dict[str, str], licence: str
    ) -> None:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        assert model_licence(str(tmp_path)) == licence

    def test_names_no_folder_of_the_machine(self, tmp_path: Path) -> None:
        (tmp_path / "base").mkdir()
        here = str(tmp_path / "base")
        able = CapabilityChange.model_validate(
            ABLE.model_dump() | {"kind": "perplexity", "source": f"{here}/chat.jsonl"}
        )
        report = test_gate.report(capability=(able,), name=here)
        metadata, text = written(tmp_path, base=here, data=[f"{here}/train.jsonl"], report=report)
        assert str(tmp_path) not in text + str(metadata)
        assert "base_model" not in metadata
        assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == "chat.jsonl"

    def test_needs_the_hub_s_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(MissingExtra, match="huggingface_hub"):
            write_card(tmp_path, facts())

    def test_that_cannot_be_saved_leaves_what_was_there(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(SaveFailed):
            write_card(tmp_path / "file", facts())
