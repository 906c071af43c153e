"""``poise chat``: what a line does, how answers look, what steering adds by itself, and a session in a terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from typer.testing import CliRunner

import serving
import thinking
import tiny
from poise import vector as vectors
from poise.activations import Probe, project
from poise.cli import app
from poise.cli.chat import commands, tint
from poise.cli.chat.dialogue import AnswerPiece, ChatTurn, Dialogue, Setup, WatchedTrait, named, push, transcript
from poise.cli.chat.loop import Screen, answer, converse, prepare, remarks
from poise.data import Conversation, data_from_rows, turns
from poise.engine import SamplingParams, TextChunk
from poise.engine.static import LocalEngine
from poise.errors import InvalidArgument, InvalidSteering, OutputExists, PoiseError, UnsuitableModel
from poise.model import Encoded, Model, load_model
from poise.steer import Condition, Steering, Term
from poise.trait import library
from poise.vector import Alarm, PersonaVector
from poise.workflows import extract_vector

LAYER = 2


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def grumpy(model: Model) -> PersonaVector:
    return tiny.vector(model, seed=1)


@pytest.fixture(scope="module")
def kind(model: Model) -> PersonaVector:
    trait = tiny.trait("kind")
    return tiny.vector(model, seed=2, trait=trait, trait_hash=trait.hash)


def watch(
    name: str, vector: PersonaVector, layer: int = LAYER, normal: float = 1.0, spread: float = 2.0
) -> WatchedTrait:
    return WatchedTrait(name=name, vector=vector, probe=Probe(layer, vector.unit(layer)), normal=normal, spread=spread)


@pytest.fixture
def setup(model: Model, grumpy: PersonaVector, kind: PersonaVector) -> Setup:
    both = {"grumpy": grumpy, "kind": kind}
    watched = (watch("grumpy", grumpy), watch("kind", kind))
    return Setup(model=model, sampling=SamplingParams(max_new_tokens=6), vectors=both, watched=watched)


def turn(*texts: str, readings: Sequence[float] = (), k: int = 2, **changes: Any) -> ChatTurn:
    """An answer of one token a text; every probe reads the same."""
    values = list(readings) or [1.0] * len(texts)
    said = tuple(AnswerPiece(text, ((value,) * k,)) for text, value in zip(texts, values, strict=True))
    plain = ChatTurn(user="Why?", system="", steering=None, seed=0, prompt=(0.5,) * k, pieces=said, finish="stop")
    return replace(plain, **changes)


def printed(*parts: Any, width: int = 80, colour: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour, color_system="truecolor" if colour else None, highlight=False
    )
    for part in parts:
        console.print(part, markup=False)
    return out.getvalue()


def words(parts: Sequence[Any]) -> str:
    return printed(*parts, width=400)


class TestALine:
    def test_is_asked_unless_it_begins_with_a_slash(self, setup: Setup) -> None:
        assert commands.run("How are you?", Dialogue(), setup).ask == "How are you?"
        assert commands.run("//etc is what?", Dialogue(), setup).ask == "/etc is what?"
        assert commands.run("", Dialogue(), setup) == commands.Outcome(dialogue=Dialogue())

    def test_that_is_no_command_is_one_sentence(self, setup: Setup) -> None:
        with pytest.raises(InvalidArgument, match=r"^There is no command /dail; /help lists them[^.]*\.$"):
            commands.run("/dail evil 3", Dialogue(), setup)

    def test_help_names_every_command(self, setup: Setup) -> None:
        said = words(commands.run("/help", Dialogue(), setup).output)
        names = ("dial", "tint", "watch", "system", "retry", "undo", "reset", "save", "help", "quit")
        assert [name for name in names if f"/{name}" not in said] == []

    def test_quit_leaves(self, setup: Setup) -> None:
        assert commands.run("/quit", Dialogue(), setup).leave

    def test_system_holds_for_the_whole_conversation(self, setup: Setup) -> None:
        after = commands.run("/system Be terse.", Dialogue(turns=(turn("Because"),)), setup).dialogue
        assert after.messages("And?") == [
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because"},
            {"role": "user", "content": "And?"},
        ]
        assert commands.run("/system off", after, setup).dialogue.system == ""

    def test_tint_takes_what_is_watched(self, setup: Setup) -> None:
        assert commands.run("/tint kind", Dialogue(), setup).dialogue.tint == "kind"
        assert commands.run("/tint off", Dialogue(tint="kind"), setup).dialogue.tint is None
        with pytest.raises(InvalidArgument, match="grumpy, kind is watched"):
            commands.run("/tint evil", Dialogue(), setup)

    def test_undo_and_retry_take_the_last_turn_back_and_reset_all(self, setup: Setup) -> None:
        two = Dialogue(turns=(turn("a"), turn("b", user="And now?")), seed=2, system="Hm.")
        assert commands.run("/undo", two, setup).dialogue == replace(two, turns=two.turns[:1])
        retried = commands.run("/retry", two, setup)
        assert (retried.ask, retried.dialogue.turns) == ("And now?", two.turns[:1])
        assert commands.run("/reset", two, setup).dialogue == replace(two, turns=())
        for line in ("/undo", "/retry"):
            with pytest.raises(InvalidArgument, match="Nothing has been said yet"):
                commands.run(line, Dialogue(), setup)

    def test_watch_says_normal_trait_and_alarms_in_numbers(self, setup: Setup, grumpy: PersonaVector) -> None:
        said = words(commands.run("/watch", Dialogue(), setup).output)
        about = tint.reading_figure(1.0 + float(grumpy.directions[LAYER].norm()), setup.watched[0])
        assert f"grumpy at layer 2 of 4: normal +1.0, with the trait about {about}" in said
        assert "+5.0 or more, 2 spreads above normal" in said
        assert said.count("no alarm is set") == 2


class TestADial:
    def steering(self, setup: Setup, *lines: str, begun: Steering | None = None) -> Steering | None:
        dialogue = Dialogue(steering=begun)
        for line in lines:
            dialogue = commands.run(line, dialogue, setup).dialogue
        return dialogue.steering

    def test_turns_by_dose_or_by_alpha(self, setup: Setup, grumpy: PersonaVector) -> None:
        layer = grumpy.at("steer").layer
        for line, coef in (("/dial grumpy 30%", grumpy.coef(0.3, layer)), ("/dial grumpy=-1.5", -1.5)):
            assert self.steering(setup, line) == Steering((Term(vector=grumpy, value=coef, layers=(layer,)),))

    def test_stays_at_the_layer_where_the_vector_works(self, setup: Setup, grumpy: PersonaVector) -> None:
        found = self.steering(setup, "/dial grumpy 2", begun=Steering.add(grumpy, coef=1.0, layer=3))
        assert found == Steering.add(grumpy, coef=2.0, layer=3)
        assert self.steering(setup, "/dial grumpy@0 2", begun=found) == Steering.add(grumpy, coef=2.0, layer=0)

    def test_leaves_the_others_and_off_takes_one_away(
        self, setup: Setup, grumpy: PersonaVector, kind: PersonaVector
    ) -> None:
        both = self.steering(setup, "/dial grumpy 1", "/dial kind 2", "/dial grumpy 3")
        assert both is not None
        assert [(t.vector, t.value) for t in both.terms] == [(kind, 2.0), (grumpy, 3.0)]
        one = self.steering(setup, "/dial kind off", begun=both)
        assert one is not None
        assert [t.vector for t in one.terms] == [grumpy]
        assert self.steering(setup, "/dial grumpy off", begun=one) is None

    def test_takes_all_that_steering_can_say(self, setup: Setup, kind: PersonaVector, grumpy: PersonaVector) -> None:
        found = self.steering(setup, "/dial kind 2 if grumpy@0>3")
        assert found is not None
        assert found.terms[0].when == Condition(vector=grumpy, layer=0, value=3.0)

    def test_of_nothing_known_or_nothing_said_is_one_sentence(self, setup: Setup) -> None:
        for line, why in (
            ("/dial evil 1", "There is no vector 'evil' here; there are: grumpy, kind."),
            ("/dial grumpy", "Say how far to turn grumpy"),
            ("/dial grumpy loud", "Cannot read the steering"),
            ("/dial grumpy@9 1", "Layer 9 is out of range"),
        ):
            with pytest.raises(InvalidSteering, match=why):
                commands.run(line, Dialogue(), setup)

    def test_says_what_is_at_work_and_warns_of_broken_text(self, setup: Setup) -> None:
        said = words(commands.run("/dial grumpy 95%", Dialogue(), setup).output)
        assert "steered by grumpy: layer 1 of 4" in said
        assert "warning: A dose of 95% of grumpy" in said
        assert words(commands.run("/dial", Dialogue(), setup).output) == "Nothing is steered.\n"


class TestNames:
    def test_are_told_apart_and_equal_vectors_are_one(
        self, model: Model, grumpy: PersonaVector, kind: PersonaVector
    ) -> None:
        other = tiny.vector(model, seed=9)
        again = PersonaVector(grumpy.directions, grumpy.reference_norm, grumpy.header)
        steering = Steering(
            (
                Term(vector=again, value=1.0, layers=(0,), when=Condition(vector=other, layer=0, value=1.0)),
                Term(vector=kind, value=1.0, layers=(0,)),
            )
        )
        names, known = named([grumpy], steering)
        assert names == {"grumpy": grumpy, "grumpy-2": other, "kind": kind}
        assert known is not None
        assert known.terms[0].vector is grumpy


class TestThePush:
    """The steered engine beside a plain reading pass over the same tokens, which knows of no steering."""

    def readings(
        self, model: Model, watched: WatchedTrait, steering: Steering
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        prompt = tiny.prompts(model, 1)[0]
        said = LocalEngine(model).generate([prompt], SamplingParams(12), steering=steering, probes=[watched.probe])[0]
        assert said.readings is not None
        whole = Encoded(prompt.ids + said.ids, prompt.start, len(prompt.ids + said.ids))
        plain = project(model, [whole], [watched.probe])[0][prompt.start - 1 :, 0]
        return said.readings[0, 0], said.readings[1:, 0], plain

    @pytest.mark.parametrize("phase", ["response", "all", "prompt"])
    def test_is_exactly_what_steering_at_the_watched_layer_adds(
        self, model: Model, grumpy: PersonaVector, kind: PersonaVector, phase: Any
    ) -> None:
        watched = watch("kind", kind)
        steering = Steering.add(grumpy, coef=1.5, layer=LAYER, phase=phase)
        prompt, tokens, plain = self.readings(model, watched, steering)
        torch.testing.assert_close(prompt - push(steering, watched, "prompt"), plain[0], atol=1e-4, rtol=1e-4)
        if phase != "prompt":  # a steered prompt moves what comes after it
            torch.testing.assert_close(tokens - push(steering, watched, "response"), plain[1:], atol=1e-4, rtol=1e-4)

    def test_is_none_of_steering_above_the_watched_layer(self, model: Model, grumpy: PersonaVector) -> None:
        watched = watch("grumpy", grumpy)
        steering = Steering.add(grumpy, coef=1.5, layer=LAYER + 1)
        assert push(steering, watched, "response") == 0.0
        _, tokens, plain = self.readings(model, watched, steering)
        torch.testing.assert_close(tokens, plain[1:], atol=1e-4, rtol=1e-4)

    def test_of_increments_is_that_of_their_sum(self, grumpy: PersonaVector) -> None:
        steering = Steering((Term(vector=grumpy, value=2.0, layers="increments"),))
        whole = 2.0 * float(grumpy.directions[LAYER].norm())
        assert push(steering, watch("grumpy", grumpy), "response") == pytest.approx(whole, rel=1e-5)

    def test_is_unknown_of_conditions_schedules_and_caps(self, grumpy: PersonaVector) -> None:
        for term in (
            Term(vector=grumpy, value=1.0, layers=(0,), operation="cap"),
            Term(vector=grumpy, value=1.0, layers=(0,), operation="project_out"),
            Term(vector=grumpy, value=1.0, layers=(0,), tokens=(0, 5)),
            Term(vector=grumpy, value=1.0, layers=(0,), when=Condition(vector=grumpy, layer=0, value=1.0)),
        ):
            assert push(Steering((term,)), watch("grumpy", grumpy), "response") is None
        assert (
            push(
                Steering((Term(vector=grumpy, value=1.0, layers=(3,), operation="cap"),)),
                watch("grumpy", grumpy),
                "response",
            )
            == 0.0
        )

    def test_is_left_out_of_gauges_and_said(self, setup: Setup, grumpy: PersonaVector) -> None:
        steering = Steering.add(grumpy, coef=1.0, layer=LAYER)
        found = turn("a", readings=[50.0], steering=steering).readings(setup.watched)
        assert found.mean[0] == pytest.approx(50 - float(grumpy.directions[LAYER].norm()), rel=1e-5)
        assert found.prompt == (0.5, 0.5)
        [_, said] = commands.at_work(Dialogue(steering=steering), setup)
        assert said.startswith("left out of the readings: the push itself, +")
        capped = Dialogue(steering=Steering((Term(vector=grumpy, value=1.0, layers=(0,), operation="cap"),)))
        assert commands.at_work(capped, setup)[1].startswith("left in the readings of grumpy and kind")


COLORS = {"standard": ColorSystem.STANDARD, "256": ColorSystem.EIGHT_BIT, "truecolor": ColorSystem.TRUECOLOR}


class TestTint:
    def test_counts_whole_spreads_from_normal(self, grumpy: PersonaVector) -> None:
        w = watch("grumpy", grumpy, normal=1.0, spread=2.0)
        read = {-99.0: -3, -3.1: -2, -1.0: -1, -0.9: 0, 1.0: 0, 2.9: 0, 3.0: 1, 5.0: 2, 7.0: 3, 99.0: 3}
        assert {value: tint.level(value, w) for value in read} == read
        assert tint.level(float("nan"), w) == 0

    def test_without_colour_sets_what_is_high_in_brackets(self) -> None:
        said = [("You", 0), (" silly", 2), (" goose", 3), (",", 0), (" it", 1), (" is\n\n", 2), (" ", 0), ("Now", -3)]
        assert "".join(text for text, _ in tint.marked(said, {})) == "You [silly goose], it [is]\n\n Now"
        assert "".join(text for text, _ in tint.marked([(" No", 3), ("!", 3)], {})) == " [No!]"

    @pytest.mark.parametrize("system", ["standard", "256", "truecolor"])
    def test_with_colour_leaves_the_text_and_underlines_what_is_high(self, system: Any) -> None:
        tints = tint.palette(Console(color_system=system, force_terminal=True))
        assert len({Style.parse(style).render("x", color_system=COLORS[system]) for style in tints.values()}) == 7
        said = [("You", 0), (" silly", 2), (" goose", 3), (" are\n", -2), ("", 0)]
        marks = [(text, style) for text, style in tint.marked(said, tints) if text]
        assert "".join(text for text, _ in marks) == "".join(text for text, _ in said)
        assert [text for text, style in marks if "underline" in style] == ["silly", " ", "goose"]
        assert [text for text, style in marks if not style] == ["You", " ", " "]

    def test_takes_control_signs_out(self, setup: Setup, model: Model) -> None:
        assert tint.cleaned("a\x1b[2Jb\x07\tc\nd\x9b") == "a[2Jb\tc\nd"

    def test_its_legend_is_in_numbers_with_colour_or_without(self, setup: Setup) -> None:
        w = setup.watched[0]
        for colour in (True, False):
            for width in (40, 80, 120):
                said = printed(tint.Legend(w), width=width, colour=colour)
                plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
                assert ("\x1b[" in said) == colour
                assert max(map(cell_len, plain.splitlines())) <= width
                assert "normal +1.0" in " ".join(plain.split())
                assert "+5.0" in plain


def lines(texts: Sequence[str], width: int) -> str:
    return "".join(piece.plain for piece in tint.wrapped(((text, "") for text in texts), width))


class TestWrapping:
    @given(
        st.lists(st.text(alphabet="ab .,\n日本語é🙂", max_size=12), max_size=20),
        st.integers(min_value=4, max_value=30),
    )
    def test_keeps_every_sign_within_the_width(self, texts: list[str], width: int) -> None:
        shown = lines(texts, width)
        assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", "".join(texts))
        assert all(cell_len(line) <= width for line in shown.split("\n"))

    @given(st.text(alphabet="abc \n", max_size=60), st.data())
    def test_does_not_depend_on_where_tokens_end(self, text: str, data: st.DataObject) -> None:
        text = re.sub(r" +", " ", text)
        cut = data.draw(st.integers(0, len(text)))
        assert lines([text[:cut], text[cut:]], 12) == lines([text], 12)

    def test_breaks_between_words_and_long_words_at_the_margin(self) -> None:
        assert lines(["one t", "wo three"], 8) == "one two\nthree"
        assert lines(["see https://example.org/a/b"], 10) == "see\nhttps://ex\nample.org/\na/b"
        assert lines(["日本語です"], 5) == "日本\n語で\nす"

    def test_keeps_indents_and_empty_lines(self) -> None:
        assert lines(["def f():\n", "    return 1\n\n", "\tx"], 20) == "def f():\n    return 1\n\n    x"


class TestGauges:
    @pytest.mark.parametrize("width", [40, 80, 120])
    @pytest.mark.parametrize("colour", [True, False])
    def test_fit_and_say_prompt_mean_peak_and_dose(self, setup: Setup, width: int, colour: bool) -> None:
        kind = setup.vectors["kind"]
        answer_ = turn("a", "b", readings=[2.0, 6.0], steering=Steering.add(kind, dose=0.25, layer=3))
        shown = printed(*tint.gauges(answer_, setup.watched, [], width), width=width, colour=colour)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
        assert max(map(cell_len, plain.splitlines())) <= width
        assert len(plain.splitlines()) == (6 if width == 40 else 2)
        flat = " ".join(plain.split())
        assert flat.count("prompt +0.5 mean +4.0 peak +4.0") == 2
        assert flat.count("dose 25%") == 1
        assert ("\x1b[" in shown) == colour

    def test_bars_stand_at_normal_and_point_to_the_mean(self, setup: Setup) -> None:
        def bar(value: float) -> str:
            [line] = tint.gauges(turn("a", readings=[value], k=1), setup.watched[:1], [], 80)
            return re.sub(r"[^─━│●▲]", "", line.plain)

        middle = len(bar(1.0)) // 2
        assert bar(1.0).index("●") == middle
        assert bar(5.0).index("│") == middle
        assert middle < bar(3.0).index("●") < bar(5.0).index("●") < len(bar(5.0)) - 1
        assert bar(-3.0).index("●") < middle
        assert bar(99.0).index("●") == bar(9.0).index("●")

    def test_of_an_empty_answer_have_dashes(self, setup: Setup) -> None:
        [line] = tint.gauges(turn(k=1), setup.watched[:1], [], 80)
        assert "mean – peak –" in " ".join(line.plain.split())
        assert "●" not in line.plain

    @pytest.mark.parametrize("width", [40, 80])
    def test_mark_the_readings_that_raise_an_alarm_of_the_watched_layer(
        self, model: Model, setup: Setup, width: int
    ) -> None:
        elsewhere = alarm("peak", 1.0).model_copy(update={"layer": LAYER + 1})
        alarmed = tiny.vector(model, seed=1, alarms=(alarm("mean", 3.0), alarm("prompt", 3.0), elsewhere))
        quiet = setup.watched[1]
        watched = replace(setup, watched=(watch("grumpy", alarmed), quiet))
        shown = " ".join(words(remarks(turn("a", readings=[4.0]), watched, width)).split())
        assert shown.startswith("grumpy prompt +0.5 mean +4.0! peak +4.0 ")
        assert shown.count("!") == 1
        assert "!" not in words(remarks(turn("a", readings=[2.9]), watched, width))
        [said] = [
            line
            for line in words(commands.run("/watch", Dialogue(), watched).output).splitlines()
            if "mean above" in line
        ]
        assert said == "  alarm (!): mean above +3.0, in 1% of normal answers"


def alarm(reading: Any, threshold: float, rate: float = 0.01) -> Alarm:
    return Alarm(
        reading=reading,
        layer=LAYER,
        threshold=threshold,
        rate=rate,
        low=0.005,
        high=0.02,
        n_answers=500,
        n_conversations=500,
        answers="own",
        max_new_tokens=64,
        temperature=1.0,
        data="talk",
        data_sha256="0" * 64,
        seed=0,
    )


class Session:
    """A screen whose user types given lines; ``during`` runs at each print."""

    def __init__(self, *typed: str, width: int = 80, during: Callable[[], None] = lambda: None) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        waiting = list(typed)

        out = self.out

        class Watching(io.StringIO):
            def write(self, text: str) -> int:
                if text.strip():
                    during()
                return out.write(text)

        def console(file: io.StringIO) -> Console:
            return Console(file=file, width=width, color_system=None, force_terminal=False, highlight=False)

        self.screen = Screen(console(Watching()), console(self.err), lambda: waiting.pop(0) if waiting else None)


class TestTheScreen:
    @pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
    def test_speaks_plain_signs_where_there_are_no_others(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch, encoding: str
    ) -> None:
        typed, out = io.BytesIO(b"Who are \xff you?\n"), io.BytesIO()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, encoding="utf-8"))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
        screen = Screen.of_terminal()
        assert screen.ask() == "Who are \N{REPLACEMENT CHARACTER} you?\n"
        screen.say(tint.gauges(turn("a", readings=[-3.0]), setup.watched, [], 80))
        shown = out.getvalue().decode(encoding)
        assert ("o===" in shown) == (encoding != "utf-8")
        assert ("●━━━" in shown) == (encoding == "utf-8")
        assert screen.ask() is None

    def test_ctrl_c_begins_a_typed_line_anew_and_ctrl_d_ends_the_chat(self, monkeypatch: pytest.MonkeyPatch) -> None:
        typed = iter([KeyboardInterrupt(), "Who are you?", EOFError()])

        def line(prompt: str) -> str:
            if isinstance(found := next(typed), BaseException):
                raise found
            return found

        monkeypatch.setattr("builtins.input", line)
        monkeypatch.setattr(sys, "stdin", Typed())
        monkeypatch.setattr(sys, "stdout", Typed())
        screen = Screen.of_terminal()
        assert [screen.ask(), screen.ask()] == ["Who are you?", None]


class Typed(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestThinking:
    def begun(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Setup, Dialogue, Session]:
        model = thinking.model("qwen3")
        thinking.script(monkeypatch, model, dict.fromkeys(range(3), thinking.ANSWERS["qwen3"]))
        sampling = SamplingParams(max_new_tokens=120)
        setup, _ = prepare(model, sampling, [], None, thinking=True)
        session = Session("Where do the boats go?", "And then?")
        return setup, converse(Dialogue(), setup, session.screen), session

    def test_is_shown_before_the_reply_and_goes_with_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setup, after, session = self.begun(monkeypatch)
        assert f"[thinking: {thinking.THOUGHT}]\n{thinking.REPLY}" in session.out.getvalue()
        assert {(t.thought, t.answer) for t in after.turns} == {(thinking.THOUGHT, thinking.REPLY)}
        reply = {"role": "assistant", "content": thinking.REPLY, "thought": thinking.THOUGHT}
        assert after.messages("And now?")[1] == reply
        prompt = setup.model.tokenizer.decode(setup.model.encode(after.messages("And now?"), thinking=True).ids)
        assert thinking.THOUGHT not in prompt, "this template drops the thoughts of earlier turns"

    def test_is_kept_in_the_saved_chat_for_whatever_reads_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setup, after, _ = self.begun(monkeypatch)
        saved = json.loads(json.dumps(transcript(after, setup)))
        assert saved["thinking"] is True
        [row] = data_from_rows([saved])
        assert isinstance(row, Conversation)
        assert [(t.answer, t.thought) for t in turns(row)] == [(thinking.REPLY, thinking.THOUGHT)] * 2

    def test_is_refused_at_the_start_where_the_template_has_no_switch(self, model: Model) -> None:
        with pytest.raises(UnsuitableModel, match="has no switch for thinking"):
            prepare(model, SamplingParams(max_new_tokens=4), [], None, thinking=True)

    def test_has_alarms_of_its_own_and_the_chat_says_so(self, model: Model, setup: Setup) -> None:
        vector = tiny.vector(model, alarms=(serving.alarm(layer=LAYER, part="thought"),))
        only = replace(setup, watched=(watch("grumpy", vector),))
        assert (
            "  grumpy has no calibrated alarm for the mean reading at layer 2; its alarms were set on thoughts, and"
            in ("\n".join(str(part) for part in commands.run("/watch", Dialogue(), only).output))
        )


class TestAChat:
    def test_goes_on_with_what_was_said(self, setup: Setup) -> None:
        session = Session("Who are you?", "And I?", "/quit", "never")
        after = converse(Dialogue(tint="grumpy"), setup, session.screen)
        assert [t.user for t in after.turns] == ["Who are you?", "And I?"]
        assert [t.seed for t in after.turns] == [0, 1]
        assert session.out.getvalue().count("prompt") == 4
        assert session.err.getvalue() == ""
        engine = LocalEngine(setup.model)
        for n, t in enumerate(after.turns):
            told = replace(after, turns=after.turns[:n]).messages(t.user)
            [same] = engine.generate(
                [setup.model.encode(told)], setup.sampling, seeds=[n], probes=[setup.watched[0].probe]
            )
            assert same.text == t.answer
            read = torch.tensor([t.prompt, *(row for s in t.pieces for row in s.readings)])
            assert same.readings is not None
            torch.testing.assert_close(read[:, 0], same.readings[:, 0], atol=1e-4, rtol=1e-4)

    def test_steers_the_turns_after_the_dial(self, setup: Setup) -> None:
        session = Session("Who are you?", "/dial kind 40%", "/retry", "/dial kind off", "/retry")
        after = converse(Dialogue(), setup, session.screen)
        assert after.seed == 3
        assert session.out.getvalue().count("dose 40%") == 2  # the dial's own line, and a gauge

    def test_without_vectors_is_a_plain_chat(self, model: Model) -> None:
        setup = Setup(model=model, sampling=SamplingParams(max_new_tokens=4), vectors={}, watched=())
        session = Session("Who are you?", "/watch", "/dial x 1")
        [said] = converse(Dialogue(), setup, session.screen).turns
        assert said.answer
        assert "Nothing is watched" in session.out.getvalue()
        assert "there are: none, as the chat was begun" in session.err.getvalue()

    def test_survives_what_goes_wrong(self, setup: Setup) -> None:
        long = "word " * 400
        session = Session("/nope", long, "/dial grumpy 3e38", "Who are you?", "/dial grumpy off", "Who are you?")
        after = converse(Dialogue(), setup, session.screen)
        assert [t.user for t in after.turns] == ["Who are you?"]
        told = " ".join(session.err.getvalue().split())
        assert "There is no command /nope" in told
        assert re.search(
            r"The conversation \(\d+ tokens\) fills the window of tiny-llama \(256\); take turns back", told
        )
        assert "NaN or infinite logits" in told

    def test_a_failed_retry_keeps_the_answer_there_was(self, setup: Setup) -> None:
        session = Session("Who are you?", "/dial grumpy 3e38", "/retry")
        after = converse(Dialogue(), setup, session.screen)
        assert [t.user for t in after.turns] == ["Who are you?"]

    def test_near_the_end_of_the_window_answers_are_cut(self, setup: Setup) -> None:
        words_ = 1
        while len(setup.model.encode(Dialogue().messages("so " * (words_ + 1))).ids) <= setup.model.window - 2:
            words_ += 1
        session = Session()
        said = answer("so " * words_, Dialogue(), setup, session.screen)
        assert said is not None
        room = setup.model.window - len(setup.model.encode(Dialogue().messages("so " * words_)).ids)
        assert room < setup.sampling.max_new_tokens
        assert sum(len(s.readings) for s in said.pieces) <= room

    def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(self, model: Model, setup: Setup) -> None:
        before = signal.getsignal(signal.SIGINT)
        once = iter([True])
        many = replace(setup, sampling=SamplingParams(max_new_tokens=100))
        session = Session("Who are you?", during=lambda: next(once, False) and signal.raise_signal(signal.SIGINT))
        [said] = converse(Dialogue(), many, session.screen).turns
        assert said.finish == "interrupted"
        assert 0 < sum(len(s.readings) for s in said.pieces) < 100
        assert "(stopped)" in session.out.getvalue()
        assert signal.getsignal(signal.SIGINT) is before
        assert not any(block._forward_hooks for block in model.blocks)

    def test_ctrl_c_twice_forgets_the_question(self, model: Model, setup: Setup) -> None:
        def twice() -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        session = Session("Who are you?", during=twice)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background lacks
        try:
            assert converse(Dialogue(), setup, session.screen).turns == ()
        finally:
            signal.signal(signal.SIGINT, before)
        assert "Interrupted" in session.err.getvalue()
        assert not any(block._forward_hooks for block in model.blocks)


class TestTheTranscript:
    def test_holds_every_token_with_its_readings(self, setup: Setup, tmp_path: Path, kind: PersonaVector) -> None:
        path = tmp_path / "chat.json"
        session = Session("Who are you?", "/dial kind 20%", "/system Hm.", "And I?", f"/save {path}", "/save")
        after = converse(Dialogue(seed=5), setup, session.screen)
        found = json.loads(path.read_text())
        assert found["model"] == vectors.ModelId.of(setup.model).model_dump(exclude={"sketch"})
        assert [m["role"] for m in found["messages"]] == ["system", "user", "assistant", "user", "assistant"]
        assert [w["name"] for w in found["watched"]] == ["grumpy", "kind"]
        first, second = found["turns"]
        assert (first["seed"], second["seed"]) == (5, 6)
        assert (first["steering"], second["system"]) == ([], "Hm.")
        assert second["steering"][0]["dose"] == 0.2
        assert second["steering"][0]["trait"] == "kind"
        assert "".join(token["text"] for token in second["tokens"]) == second["answer"] == after.turns[1].answer
        assert all(len(row) == 2 for token in second["tokens"] for row in token["readings"])
        assert session.out.getvalue().count("Saved 2 turns") == 2

    def test_never_takes_the_place_of_another_file(self, setup: Setup, tmp_path: Path) -> None:
        path = tmp_path / "vector.safetensors"
        path.write_text("precious")
        with pytest.raises(OutputExists, match="is there already"):
            commands.run(f"/save {path}", Dialogue(), setup)
        assert path.read_text() == "precious"

    def test_needs_a_place_that_can_be_written(self, setup: Setup, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for line in ("/save", f"/save {tmp_path}/file/chat.json"):
            with pytest.raises(PoiseError):
                commands.run(line, Dialogue(), setup)

    def test_is_plain_json_whatever_was_said(self, setup: Setup) -> None:
        json.dumps(transcript(Dialogue(turns=(turn("日本", "\x00"),)), setup), allow_nan=False)


class TestNormal:
    def test_is_of_the_tokens_of_answers_without_the_trait(self, model: Model, tmp_path: Path) -> None:
        path = tmp_path / "grumpy.safetensors"
        vector = tiny.vector(model, seed=1)
        vectors.save_vector(vector, path)
        setup, _ = prepare(model, SamplingParams(), [vectors.load_vector(path), vectors.load_vector(path)], None)
        [w] = setup.watched
        texts = [model.encode([{"role": "user", "content": p.question}], p.negative) for p in vector.header.trait.pairs]
        hidden = [model.lm(torch.tensor([t.ids]), output_hidden_states=True).hidden_states for t in texts]
        layer = vector.at("steer").layer
        read = torch.cat(
            [h[layer + 1][0, t.start : t.end] @ vector.unit(layer) for h, t in zip(hidden, texts, strict=True)]
        )
        assert (w.normal, w.spread) == pytest.approx((read.mean().item(), read.std(correction=0).item()), rel=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model on disk."""
    where = tmp_path_factory.mktemp("models") / "tiny"
    tiny.lm().save_pretrained(where)
    tiny.chatml().save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    """A vector of that model."""
    path = folder.parent / "grumpy.safetensors"
    vectors.save_vector(tiny.vector(load_model(str(folder))), path)
    return path


