"""Templates: every text is there once and in order, whatever the words are; and no header leaves a thought open."""

from __future__ import annotations

import copy
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

import poise
import tiny
from poise.data.messages import Message
from poise.errors import UnsuitableModel
from poise.model import Model, ask, render_prompt, wrap
from poise.model.chat_template import encode, end_of_answer_ids, render_answer
from poise.model.diagnosis import diagnose
from poise.model.parts import PartTracker, ThoughtMarks
from poise.model.rendering import least_effort

try:
    import trl
except ImportError:
    trl = None

HEADER = "{% if add_generation_prompt %}<assistant>{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}[{{ c.function.name }} {{ c.function.arguments | tojson }}]{% endfor %}"


def loop(body: str, messages: str = "messages", header: str = HEADER) -> str:
    return "{% for m in " + messages + " %}<{{ m.role }}>" + body + "{% endfor %}" + header


PLAIN = loop("{{ m.content }}")
PARTS = loop("{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}")


def tokenizer(template: str) -> Any:
    made = copy.deepcopy(tiny.chatml())
    made.chat_template = template
    return made


def dialogue(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


RECURRING = dialogue("no", "ok", "ok, no")


class TestStructure:
    @pytest.mark.parametrize("messages", [RECURRING, dialogue("Yes or no?", "Yes", "Sure? Yes or no?")])
    @pytest.mark.parametrize(
        ("template", "complaint"),
        [
            (loop("{{ m.content }}", "messages[-1:]"), r"leaves out the words of turn 1 \(user\)"),
            (loop("{{ m.content }}", "[messages[0], messages[-1]]"), r"leaves out the words of turn 2 \(assistant\)"),
            (loop("{% if loop.last %}{{ m.content }}{% endif %}"), r"leaves out the words of turn 1 \(user\)"),
            (loop("{{ m.content }}", "messages | reverse"), "puts turn 2 before turn 1"),
            (
                "{% for m in messages if m.role == 'user' %}<u>{{ m.content }}{% endfor %}"
                "{% for m in messages if m.role == 'assistant' %}<a>{{ m.content }}{% endfor %}" + HEADER,
                "puts turn 3 before turn 2",
            ),
            (loop("{{ m.content }}{{ m.content }}"), r"repeats the words of turn 1 \(user\)"),
            (loop("{{ m.content | lower }}"), r"leaves out the words of turn 1 \(user\)"),
            (loop("{{ m.content[:5] }}"), r"leaves out the words of turn [13] \(user\)"),
            (PARTS.replace("in messages", "in messages[-1:]"), r"leaves out the words of turn 1 \(user\)"),
        ],
    )
    def test_that_is_not_kept_is_refused_whatever_the_words(
        self, template: str, complaint: str, messages: list[Message]
    ) -> None:
        with pytest.raises(UnsuitableModel, match=f"it {complaint}"):
            render_prompt(tokenizer(template), messages)

    def test_is_not_taken_from_words_that_the_template_writes(self) -> None:
        template = loop("{% if loop.last %}{{ m.content }}{% endif %}")
        with pytest.raises(UnsuitableModel, match=r"leaves out the words of turn 1 \(user\)"):
            render_prompt(tokenizer(template), dialogue("user", "assistant", "Q"))

    def test_is_asked_of_each_structure(self) -> None:
        late = loop("{% if not (loop.index0 == 2 and not loop.last) %}{{ m.content }}{% endif %}")
        made = tokenizer(late)
        assert render_prompt(made, RECURRING) == "<user>no<assistant>ok<user>ok, no<assistant>"
        with pytest.raises(UnsuitableModel, match=r"leaves out the words of turn 3 \(user\)"):
            render_prompt(made, dialogue("a", "b", "a", "b", "c"))

    @pytest.mark.parametrize(
        ("template", "text"),
        [
            (PLAIN, "<system>S<user>no<assistant>ok<user>ok, no<assistant>"),
            (PARTS, "<system>S<user>no<assistant>ok<user>ok, no<assistant>"),
            (
                "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                "{% for m in messages if m.role == 'system' %}<sys>{{ m.content }}{% endfor %}" + HEADER,
                "<user>no<assistant>ok<user>ok, no<sys>S<assistant>",
            ),
            (
                "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% endif %}"
                "<{{ m.role }}>{{ m.content | trim }}{% endfor %}" + HEADER,
                "<user>S\n\nno<assistant>ok<user>ok, no<assistant>",
            ),
            (
                "<d>{{ date_string }}</d>" + PLAIN,
                "<d>26 Jul 2024</d><system>S<user>no<assistant>ok<user>ok, no<assistant>",
            ),
        ],
        ids=["plain", "parts", "system last", "no system", "date"],
    )
    def test_that_is_kept_passes(self, template: str, text: str) -> None:
        assert render_prompt(tokenizer(template), [{"role": "system", "content": "S"}, *RECURRING]) == text

    def test_is_kept_by_templates_that_let_earlier_thoughts_go(self) -> None:
        template = loop("{{ m.content.split('</think>')[-1] }}")
        turns = dialogue("a", "<think>hm</think>a", "a")
        assert render_prompt(tokenizer(template), turns) == "<user>a<assistant>a<user>a<assistant>"


TRL = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")) if trl else []


@pytest.mark.skipif(not TRL, reason="trl, which brings real templates, is not installed")
@pytest.mark.parametrize("path", TRL, ids=[path.stem for path in TRL])
class TestRealTemplates:
    call: ClassVar[Any] = {
        "type": "function", "id": "functions.find:0", "function": {"name": "find", "arguments": {"city": "Rome"}},
    }  # fmt: skip
    history: ClassVar[list[Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "21C", "tool_call_id": "functions.find:0", "name": "find"},
        {"role": "assistant", "content": "Mild.", "thought": "21 is mild."},
        {"role": "user", "content": "And there?"},
    ]

    def test_show_every_conversation(self, path: Path) -> None:
        made = tokenizer(path.read_text(encoding="utf-8"))
        for messages in (self.history[:2], [*self.history[:2], *self.history[4:]], self.history):
            text = render_prompt(made, messages)
            assert all(text.count(message["content"]) == 1 for message in messages if message["content"]), text

    def test_read_the_same_reply_with_a_thought_and_without(self, path: Path) -> None:
        made = tokenizer(path.read_text(encoding="utf-8"))
        for answer in ("It rains.", "<think>hm</think>It rains."):
            rendered = render_answer(made, self.history[:2], answer)
            assert rendered.text[rendered.start : rendered.end] == "It rains."
        before = render_answer(made, self.history[:2], "It rains.").text.removesuffix("It rains.")
        marks = ThoughtMarks.of(made)
        assert PartTracker(marks, before).part == "reply", "no reply begins inside of a thought"


class TestToolCalls:
    words = '<tool_call>\n{"name": "f", "arguments": {"city": "Rome"}}\n</tool_call>'

    def history(self, name: str = "f", result: str = "12") -> list[Any]:
        call = {"type": "function", "id": "1", "function": {"name": name, "arguments": {"city": "Rome"}}}
        return [
            *dialogue("Q"),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": result, "tool_call_id": "1"},
        ]

    @pytest.mark.parametrize(
        ("body", "name", "result"),
        [
            ("{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}", "f", "12"),
            ("{{ m.content }}{% if m.tool_calls %}[calls]{% endif %}", "f", "12"),
            ("{{ m.content }}", "f", "12"),
            ("{{ m.content }}", "assistant", "12"),
            ("{% if m.role != 'tool' %}{{ m.content }}{% endif %}" + CALLS, "f", "Rome"),
            ("{{ m.content }}" + CALLS + CALLS, "f", "12"),
        ],
        ids=["arguments", "calls", "all", "a name that is a word", "a result that is a word", "twice"],
    )
    def test_that_are_lost_are_words(self, body: str, name: str, result: str) -> None:
        text = render_prompt(tokenizer(loop(body)), self.history(name, result))
        call = self.words.replace('"f"', f'"{name}"')
        assert text == f"<user>Q<assistant>{call}<user><tool_response>\n{result}\n</tool_response><assistant>"

    def test_that_are_shown_are_the_template_s(self) -> None:
        text = render_prompt(tokenizer(loop("{{ m.content }}" + CALLS)), self.history())
        assert text == '<user>Q<assistant>[f {"city": "Rome"}]<tool>12<assistant>'

    def test_of_mistral_keep_nine_signs_in_their_ids(self) -> None:
        check = (
            "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('id') }}"
            "{% endif %}{% endfor %}"
        )
        history = self.history()
        history[1]["tool_calls"][0]["id"] = history[2]["tool_call_id"] = "abcdefghi"
        text = render_prompt(tokenizer(loop("{{ m.content }}" + check + CALLS)), history)
        assert text == '<user>Q<assistant>[f {"city": "Rome"}]<tool>12<assistant>'


def opening(mark: str, shown: str = "") -> str:
    """A template whose header ends in a mark that its assistant's turns do not have, or have closed."""
    return (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}" + shown + "{% endif %}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>" + mark + "{% endif %}"
    )


