"""What every test file may use."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from poise.model import Model, load_model

settings.register_profile("poise", deadline=None, derandomize=True)
settings.load_profile("poise")


@pytest.fixture(scope="session")
def smollm() -> Model:
    """The bundled SmolLM2-135M in float32, on the CPU."""
    return load_model("smollm2-135m", dtype=torch.float32, device="cpu")
