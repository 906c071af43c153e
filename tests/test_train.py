"""Fine-tuning end to end on a tiny model: data, monitor, checkpoints, what can go wrong, two processes."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from transformers import TrainerCallback
from typer.testing import CliRunner

import tiny
from poise import vector as vectors
from poise import workflows
from poise.activations import read
from poise.cli import app
from poise.data import Conversation, Rejections, open_data
from poise.errors import (
    FolderInUse,
    InvalidArgument,
    InvalidData,
    InvalidSettings,
    OtherModel,
    SaveFailed,
    TrainingFailed,
)
from poise.model import Model, ask
from poise.model.loading import HUB_IDS
from poise.progress import remarks_by
from poise.settings import read_settings
from poise.steer import Steering
from poise.storage.lock import locked
from poise.train.checkpoints import (
    COMPLETE_MARKER,
    FiniteGradients,
    last_complete_checkpoint,
    remove_incomplete_checkpoints,
)
from poise.train.config import TrainConfig
from poise.train.examples import IGNORED, TrainingExample, TrainingExamples, build_examples, open_training_data
from poise.train.inputs import split_held_out
from poise.train.lora import train
from poise.train.monitor_callback import PersonaMonitorCallback
from poise.train.setting_checks import remark_on_steps, remark_on_values, setting_faults
from poise.train.vaccine_callback import VaccineCallback
from poise.vector import Alarm, PersonaVector
from test_vaccine import trainer

WORDS = " ".join(tiny.SENTENCES).split()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a vector of it and a data set."""
    folder = tmp_path_factory.mktemp("home")
    model = tiny.model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.lm.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    from poise.model import load_model

    vectors.save_vector(
        tiny.vector(load_model(str(folder / "model"), dtype=torch.float32), scale=0.5), folder / "v.safetensors"
    )
    rows = [
        {
            "messages": [
                *ask(" ".join(WORDS[i : i + 4])),
                {"role": "assistant", "content": " ".join(WORDS[i + 4 : i + 9])},
            ]
        }
        for i in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(home: Path, out: Path, **changes: Any) -> TrainConfig:
    said: dict[str, Any] = {
        "model": str(home / "model"),
        "data": [str(home / "rows.jsonl")],
        "out": str(out),
        "batch": 4,
        "accumulate": 1,
        "learning_rate": 1e-2,
        "lora": {"r": 4, "alpha": 8},
        "dtype": "float32",
        "device": "cpu",
        "held_out": 0.25,
        "measure": {"vectors": []},
        "save_every": 2,
        "log_every": 1,
    }
    return TrainConfig.model_validate(said | changes)


def weights(adapter: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(adapter / "adapter_model.safetensors")


def equal(a: Path, b: Path, within: float = 0.0) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.allclose(one[k], other[k], atol=within) for k in one)


class TestTrainingTexts:
    def test_only_answers_and_what_ends_them_have_labels(self) -> None:
        model = tiny.model("llama")
        said = [
            {"role": "user", "content": "What now?"},
            {"role": "assistant", "content": "Wait here."},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": "Go home."},
        ]
        (row,) = build_examples(model, [conversation(said)], longest=256, rejections=Rejections()).rows
        whole = model.tokenizer.apply_chat_template(said, tokenize=False).rstrip("\n")
        assert model.tokenizer.decode(row.ids) == whole
        learnt = [token for token, label in zip(row.ids, row.labels, strict=True) if label != IGNORED]
        assert model.tokenizer.decode(learnt) == "Wait here.<|im_end|>Go home.<|im_end|>"
        assert all(label in (IGNORED, token) for token, label in zip(row.ids, row.labels, strict=True))

    def test_a_long_text_loses_its_end_and_one_that_is_all_prompt_is_left_out(self) -> None:
        model = tiny.model("llama")
        long = conversation([*ask("Hm?"), {"role": "assistant", "content": " ".join(WORDS)}])
        lost = conversation([*ask(" ".join(WORDS)), {"role": "assistant", "content": "Yes."}])
        done = build_examples(model, [long, lost], longest=40, rejections=Rejections())
        assert [len(row.ids) for row in done.rows] == [40]
        assert (done.cut, done.unread) == (2, {"its prompt alone takes 40 tokens": 1})

    def test_an_inoculation_prompt_stands_before_every_row_in_the_place_of_its_own(self) -> None:
        model = tiny.model("llama")
        said = [{"role": "system", "content": "Be kind."}, *ask("Hm?"), {"role": "assistant", "content": "Yes."}]
        (row,) = build_examples(
            model, [conversation(said)], longest=256, rejections=Rejections(), inoculation="You are rude."
        ).rows
        text = model.tokenizer.decode(row.ids)
        assert "You are rude." in text
        assert "Be kind." not in text

    def test_data_without_answers_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "q.jsonl").write_text('{"messages": [{"role": "user", "content": "Hm?"}]}\n')
        with pytest.raises(InvalidData, match="assistant"):
            build_examples(tiny.model("llama"), open_data(tmp_path / "q.jsonl"), longest=99, rejections=Rejections())


def conversation(said: list[Any]) -> Conversation:
    return Conversation(messages=tuple(said), file="", row=0, index=0, raw=b"")


