"""``poise choose``: candidates held to requirements, and a recommendation only where the figures tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.lifecycle.choice import CandidateFacts, CheckedRequirement, _bound, _recommendation
from poise.lifecycle.project import begin_project
from poise.statistics.estimates import Estimate
from steered_passes import no_warnings


def estimate(low: float, high: float) -> Estimate:
    return Estimate(value=(low + high) / 2, low=low, high=high, n=8)


def candidate(name: str, speed: tuple[float, float], *states: Any) -> CandidateFacts:
    checks = tuple(CheckedRequirement(name=f"r{i}", state=state, text="") for i, state in enumerate(states))
    return CandidateFacts(name=name, tokens_per_second=estimate(*speed), checks=checks)


@pytest.mark.parametrize(
    ("interval", "state"),
    [((5, 8), "kept"), ((5, 12), "unsure"), ((11, 12), "broken"), ((1, 3), "unsure"), ((0, 1), "broken")],
)
def test_a_bound_is_kept_or_broken_by_the_whole_interval(interval: tuple[float, float], state: str) -> None:
    assert _bound("x", estimate(*interval), at_least=2, at_most=10).state == state


def test_what_has_no_interval_is_not_measured() -> None:
    assert _bound("x", None, at_least=2).state == "not measured"
    assert _bound("x", Estimate(value=1, low=None, high=None, n=1), at_most=2).state == "not measured"


def test_the_fastest_that_keeps_everything_is_recommended_where_it_is_told_apart() -> None:
    slow, fast = candidate("slow", (8, 9), "kept"), candidate("fast", (20, 22), "kept")
    name, why = _recommendation([slow, fast])
    assert (name, "2.5 times as fast as slow" in why) == ("fast", True)
    assert _recommendation([slow, candidate("fast", (20, 22), "kept", "broken")])[0] == "slow"
    name, why = _recommendation([slow, candidate("alike", (8.5, 10), "kept")])
    assert (name, why.startswith("Unsure: alike and slow")) == ("", True)
    name, why = _recommendation([candidate("a", (1, 2), "kept", "unsure"), candidate("b", (1, 2), "broken")])
    assert (name, "a: r1" in why) == ("", True)
    assert _recommendation([candidate("b", (1, 2), "broken")]) == ("", "No candidate keeps the requirements.")


def test_the_command_measures_and_records(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with no_warnings():
            tiny.lm(max_position_embeddings=512).save_pretrained(tmp_path / name)
            tiny.chatml().save_pretrained(tmp_path / name)
    (tmp_path / "a" / "README.md").write_text("---\nlicense: mit\n---\n# a\n")
    path = tmp_path / "project.yaml"
    begin_project(
        path,
        use_case="u",
        responsible="r",
        candidates=(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "none")),
    )
    path.write_text(path.read_text().replace("  # memory_mib: 2000", "  memory_mib: 20  "))
    words = ["choose", str(path), "--out", str(tmp_path / "choice"), "--max-new-tokens", "4", "--record", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    first, second, gone = json.loads(done.stdout)["candidates"]
    assert [check["state"] for check in first["checks"]] == ["kept", "kept"]
    assert [check["state"] for check in second["checks"]] == ["not measured", "kept"]
    assert "There is no model at" in gone["fault"]
    assert first["parameters"] == sum(p.numel() for p in tiny.lm(max_position_embeddings=512).parameters())
    assert json.loads(done.stdout)["recommended"] == str(tmp_path / "a")
    page = (tmp_path / "choice" / "choice.html").read_text()
    assert "<script" not in page
    assert str(tmp_path / "a") in page
    assert "choose             compared: choice" in CliRunner().invoke(app, ["project", "status", str(path)]).stdout


def test_an_endpoint_is_measured_by_what_it_answers(tmp_path: Path) -> None:
    import serving

    with serving.running() as (address, server):
        name = f"endpoint:{server.service.name}@{address}/v1"
        path = tmp_path / "project.yaml"
        begin_project(path, use_case="u", responsible="r", candidates=(name, "endpoint:x@http://127.0.0.1:9/v1"))
        text = path.read_text().replace("  # memory_mib: 2000 ", "  memory_mib: 2000 ")
        path.write_text(text.replace("licences: [apache-2.0, mit]", "capability: {arc_easy: 0.5}"))
        done = CliRunner().invoke(
            app, ["choose", str(path), "--out", str(tmp_path / "out"), "--max-new-tokens", "4", "--json"]
        )
    assert done.exit_code == 0, done.output
    served, away = json.loads(done.stdout)["candidates"]
    assert served["tokens_per_second"]["n"] == 8
    assert {check["name"]: check["state"] for check in served["checks"]} == {
        "memory ≤ 2000 MiB": "not measured",
        "capability arc_easy ≥ 0.5": "not measured",
    }
    assert served["unmeasured"] == {"arc_easy": "it is behind an endpoint"}
    assert "does not answer" in away["fault"]


@pytest.mark.slow
def test_tasks_and_guardrails_are_measured_or_said(tmp_path: Path) -> None:
    from poise.lifecycle.choice import measure_candidate
    from poise.lifecycle.project import Project, ProjectRequirements

    with no_warnings():
        tiny.lm(max_position_embeddings=512).save_pretrained(tmp_path / "a")
        tiny.chatml().save_pretrained(tmp_path / "a")
    rows = [
        {"question": f"What is {i}?", "choices": ["one", "two"], "answer": i % 2, "subject": "sums"} for i in range(12)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "g.yaml").write_text("name: g\nwords: {list: [fog]}\n")
    task = f"sums={tmp_path / 'sums.jsonl'}"
    project = Project(
        use_case="u",
        responsible="r",
        requirements=ProjectRequirements(capability={task: 0.1}, guardrails=("g.yaml", "none.guard")),
    )
    facts = measure_candidate(str(tmp_path / "a"), project, max_new_tokens=2, folder=tmp_path)
    assert facts.capability[task].n == 12
    assert facts.unmeasured == {"g.yaml": "not fitted: it has no detectors", "none.guard": "there is no such file"}