def piped(folder: Path, text: str, *args: str, **env: str) -> Any:
    return CliRunner().invoke(
        app, ["chat", "--model", str(folder), "--max-new-tokens", "4", *args], input=text, env={"COLUMNS": "80", **env}
    )


class TestTheCommand:
    def test_takes_a_line_a_turn_from_a_pipe(self, folder: Path, file: Path) -> None:
        done = piped(
            folder, "Who are you?\n\n/tint off\n/nope\nAnd I?\n", "--watch", str(file), "--steer", f"{file}=20%"
        )
        assert done.exit_code == 0, done.stderr
        assert [line for line in done.stdout.splitlines() if line.startswith(">")] == [
            "> Who are you?",
            "> /tint off",
            "> /nope",
            "> And I?",
        ]
        assert done.stdout.count("dose 20%") == 3
        assert "\x1b" not in done.stdout
        assert "error: There is no command /nope" in done.stderr

    def test_is_coloured_where_colour_is_forced_and_not_where_it_is_refused(self, folder: Path, file: Path) -> None:
        for env, coloured in ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False):
            done = piped(folder, "Who are you?\n", "--watch", str(file), **env, COLORTERM="truecolor", TERM="xterm")
            shades = re.search("48;[25];", done.stdout)  # as many as the terminal is found to have
            assert bool(shades) == coloured, done.stdout
            assert ("[in brackets]" in done.stdout) != coloured

    def test_refuses_what_cannot_be_before_it_begins(self, folder: Path, file: Path, tmp_path: Path) -> None:
        stranger = tmp_path / "stranger.safetensors"
        vectors.save_vector(tiny.vector(tiny.model(seed=3)), stranger)
        for args, why in (
            (("--watch", "nowhere.safetensors"), "There is no vector file at"),
            (("--watch", str(stranger)), "has the same architecture with other weights"),
            (("--steer", "x"), "Cannot read the steering"),
        ):
            done = piped(folder, "Hi\n", *args)
            assert done.exit_code == 2
            assert why in done.stderr
            assert done.stdout == ""
        assert piped(folder, "Hi\n", "--watch", str(stranger), "--allow-other-model").exit_code == 0


