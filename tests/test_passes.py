"""A conversation's answers, each where the model saw it, in as few passes as its template allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tiny
from poise.activations import project
from poise.data import Conversation, Turn, open_data, turns
from poise.model import Model, ask
from poise.model.spans import AnswerSpan, UnreadAnswer, answer_spans, fit


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama")


TEMPLATES = {"chatml": tiny.chatml, "llama3": tiny.llama3, "gemma": tiny.gemma, "plain": tiny.plain}


def conversation(tmp_path: Path, messages: list[dict[str, str]]) -> list[Turn]:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    row = next(iter(open_data(path)))
    assert isinstance(row, Conversation)
    return turns(row)


LONG_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello there, how are you?"},
    {"role": "assistant", "content": "Fine. And you? "},
    {"role": "user", "content": "Tell me a story."},
    {"role": "assistant", "content": "Once upon a time\nthere was a fox."},
    {"role": "user", "content": "And so it goes  on."},
    {"role": "assistant", "content": "Nobody asked why..."},
]


class TestAConversation:
    @pytest.mark.parametrize("template", TEMPLATES)
    def test_reads_in_one_pass_as_answer_by_answer(self, template: str, tmp_path: Path) -> None:
        model = tiny.model("llama", TEMPLATES[template]())
        probes = tiny.probes([tiny.vector(model, seed=1), tiny.vector(model, seed=2)], 2)
        asked = conversation(tmp_path, LONG_TALK)
        for turn, place in zip(asked, answer_spans(model, asked), strict=True):
            assert isinstance(place, AnswerSpan)
            assert not place.cut
            alone = model.encode(turn.history, turn.answer)
            assert place.text.ids[: place.text.end] == alone.ids
            assert (place.text.start, place.text.end) == (alone.start, alone.end)
            shared = project(model, [place.text], probes)[0][place.text.start - 1 : place.text.end]
            assert torch.allclose(shared, project(model, [alone], probes)[0][alone.start - 1 :], atol=1e-4)

    def test_takes_one_pass_where_the_template_only_appends(self, model: Model, tmp_path: Path) -> None:
        found = answer_spans(model, conversation(tmp_path, LONG_TALK))
        assert len({id(p.text.ids) for p in found if isinstance(p, AnswerSpan)}) == 1

    def test_that_is_longer_than_the_window_is_cut_at_a_users_turn(self, model: Model, tmp_path: Path) -> None:
        long = [LONG_TALK[0], *(LONG_TALK[1:] * 8)]
        asked = conversation(tmp_path, long)
        found = answer_spans(model, asked)
        assert [p.turn for p in found] == list(range(24))
        kept = [p for p in found if isinstance(p, AnswerSpan)]
        assert len(kept) == 24
        whole = [p for p in kept if not p.cut]
        assert whole
        assert [p.turn for p in whole] == list(range(len(whole)))
        for turn, place in zip(asked[len(whole) :], kept[len(whole) :], strict=True):
            assert place.cut
            assert len(place.text.ids) <= model.window
            text = model.tokenizer.decode(place.text.ids)
            assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
            assert text.endswith(f"<|im_start|>assistant\n{turn.answer}")
            begin = next(i for i in range(1, len(turn.history)) if f"user\n{turn.history[i]['content']}" in text)
            assert begin % 2 == 1

    def test_whose_last_question_is_longer_than_the_window_is_unread(self, model: Model, tmp_path: Path) -> None:
        asked = conversation(tmp_path, [*LONG_TALK, {"role": "user", "content": "why " * 300}, LONG_TALK[-1]])
        found = answer_spans(model, asked)
        assert [isinstance(p, UnreadAnswer) for p in found] == [False, False, False, True]
        assert isinstance(found[-1], UnreadAnswer)
        assert found[-1].reason == "longer than the model's window: 256 tokens"

    def test_that_the_template_refuses_is_unread(self, tmp_path: Path) -> None:
        model = tiny.model("llama", tiny.chatml())
        odd = "{% if messages|length > 1 %}{{ raise_exception('Roles must alternate') }}{% endif %}" + tiny.CHATML
        model.tokenizer.chat_template, kept = odd, model.tokenizer.chat_template
        try:
            found = answer_spans(model, conversation(tmp_path, LONG_TALK[1:]))
        finally:
            model.tokenizer.chat_template = kept
        assert {p.reason for p in found if isinstance(p, UnreadAnswer)} == {
            "refused by the chat template: Roles must alternate"
        }

    def test_that_begins_with_its_answer_answers_an_empty_turn(self, model: Model, tmp_path: Path) -> None:
        asked = conversation(tmp_path, [{"role": "assistant", "content": "Hello there."}])
        (place,) = answer_spans(model, asked)
        assert isinstance(place, AnswerSpan)
        assert place.text == model.encode(ask(""), "Hello there.")

    def test_leaves_room_for_an_answer_to_come(self, model: Model) -> None:
        history = LONG_TALK[:-1] * 1
        whole = fit(model, history, None, 256)  # type: ignore[arg-type]
        assert whole is not None
        less = fit(model, history, None, len(whole[0].ids) - 1)  # type: ignore[arg-type]
        assert less is not None
        assert (whole[1], less[1]) == (False, True)
        assert fit(model, history, None, 5) is None  # type: ignore[arg-type]
