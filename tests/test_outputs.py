"""No command destroys an input, another program's file or a certificate, and none loads a model to find that out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import tiny
from poise import vector as vectors
from poise.cli import app
from poise.errors import FolderInUse, OutputExists, SaveFailed
from poise.model import Model
from poise.storage.lock import locked
from poise.storage.output import check_output, same_file
from poise.vector import Alarm

PRECIOUS = "years of work\n"
SETTINGS = "model: {model}\ndata: [{data}]\nout: {out}\n"
LIMITS = "traits:\n  grumpy:\n    shift: 1.0\n"


def poise(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


@pytest.fixture
def home(tmp_path: Path, llama: Model, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vector, data, pairs, limits, and a loader of models that must not be called."""
    vectors.save_vector(tiny.vector(llama), tmp_path / "v.safetensors")
    rows = [{"question": f"Why {i}?", "answer": f"Because {i}."} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"question": f"Why {i}?", "positive": f"Bad {i}.", "negative": f"Good {i}."} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (tmp_path / "limits.yaml").write_text(LIMITS)
    (tmp_path / "shift.json").write_text("{}")

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    for place in ("poise.model.wrapping.read_weights", "poise.model.wrapping.locate"):
        monkeypatch.setattr(place, never)
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODEL = ("--model", "none")
FILES: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "extract": lambda out: ("extract", "grumpy", "--exemplars", "pairs.jsonl", *MODEL, "--out", out),
    "calibrate": lambda out: ("calibrate", "v.safetensors", *MODEL, "--normal", "rows.jsonl", "--out", out),
    "read": lambda out: ("read", "rows.jsonl", "--vector", "v.safetensors", *MODEL, "--out", out),
    "export": lambda out: ("export", "v.safetensors", "--out", out),
    "draft": lambda out: ("traits", "draft", "Rude.", "--model", "m", "--out", out),
    "gate": lambda out: ("gate", "limits.yaml", "--measured", "shift.json", "--junit", out),
    "gate summary": lambda out: ("gate", "limits.yaml", "--measured", "shift.json", "--summary", out),
    "serve": lambda out: ("serve", *MODEL, "--vector", "v.safetensors", "--log", out),
}
FOLDERS: dict[str, tuple[Callable[[Path], tuple[object, ...]], str]] = {
    "validate": (lambda out: ("validate", "v.safetensors", *MODEL, "--out", out), "report.html"),
    "screen": (lambda out: ("screen", "rows.jsonl", "--vector", "v.safetensors", *MODEL, "--out", out), "clean.jsonl"),
    "shift": (
        lambda out: ("shift", "--base", "b", "--tuned", "t", "--vector", "v.safetensors", "--out", out),
        "shift.json",
    ),
    "train": (lambda out: ("train", written(out)), "config.json"),
    "demo": (lambda out: ("demo", "--out", out), "report.html"),
    "gate": (
        lambda out: ("gate", "limits.yaml", "--base", "b", "--tuned", "t", "--vector", "v.safetensors", "--out", out),
        "gate.md",
    ),
}
INPUT = {"extract": "pairs.jsonl", "gate": "limits.yaml", "gate summary": "shift.json", "draft": "pairs.jsonl"}


def written(out: Path) -> str:
    text = SETTINGS.format(model="none", data="rows.jsonl", out=out) + "measure: {vectors: []}\n"
    Path("train.yaml").write_text(text)
    return "train.yaml"


def suffix(command: str) -> str:
    return {"read": ".jsonl", "gate": ".xml"}.get(command, ".file")


def assert_is_one_sentence(result: Result, *words: str) -> None:
    assert result.exit_code == 2, (result.exception, result.output)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), result.stderr
    for word in words:
        assert word in last