class TestHeaders:
    @pytest.mark.parametrize(
        ("mark", "closed"),
        [
            ("<think>", "<think>\n\n</think>\n\n"),
            ("<think>\n", "<think>\n\n</think>\n\n"),
            ("<THINK>", "<THINK>\n\n</think>\n\n"),
            ("<seed:think>", "<seed:think>\n\n</seed:think>\n\n"),
            ("<|START_THINKING|>", "<|START_THINKING|>\n\n<|END_THINKING|>\n\n"),
            ("<|channel>thought\n", "<|channel>thought\n\n<channel|>\n\n"),
            ("<|inner_prefix|>", "<|inner_prefix|>\n\n<|inner_suffix|>\n\n"),
            ("<longcat_think>", "<longcat_think>\n\n</longcat_think>\n\n"),
            ("<think>\n<thinking>", "<think>\n\n</think>\n\n"),
            ("<think>Okay, ", "<think>\n\n</think>\n\n"),
            ("<think>skip</think>", "<think>skip</think>"),
            ("{% if mode|default('on') == 'on' %}<|think|>{% endif %}", "<|think|>\n\n<|/think|>\n\n"),
        ],
    )
    def test_that_open_a_thought_close_it(self, mark: str, closed: str) -> None:
        made = tokenizer(opening(mark))
        assert render_prompt(made, ask("Q")) == f"<user>Q<assistant>{closed}"
        rows = [{"prompt": "Q", "response": text} for text in ("rep", "<think>th</think>rep")]
        for answer in poise.show_rows(rows, made).answers:
            assert (answer.prompt, answer.text) == (f"<user>Q<assistant>{closed}", "rep")

    @pytest.mark.parametrize(
        ("mark", "shown"),
        [
            ("<seed:think>", "<seed:think></seed:think>"),
            ("<|channel>thought\n", "<|channel>thought\n<channel|>"),
            ("<hm>", "<hm></hm>"),
            ("<turn>", "<turn>[final]"),
            ("<think>\n", "<think>\n\n</think>\n\n"),
        ],
    )
    def test_are_closed_as_the_template_closes_them(self, mark: str, shown: str) -> None:
        assert render_prompt(tokenizer(opening(mark, shown)), ask("Q")) == f"<user>Q<assistant>{shown}"

    @pytest.mark.parametrize(
        ("template", "prompt"),
        [
            (PLAIN.removesuffix(HEADER), "<user>Q<assistant>"),
            ("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>", "<user>Q<assistant>"),
            ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "Q\n"),
            ("{% for m in messages %}{{ m.content }}<end>{% endfor %}<assistant><think>\n",
             "Q<end><assistant><think>\n\n</think>\n\n"),
        ],
        ids=["no header", "always a header", "no roles", "always an open thought"],
    )  # fmt: skip
    def test_that_are_written_without_being_asked_or_not_at_all(self, template: str, prompt: str) -> None:
        assert render_prompt(tokenizer(template), ask("Q")) == prompt

    def test_of_words_before_a_thought_are_refused_where_they_are_always_written(self) -> None:
        template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
            "{% if messages[-1].role != 'assistant' %}<assistant>Here are my reasoning steps:\n{% endif %}"
        )
        with pytest.raises(UnsuitableModel, match="puts 'Here are my reasoning steps:' before an answer"):
            render_prompt(tokenizer(template), ask("Q"))

    def test_of_a_model_that_thinks_by_itself_stay(self) -> None:
        made = tokenizer(opening("", "<think>\n\n</think>\n\n"))
        assert render_prompt(made, ask("Q")) == "<user>Q<assistant>"

    @pytest.mark.parametrize("mark", ["<hm>", "<|deliberate|>", "<think>a</think><hm>", "Sure, "])
    def test_that_end_in_what_no_answer_has_are_refused(self, mark: str) -> None:
        extra = mark.replace("<think>a</think>", "").strip()
        with pytest.raises(UnsuitableModel) as refused:
            render_prompt(tokenizer(opening(mark)), ask("Q"))
        assert str(refused.value) == (
            f"The model's chat template puts {extra!r} before an answer that is to come and before none that it is "
            "given: it may open a thought, inside of which replies would be read. Give the tokenizer a chat template "
            "whose header ends as its assistant's turns begin."
        )

    @pytest.mark.parametrize("thinking", [False, True])
    @pytest.mark.parametrize(
        ("live", "shown"),
        [
            ("<|im_start|>assistant<|sep|>thought\n", "<|im_start|>assistant<|sep|>reply\n"),
            ("<|im_start|>assistant<|sep|>thought\n", "<|im_start|>assistant\n"),
            ("<|im_start|>think\n", "<|im_start|>assistant\n"),
            ("<|im_start|>assistant thought\n<think>", "<|im_start|>assistant reply\n"),
        ],
    )
    def test_that_are_others_than_those_of_an_answer_are_refused(self, live: str, shown: str, thinking: bool) -> None:
        turns = "{{ m.content }}{% if m.role == 'assistant' %}<|im_end|>{% endif %}"
        body = loop("", header="").replace(
            "<{{ m.role }}>", "{{ '" + shown + "' if m.role == 'assistant' else '<u>' }}" + turns
        )
        made = tokenizer(body + "{% if add_generation_prompt %}" + live + "{% endif %}")
        for answer in (None, "Fine.", "<think>Hm.</think>Fine."):
            with pytest.raises(UnsuitableModel) as refused:
                encode(made, ask("Why?"), answer, thinking=thinking and answer is None)
            assert str(refused.value) == (
                f"The model's chat template puts {live!r} before an answer that is to come, and {shown!r} before one "
                "that it is given: the first may open a thought, inside of which replies would be read. Give the "
                "tokenizer a chat template that puts the same before both."
            )

    @pytest.mark.parametrize(
        ("live", "shown"), [("<A>:", "<A>: "), ("<A>\n", "<A> "), ("<A></think>", "<A>"), ("<A>", "<A></think>")]
    )
    def test_that_differ_in_blanks_or_closed_thoughts_pass(self, live: str, shown: str) -> None:
        body = loop("", header="").replace(
            "<{{ m.role }}>", "{{ '" + shown + "' if m.role == 'assistant' else '<u>' }}{{ m.content }}"
        )
        made = tokenizer(body + "{% if add_generation_prompt %}" + live + "{% endif %}")
        one = encode(made, ask("Why?"), "Fine.")
        assert made.decode(one.ids[one.start : one.end]) == "Fine."

    def test_with_words_in_an_open_thought_are_known_live(self) -> None:
        model: Model = wrap(tiny.lm(), tokenizer(opening("<think>Okay, ")), name="tiny")
        prompt = model.tokenizer("<user>Q<assistant><think>Okay, ", add_special_tokens=False)["input_ids"]
        tracker = model.thought_marks.tracker(model.tokenizer, prompt)
        for piece in ("so", "</think>", "b"):
            tracker.add(0, piece)
        tracker.finish()
        assert (tracker.thought, tracker.reply) == ("so", "b")
        closed = model.tokenizer("<user>Q <think>Okay, <assistant>", add_special_tokens=False)["input_ids"]
        assert model.thought_marks.tracker(model.tokenizer, closed).part == "reply"

    @pytest.mark.parametrize("answer", ["<think>th</think>rep", "<seed:think>th</seed:think>rep", "th</think>rep"])
    def test_make_way_for_a_thought_that_brings_its_mark(self, answer: str) -> None:
        made = tokenizer(opening("<think>Okay, "))
        text = made.decode(encode(made, ask("Q"), answer).ids)
        before = "<think>Okay, " if answer.startswith("th") else ""
        assert text == f"<user>Q<assistant>{before}{answer}"


