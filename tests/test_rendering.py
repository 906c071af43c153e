"""Templates and thinking: every turn's words are in the text, and what is read is the reply unless asked otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest

import tiny
from poise.data import Turn
from poise.errors import UnsuitableModel
from poise.model import Model, ask, render_prompt, wrap
from poise.model.chat_template import encode, render_answer
from poise.model.spans import AnswerSpan, UnreadAnswer, answer_spans

PARTS_ONLY = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FIRST_TURN_ONLY = "<|im_start|>{{ messages[0]['content'] }}<|im_end|>\n<|im_start|>assistant\n"
OPEN_THOUGHT = tiny.CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
SWITCHED = tiny.CHATML.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif %}",
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}" + tiny.CHATML
)
STRIPPED = tiny.CHATML.replace("m['content'] }}", "m['content'] | trim }}")
QUESTIONS = ("How are you?", "What is new?", "Who goes there?")


def tokenizer(template: str) -> Any:
    made = copy.deepcopy(tiny.chatml())
    made.chat_template = template
    return made


def model(template: str) -> Model:
    return wrap(tiny.lm(), tokenizer(template), name="tiny")


@pytest.mark.parametrize(
    "template", [PARTS_ONLY, tiny.CHATML, STRIPPED, DEFAULT_SYSTEM], ids=["parts", "text", "trim", "system"]
)
def test_every_turn_s_words_are_in_the_text(template: str) -> None:
    texts = [render_prompt(tokenizer(template), ask(question, "Be brief.")) for question in QUESTIONS]
    assert all(question in text and "Be brief." in text for question, text in zip(QUESTIONS, texts, strict=True))
    assert len(set(texts)) == 3


def test_a_template_that_leaves_turns_out_is_refused() -> None:
    turns = [*ask("First?"), {"role": "assistant", "content": "One."}, {"role": "user", "content": "Second?"}]
    with pytest.raises(UnsuitableModel, match=r"it leaves out the words of turn 2 \(assistant\)"):
        render_prompt(tokenizer(FIRST_TURN_ONLY), turns)


def test_a_template_that_wants_alternating_roles_gets_the_system_text_in_the_first_turn() -> None:
    text = render_prompt(tokenizer(ALTERNATING), ask("Q", "S"))
    assert text == "[user]S\n\nQ[assistant]"


def test_a_final_line_feed_that_a_template_strips_is_no_fault() -> None:
    assert "hello" in render_prompt(tokenizer(STRIPPED), ask("hello\n"))


class TestThinking:
    def test_that_the_template_opens_is_closed_before_the_answer(self) -> None:
        assert render_prompt(tokenizer(OPEN_THOUGHT), ask("Q")).endswith("assistant\n<think>\n\n</think>\n\n")

    def test_is_switched_off_where_there_is_a_switch(self) -> None:
        assert render_prompt(tokenizer(SWITCHED), ask("Q")).endswith("<|im_start|>assistant\n")

    def test_of_harmony_gives_way_to_the_final_channel(self) -> None:
        assert render_prompt(tokenizer(HARMONY), ask("Q")).endswith("<|start|>assistant<|channel|>final<|message|>")

    @pytest.mark.parametrize("template", [tiny.CHATML, OPEN_THOUGHT], ids=["no block", "open block"])
    @pytest.mark.parametrize(("part", "expected"), [("reply", "Four."), ("thought", "hm"), ("both", None)])
    def test_in_an_answer_is_read_only_when_asked_for(self, template: str, part: Any, expected: str | None) -> None:
        answer = "<think>hm</think>\n\nFour."
        made = tokenizer(template)
        text = encode(made, ask("2+2?"), answer, part=part)
        whole = made.decode(text.ids)
        assert whole.count("<think>") == 1
        assert made.decode(text.ids[text.start : text.end]).strip() == (expected or answer)

    @pytest.mark.parametrize(
        ("answer", "thought", "reply"),
        [
            ("<think>\nhm\n</think>\n\nFour.", "hm", "Four."),
            ("<think>four Four. four</think>Four.", "four Four. four", "Four."),
            ("<think></think>\nFour.", "", "Four."),
            ("<think>\n\n</think>\n\nFour.", "", "Four."),
            ("<think>one</think>\n<think>two</think>Four.", "one</think>\n<think>two", "Four."),
            ("<think>well, ", "well,", ""),
            ("Four.", "", "Four."),
            ("<|begin_of_thought|>hm<|end_of_thought|><|begin_of_solution|>4<|end_of_solution|>", "hm", "4"),
            (
                "<|channel|>analysis<|message|>r<|end|><|start|>assistant<|channel|>final<|message|>r<|return|>",
                "r",
                "r",
            ),
        ],
    )
    @pytest.mark.parametrize("template", [tiny.CHATML, OPEN_THOUGHT], ids=["no block", "open block"])
    def test_leaves_its_marks_out_of_both_parts(self, template: str, answer: str, thought: str, reply: str) -> None:
        made = tokenizer(template)
        for part, expected in (("thought", thought), ("reply", reply)):
            rendered = render_answer(made, ask("2+2?"), answer, part=part)  # type: ignore[arg-type]
            assert rendered.text[rendered.start : rendered.end] == expected
            text = encode(made, ask("2+2?"), answer, part=part)  # type: ignore[arg-type]
            assert made.decode(text.ids[text.start : text.end]).strip() == expected

    def test_that_is_in_an_answer_asks_for_a_model_that_thinks(self) -> None:
        made = tokenizer(SWITCHED)
        thinks, plain = (render_answer(made, ask("Q"), answer) for answer in ("<think>hm</think>Four.", "Four."))
        assert thinks.text.endswith("<|im_start|>assistant\n<think>hm</think>Four.")
        assert plain.text.endswith("<|im_start|>assistant\nFour.")
        levels = tokenizer(HARMONY.replace("{% for", "{{ reasoning_effort or 'none' }}{% for", 1))
        spoken = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4"
        assert not render_answer(levels, ask("Q"), spoken).text.startswith("low")
        assert render_answer(levels, ask("Q"), "4").text.startswith("low")

    def test_is_no_place_for_an_answer_without_one(self) -> None:
        made = tokenizer(OPEN_THOUGHT)
        for thinking in (False, True):
            rendered = render_answer(made, ask("Q"), "Four.", thinking=thinking)
            assert rendered.text.endswith("assistant\n<think>\n\n</think>\n\nFour.")

    def test_of_a_data_set_is_read_as_part_of_its_turn(self) -> None:
        turn = Turn(history=(*ask("2+2?"),), answer="Four.", number=0, thought="two and two")
        plain = Turn(history=(*ask("2+2?"),), answer="Four.", number=0)
        tiny_model = model(OPEN_THOUGHT)
        texts = {}
        for part in ("reply", "thought", "both"):
            (place,) = answer_spans(tiny_model, [turn], part=part)
            assert isinstance(place, AnswerSpan)
            texts[part] = tiny_model.tokenizer.decode(place.text.ids[place.text.start : place.text.end])
        assert texts["reply"] == "Four."
        assert texts["thought"] == "two and two"
        assert "two and two" in texts["both"]
        assert texts["both"].endswith("Four.")
        assert answer_spans(tiny_model, [plain], part="thought") == [UnreadAnswer(0, "no thought")]


class TestTools:
    history = (
        {"role": "user", "content": "Weather in Rome?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}],
        },
        {"role": "tool", "content": "21C"},
    )

    def test_are_words_where_the_template_knows_none(self) -> None:
        text = render_prompt(tokenizer(tiny.CHATML), self.history)  # type: ignore[arg-type]
        assert "get_weather" in text
        assert "Rome" in text.partition("get_weather")[2]
        assert "21C" in text

    def test_are_the_template_s_own_where_it_knows_them(self) -> None:
        own = (
            "{% for t in tools or [] %}[tool {{ t['function']['name'] }}]{% endfor %}{% for m in messages %}"
            "{% for c in m.tool_calls or [] %}{% set f = c['function'] %}"
            "[call {{ f['name'] }} {{ f['arguments'] | tojson }}]{% endfor %}"
            "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
        )
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
        text = render_prompt(tokenizer(own), self.history, tools=tools)  # type: ignore[arg-type]
        call = '[call get_weather {"city": "Rome"}]'
        assert text == f"[tool get_weather][user]Weather in Rome?{call}[assistant][tool]21C[assistant]"
