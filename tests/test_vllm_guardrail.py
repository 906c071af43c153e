"""A guardrail in ``poise serve --engine vllm`` does what it does on transformers. Needs vLLM; `make test-vllm`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")
pytest.importorskip("re2", reason="needs the extra guardrail")

import serving
from poise.guardrail import Guardrail
from poise.guardrail.activation import ActivationReader
from poise.guardrail.guard_file import DetectorFigures, FittedGuard, GuardDetector, GuardHeader, OperatingPoint
from poise.model import Model
from poise.serve.server import ServedEngine
from poise.vector.header import ModelId
from test_vllm_serve import assert_alike, chat, engine, model, running  # noqa: F401 # the first two are fixtures

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
RULES: dict[str, Any] = {
    "messages": {"input": "Ask something else.", "output": "Not that."},
    "words": {"custom": ["rival bank"]},
    "sensitive": {"types": ["EMAIL"]},
}


def fitted(reader: Model, name: str, **thresholds: float) -> FittedGuard:
    """A guardrail with a detector of a random direction on each way, which acts above these thresholds."""
    figures = DetectorFigures.model_validate(dict.fromkeys(DetectorFigures.model_fields, 0))
    rules = [
        GuardDetector(
            kind="TOPIC",
            rule="boats",
            source=source,
            action="BLOCK",
            layer=2,
            centre=0.0,
            point=OperatingPoint(value=thresholds.get(source, 1e9), rate=0.01, low=0.0, high=0.1, n=100),
            figures=figures,
        )
        for source in ("INPUT", "OUTPUT")
    ]
    topic = {"name": "boats", "definition": "Boats.", "examples": ["a", "b", "c", "d"]}
    header = GuardHeader(
        guardrail=Guardrail.model_validate({"name": name, "topics": [topic], **RULES}),
        model=ModelId.of(reader),
        detectors=tuple(rules),
        window=24,
        rate=0.01,
        seed=0,
        normal={},
        normal_sha256="",
        examples_sha256="",
    )
    return FittedGuard(header, torch.randn(2, reader.width, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def guarded(
    engine: ServedEngine,  # noqa: F811
    model: Model,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, str]]:
    """Addresses of a server on vLLM and of one on transformers, with the same guardrails."""
    folder = tmp_path_factory.mktemp("guards")
    for name, thresholds in {"quiet": {}, "asked": {"INPUT": -1e9}, "answered": {"OUTPUT": -1e9}}.items():
        fitted(model, name, **thresholds).save(folder / f"{name}.guard")
    policy = folder / "policy.yaml"
    policy.write_text(json.dumps({"default": {"may_choose_guardrail": True}}))
    options = {"guardrail": [folder / f"{n}.guard" for n in ("quiet", "asked", "answered")], "policy": policy}
    with running(engine, {}, **options) as (address, _), serving.running(model, {}, **options) as (ours, _):
        yield address, ours


def choices(address: str, text: str, guardrail: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    [choice] = chat(address, messages=messages, max_tokens=40, poise={"guardrail": guardrail}, **more)["choices"]
    return choice


def test_words_block_prompts_and_sensitive_information_is_masked(guarded: tuple[str, str]) -> None:
    answer, ours = (choices(address, "Is a rival bank better?", "quiet") for address in guarded)
    assert (answer["message"]["content"], answer["finish_reason"]) == ("Ask something else.", "content_filter")
    assert_alike(answer, ours)
    answer, ours = (choices(address, "Mail a.b@mail.example", "quiet") for address in guarded)
    assert [fact["rule"] for fact in answer["poise"]["guardrail"]] == ["EMAIL"]
    assert_alike(answer, ours)


def test_words_block_answers_and_no_part_of_one_arrives(
    engine: ServedEngine,  # noqa: F811
    guarded: tuple[str, str],
    tmp_path: Path,
) -> None:
    text = choices(guarded[1], "Where do the boats go?", "quiet")["message"]["content"]
    word = max(text[len(text) // 2 :].split(), key=len)
    guard = tmp_path / "word.yaml"
    guard.write_text(json.dumps({"name": "word", "messages": {"output": "Not that."}, "words": {"custom": [word]}}))
    with running(engine, {}, guardrail=guard) as (address, _):
        body = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Where do the boats go?"}]}
        more = {"max_tokens": 40, "temperature": 0, "stream": True}
        lines = httpx.post(f"{address}/v1/chat/completions", json=body | more, timeout=60).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    came = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert came.endswith("Not that.")
    assert word not in came.removesuffix("Not that.")
    assert events[-1]["choices"][0]["finish_reason"] == "content_filter"


@pytest.mark.parametrize(("guardrail", "message"), [("asked", "Ask something else."), ("answered", "Not that.")])
def test_detectors_read_and_block_as_on_transformers(guarded: tuple[str, str], guardrail: str, message: str) -> None:
    answer, ours = (choices(address, "Where do the boats go?", guardrail) for address in guarded)
    assert (answer["message"]["content"], answer["finish_reason"]) == (message, "content_filter")
    [fact] = answer["poise"]["guardrail"]
    assert (fact["policy"], fact["rule"]) == ("topics", "boats")
    assert_alike(answer, ours)


def test_detectors_that_are_silent_change_nothing(guarded: tuple[str, str]) -> None:
    answer, ours = (choices(address, "Where do the boats go?", "quiet") for address in guarded)
    assert answer["finish_reason"] == "length"
    assert_alike(answer, ours)


def test_bedrocks_route_reads_texts_through_vllm(
    engine: ServedEngine,  # noqa: F811
    model: Model,  # noqa: F811
    tmp_path: Path,
) -> None:
    guard = fitted(model, "asked", INPUT=-1e9, OUTPUT=-1e9)
    guard.save(tmp_path / "asked.guard")
    body = {"source": "INPUT", "content": [{"text": {"text": "Where do the boats go?"}}]}
    with running(engine, {}, guardrail=tmp_path / "asked.guard") as (address, server):
        answer = httpx.post(f"{address}/guardrail/asked/version/DRAFT/apply", json=body, timeout=60).json()
        assert answer["outputs"] == [{"text": "Ask something else."}]
        service = server.service
        read = service.guardrails.numbered("asked", "DRAFT").reader(
            service.model, service.scheduler.call, service.engine.read_text
        )
        assert read
        theirs = [read("Where do the boats go?", source)[0].score for source in ("INPUT", "OUTPUT")]
    reader = ActivationReader(guard, model)
    ours = [reader("Where do the boats go?", source)[0].score for source in ("INPUT", "OUTPUT")]
    assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-3)
