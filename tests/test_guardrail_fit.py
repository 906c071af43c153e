"""A guardrail's detectors: fitted with a promised rate, kept in a file, and acted on where the model answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import serving
import tiny
from poise.cli import app
from poise.errors import InvalidArgument, InvalidSettings, OtherModel, TooFewResponses
from poise.guardrail import GuardedText, Guardrail, apply_guardrail, checker_of
from poise.guardrail.activation import ActivationReader
from poise.guardrail.fit_texts import rule_texts
from poise.guardrail.fitting import GuardFitSettings, fit_guard
from poise.guardrail.guard_file import FittedGuard, is_guard_file, load_guard
from poise.guardrail.readings import WINDOW_TOKENS, AnswerWindow, highest_window
from poise.guardrail.schema import ContentType
from poise.guardrail.versions import publish_guardrail
from poise.model import Model
from poise.serve.guardrail_set import read_guardrails

POLICIES = Path(__file__).parent / "policies"
BEGINNINGS = ("Where do the", "How many", "Why are the")
BOATS = [f"{start} boats {end}" for start in BEGINNINGS for end in ("go?", "sail!")]
OTHERS = [f"{start} foxes {end}" for start in BEGINNINGS for end in ("go?", "run!")]
WORDS = [
    "harbour",
    "tide",
    "plan",
    "room",
    "story",
    "sentence",
    "honest",
    "thank",
    "leave",
    "once",
    "user",
    "hello",
    "today",
]
TALK = [
    {
        "messages": [
            {"role": "user", "content": f"Tell me of the {a} and the {b}, {n}."},
            {"role": "assistant", "content": f"The {b} has {n} of a {a}, and it goes on and on like that."},
        ]
    }
    for n, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS)
]
RULES: dict[str, Any] = {
    "name": "harbour",
    "messages": {"input": "No boats.", "output": "Not of boats."},
    "words": {"custom": ["anchor"]},
    "topics": [{"name": "boats", "definition": "Anything on boats.", "examples": BOATS, "near_misses": OTHERS}],
}
SETTINGS = GuardFitSettings(rate=0.05, layer=1)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def fitted(model: Model) -> FittedGuard:
    return fit_guard(Guardrail.model_validate(RULES), model, TALK, SETTINGS)


class TestFitting:
    def test_promises_a_rate_on_talk_that_the_fit_has_not_seen(self, fitted: FittedGuard) -> None:
        assert [(d.rule, d.source) for d in fitted.header.detectors] == [("boats", "INPUT"), ("boats", "OUTPUT")]
        for detector in fitted.header.detectors:
            assert detector.point.rate == 0.05
            assert detector.point.low < 0.05 < detector.point.high
            assert detector.point.n + detector.figures.talk_fitted == len(TALK)
            assert detector.figures.examples == len(BOATS)
            assert detector.figures.auc_low <= detector.figures.auc <= detector.figures.auc_high

    def test_keeps_the_rate_on_the_talk(self, fitted: FittedGuard, model: Model) -> None:
        reader = ActivationReader(fitted, model)
        stopped = [bool(reader(row["messages"][0]["content"], "INPUT")) for row in TALK]  # type: ignore[index]
        assert 0 < np.mean(stopped) <= 0.06

    def test_finds_its_own_examples_better_than_other_talk(self, fitted: FittedGuard) -> None:
        assert fitted.header.detectors[0].figures.auc > 0.8

    def test_needs_examples_and_talk(self, model: Model) -> None:
        few = Guardrail.model_validate({**RULES, "topics": [{**RULES["topics"][0], "examples": BOATS[:3]}]})
        with pytest.raises(TooFewResponses, match="boats has 3 examples, and a detector needs at least 4"):
            fit_guard(few, model, TALK, SETTINGS)
        with pytest.raises(TooFewResponses, match="bring more rows"):
            fit_guard(Guardrail.model_validate(RULES), model, TALK[:20], SETTINGS)
        with pytest.raises(InvalidArgument, match="nothing to fit"):
            fit_guard(Guardrail.model_validate({"name": "a", "words": {"custom": ["b"]}}), model, TALK, SETTINGS)
        with pytest.raises(InvalidArgument, match="rate"):
            GuardFitSettings(rate=0.7)

    def test_gives_content_a_rate_by_its_strength(self, model: Model) -> None:
        content = [{"type": "PROMPT_ATTACK", "input": "HIGH"}, {"type": "HATE", "input": "NONE"}]
        guard = fit_guard(Guardrail.model_validate({"name": "a", "content": content}), model, TALK, SETTINGS)
        rates = {(d.rule, d.source): d.point.rate for d in guard.header.detectors}
        assert rates == {("PROMPT_ATTACK", "INPUT"): 0.25, ("HATE", "OUTPUT"): 0.05}

    def test_has_as_many_texts_beside_each_kind_of_content_as_of_it(self) -> None:
        content = [{"type": kind} for kind in get_args(ContentType)]
        guardrail = Guardrail.model_validate({"name": "a", "content": content})
        for rule in rule_texts(guardrail):
            if rule.rule == "INDIRECT_ATTACK":
                continue
            assert len(rule.examples) == len(rule.near_misses) >= 32
            assert len({*rule.examples, *rule.near_misses}) == 2 * len(rule.examples)

    def test_reads_windows_the_same_token_by_token(self) -> None:
        readings = np.random.default_rng(1).normal(size=(100, 2))
        for n in (1, WINDOW_TOKENS - 1, WINDOW_TOKENS, 100):
            window = AnswerWindow()
            means = [mean for row in readings[:n] if (mean := window.see(row)) is not None]
            if (last := window.end()) is not None:
                means.append(last)
            np.testing.assert_allclose(np.max(means, axis=0), highest_window(readings[:n]))


class TestTheFile:
    def test_is_read_as_it_was_written(self, fitted: FittedGuard, tmp_path: Path) -> None:
        fitted.save(tmp_path / "a.guard")
        again = load_guard(tmp_path / "a.guard")
        assert again.header == fitted.header
        assert again.directions.equal(fitted.directions)
        assert is_guard_file(tmp_path / "a.guard")
        assert not is_guard_file(Path(__file__))

    def test_says_what_its_yaml_said_and_no_more(self, model: Model, tmp_path: Path) -> None:
        """What the YAML left unsaid would contradict the rest: an action beside both ways' own."""
        ways = {"input": "NONE", "output": "BLOCK"}
        rules = {
            **RULES,
            "words": {"custom": [{"text": "anchor", **ways}]},
            "topics": [RULES["topics"][0] | ways],
            "judge": {"by": "served", "band": [0.05, 0.2]},
            "streaming": "asynchronous",
            "reasoning": {"policy": yaml.safe_load((POLICIES / "leave.yaml").read_text("utf-8"))},
        }
        fitted = fit_guard(Guardrail.model_validate(rules), model, TALK, SETTINGS)
        fitted.save(tmp_path / "a.guard")
        assert load_guard(tmp_path / "a.guard").header == fitted.header
        path, _ = publish_guardrail(tmp_path / "a.guard", tmp_path / "kept")
        assert publish_guardrail(path, tmp_path / "kept") == (path, False)

    def test_of_another_model_is_refused(self, fitted: FittedGuard, tmp_path: Path) -> None:
        with pytest.raises(OtherModel, match=r"was fitted on tiny-llama.*fit it on this model"):
            ActivationReader(fitted, tiny.model(seed=5))
        fitted.save(tmp_path / "a.guard")
        with pytest.raises(OtherModel):
            read_guardrails(tmp_path / "a.guard", tiny.model(seed=5))

    def test_that_is_cut_or_something_else_is_refused(self, fitted: FittedGuard, tmp_path: Path) -> None:
        path = tmp_path / "a.guard"
        fitted.save(path)
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(InvalidSettings, match="cut short"):
            load_guard(path)
        save_file({"directions": fitted.directions}, path)
        with pytest.raises(InvalidSettings, match="no fitted guardrail"):
            load_guard(path)
        assert load_file(path)
        renamed = tuple(detector.model_copy(update={"rule": "trains"}) for detector in fitted.header.detectors)
        path.unlink()
        FittedGuard(fitted.header.model_copy(update={"detectors": renamed}), fitted.directions).save(path)
        with pytest.raises(InvalidSettings, match="a detector of trains, which its rules do not name; fit it"):
            load_guard(path)

    def test_is_needed_to_serve_topics(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(json.dumps(RULES))
        with pytest.raises(InvalidArgument, match="fit it with `poise guardrail fit`"):
            read_guardrails(tmp_path / "a.yaml")


def low(fitted: FittedGuard, source: str) -> FittedGuard:
    """The guard with a threshold on one way that everything is above, and one on the other that nothing is."""
    detectors = []
    for d in fitted.header.detectors:
        point = d.point.model_copy(update={"value": -1e9 if d.source == source else 1e9})
        detectors.append(d.model_copy(update={"point": point}))
    return FittedGuard(fitted.header.model_copy(update={"detectors": tuple(detectors)}), fitted.directions)


@pytest.fixture(params=["INPUT", "OUTPUT"])
def http(
    request: pytest.FixtureRequest, fitted: FittedGuard, model: Model, tmp_path: Path
) -> Iterator[tuple[str, httpx.Client]]:
    low(fitted, request.param).save(tmp_path / "a.guard")
    with (
        serving.running(model, guardrail=tmp_path / "a.guard") as (address, _),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield request.param, client


class TestServing:
    @pytest.mark.parametrize("stream", [False, True])
    def test_acts_in_the_passes_that_are_run(self, http: tuple[str, httpx.Client], stream: bool) -> None:
        way, client = http
        body = {
            "model": "tiny-llama",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": stream,
            "max_tokens": 60,
            "seed": 3,
            "poise": {"watch": True},
        }
        answer = client.post("/v1/chat/completions", json=body)
        if stream:
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
            choices = [json.loads(line)["choices"][0] for line in lines]
            text, last = "".join(c["delta"].get("content") or "" for c in choices), choices[-1]
        else:
            [last] = answer.json()["choices"]
            text = last["message"]["content"]
        assert last["finish_reason"] == "content_filter"
        if way == "INPUT":
            assert text == "No boats."
        else:
            assert text.endswith("Not of boats.")
            assert stream or text == "Not of boats."
        [fact] = last["poise"]["guardrail"]
        assert (fact["policy"], fact["rule"], fact["source"], fact["action"]) == ("topics", "boats", way, "BLOCK")
        assert fact["score"] > fact["threshold"]
        assert fact["rate"] == 0.05

    def test_words_still_come_first(self, http: tuple[str, httpx.Client]) -> None:
        _, client = http
        body = {"model": "tiny-llama", "messages": [{"role": "user", "content": "an anchor"}], "max_tokens": 5}
        [choice] = client.post("/v1/chat/completions", json=body).json()["choices"]
        assert choice["poise"]["guardrail"][0]["policy"] == "words"

    def test_bedrocks_route_reads_them_too(self, http: tuple[str, httpx.Client]) -> None:
        way, client = http
        body = {"source": way, "content": [{"text": {"text": "Hello there"}}], "outputScope": "FULL"}
        answer = client.post("/guardrail/harbour/version/DRAFT/apply", json=body).json()
        assert answer["assessments"][0]["topicPolicy"]["topics"] == [
            {"name": "boats", "type": "DENY", "action": "BLOCKED", "detected": True}
        ]


class TestTheCommands:
    def test_fit_and_check(self, tmp_path: Path, model: Model) -> None:
        tiny.lm(max_position_embeddings=256).save_pretrained(tmp_path / "tiny")
        tiny.chatml().save_pretrained(tmp_path / "tiny")
        (tmp_path / "a.yaml").write_text(json.dumps(RULES))
        (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALK))
        named = ["--model", str(tmp_path / "tiny")]
        arguments = [*named, "--normal", str(tmp_path / "talk.jsonl"), "--rate", "0.05", "--layer", "1"]
        out = tmp_path / "a.guard"
        run = CliRunner().invoke(app, ["guardrail", "fit", str(tmp_path / "a.yaml"), *arguments, "--out", str(out)])
        assert run.exit_code == 0, run.output
        assert "boats" in run.stdout
        run = CliRunner().invoke(app, ["guardrail", "check", str(out), BOATS[0], *named, "--full"])
        [topic] = json.loads(run.stdout)["assessments"][0]["topicPolicy"]["topics"]
        assert topic["name"] == "boats"
        run = CliRunner().invoke(app, ["guardrail", "check", str(out), BOATS[0]])
        assert "were not looked at" in run.stderr
        run = CliRunner().invoke(app, ["guardrail", "check", str(tmp_path / "a.yaml"), "x", *named])
        assert run.exit_code == 2


def test_a_text_beyond_the_window_is_refused(fitted: FittedGuard, model: Model) -> None:
    reader = ActivationReader(fitted, model)
    with pytest.raises(InvalidArgument, match="check it in parts"):
        apply_guardrail(checker_of(fitted.guardrail), [GuardedText("boat " * 5000)], "INPUT", activations=reader)
