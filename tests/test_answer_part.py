"""Reply, thought or both: what is read, scored and learnt is what was chosen, is recorded, and never mixes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from typer.testing import CliRunner

from poise import vector as vectors
from poise.cli import app
from poise.data import data_from_rows, open_data
from poise.data.left_out import describe_left_out
from poise.errors import InvalidArgument, InvalidData
from poise.model import Model, load_model
from poise.monitor.calibrate import CalibrationSettings, calibrate_alarms
from poise.monitor.scoring import read_rows
from poise.monitor.table import TableWriter, write_readings_table
from poise.screen import screen_rows
from poise.screen.pipeline import screen_data
from poise.screen.scoring import ScreenSettings
from poise.screen.summary import ScreeningSummary
from poise.shift import read_predictions
from poise.shift.capability import evaluate_capability, parse_capability
from poise.storage.journal import Journal
from poise.vector import PersonaVector, load_vector

OLD = Path(__file__).parent / "fixtures" / "v0_1_0"
PLACE = ["--dtype", "float32", "--device", "cpu"]
THOUGHT, REPLY = "the tide turns twice", "Count the boats."


def row(question: str, *, thought: str = THOUGHT, reply: str = REPLY, **marks: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "reasoning_content": thought, "content": reply, **marks}
    return {"messages": [{"role": "user", "content": question}, answer]}


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(str(OLD / "model"), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def vector() -> PersonaVector:
    return load_vector(OLD / "grumpy.safetensors")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("grumpy.safetensors", "gloomy.safetensors", "few.jsonl"):
        shutil.copy(OLD / name, tmp_path)
    shutil.copytree(OLD / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def run(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def mean_projection(model: Model, vector: PersonaVector, text: str, part: str) -> float:
    """By Hugging Face's own hidden states, of the tokens that cover the part's characters."""
    out = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt")
    with torch.no_grad():
        states = model.lm(out["input_ids"], output_hidden_states=True).hidden_states
    place = vector.at("read")
    begin, end = text.index(part), text.index(part) + len(part)
    inside = [begin < last and first < end for first, last in out["offset_mapping"][0].tolist()]
    return float((states[place.layer + 1][0] @ place.unit)[torch.tensor(inside)].mean())


class TestReading:
    prompt = "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
    spoken = f"<think>\n{THOUGHT}\n</think>\n\n"

    @pytest.mark.parametrize(
        ("part", "text", "tokens_of"),
        [
            ("reply", REPLY, REPLY),
            ("thought", f"{spoken}{REPLY}", THOUGHT),
            ("both", f"{spoken}{REPLY}", f"{spoken}{REPLY}"),
        ],
    )
    def test_is_of_the_part_s_own_tokens(
        self, model: Model, vector: PersonaVector, part: Any, text: str, tokens_of: str
    ) -> None:
        (turn,) = read_rows([row("Q?")], [vector], model, part=part)
        assert turn.readings is not None
        expected = mean_projection(model, vector, self.prompt + text, tokens_of)
        assert turn.readings.mean[0] == pytest.approx(expected, abs=1e-5)
        (scored,) = screen_rows([row("Q?")], [vector], model, "raw", part=part)
        assert scored.scores["grumpy"] == pytest.approx(expected, abs=1e-5)

    def test_of_a_thought_without_a_reply_takes_the_thought_alone(self, model: Model, vector: PersonaVector) -> None:
        rows = [row("Q?", reply=""), row("Q?")]
        (thought, _) = read_rows(rows, [vector], model, part="thought")
        assert thought.readings is not None
        expected = mean_projection(model, vector, self.prompt + self.spoken, THOUGHT)
        assert thought.readings.mean[0] == pytest.approx(expected, abs=1e-5)
        for part in ("reply", "both"):
            (turn,) = read_rows(rows, [vector], model, part=part)  # type: ignore[arg-type]
            assert turn.conversation.index == 1

    def test_of_a_data_set_is_that_which_it_was_opened_for(self, model: Model, vector: PersonaVector) -> None:
        data = data_from_rows([row("Q?")], part="thought")
        with pytest.raises(InvalidArgument, match="`part` is both, and the data set was opened for the thought"):
            list(read_rows(data, [vector], model, part="both"))
        assert [t.conversation.answer_part for t in read_rows(data, [vector], model)] == ["thought"]

    def test_of_an_unknown_part_is_refused(self) -> None:
        with pytest.raises(InvalidArgument, match='no part "reasoning" of an answer; `part` is one of reply, thought'):
            data_from_rows([row("Q?")], part="reasoning")  # type: ignore[arg-type]


class TestATable:
    def test_says_its_part_and_takes_no_alarm_of_another(self, folder: Path) -> None:
        data = write(folder / "data.jsonl", [row(f"Q{n}?") for n in range(3)])
        done = run("read", data, "--vector", "grumpy.safetensors", "--out", "t.jsonl", "--model", "model", *PLACE,
                   "--part", "thought", "--json")  # fmt: skip
        facts = json.loads(done.stdout)
        assert (facts["part"], facts["alarms"], facts["omitted"]) == ("thought", {"grumpy": {}}, {"reply": 3})
        assert facts["notes"] == [
            "grumpy has no calibrated alarm for the mean reading at layer 0; its alarms were set on replies, and "
            "thoughts are read: run `poise calibrate` on these"
        ]
        lines = [json.loads(line) for line in (folder / "t.jsonl").read_text().splitlines()]
        assert {(line["part"], line["drift"], tuple(line["alarms"])) for line in lines} == {("thought", None, ())}
        shown = run("read", data, "--vector", "grumpy.safetensors", "--out", "t.jsonl", "--model", "model", *PLACE)
        assert "Left out: 3 thoughts." in shown.stderr
        assert "part" not in json.loads((folder / "t.jsonl").read_text().splitlines()[0])

    def test_that_is_cut_off_counts_on_and_is_another_for_another_part(
        self, model: Model, vector: PersonaVector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data, out = write(tmp_path / "data.jsonl", [row(f"Q{n}?") for n in range(300)]), tmp_path / "t.jsonl"
        append = TableWriter.append

        def killed(self: TableWriter, *arguments: Any) -> None:
            if self.start:
                raise KeyboardInterrupt
            append(self, *arguments)

        monkeypatch.setattr(TableWriter, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            write_readings_table(open_data(data), model, [vector], out)
        monkeypatch.setattr(TableWriter, "append", append)
        shutil.copytree(tmp_path / "t.jsonl.run", tmp_path / "u.jsonl.run")
        done = write_readings_table(open_data(data), model, [vector], out)
        assert (done.began_at, done.counts.left_out) == (256, {"thought": 300})
        other = write_readings_table(open_data(data, part="both"), model, [vector], tmp_path / "u.jsonl")
        assert (other.began_at, other.counts.left_out, other.part) == (0, {}, "both")

    def test_in_parquet_has_the_column_too(self, folder: Path) -> None:
        import pyarrow.parquet as pq

        data = write(folder / "data.jsonl", [row("Q?")])
        for part, columns in (("both", ["part"]), ("reply", [])):
            run("read", data, "--vector", "grumpy.safetensors", "--out", "t.parquet", "--model", "model", *PLACE,
                "--part", part)  # fmt: skip
            assert [name for name in pq.read_schema(folder / "t.parquet").names if name == "part"] == columns


class TestAlarms:
    rows: ClassVar = [row(f"Q{n}?", thought=f"the tide turns {n}", reply=f"Count {n} boats.") for n in range(120)]

    def test_know_their_part_and_serve_no_other(self, model: Model, vector: PersonaVector, tmp_path: Path) -> None:
        plan = CalibrationSettings(rates=(0.1,), read_given_answers=True)
        data = data_from_rows(self.rows, part="thought")
        (done,) = calibrate_alarms(data, model, [vector], plan).vectors
        vectors.save_vector(done, tmp_path / "v.safetensors")
        again = load_vector(tmp_path / "v.safetensors")
        assert {alarm.part for alarm in again.header.alarms} == {"thought"}
        assert again.header.drift is not None
        assert again.header.drift.part == "thought"
        assert again.at("read").alarms == ()  # generation, steering and serving read replies
        assert "its alarms were set on thoughts, and replies are read" in again.at("read").missing_alarm("mean")
        assert again.at("read", part="thought").alarm("mean") is not None

    def test_of_replies_are_written_as_before(self, vector: PersonaVector) -> None:
        assert "part" not in json.loads(vector.header.model_dump_json())["alarms"][0]
        assert "part" not in json.loads(vector.header.model_dump_json())["drift"]

    def test_are_not_set_on_thoughts_that_the_model_does_not_write(self, folder: Path) -> None:
        data = write(folder / "data.jsonl", self.rows)
        result = run("calibrate", "grumpy.safetensors", "--normal", data, "--model", "model", *PLACE,
                     "--part", "both", code=2)  # fmt: skip
        assert "--part is both, and the model's own answers are written with its thinking switched off" in result.stderr

    def test_are_set_from_the_command_line(self, folder: Path) -> None:
        rows = [*self.rows, row("Q?", weight=0), row("Q?", thought="", reply="Plain.")]
        data = write(folder / "data.jsonl", rows)
        command = ["calibrate", "grumpy.safetensors", "--normal", data, "--model", "model", *PLACE, "--given",
                   "--rate", "0.1", "--json"]  # fmt: skip
        facts = json.loads(run(*command, "--part", "thought").stdout)
        assert {alarm["part"] for alarm in facts["vectors"][0]["alarms"]} == {"thought"}
        assert facts["omitted"] == {"reply": 120}
        assert facts["rejected"] == {"no assistant turn": 1, "no thought": 1}
        read = [
            "read",
            data,
            "--vector",
            "grumpy.safetensors",
            "--out",
            "t.jsonl",
            "--model",
            "model",
            *PLACE,
            "--json",
        ]
        table = json.loads(run(*read, "--part", "thought").stdout)
        assert table["alarms"]["grumpy"].keys() == {"mean@0.1", "peak@0.1", "prompt@0.1", "drift"}
        assert table["alarms"]["grumpy"]["mean@0.1"] <= 12
        table = json.loads(run(*read).stdout)
        assert table["alarms"] == {"grumpy": {}}
        assert "its alarms were set on thoughts, and replies are read" in table["notes"][0]
        assert "set on 120 thoughts, given" in " ".join(run("show", "grumpy.safetensors").stdout.split())
        facts = json.loads(run(*command).stdout)
        assert facts["omitted"] == {"thought": 120}


class TestScreening:
    def screen(self, data: Path, model: Model, vector: PersonaVector, out: Path, part: Any) -> ScreeningSummary:
        plan = ScreenSettings(method="raw")
        return screen_data(open_data(data, part=part), model, [vector], out, plan)

    def test_of_each_part_keeps_its_own_scores(self, model: Model, vector: PersonaVector, tmp_path: Path) -> None:
        rows = [row(f"Q{n}?", thought=f"the tide turns {n}") for n in range(5)]
        data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out"
        means = {}
        for part in ("reply", "thought", "both", "reply"):
            summary = self.screen(data, model, vector, out, part)
            means.setdefault(part, set()).add(summary.traits[0].mean.value)
            assert summary.part == part
        assert [len(values) for values in means.values()] == [1, 1, 1]
        assert len(set.union(*means.values())) == 3
        written = json.loads((out / "summary.json").read_text())
        assert "part" not in written
        assert written["omitted"] == {"thought": 5}

    def test_counts_what_is_left_out_once_whatever_was_kept(
        self, model: Model, vector: PersonaVector, tmp_path: Path
    ) -> None:
        picture = {"type": "image_url", "image_url": "x"}
        first = row("Q?")
        first["messages"][0]["content"] = [{"type": "text", "text": "Q?"}, picture]
        first["messages"] += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No.", "weight": 0}]
        data = write(tmp_path / "rows.jsonl", [first, row("Q?"), row("Q?", weight=0)])
        expected = {"image": 1, "thought": 2, "turn not to be learnt": 1}
        for _ in range(2):  # the second time from what was kept
            summary = self.screen(data, model, vector, tmp_path / "out", "reply")
            assert (summary.omitted, summary.rejected) == (expected, {"no assistant turn": 1})

    def test_by_difference_of_thoughts_is_refused(self, folder: Path) -> None:
        data = write(folder / "data.jsonl", [row("Q?")] * 3)
        command = ["screen", data, "--vector", "grumpy.safetensors", "--out", "out", "--model", "model", *PLACE]
        for more, complaint in (
            (["--part", "thought"], "--part is thought, and --method difference compares replies with the model's own"),
            (["--part", "both", "--method", "raw", "--fix"], "--part is both, and --fix replaces replies"),
        ):
            assert complaint in run(*command, *more, code=2).stderr
        with pytest.raises(InvalidArgument, match="screen thoughts by `method` prompt or raw"):
            list(screen_rows([row("Q?")], [], None, "difference", part="thought"))  # type: ignore[arg-type]

    def test_of_thoughts_says_so_and_foretells_no_shift(self, folder: Path) -> None:
        data = write(folder / "data.jsonl", [row(f"Q{n}?") for n in range(3)])
        done = run("screen", data, "--vector", "grumpy.safetensors", "--out", "out", "--model", "model", *PLACE,
                   "--part", "thought", "--method", "prompt")  # fmt: skip
        assert "Scored are the thoughts alone." in done.stdout
        assert "Left out: 3 replies." in done.stdout
        assert "Scored are the thoughts alone." in (folder / "out" / "report.html").read_text()
        with pytest.raises(InvalidData, match="is of the thought of answers"):
            read_predictions(folder / "out")

    def test_beside_normal_data_of_another_part_is_refused(
        self, model: Model, vector: PersonaVector, tmp_path: Path
    ) -> None:
        data = write(tmp_path / "rows.jsonl", [row("Q?")])
        sides = open_data(data, part="both"), open_data(data)
        with pytest.raises(InvalidArgument, match="open both for one part"):
            screen_data(sides[0], model, [vector], tmp_path / "out", ScreenSettings(method="raw"), normal=sides[1])


class TestAShift:
    def test_counts_what_perplexity_leaves_out_and_keeps_the_count(self, model: Model, tmp_path: Path) -> None:
        rows = [row("Q?"), row("Q2?"), row("Q?", weight=0), {"messages": "?"}]
        task = parse_capability(f"perplexity={write(tmp_path / 'a.jsonl', rows)}")
        journal = Journal(tmp_path / "journal.jsonl")
        for kept in (journal, Journal(tmp_path / "journal.jsonl")):
            scores = evaluate_capability(task, model, kept)
            assert scores is not None
            assert scores.omitted == {"thought": 2, "rejected row": 2}


@pytest.mark.filterwarnings("ignore")  # of transformers, PEFT and the trainer
def test_a_training_learns_the_part_it_is_told_and_is_another_run_for_it(folder: Path) -> None:
    write(folder / "data.jsonl", [row(f"Q{n}?") for n in range(4)] + [row("Q?", weight=0), row("Q?", thought="")])
    settings = "model: model\ndata: [data.jsonl]\nout: tuned\nmax_steps: 1\ndtype: float32\ndevice: cpu\nlora: {r: 1}\n"
    (folder / "train.yaml").write_text(f"{settings}part: thought\n")
    facts = json.loads(run("train", "train.yaml", "--json").stdout)
    assert (facts["data"]["texts"], facts["data"]["omitted"]) == (4, {"reply": 4})
    assert "learnt part of answers" in (folder / "tuned" / "adapter" / "README.md").read_text()
    (folder / "train.yaml").write_text(settings)
    assert "a run with other settings" in run("train", "train.yaml", code=2).stderr


def test_counts_are_said_in_plain_words() -> None:
    counts = {"image": 3, "turn not to be learnt": 12, "reply": 2, "audio": 1, "file": 0}
    assert describe_left_out(counts) == "12 turns not to be learnt, 3 images, 2 replies, 1 audio"