class TestTheClock:
    """transformers hands templates a clock that no argument replaces; the date is pinned all the same."""

    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("{{ strftime_now('%S.%f') }}" + PLAIN, "00.000000<user>no<assistant>"),
            ("<d>{{ strftime_now('%d %B %Y') }}</d>" + PLAIN, "<d>26 July 2024</d><user>no<assistant>"),
            ("{{ strftime_now(format='100%% %-d/%-m/%y, %I %p') }}" + PLAIN, "100% 26/7/24, 12 AM<user>no<assistant>"),
            ("{%- set today = strftime_now('%Y-%m-%d') %}\n{{ today }}\n" + PLAIN, "2024-07-26\n<user>no<assistant>"),
            (
                "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + PLAIN,
                "26 Jul 2024<user>no<assistant>",
            ),
            (
                "{% macro head() %}[{{ strftime_now('%H') | int + 1 }}]{% endmacro %}\n\n"
                "  {% if strftime_now is defined %}{{ head() }}{% endif %}" + PLAIN,
                "\n[1]<user>no<assistant>",
            ),
        ],
    )
    def test_stands_still(self, template: str, text: str) -> None:
        assert render_prompt(tokenizer(template), RECURRING[:1]) == text

    def test_gives_what_strftime_gives(self) -> None:
        moment = datetime(2024, 7, 26)
        formats = [f"%{letter}" for letter in "aAbBcdfHIjmMpSUwWxXyYzZGuVCDeFghklnPrRtT"] + [
            "%%d",
            "%%%d",
            "%-d %-m %-H",
        ]
        for one in formats:
            made = tokenizer("{{ strftime_now(" + repr(one) + ") }}|" + PLAIN)
            assert render_prompt(made, RECURRING[:1]).partition("|")[0] == moment.strftime(one), one

    def test_leaves_the_blanks_of_a_template_as_they_are(self) -> None:
        for head in ("\n", "\n\n ", "  ", " {% if true %}a{% endif %} ", "x", "\n{%- if true %}\nb{% endif %}\n"):
            texts = [
                render_prompt(tokenizer(head + "|" + PLAIN + tail), RECURRING[:1])
                for tail in ("", "{% if false %}{{ strftime_now('%d') }}{% endif %}")
            ]
            assert texts[0] == texts[1], head

    @pytest.mark.parametrize("change", ["{{ ['a', 'b'] | random }}", "{{ lipsum(n=1) }}"])
    def test_a_text_that_changes_all_the_same_is_refused(self, change: str) -> None:
        with pytest.raises(UnsuitableModel, match="it writes one conversation differently from time to time"):
            render_prompt(tokenizer(change + PLAIN), RECURRING[:1])

    def test_of_several_templates_by_name(self) -> None:
        made = tokenizer("")
        made.chat_template = {
            "default": "{{ strftime_now('%Y') }}" + PLAIN,
            "tool_use": "{{ strftime_now('%y') }}T" + PLAIN,
        }
        assert render_prompt(made, RECURRING[:1]) == "2024<user>no<assistant>"
        assert render_prompt(made, RECURRING[:1], tools=[{"type": "function"}]) == "24T<user>no<assistant>"


