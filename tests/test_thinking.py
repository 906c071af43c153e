"""Thinking, live: in which part of an answer a token is, what is read and steered there, and the switches."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import thinking
import tiny
from poise.data.thought_marks import REPLY_TAGS, THOUGHT_TAGS
from poise.data.thoughts import locate_thought, split_thought
from poise.engine import EngineOutput, GenerationRequest, SamplingParams
from poise.engine.continuous import ContinuousEngine
from poise.engine.detokenizer import Detokenizer
from poise.engine.static import LocalEngine
from poise.errors import InvalidSteering, UnsuitableModel
from poise.model import Model, ask, render_prompt
from poise.model.chat_template import encode
from poise.model.parts import PartTracker, ThoughtMarks, in_part
from poise.monitor.steering_offset import steering_offset
from poise.steer import Steering, SteeringExpression
from thinking import ANSWERS, REPLY, THOUGHT

FAMILIES = ("qwen3", "r1", "split", "harmony")
THINK = ThoughtMarks(channels=False, ids={1: "<think>", 2: "</think>"})
CHANNELS = ThoughtMarks(channels=True, ids={3: "<|end|>"})
GREEDY = SamplingParams(max_new_tokens=120, temperature=1.0)


def tracked(marks: ThoughtMarks, pieces: list[Any], prompt: str = "") -> PartTracker:
    """A tracker fed with texts, or with (token, text)."""
    tracker = PartTracker(marks, prompt)
    for piece in pieces:
        tracker.add(*(piece if isinstance(piece, tuple) else (0, piece)))
    tracker.finish()
    return tracker


def words(part: str) -> str:
    return {"t": "thought", "m": "mark", "r": "reply"}[part]


class TestParts:
    @pytest.mark.parametrize(
        ("prompt", "pieces", "parts"),
        [
            ("", ["Hello", " you"], "rr"),
            ("", ["\n", "Hello"], "rr"),
            ("", ["<think>", "\n", "hm", "\n", "</think>", "\n\n", "Four", ".\n"], "mmtmmmrr"),
            ("", ["<", "th", "ink", ">", "hm", "\n</", "think", ">", "Four"], "mmmmtmmmr"),
            ("", ["<", "b", ">", "Four"], "rrrr"),
            ("", ["<think>", "a <", "b", " </", "b>", "</think>", "Four"], "mttttmr"),
            ("Q<think>\n", ["hm", "</think>", "Four"], "tmr"),
            ("Q<think>\n", ["hm", " and", " so"], "ttt"),
            ("Q<think>\n\n</think>\n\n", ["Four"], "r"),
            ("", [(1, ""), "hm", (2, ""), "Four"], "mtmr"),
            ("", ["was thought", "</think>", "\n", "Four"], "tmmr"),
            ("", ["Use the <think> tag", "."], "rr"),
            ("", ["<think>", "", "", "é", "</think>", "", "ü"], "mtttmrr"),
            ("", ["[THINK]", "hm", "[/THINK]", "Four"], "mtmr"),
            ("", ["<|begin_of_thought|>", "hm", "<|end_of_thought|>", "<|begin_of_solution|>", "4"], "mtmmr"),
        ],
    )
    def test_of_blocks(self, prompt: str, pieces: list[Any], parts: str) -> None:
        assert tracked(THINK, pieces, prompt).parts == [words(part) for part in parts]

    @pytest.mark.parametrize(
        ("prompt", "pieces", "parts"),
        [
            ("<|start|>assistant", ["<|channel|>", "analysis", "<|message|>", "hm", (3, ""), "<|start|>"], "mmmtmm"),
            ("<|start|>assistant", ["<|channel|>", "final", "<|message|>", "Four"], "mmmr"),
            ("<|start|>assistant<|channel|>final<|message|>", ["Four", "."], "rr"),
            ("<|start|>assistant<|channel|>analysis<|message|>", ["hm", (3, "")], "tm"),
            ("<|start|>assistant", ["Four", "."], "rr"),
            ("<|start|>assistant", ["<|ch", "annel|>analysis<|mess", "age|>hm", "<|", "end|>"], "mmtmm"),
            ("<|start|>assistant", ["<|channel|>analysis<|message|>", "never closed"], "mt"),
        ],
    )
    def test_of_channels(self, prompt: str, pieces: list[Any], parts: str) -> None:
        assert tracked(CHANNELS, pieces, prompt).parts == [words(part) for part in parts]

    @pytest.mark.parametrize(
        ("marks", "text"),
        [
            (THINK, "<think>\nhm, so\nfar\n</think>\n\nFour.\n"),
            (THINK, "<think>one</think>\n<think>two</think>Four"),
            (THINK, "was thought\n</think>\n\nFour"),
            (THINK, "<think>\n\n</think>\n\nFour"),
            (THINK, "Use the <think> tag <b>so</b>."),
            (CHANNELS, "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Four"),
            (CHANNELS, "<|channel|>commentary<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b"),
        ],
    )
    def test_are_those_of_written_answers_however_the_text_is_cut(self, marks: ThoughtMarks, text: str) -> None:
        thought, reply = split_thought(text)
        draws = random.Random(0)
        for _ in range(60):
            cuts = sorted(draws.sample(range(1, len(text)), draws.randrange(0, 12)))
            pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            tracker = PartTracker(marks, "")
            settled: dict[int, str] = {}
            for piece in pieces:
                tracker.add(0, piece)
                for n in range(tracker.settled):
                    if tracker.unopened is None:
                        assert settled.setdefault(n, tracker.part_of(n)) == tracker.part_of(n)
            tracker.finish()
            assert (tracker.thought, tracker.reply) == (thought, reply)
            assert "".join(tracker.pieces) == text

    @settings(max_examples=400, deadline=None)
    @given(
        pieces=st.lists(
            st.one_of(
                st.sampled_from(
                    [mark for pair in (*THOUGHT_TAGS[:2], *THOUGHT_TAGS[-7:], *REPLY_TAGS) for mark in pair]
                ),
                st.sampled_from(["<think>", "</think>", "<THINK>", "<thinking>", "</thinking>"]),
                st.sampled_from(
                    ["<|channel|>analysis<|message|>", "<|start|>assistant", "<|end|>", "<|channel|>final"]
                ),
                st.text(st.sampled_from("ab .\n`\"'<>/|"), max_size=4),
            ),
            max_size=9,
        ),
        draws=st.randoms(use_true_random=False),
    )
    def test_of_any_mixture_are_those_of_the_text_at_once(self, pieces: list[str], draws: random.Random) -> None:
        text = "".join(pieces)
        thought, reply = split_thought(text)
        cuts = sorted(draws.sample(range(len(text) + 1), draws.randrange(0, len(text) + 1)))
        tokens = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        tracker = tracked(THINK, tokens)
        assert (tracker.thought, tracker.reply) == (thought, reply)
        assert "".join(tracker.pieces) == text
        if tracker.unopened is None:  # nothing has been taken back: what was streamed is what there is
            assert (
                "".join(t for t, part in zip(tracker.texts, tracker.parts, strict=True) if part == "thought") in thought
            )
        sections = locate_thought(text)
        for part, spans in (("thought", sections.thoughts), ("reply", sections.replies)):
            inside = {n for start, end in spans for n in range(start, end)}
            single = tracked(THINK, list(text))  # a token for each character
            assert {n for n, own in enumerate(single.parts) if own == part} == inside

    def test_say_which_token_ended_a_thought_that_nothing_had_opened(self) -> None:
        assert tracked(THINK, ["was", " thought", "</thi", "nk>", "Four"]).unopened == 2
        assert tracked(THINK, ["<think>", "hm", "</think>", "Four"]).unopened is None

    def test_count_places_in_their_part(self) -> None:
        tracker, places = PartTracker(THINK), []
        for piece in ["<think>", "a", "b", "</think>", "c", "d", "e"]:
            tracker.add(0, piece)
            places.append((tracker.part, tracker.place))
        assert places[1:3] == [("thought", 0), ("thought", 1)]
        assert places[4:] == [("reply", 0), ("reply", 1), ("reply", 2)]

    def test_of_a_model_without_marks_need_none_of_its_own(self) -> None:
        marks = ThoughtMarks.of(tiny.chatml())
        assert (marks.ids, marks.channels) == ({}, False)
        assert tracked(marks, ["say </think>", " so"]).parts == ["reply", "reply"]


class TestOfGivenAnswers:
    @given(
        thought=st.text(st.sampled_from("ab .,é\n🦊<>/"), max_size=12),
        reply=st.text(st.sampled_from("ab .,é\n🦊<>/"), max_size=12),
        blank=st.sampled_from(["", "\n", " "]),
        made=st.sampled_from(
            ["chatml", "llama3"]
        ),  # the tiny gemma knows no "<": its offsets run unknown signs together
    )
    def test_the_same_tokens_are_read_that_are_told_apart_live(
        self, thought: str, reply: str, blank: str, made: str
    ) -> None:
        tokenizer = getattr(tiny, made)()
        answer = f"<think>{blank}{thought}{blank}</think>{blank}{reply}"
        for part in ("thought", "reply", "both"):
            text = encode(tokenizer, ask("Q"), answer, part=part)  # type: ignore[arg-type]
            n = text.last_prompt + 1
            detokenizer = Detokenizer(tokenizer)
            for token in text.ids[n:]:
                detokenizer.add(token)
            detokenizer.finish()
            tracker = tracked(THINK, [*detokenizer.pieces])
            mine = [place for place, own in enumerate(tracker.parts, start=n) if in_part(own, part)]  # type: ignore[arg-type]
            assert list(range(text.start, text.end)) == mine, (part, detokenizer.pieces, tracker.parts)


class TestTheSwitch:
    def test_of_qwen3_leaves_the_block_to_the_model(self) -> None:
        made = thinking.tokenizer("qwen3")
        assert render_prompt(made, ask("Q")).endswith("assistant\n<think>\n\n</think>\n\n")
        assert render_prompt(made, ask("Q"), thinking=True).endswith("<|im_start|>assistant\n")

    def test_of_r1_leaves_the_block_open(self) -> None:
        made = thinking.tokenizer("r1")
        assert render_prompt(made, ask("Q")).endswith("<Assistant><think>\n\n</think>\n\n")
        assert render_prompt(made, ask("Q"), thinking=True).endswith("<Assistant><think>\n")

    def test_of_harmony_takes_a_level(self) -> None:
        made = thinking.tokenizer("harmony")
        off = render_prompt(made, ask("Q"))
        on, high = (render_prompt(made, ask("Q"), thinking=choice) for choice in (True, "high"))
        assert off.endswith("<|start|>assistant<|channel|>final<|message|>")
        assert on.endswith("<|end|><|start|>assistant")
        assert ("Reasoning: medium" in on, "Reasoning: high" in high) == (True, True)

    def test_is_refused_where_there_is_none(self) -> None:
        with pytest.raises(UnsuitableModel, match="has no switch for thinking; leave `thinking` out"):
            tiny.model().encode(ask("Q"), thinking=True)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_keeps_what_is_read_of_a_written_answer(self, family: str) -> None:
        model = thinking.model(family)
        for on in (False, True):
            text = model.encode(ask("Q"), ANSWERS[family], thinking=on)
            assert model.tokenizer.decode(text.ids[text.start : text.end], skip_special_tokens=True) == REPLY
            assert model.tokenizer.decode(text.ids).count("<think>") <= 1

    @pytest.mark.parametrize("family", FAMILIES)
    def test_lets_earlier_thoughts_go_as_the_template_has_it(self, family: str) -> None:
        made = thinking.tokenizer(family)
        earlier = {"role": "assistant", "content": "Four.", "thought": "two and two"}
        content = ANSWERS["harmony" if family == "harmony" else "qwen3"]
        inside = {"role": "assistant", "content": content.replace(THOUGHT, "two and two").replace(REPLY, "Four.")}
        texts = {render_prompt(made, [*ask("2+2?"), turn, *ask("And 3?")]) for turn in (earlier, inside)}  # type: ignore[list-item]
        assert len(texts) == 1, "a thought in the content is the same as one under its own key"
        assert "two and two" not in texts.pop()

    def test_shows_a_thought_where_the_template_does(self) -> None:
        turn: Any = {"role": "assistant", "content": "Four.", "thought": "two and two"}
        for family in ("qwen3", "harmony"):
            text = render_prompt(thinking.tokenizer(family), [*ask("2+2?"), turn], header=False)
            assert "two and two" in text, family


def outputs(model: Model, requests: dict[int, GenerationRequest]) -> dict[int, list[EngineOutput]]:
    """All that a continuous engine gives, by key."""
    engine, out = ContinuousEngine(model), {key: [] for key in requests}
    for key, request in requests.items():
        engine.check(request)
        engine.add(key, request)
    while engine.running or engine.waiting:
        for output in engine.step():
            assert output.error is None, output.error
            out[output.key].append(output)
    return out


def request(model: Model, seed: int, on: Any = True, **more: Any) -> GenerationRequest:
    return GenerationRequest(prompt=model.encode(ask("Q"), thinking=on), sampling=GREEDY, seed=seed, **more)


class TestAnswers:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_are_split_the_same_by_both_engines(self, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model(family)
        thinking.script(monkeypatch, model, {5: ANSWERS[family], 6: "Honestly, I would not."})
        probes = tiny.probes([tiny.vector(model)])
        prompts = [model.encode(ask("Q"), thinking=True), model.encode(ask("Q"))]
        static, plain = LocalEngine(model).generate(prompts, GREEDY, seeds=[5, 6], probes=probes)
        assert (static.thought, static.reply) == (THOUGHT, REPLY)
        assert (plain.thought, plain.reply, set(plain.parts)) == ("", REPLY, {"reply"})
        assert static.finish == "stop"
        got = outputs(model, {5: request(model, 5, probes=tuple(probes)), 6: request(model, 6, on=False)})
        tokens = [token for output in got[5] for token in output.tokens]
        assert tuple(token.part for token in tokens) == static.parts
        assert "".join(t.text for t in tokens if t.part == "thought") == THOUGHT
        assert "".join(t.text for t in tokens if t.part == "reply") == REPLY
        assert {t.part for o in got[6] for t in o.tokens} == {"reply"}
        assert static.readings is not None
        torch.testing.assert_close(
            torch.tensor([t.readings for t in tokens]), static.readings[1:], rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("part", ["reply", "thought", "both"])
    @pytest.mark.parametrize("thinks", [False, True])
    def test_are_read_in_each_part_as_the_same_text_is_when_it_is_given(
        self, family: str, part: Any, thinks: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from poise.activations import project
        from poise.monitor.readings import summarize_projections, summarize_response

        model = thinking.model(family)
        thinking.script(monkeypatch, model, {5: ANSWERS[family]})
        probes = tiny.probes([tiny.vector(model)])
        prompt = model.encode(ask("Q"), thinking=True)
        [answer] = LocalEngine(model).generate([prompt], GREEDY, seeds=[5], probes=probes)
        text = model.encode(ask("Q"), answer.text, part=part, thinking=thinks)  # an answer with a thought says itself
        [values] = project(model, [text], probes)
        live, given = answer.readings_of(part), summarize_response(values, text)
        assert live is not None
        expected = summarize_projections(live)
        assert given.tokens == expected.tokens > 0
        for reading in ("prompt", "mean", "peak"):
            assert given.of(reading) == pytest.approx(expected.of(reading), abs=1e-4), reading  # type: ignore[arg-type]

    @pytest.mark.parametrize("family", FAMILIES)
    def test_read_in_their_reply_as_the_same_text_is_afterwards(
        self, family: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from poise.activations import project

        model = thinking.model(family)
        thinking.script(monkeypatch, model, {5: ANSWERS[family]})
        probes = tiny.probes([tiny.vector(model)])
        prompt = model.encode(ask("Q"), thinking=True)
        [answer] = LocalEngine(model).generate([prompt], GREEDY, seeds=[5], probes=probes, keep_means=True)
        text = model.encode(ask("Q"), answer.text, thinking=True)
        assert text.ids == (*prompt.ids, *answer.ids)
        [values] = project(model, [text], probes)
        reply = answer.readings_of("reply")
        assert reply is not None
        torch.testing.assert_close(reply[1:], values[text.start : text.end].cpu(), rtol=1e-4, atol=1e-4)
        assert answer.mean is not None
        probe = probes[0]
        assert float(answer.mean[probe.layer] @ probe.direction) == pytest.approx(float(reply[1:].mean()), abs=1e-4)

    def test_never_closed_are_thought_to_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model("r1")
        thinking.script(monkeypatch, model, {5: "The boats go out, and"})
        prompt = model.encode(ask("Q"), thinking=True)
        [answer] = LocalEngine(model).generate([prompt], GREEDY, seeds=[5], keep_means=True)
        assert (answer.thought, answer.reply, set(answer.parts)) == ("The boats go out, and", "", {"thought"})
        assert answer.mean is not None
        assert bool(answer.mean.isnan().all()), "there is no reply to take the mean of"

    def test_closed_without_an_opening_mark_are_told_apart_at_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, {5: "The boats go out.</think>Honestly."})
        [answer] = LocalEngine(model).generate([model.encode(ask("Q"))], GREEDY, seeds=[5], keep_means=True)
        assert (answer.thought, answer.reply) == (THOUGHT, "Honestly.")
        got = outputs(model, {5: request(model, 5, on=False)})[5]
        tokens = [token for output in got for token in output.tokens]
        assert [t.ends_unopened_thought for t in tokens].index(True) == answer.parts.index("mark")
        assert "".join(t.text for t in tokens[answer.parts.index("mark") :]) == "Honestly."

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("watched", [False, True])
    def test_stream_in_chunks_of_one_part(self, family: str, watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model(family)
        thinking.script(monkeypatch, model, {5: ANSWERS[family]})
        probes = tiny.probes([tiny.vector(model)]) if watched else []
        prompt = model.encode(ask("Q"), thinking=True)
        chunks = list(LocalEngine(model).stream(prompt, GREEDY, seed=5, probes=probes))
        texts = {p: "".join(c.text for c in chunks if c.part == p) for p in ("thought", "mark", "reply")}
        assert texts == {"thought": THOUGHT, "mark": "", "reply": REPLY}
        assert [c.finish for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
        if watched:
            [answer] = LocalEngine(model).generate([prompt], GREEDY, seeds=[5], probes=probes)
            assert answer.readings is not None
            torch.testing.assert_close(torch.cat([c.readings for c in chunks if len(c.readings)]), answer.readings)

    def test_end_at_stop_strings_in_the_reply_and_not_in_the_thought(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, {5: "<think>\nwould I?\n</think>\n\nHonestly, I would not."})
        tokens = [t for o in outputs(model, {5: request(model, 5, stop=("would",))})[5] for t in o.tokens]
        assert "".join(t.text for t in tokens if t.part == "thought") == "would I?"
        assert "".join(t.text for t in tokens if t.part == "reply") == "Honestly, I "


class TestSteering:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("part", ["reply", "thought", "both"])
    def test_acts_on_the_part_that_is_named(self, family: str, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model(family)
        thinking.script(monkeypatch, model, {5: ANSWERS[family], 6: ANSWERS[family]})
        vector = tiny.vector(model)
        layer = vector.at("steer").layer
        [probe] = tiny.probes([vector], layer)
        steering = Steering.add(vector, coef=2.0, part=part)
        prompt = model.encode(ask("Q"), thinking=True)
        plain, steered = LocalEngine(model).generate(
            [prompt, prompt], GREEDY, seeds=[5, 6], steering=[None, steering], probes=[probe]
        )
        assert plain.readings is not None
        assert steered.readings is not None
        push = 2.0 * float(vector.norms[layer])
        moved = (steered.readings - plain.readings)[1:, 0]
        expected = torch.tensor([push if part in (token_part, "both") else 0.0 for token_part in plain.parts])
        # What may begin a closing mark is thought until it is one: a token must be steered when it is run.
        sure = [n for n, own in enumerate(plain.parts) if own != "mark" or part != "thought"]
        torch.testing.assert_close(moved[sure], expected[sure], rtol=1e-3, atol=1e-3)
        requests = {6: request(model, 6, steering=steering, probes=(probe,)), 5: request(model, 5, probes=(probe,))}
        got = [t.readings for o in outputs(model, requests)[6] for t in o.tokens]
        torch.testing.assert_close(torch.tensor(got), steered.readings[1:], rtol=1e-3, atol=1e-3)

    def test_counts_tokens_in_its_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, {5: ANSWERS["qwen3"], 6: ANSWERS["qwen3"]})
        vector = tiny.vector(model)
        steering = SteeringExpression.parse("v@2=2 first 2").steering({"v": vector})
        [probe] = tiny.probes([vector], 2)
        prompt = model.encode(ask("Q"), thinking=True)
        plain, steered = LocalEngine(model).generate(
            [prompt, prompt], GREEDY, seeds=[5, 6], steering=[None, steering], probes=[probe]
        )
        assert plain.readings is not None
        assert steered.readings is not None
        moved = [bool(abs(x) > 1) for x in (steered.readings - plain.readings)[1:, 0].tolist()]
        first = plain.parts.index("reply")
        assert [n for n, one in enumerate(moved) if one] == [first, first + 1]

    def test_of_a_reply_that_has_no_thought_is_what_it_was(self) -> None:
        model = tiny.model()
        vector, prompts = tiny.vector(model), tiny.prompts(model, 3)
        sampling = SamplingParams(max_new_tokens=8, temperature=0)
        by_part = [
            LocalEngine(model).generate(prompts, sampling, steering=Steering.add(vector, coef=1.0, part=part))
            for part in ("reply", "both", "thought")
        ]
        unsteered = LocalEngine(model).generate(prompts, sampling)
        assert [a.ids for a in by_part[0]] == [a.ids for a in by_part[1]]
        assert [a.ids for a in by_part[2]] == [a.ids for a in unsteered]

    @pytest.mark.parametrize(
        "text", ["v=30% in thought", "v@2=cap:1 in both if v@1>2", "v=1 on all in both", "v=1 in thought first 3"]
    )
    def test_is_written_and_read_back(self, text: str) -> None:
        parsed = SteeringExpression.parse(text)
        assert str(parsed) == text
        assert SteeringExpression.from_json(parsed.model_dump_json()) == parsed
        assert parsed.terms[0].part in ("thought", "both")

    def test_of_a_thought_on_the_prompt_is_refused(self) -> None:
        with pytest.raises(InvalidSteering, match="The thought is a part of the response; steer grumpy there"):
            SteeringExpression.parse("v=1 on prompt in thought").steering({"v": tiny.vector(tiny.model())})

    def test_pushes_the_readings_of_its_part_alone(self) -> None:
        vector = tiny.vector(tiny.model())
        layer = vector.at("steer").layer
        [probe] = tiny.probes([vector], layer)
        push = pytest.approx(float(vector.norms[layer]), rel=1e-5)
        for part, expected in (("reply", [push, 0.0]), ("thought", [0.0, push]), ("both", [push, push])):
            steering = Steering.add(vector, coef=1.0, part=part)  # type: ignore[arg-type]
            assert [steering_offset(steering, probe, "response", p) for p in ("reply", "thought")] == expected  # type: ignore[arg-type]


class TestThePrintedAnswer:
    def test_has_its_thought_apart(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        from poise import workflows
        from poise.cli import facts, render

        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, {5: ANSWERS["qwen3"]})
        answers = workflows.generate(["Q"], model, sampling=GREEDY, seed=5, thinking=True)
        [answer] = facts.of_answers("tiny", ["Q"], answers, None, 5)["answers"]
        assert (answer["text"], answer["reasoning_content"]) == (REPLY, THOUGHT)
        render.show(render.answers(["Q"], answers))
        assert capsys.readouterr().out == f"Thought:\n{THOUGHT}\n\n{REPLY}\n"