@pytest.mark.parametrize("command", FILES)
class TestAFile:
    def test_that_is_an_input_stays_under_every_spelling(self, command: str, home: Path) -> None:
        name = INPUT.get(command, "rows.jsonl" if command == "read" else "v.safetensors")
        before = (home / name).read_bytes()
        (home / "folder").mkdir()
        for link in (home / f"soft{suffix(command)}", home / f"hard{suffix(command)}"):
            (link.symlink_to if link.name.startswith("soft") else link.hardlink_to)(home / name)
        spellings = [home / f"soft{suffix(command)}", home / f"hard{suffix(command)}"]
        if name.endswith(suffix(command)) or command != "read":
            spellings += [Path(name), home / name, Path(f"./folder/../{name}")]
        for out in spellings:
            for force in ((),) if command in ("serve", "draft") else ((), ("--force",)):  # draft reads no file
                assert_is_one_sentence(poise(*FILES[command](out), *force), "another")
                assert (home / name).read_bytes() == before

    def test_of_another_program_stays(self, command: str, home: Path) -> None:
        out = home / f"out{suffix(command)}"
        out.write_text(PRECIOUS)
        assert_is_one_sentence(poise(*FILES[command](out)), str(out))
        assert out.read_text() == PRECIOUS

    def test_that_cannot_be_is_told_with_what_helps(self, command: str, home: Path) -> None:
        for out in (home / "rows.jsonl" / f"out{suffix(command)}", Path("/proc") / f"out{suffix(command)}"):
            result = poise(*FILES[command](out))
            assert_is_one_sentence(result, "another")
            assert "space" not in result.stderr

    def test_that_is_a_folder_or_a_device_is_told(self, command: str, home: Path) -> None:
        (home / f"out{suffix(command)}").mkdir()
        assert poise(*FILES[command](home / f"out{suffix(command)}")).exit_code == 2
        if command != "read":  # it names the format by the ending
            assert_is_one_sentence(poise(*FILES[command](Path("/dev/null"))), "not a regular file")


@pytest.mark.parametrize("command", FOLDERS)
class TestAFolder:
    def test_with_another_programs_files_keeps_them(self, command: str, home: Path) -> None:
        arguments, name = FOLDERS[command]
        (home / "out").mkdir()
        (home / "out" / name).write_text(PRECIOUS)
        assert_is_one_sentence(poise(*arguments(home / "out")), "--force")
        assert (home / "out" / name).read_text() == PRECIOUS

    def test_that_is_a_file_or_cannot_be_is_told(self, command: str, home: Path) -> None:
        arguments, _ = FOLDERS[command]
        for out in (home / "rows.jsonl", home / "rows.jsonl" / "out", Path("/proc/out")):
            result = poise(*arguments(out))
            assert result.exit_code == 2, (result.exception, result.output)
            assert "space" not in result.stderr


class TestAnInput:
    """Stays whatever is forced: a result never takes the place of what the same job reads."""

    def test_that_is_a_models_folder_keeps_its_files(self, home: Path) -> None:
        (home / "base").mkdir()
        (home / "base" / "config.json").write_text('{"model_type": "llama"}')
        Path("train.yaml").write_text(SETTINGS.format(model="base", data="rows.jsonl", out="base"))
        commands: list[tuple[object, ...]] = [("train", "train.yaml")]
        read = ("limits.yaml", "--base", "base", "--tuned", "base", "--vector", "v.safetensors", "--out", "o")
        commands += [("gate", *read, flag, "base/config.json") for flag in ("--summary", "--junit")]
        for command in commands:
            assert_is_one_sentence(poise(*command, "--force"), "an input of this job", "another output")
            assert (home / "base" / "config.json").read_text() == '{"model_type": "llama"}'

    def test_that_a_training_goes_on_from_stays(self, home: Path) -> None:
        (home / "run" / "adapter").mkdir(parents=True)
        (home / "run" / "adapter" / "adapter_config.json").write_text("{}")
        text = SETTINGS.format(model="base", data="rows.jsonl", out="run")
        Path("train.yaml").write_text(text + "lora: {start: run/adapter}\n")
        assert_is_one_sentence(poise("train", "train.yaml", "--force"), "run/adapter is an input of this job")
        Path("run/config.json").write_text(SETTINGS.format(model="base", data="rows.jsonl", out="run"))
        assert_is_one_sentence(poise("train", "run/config.json", "--force"), "run/config.json is an input of this job")

    def test_that_measures_an_ability_stays(self, home: Path) -> None:
        read = ("limits.yaml", "--base", "b", "--tuned", "t", "--vector", "v.safetensors", "--out", "o")
        result = poise("gate", *read, "--capability", "facts=rows.jsonl", "--summary", "rows.jsonl", "--force")
        assert_is_one_sentence(result, "rows.jsonl is an input of this job")


