"""Whatever fits the API's own description, or nearly does, is answered without a fault of the server."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import serving
from poise.serve.embeddings import ENCODER

schemathesis = pytest.importorskip("schemathesis")
EXAMPLES = 25


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rules = serving.uploading(tmp_path_factory.mktemp("policy"), most_vectors=20)
    with serving.running(queue=8, deadline=5, policy=rules) as (found, _):
        yield found


ROUTES = [
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/responses",
    "POST /v1/embeddings",
    "GET /v1/models/{name}",
    "POST /v1/poise/vectors",
    "DELETE /v1/poise/vectors/{name}",
    "GET /v1/poise/readings",
    "GET /v1/poise/readings/summary",
]


def limit_of(path: str) -> str:
    return "max_output_tokens" if path.endswith("responses") else "max_tokens"


@pytest.mark.slow
class TestEveryRoute:
    @pytest.mark.parametrize("route", ROUTES)
    def test_answers_without_a_fault_and_as_it_is_described(self, address: str, route: str) -> None:
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis.errors import Unsatisfiable
        from schemathesis.checks import not_a_server_error
        from schemathesis.specs.openapi.checks import (
            content_type_conformance,
            response_schema_conformance,
            status_code_conformance,
        )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # schemathesis' own
            schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
            method, path = route.split()
            checks = (
                not_a_server_error,
                status_code_conformance,
                content_type_conformance,
                response_schema_conformance,
            )
            for mode in schemathesis.GenerationMode:

                @given(case=schema[path][method].as_strategy(generation_mode=mode))
                @settings(
                    max_examples=EXAMPLES,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                    database=None,
                )
                def ask(case: Any) -> None:
                    if isinstance(case.body, dict) and "model" in case.body and case.body["model"]:
                        # So that some get as far as the model.
                        case.body |= {"model": ENCODER if path.endswith("embeddings") else "tiny-llama"}
                        case.body |= {} if path.endswith("embeddings") else {limit_of(path): 2}
                        case.body.pop("max_completion_tokens", None)
                    case.call_and_validate(checks=checks)

                with contextlib.suppress(Unsatisfiable):  # no name of a model is against the description
                    ask()

    def test_leaves_the_server_well(self, address: str) -> None:
        assert httpx.get(f"{address}/readyz").status_code == 200
