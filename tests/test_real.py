"""The main job on the real SmolLM2-135M, small: its figures are far from the limits that they are held to."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import poise
from poise import vector as vectors
from poise.judge.exemplars import ExemplarJudge
from poise.model import load_model
from poise.statistics.estimates import auc_estimate
from poise.trait import library
from poise.validate import ValidationSettings
from poise.workflows import GenerationBudget, extract_vector, validate_vector

pytestmark = pytest.mark.real

# Six questions answered once leave the rank correlation's interval open; ten answered twice close it.
SMALL = GenerationBudget(questions=20, rollouts=2, max_new_tokens=32)
NARROW = ValidationSettings(layers=2, depth=(0.55, 0.65), sweep_doses=(0.25,), doses=(0.2,), random_searches=0)


@pytest.fixture(scope="module")
def model() -> poise.Model:
    """As people use it: in the dtype that this machine is fast in."""
    return load_model("smollm2-135m")


def test_impolite_from_exemplars_passes_a_first_look_and_beats_random_directions(
    model: poise.Model, tmp_path: Path
) -> None:
    path = tmp_path / "impolite.safetensors"
    extract_vector(library.load_trait("impolite"), model, path)
    done = validate_vector(path, model, tmp_path / "report", budget=SMALL, settings=NARROW)
    found = done.certificate
    assert found.verdict == "indicative", found.reasons
    reasons = {reason.partition(":")[0] for reason in found.reasons}
    assert {"this is a first look"} <= reasons <= {"this is a first look", "the text may break"}  # by so few answers
    assert found.rise.low is not None
    assert found.rise.low > 10
    assert found.random.margin.low is not None
    assert found.random.margin.low > 10
    assert vectors.load_vector(path).header.certificate == found.model_dump(mode="json")
    assert "<html" in done.report.read_text(encoding="utf-8")
    again = validate_vector(path, model, tmp_path / "report", budget=SMALL, settings=NARROW)
    assert again.certificate == found


def test_the_readmes_python_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the amount, which is cut to what a test may take."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    small = functools.partial(poise.validate_vector, questions=4, rollouts=1, sampling=SMALL.sampling, settings=NARROW)
    monkeypatch.setattr(poise, "validate_vector", small, raising=False)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith(("induced", "indicative", "not-induced"))
    assert [path.name for path in tmp_path.iterdir()] == ["impolite.safetensors"]
    assert vectors.load_vector(tmp_path / "impolite.safetensors").header.certificate is not None


def test_shuffled_sides_are_not_induced(model: poise.Model, tmp_path: Path) -> None:
    rng = random.Random(0)
    pairs = [
        p if rng.random() < 0.5 else p.model_copy(update={"positive": p.negative, "negative": p.positive})
        for p in library.load_trait("impolite").exemplars.extraction
    ]
    path = tmp_path / "shuffled.safetensors"
    extract_vector(library.own_trait("shuffled", pairs), model, path)
    tiny = GenerationBudget(questions=4, rollouts=1, max_new_tokens=16)
    found = validate_vector(path, model, tmp_path / "report", budget=tiny, settings=NARROW).certificate
    assert found.verdict == "not-induced"
    assert any("cannot tell the two sides of unseen pairs apart" in reason for reason in found.reasons)
    assert any("exemplars alone" in note for note in found.notes)


@pytest.mark.parametrize("name", library.names())
def test_the_exemplar_judge_ranks_held_out_pairs(name: str) -> None:
    trait = library.load_trait(name)
    judge = ExemplarJudge.fit(trait.judge_pairs)
    questions = [p.question for p in trait.held_out_pairs]
    sides = [judge(questions, [getattr(p, side) for p in trait.held_out_pairs]) for side in ("positive", "negative")]
    found = auc_estimate(*[[j.score for j in side] for side in sides])
    assert found.value > 0.7
    assert judge.cv_auc.low > 0.5


def test_extraction_killed_outright_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """kill −9 in the middle of sampling, then the same command again, beside a run that nobody killed."""

    def command(name: str) -> list[str]:
        return [
            *(sys.executable, "-m", "poise", "extract", "humorous", "--model", "smollm2-135m"),
            *("--out", str(tmp_path / name), "--contrast", "prompted", "--questions", "2", "--rollouts", "1"),
            *("--max-new-tokens", "16", "--batch", "4", "--json"),
        ]

    answers = tmp_path / "killed.safetensors.run" / "answers.jsonl"
    first = subprocess.Popen(command("killed.safetensors"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while first.poll() is None and not (answers.is_file() and answers.stat().st_size):
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = answers.read_text(encoding="utf-8")
    ends = []
    for name in ("killed.safetensors", "whole.safetensors"):
        done = subprocess.run(command(name), capture_output=True, text=True, check=False)
        ends.append((done.returncode, json.loads(done.stdout) if done.returncode == 0 else done.stderr))
    assert answers.read_text(encoding="utf-8").startswith(before.rpartition("\n")[0])
    assert ends[0][0] == ends[1][0]
    if ends[0][0] == 0:
        assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    else:  # this model hardly acts on system prompts: that nothing came through the filter is an honest end too
        assert ends[0] == ends[1]
        assert "No pair of answers came through the filter" in ends[0][1] or "usable pairs" in ends[0][1]