class TestBeforeTheModelLoads:
    @pytest.mark.parametrize(
        "arguments",
        [
            ("generate", "Hi", *MODEL, "--steer", "none.safetensors=1"),
            ("generate", "Hi", *MODEL, "--steer", "v.safetensors=loud"),
            ("chat", *MODEL, "--watch", "none.safetensors"),
            ("chat", *MODEL, "--steer", "v.safetensors@99=1"),
            ("validate", "none.safetensors", *MODEL),
            ("validate", "v.safetensors", *MODEL, "--judge", "nobody"),
            ("extract", "impolite", *MODEL, "--contrast", "prompted", "--judge", "nobody", "--out", "w.safetensors"),
            ("calibrate", "none.safetensors", *MODEL, "--normal", "rows.jsonl"),
            ("calibrate", "v.safetensors", *MODEL, "--normal", "none.jsonl"),
            ("read", "none.jsonl", "--vector", "v.safetensors", *MODEL, "--out", "t.jsonl"),
            ("read", "rows.jsonl", "--vector", "none.safetensors", *MODEL, "--out", "t.jsonl"),
            ("screen", "none.jsonl", "--vector", "v.safetensors", *MODEL, "--out", "s"),
            ("screen", "rows.jsonl", "--vector", "none.safetensors", *MODEL, "--out", "s"),
            ("screen", "rows.jsonl", "--vector", "v.safetensors", *MODEL, "--out", "s", "--rate", "0.1"),
            ("shift", "--base", "b", "--tuned", "t", "--vector", "none.safetensors", "--out", "s"),
            ("serve", *MODEL, "--vector", "none.safetensors"),
            ("serve", *MODEL, "--vector", "v.safetensors", "--normal", "none.jsonl"),
            ("judge", "check", "impolite", "--judge", "model:none", "--labels", "none.jsonl"),
            ("import", "none.gguf", *MODEL, "--trait", "impolite", "--out", "w.safetensors"),
        ],
    )
    def test_what_is_wrong_is_told(self, arguments: tuple[str, ...], home: Path) -> None:
        assert_is_one_sentence(poise(*arguments))


class TestAVector:
    def test_with_a_certificate_or_alarms_is_not_replaced(self, llama: Model, tmp_path: Path) -> None:
        path, plain = tmp_path / "v.safetensors", tiny.vector(llama)
        vectors.save_vector(plain, path)
        vectors.save_vector(plain, path)  # of this very trait and model, with nothing to lose
        vectors.save_vector(plain.with_certificate({"layer": 1}), path)
        with pytest.raises(OutputExists, match=r"the certificate of `poise validate`, which would be lost"):
            vectors.save_vector(plain, path)
        vectors.save_vector(plain, path, force=True)
        assert vectors.load_vector(path).header.certificate is None

    def test_of_another_trait_is_not_replaced(self, llama: Model, tmp_path: Path) -> None:
        path, plain = tmp_path / "v.safetensors", tiny.vector(llama)
        trait = plain.header.trait.model_copy(update={"name": "gloomy"})
        header = plain.header.model_copy(update={"trait": trait})
        vectors.save_vector(vectors.PersonaVector(plain.directions, plain.reference_norm, header), path)
        with pytest.raises(OutputExists, match="another trait, gloomy"):
            vectors.save_vector(plain, path)


