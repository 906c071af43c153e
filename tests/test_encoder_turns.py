"""Who reads next, where a large text and small ones want the encoder or a thread at once: the order, and no clock."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import serving
import tiny
from poise.engine import EngineOutput
from poise.engine.continuous import ContinuousEngine
from poise.grounding import ground
from poise.guardrail import encoder_reader
from poise.guardrail.encoder_reader import CHARACTERS_AT_ONCE, UNITS_AT_ONCE, embedded
from poise.judge.encoder_turns import ENCODER_TURNS, EncoderTurns
from poise.judge.exemplars import sentence_embeddings, sentence_tokens
from poise.model import ask, logprobs
from poise.serve.fact_writer import UnwatchedAnswer, served_turn
from poise.serve.request_workers import LARGE, RequestWorkers
from poise.serve.scheduler import ScheduledRequest, Scheduler

LARGE_TEXT = [f"large {n:02d} " * 100 for n in range(12)]  # more than is read in one turn, each


class RecordedEncoder:
    """In the encoder's place: notes what it reads, and may have something happen at its first pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: Callable[[], None] = lambda: None) -> None:
        self.passes: list[list[str]] = []
        self._first = first
        monkeypatch.setattr(encoder_reader, "sentence_embeddings", self.read)

    def read(self, texts: Sequence[str]) -> Any:
        self.passes.append(list(texts))
        if len(self.passes) == 1:
            self._first()
        return np.zeros((len(texts), 384))


class TestASmallText:
    def test_that_comes_while_a_large_one_is_read_is_read_next(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with ThreadPoolExecutor(2) as pool:

            def small_comes() -> None:
                pool.submit(embedded, ["small"])
                serving.eventually(lambda: ENCODER_TURNS.waiting == 1)

            encoder = RecordedEncoder(monkeypatch, small_comes)
            embedded(LARGE_TEXT)
        assert [texts[0].split()[0] for texts in encoder.passes] == ["large", "small", *["large"] * 11]

    def test_is_before_all_large_ones_that_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with ThreadPoolExecutor(9) as pool:

            def others_come() -> None:
                for number in range(7):
                    pool.submit(embedded, [text.replace("large", f"large{number}") for text in LARGE_TEXT])
                    serving.eventually(lambda number=number: ENCODER_TURNS.waiting == number + 1)
                pool.submit(embedded, ["small"])
                serving.eventually(lambda: ENCODER_TURNS.waiting == 8)

            encoder = RecordedEncoder(monkeypatch, others_come)
            embedded(LARGE_TEXT)
        assert encoder.passes[1] == ["small"]
        assert len(encoder.passes) == 1 + 8 * 12

    def test_waits_for_no_more_than_one_long_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = RecordedEncoder(monkeypatch)
        texts = ["x" * length for length in (1, 1000, 400, 30, 700, 999)] + [f"short {n}" for n in range(70)]
        assert embedded(texts).shape == (len(texts), 384)
        for each in encoder.passes:
            assert len(each) == 1 or sum(map(len, each)) <= CHARACTERS_AT_ONCE
            assert len(each) <= UNITS_AT_ONCE
        assert sorted(text for each in encoder.passes for text in each) == sorted(texts)


class TestTurns:
    def test_go_to_the_one_with_least_left_and_now_and_then_to_the_oldest(self) -> None:
        turns, order = EncoderTurns(), list[int]()

        def read(left: int) -> None:
            with turns.turn(left):
                order.append(left)

        lefts = [900, 800, 5, 4, 700, 3, 2, 1, 600]
        with ThreadPoolExecutor(len(lefts)) as pool, turns.turn(1000):
            for number, left in enumerate(lefts, 1):
                pool.submit(read, left)
                serving.eventually(lambda number=number: turns.waiting == number)
        assert order == [1, 2, 3, 900, 4, 5, 600, 800, 700]

    def test_are_had_by_one_at_a_time(self) -> None:
        turns, inside, most = EncoderTurns(), list[int](), list[int]()

        def read(number: int) -> None:
            for _ in range(30):
                with turns.turn(random.Random(number).randint(1, 9)):
                    inside.append(number)
                    most.append(len(inside))
                    inside.remove(number)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))
        assert (len(most), max(most), turns.waiting) == (240, 1, 0)

    def test_are_given_back_by_what_fails(self) -> None:
        turns = EncoderTurns()
        with pytest.raises(ZeroDivisionError), turns.turn(1):
            raise ZeroDivisionError
        with turns.turn(1):
            assert turns.waiting == 0


