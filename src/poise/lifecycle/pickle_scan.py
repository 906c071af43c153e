"""What loading a pickle or unpacking an archive would do, found without loading or unpacking it.

A pickle is a program. Its opcodes are read with ``pickletools`` and run on a stack of names alone, so that what it
imports is known even where it hides the names behind others that it drops again.
"""

from __future__ import annotations

import io
import pickletools
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from poise.errors import first_line
from poise.settings import FrozenModel

__all__ = ["FileFinding", "scan_file"]

SAFE_NAMES = re.compile(
    r"torch\.(\w+Storage|Size|device|(b?float|int|uint|q?u?int|complex|float8_\w+)\d*\w*|bool|Tensor)$"
    r"|torch\._utils\._rebuild_(tensor(_v2)?|parameter|qtensor|sparse_tensor|device_tensor_from_numpy)$"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)$|torch\.storage\.(_load_from_bytes|\w+Storage)$|torch\.serialization\._get_layout$"
    r"|collections\.(OrderedDict|defaultdict)$|_codecs\.encode$"
    r"|numpy\.(ndarray|dtype|_?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer))$"
    r"|(builtins|__builtin__)\.(set|frozenset|complex|slice|range|bytearray|list|dict|tuple|int|float|str|bytes|bool)$"
)
"""What tensors, arrays and plain values are rebuilt with."""
HARMFUL = re.compile(
    r"^(os|posix|nt|subprocess|sys|shutil|socket|pty|commands|runpy|code|importlib|imp|ctypes|webbrowser|http|urllib"
    r"|requests|pickle|_pickle|marshal|types|functools|operator|asyncio|multiprocessing|pip|builtins|__builtin__)(\.|$)"
)
UNKNOWN_NAME = "a name that is computed"
LARGEST_MEMBER = 64 << 20  # bytes of an archive's member that are looked into
LARGEST_UNPACKING = 200  # of unpacked to packed size
LEGACY_PICKLES = 8  # in one file, as torch wrote them before 1.6
_STACK_MARK = object()
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".p")


class FileFinding(FrozenModel):
    """Something about a file that its user should know before it is loaded or unpacked.

    Attributes:
        file: Name of the file, with the member of an archive after an exclamation mark.
        severity: ``danger`` where loading runs foreign code or writes elsewhere; ``warning`` where it may; ``note``.
        text: One sentence.
    """

    file: str
    severity: Literal["danger", "warning", "note"]
    text: str


def scan_file(path: Path, name: str) -> list[FileFinding]:
    """What is to be known of one file, by what is in it and not by how it is called."""
    with path.open("rb") as file:
        first = file.read(8)
        if first.startswith(b"PK\x03\x04") or (zipfile.is_zipfile(path) and not first.startswith(b"GGUF")):
            return _scan_zip(path, name)
        if first[:2] in _PICKLE_STARTS or path.suffix in PICKLE_ENDINGS:
            file.seek(0)
            return _scan_pickles(file, name, looks_so=first[:2] in _PICKLE_STARTS)
    if tarfile.is_tarfile(path):
        return _scan_tar(path, name)
    if path.suffix == ".py":
        return [FileFinding(file=name, severity="warning", text="Python code that trust_remote_code=True would run.")]
    if path.suffix in (".h5", ".keras", ".msgpack"):
        return [FileFinding(file=name, severity="warning", text=f"{path.suffix} files are not looked into.")]
    return []


def _scan_zip(path: Path, name: str) -> list[FileFinding]:
    findings = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                findings += list(_member_place(f"{name}!{member.filename}", member.filename))
                if stat.S_ISLNK(member.external_attr >> 16):
                    findings.append(_danger(f"{name}!{member.filename}", "a link, which unpacking would follow"))
                if member.flag_bits & 1:
                    findings.append(_warning(f"{name}!{member.filename}", "encrypted; it is not looked into"))
                elif member.file_size > LARGEST_UNPACKING * max(1, member.compress_size) and member.file_size > 1 << 20:
                    findings.append(
                        _danger(
                            f"{name}!{member.filename}",
                            f"unpacks {member.compress_size:,} bytes to {member.file_size:,}; it may fill a disk",
                        )
                    )
                elif not member.is_dir():
                    findings += _scan_member(archive, member, name)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        findings.append(_warning(name, f"an archive that cannot be read ({first_line(error)})"))
    return findings


def _scan_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> list[FileFinding]:
    where = f"{name}!{member.filename}"
    with archive.open(member) as opened:
        first = opened.read(8)
        if first[:2] in _PICKLE_STARTS or member.filename.endswith((".pkl", ".pickle")):
            data = io.BytesIO(first + opened.read(LARGEST_MEMBER))
            findings = _scan_pickles(data, where, looks_so=True)
            if member.file_size > LARGEST_MEMBER:
                findings.append(_warning(where, f"only its first {LARGEST_MEMBER >> 20} MiB are looked into"))
            return findings
    if first.startswith(b"PK\x03\x04"):
        return [_warning(where, "an archive in an archive; it is not looked into")]
    if member.filename.endswith(".py"):
        return [_warning(where, "Python code inside an archive, as TorchScript carries")]
    return []


