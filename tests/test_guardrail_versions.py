"""Versions of guardrails in a folder: drafts that change, numbers that stay."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml
from typer.testing import CliRunner

from poise.cli import app
from poise.errors import InvalidSettings, SaveFailed
from poise.guardrail import load_guardrail, versions
from poise.guardrail.guard_file import FittedGuard
from poise.guardrail.versions import GuardrailSource, guardrail_sources, publish_guardrail

BANK = """\
name: bank  # of the harbour
version: DRAFT  # until it is published
words:
  custom: [rival bank]  # theirs
"""


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    path = tmp_path / "bank.yaml"
    path.write_text(BANK)
    return path


class TestPublishing:
    def test_writes_the_next_number_with_the_comments_as_they_were(self, draft: Path, tmp_path: Path) -> None:
        path, new = publish_guardrail(draft, tmp_path / "kept")
        assert (path, new) == (tmp_path / "kept" / "bank" / "1.yaml", True)
        assert path.read_text() == BANK.replace("version: DRAFT", "version: 1")
        assert path.stat().st_mode & 0o222 == 0
        draft.write_text(BANK.replace("rival bank", "other bank"))
        path, _ = publish_guardrail(draft, tmp_path / "kept")
        assert load_guardrail(path).version == 2
        assert load_guardrail(path.with_name("1.yaml")).words.custom[0].text == "rival bank"  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "text",
        [
            "{name: bank, words: {custom: [a]}}",
            "words: {custom: [a]}\nname: bank\n",
            "version: 7  # old\nname: bank\nwords: {custom: ['version: 3']}\n",
        ],
    )
    def test_numbers_whatever_the_file_looks_like(self, draft: Path, tmp_path: Path, text: str) -> None:
        draft.write_text(text)
        path, _ = publish_guardrail(draft, tmp_path / "kept")
        assert load_guardrail(path) == load_guardrail(draft).model_copy(update={"version": 1})

    def test_writes_nothing_where_nothing_has_changed(self, draft: Path, tmp_path: Path) -> None:
        first, _ = publish_guardrail(draft, tmp_path / "kept")
        draft.write_text(BANK + "# a remark\n")
        assert publish_guardrail(draft, tmp_path / "kept") == (first, False)

    def test_writes_over_nothing_when_two_publish_at_once(self, tmp_path: Path) -> None:
        def publish(n: int) -> Path:
            path = tmp_path / f"{n}.yaml"
            path.write_text(f"name: bank\nwords: {{custom: [word {n}]}}\n")
            return publish_guardrail(path, tmp_path / "kept")[0]

        with ThreadPoolExecutor(8) as pool:
            files = list(pool.map(publish, range(16)))
        words = {yaml.safe_load(file.read_text())["words"]["custom"][0] for file in files}
        assert len({*files}) == len(words) == 16
        assert sorted(int(file.stem) for file in files) == list(range(1, 17))

    def test_gives_a_number_once_to_a_yaml_and_to_what_was_fitted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Their files have different names, so that neither is in the other's way."""
        read = versions.read_guardrail

        def fitted(path: Path) -> GuardrailSource:
            source = read(path)
            return replace(source, fitted=FITTED) if path.parent == tmp_path and int(path.stem) % 2 else source

        FITTED = cast(FittedGuard, SimpleNamespace(same_detectors=lambda other: False))
        monkeypatch.setattr(versions, "read_guardrail", fitted)
        monkeypatch.setattr(versions, "_numbered", lambda source, number: b"name: bank\nwords: {custom: [a]}\n")

        def publish(n: int) -> Path:
            path = tmp_path / f"{n}.yaml"
            path.write_text(f"name: bank\nwords: {{custom: [word {n}]}}\n")
            return publish_guardrail(path, tmp_path / "kept")[0]

        with ThreadPoolExecutor(8) as pool:
            files = list(pool.map(publish, range(16)))
        assert {file.suffix for file in files} == {".yaml", ".guard"}
        assert sorted(int(file.stem) for file in files) == list(range(1, 17))

    def test_says_what_is_in_the_way(self, draft: Path, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "bank").write_text("a file")
        with pytest.raises(SaveFailed, match=r"Cannot write into .*bank: File exists; choose another path"):
            publish_guardrail(draft, tmp_path / "kept")

    def test_is_a_command(self, draft: Path, tmp_path: Path) -> None:
        options = ["guardrail", "publish", str(draft), "--to", str(tmp_path / "kept"), "--json"]
        first, second = (json.loads(CliRunner().invoke(app, options).stdout) for _ in range(2))
        assert first == {"name": "bank", "version": 1, "file": str(tmp_path / "kept/bank/1.yaml"), "new": True}
        assert second == first | {"new": False}


class TestAFolder:
    def test_has_drafts_and_numbers(self, draft: Path, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        publish_guardrail(draft, kept)
        (kept / "bank" / "DRAFT.yaml").write_text(BANK)
        (kept / "bank" / "notes.txt").write_text("no guardrail")
        assert [source.key for source in guardrail_sources([kept])] == [("bank", "DRAFT"), ("bank", "1")]

    def test_without_guardrails_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidSettings, match="holds no guardrails; they lie there"):
            guardrail_sources([tmp_path])

    def test_whose_file_says_another_name_or_number_is_refused(self, draft: Path, tmp_path: Path) -> None:
        path = tmp_path / "kept" / "bank" / "3.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(BANK)
        with pytest.raises(InvalidSettings, match="holds bank/DRAFT, and its place says bank/3"):
            guardrail_sources([tmp_path / "kept"])

    def test_with_a_version_twice_is_refused(self, draft: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidSettings, match="are both bank/DRAFT; leave one of them out"):
            guardrail_sources([draft, draft])