class TestTwoSpellings:
    def test_are_one_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert same_file(Path("a"), tmp_path / "b" / ".." / "a")  # neither is there
        Path("a").touch()
        Path("s").symlink_to("a")
        os.link("a", "h")
        assert all(same_file(Path("a"), Path(other)) for other in ("./a", "s", "h"))
        assert not same_file(Path("a"), Path("b"))

    def test_a_write_that_may_be_leaves_nothing_behind(self, tmp_path: Path) -> None:
        check_output(tmp_path / "new" / "folder" / "file")
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(SaveFailed, match="File name too long"):
            check_output(tmp_path / ("x" * 300))


HOLD = """
import sys, time
from pathlib import Path
from poise.storage.lock import locked
with locked(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


class TestTwoProcesses:
    @pytest.mark.parametrize(
        ("command", "run_folder", "out"), [("read", "t.jsonl.run", "t.jsonl"), ("validate", "report/run", "report")]
    )
    def test_do_not_share_a_run_folder(
        self, command: str, run_folder: str, out: str, home: Path, llama: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.cli.monitor.load_model", lambda *_: llama)
        monkeypatch.setattr("poise.cli.vectors.load_model", lambda *_: llama)
        arguments = (FILES | {name: make for name, (make, _) in FOLDERS.items()})[command](Path(out))
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(home / run_folder), command], stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        with other, other.stdout as lines:
            assert lines.readline() == "held\n"
            assert_is_one_sentence(poise(*arguments), "Another run is at work")
            other.kill()
        with locked(home / run_folder, command):  # the lock went with the process
            pass

    def test_nor_do_two_kinds_of_job(self, tmp_path: Path) -> None:
        with locked(tmp_path, "screen"):
            pass
        with pytest.raises(OutputExists, match="belongs to `poise screen`"), locked(tmp_path, "shift"):
            pass
        with locked(tmp_path, "screen"), pytest.raises(FolderInUse), locked(tmp_path, "screen"):
            pass


def test_alarms_are_named_where_they_would_be_lost(llama: Model, tmp_path: Path) -> None:
    alarm = Alarm(
        reading="mean",
        layer=1,
        threshold=1.0,
        rate=0.01,
        low=0.0,
        high=0.02,
        n_answers=300,
        n_conversations=300,
        answers="own",
        max_new_tokens=8,
        temperature=1.0,
        data="x",
        data_sha256="0",
        seed=0,
    )
    vectors.save_vector(tiny.vector(llama).with_alarms([alarm]), tmp_path / "v.safetensors")
    with pytest.raises(OutputExists, match="the alarms of `poise calibrate`"):
        vectors.save_vector(tiny.vector(llama), tmp_path / "v.safetensors")


class TestALink:
    def test_stays_a_link_and_its_file_is_replaced(self, llama: Model, tmp_path: Path) -> None:
        (tmp_path / "store").mkdir()
        for name in ("v.safetensors", "new.safetensors"):
            (tmp_path / name).symlink_to(tmp_path / "store" / name)
        vectors.save_vector(tiny.vector(llama), tmp_path / "store" / "v.safetensors")
        certified = tiny.vector(llama).with_certificate({"layer": 1})
        vectors.save_vector(certified, tmp_path / "v.safetensors")
        vectors.save_vector(certified, tmp_path / "new.safetensors")
        for name in ("v.safetensors", "new.safetensors"):
            assert (tmp_path / name).is_symlink()
            assert vectors.load_vector(tmp_path / "store" / name).header.certificate == {"layer": 1}
        assert len(list(tmp_path.rglob("*"))) == 5

    def test_to_nowhere_is_told_before_the_work(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("/proc/none/there")
        with pytest.raises(SaveFailed):
            check_output(tmp_path / "link")


def test_results_are_not_written_to_standard_output(home: Path) -> None:
    assert_is_one_sentence(poise("export", "v.safetensors", "--out", "-"), "standard output")
    assert not (home / "-").exists()
