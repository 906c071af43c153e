"""Is this tree as fast as another one? Both run in processes of their own and take turns, step by step.

    git worktree add /tmp/old COMMIT
    python benchmarks/against.py /tmp/old [--model smollm2-135m] [--rounds 5] [--only steer]

Every line is the median of this tree's time over the other's, bootstrapped by round: above 1 where this tree is
slower. A round has processes of its own, since one can be a few per cent slower than its twin for as long as it lives.
Decoding advances both trees token by token; reading and screening batch by batch of texts. The pieces measured are
those of each tree's own ``benchmarks/``, so that a renamed function is no obstacle.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOKENS = 24
PAIRS = 2  # runs of each tree a round, after one that warms up
TEXTS = 8


class Tree:
    """One tree's measurements, in a process of its own that does a step when it is told to."""

    def __init__(self, root: Path, model: str) -> None:
        paths = os.pathsep.join([str(root / "src"), str(root / "benchmarks")])
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(HERE / "against.py"), "--worker", str(root), "--model", model],
            env=os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, command: str) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of a tree ended at {command!r}; its message stands above")
        return answer.strip()

    def step(self) -> float | None:
        """Seconds of one step; None where the run is over."""
        answer = self.ask("step")
        return None if answer == "end" else float(answer)


def round_medians(trees: tuple[Tree, Tree], case: str) -> list[float]:
    """Median seconds of a step in this round, for each tree; the first step of a run, which reads the prompt, is not
    counted where there are more."""
    steps: tuple[list[float], list[float]] = ([], [])
    for pair in range(PAIRS + 1):
        for tree in trees:
            tree.ask(f"begin {case}")
        times: tuple[list[float], list[float]] = ([], [])
        running = True
        while running:
            for which in (0, 1) if (pair + len(times[0])) % 2 == 0 else (1, 0):
                took = trees[which].step()
                running = took is not None
                if took is not None:
                    times[which].append(took)
        if pair:
            for which in (0, 1):
                steps[which].extend(times[which][1:] if len(times[which]) > 8 else times[which])
    return [statistics.median(each) for each in steps]


def cases(model_name: str) -> dict[str, Callable[[], Iterator[object]]]:
    """What is measured, by name: every call makes a run, whose steps are timed one by one."""
    import torch

    import common
    import read_activations
    import screen
    import steer_decode
    import watch_decode
    from poise import contrast
    from poise import model as models
    from poise.activations import Probe
    from poise.extract import extract
    from poise.trait import library

    load: Any = getattr(models, "load_model", None) or models.load  # type: ignore[attr-defined]
    load_trait: Any = getattr(library, "load_trait", None) or library.load  # type: ignore[attr-defined]
    model = load(model_name)
    endless = dataclasses.replace(model, stop_ids=frozenset())
    vector = extract(contrast.exemplars(load_trait("impolite"), model), model)
    traits = watch_decode.TRAITS
    directions = torch.randn(traits, model.width, generator=torch.Generator().manual_seed(0))
    spread = [round((k + 1) * (model.layers - 1) / traits) for k in range(traits)]
    probes = {
        where: [Probe(layer, direction) for layer, direction in zip(layers, directions, strict=True)]
        for where, layers in (("one layer", [model.layers // 2] * traits), ("eight layers", spread))
    }
    made: dict[str, Callable[[], Iterator[object]]] = {}
    for batch in (1, 16):
        made[f"decode, plain, batch {batch}"] = lambda batch=batch: steer_decode.steps(endless, batch, TOKENS)
        for label, steering in steer_decode.steerings(vector, endless).items():
            made[f"steer_decode, {label}, batch {batch}"] = lambda batch=batch, steering=steering: steer_decode.steps(
                endless, batch, TOKENS, steering
            )
        for label, chosen in probes.items():
            made[f"watch_decode, {label}, batch {batch}"] = lambda batch=batch, chosen=chosen: steer_decode.steps(
                endless, batch, TOKENS, None, chosen
            )
    corpus = common.texts(model, TEXTS)
    rows = screen.conversations(TEXTS)
    layer = round(model.layers / 3)
    at_layer = [Probe(layer, directions[0])]
    many = [Probe(layer, direction) for direction in directions]
    made["read_activations"] = lambda: pieces(lambda part: read_activations.ours(model, part), corpus)
    made["read_activations, no hooks"] = lambda: pieces(lambda part: read_activations.bare(model, part), corpus)
    made["screen, one trait"] = lambda: pieces(lambda part: screen.ours(model, part, at_layer), rows)
    made["screen, eight traits"] = lambda: pieces(lambda part: screen.ours(model, part, many), rows)
    return made


def pieces(work: Callable[[Any], object], items: list[Any]) -> Iterator[object]:
    for start in range(0, len(items), 8):
        yield work(items[start : start + 8])


def worker(model: str) -> None:
    """Reads ``begin CASE`` and ``step`` from standard input, answers with seconds."""
    runs = cases(model)
    run: Iterator[object] = iter(())
    for line in sys.stdin:
        command, _, case = line.strip().partition(" ")
        if command == "list":
            print("|".join(runs), flush=True)
        elif command == "begin":
            run = runs[case]()
            gc.collect()
            print("ok", flush=True)
        else:
            began = time.perf_counter()
            over = next(run, run) is run
            print("end" if over else f"{time.perf_counter() - began:.6f}", flush=True)


def main(options: argparse.Namespace) -> None:
    sys.path[:0] = [str(HERE.parent / "src"), str(HERE)]
    from common import median_ratio, shown

    medians: dict[str, list[list[float]]] = {}
    for _ in range(options.rounds):
        trees = (Tree(HERE.parent, options.model), Tree(options.other.resolve(), options.model))
        names = [tree.ask("list").split("|") for tree in trees]
        for case in names[0]:
            if case in names[1] and any(part in case for part in options.only.split(",")):
                medians.setdefault(case, []).append(round_medians(trees, case))
        for tree in trees:
            tree.process.kill()
            tree.process.wait()
    for case, rounds in medians.items():
        mine, others = ([each[which] for each in rounds] for which in (0, 1))
        ratio = shown(median_ratio(others, mine)).replace("pairs", "rounds")
        times = f"this {1e3 * statistics.median(mine):8.2f} ms a step, other {1e3 * statistics.median(others):8.2f}"
        print(f"{case:34s} {times}; ratio {ratio}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="a checkout of the other commit")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5, help="each with processes of its own")
    parser.add_argument("--only", default="", help="only cases whose name holds one of these, by commas")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.model)
    elif given.other is None:
        parser.error("name the checkout to compare with")
    else:
        main(given)
