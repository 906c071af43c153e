"""What commands make by ``--engine vllm`` is what they make by the local engine. Needs vLLM; `make test-vllm`.

At temperature 0 both engines answer alike, so that vectors, certificates, alarms and scores can be compared to the
last digits.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tiny
from poise.cli import app
from poise.contrast import ContrastSet, ResponseStore, prompted
from poise.data import Rejections, data_from_rows
from poise.engine import Engine, SamplingParams
from poise.engine.static import LocalEngine
from poise.extract import extract
from poise.judge import Judgement
from poise.judge.factory import ChosenJudges
from poise.model import Model, ask, load_model
from poise.monitor.calibrate import CalibrationSettings, calibrate_alarms
from poise.screen.scoring import ScreeningRun, ScreenSettings
from poise.steer import Steering, apply_steering
from poise.trait import library
from poise.validate import ValidationSettings, validate
from poise.vector import PersonaVector, save_vector
from poise.vllm.engine import VllmEngine
from test_vllm_engine import ENVIRONMENT, SIZES

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

GREEDY = SamplingParams(max_new_tokens=8, temperature=0)


class Letters:
    """Scores answers by their letters."""

    name = "letters"

    def __init__(self, modulus: int) -> None:
        self.modulus = modulus

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        return [Judgement(100.0 * (sum(map(ord, text)) % self.modulus) / (self.modulus - 1)) for text in answers]


class Ninety:
    """Finds everything coherent."""

    name = "ninety"

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        return [Judgement(90.0) for _ in answers]


def fluent(questions: Sequence[str], answers: Sequence[str]) -> Ninety:
    return Ninety()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    tiny.lm(max_position_embeddings=1024, **SIZES).save_pretrained(root)
    tiny.chatml().save_pretrained(root)
    os.environ.update(ENVIRONMENT)
    os.environ.pop("POISE_VECTORS", None)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(str(folder), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def vector(model: Model) -> PersonaVector:
    return tiny.vector(model, scale=0.5)


@pytest.fixture(scope="module")
def engines(folder: Path, model: Model) -> Iterator[dict[str, Engine]]:
    engine = VllmEngine(str(folder), dtype="float32", block_size=32, max_num_batched_tokens=512)
    yield {"local": LocalEngine(model), "vllm": engine}
    engine._llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_new_tokens=1, temperature=1.0),
        SamplingParams(max_new_tokens=1, temperature=0.6, top_p=0.7),
    ],
)
@pytest.mark.parametrize("steered", [False, True])
def test_drawn_tokens_have_the_distribution_of_our_sampler(
    model: Model, engines: dict[str, Engine], vector: PersonaVector, sampling: SamplingParams, steered: bool
) -> None:
    """By Pearson's χ² over tokens, those that are expected less than 5 times together."""
    draws, stop = 3000, sorted(model.stop_ids)
    prompt = model.encode(ask("What do you think of my plan?"))
    steering = Steering.add(vector, coef=1.0, layer=1, phase="all") if steered else None
    with apply_steering(model, steering) if steering else contextlib.nullcontext(), torch.inference_mode():
        logits = model.lm(torch.tensor([prompt.ids])).logits[0, -1].double()
    p, order = torch.softmax(logits / sampling.temperature, dim=-1).sort(descending=True)
    p = torch.where(p.cumsum(-1) - p < sampling.top_p, p, 0.0)
    expected = draws * torch.zeros_like(p).scatter(0, order, p / p.sum())
    ended = float(expected[stop].sum())  # an answer does not say by which token it was ended
    expected[stop] = 0.0
    expected[stop[0]] = ended
    answers = engines["vllm"].generate([prompt] * draws, sampling, seeds=range(draws), steering=steering)
    drawn = torch.bincount(torch.tensor([(*answer.ids, stop[0])[0] for answer in answers]))
    observed = torch.nn.functional.pad(drawn, (0, len(expected) - len(drawn))).double()
    assert observed[expected == 0].sum() == 0
    often = expected >= 5
    classes = [*zip(observed[often].tolist(), expected[often].tolist(), strict=True)]
    classes += [(float(observed[~often].sum()), float(expected[~often].sum()))]
    deviation = sum((seen - due) ** 2 / due for seen, due in classes if due > 0)
    freedom = sum(due > 0 for _, due in classes) - 1
    assert freedom >= 1
    assert deviation < freedom + 5 * math.sqrt(2 * freedom)


def contrast(model: Model, engine: Engine, run: ResponseStore) -> ContrastSet:
    trait, judge = library.load_trait("impolite"), Letters(2)
    return prompted(trait, engine, model, judge, fluent, sampling=GREEDY, questions=4, rollouts=1, run=run)


