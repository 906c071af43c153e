"""A thousand requests that no client would send are answered without a fault of the server."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

import serving
import tiny
from poise.vector import save_vector

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import fuzz_server


@pytest.mark.slow
def test_no_request_is_a_fault_of_the_server(tmp_path: Path) -> None:
    model = tiny.model()
    save_vector(serving.vectors(model)["up"], tmp_path / "up.safetensors")
    rules = serving.uploading(tmp_path, most_vectors=4, most_tokens=8, default_tokens=2)
    with (
        serving.running(model, policy=rules) as (address, _),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        result = fuzz_server.Fuzzer(client, 20261130, (tmp_path / "up.safetensors").read_bytes()).run(1000)
        assert httpx.get(f"{address}/readyz").status_code == 200
    assert result.faults == []
    assert result.by_status[200] > 100  # that some got through
    assert result.by_status[400] > 300
