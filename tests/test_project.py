"""``poise project`` and ``poise card``: where a use case stands by its records, and what cards say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.cli.project import next_command
from poise.errors import InvalidSettings, OutputExists
from poise.lifecycle.annex import ANNEX_IV, technical_annex
from poise.lifecycle.cards import check_card, record_card
from poise.lifecycle.project import CHECKLIST, begin_project, read_project
from poise.lifecycle.project_status import project_steps
from poise.lifecycle.registry import Registry
from poise.vector import save_vector
from steered_passes import no_warnings

ESTIMATE = {"value": 1.5, "low": 1.0, "high": 2.0, "n": 12}


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    path = tmp_path / "project.yaml"
    begin_project(path, use_case='Answer "how do I" questions: briefly', responsible="Ada", candidates=("m",))
    return path


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def vector(registry: Registry, tmp_path: Path) -> str:
    """A model and a vector of it, with a report on the vector."""
    model = tiny.model()
    with no_warnings():
        model.lm.save_pretrained(tmp_path / "base")
        model.tokenizer.save_pretrained(tmp_path / "base")
    save_vector(tiny.vector(model), tmp_path / "grumpy.safetensors")
    (tmp_path / "talk.jsonl").write_text("{}\n")
    registry.add(str(tmp_path / "base"))
    registry.add(str(tmp_path / "talk.jsonl"))
    digest, _ = registry.add(
        str(tmp_path / "grumpy.safetensors"), parents=["base", "talk.jsonl"], facts={"licence": "apache-2.0"}, by="ada"
    )
    return digest


class TestTheFile:
    def test_is_read_back_as_it_was_begun(self, project: Path) -> None:
        read = read_project(project)
        assert (read.use_case, read.responsible, read.candidates) == (
            'Answer "how do I" questions: briefly',
            "Ada",
            ("m",),
        )
        assert read.requirements.licences == ("apache-2.0", "mit")
        assert read.checklist.answered("open") == list(CHECKLIST)
        with pytest.raises(OutputExists, match="edit it"):
            begin_project(project, use_case="x", responsible="y")

    def test_says_what_is_wrong_by_line(self, project: Path) -> None:
        text = project.read_text().replace("licences: [apache-2.0, mit]", "licenses: [mit]\n  memory_mib: -1")
        project.write_text(text)
        with pytest.raises(InvalidSettings, match=r"(?s)line .*licences.*memory_mib"):
            read_project(project)


class TestStatus:
    def step(self, project: Path) -> tuple[str, str]:
        steps = project_steps(project, read_project(project))
        return next((step.name for step in steps if not step.done), ""), next_command(steps)

    def test_follows_the_records(self, project: Path, registry: Registry, vector: str, tmp_path: Path) -> None:
        assert self.step(project)[0] == "is a model needed"
        project.write_text(project.read_text().replace('"open"', '"no"'))
        assert self.step(project) == ("choose", f"poise choose {project} --out choice --record")
        (tmp_path / "choice.json").write_text(json.dumps({"candidates": [{"name": "m"}]}))
        registry.add(str(tmp_path / "choice.json"))
        assert self.step(project)[0] == "evaluate"  # the vector counts as an improvement
        (tmp_path / "bias.json").write_text(json.dumps({"gaps": [{"name": "x", "gap": ESTIMATE}]}))
        registry.add(str(tmp_path / "bias.json"), parents=[vector])
        name, command = self.step(project)
        assert (name, command.split()[:3], command.split()[4:6]) == (
            "deploy", ["poise", "registry", "promote"], ["--to", "candidate"]
        )  # fmt: skip
        (tmp_path / "rows.jsonl").write_text('{"user": "a"}\n')
        rows, _ = registry.add(str(tmp_path / "rows.jsonl"))
        registry.promote(rows, "candidate")
        registry.promote(rows, "production")
        assert self.step(project)[0] == "deploy"  # data answer nobody
        registry.promote(vector, "candidate")
        assert "--to production" in self.step(project)[1]
        registry.promote(vector, "production")
        assert self.step(project) == (
            "watch",
            f"poise serve --model m --vector {tmp_path / 'grumpy.safetensors'} --log {tmp_path / 'readings.sqlite'}",
        )
        (tmp_path / "readings.sqlite").touch()
        look, add = self.step(project)[1].splitlines()
        assert look.startswith("poise dashboard --server ")
        assert look.endswith(f"--once --json > {tmp_path / 'watch.json'}")
        assert add.split()[:4] == ["poise", "registry", "add", str(tmp_path / "watch.json")]
        (tmp_path / "week.json").write_text(json.dumps({"drift": {}}))
        registry.add(str(tmp_path / "week.json"))
        assert self.step(project) == ("", "")

    def test_says_what_speaks_against_a_model(self, project: Path) -> None:
        text = project.read_text().replace('"open"', '"no"')
        project.write_text(
            text.replace('rules_suffice: {answer: "no", why: ""}', "rules_suffice: {answer: 'yes', why: a table}")
        )
        first = project_steps(project, read_project(project))[0]
        assert (first.done, first.state) == (
            True, "1 of 4 answers speak against a model: rules_suffice (a table)"
        )  # fmt: skip

    def test_by_the_command(self, tmp_path: Path) -> None:
        path = str(tmp_path / "p.yaml")
        done = run("project", "status", path)
        assert (done.exit_code, "begin one with `poise project init`" in done.output) == (2, True)
        done = run(
            "project", "init", path, "--use-case", "u", "--responsible", "r", "--answer", "rules_suffice=no:free text"
        )
        assert done.exit_code == 0, done.output
        assert "no    Could fixed rules" in run("project", "check", path).stdout
        done = run("project", "status", path)
        assert "is a model needed  not answered: cost_too_high" in done.stdout
        assert run("project", "next", path).stdout == f"    poise project check {path}\n"
        assert len(json.loads(run("project", "status", path, "--json").stdout)["steps"]) == 6
        done = run("project", "init", path, "--use-case", "u", "--responsible", "r", "--answer", "rules=no")
        assert (done.exit_code, "rules_suffice" in done.stderr) == (2, True)


class TestCards:
    def test_are_what_hugging_face_reads(self, registry: Registry, vector: str) -> None:
        text = record_card(registry, "grumpy")
        assert check_card(text) == []
        card = ModelCard(text)
        assert (card.data.license, card.data.tags) == ("apache-2.0", ["poise", "poise-vector"])
        assert "It has no certificate" in text
        assert "- from model `base`" in text
        assert "`talk`, 3 bytes" in text
        assert "| draft | ada | " in text
        missing = text.partition("## What was not measured")[2].partition("## ")[0]
        assert missing.count("\n- ") == 4

    def test_are_made_of_every_kind(self, registry: Registry, tmp_path: Path) -> None:
        for kind in ("model", "adapter", "vector", "detector", "guardrail", "knowledge", "data", "report", "project"):
            (tmp_path / kind).write_text(f"{kind}: |\n")
            registry.add(str(tmp_path / kind), kind=kind, name=f"a | {kind}") if kind != "model" else None
        for _, record in registry:
            assert check_card(record_card(registry, record.name)) == [], record.kind

    def test_hold_figures_of_reports_and_no_more_name_them_missing(
        self, registry: Registry, vector: str, tmp_path: Path
    ) -> None:
        (tmp_path / "bias.json").write_text(json.dumps({"gaps": [{"name": "grumpy", "gap": ESTIMATE}]}))
        registry.add(str(tmp_path / "bias.json"), parents=[vector])
        text = record_card(registry, vector)
        assert "| gaps grumpy gap | 1.5 [1, 2], n = 12 |" in text
        assert "bias between groups" not in text.partition("## What was not measured")[2]

    def test_damaged_ones_are_told(self) -> None:
        assert check_card("---\nlicense: [\n---\n# x\n")
        assert check_card("no title") == ["It has no title.", "It has no metadata."]

    def test_the_annex_has_every_point_in_order(self, registry: Registry, vector: str) -> None:
        text = technical_annex(registry, vector, {"use_case": "questions", "responsible": "Ada"})
        places = [text.index(f"### {number} {title}") for number, title, _ in ANNEX_IV]
        assert places == sorted(places)
        assert "- Answers for it: Ada" in text
        assert "### 8 EU declaration of conformity (Article 47)\n\n*not recorded*" in text
        assert "- model `base`" in text

    def test_by_the_command(self, registry: Registry, vector: str, project: Path, tmp_path: Path) -> None:
        folder = ("--registry", str(registry.folder))
        out = tmp_path / "README.md"
        assert run("card", "grumpy", *folder, "--out", str(out)).exit_code == 0
        assert check_card(out.read_text()) == []
        assert run("card", "grumpy", *folder, "--out", str(out)).exit_code == 2
        done = run("card", "grumpy", *folder, "--out", str(out), "--annex", "--project", str(project), "--force")
        assert (done.exit_code, "Annex IV" in out.read_text()) == (0, True), done.output
