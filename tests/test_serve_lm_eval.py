"""lm-eval's own client of completion servers gives the numbers that lm-eval's own Hugging Face model gives."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import serving
import tiny
from poise.model import Model
from poise.steer import Steering, SteeringExpression, apply_steering

pytest.importorskip("tenacity")  # which lm-eval's clients need
evaluator = pytest.importorskip("lm_eval.evaluator")

STEER = "up=0.4; down=-0.2"
CHOICES = """
task: harbour_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """
task: harbour_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""
ROWS = [
    {"question": "Where do the boats go at five?", "choices": ["out to sea", "home", "to the market"], "answer": 0},
    {
        "question": "What is in the nets — fish or 日本?",
        "choices": ["fish", "日本 and naïve fog", "both 🚣"],
        "answer": 2,
    },
    {"question": "Who mends them?", "choices": ["the old men", "nobody at all"], "answer": 0},
    {"question": "When does the fog lift? " * 8, "choices": ["at noon", "never", "by ten, most days"], "answer": 2},
]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def tokenizer_folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "rows.json"
    data.write_text(json.dumps(ROWS))
    paths = []
    for name, text in (("choices", CHOICES), ("rolling", ROLLING)):
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_text(text.format(data=data))
    return [str(path) for path in paths]


def responses(lm: Any, tasks: list[str]) -> dict[str, list[Any]]:
    """What a model answered to every request of the tasks, with the figures."""
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_defaults=False).load(tasks)
    results = evaluator.evaluate(lm, loaded, bootstrap_iters=0, verbosity=None)
    out = {
        name: [sample["resps"] for sample in sorted(rows, key=lambda row: row["doc_id"])]
        for name, rows in results["samples"].items()
    }
    metrics = {name: [v for k, v in row.items() if "," in k] for name, row in results["results"].items()}
    return out | {f"{name} figures": [v for v in row if isinstance(v, float)] for name, row in metrics.items()}


def by_hugging_face(model: Model, tasks: list[str], steer: str) -> dict[str, list[Any]]:
    from lm_eval.models.huggingface import HFLM

    context: Any = contextlib.nullcontext()
    if steer:
        steering = SteeringExpression.parse(steer).steering(serving.vectors(model))
        context = apply_steering(model, Steering(tuple(replace(term, phase="all") for term in steering.terms)))
    lm = HFLM(pretrained=model.lm, tokenizer=model.tokenizer, batch_size=1, max_length=model.window)
    with context:
        return responses(lm, tasks)


def by_server(model: Model, tasks: list[str], tokenizer: Path, address: str, **settings: Any) -> dict[str, list[Any]]:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    lm = LocalCompletionsAPI(
        model="tiny-llama",
        base_url=f"{address}/v1/completions",
        tokenizer=str(tokenizer),
        tokenizer_backend="huggingface",
        max_length=model.window,
        **settings,
    )
    return responses(lm, tasks)


@pytest.fixture(autouse=True)
def _quietly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lm-eval's own
        yield


def numbers(value: Any) -> list[float]:
    """All numbers in nested lists, in order."""
    if isinstance(value, list | tuple):
        return [number for item in value for number in numbers(item)]
    return [float(value)]


@pytest.mark.parametrize("steer", ["", STEER], ids=["plain", "steered"])
def test_gives_the_numbers_of_the_model_under_our_hooks(
    model: Model, tasks: list[str], tokenizer_folder: Path, tmp_path: Path, steer: str
) -> None:
    expected = by_hugging_face(model, tasks, steer)
    rules = tmp_path / "policy.yaml"
    rules.write_text(json.dumps({"default": {"steer": steer} if steer else {}}))
    with serving.running(model, policy=rules) as (address, _):
        for settings in ({}, {"batch_size": 4}, {"tokenized_requests": False, "num_concurrent": 3}):
            scores = by_server(model, tasks, tokenizer_folder, address, **settings)
            assert scores.keys() == expected.keys()
            for name, values in expected.items():
                assert numbers(scores[name]) == pytest.approx(numbers(values), rel=1e-6, abs=1e-3), (name, settings)
