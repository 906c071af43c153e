"""What a model is as files: what each holds, its parameters by part, vocabulary, template, licence, hashes.

Read off headers and configurations; no weight is loaded, no code of the model runs, and no torch is imported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.errors import ModelNotFound
from poise.lifecycle.model_notes import (
    Vocabulary,
    architecture_words,
    json_object,
    licence_title,
    read_vocabulary,
    shape_facts,
    stored_template,
)
from poise.lifecycle.pickle_scan import PICKLE_ENDINGS, FileFinding, scan_file
from poise.lifecycle.weight_headers import (
    PART_NAMES,
    GGUFHeader,
    TensorHeader,
    block_of,
    part_of,
    read_gguf_header,
    read_safetensors_header,
)
from poise.model.bundled import BUNDLED, bundled_file
from poise.model.licence import model_licence
from poise.progress import track
from poise.settings import FrozenModel

__all__ = ["ModelFile", "ModelInspection", "inspect_model", "model_place"]

CONTENTS = {
    "config.json": "architecture and shape",
    "generation_config.json": "how it samples where nothing else is said",
    "tokenizer.json": "vocabulary, merges and how text is cut",
    "tokenizer_config.json": "settings of the tokenizer",
    "special_tokens_map.json": "names of special tokens",
    "added_tokens.json": "tokens added to the vocabulary",
    "chat_template.jinja": "how a conversation is written as one text",
    "chat_template.json": "how a conversation is written as one text",
    "vocab.json": "vocabulary",
    "merges.txt": "merges of the vocabulary",
    "tokenizer.model": "vocabulary (sentencepiece)",
    "spiece.model": "vocabulary (sentencepiece)",
    "adapter_config.json": "which base an adapter changes, and where",
    "preprocessor_config.json": "how pictures or sound are read",
    "processor_config.json": "how pictures or sound are read",
    "model.safetensors.index.json": "which weight file holds which tensor",
    "pytorch_model.bin.index.json": "which weight file holds which tensor",
    "README.md": "the model card",
    "training_args.bin": "settings of its training, as a pickle",
    "trainer_state.json": "the course of its training",
    ".gitattributes": "settings of git",
}
FILE_ENDINGS = {
    ".py": "code, run where trust_remote_code is set",
    ".onnx": "a graph for ONNX runtimes; not looked into",
    ".md": "text",
    ".txt": "text",
    ".png": "a picture",
    ".jpg": "a picture",
    ".pdf": "a document",
}
NOT_FLOATS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F4")
SKIPPED_FOLDERS = (".git", ".cache", "__pycache__", ".locks")
CHUNK = 1 << 22  # bytes read at once for a hash


class ModelFile(FrozenModel):
    """One file of a model.

    Attributes:
        name: Path in the model's folder.
        bytes: Size.
        contents: What it holds, in words.
        sha256: Hash of its bytes; empty where none was asked for.
    """

    name: str
    bytes: int
    contents: str
    sha256: str = ""


class ModelInspection(FrozenModel):
    """What a model is as files.

    Attributes:
        model: Name that the user gave.
        place: Its folder or file.
        architecture: Kind of model, as its configuration writes it; empty where nothing says so.
        shape: What the configuration says of its shape, by name.
        files: Its files.
        parameters: Elements of all weights.
        parts: Parameters by part of the model.
        dtypes: Parameters by type of number.
        blocks: Decoder blocks that have weights.
        weight_bytes: Size of all weights in their files.
        tied_head: Whether the embedding is the output head as well.
        vocabulary: How many tokens there are.
        template: Chat template; empty where there is none.
        template_sha256: Hash of the template.
        licence: Licence as its card or file states it; empty where nothing does.
        findings: What should be known before it is loaded.
    """

    model: str
    place: str
    architecture: str
    shape: dict[str, int | float | str | bool]
    files: tuple[ModelFile, ...]
    parameters: int
    parts: dict[str, int]
    dtypes: dict[str, int]
    blocks: int
    weight_bytes: int
    tied_head: bool
    vocabulary: Vocabulary
    template: str
    template_sha256: str
    licence: str
    findings: tuple[FileFinding, ...]

    @property
    def dangerous(self) -> bool:
        """Whether loading or unpacking it would run foreign code or write elsewhere."""
        return any(finding.severity == "danger" for finding in self.findings)


def inspect_model(name: str, *, hashes: bool = True, safe: bool = False) -> ModelInspection:
    """What a model is as files.

    Args:
        name: A folder, a GGUF or safetensors file, a bundled name, or a hub id that was fetched before.
        hashes: Hash every file, which reads all of them.
        safe: Look into every archive and pickle for what loading or unpacking it would do.

    Raises:
        ModelNotFound: nothing there, or a hub id that was not fetched.
        BrokenModelFile: a weight file that is cut short or damaged.
    """
    place = model_place(name)
    root = place.parent if place.is_file() else place
    paths = [place] if place.is_file() else sorted(_files_in(place))
    if not paths:
        raise ModelNotFound(f"The folder {name} is empty; name a model's folder or file.")
    tensors, gguf = _read_weight_headers(paths, root)
    config = {} if place.is_file() else json_object(root / "config.json")
    contents = {path: _contents(path, root, tensors) for path in paths}
    template = gguf.template if gguf else stored_template(root)
    findings = [*_index_faults(root, tensors, place), *_code_findings(config, root, place)]
    for path in paths:
        findings += scan_file(path, _file_name(path, root)) if safe else _pickle_warning(path, root)
    counts = dict.fromkeys(PART_NAMES, 0)
    dtypes: dict[str, int] = {}
    for tensor in tensors:
        counts[part_of(tensor.name)] += tensor.elements
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.elements
    if packed := sorted(set(dtypes) & set(NOT_FLOATS)):
        text = f"Some tensors are {', '.join(packed)}: packed weights or buffers, counted as they are stored."
        findings.append(FileFinding(file=place.name, severity="note", text=text))
    return ModelInspection(
        model=name,
        place=str(place),
        architecture=architecture_words(config, gguf),
        shape=shape_facts(config, gguf),
        files=tuple(_model_files(paths, root, contents, hashes=hashes)),
        parameters=sum(dtypes.values()),
        parts={part: count for part, count in counts.items() if count},
        dtypes=dtypes,
        blocks=len({block for tensor in tensors if (block := block_of(tensor.name)) is not None}),
        weight_bytes=sum(tensor.bytes for tensor in tensors),
        tied_head=bool(counts["embeddings"]) and not counts["output head"],
        vocabulary=read_vocabulary(root, place, tensors, gguf),
        template=template,
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else "",
        licence=model_licence(str(place)) or licence_title(root, place),
        findings=tuple(findings),
    )


def model_place(name: str) -> Path:
    """Folder or file that a name stands for; a bundled model is fetched where it was not yet.

    Raises:
        ModelNotFound: nothing there, or a hub id that was not fetched.
    """
    if name in BUNDLED:
        if not bundled_file(name).is_file():
            from poise.model.loading import locate

            locate(name)
        return bundled_file(name)
    path = Path(name).expanduser()
    if path.exists():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        cached = None
    if isinstance(cached, str):
        return Path(cached).parent
    raise ModelNotFound(
        f"There is no model at {name}, and none of that name was fetched from a hub; give a folder, a file or one of: "
        f"{', '.join(BUNDLED)}. What lies on a hub is fetched by the first command that runs it."
    )


def _files_in(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if one not in SKIPPED_FOLDERS)
        yield from (path for one in names if (path := Path(parent) / one).is_file())


def _file_name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _read_weight_headers(paths: Sequence[Path], root: Path) -> tuple[list[TensorHeader], GGUFHeader | None]:
    """Tensors of the weights that transformers would load, and the header of a GGUF file among them."""
    tensors: list[TensorHeader] = []
    gguf = None
    for path in paths:
        if path.suffix == ".safetensors" and path.parent == root:
            tensors += read_safetensors_header(path, _file_name(path, root))
        elif path.suffix == ".gguf" and len([one for one in paths if one.suffix in (".gguf", ".safetensors")]) == 1:
            gguf = read_gguf_header(path, _file_name(path, root))
            tensors += gguf.tensors
    return tensors, gguf


def _contents(path: Path, root: Path, tensors: Sequence[TensorHeader]) -> str:
    count = sum(tensor.file == _file_name(path, root) for tensor in tensors)
    if path.suffix in (".safetensors", ".gguf"):
        return f"weights: {count:,} tensors" if count else "weights, not those that are loaded from this folder"
    if path.name.casefold().startswith(("licen", "copying", "notice")):
        return "the licence's text"
    if path.name in CONTENTS:
        return CONTENTS[path.name]
    if path.suffix in PICKLE_ENDINGS:
        return "weights or other values, as a pickle"
    return FILE_ENDINGS.get(path.suffix, "not recognised")


def _model_files(
    paths: Sequence[Path], root: Path, contents: Mapping[Path, str], *, hashes: bool
) -> Iterable[ModelFile]:
    digests = dict(_digests(paths)) if hashes else {}
    for path in paths:
        size = path.stat().st_size
        yield ModelFile(name=_file_name(path, root), bytes=size, contents=contents[path], sha256=digests.get(path, ""))


def _digests(paths: Sequence[Path]) -> Iterable[tuple[Path, str]]:
    sizes = {path: path.stat().st_size >> 20 for path in paths}
    with track("Hashing files, MiB", total=sum(sizes.values())) as advance:
        for path, size in sizes.items():
            yield path, file_sha256(path)
            advance(size)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pickle_warning(path: Path, root: Path) -> list[FileFinding]:
    if path.suffix not in PICKLE_ENDINGS:
        return []
    text = "A pickle, perhaps: loading one runs what is in it. Look into it with `safe`, or use safetensors."
    return [FileFinding(file=_file_name(path, root), severity="warning", text=text)]


def _code_findings(config: Mapping[str, Any], root: Path, place: Path) -> list[FileFinding]:
    """Configurations that ask for code of the model's own."""
    tokenizer = {} if place.is_file() else json_object(root / "tokenizer_config.json")
    return [
        FileFinding(file=file, severity="warning", text="It names code of its own, which trust_remote_code would run.")
        for file, values in (("config.json", config), ("tokenizer_config.json", tokenizer))
        if values.get("auto_map")
    ]


def _index_faults(root: Path, tensors: Sequence[TensorHeader], place: Path) -> list[FileFinding]:
    """Tensors that the index of weight files names and that are not where it says."""
    name = "model.safetensors.index.json"
    places = {} if place.is_file() else json_object(root / name).get("weight_map") or {}
    held = {(tensor.name, tensor.file) for tensor in tensors}
    missing = sorted({file for tensor, file in places.items() if (tensor, file) not in held})
    if not missing:
        return []
    text = f"It names tensors that are not in {', '.join(missing)}: files are missing, or of another model."
    return [FileFinding(file=name, severity="warning", text=text)]