class TestWorkers:
    @pytest.mark.parametrize("waits", [True, False])
    def test_large_requests_never_take_the_threads_of_small_ones(self, waits: bool) -> None:
        workers, end = RequestWorkers(), threading.Event()

        async def both() -> str:
            large = [asyncio.ensure_future(workers.run(end.wait, size=LARGE, waits=waits)) for _ in range(40)]
            done = await workers.run(lambda: "small", waits=waits)
            assert not any(each.done() for each in large)
            end.set()
            await asyncio.gather(*large)
            return done

        try:
            assert asyncio.run(both()) == "small"
        finally:
            end.set()
            workers.close()


class TestTokens:
    def test_of_long_texts_are_counted_as_those_of_short_ones(self) -> None:
        words = "Hello, wörld! 狐 don't " + "y" * 130 + " "
        [once] = sentence_tokens([words])
        assert sentence_tokens([words * 500, "", "a"]) == [(once - 2) * 500 + 2, 2, 3]

    def test_are_counted_while_others_are_embedded(self) -> None:
        expected = sentence_embeddings(["The room is quiet. " * 40])
        with ThreadPoolExecutor(4) as pool:
            counts = pool.map(lambda _: sentence_tokens(["boats sail " * 3000])[0], range(8))
            embeddings = list(pool.map(lambda _: sentence_embeddings(["The room is quiet. " * 40]), range(8)))
        assert set(counts) == {6002}
        assert all(np.array_equal(each, expected) for each in embeddings)


class RecordedEngine:
    """An engine with one answer that never ends."""

    def __init__(self, order: list[str]) -> None:
        self.order = order

    def add(self, key: object, request: object) -> None:
        """Nothing."""

    def abort(self, key: object) -> None:
        """Nothing."""

    def step(self) -> list[EngineOutput]:
        self.order.append("step")
        time.sleep(0.002)
        return []


class TestTheModelsThread:
    def test_other_work_waits_its_turn_between_two_steps(self) -> None:
        """Of much other work one piece is done between two steps, so that answers go on beside it."""
        order, hold = list[str](), threading.Event()
        scheduler = Scheduler(RecordedEngine(order))  # type: ignore[arg-type]
        request: Any = SimpleNamespace(client=None)
        scheduler.start()
        scheduler.submit([ScheduledRequest(request=request, guard=UnwatchedAnswer(), sink=lambda _: None)])
        with ThreadPoolExecutor(4) as pool:
            works = [pool.submit(scheduler.call, hold.wait)]
            serving.eventually(lambda: scheduler.idle is False and not scheduler._calls)
            works += [pool.submit(scheduler.call, lambda: order.append("work")) for _ in range(3)]
            serving.eventually(lambda: len(scheduler._calls) >= 3)
            hold.set()
            for work in works:
                work.result()
        scheduler.stop()
        places = [place for place, what in enumerate(order) if what == "work"]
        assert len(places) == 3
        assert all("step" in order[first:second] for first, second in itertools.pairwise(places))

    def test_grounding_lets_answers_go_on_between_its_passes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, passes = tiny.model(), list[int]()
        monkeypatch.setattr(logprobs, "LOGPROB_BUDGET", 64)

        def between(work: Callable[[], Any]) -> Any:
            passes.append(1)
            return work()

        source = "\n\n".join(f"The boats go out at {n}. " * 9 for n in range(4))
        scored = ground(model, source, "When?", "The boats go out at 3.", between=between)
        assert scored.score == ground(model, source, "When?", "The boats go out at 3.").score
        assert len(passes) > 1

    def test_a_turn_that_the_model_writes_goes_on_in_the_steps_of_all_others(self) -> None:
        model, steps = dataclasses.replace(tiny.model(), stop_ids=frozenset()), list[int]()

        class CountedEngine(ContinuousEngine):
            def step(self) -> list[EngineOutput]:
                steps.append(1)
                return super().step()

        scheduler = Scheduler(CountedEngine(model))
        scheduler.start()
        served_turn(model, scheduler, ask("And then?"), 24)
        scheduler.stop()
        assert len(steps) >= 24
