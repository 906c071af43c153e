"""Answers of a model that thinks are judged, read and kept by their reply, the thought beside it; never both as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import thinking
import tiny
from poise.activations import reference_norm
from poise.contrast import ContrastSet, Response, ResponseRequest, ResponseStore, exemplars, prompted
from poise.contrast.rollout import steering_key, stream
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.errors import TooFewResponses
from poise.extract import extract
from poise.judge import Judgement
from poise.judge.agreement import check_agreement
from poise.model import Encoded, Model, ask
from poise.screen.base_answers import BaseAnswers
from poise.steer import Steering
from poise.trait import ExemplarPair, library
from thinking import ANSWERS, REPLY, THOUGHT

SAMPLING = SamplingParams(max_new_tokens=120, temperature=1.0)
QUESTION = ResponseRequest(question="Q")


class Judge:
    name = "ears"

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        self.heard += answers
        return [Judgement(60.0)] * len(answers)


def words(model: Model, text: Encoded) -> str:
    return str(model.tokenizer.decode(text.ids[text.start : text.end]))


def answered(model: Model, folder: Path | None = None) -> Response:
    [response] = ResponseStore(folder).answer(
        LocalEngine(model), model, [QUESTION], SAMPLING, what="Answering", keep_means=True
    )
    return response


@pytest.fixture(params=["qwen3", "r1", "harmony"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Model:
    """Thinks though its template was told not to."""
    made = thinking.model(request.param)
    answer = ANSWERS["qwen3" if request.param == "r1" else request.param]
    thinking.script(monkeypatch, made, {stream(QUESTION): answer, 0: answer})
    return made


class TestAnAnswer:
    def test_is_its_reply_with_the_thought_beside_it(self, model: Model) -> None:
        response = answered(model)
        assert (response.text, response.thought) == (REPLY, THOUGHT)
        assert words(model, response.encoded) == REPLY
        assert response.encoded.ids[response.encoded.last_prompt] == model.encode(ask("Q")).ids[-1]

    def test_is_kept_so_and_recalled(self, model: Model, tmp_path: Path) -> None:
        first = answered(model, tmp_path)
        [row] = [json.loads(line)["value"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        assert (row["text"], row["thought"]) == (REPLY, THOUGHT)
        again = answered(model, tmp_path)
        assert (again.text, again.thought, again.encoded) == (first.text, first.thought, first.encoded)
        assert first.mean is not None
        assert again.mean is not None
        assert torch.equal(again.mean, first.mean)

    def test_that_version_0_1_0_kept_as_one_text_is_told_apart_and_read_anew(
        self, model: Model, tmp_path: Path
    ) -> None:
        first = answered(model, tmp_path)
        path = tmp_path / "answers.jsonl"
        old = json.loads(path.read_text())
        old["value"] = {"text": f"<think>{THOUGHT}</think>{REPLY}", "ids": old["value"]["ids"]}
        path.write_text(json.dumps(old) + "\n")
        [means] = (tmp_path / "means").iterdir()
        save_file({"means": torch.zeros_like(load_file(means)["means"])}, means)  # over thought and reply, then
        again = answered(model, tmp_path)
        assert (again.text, again.thought, again.encoded) == (first.text, first.thought, first.encoded)
        assert first.mean is not None
        assert again.mean is not None
        assert torch.equal(again.mean, first.mean)

    def test_is_judged_by_its_reply(self, model: Model) -> None:
        judge = Judge()
        ResponseStore(None).judge(judge, [answered(model)], scope="trait", what="Judging")
        assert judge.heard == [REPLY]

    def test_that_is_a_thought_alone_is_empty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, {stream(QUESTION): "<think>\nThe boats go"})
        response = answered(model)
        assert (response.text, response.thought) == ("", "The boats go")
        assert response.encoded.start == response.encoded.end
        assert response.mean is not None
        assert bool(response.mean.isnan().all())

    def test_without_a_thought_is_kept_as_before(self, tmp_path: Path) -> None:
        response = answered(tiny.model(), tmp_path)
        [row] = [json.loads(line)["value"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        assert row == {"text": response.text, "ids": list(response.encoded.ids[response.encoded.start :])}
        assert (response.thought, response.encoded.prompt_end) == ("", None)


class TestAVector:
    def test_has_its_unit_measured_on_replies(self, model: Model) -> None:
        response, n = answered(model), 4
        contrast = ContrastSet(
            trait=tiny.trait(),
            source="exemplars",
            positive=(response,) * n,
            negative=(response,) * n,
            dropped={},
            model=model.fingerprint,
        )
        ids = response.encoded.ids
        bare = Encoded(ids, response.encoded.start, response.encoded.end)
        torch.testing.assert_close(extract(contrast, model).reference_norm, reference_norm(model, [bare]))

    def test_of_prompted_contrast_drops_pairs_that_only_think(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, trait = thinking.model("qwen3"), library.load_trait("impolite")
        monkeypatch.setattr("poise.engine.static_batch.StaticBatch._sample", _always(model, "<think>"))
        with pytest.raises(
            TooFewResponses, match=r"positive only a thought\); its answers end inside their thoughts: allow"
        ):
            prompted(
                trait,
                LocalEngine(model),
                model,
                Judge(),
                lambda questions, answers: Judge(),
                sampling=SamplingParams(max_new_tokens=4),
                questions=1,
                rollouts=1,
                run=ResponseStore(None),
            )

    def test_of_exemplars_reads_their_replies(self, model: Model) -> None:
        pair = ExemplarPair(question="Q", positive=f"<think>{THOUGHT}</think>{REPLY}", negative="Gladly.")  # type: ignore[call-arg]
        trait = library.own_trait("grumpy", [pair] * 8)
        contrast = exemplars(trait, model)
        assert {(r.text, r.thought) for r in contrast.positive} == {(REPLY, THOUGHT)}
        assert words(model, contrast.positive[0].encoded).strip() == REPLY


def _always(model: Model, opening: str) -> Any:
    """Draw a thought that never ends."""
    ids = [*model.tokenizer(f"{opening}\nhm", add_special_tokens=False)["input_ids"]]

    def sample(self: Any, logits: torch.Tensor, step: int) -> torch.Tensor:
        return torch.full((len(logits),), ids[min(step, len(ids) - 1)])

    return sample


def test_labelled_answers_are_judged_by_their_replies() -> None:
    judge = Judge()
    answers = [f"<think>{THOUGHT}</think>{REPLY}", "Gladly."]
    check_agreement(judge, ["Q", "Q2"], answers, [True, False])
    assert judge.heard == [REPLY, "Gladly."]


def test_an_exemplar_judge_learns_from_replies() -> None:
    from poise.judge.exemplars import ExemplarJudge

    pairs = [(f"Q{n}", f"No, {n} times no.", f"Gladly, {n} times.") for n in range(12)]
    fitted = [
        ExemplarJudge.fit([ExemplarPair(question=q, positive=mark + a, negative=mark + b) for q, a, b in pairs])  # type: ignore[call-arg]
        for mark in ("", f"<think>{THOUGHT}</think>")
    ]
    assert fitted[0](["Q"], ["No."]) == fitted[1](["Q"], ["No."])


def test_the_model_s_own_answers_of_a_screening_are_replies(model: Model, tmp_path: Path) -> None:
    answers = BaseAnswers(model, tmp_path, max_new_tokens=120)
    prompt = model.encode(ask("Q"))
    for _ in range(2):  # the second time from what was kept
        [response] = answers.generate([prompt])
        assert (answers.decode(response), words(model, response)) == (REPLY, REPLY)
        assert not answers.is_cut(response)
        assert response.ids[response.last_prompt] == prompt.ids[-1]


def test_steering_in_another_part_is_another_answer() -> None:
    vector = tiny.vector(tiny.model())
    keys = [steering_key(Steering.add(vector, coef=1.0, part=part)) for part in ("reply", "thought", "both")]
    assert len({json.dumps(key) for key in keys}) == 3
    assert len(keys[0][0]) == 7  # type: ignore[arg-type]  # as version 0.1.0 wrote it