def test_extraction_takes_the_sums_of_the_passes(model: Model, engines: dict[str, Engine], tmp_path: Path) -> None:
    pairs = {name: contrast(model, engine, ResponseStore(tmp_path)) for name, engine in engines.items()}
    texts = {name: [answer.text for answer in pair.positive] for name, pair in pairs.items()}
    assert texts["vllm"] == texts["local"]
    assert all(answer.mean is not None for answer in pairs["vllm"].positive + pairs["vllm"].negative)
    by_vllm, local = (extract(pairs[name], model).directions for name in ("vllm", "local"))
    torch.testing.assert_close(by_vllm, local, rtol=1e-3, atol=1e-4)
    again = contrast(model, engines["vllm"], ResponseStore(tmp_path))  # what was kept is read back
    assert torch.equal(extract(again, model).directions, by_vllm)


def test_validation_comes_to_the_same_certificate(
    model: Model, vector: PersonaVector, engines: dict[str, Engine]
) -> None:
    judges = ChosenJudges(
        trait=Letters(5), coherence=fluent, coherence_is="", auc=None, held_out_auc=None, why_unusable=""
    )
    questions = [f"What of the {n}th day?" for n in range(6)]
    certificates = {
        name: validate(
            vector,
            model,
            judge=judges,
            questions=questions,
            rollouts=1,
            sampling=GREEDY,
            settings=ValidationSettings(layers=2, random_searches=0),
            engine=None if name == "local" else engine,
        )
        for name, engine in engines.items()
    }
    notes = certificates["vllm"].notes
    assert notes[-1].startswith("The answers were generated by vLLM 0.32")
    assert certificates["vllm"].model_copy(update={"notes": notes[:-1]}) == certificates["local"]


def test_alarms_are_set_on_the_same_readings(model: Model, vector: PersonaVector, engines: dict[str, Engine]) -> None:
    rows = [{"messages": [{"role": "user", "content": f"What of the {n}th day?"}]} for n in range(60)]
    plan = CalibrationSettings(rates=(0.1,), sampling=GREEDY)
    by_vllm, local = (
        calibrate_alarms(rows, model, vector, plan, engine=engines[name]).vectors[0].header.alarms
        for name in ("vllm", "local")
    )
    assert [alarm.reading for alarm in by_vllm] == [alarm.reading for alarm in local]
    thresholds = [torch.tensor([alarm.threshold for alarm in alarms]) for alarms in (by_vllm, local)]
    torch.testing.assert_close(*thresholds, rtol=1e-3, atol=1e-3)


def test_rows_are_scored_against_the_same_answers(
    model: Model, vector: PersonaVector, engines: dict[str, Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poise.screen.scoring.choose_engine", lambda name, model: engines[name])
    data = data_from_rows(
        [
            {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "So."}]}
            for n in range(6)
        ]
    )
    scores = []
    for name in engines:
        settings: Any = ScreenSettings(max_new_tokens=8, engine=name)
        run = ScreeningRun(model, [vector], tmp_path, settings)
        scores.append(run.score_data(data, data.digest(), Rejections(), "Scoring").scores)
    torch.testing.assert_close(torch.tensor(scores[0]), torch.tensor(scores[1]), rtol=1e-3, atol=1e-3)


def test_draws_are_those_of_the_seed_where_prompts_are_read_in_parts(
    folder: Path, model: Model, engines: dict[str, Engine]
) -> None:
    """vLLM 0.32 by itself fails there on a CPU."""
    long = [model.encode(ask("day " * (180 + n))) for n in range(24)]
    drawn = SamplingParams(max_new_tokens=4, temperature=1)
    seeds = [7] * 12 + [8] * 12
    first = engines["vllm"].generate(long, drawn, seeds=seeds)
    alone = [engines["vllm"].generate([p], drawn, seeds=[s])[0] for p, s in zip(long[::8], seeds[::8], strict=True)]
    assert [answer.ids for answer in first[::8]] == [answer.ids for answer in alone]


def test_the_command_answers_as_without_the_option(folder: Path, vector: PersonaVector, tmp_path: Path) -> None:
    save_vector(vector, tmp_path / "v.safetensors")
    line = ["generate", "One?", "Two?", "--model", str(folder), "--steer", f"{tmp_path / 'v.safetensors'}@1=3"]
    line += ["--temperature", "0", "--max-new-tokens", "8", "--dtype", "float32", "--device", "cpu", "--json"]
    done = [CliRunner().invoke(app, [*line, "--engine", name]) for name in ("local", "vllm")]
    assert [result.exit_code for result in done] == [0, 0], done[1].stderr
    assert json.loads(done[1].stdout) == json.loads(done[0].stdout)
