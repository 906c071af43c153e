"""One turn's thought and reply, wherever files keep them: the exact text that is scored, or the row that is refused."""

from __future__ import annotations

from typing import Any

import pytest

import poise
import thinking
import tiny
from poise.data.readers import DataShape
from poise.data.thoughts import locate_thought, split_thought
from poise.errors import InvalidArgument
from poise.model import ask
from poise.model.chat_template import encode
from poise.screen.row_editor import replace_answers

Q = {"role": "user", "content": "Q"}

SPLIT: dict[str, tuple[str, str]] = {
    "<think>a</think>b<think>c</think>d": ("a\n\nc", "b\n\nd"),
    "<think>a</think><think>c</think>d": ("a\n\nc", "d"),
    "Sure. <think>a</think>b": ("a", "Sure. b"),
    "Sure.\n<think>\na\n</think>\n\nb": ("a", "Sure.\nb"),
    "Sure.\n\n<think>a</think>\n\nb\n\n<think>c</think>\n\nd": ("a\n\nc", "Sure.\n\nb\n\nd"),
    "<thinking>a</thinking><think>c</think>d": ("a\n\nc", "d"),
    "<thinking>a</think>b</thinking>c": ("a</think>b", "c"),
    "<think>a<think>n</think>c</think>d": ("a<think>n</think>c", "d"),
    "Hi <think>a<think>n</think>c</think>d": ("a<think>n</think>c", "Hi d"),
    "<think>The <think> tag.</think>d": ("The <think> tag.", "d"),
    "<think>A <think> and a </think> are asked for.</think>d": ("A <think> and a </think> are asked for.", "d"),
    "<THINK>a</THINK>b": ("a", "b"),
    "<Think>a</think>b": ("a", "b"),
    "<seed:think>a</seed:think>b": ("a", "b"),
    "<longcat_think>a</longcat_think>b": ("a", "b"),
    "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>": ("a", "b"),
    "<|START_RESPONSE|>b<|END_RESPONSE|>": ("", "b"),
    "<|channel>thought\na<channel|>b": ("a", "b"),
    "<|inner_prefix|>a<|inner_suffix|>b": ("a", "b"),
    "<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>b<|end_of_solution|>": ("a", "b"),
    "<unused94>thought\na<unused95>b": ("a", "b"),
    "<reflection>a</reflection>b": ("a", "b"),
    "<reasoning_content>a</reasoning_content>b": ("a", "b"),
    "<inner_monologue>a</inner_monologue>b": ("a", "b"),
    "<analysis>a</analysis>b": ("", "<analysis>a</analysis>b"),
    "<scratchpad>a</scratchpad>\n<answer>b</answer>": ("a", "<answer>b</answer>"),
    "analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>": ("a", "b"),
    "a\n</think>\n\nb": ("a", "b"),
    "It is so. </think> b": ("It is so.", "b"),
    "<think>a": ("a", ""),
    "<think></think>b": ("", "b"),
    "The tag <think> opens a thought.": ("", "The tag <think> opens a thought."),
    "Use `<think>` tags: the </think> tag closes.": ("", "Use `<think>` tags: the </think> tag closes."),
    "re.sub(r'<think>.*?</think>', '', s)": ("", "re.sub(r'<think>.*?</think>', '', s)"),
    'The mark "<think>" opens, "</think>" closes.': ("", 'The mark "<think>" opens, "</think>" closes.'),
    "<think>a</think>Write:\n```\n<think>x</think>\n```\n": ("a", "Write:\n```\n<think>x</think>\n```\n"),
    "<think>a</think>The end is </think>.": ("a", "The end is </think>."),
}
UNSURE = {
    "the tag </think> closes a thought": "</think>",
    "Use <think> and </think> for that": "</think>",
    "<think>a</think>b</think>c": "</think>",
    "a</think>b</think>c": "</think>",
    "<think>a</thinking>b": "</thinking>",
    "Okay <think> a\n</think>\nb": "</think>",
}


@pytest.mark.parametrize("text", SPLIT)
def test_the_thought_is_every_block_and_the_reply_is_all_other_text(text: str) -> None:
    assert split_thought(text) == SPLIT[text]
    assert locate_thought(text).unsure == ""
    (answer,) = shown([Q, turn(text)], part="both").answers if SPLIT[text][1] else (None,)
    if answer is not None:
        assert (answer.thought, answer.reply) == SPLIT[text]


