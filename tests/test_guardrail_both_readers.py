"""Rules that the model's activations and the sentence encoder read together: fitted, kept in a file, acted on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import serving
import thinking
from poise.errors import InvalidArgument, InvalidSettings
from poise.guardrail import Guardrail, load_guardrail
from poise.guardrail.activation import ActivationReader
from poise.guardrail.encoder_reader import EncoderReader
from poise.guardrail.fitting import GuardFitSettings, fit_guard
from poise.guardrail.guard_file import FittedGuard, load_guard
from poise.guardrail.judging import DetectorReader, judged_reader
from poise.serve.guardrail_set import read_guardrails
from test_guardrail_encoder import ON_TOPIC
from test_guardrail_fit import RULES, TALK
from test_serve_guardrail import chat, chunks, said

TOPIC: dict[str, Any] = {**RULES["topics"][0], "read_by": "both", "output": "SKIP"}
BOTH: dict[str, Any] = {**RULES, "topics": [TOPIC]}
SETTINGS = GuardFitSettings(rate=0.05, layer=1)


@pytest.fixture(scope="module")
def fitted() -> FittedGuard:
    return fit_guard(Guardrail.model_validate(BOTH), thinking.model("qwen3"), TALK, SETTINGS)


@pytest.fixture(scope="module")
def http(fitted: FittedGuard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("guards") / "a.guard"
    fitted.save(path)
    with (
        serving.running(thinking.model("qwen3"), {}, guardrail=path) as (address, _),
        httpx.Client(base_url=address, timeout=120) as client,
    ):
        yield client


class TestFitting:
    def test_gives_one_detector_with_a_direction_in_each(self, fitted: FittedGuard, tmp_path: Path) -> None:
        [detector] = fitted.header.detectors
        assert (detector.read_by, detector.layer, detector.source) == ("both", 1, "INPUT")
        assert fitted.activation_detectors == fitted.encoder_detectors == (detector,)
        assert fitted.directions.shape == (1, thinking.model("qwen3").width)
        assert fitted.encoder_directions.shape == (1, 384)
        fitted.save(tmp_path / "a.guard")
        assert load_guard(tmp_path / "a.guard").same_detectors(fitted)
        assert read_guardrails(tmp_path / "a.guard", thinking.model("qwen3")).names == ["harbour/DRAFT"]

    def test_keeps_the_rate_on_the_talk_and_finds_the_topic(self, fitted: FittedGuard) -> None:
        reader = judged_reader(fitted, thinking.model("qwen3"))
        stopped = [bool(reader(str(row["messages"][0]["content"]), "INPUT")) for row in TALK]  # type: ignore[index]
        assert 0 < np.mean(stopped) <= 0.06
        [detector] = fitted.header.detectors
        assert (detector.point.rate, detector.figures.auc > 0.9) == (0.05, True)
        [finding] = reader(ON_TOPIC, "INPUT")
        assert (finding.rule, finding.action) == ("boats", "BLOCK")

    def test_reads_the_sum_of_two_readings(self, fitted: FittedGuard) -> None:
        model = thinking.model("qwen3")
        [(_, by_model)] = ActivationReader(fitted, model).projections(ON_TOPIC, "INPUT")
        [(_, by_encoder)] = EncoderReader(fitted).projections(ON_TOPIC, "prompt")
        [(_, value)] = DetectorReader(fitted, model, lambda work: work()).projections(ON_TOPIC, "INPUT")
        assert value == pytest.approx(by_model + by_encoder)

    def test_decides_nothing_by_one_of_the_two(self, fitted: FittedGuard) -> None:
        assert DetectorReader(fitted, None, lambda work: work()).projections(ON_TOPIC, "INPUT") == []
        assert EncoderReader(fitted).findings(ON_TOPIC, "prompt") == []
        assert ActivationReader(fitted, thinking.model("qwen3"))(ON_TOPIC, "INPUT") == []

    def test_needs_a_model(self) -> None:
        with pytest.raises(InvalidArgument, match="give the `model`"):
            fit_guard(Guardrail.model_validate(BOTH), None, TALK, SETTINGS)

    @pytest.mark.parametrize(
        "rules",
        [
            {"topics": [{**RULES["topics"][0], "read_by": "both"}]},
            {"content": [{"type": "HATE", "read_by": "both"}]},
            {"content": [{"type": "INDIRECT_ATTACK", "read_by": "both"}]},
        ],
    )
    def test_is_for_prompts_alone(self, rules: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(json.dumps({"name": "a", **rules}, indent=1))
        with pytest.raises(InvalidSettings, match=r"read_by.* is both"):
            load_guardrail(tmp_path / "a.yaml")


class TestServing:
    @pytest.mark.parametrize("stream", [False, True])
    def test_stops_prompts(self, http: httpx.Client, stream: bool) -> None:
        answer = chat(http, ON_TOPIC, stream=stream)
        last = chunks(answer)[-1]["choices"][0] if stream else answer.json()["choices"][0]
        text = said(chunks(answer)) if stream else last["message"]["content"]
        assert (text, last["finish_reason"]) == ("No boats.", "content_filter")
        [fact] = last["poise"]["guardrail"]
        assert (fact["policy"], fact["rule"], fact["source"], fact["rate"]) == ("topics", "boats", "INPUT", 0.05)
        assert fact["score"] > fact["threshold"]

    def test_reads_as_bedrocks_route_does(self, http: httpx.Client, fitted: FittedGuard) -> None:
        [(detector, value)] = DetectorReader(fitted, thinking.model("qwen3"), lambda work: work()).projections(
            ON_TOPIC, "INPUT"
        )
        [fact] = chat(http, ON_TOPIC).json()["choices"][0]["poise"]["guardrail"]
        assert fact["score"] == pytest.approx(value - detector.centre, abs=0.02)
        body = {"source": "INPUT", "content": [{"text": {"text": ON_TOPIC}}]}
        answer = http.post("/guardrail/harbour/version/DRAFT/apply", json=body).json()
        assert answer["action"] == "GUARDRAIL_INTERVENED"

    def test_lets_other_talk_and_blank_prompts_pass(self, http: httpx.Client) -> None:
        for text in ("Tell me of the plan and the story, 3.", " "):
            assert chat(http, text, max_tokens=2).json()["choices"][0]["finish_reason"] == "length"

    def test_reads_every_turn_since_the_last_answer(self, http: httpx.Client, fitted: FittedGuard) -> None:
        [fact] = chat(http, ON_TOPIC, " ", max_tokens=2).json()["choices"][0]["poise"]["guardrail"]
        assert fact["rule"] == "boats"

    def test_reads_each_prompt_of_a_completion(self, http: httpx.Client) -> None:
        calm = "Tell me of the plan and the story, 3."
        body = {"model": "tiny-qwen3", "prompt": [calm, ON_TOPIC], "max_tokens": 2, "n": 2}
        choices = http.post("/v1/completions", json=body).json()["choices"]
        assert len(choices) == 4
