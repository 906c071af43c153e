"""The most that a steering can do to one token: all terms, layers and operators together, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import serving
import tiny
from poise.errors import RequestError
from poise.model import Model
from poise.serve.policy import Policy
from poise.steer import Steering, SteeringExpression, cautions, total_dose
from poise.steer.operators import OPERATORS
from poise.vector import PersonaVector


@pytest.fixture(scope="module")
def llama() -> Model:
    return tiny.model()


@pytest.fixture(scope="module")
def vectors(llama: Model) -> dict[str, PersonaVector]:
    """Two whose mean ‖h‖ is 10 at every layer, so that a level of 1 is a dose of 0.1."""
    norms = torch.full((tiny.L,), 10.0)
    plain = [tiny.vector(llama, seed=n) for n in (1, 2)]
    return {name: PersonaVector(v.directions, norms, v.header) for name, v in zip(("up", "down"), plain, strict=True)}


def steering(text: str, vectors: dict[str, PersonaVector]) -> Steering:
    return SteeringExpression.parse(text).steering(vectors)


SUMS = [
    ("up=49%", 0.49, 0),
    ("up=-49%", 0.49, 0),
    ("up=49%; up=49%; up=49%", 1.47, 0),
    ("up=49%; down=-49%", 0.98, 0),
    ("up@0,1,2,3=49%", 1.96, 0),
    ("up@0=49%; up@3=-49%", 0.98, 0),
    ("up=49% first 10; up=49% after 10", 0.49, 0),
    ("up=49% first 11; up=49% after 10", 0.98, 0),
    ("up=40% tokens 3-9; up=30% tokens 5-6; down=20% after 8", 0.7, 0),
    ("up=49% on prompt; up=49%", 0.49, 0),
    ("up=49% on prompt; up=49% on all", 0.98, 0),
    ("up=49% in thought; up=49% in reply", 0.49, 0),
    ("up=49% in thought; up=49% in both", 0.98, 0),
    ("up=49% in both first 4; up=49% in reply after 100", 0.98, 0),
    ("up=49% if prompt down>0; up=49% if prompt down<0", 0.98, 0),
    ("up=clamp:5", 0.5, 1),
    ("up=clamp:-5", 0.5, 1),
    ("up=clamp:100000", 10_000.0, 1),
    ("up=cap:-100000", 10_000.0, 1),
    ("up=cap:100000", 0.0, 1),
    ("up=floor:100000", 10_000.0, 1),
    ("up=floor:-100000", 0.0, 1),
    ("up=out", 0.0, 1),
    ("up@0,1,2,3=out; down=out", 0.0, 1),
    ("up@1,2=clamp:2; down=10%", 0.5, 1),
    ("up=20%; down=20%; orthogonal", 0.4, 0),
]


class TestTheTotal:
    @pytest.mark.parametrize(("text", "added", "removed"), SUMS, ids=[text for text, *_ in SUMS])
    def test_adds_up_all_that_one_token_can_get(
        self, vectors: dict[str, PersonaVector], text: str, added: float, removed: float
    ) -> None:
        total = total_dose(steering(text, vectors))
        assert (total.added, total.removed) == (pytest.approx(added), removed)
        assert total.dose == pytest.approx(added + removed)

    def test_of_increments_is_that_of_their_sum(self, vectors: dict[str, PersonaVector]) -> None:
        up = vectors["up"]
        largest = max(float(norm) / 10 for norm in up.norms)
        total = total_dose(steering("up@increments=0.5", vectors))
        assert total.added == pytest.approx(0.5 * largest)

    def test_of_nothing_is_nothing(self) -> None:
        assert (total_dose(None).dose, str(total_dose(None))) == (0, "")

    def test_is_written_out(self, vectors: dict[str, PersonaVector]) -> None:
        assert str(total_dose(steering("up@1=49%; down@2=clamp:5", vectors))) == (
            "49% of grumpy at layer 1 + 50% of grumpy at layer 2 + 100% for what is taken away"
        )
        assert str(total_dose(steering("up@0,1,2,3=49%; down@0=1%", vectors))).endswith("at layer 3 + 1 more")
        assert str(total_dose(steering("up=out", vectors))) == "100% for what is taken away"

    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 10_000),
        added=st.lists(st.sampled_from(["up@1=30%", "down@1=-70%"]), max_size=2),
        other=st.sampled_from(
            ["up@1=clamp:4", "down@1=cap:-3", "up@1=cap:5", "up@1=floor:6", "up@1=floor:-2", "up@1=out"]
        ),
    )
    def test_bounds_what_the_operators_do(
        self, vectors: dict[str, PersonaVector], seed: int, added: list[str], other: str
    ) -> None:
        """At one layer, to any hidden state of length mean ‖h‖."""
        steered = steering("; ".join([*added, other]), vectors)
        before = torch.randn((1, 1, tiny.D), generator=torch.Generator().manual_seed(seed))
        before = before * 10 / before.norm()
        after = before
        for name, operator in OPERATORS.items():
            for term, along in zip(steered.terms, steered.directions(), strict=True):
                if term.operation == name:
                    after = after + operator(after, along[1][None, None], torch.tensor(term.value))
        assert float((after - before).norm()) / 10 <= total_dose(steered).dose + 1e-5


class TestAPolicy:
    @pytest.mark.parametrize(
        ("text", "most", "sum_in_words"),
        [
            ("up=49%; up=49%; up=49%", 1.0, "a dose of 1.47 in all (49% of grumpy at layer 1 + 49% of grumpy at"),
            ("up@0,1,2,3=49%", 1.9, "a dose of 1.96 in all (49% of grumpy at layer 0 + 49% of grumpy at layer 1 +"),
            ("up=clamp:100000", 3.0, "a dose of 1e+04 in all (1000000% of grumpy at layer 1 + 100% for what is taken"),
            ("up=cap:-100000", 3.0, "a dose of 1e+04 in all (1000000% of grumpy at layer 1 + 100% for what is taken"),
            ("up=floor:100000", 3.0, "a dose of 1e+04 in all (1000000% of grumpy at layer 1 + 100% for what is"),
            ("up=out", 0.5, "a dose of 1 in all (100% for what is taken away), which is more than the 0.5 allowed"),
        ],
    )
    def test_refuses_the_sum_and_says_it(
        self, vectors: dict[str, PersonaVector], text: str, most: float, sum_in_words: str
    ) -> None:
        with pytest.raises(RequestError) as refusal:
            Policy(most_dose=most).steering(SteeringExpression.parse(text), vectors)
        assert (refusal.value.status, refusal.value.code) == (400, "dose_too_strong")
        assert sum_in_words in str(refusal.value)

    @pytest.mark.parametrize("text", ["up=49%; up=49% on prompt", "up=50% first 3; up=50% after 3"])
    def test_allows_what_never_meets_on_a_token(self, vectors: dict[str, PersonaVector], text: str) -> None:
        assert Policy(most_dose=0.5).steering(SteeringExpression.parse(text), vectors).steering.terms

    def test_does_not_count_what_it_forces_itself(self, vectors: dict[str, PersonaVector]) -> None:
        policy = Policy(steer="up=clamp:40", most_dose=0.5)
        assert len(policy.steering(SteeringExpression.parse("down=50%"), vectors).steering.terms) == 2

    def test_holds_in_a_running_server(self, llama: Model, vectors: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "rules.yaml").write_text("default: {most_dose: 1.0}")
        body = {"model": "tiny-llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        with serving.running(llama, vectors, policy=tmp_path / "rules.yaml") as (address, _):
            for text, status in (("up=49%; up=49%", 200), ("up=49%; up=49%; up=49%", 400), ("up=clamp:100000", 400)):
                answer = httpx.post(f"{address}/v1/chat/completions", json={**body, "poise": {"steer": text}})
                assert answer.status_code == status, text


class TestACaution:
    certified = {"verdict": "induced", "layer": 1, "usable_doses": [-0.8, 0.8]}  # noqa: RUF012

    def test_adds_up_the_terms_of_one_vector(self, vectors: dict[str, PersonaVector]) -> None:
        [caution] = cautions(steering("up=49%; up=49%; up=49%", vectors))
        assert caution.startswith("A dose of 147% of grumpy at layer 1 of 4 is strong, and it has no certificate")
        certified = {"up": vectors["up"].with_certificate(self.certified)}
        [caution] = cautions(steering("up@1=50%; up@1=50%", certified))
        assert caution.startswith("A dose of 100% of grumpy lies outside -80% to 80%")
        assert cautions(steering("up@1=50%; up@1=-50%", certified)) == []

    def test_adds_up_layers_and_vectors(self, vectors: dict[str, PersonaVector]) -> None:
        [caution] = cautions(steering("up@0,1,2,3=49%", vectors))
        assert caution == (
            "The steering comes to a dose of 196% in all (49% of grumpy at layer 0 + 49% of grumpy at layer 1 + 49% of "
            "grumpy at layer 2 + 49% of grumpy at layer 3): text usually breaks near 100%, and certificates cover one "
            "vector at one layer; use less."
        )
        assert "a dose of 80% in all" in cautions(steering("up=40%; down=40%", vectors))[0]

    def test_is_given_for_levels_too(self, vectors: dict[str, PersonaVector]) -> None:
        for text in ("up=clamp:100000", "up=cap:-100000", "up=floor:100000"):
            [caution] = cautions(steering(text, vectors))
            assert caution.startswith("The steering comes to a dose of 1000000% in all (1000000% of grumpy at layer 1)")

    @pytest.mark.parametrize(
        "text",
        ["up=out", "up@0,1,2,3=out; down=out", "up=clamp:0", "up=cap:3", "up=55%", "up=50% first 3; up=50% after 3"],
    )
    def test_is_not_given_for_what_is_usual(self, vectors: dict[str, PersonaVector], text: str) -> None:
        assert cautions(steering(text, vectors)) == []

    def test_knows_which_terms_meet(self, vectors: dict[str, PersonaVector]) -> None:
        assert cautions(steering("up=50%; up=-50% if prompt down>0; up=20% if prompt down<0", vectors))[0].startswith(
            "A dose of 70% of grumpy"
        )
