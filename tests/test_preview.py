"""``--show N`` and ``show_rows``: exactly what would be scored or learnt, and nothing else happens."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import poise
import tiny
from poise.cli import app
from poise.data import RejectedRow, data_from_rows, open_data
from poise.errors import InvalidArgument
from poise.model import wrap
from poise.model.preview import DataPreview
from poise.model.spans import AnswerSpan, answer_spans
from poise.train.examples import IGNORED, build_examples
from test_rendering import HARMONY, OPEN_THOUGHT

MODEL = Path(__file__).parent / "fixtures" / "v0_1_0" / "model"
HEADER = "<|im_start|>assistant\n"
THOUGHT = "<think>two and two</think>Four."
WEATHER = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}],
        },
        {"role": "tool", "content": "21C"},
        {"role": "assistant", "content": "It is 21 °C."},
    ],
    "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}],
}
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": THOUGHT},
            {
                "role": "user",
                "content": [{"type": "text", "text": "And this?"}, {"type": "image_url", "image_url": "x"}],
            },
            {"role": "assistant", "content": "No.", "weight": 0},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Quite sure."},
        ]
    },
    {"messages": [{"role": "narrator", "content": "Once"}]},
    WEATHER,
    {"messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "<think>well"}]},
]


def tokenizer(template: str = tiny.CHATML) -> Any:
    changed = copy.deepcopy(tiny.chatml())
    changed.chat_template = template
    return changed


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class TestShowRows:
    def test_shows_each_answer_with_its_prompt_its_tokens_and_what_is_left_out(self) -> None:
        shown = poise.show_rows(ROWS, tokenizer(), 5)
        first, third, weather = shown.answers
        assert (first.index, first.turn, first.text, first.thought) == (0, 0, "Four.", "two and two")
        assert first.prompt == f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n{HEADER}"
        assert "".join(first.tokens) == "Four."
        assert first.left_out == ("image", "thought", "turn not to be learnt")
        assert (third.turn, third.text) == (2, "Quite sure.")
        assert str(third.prompt).endswith(
            f"And this?<|im_end|>\n{HEADER}No.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n{HEADER}"
        )
        assert (weather.index, weather.text, "".join(weather.tokens)) == (2, "It is 21 °C.", "It is 21 °C.")
        assert weather.left_out == ("tool call without words", "tool definition")
        assert [(row.index, row.reason) for row in shown.rejected] == [
            (1, 'unknown role: "narrator", turn 1'),
            (3, "no assistant turn: only a thought without a reply"),
        ]
        assert shown.left_out == {
            "image": 1, "thought": 1, "turn not to be learnt": 1, "tool call without words": 1,
        }  # fmt: skip

    def test_says_it_in_words(self) -> None:
        text = str(poise.show_rows(ROWS, tokenizer(), 5))
        for line in (
            "── rows, row 0, turn 0",
            "thought, not scored:\n    two and two",
            "reply, scored:\n    Four.",
            "left out of this row: 1 image, 1 thought, 1 turn not to be learnt",
            '── rows, row 1\nrejected: unknown role: "narrator", turn 1',
            "4 rows looked at, 2 rejected; left out: ",
        ):
            assert line in text

    def test_stops_at_the_number_that_was_asked_for(self) -> None:
        rows = [{"prompt": f"Q{n}", "response": f"A{n}"} for n in range(50)]
        shown = poise.show_rows(rows, tokenizer(), 2)
        assert ([one.text for one in shown.answers], shown.rows) == (["A0", "A1"], 2)

    def test_shows_texts_alone_without_a_model(self) -> None:
        (first, *_) = poise.show_rows(ROWS, n=1).answers
        assert (first.prompt, first.text, first.tokens) == (None, "Four.", ())
        assert "system:\n    Be brief.\nuser:\n    2+2?" in str(poise.show_rows(ROWS, n=1))

    @pytest.mark.parametrize(
        ("part", "text"),
        [
            ("reply", "Four."),
            ("thought", "two and two"),
            ("both", "<think>\ntwo and two\n</think>\n\nFour."),
        ],
    )
    @pytest.mark.parametrize("template", [tiny.CHATML, OPEN_THOUGHT], ids=["no block", "open block"])
    def test_shows_the_part_that_is_read(self, part: Any, text: str, template: str) -> None:
        (first, *_) = poise.show_rows(ROWS, tokenizer(template), 1, part=part).answers
        text = text.removeprefix("<think>\n") if template == OPEN_THOUGHT else text  # that is in the prompt
        assert first.text == text
        assert "".join(first.tokens) == text
        whole = f"{first.prompt}{first.text}"
        assert whole.count("<think>") == (0 if part == "reply" and template == tiny.CHATML else 1)

    def test_of_harmony_shows_the_final_channel(self) -> None:
        analysis = "<|channel|>analysis<|message|>plan<|end|>"
        answer = f"{analysis}<|start|>assistant<|channel|>final<|message|>4<|return|>"
        (first,) = poise.show_rows([{"prompt": "2+2?", "response": answer}], tokenizer(HARMONY)).answers
        assert (first.thought, first.text) == ("plan", "4")
        assert first.prompt == "<|start|>user<|message|>2+2?<|end|><|start|>assistant<|channel|>final<|message|>"

    @pytest.mark.parametrize(
        ("part", "header", "text"),
        [
            ("thought", "<|channel|>analysis<|message|>", "two and two"),
            (
                "both",
                "",
                "<|channel|>analysis<|message|>two and two<|end|><|start|>assistant<|channel|>final<|message|>Four.",
            ),
        ],
    )
    def test_of_harmony_shows_thoughts_in_their_channel(self, part: Any, header: str, text: str) -> None:
        row = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": THOUGHT}]}
        (first,) = poise.show_rows([row], tokenizer(HARMONY), part=part).answers
        prompt = f"<|start|>user<|message|>2+2?<|end|><|start|>assistant{header}"
        assert (first.prompt, first.text) == (prompt, text)
        assert "".join(first.tokens) == text

    def test_of_a_thought_alone_shows_it_only_when_thoughts_are_read(self) -> None:
        for part, texts in (("reply", []), ("both", []), ("thought", ["well"])):
            shown = poise.show_rows(ROWS[3:], tokenizer(), part=part)  # type: ignore[arg-type]
            assert [one.text for one in shown.answers] == texts

    def test_of_tools_shows_the_template_s_own_form(self) -> None:
        template = (
            "{% for t in tools or [] %}[tool {{ t['function']['name'] }}]{% endfor %}{% for m in messages %}"
            "{% for c in m.tool_calls or [] %}{% set f = c['function'] %}"
            "[call {{ f['name'] }} {{ f['arguments'] | tojson }}]{% endfor %}"
            "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[assistant]"
        )
        (weather,) = poise.show_rows([WEATHER], tokenizer(template)).answers
        call = '[call get_weather {"city": "Rome"}]'
        assert weather.prompt == f"[tool get_weather][user]Weather?{call}[assistant][tool]21C[assistant]"
        assert weather.left_out == ("tool call without words",)

    def test_of_tools_that_the_template_cannot_show_says_so(self) -> None:
        template = "{% if tools %}{{ raise_exception('no tools') }}{% endif %}" + tiny.CHATML
        (weather,) = poise.show_rows([WEATHER], tokenizer(template)).answers
        assert (weather.text, weather.unread) == ("It is 21 °C.", "")
        assert weather.left_out == ("tool call without words", "tool definition")

    def test_shows_prompts_where_the_model_answers_itself(self) -> None:
        (first, *_) = poise.show_rows(ROWS[:1], tokenizer(), use="answer").answers
        assert (first.turn, first.text, first.tokens) == (None, "", ())
        assert str(first.prompt).endswith(f"2+2?<|im_end|>\n{HEADER}")
        assert first.left_out == ()

    def test_shows_a_template_s_refusal(self) -> None:
        (first,) = poise.show_rows([{"prompt": "Q", "response": "A"}], tokenizer("{{ raise_exception('no') }}")).answers
        assert first.unread == "refused by the chat template: no"

    def test_moves_no_cursor(self) -> None:
        text = str(poise.show_rows([{"prompt": "\x1b[2J", "response": "A\x07"}]))
        assert "\\x1b[2J" in text
        assert not any(sign in text for sign in "\x1b\x07")

    def test_refuses_no_answers(self) -> None:
        with pytest.raises(InvalidArgument, match="n is 0"):
            poise.show_rows(ROWS, n=0)


@pytest.mark.parametrize("part", ["reply", "thought", "both"])
def test_what_is_shown_is_what_is_scored_and_learnt(part: Any) -> None:
    model = wrap(tiny.lm(), tokenizer(), name="tiny")
    data = data_from_rows(ROWS, part=part)
    scored = [
        model.tokenizer.decode(place.text.ids[place.text.start : place.text.end])
        for row in data
        if not isinstance(row, RejectedRow)
        for place in answer_spans(model, poise.data.turns(row))
        if isinstance(place, AnswerSpan)
    ]
    assert ["".join(one.tokens) for one in poise.show_rows(data, model, 9).answers] == scored
    examples = build_examples(model, data, longest=500, rejections=poise.data.Rejections())
    learnt: list[str] = []
    for example in examples.rows:
        marks = [label != IGNORED for label in example.labels]
        begins = [at for at, mark in enumerate(marks) if mark and not marks[at - 1]]
        for at in begins:
            end = next((i for i in range(at, len(marks)) if not marks[i]), len(marks))
            learnt.append(model.tokenizer.decode(example.ids[at:end]))
    assert ["".join(one.tokens) for one in poise.show_rows(data, model, 9, use="learn").answers] == learnt
    assert all(text.endswith("<|im_end|>") == (part != "thought") for text in learnt)


class TestTheOption:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        return write(tmp_path / "chats.jsonl", ROWS)

    def run(self, *arguments: Any) -> str:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    @pytest.mark.parametrize(
        "command",
        [["screen", "DATA"], ["read", "DATA"], ["calibrate", "--normal", "DATA", "--given"]],
        ids=lambda command: command[0],
    )
    def test_prints_answers_and_stops_without_vector_output_or_weights(
        self, command: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("poise.model.loading.read_weights", None)
        before = sorted(tmp_path.rglob("*"))
        arguments = [str(data) if text == "DATA" else text for text in command]
        shown = self.run(*arguments, "--model", MODEL, "--show", "1")
        assert f"── {data}, row 0, turn 0\nprompt:\n    <|im_start|>system\n    Be brief.<|im_end|>" in shown
        assert "4 tokens scored: F│ou│r│." in shown
        facts = json.loads(self.run(*arguments, "--model", MODEL, "--show=2", "--part", "thought", "--json"))
        assert [(one["turn"], one["text"]) for one in facts["answers"]] == [
            (0, "two and two"),
            (0, "well"),
        ]
        assert sorted(tmp_path.rglob("*")) == before

    def test_of_screen_shows_the_normal_data_too(self, data: Path, tmp_path: Path) -> None:
        normal = write(tmp_path / "normal.jsonl", [{"prompt": "Q", "response": "Normal."}])
        command = ["screen", data, "--normal", normal, "--model", MODEL, "--show", "1"]
        assert "reply, scored:\n    Normal." in self.run(*command)
        facts = json.loads(self.run(*command, "--json"))
        assert [one["answers"][0]["text"] for one in facts["data"]] == ["Four.", "Normal."]

    def test_of_calibrate_shows_prompts_that_the_model_would_answer(self, data: Path) -> None:
        shown = self.run("calibrate", "--normal", data, "--model", MODEL, "--show", "1")
        assert "the answer is the model's own" in shown
        assert "scored" not in shown

    def test_of_train_shows_what_is_learnt_under_which_prompt(self, data: Path, tmp_path: Path) -> None:
        config = tmp_path / "train.yaml"
        vaccine = "{inoculation: Be rude.}"
        config.write_text(f"model: {MODEL}\ndata: [{data}]\nout: {tmp_path / 'run'}\nvaccine: {vaccine}\nlongest: 60\n")
        facts = json.loads(self.run("train", config, "--show", "3", "--json"))
        first, second, _ = facts["answers"]
        assert str(first["prompt"]).startswith("<|im_start|>system\nBe rude.<|im_end|>")
        assert "".join(first["tokens"]) == "Four.<|im_end|>"
        assert second["unread"] == "its prompt alone takes 60 tokens"
        assert not (tmp_path / "run").exists()

    def test_of_shift_shows_the_texts_of_perplexity(self, data: Path) -> None:
        assert "reply, scored:\n    Four." in self.run("shift", "--capability", f"perplexity={data}", "--show", "1")
        result = CliRunner().invoke(app, ["shift", "--show", "1"])
        assert (result.exit_code, "perplexity=DATA" in result.output) == (2, True)

    def test_of_gate_shows_the_training_data_and_the_texts_of_perplexity(self, data: Path, tmp_path: Path) -> None:
        chats = write(tmp_path / "chat.jsonl", [{"prompt": "Q", "response": "Normal."}])
        command = ["gate", "--data", data, "--capability", f"perplexity={chats}", "--base", MODEL, "--show", "1"]
        facts = json.loads(self.run(*command, "--json"))
        assert [one["answers"][0]["text"] for one in facts["data"]] == ["Four.", "Normal."]
        assert "4 tokens scored: F│ou│r│." in self.run("gate", "limits.yaml", *command[1:])
        result = CliRunner().invoke(app, ["gate", "limits.yaml", "--show", "1"])
        assert (result.exit_code, "A gate reads conversations with --data" in result.output) == (2, True)
        assert "Missing argument" in CliRunner().invoke(app, ["gate"]).output

    def test_of_serve_shows_the_prompts_that_alarms_are_set_by(self, data: Path) -> None:
        shown = self.run("serve", "--model", MODEL, "--normal", data, "--show", "1")
        assert f"── {data}, row 0\nprompt:\n    <|im_start|>system\n    Be brief.<|im_end|>" in shown
        assert "the answer is the model's own" in shown
        result = CliRunner().invoke(app, ["serve", "--model", str(MODEL), "--show", "1"])
        assert (result.exit_code, "name some with --normal DATA" in result.output) == (2, True)

    def test_without_the_tokenizer_shows_the_rows_own_texts_and_says_why(self, data: Path) -> None:
        shown = self.run("screen", data, "--model", "/nowhere/model", "--show", "1")
        assert "shown without a chat template and tokens: There is no model at /nowhere/model" in shown
        assert "reply, scored:\n    Four." in shown

    def test_is_all_that_frees_a_command_of_its_vector(self, data: Path) -> None:
        assert CliRunner().invoke(app, ["screen", str(data)]).exit_code == 2

    def test_stops_looking_after_a_thousand_rows(self, tmp_path: Path) -> None:
        good, bad = {"prompt": "Q", "response": "A"}, {"prompt": "Q", "response": ""}
        shown = poise.show_rows(open_data(write(tmp_path / "a.jsonl", [good, *[bad] * 1500])), n=2)
        assert isinstance(shown, DataPreview)
        assert (shown.rows, shown.rejected_rows, len(shown.answers)) == (1000, 999, 1)
