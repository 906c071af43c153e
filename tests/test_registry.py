"""The registry: records written once, stages in order, signatures, and whatever is done to its files found."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.errors import InvalidRegistry, OutputExists, SaveFailed
from poise.lifecycle import registry as registry_module
from poise.lifecycle.registry import Registry
from poise.lifecycle.registry_check import RegistryReview, check_registry
from poise.lifecycle.registry_diff import record_differences
from poise.lifecycle.signing import make_key, public_keys
from poise.vector import save_vector
from steered_passes import no_warnings


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n')
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def faults(review: RegistryReview) -> list[str]:
    return [f"{one.place}: {one.text}" for one in review.findings if one.severity == "fault"]


class TestRecords:
    def test_of_equal_content_are_one(self, registry: Registry, artefact: Path) -> None:
        first, is_new = registry.add(str(artefact), by="ada")
        assert (is_new, registry.add(str(artefact), by="bo")) == (True, (first, False))
        assert list(registry.records()) == [first]
        assert [event.event.by for event in registry.events(first)] == ["ada"]
        artefact.write_text("other\n")
        second, is_new = registry.add(str(artefact))
        assert (is_new, second != first) == (True, True)

    def test_know_their_kind_and_what_files_say(self, registry: Registry, tmp_path: Path) -> None:
        model = tiny.model()
        with no_warnings():
            model.lm.save_pretrained(tmp_path / "base")
            model.tokenizer.save_pretrained(tmp_path / "base")
        save_vector(tiny.vector(model), tmp_path / "grumpy.safetensors")
        base, _ = registry.add(str(tmp_path / "base"))
        vector, _ = registry.add(str(tmp_path / "grumpy.safetensors"), parents=["base"], facts={"licence": "mit"})
        assert (registry.record(base).kind, registry.record(base).name) == ("model", "base")
        assert registry.record(base).facts["parameters"] == sum(p.numel() for p in model.lm.parameters())
        record = registry.record(vector)
        assert (record.kind, record.name, record.parents) == ("vector", "grumpy", (base,))
        assert (record.facts["trait"], record.facts["model"], record.facts["licence"]) == (
            "grumpy",
            "tiny-llama",
            "mit",
        )
        assert registry.children(base) == [vector]
        assert {file.name for file in registry.record(base).files} == {p.name for p in (tmp_path / "base").iterdir()}

    def test_are_named_by_name_or_digits(self, registry: Registry, artefact: Path, tmp_path: Path) -> None:
        digest, _ = registry.add(str(artefact), name="answers")
        assert registry.find("answers") == registry.find(digest[:6]) == digest
        with pytest.raises(InvalidRegistry, match="did you mean answers"):
            registry.find("answer")
        artefact.write_text("x\n")
        registry.add(str(artefact), name="answers")
        with pytest.raises(InvalidRegistry, match=r"names 2 records .*: [0-9a-f]{12} \(of .*\), [0-9a-f]{12} \(of"):
            registry.find("answers")

    def test_that_cannot_be_made_say_what_to_do(self, registry: Registry, tmp_path: Path) -> None:
        (tmp_path / "x.bin").write_bytes(b"1")
        (tmp_path / "empty").mkdir()
        for name, match in (("x.bin", "`kind`"), ("none", "nothing at"), ("empty", "`kind`")):
            with pytest.raises(InvalidRegistry, match=match):
                registry.add(str(tmp_path / name))
        with pytest.raises(InvalidRegistry, match="no file to record"):
            registry.add(str(tmp_path / "empty"), kind="data")
        assert not registry.folder.exists()

    def test_differ_by_field(self, registry: Registry, artefact: Path) -> None:
        first, _ = registry.add(str(artefact), facts={"figures": {"auc": 0.5, "n": 3}})
        artefact.write_text("x\n")
        second, _ = registry.add(str(artefact), facts={"figures": {"auc": 0.75, "n": 3}, "licence": "mit"})
        differences = record_differences(registry.record(first), registry.record(second))
        assert [row[0] for row in differences] == ["files.answers.jsonl", "facts.figures.auc", "facts.licence"]
        assert differences[1][1:] == (0.5, 0.75)


class TestStages:
    def test_are_taken_one_by_one_and_say_who(self, registry: Registry, artefact: Path) -> None:
        digest, _ = registry.add(str(artefact), by="ada")
        with pytest.raises(InvalidRegistry, match="promote it to candidate first"):
            registry.promote(digest, "production")
        registry.promote(digest, "candidate", by="bo", note="looks fine")
        registry.promote(digest, "production", by="cy")
        with pytest.raises(InvalidRegistry, match="is production already, by cy"):
            registry.promote(digest, "production")
        registry.promote(digest, "draft", by="dee")
        registry.promote(digest, "retired", by="ed")
        assert [(e.event.stage, e.event.by) for e in registry.events(digest)] == [
            ("draft", "ada"), ("candidate", "bo"), ("production", "cy"), ("draft", "dee"), ("retired", "ed")
        ]  # fmt: skip
        assert faults(check_registry(registry)) == []

    def test_production_takes_what_was_recorded_alone(self, registry: Registry, artefact: Path) -> None:
        digest, _ = registry.add(str(artefact))
        registry.promote(digest, "candidate")
        artefact.write_text("changed")
        with pytest.raises(InvalidRegistry, match=r"answers\.jsonl has changed"):
            registry.promote(digest, "production")
        assert registry.stage(digest) == "candidate"

    def test_a_clock_that_was_moved_back_changes_no_order(
        self, registry: Registry, artefact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        digest, _ = registry.add(str(artefact))

        class Earlier(registry_module.datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls(2001, 1, 1, tzinfo=tz)

        monkeypatch.setattr(registry_module.datetime, "datetime", Earlier)
        registry.promote(digest, "candidate")
        assert "events count, not clocks" in caplog.text
        assert (registry.stage(digest), faults(check_registry(registry))) == ("candidate", [])


def add_and_promote(folder: Path, data: Path, worker: int) -> None:
    registry = Registry(folder)
    for step in range(5):
        path = data / f"{worker}-{step}.jsonl"
        path.write_text(f"{worker} {step}\n")
        registry.add(str(path), by=f"w{worker}")
    for stage in ("candidate", "draft") * 3:
        with contextlib.suppress(InvalidRegistry):  # another was faster
            registry.promote("shared", stage, by=f"w{worker}")  # type: ignore[arg-type]


class TestTwoWriters:
    def test_lose_nothing(self, registry: Registry, artefact: Path, tmp_path: Path) -> None:
        shared, _ = registry.add(str(artefact), name="shared")
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=add_and_promote, args=(registry.folder, tmp_path, i)) for i in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert len(registry.records()) == 1 + 3 * 5
        stages = [signed.event.stage for signed in registry.events(shared)]
        assert all(first != second for first, second in itertools.pairwise(stages))
        assert faults(check_registry(registry)) == []


class TestTampering:
    @pytest.fixture
    def history(self, registry: Registry, artefact: Path, tmp_path: Path) -> tuple[str, Path]:
        make_key(tmp_path / "key")
        digest, _ = registry.add(str(artefact), by="ada", key=tmp_path / "key")
        registry.promote(digest, "candidate", by="bo", key=tmp_path / "key")
        registry.promote(digest, "production", by="cy", key=tmp_path / "key")
        return digest, tmp_path / "key"

    def change(self, path: Path, old: str, new: str) -> None:
        path.chmod(0o644)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def test_of_nothing_is_no_fault(self, registry: Registry, history: tuple[str, Path]) -> None:
        trusted = public_keys([f"{history[1]}.pub"])
        review = check_registry(registry, trusted=trusted, require_signatures=True)
        assert (review.holds, review.records, review.events, review.signed, review.findings) == (True, 1, 3, 3, ())

    def test_with_a_record_is_found(self, registry: Registry, history: tuple[str, Path]) -> None:
        self.change(registry.record_path(history[0]), "answers", "answerz")
        assert any("has another hash" in fault for fault in faults(check_registry(registry)))

    def test_with_the_artefact_is_found(self, registry: Registry, history: tuple[str, Path], artefact: Path) -> None:
        artefact.write_text('{"prompt": "a", "answer": "c"}\n')
        (fault,) = faults(check_registry(registry))
        assert "answers.jsonl has changed" in fault
        assert faults(check_registry(registry, artefacts=False)) == []

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_with_an_event_is_found(self, registry: Registry, history: tuple[str, Path], number: int) -> None:
        path = registry.event_paths(history[0])[number - 1]
        self.change(path, '"by":"', '"by":"not ')
        assert any("signature that does not hold" in fault for fault in faults(check_registry(registry)))

    def test_with_an_unsigned_event_is_found_where_another_follows(self, registry: Registry, artefact: Path) -> None:
        digest, _ = registry.add(str(artefact), by="ada")
        registry.promote(digest, "candidate", by="bo")
        self.change(registry.event_paths(digest)[0], "ada", "eve")
        assert any("does not follow the one before" in fault for fault in faults(check_registry(registry)))

    def test_by_leaving_an_event_out_is_found(self, registry: Registry, history: tuple[str, Path]) -> None:
        registry.event_paths(history[0])[1].unlink()
        assert any("does not follow" in fault for fault in faults(check_registry(registry)))

    def test_by_another_s_key_is_found(self, registry: Registry, history: tuple[str, Path], tmp_path: Path) -> None:
        make_key(tmp_path / "eve")
        registry.promote(history[0], "draft", by="ada", key=tmp_path / "eve")
        assert faults(check_registry(registry)) == []
        (fault,) = faults(check_registry(registry, trusted=public_keys([f"{history[1]}.pub"])))
        assert "a key that is not trusted" in fault

    def test_by_taking_signatures_off_is_found_where_they_are_required(
        self, registry: Registry, artefact: Path
    ) -> None:
        registry.add(str(artefact))
        assert faults(check_registry(registry)) == []
        assert any("not signed" in fault for fault in faults(check_registry(registry, require_signatures=True)))

    def test_damage_is_said_and_the_rest_can_be_read(
        self, registry: Registry, history: tuple[str, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "more.jsonl").write_text("x\n")
        other, _ = registry.add(str(tmp_path / "more.jsonl"))
        path = registry.record_path(history[0])
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:40])
        assert list(registry.records()) == [other]
        assert any("damaged" in fault for fault in faults(check_registry(registry)))

    def test_foreign_files_are_noted_and_left_alone(self, registry: Registry, history: tuple[str, Path]) -> None:
        (registry.folder / "notes.txt").write_text("mine")
        review = check_registry(registry)
        assert [(one.severity, one.place) for one in review.findings][:1] == [("note", "notes.txt")]
        assert (registry.folder / "notes.txt").read_text() == "mine"


class TestKeys:
    def test_are_their_owner_s_alone(self, tmp_path: Path, registry: Registry, artefact: Path) -> None:
        public, text = make_key(tmp_path / "key")
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
        assert public_keys([str(public)]) == public_keys([text]) == {text}
        with pytest.raises(OutputExists):
            make_key(tmp_path / "key")
        (tmp_path / "key").chmod(0o644)
        with pytest.raises(InvalidRegistry, match="chmod 600"):
            registry.add(str(artefact), key=tmp_path / "key")
        with pytest.raises(InvalidRegistry, match="no signing key"):
            registry.add(str(artefact), key=public)
        with pytest.raises(InvalidRegistry, match=r"key is not a public key; give the \.pub file"):
            public_keys([str(tmp_path / "key")])
        with pytest.raises(InvalidRegistry, match=r"There is no file .*nowhere\.pub; give the \.pub file"):
            public_keys([str(tmp_path / "nowhere.pub")])


class TestDisks:
    def test_that_are_full_lose_nothing(
        self, registry: Registry, artefact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digest, _ = registry.add(str(artefact))
        (tmp_path / "b.jsonl").write_text("b\n")

        def full(*args: Any, **options: Any) -> Any:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr("poise.storage.atomic_write.os.fsync", full)
            with pytest.raises(SaveFailed, match="free some space"):
                registry.add(str(tmp_path / "b.jsonl"))
            with pytest.raises(SaveFailed, match="free some space"):
                registry.promote(digest, "candidate")
        assert (list(registry.records()), registry.stage(digest)) == ([digest], "draft")
        assert faults(check_registry(registry)) == []

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser writes everywhere")
    def test_that_are_read_only_say_so(self, registry: Registry, artefact: Path) -> None:
        digest, _ = registry.add(str(artefact))
        (registry.folder / "events" / digest).chmod(0o500)
        with pytest.raises(SaveFailed, match="get permission"):
            registry.promote(digest, "candidate")

    def test_of_others_are_no_registry(self, tmp_path: Path) -> None:
        (tmp_path / "photo.jpg").write_bytes(b"1")
        with pytest.raises(InvalidRegistry, match="holds files and is no registry"):
            Registry(tmp_path)
        with pytest.raises(InvalidRegistry, match="is a file"):
            Registry(tmp_path / "photo.jpg")


class TestTheCommand:
    def run(self, *words: str) -> Any:
        return CliRunner().invoke(app, ["registry", *words])

    def test_carries_a_record_through_its_stages(self, tmp_path: Path, artefact: Path) -> None:
        folder = ("--registry", str(tmp_path / "r"))
        assert self.run("keygen", "--out", str(tmp_path / "k")).exit_code == 0
        done = self.run("add", str(artefact), *folder, "--name", "answers", "--fact", "licence=mit", "--fact", "rows=1")
        assert re.match(r"[0-9a-f]{12}  data  answers\n", done.stdout), done.output
        done = self.run("promote", "answers", "--to", "candidate", *folder, "--by", "ada", "--key", str(tmp_path / "k"))
        assert re.match(r"answers: candidate by ada at 20..-.*, signed\n", done.stdout), done.output
        assert "candidate   answers  (ada, " in self.run("list", *folder).stdout
        assert "licence   mit" in self.run("show", "answers", *folder).stdout
        facts = json.loads(self.run("show", "answers", *folder, "--json").stdout)
        assert (facts["facts"]["rows"], len(facts["events"])) == (1, 2)
        done = self.run("verify", *folder, "--trusted", str(tmp_path / "k.pub"))
        assert (done.exit_code, "1 record, 2 events, 1 of them signed: all as it was" in done.stdout) == (0, True)
        artefact.write_text("x")
        done = self.run("verify", *folder)
        assert (done.exit_code, "FAULT   answers" in done.stdout) == (1, True)

    def test_says_what_is_wrong(self, tmp_path: Path) -> None:
        done = self.run("list", "--registry", str(tmp_path / "none"))
        assert (done.exit_code, "poise registry add" in done.stderr) == (2, True)
        assert self.run("add", str(tmp_path), "--fact", "x").exit_code == 2

    def test_records_what_was_recorded_with_its_origin_once(self, tmp_path: Path, artefact: Path) -> None:
        folder = ("--registry", str(tmp_path / "r"))
        (tmp_path / "rows.jsonl").write_text('{"user": "hello"}\n')
        assert self.run("add", str(artefact), "--name", "base", *folder).exit_code == 0
        first = self.run("add", str(tmp_path / "rows.jsonl"), "--parent", "base", *folder).stdout
        again = self.run("add", str(tmp_path / "rows.jsonl"), *folder).stdout
        assert again == first.replace("\n", "  (recorded before)\n")
        assert self.run("list", *folder).stdout.count("rows") == 1
