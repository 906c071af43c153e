"""What each setting of `poise train` does: seen in the weights, the trainer and the log, with a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from poise import vector as vectors
from poise.errors import InvalidArgument, InvalidData
from poise.model import load_model
from poise.model.rendering import render_prompt
from poise.train import trainers
from poise.train.lora import train
from steered_passes import no_warnings
from test_train import equal, home, settings, weights
from test_vaccine_kinds import SHAPE

pytestmark = pytest.mark.trainers

__all__ = ["home"]


def loaded(adapter: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return config


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers that runs build."""
    built: list[Any] = []
    plain = trainers.build_trainer

    def build(*args: Any) -> Any:
        built.append(plain(*args))
        return built[-1]

    monkeypatch.setattr("poise.train.lora.build_trainer", build)
    return built


def unlike(home: Path, folder: Path) -> dict[str, Any]:
    """Settings that evaluate on answers unlike those that are learnt, whose loss only rises from a step on."""
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()][:4]
    for row in rows:
        row["messages"][1]["content"] = "?! 17 ?! 94 ?!"
    (folder / "unlike.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**STEPS, "held_out": 0, "eval_data": str(folder / "unlike.jsonl"), "learning_rate": 0.05}


STEPS: dict[str, Any] = {"eval_steps": 2, "save_every": 2, "schedule": "constant", "warmup_steps": 0}


class TestTheOptimiser:
    def test_gradients_are_cut_to_max_grad_norm(self, home: Path, tmp_path: Path) -> None:
        """With SGD one step is the learning rate times the gradient, so that its length shows the cut."""
        options = {"optim": "sgd", "max_steps": 1, "learning_rate": 1.0, "warmup_steps": 0, "weight_decay": 0.0}

        def length(name: str, **more: Any) -> float:
            done = weights(train(settings(home, tmp_path / name, **options, **more)).adapter)
            return float(sum(w.norm() ** 2 for name, w in done.items() if "lora_B" in name) ** 0.5)

        assert length("cut", max_grad_norm=1e-3) == pytest.approx(1e-3, rel=1e-3)
        assert length("whole", max_grad_norm=0) > 2e-3

    @pytest.mark.parametrize(("optim", "kind"), [("adafactor", "Adafactor"), ("sgd", "SGD"), ("rmsprop", "RMSprop")])
    def test_is_the_one_that_is_named(self, home: Path, tmp_path: Path, seen: list[Any], optim: str, kind: str) -> None:
        train(settings(home, tmp_path / "run", optim=optim, max_steps=1))
        assert type(seen[0].optimizer.optimizer).__name__ == kind

    def test_bf16_runs_passes_in_bfloat16_and_keeps_the_adapter_in_float32(
        self, home: Path, tmp_path: Path, seen: list[Any]
    ) -> None:
        done = train(settings(home, tmp_path / "run", bf16=True, max_steps=1))
        assert seen[0].accelerator.mixed_precision == "bf16"
        assert {w.dtype for w in weights(done.adapter).values()} == {torch.float32}


class TestEvaluation:
    def test_runs_every_so_many_steps_and_after_the_last(self, home: Path, tmp_path: Path) -> None:
        done = train(settings(home, tmp_path / "run", eval_steps=2, max_steps=5))
        assert [line["step"] for line in done.facts["evaluated"]] == [2, 4, 5]

    def test_is_unsteered_under_a_vaccine(self, home: Path, tmp_path: Path) -> None:
        """Where nothing is learnt, the loss is the base's, whatever the vaccine adds in training."""
        losses = {}
        for name, vaccine in (("plain", {}), ("vaccinated", {"steer": f"{home / 'v.safetensors'}=20"})):
            config = settings(home, tmp_path / name, eval_steps=1, max_steps=1, learning_rate=1e-30, vaccine=vaccine)
            done = train(config)
            log = [json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines()]
            losses[name] = (done.facts["evaluated"][0]["loss"], next(x["loss"] for x in log if "loss" in x))
        assert losses["plain"][0] == pytest.approx(losses["vaccinated"][0], abs=1e-6)
        assert abs(losses["plain"][1] - losses["vaccinated"][1]) > 0.01

    def test_takes_rows_from_files_of_their_own(self, home: Path, tmp_path: Path) -> None:
        rows = (home / "rows.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "data.jsonl").write_text("".join(rows[3:]))
        (tmp_path / "eval.jsonl").write_text("".join(rows[:3]))
        files = {"data": str(tmp_path / "data.jsonl"), "eval_data": str(tmp_path / "eval.jsonl")}
        done = train(settings(home, tmp_path / "run", held_out=0, max_steps=1, **files))
        assert done.facts["loss"]["before"]["n"] == 3
        assert done.facts["data"]["texts"] == 21

    def test_the_best_checkpoint_is_the_one_kept(self, home: Path, tmp_path: Path) -> None:
        """The best evaluation is one of the first."""
        options = {**unlike(home, tmp_path), "max_steps": 12, "load_best_model_at_end": True}
        done = train(settings(home, tmp_path / "run", **options))
        losses = {line["step"]: line["loss"] for line in done.facts["evaluated"]}
        best = min(losses, key=lambda step: losses[step])
        assert done.facts["best"] == {"step": best, "loss": losses[best]}
        assert best < 12
        assert equal(done.adapter, tmp_path / "run" / "checkpoints" / f"checkpoint-{best}")
        assert not equal(done.adapter, tmp_path / "run" / "checkpoints" / "checkpoint-12")

    def test_the_best_is_kept_by_a_run_killed_after_its_last_step_too(self, home: Path, tmp_path: Path) -> None:
        options = {**unlike(home, tmp_path), "max_steps": 12, "load_best_model_at_end": True}
        config = settings(home, tmp_path / "run", **options)
        done = train(config)
        shutil.copytree(done.adapter, tmp_path / "kept")
        (done.folder / "train.json").unlink()
        again = train(config)
        assert equal(again.adapter, tmp_path / "kept")
        assert again.facts["best"] == done.facts["best"]

    def test_ends_early_after_evaluations_without_a_lower_loss(self, home: Path, tmp_path: Path) -> None:
        options = {**unlike(home, tmp_path), "max_steps": 40, "early_stopping_patience": 2}
        done = train(settings(home, tmp_path / "run", **options))
        losses = [line["loss"] for line in done.facts["evaluated"]]
        assert done.facts["steps"] == 2 * len(losses) < 40
        assert min(losses) == losses[-3]
        (done.folder / "train.json").unlink()
        assert train(settings(home, tmp_path / "run", **options)).facts["steps"] == done.facts["steps"]


class TestAdapters:
    def test_dora_trains_magnitudes(self, home: Path, tmp_path: Path) -> None:
        done = train(settings(home, tmp_path / "run", lora={"r": 4, "dora": True}, max_steps=1))
        assert loaded(done.adapter)["use_dora"] is True
        assert any("magnitude" in name for name in weights(done.adapter))

    def test_tokens_and_modules_are_trained_where_they_are_named(self, home: Path, tmp_path: Path) -> None:
        base = load_model(str(home / "model"), dtype=torch.float32)
        before = base.lm.get_input_embeddings().weight.clone()
        token = "<|im_end|>"
        number = base.tokenizer.convert_tokens_to_ids(token)
        lora = {"r": 4, "trainable_tokens": [token]}
        done = train(settings(home, tmp_path / "run", lora=lora, max_steps=3))
        after = load_model(str(done.adapter), dtype=torch.float32).lm.merge_and_unload().get_input_embeddings().weight
        changed = (after - before).abs().sum(1) > 0
        assert changed.nonzero().flatten().tolist() == [number]
        with pytest.raises(InvalidArgument, match=r"trainable_tokens names <x>, not in the vocabulary"):
            train(settings(home, tmp_path / "other", lora={"trainable_tokens": ["<x>"]}))

    def test_an_adapter_that_is_continued_starts_from_its_weights(self, home: Path, tmp_path: Path) -> None:
        first = train(settings(home, tmp_path / "first", epochs=2))
        again = settings(home, tmp_path / "again", lora={"start": str(first.adapter)}, learning_rate=1e-30, max_steps=1)
        done = train(again)
        assert equal(first.adapter, done.adapter)
        assert done.facts["loss"]["before"]["value"] == pytest.approx(first.facts["loss"]["after"]["value"], abs=1e-5)
        further = settings(home, tmp_path / "on", lora={"start": str(first.adapter)}, max_steps=1, warmup_steps=0)
        assert not equal(train(further).adapter, first.adapter, within=1e-4)

    def test_without_an_adapter_all_weights_are_trained_and_saved(self, home: Path, tmp_path: Path) -> None:
        config = settings(home, tmp_path / "run", adapter=None, lora={}, learning_rate=1e-3)
        done = train(config)
        assert done.adapter == tmp_path / "run" / "model"
        folders = (home / "model", done.adapter)
        before, after = (load_model(str(folder), dtype=torch.float32).lm.state_dict() for folder in folders)
        assert all(not torch.equal(before[name], after[name]) for name in before)
        assert done.facts["loss"]["after"]["value"] < done.facts["loss"]["before"]["value"]
        (done.folder / "train.json").unlink()
        shutil.rmtree(done.adapter)
        again = load_model(str(train(config).adapter), dtype=torch.float32).lm.state_dict()
        assert all(torch.equal(again[name], after[name]) for name in after)

    def test_first_weights_come_from_the_seed_alone(self, home: Path, tmp_path: Path) -> None:
        options = {"optim": "sgd", "max_steps": 1, "held_out": 0}
        runs = []
        for name in ("one", "other"):
            torch.manual_seed(len(name))
            runs.append(train(settings(home, tmp_path / name, **options)).adapter)
        assert equal(*runs)

    @pytest.mark.parametrize("layout", ["packing", "padding_free"])
    def test_texts_in_one_row_are_kept_apart(self, home: Path, tmp_path: Path, layout: str) -> None:
        """One step on all rows at once, joined and not, in SGD: the same mean over tokens, and so the same weights."""
        options = {"optim": "sgd", "max_steps": 1, "batch": 24, "learning_rate": 0.5, "warmup_steps": 0, "held_out": 0}
        plain = train(settings(home, tmp_path / "plain", **options))
        joined = train(settings(home, tmp_path / layout, **options, longest=128, **{layout: True}))
        alone = train(settings(home, tmp_path / "alone", **options | {"batch": 1}))
        assert equal(plain.adapter, joined.adapter, within=1e-5)
        assert not equal(plain.adapter, alone.adapter, within=1e-5)


@pytest.mark.wide
class TestFourBits:
    @pytest.fixture(autouse=True)
    def _bitsandbytes(self) -> None:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")

    @pytest.fixture
    def wide_home(self, home: Path, tmp_path: Path) -> Path:
        """A model whose rows are whole blocks of 64 weights, as packing needs, and the same data."""
        model = tiny.model("llama", **SHAPE)
        with no_warnings():
            model.lm.save_pretrained(tmp_path / "model")
            model.tokenizer.save_pretrained(tmp_path / "model")
        loaded = load_model(str(tmp_path / "model"), dtype=torch.float32)
        vectors.save_vector(tiny.vector(loaded, scale=0.5), tmp_path / "v.safetensors")
        shutil.copy(home / "rows.jsonl", tmp_path / "rows.jsonl")
        return tmp_path

    @pytest.mark.filterwarnings("ignore")
    def test_hold_the_base_and_evaluation_leaves_training_alone(
        self, wide_home: Path, tmp_path: Path, seen: list[Any]
    ) -> None:
        """With one vaccine, in runs that evaluate after each step and never: the same adapters, which learn."""
        options = {"vaccine": {"steer": f"{wide_home / 'v.safetensors'}=1.5"}, "adapter": "qlora"}
        every = train(settings(wide_home, tmp_path / "every", eval_steps=1, **options))
        never = train(settings(wide_home, tmp_path / "never", **options))
        plain = train(settings(wide_home, tmp_path / "plain", adapter="qlora"))
        assert seen[0].model.get_base_model().is_loaded_in_4bit
        assert equal(every.adapter, never.adapter)
        assert not equal(every.adapter, plain.adapter, within=1e-4)
        assert plain.facts["loss"]["after"]["value"] < plain.facts["loss"]["before"]["value"]

    @pytest.mark.filterwarnings("ignore")
    def test_start_preferences_at_the_loss_of_an_untouched_policy(self, wide_home: Path, tmp_path: Path) -> None:
        vaccine = {"steer": f"{wide_home / 'v.safetensors'}=1.5"}
        data = str(pairs(wide_home, tmp_path))
        config = settings(wide_home, tmp_path / "run", data=data, method="dpo", load_in_4bit=True, vaccine=vaccine)
        log = (train(config).folder / "log.jsonl").read_text().splitlines()
        assert next(x["loss"] for x in map(json.loads, log) if "loss" in x) == pytest.approx(0.6931, abs=1e-4)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("optim", ["adamw_8bit", "lion_8bit"])
    def test_hold_the_optimiser_too(self, wide_home: Path, tmp_path: Path, seen: list[Any], optim: str) -> None:
        train(settings(wide_home, tmp_path / "run", optim=optim, max_steps=2))
        assert type(seen[0].optimizer.optimizer).__module__.startswith("bitsandbytes")


def pairs(home: Path, folder: Path) -> Path:
    rows = [json.loads(line)["messages"] for line in (home / "rows.jsonl").read_text().splitlines()]
    lines = [
        {"prompt": row[:1], "chosen": [row[1]], "rejected": [{"role": "assistant", "content": other[1]["content"]}]}
        for row, other in zip(rows, [*rows[5:], *rows[:5]], strict=True)
    ]
    lines.append({"prompt": rows[0][:1], "chosen": [rows[0][1]], "rejected": [rows[0][1]]})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class TestPreferences:
    def dpo(self, home: Path, out: Path, folder: Path, **changes: Any) -> Any:
        return settings(home, out, data=str(pairs(home, folder)), method="dpo", **changes)

    def first_loss(self, done: Any) -> float:
        log = [json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines()]
        return float(next(line["loss"] for line in log if "loss" in line))

    @pytest.mark.parametrize("strength", ["", "=1.5", "=-3"])
    def test_start_at_the_loss_of_an_untouched_policy_and_are_learnt(
        self, home: Path, tmp_path: Path, strength: str
    ) -> None:
        vaccine = {"steer": f"{home / 'v.safetensors'}{strength}"} if strength else {}
        done = train(self.dpo(home, tmp_path / "run", tmp_path, vaccine=vaccine, epochs=6, held_out=0))
        assert self.first_loss(done) == pytest.approx(0.6931, abs=1e-4)
        log = [json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines()]
        assert [line["loss"] for line in log if "loss" in line][-1] < 0.6

    def test_hold_out_pairs_and_say_how_many_are_told_apart(self, home: Path, tmp_path: Path) -> None:
        done = train(self.dpo(home, tmp_path / "run", tmp_path, eval_steps=3))
        assert (done.facts["data"]["texts"], done.facts["preferences"]["n"]) == (18, 6)
        assert 0 <= done.facts["preferences"]["accuracy"] <= 1
        assert done.facts["evaluated"][-1]["step"] == done.facts["steps"]
        assert done.facts["loss"] == {"before": None, "after": None}

    def test_are_learnt_from_the_tokens_of_the_answers_alone(self, home: Path, tmp_path: Path, seen: list[Any]) -> None:
        done = train(self.dpo(home, tmp_path / "run", tmp_path, held_out=0, max_steps=1))
        model = load_model(str(home / "model"), dtype=torch.float32)
        first = seen[0].train_dataset[0]
        messages = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
        assert model.tokenizer.decode(first["prompt_ids"]) == render_prompt(model.tokenizer, messages["prompt"])
        answers = [model.tokenizer.decode(first[f"{side}_ids"]) for side in ("chosen", "rejected")]
        assert answers == [messages[side][0]["content"] + "<|im_end|>" for side in ("chosen", "rejected")]
        assert done.facts["data"]["left_out"] == {"both answers are the same": 1}

    def test_beta_reaches_the_trainer(self, home: Path, tmp_path: Path, seen: list[Any]) -> None:
        train(self.dpo(home, tmp_path / "run", tmp_path, dpo_beta=0.7, max_steps=1))
        assert seen[0].beta == 0.7

    def test_full_fine_tuning_compares_with_the_model_that_it_started_from(self, home: Path, tmp_path: Path) -> None:
        vaccine = {"steer": f"{home / 'v.safetensors'}=1.5"}
        config = self.dpo(home, tmp_path / "run", tmp_path, vaccine=vaccine, adapter="none", lora={}, held_out=0)
        assert self.first_loss(train(config)) == pytest.approx(0.6931, abs=1e-4)

    def test_going_on_from_an_adapter_compares_with_it_and_saves_one(self, home: Path, tmp_path: Path) -> None:
        start = train(settings(home, tmp_path / "start", max_steps=3)).adapter
        config = self.dpo(home, tmp_path / "run", tmp_path, lora={"start": str(start)}, held_out=0)
        done = train(config)
        assert self.first_loss(done) == pytest.approx(0.6931, abs=1e-4)
        assert not (done.adapter / "ref").exists()
        assert not equal(done.adapter, start, within=1e-4)

    def test_need_two_answers(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match="no two answers to one prompt"):
            train(settings(home, tmp_path / "run", method="dpo"))