def _scan_tar(path: Path, name: str) -> list[FileFinding]:
    findings = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                where = f"{name}!{member.name}"
                findings += list(_member_place(where, member.name))
                if member.issym() or member.islnk():
                    findings.append(_danger(where, f"a link to {member.linkname}, which unpacking would follow"))
                elif not (member.isfile() or member.isdir()):
                    findings.append(_danger(where, "a device or a pipe"))
                elif member.isfile() and member.name.endswith(PICKLE_ENDINGS):
                    opened = archive.extractfile(member)
                    data = io.BytesIO(opened.read(LARGEST_MEMBER) if opened else b"")
                    findings += _scan_pickles(data, where, looks_so=False)
    except (tarfile.TarError, OSError, EOFError) as error:
        findings.append(_warning(name, f"an archive that cannot be read ({first_line(error)})"))
    return findings


def _member_place(where: str, member: str) -> Iterator[FileFinding]:
    """A member that would be written outside of the folder that it is unpacked into."""
    path = PurePosixPath(member.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", member):
        yield _danger(where, "a path that leads out of the folder it is unpacked into")


def _scan_pickles(file: BinaryIO, name: str, *, looks_so: bool) -> list[FileFinding]:
    """Every pickle at the beginning of a file; torch wrote several after one another before 1.6."""
    names: list[str] = []
    fault = ""
    for number in range(LEGACY_PICKLES):
        place = file.tell()
        if number and file.read(2) not in _PICKLE_STARTS:
            break
        file.seek(place)
        more, fault = _pickle_imports(file)
        names += [one for one in more if one not in names]
        if fault:
            break
    if fault and not names:
        return [_warning(name, f"{'a pickle that breaks off' if looks_so else 'not recognised'} ({fault})")]
    strange = [one for one in names if not SAFE_NAMES.match(one)]
    harmful = [one for one in strange if one == UNKNOWN_NAME or HARMFUL.match(one)]
    findings = []
    if harmful:
        findings.append(_danger(name, f"a pickle that imports {', '.join(harmful)}; loading it runs that"))
    if others := [one for one in strange if one not in harmful]:
        findings.append(_warning(name, f"a pickle that imports {', '.join(others)}, which is no part of tensors"))
    if not strange:
        text = f"A pickle that imports only what tensors and plain values need ({len(names)} names)."
        findings.append(FileFinding(file=name, severity="note", text=text))
    if fault:
        findings.append(_warning(name, f"the pickle breaks off ({fault}) after what it imports"))
    return findings


def _pickle_imports(file: BinaryIO) -> tuple[list[str], str]:
    """Dotted names that a pickle imports, and why reading it ended early; empty where it did not."""
    names: list[str] = []
    stack: list[object] = []  # texts, marks, and ``None`` for all else
    memo: dict[int, object] = {}
    try:
        for opcode, arg, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                names.append(str(arg).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                module, attribute = stack[-2:] if len(stack) > 1 else (None, None)
                texts = isinstance(module, str) and isinstance(attribute, str)
                names.append(f"{module}.{attribute}" if texts else UNKNOWN_NAME)
            elif opcode.name.startswith("EXT"):
                names.append(UNKNOWN_NAME)
            _step(opcode, arg, stack, memo)
    except (ValueError, IndexError, OverflowError, MemoryError, UnicodeError) as error:
        return list(dict.fromkeys(names)), first_line(error)
    return list(dict.fromkeys(names)), ""


def _step(opcode: pickletools.OpcodeInfo, arg: object, stack: list[object], memo: dict[int, object]) -> None:
    """What an opcode does to the stack, texts kept and all else as ``None``."""
    match opcode.name:
        case "PUT" | "BINPUT" | "LONG_BINPUT":
            memo[int(str(arg))] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "GET" | "BINGET" | "LONG_BINGET":
            stack.append(memo.get(int(str(arg))))
        case "DUP":
            stack.append(stack[-1])
        case "MARK":
            stack.append(_STACK_MARK)
        case "POP_MARK":
            _pop_to_mark(stack)
        case _:
            before = [one.name for one in opcode.stack_before]
            if "mark" in before:
                _pop_to_mark(stack)
                before = before[: before.index("mark")]
            for _ in before:
                stack.pop()
            is_text = "UNICODE" in opcode.name or opcode.name.endswith("STRING")
            stack.extend([arg if is_text else None] * len(opcode.stack_after))


def _pop_to_mark(stack: list[object]) -> None:
    while stack.pop() is not _STACK_MARK:
        pass


def _danger(file: str, text: str) -> FileFinding:
    return FileFinding(file=file, severity="danger", text=f"{text[:1].upper()}{text[1:]}.")


def _warning(file: str, text: str) -> FileFinding:
    return FileFinding(file=file, severity="warning", text=f"{text[:1].upper()}{text[1:]}.")