class Terminal:
    """A command in a pseudo-terminal of 80 columns."""

    def __init__(self, *command: str, **env: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **env},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.ours, self.seen, self.at = ours, "", 0

    def until(self, wanted: str, limit: float = 240) -> str:
        """What came since the last call, up to and with the wanted text."""
        end = time.monotonic() + limit
        while wanted not in self.seen[self.at :]:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {wanted!r} came in {limit} s, but: {self.seen[self.at :]}"
            try:
                self.seen += os.read(self.ours, 4096).decode(errors="replace")
            except OSError:  # the other side has closed
                raise AssertionError(f"it ended before {wanted!r} came: {self.seen[self.at :]}") from None
        start, self.at = self.at, self.seen.index(wanted, self.at) + len(wanted)
        return self.seen[start : self.at]

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())


@pytest.fixture(scope="module")
def impolite(smollm: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small one: it has to move the model, not to be good."""
    path = tmp_path_factory.mktemp("vectors") / "impolite.safetensors"
    extract_vector(library.own_trait("impolite", library.load_trait("impolite").extraction_pairs[:8]), smollm, path)
    return path


@pytest.fixture
def terminal(impolite: Path) -> Iterator[Terminal]:
    chat = ["chat", "--model", "smollm2-135m", "--watch", str(impolite), "--steer", f"{impolite}=20%"]
    opened = Terminal(sys.executable, "-m", "poise", *chat, "--max-new-tokens", "64", "--dtype", "float32")
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.ours)


@pytest.mark.real
def test_a_session_in_a_terminal(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until("m> ")
    terminal.type("How do I boil an egg?\r")
    assert "prompt" in terminal.until("dose 20%")
    terminal.until("m> ")
    terminal.type("/dial impolite 10%\r")
    terminal.until("dose 10%")
    terminal.until("m> ")
    terminal.type("Tell me a long story about a fox.\r")
    terminal.until("\n")
    terminal.until(" ")  # the answer has begun
    terminal.type("\x03")
    stopped = terminal.until("dose 10%")
    terminal.until("m> ")
    terminal.type("/tint off\r")
    terminal.until("Tokens are not tinted.")
    terminal.until("m> ")
    terminal.type(f"/save {tmp_path}/chat.json\r")
    terminal.until("Saved 2 turns")
    terminal.until("m> ")
    terminal.type("/quit\r")
    assert terminal.process.wait(60) == 0
    first, second = json.loads((tmp_path / "chat.json").read_text())["turns"]
    assert [first["user"], second["user"]] == ["How do I boil an egg?", "Tell me a long story about a fox."]
    assert (first["steering"][0]["dose"], second["steering"][0]["dose"]) == (0.2, 0.1)
    assert "(stopped)" in stopped
    assert second["finish"] == "interrupted"
    assert len(second["tokens"]) < 64
    assert "48;2;" in terminal.seen


class TestAThought:
    """It is shown before its reply, and neither read, tinted nor sent back with it."""

    def chunks(self) -> list[TextChunk]:
        def chunk(text: str, value: float, part: Any) -> TextChunk:
            return TextChunk(text=text, readings=torch.full((1, 2), value), part=part)

        first = TextChunk(text="", readings=torch.zeros((1, 2)))
        return [
            first,
            chunk("", 9, "mark"),
            chunk("hm", 9, "thought"),
            chunk("", 9, "mark"),
            chunk("Four.", 2, "reply"),
        ]

    def test_is_no_part_of_the_answer_and_its_readings(self, setup: Setup) -> None:
        heard = ChatTurn(user="2+2?", system="", steering=None, seed=0)
        for chunk in self.chunks():
            heard = heard.heard(chunk)
        assert (heard.thought, heard.answer) == ("hm", "Four.")
        assert heard.readings(setup.watched).mean == (2.0, 2.0)
        assert heard.readings(setup.watched).tokens == 1
        assert Dialogue(turns=(heard,)).messages()[-1]["content"] == "Four."

    def test_stands_in_brackets_without_a_tint(self, setup: Setup) -> None:
        plain = ChatTurn(user="2+2?", system="", steering=None, seed=0)
        for by in (None, "grumpy"):
            texts = list(tint.tinted_texts(self.chunks(), plain, by, setup.watched))
            assert "".join(text for text, _ in texts) == "[thinking: hm]\nFour."
            assert all(level == 0 for text, level in texts if text != "Four.")
