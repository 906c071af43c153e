"""Answers with thoughts on vLLM are steered, read and summed by their parts. Needs vLLM; `make test-vllm`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import thinking
import tiny
from poise.activations import Probe
from poise.engine import Generation, SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import UnsuitableModel
from poise.model import Encoded, Model, wrap
from poise.steer import Steering, SteeringExpression
from poise.vector import PersonaVector, save_vector
from poise.vllm.engine import VllmEngine
from poise.vllm.passes import PassPiece
from poise.vllm.programs import SteeringWork
from preemptions import count_preemptions

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
STEERS = (
    None,
    "up@1=0.5 in thought",
    "up@1=0.5",
    "up@1=0.5 in both",
    "down@2=out in thought after 3",
    "up@1=cap:0 first 5",
    "down@1=0.4 on all in thought",
    "down@1=0.4 on all in both; up@2=floor:1 if up@1>0",
)
NUMBER = 24
SCRIPTS: dict[int, list[int]] = {}


def scripted_processor() -> type[Any]:
    """Lets answers of a seed be those of ``SCRIPTS``; vLLM's passes are run, its choices are not taken."""
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    class Scripted(LogitsProcessor):
        def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
            self.rows: dict[int, Any] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            process_dict_updates(
                self.rows, batch_update, lambda params, prompt, output: (SCRIPTS.get(params.seed), output)
            )

        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            for number, (script, output) in self.rows.items():
                if script is not None:
                    token = script[min(len(output), len(script) - 1)]
                    logits[number] = -torch.inf
                    logits[number, token] = 0.0
            return logits

    return Scripted


@pytest.fixture(scope="module")
def thinker() -> Model:
    return wrap(tiny.lm(**SIZES), thinking.tokenizer("qwen3"), name="tiny-thinker")


@pytest.fixture(scope="module")
def vectors(thinker: Model) -> dict[str, PersonaVector]:
    return {"up": tiny.vector(thinker, seed=1), "down": tiny.vector(thinker, seed=2)}


@pytest.fixture(scope="module")
def engine(thinker: Model, vectors: dict[str, PersonaVector], tmp_path_factory: Any) -> Iterator[VllmEngine]:
    """With prompts read in parts and a cache so small that answers are put aside."""
    root: Path = tmp_path_factory.mktemp("thinker")
    thinker.lm.save_pretrained(root)
    thinker.tokenizer.save_pretrained(root)
    (root / "vectors").mkdir()
    for name, vector in vectors.items():
        save_vector(vector, root / "vectors" / f"{name}.safetensors")
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1", VLLM_CPU_OMP_THREADS_BIND="nobind")
    os.environ["POISE_VECTORS"] = str(root / "vectors")
    settings = {"max_model_len": 256, "block_size": 32, "max_num_batched_tokens": 64, "num_gpu_blocks_override": 13}
    vllm_engine = VllmEngine(
        str(root), dtype="float32", logits_processors=[scripted_processor()], max_num_seqs=8, **settings
    )
    vllm_engine.start()
    yield vllm_engine
    vllm_engine._llm.llm_engine.engine_core.shutdown()


def scripts(thinker: Model) -> dict[int, list[int]]:
    """Answers by seed: most think first, some close a thought that nothing opened, some reply at once or again."""
    said = [" ".join(tiny.SENTENCES[n % 6].split()[: 4 + n % 5]) for n in range(NUMBER)]
    texts = {
        n: f"<think>\n{said[n]}\n</think>\n\n{said[23 - n]}" if n % 5 else f"{said[n]} {said[23 - n]}"
        for n in range(NUMBER)
    }
    texts[7] = f"{said[1]}</think>{said[2]}"
    texts[8] = f"{said[1]}</think>{said[2]}"
    texts[9] = f"{said[3]} <think>{said[4]}</think> {said[5]}"
    return {n: thinker.tokenizer(text, add_special_tokens=False)["input_ids"] for n, text in texts.items()}


def prompts() -> list[Encoded]:
    ids = [tuple(5 + (7 * n + number) % 50 for n in range(20 + 5 * number)) for number in range(NUMBER)]
    return [Encoded(each, len(each), len(each)) for each in ids]


def steerings(vectors: dict[str, PersonaVector]) -> list[Steering | None]:
    written = [STEERS[number % len(STEERS)] for number in range(NUMBER)]
    return [SteeringExpression.parse(text).steering(vectors) if text else None for text in written]


