"""From messages to token ids: the response span, the chat template, and what it does with a system text."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from poise.errors import UnsuitableModel
from poise.model import Encoded, Message, Model, ask, render_prompt
from poise.model.chat_template import encode, stop_ids

TOKENIZERS = {"chatml": tiny.chatml, "gemma": tiny.gemma, "llama3": tiny.llama3}
SPECIAL = ["<|im_end|>", "<|im_start|>", "<end_of_turn>", "<bos>", "<|eot_id|>", "<|endoftext|>", "</s>"]
ODD = ["", " ", "   ", "\n", "\n\n\n", "\t", "\u2028", "\u200b", "é", "e\u0301", "👩‍👩‍👧", "ﷺ", "日本語", "▁"]
WORDS = ["Hello", " there.", "And so", " on"]


def texts(alphabet: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(SPECIAL + ODD + WORDS) | st.text(alphabet, max_size=6), max_size=6).map("".join)


def conversations(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    return st.builds(ask, text, st.none() | text)


text = texts(st.characters(codec="utf-8"))
conversation = conversations(text)
printable = texts(st.characters(codec="utf-8", exclude_categories=["C"]))


def byte_table() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary, inverted (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


BYTES = byte_table()


def bytes_of(tokenizer: Any, token: int) -> bytes:
    piece = tokenizer.convert_ids_to_tokens(token)
    if token in tokenizer.added_tokens_decoder:
        return str(piece).encode()
    return bytes(BYTES[c] for c in piece)


def whole(tokenizer: Any, encoded: Encoded) -> bytes:
    return b"".join(bytes_of(tokenizer, i) for i in encoded.ids)


class TestTheResponseSpan:
    @pytest.mark.parametrize("template", ["chatml", "llama3"])
    @settings(max_examples=120)
    @given(messages=conversation, answer=text)
    def test_covers_the_answer_byte_for_byte(self, template: str, messages: list[Message], answer: str) -> None:
        tokenizer = TOKENIZERS[template]()
        encoded = encode(tokenizer, messages, answer)
        prompt = render_prompt(tokenizer, messages).encode()
        assert whole(tokenizer, encoded) == prompt + answer.encode()
        ends, said = [], 0
        for token in encoded.ids:
            said += len(bytes_of(tokenizer, token))
            ends.append(said)
        expected = [i for i, end in enumerate(ends) if end > len(prompt)]  # tokens with a byte of the answer
        assert list(range(encoded.start, encoded.end)) == expected

    @settings(max_examples=120)
    @given(messages=conversation, answer=text)
    def test_covers_the_answer_character_for_character(self, messages: list[Message], answer: str) -> None:
        tokenizer = tiny.gemma()
        encoded = encode(tokenizer, messages, answer)
        prompt = render_prompt(tokenizer, messages)
        naive = tokenizer.backend_tokenizer.encode(prompt + answer, add_special_tokens=False)
        assert list(encoded.ids) == naive.ids
        inside = set(range(len(prompt), len(prompt + answer)))
        covering = [i for i, (first, last) in enumerate(naive.offsets) if inside & set(range(first, last))]
        assert list(range(encoded.start, encoded.end)) == covering

    @pytest.mark.parametrize("template", TOKENIZERS)
    @settings(max_examples=60)
    @given(messages=conversation, answer=text)
    def test_decodes_to_the_answer(self, template: str, messages: list[Message], answer: str) -> None:
        tokenizer = TOKENIZERS[template]()
        encoded = encode(tokenizer, messages, answer)
        decoded = tokenizer.decode(encoded.ids[encoded.start : encoded.end])
        if template == "gemma":  # its normaliser rewrites characters, and it writes a space after special tokens
            answer = tokenizer.backend_tokenizer.normalizer.normalize_str(answer).replace(" ", "").replace("▁", "")
            decoded = decoded.replace(" ", "")
        assert answer in decoded

    @pytest.mark.parametrize("template", TOKENIZERS)
    @given(messages=conversation)
    def test_of_an_empty_answer_is_empty_and_its_prompt_is_the_bare_prompt(
        self, template: str, messages: list[Message]
    ) -> None:
        tokenizer = TOKENIZERS[template]()
        empty, bare = encode(tokenizer, messages, ""), encode(tokenizer, messages)
        assert empty == bare
        assert bare.start == bare.end == len(bare.ids)
        assert list(bare.ids) == tokenizer(render_prompt(tokenizer, messages), add_special_tokens=False)["input_ids"]

    def test_holds_a_token_that_begins_in_the_prompt_and_ends_in_the_answer(self) -> None:
        alone, joined = encode(tiny.chatml(), ask("Hi")), encode(tiny.chatml(), ask("Hi"), "\n\nWell.")
        crossing = tiny.chatml().convert_ids_to_tokens(joined.ids[joined.start])
        assert crossing == "ĊĊ", "the template's newline and the answer's first make one token"
        assert joined.start == alone.end - 1

    def test_keeps_the_spaces_that_trimmed_offsets_leave_out(self) -> None:
        encoded = encode(tiny.llama3(), ask("Hi"), "Well.  ")
        assert tiny.llama3().decode(encoded.ids[encoded.start : encoded.end]) == "Well.  "


class TestATemplate:
    @pytest.mark.parametrize("template", ["chatml", "llama3"])
    def test_with_a_system_role_gets_the_system_text_in_it(self, template: str) -> None:
        rendered = render_prompt(TOKENIZERS[template](), ask("Why?", "Be brief."))
        assert rendered.index("system") < rendered.index("Be brief.") < rendered.index("user") < rendered.index("Why?")

    def test_that_refuses_a_system_role_gets_it_at_the_head_of_the_first_user_turn(self) -> None:
        assert render_prompt(tiny.gemma(), ask("Why?", "Be brief.")) == (
            "<bos><start_of_turn>user\nBe brief.\n\nWhy?<end_of_turn>\n<start_of_turn>model\n"
        )

    def test_that_drops_the_system_text_in_silence_gets_it_there_too(self) -> None:
        tokenizer = copy.deepcopy(tiny.chatml())
        tokenizer.chat_template = tiny.CHATML.replace("in messages", "in messages if m['role'] != 'system'")
        assert render_prompt(tokenizer, ask("Why?", "Be brief.")) == render_prompt(
            tiny.chatml(), ask("Be brief.\n\nWhy?")
        )

    def test_of_a_later_turn_leaves_the_other_turns_alone(self) -> None:
        later: list[Message] = [{"role": "assistant", "content": "Because."}, {"role": "user", "content": "But why?"}]
        folded = render_prompt(tiny.gemma(), [*ask("Why?", "Be brief."), *later])
        assert folded == render_prompt(tiny.gemma(), [*ask("Be brief.\n\nWhy?"), *later])

    def test_gets_a_user_turn_for_a_system_text_that_has_none_to_stand_in(self) -> None:
        system: Message = {"role": "system", "content": "Be brief."}
        greeting: Message = {"role": "assistant", "content": "Hello."}
        assert render_prompt(tiny.gemma(), [system]) == render_prompt(tiny.gemma(), ask("Be brief."))
        assert render_prompt(tiny.gemma(), [system, greeting, *ask("Why?")]) == render_prompt(
            tiny.gemma(), [*ask("Be brief."), greeting, *ask("Why?")]
        )

    def test_that_renders_nothing_is_an_error_with_its_own_complaint(self) -> None:
        tokenizer = copy.deepcopy(tiny.chatml())
        tokenizer.chat_template = "{{ raise_exception('only tools here') }}"
        with pytest.raises(UnsuitableModel, match="only tools here"):
            render_prompt(tokenizer, ask("Why?", "Be brief."))

    def test_that_prints_a_date_prints_the_same_one_every_day(self) -> None:
        tokenizer = copy.deepcopy(tiny.chatml())
        date = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
        tokenizer.chat_template = date + " {{ messages[0]['content'] }}"
        assert render_prompt(tokenizer, ask("Why?")) == "26 Jul 2024 Why?"

    def test_is_not_needed(self) -> None:
        assert render_prompt(tiny.plain(), ask("Why?", "Be brief.")) == "System: Be brief.\n\nUser: Why?\n\nAssistant:"


class TestTheBeginningAndTheEnd:
    @pytest.mark.parametrize("template", ["gemma", "llama3"])
    def test_have_one_bos_where_template_and_tokenizer_both_add_it(self, template: str) -> None:
        tokenizer = TOKENIZERS[template]()
        assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id, "the tokenizer adds one by itself"
        for answer in (None, "", "Because."):
            ids = encode(tokenizer, ask("Why?", "Be brief."), answer).ids
            assert ids[0] == tokenizer.bos_token_id
            assert ids.count(tokenizer.bos_token_id) == 1

    def test_have_a_bos_without_template_where_the_tokenizer_adds_it(self) -> None:
        with_bos, without = tiny.plain(adds_bos=True), tiny.plain()
        assert encode(with_bos, ask("Why?"), "Because.").ids.count(with_bos.bos_token_id) == 1
        assert encode(with_bos, ask("Why?"), "Because.").ids[0] == with_bos.bos_token_id
        assert encode(without, ask("Why?"), "Because.").ids.count(without.bos_token_id) == 0

    @pytest.mark.parametrize("template", TOKENIZERS)
    def test_have_no_end_of_sequence_after_the_answer(self, template: str) -> None:
        tokenizer = TOKENIZERS[template]()
        stops = stop_ids(tiny.lm(), tokenizer)
        assert encode(tokenizer, ask("Why?"), "Because.").ids[-1] not in stops

    def test_stop_at_the_tokenizers_end_and_at_the_templates_end_of_turn(self) -> None:
        lm = tiny.lm()
        tokenizers = {template: build() for template, build in TOKENIZERS.items()}
        assert {name: t.convert_ids_to_tokens(sorted(stop_ids(lm, t))) for name, t in tokenizers.items()} == {
            "chatml": ["<|im_end|>"],
            "gemma": ["<eos>", "<end_of_turn>"],
            "llama3": ["<|end_of_text|>", "<|eot_id|>"],
        }

    def test_stop_at_all_of_the_models_own_ends(self) -> None:
        lm = tiny.lm()
        lm.generation_config.eos_token_id = [7, 9]
        assert stop_ids(lm, tiny.chatml()) == {2, 7, 9}

    def test_stop_where_the_end_is_also_the_unknown_token(self) -> None:
        tokenizer = tiny.plain()
        assert tokenizer.unk_token_id == tokenizer.eos_token_id
        assert stop_ids(tiny.lm(), tokenizer) == {tokenizer.eos_token_id}


@pytest.mark.real
class TestSmolLM:
    @settings(max_examples=100)
    @given(messages=conversations(printable), answer=printable)  # its vocabulary lacks control characters
    def test_covers_the_answer_byte_for_byte(self, smollm: Model, messages: list[Message], answer: str) -> None:
        encoded = smollm.encode(messages, answer)
        prompt = render_prompt(smollm.tokenizer, messages).encode()
        assert whole(smollm.tokenizer, encoded) == prompt + answer.encode()
        response = whole(smollm.tokenizer, Encoded(encoded.ids[encoded.start :], 0, 0))
        first = len(bytes_of(smollm.tokenizer, encoded.ids[encoded.start])) if answer else 0
        assert response.endswith(answer.encode())
        assert len(answer.encode()) <= len(response) < len(answer.encode()) + max(first, 1)

    def test_stops_at_its_end_of_turn(self, smollm: Model) -> None:
        assert smollm.tokenizer.convert_tokens_to_ids("<|im_end|>") in smollm.stop_ids