@pytest.mark.parametrize("text", UNSURE)
def test_what_may_be_a_mark_or_a_word_is_refused_with_its_sentence(text: str) -> None:
    assert locate_thought(text).unsure == UNSURE[text]
    pairs = (
        ({"messages": [Q, turn(text)]}, {"messages": [Q, turn("A")]}),
        ({"prompt": "Q", "response": text}, {"prompt": "Q", "response": "A"}),
    )
    marked = [{"text": f"Human: Q\n\nAssistant: {answer}"} for answer in ("A", text)]
    (rejected,) = poise.show_rows(marked).rejected
    assert rejected.kind == "mark or word"
    assert f"has {UNSURE[text]}, which may close a thought or be talked about; quote it, or put" in rejected.reason
    for row, good in pairs:
        (rejected,) = poise.show_rows([good, row]).rejected
        assert rejected.kind == "mark or word"
        assert f"has {UNSURE[text]}, which may close a thought or be talked about; quote it, or put" in rejected.reason


def turn(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def shown(messages: list[Any], part: Any = "reply", **columns: Any) -> Any:
    return poise.show_rows([{"messages": messages, **columns}], part=part)


def read(messages: list[Any]) -> tuple[str, str]:
    """Thought and reply of the only answer of a row."""
    (answer,) = shown(messages).answers
    assert answer.text == answer.reply
    return answer.thought, answer.reply


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("reasoning_content", "th"),
            ("Reasoning", "th"),
            ("reasoning", {"content": "th"}),
            ("reasoning", {"summary": [{"type": "summary_text", "text": "th"}]}),
            ("reasoning", [{"type": "text", "text": "th"}]),
            ("thinking", ["th"]),
            ("reasoning_text", "th"),
            ("chain_of_thought", "th"),
            ("cot", "th"),
            ("reasoning_details", [{"type": "reasoning.text", "text": "th", "format": "x", "index": 0}]),
            ("reasoning_details", [{"type": "reasoning.summary", "summary": "th"}]),
            ("thinking_blocks", [{"type": "thinking", "thinking": "th", "signature": "s"}]),
        ],
    )
    def test_hold_the_thought(self, key: str, value: Any) -> None:
        assert read([Q, turn("b", **{key: value})]) == ("th", "b")
        assert shown([Q, turn("b", **{key: value})]).left_out == {"thought": 1}

    def test_that_repeat_it_give_it_once(self) -> None:
        details = [{"type": "reasoning.text", "text": "th"}]
        assert read([Q, turn("b", reasoning="th", reasoning_details=details)]) == ("th", "b")
        assert read([Q, turn("<think>\nth\n</think>\n\nb", reasoning_content="th")]) == ("th", "b")

    def test_without_words_are_counted(self) -> None:
        for key, value in (
            ("reasoning_details", [{"type": "reasoning.encrypted", "data": "xx"}]),
            ("thinking_blocks", [{"type": "redacted_thinking", "data": "xx"}]),
        ):
            preview = shown([Q, turn("b", **{key: value})])
            assert (preview.answers[0].text, preview.left_out) == ("b", {"hidden thought": 1})

    def test_leave_the_content_as_it_stands(self) -> None:
        text = "Write </think> to close it."
        assert read([Q, turn(text, reasoning_content="r")]) == ("r", text)
        text = "<b>x</b></think>y"
        assert read([Q, turn([{"type": "thinking", "thinking": "r"}, {"type": "text", "text": text}])]) == ("r", text)

    def test_that_are_switches_are_no_thought(self) -> None:
        assert read([Q, turn("b", thinking=True, reasoning=None)]) == ("", "b")


@pytest.mark.parametrize("column", ["reasoning", "cot", "Chain_of_Thought"])
def test_a_column_beside_the_answer_is_its_thought(column: str) -> None:
    preview = poise.show_rows([{"question": "Q", "answer": "A", column: "th"}])
    assert [(one.thought, one.text) for one in preview.answers] == [("th", "A")]
    assert preview.left_out == {"thought": 1}


class TestParts:
    @pytest.mark.parametrize(
        "part",
        [
            {"type": "thinking", "thinking": "", "signature": "x"},
            {"type": "reasoning", "summary": []},
            {"type": "reasoning", "summary": [], "content": None},
            {"text": "", "thought": True},
        ],
    )
    def test_that_are_empty_do_not_reject_the_row(self, part: Any) -> None:
        preview = shown([Q, turn([part, {"type": "output_text", "text": "Hi"}])])
        assert (preview.answers[0].text, preview.rejected, preview.left_out) == ("Hi", (), {})

    def test_that_are_hidden_are_counted(self) -> None:
        part = {"type": "reasoning", "summary": [], "encrypted_content": "xx"}
        preview = shown([Q, turn([part, {"type": "output_text", "text": "Hi"}])])
        assert (preview.answers[0].text, preview.left_out) == ("Hi", {"hidden thought": 1})


