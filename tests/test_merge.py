"""An adapter merged into its base: the same logits, whole or not at all, over nothing that is there."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.errors import ModelNotFound, OutputExists, SaveFailed, UnsuitableModel
from poise.model import load_model, merging
from poise.model.chat_template import template_text
from poise.model.merging import merge_adapter
from steered_passes import no_warnings


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and an adapter of it that changes what the base says, with the tokenizer's template changed too."""
    folder = tmp_path_factory.mktemp("merge")
    model = tiny.model("llama")
    with no_warnings():
        model.lm.save_pretrained(folder / "base")
        model.tokenizer.save_pretrained(folder / "base")
        lm = get_peft_model(model.lm, LoraConfig(r=4, target_modules="all-linear", use_dora=True))
        torch.manual_seed(0)
        for name, weight in lm.named_parameters():
            if "lora_" in name:
                weight.data = weight.data + torch.randn_like(weight) * 0.1
        lm.save_pretrained(folder / "adapter")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(folder / "base")
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    tokenizer = copy.deepcopy(model.tokenizer)  # which other tests use as well
    tokenizer.chat_template = "{# changed #}" + tokenizer.chat_template
    tokenizer.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def logits(folder: Path) -> torch.Tensor:
    model = load_model(str(folder), dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model.lm(torch.arange(5, 30)[None]).logits
    return found


class TestAMergedModel:
    def test_gives_what_the_adapter_gives_on_its_base(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        base, adapter = folders
        merged = merge_adapter(adapter, tmp_path / "out")
        assert torch.allclose(logits(tmp_path / "out"), logits(adapter), atol=1e-4)
        assert not torch.allclose(logits(tmp_path / "out"), logits(base), atol=1e-2)
        assert (merged.base, merged.dtype, merged.tolerance) == (str(base), "float32", 1e-3)
        assert merged.difference < 1e-5
        assert not (tmp_path / "out" / "adapter_config.json").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_carries_the_adapter_s_tokenizer_and_template(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        merge_adapter(folders[1], tmp_path / "out")
        assert template_text(load_model(str(tmp_path / "out")).tokenizer).startswith("{# changed #}")

    def test_has_the_base_s_precision(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        base, adapter = folders
        shutil.copytree(base, tmp_path / "half")
        with no_warnings():
            load_model(str(base), dtype=torch.bfloat16).lm.save_pretrained(tmp_path / "half")
        merged = merge_adapter(adapter, tmp_path / "out", base=str(tmp_path / "half"))
        assert (merged.dtype, merged.tolerance) == ("bfloat16", 0.03)
        assert 0 < merged.difference < 0.03
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["dtype"] == "bfloat16"

    def test_takes_no_place_that_is_taken_unless_asked(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("x")
        with pytest.raises(OutputExists, match="holds files"):
            merge_adapter(folders[1], tmp_path / "out")
        with pytest.raises(OutputExists, match="the adapter itself"):
            merge_adapter(folders[1], folders[1], force=True)
        merge_adapter(folders[1], tmp_path / "out", force=True)
        assert not (tmp_path / "out" / "mine").exists()
        assert (tmp_path / "out" / "config.json").exists()

    @pytest.mark.parametrize("named", [False, True])
    def test_takes_no_place_of_its_base_or_adapter_even_if_asked(
        self, folders: tuple[Path, Path], tmp_path: Path, named: bool
    ) -> None:
        base, adapter = tmp_path / "models" / "base", tmp_path / "runs" / "adapter"
        shutil.copytree(folders[0], base)
        shutil.copytree(folders[1], adapter)
        config = json.loads((adapter / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(base)
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        (tmp_path / "link").symlink_to(base)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        places = {
            base: "is the adapter's base itself",
            tmp_path / "link": "is the adapter's base itself",
            tmp_path / "models" / ".." / "models" / "base": "is the adapter's base itself",
            tmp_path / "models": f"holds the adapter's base, {base}",
            base / "merged": f"lies in the adapter's base, {base}",
            adapter: "is the adapter itself",
            tmp_path / "runs": f"holds the adapter, {adapter}",
        }
        for out, words in places.items():
            with pytest.raises(OutputExists, match=f"{re.escape(words)}; choose another output"):
                merge_adapter(adapter, out, base=str(base) if named else None, force=True)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        done = CliRunner().invoke(app, ["merge", str(adapter), "--out", str(base), "--force"])
        assert (done.exit_code, "is the adapter's base itself" in done.stderr) == (2, True)

    def test_says_when_the_adapter_names_another_base(
        self, folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        base, adapter = folders
        shutil.copytree(base, tmp_path / "twin")
        merge_adapter(adapter, tmp_path / "out", base=str(base))
        assert not caplog.messages
        merge_adapter(adapter, tmp_path / "other", base=str(tmp_path / "twin"))
        (text,) = caplog.messages
        assert text == (
            f"The adapter in {adapter} says that it is of {base}, and it is put on {tmp_path / 'twin'}. If these are "
            "not the same weights, it does something else here than what it was trained for."
        )

    @pytest.mark.parametrize("fault", ["disk", "logits"])
    def test_is_whole_or_not_there(
        self, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("x")
        error: Any = SaveFailed
        if fault == "disk":

            def full(*args: Any, **options: Any) -> Any:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
        else:
            monkeypatch.setitem(merging.MERGE_TOLERANCE, torch.float32, 0.0)
            error = UnsuitableModel
        with pytest.raises(error, match="other logits" if fault == "logits" else "No space left"):
            merge_adapter(folders[1], tmp_path / "out", force=True)
        assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]

    def test_is_refused_on_a_base_in_few_bits_and_for_what_is_no_adapter(
        self, folders: tuple[Path, Path], tmp_path: Path
    ) -> None:
        base, adapter = folders
        shutil.copytree(base, tmp_path / "packed")
        config = json.loads((base / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsuitableModel, match=r"is quantised \(bitsandbytes\).*quantised from as `base`"):
            merge_adapter(adapter, tmp_path / "out", base=str(tmp_path / "packed"))
        with pytest.raises(ModelNotFound, match="no adapter"):
            merge_adapter(base, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_is_one_command(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        done = CliRunner().invoke(app, ["merge", str(folders[1]), "--out", str(tmp_path / "out"), "--json"])
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["model"] == str(tmp_path / "out")
        again = CliRunner().invoke(app, ["merge", str(folders[1]), "--out", str(tmp_path / "out")])
        assert (again.exit_code, "--force" in again.stderr) == (2, True)
