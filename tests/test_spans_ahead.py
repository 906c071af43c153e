"""Spans of the next window made in a thread: the same ones, errors in their order, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

import tiny
from poise.data import Conversation, turns
from poise.errors import InvalidData
from poise.model import Model, ask
from poise.model import spans_ahead as module
from poise.model.spans import answer_spans
from poise.model.spans_ahead import spans_ahead


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama")


def row(number: int) -> Conversation:
    messages = (*ask(f"Why {number}?"), {"role": "assistant", "content": f"So it goes {number}."})
    return Conversation(messages=messages, file="", row=number, index=number, raw=b"")


def windows(count: int) -> Iterator[list[Conversation]]:
    for number in range(count):
        yield [row(2 * number), row(2 * number + 1)]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("poise-tokenizing")]


class TestSpansAhead:
    @pytest.mark.parametrize("ahead", [True, False])
    def test_are_those_of_each_row(self, model: Model, ahead: bool) -> None:
        handed_out = list(spans_ahead(model, windows(3), ahead=ahead))
        assert [[one.index for one in window] for window, _ in handed_out] == [[0, 1], [2, 3], [4, 5]]
        for window, spans in handed_out:
            assert spans == {place: answer_spans(model, turns(one)) for place, one in enumerate(window)}
        assert not threads()

    def test_are_made_in_a_thread_of_their_own_and_rows_taken_in_the_callers(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_work, taken_in = [], []
        tokenize = module.answer_spans_together

        def noted(*args: object, **options: object) -> object:
            at_work.append(threading.current_thread().name)
            return tokenize(*args, **options)  # type: ignore[arg-type]

        def noting() -> Iterator[list[Conversation]]:
            for window in windows(3):
                taken_in.append(threading.current_thread())
                yield window

        monkeypatch.setattr(module, "answer_spans_together", noted)
        steps = spans_ahead(model, noting())
        next(steps)
        assert len(taken_in) == 2  # one further than is handed out
        assert len(list(steps)) == 2
        assert set(taken_in) == {threading.current_thread()}
        assert len(at_work) == 3
        assert all(name.startswith("poise-tokenizing") for name in at_work)

    def test_hand_out_what_was_taken_before_rows_break(self, model: Model) -> None:
        def breaking() -> Iterator[list[Conversation]]:
            yield from windows(2)
            raise InvalidData("The file ends in the middle of a row.")

        steps = spans_ahead(model, breaking())
        assert next(steps)[0][0].index == 0
        assert next(steps)[0][0].index == 2
        with pytest.raises(InvalidData, match="in the middle"):
            next(steps)
        assert not threads()

    def test_raise_what_the_tokenizer_raises(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*args: object, **options: object) -> None:
            raise RuntimeError("Already borrowed")

        monkeypatch.setattr(module, "answer_spans_together", broken)
        with pytest.raises(RuntimeError, match="borrowed"):
            next(spans_ahead(model, windows(2)))
        assert not threads()

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, None])
    def test_end_with_the_thread_when_the_caller_is_interrupted(
        self, model: Model, interrupt: type[BaseException] | None
    ) -> None:
        steps = spans_ahead(model, windows(50))
        next(steps)
        if interrupt:
            with pytest.raises(interrupt):
                steps.throw(interrupt())
        else:
            steps.close()
        assert not threads()

    def test_stop_between_two_calls_of_the_tokenizer(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, may_end, asked = threading.Event(), threading.Event(), []
        tokenize = module.answer_spans_together

        def slow(text_model: object, rows: object, *, stopped: object) -> object:
            if not asked:
                asked.append("first")
                return tokenize(model, rows, stopped=stopped)  # type: ignore[arg-type]
            begun.set()
            assert may_end.wait(10)
            asked.append(stopped())  # type: ignore[operator]
            return tokenize(model, rows, stopped=stopped)  # type: ignore[arg-type]

        monkeypatch.setattr(module, "answer_spans_together", slow)
        steps = spans_ahead(model, windows(50))
        next(steps)
        assert begun.wait(10)
        threading.Timer(0.2, may_end.set).start()
        steps.close()  # waits for the call that is under way, and for no more
        assert asked == ["first", True]
        assert not threads()
