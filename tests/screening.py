"""What the tests of screening share: chats, a tiny model with its vectors, and runs that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from poise import vector as vectors
from poise.data import Conversation, open_data
from poise.model import Model
from poise.screen import pipeline as job
from poise.screen import shards as parts
from poise.screen.scoring import ScreenSettings
from poise.screen.summary import ScreeningSummary
from poise.vector import PersonaVector

WORDS = " ".join(tiny.SENTENCES).split()


SHORT = 6  # new tokens


def talk(n: int, *, turns: int = 1, first: int = 0) -> list[dict[str, Any]]:
    """Chats of different lengths, no two the same."""
    rows = []
    for i in range(first, first + n):
        said = []
        for turn in range(turns):
            said += [{"role": "user", "content": f"What of {i} {turn}?"}]
            said += [{"role": "assistant", "content": " ".join(WORDS[(i + turn) % 20 : (i + turn) % 20 + 4 + i % 9])}]
        rows.append({"id": i, "messages": said})
    return rows


def written(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def named(name: str, model: Model, seed: int) -> PersonaVector:
    trait = tiny.trait(name)
    return tiny.vector(model, seed=seed, trait=trait, trait_hash=trait.hash)


def conversations(rows: Sequence[dict[str, Any]]) -> list[Conversation]:
    return [
        Conversation(messages=tuple(row["messages"]), file="", row=i, index=i, raw={}) for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("llama")


@pytest.fixture(scope="module")
def two(model: Model) -> list[PersonaVector]:
    return [named("grumpy", model, 1), named("gloomy", model, 2)]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS_PER_SHARD", 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    """The tiny model on disk, with its tokenizer."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    model.lm.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    return path


def states(model: Model, ids: Sequence[int], layer: int) -> torch.Tensor:
    """Hugging Face's own hidden states after a block, [T, d]."""
    with torch.inference_mode():
        out = model.lm(input_ids=torch.tensor([list(ids)]), output_hidden_states=True)
    return out.hidden_states[layer + 1][0]  # type: ignore[no-any-return]


def greedy(model: Model, ids: Sequence[int], most: int) -> list[int]:
    """The likeliest continuation, a token at a time without a cache."""
    said: list[int] = []
    while len(said) < most:
        with torch.inference_mode():
            token = int(model.lm(input_ids=torch.tensor([[*ids, *said]])).logits[0, -1].argmax())
        if token in model.stop_ids:
            break
        said.append(token)
    return said


BROKEN = ["{broken", json.dumps({"messages": [{"role": "user", "content": "Only asked."}]}), "[1]"]


def mixed(path: Path) -> Path:
    """27 rows, of which three are broken, and one is longer than the model's window."""
    rows: list[Any] = [*talk(20, turns=2)[:10], *talk(13, first=40)]
    rows[3:3] = [BROKEN[0]]
    rows[12:12] = [BROKEN[1], "", json.dumps(talk(1, first=7)[0], indent=None) + " \r"]
    rows.append({"messages": [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "Ah."}]})
    return written(path, rows)


def run(data: Path, model: Model, two: Sequence[PersonaVector], out: Path, **said: Any) -> ScreeningSummary:
    normal = said.pop("normal", None)
    plan = ScreenSettings(**({"method": "raw", "max_new_tokens": SHORT} | said))
    return job.screen_data(open_data(data), model, two, out, plan, normal=open_data(normal) if normal else None)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from poise import report, vector, workflows
from poise.data import open_data
from poise.model import load_model
from poise.screen import shards
from poise.screen.flagging import FlaggingRule
from poise.screen.scoring import ScreenSettings
import matplotlib.pyplot, pyarrow.parquet, poise.report.screening
shards.ROWS_PER_SHARD = 2
folder, data, vectors, out = map(Path, sys.argv[1:5])
paths, method, engine, wanted = sorted(vectors.glob("*.safetensors")), sys.argv[5], sys.argv[6], int(sys.argv[7])
model = load_model(str(folder), dtype=torch.float32, device="cpu")
settings = {"method": method, "rule": FlaggingRule(top=3), "fix": True, "max_new_tokens": 6}
plans = {engine_name: ScreenSettings(**settings, engine=engine_name) for engine_name in ("local", "ray")}

def start(name, engine):
    child = os.fork()
    if child == 0:
        try:
            workflows.screen_files(open_data(data), paths, model, out / name, plans[engine], normal=open_data(data))
        except BaseException:
            import traceback; traceback.print_exc(); os._exit(3)
        os._exit(0)
    return child

def ended(child):
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in ((0, -9, 1) if engine == "ray" else (0, -9)), code  # 1: Ray itself now and then, as it shuts down
    return code

def done(name):
    return len(list(out.glob(f"{name}/.run/*/part-*.npz")))

def wait(name):
    "Until a random moment: of the time for the local engine, of the work for Ray, which is long in starting."
    if engine == "local":
        return time.sleep(draw.uniform(0, lasts / 3))
    had, began = done(name), time.monotonic()
    until = draw.randint(had, done("whole"))
    while done(name) < until and time.monotonic() < began + 60:
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.05 if until > had else 10))

began = time.monotonic()
ended(start("whole", "local"))
lasts = time.monotonic() - began
draw, kills, rounds, midway = random.Random(8), 0, 0, 0
while kills < wanted:
    name = f"killed{rounds}"
    child = start(name, engine)
    wait(name)
    os.kill(child, signal.SIGKILL)
    if ended(child):
        kills += 1
        midway += 0 < done(name) < done("whole")
    else:
        rounds += 1
tries = 0
while ended(start(name, engine)):
    tries += 1
    assert tries < 3
print(f"{kills} kills, {midway} of them between the first window and the last, {rounds} runs ended before theirs")
"""


def killed(vectors_on: Sequence[PersonaVector], model: Path, where: Path, engine: str, times: int) -> str:
    """Kill a screening at random moments, then let it end; check its files; say what happened."""
    data = mixed(where / "rows.jsonl")
    for vector in vectors_on:
        vectors.save_vector(vector, where / f"{vector.name}.safetensors")
    program = [sys.executable, "-c", KILLER, model, data, where, where / "out", "difference", engine, str(times)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    expected = files(where / "out" / "whole")
    assert set(expected) == {
        "clean.jsonl",
        "fixed.jsonl",
        "flagged.jsonl",
        "rejected.jsonl",
        "rejected_rows.jsonl",
        "report.html",
        "scores.parquet",
        "summary.json",
    }
    ended = sorted((where / "out").glob("killed*"))
    assert ended
    for out in ended:
        assert files(out) == expected
    return done.stdout