EFFORT = "[{{ reasoning_effort | default('-') }}]"
OF_LEVELS = (
    "{{% if reasoning_effort is defined and reasoning_effort not in {} %}}{{{{ raise_exception('bad') }}}}{{% endif %}}"
)


class TestTheLeastEffort:
    """Templates name their levels of thinking as they like; the least that one knows stands for no thinking."""

    @pytest.mark.parametrize(
        ("head", "effort"),
        [
            (OF_LEVELS.format(["none", "high"]), "none"),
            (OF_LEVELS.format(["minimal", "low", "high"]), "minimal"),
            (OF_LEVELS.format(["low", "medium", "high"]), "low"),
            (OF_LEVELS.format(["medium", "high"]), ""),
            ("{% if reasoning_effort is not defined or reasoning_effort != 'none' %}Think.{% endif %}", "none"),
            ("{% if reasoning_effort == 'minimal' %}Be quick.{% endif %}", "minimal"),
            ("{% if tool_choice == 'none' %}x{% endif %}Reasoning: {{ reasoning_effort or 'medium' }}", "low"),
            ("", "low"),
        ],
    )
    def test_is_the_first_that_the_template_knows(self, head: str, effort: str) -> None:
        made = tokenizer(head + EFFORT + PLAIN)
        assert least_effort(made) == effort
        assert render_prompt(made, RECURRING[:1]).endswith(f"[{effort or '-'}]<user>no<assistant>")


