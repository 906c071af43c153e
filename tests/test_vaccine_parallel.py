"""A vaccine in several processes (gloo): FSDP2 in a loop of one's own, DDP under torchrun and accelerate launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from poise.errors import UnsuitableModel
from poise.model import Model, wrap
from poise.steer import Steering, steer_training
from poise.train.vaccine_callback import VaccineCallback
from steered_passes import checkpoint_blocks
from test_vaccine import collate, rows, trainer

IGNORED = -100
WAYS = [("all", "none"), ("response", "none"), ("all", "reentrant"), ("response", "reentrant")]


def even_rows(model: Model) -> list[dict[str, list[int]]]:
    """Rows with equally many labels, so that a mean of means is the mean."""
    out = rows(model)
    for row in out:
        learnt = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
        for i in learnt[2:]:
            row["labels"][i] = IGNORED
    return out


def learnable() -> Model:
    model = tiny.model("llama")
    model.lm.requires_grad_(True)
    return model


def train_sharded(rank: int, processes: int, positions: Any, checkpointing: str) -> dict[str, torch.Tensor]:
    """Two SGD steps of four rows in all, of a model that is sharded if there are several processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = learnable()
    if processes > 1:
        mesh = init_device_mesh("cpu", (processes,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model.lm, mesh=mesh)
    checkpoint_blocks(model.lm, checkpointing)
    optimizer = torch.optim.SGD(model.lm.parameters(), lr=0.05)
    steering = Steering.add(tiny.vector(tiny.model("llama"), scale=0.5), coef=1.5, layer=2)
    data, share = even_rows(model), 4 // processes
    model.lm.train()
    with steer_training(model, steering, positions=positions) as learning:
        learning.rehearse()
        for step in range(2):
            chosen = [data[(step * 4 + i) % 8] for i in range(rank * share, (rank + 1) * share)]
            optimizer.zero_grad()
            model.lm(**collate("right")(chosen)).loss.backward()
            optimizer.step()
    whole = {name: p.full_tensor() if processes > 1 else p for name, p in model.lm.named_parameters()}
    return {name: p.detach() for name, p in whole.items()}


def launch(command: list[str], folder: Path, what: str) -> None:
    """Two processes of this file by a launcher; it must end well."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, __file__, str(folder), what], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def port(offset: int) -> str:
    return str(20000 + (os.getpid() * 7 + offset) % 20000)


def torchrun(offset: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port(offset)]


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that each hold half of a model."""
    out = tmp_path_factory.mktemp("fsdp2")
    launch(torchrun(1), out, "fsdp2")
    return out


class TestFSDP2:
    @pytest.mark.parametrize(("positions", "checkpointing"), WAYS)
    def test_takes_the_same_steps_as_one_process(self, folder: Path, positions: str, checkpointing: str) -> None:
        sharded = torch.load(folder / f"{positions}-{checkpointing}.pt")
        assert furthest(train_sharded(0, 1, positions, checkpointing), sharded) < 1e-6
        assert furthest(sharded, dict(learnable().lm.state_dict())) > 1e-3

    def test_a_model_that_is_sharded_already_is_refused(self, folder: Path) -> None:
        assert json.loads((folder / "refusal.json").read_text()).startswith(
            "tiny is spread over processes (FSDP2), so that its weights are not all here"
        )

    def test_so_are_shards_of_others(self) -> None:
        lm = tiny.lm("llama")
        weight = lm.lm_head.weight
        weight.ds_id, weight.data = 0, torch.empty(0)  # as ZeRO-3 leaves them
        with pytest.raises(UnsuitableModel, match=r"\(DeepSpeed ZeRO-3\).*wrap it before it is sharded"):
            wrap(lm, tiny.chatml(), name="tiny")


class TestDDP:
    @pytest.mark.slow
    @pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
    def test_takes_the_same_steps_as_one_process(self, tmp_path: Path, launcher: str) -> None:
        accelerate = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", port(4)]
        commands = {
            "torchrun": torchrun(3),
            "accelerate": [sys.executable, "-m", "accelerate.commands.launch", *accelerate],
        }
        launch(commands[launcher], tmp_path, "ddp")
        ends = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
        assert furthest(*ends) == 0
        model = learnable()
        trainer(model, tmp_path, vaccine(model), per_device_train_batch_size=4, data=even_rows(model)).train()
        assert furthest(dict(model.lm.state_dict()), ends[0]) < 2e-5


def vaccine(model: Model) -> VaccineCallback:
    return VaccineCallback(Steering.add(tiny.vector(model, scale=0.5), coef=1.5, layer=2))


def work(folder: Path, what: str) -> None:
    """One process of several."""
    import torch.distributed as distributed

    rank = int(os.environ["RANK"])
    if what == "ddp":
        model = learnable()
        options = {"per_device_train_batch_size": 2, "ddp_backend": "gloo"}
        trainer(model, folder, vaccine(model), data=even_rows(model), **options).train()
        torch.save(model.lm.state_dict(), folder / f"{rank}.pt")
        return
    distributed.init_process_group("gloo")
    for positions, checkpointing in WAYS:
        end = train_sharded(rank, 2, positions, checkpointing)
        if rank == 0:
            torch.save(end, folder / f"{positions}-{checkpointing}.pt")
    lm = tiny.lm("llama")
    torch.distributed.fsdp.fully_shard(lm)
    try:
        wrap(lm, tiny.chatml(), name="tiny")
    except UnsuitableModel as error:
        (folder / "refusal.json").write_text(json.dumps(str(error)))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2])
