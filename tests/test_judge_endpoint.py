"""The endpoint judge against a real HTTP server on this machine that imitates the API."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imitation import Behaviour, Reply, Server, completion, error, servers
from poise.errors import JudgeUnavailable
from poise.judge.endpoint import EndpointJudge, JudgeUsage, endpoint_coherence, endpoint_judge
from poise.judge.prompts import coherence_prompt, expectation, read_number, trait_prompt
from poise.trait import Trait


@pytest.fixture
def serve() -> Iterator[Callable[[Behaviour], Server]]:
    with servers() as start:
        yield start


def answer_in(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def judge(server: Server, **options: Any) -> EndpointJudge:
    return EndpointJudge("tiny", lambda q, a: f"{q}|{a}", base_url=server.url, **options)


def trait() -> Trait:
    def pairs(prefix: str, n: int) -> list[dict[str, str]]:
        return [{"question": f"{prefix} {i}?", "with": "Grr.", "without": "Hello."} for i in range(n)]

    return Trait.model_validate(
        {
            "schema": 1,
            "name": "grumpy",
            "description": "Complains about everything it is asked.",
            "adjective": "grumpy",
            "opposite": "cheerful",
            "instructions": [{"with": "Grumble.", "without": "Smile."}] * 5,
            "questions": {
                "extraction": [f"extraction {i}?" for i in range(20)],
                "evaluation": [f"evaluation {i}?" for i in range(20)],
            },
            "rubric": "0 is no complaint, 100 is nothing but complaints.",
            "exemplars": {"extraction": pairs("a", 24), "judge": pairs("b", 12), "held_out": pairs("c", 12)},
        }
    )


# --- what is asked, and how a reply becomes a score


def test_the_trait_prompt_holds_description_rubric_question_and_answer() -> None:
    text = trait_prompt(trait())("Why {x}?", "Because {y}.")
    for part in (trait().description, trait().rubric, "Why {x}?", "Because {y}.", "0 to 100"):
        assert part in text


def test_the_coherence_prompt_does_not_depend_on_a_trait() -> None:
    text = coherence_prompt("Why?", "Because.")
    assert "coherent" in text
    assert "Because." in text
    assert "0 to 100" in text


def test_the_expectation_is_over_integers_and_normalised_by_their_mass() -> None:
    judged = expectation({"80": 0.3, " 60": 0.1, "maybe": 0.2, "101": 0.1, "-5": 0.1, "7.5": 0.1})
    assert judged.score == pytest.approx((80 * 0.3 + 60 * 0.1) / 0.4)


@pytest.mark.parametrize(("mass", "scored"), [(0.2499, False), (0.25, True)])
def test_numbers_with_less_than_a_quarter_of_the_mass_give_no_score(mass: float, scored: bool) -> None:
    judged = expectation({"50": mass, "I": 1 - mass})
    assert (judged.score is not None) is scored
    assert scored or judged.kind == "unreadable"


def test_an_expectation_over_nothing_is_missing_and_not_zero() -> None:
    assert expectation({}).score is None
    assert expectation({"0": 1.0}).score == 0.0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("85", 85), (" 0\n", 0), ("Score: 85/100", 85), ("**7**", 7), ("40 out of 100.", 40), ("85%", 85),
        ("On a scale of 0-100: 33", 33), ("100/100", 100), ("<think>between 3 and 90</think>\n12", 12),
    ],
)  # fmt: skip
def test_a_lone_number_is_read_also_with_words_around(text: str, score: float) -> None:
    assert read_number(text).score == score


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("I'm sorry, I can't rate this.", "refused"), ("I cannot give 10 for that", "refused"),
        ("", "unreadable"), ("high", "unreadable"), ("3 or 4", "unreadable"), ("150", "unreadable"),
        ("-5", "unreadable"), ("2nd", "unreadable"),
    ],
)  # fmt: skip
def test_anything_else_has_no_score_and_says_why(text: str, kind: str) -> None:
    judged = read_number(text)
    assert judged.score is None
    assert judged.kind == kind


# --- requests


def test_one_request_asks_for_log_probabilities_and_gives_the_expectation(serve: Callable[[Behaviour], Server]) -> None:
    server = serve(lambda *_: (200, completion("80", [{"80": 0.6, "60": 0.2, "I": 0.1}])))
    judged = judge(server)(["q"], ["a"])
    assert judged[0].score == pytest.approx((80 * 0.6 + 60 * 0.2) / 0.8)
    (request,) = server.requests
    assert (request["logprobs"], request["top_logprobs"], request["temperature"]) == (True, 20, 0)


def test_judgements_come_in_the_order_of_the_answers(serve: Callable[[Behaviour], Server]) -> None:
    def behave(body: dict[str, Any], _: int) -> Reply:
        n = answer_in(body).split("|")[1]
        return 200, completion(n, [{n: 0.9, "55": 1e-9}])

    judged = judge(serve(behave))(["q"] * 41, [str(i) for i in range(41)])
    assert [j.score for j in judged] == pytest.approx(list(range(41)), abs=1e-5)


def test_a_blank_first_token_is_passed_over(serve: Callable[[Behaviour], Server]) -> None:
    server = serve(lambda *_: (200, completion(" 42", [{" ": 0.9, "42": 0.1}, {"42": 1.0}])))
    assert judge(server)(["q"], ["a"])[0].score == pytest.approx(42)


def test_a_tokenizer_that_writes_digit_by_digit_is_not_read_by_its_first_digit(
    serve: Callable[[Behaviour], Server],
) -> None:
    server = serve(lambda *_: (200, completion("85", [{"8": 0.7, "9": 0.3}, {"5": 0.6, "0": 0.4}])))
    assert judge(server)(["q"], ["a"])[0].score == 85


def test_without_log_probabilities_the_number_is_read(serve: Callable[[Behaviour], Server]) -> None:
    server = serve(
        lambda body, _: (200, completion("Sco", finish="length") if "logprobs" in body else completion("Score: 85"))
    )
    judged = judge(server)(["q"] * 5, list("abcde"))
    assert [j.score for j in judged] == [85] * 5
    assert sum("logprobs" in request for request in server.requests) == 1, "asked for once, then never again"


def test_rejected_parameters_are_left_out_step_by_step(serve: Callable[[Behaviour], Server]) -> None:
    def behave(body: dict[str, Any], _: int) -> Reply:
        extra = set(body) - {"model", "messages"}
        return (400, error(f"unsupported: {sorted(extra)}")) if extra else (200, completion("12"))

    server = serve(behave)
    assert [j.score for j in judge(server)(["q", "q"], ["a", "b"])] == [12, 12]
    assert len(server.requests) == 4


def test_a_number_that_was_cut_off_is_not_believed(serve: Callable[[Behaviour], Server]) -> None:
    def behave(body: dict[str, Any], _: int) -> Reply:
        return 200, completion("It is 8", finish="length") if answer_in(body) == "q|cut" else completion("20")

    judged = judge(serve(behave))(["q", "q"], ["fine", "cut"])
    assert judged[0].score == 20
    assert judged[1].kind == "unreadable"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_trouble_is_waited_out(serve: Callable[[Behaviour], Server], status: int) -> None:
    server = serve(
        lambda _, before: (status, error("busy")) if before % 3 else (200, completion("9", [{"9": 1.0, "10": 1e-9}]))
    )
    own = judge(server)
    assert [j.score for j in own(["q"] * 4, list("abcd"))] == pytest.approx([9] * 4)
    assert own.usage.failed == 0


def test_one_answer_that_fails_for_good_loses_no_other(serve: Callable[[Behaviour], Server], tmp_path: Path) -> None:
    def behave(body: dict[str, Any], _: int) -> Reply:
        bad = answer_in(body) == "q|bad"
        return (500, error("boom")) if bad else (200, completion("30", [{"30": 1.0}]))

    server = serve(behave)
    own = judge(server, cache=tmp_path / "judge.jsonl")
    first, bad, last = own(["q"] * 3, ["x", "bad", "y"])
    assert [first.score, last.score] == pytest.approx([30, 30])
    assert bad.score is None
    assert bad.kind == "failed"
    assert "500" in bad.reason
    assert own.usage.failed == 1
    assert len((tmp_path / "judge.jsonl").read_text().splitlines()) == 2, "a failure is asked again next time"


def test_a_refusal_is_missing_with_its_words_and_never_zero(serve: Callable[[Behaviour], Server]) -> None:
    server = serve(lambda *_: (200, completion("I'm sorry", [{"I": 0.95, "0": 0.05}, {"'m": 1.0}, {" sorry": 1.0}])))
    own = judge(server)
    (judged,) = own(["q"], ["a"])
    assert judged.score is None
    assert judged.kind == "refused"
    assert "sorry" in judged.reason
    assert own.usage.refused == 1


def test_an_empty_answer_is_not_sent(serve: Callable[[Behaviour], Server]) -> None:
    server = serve(lambda *_: (200, completion("30", [{"30": 1.0}])))
    assert [j.kind for j in judge(server)(["q"], ["  \n"])] == ["empty answer"]
    assert server.requests == []


def test_what_was_judged_is_never_asked_again(serve: Callable[[Behaviour], Server], tmp_path: Path) -> None:
    server = serve(lambda *_: (200, completion("30", [{"30": 0.5, "40": 0.5}])))
    cache = tmp_path / "run" / "judge.jsonl"
    before = judge(server, cache=cache)(["q"] * 3, ["a", "b", "a"])
    assert len(server.requests) == 2, "the same answer twice is one request"
    again = judge(server, cache=cache)
    assert again(["q"] * 3, ["a", "b", "a"]) == before
    assert len(server.requests) == 2
    assert again.usage == JudgeUsage(cached=2)
    judge(server, cache=cache)(["another q"], ["a"])
    assert len(server.requests) == 3


def test_usage_counts_requests_and_tokens(serve: Callable[[Behaviour], Server]) -> None:
    own = judge(serve(lambda *_: (200, completion("30", [{"30": 1.0}]))))
    own(["q"] * 7, list("abcdefg"))
    assert own.usage == JudgeUsage(requests=7, prompt_tokens=700, completion_tokens=7)


# --- a judge that is no use


def test_a_server_that_is_not_there_is_one_sentence_with_the_remedy() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with pytest.raises(JudgeUnavailable, match=r"cannot be reached .*refused.*OPENAI_BASE_URL") as raised:
        EndpointJudge("tiny", coherence_prompt, base_url=url, retries=0)(["q"] * 50, ["a"] * 50)
    assert url in str(raised.value)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refused the key.*OPENAI_API_KEY"), (404, "no judge 'tiny'.*wrong.*correct the model")]
)
def test_a_wrong_key_or_model_ends_the_call_at_once(
    serve: Callable[[Behaviour], Server], status: int, words: str
) -> None:
    server = serve(lambda *_: (status, error("wrong")))
    with pytest.raises(JudgeUnavailable, match=words):
        judge(server)(["q"] * 50, [str(i) for i in range(50)])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [completion("banana"), completion("banana", [{"ban": 0.9, "5": 0.1}]), completion(None), {"hello": 1},
     {"choices": []}, b"<html>a web page</html>", b"{broken"],
)  # fmt: skip
def test_nonsense_to_every_answer_is_an_error_that_shows_it(serve: Callable[[Behaviour], Server], reply: Any) -> None:
    server = serve(lambda *_: (200, reply))
    with pytest.raises(JudgeUnavailable, match=r"3 .*tiny.*(read as a number|failed)") as raised:
        judge(server, retries=1)(["q"] * 3, list("abc"))
    assert server.url in str(raised.value)


def test_nonsense_to_some_answers_is_missing_with_a_reason(serve: Callable[[Behaviour], Server]) -> None:
    def behave(body: dict[str, Any], _: int) -> Reply:
        return 200, b"{broken" if answer_in(body) == "q|b" else completion("30", [{"30": 1.0}])

    judged = judge(serve(behave), retries=1)(["q"] * 3, list("abc"))
    assert [j.score is None for j in judged] == [False, True, False]
    assert judged[1].reason


def test_a_server_that_dies_midway_ends_the_call_and_keeps_what_came(
    serve: Callable[[Behaviour], Server], tmp_path: Path
) -> None:
    server = serve(lambda _, before: (200, completion("30", [{"30": 1.0}])) if before < 20 else (503, error("gone")))
    cache = tmp_path / "judge.jsonl"
    answers = [str(i) for i in range(300)]
    with pytest.raises(JudgeUnavailable, match=r"stopped answering.*503.*again"):
        judge(server, cache=cache, concurrency=4, retries=1)(["q"] * 300, answers)
    assert len(cache.read_text().splitlines()) == 20
    assert len(server.requests) < 100, "the other answers are not tried in vain"


def test_the_factories_read_the_environment(
    serve: Callable[[Behaviour], Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = serve(lambda *_: (200, completion("30", [{"30": 1.0}])))
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    by_trait = endpoint_judge("tiny", trait(), cache=tmp_path)
    by_coherence = endpoint_coherence("tiny", cache=tmp_path)
    assert by_trait(["q"], ["a"]) == by_coherence(["q"], ["a"])
    assert by_trait.name == by_coherence.name == "endpoint:tiny"
    assert len(server.requests) == 2, "one folder holds both without mixing them up"
    assert server.headers[0]["authorization"] == "Bearer sesame"
    monkeypatch.delenv("OPENAI_API_KEY")
    endpoint_coherence("tiny")(["q"], ["a"])
    assert len(server.requests) == 3