class TestTheEndOfATurn:
    @pytest.mark.parametrize(
        ("end", "stops", "learnt"),
        [
            ("<|eom_id|>\n", ["<|endoftext|>", "<|eom_id|>"], ["<|eom_id|>"]),
            ("<|im_end|>\n", ["<|endoftext|>", "<|im_end|>"], ["<|im_end|>"]),
            ("</answer_bit><|eom_id|>", ["<|endoftext|>", "<|eom_id|>"], None),
            ("<|END_RESPONSE|><|eom_id|>", ["<|endoftext|>", "<|eom_id|>"], ["<|END_RESPONSE|>", "<|eom_id|>"]),
            ("\n", ["<|endoftext|>"], ["<|endoftext|>"]),
        ],
    )
    def test_is_the_token_that_the_template_writes(self, end: str, stops: list[str], learnt: list[str] | None) -> None:
        made = tokenizer(loop("{{ m.content }}" + end, header="{% if add_generation_prompt %}<assistant>{% endif %}"))
        made.add_tokens(["<|eom_id|>", "<|END_RESPONSE|>"], special_tokens=True)
        made.eos_token = "<|endoftext|>"
        model = wrap(tiny.lm(), made, name="tiny")
        assert sorted(made.convert_ids_to_tokens(sorted(model.stop_ids))) == sorted(stops)
        ending = end_of_answer_ids(made, model.stop_ids)
        assert made.decode(ending) == ("".join(learnt) if learnt else end)

    def test_is_said_by_the_diagnosis(self) -> None:
        made = tokenizer(OF_LEVELS.format(["none", "high"]) + loop("{{ m.content }}<|eom_id|>"))
        made.add_tokens(["<|eom_id|>"], special_tokens=True)
        made.eos_token = "<|endoftext|>"
        diagnosis = diagnose(wrap(tiny.lm(), made, name="tiny"))
        assert set(diagnosis.stop_tokens) == {"<|endoftext|>", "<|eom_id|>"}
        assert diagnosis.reasoning_effort == "none"
