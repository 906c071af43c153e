"""Vectors, detectors, guardrails and adapters to Hugging Face's hub, or any place that fsspec knows, and back.

What is sent is the record's own files, its card, and the record with its history, by which whoever fetches it sees that
every file is what was recorded. Nothing without a licence is sent, and no vector without a certificate unasked.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from poise.data.addresses import check_no_password, is_address
from poise.data.input_files import import_extra
from poise.errors import EndpointUnavailable, InvalidRegistry, MissingExtra, OutputExists, first_line
from poise.lifecycle.cards import check_is_card, record_card
from poise.lifecycle.model_files import file_sha256
from poise.lifecycle.registry import Registry
from poise.lifecycle.registry_records import RegistryRecord, SignedEvent
from poise.progress import track
from poise.settings import FrozenModel

__all__ = ["SharedArtefact", "pull_artefact", "push_artefact"]

RECORD_FILE, CARD_FILE = "poise-record.json", "README.md"
SHARED_KINDS = ("vector", "detector", "guardrail", "adapter")
CERTIFIED_KINDS = ("vector", "detector")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HTTP_LIBRARIES = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
REFUSALS_OF_THE_HUB = {
    401: "it does not know you: log in with `hf auth login`",
    403: "your token may not write there",
}
MOST_RECORD_BYTES = 16 * 2**20


class SharedArtefact(FrozenModel):
    """What was sent or fetched.

    Attributes:
        name: Name of its record.
        kind: Kind of artefact.
        place: Address, or page of the repository.
        folder: Folder that it was fetched into; empty where it was sent.
        files: Its files, without card and record.
        licence: Licence that it is under.
    """

    name: str
    kind: str
    place: str
    folder: str = ""
    files: tuple[str, ...]
    licence: str


def push_artefact(
    registry: Registry,
    name: str,
    target: str,
    *,
    private: bool = False,
    uncertified: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> SharedArtefact:
    """Send an artefact with its card and record.

    Args:
        registry: Registry that has its record.
        name: Name or hash of the record.
        target: ``OWNER/NAME`` on the hub, or an address that fsspec knows, such as ``s3://bucket/folder``.
        private: Whether a repository that is made is private.
        uncertified: Send a vector though nothing proves what it does.
        endpoint: Address of the hub; Hugging Face's own unless the environment says another.
        token: Token to write with; the one that is logged in by default.

    Raises:
        InvalidRegistry: there is no licence or certificate, the kind is not shared so, or the files have changed.
        EndpointUnavailable: the place cannot be reached or refuses.
        MissingExtra: what knows the place is not installed.
    """
    digest = registry.find(name)
    record = registry.record(digest)
    _check_may_be_shared(registry, digest, record, uncertified=uncertified)
    card = record_card(registry, digest)
    check_is_card(card)
    with tempfile.TemporaryDirectory(prefix="poise-push-") as temporary:
        folder = Path(temporary)
        source = Path(record.place)
        for file in record.files:
            path = folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source if source.is_file() else source / file.name, path)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        (folder / RECORD_FILE).write_text(_record_text(registry, digest, record), encoding="utf-8")
        if is_address(target):
            place = _send_to_address(folder, target)
        else:
            place = _send_to_hub(folder, target, record, private=private, endpoint=endpoint, token=token)
    files = tuple(file.name for file in record.files)
    return SharedArtefact(name=record.name, kind=record.kind, place=place, files=files, licence=_licence(record))


def _check_may_be_shared(registry: Registry, digest: str, record: RegistryRecord, *, uncertified: bool) -> None:
    if record.kind not in SHARED_KINDS:
        raise InvalidRegistry(
            f"{record.name} is a {record.kind}, which is not shared so; {', '.join(SHARED_KINDS)} are. Models and data "
            "have tools of their own, such as `hf upload`."
        )
    if not _licence(record):
        raise InvalidRegistry(
            f"{record.name} has no licence on record, and nobody may use what has none; record it anew with the fact "
            "licence=…, such as apache-2.0."
        )
    if record.kind in CERTIFIED_KINDS and not record.facts.get("certificate") and not uncertified:
        raise InvalidRegistry(
            f"{record.name} has no certificate: nothing proves what it does. Run `poise validate` and record the file "
            "that it writes, or send it all the same with `uncertified`."
        )
    if any(file.name in (CARD_FILE, RECORD_FILE) for file in record.files):
        raise InvalidRegistry(f"{record.name} has a {CARD_FILE} or {RECORD_FILE} of its own; record it without.")
    if changed := registry.changed_files(digest):
        raise InvalidRegistry(f"{record.name} is not what was recorded ({'; '.join(changed)}); record it anew.")


def _licence(record: RegistryRecord) -> str:
    return str(record.facts.get("licence") or "").strip()


def _record_text(registry: Registry, digest: str, record: RegistryRecord) -> str:
    """The record without the path that it had here, and its history."""
    document = {
        "digest": digest,
        "record": record.model_copy(update={"place": ""}).model_dump(mode="json"),
        "events": [event.model_dump(mode="json") for event in registry.events(digest)],
    }
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _send_to_hub(
    folder: Path, target: str, record: RegistryRecord, *, private: bool, endpoint: str | None, token: str | None
) -> str:
    _check_repository(target)
    with _hub_errors(target), track(f"Sending to {target}", total=1) as advance:
        api = _hub_api(endpoint, token)
        api.create_repo(target, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=target, folder_path=str(folder), commit_message=f"{record.kind} {record.name}, by Poise"
        )
        advance(1)
        return f"{api.endpoint}/{target}"


def pull_artefact(
    target: str, out: Path, *, revision: str | None = None, endpoint: str | None = None, token: str | None = None
) -> SharedArtefact:
    """Fetch an artefact into a new folder; nothing is left there unless every file is what its record says.

    Args:
        target: ``OWNER/NAME`` on the hub, or an address.
        out: The folder; it is made.
        revision: Branch, tag or commit on the hub.
        endpoint: Address of the hub.
        token: Token to read with.

    Raises:
        OutputExists: the folder holds something.
        InvalidRegistry: there is no record, or a file is another than it says.
        EndpointUnavailable: the place cannot be reached or has no such thing.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputExists(f"{out} exists and is not empty; choose another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".part", dir=out.parent) as temporary:
        folder = Path(temporary) / "files"
        folder.mkdir()
        if is_address(target):
            fetch = _address_reader(target)
        else:
            _check_repository(target)
            fetch = _hub_reader(target, revision, endpoint, token, Path(temporary) / "cache")
        (folder / RECORD_FILE).write_bytes(fetch(RECORD_FILE))
        record = _shared_record(folder / RECORD_FILE, target)
        with track(f"Fetching {target}", total=len(record.files)) as advance:
            for file in record.files:
                path = folder / _safe_name(file.name, target)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(fetch(file.name))
                if path.stat().st_size != file.bytes or file_sha256(path) != file.sha256:
                    raise InvalidRegistry(f"{file.name} of {target} is not what its record says; nothing was kept.")
                advance(1)
        with contextlib.suppress(
            InvalidRegistry, EndpointUnavailable
        ):  # a card is for people; the record is what counts
            (folder / CARD_FILE).write_bytes(fetch(CARD_FILE))
        if out.is_dir():
            out.rmdir()
        shutil.move(folder, out)
    files = tuple(file.name for file in record.files)
    return SharedArtefact(
        name=record.name, kind=record.kind, place=target, folder=str(out), files=files, licence=_licence(record)
    )


def _shared_record(path: Path, target: str) -> RegistryRecord:
    try:
        if path.stat().st_size > MOST_RECORD_BYTES:
            raise ValueError("too large")
        document = json.loads(path.read_text("utf-8"))
        for event in document["events"]:
            SignedEvent.model_validate(event)
        return RegistryRecord.model_validate(document["record"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise InvalidRegistry(
            f"{target} has a {RECORD_FILE} that is no record of Poise; it was not sent by `poise hub push`."
        ) from error


def _safe_name(name: str, target: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts or name in (CARD_FILE, RECORD_FILE):
        raise InvalidRegistry(f"{target} names a file {name[:80]!r} that would be written elsewhere; nothing was kept.")
    return path


def _check_repository(target: str) -> None:
    if not REPOSITORY.fullmatch(target):
        raise InvalidRegistry(
            f"{target!r} is no place to share at; write OWNER/NAME for the hub, or an address such as s3://bucket/a "
            "or file:///mnt/shared/folder."
        )


def _hub_api(endpoint: str | None, token: str | None) -> Any:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingExtra.of("Sharing on the hub needs huggingface_hub", "train") from error
    return HfApi(endpoint=endpoint, token=token)


def _hub_reader(
    target: str, revision: str | None, endpoint: str | None, token: str | None, cache: Path
) -> Callable[[str], bytes]:
    api = _hub_api(endpoint, token)

    def fetch(name: str) -> bytes:
        with _hub_errors(target):
            return Path(api.hf_hub_download(target, name, revision=revision, cache_dir=cache)).read_bytes()

    return fetch


@contextlib.contextmanager
def _hub_errors(target: str) -> Iterator[None]:
    """What the hub's client raises, as one sentence that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise EndpointUnavailable("The hub wants to know who writes; log in with `hf auth login` first.") from error
    except errors.EntryNotFoundError as error:
        offline = isinstance(error, errors.LocalEntryNotFoundError)
        words = "cannot be reached" if offline else f"has no record of Poise in {target}, or not that file"
        raise EndpointUnavailable(f"The hub {words} ({first_line(error)}).") from error
    except errors.RepositoryNotFoundError as error:
        raise EndpointUnavailable(f"The hub has no {target} that you may see; check the name, or log in.") from error
    except errors.OfflineModeIsEnabled as error:
        raise EndpointUnavailable("HF_HUB_OFFLINE is set, so that the hub is not asked; unset it.") from error
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        told = REFUSALS_OF_THE_HUB.get(status, first_line(error))
        raise EndpointUnavailable(f"The hub refused {target} with {status or 'an error'}: {told}.") from error
    except Exception as error:  # of whichever HTTP library the hub's client uses, which changes
        library = type(error).__module__.partition(".")[0]
        if library in HTTP_LIBRARIES or isinstance(error, OSError):
            text = f"The hub cannot be reached ({type(error).__name__}); nothing was lost, so try again later."
            raise EndpointUnavailable(text) from error
        if isinstance(error, ValueError):
            raise EndpointUnavailable(f"The hub's client refuses {target}: {first_line(error)}") from error
        raise


def _send_to_address(folder: Path, target: str) -> str:
    system, root = _opened_place(target)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    last = [path for path in files if path.name == RECORD_FILE]  # the record comes last: half of a push is none
    with _place_errors(target), track(f"Sending to {target}", total=len(files)) as advance:
        for path in [*(path for path in files if path not in last), *last]:
            name = f"{root}/{path.relative_to(folder).as_posix()}"
            with contextlib.suppress(FileExistsError, NotImplementedError):
                system.makedirs(name.rpartition("/")[0], exist_ok=True)
            with system.open(name, "wb") as remote:
                remote.write(path.read_bytes())
            advance(1)
    return target.rstrip("/")


def _address_reader(target: str) -> Callable[[str], bytes]:
    system, root = _opened_place(target)

    def fetch(name: str) -> bytes:
        with _place_errors(target), system.open(f"{root}/{name}", "rb") as remote:
            return bytes(remote.read())

    return fetch


def _opened_place(target: str) -> tuple[Any, str]:
    check_no_password(target)
    fsspec: Any = import_extra("fsspec", f"Sharing at {target}")
    with _place_errors(target):
        system, root = fsspec.core.url_to_fs(target.rstrip("/"))
    return system, str(root)


@contextlib.contextmanager
def _place_errors(target: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtra(f"{target} needs another package: {first_line(error)}") from error
    except FileNotFoundError as error:
        raise EndpointUnavailable(f"{target} has no record of Poise, or lacks a file of it.") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise EndpointUnavailable(f"{target} cannot be used: {first_line(error) or type(error).__name__}") from error
