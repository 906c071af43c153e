"""Screening from and to addresses that fsspec knows: S3, of a server on this machine, and memory."""

# ruff: noqa: F811
from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from poise import vector as vectors
from poise import workflows
from poise.data import open_data
from poise.errors import InvalidArgument, OutputExists, SaveFailed
from poise.model import Model
from poise.screen import shards
from poise.screen.flagging import FlaggingRule
from poise.screen.scoring import ScreenSettings
from poise.storage.output import check_output
from poise.vector import PersonaVector
from poise.workflows.output_address import local_folder
from screening import files, folder, mixed, model, small_windows, two  # noqa: F401

SECRET = "kept-in-the-environment"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # botocore's own
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # sockets that aiohttp leaves
]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server; its address and credentials stand in the environment, where fsspec's driver looks for them."""
    pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("data")
        yield "s3://data"
        server.stop()


@pytest.fixture(params=["s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address below which there is nothing but rows.jsonl."""
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "cache"))
    root = request.getfixturevalue("s3") if request.param == "s3" else "memory://data"
    address = f"{root}/{uuid.uuid4().hex}"
    rows = mixed(tmp_path / "rows.jsonl")
    with fsspec.open(f"{address}/rows.jsonl", "wb") as file:
        file.write(rows.read_bytes())
    return address


@pytest.fixture
def paths(two: list[PersonaVector], tmp_path: Path) -> list[Path]:
    for vector in two:
        vectors.save_vector(vector, tmp_path / f"{vector.name}.safetensors")
    return [tmp_path / f"{vector.name}.safetensors" for vector in two]


def screen(data: str, paths: list[Path], model: Model, out: Any, **changes: Any) -> None:
    plan = ScreenSettings(**({"method": "difference", "rule": FlaggingRule(top=3), "max_new_tokens": 6} | changes))
    workflows.screen_files(open_data(data), paths, model, out, plan)


def stored(address: str) -> dict[str, bytes]:
    """The files right at an address."""
    system, root = fsspec.core.url_to_fs(address)
    system.invalidate_cache()
    return {Path(name).name: system.cat_file(name) for name in system.ls(root, detail=False) if system.isfile(name)}


def test_rows_come_from_and_results_go_to_an_address(
    place: str,
    paths: list[Path],
    model: Model,
    tmp_path: Path,
) -> None:
    screen(f"{place}/rows.jsonl", paths, model, tmp_path / "here", fix=True)
    screen(f"{place}/rows.jsonl", paths, model, f"{place}/out", fix=True)
    assert stored(f"{place}/out") == files(tmp_path / "here")
    assert not local_folder(f"{place}/out").exists()
    screen(f"{place}/rows.jsonl", paths, model, f"{place}/out")  # without --fix there is no such file
    assert "fixed.jsonl" not in stored(f"{place}/out")


def test_a_run_goes_on_where_another_machine_was_lost(
    place: str,
    paths: list[Path],
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored: list[int] = []
    score = shards.score_shard

    def counted(rows: Any, *arguments: Any) -> Any:
        scored.append(rows[0].index)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(rows, *arguments)

    monkeypatch.setattr(shards, "score_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        screen(f"{place}/rows.jsonl", paths, model, f"{place}/out")
    shutil.rmtree(local_folder(f"{place}/out"))
    screen(f"{place}/rows.jsonl", paths, model, f"{place}/out")
    assert scored == [0, 8, 16, 16, 24]
    scored[:] = [-1] * 3
    screen(f"{place}/rows.jsonl", paths, model, tmp_path / "here")
    assert stored(f"{place}/out") == files(tmp_path / "here")


def test_files_that_no_screening_wrote_stay(place: str, paths: list[Path], model: Model) -> None:
    with fsspec.open(f"{place}/out/summary.json", "wb") as file:
        file.write(b"mine")
    with pytest.raises(OutputExists, match=r"holds summary\.json, not written by"):
        screen(f"{place}/rows.jsonl", paths, model, f"{place}/out")
    assert stored(f"{place}/out") == {"summary.json": b"mine"}


def test_a_bucket_that_is_not_there_is_said_without_credentials(
    s3: str,
    paths: list[Path],
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POISE_CACHE", str(tmp_path / "cache"))
    rows = mixed(tmp_path / "rows.jsonl")
    with pytest.raises(SaveFailed, match=r"^s3://nowhere/out cannot be written: .*bucket.*; what is done") as error:
        screen(str(rows), paths, model, "s3://nowhere/out")
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("address", ["s3://me:hush@data/rows.jsonl", "zip://a.jsonl::sftp://me:hush@host/a.zip"])
def test_a_password_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(InvalidArgument, match=r"has a password in it") as error:
        open_data(address)
    assert "hush" not in str(error.value)
    with pytest.raises(InvalidArgument, match=r"has a password in it"):
        local_folder(address)


def test_jobs_that_write_to_a_disk_say_so_of_an_address(tmp_path: Path) -> None:
    with pytest.raises(SaveFailed, match=r"^Cannot save to s3://data/v.safetensors: this job writes to a disk"):
        check_output(Path("s3://data/v.safetensors"))
