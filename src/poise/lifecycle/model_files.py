"""What a model is as files: what each holds, its parameters by part, vocabulary, template, licence, hashes.

Read off headers and configurations; no weight is loaded, no code of the model runs, and no torch is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.errors import BrokenModelFile, ModelNotFound, first_line
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

__all__ = ["ModelFile", "ModelInspection", "Vocabulary", "inspect_model", "model_place"]

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


class Vocabulary(FrozenModel):
    """How many tokens there are.

    Attributes:
        tokens: Entries of the tokenizer; ``None`` where it does not say without being loaded.
        special: Special ones among them.
        kind: Kind of tokenizer, as its file writes it.
        rows: Rows of the embedding, which may be more; ``None`` where there is none.
    """

    tokens: int | None
    special: int | None
    kind: str
    rows: int | None


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
    config = {} if place.is_file() else _json_object(root / "config.json")
    contents = {path: _contents(path, root, tensors) for path in paths}
    template = gguf.template if gguf else _stored_template(root)
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
        architecture=_architecture(config, gguf),
        shape=_shape_facts(config, gguf),
        files=tuple(_model_files(paths, root, contents, hashes=hashes)),
        parameters=sum(dtypes.values()),
        parts={part: count for part, count in counts.items() if count},
        dtypes=dtypes,
        blocks=len({block for tensor in tensors if (block := block_of(tensor.name)) is not None}),
        weight_bytes=sum(tensor.bytes for tensor in tensors),
        tied_head=bool(counts["embeddings"]) and not counts["output head"],
        vocabulary=_vocabulary(root, place, tensors, gguf),
        template=template,
        template_sha256=hashlib.sha256(template.encode()).hexdigest() if template else "",
        licence=model_licence(str(place)) or _licence_file(root, place),
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


def _json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty where there is no such file.

    Raises:
        BrokenModelFile: it is there, and no JSON object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BrokenModelFile(f"{path} cannot be read ({first_line(error)}); fetch or save it again.") from error
    if not isinstance(value, dict):
        raise BrokenModelFile(f"{path} holds no JSON object; fetch or save it again.")
    return value


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
    total = sum(path.stat().st_size for path in paths)
    with track("Hashing files", total=total >> 20) as advance:
        for path in paths:
            digest = ""
            if hashes:
                digest = file_sha256(path)
                advance(path.stat().st_size >> 20)
            yield ModelFile(
                name=_file_name(path, root), bytes=path.stat().st_size, contents=contents[path], sha256=digest
            )


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
    tokenizer = {} if place.is_file() else _json_object(root / "tokenizer_config.json")
    return [
        FileFinding(file=file, severity="warning", text="It names code of its own, which trust_remote_code would run.")
        for file, values in (("config.json", config), ("tokenizer_config.json", tokenizer))
        if values.get("auto_map")
    ]


def _index_faults(root: Path, tensors: Sequence[TensorHeader], place: Path) -> list[FileFinding]:
    """Tensors that the index of weight files names and that are not where it says."""
    name = "model.safetensors.index.json"
    places = {} if place.is_file() else _json_object(root / name).get("weight_map") or {}
    held = {(tensor.name, tensor.file) for tensor in tensors}
    missing = sorted({file for tensor, file in places.items() if (tensor, file) not in held})
    if not missing:
        return []
    text = f"It names tensors that are not in {', '.join(missing)}: files are missing, or of another model."
    return [FileFinding(file=name, severity="warning", text=text)]


def _architecture(config: Mapping[str, Any], gguf: GGUFHeader | None) -> str:
    if gguf:
        return str(gguf.facts.get("general.architecture", ""))
    architectures = config.get("architectures") or ()
    kind = str(config.get("model_type", ""))
    return f"{', '.join(map(str, architectures))} ({kind})" if architectures else kind


_SHAPE_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "num_local_experts", "num_experts", "vocab_size", "max_position_embeddings", "dtype", "torch_dtype",
    "n_embd", "n_layer", "n_head", "n_positions",
)  # fmt: skip
_GGUF_KEYS = (
    "embedding_length", "block_count", "attention.head_count", "attention.head_count_kv", "feed_forward_length",
    "expert_count", "context_length",
)  # fmt: skip


def _shape_facts(config: Mapping[str, Any], gguf: GGUFHeader | None) -> dict[str, int | float | str | bool]:
    if gguf:
        kind = gguf.facts.get("general.architecture", "")
        return {key: gguf.facts[f"{kind}.{key}"] for key in _GGUF_KEYS if f"{kind}.{key}" in gguf.facts}
    text = config.get("text_config")
    values = {**config, **text} if isinstance(text, dict) else config
    return {key: values[key] for key in _SHAPE_KEYS if isinstance(values.get(key), int | float | str | bool)}


def _stored_template(root: Path) -> str:
    """The chat template, from its own file or the tokenizer's settings."""
    try:
        return (root / "chat_template.jinja").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    template = _json_object(root / "chat_template.json").get("chat_template")
    template = template or _json_object(root / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default") or next(iter(named.values()), "")
    return template if isinstance(template, str) else ""


def _vocabulary(root: Path, place: Path, tensors: Sequence[TensorHeader], gguf: GGUFHeader | None) -> Vocabulary:
    embeddings = [one for one in tensors if part_of(one.name) == "embeddings" and len(one.shape) == 2]
    rows = max((one.shape[0] for one in embeddings), default=None)
    if gguf:
        tokens = gguf.facts.get("tokenizer.ggml.tokens")
        kind = str(gguf.facts.get("tokenizer.ggml.model", ""))
        return Vocabulary(tokens=tokens if isinstance(tokens, int) else None, special=None, kind=kind, rows=rows)
    tokenizer = {} if place.is_file() else _json_object(root / "tokenizer.json")
    inner, added = tokenizer.get("model") or {}, tokenizer.get("added_tokens") or ()
    entries = inner.get("vocab") or ()
    names = set(entries) if isinstance(entries, dict) else {entry[0] for entry in entries}
    names |= {token["content"] for token in added}
    return Vocabulary(
        tokens=len(names) or None,
        special=sum(bool(token.get("special")) for token in added) if tokenizer else None,
        kind=str(inner.get("type") or ""),
        rows=rows,
    )


def _licence_file(root: Path, place: Path) -> str:
    """The first line of the licence's text, where a folder has one."""
    if place.is_file():
        return ""
    for path in sorted(root.iterdir()):
        if path.name.casefold().startswith(("licence", "license", "copying")):
            try:
                lines = path.read_text("utf-8").splitlines()
            except (OSError, UnicodeDecodeError):
                continue
            return next((line.strip() for line in lines if line.strip()), "")
    return ""
