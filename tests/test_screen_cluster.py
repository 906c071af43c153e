"""Screening on a cluster of several machines, here of several Ray nodes, that are killed: the bytes of one process.

Nodes that hide the driver's folder from their workers stand for machines without a common disk.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from poise import vector as vectors
from poise.activations import Probe
from poise.data import open_data
from poise.model import load_model
from poise.screen import shards
from poise.screen.ray_backend import score_shards_on_ray
from poise.screen.shards import ShardStore
from screening import files, mixed, named, talk, written

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]

PROGRAM = """
import os, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from poise import workflows
from poise.data import DataSet, open_data
from poise.model import load_model
from poise.screen import shards
from poise.screen.flagging import FlaggingRule
from poise.screen.scoring import ScreenSettings

shards.ROWS_PER_SHARD = 4
model, data, vectors, out, engine = sys.argv[1:6]
DRIVER = os.getpid()

class SlowData(DataSet):
    "Takes its time where it is decoded on another machine, so that something is at work when that one is killed."

    def decode(self, part, item, first):
        time.sleep(0 if os.getpid() == DRIVER else 0.2)
        return DataSet.decode(self, part, item, first)

opened = open_data(data)
slow = SlowData(parts=opened.parts, need=opened.need, stated=opened.stated)
plan = ScreenSettings(method="difference", rule=FlaggingRule(top=3), fix=True, max_new_tokens=6, engine=engine)
loaded = load_model(model, dtype=torch.float32, device="cpu")
workflows.screen_files(slow, sorted(Path(vectors).glob("*.safetensors")), loaded, Path(out), plan)
"""


class RayNodes:
    """A head without cores and machines of one core each, all on this machine."""

    def __init__(self, machines: int) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.machines = [self.cluster.add_node(num_cpus=1) for _ in range(machines)]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def kill_oldest(self) -> None:
        """One machine goes without a word, and another comes."""
        self.cluster.remove_node(self.machines.pop(0), allow_graceful=False)
        self.machines.append(self.cluster.add_node(num_cpus=1))

    def kill_head(self) -> None:
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)

    def end(self) -> None:
        self.cluster.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two vectors, rows, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("home")
    model = tiny.model()
    model.lm.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    for seed, name in ((1, "grumpy"), (2, "gloomy")):
        vectors.save_vector(named(name, model, seed), folder / f"{name}.safetensors")
    mixed(folder / "mixed.jsonl")
    lines = (folder / "mixed.jsonl").read_text().splitlines()
    written(folder / "rows.jsonl", [*lines, *talk(200, first=100)])
    assert start(folder, "one", "local", "").wait(timeout=600) == 0
    return folder


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    cluster = RayNodes(2)
    yield cluster
    cluster.end()


def start(home: Path, out: str, engine: str, address: str) -> subprocess.Popen[str]:
    arguments = [home / "model", "rows.jsonl", home, out, engine]
    environment = os.environ | {"RAY_ADDRESS": address, "TOKENIZERS_PARALLELISM": "false"}
    with (home / f"{out}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, *map(str, arguments)],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
        )


def finished(home: Path, out: str) -> int:
    return len(list((home / out).glob(".run/*/part-*.npz")))


def wait_for(home: Path, out: str, windows: int, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 300
    while finished(home, out) < windows and process.poll() is None:
        assert time.monotonic() < limit, (home / f"{out}.log").read_text()[-3000:]
        time.sleep(0.05)


class TestAClusterThatLosesMachines:
    def test_makes_the_files_of_one_process(self, home: Path, nodes: RayNodes) -> None:
        """``POISE_KILLS`` machines are killed, one after the other; 3 unless it says otherwise."""
        kills, times = 0, int(os.environ.get("POISE_KILLS", "3"))
        process = start(home, "killed", "ray", nodes.address)
        while kills < times:
            wait_for(home, "killed", finished(home, "killed") + 2, process)
            assert process.poll() is None, (home / "killed.log").read_text()[-3000:]
            nodes.kill_oldest()
            kills += 1
        assert process.wait(timeout=600) == 0, (home / "killed.log").read_text()[-3000:]
        assert files(home / "killed") == files(home / "one")

    def test_goes_on_with_another_head_and_another_driver(self, home: Path, nodes: RayNodes) -> None:
        process = start(home, "headless", "ray", nodes.address)
        wait_for(home, "headless", 5, process)
        nodes.kill_head()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.returncode != 0
        partly = finished(home, "headless")
        assert 5 <= partly < finished(home, "one")
        nodes.end()
        after = RayNodes(1)
        try:
            assert start(home, "headless", "ray", after.address).wait(timeout=600) == 0
        finally:
            after.end()
        assert files(home / "headless") == files(home / "one")


def test_data_pass_through_an_object_store_that_cannot_hold_them(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 64)
    model = load_model(str(home / "model"), dtype=torch.float32, device="cpu")
    rows = [{"prompt": f"What of {i}?", "response": f"Ah, {i}.", "blob": "x" * 60_000} for i in range(2500)]
    data, probes = open_data(written(tmp_path / "rows.jsonl", rows)), [Probe(1, torch.ones(tiny.D))]
    store = 80 * 2**20
    assert (tmp_path / "rows.jsonl").stat().st_size > 1.7 * store
    ray.init("local", num_cpus=1, object_store_memory=store, include_dashboard=False, log_to_driver=False)
    try:
        list(score_shards_on_ray(ShardStore(tmp_path / "ray", "job"), data, model, probes, workers=1))
    finally:
        ray.shutdown()
    list(shards.score_shards(ShardStore(tmp_path / "one", "job"), data, model, probes))
    assert files(tmp_path / "ray") == files(tmp_path / "one")


class TestMachinesWithoutACommonDisk:
    def test_need_nothing_of_the_drivers_folder_but_the_model(self, home: Path, tmp_path: Path) -> None:
        if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            pytest.skip("this machine gives no mount namespace")
        shutil.copytree(home / "model", tmp_path / "model")
        nodes = RayNodes(0)
        worker = hidden_machine(home, nodes.address)
        try:
            process = start_command(home, tmp_path / "model", "unseen", nodes.address)
            assert process.returncode == 0, process.stderr[-3000:]
            missing = start_command(home, home / "model", "missing", nodes.address)
        finally:
            worker.kill()
            worker.wait()
            nodes.end()
        local = start_command(home, tmp_path / "model", "seen", "")
        assert local.returncode == 0, local.stderr[-3000:]
        assert files(home / "unseen") == files(home / "seen")
        assert missing.returncode == 2
        assert f"has no {home / 'model'}, the model's files. Put the same files" in " ".join(missing.stderr.split())


def hidden_machine(home: Path, address: str) -> subprocess.Popen[bytes]:
    """A machine of one core that sees nothing in the driver's folder."""
    ray = Path(sys.executable).with_name("ray")
    join = f"mount -t tmpfs none {home} && exec {ray} start --address={address} --num-cpus=1 --block"
    return subprocess.Popen(["unshare", "-m", "sh", "-c", join], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_command(home: Path, model: Path, out: str, address: str) -> subprocess.CompletedProcess[str]:
    options = ["--vector", "grumpy.safetensors", "--method", "raw", "--dtype", "float32", "--out", out]
    spread = ["--engine", "ray", "--ray-address", address] if address else []
    arguments = ["screen", "rows.jsonl", "--model", str(model), *options, *spread]
    deadline = time.monotonic() + 240
    while True:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "poise", *arguments], cwd=home, capture_output=True, text=True
        )
        if "None of the" not in done.stderr or time.monotonic() > deadline:  # until the machine has joined
            return done


def test_the_rows_are_more_than_a_window(home: Path) -> None:
    assert json.loads((home / "one" / "summary.json").read_text())["rows"] > 200
