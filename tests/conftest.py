"""What every test file may use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from poise.model import Model, load_model
from stub_server import Stub

settings.register_profile("poise", deadline=None, derandomize=True)
settings.load_profile("poise")


@pytest.fixture(scope="session")
def smollm() -> Model:
    """The bundled SmolLM2-135M in float32, on the CPU."""
    return load_model("smollm2-135m", dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Stub]:
    """A server with the API's answers and no model, for the tests of the page."""
    server = Stub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def stub(stand_in: Stub) -> Stub:
    """The same without what earlier tests left."""
    stand_in.reset()
    return stand_in