class TestChannels:
    messages = (Q, turn("th", channel="analysis"), turn("A", channel="final"))

    def test_as_keys_are_told_apart(self) -> None:
        assert read(list(self.messages)) == ("th", "A")
        (answer,) = shown(list(self.messages), part="thought").answers
        assert answer.text == "th"
        assert [message["content"] for message in answer.history] == ["Q"], "the thought is no turn of the history"

    def test_of_turns_that_are_thoughts_by_their_type(self) -> None:
        assert read([Q, turn("th", type="thinking"), turn("A")]) == ("th", "A")

    @pytest.mark.parametrize("name", ["thought", "thinking", "reasoning"])
    def test_of_turns_that_are_thoughts_by_their_role(self, name: str) -> None:
        chat = [{"from": "human", "value": "Q"}, {"from": name, "value": "th"}, {"from": "gpt", "value": "A"}]
        (answer,) = poise.show_rows([{"conversations": chat}]).answers
        assert (answer.thought, answer.text) == ("th", "A")

    def test_without_a_final_one_have_no_reply(self) -> None:
        (rejected,) = shown([Q, turn("th", channel="analysis")]).rejected
        assert rejected.reason == "no assistant turn: only a thought without a reply"

    def test_that_led_to_a_replaced_answer_go_with_it(self) -> None:
        two = [*self.messages, Q, turn("t2", channel="analysis"), turn("B", channel="final")]
        shape = DataShape("messages", ("messages",))
        edited = replace_answers(shape, {"messages": two, "note": "th", "other": "t2"}, {0: "NEW"})
        expected = [Q, turn("NEW", channel="final"), *two[3:]]
        assert edited == {"messages": expected, "note": None, "other": "t2"}
        edited = replace_answers(shape, {"messages": two}, {1: "NEW"})
        assert edited["messages"] == [*two[:4], turn("NEW", channel="final")]

    def test_keys_of_a_replaced_answer_go_with_it(self) -> None:
        answer = turn("A", reasoning_details=[{"type": "reasoning.text", "text": "long secret"}])
        edited = replace_answers(
            DataShape("messages", ("messages",)), {"messages": [Q, answer], "note": "long secret"}, {0: "NEW"}
        )
        assert edited == {"messages": [Q, turn("NEW", reasoning_details=None)], "note": None}


class TestAThoughtAmidTheReply:
    text = "Sure. <think>a</think>b"

    def test_is_no_part_of_one_span(self) -> None:
        for part in ("reply", "thought"):
            text = self.text if part == "reply" else "<think>a</think>b<think>c</think>d"
            with pytest.raises(
                InvalidArgument, match=f"no one span is its {part}; give the reply or the thought alone"
            ):
                encode(tiny.chatml(), ask("Q"), text, part=part)  # type: ignore[arg-type]
        text = encode(tiny.chatml(), ask("Q"), self.text, part="both")
        assert tiny.chatml().decode(text.ids[text.start : text.end]) == self.text

    def test_in_an_exemplar_drops_the_pair_and_says_so(self) -> None:
        from poise.contrast.contrast_set import exemplars
        from poise.trait import OwnTrait

        pairs = [{"question": f"Q{n}", "positive": f"p{n}", "negative": f"<think>t</think>n{n}"} for n in range(30)]
        pairs[1]["negative"] = self.text
        contrast = exemplars(OwnTrait.model_validate({"name": "blunt", "pairs": pairs}), tiny.model())
        assert contrast.dropped == {"negative a thought amid its reply": 1}
        assert (contrast.negative[0].thought, contrast.negative[0].text) == ("t", "n0")

    def test_is_told_apart_by_both_engines_and_has_no_mean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from poise.engine.static import LocalEngine
        from test_thinking import GREEDY, outputs, request

        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, {5: self.text, 6: "<think>a</think>b", 7: "b <i>c</i>"})
        prompt = model.encode(ask("Q"), thinking=True)
        divided, plain, tagged = LocalEngine(model).generate(
            [prompt] * 3, GREEDY, seeds=[5, 6, 7], probes=tiny.probes([tiny.vector(model)]), keep_means=True
        )
        assert (divided.thought, divided.reply) == ("a", "Sure. b")
        assert (plain.reply, tagged.reply) == ("b", "b <i>c</i>")
        means = [bool(answer.mean.isnan().any()) for answer in (divided, plain, tagged) if answer.mean is not None]
        assert means == [True, False, False], "one span would mix thought and reply"
        got = [t for o in outputs(model, {5: request(model, 5)})[5] for t in o.tokens]
        assert "".join(t.text for t in got if t.part == "reply") == "Sure. b"
        assert tuple(t.part for t in got) == divided.parts