def local_answers(thinker: Model, vectors: dict[str, PersonaVector], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Arguments of ``generate``, and what our engine gives."""
    answers = scripts(thinker)
    thinking.script(monkeypatch, thinker, answers)
    end = thinker.tokenizer.eos_token_id
    SCRIPTS.clear()
    SCRIPTS.update({number: [*ids, end] for number, ids in answers.items()})
    arguments: dict[str, Any] = {
        "prompts": prompts(),
        "sampling": SamplingParams(max_new_tokens=70, temperature=1.0),
        "seeds": list(range(NUMBER)),
        "steering": steerings(vectors),
        "probes": [Probe(layer, vectors["up"].directions[layer]) for layer in (1, 3)],
        "keep_means": True,
    }
    return arguments, LocalEngine(thinker, allow_other_model=True).generate(**arguments)


def assert_same(answers: list[Generation], expected: list[Generation]) -> None:
    for number, (answer, wanted) in enumerate(zip(answers, expected, strict=True)):
        parts = (answer.ids, answer.text, answer.parts, answer.thought, answer.reply, answer.pieces, answer.finish)
        assert parts == (
            *(wanted.ids, wanted.text, wanted.parts, wanted.thought, wanted.reply, wanted.pieces, wanted.finish),
        ), number
        torch.testing.assert_close(answer.readings, wanted.readings, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(answer.mean, wanted.mean, rtol=1e-3, atol=1e-3, equal_nan=True)


def test_the_engine_gives_what_ours_gives(
    engine: VllmEngine, thinker: Model, vectors: dict[str, PersonaVector], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, expected = local_answers(thinker, vectors, monkeypatch)
    assert {part for answer in expected for part in answer.parts} == {"mark", "thought", "reply"}
    assert any(answer.thought for answer in expected)
    assert any(answer.mean.isnan().any() for answer in expected if answer.mean is not None)
    preempted = count_preemptions(monkeypatch)
    assert_same(engine.generate(**arguments), expected)
    assert preempted
    assert_same(engine.generate(**arguments), expected)  # from the prefix cache
    few = {**arguments, "sampling": SamplingParams(max_new_tokens=9, temperature=1.0)}
    assert_same(engine.generate(**few), LocalEngine(thinker, allow_other_model=True).generate(**few))


def test_requests_of_the_plugin_give_what_our_engine_gives(
    engine: VllmEngine, thinker: Model, vectors: dict[str, PersonaVector], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import SamplingParams as VllmSamplingParams

    arguments, expected = local_answers(thinker, vectors, monkeypatch)
    monkeypatch.setenv("POISE_VECTORS", os.environ["POISE_VECTORS"])

    def parameters(number: int) -> Any:
        field = json.dumps({"steer": STEERS[number % len(STEERS)], "watch": ["up"]})
        return VllmSamplingParams(max_tokens=70, temperature=1.0, seed=number, extra_args={"poise": field})

    layer = vectors["up"].at("read").probe.layer
    probe = [Probe(layer, vectors["up"].at("read").probe.direction)]
    expected = LocalEngine(thinker, allow_other_model=True).generate(**(arguments | {"probes": probe}))
    for _ in range(2):
        outputs = engine._llm.generate(
            [{"prompt_token_ids": list(prompt.ids)} for prompt in arguments["prompts"]],
            [parameters(number) for number in range(NUMBER)],
            use_tqdm=False,
        )
        for output, answer in zip(outputs, expected, strict=True):
            [completion] = output.outputs
            assert tuple(completion.token_ids[: len(answer.ids)]) == answer.ids
            torch.testing.assert_close(torch.tensor(completion.poise.values), answer.readings, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fault", ["parts", "sums"])
def test_a_fault_is_noticed(
    engine: VllmEngine,
    thinker: Model,
    vectors: dict[str, PersonaVector],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """Where thoughts are steered as replies are, or summed with them."""
    arguments, expected = local_answers(thinker, vectors, monkeypatch)
    ranges, summed = SteeringWork.ranges, PassPiece.summed_rows

    def all_parts(work: Any, *arguments: Any) -> Any:
        return ranges(replace(work, part="both"), *arguments)

    def all_rows(piece: PassPiece) -> Any:
        last = piece.start + piece.count
        response = piece.state.program.response
        first = min(last, max(piece.start, piece.state.prompt + (response.seen if response else 0)))
        return [piece.rows(first, last)] if first < last else summed(piece)

    if fault == "parts":
        monkeypatch.setattr(SteeringWork, "ranges", all_parts)
    else:
        monkeypatch.setattr(PassPiece, "summed_rows", all_rows)
    with pytest.raises(AssertionError, match="not close"):
        assert_same(engine.generate(**arguments), expected)


def test_channels_are_refused(tmp_path: Path) -> None:
    model = wrap(tiny.lm(**SIZES), thinking.tokenizer("harmony"), name="tiny-harmony")
    model.lm.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsuitableModel, match="have channels"):
        VllmEngine(str(tmp_path))