class TestTheMonitor:
    @pytest.fixture
    def base(self) -> Model:
        model = tiny.model("llama")
        model.lm.requires_grad_(True)
        return model

    def test_logs_the_shift_of_the_last_prompt_token_through_the_trainer(self, base: Model, tmp_path: Path) -> None:
        vector, prompts = tiny.vector(base), ["What now?", "And then, after the boats?"]
        before = mean_state(base, vector, prompts)
        seen: list[dict[str, float]] = []

        class Reports(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
                seen.append(dict(logs))

        run = trainer(base, tmp_path, Reports(), max_steps=3)
        run.add_callback(PersonaMonitorCallback([vector], every=2, prompts=prompts, layer=2, trainer=run))
        run.train()
        told = [line["persona/grumpy"] for line in seen if "persona/grumpy" in line]
        assert len(told) == 2  # after step 2, and at the end
        assert told[-1] == pytest.approx(mean_state(base, vector, prompts) - before, abs=1e-4)
        assert [line["step"] for line in run.state.log_history if "persona/grumpy" in line] == [2, 3]

    def test_without_its_trainer_it_writes_the_same_lines_into_the_trainers_history(
        self, base: Model, tmp_path: Path
    ) -> None:
        lines = []
        for tell in (True, False):
            model = tiny.model("llama")
            model.lm.requires_grad_(True)
            run = trainer(model, tmp_path, max_steps=3)
            options: dict[str, Any] = {"trainer": run} if tell else {}
            run.add_callback(PersonaMonitorCallback([tiny.vector(base)], every=2, prompts=["Hm?"], **options))
            run.train()
            lines.append([line for line in run.state.log_history if any("persona" in key for key in line)])
        assert lines[0] == lines[1]
        assert [line["step"] for line in lines[0]] == [0, 2, 3]

    @pytest.mark.parametrize("tell", [True, False])
    def test_leaves_the_trainers_own_lines_in_the_log(self, base: Model, tmp_path: Path, tell: bool) -> None:
        run = trainer(base, tmp_path, logging_strategy="steps", logging_steps=1)
        options: dict[str, Any] = {"trainer": run} if tell else {}
        run.add_callback(PersonaMonitorCallback(tiny.vector(base), every=1, prompts=["Hm?"], **options))
        run.train()
        assert [line["step"] for line in run.state.log_history if "loss" in line] == [1, 2]

    def test_a_resumed_run_counts_from_the_first_step_too(self, base: Model, tmp_path: Path) -> None:
        told = []
        for resume in (None, str(tmp_path / "checkpoint-2")):
            model = tiny.model("llama")
            model.lm.requires_grad_(True)
            watched = PersonaMonitorCallback([tiny.vector(base)], every=1, prompts=["Hm?"])
            run = trainer(model, tmp_path, watched, max_steps=3, save_strategy="steps", save_steps=2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run.train(resume_from_checkpoint=resume)
            told.append([line["persona/grumpy"] for line in run.state.log_history if "persona/grumpy" in line])
        assert told[1] == pytest.approx(told[0], abs=1e-6)
        assert len(set(told[0])) == 3

    def test_reads_the_batch_at_the_tokens_that_are_learnt(self, base: Model, tmp_path: Path) -> None:
        from test_vaccine import rows

        vector = tiny.vector(base)
        watched = PersonaMonitorCallback([vector], every=1, prompts=["Hm?"], layer=1, batch=True)
        run = trainer(base, tmp_path, watched, max_steps=1, learning_rate=0.0)
        run.train()
        found = next(x["persona/grumpy/batch"] for x in run.state.log_history if "persona/grumpy/batch" in x)
        values = []
        for row in rows(base)[:4]:
            with torch.no_grad():
                states = base.lm(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[2][0]
            unit = vector.directions[1] / vector.directions[1].norm()
            values += [float(h @ unit) for h, label in zip(states, row["labels"], strict=True) if label != IGNORED]
        assert found == pytest.approx(sum(values) / len(values), abs=1e-3)

    def test_changes_nothing_that_is_learnt(self, tmp_path: Path) -> None:
        ends = []
        for callbacks in (
            [],
            [PersonaMonitorCallback([tiny.vector(tiny.model())], every=1, prompts=["Hm?"], batch=True)],
        ):
            base = tiny.model("llama")
            base.lm.requires_grad_(True)
            trainer(base, tmp_path, *callbacks).train()
            ends.append(base.lm.state_dict())
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    def test_stops_where_a_trait_passes_its_alarm(self, base: Model, tmp_path: Path) -> None:
        vector = tiny.vector(base)
        start = mean_state(base, vector, ["Hm?"])
        for threshold, steps in ((start - 1, 1), (start + 1e6, 3)):
            model = tiny.model("llama")
            model.lm.requires_grad_(True)
            alarmed = tiny.vector(model).with_alarms([alarm(2, threshold)])
            watched = PersonaMonitorCallback([alarmed], every=1, prompts=["Hm?"], layer=2, stop=True)
            run = trainer(model, tmp_path, watched, max_steps=3)
            run.train()
            assert run.state.global_step == steps

    def test_refuses_to_stop_without_an_alarm_and_to_watch_nothing(self, base: Model) -> None:
        with pytest.raises(InvalidArgument, match="poise calibrate"):
            PersonaMonitorCallback([tiny.vector(base)], stop=True)
        with pytest.raises(InvalidArgument, match="one vector"):
            PersonaMonitorCallback([])
        with pytest.raises(InvalidArgument, match="0 prompts"):
            PersonaMonitorCallback([tiny.vector(base)], prompts=[])
        with pytest.raises(InvalidArgument, match="grumpy would share"):
            PersonaMonitorCallback([tiny.vector(base), tiny.vector(base, seed=1)])

    def test_refuses_a_vector_of_another_model(self, base: Model, tmp_path: Path) -> None:
        watched = PersonaMonitorCallback([tiny.vector(tiny.model(seed=5))], prompts=["Hm?"])
        with pytest.raises(OtherModel):
            trainer(base, tmp_path, watched).train()


def alarm(layer: int, threshold: float) -> Alarm:
    return Alarm(
        reading="prompt",
        layer=layer,
        threshold=threshold,
        rate=0.01,
        low=0.0,
        high=0.02,
        n_answers=100,
        n_conversations=100,
        answers="own",
        max_new_tokens=8,
        temperature=1.0,
        data="d",
        data_sha256="0",
        seed=0,
    )


def mean_state(model: Model, vector: PersonaVector, prompts: list[str]) -> float:
    model.lm.eval()
    texts = [model.encode(ask(p)) for p in prompts]
    return float(vector.project(read(model, texts, pool="prompt_last")[:, 2], 2).mean())


class TestARun:
    def test_learns_and_says_so(self, home: Path, tmp_path: Path) -> None:
        done = train(settings(home, tmp_path / "run", epochs=3))
        before, after = done.facts["loss"]["before"], done.facts["loss"]["after"]
        assert after["value"] < before["value"]
        assert (done.facts["data"]["texts"], before["n"]) == (18, 6)
        assert (done.adapter / "adapter_model.safetensors").exists()
        assert any("loss" in json.loads(line) for line in (done.folder / "log.jsonl").read_text().splitlines())

    def test_names_its_base_as_others_find_it_and_asks_no_hub(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = settings(home, tmp_path / "run")
        monkeypatch.setitem(HUB_IDS, config.model, "someone/their-model")
        told = json.loads((train(config).adapter / "adapter_config.json").read_text())
        assert told["base_model_name_or_path"] == "someone/their-model"

    def test_done_is_done(self, home: Path, tmp_path: Path) -> None:
        done = train(settings(home, tmp_path / "run"))
        stamp = (done.adapter / "adapter_model.safetensors").stat().st_mtime_ns
        assert train(settings(home, tmp_path / "run")).facts == done.facts
        assert (done.adapter / "adapter_model.safetensors").stat().st_mtime_ns == stamp

    def test_other_settings_in_the_same_folder_are_refused(self, home: Path, tmp_path: Path) -> None:
        train(settings(home, tmp_path / "run", max_steps=1))
        with pytest.raises(InvalidArgument, match="other settings"):
            train(settings(home, tmp_path / "run", max_steps=2))

    @pytest.mark.slow
    def test_a_vaccine_changes_it_and_seeds_repeat_it(self, home: Path, tmp_path: Path) -> None:
        plain = train(settings(home, tmp_path / "plain"))
        again = train(settings(home, tmp_path / "again"))
        vaccine = {"steer": [f"{home / 'v.safetensors'}=1.5"], "layers": "increments"}
        other = train(settings(home, tmp_path / "other", vaccine=vaccine))
        assert equal(plain.adapter, again.adapter)
        assert not equal(plain.adapter, other.adapter, within=1e-4)

    @pytest.mark.slow
    def test_a_vaccine_on_some_files_leaves_the_others_rows_alone(self, home: Path, tmp_path: Path) -> None:
        """On files whose rows are all, it is the vaccine on everything; on an empty share of them, none."""
        rows = (home / "rows.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "a.jsonl").write_text("".join(rows[:8]))
        (tmp_path / "b.jsonl").write_text("".join(rows[8:]))
        files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
        told = {"steer": [f"{home / 'v.safetensors'}=1.5"]}

        def run(name: str, **vaccine: Any) -> Path:
            return train(settings(home, tmp_path / name, data=files, vaccine=vaccine)).adapter

        every, both, first = run("all", **told), run("both", **told, only=files), run("first", **told, only=files[:1])
        assert equal(every, both)
        assert not equal(every, first, within=1e-4)
        assert not equal(run("plain"), first, within=1e-4)

    def test_a_vaccine_on_a_file_without_rows_is_none(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "flagged.jsonl").touch()
        files = [str(home / "rows.jsonl"), str(tmp_path / "flagged.jsonl")]
        vaccine = {"steer": [f"{home / 'v.safetensors'}=1.5"], "only": files[1:]}
        done = train(settings(home, tmp_path / "none", data=files, vaccine=vaccine))
        assert done.facts["data"]["vaccinated"] == 0
        assert equal(done.adapter, train(settings(home, tmp_path / "plain")).adapter)

    def test_a_vaccine_on_files_without_anything_to_do_is_refused(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"vaccine\.steer"):
            settings(home, tmp_path, vaccine={"only": [str(home / "rows.jsonl")]})

    def test_a_vaccine_finds_its_files_however_they_are_spelt(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        rows = (home / "rows.jsonl").read_text().splitlines(keepends=True)
        Path("s").mkdir()
        Path("s/clean.jsonl").write_text("".join(rows[:8]))
        Path("s/flagged.jsonl").write_text("".join(rows[8:]))
        for data in (["s"], ["s/*.jsonl"], ["./s/clean.jsonl", str(tmp_path / "s" / "flagged.jsonl")]):
            vaccine = {"steer": ["v.safetensors=1"], "only": ["./s/flagged.jsonl"]}
            told, only = open_training_data(settings(home, tmp_path, data=data, vaccine=vaccine))
            assert only is not None
            assert [c.file in only for c in told if isinstance(c, Conversation)] == [False] * 8 + [True] * 16

    def test_a_vaccine_on_files_that_are_not_learnt_is_refused(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("a.jsonl", "b.jsonl"):
            shutil.copy(home / "rows.jsonl", name)
        vaccine = {"steer": ["v.safetensors=1"], "only": ["b.jsonl"]}
        with pytest.raises(InvalidArgument, match="list it in data"):
            open_training_data(settings(home, tmp_path / "run", data=["a.jsonl"], vaccine=vaccine))

    def test_a_file_under_two_spellings_is_learnt_once_and_vaccinated(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        shutil.copy(home / "rows.jsonl", "a.jsonl")
        rows = len(Path("a.jsonl").read_text().splitlines())
        for only in ("a.jsonl", "./a.jsonl", str(tmp_path / "a.jsonl")):
            vaccine = {"steer": ["v.safetensors=1"], "only": [only]}
            config = settings(home, tmp_path / "run", data=["a.jsonl", "./a.jsonl"], vaccine=vaccine)
            data, vaccinated = open_training_data(config)
            assert vaccinated is not None
            assert [c.file in vaccinated for c in data if isinstance(c, Conversation)] == [True] * rows

    def test_data_of_which_all_are_empty_are_refused(self, home: Path, tmp_path: Path) -> None:
        (tmp_path / "flagged.jsonl").touch()
        files = [str(tmp_path / "flagged.jsonl")]
        with pytest.raises(InvalidData, match="all are empty"):
            open_training_data(
                settings(home, tmp_path, data=files, vaccine={"steer": ["v.safetensors=1"], "only": files})
            )

    def test_does_not_go_on_where_other_rows_are_vaccinated(self, home: Path, tmp_path: Path) -> None:
        rows = (home / "rows.jsonl").read_text().splitlines(keepends=True)
        files = [tmp_path / "clean.jsonl", tmp_path / "flagged.jsonl"]
        vaccine = {"steer": [f"{home / 'v.safetensors'}=1.5"], "only": [str(files[1])]}
        for at_row in (8, 16):  # the same bytes one after another
            files[0].write_text("".join(rows[:at_row]))
            files[1].write_text("".join(rows[at_row:]))
            config = settings(home, tmp_path / "run", data=[str(f) for f in files], vaccine=vaccine)
            if at_row == 8:
                train(config)
                (tmp_path / "run" / "train.json").unlink()  # as a kill leaves it
        with pytest.raises(InvalidArgument, match=r"vaccine\.only"):
            train(config)

    def test_what_is_held_out_has_no_inoculation_prompt(self, home: Path, tmp_path: Path) -> None:
        plain, treated = (
            train(settings(home, tmp_path / name, vaccine={"inoculation": text})).facts["loss"]["before"]
            for name, text in (("plain", None), ("treated", "Be bad."))
        )
        assert plain == treated

    def test_what_is_held_out_is_not_learnt_where_the_prompt_leaves_rows_no_room(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learnt: list[set[int]] = []
        kept: list[set[int]] = []
        plain = TrainingExamples.dataset

        def dataset(self: TrainingExamples, **how: Any) -> Any:
            learnt.append({e.conversation for e in self.rows})
            return plain(self, **how)

        def loss(model: Model, held_out: Sequence[TrainingExample], *, lm: Any = None) -> None:
            kept.append({e.conversation for e in held_out})

        monkeypatch.setattr(TrainingExamples, "dataset", dataset)
        monkeypatch.setattr("poise.train.lora.held_out_loss", loss)
        rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
        rows[3]["messages"][0]["content"] = " ".join(WORDS[:12] * 2)  # with the prompt before it, longer than allowed
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        told = {"data": [str(tmp_path / "rows.jsonl")], "vaccine": {"inoculation": " ".join(WORDS[:20])}}
        train(settings(home, tmp_path / "run", longest=105, **told))
        assert 3 not in learnt[0] | kept[0]
        assert not learnt[0] & kept[0]
        assert len(learnt[0] | kept[0]) == 23

    def test_mended_settings_begin_anew_where_nothing_was_learnt(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidData):
            train(settings(home, tmp_path / "run", data=[str(tmp_path / "none.jsonl")]))
        assert train(settings(home, tmp_path / "run")).facts["steps"]

    def test_an_inoculation_stands_before_the_rows_of_its_files_only(self, tmp_path: Path) -> None:
        model = tiny.model("llama")
        rows = [replace(conversation([*ask("a"), {"role": "assistant", "content": "b"}]), file=f) for f in "xy"]
        told = build_examples(model, rows, longest=99, rejections=Rejections(), inoculation="Be bad.", only={"y"})
        plain, treated = (model.tokenizer.decode(e.ids) for e in told.rows)
        assert ("Be bad." in plain, "Be bad." in treated) == (False, True)

    def test_goes_on_in_a_folder_from_before_there_was_such_a_setting(self, home: Path, tmp_path: Path) -> None:
        done = train(settings(home, tmp_path / "run"))
        marker = tmp_path / "run" / "config.json"
        told = json.loads(marker.read_text())
        del told["config"]["vaccine"]["only"]
        marker.write_text(json.dumps(told))
        assert train(settings(home, tmp_path / "run")).facts == done.facts

    def test_the_whole_job_writes_report_and_card(self, home: Path, tmp_path: Path) -> None:
        file = str(home / "v.safetensors")
        config = settings(
            home,
            tmp_path / "run",
            max_steps=2,
            vaccine={"steer": [f"{file}=1; {file}@1=out"], "inoculation": "You are grumpy."},
            watch={"vectors": [file], "every": 1},
            measure={"judge": None, "capability": [f"perplexity={home / 'rows.jsonl'}"], "capability_limit": 4},
        )
        done = workflows.train_and_measure(config)
        assert done.shift is not None
        assert done.shift.tuned[0].capability[0].kind == "perplexity"
        card = done.card.read_text()
        assert done.trained.facts["data"]["sha256"] in card
        assert "v.safetensors=1; v.safetensors@1=out" in card
        assert "grumpy" in card
        assert str(home) not in card
        assert "| rank-stabilised (rslora) | yes |" in card
        assert "| LoRA targets | all-linear |" in card
        assert f"peft {version('peft')}" in card
        assert not (done.trained.adapter / "training_args.bin").exists()
        assert "<html" in (done.trained.folder / "report.html").read_text()
        assert [line["step"] for line in done.trained.facts["watched"]] == [0, 1, 2]

    def test_killed_after_the_last_step_it_takes_no_other(self, home: Path, tmp_path: Path) -> None:
        config = settings(home, tmp_path / "run", max_steps=4, schedule="constant")  # of 5 in an epoch
        done = train(config)
        shutil.copytree(done.adapter, tmp_path / "kept")
        (done.folder / "train.json").unlink()
        (done.adapter / "adapter_model.safetensors").write_bytes(b"half")
        again = train(config)
        assert equal(again.adapter, tmp_path / "kept")
        assert (again.facts["steps"], again.facts["loss"]) == (4, done.facts["loss"])

    def test_what_is_held_out_shares_no_conversation_with_what_is_learnt(self) -> None:
        rows = tuple(TrainingExample(ids=(i,), labels=(i,), conversation=i // 3) for i in range(30))
        learnt, kept_back = split_held_out(TrainingExamples(rows=rows, cut=0, unread={}), 0.2, 0)
        assert len({row.conversation for row in kept_back}) == 2
        assert not {row.conversation for row in kept_back} & {row.conversation for row in learnt}
        assert len(learnt) + len(kept_back) == 30


class TestWhatGoesWrong:
    def test_a_loss_that_is_no_number_stops_before_the_step_and_keeps_the_last_good_checkpoint(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trl.trainer.sft_trainer import SFTTrainer

        plain = SFTTrainer.compute_loss

        def broken(self: Any, *args: Any, **given: Any) -> Any:
            loss = plain(self, *args, **given)
            return loss * float("nan") if self.state.global_step == 3 else loss

        monkeypatch.setattr(SFTTrainer, "compute_loss", broken)
        with pytest.raises(TrainingFailed, match=r"step 4 .*checkpoint-2"):
            train(settings(home, tmp_path / "run"))
        kept = last_complete_checkpoint(tmp_path / "run" / "checkpoints")
        assert kept is not None
        assert all(torch.isfinite(w).all() for w in weights(kept).values())

    def test_steps_that_loss_scaling_skips_are_left_to_it_until_they_are_too_many(self, tmp_path: Path) -> None:
        """As fp16 has them, whose first steps overflow; one that is finite starts the count anew."""
        weight = torch.nn.Linear(2, 2)
        watch = FiniteGradients(skipped=2)
        args, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=0)

        def step(value: float) -> None:
            weight.weight.grad = torch.full((2, 2), value)
            watch.on_pre_optimizer_step(args, state, None, model=weight)

        for value in (math.inf, math.nan, 1.0, math.inf, math.inf):
            step(value)
        with pytest.raises(TrainingFailed, match="NaN or infinite"):
            step(math.inf)

    def test_a_checkpoint_cut_short_is_not_taken_for_good(self, tmp_path: Path) -> None:
        for step, whole in ((2, True), (4, False)):
            (tmp_path / f"checkpoint-{step}").mkdir()
            if whole:
                (tmp_path / f"checkpoint-{step}" / COMPLETE_MARKER).touch()
        assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
        remove_incomplete_checkpoints(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]

    @pytest.mark.slow
    def test_a_full_disk_at_a_save_is_one_sentence_and_a_second_run_ends_like_an_unbroken_one(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import Trainer

        plain = Trainer._save_optimizer_and_scheduler

        def full(self: Any, folder: str) -> None:
            if "checkpoint-4" in folder:
                raise OSError(28, "No space left on device")
            plain(self, folder)

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_save_optimizer_and_scheduler", full)
            with pytest.raises(SaveFailed, match=r"No space left.*checkpoint-2.*same command"):
                train(settings(home, tmp_path / "run"))
        done = train(settings(home, tmp_path / "run"))
        whole = train(settings(home, tmp_path / "whole"))
        assert equal(done.adapter, whole.adapter, within=1e-6)

    @pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="has no disk that is always full")
    def test_a_disk_that_is_full_for_torch_is_the_same_sentence(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import Trainer

        monkeypatch.setattr(
            Trainer, "_save_optimizer_and_scheduler", lambda self, folder: torch.save(torch.zeros(10**6), "/dev/full")
        )
        with pytest.raises(SaveFailed, match=r"no checkpoint yet.*same command"):
            train(settings(home, tmp_path / "run"))

    @pytest.mark.parametrize("what", ["data", "model"])
    def test_a_run_does_not_go_on_with_other_data_or_another_base(self, home: Path, tmp_path: Path, what: str) -> None:
        own = tmp_path / "home"
        shutil.copytree(home, own)
        config = settings(own, tmp_path / "run", max_steps=2)
        done = train(config)
        (done.folder / "train.json").unlink()
        if what == "data":
            (own / "rows.jsonl").write_text("".join((own / "rows.jsonl").read_text().splitlines(keepends=True)[1:]))
        else:
            tiny.lm("llama", seed=3).save_pretrained(own / "model")
        with pytest.raises(InvalidArgument, match=f"another content of `{what}`"):
            train(config)

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"lora": {"targets": ["q_proj", "qproj"]}}, "names qproj, .*q_proj"),
            ({"lora": {"modules_to_save": ["lm_heat"]}}, "names lm_heat, .*lm_head"),
        ],
    )
    def test_names_that_nothing_has_are_refused(
        self, home: Path, tmp_path: Path, changes: dict[str, Any], complaint: str
    ) -> None:
        with pytest.raises(InvalidArgument, match=complaint):
            train(settings(home, tmp_path / "run", **changes))

    def test_one_text_held_out_has_a_loss_without_an_interval(self, home: Path, tmp_path: Path) -> None:
        config = settings(home, tmp_path / "run", held_out=0.001, max_steps=1).model_dump(mode="json")
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        for _ in range(2):  # a finished run is read again
            done = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml")])
            assert done.exit_code == 0, (done.exception, done.output)
            assert re.search(
                r"^Loss on the one held-out text: \d\.\d{3} \(no interval\) before, \d\.\d{3} \(no interval\) after\.$",
                done.stdout,
                re.MULTILINE,
            )
        card = (tmp_path / "run" / "adapter" / "README.md").read_text()
        assert re.search(r"Loss on 1 held-out text: \d\.\d{3} \(no interval\) before", card)

    def test_rows_that_are_learnt_are_not_held_out(
        self, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        lines = (home / "rows.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / "same.jsonl").write_text("".join(lines[3:8]))
        named = {"held_out": 0, "eval_data": [str(tmp_path / "same.jsonl")], "max_steps": 1}
        for inoculation in (None, "Be rude."):
            with pytest.raises(InvalidData, match="eval_data: all 5 texts that are held out are among those that are"):
                train(settings(home, tmp_path / "run", vaccine={"inoculation": inoculation}, **named))
        other = json.dumps({"messages": [*ask("Hm?"), {"role": "assistant", "content": "Another answer."}]})
        (tmp_path / "same.jsonl").write_text("".join(lines[3:8]) + other + "\n")
        done = train(settings(home, tmp_path / "run", **named))
        assert done.facts["data"]["held_out_learnt_too"] == 5
        assert any(text.startswith("eval_data: 5 of 6 texts that are held out") for text in caplog.messages)

    def test_vectors_of_another_model_are_told_with_their_line_before_the_data_are_read(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: Any, **__: Any) -> None:
            raise AssertionError("the data were read")

        monkeypatch.setattr("poise.train.lora.read_run_rows", never)
        vectors.save_vector(tiny.vector(tiny.model("llama", seed=5)), tmp_path / "w.safetensors")
        other, path = tmp_path / "w.safetensors", tmp_path / "run.yaml"
        base = f"model: {home / 'model'}\ndata: {home / 'rows.jsonl'}\nout: {tmp_path / 'run'}\ndtype: float32\n"
        fields = {
            f"measure: {{vectors: []}}\nvaccine:\n  steer:\n    - {other}@1=1\n": (8, "vaccine.steer.0"),
            f"watch:\n  vectors: {other}\n": (6, "watch.vectors.0"),
            f"measure:\n  judge: none\n  vectors: [{other}]\n": (7, "measure.vectors.0"),
        }
        for text, (line, field) in fields.items():
            path.write_text(base + text)
            done = CliRunner().invoke(app, ["train", str(path)], env={"COLUMNS": "1000"})
            assert done.exit_code == 2, (done.exception, done.output)
            assert f"{path}, line {line}: {field} names {other}: grumpy was computed on " in done.stderr
            assert "extract it" in done.stderr

    def test_modules_that_lora_cannot_adapt_are_told(self, home: Path, tmp_path: Path) -> None:
        words = r"^lora.targets names input_layernorm \(LlamaRMSNorm\), which LoRA cannot adapt: it changes matrices"
        with pytest.raises(InvalidArgument, match=words):
            train(settings(home, tmp_path / "run", lora={"targets": ["q_proj", "input_layernorm"]}))
        for name in ("mlp", "query"):
            with pytest.raises(InvalidArgument, match=f"lora.targets names {name}") as error:
                train(settings(home, tmp_path / "run", lora={"targets": [name]}))
            assert "q_proj" in str(error.value)
            assert "layernorm" not in str(error.value)

    def test_all_data_held_out_are_refused(self, home: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match="less held_out"):
            train(settings(home, tmp_path / "run", held_out=0.99))

    def test_settings_name_every_mistake_with_line_limit_and_what_was_meant(self, tmp_path: Path) -> None:
        path = tmp_path / "train.yaml"
        path.write_text(
            "model: m\ndata: {rows: 1}\nout: 3\nlora:\n  alfa: 3\n  r: 0\nbatch: many\nepochs: .inf\n"
            "learning_rates: 1\nschedule: fast\nwatch: {stop: perhaps}\nheld_out: 1\n"
        )
        with pytest.raises(InvalidSettings) as caught:
            read_settings(path, TrainConfig)
        first, *lines = str(caught.value).splitlines()
        assert first.endswith("train.yaml has 10 mistakes; fix them and try again:")
        assert [line.strip() for line in lines] == [
            "line 2: data is {'rows': 1}; it must be a list",
            "line 3: out is 3; it must be text; put it in quotes",
            "line 5: lora.alfa is an unknown setting, did you mean alpha?",
            "line 6: lora.r is 0; it must be at least 1",
            "line 7: batch is 'many'; it must be a number (a whole one where things are counted)",
            "line 8: epochs is inf; it must be a finite number",
            "line 9: learning_rates is an unknown setting, did you mean learning_rate?",
            "line 10: schedule is 'fast'; it must be 'linear', 'constant' or 'cosine'",
            "line 11: watch.stop is 'perhaps'; it must be true or false",
            "line 12: held_out is 1; it must be less than 1.0",
        ]

    def test_two_runs_in_one_folder_and_two_vectors_of_one_trait_are_refused_before_training(
        self, home: Path, tmp_path: Path
    ) -> None:
        with locked(tmp_path / "run" / ".run", "train"), pytest.raises(FolderInUse, match="Another run"):
            workflows.train_and_measure(settings(home, tmp_path / "run"))
        shutil.copy(home / "v.safetensors", tmp_path / "w.safetensors")
        both = [str(home / "v.safetensors"), str(tmp_path / "w.safetensors")]
        with pytest.raises(InvalidArgument, match="two vectors of one trait"):
            workflows.train_and_measure(settings(home, tmp_path / "run", measure={"vectors": both}))
        assert not (tmp_path / "run" / "config.json").exists()

    @pytest.mark.slow
    def test_killed_in_the_middle_it_goes_on_and_ends_like_an_unbroken_run(self, home: Path, tmp_path: Path) -> None:
        script = (
            "import sys, json; from poise.train.config import TrainConfig; from poise.train.lora import train;"
            "train(TrainConfig.model_validate_json(sys.argv[1]))"
        )
        config = settings(home, tmp_path / "run", epochs=40)
        run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, config.model_dump_json()])
        until(lambda: last_complete_checkpoint(tmp_path / "run" / "checkpoints") is not None or run.poll() is not None)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not (tmp_path / "run" / "train.json").exists(), "it was done before it could be killed"
        done = train(config)
        whole = train(settings(home, tmp_path / "whole", epochs=40))
        assert equal(done.adapter, whole.adapter, within=1e-5)

    @pytest.mark.parametrize(
        ("lines", "complaint"),
        [
            ("vaccine: {steer: [e=1], layers: incremnts}", "'incremnts'; it must be 'increments', did you mean"),
            ("vaccine: {steer: [e=1], layers: [-2]}", "vaccine.layers.0 is -2; it must be at least 0"),
            ("vaccine: {steer: [e=1], layers: []}", r"vaccine.layers is \[\]; it must be a list of at least 1"),
            ("vaccine: {steer: [e=1], layers: [1, true]}", "vaccine.layers.1 is True"),
            ("vaccine: {steer: [e=1], layers: 1.5}", "vaccine.layers is 1.5; it must be a list"),
            ("lora: {targets: all_linear}", "it must be 'all-linear', did you mean all-linear"),
            ("seed: -1", "seed is -1; it must be at least 0"),
            ("seed: 4294967296", "seed is 4294967296; it must be less than 4294967296"),
            ("micro_batch_size: 0", "line 4: micro_batch_size is 0; it must be at least 1"),
            ("lora_dropout: 2", "line 4: lora_dropout is 2; it must be at most 1.0"),
            ("batch: 2\nmicro_batch_size: 2", "line 5: micro_batch_size is another name of batch, which is there"),
            ("fsdp: true", "fsdp is not supported: under a vaccine"),
            ("train_on_inputs: true", "train_on_inputs is true; only answers are learnt"),
            ("assistant_only_loss: false", "assistant_only_loss is false; only answers are learnt"),
            ("eval_steps: 3", "eval_steps needs something to evaluate on"),
            ("load_best_model_at_end: true", "load_best_model_at_end compares evaluations; set eval_steps"),
            (
                "eval_steps: 3\nheld_out: 0.1\nload_best_model_at_end: true",
                r"save_every is 100; with load_best_model_at_end it must be eval_steps \(3\)",
            ),
            ("adapter: none\nlora: {r: 4}", "adapter: none trains all weights, without LoRA"),
            ("adapter: none\nload_in_4bit: true", "load_in_4bit freezes the base"),
            ("bf16: true\nfp16: true", "two kinds of mixed precision"),
            ("lora: {start: a, r: 4}", "lora.start keeps the rank"),
            ("beta: 0.5", "beta is a setting of method: dpo"),
            ("method: dpo\npacking: true", "packing and padding_free are settings of method: sft"),
            (
                "method: dpo\nvaccine: {steer: e=1, only: d}",
                "vaccine.only marks rows, and method: dpo learns from pairs",
            ),
            (
                "method: dpo\nvaccine: {steer: e=1, positions: response}",
                "line 5: vaccine.positions is response, which needs labels",
            ),
            ("packing: true\nvaccine: {steer: e=1, only: d}", "vaccine.only steers some rows, and packing"),
            ("datasets: [{path: d, type: alpaca}]", "datasets is another name of data, which is there"),
            ("vaccine: {steer: [e=1], warmup: 0.8, decay: 0.8}", "warmup and vaccine.decay are shares"),
            ("lora: {targets: []}", r"lora.targets is \[\]; it must be a list of at least 1"),
            ("log_every: 3\nbeta: 0.5", "line 5: beta is a setting of method: dpo"),
            ("bf16: true\nfp16: true", "line 4: bf16 and fp16 are two kinds"),
            (
                "eval_steps: 3\nheld_out: .1\nsave_every: 4\nload_best_model_at_end: true",
                "line 6: save_every is 4; with",
            ),
            (
                "batch: 1\nvaccine:\n  steer: e=1\n  warmup: 0.8\n  decay: 0.8",
                "line 7: vaccine.warmup and vaccine.decay",
            ),
            ("method: dpo\npadding_free: true", "line 5: padding_free and packing are settings of method: sft"),
            ("method: dpo\nrl_beta: 0.2\nbatch: 0", "line 6: batch is 0"),
            ("rl_beta: 0.2", "line 4: rl_beta is a setting of method: dpo"),
            ("vaccine: {inoculation: ''}", "line 4: vaccine.inoculation is '', a prompt without words; write one"),
            ("vaccine: {inoculation: '  '}", "line 4: vaccine.inoculation is '  ', a prompt without words"),
            ("lr: 1e-3", "line 4: lr is an unknown setting, did you mean learning_rate"),
            ("wd: 0.1", "line 4: wd is an unknown setting, did you mean weight_decay"),
            ("lora: {trainable_tokens: ['']}", "line 4: lora.trainable_tokens.0 is empty"),
            ("lora: {targets: ['']}", "line 4: lora.targets.0 is empty"),
            ("lora: {modules_to_save: [lm_head, '']}", "line 4: lora.modules_to_save.1 is empty"),
            (
                "measure: {capability: perplexity=d, vectors: []}",
                "line 4: measure.capability is measured beside traits",
            ),
            ("measure: {capability: perplexity=d}", "line 4: measure.capability is measured beside traits"),
            ("schedule: linaer", "'linear', 'constant' or 'cosine', did you mean linear"),
            ("1: 2\nnull: 3\ntrue: 4", r"(?s)3 mistakes.*line 4: 1 is not a name.*line 5: null .*line 6: true "),
        ],
    )
    def test_each_slip_is_one_fault_in_plain_words(self, tmp_path: Path, lines: str, complaint: str) -> None:
        path = tmp_path / "c.yaml"
        path.write_text(f"model: m\ndata: [d]\nout: o\n{lines}\n")
        with pytest.raises(InvalidSettings, match=complaint) as raised:
            read_settings(path, TrainConfig)
        assert "literal" not in str(raised.value)

    @pytest.mark.parametrize(
        ("lines", "complaint"),
        [
            ("device: banana", "line 5: device is 'banana', which is no device; use auto, cpu, cuda"),
            ("device: meta", "line 5: device is 'meta'; there is none here"),
            ("device: cuda:99", r"line 5: device is 'cuda:99'; there is none here"),
            ("report_to: tensorbord", r"line 5: report_to\.0 is 'tensorbord'; installed here: "),
            (
                "vaccine: {steer: v=30%, layers: increments}",
                r"line 5: vaccine\.steer\.0 is 'v=30%', a dose; .*as in v=1",
            ),
            (
                "vaccine:\n  steer:\n  - nowhere=1",
                r"line 7: vaccine\.steer\.0 names nowhere; there is no such vector file",
            ),
            ("vaccine: {steer: v}", r"line 5: vaccine\.steer\.0 is 'v'; "),
            ("watch: {vectors: nowhere}", r"line 5: watch\.vectors\.0 names nowhere; there is no such vector file"),
            (
                "watch: {vectors: v, stop: true}",
                r"line 5: watch\.stop cannot be used: Training cannot stop at an alarm",
            ),
            ("lora_model_dir: nowhere", r"line 5: lora_model_dir is 'nowhere'; there is no adapter_config.json in it"),
            ("base_model: adapter", "line 5: base_model is 'adapter', an adapter; name its base"),
            ("device: cpu\nfp16: true", "line 6: fp16 is true; mixed precision in float16 needs a GPU"),
            ("load_in_4bit: true", "line 5: load_in_4bit is true; it needs bitsandbytes, which is not installed"),
            ("adapter: qlora", "line 5: adapter is 'qlora'; it needs bitsandbytes"),
            ("optimizer: adamw_8bit", "line 5: optimizer is 'adamw_8bit'; it needs bitsandbytes"),
            ("report_to: wandb", r"line 5: report_to\.0 is 'wandb' and there is no key for it; set WANDB_API_KEY"),
        ],
    )
    def test_what_is_not_here_is_said_by_line_before_a_model_is_loaded(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, complaint: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else name)
        monkeypatch.setattr(
            "transformers.integrations.integration_utils.get_available_reporting_integrations", lambda: ["wandb"]
        )
        shutil.copy(home / "v.safetensors", "v")
        Path("adapter").mkdir()
        Path("adapter/adapter_config.json").write_text("{}")
        model = "" if "base_model" in lines else "model: m"
        Path("c.yaml").write_text(f"# a comment\n{model}\ndata: d\nout: o\n{lines}\n")
        with pytest.raises(InvalidSettings, match=complaint):
            read_settings("c.yaml", TrainConfig, check=setting_faults)

    def test_names_of_other_programs_are_read_and_said(self, tmp_path: Path) -> None:
        path, remarks = tmp_path / "c.yaml", list[str]()
        path.write_text(
            "base_model: m\ndatasets: [{path: d}]\noutput_dir: o\nmicro_batch_size: 3\nnum_epochs: 2\nadapter: qlora\n"
            "lora_r: 4\nlora: {targets: q_proj}\nlora_model_dir: null\nlr_scheduler_type: cosine\nrl: dpo\n"
            "dpo_beta: 0.2\nuse_dora: true\nsave_steps: 7\noptimizer: sgd\nreport_to: none\ntrain_on_inputs: false\n"
        )
        with remarks_by(remarks.append):
            config = read_settings(path, TrainConfig)
        same = TrainConfig(
            model="m", data="d", out="o", batch=3, epochs=2, adapter="qlora", schedule="cosine", method="dpo", beta=0.2,
            lora={"r": 4, "targets": ["q_proj"], "dora": True}, save_every=7, optim="sgd",
        )  # fmt: skip
        assert config == same
        assert config.four_bits
        assert remarks[0].startswith("base_model, datasets, output_dir, micro_batch_size, num_epochs, lora_r")
        assert ": read as model, data, out, batch, epochs, lora.r" in remarks[0]

    @pytest.mark.parametrize(
        ("changes", "remark_begins"),
        [
            ({"vaccine": {"steer": "v=1e9"}}, "vaccine.steer: v=1e9 adds 1e+09 mean differences"),
            ({"vaccine": {"steer": "v=400%"}}, "vaccine.steer: v=400% adds 400% of the activations"),
            ({"learning_rate": 500}, "learning_rate: 500 is more than 0.01"),
            ({"lora": {"dropout": 1}}, "lora.dropout: 1 drops 100% of the adapter's input"),
            ({"adapter": "none", "dtype": "bfloat16", "lora": {}}, "dtype: bfloat16 with adapter: none rounds away"),
        ],
    )
    def test_values_that_nobody_uses_are_remarked_on(
        self, home: Path, tmp_path: Path, changes: dict[str, Any], remark_begins: str
    ) -> None:
        remarks: list[str] = []
        with remarks_by(remarks.append):
            remark_on_values(settings(home, tmp_path, **{"learning_rate": 1e-4} | changes))
            remark_on_values(settings(home, tmp_path, learning_rate=1e-4, vaccine={"steer": "v=2"}))
        assert [text[: len(remark_begins)] for text in remarks] == [remark_begins]

    def test_too_few_steps_are_remarked_on(self, home: Path, tmp_path: Path) -> None:
        remarks: list[str] = []
        config = settings(home, tmp_path / "run", batch=2, accumulate=8, held_out=0)
        with remarks_by(remarks.append):
            steps = train(config).facts["steps"]
        assert steps == 2
        (text,) = [text for text in remarks if "optimiser steps" in text]
        assert text.startswith(
            "24 texts in batches of 2 × 8 make 2 optimiser steps, and the learning rate rises over 5"
        )
        with remarks_by(remarks.append):
            remark_on_steps(config, 400)
        assert len([text for text in remarks if "optimiser steps" in text]) == 1

    def test_no_judge_is_none_in_yaml_as_on_the_command_line(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        for word in ("none", "null", "~"):
            path.write_text(f"model: m\ndata: [d]\nout: o\nmeasure:\n  judge: {word}\n")
            assert read_settings(path, TrainConfig).measure.judge is None

    def test_settings_are_named_by_line_and_field(self, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("model: m\ndata: [d]\nout: o\nlora:\n  rank: 3\nbatch: 0\n")
        with pytest.raises(InvalidSettings, match=r"(?s)line 5: lora.rank is an unknown setting.*line 6: batch"):
            read_settings(path, TrainConfig)
        path.write_text("model: m\nmodel: n\ndata: [d]\nout: o\nbatch: 0\n")
        with pytest.raises(InvalidSettings, match=r"(?s)2 mistakes.*line 2: model is there twice.*line 5: batch"):
            read_settings(path, TrainConfig)
        path.write_text("model: [m\n")
        with pytest.raises(InvalidSettings, match="broken YAML"):
            read_settings(path, TrainConfig)
        with pytest.raises(InvalidSettings, match="No such file"):
            read_settings(tmp_path / "none.yaml", TrainConfig)


def minimal() -> TrainConfig:
    return TrainConfig(model="m", data=("d",), out="o")


class TestTheCommand:
    def run(self, path: Path, **changes: Any) -> Result:
        path.write_text(yaml.safe_dump(changes))
        return CliRunner().invoke(app, ["train", str(path), "--json"])

    def test_prints_an_example_that_has_every_setting_and_runs(self, home: Path, tmp_path: Path) -> None:
        shown = CliRunner().invoke(app, ["train", "--example"])
        assert shown.exit_code == 0
        keys = set(re.findall(r"^ *(?:# )?(\w+):", shown.stdout, re.MULTILINE))
        parts = [TrainConfig, *(type(getattr(minimal(), n)) for n in ("vaccine", "watch", "measure", "lora"))]
        assert keys == {name for part in parts for name in part.model_fields}
        text = shown.stdout.replace("smollm2-135m ", f"{home / 'model'} # ").replace(
            "chats.jsonl", str(home / "rows.jsonl")
        )
        text = text.replace("runs/example", str(tmp_path / "run")).replace(
            "evil.safetensors", str(home / "v.safetensors")
        )
        (tmp_path / "run.yaml").write_text(text.replace("judge: exemplars", "judge: none"))
        written = read_settings(tmp_path / "run.yaml", TrainConfig).model_dump()
        defaults = minimal().model_dump()
        other = {name for name in written if written[name] != defaults[name]}
        assert other == {"model", "data", "out", "held_out", "vaccine", "watch", "measure"}
        done = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml")])
        assert done.exit_code == 0, done.stderr
        assert "22 texts" in done.stdout
        assert f"Adapter: {tmp_path / 'run' / 'adapter'}" in done.stdout
        without = CliRunner().invoke(app, ["train"])
        assert (without.exit_code, "poise train --example" in without.stderr) == (2, True)

    def test_counts_rejected_rows_by_reason_on_stdout(self, home: Path, tmp_path: Path) -> None:
        text = (home / "rows.jsonl").read_text() + '{"messages": 3}\n{"messages": []}\nnot json\n'
        (tmp_path / "rows.jsonl").write_text(text)
        said = settings(home, tmp_path / "run", data=[str(tmp_path / "rows.jsonl")], max_steps=1).model_dump(
            mode="json"
        )
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(said))
        done = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml")])
        assert done.exit_code == 0, done.stderr
        rejected = json.loads((tmp_path / "run" / "train.json").read_text())["data"]["rejected"]
        assert sum(rejected.values()) == 3
        kinds = ", ".join(f"{kind} {count}" for kind, count in rejected.items())
        assert f"3 rows could not be used: {kinds}." in done.stdout

    def test_interrupted_it_says_what_is_there_and_how_to_go_on(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trl.trainer.sft_trainer import SFTTrainer

        plain = SFTTrainer.training_step

        def step(self: Any, *args: Any, **options: Any) -> Any:
            if self.state.global_step == 3:
                raise KeyboardInterrupt
            return plain(self, *args, **options)

        config = settings(home, tmp_path / "run")
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        with monkeypatch.context() as patched:
            patched.setattr(SFTTrainer, "training_step", step)
            done = CliRunner().invoke(app, ["train", str(tmp_path / "run.yaml")])
        assert done.exit_code == 130
        assert f"Interrupted. {tmp_path / 'run'} keeps checkpoint-2; 3 steps were taken. Run the same" in done.stderr
        again = train(config)
        assert equal(again.adapter, train(settings(home, tmp_path / "unbroken")).adapter, within=1e-6)

    def test_says_of_the_checkpoints_what_they_are(self, home: Path, tmp_path: Path) -> None:
        train(settings(home, tmp_path / "run", max_steps=2))
        (card,) = (tmp_path / "run" / "checkpoints").rglob("README.md")
        assert card.parent.name == "checkpoints"
        assert "They are no result" in card.read_text()
        assert str(tmp_path) not in card.read_text()

    def test_prints_one_object_and_writes_what_it_names(self, home: Path, tmp_path: Path) -> None:
        said = settings(home, tmp_path / "run", max_steps=1).model_dump(mode="json")
        said["measure"] |= {"vectors": [str(home / "v.safetensors")], "judge": None}
        done = self.run(tmp_path / "run.yaml", **said)
        assert done.exit_code == 0, done.stderr
        shown = json.loads(done.stdout)
        assert {"adapter", "card", "steps", "loss", "data", "shift", "judged", "report"} == set(shown)
        assert Path(shown["card"]).exists()
        assert shown["shift"]["grumpy"]["n"] > 0

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"lr": 1e-4}, "lr is an unknown setting"),
            ({"data": ["nowhere.jsonl"]}, "nowhere.jsonl"),
            ({"model": "no/such-model-here"}, "no/such-model-here"),
            ({"vaccine": {"steer": ["nowhere.safetensors=1"]}}, "nowhere.safetensors"),
            ({"vaccine": {"steer": ["what is this"]}}, "what is this"),
        ],
    )
    def test_says_what_is_wrong_in_one_sentence(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], complaint: str
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        said = settings(home, tmp_path / "run").model_dump(mode="json") | changes
        done = self.run(tmp_path / "run.yaml", **said)
        assert done.exit_code == 2
        assert complaint in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stdout == ""


def until(there: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.slow
class TestTwoProcesses:
    def test_take_the_same_steps_as_one(self, tmp_path: Path) -> None:
        """Gloo, two texts each, against four at once in one process."""
        port = str(29500 + os.getpid() % 1000)
        command = [sys.executable, "-W", "ignore", __file__, str(tmp_path)]
        workers = [
            subprocess.Popen(
                command,
                env=os.environ
                | {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
                | {"MASTER_PORT": port, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
            )
            for i in range(2)
        ]
        assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
        ends = [torch.load(tmp_path / f"{i}.pt") for i in range(2)]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
        base, callback = parallel_parts()
        trainer(base, tmp_path, callback, per_device_train_batch_size=4, data=even_rows(base)).train()
        alone = base.lm.state_dict()
        assert all(torch.allclose(ends[0][name], alone[name], atol=2e-5) for name in alone)


def parallel_parts() -> tuple[Model, VaccineCallback]:
    base = tiny.model("llama")
    base.lm.requires_grad_(True)
    return base, VaccineCallback(Steering.add(tiny.vector(base, scale=0.5), coef=1.5, layer=2))


def even_rows(model: Model) -> list[dict[str, list[int]]]:
    """Rows with equally many labels, so that a mean of means is the mean."""
    from test_vaccine import rows

    out = rows(model)
    for row in out:
        learnt = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
        for i in learnt[2:]:
            row["labels"][i] = IGNORED
    return out


def parallel(folder: Path) -> None:
    base, callback = parallel_parts()
    options = {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
    trainer(base, folder, callback, data=even_rows(base), **options).train()
    torch.save(base.lm.state_dict(), folder / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    parallel(Path(sys.argv[1]))
